//! What the agent and an interpreter's runner say to each other.
//!
//! ```text
//! agent  -> runner   u32 length, JSON                              (little endian)
//! runner -> agent    u32 length, u32 blob length, JSON, blob       bytes of forms follow the JSON, in its order
//! ```
//!
//! The code of the user shares a process with the runner and can write to its channel. So whatever arrives is
//! hostile: bounded before it is kept, parsed here and nowhere else, and believed only with the number that the agent
//! drew for the present run. What it says counts as output of the user's code; timing, limits and the end of
//! processes are the agent's.

use sandpool_wire::agent::{Raised, Rich};
use serde::{Deserialize, Serialize};

/// The largest JSON and the largest blob of one message from a runner, in bytes.
pub const MAX_JSON: usize = 2 * 1024 * 1024;
/// See [`MAX_JSON`].
pub const MAX_BLOB: usize = 4 * 1024 * 1024;

/// Said to a runner.
#[derive(Debug, Serialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub enum ToRunner<'a> {
    /// A session took the sandbox.
    Activate {
        /// Variables to add to the environment.
        env: &'a [(String, String)],
        /// Hexadecimal bytes to reseed generators with; empty: none.
        seed: String,
    },
    /// Run code.
    Run {
        /// The number of this run.
        nonce: &'a str,
        /// The execution, for the environment of what it starts.
        exec: &'a str,
        /// The source text.
        code: &'a str,
        /// In an empty namespace that is thrown away afterwards.
        fresh: bool,
    },
    /// Become a zygote: load what sessions load, and write this process's memory to descriptor 6.
    Freeze {
        /// The source text that does it.
        source: &'a str,
        /// Hexadecimal machine code (see `sandpool_sys::frozen`).
        thawer: &'a str,
        /// Likewise.
        freezer: &'a str,
    },
    /// Load what sessions load.
    Warm {
        /// The source text that does it.
        source: &'a str,
    },
    /// This process is one of several that go on from the same memory: nothing may be drawn in it that is drawn in another.
    Renew {
        /// It had a session before: what draws may be anything.
        thorough: bool,
    },
    /// End the present run. It comes besides SIGINT, which an interpreter may not hear while its code runs.
    Interrupt,
}

/// Encodes a message to a runner.
#[must_use]
pub fn encode(message: &ToRunner<'_>) -> Vec<u8> {
    let mut bytes = vec![0_u8; 4];
    // Writing a struct of strings into memory cannot fail.
    if serde_json::to_writer(&mut bytes, message).is_err() {
        return Vec::new();
    }
    let length = u32::try_from(bytes.len() - 4).unwrap_or(0);
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    bytes
}

/// Said by a runner.
#[derive(Debug, PartialEq)]
pub enum FromRunner {
    /// It is warm.
    Ready {
        /// The interpreter's version.
        version: String,
    },
    /// Its memory is in the file, or it has loaded what sessions load; or it says why not.
    Frozen(Result<(), String>),
    /// It has been renewed.
    Renewed,
    /// Something about the run with this number.
    Run {
        /// The number.
        nonce: String,
        /// What happened.
        report: Report,
    },
}

/// What a run reports.
#[derive(Debug, PartialEq)]
pub enum Report {
    /// Something was displayed.
    Display(Rich),
    /// The last expression has a value.
    Value(Rich),
    /// An exception ended it.
    Error(Raised),
    /// It ended; `true` when to its own end.
    End(bool),
}

/// Why a runner's bytes are not a message.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A length is over its limit.
    #[error("a message that is too long")]
    TooLong,
    /// It is not the JSON, or not the amount of bytes, that was announced.
    #[error("a malformed message")]
    Content,
}

