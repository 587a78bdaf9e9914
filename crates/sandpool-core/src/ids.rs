//! Names and numbers, checked once, where they are made.

use std::fmt;
use std::sync::{Arc, LazyLock};

/// A name a caller gives its session: the whole of what tells one session of a tenant in a pool from another.
///
/// 4 to 128 characters out of letters, digits and ``_ | } { [ ] : " ; ' < > ? / . , @ # $ % ^ & * ( ) - + = ! ~ ` ``
/// (Azure's data-plane specification; no blank, no backslash). Compared byte for byte.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identifier(String);

/// Why a text is not an [`Identifier`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentifierError {
    /// Shorter than 4 or longer than 128 characters.
    #[error("an identifier has 4 to 128 characters, this one has {length}")]
    Length {
        /// Its length in characters.
        length: usize,
    },
    /// A character that may not be in it.
    #[error("an identifier may not contain {character:?}")]
    Character {
        /// The first such character.
        character: char,
    },
}

impl Identifier {
    /// Checks `text`.
    ///
    /// # Errors
    /// [`IdentifierError`] says what is wrong.
    pub fn parse(text: &str) -> Result<Self, IdentifierError> {
        let length = text.chars().count();
        if !(4..=128).contains(&length) {
            return Err(IdentifierError::Length { length });
        }
        match text.chars().find(|&c| !is_of_identifiers(c)) {
            Some(character) => Err(IdentifierError::Character { character }),
            None => Ok(Self(text.to_owned())),
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// What may be in an [`Identifier`].
fn is_of_identifiers(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_|}{[]:\";'<>?/.,@#$%^&*()-+=!~`".contains(c)
}

/// The name of a terminal in its session: 1 to 64 characters of those of an [`Identifier`], and neither `.` nor `..`, which are steps in
/// a path.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TerminalName(String);

/// A text is not a [`TerminalName`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a terminal's name has 1 to 64 characters, of those that a session's identifier may have; this one is {0:?}")]
pub struct TerminalNameError(pub String);

impl TerminalName {
    /// Checks `text`.
    ///
    /// # Errors
    /// [`TerminalNameError`] with the rule.
    pub fn parse(text: &str) -> Result<Self, TerminalNameError> {
        let fits = (1..=64).contains(&text.len()) && text.chars().all(is_of_identifiers) && !matches!(text, "." | "..");
        if fits { Ok(Self(text.to_owned())) } else { Err(TerminalNameError(text.chars().take(80).collect())) }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TerminalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TerminalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// The name of a pool: 1 to 63 characters, `^[a-z][a-z0-9-]*$`. (Azure asks for 3 or more and, in its
/// specification, for no hyphen; its documentation has hyphens.)
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolName(String);

/// A text is not a [`PoolName`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a pool's name has 1 to 63 characters, begins with a letter a-z and goes on with a-z, 0-9 and '-'; this one is {0:?}"
)]
pub struct PoolNameError(pub String);

impl PoolName {
    /// Checks `text`.
    ///
    /// # Errors
    /// [`PoolNameError`] with the rule.
    pub fn parse(text: &str) -> Result<Self, PoolNameError> {
        let fits = text.len() <= 63
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        if fits { Ok(Self(text.to_owned())) } else { Err(PoolNameError(text.chars().take(80).collect())) }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// The name of a tenant: whoever is not claimed by a named one belongs to `default`. The rule is that of [`PoolName`].
/// Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantName(Arc<str>);

/// A text is not a [`TenantName`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a tenant's name has 1 to 63 characters, begins with a letter a-z and goes on with a-z, 0-9 and '-'; this one is {0:?}"
)]
pub struct TenantNameError(pub String);

static DEFAULT_TENANT: LazyLock<TenantName> = LazyLock::new(|| TenantName(Arc::from("default")));

impl TenantName {
    /// Checks `text`.
    ///
    /// # Errors
    /// [`TenantNameError`] with the rule.
    pub fn parse(text: &str) -> Result<Self, TenantNameError> {
        match PoolName::parse(text) {
            Ok(_) => Ok(Self(Arc::from(text))),
            Err(PoolNameError(text)) => Err(TenantNameError(text)),
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// It is the tenant of all whom no other tenant claims: the operator's own.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == *DEFAULT_TENANT
    }
}

impl Default for TenantName {
    fn default() -> Self {
        DEFAULT_TENANT.clone()
    }
}

impl fmt::Display for TenantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TenantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// The whole of what tells one session of a pool from another: the same identifier used by two tenants is two sessions.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionKey {
    /// In whose room it is.
    pub tenant: TenantName,
    /// What its callers call it.
    pub identifier: Identifier,
}

impl SessionKey {
    /// A tenant's session of that name.
    #[must_use]
    pub fn new(tenant: TenantName, identifier: Identifier) -> Self {
        Self { tenant, identifier }
    }
}

/// The default tenant's session of that name.
impl From<Identifier> for SessionKey {
    fn from(identifier: Identifier) -> Self {
        Self::new(TenantName::default(), identifier)
    }
}

impl fmt::Display for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.tenant.is_default() {
            fmt::Display::fmt(&self.identifier, f)
        } else {
            // No blank may be in an identifier, so this is nobody else's name.
            write!(f, "{} of {}", self.identifier, self.tenant)
        }
    }
}

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.to_string(), f)
    }
}

