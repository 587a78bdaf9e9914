//! The tiny language that sandboxes in memory run, as code and as commands alike: one statement a line.
//!
//! | Statement | What it does |
//! |---|---|
//! | `out TEXT`, `err TEXT` | writes the text and a line's end to standard output, standard error |
//! | `flood N` | writes N bytes to standard output, in pieces |
//! | `cat` | copies its standard input to its output, until the input ends |
//! | `value JSON` | the value of the last expression: its text, and a scalar if it is one |
//! | `text REPR` | the value of the last expression: a text that is no scalar |
//! | `png` | displays a figure |
//! | `set K V`, `get K` | keeps a value in the interpreter; `get` is `value V`, or a `NameError` |
//! | `env NAME` | writes the variable of the session's environment |
//! | `save PATH TEXT`, `load PATH` | writes a file; writes a file's bytes to standard output |
//! | `sleep MS` | sleeps, in tokio's time |
//! | `wait` | waits until it is stopped |
//! | `hang` | the same, deaf to interrupts: it has to be killed |
//! | `raise NAME: MESSAGE` | ends with an exception |
//! | `exit N` | ends; a command's exit code is N |
//! | `die` | the process that runs this ends by signal 9: for code, the interpreter with all it kept |
//! | `crash` | the first process of the sandbox ends, and with it the sandbox |
//!
//! Empty lines and lines that begin with `#` do nothing; anything else is a `SyntaxError`.

use std::time::Duration;

/// One line's meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Statement {
    Out(String),
    Err(String),
    Flood(usize),
    Cat,
    Value(String),
    Text(String),
    Png,
    Set(String, String),
    Get(String),
    Env(String),
    Save(String, String),
    Load(String),
    Sleep(Duration),
    Wait,
    Hang,
    Raise(String, String),
    Exit(i32),
    Die,
    Crash,
}

impl Statement {
    /// What a line means; `None` for one without meaning, an error for one that cannot be understood.
    pub(super) fn parse(line: &str) -> Result<Option<Self>, String> {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            return Ok(None);
        }
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let two = |rest: &str| {
            let (first, second) = rest.split_once(' ').unwrap_or((rest, ""));
            (first.to_owned(), second.to_owned())
        };
        let wrong = || format!("invalid syntax: {line}");
        Ok(Some(match word {
            "out" => Self::Out(rest.to_owned()),
            "err" => Self::Err(rest.to_owned()),
            "flood" => Self::Flood(rest.trim().parse().map_err(|_| wrong())?),
            "cat" => Self::Cat,
            "value" => Self::Value(rest.to_owned()),
            "text" => Self::Text(rest.to_owned()),
            "png" => Self::Png,
            "set" => {
                let (name, value) = two(rest);
                Self::Set(name, value)
            }
            "get" => Self::Get(rest.trim().to_owned()),
            "env" => Self::Env(rest.trim().to_owned()),
            "save" => {
                let (path, text) = two(rest);
                Self::Save(path, text)
            }
            "load" => Self::Load(rest.trim().to_owned()),
            "sleep" => Self::Sleep(Duration::from_millis(rest.trim().parse().map_err(|_| wrong())?)),
            "wait" => Self::Wait,
            "hang" => Self::Hang,
            "raise" => {
                let (name, message) = rest.split_once(':').unwrap_or((rest, ""));
                Self::Raise(name.trim().to_owned(), message.trim().to_owned())
            }
            "exit" => Self::Exit(rest.trim().parse().map_err(|_| wrong())?),
            "die" => Self::Die,
            "crash" => Self::Crash,
            _ => return Err(wrong()),
        }))
    }
}

/// `text` as a JSON scalar, when it looks like one.
pub(super) fn scalar(text: &str) -> Option<String> {
    let is_word = matches!(text, "null" | "true" | "false");
    let digits = text.strip_prefix('-').unwrap_or(text);
    let is_number = digits.starts_with(|c: char| c.is_ascii_digit()) && text.parse::<f64>().is_ok_and(f64::is_finite);
    let is_string = text.len() >= 2 && text.starts_with('"') && text.ends_with('"');
    (is_word || is_number || is_string).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_one_meaning() {
        assert_eq!(Statement::parse("out a  b"), Ok(Some(Statement::Out("a  b".into()))));
        assert_eq!(Statement::parse("  set k 1 2"), Ok(Some(Statement::Set("k".into(), "1 2".into()))));
        assert_eq!(
            Statement::parse("raise ValueError: no"),
            Ok(Some(Statement::Raise("ValueError".into(), "no".into())))
        );
        assert_eq!(Statement::parse("# nothing"), Ok(None));
        assert!(Statement::parse("sleep long").is_err());
        assert!(Statement::parse("import os").is_err());
    }

    #[test]
    fn scalars_are_told_from_other_values() {
        for text in ["null", "true", "3", "-3.5e3", "\"a\"", "100000000000000000000000"] {
            assert_eq!(scalar(text).as_deref(), Some(text));
        }
        for text in ["[1]", "{}", "NaN", "inf", "word", "\"", ""] {
            assert_eq!(scalar(text), None, "{text}");
        }
    }
}
