//! The Model Context Protocol.
//!
//! ```text
//! native  /mcp and /pools/{pool}/mcp: both eras of the protocol, nine tools
//! azure   {pool endpoint}/mcp as clients of dynamic sessions know it: four tools, plain POST, JSON
//! hosted  /pools/{pool}/servers/{server}/mcp: somebody else's servers, in sandboxes
//! ```

pub(crate) mod azure;
pub(crate) mod hosted;
pub(crate) mod native;
