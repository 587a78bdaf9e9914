//! What the egress proxy is told: whose listeners it has, and what each sandbox may reach.
//!
//! ```text
//! server  --(policies, as bytes)-->  launcher  --Attach (with listeners), Rule, Detach-->  egress proxy
//! server  <--------------------------------- what was decided (Told) ---------------------------------'
//! ```
//!
//! The launcher keeps policies with what else it remembers of a pool or a sandbox, and reads nothing of them: so they outlive the
//! server and the proxy alike.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The largest encoded [`Policy`], in bytes. Two of them fit into a packet, with a session's secrets.
pub const MAX_POLICY: usize = 24 * 1024;

/// The longest encoded list of a session's secrets, in bytes.
pub const MAX_SECRETS: usize = 12 * 1024;

/// Bytes of a secret's value, at most: what fits into a header.
pub const MAX_VALUE: usize = 8 * 1024;

/// Bytes of a secret's value, at least: a shorter one would be found in what has nothing to do with it.
pub const MIN_VALUE: usize = 8;

/// The listeners of a sandbox, in the order in which they are handed over.
pub const LISTENERS: usize = 6;

/// The TCP ports at which they listen: in a sandbox with a way out, these lead there and are no program's.
pub const PORTS: [u16; 5] = [80, 443, 3128, 1080, 53];

/// Said to the proxy, one packet each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToEgress {
    /// A sandbox, and with the packet its [`LISTENERS`]: TCP at the ports 80, 443, 3128, 1080 and 53, and UDP at 53.
    Attach {
        /// Which.
        sandbox: [u8; 16],
        /// The pool it is of.
        pool: String,
        /// What tells its authority from others: the one that its files trust.
        nonce: [u8; 16],
        /// Where its bytes are counted.
        counter: u32,
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

/// The longest packet of [`Told`], in bytes.
pub const MAX_TOLD: usize = 32 * 1024;

/// The longest destination of a [`Decided`], in bytes: a host's name.
pub const MAX_DESTINATION: usize = 253;

/// The longest reason of a [`Decided`], in bytes; what is longer is cut.
pub const MAX_REASON: usize = 200;

/// Said by the proxy to the server, one packet each of [`MAX_TOLD`] bytes at most. Nobody answers, and nobody waits: where the server does
/// not listen, it is not said, and counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Decisions that were not told before these.
    pub missed: u64,
    /// What was decided, in its order.
    pub decided: Vec<Decided>,
}

/// What was decided about one connection, or one question for a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decided {
    /// Whose it was.
    pub sandbox: [u8; 16],
    /// The pool of that.
    pub pool: String,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// How it came.
    pub via: Via,
    /// Where to: a name or an address; nothing when that could not be understood.
    pub destination: Option<String>,
    /// At which port.
    pub port: Option<u16>,
    /// What was decided.
    pub decision: Decision,
    /// Why it was not allowed, or how it ended.
    pub reason: Option<String>,
    /// Bytes from the sandbox.
    pub sent: u64,
    /// Bytes to it.
    pub received: u64,
}

/// How somebody came to the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// A question for a name.
    Dns,
    /// As if to a web server, at port 80.
    Http,
    /// As if to a web server, at port 443.
    Tls,
    /// As to an HTTP proxy.
    Proxy,
    /// As to an HTTP proxy, for a tunnel.
    Connect,
    /// As to a SOCKS proxy.
    Socks,
}

impl Via {
    /// Its word, as records and answers have it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Http => "http",
            Self::Tls => "tls",
            Self::Proxy => "proxy",
            Self::Connect => "connect",
            Self::Socks => "socks",
        }
    }
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// It went through.
    Allowed,
    /// It did not, by the rules or their limits.
    Refused,
    /// It was allowed, and did not work.
    Failed,
}

impl Decision {
    /// Its word, as records and answers have it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

impl Told {
    /// Decodes a packet. The proxy reads what sandboxes and strangers send, so nothing of it is taken on trust: names are printable and short,
    /// and so are reasons.
    ///
    /// # Errors
    /// A sentence.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > MAX_TOLD {
            return Err(format!("a packet of {} bytes is too long", bytes.len()));
        }
        let (told, rest) = postcard::take_from_bytes::<Self>(bytes).map_err(|error| error.to_string())?;
        let is_plain = |text: &str, most: usize| text.len() <= most && text.bytes().all(|byte| byte.is_ascii_graphic());
        let is_meant = |decided: &Decided| {
            is_plain(&decided.pool, 63)
                && decided.destination.as_deref().is_none_or(|destination| is_plain(destination, MAX_DESTINATION))
                && decided
                    .reason
                    .as_deref()
                    .is_none_or(|reason| reason.len() <= MAX_REASON && !reason.contains(char::is_control))
        };
        match rest.is_empty() && told.decided.iter().all(is_meant) {
            true => Ok(told),
            false => Err("it is not what a proxy says".to_owned()),
        }
    }
}

/// What one sandbox may reach, as [`Policy`]s that are encoded: what its pool allows, and of that what its session does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// The pool's.
    pub pool: Vec<u8>,
    /// The session's own, which can only take away: both must allow.
    pub session: Option<Vec<u8>>,
    /// The session's own secrets, as [`SecretValue`]s that are encoded.
    pub secrets: Option<Vec<u8>>,
}

/// A secret, and who gets it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretValue {
    /// Its name: the variable in the sandbox.
    pub name: String,
    /// What the sandbox has instead.
    pub placeholder: String,
    /// What its hosts get.
    pub value: String,
    /// Its hosts: `example.com`, `*.example.com`, each with `:PORT` if it is not 443.
    pub hosts: Vec<String>,
}

/// Never the value.
impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, placeholder, hosts, .. } = self;
        f.debug_struct("SecretValue")
            .field("name", name)
            .field("placeholder", placeholder)
            .field("hosts", hosts)
            .finish_non_exhaustive()
    }
}

impl SecretValue {
    /// Encodes a list.
    ///
    /// # Errors
    /// A sentence when it is longer than [`MAX_SECRETS`].
    pub fn encode(list: &[Self]) -> Result<Vec<u8>, String> {
        let bytes = postcard::to_stdvec(list).map_err(|error| error.to_string())?;
        match bytes.len() {
            ..=MAX_SECRETS => Ok(bytes),
            length => Err(format!("the secrets take {length} bytes together; {MAX_SECRETS} are the most")),
        }
    }

    /// Decodes a list.
    ///
    /// # Errors
    /// A sentence.
    pub fn decode(bytes: &[u8]) -> Result<Vec<Self>, String> {
        match bytes.len() {
            ..=MAX_SECRETS => postcard::from_bytes(bytes).map_err(|error| error.to_string()),
            length => Err(format!("secrets of {length} bytes are too long")),
        }
    }
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
