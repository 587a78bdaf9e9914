//! The rules of Sandpool: pools, reservoirs, session life cycle, admission. No I/O, no clock, no randomness.

pub mod ids;
pub mod limits;
pub mod pool;
