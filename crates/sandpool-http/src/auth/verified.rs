//! Tokens whose signature was found good: they come with every request, and a signature costs more than the rest of it.
//!
//! What is remembered is only that these bytes were signed with that key, and what they say. Their times are looked at
//! each time, and so is the key: one that was withdrawn is good for nothing, as if the token had never been seen.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use jsonwebtoken::jwk::Jwk;
use serde_json::Value;
use sha2::Digest as _;
use sha2::Sha256;

use super::{LEEWAY, Principal};

/// Tokens that are remembered. When there are more, all are forgotten: they are checked again as they come.
const MOST: usize = 1_024;

/// SHA-256 of a token: the token itself is kept nowhere.
pub(super) type Digest = [u8; 32];

pub(super) fn digest(token: &str) -> Digest {
    Sha256::digest(token.as_bytes()).into()
}

/// A token that was good.
#[derive(Debug)]
pub(super) struct Verified {
    pub(super) signer: Signer,
    pub(super) principal: Principal,
    /// Seconds since 1970; the token is good from here, and to there, give or take [`LEEWAY`].
    pub(super) not_before: u64,
    pub(super) expires: u64,
}

/// Whose key signed it.
#[derive(Debug)]
pub(super) enum Signer {
    /// Ours, with this id.
    Own(String),
    /// That of the trusted issuer with this number, and the id that the token names.
    Trusted(usize, Option<String>, Box<Jwk>),
}

impl Verified {
    /// `None` when its claims do not say in whole seconds until when it is good.
    pub(super) fn new(signer: Signer, principal: &Principal, claims: &Value) -> Option<Self> {
        let expires = claims.get("exp")?.as_u64()?;
        let not_before = match claims.get("nbf") {
            None => 0,
            Some(value) => value.as_u64()?,
        };
        Some(Self { signer, principal: principal.clone(), not_before, expires })
    }

    fn is_good(&self, now: u64) -> bool {
        self.expires >= now.saturating_sub(LEEWAY) && self.not_before <= now.saturating_add(LEEWAY)
    }
}

/// The tokens that were good.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    known: RwLock<HashMap<Digest, Arc<Verified>>>,
}

impl Tokens {
    /// The token, if it was good and its time is not over at `now`. Whether its key is still good is for the caller to see.
    pub(super) fn get(&self, digest: &Digest, now: u64) -> Option<Arc<Verified>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(digest).filter(|verified| verified.is_good(now)).cloned()
    }

    pub(super) fn add(&self, digest: Digest, verified: Verified) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(digest, Arc::new(verified));
    }

    pub(super) fn forget(&self, digest: &Digest) {
        self.known.write().unwrap_or_else(PoisonError::into_inner).remove(digest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Role;
    use serde_json::json;

    fn verified(claims: &Value) -> Option<Verified> {
        let principal = Principal {
            subject: "me".to_owned(),
            role: Role::Reader,
            pools: None,
            session: None,
            scopes: None,
            tenant: sandpool_core::ids::TenantName::default(),
        };
        Verified::new(Signer::Own("key".to_owned()), &principal, claims)
    }

    #[test]
    fn a_token_is_good_between_its_times_only() {
        let tokens = Tokens::default();
        tokens.add([1; 32], verified(&json!({ "nbf": 10_000, "exp": 20_000 })).unwrap());
        let is_good = |now: u64| tokens.get(&[1; 32], now).is_some();
        assert!(is_good(10_000 - LEEWAY) && is_good(20_000 + LEEWAY));
        assert!(!is_good(10_000 - LEEWAY - 1) && !is_good(20_000 + LEEWAY + 1));
        assert!(tokens.get(&[2; 32], 15_000).is_none());
        tokens.forget(&[1; 32]);
        assert!(!is_good(15_000));
    }

    #[test]
    fn without_whole_seconds_nothing_is_remembered() {
        for claims in [json!({}), json!({ "exp": 1.5 }), json!({ "exp": "1" }), json!({ "exp": 1, "nbf": 0.5 })] {
            assert!(verified(&claims).is_none(), "{claims}");
        }
    }

    #[test]
    fn no_more_than_a_bounded_number_is_remembered() {
        let tokens = Tokens::default();
        for number in 0..MOST * 2 + 1 {
            let mut digest = [0; 32];
            digest[..8].copy_from_slice(&number.to_le_bytes());
            tokens.add(digest, verified(&json!({ "exp": 20_000 })).unwrap());
        }
        assert_eq!(tokens.known.read().unwrap().len(), 1);
    }
}
