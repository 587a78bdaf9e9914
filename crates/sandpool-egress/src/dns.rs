//! DNS messages, as much as is answered: one question, and an answer that we made (EG1).

use std::net::IpAddr;

use crate::host::Host;

/// The longest question that is read, in bytes: what comes over UDP without an agreement.
pub const MAX_QUERY: usize = 512;

/// How long an answer may be kept, in seconds. A name keeps its address as long as its sandbox, unless very many others
/// come.
const TTL: u32 = 60;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Addresses of version 4.
    A,
    /// Addresses of version 6.
    Aaaa,
    /// What carries texts of any kind, and so a tunnel's data: TXT, NULL, ANY, transfers.
    Carrier,
    /// Something else, of which there is none.
    Other,
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// The message's number and the question as it was asked, upper case and all: it comes back in the answer.
    id: [u8; 2],
    wants_recursion: bool,
    question: Vec<u8>,
    /// The name; `None` when it is not one of a host.
    pub name: Option<Host>,
    /// What is asked for.
    pub kind: Kind,
}

/// An answer's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The name has this address.
    Address(IpAddr),
    /// The name is there, and has nothing of that kind.
    Nothing,
    /// There is no such name.
    NoName,
    /// We do not answer that.
    Refused,
}

/// Reads a question. `None` for what cannot be answered at all: not even with a refusal.
#[must_use]
pub fn query(bytes: &[u8]) -> Option<Query> {
    let [id0, id1, flags, _, 0, 1, ..] = *bytes else { return None };
    // A question, of the usual kind.
    if flags & 0xf8 != 0 || bytes.len() > MAX_QUERY {
        return None;
    }
    let body = bytes.get(12..)?;
    let mut labels: Vec<&[u8]> = Vec::new();
    let mut at = 0;
    loop {
        match *body.get(at)? {
            0 => break,
            length @ 1..=63 => {
                let end = at + 1 + usize::from(length);
                labels.push(body.get(at + 1..end)?);
                at = end;
            }
            // A pointer: a question's name needs none.
            _ => return None,
        }
        if at > 254 {
            return None;
        }
    }
    let end = at + 1 + 4;
    let question = body.get(..end)?;
    let [k0, k1, c0, c1] = *question.last_chunk::<4>()?;
    let kind = match (u16::from_be_bytes([k0, k1]), u16::from_be_bytes([c0, c1])) {
        (1, 1) => Kind::A,
        (28, 1) => Kind::Aaaa,
        (10 | 16 | 249..=255, _) => Kind::Carrier,
        (_, 1) => Kind::Other,
        _ => Kind::Carrier,
    };
    // A dot within a label would be another name in the text.
    let plain = labels.iter().all(|label| !label.contains(&b'.'));
    let name = std::str::from_utf8(&labels.join(&b'.')).ok().filter(|_| plain).and_then(|text| Host::parse(text).ok());
    Some(Query { id: [id0, id1], wants_recursion: flags & 1 != 0, question: question.to_vec(), name, kind })
}

