//! `sandpool console`: the console's address, with a token in it for whoever opens it.

use std::io::IsTerminal;
use std::time::Duration;

use serde_json::json;

use super::Outcome;
use crate::args::{Console, RoleWord, Token};
use crate::client::Context;
use crate::credentials;
use crate::failure::Failure;
use crate::print;

/// How long the address signs somebody in, unless asked otherwise.
const TTL: Duration = Duration::from_secs(12 * 3600);

pub(crate) fn run(context: &Context, console: &Console) -> Outcome {
    if !sandpool_console::IS_BUILT {
        return Err(Failure::new("this build has no console")
            .because("it is made by npm when Sandpool is built, which was not there")
            .advise("build again where Node.js 18 or newer is, with npm"));
    }
    let address = address(context, &context.endpoint()?, console)?;
    if context.json {
        print::json(&json!({ "url": address }))?;
    } else {
        print::out(&format!("{address}\n"))?;
    }
    Ok(0)
}

/// The address. What stands behind `#` is sent to no server, and the console takes it out of the address.
fn address(context: &Context, endpoint: &str, console: &Console) -> Result<String, Failure> {
    let made = credentials::mint(
        context,
        &Token {
            pool: console.pool.clone(),
            session: None,
            tenant: console.tenant.clone(),
            role: console.role,
            scope: Vec::new(),
            ttl: console.ttl.or(Some(TTL)),
            action: None,
        },
    )?;
    Ok(format!("{}#token={}", plain(endpoint), made.token))
}

/// The address without a token.
fn plain(endpoint: &str) -> String {
    format!("{}/console/", endpoint.trim_end_matches('/'))
}

/// What is said of the console when a server is ready: an address that signs in, if a person reads it and not a log. `None` where there is
/// none.
pub(crate) fn said(context: &Context, endpoint: &str) -> Option<String> {
    let everything = Console { role: RoleWord::Admin, pool: None, tenant: None, ttl: None };
    sandpool_console::IS_BUILT.then(|| {
        let is_read = std::io::stdout().is_terminal() && !context.json;
        let signed_in = is_read.then(|| address(context, endpoint, &everything).ok()).flatten();
        signed_in.unwrap_or_else(|| plain(endpoint))
    })
}
