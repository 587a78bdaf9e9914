//! What a tenant that asks for far more than its share does to one that does not.
//!
//! The noisy one's share is its quota of executions at the same time. The quiet tenant runs one after the other, at an even
//! rate. The noisy one asks for as many at the same time as 20 shares, from as many sessions, each again as soon as it
//! has its answer, refused or not: ruder than a client that heeds `Retry-After`.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hyper::{Method, StatusCode};

use super::blocks::CELL;
use super::whole::Measured;
use super::{Scale, Scenario, Subject};
use crate::http::Client;
use crate::load::{Clock, Schedule, open_loop};
use crate::report::Unit;

/// How many shares the noisy tenant asks for.
const TIMES: usize = 20;

/// The quiet tenant's requests, each second.
const RATE: f64 = 20.0;

/// The pause of one noisy caller after an answer: a client on the same machine is not faster when it does anything at all.
const PAUSE: Duration = Duration::from_millis(1);

/// A cell that keeps a processor busy for a twentieth of a second.
const COMPUTES: &str =
    r#"{"code": "import time\nends = time.perf_counter() + 0.05\nwhile time.perf_counter() < ends: pass"}"#;

/// Two kinds of noise: much of what the quiet tenant does, and computing.
pub(super) async fn measure(subject: &Subject, scale: Scale) -> Result<Vec<Measured>> {
    let rounds = Scenario::Noisy.rounds(scale);
    let server = subject.shared();
    let (quiet, noisy) = (server.client_of("quiet")?, server.client_of("noisy")?);
    run(&quiet, "quiet", CELL).await?;
    for caller in 0..TIMES {
        // One after the other, so that each session is there.
        let answer = run(&noisy, &format!("noisy-{caller}"), CELL).await?;
        ensure!(answer == StatusCode::OK, "the noisy tenant's sessions could not be made: {answer}");
    }
    let mut rows = Vec::new();
    for (what, work) in [("runs print(1)", CELL), ("computes", COMPUTES)] {
        let (mut alone, mut beside) = (Vec::new(), Vec::new());
        let late = Rc::new(Cell::new(0_u64));
        let (ran, refused) = (Rc::new(Cell::new(0_u64)), Rc::new(Cell::new(0_u64)));
        for _ in 0..rounds.rounds {
            alone.push(quietly(&quiet, rounds.each, &late).await?);
            let noise = noise(&noisy, work, &ran, &refused);
            let samples = tokio::select! {
                samples = quietly(&quiet, rounds.each, &late) => samples?,
                never = noise => never?,
            };
            beside.push(samples);
        }
        ensure!(refused.get() > 0, "the noisy tenant was never refused: it did not ask for more than its share");
        rows.push(Measured {
            measure: format!(
                "print(1) of a quiet tenant at {RATE}/s, beside one that asks for {TIMES} shares and {what}"
            ),
            unit: Unit::Milliseconds,
            ours: beside,
            floor: alone,
            goal: Scenario::Noisy.goal(),
            notes: vec![format!(
                "the noisy tenant ran {} and was refused {} times, the quiet one was refused {} times",
                ran.get(),
                refused.get(),
                late.get()
            )],
            spoilt: late.get() > 0,
        });
    }
    Ok(rows)
}

async fn run(client: &Client, session: &str, work: &'static str) -> Result<StatusCode> {
    let path = format!("/pools/python/sessions/{session}/executions");
    Ok(client.send(Method::POST, &path, work.into()).await?.status)
}

/// What the quiet tenant waits, from when each request was due.
async fn quietly(client: &Client, count: usize, late: &Cell<u64>) -> Result<Vec<f64>> {
    let mut clock = Clock::exact()?;
    let send = |_| {
        let client = client.clone();
        async move { run(&client, "quiet", CELL).await }
    };
    let mut waited = Vec::new();
    for shot in open_loop(&mut clock, &Schedule::even(RATE, count), send).await? {
        let waited_ms = shot.waited_ms();
        match shot.answer? {
            StatusCode::OK => waited.push(waited_ms),
            // Too many wait for its interpreter.
            StatusCode::TOO_MANY_REQUESTS => late.set(late.get() + 1),
            other => bail!("the quiet tenant was answered {other}"),
        }
    }
    Ok(waited)
}

/// The noisy tenant, until it is dropped.
async fn noise(client: &Client, work: &'static str, ran: &Rc<Cell<u64>>, refused: &Rc<Cell<u64>>) -> Result<Vec<f64>> {
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..TIMES {
        let (client, ran, refused) = (client.clone(), Rc::clone(ran), Rc::clone(refused));
        callers.spawn_local(async move {
            let session = format!("noisy-{caller}");
            loop {
                match run(&client, &session, work).await? {
                    StatusCode::OK => ran.set(ran.get() + 1),
                    StatusCode::TOO_MANY_REQUESTS => refused.set(refused.get() + 1),
                    other => bail!("the noisy tenant was answered {other}"),
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
    }
    match callers.join_next().await.context("there are callers")?.context("a caller of the noise panicked")? {
        Ok(never) => never,
        Err(error) => Err(error),
    }
}
