//! What the launcher's part of a sandbox's life takes, with nothing above it: `cargo bench -p sandpool-process`.
//!
//! ```text
//! create -> agent ready    one after another, with a pause before each (and none)
//! destroy -> gone          the first process reaped, its groups removed as far as the launcher waits for that
//! a life                   created, ready, destroyed: how many in a second, one after another and several at once
//! idle                     what 1 to 3,000 of them take of memory, and of the launcher's time
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
use sandpool_driver::{Change, Driver, Phase, Start, Template};
use sandpool_wire::agent::Runtime;
use stage::{Outcome, Stage};

/// Sandboxes whose times are taken, for each line.
const ROUNDS: usize = 100;

/// Idle sandboxes that are held.
const COUNTS: [usize; 5] = [1, 100, 500, 1_000, 3_000];

fn main() -> ExitCode {
    // `cargo test --all-targets` starts benchmarks too, to see that they can be.
    let word = std::env::args().nth(1).unwrap_or_default();
    match word.as_str() {
        "launcher" | "server" | "--bench" | "--list" => stage::play("launches", &["shell"], run, |_| Ok(())),
        _ => ExitCode::SUCCESS,
    }
}

async fn run(stage: Stage) -> Outcome<()> {
    let pool = PoolName::parse("shell")?;
    stage
        .driver
        .ensure_pool(&Template {
            pool: pool.clone(),
            runtime: Runtime::Shell,
            rootfs: stage.image("shell")?,
            limits: Limits { memory: 256 << 20, ..Limits::default() },
            boot_limit: Duration::from_secs(20),
            isolation: sandpool_driver::Isolation::default(),
            local_servers: true,
            main: None,
            start: Start::Zygote,
            egress: None,
        })
        .await?;
    let mut next = 0_u128;
    for pause in [Duration::ZERO, Duration::from_millis(100)] {
        let (mut created, mut ready, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
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
        let count = ROUNDS * 2;
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
    let mut held = Vec::new();
    let empty = settled(&stage).await?;
    for count in COUNTS {
        while held.len() < count {
            next += 1;
            let id = SandboxId(next.to_be_bytes());
            ready(&stage, &pool, id).await?;
            held.push(id);
        }
        let full = settled(&stage).await?;
        let each = |before: u64, after: u64| after.saturating_sub(before) as f64 / count as f64 / 1024.0;
        println!(
            "{count} idle sandboxes: {:.0} KiB of the host's memory each, {:.0} KiB of it their processes' own (PSS); the \
             launcher used {} ticks of processor time in {IDLE:?}",
            each(full.available, empty.available),
            each(empty.processes, full.processes),
            full.ticks,
        );
    }
    for id in held {
        stage.driver.destroy(id).await?;
    }
    stage.end()
}

/// How long nothing is done before a look.
const IDLE: Duration = Duration::from_secs(4);

/// What is seen when nothing is done.
struct Seen {
    /// Bytes that the host has left.
    available: u64,
    /// Bytes of the processes below the launcher, each with its share of what it has in common with others.
    processes: u64,
    /// Hundredths of a second of the launcher's, while nothing was done.
    ticks: u64,
}

async fn settled(stage: &Stage) -> Outcome<Seen> {
    let launcher = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    let ticks = || -> Outcome<u64> {
        let text = std::fs::read_to_string(format!("/proc/{launcher}/stat"))?;
        let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        Ok(fields.get(11).ok_or("no time")?.parse::<u64>()? + fields.get(12).ok_or("no time")?.parse::<u64>()?)
    };
    // What is made after a call has been made by then.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = ticks()?;
    tokio::time::sleep(IDLE).await;
    let ticks = ticks()? - before;
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap_or_default();
    let available = line.split_whitespace().next().unwrap_or_default().parse::<u64>()? * 1024;
    Ok(Seen { available, processes: stage.look().await?.get("memory").copied().unwrap_or(0), ticks })
}

/// One sandbox's life: the time to the answer of `create`, to its readiness, and from `destroy` to its end.
async fn life(stage: &Stage, pool: &PoolName, id: SandboxId) -> Outcome<[Duration; 3]> {
    let [created, ready] = ready(stage, pool, id).await?;
    let began = Instant::now();
    stage.driver.destroy(id).await?;
    Ok([created, ready, began.elapsed()])
}

/// The time to the answer of `create`, and to readiness.
async fn ready(stage: &Stage, pool: &PoolName, id: SandboxId) -> Outcome<[Duration; 2]> {
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
    Ok([created, began.elapsed()])
}

fn print(what: &str, taken: &mut [Duration]) {
    taken.sort_unstable();
    let at = |share: usize| taken[(taken.len() * share / 1000).min(taken.len() - 1)].as_secs_f64() * 1e3;
    println!("{:8.3} {:8.3} {:8.3} ms (p50 p99 max)  {what}", at(500), at(990), at(1000));
}
