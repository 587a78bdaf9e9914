//! The benchmark suite: what a caller feels, beside the same work without us, in one run.
//!
//! ```text
//! run       scenarios -> rows -> report          compare   two programs, interleaved, ratios with intervals
//! scenario  what is measured, and its floor      server    one server under test, and its end
//! load      open and closed loops                http      the generator's client
//! floor     the same work without us             stats     quantiles, bootstrap
//! peers     other systems, in the same run       machine   on what
//! ```

pub mod compare;
pub mod floor;
pub mod http;
pub mod load;
pub mod machine;
pub mod memory;
pub mod peers;
pub mod report;
pub mod run;
pub mod scenario;
pub mod server;
pub mod stats;
