//! What the egress proxy is told: whose listeners it has, and what each sandbox may reach.
//!
//! ```text
//! server  --(policies, as bytes)-->  launcher  --Attach (with listeners), Rule, Detach-->  egress proxy
//! ```
//!
//! The launcher keeps policies with what else it remembers of a pool or a sandbox, and reads nothing of them: so they outlive the
//! server and the proxy alike.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The largest encoded [`Policy`], in bytes. Two of them fit into a packet.
pub const MAX_POLICY: usize = 24 * 1024;

/// The listeners of a sandbox, in the order in which they are handed over.
pub const LISTENERS: usize = 6;

/// Said to the proxy, one packet each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToEgress {
    /// A sandbox, and with the packet its [`LISTENERS`]: TCP at the ports 80, 443, 3128, 1080 and 53, and UDP at 53.
    Attach {
        /// Which.
        sandbox: [u8; 16],
        /// The pool it is of.
        pool: String,
        /// What it may reach.
        rules: Rules,
    },
    /// From now on a sandbox has these rules. Answered by [`FromEgress::Ruled`].
    Rule {
        /// Which.
        sandbox: [u8; 16],
        /// Comes back in the answer.
        number: u32,
        /// What it may reach.
        rules: Rules,
    },
    /// The sandbox is over.
    Detach {
        /// Which.
        sandbox: [u8; 16],
    },
}

/// Said by the proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromEgress {
    /// The rules hold: no connection is judged by older ones, and what they forbid has been cut.
    Ruled {
        /// The call's.
        number: u32,
        /// Why they do not; then all is as it was.
        problem: Option<String>,
    },
}

/// What one sandbox may reach, as [`Policy`]s that are encoded: what its pool allows, and of that what its session does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// The pool's.
    pub pool: Vec<u8>,
    /// The session's own, which can only take away: both must allow.
    pub session: Option<Vec<u8>>,
}

/// Which hosts may be reached. As JSON and in settings it has the same keys, in camel case.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Policy {
    /// What is not said otherwise.
    pub mode: Mode,
    /// With [`Mode::AllowList`], what may be reached.
    pub allow: Vec<String>,
    /// What may not, whatever else is said.
    pub deny: Vec<String>,
    /// Ranges of addresses that are not public and may be reached all the same.
    pub allow_addresses: Vec<String>,
    /// Names whose addresses are given here, and asked of nobody.
    pub hosts: BTreeMap<String, Vec<IpAddr>>,
}

/// What holds for a host that no list names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Nothing is reached, whatever is listed.
    #[default]
    None,
    /// It is not reached.
    AllowList,
    /// It is reached, when it is public.
    Open,
}

impl Policy {
    /// Encodes.
    ///
    /// # Errors
    /// A sentence when it is longer than [`MAX_POLICY`].
    pub fn encode(&self) -> Result<Vec<u8>, String> {
        let bytes = postcard::to_stdvec(self).map_err(|error| error.to_string())?;
        if bytes.len() > MAX_POLICY {
            return Err(format!("the lists take {} bytes together; {MAX_POLICY} are the most", bytes.len()));
        }
        Ok(bytes)
    }

    /// Decodes.
    ///
    /// # Errors
    /// A sentence.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        match bytes.len() {
            ..=MAX_POLICY => postcard::from_bytes(bytes).map_err(|error| error.to_string()),
            length => Err(format!("a policy of {length} bytes is too long")),
        }
    }
}
