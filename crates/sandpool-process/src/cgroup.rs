//! Control groups, v1 and v2: what bounds a sandbox's memory, processes and processor time.
//!
//! ```text
//! v1   <mount of memory|pids|cpu>/<own group>/sandpool-<instance>/s<slot>
//! v2   <mount>/sandpool-<instance>/s<slot>
//! ```
//!
//! A group of ours holds sandboxes of one launcher and nothing else, so that what a killed launcher left behind can
//! be told from what lives, and swept.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::epoll::EventFlags;
use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;
use sandpool_core::limits::Limits;
use sandpool_driver::Usage;

/// The controllers that a sandbox cannot do without.
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];

/// The period of processor quotas, in microseconds (the kernel's own default).
const CPU_PERIOD_US: u64 = 100_000;

/// A sandbox that is nobody's yet has this part of the processor share it will have: while it boots, those that work for
/// somebody come first. Where nobody else works it boots as fast as ever.
const BEHIND: u64 = 16;

/// Where one launcher's groups are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Groups {
    /// One directory per controller; those that only count too, where there are such.
    V1 { memory: PathBuf, pids: PathBuf, cpu: PathBuf, cpuacct: Option<PathBuf>, blkio: Option<PathBuf> },
    /// One directory.
    V2(PathBuf),
}

/// One sandbox's groups.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    groups: Groups,
    name: String,
}

/// How a new process gets into a sandbox's groups without anybody waiting.
///
/// When one process puts another into a group, or all threads of itself, the kernel waits for the other processors first
/// (a grace period of RCU, 5 to 15 ms, unless another such move was just before), and whoever makes or removes a group
/// waits for that. Neither of these ways is such a move.
#[derive(Debug)]
pub(crate) enum Entrance {
    /// Version 1: the one thread of the process writes `0`, itself, into each of these. The kernel asks for the rights of
    /// whoever opened them.
    Doors(Vec<OwnedFd>),
    /// Version 2: it is cloned into this group.
    Birth(OwnedFd),
}

impl Entrance {
    /// The group to be cloned into, if that is the way.
    pub(crate) fn birth(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Doors(_) => None,
            Self::Birth(group) => Some(group.as_fd()),
        }
    }

    /// What it consists of.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        match self {
            Self::Doors(doors) => doors.as_slice(),
            Self::Birth(group) => std::slice::from_ref(group),
        }
        .iter()
        .map(AsFd::as_fd)
    }

    /// Puts the calling process, which has one thread, into the groups, if it was not born there.
    pub(crate) fn enter(&self) -> io::Result<()> {
        let Self::Doors(doors) = self else { return Ok(()) };
        doors.iter().try_for_each(|door| match rustix::io::write(door, b"0")? {
            1 => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        })
    }
}

/// How close a sandbox is to its memory limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pressure {
    /// Bytes in use, page cache included.
    pub(crate) usage: u64,
    /// Major page faults since the group was made: pages read again from disk.
    pub(crate) major_faults: u64,
}

