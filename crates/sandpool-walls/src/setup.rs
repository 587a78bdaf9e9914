//! Inside the new namespaces: from a copy of the launcher to the first process of a sandbox.
//!
//! ```text
//! become root of the user namespace -> mounts -> pivot -> limits -> uid 998, four capabilities -> Landlock -> filters -> exec
//! ```
//!
//! This runs in a process of one thread that was cloned a moment ago. Each step either works or ends the process
//! with a sentence for the operator; the order follows `isolation.md`'s specification, whose identifiers (FS2, ID4,
//! ...) are named at the steps.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};
use rustix::process::{Gid, Resource, Rlimit, Uid};
use rustix::thread::{CapabilitiesSecureBits, CapabilitySet, CapabilitySets};
use sandpool_core::limits::Limits;
use sandpool_sys::sandbox;

use crate::landlock::{self, NEWEST, Policy};
use crate::seccomp::Filters;

/// The uid and gid of pid 1 inside a sandbox (ID2).
pub const AGENT: u32 = 998;

/// The uid and gid of everything that a session runs (ID2).
pub const WORKLOAD: u32 = 1000;

/// Where host, image and new root meet while a sandbox is built: a directory that every host has.
const SITE: &str = "/tmp";

/// Bytes on `/dev/shm`.
pub const SHM: u64 = 64 << 20;

/// What is masked in /proc (FS6): it tells of the host, or acts on it.
pub const MASKED: [&str; 41] = [
    "kcore",
    "keys",
    "key-users",
    "timer_list",
    "sched_debug",
    "latency_stats",
    "kallsyms",
    "kpagecount",
    "kpageflags",
    "kpagecgroup",
    "kmsg",
    "slabinfo",
    "vmallocinfo",
    "interrupts",
    "softirqs",
    "iomem",
    "ioports",
    "mtrr",
    "modules",
    "swaps",
    "zoneinfo",
    "pagetypeinfo",
    "buddyinfo",
    "schedstat",
    "vmstat",
    "diskstats",
    "partitions",
    "config.gz",
    "crypto",
    "cgroups",
    "cmdline",
    "sysrq-trigger",
    "pressure",
    "acpi",
    "scsi",
    "asound",
    "firmware",
    "execdomains",
    "bootconfig",
    "allocinfo",
    // NS6.
    "sys/kernel/random/boot_id",
];

/// Where images have the certificates that they trust, below their root.
const BUNDLE: &str = "etc/ssl/certs/ca-certificates.crt";

/// Where a sandbox has the agent that can only be executed by its name.
pub const PROGRAM: &str = "/etc/sandpool-agent";

/// Where a sandbox has the certificate of its own authority alone, below its root; agents look for it.
pub const AUTHORITY: &str = "etc/ssl/sandpool.pem";

/// The longest file of certificates, in bytes: Debian's has 0.2 MiB.
const MAX_BUNDLE: u64 = 1 << 20;

/// What a sandbox is built in holds so many bytes (FS1).
pub const SITE_SIZE: u64 = 1 << 20;

/// What can only be read in /proc (FS6).
pub const READ_ONLY: [&str; 6] = ["sys", "bus", "fs", "irq", "driver", "tty"];

/// The newest version of Landlock whose rights are used, where the kernel has them.
pub const LANDLOCK: i32 = NEWEST as i32;

/// Makes, for a sandbox that is told from others by these bytes, the certificate (PEM) of an authority that it trusts.
pub struct Trust(pub Box<Certify>);

/// See [`Trust`].
pub type Certify = dyn Fn(&[u8; 16]) -> io::Result<String>;

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Trust")
    }
}

