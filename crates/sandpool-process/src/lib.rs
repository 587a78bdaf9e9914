//! The process level: sandboxes out of one kernel's namespaces, filters and limits.
//!
//! ```text
//! launcher   root, one thread: builds sandboxes, owns them, restarts the server
//! driver     in the server: the Driver seam, over the control socket
//! host       what this host can do: `sandpool doctor`, and why a pool is refused
//! ```

mod cgroup;
mod contained;
mod control;
mod driver;
pub mod host;
pub mod launcher;
pub mod oci;

pub use control::is_packet;
pub use driver::{Prepare, ProcessDriver, control as take_control, hearing as take_hearing};
pub use sandpool_walls::{confine, confine_proxy};

/// What the host's monotonic clock says now.
#[must_use]
pub fn monotonic() -> std::time::Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // Neither is negative.
    std::time::Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// The descriptor that an egress proxy started by the launcher finds its counters on.
pub const COUNTERS_FD: i32 = 4;

/// The descriptor on which it tells the server what it decides.
pub const TELLING_FD: i32 = 5;

/// The descriptor on which a server started by the launcher hears what the egress proxy decides.
pub const HEARING_FD: i32 = 4;

/// The descriptor that a server started by the launcher finds its end of the control socket on.
pub const CONTROL_FD: i32 = 3;
