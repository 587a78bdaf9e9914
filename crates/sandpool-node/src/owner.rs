//! What a driver keeps of a sandbox's owner, in our own words.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sandpool_core::ids::{Identifier, TenantName};

/// What is kept with the driver about a sandbox's owner: five lines of text, and a sixth if it has secrets of its own. (Sandboxes that are
/// older than tenants have three, and than the fifth line four.)
pub(crate) struct OwnerRecord {
    pub(crate) identifier: Identifier,
    pub(crate) created: SystemTime,
    /// When it was made by the host's monotonic clock, which nobody sets.
    pub(crate) began: Option<Duration>,
    pub(crate) subject: String,
    /// Against whose quota it counts, and in whose room it is unless the pool has only one.
    pub(crate) tenant: TenantName,
    /// It was given secrets, which no server keeps.
    pub(crate) has_secrets: bool,
}

impl OwnerRecord {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let Self { identifier, created, began, subject, tenant, has_secrets } = self;
        let created = created.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let subject: String = subject.chars().filter(|character| !character.is_control()).collect();
        let began = began.map_or_else(String::new, |began| began.as_millis().to_string());
        let secrets = if *has_secrets { "\nsecrets" } else { "" };
        format!("{identifier}\n{created}\n{subject}\n{tenant}\n{began}{secrets}").into_bytes()
    }

    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut lines = text.splitn(6, '\n');
        let identifier = Identifier::parse(lines.next()?).ok()?;
        let created = UNIX_EPOCH + Duration::from_millis(lines.next()?.parse().ok()?);
        let subject = lines.next()?.to_owned();
        let tenant = match lines.next() {
            Some(tenant) => TenantName::parse(tenant).ok()?,
            None => TenantName::default(),
        };
        let began = lines.next().and_then(|began| began.parse().ok()).map(Duration::from_millis);
        let has_secrets = lines.next() == Some("secrets");
        Some(Self { identifier, created, began, subject, tenant, has_secrets })
    }
}
