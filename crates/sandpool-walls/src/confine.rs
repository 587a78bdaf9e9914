//! Walls around our own programs that read what hostile code and strangers send: they keep what they need of the host, for good.

use std::io;
use std::path::Path;

use crate::landlock::{NEWEST, ruleset};
use landlock::{Access, AccessFs, PathBeneath, PathFd, RulesetCreatedAttr, RulesetError};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::seccomp::Filters;

/// What resolving names and checking certificates reads, where a host has it: the C library with its modules, their settings, and the
/// resolver's answers.
const RESOLVING: [&str; 7] = ["/etc", "/usr", "/lib", "/lib64", "/run", "/dev", "/proc/self"];

/// The egress proxy: it resolves names and dials, and writes below `records` alone.
///
/// # Errors
/// As [`confine`].
pub fn confine_proxy(records: &Path) -> io::Result<()> {
    let reads: Vec<_> = RESOLVING.iter().map(Path::new).collect();
    confine(&reads, &[records])
}

/// Puts the calling process, which has one thread, behind walls: of the host's files it reads those below `reads`, and makes, changes and
/// removes those below `writes`; it executes none. It has no capability any more. System calls are those that a sandbox has.
///
/// # Errors
/// Where the kernel cannot, or what is to be written is not there: then the process must not go on.
pub fn confine(reads: &[&Path], writes: &[&Path]) -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    let other = |error: RulesetError| io::Error::other(error);
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = AccessFs::from_all(NEWEST) & !(AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock);
    let mut rules = ruleset(false).map_err(other)?;
    for path in reads {
        // What is not there need not be read.
        if let Ok(open) = PathFd::new(path) {
            rules = rules.add_rule(PathBeneath::new(open, read)).map_err(other)?;
        }
    }
    for path in writes {
        let open = PathFd::new(path).map_err(io::Error::other)?;
        rules = rules.add_rule(PathBeneath::new(open, write)).map_err(other)?;
    }
    rules.restrict_self().map_err(other)?;
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    Filters::compile()?.install()
}
