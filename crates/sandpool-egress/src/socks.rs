//! SOCKS 5 (RFC 1928), as much of it as is offered: CONNECT, to names and addresses, without authentication.

use std::net::IpAddr;

use crate::host::{Host, Target};

/// The longest greeting and request together, in bytes.
pub const MAX_HANDSHAKE: usize = 2 + 255 + 4 + 1 + 255 + 2;

/// What the bytes so far are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read<T> {
    /// The beginning of a message.
    More,
    /// No such message.
    Bad(Refusal),
    /// A whole message, and its length in bytes.
    Whole(T, usize),
}

/// Why a request is refused, by the code that tells the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No reason that has a code.
    General = 1,
    /// The rules do not allow it.
    NotAllowed = 2,
    /// The host is not reached.
    Unreachable = 4,
    /// BIND and UDP are not offered.
    Command = 7,
    /// Not an address, nor a name.
    Address = 8,
}

/// Reads the greeting: whether the client can do without authentication.
#[must_use]
pub fn greeting(bytes: &[u8]) -> Read<bool> {
    match *bytes {
        [] | [5] => Read::More,
        [5, count, ref methods @ ..] => {
            let count = usize::from(count);
            methods.get(..count).map_or(Read::More, |methods| Read::Whole(methods.contains(&0), 2 + count))
        }
        _ => Read::Bad(Refusal::General),
    }
}

/// Reads the request: where to connect to.
#[must_use]
pub fn request(bytes: &[u8]) -> Read<(Target, u16)> {
    let (kind, rest) = match *bytes {
        [5, 1, 0, kind, ref rest @ ..] => (kind, rest),
        [5, 1, 0] | [5, 1] | [5] | [] => return Read::More,
        [5, 1, ..] => return Read::Bad(Refusal::General),
        [5, _, ..] => return Read::Bad(Refusal::Command),
        _ => return Read::Bad(Refusal::General),
    };
    let (length, head) = match (kind, rest) {
        (1, _) => (4, 0),
        (4, _) => (16, 0),
        (3, [length, ..]) => (usize::from(*length), 1),
        (3, []) => return Read::More,
        _ => return Read::Bad(Refusal::Address),
    };
    let Some(body) = rest.get(head..head + length + 2) else { return Read::More };
    let (name, port) = body.split_at(length);
    let target = match kind {
        1 => <[u8; 4]>::try_from(name).ok().map(|octets| IpAddr::from(octets).into()),
        4 => <[u8; 16]>::try_from(name).ok().map(|octets| IpAddr::from(octets).into()),
        // A name, not a text that could be an address: curl sends addresses as what they are.
        _ => std::str::from_utf8(name).ok().and_then(|text| Host::parse(text).ok()).map(Target::Host),
    };
    match (target, u16::from_be_bytes([port[0], port[1]])) {
        (Some(target), port @ 1..) => Read::Whole((target, port), 4 + head + length + 2),
        _ => Read::Bad(Refusal::Address),
    }
}

/// The answer to a greeting.
#[must_use]
pub fn greeted(without_authentication: bool) -> [u8; 2] {
    [5, if without_authentication { 0 } else { 0xff }]
}

/// The answer to a request.
#[must_use]
pub fn answered(result: Result<(), Refusal>) -> [u8; 10] {
    let code = match result {
        Ok(()) => 0,
        Err(refusal) => refusal as u8,
    };
    [5, code, 0, 1, 0, 0, 0, 0, 0, 0]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn named(name: &[u8]) -> Vec<u8> {
        [&[5, 1, 0, 3, u8::try_from(name.len()).unwrap()], name, &[1, 187]].concat()
    }

    #[test]
    fn requests_name_a_target_and_a_port() {
        let whole = |bytes: &[u8]| match request(bytes) {
            Read::Whole((target, port), length) if length == bytes.len() => format!("{target} {port}"),
            other => format!("{other:?}"),
        };
        assert_eq!(whole(&named(b"Example.com.")), "example.com 443");
        assert_eq!(whole(&[5, 1, 0, 1, 1, 2, 3, 4, 0, 80]), "1.2.3.4 80");
        let mut six = vec![5, 1, 0, 4];
        six.extend("::ffff:1.2.3.4".parse::<std::net::Ipv6Addr>().unwrap().octets());
        six.extend([0, 80]);
        assert_eq!(whole(&six), "1.2.3.4 80");
        for end in 0..six.len() {
            assert_eq!(request(&six[..end]), Read::More);
        }
    }

    #[test]
    fn what_is_not_offered_is_refused() {
        assert_eq!(request(&[5, 2, 0, 1]), Read::Bad(Refusal::Command));
        assert_eq!(request(&[5, 3, 0, 1]), Read::Bad(Refusal::Command));
        assert_eq!(request(&[4, 1, 0, 80]), Read::Bad(Refusal::General));
        assert_eq!(request(&[5, 1, 0, 9]), Read::Bad(Refusal::Address));
        assert_eq!(request(&[5, 1, 0, 1, 1, 2, 3, 4, 0, 0]), Read::Bad(Refusal::Address));
        for name in [b"".as_slice(), b"a.com\0.b.com", b"127.0.0.1", b"127.1", b"a b", b"\xff", b"[::1]"] {
            assert_eq!(request(&named(name)), Read::Bad(Refusal::Address), "{name:?}");
        }
    }

    #[test]
    fn a_client_that_must_authenticate_is_told() {
        assert_eq!(greeting(&[5, 1, 0]), Read::Whole(true, 3));
        assert_eq!(greeting(&[5, 2, 1, 2, 9]), Read::Whole(false, 4));
        assert_eq!(greeting(&[5, 2, 1]), Read::More);
        assert_eq!(greeting(&[4]), Read::Bad(Refusal::General));
        assert_eq!(greeted(false), [5, 255]);
        assert_eq!(answered(Err(Refusal::NotAllowed))[..2], [5, 2]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = greeting(&bytes);
            let _ = request(&bytes);
            let _ = request(&[&[5, 1, 0], bytes.as_slice()].concat());
        }
    }
}
