//! What stands behind the question mark, as clients really write it.
//!
//! Several clients put an identifier into the query as it is, others encode it, one encodes a blank as `+`. An identifier
//! may hold every sign but a blank and a backslash, so it is read like this:
//!
//! - `%` and two hexadecimal digits are one byte; any other `%` is a percent sign.
//! - `+` is a plus sign: what the form encoding writes so, a blank, may not be in an identifier.
//! - `&` ends it if a parameter follows (`name=`); what follows without `=` still belongs to it, as in
//!   `identifier=tea&cake&api-version=…`. A raw `&name=` inside an identifier cannot be told from a parameter.
//!
//! In every other value `+` is a blank. Names are compared without case.

use percent_encoding::percent_decode_str;
use sandpool_core::ids::{Identifier, IdentifierError};

use crate::problem::Problem;
use axum::http::StatusCode;

/// A query, taken apart.
#[derive(Debug, Default)]
pub(crate) struct Query {
    pairs: Vec<(String, String)>,
    /// Whether a text could not be decoded, and whose.
    garbled: Option<String>,
    identifiers: Vec<Vec<u8>>,
}

impl Query {
    pub(crate) fn parse(raw: &str) -> Self {
        let mut query = Self::default();
        let mut pieces = raw.split('&').peekable();
        while let Some(piece) = pieces.next() {
            if piece.is_empty() {
                continue;
            }
            let (name, value) = piece.split_once('=').unwrap_or((piece, ""));
            let name = String::from_utf8_lossy(&percent_decode_str(name).collect::<Vec<u8>>()).to_ascii_lowercase();
            if name == "identifier" {
                let mut whole = value.to_owned();
                while let Some(more) = pieces.next_if(|piece| !piece.is_empty() && continues(piece)) {
                    whole.push('&');
                    whole.push_str(more);
                }
                query.identifiers.push(percent_decode_str(&whole).collect());
                continue;
            }
            match String::from_utf8(percent_decode_str(&value.replace('+', " ")).collect()) {
                Ok(value) => query.pairs.push((name, value)),
                Err(_) => query.garbled = Some(name),
            }
        }
        query
    }

    /// The value of the first parameter of that name.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A switch: absent and `false` are false, alone and `true` are true.
    pub(crate) fn switch(&self, name: &str) -> Result<bool, Problem> {
        match self.get(name) {
            None => Ok(false),
            Some(value) if value.is_empty() || value == "1" || value.eq_ignore_ascii_case("true") => Ok(true),
            Some(value) if value == "0" || value.eq_ignore_ascii_case("false") => Ok(false),
            Some(_) => Err(Problem::invalid(name, format!("The parameter {name} is true or false."))),
        }
    }

    /// A number that is not negative.
    pub(crate) fn number(&self, name: &str) -> Result<Option<u64>, Problem> {
        let Some(value) = self.get(name).filter(|value| !value.is_empty()) else { return Ok(None) };
        let wrong = |_| Problem::invalid(name, format!("The parameter {name} is a number, 0 or more."));
        value.parse().map(Some).map_err(wrong)
    }

    /// The identifier, from the query or from the path.
    pub(crate) fn identifier(&self, in_path: Option<&[u8]>) -> Result<Option<Identifier>, Problem> {
        if let Some(name) = &self.garbled {
            return Err(Problem::invalid(name, format!("The parameter {name} is not UTF-8.")));
        }
        let mut all = self.identifiers.iter().map(Vec::as_slice).chain(in_path);
        let Some(first) = all.next() else { return Ok(None) };
        if all.any(|other| other != first) {
            return Err(Problem::invalid("identifier", "The request names two identifiers. Send one."));
        }
        let wrong = |_| Problem::invalid("identifier", "The identifier is not UTF-8.");
        identifier(std::str::from_utf8(first).map_err(wrong)?).map(Some)
    }

