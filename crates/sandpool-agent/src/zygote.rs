//! A zygote: a warm interpreter's memory in a file, from which the interpreters of other sandboxes start.
//!
//! ```text
//! one sandbox of the pool:   interpreter, cold --> imports, rehearses --> writes its memory to the file --> ends
//! every sandbox after that:  the file is the program: it maps itself, private to its process, and goes on
//! ```
//!
//! Nothing is forked across sandboxes, so nobody needs a privilege over more than one: a zygote is made inside a
//! finished sandbox that never has a session, and is started, as any interpreter is, inside the sandbox it is for, with
//! the same user, filters and limits. What interpreters of one file share is what the file holds: the addresses of
//! what was loaded, and the seed of Python's `hash`. Generators are seeded anew in each (`zygote.py`).
//!
//! The file comes from the image's own code, so it is trusted as much as that: this program never reads it.

use std::os::fd::OwnedFd;

use sandpool_sys::frozen;

use crate::runner::{self, ToRunner};

/// What a runner does to be frozen, and when it wakes.
const PYTHON: &str = include_str!("zygote.py");

/// Where a runner finds the file while it is frozen.
pub const FILE: i32 = 6;

/// What a sandbox has to do with its pool's zygote.
#[derive(Debug)]
pub enum Zygote {
    /// Make it: this file is empty.
    Freeze(OwnedFd),
    /// Start from it.
    Thaw(OwnedFd),
    /// None: the sandbox is in a machine that others will go on from. What would be frozen is loaded, and stays.
    Warm,
}

/// Asks a runner to load what sessions load.
pub(crate) fn warm() -> Vec<u8> {
    runner::encode(&ToRunner::Warm { source: PYTHON })
}

/// Asks a warm runner to freeze itself. `None` where there is no code for that.
pub(crate) fn ask() -> Option<Vec<u8>> {
    let (thawer, freezer) = frozen::code()?;
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    Some(runner::encode(&ToRunner::Freeze { source: PYTHON, thawer: &hex(thawer), freezer: &hex(freezer) }))
}
