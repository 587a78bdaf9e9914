//! `sandpool token`: a bearer token, made here and now from the server's keys.

use serde_json::json;

use super::Outcome;
use crate::args::{Token, TokenAction};
use crate::client::Context;
use crate::credentials;
use crate::print;

pub(crate) fn run(context: &Context, token: &Token) -> Outcome {
    if let Some(TokenAction::Rotate) = token.action {
        credentials::rotate(context)?;
        if context.json {
            print::json(&json!({ "rotated": true }))?;
        } else {
            print::out("tokens are signed with a new key; those of the old key stay good until they expire\n")?;
        }
        return Ok(0);
    }
    let made = credentials::mint(context, token)?;
    if context.json {
        print::json(&json!({ "token": made.token, "expiresAt": made.expires_at }))?;
    } else {
        print::out(&format!("{}\n", made.token))?;
    }
    Ok(0)
}
