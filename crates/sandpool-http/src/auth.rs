//! Who asks, and what they may do: our own tokens, those of trusted issuers, API keys.
//!
//! ```text
//! Authorization: Bearer <JWT | API key>  ->  Auth::verify  ->  Principal  ->  Principal::may
//! ```
//!
//! Nothing is open, not even on loopback: whoever has no token is told what is missing and how to get one.

mod endpoints;
mod failure;
mod keys;
mod pool_keys;
pub(crate) mod previews;
mod scopes;
mod trusted;
mod verified;
mod verify;

#[cfg(test)]
mod tests;

pub use endpoints::routes;
pub use failure::{AuthError, AuthFailure};
pub(crate) use pool_keys::API_KEY;
pub use scopes::Scope;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, Header};
use sandpool_core::ids::{Identifier, PoolName, SessionKey, TenantName};
use sandpool_node::{IdentityToken, Whose};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use keys::Keys;
use pool_keys::PoolKeys;
use trusted::Issuer;

/// The audiences of dynamic-sessions tokens; each is also good with a slash at its end.
pub const AUDIENCES: [&str; 2] = ["https://dynamicsessions.io", "https://acasessions.io"];

/// How long a session's identity is good: more than twice as long as until the next one.
const IDENTITY_TTL: Duration = Duration::from_secs(3600);

/// The longest life of a token of ours.
pub const LONGEST_TTL: Duration = Duration::from_secs(30 * 24 * 3600);

/// How much clocks may differ, in seconds.
const LEEWAY: u64 = 60;

/// How tokens are made and checked.
#[derive(Clone, Debug)]
pub struct AuthConfig {
    /// Where our signing keys are. Made when it is not there.
    pub keys_dir: PathBuf,
    /// Our own issuer name, in each token's `iss`.
    pub issuer: String,
    /// Others whose tokens are good here.
    pub trusted: Vec<TrustedIssuer>,
    /// Fixed keys.
    pub api_keys: Vec<ApiKey>,
    /// Tenants, and which tokens are theirs. All other tokens are the default tenant's.
    pub tenants: Vec<TenantTokens>,
    /// The secret that managed-identity clients send as `X-IDENTITY-HEADER`.
    pub identity_header: String,
    /// Whether the virtual machine's form of managed identity, which has no secret, is answered.
    pub open_metadata: bool,
    /// How long a token is good for unless asked otherwise.
    pub token_ttl: Duration,
}

/// An OIDC issuer whose tokens are good here.
#[derive(Clone, Debug)]
pub struct TrustedIssuer {
    /// Its name, exactly as in the tokens' `iss`.
    pub issuer: String,
    /// Where its keys are; found by OIDC discovery when not given.
    pub jwks_uri: Option<String>,
    /// The audiences that are good; [`AUDIENCES`] when empty.
    pub audiences: Vec<String>,
    /// The claim that holds roles: a text or a list of texts.
    pub roles_claim: String,
    /// What its values mean here, besides Azure's own names and ids.
    pub roles: BTreeMap<String, Role>,
}

/// A fixed key that is as good as a token.
#[derive(Clone, Debug)]
pub struct ApiKey {
    /// Whose it is: the principal's subject.
    pub name: String,
    /// SHA-256 of the key, in hexadecimal: the key itself is nowhere.
    pub sha256_hex: String,
    /// What it may do.
    pub role: Role,
    /// Where; everywhere when `None`.
    pub pools: Option<Vec<String>>,
    /// Whose it is.
    pub tenant: TenantName,
}

/// A tenant, and which tokens are its own, besides those of ours that name it.
#[derive(Clone, Debug)]
pub struct TenantTokens {
    /// Its name.
    pub tenant: TenantName,
    /// Any of these will do.
    pub claims: Vec<TenantClaim>,
}

/// What a token must say to be a tenant's.
#[derive(Clone, Debug)]
pub struct TenantClaim {
    /// Its issuer, exactly.
    pub issuer: String,
    /// A claim and its value; of a list, one of its values. Every token of the issuer when `None`.
    pub claim: Option<(String, String)>,
}

/// What somebody may do; each role may also do what those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Look: pools, sessions, executions.
    Reader,
    /// Run code and use files.
    Executor,
    /// Everything.
    Admin,
}

impl Role {
    /// The word for it in tokens, settings and messages.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::Executor => "executor",
            Self::Admin => "admin",
        }
    }
}

/// Whoever a request comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// Its name at its issuer.
    pub subject: String,
    /// What it may do.
    pub role: Role,
    /// Where; everywhere when `None`.
    pub pools: Option<Vec<PoolName>>,
    /// The one session it may use, when it is bound to one.
    pub session: Option<String>,
    /// What for; all that its role may when `None`.
    pub scopes: Option<Vec<Scope>>,
    /// Whom it belongs to.
    pub tenant: TenantName,
}

