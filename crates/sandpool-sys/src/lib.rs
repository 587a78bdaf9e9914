//! System calls made safe: the one crate with unsafe code.

pub mod counters;
pub mod frozen;
pub mod machine;
pub mod network;
pub mod packet;
pub mod sandbox;
pub mod vsock;
pub mod workload;