impl Groups {
    /// Which version of control groups sandboxes here are bounded by; `None` when neither has what they need.
    pub(crate) fn version() -> Option<u8> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        Self::locate(&mounts, &own, "any").ok().map(|groups| match groups {
            Self::V1 { .. } => 1,
            Self::V2(_) => 2,
        })
    }

    /// Makes the directories of the launcher with this instance name, and removes what an earlier one left in them.
    pub(crate) fn open(instance: &str) -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let groups = Self::locate(&mounts, &own, instance).map_err(io::Error::other)?;
        let prepared = groups.prepare();
        if prepared.is_err() {
            groups.close();
        }
        prepared.map(|()| groups)
    }

    fn prepare(&self) -> io::Result<()> {
        if let Self::V2(directory) = self {
            let parent = directory.parent().unwrap_or(Path::new("/"));
            let wanted: Vec<_> = CONTROLLERS.iter().map(|name| format!("+{name}")).collect();
            write(&parent.join("cgroup.subtree_control"), &wanted.join(" "))?;
            make(directory)?;
            write(&directory.join("cgroup.subtree_control"), &wanted.join(" "))?;
            // It only counts, and a sandbox can do without.
            for of in [parent, directory] {
                let _ = write(&of.join("cgroup.subtree_control"), "+io");
            }
        }
        for directory in self.directories() {
            make(directory)?;
        }
        self.sweep();
        Ok(())
    }

    /// Reads where the controllers are from the texts of `/proc/self/mountinfo` and `/proc/self/cgroup`.
    fn locate(mounts: &str, own: &str, instance: &str) -> Result<Self, String> {
        let name = format!("sandpool-{instance}");
        let v1 = |controller: &str| -> Option<PathBuf> {
            let (root, point) = mounts.lines().find_map(|line| {
                let (front, back) = line.split_once(" - ")?;
                let mut back = back.split(' ');
                let is_v1 = back.next()? == "cgroup";
                let options = back.nth(1)?;
                let front: Vec<_> = front.split(' ').collect();
                let found = is_v1 && options.split(',').any(|option| option == controller);
                found.then_some((*front.get(3)?, *front.get(4)?))
            })?;
            let path = own.lines().find_map(|line| {
                let mut parts = line.splitn(3, ':').skip(1);
                let controllers = parts.next()?;
                let path = parts.next()?;
                controllers.split(',').any(|name| name == controller).then_some(path)
            })?;
            let below = path.strip_prefix(root).unwrap_or(path);
            Some(Path::new(point).join(below.trim_start_matches('/')).join(&name))
        };
        let found: Vec<_> = CONTROLLERS.iter().filter_map(|controller| v1(controller)).collect();
        if let Ok([memory, pids, cpu]) = <[PathBuf; 3]>::try_from(found) {
            return Ok(Self::V1 { memory, pids, cpu, cpuacct: v1("cpuacct"), blkio: v1("blkio") });
        }
        let v2 = mounts.lines().find_map(|line| {
            let (front, back) = line.split_once(" - ")?;
            back.starts_with("cgroup2 ").then(|| front.split(' ').nth(4))?
        });
        match v2 {
            Some(point) => Ok(Self::V2(Path::new(point).join(name))),
            None => Err("no cgroup hierarchy has the controllers memory, pids and cpu".to_owned()),
        }
    }

    fn directories(&self) -> Vec<&Path> {
        match self {
            Self::V1 { memory, pids, cpu, cpuacct, blkio } => {
                let mut all: Vec<&Path> = vec![memory, pids, cpu];
                all.extend(cpuacct.as_deref());
                all.extend(blkio.as_deref());
                all
            }
            Self::V2(directory) => vec![directory],
        }
    }

    /// Removes the groups of sandboxes that are not there any more. Those with processes stay.
    pub(crate) fn sweep(&self) {
        for directory in self.directories() {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    // Busy ones are somebody's; the next sweep sees them again.
                    let _ = fs::remove_dir(entry.path());
                }
            }
        }
    }

    /// Removes the launcher's own directories, when nothing is in them.
    pub(crate) fn close(&self) {
        self.sweep();
        for directory in self.directories() {
            let _ = fs::remove_dir(directory);
        }
    }

    /// Makes the groups of one sandbox, with its limits.
    pub(crate) fn create(&self, slot: u32, limits: &Limits) -> io::Result<Group> {
        self.make(format!("s{slot}"), limits)
    }

    /// The egress proxy's groups, which may be there from one that has ended. Its memory is limited, its processor time is not.
    pub(crate) fn of_egress(&self, memory: u64) -> io::Result<Group> {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let cpu_milli = u32::try_from(processors).unwrap_or(1).saturating_mul(1000);
        let limits = Limits { memory, pids: 1024, cpu_milli, ..Limits::default() };
        let group = self.make("egress".to_owned(), &limits)?;
        group.comes_first(&limits)?;
        Ok(group)
    }

    fn make(&self, name: String, limits: &Limits) -> io::Result<Group> {
        let group = Group { groups: self.clone(), name };
        let made = group.directories().iter().try_for_each(|directory| make(directory));
        let limited = made.and_then(|()| group.limit(limits));
        match limited {
            Ok(()) => Ok(group),
            Err(error) => {
                let _ = group.remove();
                Err(error)
            }
        }
    }
}

impl Group {
    fn directories(&self) -> Vec<PathBuf> {
        self.groups.directories().into_iter().map(|directory| directory.join(&self.name)).collect()
    }

