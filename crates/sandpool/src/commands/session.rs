//! `sandpool session`: who holds which slot.

use std::collections::BTreeMap;
use std::path::Path;

use reqwest::Method;
use sandpool_node::EgressPolicy;
use serde_json::{Value, json};

use super::Outcome;
use crate::args::Session;
use crate::client::{Client, Context, block_on, pool_path, segment, session_path};
use crate::failure::Failure;
use crate::print::{self, cell};

pub(crate) fn run(context: &Context, session: &Session) -> Outcome {
    let client = Client::new(context)?;
    block_on(async {
        match session {
            Session::Ls { pool } => {
                let pools = match pool {
                    Some(pool) => vec![pool.clone()],
                    None => super::pool::names(&client).await?,
                };
                let mut sessions = Vec::new();
                for pool in &pools {
                    let base = format!("{}/sessions", pool_path(pool));
                    let mut page = base.clone();
                    loop {
                        let mut answer = client.get(&page).await?;
                        let Value::Array(found) = answer["value"].take() else { break };
                        let is_empty = found.is_empty();
                        sessions.extend(found.into_iter().map(|session| (pool.clone(), session)));
                        // A list that does not go forward would never end.
                        let Some(next) = answer["next"].as_str().filter(|_| !is_empty) else { break };
                        page = format!("{base}?after={}", segment(next));
                    }
                }
                if context.json {
                    let value: Vec<_> = sessions.into_iter().map(|(_, session)| session).collect();
                    print::json(&json!({ "value": value }))?;
                } else {
                    let rows: Vec<_> = sessions.iter().map(|(pool, session)| row(pool, session)).collect();
                    print::table(
                        &["POOL", "SESSION", "TENANT", "OWNER", "CREATED", "LAST USED", "EXPIRES", "BUSY"],
                        &rows,
                    )?;
                }
            }
            Session::Get { pool, session, tenant } => {
                let answer = client.get(&address(pool, session, tenant.as_deref())).await?;
                if context.json {
                    print::json(&answer)?;
                } else {
                    print::object(&answer)?;
                }
            }
            Session::Open { pool, session, env, secret, egress, tenant } => {
                let body = opening(env, secret, egress.as_deref())?;
                let request = client.request(Method::PUT, &address(pool, session, tenant.as_deref())).json(&body);
                let answer = client.json(request).await?;
                if context.json {
                    print::json(&answer)?;
                } else {
                    print::object(&answer)?;
                }
            }
            Session::Preview { pool, session, port, ttl, tenant } => {
                let address = address_of(pool, session, "/previews", tenant.as_deref());
                let body = json!({ "port": port, "ttlSeconds": ttl });
                let answer = client.json(client.request(Method::POST, &address).json(&body)).await?;
                if context.json {
                    print::json(&answer)?;
                } else {
                    print::out(&format!("{}\n", answer["url"].as_str().unwrap_or_default()))?;
                }
            }
            Session::Egress { pool, session, set, clear, tenant } => {
                let address = address_of(pool, session, "/egress", tenant.as_deref());
                if *clear {
                    client.send(client.request(Method::DELETE, &address)).await?;
                }
                let answer = match set {
                    None => client.get(&address).await?,
                    Some(file) => {
                        let request = client.request(Method::PUT, &address).json(&policy(file)?);
                        client.json(request).await?
                    }
                };
                if context.json {
                    print::json(&answer)?;
                } else {
                    print::object(&answer)?;
                }
            }
            Session::Rm { pool, sessions, tenant } => {
                for session in sessions {
                    let address = address(pool, session, tenant.as_deref());
                    client.send(client.request(Method::DELETE, &address)).await?;
                    if !context.json {
                        print::out(&format!("ended {session}\n"))?;
                    }
                }
                if context.json {
                    print::json(&json!({ "ended": sessions }))?;
                }
            }
        }
        Ok(0)
    })
}

/// What a session is given when it is made. Values of secrets are no arguments, which anybody on the machine can read.
fn opening(env: &[String], secrets: &[String], egress: Option<&Path>) -> Result<Value, Failure> {
    let pair = |option: &str, text: &str| match text.split_once('=') {
        Some((name, rest)) if !name.is_empty() => Ok((name.to_owned(), rest.to_owned())),
        _ => {
            Err(Failure::usage(format!("--{option} {text:?} has no name and =")).advise(format!("--{option} NAME=...")))
        }
    };
    let env = env.iter().map(|text| pair("env", text)).collect::<Result<BTreeMap<_, _>, _>>()?;
    let mut body = json!({ "env": env });
    let secrets = secrets.iter().map(|text| {
        let (name, hosts) = pair("secret", text)?;
        let value = std::env::var(&name).map_err(|error| {
            Failure::usage(format!("the value of the secret {name} is not to be had"))
                .because(error)
                .advise(format!("set the variable {name} for this command"))
        })?;
        let hosts: Vec<_> = hosts.split(',').collect();
        Ok::<_, Failure>(json!({ "name": name, "value": value, "hosts": hosts }))
    });
    body["secrets"] = json!(secrets.collect::<Result<Vec<_>, _>>()?);
    if let Some(file) = egress {
        body["egress"] = policy(file)?;
    }
    Ok(body)
}

/// A policy, from a file or standard input.
fn policy(file: &Path) -> Result<Value, Failure> {
    let (name, text) = if file == Path::new("-") {
        ("standard input".to_owned(), std::io::read_to_string(std::io::stdin()))
    } else {
        (file.display().to_string(), std::fs::read_to_string(file))
    };
    let text = text.map_err(|error| Failure::usage(format!("cannot read {name}")).because(error))?;
    let policy: EgressPolicy = serde_norway::from_str(&text)
        .map_err(|error| Failure::usage(format!("{name} is no egress policy")).because(error))?;
    serde_json::to_value(policy).map_err(|error| Failure::new("the policy cannot be sent").because(error))
}

/// A session's address, in a tenant's room.
fn address(pool: &str, session: &str, tenant: Option<&str>) -> String {
    address_of(pool, session, "", tenant)
}

/// The address of something of a session, in a tenant's room.
fn address_of(pool: &str, session: &str, what: &str, tenant: Option<&str>) -> String {
    let path = format!("{}{what}", session_path(pool, session));
    tenant.map_or(path.clone(), |tenant| format!("{path}?tenant={}", segment(tenant)))
}

fn row(pool: &str, session: &Value) -> Vec<String> {
    let fields = ["identifier", "tenant", "owner", "createdAt", "lastUsedAt", "expiresAt", "busy"];
    std::iter::once(pool.to_owned()).chain(fields.iter().map(|field| cell(&session[*field]))).collect()
}