/// A token to make.
#[derive(Clone, Debug)]
pub struct Mint {
    /// Whom it is for.
    pub subject: String,
    /// What they may do.
    pub role: Role,
    /// Where; everywhere when `None`.
    pub pools: Option<Vec<PoolName>>,
    /// The one session it may use, if only one.
    pub session: Option<String>,
    /// What for; all that its role may when `None`.
    pub scopes: Option<Vec<Scope>>,
    /// Whom it belongs to.
    pub tenant: TenantName,
    /// How long it is good for; [`AuthConfig::token_ttl`] when `None`.
    pub ttl: Option<Duration>,
}

impl Mint {
    /// A token for somebody of the default tenant, who may do everything of that role, everywhere, for the usual time.
    #[must_use]
    pub fn new(subject: impl Into<String>, role: Role) -> Self {
        let (subject, tenant) = (subject.into(), TenantName::default());
        Self { subject, role, pools: None, session: None, scopes: None, tenant, ttl: None }
    }
}

/// A token that was made.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Minted {
    /// The token.
    pub token: String,
    /// When it ends, in seconds since 1970.
    pub expires_at: u64,
}

/// What our own tokens say.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Claims {
    iss: String,
    sub: String,
    aud: Vec<String>,
    iat: u64,
    nbf: u64,
    exp: u64,
    roles: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pools: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<String>,
}

/// Makes tokens, and checks them.
pub struct Auth {
    config: AuthConfig,
    keys: RwLock<Arc<Keys>>,
    issuers: Vec<Issuer>,
    tokens: verified::Tokens,
    /// Those of the pools' MCP servers; `None` until the first is asked for. The server is the only one that changes them.
    pool_keys: Mutex<Option<PoolKeys>>,
    /// The secret of addresses that lead to ports of sessions.
    previews: Vec<u8>,
    /// When the key file was last read again for an unknown key.
    reread: Mutex<Option<Instant>>,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Auth").field("issuer", &self.config.issuer).finish_non_exhaustive()
    }
}

impl Auth {
    /// Reads the keys, and makes what is missing.
    ///
    /// # Errors
    /// When the directory cannot be read or written, or holds something else.
    pub fn open(config: AuthConfig) -> Result<Self, AuthError> {
        if config.identity_header.trim().is_empty() {
            return Err(AuthError::Settings("the identity header's secret is empty".to_owned()));
        }
        for key in &config.api_keys {
            if hex::decode(&key.sha256_hex).is_ok_and(|bytes| bytes.len() == 32) {
                continue;
            }
            let why = format!("the API key {}: sha256 must be 64 hexadecimal digits", key.name);
            return Err(AuthError::Settings(why));
        }
        let keys = Keys::open(&config.keys_dir).map_err(|error| AuthError::keys(&config.keys_dir, error))?;
        let pool_keys = PoolKeys::open(&config.keys_dir).map_err(|error| AuthError::keys(&config.keys_dir, error))?;
        let previews = previews::secret(&config.keys_dir).map_err(|error| AuthError::keys(&config.keys_dir, error))?;
        let issuers = config.trusted.iter().map(|issuer| Issuer::new(issuer.clone())).collect::<Result<_, _>>()?;
        Ok(Self {
            config,
            keys: RwLock::new(Arc::new(keys)),
            issuers,
            tokens: verified::Tokens::default(),
            pool_keys: Mutex::new(pool_keys),
            previews,
            reread: Mutex::default(),
        })
    }

    /// Makes a token.
    ///
    /// # Errors
    /// When it would be good for longer than [`LONGEST_TTL`], or for a tenant that is not declared.
    pub fn mint(&self, request: &Mint) -> Result<Minted, AuthError> {
        let ttl = request.ttl.unwrap_or(self.config.token_ttl);
        if ttl > LONGEST_TTL || ttl.as_secs() == 0 {
            return Err(AuthError::Ttl(ttl));
        }
        let is_declared = self.config.tenants.iter().any(|known| known.tenant == request.tenant);
        if !request.tenant.is_default() && !is_declared {
            return Err(AuthError::Settings(format!("there is no tenant {} in the settings", request.tenant)));
        }
        let now = now();
        let expires_at = now + ttl.as_secs();
        let claims = Claims {
            iss: self.config.issuer.clone(),
            sub: request.subject.clone(),
            aud: AUDIENCES.map(str::to_owned).to_vec(),
            iat: now,
            nbf: now,
            exp: expires_at,
            roles: vec![request.role.word().to_owned()],
            pools: request.pools.as_ref().map(|pools| pools.iter().map(ToString::to_string).collect()),
            session: request.session.clone(),
            scope: request
                .scopes
                .as_ref()
                .map(|scopes| scopes.iter().map(|scope| scope.word()).collect::<Vec<_>>().join(" ")),
            tenant: (!request.tenant.is_default()).then(|| request.tenant.to_string()),
        };
        let keys = self.keys();
        let key = keys.newest();
        let header = Header { kid: Some(key.id.clone()), ..Header::new(Algorithm::ES256) };
        let token = jsonwebtoken::encode(&header, &claims, &key.encoding).map_err(AuthError::signing)?;
        Ok(Minted { token, expires_at })
    }

