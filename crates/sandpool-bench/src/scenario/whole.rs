//! Scenarios that are not made of turns: how many idle sessions cost what, and what a restart costs.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hyper::Method;
use tokio::task::JoinSet;

use super::blocks::CELL;
use super::{Block, Rounds, Scale, Scenario, Subject};
use crate::floor::Floor;
use crate::load::{Clock, Schedule, milliseconds, open_loop};
use crate::memory::{self, Held};
use crate::report::{Goal, Unit};
use crate::server::Server;
use crate::stats::{Summary, float};

/// A session that holds what most hold: the libraries, imported.
const LIBRARIES: &str = r#"{"code": "import numpy, pandas, matplotlib.pyplot\nprint(1)"}"#;

/// Sessions that work while the others are idle, each once a second.
const ACTIVE: usize = 50;

/// Sandboxes whose processes are looked at, of however many there are.
const LOOKED_AT: usize = 60;

/// Memory that is left alone, in MiB: what follows is not made worse by what a scenario takes.
const RESERVE_MIB: f64 = 1_536.0;

/// How long the kernel gets to settle its accounts before memory is read.
const SETTLE: Duration = Duration::from_secs(2);

/// How long a killed server may take to come back.
const RESTART_LIMIT: Duration = Duration::from_secs(60);

/// One measure of a scenario.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) measure: String,
    pub(crate) unit: Unit,
    pub(crate) ours: Vec<Vec<f64>>,
    pub(crate) floor: Vec<Vec<f64>>,
    pub(crate) goal: Option<Goal>,
    pub(crate) notes: Vec<String>,
    pub(crate) spoilt: bool,
}

impl Measured {
    fn one(measure: String, unit: Unit, ours: f64, floor: Option<f64>) -> Self {
        Self {
            measure,
            unit,
            ours: vec![vec![ours]],
            floor: floor.map(|floor| vec![vec![floor]]).unwrap_or_default(),
            goal: None,
            notes: Vec::new(),
            spoilt: false,
        }
    }
}

/// Measures a scenario that is not made of turns.
///
/// # Errors
/// As [`Subject::turn`].
pub(crate) async fn measure_whole(
    subject: &Subject,
    floor: &Floor,
    scenario: Scenario,
    scale: Scale,
) -> Result<Vec<Measured>> {
    match scenario {
        Scenario::Idle => idle(subject, scale).await,
        Scenario::Memory => memory(subject, floor, scale).await,
        Scenario::MemoryNode => memory_node(subject, floor, scale).await,
        Scenario::Capacity => capacity(subject, floor, scale).await,
        Scenario::Restart => restart(subject, scale).await,
        Scenario::Noisy => super::noisy::measure(subject, scale).await,
        Scenario::Egress => super::egress::measure(subject, floor, scale).await,
        _ => bail!("{} is made of turns", scenario.name()),
    }
}

/// Makes idle sessions until there are `count`, of which `from` are there, four at a time; fewer when one is refused or
/// memory runs low. Answers how many there are, and why not more.
async fn idle_sessions(
    server: &Rc<Server>,
    from: usize,
    count: usize,
    work: &'static str,
) -> Result<(usize, Option<String>)> {
    let next = Rc::new(Cell::new(from));
    let made = Rc::new(Cell::new(from));
    let mut makers = JoinSet::new();
    for _ in 0..4 {
        let (server, next, made) = (Rc::clone(server), Rc::clone(&next), Rc::clone(&made));
        makers.spawn_local(async move {
            loop {
                let index = next.get();
                if index >= count {
                    return None;
                }
                if memory::available_mib().is_ok_and(|left| left < RESERVE_MIB) {
                    return Some(format!("less than {RESERVE_MIB:.0} MiB of memory were left"));
                }
                next.set(index + 1);
                if let Err(error) = server.execute("python", &format!("bench-idle-{index}"), work).await {
                    return Some(format!("{error:#}"));
                }
                made.set(made.get() + 1);
            }
        });
    }
    let mut why = None;
    while let Some(ended) = makers.join_next().await {
        why = why.or(ended.context("making idle sessions panicked")?);
    }
    Ok((made.get(), why))
}

