//! Where the command line's token comes from, and what is made from the server's keys without asking the server.
//!
//! Whoever may read `<home>/keys` (root, and the server) is the issuer: a token is made here and now. What root writes
//! there is given to the server at once, which must read it and is not root.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use sandpool_core::ids::PoolName;
use sandpool_http::auth::{ApiKey, Auth, AuthConfig, Mint, Minted, Role, TrustedIssuer};

use crate::args::{RoleWord, Token};
use crate::client::{Context, random_hex};
use crate::failure::Failure;
use crate::home::{self, Home};
use crate::server::Plan;
use crate::settings::{RoleName, Settings};

/// How long a token is good for unless asked otherwise.
const TOKEN_TTL: Duration = Duration::from_secs(3_600);

/// How long the command line's own token is good for. It is made for one command; a long execution is followed with the
/// token it was started with, and streams are not cut when it expires.
const OWN_TTL: Duration = Duration::from_secs(300);

/// The issuer in our own tokens. It is a name, not an address: keys are found at the server that checks them.
const ISSUER: &str = "https://sandpool.local";

/// The token for our own requests: `SANDPOOL_TOKEN` if it is set; else one that is made here and now, by whoever may
/// read the server's keys.
pub(crate) fn client_token(context: &Context) -> Result<String, Failure> {
    if let Some(token) = std::env::var("SANDPOOL_TOKEN").ok().filter(|token| !token.is_empty()) {
        return Ok(token);
    }
    let own = Mint {
        subject: "cli".into(),
        role: Role::Admin,
        ttl: Some(OWN_TTL),
        ..Mint::default()
    };
    issuer(context)?.make(&own).map(|made| made.token)
}
