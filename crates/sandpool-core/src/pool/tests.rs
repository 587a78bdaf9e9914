//! A pool's rules, as stories. Each line of a story is a moment, what happens, and what the pool says.
//!
//! ```text
//! 90ms claim s1     a sandbox for the session s1            -> fresh, existing, wait, full
//! 90ms come 3        as many new sessions, as far as there are sandboxes for them
//! 80ms fill 1       begins as many sandboxes as are wanted when one caller waits; they are called a, b, c, ...
//! 85ms look         begins as many as are wanted when nobody waits, ends one that is too many, and says when to look again
//! busy, idle        one execution more, or one less, in that sandbox's session
//! ready, gone, fail, answered, remove, expire, bind: as the functions of those names
//! ```

use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;
use crate::ids::Identifier;

/// A pool, and the names of its sandboxes.
struct Story {
    pool: Pool,
    next: u8,
}

impl Story {
    fn new(max_sessions: u32, ready: u32, boots: u32) -> Self {
        let life = Life { cooldown: Duration::from_secs(10), max_alive: Some(Duration::from_secs(60)) };
        Self { pool: Pool::new(Scale { max_sessions, ready, most_ready: ready, boots }, life), next: 0 }
    }

    /// A pool whose reservoir grows with demand.
    fn growing(max_sessions: u32, ready: u32, most_ready: u32, boots: u32) -> Self {
        let mut story = Self::new(max_sessions, ready, boots);
        story.pool.scale.most_ready = most_ready;
        story
    }

    fn begin(&mut self, count: u32, now: Moment) -> String {
        let made: Vec<_> = (0..count)
            .map(|_| {
                let sandbox = SandboxId([self.next; 16]);
                self.next += 1;
                self.pool.booting(sandbox, now);
                show(sandbox)
            })
            .collect();
        format!("boot {}", made.join(" "))
    }

    fn step(&mut self, now: Moment, words: &[&str]) -> String {
        let pool = &mut self.pool;
        match *words {
            ["claim", who] => match pool.claim(&name(who), now) {
                Claim::Existing(sandbox) => format!("existing {}", show(sandbox)),
                Claim::Fresh(sandbox) => format!("fresh {}", show(sandbox)),
                Claim::Wait => "wait".to_owned(),
                Claim::Full { active, limit, retry_after } => format!("full {active}/{limit} retry {retry_after:?}"),
            },
            ["come", number] => {
                let came = (0..number.parse().unwrap()).filter_map(|_| {
                    let who = name(&format!("guest{}", pool.counts().2));
                    if let Claim::Fresh(sandbox) = pool.claim(&who, now) { Some(show(sandbox)) } else { None }
                });
                format!("fresh {}", came.collect::<Vec<_>>().join(" "))
            }
            ["fill", waiting] => {
                let wanted = pool.wanted(waiting.parse().unwrap(), now);
                self.begin(wanted, now)
            }
            ["look"] => {
                let (wanted, surplus) = (pool.wanted(0, now), pool.surplus(0, now));
                let began = self.begin(wanted, now);
                let ended = surplus.map_or(String::new(), |sandbox| format!(" destroy {}", show(sandbox)));
                let again = self.pool.looks_again(now).map_or("event".to_owned(), |at| format!("{at:?}"));
                format!("{began}{ended} of {} until {again}", self.pool.target(now))
            }
            ["answered", which] => {
                pool.answered(sandbox(which), now);
                String::new()
            }
            ["ready", which] => if pool.ready(sandbox(which), now) { "ours" } else { "not ours" }.to_owned(),
            ["gone", which] => {
                pool.gone(sandbox(which), now).map_or("no session".to_owned(), |who| format!("lost {who}"))
            }
            ["fail"] => {
                pool.failed(now);
                format!("next at {:?}", pool.not_before().unwrap())
            }
            ["busy" | "idle", which] => {
                let session = pool.owner(sandbox(which)).and_then(|who| pool.session(who));
                let busy = session.map_or(0, |session| session.busy);
                let busy = if words[0] == "busy" { busy + 1 } else { busy.saturating_sub(1) };
                pool.seen(sandbox(which), now, busy);
                String::new()
            }
            ["remove", who] => {
                pool.remove(&name(who)).map_or("none".to_owned(), |sandbox| format!("destroy {}", show(sandbox)))
            }
            ["bind", who, which, created] => pool
                .bind(name(who), sandbox(which), seconds(created), now)
                .map_or("bound".to_owned(), |other| format!("destroy {}", show(other))),
            ["expire"] => {
                let (mut over, next) = pool.expired(now);
                over.sort();
                let over: Vec<_> = over.iter().map(ToString::to_string).collect();
                format!("{} then {}", over.join(" "), next.map_or("never".to_owned(), |at| format!("{at:?}")))
            }
            ref other => panic!("what is {other:?}?"),
        }
    }
}