/// What a sandbox is built from.
pub struct Blueprint<'a> {
    /// Its image's root.
    pub rootfs: &'a Path,
    /// Device and inode of `rootfs`, as they were when the pool was made.
    pub rootfs_is: (u64, u64),
    /// What it trusts besides its image's certificates, and what tells it from others there.
    pub trust: Option<(&'a Trust, [u8; 16])>,
    /// The first words of its first process's arguments.
    pub words: &'a [String],
    /// What it may use.
    pub limits: Limits,
    /// What is mounted at `/mnt/data`, which belongs to [`WORKLOAD`] there; `None` for memory.
    pub disk: Option<BorrowedFd<'a>>,
    /// A file that is mounted at `/etc/machine-id`; `None` for an empty one, which tells nothing of the host (NS6).
    pub machine_id: Option<BorrowedFd<'a>>,
    /// LL2: whether programs may listen and connect on loopback.
    pub local_servers: bool,
    /// Its root can be written to, within its disk, and any port can be listened at.
    pub is_container: bool,
    /// Its system calls.
    pub filters: &'a Filters,
    /// What leads out of it.
    pub way_out: WayOut<'a>,
    /// For a VMM: what runs guests on this host's processors, which becomes `/dev/kvm` (FS5). A file system with that node alone.
    pub kvm: Option<BorrowedFd<'a>>,
    /// A file that is out of its sight, which whoever has it as a descriptor may also open anew, for reading.
    pub lent: Option<BorrowedFd<'a>>,
}

impl Blueprint<'_> {
    /// What Landlock shall hold it to.
    #[must_use]
    pub fn policy(&self) -> Policy {
        let leads_out = !matches!(self.way_out, WayOut::None);
        Policy { local_servers: self.local_servers, leads_out, is_container: self.is_container }
    }
}

/// Whether anything is reached from a sandbox, and how.
#[derive(Clone, Copy, Debug)]
pub enum WayOut<'a> {
    /// Its network is empty.
    None,
    /// Its network is empty, but its files are those of one with a way out: a zygote's is that of the sandboxes that start from it.
    FilesOnly,
    /// Through listeners at every address, which are sent to the other end of this.
    Listeners(&'a OwnedFd),
}

/// The file of a pool's zygote, and what the first process does with it.
pub enum Zygote {
    /// It writes it.
    Freeze(OwnedFd),
    /// It starts from it.
    Thaw(OwnedFd),
}

/// The descriptors of a sandbox's first process from 3 on, in this order. Its arguments say which of them it has.
pub struct Inherited {
    /// Where streams arrive.
    pub control: OwnedFd,
    /// The image that a machine has as its disk.
    pub image: Option<OwnedFd>,
    /// Its pool's zygote.
    pub zygote: Option<Zygote>,
    /// Three files of its control group, and what is its whole share.
    pub turns: Option<([OwnedFd; 3], String)>,
}

/// Builds the sandbox around the calling process and becomes its agent. Comes back only with what went wrong.
pub fn become_sandbox(
    blueprint: &Blueprint<'_>,
    (agent, tree): (OwnedFd, Option<OwnedFd>),
    inherited: Inherited,
) -> String {
    let built = build(blueprint, tree).and_then(|()| {
        let text = |text: &str| CString::new(text).map_err(io::Error::from);
        let Inherited { control, image, zygote, turns } = inherited;
        let mut argv = vec![text("sandpool-agent")?];
        for word in blueprint.words {
            argv.push(text(word)?);
        }
        let mut keep = vec![control];
        keep.extend(image);
        match zygote {
            None => {}
            Some(Zygote::Freeze(file)) => {
                argv.push(text("freeze")?);
                keep.push(file);
            }
            Some(Zygote::Thaw(file)) => {
                argv.push(text("thaw")?);
                keep.push(file);
            }
        }
        if let Some((files, share)) = turns {
            argv.push(text(&format!("turns={share}"))?);
            keep.extend(files);
        }
        // ID6: nothing of the launcher's environment.
        let env = [
            text("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")?,
            text("HOME=/home/sandbox")?,
            text("LANG=C.UTF-8")?,
            text("TMPDIR=/tmp")?,
        ];
        let filters = || blueprint.filters.install().map_err(|error| failed("the system call filter", &error));
        Err(failed("starting the agent", &sandbox::become_program(agent, keep, &argv, &env, filters)))
    });
    match built {
        Ok(()) => "nothing went wrong".to_owned(),
        Err(error) => error.to_string(),
    }
}

