//! System calls made safe: the one crate with unsafe code.

pub mod frozen;
pub mod sandbox;
pub mod workload;
