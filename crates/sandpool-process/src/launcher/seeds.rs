//! Seeds: sandboxes of a pool that are made before anybody asks for one, complete but for what answers code.
//!
//! ```text
//! a pool short of seeds --(a moment after the last one was taken)--> launch --> agent, waiting for its first stream
//!                                                                                 |
//! create(id): takes the oldest, and gives it the id  <----------------------------+
//! ```
//!
//! A seed has been built by the same steps, in the same order, as a sandbox that is made when it is asked for: it *is* one,
//! of its pool, with every wall in place. What it has not is an interpreter, which its agent starts when it is first
//! dialled, and so it costs little to keep. It holds nothing of anybody: it becomes somebody's once, and never a seed
//! again.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::sandbox::Live;
use super::{Launcher, Place};
use crate::control::{Purpose, is_of_proof};

/// Seeds of one pool. Each takes about 1 MiB, most of it the kernel's.
const EACH: usize = 4;

/// Seeds of all pools.
pub(super) const MOST: u32 = 64;

/// From one that was taken, or made, to the next that is made: callers come first.
const REST: Duration = Duration::from_millis(2);

/// How long a pool whose seed did not live is left alone; twice as long after each, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

#[derive(Default)]
pub(super) struct Seeds {
    pools: BTreeMap<String, Bed>,
    count: usize,
    /// Before this, none is made.
    rests_until: Option<Instant>,
}

/// One pool's seeds.
#[derive(Default)]
struct Bed {
    /// The oldest first.
    seeds: VecDeque<Live>,
    pause: Duration,
    rests_until: Option<Instant>,
}

impl Seeds {
    /// The oldest seed of a pool, if there is one.
    pub(super) fn take(&mut self, pool: &str) -> Option<Live> {
        let at = self.pools.get(pool)?.seeds.iter().position(Live::is_alive)?;
        self.remove(pool, at)
    }

    /// Somebody has asked for a sandbox: seeds are made a moment later, when that has been answered.
    pub(super) fn wanted(&mut self, now: Instant) {
        self.rests_until = Some(now + REST);
    }

    /// When the next seed is due, given the pools that there are.
    pub(super) fn due<'a>(&self, pools: impl Iterator<Item = &'a String>) -> Option<Instant> {
        self.next(pools).map(|(_, at)| at.unwrap_or_else(Instant::now))
    }

    /// The pool that is due first, and when: `None` for at once.
    fn next<'a>(&self, pools: impl Iterator<Item = &'a String>) -> Option<(&'a str, Option<Instant>)> {
        if self.count >= usize::try_from(MOST).unwrap_or(usize::MAX) {
            return None;
        }
        let short = pools.filter(|name| !is_of_proof(name)).filter_map(|name| {
            let bed = self.pools.get(name);
            let count = bed.map_or(0, |bed| bed.seeds.len());
            let rests_until = self.rests_until.max(bed.and_then(|bed| bed.rests_until));
            (count < EACH).then_some((rests_until, count, name.as_str()))
        });
        short.min().map(|(at, _, name)| (name, at))
    }

    fn add(&mut self, seed: Live) {
        self.pools.entry(seed.pool.clone()).or_default().seeds.push_back(seed);
        self.count += 1;
    }

    fn remove(&mut self, pool: &str, at: usize) -> Option<Live> {
        let seed = self.pools.get_mut(pool)?.seeds.remove(at)?;
        self.count -= 1;
        Some(seed)
    }

    fn find(&self, pool: &str, slot: u32) -> Option<usize> {
        self.pools.get(pool)?.seeds.iter().position(|seed| seed.slot == slot)
    }

    pub(super) fn find_mut(&mut self, pool: &str, slot: u32) -> Option<&mut Live> {
        self.pools.get_mut(pool)?.seeds.iter_mut().find(|seed| seed.slot == slot)
    }

    fn failed(&mut self, pool: &str) {
        let bed = self.pools.entry(pool.to_owned()).or_default();
        bed.pause = (bed.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        bed.rests_until = Some(Instant::now() + bed.pause);
    }

    fn worked(&mut self, pool: &str) {
        if let Some(bed) = self.pools.get_mut(pool) {
            (bed.pause, bed.rests_until) = (Duration::ZERO, None);
        }
    }
}

impl Launcher {
    /// Makes one seed, if one is due.
    pub(super) fn grow_seed(&mut self, now: Instant) {
        let Some((pool, at)) = self.seeds.next(self.pools.keys()) else { return };
        let pool = pool.to_owned();
        if at.is_some_and(|at| now < at) {
            return;
        }
        self.seeds.rests_until = Some(now + REST);
        let expected = self.pools.get(&pool).map(|pool| pool.expected);
        let has_room = expected.is_some_and(|expected| self.admission.check(now, expected).is_ok());
        if !has_room {
            return self.seeds.failed(&pool);
        }
        match self.launch(&pool, Purpose::Session) {
            Ok(seed) => {
                self.places.insert(seed.slot, Place::Seed(pool));
                self.seeds.add(seed);
            }
            Err(refusal) => {
                tracing::debug!(%pool, "no sandbox can be made ahead: {refusal:?}");
                self.seeds.failed(&pool);
            }
        }
    }

    /// A seed's start has said something, or has become the agent.
    pub(super) fn seed_spoke(&mut self, pool: &str, slot: u32) {
        let Some(at) = self.seeds.find(pool, slot) else { return };
        let seed = self.seeds.pools.get_mut(pool).and_then(|bed| bed.seeds.get_mut(at));
        if let Some(seed) = seed
            && let (said, true) = seed.start_words()
        {
            let worked = said.is_empty();
            Self::close_words(&self.epoll, seed);
            if worked {
                self.seeds.worked(pool);
            }
        }
    }

    /// The first process of a seed has ended: nobody has lost anything.
    pub(super) fn seed_ended(&mut self, pool: &str, slot: u32) {
        let Some(mut seed) = self.seeds.find(pool, slot).and_then(|at| self.seeds.remove(pool, at)) else { return };
        self.forget(&seed);
        seed.reap();
        let said = String::from_utf8_lossy(seed.start_words().0).into_owned();
        tracing::debug!(%pool, "a sandbox made ahead has ended: {said}");
        self.seeds.failed(pool);
        self.clear(slot, seed.group);
    }

    /// Ends the seeds of one pool, or all.
    pub(super) fn end_seeds(&mut self, pool: Option<&str>) {
        let pools: Vec<String> = match pool {
            Some(pool) => vec![pool.to_owned()],
            None => self.seeds.pools.keys().cloned().collect(),
        };
        let mut ended = Vec::new();
        for pool in &pools {
            while let Some(seed) = self.seeds.remove(pool, 0) {
                seed.kill();
                ended.push(seed);
            }
            self.seeds.pools.remove(pool);
        }
        // All at once: each takes about a millisecond, the more of them the less.
        for seed in ended {
            self.forget(&seed);
            seed.reap();
            self.clear(seed.slot, seed.group);
        }
    }
}
