//! What is to be run, out of the bodies of every generation: flat or wrapped in `properties`, keys and words without
//! case. What nobody knows is skipped without being kept.

use std::fmt;
use std::time::Duration;

use axum::http::StatusCode;
use base64::Engine;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, URL_SAFE_NO_PAD};
use sandpool_core::ids::Identifier;
use sandpool_node::{MAX_CODE, Runtime, Stdin, Work};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::query;
use crate::problem::Problem;

/// The largest body of an execution, in bytes: the longest code still fits when every character of it is escaped.
pub(crate) const MAX_BODY: usize = 20 << 20;

/// The most arguments of a program.
const MAX_ARGUMENTS: usize = 4_096;

/// Standard base64, padded or not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The fields of a body, before anybody has judged them.
#[derive(Debug, Default)]
pub(crate) struct Fields {
    code: Option<Field>,
    python_code: Option<Field>,
    code_input_type: Option<Field>,
    execution_type: Option<Field>,
    timeout: Option<Field>,
    output_length: Option<Field>,
    empty_kernel: Option<Field>,
    jupyter_format: Option<Field>,
    shell_command: Option<Field>,
    argv: Option<Field>,
    stdin: Option<Field>,
    identifier: Option<Field>,
}

/// What is to be run, and how to answer.
#[derive(Debug, PartialEq)]
pub(crate) struct Wanted {
    pub(crate) work: Work,
    pub(crate) is_asynchronous: bool,
    pub(crate) timeout: Option<Duration>,
    /// Characters of each stream in the answer.
    pub(crate) output_length: Option<u64>,
    /// The value as Jupyter shows it.
    pub(crate) jupyter_format: bool,
}

/// A value of a field.
#[derive(Debug)]
enum Field {
    Text(String),
    Whole(i128),
    Fraction(f64),
    Switch(bool),
    Texts(Vec<String>),
    /// Something no field of ours may be, in words.
    Other(&'static str),
}

impl Fields {
    /// Reads a body. An empty one has no fields.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, Problem> {
        let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
        if body.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self::default());
        }
        serde_json::from_slice::<Top>(body).map(|top| top.0).map_err(|error| {
            let message = if error.is_data() {
                format!("The body is not what this call takes: {error}.")
            } else {
                format!("The body is not JSON: {error}.")
            };
            Problem::invalid("body", message)
        })
    }

    /// The identifier, when the body holds it.
    pub(crate) fn identifier(&self) -> Result<Option<Identifier>, Problem> {
        text("identifier", self.identifier.as_ref())?.map(query::identifier).transpose()
    }

    /// What the pool's runtime is to do.
    pub(crate) fn wanted(self, runtime: Runtime) -> Result<Wanted, Problem> {
        let is_asynchronous = match text("executionType", self.execution_type.as_ref())? {
            None => false,
            Some(word) if word.eq_ignore_ascii_case("synchronous") => false,
            Some(word) if word.eq_ignore_ascii_case("asynchronous") => true,
            Some(word) => {
                let message = format!("The field executionType is Synchronous or Asynchronous, not {}.", shown(word));
                return Err(Problem::invalid("executionType", message));
            }
        };
        let timeout = number("timeoutInSeconds", self.timeout.as_ref())?.map(Duration::from_secs);
        let output_length = number("outputStreamsMaxLength", self.output_length.as_ref())?;
        let jupyter_format = switch("returnJupyterFormatExecutionResult", self.jupyter_format.as_ref())?;
        let fresh = switch("useEmptyKernel", self.empty_kernel.as_ref())?;
        let work = match runtime {
            Runtime::Shell | Runtime::Container => self.command()?,
            Runtime::Python | Runtime::Node => self.code(runtime, fresh)?,
        };
        Ok(Wanted { work, is_asynchronous, timeout, output_length, jupyter_format })
    }

    fn code(self, runtime: Runtime, fresh: bool) -> Result<Work, Problem> {
        let is_packed = match text("codeInputType", self.code_input_type.as_ref())? {
            None => false,
            Some(word) if ["inline", "inlinetext"].iter().any(|known| word.eq_ignore_ascii_case(known)) => false,
            Some(word) if word.eq_ignore_ascii_case("inlinebase64") => true,
            Some(word) => {
                let known = "Inline, InlineText or InlineBase64";
                let message = format!("The field codeInputType is {known}, not {}.", shown(word));
                return Err(Problem::invalid("codeInputType", message));
            }
        };
        let code = match owned("code", self.code)? {
            Some(code) => Some(code),
            None => owned("pythonCode", self.python_code)?,
        };
        let Some(mut code) = code else {
            let but = if self.shell_command.is_some() || self.argv.is_some() {
                " The fields shellCommand and execCommandAndArgs are for Shell pools; here, run a command from code."
            } else {
                ""
            };
            let here = match runtime {
                Runtime::Node => "a NodeLTS pool, which runs JavaScript",
                _ => "a PythonLTS pool, which runs Python",
            };
            return Err(missing(format!("The body has no code. This is {here}: send {{\"code\": \"…\"}}.{but}")));
        };
        if is_packed {
            code.retain(|sign| !sign.is_ascii_whitespace());
            let bytes = BASE64.decode(&code).or_else(|_| URL_SAFE_NO_PAD.decode(code.trim_end_matches('=')));
            let bytes = bytes.map_err(|error| Problem::invalid("code", format!("The code is not base64: {error}.")))?;
            code = String::from_utf8(bytes)
                .map_err(|_| Problem::invalid("code", "The code is not UTF-8 after it was decoded from base64."))?;
        }
        Ok(Work::Code { code: fits("code", code)?, fresh })
    }

    fn command(self) -> Result<Work, Problem> {
        let stdin = match owned("stdin", self.stdin)? {
            Some(input) => Stdin::Bytes(fits("stdin", input)?.into_bytes()),
            None => Stdin::Empty,
        };
        let argv_problem = |message: String| Problem::invalid("execCommandAndArgs", message);
        match (owned("shellCommand", self.shell_command)?, self.argv) {
            (Some(_), Some(_)) => {
                Err(argv_problem("The fields shellCommand and execCommandAndArgs exclude each other.".to_owned()))
            }
            (Some(command), None) => Ok(Work::Shell { command: fits("shellCommand", command)?, stdin }),
            (None, Some(Field::Texts(argv))) => {
                if argv.is_empty() {
                    return Err(argv_problem("The field execCommandAndArgs is empty.".to_owned()));
                }
                if argv.iter().any(|argument| argument.contains('\0')) {
                    return Err(argv_problem("An argument in execCommandAndArgs has a NUL in it.".to_owned()));
                }
                if argv.iter().map(String::len).sum::<usize>() > MAX_CODE {
                    return Err(too_long("execCommandAndArgs"));
                }
                Ok(Work::Argv { argv, stdin })
            }
            (None, Some(other)) => Err(argv_problem(wrong_type("execCommandAndArgs", "a list of texts", &other))),
            (None, None) => {
                let but = if self.code.is_some() || self.python_code.is_some() {
                    " The field code is for PythonLTS and NodeLTS pools."
                } else {
                    ""
                };
                Err(missing(format!(
                    "The body has no command. This is a Shell pool: send {{\"shellCommand\": \"…\"}} or \
                     {{\"execCommandAndArgs\": [\"…\"]}}.{but}"
                )))
            }
        }
    }
}

