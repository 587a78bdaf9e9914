//! The first program inside a machine: makes of a kernel what a sandbox's agent expects, and passes streams on to that.
//!
//! ```text
//! modules -> root of its own -> image -+-> resume: generator, clock --> disk, sandbox with the agent -----------------> streams
//!                                      +-> prepare: disk, agent, warm interpreter -> "up" | template | resume, renewal -+
//!                                                  hush: all of it stands still -> "up" | saved | ----------------------+
//! ```
//!
//! What a session runs in is a sandbox of the process level, with all its walls, inside the machine's own kernel; this program, its
//! port and its disks are out of that one's sight. The sandbox of a template is complete, and nobody's: what two machines must not
//! have in common is made anew before anything runs in them, or is the agent's to renew before it takes work.
//!
//! The clock of a template stands long in the past. OpenSSL knows no other sign for a generator that has slept: one whose last seed is
//! hours old, by the clock, takes a new one from the kernel before it is drawn from
//! (providers/implementations/rands/drbg.c, `reseed_time_interval`).

mod doors;
mod inside;
mod port;

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mount::{MountAttrFlags, MountFlags, OpenTreeFlags};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use sandpool_sys::sandbox::{self as sys, Cloned};
use sandpool_walls::seccomp::Filters;
use sandpool_walls::setup::{Blueprint, Inherited, PLAIN, Trust, WORKLOAD, WayOut, become_sandbox, told_to_go};
use sandpool_wire::agent::Runtime;

use self::doors::{Doors, Which};
use self::inside::{GROUP, Inside};
use self::port::Port;
use crate::identity::Identity;
use crate::machine::Machine;
use crate::mux::Side;
use crate::relay::{News, Relay, Source, ready_of};

/// Where the kernel's modules are in the first root file system, in the order of their names.
pub const MODULES: &str = "/modules";

/// Before the machine's words in what the kernel is told.
const TOLD: &str = "sandpool=";

/// The longest wait for a device.
const DEVICE: Duration = Duration::from_secs(30);

/// The time in templates, in nanoseconds since 1970: in the year 2001.
const PAST: u64 = 1_000_000_000 * 1_000_000_000;

/// The machine's id, of which the sandbox sees a mount.
const ID: &str = "/machine-id";

/// The first id of the sandbox inside: none of the machine's own.
const FIRST_ID: u32 = 0x2000_0000;
const IDS: u32 = 65_536;

