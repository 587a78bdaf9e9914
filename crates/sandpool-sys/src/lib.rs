//! System calls made safe: the one crate with unsafe code.

pub mod workload;
