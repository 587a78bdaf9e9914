//! W3C trace context: one header that says which trace a request belongs to.
//!
//! It comes from strangers, so it is taken as the recommendation writes it (<https://www.w3.org/TR/trace-context/>, 3.2) or not at all:
//! `00-` 32 digits `-` 16 digits `-` 2 digits, in lower case, of which neither the trace's nor the span's are all zero. Of versions to come,
//! what this one defines is read.

use std::fmt;

/// Length of the header in version 00.
const LENGTH: usize = 55;

/// The longest header that is looked at: versions to come may add to it.
const LONGEST: usize = 256;

/// A place in a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace.
    pub trace: [u8; 16],
    /// The span in it.
    pub span: [u8; 8],
    /// Whoever made that span records it.
    pub is_sampled: bool,
}

/// What a caller says of the trace that it is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Parent {
    /// Nothing, or nothing that could be understood.
    #[default]
    None,
    /// This.
    Of(TraceParent),
}

impl Parent {
    /// Reads a header's value.
    #[must_use]
    pub fn parse(text: Option<&[u8]>) -> Self {
        text.and_then(TraceParent::parse).map_or(Self::None, Self::Of)
    }
}

impl TraceParent {
    /// Reads a header's value; `None` if it is not one.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        if !(LENGTH..=LONGEST).contains(&text.len()) {
            return None;
        }
        let version = digits::<1>(&text[..2])?[0];
        let ends_well = match version {
            0 => text.len() == LENGTH,
            0xff => false,
            _ => text.get(LENGTH).is_none_or(|after| *after == b'-'),
        };
        if !ends_well || [2, 35, 52].iter().any(|at| text[*at] != b'-') {
            return None;
        }
        let (trace, span) = (digits::<16>(&text[3..35])?, digits::<8>(&text[36..52])?);
        let [flags] = digits::<1>(&text[53..55])?;
        let is_there = trace != [0; 16] && span != [0; 8];
        is_there.then_some(Self { trace, span, is_sampled: flags & 1 == 1 })
    }
}

/// Bytes of hexadecimal digits in lower case.
fn digits<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let is_lower = !text.iter().any(u8::is_ascii_uppercase);
    (is_lower && hex::decode_to_slice(text, &mut bytes).is_ok()).then_some(bytes)
}

impl fmt::Display for TraceParent {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trace, span, is_sampled } = self;
        write!(out, "00-{}-{}-{:02x}", hex::encode(trace), hex::encode(span), u8::from(*is_sampled))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn what_the_recommendation_writes_is_read_and_written() {
        let parent = TraceParent::parse(GOOD.as_bytes()).unwrap();
        assert_eq!((parent.trace[0], parent.span[7], parent.is_sampled), (0x4b, 0xb7, true));
        assert_eq!(parent.to_string(), GOOD);
        assert!(!TraceParent::parse(GOOD.replace("-01", "-00").as_bytes()).unwrap().is_sampled);
        // Other flags, and versions to come.
        for later in [GOOD.replace("-01", "-03"), format!("cc{}", &GOOD[2..]), format!("cc{}-what-comes", &GOOD[2..])] {
            assert!(TraceParent::parse(later.as_bytes()).is_some_and(|parent| parent.is_sampled), "{later}");
        }
    }

    #[test]
    fn what_is_anything_else_is_nothing() {
        let long = format!("cc{}-{}", &GOOD[2..], "x".repeat(300));
        for bad in [
            "",
            "00",
            &GOOD[..54],
            &format!("{GOOD} "),
            &format!("{GOOD}-more"),
            &format!("cc{}more", &GOOD[2..]),
            &GOOD.to_uppercase(),
            &GOOD.replace("00-4b", "ff-4b"),
            &GOOD.replace("00-4b", "0-44b"),
            &GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &GOOD.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &GOOD.replace("4bf9", "4bg9"),
            &GOOD.replace("-01", "-0x"),
            &GOOD.replace("736-00f", "7360-0f"),
            &long,
        ] {
            assert_eq!(TraceParent::parse(bad.as_bytes()), None, "{bad:?}");
        }
        assert_eq!(Parent::parse(Some(&[0xff; 55])), Parent::None);
        assert_eq!(Parent::parse(None), Parent::None);
    }
}