/// Memory of the machine that is not the sandbox's, in bytes: this program's, and what the kernel needs to go on.
const OURS: u64 = 16 << 20;

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
    let (port, open) = Port::open()?;
    let relay = place.insert(Relay::new(Side::Machine, open));
    let told = fs::read_to_string("/proc/cmdline").map_err(about("/proc/cmdline"))?;
    let words = told.split_whitespace().find_map(|word| word.strip_prefix(TOLD)).unwrap_or_default();
    let machine = Machine::parse(words.split(',')).ok_or_else(|| io::Error::other("the kernel was told nothing"))?;
    let (image, disk) = (find_disk(true)?, find_disk(false)?);
    let read_only = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID;
    rustix::mount::mount(image, "/image", "erofs", read_only, None).map_err(about("the image"))?;
    let filters = Filters::compile()?;
    let identity = Identity::here().map_err(about("its own kernel"))?;
    let mut inside: Option<Inside> = None;
    loop {
        relay.flush().or_else(|error| port.lost(relay, error))?;
        for (owner, events) in wait(relay, &port, inside.as_ref())? {
            let source = match (owner, &mut inside) {
                (Owner::Relay(source), _) => source,
                (Owner::Newer, _) => {
                    port.renew(relay)?;
                    // What else was ready was so before it.
                    break;
                }
                (Owner::Door(which), Some(Inside { doors: Some(doors), .. })) => {
                    doors.ready(which, relay);
                    continue;
                }
                (Owner::Door(_) | Owner::Agent, _) => return Err(io::Error::other("the agent has ended")),
            };
            let news = relay.ready(source, events);
            let mut news = news.or_else(|error| port.lost(relay, error).map(|()| None))?;
            while let Some(one) = news {
                match (one, &mut inside) {
                    (News::Prepare, None) => {
                        set_clock(PAST)?;
                        if machine.can_be_warm() {
                            let made = launch(machine, &filters, &program, &disk, Whose::Nobodys)?;
                            made.wait_until_warm()?;
                            inside = Some(made);
                        }
                        relay.mux.up(&identity);
                    }
                    (News::Hush, Some(inside)) => {
                        inside.stand_still(true)?;
                        relay.mux.up(&identity);
                    }
                    (News::Resume(resume), inside) => {
                        sandpool_sys::machine::reseed(&resume.seed).map_err(about("the generator"))?;
                        set_clock(resume.epoch_ns)?;
                        if !resume.is_the_same {
                            draw_id().map_err(about(ID))?;
                        }
                        let inside = match inside {
                            Some(inside) => inside,
                            none => {
                                none.insert(launch(machine, &filters, &program, &disk, Whose::Its(resume.authority))?)
                            }
                        };
                        match resume.is_the_same {
                            true => inside.stand_still(false)?,
                            false => inside.renew(machine.runtime, resume.epoch_ns)?,
                        }
                        relay.serve(inside.control.try_clone()?);
                        relay.mux.serves();
                    }
                    _ => {}
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
    // As on a host, which has more memory than any of its sandboxes: a program that wants too much ends when it uses it.
    fs::write("proc/sys/vm/overcommit_memory", "1")?;
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

/// The block device that can be written to, or the one that cannot: a VMM may not have a name for them.
fn find_disk(is_read_only: bool) -> io::Result<String> {
    let (what, wanted) = if is_read_only { ("the image's disk", "1") } else { ("the disk", "0") };
    until(what, || {
        for entry in fs::read_dir("/sys/block")?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let says = fs::read_to_string(entry.path().join("ro"));
            if name.starts_with("vd") && says.is_ok_and(|says| says.trim() == wanted) {
                return Ok(format!("/dev/{name}"));
            }
        }
        Err(io::ErrorKind::NotFound.into())
    })
}

/// What a descriptor is.
#[derive(Clone, Copy, Debug)]
enum Owner {
    /// The sandbox's first process, which has ended.
    Agent,
    Door(Which),
    Relay(Source),
    /// A newer port.
    Newer,
}

/// What is ready.
fn wait(relay: &Relay, port: &Port, inside: Option<&Inside>) -> io::Result<Vec<(Owner, PollFlags)>> {
    let agent = inside.iter().map(|inside| (Owner::Agent, inside.process.as_fd(), PollFlags::IN));
    let doors = inside.iter().filter_map(|inside| inside.doors.as_ref()).flat_map(Doors::descriptors);
    let doors = doors.map(|(which, fd)| (Owner::Door(which), fd, PollFlags::IN));
    let streams = relay.descriptors().map(|(source, fd, flags)| (Owner::Relay(source), fd, flags));
    let newer = port.listener().map(|listener| (Owner::Newer, listener, PollFlags::IN));
    ready_of(streams.chain(agent).chain(doors).chain(newer))
}

fn set_clock(epoch_ns: u64) -> io::Result<()> {
    let (seconds, rest) = (epoch_ns / 1_000_000_000, epoch_ns % 1_000_000_000);
    let now = rustix::time::Timespec {
        tv_sec: i64::try_from(seconds).map_err(io::Error::other)?,
        tv_nsec: i64::try_from(rest).map_err(io::Error::other)?,
    };
    rustix::time::clock_settime(rustix::time::ClockId::Realtime, now).map_err(about("the clock"))
}

/// Mounts the session's disk, which is empty and the session's own.
fn mount_disk(device: &str, machine: Machine) -> io::Result<OwnedFd> {
    rustix::mount::mount(device, "/disk", "ext4", MountFlags::NODEV | MountFlags::NOSUID, None)?;
    fs::remove_dir("/disk/lost+found")?;
    chown("/disk", Some(FIRST_ID + WORKLOAD), Some(FIRST_ID + WORKLOAD))?;
    if machine.runtime == Runtime::Container {
        // Whom a container's program runs as is known only to its image.
        fs::set_permissions("/disk", fs::Permissions::from_mode(0o1777))?;
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(rustix::mount::open_tree(rustix::fs::CWD, "/disk", flags)?)
}

/// Draws the machine's id anew: nobody else's, and of nothing that is known of the host (machine-id(5)).
fn draw_id() -> io::Result<()> {
    let mut id = [0; 16];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
    let digits: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(ID, digits + "\n")
}

/// The file with the machine's id, for reading alone: empty in a template.
fn mount_id() -> io::Result<OwnedFd> {
    fs::OpenOptions::new().create(true).append(true).open(ID)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = rustix::mount::open_tree(rustix::fs::CWD, ID, flags)?;
    let attributes = PLAIN | MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    sys::set_mount_attributes(&mount, attributes.bits().into())?;
    Ok(mount)
}

/// Makes a control group with the machine's limits in it. Memory ends there before it does for the machine, so that the kernel ends a
/// program of the session's, and nothing else.
fn make_group(machine: Machine) -> io::Result<&'static Path> {
    let root = Path::new("/groups");
    fs::create_dir(root)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("groups", root, "cgroup2", flags, None)?;
    fs::write(root.join("cgroup.subtree_control"), "+memory +pids")?;
    let group = Path::new(GROUP);
    fs::create_dir(group)?;
    // Its first process is one more, as it is at the process level.
    fs::write(group.join("pids.max"), machine.limits.pids.to_string())?;
    let total = fs::read_to_string("/proc/meminfo")?;
    let total =
        total.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let total = total.ok_or_else(|| io::Error::other("/proc/meminfo does not say how much memory there is"))? << 10;
    let memory = machine.limits.memory.min(total.saturating_sub(OURS));
    fs::write(group.join("memory.max"), memory.to_string())?;
    Ok(group)
}

/// Whose sandbox is built.
enum Whose {
    /// A template's: it warms what sessions of others will need.
    Nobodys,
    /// This machine's, with the certificate that it trusts.
    Its(String),
}

/// Builds the sandbox with the agent.
fn launch(machine: Machine, filters: &Filters, program: &OwnedFd, disk: &str, whose: Whose) -> io::Result<Inside> {
    let disk = mount_disk(disk, machine).map_err(about("the disk"))?;
    let id = mount_id().map_err(about(ID))?;
    let mut arguments = vec![machine.runtime.word().to_owned()];
    let authority = match whose {
        Whose::Nobodys => {
            arguments.push("warm".to_owned());
            String::new()
        }
        Whose::Its(authority) => authority,
    };
    let pair = || {
        use rustix::net::{AddressFamily, SocketFlags, SocketType};
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
    };
    let (control, agents) = pair()?;
    let (go_in, go_out) = pair()?;
    let handover = if machine.leads_out { Some(pair()?) } else { None };
    let (words_in, words) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let rootfs = Path::new("/image");
    let meta = fs::metadata(rootfs)?;
    let trust = machine.trusts.then(|| Trust(Box::new(move |_| Ok(authority.clone()))));
    let group = make_group(machine).map_err(about("the control group"))?;
    let (pid, process) = match sys::clone_into_namespaces(None)? {
        Cloned::Parent { pid, pidfd } => (pid, pidfd),
        Cloned::Child => {
            drop((control, go_out, words_in));
            let blueprint = Blueprint {
                rootfs,
                rootfs_is: (meta.dev(), meta.ino()),
                trust: trust.as_ref().map(|trust| (trust, [0; 16])),
                words: &arguments,
                limits: machine.limits,
                disk: Some(disk.as_fd()),
                machine_id: Some(id.as_fd()),
                local_servers: machine.local_servers,
                is_container: machine.runtime == Runtime::Container,
                filters,
                way_out: handover.as_ref().map_or(WayOut::None, |(_, there)| WayOut::Listeners(there)),
                kvm: None,
                lent: None,
            };
            let _ = std::panic::catch_unwind(AssertUnwindSafe(|| {
                let start = || -> io::Result<String> {
                    // Above the numbers that the agent's descriptors will get.
                    let tree = told_to_go(&go_in).ok_or(io::ErrorKind::UnexpectedEof)?;
                    let inherited = Inherited { control: agents, image: None, zygote: None, turns: None };
                    Ok(become_sandbox(&blueprint, (program.try_clone()?, tree), inherited))
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
    fs::write(group.join("cgroup.procs"), pid.as_raw_nonzero().to_string()).map_err(about("the control group"))?;
    // Its own root needs the image's files to be its own.
    let tree = match machine.runtime {
        Runtime::Container => {
            let namespace = fs::File::open(format!("/proc/{}/ns/user", pid.as_raw_nonzero()))?;
            Some(sys::mapped_tree(rootfs, &namespace).map_err(about("the image's owners"))?)
        }
        Runtime::Python | Runtime::Node | Runtime::Shell => None,
    };
    sandpool_sys::packet::send(&go_out, b"!", &tree.iter().map(AsFd::as_fd).collect::<Vec<_>>())?;
    // Nothing is said when all is well: it has become the agent.
    let mut said = String::new();
    fs::File::from(words_in).take(1024).read_to_string(&mut said)?;
    let doors = match &handover {
        Some((here, _)) if said.is_empty() => {
            let (_, handed) = sandpool_sys::packet::receive(here, &mut [0; 1])?;
            Some(Doors::new(handed)?)
        }
        _ => None,
    };
    if said.is_empty() {
        return Ok(Inside { control, process, pid, doors, stands_still: false });
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
