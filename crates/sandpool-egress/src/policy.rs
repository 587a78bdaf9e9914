//! What a sandbox may reach: patterns, and the judgement of one destination.
//!
//! ```text
//! name and port -> denied? -> allowed? -> (resolved, or given) -> each address: public, or lifted by name -> dialled
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use sandpool_wire::egress::{self as wire, Mode};

use crate::address::{self, Kind, Net};
use crate::host::{self, Host, Target};

/// Entries of one list, at most.
pub const MAX_ENTRIES: usize = 1024;

/// The ports of a pattern that names none.
const USUAL_PORTS: [u16; 2] = [80, 443];

/// What a pattern is about.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Scope {
    Everything,
    Host(Host),
    /// Names below this one, not itself.
    Below(Host),
    Net(Net),
}

/// `example.com`, `*.example.com`, `203.0.113.7`, `203.0.113.0/24`, `*`, each also with `:PORT` or `:*` (an address of
/// version 6 in brackets then). Without a port in a list of what is allowed the ports 80 and 443 are meant; in one of what
/// is denied, all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pattern {
    scope: Scope,
    port: Port,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Port {
    Unsaid,
    Any,
    One(u16),
}

impl Pattern {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text.contains("://") {
            return Err(format!("{text:?} is a URL: name the host in it"));
        }
        let (body, port) = split_port(text)?;
        let scope = match body.strip_prefix("*.") {
            _ if body == "*" => Scope::Everything,
            Some(parent) => Scope::Below(Host::parse(parent).map_err(|error| format!("{text:?}: {error}"))?),
            None if body.contains('/') || body.starts_with('[') => {
                Scope::Net(Net::parse(body.trim_start_matches('[').trim_end_matches(']'))?)
            }
            None => match Target::parse(body).map_err(|error| format!("{text:?}: {error}"))? {
                Target::Host(host) => Scope::Host(host),
                Target::Address(_) => Scope::Net(Net::parse(body)?),
            },
        };
        Ok(Self { scope, port })
    }

    fn matches(&self, target: &Target) -> bool {
        match (&self.scope, target) {
            (Scope::Everything, _) => true,
            (Scope::Host(wanted), Target::Host(host)) => wanted == host,
            (Scope::Below(parent), Target::Host(host)) => host.is_below(parent),
            (Scope::Net(net), Target::Address(address)) => net.contains(*address),
            (Scope::Host(_) | Scope::Below(_), Target::Address(_)) | (Scope::Net(_), Target::Host(_)) => false,
        }
    }

    /// Whether it is about names, and not about addresses or everything.
    pub(crate) fn is_of_names(&self) -> bool {
        matches!(self.scope, Scope::Host(_) | Scope::Below(_))
    }

    pub(crate) fn allows(&self, target: &Target, port: u16) -> bool {
        let port = match self.port {
            Port::Unsaid => USUAL_PORTS.contains(&port),
            Port::Any => true,
            Port::One(one) => one == port,
        };
        port && self.matches(target)
    }

    fn denies(&self, target: &Target, port: u16) -> bool {
        let port = match self.port {
            Port::Unsaid | Port::Any => true,
            Port::One(one) => one == port,
        };
        port && self.matches(target)
    }
}

fn split_port(text: &str) -> Result<(&str, Port), String> {
    let (body, port) = match text.rsplit_once(':') {
        // An address of version 6 without brackets has no port.
        Some((body, _)) if body.contains(':') && !body.starts_with('[') => return Ok((text, Port::Unsaid)),
        Some((body, port)) if !port.contains(']') => (body, port),
        _ => return Ok((text, Port::Unsaid)),
    };
    if port == "*" {
        return Ok((body, Port::Any));
    }
    let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    match port.parse::<u16>() {
        Ok(number @ 1..) if digits => Ok((body, Port::One(number))),
        _ => Err(format!("{text:?}: a port is a number from 1 to 65535, or *")),
    }
}