    fn limit(&self, limits: &Limits) -> io::Result<()> {
        let memory = limits.memory.to_string();
        let quota = (u64::from(limits.cpu_milli) * CPU_PERIOD_US / 1000).max(1000);
        self.share(limits, BEHIND)?;
        match &self.groups {
            Groups::V1 { .. } => {
                let [in_memory, in_pids, in_cpu] = self.v1();
                write(&in_memory.join("memory.limit_in_bytes"), &memory)?;
                // Absent where swap is not accounted; then there is none to limit on a host that the report passed.
                let with_swap = in_memory.join("memory.memsw.limit_in_bytes");
                if with_swap.exists() {
                    write(&with_swap, &memory)?;
                }
                // Pages are never given back to a swap disk.
                let _ = write(&in_memory.join("memory.swappiness"), "0");
                write(&in_pids.join("pids.max"), &limits.pids.to_string())?;
                write(&in_cpu.join("cpu.cfs_period_us"), &CPU_PERIOD_US.to_string())?;
                write(&in_cpu.join("cpu.cfs_quota_us"), &quota.to_string())
            }
            Groups::V2(directory) => {
                let directory = directory.join(&self.name);
                write(&directory.join("memory.max"), &memory)?;
                if directory.join("memory.swap.max").exists() {
                    write(&directory.join("memory.swap.max"), "0")?;
                }
                // Half a sandbox is no sandbox: where the kernel can, it ends all of it.
                write(&directory.join("memory.oom.group"), "1")?;
                write(&directory.join("pids.max"), &limits.pids.to_string())?;
                write(&directory.join("cpu.max"), &format!("{quota} {CPU_PERIOD_US}"))
            }
        }
    }

