//! Pools as objects: their form, their checks, and the one place where they are kept and applied.
//!
//! ```text
//! YAML, JSON, the ARM resource --> PoolObject --check--> PoolSpec --> Node
//!                                      |
//!                                  Pools: file's and applied ones, kept in the store, one change at a time
//! ```
//!
//! Field names are those of the ARM resource where it has them, so that one object has several faces and one meaning.

pub mod container;
pub mod network;
pub mod pool;
pub mod pools;
pub mod secrets;
pub mod servers;
pub mod units;

use std::collections::BTreeMap;
use std::time::SystemTime;

pub use container::ImageConfig;
pub use pool::PoolObject;
pub use pools::{Applied, Found, Images, Kept, Origin, Pools, PoolsError, Prepared, Pull};
pub use units::Size;

/// What is wrong with an object: where, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}")]
pub struct Fault {
    /// The path of the field, such as `spec.resources.memory`.
    pub field: String,
    /// What is wrong with it, as the rest of a sentence.
    pub why: String,
}

pub(crate) fn fault(field: impl Into<String>, why: impl Into<String>) -> Fault {
    Fault { field: field.into(), why: why.into() }
}

/// What clients are told about a pool, besides what the service layer knows.
#[derive(Clone, Debug)]
pub struct PoolFace {
    /// Azure's name for what answers code: `PythonLTS`, `NodeLTS`, `Shell`.
    pub container_type: String,
    /// What is in its image.
    pub metadata: Metadata,
    /// Characters of each output stream that an answer of the modern data plane holds unless the request asks for
    /// another number (`outputStreamsMaxLength`).
    pub default_output_limit: u64,
    /// Azure's MCP server answers at the pool's endpoint plus `/mcp`.
    pub is_mcp_enabled: bool,
    /// Somebody else's MCP servers, which run in its sandboxes, by name.
    pub servers: BTreeMap<String, HostedServer>,
}

/// An MCP server that speaks over its standard input and output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostedServer {
    /// Its program and arguments, in the sandbox.
    pub argv: Vec<String>,
    /// Environment variables of its own, over the pool's.
    pub env: Vec<(String, String)>,
}

/// What is in an image.
#[derive(Clone, Debug)]
pub struct Metadata {
    /// The runtime's name: `Python`, `Node.js`, `Bash`.
    pub runtime: String,
    /// Its version, as it says itself.
    pub version: String,
    /// Names and versions of the runtime's packages.
    pub packages: Vec<(String, String)>,
    /// When the image was built.
    pub created: SystemTime,
}
