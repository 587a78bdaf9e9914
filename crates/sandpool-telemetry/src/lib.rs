//! What the server tells a collector over OTLP: traces, metrics and logs.
//!
//! ```text
//! context   W3C trace context: what a caller says, and what programs are told
//! trace     spans, and the one that is current: a value handed down, and nothing where nobody traces
//! log       the server's events, with the span in which they happened
//! export    queues and the tasks that empty them: whoever gives something never waits
//! otlp      the protocol's messages
//! ```
//!
//! Everything here costs a look at a task's own memory where nothing is exported. A span is made when it has ended, from times that were
//! taken anyway; a request that is not sampled makes none.
//!
//! Why no SDK: it has a thread and a client of its own for each signal, counts what it drops where nobody can read it, and keeps metrics a
//! second time. What is needed of it is small, and its messages are stable (OTLP 1.x).

mod context;
mod export;
mod log;
mod otlp;
mod trace;

pub use context::{Parent, TraceParent};
pub use export::{Config, Exporter, Lost, MetricSource, Point, Series, Signal, Signals, Value as MetricValue, Workers};
pub use log::LogLayer;
pub use trace::{Kind, Sampler, Span, Trace, Value, current, scope};
