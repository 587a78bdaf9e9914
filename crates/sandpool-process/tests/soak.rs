//! Many sandboxes, and what they leave behind: nothing.
//!
//! Needs root and the images `python` and `shell`; says so when it skips. Root's side looks at the host before and after:
//! processes, mounts, control groups, network namespaces, and the launcher's descriptors.

#[path = "stage/mod.rs"]
mod stage;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use rustix::process::Pid;
use sandpool_core::limits::Limits;
use sandpool_node::Node;
use stage::{Outcome, Session, Stage, Watcher, seen, succeeded};

/// Sessions at the same time.
const AT_ONCE: usize = 200;

/// Sandboxes one after another.
const IN_A_ROW: usize = 1_000;

/// Memory that one session with a bare interpreter may need, the kernel's included (its own is 20 MiB); fewer sessions are
/// tried on a host that has less.
const EACH: u64 = 40 << 20;

/// How long the kernel may take to clean up.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    stage::play("soak", &["python", "shell"], tests, killed)
}

async fn tests(mut stage: Stage) -> Outcome<()> {
    match stage.phase().as_str() {
        "wait" => return wait_to_be_killed(&stage).await,
        "leave" => return Ok(()),
        _ => {}
    }
    let limits = Limits { memory: 256 << 20, cpu_milli: 2_000, ..Limits::default() };
    let pools = vec![stage.pool("python", "python", limits, 250)?, stage.pool("shell", "shell", limits, 4)?];
    let node = stage.node(pools).await?;
    // The first of each image, so that what is made once does not count.
    for pool in ["python", "shell"] {
        Session::open(&node, pool, "first").await?.close().await?;
    }
    let before = settled(&stage, &BTreeMap::new()).await?;
    let problem = in_a_row(&node).await.err().map(|error| error.to_string());
    stage.judge("soak::one_after_another", problem);
    compare(&mut stage, "soak::one_after_another_leave_nothing", &before).await?;
    let problem = at_once(&stage, &node).await.err().map(|error| error.to_string());
    stage.judge("soak::at_once", problem);
    compare(&mut stage, "soak::at_once_leave_nothing", &before).await?;
    node.shutdown(Duration::from_secs(2)).await;
    stage.end()
}

async fn in_a_row(node: &Arc<Node>) -> Outcome<()> {
    let began = Instant::now();
    for number in 0..IN_A_ROW {
        let session = Session::open(node, "shell", &format!("row-{}", number % 7)).await?;
        // Some are used, most only made.
        if number % 50 == 0 {
            let run = session.shell("echo $((6 * 7)) > /tmp/x; cat /tmp/x", 20).await?;
            if run.stdout != b"42\n" {
                return Err(format!("sandbox {number}: {}", seen(&run)).into());
            }
        }
        session.close().await?;
    }
    let each = began.elapsed() / u32::try_from(IN_A_ROW)?;
    println!("{IN_A_ROW} sandboxes made and destroyed one after another: {each:?} each");
    Ok(())
}

async fn at_once(stage: &Stage, node: &Arc<Node>) -> Outcome<()> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let available = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024;
    let count = AT_ONCE.min(usize::try_from(available.saturating_sub(2 << 30) / EACH)?);
    if count < AT_ONCE {
        println!("only {count} sessions at once: this host has {} MiB of memory left", available >> 20);
    }
    let began = Instant::now();
    let begin = |number: usize| async move {
        let session = Session::open(node, "python", &format!("at-once-{number}")).await?;
        let run = session.code(&format!("mine = {number}"), 60).await?;
        if succeeded(&run) { Ok(session) } else { Err(seen(&run).into()) }
    };
    let opened: Vec<Outcome<Session>> = futures::stream::iter(0..count).map(begin).buffered(8).collect().await;
    let sessions = opened.into_iter().collect::<Outcome<Vec<_>>>()?;
    let took = began.elapsed();
    let host = stage.look().await?;
    let memory = host.get("memory").copied().unwrap_or(0) / (1 << 20);
    println!("{count} sessions at once after {took:?}: {memory} MiB, {} MiB each", memory / count.max(1) as u64);
    // Every one has its own state still.
    let ask = |(number, session): (usize, Session)| async move {
        let run = session.code("print(mine)", 60).await?;
        let is_own = run.stdout == format!("{number}\n").as_bytes();
        if is_own { Ok(session) } else { Err(format!("session {number}: {}", seen(&run)).into()) }
    };
    let asked: Vec<Outcome<Session>> =
        futures::stream::iter(sessions.into_iter().enumerate()).map(ask).buffered(16).collect().await;
    for session in asked {
        session?.close().await?;
    }
    Ok(())
}

/// What is on the host, once it is what was `expected` or does not change for want of patience.
async fn settled(stage: &Stage, expected: &BTreeMap<String, u64>) -> Outcome<BTreeMap<String, u64>> {
    let until = Instant::now() + PATIENCE;
    loop {
        let mut now = stage.look().await?;
        now.remove("memory");
        // The server alone, and the groups of the launcher itself, is what is there without a sandbox.
        let is_quiet = if expected.is_empty() { now["processes"] == 1 } else { now == *expected };
        if is_quiet || Instant::now() >= until {
            return Ok(now);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn compare(stage: &mut Stage, name: &str, before: &BTreeMap<String, u64>) -> Outcome<()> {
    let after = settled(stage, before).await?;
    let problem = (after != *before).then(|| format!("before: {before:?}\nafter:  {after:?}"));
    stage.judge(name, problem);
    Ok(())
}

/// The server of a launcher that will be killed.
async fn wait_to_be_killed(stage: &Stage) -> Outcome<()> {
    let node = stage.node(vec![stage.pool("shell", "shell", Limits::default(), 4)?]).await?;
    for name in ["one-1", "two-2", "three-3"] {
        Session::open(&node, "shell", name).await?.shell("setsid sleep 1000 & exit", 20).await?;
    }
    stage.write("ready")?;
    std::future::pending().await
}

/// Root's side, after the tests: a launcher is killed; then the next one comes.
fn killed(watcher: &Watcher) -> Outcome<()> {
    let began = Instant::now();
    if stage::groups() != 0 {
        return Err("the launcher left control groups".into());
    }
    watcher.write("phase", "wait")?;
    let mut launcher = watcher.launch()?;
    until("the sandboxes are there", || watcher.has("ready"))?;
    let family = stage::family(launcher.id());
    if family.len() < 7 {
        return Err(format!("only {family:?}").into());
    }
    launcher.kill()?;
    launcher.wait()?;
    let is_there = |pid: &u32| {
        let pid = i32::try_from(*pid).ok().and_then(Pid::from_raw);
        pid.is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok())
    };
    until("every process is gone", || !family.iter().any(is_there))?;
    println!("test soak::a_killed_launcher_leaves_no_process ... ok");
    if stage::groups() == 0 {
        return Err("a killed launcher cannot have removed its control groups".into());
    }
    watcher.write("phase", "leave")?;
    let status = watcher.launch()?.wait()?;
    if !status.success() || stage::groups() != 0 {
        return Err(format!("the next launcher ended with {status}, and left {} groups", stage::groups()).into());
    }
    println!("test soak::the_next_launcher_sweeps ... ok");
    let took = began.elapsed().as_secs_f64();
    println!("\ntest result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in {took:.2}s\n");
    Ok(())
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) -> Outcome<()> {
    let until = Instant::now() + PATIENCE;
    while !is_so() {
        if Instant::now() >= until {
            return Err(format!("not so after {PATIENCE:?}: {what}").into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