/// Runs a story. After its last line come the counts.
fn check(mut story: Story, lines: &str, expected: &Expect) {
    let mut told = String::new();
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let words: Vec<&str> = line.split(' ').collect();
        let said = story.step(seconds(words[0]), &words[1..]);
        told.push_str(format!("{line} -> {said}").trim_end().trim_end_matches(" ->"));
        told.push('\n');
    }
    let (ready, booting, sessions) = story.pool.counts();
    told.push_str(&format!("ready {ready}, booting {booting}, sessions {sessions}\n"));
    expected.assert_eq(&told);
}

fn seconds(text: &str) -> Moment {
    Duration::from_secs_f64(text.trim_end_matches('s').parse().unwrap())
}

fn name(text: &str) -> SessionKey {
    Identifier::parse(text).unwrap().into()
}

fn sandbox(letter: &str) -> SandboxId {
    SandboxId([letter.as_bytes()[0] - b'a'; 16])
}

fn show(sandbox: SandboxId) -> String {
    char::from(b'a' + sandbox.0[0]).to_string()
}

#[test]
fn a_name_keeps_its_sandbox_and_gets_no_other() {
    check(
        Story::new(3, 2, 4),
        "0s fill 0
         1s ready a
         1s ready b
         1s ready b
         2s claim first
         3s claim first
         3s claim second
         3s claim third
         3s fill 1
         4s ready c
         4s claim third
         4s claim fourth
         4s fill 1",
        &expect![[r#"
            0s fill 0 -> boot a b
            1s ready a -> ours
            1s ready b -> ours
            1s ready b -> not ours
            2s claim first -> fresh a
            3s claim first -> existing a
            3s claim second -> fresh b
            3s claim third -> wait
            3s fill 1 -> boot c
            4s ready c -> ours
            4s claim third -> fresh c
            4s claim fourth -> full 3/3 retry 9s
            4s fill 1 -> boot
            ready 0, booting 0, sessions 3
        "#]],
    );
}

#[test]
fn a_full_pool_says_when_to_come_back() {
    check(
        Story::new(1, 1, 1),
        "0s fill 0
         0s ready a
         0s claim first
         3s claim second
         3s fill 1
         4s busy a
         9.5s claim second
         55s claim second
         56s idle a
         59.5s claim second
         60s remove first
         60s fill 1
         61s ready b
         61s claim second",
        &expect![[r#"
            0s fill 0 -> boot a
            0s ready a -> ours
            0s claim first -> fresh a
            3s claim second -> full 1/1 retry 7s
            3s fill 1 -> boot
            4s busy a
            9.5s claim second -> full 1/1 retry 10s
            55s claim second -> full 1/1 retry 5s
            56s idle a
            59.5s claim second -> full 1/1 retry 1s
            60s remove first -> destroy a
            60s fill 1 -> boot b
            61s ready b -> ours
            61s claim second -> fresh b
            ready 0, booting 0, sessions 1
        "#]],
    );
}

#[test]
fn idle_sessions_end_and_busy_ones_only_at_their_longest_life() {
    check(
        Story::new(5, 2, 4),
        "0s fill 0
         0s ready a
         0s ready b
         0s claim idle
         0s claim busy
         0s busy b
         9s expire
         10s expire
         10s remove idle
         30s expire
         31s idle b
         31s expire
         32s busy b
         59s expire
         60s expire
         60s remove busy
         60s expire",
        &expect![[r#"
            0s fill 0 -> boot a b
            0s ready a -> ours
            0s ready b -> ours
            0s claim idle -> fresh a
            0s claim busy -> fresh b
            0s busy b
            9s expire ->  then 10s
            10s expire -> idle then 20s
            10s remove idle -> destroy a
            30s expire ->  then 40s
            31s idle b
            31s expire ->  then 41s
            32s busy b
            59s expire ->  then 60s
            60s expire -> busy then never
            60s remove busy -> destroy b
            60s expire ->  then never
            ready 0, booting 0, sessions 0
        "#]],
    );
}

#[test]
fn failures_wait_longer_each_time_and_a_good_start_forgives() {
    check(
        Story::new(5, 1, 4),
        "0s fill 0
         0s gone a
         0s fill 0
         0.4s fill 1
         0.5s fill 0
         1s gone b
         1.9s fill 0
         2s fail
         3s fail
         4s fail
         5s fail
         6s fail
         7s fail
         8s fail
         9s fill 0
         38s fill 0
         39s ready c
         40s claim first
         40s fill 0",
        &expect![[r#"
            0s fill 0 -> boot a
            0s gone a -> no session
            0s fill 0 -> boot
            0.4s fill 1 -> boot
            0.5s fill 0 -> boot b
            1s gone b -> no session
            1.9s fill 0 -> boot
            2s fail -> next at 4s
            3s fail -> next at 7s
            4s fail -> next at 12s
            5s fail -> next at 21s
            6s fail -> next at 36s
            7s fail -> next at 37s
            8s fail -> next at 38s
            9s fill 0 -> boot
            38s fill 0 -> boot c
            39s ready c -> ours
            40s claim first -> fresh c
            40s fill 0 -> boot
            ready 0, booting 0, sessions 1
        "#]],
    );
}

#[test]
fn a_refill_begins_after_the_first_answer_or_a_short_time_later() {
    check(
        Story::growing(20, 2, 2, 4),
        "0s fill 0
         0s ready a
         0s ready b
         1s claim first
         1s look
         1.1s answered a
         1.1s look
         1.101s look
         1.2s ready c
         2s claim second
         2s claim third
         2s look
         2.1s answered c
         2.1s look
         2.102s look
         2.25s look
         3s answered c
         3s answered x",
        &expect![[r#"
            0s fill 0 -> boot a b
            0s ready a -> ours
            0s ready b -> ours
            1s claim first -> fresh a
            1s look -> boot  of 2 until 1.25s
            1.1s answered a
            1.1s look -> boot  of 2 until 1.101s
            1.101s look -> boot c of 2 until event
            1.2s ready c -> ours
            2s claim second -> fresh b
            2s claim third -> fresh c
            2s look -> boot  of 2 until 2.25s
            2.1s answered c
            2.1s look -> boot  of 2 until 2.101s
            2.102s look -> boot d of 2 until 2.25s
            2.25s look -> boot e of 2 until event
            3s answered c
            3s answered x
            ready 0, booting 2, sessions 3
        "#]],
    );
}

#[test]
fn callers_that_wait_put_nothing_off() {
    check(
        Story::growing(20, 1, 1, 2),
        "0s fill 0
         0s ready a
         1s claim first
         1s fill 0
         1s claim second
         1s fill 1",
        &expect![[r#"
            0s fill 0 -> boot a
            0s ready a -> ours
            1s claim first -> fresh a
            1s fill 0 -> boot
            1s claim second -> wait
            1s fill 1 -> boot b c
            ready 0, booting 2, sessions 1
        "#]],
    );
}

#[test]
fn the_reservoir_grows_with_demand_and_shrinks_slowly_when_it_is_quiet() {
    check(
        Story::growing(100, 3, 7, 4),
        "0s fill 0
         0.1s ready a
         0.1s ready b
         0.1s ready c
         10s come 3
         10.1s fill 4
         10.3s ready d
         10.3s ready e
         10.3s ready f
         10.3s ready g
         10.3s come 4
         10.4s look
         10.5s look
         10.6s look
         10.7s ready h
         10.7s ready i
         10.7s ready j
         10.7s ready k
         10.7s look
         11s ready l
         11s look
         12s look
         12.1s look
         14s look
         14.1s look
         17s look
         60s look",
        &expect![[r#"
            0s fill 0 -> boot a b c
            0.1s ready a -> ours
            0.1s ready b -> ours
            0.1s ready c -> ours
            10s come 3 -> fresh a b c
            10.1s fill 4 -> boot d e f g
            10.3s ready d -> ours
            10.3s ready e -> ours
            10.3s ready f -> ours
            10.3s ready g -> ours
            10.3s come 4 -> fresh d e f g
            10.4s look -> boot h of 5 until 10.55s
            10.5s look -> boot  of 5 until 10.55s
            10.6s look -> boot i j k of 5 until event
            10.7s ready h -> ours
            10.7s ready i -> ours
            10.7s ready j -> ours
            10.7s ready k -> ours
            10.7s look -> boot l of 5 until 12.7s
            11s ready l -> ours
            11s look -> boot  of 5 until 13s
            12s look -> boot  of 3 until 13s
            12.1s look -> boot  of 3 until 13.1s
            14s look -> boot  destroy l of 3 until 16s
            14.1s look -> boot  of 3 until 16s
            17s look -> boot  destroy k of 3 until event
            60s look -> boot  of 3 until event
            ready 3, booting 0, sessions 7
        "#]],
    );
}

#[test]
fn what_ends_in_a_session_says_nothing_of_the_next_one_with_its_name() {
    check(
        Story::new(5, 2, 4),
        "0s fill 0
         0s ready a
         0s ready b
         0s claim mine
         0s busy a
         1s remove mine
         1s claim mine
         1s busy b
         2s idle a
         20s expire
         21s gone a
         22s claim mine
         23s gone b
         24s gone b",
        &expect![[r#"
            0s fill 0 -> boot a b
            0s ready a -> ours
            0s ready b -> ours
            0s claim mine -> fresh a
            0s busy a
            1s remove mine -> destroy a
            1s claim mine -> fresh b
            1s busy b
            2s idle a
            20s expire ->  then 30s
            21s gone a -> no session
            22s claim mine -> existing b
            23s gone b -> lost mine
            24s gone b -> no session
            ready 0, booting 0, sessions 0
        "#]],
    );
}

#[test]
fn after_a_restart_a_session_is_where_it_was_and_as_old_as_it_is() {
    check(
        Story::new(5, 1, 4),
        "50s bind mine a 0
         50s bind mine b 20
         50s bind mine c 10
         50s bind mine b 20
         50s gone a
         50s claim mine
         79s claim mine
         79.9s expire
         80s expire",
        &expect![[r#"
            50s bind mine a 0 -> bound
            50s bind mine b 20 -> destroy a
            50s bind mine c 10 -> destroy c
            50s bind mine b 20 -> bound
            50s gone a -> no session
            50s claim mine -> existing b
            79s claim mine -> existing b
            79.9s expire ->  then 80s
            80s expire -> mine then never
            ready 0, booting 0, sessions 1
        "#]],
    );
}

/// Anything that can happen to a pool, in any order.
#[derive(Clone, Debug)]
enum Happening {
    Claim(u8),
    Fill(usize),
    /// The first sandbox that is being made is ready.
    Ready,
    /// A sandbox that is being made fails.
    Fails,
    /// The sandbox with this number, whatever it is by now.
    Gone(u8),
    Remove(u8),
    Busy(u8),
    Idle(u8),
    Later(u64),
    Expire,
    /// One that is too many ends, if there is one.
    Shrink,
    /// The first answer of a session is out.
    Answered(u8),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        4 => (0..8_u8).prop_map(Happening::Claim),
        3 => (0..4_usize).prop_map(Happening::Fill),
        4 => Just(Happening::Ready),
        1 => Just(Happening::Fails),
        1 => any::<u8>().prop_map(Happening::Gone),
        2 => (0..8_u8).prop_map(Happening::Remove),
        2 => (0..8_u8).prop_map(Happening::Busy),
        2 => (0..8_u8).prop_map(Happening::Idle),
        2 => (1..8_000_u64).prop_map(Happening::Later),
        1 => Just(Happening::Expire),
        2 => Just(Happening::Shrink),
        2 => (0..8_u8).prop_map(Happening::Answered),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_the_rules_hold(
        max in 1..6_u32,
        ready in 0..8_u32,
        more in 0..8_u32,
        boots in 1..4_u32,
        all in proptest::collection::vec(happening(), 0..120),
    ) {
        let life = Life { cooldown: Duration::from_secs(10), max_alive: Some(Duration::from_secs(30)) };
        let mut pool = Pool::new(Scale { max_sessions: max, ready, most_ready: ready + more, boots }, life);
        let mut now = Duration::ZERO;
        // The model: which sandboxes were made, which session each has served, and what goes on in each.
        let mut made: Vec<SandboxId> = Vec::new();
        let mut being_made: Vec<SandboxId> = Vec::new();
        let mut served: HashMap<SandboxId, (SessionKey, u64)> = HashMap::new();
        let mut busy: HashMap<SandboxId, usize> = HashMap::new();
        let mut sessions: HashMap<SessionKey, SandboxId> = HashMap::new();
        // Tells two sessions of one name apart.
        let mut number = 0;
        // Names the sandboxes.
        let mut next = 0_u8;
        let who = |digit: u8| name(&format!("name{digit}"));
        for happening in all {
            match happening {
                Happening::Claim(digit) => {
                    let who = who(digit);
                    match pool.claim(&who, now) {
                        Claim::Existing(sandbox) => prop_assert_eq!(sessions.get(&who), Some(&sandbox)),
                        Claim::Fresh(sandbox) => {
                            number += 1;
                            prop_assert!(made.contains(&sandbox) && !being_made.contains(&sandbox));
                            let before = served.insert(sandbox, (who.clone(), number));
                            prop_assert!(before.is_none(), "{} served {:?} before", sandbox, before);
                            prop_assert!(sessions.insert(who, sandbox).is_none());
                        }
                        Claim::Wait => prop_assert!(count(sessions.len()) < max && pool.counts().0 == 0),
                        Claim::Full { active, limit, retry_after } => {
                            prop_assert_eq!((active, limit), (max, max));
                            prop_assert!(retry_after >= Duration::from_secs(1) && retry_after <= Duration::from_secs(30));
                        }
                    }
                }
                Happening::Fill(waiting) => {
                    let wanted = pool.wanted(waiting, now);
                    prop_assert!(wanted + count(being_made.len()) <= boots || wanted == 0);
                    prop_assert!(wanted <= ready + more + count(waiting));
                    let (have_ready, booting, have_sessions) = pool.counts();
                    let is_paused = pool.not_before().is_some_and(|at| now < at);
                    let is_starving = have_ready == 0 && booting == 0 && have_sessions < max && !is_paused;
                    prop_assert!(wanted > 0 || waiting == 0 || !is_starving, "callers wait for nothing");
                    for _ in 0..wanted {
                        let sandbox = SandboxId([next; 16]);
                        let Some(after) = next.checked_add(1) else { return Ok(()) };
                        next = after;
                        made.push(sandbox);
                        being_made.push(sandbox);
                        pool.booting(sandbox, now);
                    }
                    prop_assert!(
                        wanted == 0 || pool.counts().0 + pool.counts().1 + pool.counts().2 <= max,
                        "more sandboxes than sessions may be"
                    );
                }
                Happening::Ready => {
                    if !being_made.is_empty() {
                        prop_assert!(pool.ready(being_made.remove(0), now));
                    }
                }
                Happening::Fails => {
                    if let Some(sandbox) = being_made.pop() {
                        prop_assert_eq!(pool.gone(sandbox, now), None);
                        prop_assert_eq!(pool.wanted(9, now), 0, "the next attempt waits");
                    }
                }
                Happening::Gone(at) if !made.is_empty() => {
                    let sandbox = made[usize::from(at) % made.len()];
                    being_made.retain(|other| *other != sandbox);
                    let lost = pool.gone(sandbox, now);
                    let mut expected = None;
                    sessions.retain(|who, other| {
                        if *other == sandbox {
                            expected = Some(who.clone());
                        }
                        *other != sandbox
                    });
                    prop_assert_eq!(lost, expected);
                }
                Happening::Gone(_) => {}
                Happening::Remove(digit) => prop_assert_eq!(pool.remove(&who(digit)), sessions.remove(&who(digit))),
                Happening::Busy(digit) => {
                    if let Some(sandbox) = sessions.get(&who(digit)) {
                        let count = busy.entry(*sandbox).or_default();
                        *count += 1;
                        pool.seen(*sandbox, now, *count);
                    }
                }
                Happening::Idle(digit) => {
                    // Also in a sandbox whose session is over: its last execution ends when it ends.
                    let found = busy.iter().find(|(sandbox, count)| **count > 0 && sandbox.0[0] % 8 == digit);
                    if let Some(sandbox) = found.map(|(sandbox, _)| *sandbox) {
                        let count = busy.entry(sandbox).or_default();
                        *count -= 1;
                        pool.seen(sandbox, now, *count);
                    }
                }
                Happening::Later(time) => now += Duration::from_millis(time),
                Happening::Expire => {
                    let (over, next) = pool.expired(now);
                    for who in over {
                        let session = pool.session(&who).unwrap().clone();
                        let old = now >= session.created + Duration::from_secs(30);
                        prop_assert!(old || session.busy == 0, "{} is in use", who);
                        prop_assert!(old || now >= session.used + Duration::from_secs(10));
                        prop_assert_eq!(pool.remove(&who), sessions.remove(&who));
                    }
                    prop_assert!(next.is_none_or(|next| next > now));
                    prop_assert_eq!(next.is_none(), sessions.is_empty());
                }
                Happening::Shrink => {
                    let (before, target) = (pool.counts().0, pool.target(now));
                    if let Some(sandbox) = pool.surplus(1, now) {
                        prop_assert!(!served.contains_key(&sandbox) && !pool.knows(sandbox));
                        prop_assert!(before > target + 1 && pool.surplus(0, now).is_none(), "slowly");
                        made.retain(|other| *other != sandbox);
                    }
                }
                Happening::Answered(digit) => {
                    if let Some(sandbox) = sessions.get(&who(digit)) {
                        pool.answered(*sandbox, now);
                    }
                }
            }
            let target = pool.target(now);
            prop_assert!(target <= ready + more && target + count(sessions.len()) <= max);
            // Nothing is put off for longer than ANSWER, and in the long run the reservoir is what was declared.
            let (have_ready, booting, _) = pool.counts();
            if have_ready + booting < target && booting < boots && pool.not_before().is_none_or(|at| at <= now) {
                prop_assert!(pool.wanted(0, now + ANSWER) > 0 || pool.target(now + ANSWER) <= have_ready + booting);
            }
            let later = now + Duration::from_secs(600);
            prop_assert_eq!(pool.target(later), ready.min(max - count(sessions.len())));
            prop_assert!(pool.looks_again(now).is_none_or(|at| at > now), "nothing spins");
            let (have_ready, booting, have_sessions) = pool.counts();
            prop_assert_eq!(count(being_made.len()), booting);
            prop_assert_eq!(count(sessions.len()), have_sessions);
            prop_assert!(have_sessions <= max);
            prop_assert_eq!(pool.known().count(), usize::try_from(have_ready + have_sessions).unwrap());
            for sandbox in &made {
                let is_leased = sessions.values().any(|other| other == sandbox);
                prop_assert_eq!(pool.owner(*sandbox).is_some(), is_leased);
                let is_ready = pool.knows(*sandbox) && !is_leased && !being_made.contains(sandbox);
                prop_assert!(!is_ready || !served.contains_key(sandbox), "from leased back to ready");
            }
            for (who, sandbox) in &sessions {
                let session = pool.session(who).unwrap();
                prop_assert_eq!(session.sandbox, *sandbox);
                prop_assert_eq!(session.busy, busy.get(sandbox).copied().unwrap_or(0));
            }
        }
    }
}

#[test]
fn sessions_are_idle_after_their_last_use_and_never_while_busy() {
    let scale = Scale { max_sessions: 2, ready: 0, most_ready: 0, boots: 1 };
    let life = Life { cooldown: Duration::from_secs(300), max_alive: None };
    let mut pool = Pool::new(scale, life);
    let (second, long) = (Duration::from_secs, Duration::from_secs(60));
    let key = |name: &str| SessionKey::from(Identifier::parse(name).unwrap());
    let (one, two, three) = (SandboxId([1; 16]), SandboxId([2; 16]), SandboxId([3; 16]));
    assert_eq!(pool.idle(long, second(1)), (Vec::new(), None));
    assert_eq!(pool.claim_with(&key("one1"), one, second(1)), Claim::Fresh(one));
    assert_eq!(pool.claim_with(&key("one1"), three, second(2)), Claim::Existing(one), "it is there, and used");
    assert_eq!(pool.claim_with(&key("two2"), two, second(3)), Claim::Fresh(two));
    assert!(matches!(pool.claim_with(&key("three"), three, second(4)), Claim::Full { active: 2, .. }));
    assert_eq!(pool.owner(three), None, "what had no place left no trace");
    pool.seen(two, second(3), 1);
    assert_eq!(pool.idle(long, second(61)), (Vec::new(), Some(second(62))));
    assert_eq!(pool.idle(long, second(62)), (vec![one], Some(second(122))), "one that is busy is looked at again");
    pool.seen(two, second(70), 0);
    assert_eq!(pool.remove(&key("one1")), Some(one));
    assert_eq!(pool.idle(long, second(130)), (vec![two], None));
}