/// Waits until the launcher lets this sandbox go on; with the image whose files belong to it, where it has one. `None` when the launcher
/// does not.
#[must_use]
pub fn told_to_go(go_in: &OwnedFd) -> Option<Option<OwnedFd>> {
    loop {
        match poll(&mut [PollFd::new(go_in, PollFlags::IN)], None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return None,
        }
        return match sandpool_sys::packet::receive(go_in, &mut [0; 4]) {
            Ok((1, mut fds)) => Some(fds.pop()),
            Ok(_) | Err(_) => None,
        };
    }
}

/// An error with what was tried.
pub fn failed(what: &str, error: &impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("{what}: {error}"))
}

/// All that is built before the agent is started and filtered; `tree` is the image with its owners mapped.
pub fn build(blueprint: &Blueprint<'_>, tree: Option<OwnedFd>) -> io::Result<()> {
    let step = |what: &'static str| move |error: io::Error| failed(what, &error);
    let image = enter(blueprint)?;
    mounts(blueprint, &image, tree).map_err(step("the file system"))?;
    drop(image);
    limits(&blueprint.limits).map_err(step("resource limits"))?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    sandbox::redirect_standard_streams(null)?;
    privileges().map_err(step("privileges"))?;
    tie()?;
    landlock::restrict(blueprint.policy(), blueprint.lent).map_err(step("Landlock"))
}

/// What ends with the launcher, gains no privilege, and shares no core with others.
pub fn tie() -> io::Result<()> {
    // ID7: after the last change of ids, which would clear it.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    rustix::thread::set_no_new_privs(true)?;
    // SD1. Where there is nothing to keep apart, or no way to, the host's report says so.
    let _ = sandbox::keep_core();
    let _ = sandbox::keep_branches();
    Ok(())
}

/// Takes the place of root in the sandbox's namespaces, and makes its network what it shall be; answers the image's root.
pub fn enter(blueprint: &Blueprint<'_>) -> io::Result<OwnedFd> {
    let step = |what: &'static str| move |error: io::Error| failed(what, &error);
    sandbox::reset_signals();
    // While still the host's root in name (not in power: no capability of the host is left), so that a state
    // directory that only root may enter can be entered.
    let image = open_image(blueprint).map_err(step("the image"))?;
    enter_namespaces()?;
    // LL2: a connection is made by connecting, and in no other way.
    match fs::write("/proc/sys/net/ipv4/tcp_fastopen", "0") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("the ways of its network", &error)),
        _ => {}
    }
    if blueprint.is_container {
        // Images listen where their users expect it, and this network is nobody else's.
        fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0").map_err(step("the ports of its network"))?;
    }
    if let WayOut::Listeners(handover) = blueprint.way_out {
        hand_over_listeners(handover).map_err(step("the listeners of its network"))?;
    }
    Ok(image)
}

/// Takes the place of root in namespaces that the process was cloned into.
pub fn enter_namespaces() -> io::Result<()> {
    let step = |what: &'static str| move |error: io::Error| failed(what, &error);
    sandbox::new_network_and_cgroup_namespaces().map_err(step("the network and cgroup namespaces"))?;
    become_id(0).map_err(step("the user namespace"))?;
    // NS4, NS6.
    rustix::process::setsid()?;
    rustix::system::sethostname(b"sandbox")?;
    rustix::system::setdomainname(b"")?;
    sandbox::loopback_up().map_err(step("the loopback interface"))
}

/// Makes every address this network's own, and lets the launcher have what listens at them.
fn hand_over_listeners(handover: &OwnedFd) -> io::Result<()> {
    sandpool_sys::network::own_every_address()?;
    let listeners = sandpool_sys::network::listeners()?;
    sandpool_sys::packet::send(handover, b"L", &listeners.iter().map(AsFd::as_fd).collect::<Vec<_>>())
}

/// Opens the image's root without following a link in the image store, and sees that it is still the one that
/// was checked.
fn open_image(blueprint: &Blueprint<'_>) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::openat2(CWD, blueprint.rootfs, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)?;
    let stat = rustix::fs::fstat(&fd)?;
    if (stat.st_dev, stat.st_ino) == blueprint.rootfs_is {
        Ok(fd)
    } else {
        Err(io::Error::other(format!("{} was replaced while its pool was running", blueprint.rootfs.display())))
    }
}

