//! The keys of trusted issuers: read over HTTP when first needed, kept, and read again when an unknown one turns up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jsonwebtoken::jwk::{Jwk, JwkSet};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::{AuthError, AuthFailure, SignIn, TrustedIssuer};

/// Keys are read again after this long.
const FRESH: Duration = Duration::from_secs(3600);

/// For an unknown key, and after a failure, they are read again no sooner than this: whoever invents key ids must not
/// make us ask the issuer each time.
const PAUSE: Duration = Duration::from_secs(10);

/// The longest wait for an issuer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The most an issuer may answer, in bytes.
const MAX_ANSWER: usize = 512 * 1024;

pub(super) struct Issuer {
    pub(super) settings: TrustedIssuer,
    client: reqwest::Client,
    known: Mutex<Known>,
    /// Where people sign in, as it was found, and when.
    door: Mutex<Option<(Instant, Option<Door>)>>,
}

/// Where people sign in, as their browsers are told.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Door {
    name: String,
    issuer: String,
    client_id: String,
    scope: String,
    token: &'static str,
    authorization_endpoint: String,
    token_endpoint: String,
    /// The origin of the second, which the console must be allowed to reach.
    #[serde(skip)]
    pub(crate) origin: String,
}

#[derive(Default)]
struct Known {
    keys: Arc<Vec<Jwk>>,
    read: Option<Instant>,
    failed: Option<(Instant, String)>,
}

#[derive(Deserialize)]
struct Discovery {
    jwks_uri: String,
}

/// What else a discovery document says (OpenID Connect Discovery 1.0, section 3).
#[derive(Deserialize)]
struct Doors {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
}

impl Issuer {
    pub(super) fn new(settings: TrustedIssuer) -> Result<Self, AuthError> {
        let client = reqwest::Client::builder()
            .timeout(PATIENCE)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| AuthError::Settings(format!("the issuer {}: {error}", settings.issuer)))?;
        Ok(Self { settings, client, known: Mutex::default(), door: Mutex::default() })
    }

    /// Where people sign in here, if they do and the issuer answers; found again when it is an hour old, or was not found a while ago.
    pub(super) async fn door(&self) -> Option<Door> {
        let sign_in = self.settings.sign_in.as_ref()?;
        let mut door = self.door.lock().await;
        let now = Instant::now();
        let is_fresh = |(at, found): &(Instant, Option<Door>)| {
            now.duration_since(*at) < if found.is_some() { FRESH } else { PAUSE }
        };
        if let Some(known) = door.as_ref().filter(|known| is_fresh(known)) {
            return known.1.clone();
        }
        let found = match self.find_door(sign_in).await {
            Ok(found) => Some(found),
            Err(why) => {
                tracing::warn!(issuer = self.settings.issuer, "nobody can sign in there: {why}");
                // What was good an hour ago is better than none.
                door.take().and_then(|(_, before)| before)
            }
        };
        *door = Some((now, found.clone()));
        found
    }

    async fn find_door(&self, sign_in: &SignIn) -> Result<Door, String> {
        let text = self.get(&self.discovery()).await?;
        let said: Doors = serde_json::from_slice(&text).map_err(|error| format!("discovery: {error}"))?;
        // OpenID Connect Discovery 1.0, section 4.3.
        if said.issuer != self.settings.issuer {
            return Err(format!("discovery: it is of another issuer, {:?}", said.issuer));
        }
        let parsed = |address: &str| match reqwest::Url::parse(address) {
            Ok(url) if matches!(url.scheme(), "https" | "http") => Ok(url),
            _ => Err(format!("discovery: {address:?} is not an address")),
        };
        parsed(&said.authorization_endpoint)?;
        let origin = parsed(&said.token_endpoint)?.origin().ascii_serialization();
        Ok(Door {
            name: sign_in.name.clone(),
            issuer: said.issuer,
            client_id: sign_in.client_id.clone(),
            scope: sign_in.scope.clone(),
            token: sign_in.token,
            authorization_endpoint: said.authorization_endpoint,
            token_endpoint: said.token_endpoint,
            origin,
        })
    }

    fn discovery(&self) -> String {
        format!("{}/.well-known/openid-configuration", self.settings.issuer.trim_end_matches('/'))
    }

    /// The key with this id, or the only one for a token that names none.
    pub(super) async fn key(&self, id: Option<&str>) -> Result<Jwk, AuthFailure> {
        let mut known = self.known.lock().await;
        let now = Instant::now();
        let age = known.read.map(|read| now.duration_since(read));
        let found = pick(&known.keys, id);
        if let (Some(found), Some(age)) = (&found, age)
            && age < FRESH
        {
            return Ok(found.clone());
        }
        if age.is_some_and(|age| age < PAUSE) {
            return Err(AuthFailure::UnknownKey);
        }
        if let Some((at, why)) = &known.failed
            && now.duration_since(*at) < PAUSE
        {
            return found.ok_or_else(|| AuthFailure::Unavailable(why.clone()));
        }
        match self.read().await {
            Ok(keys) => {
                *known = Known { keys: Arc::new(keys), read: Some(now), failed: None };
                pick(&known.keys, id).ok_or(AuthFailure::UnknownKey)
            }
            Err(why) => {
                tracing::warn!(issuer = self.settings.issuer, "keys cannot be read: {why}");
                known.failed = Some((now, why.clone()));
                // Keys that were good an hour ago are better than nobody being let in.
                found.ok_or(AuthFailure::Unavailable(why))
            }
        }
    }

    async fn read(&self) -> Result<Vec<Jwk>, String> {
        let address = match &self.settings.jwks_uri {
            Some(given) => given.clone(),
            None => {
                let text = self.get(&self.discovery()).await?;
                serde_json::from_slice::<Discovery>(&text).map_err(|error| format!("discovery: {error}"))?.jwks_uri
            }
        };
        let text = self.get(&address).await?;
        let set: JwkSet = serde_json::from_slice(&text).map_err(|error| format!("{address}: {error}"))?;
        Ok(set.keys)
    }

    async fn get(&self, address: &str) -> Result<Vec<u8>, String> {
        let failed = |error: reqwest::Error| format!("{address}: {error}");
        let mut response = self.client.get(address).send().await.map_err(failed)?;
        if !response.status().is_success() {
            return Err(format!("{address}: {}", response.status()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_ANSWER {
                return Err(format!("{address}: the answer is over {MAX_ANSWER} bytes"));
            }
        }
        Ok(body)
    }
}

fn pick(keys: &[Jwk], id: Option<&str>) -> Option<Jwk> {
    match (id, keys) {
        (Some(id), keys) => keys.iter().find(|key| key.common.key_id.as_deref() == Some(id)).cloned(),
        (None, [only]) => Some(only.clone()),
        (None, _) => None,
    }
}
