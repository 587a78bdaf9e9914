//! What can be wrong with a token or a key, and what to do about it.

use std::path::Path;
use std::time::Duration;

use axum::http::StatusCode;

use super::{LONGEST_TTL, Role, Scope};

/// Why tokens cannot be made or checked at all.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// The signing keys cannot be read or written.
    #[error("the signing keys in {directory}: {source}")]
    Keys {
        /// Where they are.
        directory: String,
        /// What went wrong.
        source: std::io::Error,
    },
    /// A token would live too long, or not at all.
    #[error("a token can be good for 1 s to {} days, not for {} s", LONGEST_TTL.as_secs() / 86_400, .0.as_secs())]
    Ttl(Duration),
    /// The settings make no sense.
    #[error("{0}")]
    Settings(String),
    /// Signing failed.
    #[error("the token could not be signed: {0}")]
    Signing(Box<jsonwebtoken::errors::Error>),
}

impl AuthError {
    pub(super) fn keys(directory: &Path, source: std::io::Error) -> Self {
        Self::Keys { directory: directory.display().to_string(), source }
    }

    pub(super) fn signing(error: jsonwebtoken::errors::Error) -> Self {
        Self::Signing(Box::new(error))
    }
}

/// Why a request is not let in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthFailure {
    /// There is no token.
    #[error("no token: send the header `Authorization: Bearer <token>`; `sandpool token` prints one")]
    Missing,
    /// There is no key for a pool's MCP server.
    #[error("no key: send the header `x-ms-apikey`; `sandpool pool mcp-key POOL` prints the pool's")]
    NoPoolKey,
    /// It is not the key of that pool's MCP server.
    #[error("the key in x-ms-apikey is not this pool's; `sandpool pool mcp-key POOL` prints the one that is")]
    WrongPoolKey,
    /// It is neither a token nor a known key.
    #[error("the bearer token is malformed: it is neither a JWT nor a known API key")]
    Malformed,
    /// Its time is over.
    #[error("the token expired; get a new one, for example with `sandpool token`")]
    Expired,
    /// Its time has not come.
    #[error("the token is not valid yet: compare this machine's clock with its issuer's")]
    NotYet,
    /// It is for somebody else.
    #[error("the token's audience is {found}; ask for a token for one of: {expected}")]
    Audience {
        /// What it says.
        found: String,
        /// What would be good.
        expected: String,
    },
    /// Nobody here trusts its issuer.
    #[error("the token's issuer {0} is not trusted here: add it under auth.issuers in the settings")]
    Issuer(String),
    /// It was changed, or signed by somebody else.
    #[error("the token's signature is wrong")]
    Signature,
    /// It was signed with a key that is not known, or not any more.
    #[error("the token was signed with a key that is not known here: get a new token")]
    UnknownKey,
    /// Its issuer's keys cannot be had.
    #[error("the keys of the token's issuer cannot be read at the moment: {0}")]
    Unavailable(String),
    /// It is good, but may not do this.
    #[error("{}", role_text(*.has, *.needs))]
    Role {
        /// What it has.
        has: Option<Role>,
        /// What this needs.
        needs: Role,
    },
    /// It is good, but limited to other things.
    #[error("the token's scopes do not include {}", .0.word())]
    Scope(Scope),
    /// It is good, but not in this pool.
    #[error("the token is not for the pool {0}")]
    Pool(String),
    /// It is good, but not for this tenant.
    #[error("the token is not for the tenant {0}")]
    Tenant(String),
    /// It names a tenant that is not in the settings, or not any more.
    #[error("the token belongs to the tenant {0}, which is not declared here: see tenants in the settings")]
    UnknownTenant(String),
    /// More than one tenant claims it.
    #[error("the token belongs to the tenants {0} at once: only one may claim it in the settings")]
    Claimed(String),
    /// It is bound to one session, and this is not it.
    #[error("the token is bound to another session")]
    Session,
}

fn role_text(has: Option<Role>, needs: Role) -> String {
    let needed = match needs {
        Role::Executor => "executor (Azure ContainerApps Session Executor)",
        other => other.word(),
    };
    match has {
        Some(has) => format!("the token has the role {}; this needs the role {needed}", has.word()),
        None => format!("the token has no role here; this needs the role {needed}"),
    }
}

impl AuthFailure {
    /// The HTTP status: who are you (401), you may not (403), try later (503).
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Role { .. }
            | Self::Scope(_)
            | Self::Pool(_)
            | Self::Session
            | Self::Tenant(_)
            | Self::UnknownTenant(_)
            | Self::Claimed(_) => StatusCode::FORBIDDEN,
            Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::UNAUTHORIZED,
        }
    }

    /// The value of `WWW-Authenticate` (RFC 6750): for a 401, and for a token that has not the scope that is needed.
    #[must_use]
    pub fn challenge(&self) -> Option<&'static str> {
        match self {
            Self::Scope(Scope::Execute) => {
                Some(r#"Bearer realm="sandpool", error="insufficient_scope", scope="sessions:execute""#)
            }
            Self::Scope(Scope::Files) => {
                Some(r#"Bearer realm="sandpool", error="insufficient_scope", scope="sessions:files""#)
            }
            Self::Scope(Scope::Admin) => {
                Some(r#"Bearer realm="sandpool", error="insufficient_scope", scope="sessions:admin""#)
            }
            _ if self.status() != StatusCode::UNAUTHORIZED => None,
            Self::Missing | Self::NoPoolKey => Some(r#"Bearer realm="sandpool""#),
            _ => Some(r#"Bearer realm="sandpool", error="invalid_token""#),
        }
    }
}