/// The certificates that a sandbox trusts, below `top`: its image's and `authority`, and that one alone.
fn trust(image: &OwnedFd, authority: &str) -> io::Result<()> {
    // The image's own file, whatever its links say: none of the host's.
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let mut bundle = String::new();
    if let Ok(file) = rustix::fs::openat2(image, BUNDLE, flags, Mode::empty(), resolve) {
        let file = fs::File::from(file);
        let meta = file.metadata()?;
        if !meta.is_file() || meta.len() > MAX_BUNDLE {
            return Err(io::Error::other(format!("{BUNDLE} of the image is no file of at most {MAX_BUNDLE} bytes")));
        }
        // An image without any trusts the authority alone.
        io::Read::read_to_string(&mut io::Read::take(file, MAX_BUNDLE), &mut bundle)?;
    }
    if !bundle.is_empty() && !bundle.ends_with('\n') {
        bundle.push('\n');
    }
    bundle.push_str(authority);
    for directory in ["top/etc/ssl", "top/etc/ssl/certs"] {
        make_directory(directory)?;
    }
    fs::write(format!("top/{BUNDLE}"), bundle)?;
    fs::write(format!("top/{AUTHORITY}"), authority)
}

fn become_id(id: u32) -> io::Result<()> {
    let (gid, uid) = (Gid::from_raw(id), Uid::from_raw(id));
    // ID3: groups, then gid, then uid.
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    let now = (rustix::process::getuid(), rustix::process::geteuid(), rustix::process::getgid());
    if now == (uid, uid, gid) { Ok(()) } else { Err(io::ErrorKind::PermissionDenied.into()) }
}

/// What every mount of a sandbox has.
pub const PLAIN: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_NODEV);

/// Makes a file system with its attributes in place before anybody can reach it (FS3).
pub fn new_mount(kind: &str, options: &[(&str, &str)], attributes: MountAttrFlags) -> io::Result<OwnedFd> {
    let at = |what: &str, error: rustix::io::Errno| failed(&format!("{kind} ({what})"), &io::Error::from(error));
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|error| at("open", error))?;
    rustix::mount::fsconfig_set_string(context.as_fd(), "source", "sandpool").map_err(|error| at("source", error))?;
    for (name, value) in options {
        let set = if value.is_empty() {
            rustix::mount::fsconfig_set_flag(context.as_fd(), *name)
        } else {
            rustix::mount::fsconfig_set_string(context.as_fd(), *name, *value)
        };
        set.map_err(|error| at(name, error))?;
    }
    rustix::mount::fsconfig_create(context.as_fd()).map_err(|error| at("create", error))?;
    rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(|error| at("mount", error))
}

/// A tmpfs of a size, and of one inode for each page of it up to a bound.
fn tmpfs(size: u64, owner: u32, mode: &str, attributes: MountAttrFlags) -> io::Result<OwnedFd> {
    let (bytes, inodes, owner) = (size.to_string(), (size / 4096).clamp(64, 1 << 18).to_string(), owner.to_string());
    let options = [("size", bytes.as_str()), ("nr_inodes", &inodes), ("mode", mode), ("uid", &owner), ("gid", &owner)];
    new_mount("tmpfs", &options, attributes)
}

/// Attaches a mount at a place.
///
/// # Errors
/// Where the kernel does not.
pub fn attach(mount: impl AsFd, place: &str) -> io::Result<()> {
    rustix::mount::move_mount(mount.as_fd(), "", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|error| failed(place, &io::Error::from(error)))
}

/// Puts `from` (below the present root) also at `place`, with further attributes.
pub fn bind(from: &str, place: &str, attributes: MountAttrFlags) -> io::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW
        | OpenTreeFlags::AT_NO_AUTOMOUNT;
    let tree = rustix::mount::open_tree(CWD, from, flags).map_err(|error| failed(from, &io::Error::from(error)))?;
    sandbox::set_mount_attributes(&tree, attributes.bits().into()).map_err(|error| failed(from, &error))?;
    attach(&tree, place)
}

/// A bounded file system to build in, where nothing that is mounted reaches the host's own tree (FS1).
pub fn make_site(size: u64) -> io::Result<()> {
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    attach(tmpfs(size, 0, "755", PLAIN)?, SITE)?;
    std::env::set_current_dir(SITE)
}

