//! The service layer: pools, sessions, executions and files. What every dialect calls.
//!
//! REST, MCP, the command line and the console are thin faces of [`Node`]. It knows no HTTP; it drives a
//! [`sandpool_driver::Driver`] by the rules of `sandpool_core::pool`, and speaks with agents over the driver's
//! byte streams.

pub mod api;
mod by_name;
mod files;
mod identity;
mod journal;
mod link;
mod lost;
pub mod metrics;
mod node;
mod outward;
mod owner;
mod pools;
mod ports;
mod record;
mod samples;
mod service;
mod session;
mod suspend;
mod tenants;
mod terminals;
mod usages;

pub use api::*;
pub use by_name::ByName;
pub use metrics::Metrics;
pub use node::{ExecutionHandle, Node, NodeConfig};
pub use outward::{Reached, ReachedReader};
pub use ports::Connection;
pub use samples::{SAMPLE_INTERVAL, Sample, SampleReader};
pub use sandpool_store::snapshots::{Bounds, HostDisk, Snapshots, cut};
pub use sandpool_store::{Audited, Deed, Store, StoreError, chain, trail};
pub use sandpool_wire::agent::without_words;
pub use sandpool_wire::egress::{Decided, Decision, Told, Via};
pub use service::{Awaited, ServiceEvent, ServiceInput, ServiceOutput};
pub use terminals::{
    NewTerminal, Signal, TerminalEvent, TerminalInfo, TerminalInput, TerminalOutput, TerminalRequest, TerminalSize,
    TerminalView,
};
