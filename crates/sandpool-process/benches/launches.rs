//! What the launcher's part of a sandbox's life takes, with nothing above it: `cargo bench -p sandpool-process`.
//!
//! ```text
//! create -> agent ready    one after another, with a pause before each (and none)
//! destroy -> gone          the first process reaped, its groups removed as far as the launcher waits for that
//! a life                   created, ready, destroyed: how many in a second, one after another and several at once
//! ```
//!
//! Needs root and the image `shell`. Prints a line for each figure; asserts nothing.

#[path = "../tests/stage/mod.rs"]
mod stage;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use futures::StreamExt;
use sandpool_core::ids::{PoolName, SandboxId};
use sandpool_core::limits::Limits;
use sandpool_driver::{Change, Driver, Phase, Template};
use sandpool_wire::agent::Runtime;
use stage::{Outcome, Stage};

fn main() -> ExitCode {
    // `cargo test --all-targets` starts benchmarks too, to see that they can be.
    let word = std::env::args().nth(1).unwrap_or_default();
    match word.as_str() {
        "launcher" | "server" | "--bench" | "--list" => stage::play("launches", &["shell"], run, |_| Ok(())),
        _ => ExitCode::SUCCESS,
    }
}

async fn run(stage: Stage) -> Outcome<()> {
    let rounds = std::env::var("ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(300);
    let pool = PoolName::parse("shell")?;
    stage
        .driver
        .ensure_pool(&Template {
            pool: pool.clone(),
            runtime: Runtime::Shell,
            rootfs: stage.image("shell")?,
            limits: Limits { memory: 256 << 20, ..Limits::default() },
            boot_limit: Duration::from_secs(20),
        })
        .await?;
    let mut next = 0_u128;
    for pause in [Duration::ZERO, Duration::from_millis(100)] {
        let (mut created, mut ready, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            tokio::time::sleep(pause).await;
            next += 1;
            let took = life(&stage, &pool, SandboxId(next.to_be_bytes())).await?;
            created.push(took[0]);
            ready.push(took[1]);
            gone.push(took[2]);
        }
        let with = format!("{} ms between two", pause.as_millis());
        print(&format!("create answered, {with}"), &mut created);
        print(&format!("create to ready, {with}"), &mut ready);
        print(&format!("destroy to gone, {with}"), &mut gone);
    }
    for at_once in [1, 4] {
        let began = Instant::now();
        let count = rounds * 2;
        let all = (0..count).map(|_| {
            next += 1;
            SandboxId(next.to_be_bytes())
        });
        let lives: Vec<Outcome<[Duration; 3]>> =
            futures::stream::iter(all).map(|id| life(&stage, &pool, id)).buffer_unordered(at_once).collect().await;
        for life in lives {
            life?;
        }
        let rate = count as f64 / began.elapsed().as_secs_f64();
        println!("{rate:8.1} lives in a second, {at_once} at once");
    }
    stage.end()
}

/// One sandbox's life: the time to the answer of `create`, from there on to its readiness, and from `destroy` to its end.
async fn life(stage: &Stage, pool: &PoolName, id: SandboxId) -> Outcome<[Duration; 3]> {
    let mut changes = stage.driver.watch();
    let began = Instant::now();
    stage.driver.create(id, pool).await?;
    let created = began.elapsed();
    loop {
        match changes.recv().await? {
            Change::Upsert(sandbox) if sandbox.id == id && sandbox.phase == Phase::Ready => break,
            Change::Gone { id: gone, reason } if gone == id => return Err(format!("{reason:?}").into()),
            _ => {}
        }
    }
    let ready = began.elapsed();
    let began = Instant::now();
    stage.driver.destroy(id).await?;
    Ok([created, ready, began.elapsed()])
}

fn print(what: &str, taken: &mut [Duration]) {
    taken.sort_unstable();
    let at = |share: usize| taken[(taken.len() * share / 1000).min(taken.len() - 1)].as_secs_f64() * 1e3;
    println!("{:8.3} {:8.3} {:8.3} ms (p50 p99 max)  {what}", at(500), at(990), at(1000));
}
