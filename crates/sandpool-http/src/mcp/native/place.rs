//! Names: which session a handle means, for whom, and the addresses of what is in it.
//!
//! ```text
//! session_id   POOL/IDENTIFIER; IDENTIFIER alone where the address says the pool
//! uri          sandbox://POOL/IDENTIFIER/files/PATH
//!              sandbox://POOL/IDENTIFIER/executions/ID/{stdout|stderr|images/N}
//! ```
//!
//! A handle is a name and gives no right: whoever asks is held against it with every call.

use percent_encoding::{percent_decode_str, utf8_percent_encode};
use sandpool_core::ids::{ExecutionId, Identifier, PoolName, SessionKey};

use super::Told;
use crate::app::SEGMENT;
use crate::auth::{Principal, Role};

/// Who asks, and the pool that the address names.
#[derive(Clone, Debug)]
pub(super) struct Asker {
    pub(super) principal: Principal,
    pub(super) pool: Option<PoolName>,
}

/// A session that the asker may use, whether it is there or not.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) pool: PoolName,
    pub(super) key: SessionKey,
}

/// What an address below a session means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Thing {
    File(String),
    Stdout(ExecutionId),
    Stderr(ExecutionId),
    Image(ExecutionId, usize),
}

impl Asker {
    /// The session that `session_id` means.
    pub(super) fn place(&self, session_id: &str) -> Result<Place, Told> {
        let (named, identifier) = match session_id.split_once('/') {
            Some((pool, identifier)) => (Some(pool), identifier),
            None => (None, session_id),
        };
        let pool = match (named, &self.pool) {
            (None, Some(pool)) => pool.clone(),
            (Some(named), Some(pool)) if named != pool.as_str() => {
                return Err(Told::new(format!(
                    "The session {session_id:?} is of another pool; this address is for the pool {pool} only."
                )));
            }
            (Some(named), _) => PoolName::parse(named).map_err(|error| Told::new(not_one(session_id, &error)))?,
            (None, None) => return Err(Told::new(not_one(session_id, &"it has no pool before a slash"))),
        };
        let identifier = Identifier::parse(identifier).map_err(|error| Told::new(not_one(session_id, &error)))?;
        self.at(pool, identifier)
    }

    /// The session of that name in that pool.
    pub(super) fn at(&self, pool: PoolName, identifier: Identifier) -> Result<Place, Told> {
        let may = self.principal.may(Role::Executor, &pool, Some(&identifier));
        may?;
        Ok(Place { pool, key: SessionKey::new(self.principal.tenant.clone(), identifier) })
    }
}

fn not_one(session_id: &str, why: &dyn std::fmt::Display) -> String {
    let shown: String = session_id.chars().take(80).collect();
    format!("{shown:?} is no session_id ({why}): call open_session, and use the session_id that it answers.")
}

impl Place {
    pub(super) fn session_id(&self) -> String {
        format!("{}/{}", self.pool, self.key.identifier)
    }

    fn base(&self) -> String {
        format!("sandbox://{}/{}", self.pool, utf8_percent_encode(self.key.identifier.as_str(), SEGMENT))
    }

    /// The address of a file, whose path is absolute.
    pub(super) fn file(&self, path: &str) -> String {
        let names: Vec<_> = path.split('/').map(|name| utf8_percent_encode(name, SEGMENT).to_string()).collect();
        format!("{}/files{}", self.base(), names.join("/"))
    }

    /// The address of something of an execution.
    pub(super) fn of_execution(&self, id: ExecutionId, what: &str) -> String {
        format!("{}/executions/{id}/{what}", self.base())
    }
}

/// Takes an address apart: the session_id, and what is meant below it.
pub(super) fn parse(uri: &str) -> Option<(String, Thing)> {
    let decoded = |text: &str| percent_decode_str(text).decode_utf8().ok().map(std::borrow::Cow::into_owned);
    let rest = uri.strip_prefix("sandbox://")?;
    if let Some((session, path)) = rest.split_once("/files/") {
        return Some((decoded(session)?, Thing::File(format!("/{}", decoded(path)?.trim_start_matches('/')))));
    }
    let (session, below) = rest.split_once("/executions/")?;
    let (id, what) = below.split_once('/')?;
    let id = ExecutionId::parse(id)?;
    let thing = match what.split_once('/') {
        None if what == "stdout" => Thing::Stdout(id),
        None if what == "stderr" => Thing::Stderr(id),
        Some(("images", number)) => Thing::Image(id, number.parse().ok()?),
        _ => return None,
    };
    Some((decoded(session)?, thing))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandpool_core::ids::TenantName;

    #[test]
    fn addresses_are_read_again() {
        let place = Place {
            pool: PoolName::parse("python").unwrap(),
            key: SessionKey::new(TenantName::default(), Identifier::parse("a%b#c").unwrap()),
        };
        let id = ExecutionId([7; 16]);
        let file = parse(&place.file("/mnt/data/a b/ä.csv"));
        assert_eq!(file, Some((place.session_id(), Thing::File("/mnt/data/a b/ä.csv".to_owned()))));
        for (what, thing) in
            [("stdout", Thing::Stdout(id)), ("stderr", Thing::Stderr(id)), ("images/3", Thing::Image(id, 3))]
        {
            assert_eq!(parse(&place.of_execution(id, what)), Some((place.session_id(), thing)));
        }
        for other in ["file:///etc/passwd", "sandbox://python", "sandbox://python/abcd/executions/1/stdout"] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_handle_is_held_against_the_address_and_the_token() {
        let principal = Principal {
            subject: "me".to_owned(),
            role: Role::Executor,
            pools: Some(vec![PoolName::parse("python").unwrap()]),
            session: None,
            scopes: None,
            tenant: TenantName::default(),
        };
        let everywhere = Asker { principal, pool: None };
        assert_eq!(everywhere.place("python/chat-17").unwrap().session_id(), "python/chat-17");
        assert!(everywhere.place("shell/chat-17").is_err(), "the token is not for that pool");
        assert!(everywhere.place("chat-17").is_err(), "which pool?");
        let here = Asker { pool: Some(PoolName::parse("python").unwrap()), ..everywhere };
        assert_eq!(here.place("chat-17").unwrap().session_id(), "python/chat-17");
        assert_eq!(here.place("python/chat-17").unwrap().session_id(), "python/chat-17");
        assert!(here.place("node/chat-17").is_err(), "another pool's");
    }
}