/// A sandbox's number: 128 bits, made from a random source by the service layer, never used twice.
/// Prints as a UUID, which is what Azure's clients see in `x-ms-session-guid`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SandboxId(pub [u8; 16]);

/// An execution's number: 128 bits. Prints as a UUID.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExecutionId(pub [u8; 16]);

/// A snapshot's number: 128 bits. Prints as a UUID.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapshotId(pub [u8; 16]);

fn uuid(bytes: &[u8; 16], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (at, byte) in bytes.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            f.write_str("-")?;
        }
        write!(f, "{byte:02x}")?;
    }
    Ok(())
}

/// Reads the 32 hexadecimal digits of a UUID, with or without hyphens.
fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let digits: Vec<u8> = text
        .chars()
        .filter(|c| *c != '-')
        .map(|c| c.to_digit(16))
        .collect::<Option<Vec<_>>>()?
        .into_iter()
        .map(|d| u8::try_from(d).unwrap_or(0))
        .collect();
    if digits.len() != 32 || text.len() > 36 {
        return None;
    }
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = pair[0] << 4 | pair[1];
    }
    Some(bytes)
}

macro_rules! uuid_id {
    ($name:ident) => {
        impl $name {
            /// Reads a UUID's text; `None` if it is not one.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                parse_uuid(text).map(Self)
            }

            /// Makes one from 16 random bytes, with the version and variant bits of a random UUID (RFC 9562, 5.4).
            #[must_use]
            pub fn from_random(mut bytes: [u8; 16]) -> Self {
                bytes[6] = bytes[6] & 0x0f | 0x40;
                bytes[8] = bytes[8] & 0x3f | 0x80;
                Self(bytes)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                uuid(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                uuid(&self.0, f)
            }
        }
    };
}

uuid_id!(SandboxId);
uuid_id!(ExecutionId);
uuid_id!(SnapshotId);

impl SandboxId {
    /// Of a sandbox that is made of what was saved of another: from 16 random bytes, with the version bits of a UUID of one's own (RFC 9562,
    /// 5.8). So it can be seen at any time that it never was fresh.
    #[must_use]
    pub fn of_loaded(bytes: [u8; 16]) -> Self {
        let mut id = Self::from_random(bytes);
        id.0[6] = id.0[6] & 0x0f | 0x80;
        id
    }

    /// It is made of what was saved of another.
    #[must_use]
    pub fn is_loaded(self) -> bool {
        self.0[6] >> 4 == 8
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_text_is_a_name_or_an_error(text in any::<String>(), short in "[ -~é]{0,140}", hex in "[0-9a-f-]{30,40}") {
            for text in [text.as_str(), short.as_str(), hex.as_str()] {
                if let Ok(identifier) = Identifier::parse(text) {
                    prop_assert!(identifier.as_str() == text && (4..=128).contains(&text.len()) && text.is_ascii());
                }
                if let Ok(pool) = PoolName::parse(text) {
                    prop_assert!(pool.as_str() == text && (1..=63).contains(&text.len()));
                }
                if let Some(id) = ExecutionId::parse(text) {
                    prop_assert_eq!(ExecutionId::parse(&id.to_string()), Some(id));
                }
            }
        }
    }

    #[test]
    fn identifiers_of_4_and_of_128_characters_are_the_shortest_and_longest() {
        assert_eq!(Identifier::parse("abc"), Err(IdentifierError::Length { length: 3 }));
        assert!(Identifier::parse("abcd").is_ok());
        assert!(Identifier::parse(&"x".repeat(128)).is_ok());
        assert_eq!(Identifier::parse(&"x".repeat(129)), Err(IdentifierError::Length { length: 129 }));
    }

    #[test]
    fn every_sign_of_the_specification_may_be_in_an_identifier_and_no_other() {
        let signs = "_|}{[]:\";'<>?/.,@#$%^&*()-+=!~`";
        assert!(Identifier::parse(signs).is_ok());
        for bad in [' ', '\\', '\0', '\n', 'é', '\u{202e}'] {
            assert_eq!(Identifier::parse(&format!("abcd{bad}")), Err(IdentifierError::Character { character: bad }));
        }
    }

    #[test]
    fn ids_say_whether_their_sandbox_was_fresh() {
        for byte in 0..=255 {
            assert!(SandboxId::of_loaded([byte; 16]).is_loaded() && !SandboxId::from_random([byte; 16]).is_loaded());
        }
    }

    #[test]
    fn a_uuid_prints_as_it_is_read() {
        let text = "0b6b2f0e-5a55-4a7e-9b8a-0e4f6f1a2c33";
        assert_eq!(ExecutionId::parse(text).unwrap().to_string(), text);
        assert_eq!(ExecutionId::parse("9a0c"), None);
    }
}