    /// A token with which a session's program says who it is, to somebody else: it has no role, and is good for nothing here.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn identify(&self, pool: &PoolName, key: &SessionKey, audience: &str) -> Result<Minted, AuthError> {
        let (now, tenant) = (now(), &key.tenant);
        let expires_at = now + IDENTITY_TTL.as_secs();
        let claims = json!({
            "iss": self.config.issuer,
            "sub": format!("tenant:{tenant}:pool:{pool}:session:{}", key.identifier),
            "aud": audience,
            "iat": now, "nbf": now, "exp": expires_at,
            "tenant": tenant.as_str(), "pool": pool.as_str(), "session": key.identifier.as_str(),
            "idtyp": "session",
        });
        let keys = self.keys();
        let newest = keys.newest();
        let header = Header { kid: Some(newest.id.clone()), ..Header::new(Algorithm::ES256) };
        let token = jsonwebtoken::encode(&header, &claims, &newest.encoding).map_err(AuthError::signing)?;
        Ok(Minted { token, expires_at })
    }

    /// The public halves of our keys, as RFC 7517 writes them.
    #[must_use]
    pub fn jwks(&self) -> Value {
        self.keys().jwks()
    }

    /// Others who give tokens that are good here.
    pub(crate) fn trusted_issuers(&self) -> Vec<&str> {
        self.config.trusted.iter().map(|trusted| trusted.issuer.as_str()).collect()
    }

    /// Our own issuer name.
    #[must_use]
    pub fn issuer(&self) -> &str {
        &self.config.issuer
    }

    /// Makes a new signing key. Tokens of the keys before it stay good until they expire.
    ///
    /// # Errors
    /// When the keys cannot be read or written.
    pub fn rotate(&self) -> Result<(), AuthError> {
        let keys =
            Keys::rotate(&self.config.keys_dir).map_err(|error| AuthError::keys(&self.config.keys_dir, error))?;
        self.set_keys(keys);
        Ok(())
    }

    fn lock_pool_keys(&self) -> MutexGuard<'_, Option<PoolKeys>> {
        self.pool_keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keys(&self) -> Arc<Keys> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn set_keys(&self, keys: Keys) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
    }
}

impl sandpool_node::Identities for Auth {
    fn tokens(&self, pool: &PoolName, key: &SessionKey, audiences: &[String]) -> Vec<IdentityToken> {
        let made = audiences.iter().filter_map(|audience| match self.identify(pool, key, audience) {
            Ok(Minted { token, expires_at }) => {
                Some(IdentityToken { audience: audience.clone(), token, expires_at, client_id: pool.to_string() })
            }
            Err(error) => {
                tracing::error!(%pool, "a session's identity cannot be signed: {error}");
                None
            }
        });
        made.collect()
    }
}

impl Principal {
    /// Whether it may act as `role` in `pool`, on the session `identifier`.
    ///
    /// # Errors
    /// What it lacks.
    pub fn may(&self, role: Role, pool: &PoolName, identifier: Option<&Identifier>) -> Result<(), AuthFailure> {
        if self.role < role {
            return Err(AuthFailure::Role { has: Some(self.role), needs: role });
        }
        if self.pools.as_ref().is_some_and(|pools| !pools.contains(pool)) {
            return Err(AuthFailure::Pool(pool.to_string()));
        }
        match (&self.session, identifier) {
            (Some(bound), Some(identifier)) if bound == identifier.as_str() => Ok(()),
            (Some(_), _) => Err(AuthFailure::Session),
            (None, _) => Ok(()),
        }
    }

    /// It may look into every tenant's room. The administrator of a tenant is one there only.
    #[must_use]
    pub fn is_operator(&self) -> bool {
        self.role == Role::Admin && self.tenant.is_default() && self.allows(Scope::Admin).is_ok()
    }

    /// In whose room its request is: its own, or the one that an operator names.
    ///
    /// # Errors
    /// It names one that is not for it; whether there is such a tenant makes no difference.
    pub fn room(&self, named: Option<&str>) -> Result<TenantName, AuthFailure> {
        match named {
            None => Ok(self.tenant.clone()),
            Some(name) if name == self.tenant.as_str() => Ok(self.tenant.clone()),
            Some(name) if self.is_operator() => TenantName::parse(name).map_err(|error| AuthFailure::Tenant(error.0)),
            Some(name) => Err(AuthFailure::Tenant(name.chars().take(80).collect())),
        }
    }

    /// Whose sessions a list is about, when its request is in this room.
    #[must_use]
    pub fn whose<'a>(&self, named: Option<&str>, room: &'a TenantName) -> Whose<'a> {
        if self.is_operator() && named.is_none() { Whose::Everybody } else { Whose::Tenant(room) }
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
