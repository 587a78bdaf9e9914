//! A pool's rules, as stories. Each line of a story is a moment, what happens, and what the pool says.
//!
//! ```text
//! 90ms claim s1     a sandbox for the session s1            -> fresh, existing, wait, full
//! 80ms fill 1       begins as many sandboxes as are wanted when one caller waits; they are called a, b, c, ...
//! ready, gone, fail, busy, idle, remove, expire, bind: as the functions of those names
//! ```

use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;

/// A pool, and the names of its sandboxes.
struct Story {
    pool: Pool,
    next: u8,
}

impl Story {
    fn new(max_sessions: u32, ready: u32, boots: u32) -> Self {
        let life = Life { cooldown: Duration::from_secs(10), max_alive: Some(Duration::from_secs(60)) };
        Self { pool: Pool::new(Scale { max_sessions, ready, boots }, life), next: 0 }
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
            ["fill", waiting] => {
                let wanted = pool.wanted(waiting.parse().unwrap(), now);
                let made: Vec<_> = (0..wanted)
                    .map(|_| {
                        let sandbox = SandboxId([self.next; 16]);
                        self.next += 1;
                        pool.booting(sandbox);
                        show(sandbox)
                    })
                    .collect();
                format!("boot {}", made.join(" "))
            }
            ["ready", which] => if pool.ready(sandbox(which)) { "ours" } else { "not ours" }.to_owned(),
            ["gone", which] => {
                pool.gone(sandbox(which), now).map_or("no session".to_owned(), |who| format!("lost {who}"))
            }
            ["fail"] => {
                pool.failed(now);
                format!("next at {:?}", pool.not_before().unwrap())
            }
            ["busy", which] => {
                pool.busy(sandbox(which), true, now);
                String::new()
            }
            ["idle", which] => {
                pool.busy(sandbox(which), false, now);
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
                let over: Vec<_> = over.iter().map(Identifier::as_str).collect();
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

fn name(text: &str) -> Identifier {
    Identifier::parse(text).unwrap()
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
            40s fill 0 -> boot d
            ready 0, booting 1, sessions 1
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
    ]
}

proptest! {
    #[test]
    fn whatever_happens_the_rules_hold(
        max in 1..6_u32,
        ready in 0..8_u32,
        boots in 1..4_u32,
        all in proptest::collection::vec(happening(), 0..120),
    ) {
        let life = Life { cooldown: Duration::from_secs(10), max_alive: Some(Duration::from_secs(30)) };
        let mut pool = Pool::new(Scale { max_sessions: max, ready, boots }, life);
        let mut now = Duration::ZERO;
        // The model: which sandboxes were made, which session each has served, and what goes on in each.
        let mut made: Vec<SandboxId> = Vec::new();
        let mut being_made: Vec<SandboxId> = Vec::new();
        let mut served: HashMap<SandboxId, (Identifier, u64)> = HashMap::new();
        let mut busy: HashMap<SandboxId, usize> = HashMap::new();
        let mut sessions: HashMap<Identifier, SandboxId> = HashMap::new();
        // Tells two sessions of one name apart.
        let mut number = 0;
        let who = |digit: u8| Identifier::parse(&format!("name{digit}")).unwrap();
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
                    prop_assert!(wanted <= ready + count(waiting));
                    for _ in 0..wanted {
                        let sandbox = SandboxId([u8::try_from(made.len() % 251).unwrap(); 16]);
                        if made.contains(&sandbox) {
                            return Ok(());
                        }
                        made.push(sandbox);
                        being_made.push(sandbox);
                        pool.booting(sandbox);
                    }
                    prop_assert!(
                        wanted == 0 || pool.counts().0 + pool.counts().1 + pool.counts().2 <= max,
                        "more sandboxes than sessions may be"
                    );
                }
                Happening::Ready => {
                    if !being_made.is_empty() {
                        prop_assert!(pool.ready(being_made.remove(0)));
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
                        pool.busy(*sandbox, true, now);
                        *busy.entry(*sandbox).or_default() += 1;
                    }
                }
                Happening::Idle(digit) => {
                    // Also in a sandbox whose session is over: its last execution ends when it ends.
                    let found = busy.iter().find(|(sandbox, count)| **count > 0 && sandbox.0[0] % 8 == digit);
                    if let Some(sandbox) = found.map(|(sandbox, _)| *sandbox) {
                        pool.busy(sandbox, false, now);
                        busy.entry(sandbox).and_modify(|count| *count -= 1);
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
            }
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
