//! The process level: sandboxes out of one kernel's namespaces, filters and limits.
//!
//! ```text
//! launcher   root, one thread: builds sandboxes, owns them, restarts the server
//! driver     in the server: the Driver seam, over the control socket
//! host       what this host can do: `sandpool doctor`, and why a pool is refused
//! seccomp    the system calls a sandbox may make
//! ```

mod cgroup;
mod control;
mod driver;
pub mod host;
pub mod launcher;
pub mod seccomp;
mod setup;

pub use control::is_packet;
pub use driver::{ProcessDriver, control as take_control};

/// The descriptor that a server started by the launcher finds its end of the control socket on.
pub const CONTROL_FD: i32 = 3;
