//! The dialects over the service layer: Azure's data plane, the native API, and the tokens for both.
//!
//! ```text
//! serve    connections, plain and TLS        tls       the certificate they show
//! app      what every handler has            problem   what a refusal looks like: one table of statuses and codes
//! native   /pools, with streaming            azure     every generation of dynamic sessions' data plane
//! mcp      the Model Context Protocol                arm       Azure's control plane of pools
//! auth     who asks                          openapi   all of it, described
//! metrics  what is counted, for Prometheus and OTLP   traced   a request's span
//! console  the console's files
//! ```
//!
//! A handler parses, calls [`sandpool_node::Node`], and answers. Nothing here knows a sandbox.

mod app;
mod arm;
pub mod auth;
mod azure;
mod console;
mod forward;
mod journal;
mod mcp;
mod metrics;
mod native;
mod objects;
mod openapi;
mod problem;
mod serve;
#[cfg(any(test, feature = "served"))]
pub mod served;
#[cfg(test)]
mod tenancy;
pub mod tls;
mod traced;

pub use app::{App, router, router_telling};
pub use metrics::Counted;
pub use serve::{Listener, serve};
