//! VMMs behind one small trait. They are programs of the host: found there, never part of this one.

mod qemu;

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use qemu::{PROGRAM as QEMU, Qemu};

use crate::machine::Machine;

/// Where the parts of every machine are, below the root that its VMM has.
pub const KERNEL: &str = "/machine/kernel";
/// The first root file system, with the first program and the kernel's modules.
pub const INITRD: &str = "/machine/initrd";
/// What the kernel is told, and whether the processor is emulated: [`Platform`], as JSON.
pub const PLATFORM: &str = "/machine/platform.json";

/// What is alike in all machines of one preparation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// Whether the processor is emulated: then the machine is no boundary.
    pub is_emulated: bool,
    /// Thousands of ticks in a second of this host's processor, which an emulated one counts.
    pub tsc_khz: u64,
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
    orders: qemu::Orders,
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

    /// Lets a machine run that stands still: after [`Vmm::save`], or since it was begun as [`Begin::Wake`].
    ///
    /// # Errors
    /// What the VMM says.
    fn go_on(&self, parts: &Parts<'_>, running: &mut Running) -> io::Result<()>;
}