async fn delete_idle(server: &Server, count: usize) {
    for index in 0..count {
        // One that was refused is not there.
        let _ = server.delete("python", &format!("bench-idle-{index}")).await;
    }
}

/// Memory per idle session, with different numbers of them.
async fn memory(subject: &Subject, floor: &Floor, scale: Scale) -> Result<Vec<Measured>> {
    let server = subject.shared();
    let counts: &[usize] = if scale.quick { &[1, 4] } else { &[1, 100, 500, 1_000] };
    let bare = bare_memory(floor, "hold", counts).await?;
    let mut rows = Vec::new();
    server.full("python").await?;
    tokio::time::sleep(SETTLE).await;
    let before = memory::available_mib()?;
    let mut made = 0;
    for (count, bare) in counts.iter().copied().zip(bare) {
        let (held, why) = idle_sessions(&server, made, count, LIBRARIES).await?;
        made = count;
        server.full("python").await?;
        tokio::time::sleep(SETTLE).await;
        let all_in = (before - memory::available_mib()?) / float(held.max(1));
        let shares = held_by_sandboxes(&server);
        let named =
            |what: &str| format!("memory per idle Python session, libraries imported, {count} sessions: {what}");
        let figures = [
            ("all-in (what is available less)", all_in, bare.all_in),
            ("proportional share", shares.share_mib, bare.held.share_mib),
            ("private", shares.private_mib, bare.held.private_mib),
        ];
        for (what, ours, bare) in figures {
            let mut row = Measured::one(named(what), Unit::Mebibytes, ours, Some(bare));
            if what.starts_with("all-in") && (count == 1_000 || scale.quick && count == counts[counts.len() - 1]) {
                row.goal = Some(Goal { number: 7, p50: Some(1.5), p99: None });
            }
            if held < count {
                row.spoilt = true;
                row.notes.push(format!("{held} of {count} were held: {}", why.clone().unwrap_or_default()));
            }
            rows.push(row);
        }
        if held < count {
            break;
        }
    }
    delete_idle(&server, made).await;
    Ok(rows)
}

#[derive(Clone, Copy)]
struct Bare {
    all_in: f64,
    held: Held,
}

/// What bare interpreters hold, each of as many.
async fn bare_memory(floor: &Floor, word: &str, counts: &[usize]) -> Result<Vec<Bare>> {
    let mut found = Vec::new();
    for count in counts.iter().copied() {
        tokio::time::sleep(SETTLE).await;
        let before = memory::available_mib()?;
        let answer = floor.client().ask(Method::POST, &format!("/{word}/{count}"), "").await?;
        let pids: Vec<i32> = serde_json::from_slice(&answer.body)?;
        tokio::time::sleep(SETTLE).await;
        let all_in = (before - memory::available_mib()?) / float(count);
        let held = mean(
            &pids.iter().step_by(pids.len().div_ceil(LOOKED_AT)).map(|pid| memory::held(*pid)).collect::<Vec<_>>(),
        );
        floor.ask("/release", "").await?;
        found.push(Bare { all_in, held });
    }
    Ok(found)
}

fn mean(all: &[Held]) -> Held {
    let count = float(all.len().max(1));
    Held {
        share_mib: all.iter().map(|held| held.share_mib).sum::<f64>() / count,
        private_mib: all.iter().map(|held| held.private_mib).sum::<f64>() / count,
    }
}

/// What a sandbox holds on average: all its processes, the agent too.
fn held_by_sandboxes(server: &Server) -> Held {
    let mut sandboxes: BTreeMap<std::path::PathBuf, Held> = BTreeMap::new();
    let mut by_place: BTreeMap<std::path::PathBuf, Vec<i32>> = BTreeMap::new();
    for pid in server.sandboxed() {
        if let Ok(place) = std::fs::read_link(format!("/proc/{pid}/ns/pid")) {
            by_place.entry(place).or_default().push(pid);
        }
    }
    let step = by_place.len().div_ceil(LOOKED_AT).max(1);
    for (place, pids) in by_place.into_iter().step_by(step) {
        let all = sandboxes.entry(place).or_default();
        for held in pids.into_iter().map(memory::held) {
            all.share_mib += held.share_mib;
            all.private_mib += held.private_mib;
        }
    }
    mean(&sandboxes.into_values().collect::<Vec<_>>())
}

