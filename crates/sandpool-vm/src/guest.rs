//! The first program inside a machine: makes of a kernel what a sandbox's agent expects, and passes streams on to that.
//!
//! ```text
//! modules -> root of its own -> image -> "up" | template | resume: generator, clock, disk -> sandbox with the agent -> streams
//! ```
//!
//! Nothing that a session could tell from another is there before the resume: no agent, no interpreter, no identity. What a
//! session runs in is a sandbox of the process level, with all its walls, inside the machine's own kernel; this program, its
//! port and its disks are out of that one's sight.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, chown};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::mount::{MountFlags, OpenTreeFlags};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use sandpool_sys::sandbox::{self as sys, Cloned};
use sandpool_walls::seccomp::Filters;
use sandpool_walls::setup::{Blueprint, Inherited, WORKLOAD, WayOut, become_sandbox};

use crate::machine::Machine;
use crate::mux::{Resume, Side};
use crate::relay::{News, Relay, Source};

/// Where the kernel's modules are in the first root file system, in the order of their names.
pub const MODULES: &str = "/modules";

/// Before the machine's words in what the kernel is told.
const TOLD: &str = "sandpool=";

/// The longest wait for a device.
const DEVICE: Duration = Duration::from_secs(30);

/// The first id of the sandbox inside: none of the machine's own.
const FIRST_ID: u32 = 0x2000_0000;
const IDS: u32 = 65_536;

/// Whether this process is the first one of a machine.
#[must_use]
pub fn is_here() -> bool {
    rustix::process::getpid().is_init() && Path::new(MODULES).is_dir()
}

/// Serves until the machine ends, which it does when this comes back.
pub fn run() {
    let mut relay = None;
    if let Err(error) = serve(&mut relay) {
        // Who keeps the machine may hear it.
        if let Some(relay) = &mut relay {
            relay.mux.broken(&format!("inside the machine: {error}"));
            let _ = relay.flush();
        }
    }
    // QEMU takes it for the end.
    let _ = rustix::system::reboot(rustix::system::RebootCommand::Restart);
}

fn about<E: std::fmt::Display>(what: &str) -> impl Fn(E) -> io::Error + '_ {
    move |error| io::Error::other(format!("{what}: {error}"))
}

fn serve(place: &mut Option<Relay>) -> io::Result<()> {
    let program = prepare()?;
    let port = open_port()?;
    let relay = place.insert(Relay::new(Side::Machine, port));
    let told = fs::read_to_string("/proc/cmdline").map_err(about("/proc/cmdline"))?;
    let words = told.split_whitespace().find_map(|word| word.strip_prefix(TOLD)).unwrap_or_default();
    let machine = Machine::parse(words.split(',')).ok_or_else(|| io::Error::other("the kernel was told nothing"))?;
    let (image, disk) = (find_disk("image")?, find_disk("disk")?);
    let read_only = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID;
    rustix::mount::mount(image, "/image", "erofs", read_only, None).map_err(about("the image"))?;
    let filters = Filters::compile()?;
    relay.mux.up();
    let mut inside = None;
    loop {
        relay.flush()?;
        for (source, events) in wait(relay, inside.as_ref())? {
            let Some(source) = source else {
                return Err(io::Error::other("the agent has ended"));
            };
            let mut news = relay.ready(source, events)?;
            while let Some(one) = news {
                if let News::Resume(resume) = one
                    && inside.is_none()
                {
                    become_own(&resume)?;
                    let disk = mount_disk(&disk).map_err(about("the disk"))?;
                    let (agent, process) = launch(machine, &filters, &program, &disk)?;
                    relay.serve(agent);
                    relay.mux.serves();
                    inside = Some(process);
                }
                news = relay.go_on();
            }
        }
    }
}

