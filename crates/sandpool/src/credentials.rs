//! Where the command line's token comes from, and what is made from the server's keys without asking the server.
//!
//! Whoever may read `<home>/keys` (root, and the server) is the issuer: a token is made here and now. What root writes
//! there is given to the server at once, which must read it and is not root.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use sandpool_core::ids::{PoolName, TenantName};
use sandpool_http::auth::{
    ApiKey, Auth, AuthConfig, Mint, Minted, Role, SignIn, TenantClaim, TenantTokens, TrustedIssuer,
};

use crate::args::{RoleWord, Token};
use crate::client::{Context, random_hex};
use crate::failure::Failure;
use crate::home::{self, Home};
use crate::server::Plan;
use crate::settings::{ApiKeySettings, RoleName, Settings, TokenName};

/// How long a token is good for unless asked otherwise.
const TOKEN_TTL: Duration = Duration::from_secs(3_600);

/// How long the command line's own token is good for. It is made for one command; a long execution is followed with the
/// token it was started with, and streams are not cut when it expires.
const OWN_TTL: Duration = Duration::from_secs(300);

/// The issuer in our own tokens. It is a name, not an address: keys are found at the server that checks them.
pub(crate) const ISSUER: &str = "https://sandpool.local";

/// The token for our own requests: `SANDPOOL_TOKEN` if it is set; else one that is made here and now, by whoever may
/// read the server's keys.
pub(crate) fn client_token(context: &Context) -> Result<String, Failure> {
    if let Some(token) = std::env::var("SANDPOOL_TOKEN").ok().filter(|token| !token.is_empty()) {
        return Ok(token);
    }
    let own = Mint { ttl: Some(OWN_TTL), ..Mint::new("cli", Role::Admin) };
    with_issuer(context, |auth| auth.mint(&own)).map(|made| made.token)
}

/// A token as `sandpool token` was asked for it.
pub(crate) fn mint(context: &Context, asked: &Token) -> Result<Minted, Failure> {
    let pools = match &asked.pool {
        None => None,
        Some(pool) => {
            let pool = PoolName::parse(pool)
                .map_err(|error| Failure::usage(format!("--pool {pool}: not the name of a pool")).because(error))?;
            Some(vec![pool])
        }
    };
    if let Some(session) = &asked.session {
        sandpool_core::ids::Identifier::parse(session)
            .map_err(|error| Failure::usage(format!("--session {session}: not an identifier")).because(error))?;
    }
    let role = match asked.role {
        RoleWord::Reader => Role::Reader,
        RoleWord::Executor => Role::Executor,
        RoleWord::Admin => Role::Admin,
    };
    let tenant = match &asked.tenant {
        None => TenantName::default(),
        Some(tenant) => TenantName::parse(tenant)
            .map_err(|error| Failure::usage(format!("--tenant {tenant}: not the name of a tenant")).because(error))?,
    };
    let scopes = (!asked.scope.is_empty()).then(|| asked.scope.clone());
    let session = asked.session.clone();
    let mint = Mint { subject: "token".into(), role, pools, session, scopes, tenant, ttl: asked.ttl };
    with_issuer(context, |auth| auth.mint(&mint))
}

/// Makes a new signing key.
pub(crate) fn rotate(context: &Context) -> Result<(), Failure> {
    with_issuer(context, Auth::rotate)
}

/// The secret that managed-identity clients send.
pub(crate) fn identity_header(context: &Context) -> Result<String, Failure> {
    let keys = context.home.keys();
    let file = keys.join("identity-header");
    match std::fs::read_to_string(&file) {
        Ok(secret) => Ok(secret.trim().to_owned()),
        Err(error) => Err(unreadable(&context.home, &error)),
    }
}

/// The local authority's certificate, which clients must trust for the TLS listener.
pub(crate) fn authority_file(context: &Context) -> PathBuf {
    context.home.tls().join("ca.pem")
}