/// Why a destination is not reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The pool has no egress.
    NoEgress,
    /// A list denies it.
    Denied,
    /// No list allows it.
    NotListed,
    /// It is an address, and only names are allowed.
    AddressNotListed,
    /// Its address is not public.
    NotPublic(Kind),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoEgress => f.write_str("there is no egress"),
            Self::Denied => f.write_str("the destination is denied"),
            Self::NotListed => f.write_str("the destination is not on the allow list"),
            Self::AddressNotListed => f.write_str("the destination is an address, and not on the allow list"),
            Self::NotPublic(kind) => write!(f, "a {kind} address is not reached"),
        }
    }
}

/// A policy, parsed.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    mode: Mode,
    allow: Vec<Pattern>,
    deny: Vec<Pattern>,
    allow_addresses: Vec<Net>,
    hosts: BTreeMap<Host, Vec<IpAddr>>,
}

impl Policy {
    /// Parses and checks.
    ///
    /// # Errors
    /// The list, and what is wrong in it.
    pub fn parse(policy: &wire::Policy) -> Result<Self, PolicyError> {
        let wire::Policy { mode, allow, deny, allow_addresses, hosts } = policy;
        let error = |list: &'static str| move |why: String| PolicyError { list, why };
        for (list, length) in [
            ("allow", allow.len()),
            ("deny", deny.len()),
            ("allowAddresses", allow_addresses.len()),
            ("hosts", hosts.len()),
        ] {
            if length > MAX_ENTRIES {
                return Err(error(list)(format!("has {length} entries; {MAX_ENTRIES} are the most")));
            }
        }
        if *mode != Mode::AllowList && !allow.is_empty() {
            return Err(error("allow")("is for the mode allow-list".to_owned()));
        }
        if *mode == Mode::AllowList && allow.is_empty() {
            return Err(error("allow")("is empty: that is the mode none".to_owned()));
        }
        let patterns = |texts: &[String]| texts.iter().map(|text| Pattern::parse(text)).collect::<Result<Vec<_>, _>>();
        let allow = patterns(allow).map_err(error("allow"))?;
        let everything = allow.iter().find(|pattern| pattern.scope == Scope::Everything);
        if everything.is_some() {
            return Err(error("allow")("\"*\" allows everything: that is the mode open".to_owned()));
        }
        let host = |(name, addresses): (&String, &Vec<IpAddr>)| match Host::parse(name) {
            Ok(_) if addresses.is_empty() => Err(format!("{name:?} has no address")),
            Ok(host) => Ok((host, addresses.iter().map(IpAddr::to_canonical).collect())),
            Err(error) => Err(format!("{name:?}: {error}")),
        };
        Ok(Self {
            mode: *mode,
            allow,
            deny: patterns(deny).map_err(error("deny"))?,
            allow_addresses: allow_addresses
                .iter()
                .map(|text| Net::parse(text))
                .collect::<Result<_, _>>()
                .map_err(error("allowAddresses"))?,
            hosts: hosts.iter().map(host).collect::<Result<_, _>>().map_err(error("hosts"))?,
        })
    }

    fn judge(&self, target: &Target, port: u16) -> Result<(), Reason> {
        match self.mode {
            Mode::None => return Err(Reason::NoEgress),
            Mode::AllowList | Mode::Open => {}
        }
        if self.deny.iter().any(|pattern| pattern.denies(target, port)) {
            return Err(Reason::Denied);
        }
        match (self.mode, target) {
            (Mode::Open, _) => Ok(()),
            _ if self.allow.iter().any(|pattern| pattern.allows(target, port)) => Ok(()),
            (_, Target::Address(_)) => Err(Reason::AddressNotListed),
            (_, Target::Host(_)) => Err(Reason::NotListed),
        }
    }
}

/// What is wrong with a policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{list}: {why}")]
pub struct PolicyError {
    /// Which list: `allow`, `deny`, `allowAddresses` or `hosts`.
    pub list: &'static str,
    /// A sentence.
    pub why: String,
}

