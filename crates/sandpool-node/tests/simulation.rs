//! Thousands of sessions over sandboxes in memory, with everything going wrong that can, from a seed and in paused time.
//!
//! Each actor is a client of one identifier, and knows what it was told: a session that it was told of is there with its state, or said to
//! be lost, once; nothing is reset in silence. Meanwhile sandboxes die, calls to the driver fail, boots fail or hang, and the server is
//! killed and started anew. In the end everything is given back.
//!
//! `SANDPOOL_SIMULATION="SEED SECONDS"` runs another seed, for so many simulated seconds (`-- --nocapture` shows the counts).

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sandpool_core::ids::{Identifier, SessionKey, TenantName};
use sandpool_driver::GoneReason;
use sandpool_driver::memory::{Boot, Memory, MemoryConfig, Operation};
use sandpool_node::{
    Caller, ExecuteRequest, ExecutionState, Node, NodeError, Open, Outcome, Quota, SessionScope, Tenant, Whose,
};
use sandpool_store::Store;
use support::*;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Tenants, and how many sessions and executions each may have.
const TENANTS: [(&str, u32, u32); 3] = [("acme", 25, 10), ("globex", 10, 4), ("small", 2, 1)];

/// Actors of each tenant.
const ACTORS: usize = 20;

const COOLDOWN: Duration = Duration::from_secs(20);

/// What a clock that ticks in seconds may be off by, and a look that was late.
const SLACK: Duration = Duration::from_secs(3);

/// Numbers from a seed (xorshift64*, Vigna 2014).
struct Chance(u64);

impl Chance {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }

    fn of_hundred(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// What a client knows of its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// It ended, or was said to be lost, or never was.
    Nothing,
    /// It is there, and this is its number.
    Number(u64),
    /// Something failed in the middle: it may be there or not.
    Unsure,
}

#[derive(Debug, Default)]
struct Tally {
    opened: AtomicU64,
    made: AtomicU64,
    ran: AtomicU64,
    remembered: AtomicU64,
    lost: AtomicU64,
    refused: AtomicU64,
    killed: AtomicU64,
    restarts: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

struct World {
    bench: Mutex<Bench>,
    tally: Tally,
    ends: Instant,
}

impl World {
    /// The server that is there now.
    async fn node(&self) -> Node {
        self.bench.lock().await.node.clone()
    }
}

async fn actor(world: Arc<World>, key: SessionKey, seed: u64) {
    let mut chance = Chance::new(seed);
    let pool = world.bench.lock().await.pool.clone();
    let caller = Caller { subject: "somebody".to_owned() };
    let (mut known, mut used, mut number) = (Known::Nothing, Instant::now(), 0);
    while Instant::now() < world.ends {
        let idle = if chance.of_hundred(3) { COOLDOWN + SLACK * 2 } else { Duration::from_millis(chance.below(2_000)) };
        tokio::time::sleep(idle).await;
        let node = world.node().await;
        if chance.of_hundred(8) {
            known = match node.delete_session(&pool, &key).await {
                Ok(()) | Err(NodeError::NoSession(_) | NodeError::SessionLost { .. }) => Known::Nothing,
                Err(_) => Known::Unsure,
            };
            continue;
        }
        match node.open(&pool, &key, Open::OrCreate, &caller).await {
            Ok(opened) => {
                count(&world.tally.opened);
                if opened.new {
                    count(&world.tally.made);
                    let is_told = !matches!(known, Known::Number(_)) || used.elapsed() + SLACK >= COOLDOWN;
                    assert!(is_told, "{key:?} was reset in silence: {known:?}, used {:?} ago", used.elapsed());
                    known = Known::Nothing;
                } else if known == Known::Nothing {
                    known = Known::Unsure;
                }
            }
            Err(NodeError::SessionLost { .. }) => {
                count(&world.tally.lost);
                known = Known::Nothing;
                continue;
            }
            Err(_) => {
                count(&world.tally.refused);
                continue;
            }
        }
        used = Instant::now();
        number += 1;
        let asks = if let Known::Number(_) = known { "get k\n" } else { "" };
        let pause = if chance.of_hundred(10) { format!("\nsleep {}", chance.below(3_000)) } else { String::new() };
        let work = code(&format!("{asks}set k {number}{pause}"));
        let request = ExecuteRequest { id: None, work, timeout: None, output_limit: None };
        let handle = match node.execute(&pool, &key, request).await {
            Ok(handle) => handle,
            Err(NodeError::OverQuota { .. } | NodeError::QueueFull { .. }) => {
                count(&world.tally.refused);
                continue;
            }
            Err(NodeError::SessionLost { .. }) => {
                count(&world.tally.lost);
                known = Known::Nothing;
                continue;
            }
            Err(_) => {
                known = Known::Unsure;
                continue;
            }
        };
        let seen = handle.wait(Duration::from_secs(30)).await;
        used = Instant::now();
        known = match (&seen.state, known) {
            (ExecutionState::Ended(Outcome::Succeeded), before) => {
                count(&world.tally.ran);
                if let Known::Number(before) = before {
                    assert_eq!(text(&seen), before.to_string(), "{key:?} forgot what it was told");
                    count(&world.tally.remembered);
                }
                Known::Number(number)
            }
            _ => Known::Unsure,
        };
    }
}

/// What goes wrong besides sandboxes and their boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Faults {
    /// The server is killed and started anew.
    Restarts,
    /// Calls to the driver fail.
    Refusals,
    /// Both, and servers have a store: what a killed one had tried to destroy in vain, the next one knows from there.
    Both,
}