/// The server's own issuer and its checks, as the settings say. Makes keys that are missing.
pub(crate) fn open_auth(home: &Home, settings: &Settings) -> Result<Auth, Failure> {
    let role = |role: RoleName| match role {
        RoleName::Reader => Role::Reader,
        RoleName::Executor => Role::Executor,
        RoleName::Admin => Role::Admin,
    };
    let trusted = settings.auth.issuers.iter().map(|issuer| TrustedIssuer {
        issuer: issuer.issuer.clone(),
        jwks_uri: issuer.jwks_uri.clone(),
        audiences: issuer.audiences.clone(),
        roles_claim: issuer.roles_claim.clone(),
        roles: issuer.roles.iter().map(|(value, name)| (value.clone(), role(*name))).collect(),
        sign_in: issuer.console.as_ref().map(|console| SignIn {
            client_id: console.client_id.clone(),
            name: console.name.clone().unwrap_or_else(|| issuer.issuer.clone()),
            scope: console.scope.clone(),
            token: match console.token {
                TokenName::AccessToken => "access_token",
                TokenName::IdToken => "id_token",
            },
        }),
    });
    let api_key = |key: &ApiKeySettings, tenant: &TenantName| ApiKey {
        name: key.name.clone(),
        sha256_hex: key.sha256.clone(),
        role: role(key.role),
        pools: key.pools.clone(),
        tenant: tenant.clone(),
    };
    let mut api_keys: Vec<_> = settings.auth.api_keys.iter().map(|key| api_key(key, &TenantName::default())).collect();
    let mut tenants = Vec::new();
    for tenant in &settings.tenants {
        let name = tenant.tenant_name().map_err(|error| Failure::new(error.to_string()))?;
        api_keys.extend(tenant.api_keys.iter().map(|key| api_key(key, &name)));
        let claims = tenant.tokens.iter().map(|token| TenantClaim {
            issuer: token.issuer.clone(),
            claim: token.claim.clone().zip(token.value.clone()),
        });
        tenants.push(TenantTokens { tenant: name, claims: claims.collect() });
    }
    let config = AuthConfig {
        keys_dir: home.keys(),
        issuer: ISSUER.into(),
        trusted: trusted.collect(),
        api_keys,
        tenants,
        identity_header: own_identity_header(home)?,
        open_metadata: settings.auth.open_metadata,
        token_ttl: TOKEN_TTL,
    };
    Auth::open(config).map_err(|error| Failure::new("tokens cannot be made and checked").caused_by(&error))
}

/// The secret for managed-identity clients; made the first time.
fn own_identity_header(home: &Home) -> Result<String, Failure> {
    let file = home.keys().join("identity-header");
    match std::fs::read_to_string(&file) {
        Ok(secret) if !secret.trim().is_empty() => return Ok(secret.trim().to_owned()),
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(unreadable(home, &error)),
    }
    let secret = random_hex(24)?;
    home::write_atomically(&file, &secret, 0o600, None)
        .map_err(|error| Failure::new(format!("cannot write {}", file.display())).because(error))?;
    Ok(secret)
}

/// Does something with the server's keys, as a command.
fn with_issuer<T, E>(context: &Context, work: impl FnOnce(&Auth) -> Result<T, E>) -> Result<T, Failure>
where
    E: std::error::Error + 'static,
{
    let keys = context.home.keys();
    // Asked first, so that a directory nobody prepared is not half made by a client.
    std::fs::read_dir(&keys).map_err(|error| unreadable(&context.home, &error))?;
    let settings = Plan::read(&context.home.plan()).map(|plan| plan.settings).unwrap_or_default();
    let auth = open_auth(&context.home, &settings)?;
    let done = work(&auth).map_err(|error| Failure::new("no token could be made").caused_by(&error));
    if rustix::process::geteuid().is_root() {
        home::give_away(&keys)
            .map_err(|error| Failure::new(format!("cannot give {} to the server", keys.display())).because(error))?;
    }
    done
}

fn unreadable(home: &Home, error: &std::io::Error) -> Failure {
    let failure = Failure::new("no token").because(format!("cannot read {}: {error}", home.keys().display()));
    match error.kind() {
        ErrorKind::NotFound => {
            failure.advise(format!("sandpool up --detach{}, or set SANDPOOL_TOKEN for a server elsewhere", home.flag()))
        }
        _ => failure.advise(format!(
            "set SANDPOOL_TOKEN to a token that root made for you: sudo sandpool token{} --ttl 12h",
            home.flag()
        )),
    }
}