#[derive(Deserialize)]
#[serde(tag = "t", rename_all = "lowercase", deny_unknown_fields)]
enum Said {
    Ready { version: String },
    Frozen {},
    Unfit { why: String },
    Renewed {},
    Display { n: String, rich: Shown },
    Value { n: String, rich: Shown },
    Error { n: String, name: String, message: String, traceback: String },
    End { n: String, ok: bool },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Shown {
    text: String,
    #[serde(default)]
    scalar: Option<String>,
    /// Media types and lengths in the blob.
    #[serde(default)]
    forms: Vec<(String, u32)>,
    #[serde(default)]
    dropped: Vec<(String, u64)>,
}

/// How many bytes the message at the front of `buffer` has, once its two lengths are there.
///
/// # Errors
/// [`Malformed::TooLong`] as soon as the lengths say so.
pub fn message_length(buffer: &[u8]) -> Result<Option<usize>, Malformed> {
    Ok(lengths(buffer)?.map(|(json, blob)| 8 + json + blob))
}

fn lengths(buffer: &[u8]) -> Result<Option<(usize, usize)>, Malformed> {
    let Some((header, _)) = buffer.split_first_chunk::<8>() else { return Ok(None) };
    let [a, b, c, d, e, f, g, h] = *header;
    let (json, blob) = (u32::from_le_bytes([a, b, c, d]) as usize, u32::from_le_bytes([e, f, g, h]) as usize);
    if json > MAX_JSON || blob > MAX_BLOB { Err(Malformed::TooLong) } else { Ok(Some((json, blob))) }
}

/// Takes one message from the front of `buffer`, when it is all there: the message and the bytes it used.
///
/// # Errors
/// See [`Malformed`]. Nothing after such a message can be understood.
pub fn take(buffer: &[u8]) -> Result<Option<(FromRunner, usize)>, Malformed> {
    let Some((json_length, blob_length)) = lengths(buffer)? else { return Ok(None) };
    let total = 8 + json_length + blob_length;
    let Some(body) = buffer.get(8..total) else { return Ok(None) };
    let (json, blob) = body.split_at(json_length);
    let said: Said = serde_json::from_slice(json).map_err(|_| Malformed::Content)?;
    let run = |nonce, report| FromRunner::Run { nonce, report };
    let without_blob = |message| if blob.is_empty() { Ok(message) } else { Err(Malformed::Content) };
    let message = match said {
        Said::Ready { version } => without_blob(FromRunner::Ready { version })?,
        Said::Frozen {} => without_blob(FromRunner::Frozen(Ok(())))?,
        Said::Renewed {} => without_blob(FromRunner::Renewed)?,
        Said::Unfit { why } => without_blob(FromRunner::Frozen(Err(why)))?,
        Said::Display { n, rich } => run(n, Report::Display(rich.with(blob)?)),
        Said::Value { n, rich } => run(n, Report::Value(rich.with(blob)?)),
        Said::Error { n, name, message, traceback } => {
            without_blob(run(n, Report::Error(Raised { name, message, traceback })))?
        }
        Said::End { n, ok } => without_blob(run(n, Report::End(ok)))?,
    };
    Ok(Some((message, total)))
}

impl Shown {
    fn with(self, mut blob: &[u8]) -> Result<Rich, Malformed> {
        let mut forms = Vec::new();
        for (kind, length) in self.forms {
            let (bytes, rest) = blob.split_at_checked(length as usize).ok_or(Malformed::Content)?;
            forms.push((kind, bytes.to_vec()));
            blob = rest;
        }
        let scalar = self.scalar.filter(|text| is_scalar(text));
        if blob.is_empty() {
            Ok(Rich { text: self.text, scalar, forms, dropped: self.dropped })
        } else {
            Err(Malformed::Content)
        }
    }
}

/// Whether `text` is the JSON of null, a boolean, a number or a string.
fn is_scalar(text: &str) -> bool {
    !text.starts_with(['[', '{'])
        && serde_json::from_str::<&serde_json::value::RawValue>(text).is_ok_and(|raw| raw.get() == text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(json: &str, blob: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&u32::try_from(json.len()).unwrap().to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(blob.len()).unwrap().to_le_bytes());
        bytes.extend_from_slice(json.as_bytes());
        bytes.extend_from_slice(blob);
        bytes
    }

    #[test]
    fn forms_are_cut_from_the_blob() {
        let json = r#"{"t":"display","n":"7","rich":{"text":"t","scalar":null,"forms":[["image/png",2],["text/html",1]],"dropped":[["x/y",9]]}}"#;
        let bytes = message(json, b"abc");
        let (FromRunner::Run { nonce, report: Report::Display(rich) }, used) = take(&bytes).unwrap().unwrap() else {
            panic!()
        };
        assert_eq!((nonce.as_str(), used), ("7", bytes.len()));
        assert_eq!(rich.forms, [("image/png".to_owned(), b"ab".to_vec()), ("text/html".to_owned(), b"c".to_vec())]);
        assert_eq!(rich.dropped, [("x/y".to_owned(), 9)]);
    }

    #[test]
    fn a_blob_of_another_length_is_refused() {
        for (json, blob) in [
            (r#"{"t":"value","n":"7","rich":{"text":"t","forms":[["image/png",3]]}}"#, &b"ab"[..]),
            (r#"{"t":"value","n":"7","rich":{"text":"t","forms":[["image/png",1]]}}"#, b"ab"),
            (r#"{"t":"end","n":"7","ok":true}"#, b"ab"),
            (r#"{"t":"end","n":"7","ok":true,"more":1}"#, b""),
            (r#"{"t":"end","n":"7"}"#, b""),
            ("[]", b""),
        ] {
            assert_eq!(take(&message(json, blob)), Err(Malformed::Content), "{json}");
        }
    }

    #[test]
    fn lengths_are_checked_before_anything_is_read() {
        assert_eq!(message_length(&[0xff; 8]), Err(Malformed::TooLong));
        assert_eq!(message_length(&[0; 7]), Ok(None));
        assert_eq!(message_length(&[1, 0, 0, 0, 2, 0, 0, 0]), Ok(Some(11)));
    }

    #[test]
    fn a_scalar_is_the_json_of_one_plain_value() {
        for good in ["null", "true", "12345678901234567890123", "-1.5e300", r#""a\u00e9""#] {
            assert!(is_scalar(good), "{good}");
        }
        for bad in ["", "[]", "{}", "NaN", "Infinity", "1 2", " 1", "'a'", "\"", "nul"] {
            assert!(!is_scalar(bad), "{bad}");
        }
    }

    #[test]
    fn what_the_agent_says_is_framed() {
        let bytes = encode(&ToRunner::Run { nonce: "1", exec: "ab", code: "x\n", fresh: false });
        assert_eq!(u32::from_le_bytes(*bytes.first_chunk().unwrap()) as usize, bytes.len() - 4);
        assert_eq!(&bytes[4..], br#"{"op":"run","nonce":"1","exec":"ab","code":"x\n","fresh":false}"#);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = take(&bytes);
        }

        #[test]
        fn no_json_makes_it_panic(json in "[ -~]{0,200}", blob in proptest::collection::vec(any::<u8>(), 0..20)) {
            let bytes = message(&json, &blob);
            if let Ok(Some((_, used))) = take(&bytes) {
                prop_assert_eq!(used, bytes.len());
            }
        }
    }
}
