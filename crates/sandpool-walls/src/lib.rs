//! The walls that a process puts around itself: a root of its own, limits, privileges, Landlock, and filters.
//!
//! ```text
//! setup      from a process in new namespaces to the first one of a sandbox: by the launcher, and inside a machine's kernel
//! confine    around programs of ours that read what strangers send
//! landlock   the second policy of a sandbox's files and ports, wherever it is put in force
//! seccomp    the system calls that a sandbox may make
//! ```

mod confine;
pub mod landlock;
pub mod seccomp;
pub mod setup;

pub use confine::{confine, confine_proxy};
