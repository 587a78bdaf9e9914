//! Names of hosts: parsed once, by one parser; the value alone is matched, resolved, compared and written down (EG2).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The longest name, in bytes, without a dot at its end (RFC 1035).
pub const MAX_NAME: usize = 253;

/// The longest label of a name, in bytes.
pub const MAX_LABEL: usize = 63;

/// A host's name: letters, digits and hyphens in labels between dots, in lower case, without a dot at its end. Names of
/// other alphabets are in their `xn--` form, as they are on every wire.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Host(String);

/// Why a text is not a host's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// Nothing, or more than [`MAX_NAME`] bytes.
    #[error("a host's name has 1 to {MAX_NAME} bytes")]
    Length,
    /// Between two dots is nothing, or more than [`MAX_LABEL`] bytes.
    #[error("between the dots of a host's name are 1 to {MAX_LABEL} bytes")]
    Label,
    /// Something else than a letter, a digit or a hyphen, or a hyphen at an end.
    #[error("a host's name is made of a-z, 0-9, '-' and dots (other alphabets in their xn-- form)")]
    Character,
    /// Its last label is a number: resolvers take it for an address in a strange spelling.
    #[error("a host's name does not end in a number: this is an address, in a spelling that is not used here")]
    Number,
}

impl Host {
    /// Parses a name. Upper case and one dot at the end are taken away; all else that is not plain is an error.
    ///
    /// # Errors
    /// [`HostError`] says what is wrong.
    pub fn parse(text: &str) -> Result<Self, HostError> {
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(HostError::Length);
        }
        let mut last = "";
        for label in name.split('.') {
            if label.is_empty() || label.len() > MAX_LABEL {
                return Err(HostError::Label);
            }
            let plain = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
            if !plain || label.starts_with('-') || label.ends_with('-') {
                return Err(HostError::Character);
            }
            last = label;
        }
        // `127.1`, `0x7f000001` and `2130706433` are addresses to `inet_aton`.
        let hexadecimal = last.len() >= 2 && last.get(..2).is_some_and(|start| start.eq_ignore_ascii_case("0x"));
        if hexadecimal || last.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(HostError::Number);
        }
        Ok(Self(name.to_ascii_lowercase()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is a name below `parent`: `a.example.com` is below `example.com`, and `anexample.com` is not.
    #[must_use]
    pub fn is_below(&self, parent: &Self) -> bool {
        self.0.strip_suffix(parent.as_str()).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Where somebody wants to go: to a name, or to an address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// A name.
    Host(Host),
    /// An address. One of version 6 that stands for one of version 4 has become that.
    Address(IpAddr),
}

impl Target {
    /// Parses a name, or an address in its one usual spelling; one of version 6 with or without brackets, without a zone.
    ///
    /// # Errors
    /// [`HostError`] says what is wrong with it as a name.
    pub fn parse(text: &str) -> Result<Self, HostError> {
        let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        if let Some(inner) = inner {
            return inner.parse::<Ipv6Addr>().map(|it| it.into()).map_err(|_| HostError::Character);
        }
        if let Ok(address) = text.parse::<Ipv4Addr>() {
            return Ok(Self::Address(address.into()));
        }
        match text.parse::<Ipv6Addr>() {
            Ok(address) => Ok(address.into()),
            Err(_) => Host::parse(text).map(Self::Host),
        }
    }
}

impl From<Ipv6Addr> for Target {
    fn from(address: Ipv6Addr) -> Self {
        Self::from(IpAddr::from(address))
    }
}

impl From<IpAddr> for Target {
    fn from(address: IpAddr) -> Self {
        Self::Address(address.to_canonical())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(host) => host.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// Parses `host`, `host:port`, `address:port` or `[address]:port`, as CONNECT and the Host header have them.
///
/// # Errors
/// [`HostError`] for what is not a target; `Number` also for a port that is none.
pub fn authority(text: &str) -> Result<(Target, Option<u16>), HostError> {
    // An address of version 6 must be in brackets here, so the last colon after them begins the port.
    let (target, port) = match text.rsplit_once(':') {
        Some((target, port)) if !port.contains(']') => (target, Some(port)),
        _ => (text, None),
    };
    if target.contains(':') && !target.starts_with('[') {
        return Err(HostError::Character);
    }
    let port = match port {
        None => None,
        Some(digits) if digits.len() <= 5 && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some(digits.parse::<u16>().ok().filter(|port| *port != 0).ok_or(HostError::Number)?)
        }
        Some(_) => return Err(HostError::Number),
    };
    Ok((Target::parse(target)?, port))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn host(text: &str) -> Host {
        Host::parse(text).unwrap()
    }

    #[test]
    fn a_name_has_one_form() {
        for text in ["example.com", "EXAMPLE.com", "example.COM.", "Example.Com."] {
            assert_eq!(host(text).as_str(), "example.com");
        }
        assert_eq!(host("xn--bcher-kva.example").as_str(), "xn--bcher-kva.example");
        assert_eq!(host("localhost").as_str(), "localhost");
        assert_eq!(host("1.a").as_str(), "1.a");
    }

    #[test]
    fn what_two_parsers_could_read_differently_is_no_name() {
        let long = format!("{}.com", "a".repeat(64));
        let longer = format!("{}.com", ["a".repeat(60).as_str(); 5].join("."));
        for text in [
            "",
            ".",
            "..",
            "a..b",
            ".a",
            "a.com..",
            "a.com\0.evil.com",
            "a.com\0",
            "\0",
            "a b",
            "a.com\r\nHost: b",
            "a%2ecom",
            "a@b.com",
            "a\\b",
            "a/b",
            "a#b",
            "a?b",
            "a_b.com",
            "-a.com",
            "a-.com",
            "bücher.example",
            "ａ.com",
            "a。com",
            "*",
            "a.com:80",
            &long,
            &longer,
            "[::1]",
            "::1",
            "fe80::1%eth0",
        ] {
            assert!(Host::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn an_address_in_a_strange_spelling_is_neither_name_nor_address() {
        for text in [
            "127.1",
            "2130706433",
            "0x7f000001",
            "0x7f.1",
            "0177.0.0.1",
            "127.0.0.1.",
            "127.0.0.01",
            "1.2.3",
            "a.0x7f",
            "a.1",
        ] {
            assert!(Target::parse(text).is_err(), "{text}");
        }
        assert_eq!(Target::parse("127.0.0.1").unwrap().to_string(), "127.0.0.1");
        assert_eq!(Target::parse("[::ffff:127.0.0.1]").unwrap().to_string(), "127.0.0.1");
        assert_eq!(Target::parse("::ffff:7f00:1").unwrap().to_string(), "127.0.0.1");
        assert!(Target::parse("[fe80::1%1]").is_err());
    }

    #[test]
    fn names_are_below_others_at_a_dot() {
        let parent = host("example.com");
        assert!(host("a.example.com").is_below(&parent));
        assert!(host("b.a.example.com").is_below(&parent));
        for other in ["example.com", "anexample.com", "example.com.evil.net", "com"] {
            assert!(!host(other).is_below(&parent), "{other}");
        }
    }

    #[test]
    fn an_authority_is_a_target_and_a_port() {
        let of = |text: &str| authority(text).map(|(target, port)| (target.to_string(), port));
        assert_eq!(of("a.com"), Ok(("a.com".to_owned(), None)));
        assert_eq!(of("A.com.:443"), Ok(("a.com".to_owned(), Some(443))));
        assert_eq!(of("1.2.3.4:80"), Ok(("1.2.3.4".to_owned(), Some(80))));
        assert_eq!(of("[2001:db8::1]:80"), Ok(("2001:db8::1".to_owned(), Some(80))));
        assert_eq!(of("[::1]"), Ok(("::1".to_owned(), None)));
        for text in
            ["a.com:", "a.com:0", "a.com:65536", "a.com:+80", "a.com:80:80", "::1:80", "a.com: 80", "u@a.com:80", ":80"]
        {
            assert!(authority(text).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_name_is_a_fixed_point(text in "[ -~]{0,40}") {
            if let Ok(host) = Host::parse(&text) {
                prop_assert_eq!(Host::parse(host.as_str()), Ok(host.clone()));
                prop_assert!(host.as_str().parse::<IpAddr>().is_err());
            }
            let _ = authority(&text);
        }
    }
}