    /// It is somebody's: from now on it has its whole share of the processor. Its agent may have begun to compute, and makes way already: then
    /// it comes back, and makes way again when it has looked.
    pub(crate) fn comes_first(&self, limits: &Limits) -> io::Result<()> {
        match self.share(limits, 1) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                let [.., in_cpu] = self.v1();
                write(&in_cpu.join("cpu.idle"), "0")?;
                self.share(limits, 1)
            }
            shared => shared,
        }
    }

    /// The whole share, as its file has it.
    pub(crate) fn whole_share(&self, limits: &Limits) -> String {
        self.share_of(limits, 1)
    }

    /// One processor's share, as the two versions count it, for each processor that is allowed; divided by `part`.
    fn share(&self, limits: &Limits, part: u64) -> io::Result<()> {
        let [.., in_cpu] = self.v1();
        let file = match &self.groups {
            Groups::V1 { .. } => "cpu.shares",
            Groups::V2(_) => "cpu.weight",
        };
        write(&in_cpu.join(file), &self.share_of(limits, part))
    }

    fn share_of(&self, limits: &Limits, part: u64) -> String {
        let milli = u64::from(limits.cpu_milli) / part;
        match &self.groups {
            Groups::V1 { .. } => (milli * 1024 / 1000).max(2).to_string(),
            Groups::V2(_) => (milli / 10).clamp(1, 10_000).to_string(),
        }
    }

    fn v1(&self) -> [PathBuf; 3] {
        match &self.groups {
            Groups::V1 { memory, pids, cpu, .. } => [memory, pids, cpu].map(|path| path.join(&self.name)),
            Groups::V2(path) => [path, path, path].map(|path| path.join(&self.name)),
        }
    }

    /// What a sandbox's agent needs to make way for others: how much processor time all of it has used, whether it makes way, and its
    /// share, which is to be written anew afterwards. None of them can raise what it may use (its quota).
    ///
    /// # Errors
    /// `NotFound` on a kernel without `cpu.idle` (before 5.15), or without a count of processor time.
    pub(crate) fn turns(&self) -> io::Result<[OwnedFd; 3]> {
        let open = |path: PathBuf, flags: OFlags| {
            rustix::fs::open(&path, flags | OFlags::CLOEXEC, Mode::empty()).map_err(|error| named(&path, &error.into()))
        };
        let [.., in_cpu] = self.v1();
        let (usage, share) = match &self.groups {
            Groups::V1 { cpuacct, .. } => {
                let accounts = cpuacct.as_ref().ok_or(io::ErrorKind::NotFound)?;
                (accounts.join(&self.name).join("cpuacct.usage"), "cpu.shares")
            }
            Groups::V2(_) => (in_cpu.join("cpu.stat"), "cpu.weight"),
        };
        Ok([
            open(usage, OFlags::RDONLY)?,
            open(in_cpu.join("cpu.idle"), OFlags::RDWR)?,
            open(in_cpu.join(share), OFlags::WRONLY)?,
        ])
    }

    /// How a new process gets into the groups, with all that it starts.
    pub(crate) fn entrance(&self) -> io::Result<Entrance> {
        let open = |path: &Path, flags: OFlags| {
            rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).map_err(|error| named(path, &error.into()))
        };
        let directories = self.directories();
        match &self.groups {
            Groups::V1 { .. } => {
                let doors = directories.iter().map(|directory| open(&directory.join("tasks"), OFlags::WRONLY));
                Ok(Entrance::Doors(doors.collect::<io::Result<_>>()?))
            }
            Groups::V2(directory) => Ok(Entrance::Birth(open(&directory.join(&self.name), OFlags::PATH)?)),
        }
    }

    /// Moves a process into the groups. For one that does not wait for its first answer: see [`Entrance`].
    pub(crate) fn take_in(&self, pid: Pid) -> io::Result<()> {
        self.directories()
            .iter()
            .try_for_each(|directory| write(&directory.join("cgroup.procs"), &pid.as_raw_nonzero().to_string()))
    }

    /// A descriptor on which the kernel tells that memory is reclaimed from the group, and the events that it does so
    /// with.
    ///
    /// # Errors
    /// `NotFound` on a kernel that does not tell.
    pub(crate) fn alarm(&self) -> io::Result<(OwnedFd, EventFlags)> {
        let [memory, ..] = self.v1();
        match &self.groups {
            Groups::V1 { .. } => {
                let counter = sandpool_sys::sandbox::counter()?;
                let level = fs::File::open(memory.join("memory.pressure_level"))?;
                // At the lowest level: whether it is too much is for the looks to find, which begin then.
                let text = format!("{} {} low", counter.as_raw_fd(), level.as_raw_fd());
                write(&memory.join("cgroup.event_control"), &text)?;
                Ok((counter, EventFlags::IN))
            }
            // It counts, among others, how often the limit was reached.
            Groups::V2(_) => Ok((fs::File::open(memory.join("memory.events"))?.into(), EventFlags::PRI)),
        }
    }

    /// Removes the groups. `ResourceBusy` while a process of them is still being cleaned up.
    pub(crate) fn remove(&self) -> io::Result<()> {
        for directory in self.directories() {
            match fs::remove_dir(&directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// What the sandbox uses.
    pub(crate) fn usage(&self) -> Usage {
        let [memory, pids, cpu] = self.v1();
        let usage = Usage {
            memory_peak: self.memory_peak(),
            oom_kills: self.oom_kills(),
            pids: number(&pids.join("pids.current")).and_then(|pids| u32::try_from(pids).ok()).unwrap_or(0),
            stored: field(&memory.join("memory.stat"), "shmem").unwrap_or(0),
            ..Usage::default()
        };
        match &self.groups {
            Groups::V1 { cpuacct, blkio, .. } => {
                let nanoseconds =
                    cpuacct.as_ref().and_then(|path| number(&path.join(&self.name).join("cpuacct.usage")));
                let file = blkio.as_ref().map(|path| path.join(&self.name).join("blkio.throttle.io_service_bytes"));
                let disk = file.and_then(|file| fs::read_to_string(file).ok());
                let moved = |word| disk.as_deref().map(|text| service_bytes(text, word));
                Usage {
                    memory: number(&memory.join("memory.usage_in_bytes")).unwrap_or(0),
                    cpu_us: nanoseconds.map(|nanoseconds| nanoseconds / 1000),
                    throttled_us: field(&cpu.join("cpu.stat"), "throttled_time").map(|nanoseconds| nanoseconds / 1000),
                    read: moved("Read"),
                    written: moved("Write"),
                    ..usage
                }
            }
            Groups::V2(_) => {
                let disk = fs::read_to_string(memory.join("io.stat")).ok();
                let pressure = fs::read_to_string(memory.join("memory.pressure")).ok();
                Usage {
                    memory: number(&memory.join("memory.current")).unwrap_or(0),
                    memory_pressure: pressure.as_deref().and_then(stalled),
                    cpu_us: field(&cpu.join("cpu.stat"), "usage_usec"),
                    throttled_us: field(&cpu.join("cpu.stat"), "throttled_usec"),
                    read: disk.as_deref().map(|text| io_stat(text, "rbytes=")),
                    written: disk.as_deref().map(|text| io_stat(text, "wbytes=")),
                    ..usage
                }
            }
        }
    }

    /// Processes of it that the kernel killed for want of memory.
    pub(crate) fn oom_kills(&self) -> Option<u64> {
        let [memory, ..] = self.v1();
        match &self.groups {
            Groups::V1 { .. } => field(&memory.join("memory.oom_control"), "oom_kill"),
            Groups::V2(_) => field(&memory.join("memory.events"), "oom_kill"),
        }
    }

    /// The most bytes of memory that it used at a time.
    pub(crate) fn memory_peak(&self) -> Option<u64> {
        let [memory, ..] = self.v1();
        match &self.groups {
            Groups::V1 { .. } => number(&memory.join("memory.max_usage_in_bytes")),
            Groups::V2(_) => number(&memory.join("memory.peak")),
        }
    }

    /// How close it is to its memory limit.
    pub(crate) fn pressure(&self) -> Pressure {
        let [memory, ..] = self.v1();
        let file = match &self.groups {
            Groups::V1 { .. } => "memory.usage_in_bytes",
            Groups::V2(_) => "memory.current",
        };
        Pressure {
            usage: number(&memory.join(file)).unwrap_or(0),
            major_faults: field(&memory.join("memory.stat"), "pgmajfault").unwrap_or(0),
        }
    }
}

fn make(directory: &Path) -> io::Result<()> {
    match fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(named(directory, &error)),
        _ => Ok(()),
    }
}

fn write(file: &Path, text: &str) -> io::Result<()> {
    fs::write(file, text).map_err(|error| named(file, &error))
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// A number out of a file of `name number` lines.
fn field(file: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?.trim().parse().ok()
}

/// Bytes of all devices, out of version 1's lines: `8:0 Read 4096`.
fn service_bytes(text: &str, word: &str) -> u64 {
    let lines = text.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        (words.next()? == word).then_some(words.next()?)
    });
    lines.filter_map(|number| number.parse::<u64>().ok()).fold(0, u64::saturating_add)
}

