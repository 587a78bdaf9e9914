//! From a request's headers to a principal.

use std::time::Instant;

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation};
use sandpool_core::ids::{PoolName, TenantName};
use serde::Deserialize;
use serde_json::Value;
use subtle::ConstantTimeEq;

use super::keys::Keys;
use super::scopes;
use super::verified::{self, Signer, Verified};
use super::{AUDIENCES, Auth, AuthFailure, LEEWAY, Principal, Role, TenantClaim, TenantTokens, now};

/// The longest token that is looked at, in bytes. Entra's with many groups are about 4 KiB.
pub(super) const MAX_TOKEN: usize = 16 * 1024;

/// Azure's own names and ids of roles, and ours.
const ROLES: [(&str, Role); 10] = [
    ("reader", Role::Reader),
    ("executor", Role::Executor),
    ("admin", Role::Admin),
    ("Azure ContainerApps Session Executor", Role::Executor),
    ("0fb8eba5-a2bb-4abe-b1c1-49dfad359bb0", Role::Executor),
    ("Azure ContainerApps Session Creator", Role::Executor),
    ("Contributor", Role::Admin),
    ("b24988ac-6180-42a0-ab88-20f7382dd24c", Role::Admin),
    ("Reader", Role::Reader),
    ("acdd72a7-3385-48ef-bd42-f606fba81ae7", Role::Reader),
];

/// What is read of a token before its signature has been checked: who should have signed it.
#[derive(Deserialize)]
struct Unproved {
    iss: Option<String>,
}

impl Auth {
    /// Finds out who asks.
    ///
    /// # Errors
    /// What is missing or wrong.
    pub async fn verify(&self, headers: &HeaderMap) -> Result<Principal, AuthFailure> {
        let token = bearer(headers)?;
        let digest = verified::digest(token);
        if let Some(principal) = self.api_key(&digest) {
            return Ok(principal);
        }
        if let Some(known) = self.tokens.get(&digest, now()) {
            if self.is_still_good(&known.signer).await? {
                return Ok(known.principal.clone());
            }
            self.tokens.forget(&digest);
        }
        let (principal, claims, signer) = self.check_token(token).await?;
        if let Some(verified) = Verified::new(signer, &principal, &claims) {
            self.tokens.add(digest, verified);
        }
        Ok(principal)
    }

    /// Whether the key that signed a token is still one of its issuer's.
    async fn is_still_good(&self, signer: &Signer) -> Result<bool, AuthFailure> {
        match signer {
            Signer::Own(id) => Ok(self.keys().all.iter().any(|key| key.id == *id)),
            Signer::Trusted(number, id, key) => {
                let Some(trusted) = self.issuers.get(*number) else { return Ok(false) };
                Ok(trusted.key(id.as_deref()).await? == **key)
            }
        }
    }

