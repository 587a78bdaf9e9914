//! VMMs behind one small trait. They are programs of the host: found there, never part of this one.

pub mod api;
mod cloud_hypervisor;
mod firecracker;
mod http;
mod qemu;
mod saved;
mod template;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::pipe::PipeFlags;
use sandpool_sys::workload::{self, Identity, Workload};
use sandpool_walls::setup::WORKLOAD;
use serde::{Deserialize, Serialize};

use crate::machine::Machine;

/// Where the parts of every machine are, below the root that its VMM has.
pub const PARTS: &str = "machine";
/// The kernel, as its distribution packs it.
pub const KERNEL: &str = "kernel";
/// The kernel, unpacked: an ELF file.
pub const PLAIN_KERNEL: &str = "vmlinux";
/// The first root file system, with the first program and the kernel's modules.
pub const INITRD: &str = "initrd";
/// What the kernel is told, and whether the processor is emulated: [`Platform`], as JSON.
pub const PLATFORM: &str = "platform.json";

/// The port of a machine that is reached over vsock, where its first program listens.
pub const VSOCK_PORT: u32 = 1024;

/// Which program runs machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// QEMU's machine type `microvm`.
    Qemu,
    /// Firecracker.
    Firecracker,
    /// Cloud Hypervisor.
    CloudHypervisor,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Qemu, Self::Firecracker, Self::CloudHypervisor];

    /// Its word in settings.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::Firecracker => "firecracker",
            Self::CloudHypervisor => "cloud-hypervisor",
        }
    }

    /// Its program's name.
    #[must_use]
    pub fn program(self) -> &'static str {
        match self {
            Self::Qemu => "qemu-system-x86_64",
            Self::Firecracker => "firecracker",
            Self::CloudHypervisor => "cloud-hypervisor",
        }
    }
}

/// What is alike in all machines of one preparation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// What runs them.
    pub vmm: Kind,
    /// Whether the processor is emulated: then the machine is no boundary.
    pub is_emulated: bool,
    /// Thousands of ticks in a second of this host's processor, which an emulated one counts.
    pub tsc_khz: u64,
}

impl Platform {
    /// What the VMM's root, which is there, says.
    ///
    /// # Errors
    /// Names the file.
    pub fn read(root: &Path) -> io::Result<Self> {
        let path = root.join(PARTS).join(PLATFORM);
        let about = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        serde_json::from_slice(&std::fs::read(&path).map_err(about)?).map_err(|error| about(error.into()))
    }
}

/// Where a VMM and its files are, and whom it runs as.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its program.
    pub program: PathBuf,
    /// Kernels and the first root file system.
    pub parts: PathBuf,
    /// An empty directory of its own, for what it and its caller say to each other.
    pub work: PathBuf,
    /// Whom it becomes; without, it stays what its caller is.
    pub identity: Option<Identity>,
    /// How long it may take for what it is told.
    pub patience: Patience,
}

/// The longest waits for a VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Until it listens.
    pub start: Duration,
    /// For an ordinary answer.
    pub answer: Duration,
    /// For an answer about all of a machine's memory.
    pub writing: Duration,
    /// Until the first program of a machine takes a connection.
    pub port: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        let [short, long] = [10, 120].map(Duration::from_secs);
        Self { start: short, answer: short, writing: long, port: long }
    }
}

impl Place {
    /// Inside the sandbox around it.
    #[must_use]
    pub fn inside(vmm: Kind) -> Self {
        Self {
            program: Path::new("/usr/bin").join(vmm.program()),
            parts: Path::new("/").join(PARTS),
            work: "/mnt/data/vmm".into(),
            identity: Some(Identity { uid: WORKLOAD, gid: WORKLOAD }),
            patience: Patience::default(),
        }
    }

    fn part(&self, name: &str) -> PathBuf {
        self.parts.join(name)
    }