fn missing(message: String) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "SessionPropertiesMissing", message)
}

fn too_long(target: &str) -> Problem {
    let message = format!("The field {target} is longer than {MAX_CODE} bytes. Upload it as a file, and run that.");
    let problem = Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestBodyTooLarge", message);
    problem.about(target)
}

fn fits(target: &str, text: String) -> Result<String, Problem> {
    if text.len() > MAX_CODE { Err(too_long(target)) } else { Ok(text) }
}

/// A caller's word, quoted in an answer.
fn shown(word: &str) -> String {
    format!("{:?}", word.chars().take(60).collect::<String>())
}

fn wrong_type(name: &str, wanted: &str, field: &Field) -> String {
    let is = match field {
        Field::Text(_) => "a text",
        Field::Whole(_) | Field::Fraction(_) => "a number",
        Field::Switch(_) => "true or false",
        Field::Texts(_) => "a list",
        Field::Other(what) => what,
    };
    format!("The field {name} must be {wanted}, and is {is}.")
}

fn text<'a>(name: &str, field: Option<&'a Field>) -> Result<Option<&'a str>, Problem> {
    match field {
        None => Ok(None),
        Some(Field::Text(text)) => Ok(Some(text)),
        Some(other) => Err(Problem::invalid(name, wrong_type(name, "a text", other))),
    }
}

fn owned(name: &str, field: Option<Field>) -> Result<Option<String>, Problem> {
    match field {
        None => Ok(None),
        Some(Field::Text(text)) => Ok(Some(text)),
        Some(other) => Err(Problem::invalid(name, wrong_type(name, "a text", &other))),
    }
}

fn switch(name: &str, field: Option<&Field>) -> Result<bool, Problem> {
    match field {
        None => Ok(false),
        Some(Field::Switch(value)) => Ok(*value),
        Some(other) => Err(Problem::invalid(name, wrong_type(name, "true or false", other))),
    }
}