    /// Checks a token's signature and all else: who it is, what it says, and whose key signed it.
    async fn check_token(&self, token: &str) -> Result<(Principal, Value, Signer), AuthFailure> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| AuthFailure::Malformed)?;
        let unproved =
            jsonwebtoken::dangerous::insecure_decode::<Unproved>(token).map_err(|_| AuthFailure::Malformed)?.claims;
        let issuer = unproved.iss.unwrap_or_default();
        if issuer == self.config.issuer {
            return self.own(token, &header);
        }
        let number = self.issuers.iter().position(|trusted| trusted.settings.issuer == issuer);
        let Some((number, trusted)) = number.and_then(|number| Some((number, self.issuers.get(number)?))) else {
            return Err(AuthFailure::Issuer(shortened(&issuer)));
        };
        let key = trusted.key(header.kid.as_deref()).await?;
        let decoding = DecodingKey::from_jwk(&key).map_err(|_| AuthFailure::UnknownKey)?;
        let allowed = algorithms(&key);
        if !allowed.contains(&header.alg) {
            return Err(AuthFailure::Signature);
        }
        let audiences = match trusted.settings.audiences.as_slice() {
            [] => AUDIENCES.map(str::to_owned).to_vec(),
            given => given.to_vec(),
        };
        let claims = check(token, &decoding, header.alg, &issuer, &audiences)?;
        let said = texts(claims.get(&trusted.settings.roles_claim));
        let roles = said.iter().filter_map(|word| {
            let own = trusted.settings.roles.get(*word).copied();
            own.or_else(|| known_role(word))
        });
        let scopes = scopes::named(&claims);
        let role = roles.max().or_else(|| scopes::role(scopes.as_deref()));
        let role = role.ok_or(AuthFailure::Role { has: None, needs: Role::Executor })?;
        let tenant = self.tenant(&issuer, &claims)?;
        let principal = Principal { subject: subject(&claims), role, pools: None, session: None, scopes, tenant };
        Ok((principal, claims, Signer::Trusted(number, header.kid, Box::new(key))))
    }

    pub(super) fn api_key(&self, digest: &verified::Digest) -> Option<Principal> {
        if self.config.api_keys.is_empty() {
            return None;
        }
        let digest = hex::encode(digest);
        // All of them are compared, in constant time: how long it takes tells nothing.
        let mut found = None;
        for key in &self.config.api_keys {
            if bool::from(key.sha256_hex.to_ascii_lowercase().as_bytes().ct_eq(digest.as_bytes())) {
                found = Some(key);
            }
        }
        let key = found?;
        let pools = key.pools.as_ref();
        Some(Principal {
            subject: key.name.clone(),
            role: key.role,
            pools: pools.map(|names| names.iter().filter_map(|name| PoolName::parse(name).ok()).collect()),
            session: None,
            scopes: None,
            tenant: key.tenant.clone(),
        })
    }

    fn own(&self, token: &str, header: &Header) -> Result<(Principal, Value, Signer), AuthFailure> {
        let id = header.kid.as_deref().ok_or(AuthFailure::UnknownKey)?;
        let mut keys = self.keys();
        if !keys.all.iter().any(|key| key.id == id) && self.may_reread() {
            // Another process may have rotated them.
            let reread = Keys::reread(&self.config.keys_dir);
            self.set_keys(reread.map_err(|error| AuthFailure::Unavailable(error.to_string()))?);
            keys = self.keys();
        }
        let key = keys.all.iter().find(|key| key.id == id).ok_or(AuthFailure::UnknownKey)?;
        let audiences = AUDIENCES.map(str::to_owned);
        let claims = check(token, &key.decoding, Algorithm::ES256, &self.config.issuer, &audiences)?;
        let role = texts(claims.get("roles")).into_iter().filter_map(known_role).max();
        let pools = match claims.get("pools") {
            None | Some(Value::Null) => None,
            some => Some(texts(some).into_iter().filter_map(|name| PoolName::parse(name).ok()).collect()),
        };
        let principal = Principal {
            subject: subject(&claims),
            role: role.ok_or(AuthFailure::Role { has: None, needs: Role::Executor })?,
            pools,
            session: claims.get("session").and_then(Value::as_str).map(str::to_owned),
            scopes: scopes::named(&claims),
            tenant: match claims.get("tenant").and_then(Value::as_str) {
                Some(name) => self.declared(name)?,
                None => self.tenant(&self.config.issuer, &claims)?,
            },
        };
        Ok((principal, claims, Signer::Own(key.id.clone())))
    }

    /// The tenant that one of our own tokens names.
    fn declared(&self, name: &str) -> Result<TenantName, AuthFailure> {
        let tenant = self.config.tenants.iter().map(|known| &known.tenant).find(|tenant| tenant.as_str() == name);
        tenant.cloned().ok_or_else(|| AuthFailure::UnknownTenant(shortened(name)))
    }

    /// The one tenant that claims a token, else the default one. Where two claim it nobody knows whose sessions it
    /// should see.
    fn tenant(&self, issuer: &str, claims: &Value) -> Result<TenantName, AuthFailure> {
        let claim = |known: &&TenantTokens| known.claims.iter().any(|wanted| wanted.fits(issuer, claims));
        let claiming: Vec<_> = self.config.tenants.iter().filter(claim).map(|known| &known.tenant).collect();
        match *claiming {
            [] => Ok(TenantName::default()),
            [tenant] => Ok(tenant.clone()),
            _ => {
                let names: Vec<_> = claiming.iter().map(|tenant| tenant.as_str()).collect();
                Err(AuthFailure::Claimed(names.join(", ")))
            }
        }
    }

    /// Whether the key file may be read again: once a second, however many tokens of unknown keys come.
    fn may_reread(&self) -> bool {
        let mut last = self.reread.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let now = Instant::now();
        let may = last.is_none_or(|last| now.duration_since(last).as_secs() >= 1);
        if may {
            *last = Some(now);
        }
        may
    }
}