/// Loads the modules, and moves to a root that can be left again. Answers this program, in memory that nobody can change.
fn prepare() -> io::Result<OwnedFd> {
    let mount = |source: &str, place: &str, kind: &str| -> io::Result<()> {
        fs::create_dir_all(place)?;
        let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
        rustix::mount::mount(source, place, kind, flags, None).map_err(about(place))
    };
    mount("dev", "/dev", "devtmpfs")?;
    let mut modules: Vec<_> = fs::read_dir(MODULES)?.collect::<io::Result<_>>()?;
    modules.sort_by_key(fs::DirEntry::file_name);
    for module in modules {
        let file = fs::File::open(module.path())?;
        let loaded = rustix::system::finit_module(&file, c"", 0);
        loaded.map_err(about(&module.file_name().to_string_lossy()))?;
    }
    let program = fs::read("/init")?;
    fs::create_dir_all("/root")?;
    rustix::mount::mount("root", "/root", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=755,size=4M"))?;
    std::env::set_current_dir("/root")?;
    for place in ["image", "disk", "tmp", "sys"] {
        fs::create_dir(place)?;
    }
    mount("dev", "dev", "devtmpfs")?;
    mount("proc", "proc", "proc")?;
    mount("sys", "sys", "sysfs")?;
    rustix::mount::mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    std::env::set_current_dir("/")?;
    let file = rustix::fs::memfd_create("agent", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = fs::File::from(file);
    io::Write::write_all(&mut file, &program)?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

/// Tries until it works; devices come up on their own.
fn until<T>(what: &str, mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let began = Instant::now();
    loop {
        match attempt() {
            Ok(found) => return Ok(found),
            Err(error) if began.elapsed() > DEVICE => return Err(about(what)(error)),
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// The only port, which the kernel names `vport<device>p1`.
fn open_port() -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    until("the port", || {
        for entry in fs::read_dir("/dev")?.flatten() {
            if entry.file_name().to_str().is_some_and(|name| name.starts_with("vport")) {
                return Ok(rustix::fs::open(entry.path(), flags, Mode::empty())?);
            }
        }
        Err(io::ErrorKind::NotFound.into())
    })
}

/// The block device with this serial.
fn find_disk(serial: &str) -> io::Result<String> {
    until(&format!("the disk {serial}"), || {
        for entry in fs::read_dir("/sys/block")?.flatten() {
            if fs::read_to_string(entry.path().join("serial")).is_ok_and(|found| found.trim() == serial) {
                return Ok(format!("/dev/{}", entry.file_name().to_string_lossy()));
            }
        }
        Err(io::ErrorKind::NotFound.into())
    })
}

/// What is ready: `None` for the end of the agent.
fn wait(relay: &Relay, inside: Option<&OwnedFd>) -> io::Result<Vec<(Option<Source>, PollFlags)>> {
    let agent = inside.iter().map(|process| (None, process.as_fd(), PollFlags::IN));
    let all = relay.descriptors().map(|(source, fd, flags)| (Some(source), fd, flags)).chain(agent);
    let (sources, mut fds): (Vec<_>, Vec<_>) =
        all.map(|(source, fd, flags)| (source, PollFd::from_borrowed_fd(fd, flags))).unzip();
    match poll(&mut fds, None) {
        Ok(_) => {}
        Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    }
    let events = fds.iter().map(PollFd::revents);
    Ok(sources.into_iter().zip(events).filter(|(_, events)| !events.is_empty()).collect())
}

/// Makes this machine one of its own, before anything is drawn or dated in it.
fn become_own(resume: &Resume) -> io::Result<()> {
    sandpool_sys::machine::reseed(&resume.seed).map_err(about("the generator"))?;
    let (seconds, rest) = (resume.epoch_ns / 1_000_000_000, resume.epoch_ns % 1_000_000_000);
    let now = rustix::time::Timespec {
        tv_sec: i64::try_from(seconds).map_err(io::Error::other)?,
        tv_nsec: i64::try_from(rest).map_err(io::Error::other)?,
    };
    rustix::time::clock_settime(rustix::time::ClockId::Realtime, now).map_err(about("the clock"))
}

/// Mounts the session's disk, which is empty and the session's own.
fn mount_disk(device: &str) -> io::Result<OwnedFd> {
    rustix::mount::mount(device, "/disk", "ext4", MountFlags::NODEV | MountFlags::NOSUID, None)?;
    fs::remove_dir("/disk/lost+found")?;
    chown("/disk", Some(FIRST_ID + WORKLOAD), Some(FIRST_ID + WORKLOAD))?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(rustix::mount::open_tree(rustix::fs::CWD, "/disk", flags)?)
}

/// Builds the sandbox with the agent. Answers the agent's control socket, and its process.
fn launch(machine: Machine, filters: &Filters, program: &OwnedFd, disk: &OwnedFd) -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType};
    let (control, agents) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let (go_in, go_out) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let (words_in, words) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let rootfs = Path::new("/image");
    let meta = fs::metadata(rootfs)?;
    let (pid, process) = match sys::clone_into_namespaces(None)? {
        Cloned::Parent { pid, pidfd } => (pid, pidfd),
        Cloned::Child => {
            drop((control, go_out, words_in));
            let blueprint = Blueprint {
                rootfs,
                rootfs_is: (meta.dev(), meta.ino()),
                trust: None,
                words: &[machine.runtime.word().to_owned()],
                limits: machine.limits,
                disk: Some(disk.as_fd()),
                local_servers: machine.local_servers,
                is_container: false,
                filters,
                way_out: WayOut::None,
            };
            let _ = std::panic::catch_unwind(AssertUnwindSafe(|| {
                let start = || -> io::Result<String> {
                    // Above the numbers that the agent's descriptors will get.
                    rustix::io::read(&go_in, &mut [0; 1])?;
                    let inherited = Inherited { control: agents, image: None, zygote: None, turns: None };
                    Ok(become_sandbox(&blueprint, (program.try_clone()?, None), inherited))
                };
                let Ok(words) = rustix::io::fcntl_dupfd_cloexec(&words, 16) else { return };
                let said = start().unwrap_or_else(|error| error.to_string());
                let _ = rustix::io::write(&words, said.as_bytes());
            }));
            sys::exit_now(1);
        }
    };
    drop((agents, words, go_in));
    admit(pid)?;
    rustix::io::write(&go_out, b"!")?;
    // Nothing is said when all is well: it has become the agent.
    let mut said = String::new();
    io::Read::read_to_string(&mut io::Read::take(fs::File::from(words_in), 1024), &mut said)?;
    if said.is_empty() {
        return Ok((control, process));
    }
    let _ = rustix::process::pidfd_send_signal(&process, Signal::KILL);
    let _ = rustix::process::waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED);
    Err(io::Error::other(said))
}

/// Gives the waiting child its ids.
fn admit(pid: Pid) -> io::Result<()> {
    let pid = pid.as_raw_nonzero();
    for file in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{pid}/{file}"), format!("0 {FIRST_ID} {IDS}\n"))?;
    }
    Ok(())
}
