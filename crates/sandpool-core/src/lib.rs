//! The rules of Sandpool: pools, reservoirs, session life cycle, admission, quotas. No I/O, no clock, no randomness.

pub mod ids;
pub mod limits;
pub mod line;
pub mod pool;
pub mod tenants;
