//! `sandpool pool`: the pools of a server.

use reqwest::Method;
use serde_json::Value;

use super::Outcome;
use crate::args::Pool;
use crate::client::{Client, Context, block_on, pool_path};
use crate::print::{self, cell};

pub(crate) fn run(context: &Context, pool: &Pool) -> Outcome {
    let client = Client::new(context)?;
    block_on(async {
        match pool {
            Pool::Ls => {
                let answer = client.get("/pools").await?;
                if context.json {
                    print::json(&answer)?;
                } else {
                    let rows: Vec<_> = answer["value"].as_array().into_iter().flatten().map(row).collect();
                    print::table(
                        &["POOL", "TYPE", "READY", "TARGET", "BOOTING", "SESSIONS", "MAX", "LEVEL", "TROUBLE"],
                        &rows,
                    )?;
                }
            }
            Pool::Get { pool } => {
                let answer = client.get(&pool_path(pool)).await?;
                if context.json {
                    print::json(&answer)?;
                } else {
                    print::object(&answer)?;
                }
            }
            Pool::McpKey { pool, rotate } => {
                let path = format!("{}/mcp/credentials?rotate={rotate}", pool_path(pool));
                let answer = client.json(client.request(Method::POST, &path)).await?;
                if context.json {
                    print::json(&answer)?;
                } else {
                    print::out(&format!("{}\n", answer["apiKey"].as_str().unwrap_or_default()))?;
                }
            }
        }
        Ok(0)
    })
}

fn row(pool: &Value) -> Vec<String> {
    ["name", "containerType", "ready", "readyTarget", "booting", "sessions", "maxSessions", "level", "trouble"]
        .iter()
        .map(|field| cell(&pool[*field]))
        .collect()
}

/// The names of a server's pools.
pub(crate) async fn names(client: &Client) -> Result<Vec<String>, crate::failure::Failure> {
    let answer = client.get("/pools").await?;
    let name = |pool: &Value| pool["name"].as_str().map(str::to_owned);
    Ok(answer["value"].as_array().into_iter().flatten().filter_map(name).collect())
}