impl TenantClaim {
    fn fits(&self, issuer: &str, claims: &Value) -> bool {
        let says = |(name, value): &(String, String)| texts(claims.get(name)).contains(&value.as_str());
        self.issuer == issuer && self.claim.as_ref().is_none_or(says)
    }
}

fn bearer(headers: &HeaderMap) -> Result<&str, AuthFailure> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next().ok_or(AuthFailure::Missing)?;
    if values.next().is_some() {
        return Err(AuthFailure::Malformed);
    }
    let text = value.to_str().map_err(|_| AuthFailure::Malformed)?;
    let (scheme, token) = text.trim().split_once(' ').ok_or(AuthFailure::Malformed)?;
    let token = token.trim();
    if scheme.eq_ignore_ascii_case("bearer") && (1..=MAX_TOKEN).contains(&token.len()) {
        Ok(token)
    } else {
        Err(AuthFailure::Malformed)
    }
}

/// Checks signature, times, issuer and audience; answers the claims.
fn check(
    token: &str,
    key: &DecodingKey,
    algorithm: Algorithm,
    issuer: &str,
    audiences: &[String],
) -> Result<Value, AuthFailure> {
    let mut validation = Validation::new(algorithm);
    validation.leeway = LEEWAY;
    validation.validate_nbf = true;
    validation.set_required_spec_claims(&["exp", "iss", "aud"]);
    validation.set_issuer(&[issuer]);
    let with_slash = audiences.iter().map(|audience| format!("{}/", audience.trim_end_matches('/')));
    let good: Vec<String> = audiences.iter().cloned().chain(with_slash).collect();
    validation.set_audience(&good);
    match jsonwebtoken::decode::<Value>(token, key, &validation) {
        Ok(data) => Ok(data.claims),
        Err(error) => Err(match error.kind() {
            ErrorKind::ExpiredSignature => AuthFailure::Expired,
            ErrorKind::ImmatureSignature => AuthFailure::NotYet,
            ErrorKind::InvalidAudience => {
                AuthFailure::Audience { found: audience(token), expected: audiences.join(", ") }
            }
            ErrorKind::InvalidSignature | ErrorKind::InvalidAlgorithm => AuthFailure::Signature,
            ErrorKind::InvalidIssuer => AuthFailure::Issuer(shortened(issuer)),
            _ => AuthFailure::Malformed,
        }),
    }
}

/// The audience of a token whose signature was good: for the message.
fn audience(token: &str) -> String {
    let claims = jsonwebtoken::dangerous::insecure_decode::<Value>(token).map(|data| data.claims);
    let found = claims.ok().and_then(|claims| claims.get("aud").map(ToString::to_string));
    found.map_or("missing".to_owned(), |found| shortened(&found))
}

/// The algorithms that a key of this kind can have signed with. Never a symmetric one: the key is public.
fn algorithms(key: &jsonwebtoken::jwk::Jwk) -> &'static [Algorithm] {
    use jsonwebtoken::jwk::AlgorithmParameters;
    match key.algorithm {
        AlgorithmParameters::RSA(_) => &[
            Algorithm::RS256,
            Algorithm::RS384,
            Algorithm::RS512,
            Algorithm::PS256,
            Algorithm::PS384,
            Algorithm::PS512,
        ],
        AlgorithmParameters::EllipticCurve(_) => &[Algorithm::ES256, Algorithm::ES384],
        AlgorithmParameters::OctetKeyPair(_) => &[Algorithm::EdDSA],
        _ => &[],
    }
}

fn known_role(word: &str) -> Option<Role> {
    ROLES.iter().find(|(name, _)| *name == word).map(|(_, role)| *role)
}

/// A text or a list of texts.
pub(super) fn texts(value: Option<&Value>) -> Vec<&str> {
    match value {
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

fn subject(claims: &Value) -> String {
    let named = ["sub", "oid", "appid"].iter().find_map(|name| claims.get(name).and_then(Value::as_str));
    shortened(named.unwrap_or("unknown"))
}

/// Something a client said, short enough for a message.
fn shortened(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(120).collect()
}
