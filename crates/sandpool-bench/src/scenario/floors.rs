//! The same work without us.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use hyper::Method;

use super::blocks::{CELL, OUTPUT, WALLS, printed};
use super::{Block, Rounds, Scale, Scenario};
use crate::floor::Floor;
use crate::load::{Clock, closed_loop, milliseconds, open_loop};

/// One turn of a scenario's floor.
///
/// # Errors
/// When the floor cannot do it.
pub(crate) async fn turn(
    floor: &Floor,
    scenario: Scenario,
    scale: Scale,
    rounds: Rounds,
    round: usize,
) -> Result<Block> {
    let Rounds { each, .. } = rounds;
    let each = each.max(1);
    match scenario {
        Scenario::Warm => repeated(floor, "/run/0", CELL, each).await,
        Scenario::Output => repeated(floor, "/run/0", OUTPUT, each).await,
        Scenario::Walls => {
            let mut block = Block::default();
            for _ in 0..each {
                block.samples.push(printed(&floor.ask("/run/0", WALLS).await?.body)?);
            }
            Ok(block)
        }
        Scenario::Shell => repeated(floor, "/bash", "echo hi", each).await,
        Scenario::Cold => repeated(floor, "/fork", CELL, each).await,
        Scenario::Throughput8 => rate(floor, "/run", 8, each).await,
        Scenario::Throughput16 => rate(floor, "/run", 16, each).await,
        Scenario::Throughput32 => rate(floor, "/run", 32, each).await,
        Scenario::Churn => rate(floor, "/life", 4, each).await,
        Scenario::NewSession | Scenario::NewSession100 | Scenario::Burst => {
            let ready = if scenario == Scenario::Burst { each } else { 64 };
            floor.ask(&format!("/prepare/{ready}"), "").await?;
            at_times(floor, "/claim", CELL, scenario, scale, each, round).await
        }
        Scenario::Node => {
            floor.ask(&format!("/prepare-node/{each}"), "").await?;
            at_times(floor, "/node", r#"{"code": "1+1"}"#, scenario, scale, each, round).await
        }
        Scenario::Delete => {
            let mut block = Block::default();
            for _ in 0..each {
                let answer = floor.ask("/kill", CELL).await?;
                block.samples.push(std::str::from_utf8(&answer.body)?.parse().context("no time")?);
            }
            Ok(block)
        }
        Scenario::Upload1 => files(floor, Method::PUT, 1, each).await,
        Scenario::Upload128 => files(floor, Method::PUT, 128, each).await,
        Scenario::Download1 => files(floor, Method::GET, 1, each).await,
        Scenario::Download128 => files(floor, Method::GET, 128, each).await,
        Scenario::Idle
        | Scenario::Memory
        | Scenario::MemoryNode
        | Scenario::Capacity
        | Scenario::Restart
        | Scenario::Noisy
        | Scenario::Egress => {
            bail!("{} is not made of turns", scenario.name())
        }
    }
}

async fn repeated(floor: &Floor, path: &str, body: &'static str, count: usize) -> Result<Block> {
    let mut block = Block::default();
    floor.ask(path, body).await?;
    for _ in 0..count {
        let begun = Instant::now();
        floor.ask(path, body).await?;
        block.samples.push(milliseconds(begun.elapsed()));
    }
    Ok(block)
}

async fn rate(floor: &Floor, path: &'static str, callers: usize, seconds: usize) -> Result<Block> {
    for caller in 0..callers {
        floor.ask(&format!("{path}/{caller}"), CELL).await?;
    }
    floor.client().connect(callers).await?;
    let client = Rc::new(floor.client().clone());
    let done = closed_loop(callers, Duration::from_secs(u64::try_from(seconds)?), move |caller| {
        let client = Rc::clone(&client);
        async move { client.ask(Method::POST, &format!("{path}/{caller}"), CELL).await.map(drop) }
    })
    .await?;
    Ok(Block { samples: done.rates(), ..Block::default() })
}

async fn at_times(
    floor: &Floor,
    path: &'static str,
    body: &'static str,
    scenario: Scenario,
    scale: Scale,
    count: usize,
    round: usize,
) -> Result<Block> {
    floor.client().connect(count.min(32)).await?;
    let schedule = scenario.schedule(scale, count, round);
    let send = |_| {
        let client = floor.client().clone();
        async move { client.ask(Method::POST, path, body).await.map(drop) }
    };
    let shots = open_loop(&mut Clock::exact()?, &schedule, send).await?;
    let mut block = Block::default();
    for shot in shots {
        block.samples.push(shot.waited_ms());
        shot.answer.context("the floor failed")?;
    }
    Ok(block)
}

async fn files(floor: &Floor, method: Method, mebibytes: usize, count: usize) -> Result<Block> {
    let body = Bytes::from(vec![b'x'; mebibytes << 20]);
    let path = if method == Method::PUT { "/write".to_owned() } else { format!("/read/{}", body.len()) };
    let mut block = Block::default();
    for _ in 0..count {
        let sent = if method == Method::PUT { body.clone() } else { Bytes::new() };
        let begun = Instant::now();
        floor.client().ask(Method::POST, &path, sent).await?;
        block.samples.push(milliseconds(begun.elapsed()));
    }
    Ok(block)
}