/// Everything that goes wrong.
async fn chaos(world: &World, seed: u64, faults: Faults) {
    let mut chance = Chance::new(seed);
    while Instant::now() < world.ends {
        tokio::time::sleep(Duration::from_millis(20 + chance.below(280))).await;
        let mut bench = world.bench.lock().await;
        let memory = bench.memory.clone();
        memory.all_boots(Boot::Succeeds);
        match chance.below(100) {
            0..60 => {
                let all = memory.sandboxes();
                if !all.is_empty() {
                    let which = usize::try_from(chance.below(all.len() as u64)).unwrap();
                    let why =
                        if chance.of_hundred(50) { GoneReason::OutOfMemory } else { GoneReason::Died("9".to_owned()) };
                    memory.kill(all[which].id, why);
                    count(&world.tally.killed);
                }
            }
            60..66 => memory.all_boots(Boot::Fails("a fault".to_owned())),
            66..70 => memory.all_boots(Boot::Hangs),
            70..74 => memory.lose_changes(|| ()),
            74..82 if faults == Faults::Both => {
                // What is acknowledged is what the next server knows.
                if let Some(store) = bench.store.clone() {
                    // Where it is waited for, paused time does not run away meanwhile.
                    let handle = tokio::runtime::Handle::current();
                    let written = move || handle.block_on(store.written());
                    tokio::task::spawn_blocking(written).await.unwrap();
                }
                // A server whose first calls fail does not start; its launcher starts another.
                memory.refuse(0);
                bench.restart().await;
                count(&world.tally.restarts);
            }
            _ if faults == Faults::Restarts => {
                bench.restart().await;
                count(&world.tally.restarts);
            }
            74..88 => memory.refuse(1 + u32::try_from(chance.below(4)).unwrap()),
            _ => {
                let calls =
                    [Operation::Create, Operation::Assign, Operation::Activate, Operation::Destroy, Operation::Dial];
                memory.refuse_only(calls[usize::try_from(chance.below(5)).unwrap()], 2);
            }
        }
        for (name, sessions, _) in TENANTS {
            let tenant = TenantName::parse(name).unwrap();
            let there = bench.node.sessions(&bench.pool, Whose::Tenant(&tenant)).unwrap().len();
            assert!(there <= sessions as usize, "{name} has {there} sessions");
        }
    }
}

/// One for each actor.
fn keys() -> impl Iterator<Item = SessionKey> {
    TENANTS.iter().flat_map(|(tenant, ..)| {
        (0..ACTORS).map(|number| {
            let identifier = Identifier::parse(&format!("actor-{number}")).unwrap();
            SessionKey::new(TenantName::parse(tenant).unwrap(), identifier)
        })
    })
}