/// FS2: layers that are only read, the first over the others. Overlay resolves them by descriptor, so that no path of the host can
/// turn up in mountinfo or be exchanged on the way.
fn overlay(layers: &[BorrowedFd<'_>]) -> io::Result<OwnedFd> {
    let layer = |fd: &BorrowedFd<'_>| format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(fd));
    let layers = layers.iter().map(layer).collect::<Vec<_>>().join(":");
    new_mount("overlay", &[("lowerdir", &layers), ("ro", "")], PLAIN | MountAttrFlags::MOUNT_ATTR_RDONLY)
}

/// The same, with a layer over them for what the sandbox writes: a file system in memory, of the size of its disk.
fn writable_overlay(blueprint: &Blueprint<'_>, layers: &[BorrowedFd<'_>]) -> io::Result<OwnedFd> {
    make_directory("written")?;
    attach(tmpfs(blueprint.limits.data, 0, "755", PLAIN)?, "written")?;
    for directory in ["written/upper", "written/work"] {
        make_directory(directory)?;
    }
    let open = |path: &str| rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let (upper, work) = (open("written/upper")?, open("written/work")?);
    let name = |fd: BorrowedFd<'_>| format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
    let lower = layers.iter().map(|fd| name(*fd)).collect::<Vec<_>>().join(":");
    let (upper, work) = (name(upper.as_fd()), name(work.as_fd()));
    // Attributes of its own that a user namespace may set.
    let options = [("lowerdir", lower.as_str()), ("upperdir", &upper), ("workdir", &work), ("userxattr", "")];
    new_mount("overlay", &options, PLAIN)
}

/// FS6: a /proc of this pid namespace.
pub fn proc() -> io::Result<OwnedFd> {
    new_mount("proc", &[], PLAIN | MountAttrFlags::MOUNT_ATTR_NOEXEC)
}

/// Whether [`build`]'s overlay can be made here, of `layer` and the site.
pub fn try_overlay(layer: &Path) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let (top, layer) = (rustix::fs::open(".", flags, Mode::empty())?, rustix::fs::open(layer, flags, Mode::empty())?);
    overlay(&[top.as_fd(), layer.as_fd()]).map(drop)
}

/// Whether [`build`]'s /proc can be made here.
pub fn try_proc() -> io::Result<()> {
    proc().map(drop)
}