/// A number of 1 or more. Larger ones than the pool allows are good too: they mean as much as there is.
fn number(name: &str, field: Option<&Field>) -> Result<Option<u64>, Problem> {
    let whole = match field {
        None => return Ok(None),
        Some(Field::Whole(number)) => Some(*number),
        Some(Field::Fraction(number)) if number.fract() == 0.0 && number.abs() < 1e15 => {
            format!("{number:.0}").parse().ok()
        }
        Some(Field::Fraction(_)) => None,
        Some(other) => return Err(Problem::invalid(name, wrong_type(name, "a whole number", other))),
    };
    match whole.and_then(|number| i32::try_from(number).ok()).and_then(|number| u64::try_from(number).ok()) {
        Some(number) if number >= 1 => Ok(Some(number)),
        _ => Err(Problem::invalid(name, format!("The field {name} must be a whole number from 1 to {}.", i32::MAX))),
    }
}

/// A whole body: an object.
struct Top(Fields);

impl<'de> Deserialize<'de> for Top {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor { may_wrap: true }).map(Self)
    }
}

/// What is in `properties`.
struct Wrapped(Option<Fields>);

impl<'de> Deserialize<'de> for Wrapped {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WrappedVisitor)
    }
}

struct WrappedVisitor;

impl<'de> Visitor<'de> for WrappedVisitor {
    type Value = Wrapped;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an object in the field properties")
    }

    fn visit_unit<E>(self) -> Result<Wrapped, E> {
        Ok(Wrapped(None))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Wrapped, A::Error> {
        ObjectVisitor { may_wrap: false }.visit_map(map).map(|fields| Wrapped(Some(fields)))
    }
}

struct ObjectVisitor {
    may_wrap: bool,
}

impl<'de> Visitor<'de> for ObjectVisitor {
    type Value = Fields;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
        let mut fields = Fields::default();
        let mut wrapped = None;
        while let Some(mut key) = map.next_key::<String>()? {
            key.make_ascii_lowercase();
            if self.may_wrap && key == "properties" {
                wrapped = map.next_value::<Wrapped>()?.0;
                continue;
            }
            match fields.place(&key) {
                Some(place) => {
                    if let Some(field) = map.next_value::<MaybeField>()?.0 {
                        *place = Some(field);
                    }
                }
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(match wrapped {
            Some(wrapped) => wrapped.or(fields),
            None => fields,
        })
    }
}

impl Fields {
    fn place(&mut self, key: &str) -> Option<&mut Option<Field>> {
        Some(match key {
            "code" => &mut self.code,
            "pythoncode" => &mut self.python_code,
            "codeinputtype" => &mut self.code_input_type,
            "executiontype" => &mut self.execution_type,
            "timeoutinseconds" => &mut self.timeout,
            "outputstreamsmaxlength" => &mut self.output_length,
            "useemptykernel" => &mut self.empty_kernel,
            "returnjupyterformatexecutionresult" | "returnjupyterformat" => &mut self.jupyter_format,
            "shellcommand" => &mut self.shell_command,
            "execcommandandargs" => &mut self.argv,
            "stdin" => &mut self.stdin,
            "identifier" => &mut self.identifier,
            _ => return None,
        })
    }

    /// These, and those of `other` that are not there.
    fn or(self, other: Self) -> Self {
        Self {
            code: self.code.or(other.code),
            python_code: self.python_code.or(other.python_code),
            code_input_type: self.code_input_type.or(other.code_input_type),
            execution_type: self.execution_type.or(other.execution_type),
            timeout: self.timeout.or(other.timeout),
            output_length: self.output_length.or(other.output_length),
            empty_kernel: self.empty_kernel.or(other.empty_kernel),
            jupyter_format: self.jupyter_format.or(other.jupyter_format),
            shell_command: self.shell_command.or(other.shell_command),
            argv: self.argv.or(other.argv),
            stdin: self.stdin.or(other.stdin),
            identifier: self.identifier.or(other.identifier),
        }
    }
}

/// A value that may be a field's; `null` is none.
struct MaybeField(Option<Field>);

impl<'de> Deserialize<'de> for MaybeField {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FieldVisitor).map(Self)
    }
}

struct FieldVisitor;

impl<'de> Visitor<'de> for FieldVisitor {
    type Value = Option<Field>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Some(Field::Switch(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(Some(Field::Whole(value.into())))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(Some(Field::Whole(value.into())))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
        Ok(Some(Field::Fraction(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(Some(Field::Text(value.to_owned())))
    }

    fn visit_string<E>(self, value: String) -> Result<Self::Value, E> {
        Ok(Some(Field::Text(value)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut texts = Vec::new();
        let mut trouble = None;
        while trouble.is_none() {
            match seq.next_element::<MaybeField>()? {
                None => return Ok(Some(Field::Texts(texts))),
                Some(MaybeField(Some(Field::Text(_)))) if texts.len() >= MAX_ARGUMENTS => {
                    trouble = Some("a list of more than 4096");
                }
                Some(MaybeField(Some(Field::Text(text)))) => texts.push(text),
                Some(_) => trouble = Some("a list with something else in it"),
            }
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(trouble.map(Field::Other))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Some(Field::Other("an object")))
    }
}

#[cfg(test)]
mod tests;
