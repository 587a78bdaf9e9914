//! The Model Context Protocol.
//!
//! ```text
//! azure   {pool endpoint}/mcp as clients of dynamic sessions know it: four tools, plain POST, JSON
//! ```

pub(crate) mod azure;
