//! Who asks, and where: the token first, then the names in the path and the parameters of the query.

use std::str::FromStr;
use std::time::Duration;

use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::request::Parts;
use percent_encoding::percent_decode_str;
use sandpool_core::ids::{ExecutionId, Identifier, PoolName, SessionKey, TenantName};
use sandpool_node::Whose;

use crate::app::App;
use crate::auth::{Principal, Role, Scope};
use crate::problem::Problem;

/// A request's place, whose token was good. What it may do is asked with the names it wants: there is no way to a
/// name that does not go past the role.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) principal: Principal,
    path: Vec<(String, String)>,
    query: Vec<(String, String)>,
}

impl FromRequestParts<App> for Asked {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let principal = app.auth.verify(&parts.headers).await?;
        let params = RawPathParams::from_request_parts(parts, app)
            .await
            .map_err(|error| Problem::invalid("path", format!("The path cannot be read: {error}.")))?;
        let path = params.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let query = parse_query(parts.uri.query().unwrap_or_default())?;
        Ok(Self { principal, path, query })
    }
}

fn parse_query(query: &str) -> Result<Vec<(String, String)>, Problem> {
    let decode = |text: &str| {
        let text = text.replace('+', " ");
        percent_decode_str(&text)
            .decode_utf8()
            .map(|text| text.into_owned())
            .map_err(|_| Problem::invalid("query", "The query is not UTF-8 once its percent-encoding is undone."))
    };
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decode(name)?, decode(value)?))
        })
        .collect()
}

impl Asked {
    pub(super) fn segment(&self, name: &str) -> &str {
        self.path.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    /// The pool, for something that is about the pool as a whole. A token that is bound to one session may look at
    /// the pool that its session is in.
    pub(super) fn pool(&self, role: Role) -> Result<PoolName, Problem> {
        let pool = self.pool_name()?;
        let own = self.principal.session.as_deref().and_then(|own| Identifier::parse(own).ok());
        self.principal.may(role, &pool, own.as_ref())?;
        if role == Role::Admin {
            self.principal.allows(Scope::Admin)?;
        }
        Ok(pool)
    }

    /// In whose room this is.
    pub(super) fn room(&self) -> Result<TenantName, Problem> {
        Ok(self.principal.room(self.text("tenant"))?)
    }

    /// Whose sessions a list is about, in this room.
    pub(super) fn whose<'a>(&self, room: &'a TenantName) -> Whose<'a> {
        self.principal.whose(self.text("tenant"), room)
    }

    /// The pool and the session.
    pub(super) fn session(&self, role: Role) -> Result<(PoolName, SessionKey), Problem> {
        if role > Role::Reader {
            self.principal.allows(Scope::Execute)?;
        }
        self.its_session(role)
    }

    /// The pool and the session, for something that is about its files.
    pub(super) fn files(&self) -> Result<(PoolName, SessionKey), Problem> {
        self.principal.allows(Scope::Files)?;
        self.its_session(Role::Executor)
    }

    fn its_session(&self, role: Role) -> Result<(PoolName, SessionKey), Problem> {
        let pool = self.pool_name()?;
        let identifier = Identifier::parse(self.segment("session"))
            .map_err(|error| Problem::invalid("session", format!("The session's identifier is not one: {error}.")))?;
        self.principal.may(role, &pool, Some(&identifier))?;
        Ok((pool, SessionKey::new(self.room()?, identifier)))
    }

    /// The pool, the session and the execution.
    pub(super) fn execution(&self, role: Role) -> Result<(PoolName, SessionKey, ExecutionId), Problem> {
        self.principal.allows(Scope::Execute)?;
        let (pool, key) = self.session(role)?;
        let id = ExecutionId::parse(self.segment("execution"))
            .ok_or_else(|| Problem::invalid("execution", "An execution's id is a UUID."))?;
        Ok((pool, key, id))
    }

    fn pool_name(&self) -> Result<PoolName, Problem> {
        PoolName::parse(self.segment("pool"))
            .map_err(|error| Problem::invalid("pool", format!("There is no such pool: {error}.")))
    }

    /// Whether a session may be shown to whoever asks.
    pub(super) fn may_see(&self, identifier: &Identifier) -> bool {
        self.principal.session.as_deref().is_none_or(|own| own == identifier.as_str())
    }

    /// The path of a file, as it was sent.
    pub(super) fn file(&self) -> &str {
        self.segment("path")
    }

    /// A parameter of the query.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Every value of a parameter that may be there more than once, in order.
    pub(super) fn texts(&self, name: &str) -> impl Iterator<Item = &str> {
        self.query.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// A number, at most `most`.
    pub(super) fn number<N: FromStr + PartialOrd + Copy + std::fmt::Display>(
        &self,
        name: &str,
        least: N,
        most: N,
    ) -> Result<Option<N>, Problem> {
        let Some(text) = self.text(name) else { return Ok(None) };
        match text.parse() {
            Ok(number) if number >= least && number <= most => Ok(Some(number)),
            _ => Err(Problem::invalid(name, format!("{name} is a number from {least} to {most}."))),
        }
    }

    /// `true` or `false`; false when it is not there.
    pub(super) fn flag(&self, name: &str) -> Result<bool, Problem> {
        match self.text(name) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(Problem::invalid(name, format!("{name} is true or false."))),
        }
    }

    /// A time in seconds, with a fraction if need be, at most `most`.
    pub(super) fn seconds(&self, name: &str, most: Duration) -> Result<Option<Duration>, Problem> {
        let seconds = self.number(name, 0.0, most.as_secs_f64())?;
        Ok(seconds.map(Duration::from_secs_f64))
    }

    /// Whether bytes are wanted in base64, and not as text.
    pub(super) fn base64(&self) -> Result<bool, Problem> {
        match self.text("bytes") {
            None | Some("text") => Ok(false),
            Some("base64") => Ok(true),
            Some(_) => Err(Problem::invalid("bytes", "bytes is text or base64.")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(query: &str) -> Asked {
        let principal = Principal {
            subject: String::new(),
            role: Role::Reader,
            pools: None,
            session: None,
            scopes: None,
            tenant: TenantName::default(),
        };
        Asked { principal, path: Vec::new(), query: parse_query(query).unwrap() }
    }

    #[test]
    fn queries_are_read_as_forms() {
        let asked = asked("path=a%2Fb+c&flag&&limit=10&wait=0.5");
        assert_eq!(asked.text("path"), Some("a/b c"));
        assert_eq!(asked.text("flag"), Some(""));
        assert_eq!(asked.number("limit", 1, 10).unwrap(), Some(10));
        assert_eq!(asked.seconds("wait", Duration::from_secs(1)).unwrap(), Some(Duration::from_millis(500)));
        assert!(parse_query("a=%ff").is_err());
    }

    #[test]
    fn a_bad_value_is_named() {
        let asked = asked("limit=11&wait=nan&recursive=1&bytes=hex");
        let target = |problem: Problem| problem.target.unwrap();
        assert_eq!(target(asked.number("limit", 1, 10).unwrap_err()), "limit");
        assert_eq!(target(asked.seconds("wait", Duration::from_secs(1)).unwrap_err()), "wait");
        assert_eq!(target(asked.flag("recursive").unwrap_err()), "recursive");
        assert_eq!(target(asked.base64().unwrap_err()), "bytes");
    }
}
