//! `sandpool session`: who holds which slot.

use std::collections::BTreeMap;
use std::io::IsTerminal;
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
                        &["POOL", "SESSION", "TENANT", "OWNER", "CREATED", "LAST USED", "EXPIRES", "BUSY", "STATE"],
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
            Session::Suspend { pool, session, force, tenant } => {
                let address = address_of(pool, session, "/suspend", tenant.as_deref());
                let _waits = Waits::begin(context, &format!("suspending {session}"));
                let request = client.request(Method::POST, &address).json(&json!({ "force": force }));
                shown(context, &client.json(request).await?)?;
            }
            Session::Resume { pool, session, tenant } => {
                let address = address_of(pool, session, "/resume", tenant.as_deref());
                let _waits = Waits::begin(context, &format!("resuming {session}"));
                shown(context, &client.json(client.request(Method::POST, &address)).await?)?;
            }
            Session::Snapshot { pool, session, name, list, rm, tenant } => {
                let address = |what: &str| address_of(pool, session, &format!("/snapshots{what}"), tenant.as_deref());
                if let Some(which) = rm {
                    let address = address(&format!("/{}", segment(which)));
                    client.send(client.request(Method::DELETE, &address)).await?;
                    if context.json {
                        print::json(&json!({ "removed": which }))?;
                    } else {
                        print::out(&format!("removed {which}\n"))?;
                    }
                } else if *list {
                    let mut answer = client.get(&address("")).await?;
                    if context.json {
                        print::json(&answer)?;
                    } else {
                        let Value::Array(found) = answer["value"].take() else { return Ok(0) };
                        let fields = ["id", "name", "takenAt", "bytes", "keeps"];
                        let row = |copy: &Value| fields.iter().map(|field| cell(&copy[*field])).collect::<Vec<_>>();
                        let rows: Vec<_> = found.iter().map(row).collect();
                        print::table(&["SNAPSHOT", "NAME", "TAKEN", "BYTES", "KEEPS"], &rows)?;
                    }
                } else {
                    let _waits = Waits::begin(context, &format!("copying {session}"));
                    let body = name.as_ref().map_or_else(|| json!({}), |name| json!({ "name": name }));
                    shown(context, &client.json(client.request(Method::POST, &address("")).json(&body)).await?)?;
                }
            }
            Session::Fork { pool, session, new, snapshot, tenant } => {
                let address = address_of(pool, session, "/fork", tenant.as_deref());
                let mut body = json!({ "identifier": new });
                if let Some(snapshot) = snapshot {
                    body["snapshot"] = json!(snapshot);
                }
                let _waits = Waits::begin(context, &format!("making {new} of {session}"));
                shown(context, &client.json(client.request(Method::POST, &address).json(&body)).await?)?;
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

/// One object, for people or for programs.
fn shown(context: &Context, answer: &Value) -> Result<(), Failure> {
    if context.json { print::json(answer) } else { print::object(answer) }
}

/// Says on a terminal, for as long as it is there, what is waited for: some sessions have gigabytes.
struct Waits(Option<usize>);

impl Waits {
    fn begin(context: &Context, what: &str) -> Self {
        let is_seen = !context.json && std::io::stderr().is_terminal();
        if is_seen {
            eprint!("{what} ...");
        }
        Self(is_seen.then(|| what.len() + 4))
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        if let Some(length) = self.0 {
            eprint!("\r{}\r", " ".repeat(length));
        }
    }
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
    let fields = ["identifier", "tenant", "owner", "createdAt", "lastUsedAt", "expiresAt", "busy", "state"];
    std::iter::once(pool.to_owned()).chain(fields.iter().map(|field| cell(&session[*field]))).collect()
}