/// What one sandbox may reach: the pool's policy and its session's, of which both must allow. Without any, nothing.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    pool: Policy,
    session: Option<Policy>,
}

impl Rules {
    /// Parses and checks.
    ///
    /// # Errors
    /// What is wrong with either policy.
    pub fn parse(pool: &wire::Policy, session: Option<&wire::Policy>) -> Result<Self, PolicyError> {
        Ok(Self { pool: Policy::parse(pool)?, session: session.map(Policy::parse).transpose()? })
    }

    /// Parses what the launcher passed on.
    ///
    /// # Errors
    /// A sentence.
    pub fn decode(rules: &wire::Rules) -> Result<Self, String> {
        let pool = wire::Policy::decode(&rules.pool)?;
        let session = rules.session.as_deref().map(wire::Policy::decode).transpose()?;
        Self::parse(&pool, session.as_ref()).map_err(|error| error.to_string())
    }

    /// Whether a destination may be reached, as far as its name tells.
    ///
    /// # Errors
    /// Why not.
    pub fn judge(&self, target: &Target, port: u16) -> Result<(), Reason> {
        self.pool.judge(target, port)?;
        self.session.as_ref().map_or(Ok(()), |session| session.judge(target, port))
    }

    /// Whether a name may be reached at any port: then it may be looked up.
    #[must_use]
    pub fn knows(&self, host: &Host) -> bool {
        let target = Target::Host(host.clone());
        let by = |policy: &Policy| {
            let everywhere = |pattern: &&Pattern| !matches!(pattern.port, Port::One(_));
            let denied = policy.deny.iter().filter(everywhere).any(|pattern| pattern.matches(&target));
            !denied
                && match policy.mode {
                    Mode::None => false,
                    Mode::Open => true,
                    Mode::AllowList => policy.allow.iter().any(|pattern| pattern.matches(&target)),
                }
        };
        by(&self.pool) && self.session.as_ref().is_none_or(by)
    }

    /// Whether what does not tell a name, or hides it, may pass: only where all names may.
    #[must_use]
    pub fn is_open(&self) -> bool {
        let open = |policy: &Policy| policy.mode == Mode::Open;
        open(&self.pool) && self.session.as_ref().is_none_or(open)
    }

    /// Whether an address, to which a name has been resolved or which was given, may be dialled (EG3). Only the pool can
    /// lift an address that is not public.
    ///
    /// # Errors
    /// Why not.
    pub fn judge_address(&self, address: IpAddr, port: u16) -> Result<(), Reason> {
        let target = Target::from(address);
        let denied = |policy: &Policy| policy.deny.iter().any(|pattern| pattern.denies(&target, port));
        if denied(&self.pool) || self.session.as_ref().is_some_and(denied) {
            return Err(Reason::Denied);
        }
        match address::not_public(address) {
            Some(kind) if !self.lifts(address) => Err(Reason::NotPublic(kind)),
            _ => Ok(()),
        }
    }

    /// Whether the pool names a range with this address in it.
    #[must_use]
    pub fn lifts(&self, address: IpAddr) -> bool {
        self.pool.allow_addresses.iter().any(|net| net.contains(address))
    }

    /// A name's addresses, where the pool gives them.
    #[must_use]
    pub fn addresses_of(&self, host: &Host) -> Option<&[IpAddr]> {
        self.pool.hosts.get(host).map(Vec::as_slice)
    }
}

/// Parses `host:port` for those who dial by it; the port is needed.
///
/// # Errors
/// A sentence.
pub fn destination(text: &str) -> Result<(Target, u16), String> {
    let (target, port) = host::authority(text).map_err(|error| error.to_string())?;
    port.map(|port| (target, port)).ok_or_else(|| "the port is missing".to_owned())
}

#[cfg(test)]
mod tests;