/// The message that answers.
#[must_use]
pub fn answer(query: &Query, answer: Answer) -> Vec<u8> {
    let code = match answer {
        Answer::Address(_) | Answer::Nothing => 0,
        Answer::NoName => 3,
        Answer::Refused => 5,
    };
    let data = match answer {
        Answer::Address(IpAddr::V4(address)) => Some((1_u16, address.octets().to_vec())),
        Answer::Address(IpAddr::V6(address)) => Some((28, address.octets().to_vec())),
        Answer::Nothing | Answer::NoName | Answer::Refused => None,
    };
    let mut message = query.id.to_vec();
    message.extend([0x80 | u8::from(query.wants_recursion), 0x80 | code]);
    message.extend([0, 1, 0, u8::from(data.is_some()), 0, 0, 0, 0]);
    message.extend(&query.question);
    if let Some((kind, data)) = data {
        // The question's name, which begins after the head.
        message.extend([0xc0, 12]);
        message.extend(kind.to_be_bytes());
        message.extend([0, 1]);
        message.extend(TTL.to_be_bytes());
        message.extend([0, u8::try_from(data.len()).unwrap_or(0)]);
        message.extend(data);
    }
    message
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ask(labels: &[&[u8]], kind: u16) -> Vec<u8> {
        let mut bytes = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
        for label in labels {
            bytes.push(u8::try_from(label.len()).unwrap());
            bytes.extend(*label);
        }
        bytes.push(0);
        bytes.extend(kind.to_be_bytes());
        bytes.extend([0, 1]);
        // EDNS, as every resolver adds it.
        bytes.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
        bytes
    }

    #[test]
    fn a_question_is_read_and_answered() {
        let query = query(&ask(&[b"ExAmPle", b"com"], 1)).unwrap();
        assert_eq!(query.name, Some(Host::parse("example.com").unwrap()));
        assert_eq!(query.kind, Kind::A);
        let bytes = answer(&query, Answer::Address("198.18.0.1".parse().unwrap()));
        assert_eq!(bytes[..12], [0xab, 0xcd, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        assert_eq!(&bytes[12..29], b"\x07ExAmPle\x03com\0\0\x01\0\x01");
        assert_eq!(bytes[29..], [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 198, 18, 0, 1]);
        assert_eq!(answer(&query, Answer::NoName)[3], 0x83);
        assert_eq!(answer(&query, Answer::Refused)[3], 0x85);
        assert_eq!(answer(&query, Answer::Nothing)[7], 0);
        assert_eq!(answer(&query, Answer::Address("fd00::1".parse().unwrap())).len(), 29 + 12 + 16);
    }

    #[test]
    fn kinds_that_carry_data_are_known() {
        let kind = |number| query(&ask(&[b"a", b"com"], number)).unwrap().kind;
        for number in [16, 10, 255, 252, 251, 250] {
            assert_eq!(kind(number), Kind::Carrier, "{number}");
        }
        assert_eq!(kind(28), Kind::Aaaa);
        for number in [2, 5, 6, 12, 15, 33, 65] {
            assert_eq!(kind(number), Kind::Other, "{number}");
        }
    }

    #[test]
    fn names_that_are_none_are_not_taken_for_others() {
        for labels in [
            [b"a.evil".as_slice(), b"com"],
            [b"a\0", b"com"],
            [b"a b", b"com"],
            [b"_dmarc", b"com"],
            [b"\xff", b"com"],
            [b"127", b"1"],
            [b"-a", b"com"],
        ] {
            assert_eq!(query(&ask(&labels, 1)).unwrap().name, None, "{labels:?}");
        }
        assert_eq!(query(&ask(&[], 2)).unwrap().name, None);
    }

    #[test]
    fn what_is_not_one_plain_question_is_not_answered() {
        let good = ask(&[b"a", b"com"], 1);
        assert!(query(&good).is_some());
        for (at, byte) in [(2, 0x80), (2, 0x08), (5, 2), (5, 0), (4, 1), (12, 0xc0), (12, 64)] {
            let mut bad = good.clone();
            bad[at] = byte;
            assert_eq!(query(&bad), None, "{at} {byte}");
        }
        for end in 0..23 {
            assert_eq!(query(&good[..end]), None, "{end}");
        }
        let label = [b'a'; 60];
        assert_eq!(query(&ask(&[label.as_slice(); 5], 1)), None);
        assert_eq!(query(&[good.as_slice(), &[0; 512]].concat()), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Some(query) = query(&bytes) {
                let answer = answer(&query, Answer::Refused);
                prop_assert!(answer.len() <= bytes.len());
            }
        }

        #[test]
        fn any_body_of_a_question_is_read(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = query(&[&[0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], body.as_slice()].concat());
        }
    }
}