async fn simulate(seed: u64, time: Duration, faults: Faults) -> Tally {
    let tenants = TENANTS.map(|(name, sessions, executions)| Tenant {
        name: TenantName::parse(name).unwrap(),
        weight: 1,
        quota: Quota { sessions: Some(sessions), executions: Some(executions), ..Quota::default() },
    });
    let mut spec = spec("pool");
    spec.scale.max_sessions = 30;
    (spec.scale.ready, spec.scale.most_ready, spec.scale.boots) = (4, 8, 4);
    spec.life.cooldown = COOLDOWN;
    spec.full_wait = Duration::from_millis(200);
    spec.scope = SessionScope::Tenant;
    let memory = Memory::new(MemoryConfig { max_sandboxes: 40, ..MemoryConfig::default() });
    let mut bench = Bench::for_tenants(memory, vec![spec], tenants.to_vec()).await;
    let directory = tempfile::tempdir().unwrap();
    if faults == Faults::Both {
        bench.restart_with(Store::open(&directory.path().join("state.db")).unwrap()).await;
    }
    let ends = Instant::now() + time;
    let world = Arc::new(World { bench: Mutex::new(bench), tally: Tally::default(), ends });
    let mut actors = JoinSet::new();
    for (number, key) in keys().enumerate() {
        actors.spawn(actor(Arc::clone(&world), key, seed.wrapping_mul(1_000) + number as u64));
    }
    chaos(&world, seed, faults).await;
    while let Some(ended) = actors.join_next().await {
        if let Err(error) = ended {
            std::panic::resume_unwind(error.into_panic());
        }
    }
    let World { bench, tally, .. } = Arc::into_inner(world).unwrap();
    let bench = bench.into_inner();
    bench.memory.all_boots(Boot::Succeeds);
    bench.memory.refuse(0);
    for operation in [Operation::Create, Operation::Assign, Operation::Activate, Operation::Destroy, Operation::Dial] {
        bench.memory.refuse_only(operation, 0);
    }
    // Also those that were lost and of which nobody has heard yet: what is left of them is kept for that.
    for key in keys() {
        match bench.node.delete_session(&bench.pool, &key).await {
            Ok(()) | Err(NodeError::NoSession(_) | NodeError::SessionLost { .. }) => {}
            Err(error) => panic!("{key:?} cannot be ended: {error}"),
        }
    }
    bench.until("every session is gone", |bench| bench.node.pools()[0].sessions == 0).await;
    bench.until_full().await;
    bench.check_no_leak().await;
    tally
}

/// The seed and the simulated time that were asked for, or those of CI.
fn asked() -> (u64, Duration) {
    let asked = std::env::var("SANDPOOL_SIMULATION").unwrap_or_default();
    let mut words =
        asked.split_whitespace().map(|word| word.parse().expect("SANDPOOL_SIMULATION is a seed and seconds"));
    (words.next().unwrap_or(1), Duration::from_secs(words.next().unwrap_or(600)))
}

async fn check(faults: Faults) {
    let (seed, time) = asked();
    let tally = simulate(seed, time, faults).await;
    println!("seed {seed}, {faults:?}: {tally:?}");
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    for (what, counter) in [
        ("made", &tally.made),
        ("run", &tally.ran),
        ("remembered", &tally.remembered),
        ("lost", &tally.lost),
        ("refused", &tally.refused),
        ("killed", &tally.killed),
    ] {
        assert!(of(counter) > 0, "nothing was {what}: the simulation shows nothing");
    }
    assert_eq!(of(&tally.restarts) > 0, faults != Faults::Refusals);
}

#[tokio::test(start_paused = true)]
async fn sessions_of_servers_that_are_killed_are_kept_or_said_to_be_lost() {
    check(Faults::Restarts).await;
}

#[tokio::test(start_paused = true)]
async fn sessions_over_a_driver_that_fails_are_kept_or_said_to_be_lost() {
    check(Faults::Refusals).await;
}

#[tokio::test(start_paused = true)]
async fn sessions_over_a_driver_that_fails_for_servers_that_are_killed_are_kept_or_said_to_be_lost() {
    check(Faults::Both).await;
}