/// Makes a site, and in it at `root` what a sandbox sees of its image, with what that lacks (and `program` at
/// [`PROGRAM`]): no file system of its own is in it yet.
pub fn layers(
    blueprint: &Blueprint<'_>,
    image: &OwnedFd,
    tree: Option<OwnedFd>,
    program: Option<&[u8]>,
) -> io::Result<()> {
    // What the image may lack, in a layer of its own: bounded, and read-only before anybody runs.
    let of_trust = if blueprint.trust.is_some() { 2 * MAX_BUNDLE } else { 0 };
    make_site(SITE_SIZE + of_trust + program.map_or(0, |program| program.len() as u64))?;
    for directory in [
        "root",
        "top",
        "top/proc",
        "top/dev",
        "top/mnt",
        "top/mnt/data",
        "top/tmp",
        "top/home",
        "top/home/sandbox",
        "top/etc",
        "top/var",
    ] {
        make_directory(directory)?;
    }
    fs::write("top/etc/hostname", "sandbox\n")?;
    fs::write("top/etc/hosts", "127.0.0.1 localhost sandbox\n::1 localhost sandbox\n")?;
    // Without a way out no name can be looked up: there is no network to ask.
    fs::write(
        "top/etc/resolv.conf",
        match blueprint.way_out {
            WayOut::None => "",
            WayOut::FilesOnly | WayOut::Listeners(_) => "nameserver 127.0.0.1\noptions timeout:3 attempts:2\n",
        },
    )?;
    // NS6.
    fs::write("top/etc/machine-id", "")?;
    if let Some((Trust(make), nonce)) = &blueprint.trust {
        let certificates = make(nonce).and_then(|authority| trust(image, &authority));
        certificates.map_err(|error| failed("the certificates", &error))?;
    }
    if let Some(program) = program {
        fs::write(format!("top{PROGRAM}"), program)?;
        fs::set_permissions(format!("top{PROGRAM}"), std::os::unix::fs::PermissionsExt::from_mode(0o555))?;
    }
    symlink("/tmp", "top/var/tmp")?;
    fs::write("empty", "")?;
    make_directory("nothing")?;

    let top = rustix::fs::open("top", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    if let Some(tree) = tree {
        make_directory("image")?;
        attach(&tree, "image")?;
        attach(writable_overlay(blueprint, &[top.as_fd(), tree.as_fd()])?, "root")?;
    } else {
        attach(overlay(&[top.as_fd(), image.as_fd()])?, "root")?;
    }
    Ok(())
}

fn mounts(blueprint: &Blueprint<'_>, image: &OwnedFd, tree: Option<OwnedFd>) -> io::Result<()> {
    layers(blueprint, image, tree, None)?;
    // FS5, while the host's devices can still be seen.
    let no_exec = MountAttrFlags::MOUNT_ATTR_NOEXEC;
    attach(tmpfs(64 << 10, 0, "755", PLAIN | no_exec)?, "root/dev")?;
    for device in ["null", "zero", "full", "random", "urandom"] {
        fs::write(format!("root/dev/{device}"), "")?;
        let quiet = MountAttrFlags::MOUNT_ATTR_NOSUID | no_exec;
        bind(&format!("/dev/{device}"), &format!("root/dev/{device}"), quiet)?;
    }
    if let Some(kvm) = blueprint.kvm {
        make_directory("device")?;
        attach(kvm, "device")?;
        fs::write("root/dev/kvm", "")?;
        bind("device/kvm", "root/dev/kvm", MountAttrFlags::MOUNT_ATTR_NOSUID | no_exec)?;
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        symlink(target, format!("root/dev/{name}"))?;
    }
    for directory in ["root/dev/pts", "root/dev/shm"] {
        make_directory(directory)?;
    }
    let terminals = [("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620"), ("max", "64")];
    let quiet = MountAttrFlags::MOUNT_ATTR_NOSUID | no_exec;
    attach(new_mount("devpts", &terminals, quiet)?, "root/dev/pts")?;
    attach(tmpfs(SHM.min(blueprint.limits.memory / 2), WORKLOAD, "1777", PLAIN | no_exec)?, "root/dev/shm")?;
    // FS4.
    // Whom a container's program runs as is known only to its image.
    let whose = if blueprint.is_container { "1777" } else { "755" };
    match blueprint.disk {
        Some(disk) => attach(disk, "root/mnt/data")?,
        None => attach(tmpfs(blueprint.limits.data, WORKLOAD, whose, PLAIN)?, "root/mnt/data")?,
    }
    if let Some(id) = blueprint.machine_id {
        attach(id, "root/etc/machine-id")?;
    }
    attach(tmpfs(blueprint.limits.tmp, WORKLOAD, "1777", PLAIN)?, "root/tmp")?;
    attach(tmpfs(blueprint.limits.tmp, WORKLOAD, "755", PLAIN)?, "root/home/sandbox")?;
    attach(proc()?, "root/proc")?;
    mask_proc()?;
    // `/dev` itself holds no file anybody may write to; its submounts keep their own rules.
    remount_read_only("root/dev", PLAIN | no_exec)?;

    pivot("root")
}

/// No path of the host survives: the old root is stacked upon the new one, and taken away from there.
pub fn pivot(new_root: &str) -> io::Result<()> {
    std::env::set_current_dir(new_root)?;
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    std::env::set_current_dir("/")?;
    Ok(())
}

/// Makes a directory, unless there is one.
///
/// # Errors
/// Where the kernel does not.
pub fn make_directory(path: &str) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed(path, &error)),
        _ => Ok(()),
    }
}

fn remount_read_only(path: &str, attributes: MountAttrFlags) -> io::Result<()> {
    let fd = rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let attributes = attributes | MountAttrFlags::MOUNT_ATTR_RDONLY;
    sandbox::set_mount_attributes(&fd, attributes.bits().into()).map_err(|error| failed(path, &error))
}