/// Bytes of all devices, out of version 2's lines: `8:0 rbytes=4096 wbytes=0 rios=1 ...`.
fn io_stat(text: &str, key: &str) -> u64 {
    let values = text.lines().flat_map(|line| line.split(' ').filter_map(|word| word.strip_prefix(key)));
    values.filter_map(|number| number.parse::<u64>().ok()).fold(0, u64::saturating_add)
}

/// How long something waited in the last ten seconds, in ten-thousandths, out of `some avg10=12.34 avg60=...`.
fn stalled(text: &str) -> Option<u32> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let percent = some.split(' ').find_map(|word| word.strip_prefix("avg10="))?;
    let (whole, part) = percent.split_once('.')?;
    (part.len() == 2).then_some(whole.parse::<u32>().ok()?.checked_mul(100)?.checked_add(part.parse().ok()?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "\
30 20 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
32 30 0:28 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
33 30 0:29 /box /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
34 30 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn groups_of_version_1_lie_below_the_launchers_own() {
        let own = "4:memory:/box/inner\n3:pids:/\n2:cpu,cpuacct:/user\n0::/\n";
        let groups = Groups::locate(V1, own, "x").unwrap();
        let expected = Groups::V1 {
            memory: "/sys/fs/cgroup/memory/inner/sandpool-x".into(),
            pids: "/sys/fs/cgroup/pids/sandpool-x".into(),
            cpu: "/sys/fs/cgroup/cpu,cpuacct/user/sandpool-x".into(),
            cpuacct: Some("/sys/fs/cgroup/cpu,cpuacct/user/sandpool-x".into()),
            blkio: None,
        };
        assert_eq!(groups, expected);
    }

    #[test]
    fn version_2_is_taken_where_version_1_has_not_all() {
        let mounts = "34 30 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let groups = Groups::locate(mounts, "0::/user.slice\n", "x").unwrap();
        assert_eq!(groups, Groups::V2("/sys/fs/cgroup/sandpool-x".into()));
        assert!(Groups::locate("", "", "x").is_err());
    }

    #[test]
    fn what_kernels_write_is_read() {
        let v1 = "8:0 Read 4096\n8:0 Write 512\n8:0 Sync 1\n253:0 Read 8192\nTotal 12800\n";
        assert_eq!(
            (service_bytes(v1, "Read"), service_bytes(v1, "Write"), service_bytes("Total 0\n", "Read")),
            (12_288, 512, 0)
        );
        let v2 = "8:0 rbytes=4096 wbytes=1 rios=1 wios=1 dbytes=0 dios=0\n259:0 rbytes=8192 wbytes=2\n";
        assert_eq!((io_stat(v2, "rbytes="), io_stat(v2, "wbytes="), io_stat("", "rbytes=")), (12_288, 3, 0));
        let psi = "some avg10=12.34 avg60=0.00 avg300=0.00 total=5\nfull avg10=99.00 avg60=0.00 avg300=0.00 total=1\n";
        assert_eq!(
            (stalled(psi), stalled("some avg10=100.00 x\n"), stalled("some avg10=x\n")),
            (Some(1_234), Some(10_000), None)
        );
    }
}