    /// The version, when there is one.
    pub(crate) fn version(&self) -> Result<Option<Version>, Problem> {
        let mut found = None;
        for (_, value) in self.pairs.iter().filter(|(name, value)| name == "api-version" && !value.is_empty()) {
            let version = Version::parse(value).ok_or_else(|| bad_version(value))?;
            if found.is_some_and(|found| found != version) {
                return Err(bad_version(value));
            }
            found = Some(version);
        }
        Ok(found)
    }
}

/// A piece behind an identifier that is no parameter. (`recursive` alone is one: a switch.)
fn continues(piece: &str) -> bool {
    match piece.split_once('=') {
        Some((name, _)) => name.is_empty(),
        None => !piece.eq_ignore_ascii_case("recursive"),
    }
}

/// Checks an identifier's text.
pub(crate) fn identifier(text: &str) -> Result<Identifier, Problem> {
    Identifier::parse(text).map_err(|error| {
        let problem = Problem::invalid("identifier", format!("The identifier cannot be used: {error}."));
        match error {
            IdentifierError::Length { .. } => {
                let code = "InvalidLengthOfSessionIdentifier";
                Problem::new(problem.status, code, problem.message).about("identifier")
            }
            IdentifierError::Character { .. } => problem,
        }
    })
}

fn bad_version(value: &str) -> Problem {
    let shown: String = value.chars().filter(|character| !character.is_control()).take(60).collect();
    let message = format!("The api-version {shown:?} is none: write a date such as 2025-10-02-preview, or nothing.");
    let problem = Problem::new(StatusCode::BAD_REQUEST, "InvalidApiVersion", message);
    problem.about("api-version")
}

/// A version: its date. Whether it is a preview makes no difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    year: u16,
    month: u8,
    day: u8,
}

impl Version {
    pub(crate) const fn new(year: u16, month: u8, day: u8) -> Self {
        Self { year, month, day }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (date, rest) = text.split_at_checked(10)?;
        if !rest.is_empty() && !rest.eq_ignore_ascii_case("-preview") {
            return None;
        }
        let number = |range: std::ops::Range<usize>| {
            let digits = date.get(range)?;
            digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<u16>().ok())?
        };
        if date.get(4..5) != Some("-") || date.get(7..8) != Some("-") {
            return None;
        }
        let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
        let fits = (1..=12).contains(&month) && (1..=31).contains(&day);
        fits.then_some(Self { year, month: u8::try_from(month).ok()?, day: u8::try_from(day).ok()? })
    }
}

/// The shape of file records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// `{properties: {filename, size, lastModifiedTime}}`.
    Legacy,
    /// `{name, sizeInBytes, …}`.
    Modern,
    /// Both at once, for clients of which nobody knows what they read.
    Both,
}