fn mask_proc() -> io::Result<()> {
    let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY | PLAIN | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    // First, so that masks below these lie over them.
    for name in READ_ONLY {
        let place = format!("root/proc/{name}");
        if fs::symlink_metadata(&place).is_ok() {
            bind(&place, &place, read_only)?;
        }
    }
    // Mounts of their own, so that each further place for them, of which there are many, is one call and inherits the
    // attributes.
    for mask in ["empty", "nothing"] {
        bind(mask, mask, read_only)?;
    }
    let (file, directory) = (fs::metadata("empty")?, fs::metadata("nothing")?);
    for name in MASKED {
        let place = format!("root/proc/{name}");
        let Ok(found) = fs::symlink_metadata(&place) else { continue };
        if found.is_symlink() {
            return Err(io::Error::other(format!("/proc/{name} is a link, and cannot be masked")));
        }
        let (mask, stand_in) = if found.is_dir() { ("nothing", &directory) } else { ("empty", &file) };
        rustix::mount::mount_bind(mask, &place).map_err(|error| failed(&place, &io::Error::from(error)))?;
        // A mask that points elsewhere has been a hole more than once: look at what is there now.
        let now = fs::metadata(&place)?;
        use std::os::unix::fs::MetadataExt;
        if (now.dev(), now.ino()) != (stand_in.dev(), stand_in.ino()) {
            return Err(io::Error::other(format!("/proc/{name} is not masked")));
        }
    }
    Ok(())
}

/// RS5: what one process may use, and its ceiling.
pub fn of_processes(limits: &Limits) -> [(Resource, u64, u64); 10] {
    // One page more than the largest disk, so that a full disk says so (ENOSPC) before this limit ends the writer.
    let largest_file = limits.data.max(limits.tmp) + 4096;
    [
        (Resource::Core, 0, 0),
        (Resource::Nofile, 4096, 4096),
        (Resource::Memlock, 64 << 10, 64 << 10),
        (Resource::Msgqueue, 0, 0),
        (Resource::Sigpending, 256, 256),
        (Resource::Fsize, largest_file, largest_file),
        (Resource::Rtprio, 0, 0),
        (Resource::Nice, 0, 0),
        (Resource::Nproc, limits.pids.into(), limits.pids.into()),
        (Resource::Stack, 8 << 20, 64 << 20),
    ]
}

/// Sets them. A hard limit is never raised: the launcher may not be allowed to.
fn limits(limits: &Limits) -> io::Result<()> {
    for (resource, soft, hard) in of_processes(limits) {
        let now = rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX);
        let hard = now.min(hard);
        let new = Rlimit { current: Some(hard.min(soft)), maximum: Some(hard) };
        rustix::process::setrlimit(resource, new).map_err(|error| failed(&format!("{resource:?}"), &error))?;
    }
    Ok(())
}

/// ID3, ID4: uid 998 with the four capabilities that the agent needs to start, stop and serve its workloads, none of
/// which a program started by it keeps.
fn privileges() -> io::Result<()> {
    let kept = CapabilitySet::KILL | CapabilitySet::SETGID | CapabilitySet::SETUID | CapabilitySet::SETPCAP;
    for bit in 0..64 {
        let Some(one) = CapabilitySet::from_bits(1 << bit) else { continue };
        if !kept.contains(one) && rustix::thread::capability_is_in_bounding_set(one).unwrap_or(false) {
            rustix::thread::remove_capability_from_bounding_set(one)?;
        }
    }
    let base = CapabilitiesSecureBits::NO_ROOT
        | CapabilitiesSecureBits::NO_ROOT_LOCKED
        | CapabilitiesSecureBits::NO_SETUID_FIXUP
        | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
        | CapabilitiesSecureBits::KEEP_CAPS_LOCKED;
    rustix::thread::set_capabilities_secure_bits(base)?;
    become_id(AGENT)?;
    rustix::thread::set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: kept })?;
    for bit in 0..64 {
        if let Some(one) = CapabilitySet::from_bits(1 << bit).filter(|one| kept.contains(*one)) {
            rustix::thread::configure_capability_in_ambient_set(one, true)?;
        }
    }
    let locked =
        base | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
    Ok(rustix::thread::set_capabilities_secure_bits(locked)?)
}
