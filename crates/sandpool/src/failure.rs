//! How a command fails: what, why, and what to do about it.

use std::fmt;

/// A failure, as a person reads it.
#[derive(Debug)]
pub(crate) struct Failure {
    what: String,
    why: Vec<String>,
    advice: Option<String>,
    code: u8,
}

/// What commands answer: the exit code, or a failure that is yet to be printed.
pub(crate) type Outcome = Result<u8, Failure>;

impl Failure {
    /// Something did not work: exit code 1.
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), why: Vec::new(), advice: None, code: 1 }
    }

    /// The command was called in a way that makes no sense: exit code 2.
    pub(crate) fn usage(what: impl Into<String>) -> Self {
        Self { code: 2, ..Self::new(what) }
    }

    /// Adds a reason.
    pub(crate) fn because(mut self, why: impl fmt::Display) -> Self {
        self.why.push(why.to_string());
        self
    }

    /// Adds a chain of causes, outermost first.
    pub(crate) fn caused_by(mut self, error: &(dyn std::error::Error + 'static)) -> Self {
        let mut cause = Some(error);
        while let Some(error) = cause {
            let text = error.to_string();
            // Some libraries repeat their source in their own text.
            if !self.why.iter().any(|said| said.contains(&text)) {
                self.why.push(text);
            }
            cause = error.source();
        }
        self
    }

    /// Says what to do. Replaces advice given before.
    pub(crate) fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    /// The exit code.
    pub(crate) fn code(&self) -> u8 {
        self.code
    }

    /// As one JSON object.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::json!({ "error": { "message": self.what, "why": self.why, "advice": self.advice } })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", printable(&self.what))?;
        for why in &self.why {
            write!(f, "\n  because: {}", printable(why))?;
        }
        if let Some(advice) = &self.advice {
            write!(f, "\n  try: {}", printable(advice))?;
        }
        Ok(())
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        let mut chain = error.chain().map(ToString::to_string);
        let mut failure = Self::new(chain.next().unwrap_or_default());
        failure.why = chain.collect();
        failure
    }
}

/// `text` with what could command a terminal made visible. File names and messages may come from a sandbox.
pub(crate) fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let hidden = c.is_control() && c != '\n' && c != '\t'
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}');
        if hidden {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_what_why_and_what_to_do() {
        let failure =
            Failure::new("cannot reach the server").because("connection refused").advise("sandpool up --detach");
        expect_test::expect![[r#"
            error: cannot reach the server
              because: connection refused
              try: sandpool up --detach"#]]
        .assert_eq(&failure.to_string());
        assert_eq!(failure.code(), 1);
        assert_eq!(Failure::usage("no").code(), 2);
    }

    #[test]
    fn names_from_a_sandbox_cannot_command_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\u{202e}c"), "a\\u{1b}[2Jb\\u{202e}c");
        assert_eq!(printable("Grüße\tä"), "Grüße\tä");
    }
}