/// What Node sessions hold.
async fn memory_node(subject: &Subject, floor: &Floor, scale: Scale) -> Result<Vec<Measured>> {
    let count = if scale.quick { 2 } else { 20 };
    let bare = bare_memory(floor, "hold-node", &[count]).await?;
    let server = subject.shared();
    for index in 0..count {
        server.execute("node", &format!("bench-idle-{index}"), r#"{"code": "1+1"}"#).await?;
    }
    server.full("node").await?;
    tokio::time::sleep(SETTLE).await;
    let ours = held_by_sandboxes(&server);
    for index in 0..count {
        server.delete("node", &format!("bench-idle-{index}")).await?;
    }
    let bare = bare.first().context("a floor was measured")?.held;
    let measure = format!("memory per idle Node session, {count} sessions: proportional share");
    let mut row = Measured::one(measure, Unit::Mebibytes, ours.share_mib, Some(bare.share_mib));
    row.goal = Some(Goal { number: 12, p50: Some(1.4), p99: None });
    Ok(vec![row])
}

/// What idle sessions add to a warm request: before, with them, and after they are gone.
async fn idle(subject: &Subject, scale: Scale) -> Result<Vec<Measured>> {
    let count = if scale.quick { 4 } else { 1_000 };
    let active = if scale.quick { 2 } else { ACTIVE };
    let (turns, each) = if scale.quick { (1, 20) } else { (5, 500) };
    let server = subject.shared();
    for index in 0..active {
        server.execute("python", &format!("bench-active-{index}"), CELL).await?;
    }
    let mut with = Vec::new();
    let mut without = vec![beside_active(subject, active, turns, each).await?];
    let (held, why) = idle_sessions(&server, 0, count, CELL).await?;
    server.full("python").await?;
    with.push(beside_active(subject, active, 2 * turns, each).await?);
    delete_idle(&server, count).await;
    server.full("python").await?;
    without.push(beside_active(subject, active, turns, each).await?);
    for index in 0..active {
        server.delete("python", &format!("bench-active-{index}")).await?;
    }
    let mut notes = Vec::new();
    if held < count {
        notes.push(format!("{held} of {count} were held: {}", why.unwrap_or_default()));
    }
    Ok(vec![Measured {
        measure: format!("print(1) in a live Python session, one caller, beside {count} idle and {active} active ones"),
        unit: Unit::Milliseconds,
        ours: with.concat(),
        floor: without.concat(),
        goal: Some(Goal { number: 8, p50: None, p99: Some(1.1) }),
        notes,
        spoilt: held < count,
    }])
}

/// Turns of the warm scenario while `active` other sessions run something once a second each.
async fn beside_active(subject: &Subject, active: usize, turns: usize, each: usize) -> Result<Vec<Vec<f64>>> {
    let server = subject.shared();
    let background = async {
        let mut clock = Clock::exact()?;
        loop {
            // A minute of it at a time.
            let schedule = Schedule::even(float(active), 60 * active);
            let send = |index: usize| {
                let server = Rc::clone(&server);
                let session = format!("bench-active-{}", index % active);
                async move { server.execute("python", &session, CELL).await.map(drop) }
            };
            for shot in open_loop(&mut clock, &schedule, send).await? {
                shot.answer?;
            }
        }
    };
    let measured = async {
        let scale = Scale { quick: false, random: None };
        let mut blocks = Vec::new();
        for round in 0..turns {
            let rounds = Rounds { rounds: turns, each };
            blocks.push(subject.turn(Scenario::Warm, scale, rounds, round).await?.samples);
        }
        Ok(blocks)
    };
    tokio::select! {
        blocks = measured => blocks,
        never = background => never,
    }
}

/// A killed server until it serves again, with its sessions.
async fn restart(subject: &Subject, scale: Scale) -> Result<Vec<Measured>> {
    let server = subject.shared();
    let (mut block, mut bare) = (Block::default(), Vec::new());
    server.execute("python", "bench-kept", r#"{"code": "kept = 41"}"#).await?;
    for _ in 0..if scale.quick { 1 } else { 5 } {
        server.full("python").await?;
        let pid = server.serving().context("no server process is seen")?;
        let begun = Instant::now();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
        while !is_ready(&server, pid).await {
            ensure!(begun.elapsed() < RESTART_LIMIT, "the server did not come back");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        block.samples.push(milliseconds(begun.elapsed()));
        let kept = server.execute("python", "bench-kept", r#"{"code": "print(kept + 1)"}"#).await?;
        ensure!(kept.says("42"), "a session's state was lost with the server");
        let begun = Instant::now();
        server.begin_and_end()?;
        bare.push(milliseconds(begun.elapsed()));
        // The launcher waits longer when a server ends again at once.
        tokio::time::sleep(Duration::from_secs(if scale.quick { 0 } else { 12 })).await;
    }
    Ok(vec![Measured {
        measure: "a killed server until its pools are ready again, one live session kept".to_owned(),
        unit: Unit::Milliseconds,
        ours: vec![block.samples],
        floor: vec![bare],
        goal: None,
        notes: Vec::new(),
        spoilt: false,
    }])
}

/// Whether another process than `killed` serves, and its pools are ready.
async fn is_ready(server: &Server, killed: rustix::process::Pid) -> bool {
    if server.serving().is_none_or(|pid| pid == killed) {
        return false;
    }
    // The listener outlives the server: a request waits there, and connections of the old one are broken.
    server.client().ask(Method::GET, "/readyz", "").await.is_ok()
}

/// Idle sessions until new ones become slow, are refused, or memory runs low.
async fn capacity(subject: &Subject, floor: &Floor, scale: Scale) -> Result<Vec<Measured>> {
    /// The slowest new session at its p99 that counts as held, in milliseconds (G9).
    const SLOWEST_MS: f64 = 20.0;
    /// Looks in a row that must be too slow.
    const LOOKS: usize = 3;
    let (step, look) = if scale.quick { (4, 8) } else { (250, 100) };
    let most = if scale.quick { 8 } else { usize::MAX };
    let sample = if scale.quick { 4 } else { 200 };
    let bare = bare_memory(floor, "hold", &[sample]).await?;
    let server = subject.shared();
    server.full("python").await?;
    let room = memory::available_mib()? - RESERVE_MIB;
    let mut reached = 0;
    let mut notes = Vec::new();
    while reached < most {
        let (held, why) = idle_sessions(&server, reached, reached + step, LIBRARIES).await?;
        if let Some(why) = why {
            notes.push(format!("ended at {held}: {why}"));
            reached = held;
            break;
        }
        // One look of a hundred is as slow as its slowest: what does not come again was not from the many.
        let mut looks = Vec::new();
        while looks.len() < LOOKS && looks.last().is_none_or(|(p99, refused)| *p99 > SLOWEST_MS || *refused > 0) {
            let block = subject.some_new_sessions(look).await?;
            looks.push((Summary::of(&block.samples).p99, block.refused.len()));
        }
        let fastest = looks.iter().map(|(p99, _)| *p99).fold(f64::INFINITY, f64::min);
        let refused = looks.iter().map(|(_, refused)| *refused).min().unwrap_or_default();
        if fastest > SLOWEST_MS || refused > 0 {
            notes.push(format!(
                "ended at {held}: in each of {LOOKS} looks new sessions took {fastest:.1} ms or more at their p99, or {refused} were refused"
            ));
            break;
        }
        if looks.len() > 1 {
            notes.push(format!("at {held} it took {} looks", looks.len()));
        }
        reached = held;
    }
    notes.push("the floor is reckoned: what memory is available over what a bare fork takes of it".to_owned());
    let all_in = bare.first().context("a floor was measured")?.all_in.max(0.1);
    let mut row = Measured::one(
        format!("idle sessions held with new ones at 20/s within {SLOWEST_MS} ms at their p99"),
        Unit::Count,
        float(reached),
        Some((room / all_in).floor()),
    );
    row.goal = Some(Goal { number: 9, p50: Some(0.6), p99: None });
    row.notes = notes;
    Ok(vec![row])
}
