//! The keys of pools' MCP servers: one for each pool, good for that pool only.
//!
//! No key is kept. A pool's key is an HMAC of its name and its number under a secret, so that whoever may read the secret can
//! say it again, as the service does whose wire this is, and a new number makes a new key. The secret is of the same kind
//! as the signing keys, and lies beside them.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, HeaderName};
use jsonwebtoken::{Algorithm, EncodingKey};
use sandpool_core::ids::{PoolName, TenantName};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use super::verify::MAX_TOKEN;
use super::{Auth, AuthError, AuthFailure, Principal, Role, Scope, keys, now, verified};

/// The header that carries it.
pub(crate) const API_KEY: HeaderName = HeaderName::from_static("x-ms-apikey");

/// How long the key before the newest is still good, in seconds: what the service gives, too.
const GRACE: u64 = 300;

const FILE: &str = "mcp.json";

/// What is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct PoolKeys {
    /// 32 random bytes, in hexadecimal.
    secret: String,
    pools: BTreeMap<String, Numbered>,
}

/// A pool's newest key.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Numbered {
    number: u64,
    /// Seconds since 1970.
    rotated_at: u64,
}

impl PoolKeys {
    /// Reads them; `None` when no key was ever asked for.
    pub(super) fn open(directory: &Path) -> io::Result<Option<Self>> {
        match keys::read_file(directory, FILE) {
            Ok(text) => serde_json::from_str(&text).map(Some).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn new() -> io::Result<Self> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(io::Error::other)?;
        Ok(Self { secret: hex::encode(secret), pools: BTreeMap::new() })
    }

    fn key(&self, pool: &str, number: u64) -> io::Result<String> {
        let message = format!("mcp {pool} {number}");
        let secret = EncodingKey::from_secret(self.secret.as_bytes());
        jsonwebtoken::crypto::sign(message.as_bytes(), &secret, Algorithm::HS256).map_err(io::Error::other)
    }

    /// The keys of a pool that are good at `now`.
    fn good(&self, pool: &str, now: u64) -> io::Result<Vec<String>> {
        let Some(newest) = self.pools.get(pool) else { return Ok(Vec::new()) };
        let mut good = vec![self.key(pool, newest.number)?];
        if newest.number > 1 && now < newest.rotated_at.saturating_add(GRACE) {
            good.push(self.key(pool, newest.number - 1)?);
        }
        Ok(good)
    }
}

impl Auth {
    /// The key of a pool's MCP server; made when there is none yet, or when it is to be a new one. The one before it stays
    /// good for five minutes.
    ///
    /// # Errors
    /// When the keys cannot be written.
    pub(crate) fn pool_key(&self, pool: &PoolName, rotate: bool) -> Result<String, AuthError> {
        let failed = |error| AuthError::keys(&self.config.keys_dir, error);
        let mut kept = self.lock_pool_keys();
        let mut next = match kept.as_ref() {
            Some(keys) => keys.clone(),
            None => PoolKeys::new().map_err(failed)?,
        };
        let newest = next.pools.entry(pool.to_string()).or_default();
        let is_new = rotate || newest.number == 0;
        if is_new {
            *newest = Numbered { number: newest.number + 1, rotated_at: now() };
        }
        let number = newest.number;
        if is_new {
            let text = serde_json::to_vec(&next).map_err(|error| failed(error.into()))?;
            keys::write_file(&self.config.keys_dir, FILE, &text).map_err(failed)?;
        }
        let key = next.key(pool.as_str(), number).map_err(failed)?;
        *kept = Some(next);
        Ok(key)
    }

    /// A pool is gone: its keys are good for no other of its name. Without a key there is nothing to forget.
    ///
    /// # Errors
    /// When the keys cannot be written.
    pub(crate) fn forget_pool_key(&self, pool: &PoolName) -> Result<(), AuthError> {
        let failed = |error| AuthError::keys(&self.config.keys_dir, error);
        let mut kept = self.lock_pool_keys();
        let Some(mut next) = kept.clone() else { return Ok(()) };
        let Some(newest) = next.pools.get_mut(pool.as_str()) else { return Ok(()) };
        // The next one has a number of its own, and the one before it is not even good for a while.
        *newest = Numbered { number: newest.number + 1, rotated_at: 0 };
        let text = serde_json::to_vec(&next).map_err(|error| failed(error.into()))?;
        keys::write_file(&self.config.keys_dir, FILE, &text).map_err(failed)?;
        *kept = Some(next);
        Ok(())
    }

    /// Finds out who asks a pool's MCP server: by the pool's own key, by an API key of the settings in the same header, or
    /// by a token as everywhere.
    ///
    /// # Errors
    /// What is missing or wrong, or that it may not use this pool.
    pub(crate) async fn verify_for_pool(&self, headers: &HeaderMap, pool: &PoolName) -> Result<Principal, AuthFailure> {
        let principal = match headers.get(API_KEY) {
            None if headers.contains_key(AUTHORIZATION) => self.verify(headers).await?,
            None => return Err(AuthFailure::NoPoolKey),
            Some(key) => {
                let key = key.to_str().map_err(|_| AuthFailure::WrongPoolKey)?.trim();
                if key.len() > MAX_TOKEN {
                    return Err(AuthFailure::WrongPoolKey);
                }
                match self.api_key(&verified::digest(key)) {
                    Some(principal) => principal,
                    None if self.is_pool_key(pool, key)? => Principal {
                        subject: "mcp-key".to_owned(),
                        role: Role::Executor,
                        pools: Some(vec![pool.clone()]),
                        session: None,
                        scopes: None,
                        tenant: TenantName::default(),
                    },
                    None => return Err(AuthFailure::WrongPoolKey),
                }
            }
        };
        // A token that is bound to a session is asked for that with every call.
        let own = principal.session.as_deref().and_then(|own| sandpool_core::ids::Identifier::parse(own).ok());
        principal.may(Role::Executor, pool, own.as_ref())?;
        principal.allows(Scope::Execute)?;
        Ok(principal)
    }

    fn is_pool_key(&self, pool: &PoolName, key: &str) -> Result<bool, AuthFailure> {
        let kept = self.lock_pool_keys();
        let Some(keys) = kept.as_ref() else { return Ok(false) };
        let good = keys.good(pool.as_str(), now()).map_err(|error| AuthFailure::Unavailable(error.to_string()))?;
        // All of them are compared, in constant time.
        Ok(good.iter().fold(false, |found, good| found | bool::from(good.as_bytes().ct_eq(key.as_bytes()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_its_pools_own_and_the_one_before_is_good_for_five_minutes() {
        let mut keys = PoolKeys::new().unwrap();
        assert!(keys.good("python", 1_000).unwrap().is_empty(), "nobody has asked for one");
        keys.pools.insert("python".to_owned(), Numbered { number: 1, rotated_at: 1_000 });
        keys.pools.insert("shell".to_owned(), Numbered { number: 1, rotated_at: 1_000 });
        let first = keys.good("python", 1_001).unwrap();
        assert_eq!(first.len(), 1);
        assert_ne!(first, keys.good("shell", 1_001).unwrap());
        keys.pools.insert("python".to_owned(), Numbered { number: 2, rotated_at: 5_000 });
        let both = keys.good("python", 5_000 + GRACE - 1).unwrap();
        assert_eq!((both.len(), &both[1]), (2, &first[0]));
        assert_eq!(keys.good("python", 5_000 + GRACE).unwrap(), both[..1]);
    }
}