impl Shape {
    /// The shape that clients of a version read. What is between the last wrapped version and the first flat one was
    /// only ever a draft.
    pub(crate) fn of(version: Option<Version>) -> Self {
        match version {
            Some(version) if version >= Version::new(2024, 10, 1) => Self::Modern,
            Some(version) if version >= Version::new(2024, 1, 1) && version <= Version::new(2024, 8, 31) => {
                Self::Legacy
            }
            _ => Self::Both,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(raw: &str) -> String {
        match Query::parse(raw).identifier(None) {
            Ok(Some(identifier)) => identifier.to_string(),
            Ok(None) => "none".to_owned(),
            Err(problem) => problem.code.to_owned(),
        }
    }

    #[test]
    fn item_5_identifiers_are_read_as_clients_write_them() {
        let long = "x".repeat(128);
        for (raw, expected) in [
            ("identifier=abcd&api-version=2024-02-02-preview", "abcd"),
            ("api-version=2024-02-02-preview&identifier=abcd", "abcd"),
            ("Identifier=abcd", "abcd"),
            ("identifier=a%2Bb%26c%25", "a+b&c%"),
            ("identifier=a+b+", "a+b+"),
            ("identifier=tea&cake&api-version=2025-10-02-preview", "tea&cake"),
            ("identifier=tea&cake", "tea&cake"),
            ("identifier=tea1&recursive", "tea1"),
            ("identifier=abcd&unknown=1", "abcd"),
            ("identifier=abcd&", "abcd"),
            ("identifier=abcd&&path=", "abcd"),
            ("identifier=a=b==&path=", "a=b=="),
            ("identifier=50%off;x", "50%off;x"),
            ("identifier=%7B%22%5B%5D%22%7D", "{\"[]\"}"),
            ("identifier={[]}/?:@!$'()*,", "{[]}/?:@!$'()*,"),
            ("identifier=abcd&identifier=abcd", "abcd"),
            ("identifier=abcd&identifier=efgh", "SessionRequestValidationFailed"),
            ("identifier=ab%20cd", "SessionRequestValidationFailed"),
            ("identifier=ab%5Ccd", "SessionRequestValidationFailed"),
            ("identifier=ab%FFcd", "SessionRequestValidationFailed"),
            ("identifier=abc", "InvalidLengthOfSessionIdentifier"),
            ("identifier=", "InvalidLengthOfSessionIdentifier"),
            ("identifier", "InvalidLengthOfSessionIdentifier"),
            ("api-version=2024-02-02-preview", "none"),
            ("", "none"),
        ] {
            assert_eq!(read(raw), expected, "{raw}");
        }
        assert_eq!(read(&format!("identifier={long}")), long);
        assert_eq!(read(&format!("identifier={long}x")), "InvalidLengthOfSessionIdentifier");
    }

    #[test]
    fn the_path_may_hold_the_identifier_but_not_another_one() {
        let query = Query::parse("identifier=abcd");
        assert!(query.identifier(Some(b"abcd")).is_ok());
        assert!(query.identifier(Some(b"efgh")).is_err());
        assert_eq!(Query::default().identifier(Some(b"efgh")).unwrap().unwrap().as_str(), "efgh");
    }

    #[test]
    fn item_3_any_date_is_a_version() {
        for (text, good) in [
            ("2024-02-02-preview", true),
            ("2025-10-02-PREVIEW", true),
            ("2030-01-01", true),
            ("2024-13-01", false),
            ("2024-02-02-beta", false),
            ("2024-2-2", false),
            ("latest", false),
            ("２024-02-02", false),
            ("2024-02-0é", false),
        ] {
            assert_eq!(Version::parse(text).is_some(), good, "{text}");
            let told = Query::parse(&format!("api-version={text}")).version();
            assert_eq!(told.is_ok(), good, "{text}");
        }
        assert_eq!(Query::parse("api-version=").version().unwrap(), None);
        assert_eq!(Query::parse("api-version=x").version().unwrap_err().code, "InvalidApiVersion");
        assert!(Query::parse("api-version=2024-02-02&api-version=2025-02-02").version().is_err());
    }

    #[test]
    fn file_records_have_the_shape_of_their_version() {
        for (version, shape) in [
            ("2023-08-01-preview", Shape::Both),
            ("2024-02-02-preview", Shape::Legacy),
            ("2024-08-02-preview", Shape::Legacy),
            ("2024-09-01", Shape::Both),
            ("2024-10-02-preview", Shape::Modern),
            ("2025-02-02-preview", Shape::Modern),
            ("2031-01-01", Shape::Modern),
        ] {
            assert_eq!(Shape::of(Version::parse(version)), shape, "{version}");
        }
        assert_eq!(Shape::of(None), Shape::Both);
    }

    proptest! {
        #[test]
        fn any_query_is_read(raw in ".{0,80}") {
            let query = Query::parse(&raw);
            let _ = (query.identifier(None), query.version(), query.number("skip"), query.switch("recursive"));
        }

        #[test]
        fn an_encoded_identifier_is_what_it_was(text in "[!-\\[\\]-~]{4,128}") {
            let encoded = percent_encoding::utf8_percent_encode(&text, percent_encoding::NON_ALPHANUMERIC).to_string();
            let raw = format!("api-version=2025-10-02-preview&identifier={encoded}&path=x");
            prop_assert_eq!(read(&raw), text);
        }
    }
}