    /// Makes the directory that it works in.
    fn prepare(&self) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new().mode(0o700).recursive(true).create(&self.work)
    }

    /// Starts the program: answers its process, and what it says, which does not block.
    fn spawn(&self, arguments: Vec<String>, pass: Vec<(OwnedFd, i32)>) -> io::Result<(u32, OwnedFd)> {
        use rustix::fs::{Mode, OFlags};
        let (words, said) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // What it writes it waits for.
        rustix::io::ioctl_fionbio(&said, false)?;
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        let argv = std::iter::once(self.program.clone().into_os_string()).chain(arguments.into_iter().map(Into::into));
        let pid = workload::spawn(Workload {
            argv: argv.collect(),
            file: None,
            env: vec![("PATH".into(), "/usr/bin".into()), ("TMPDIR".into(), "/tmp".into())],
            directory: "/".into(),
            identity: self.identity,
            stdio: [null.try_clone()?, said.try_clone()?, said],
            pass,
            terminal: false,
        })?;
        Ok((pid, words))
    }
}

/// The VMM of such machines, with its files there.
#[must_use]
pub fn of(platform: Platform, place: Place) -> Box<dyn Vmm> {
    match platform.vmm {
        Kind::Qemu => Box::new(qemu::Qemu { platform, place }),
        Kind::Firecracker => Box::new(firecracker::Firecracker { place }),
        Kind::CloudHypervisor => Box::new(cloud_hypervisor::CloudHypervisor { place }),
    }
}

/// What stands for the port of a machine that has none yet.
fn no_port() -> io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?.0)
}

/// What a kernel is told in every machine, after the words that are its VMM's.
fn told(machine: &Machine, first: &str) -> String {
    let words = machine.words().join(",");
    format!("{first} quiet panic=-1 apparmor=0 audit=0 cryptomgr.notests random.trust_cpu=on sandpool={words}")
}

/// How a machine begins.
#[derive(Debug)]
pub enum Begin<'a> {
    /// It boots.
    Boot,
    /// It boots, with its memory in this empty file, to be a template.
    Template(&'a OwnedFd),
    /// It goes on where the template in this file stood, with memory that it shares until it writes to it.
    Restore(&'a OwnedFd),
    /// It is what was saved: this file or pipe, read from where it stands, has all of it. It stands still until [`Vmm::go_on`], and what
    /// it is made of may be read after this has come back.
    Wake(&'a OwnedFd),
}

/// What a machine is made of.
#[derive(Debug)]
pub struct Parts<'a> {
    /// What it is.
    pub machine: Machine,
    /// The image, as a block device for reading.
    pub image: &'a OwnedFd,
    /// The session's disk, a file of its VMM's user.
    pub disk: &'a Path,
}

/// A machine that runs.
#[derive(Debug)]
pub struct Running {
    /// The VMM's process, a child of the caller.
    pub pid: u32,
    /// The machine's port. It does not block.
    pub port: OwnedFd,
    /// What the VMM says. It does not block.
    pub words: OwnedFd,
    /// Where it takes orders.
    orders: Orders,
}

/// Where a VMM takes orders.
#[derive(Debug)]
enum Orders {
    Qemu(qemu::Orders),
    Api(api::Api, Option<firecracker::Files>),
}

/// A program that runs machines.
///
/// Each VMM is a process of its own inside the walls of a process-level sandbox, and ends with it: to end a machine is to end
/// that.
pub trait Vmm {
    /// Starts a machine, and answers with the port to it.
    ///
    /// # Errors
    /// Those of starting a program; [`io::ErrorKind::InvalidData`] for a template that is none.
    fn begin(&self, parts: &Parts<'_>, how: &Begin<'_>) -> io::Result<Running>;

    /// Stops a machine that was begun as [`Begin::Template`], and completes its file. It does not run again. Others write to the end
    /// of the file afterwards, so that nothing about it is known by where it ends.
    ///
    /// # Errors
    /// What the VMM says.
    fn snapshot(&self, parts: &Parts<'_>, running: &mut Running, file: &OwnedFd) -> io::Result<()>;

    /// Stops a machine that runs, and writes all of it (memory and devices, not its disk) to this file or pipe, from where that stands.
    /// Somebody has to read from a pipe meanwhile.
    ///
    /// # Errors
    /// What the VMM says. The machine stands still then.
    fn save(&self, parts: &Parts<'_>, running: &mut Running, to: &OwnedFd) -> io::Result<()>;

    /// Lets a machine run that stands still: after [`Vmm::save`], or since it was begun as [`Begin::Wake`]. Answers whether
    /// `running.port` is another one since: then what was under way on the old one is lost.
    ///
    /// # Errors
    /// What the VMM says.
    fn go_on(&self, parts: &Parts<'_>, running: &mut Running) -> io::Result<bool>;
}
