//! What a client says in texts: bounded before it is parsed.

use sandpool_node::{Signal, TerminalSize};
use serde::Deserialize;

/// The longest text, in bytes.
const MAX_TEXT: usize = 4 * 1024;

/// One text of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// The terminal has a new size.
    Resize(TerminalSize),
    /// A signal for what is in its foreground.
    Signal(Signal),
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
enum Written {
    Resize { rows: u16, columns: u16 },
    Signal { signal: String },
}

impl Said {
    /// Reads a text; what is wrong with it is said in one sentence.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text.len() > MAX_TEXT {
            return Err(format!("A text has at most {MAX_TEXT} bytes; what is typed is sent as bytes."));
        }
        let written = serde_json::from_str(text).map_err(|error| {
            let why: String = error.to_string().chars().take(300).collect();
            format!("A text is {{\"type\":\"resize\",\"rows\":R,\"columns\":C}} or {{\"type\":\"signal\",\"signal\":NAME}}: {why}.")
        })?;
        match written {
            Written::Resize { rows, columns } if rows == 0 || columns == 0 => {
                Err("rows and columns are numbers from 1 to 65535.".to_owned())
            }
            Written::Resize { rows, columns } => Ok(Self::Resize(TerminalSize { rows, columns })),
            Written::Signal { signal } => Signal::from_word(&signal)
                .map(Self::Signal)
                .ok_or_else(|| format!("signal is one of {}.", Signal::WORDS.map(|(word, _)| word).join(", "))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_meant_is_read() {
        let size = TerminalSize { rows: 40, columns: 120 };
        assert_eq!(Said::parse(r#"{"type":"resize","rows":40,"columns":120}"#), Ok(Said::Resize(size)));
        assert_eq!(Said::parse(r#"{"type":"signal","signal":"INT"}"#), Ok(Said::Signal(Signal::Int)));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, why) in [
            ("", "EOF"),
            ("[]", "type"),
            (r#"{"type":"stop"}"#, "stop"),
            (r#"{"type":"resize","rows":0,"columns":80}"#, "from 1 to 65535"),
            (r#"{"type":"resize","rows":70000,"columns":80}"#, "70000"),
            (r#"{"type":"resize","rows":1,"columns":80,"x":1}"#, "x"),
            (r#"{"type":"signal","signal":"SIGINT"}"#, "one of INT, TERM"),
            (&format!("{}1", " ".repeat(MAX_TEXT)), "at most"),
        ] {
            let said = Said::parse(text).unwrap_err();
            assert!(said.contains(why) && said.len() < 600, "{text}: {said}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_something_or_an_error(
            text in any::<String>(),
            kind in "resize|signal|[a-z]{0,8}",
            rows in any::<i64>(),
            signal in "[A-Z]{0,5}",
            cut in any::<prop::sample::Index>(),
        ) {
            let _ = Said::parse(&text);
            for text in [
                format!(r#"{{"type":"{kind}","rows":{rows},"columns":{rows}}}"#),
                format!(r#"{{"type":"{kind}","signal":"{signal}"}}"#),
            ] {
                match Said::parse(&text) {
                    Ok(Said::Resize(size)) => prop_assert!(kind == "resize" && i64::from(size.rows) == rows && rows > 0),
                    Ok(Said::Signal(_)) => prop_assert!(kind == "signal"),
                    Err(why) => prop_assert!(why.ends_with('.') && why.len() < 2_000),
                }
                let _ = Said::parse(&text[..cut.index(text.len())]);
            }
        }
    }
}
