//! Sessions on disk: suspended, resumed, copied, forked; and what is found of them after a crash.

mod support;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use sandpool_driver::memory::{Memory, MemoryConfig, Operation};
use sandpool_node::cut::{After, CutDisk};
use sandpool_node::{
    Caller, EgressPolicy, ExecuteRequest, Given, Isolation, Keeps, NodeError, Open, PoolSpec, SessionSecret, Stop,
    Suspends, Whose,
};
use support::*;

const WHO: &str = "chat-17";

fn machines(spec: &mut PoolSpec) {
    spec.isolation = Isolation::Microvm;
}

fn me() -> Caller {
    Caller { subject: "me".to_owned() }
}

async fn suspend(bench: &Bench, who: &str) -> Result<sandpool_node::SessionInfo, NodeError> {
    bench.node.suspend(&bench.pool, &name(who), false, &me()).await
}

async fn with_state(change: impl FnOnce(&mut PoolSpec)) -> Bench {
    let bench = Bench::new(change).await;
    bench.open(WHO).await.unwrap();
    bench.run(WHO, "set x 7\nsave /mnt/data/kept as it was").await;
    bench
}

/// What is left of the state: its file, and its variable.
async fn state(bench: &Bench, who: &str) -> (String, String) {
    let file = bench.run(who, "load /mnt/data/kept").await;
    let variable = bench.run(who, "get x").await;
    (stdout(&file).to_owned(), text(&variable).to_owned())
}

fn both(file: &str, variable: &str) -> (String, String) {
    (file.to_owned(), variable.to_owned())
}

#[tokio::test(start_paused = true)]
async fn files_outlive_a_sandbox_of_processes_and_the_next_request_hears_what_did_not() {
    let bench = with_state(|_| {}).await;
    let before = bench.node.session(&bench.pool, &name(WHO)).unwrap();
    let suspended = suspend(&bench, WHO).await.unwrap();
    let away = suspended.suspended.clone().unwrap();
    assert_eq!((away.keeps, suspended.sandbox, suspended.created), (Keeps::Files, before.sandbox, before.created));
    assert!(away.bytes > 0);
    assert_eq!(suspend(&bench, WHO).await.unwrap().suspended, Some(away), "again is fine");
    assert!(!bench.memory.sandboxes().iter().any(|sandbox| sandbox.id == before.sandbox), "its sandbox is gone");
    let listed = bench.node.sessions(&bench.pool, Whose::Everybody).unwrap();
    assert!(listed.len() == 1 && listed[0].suspended.is_some());
    // Who only looks does not wake it.
    let looked = bench.node.executions(&bench.pool, &name(WHO)).await.unwrap_err();
    assert_eq!(looked, NodeError::Suspended(name(WHO).identifier));
    let request = || ExecuteRequest { id: None, work: code("load /mnt/data/kept"), timeout: None, output_limit: None };
    let first = bench.node.execute(&bench.pool, &name(WHO), request()).await.unwrap();
    assert_eq!(first.resumed(), Some(Keeps::Files));
    assert_eq!(stdout(&first.wait(LONG).await), "as it was");
    let second = bench.node.execute(&bench.pool, &name(WHO), request()).await.unwrap();
    assert_eq!(second.resumed(), None, "it is told once");
    assert_eq!(state(&bench, WHO).await, both("as it was", ""));
    let after = bench.node.session(&bench.pool, &name(WHO)).unwrap();
    assert!(after.sandbox != before.sandbox && after.suspended.is_none());
    assert_eq!((after.created, after.owner), (before.created, before.owner));
    bench.check_no_leak().await;
}

#[tokio::test(start_paused = true)]
async fn all_of_a_machine_outlives_it_with_what_is_known_of_its_executions() {
    let mut bench = with_state(machines).await;
    let done = bench.run(WHO, "out said").await;
    suspend(&bench, WHO).await.unwrap();
    // Everything is killed, and started again.
    bench.memory = Memory::new(MemoryConfig::default());
    bench.restart().await;
    let opened = bench.node.resume(&bench.pool, &name(WHO), &me()).await.unwrap();
    assert_eq!((opened.resumed, opened.new), (Some(Keeps::Machine), false));
    assert!(opened.session.sandbox.is_loaded());
    assert_eq!(state(&bench, WHO).await, both("as it was", "7"));
    let known = bench.node.execution(&bench.pool, &name(WHO), &done.id).await.unwrap().snapshot();
    assert_eq!(stdout(&known), "said\n");
    assert_eq!(bench.node.resume(&bench.pool, &name(WHO), &me()).await.unwrap().resumed, None);
    bench.check_no_leak().await;
}

#[tokio::test(start_paused = true)]
async fn of_many_requests_at_once_one_wakes_it_and_all_are_served() {
    for change in [machines as fn(&mut PoolSpec), |_| {}] {
        let bench = with_state(change).await;
        suspend(&bench, WHO).await.unwrap();
        let key = name(WHO);
        let asked = (0..40).map(|number| {
            let (node, pool, key) = (&bench.node, &bench.pool, &key);
            async move {
                if number % 3 == 0 {
                    node.stat_file(pool, key, "/mnt/data/kept").await.map(drop)
                } else if number % 3 == 1 {
                    node.open(pool, key, Open::OrCreate, &me()).await.map(drop)
                } else {
                    let work = shell("load /mnt/data/kept");
                    let request = ExecuteRequest { id: None, work, timeout: None, output_limit: None };
                    let ran = node.execute(pool, key, request).await?.wait(LONG).await;
                    assert_eq!(stdout(&ran), "as it was");
                    Ok(())
                }
            }
        });
        for answer in futures::future::join_all(asked).await {
            answer.unwrap();
        }
        assert_eq!(bench.node.sessions(&bench.pool, Whose::Everybody).unwrap().len(), 1);
        bench.check_no_leak().await;
    }
}

#[tokio::test(start_paused = true)]
async fn requests_and_suspending_at_once_lose_nothing() {
    let bench = with_state(machines).await;
    let key = name(WHO);
    let counted = AtomicU64::new(0);
    let asking = async {
        for number in 0..200_u32 {
            let work = code(&format!("set n{number} {number}"));
            let request = ExecuteRequest { id: None, work, timeout: None, output_limit: None };
            let ran = bench.node.execute(&bench.pool, &key, request).await.unwrap().wait(LONG).await;
            assert_eq!(ran.state, ended(sandpool_node::Outcome::Succeeded));
            counted.fetch_add(1, Ordering::Relaxed);
            // Now and then somebody thinks.
            if number % 4 == 0 {
                tokio::time::sleep(std::time::Duration::from_millis(3)).await;
            }
        }
    };
    let mut suspended = 0;
    let suspending = async {
        while counted.load(Ordering::Relaxed) < 200 {
            match suspend(&bench, WHO).await {
                Ok(_) => suspended += 1,
                Err(NodeError::Busy { .. }) => {}
                Err(error) => panic!("{error}"),
            }
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    };
    tokio::join!(asking, suspending);
    assert!(suspended > 0, "it was suspended in between");
    for number in [0, 57, 199] {
        assert_eq!(text(&bench.run(WHO, &format!("get n{number}")).await), number.to_string());
    }
}

#[tokio::test(start_paused = true)]
async fn what_runs_is_in_the_way_unless_it_is_ended() {
    let bench = with_state(|_| {}).await;
    let running = bench.start(WHO, code("wait")).await.unwrap();
    let refused = suspend(&bench, WHO).await.unwrap_err();
    assert_eq!(refused, NodeError::Busy { identifier: name(WHO).identifier, busy: 1 });
    bench.start(WHO, shell("out it goes on")).await.unwrap().wait(LONG).await;
    let (key, caller) = (name(WHO), me());
    let (ended_so, suspended) = tokio::join!(running.wait(LONG), bench.node.suspend(&bench.pool, &key, true, &caller));
    suspended.unwrap();
    assert_eq!(ended_so.state, ended(sandpool_node::Outcome::Cancelled));
    assert_eq!(state(&bench, WHO).await, both("as it was", ""));
    drop(running.stop(Stop::Kill).await);
}

#[tokio::test(start_paused = true)]
async fn a_session_is_given_again_what_it_had_and_what_cannot_be_given_is_not_suspended() {
    let bench = Bench::new(|spec| {
        spec.session_secrets = true;
        spec.egress = Some(EgressPolicy::default());
    })
    .await;
    let given = Given { env: vec![("OWN".to_owned(), "mine".to_owned())], secrets: Vec::new() };
    bench.node.open_with(&bench.pool, &name(WHO), Open::OrCreate, given, &me()).await.unwrap();
    let policy = EgressPolicy::default();
    bench.node.narrow(&bench.pool, &name(WHO), Some(&policy)).await.unwrap();
    suspend(&bench, WHO).await.unwrap();
    assert!(matches!(bench.node.narrow(&bench.pool, &name(WHO), None).await, Err(NodeError::Suspended(_))));
    let told = bench.run(WHO, "env OWN\nenv SAID").await;
    assert_eq!(stdout(&told), "mine\nhello\n");
    assert_eq!(bench.node.reached(&bench.pool, &name(WHO)).await.unwrap().1, Some(policy), "as narrow as before");
    let secret = SessionSecret {
        name: "KEY".to_owned(),
        value: "the-value-itself".to_owned(),
        hosts: vec!["api.example".to_owned()],
    };
    let given = Given { env: Vec::new(), secrets: vec![secret] };
    bench.node.open_with(&bench.pool, &name("chat-18"), Open::OrCreate, given, &me()).await.unwrap();
    for mut bench in [bench] {
        let refused = suspend(&bench, "chat-18").await.unwrap_err();
        assert!(matches!(&refused, NodeError::NotSuspendable(why) if why.contains("secrets")), "{refused}");
        // Also by a server that was not there when it was given them.
        bench.restart().await;
        assert!(matches!(suspend(&bench, "chat-18").await, Err(NodeError::NotSuspendable(_))));
    }
}

#[tokio::test(start_paused = true)]
async fn a_narrowed_machine_is_narrow_before_anything_of_it_runs() {
    let bench = with_state(|spec| {
        machines(spec);
        spec.egress = Some(EgressPolicy::default());
    })
    .await;
    bench.node.narrow(&bench.pool, &name(WHO), Some(&EgressPolicy::default())).await.unwrap();
    suspend(&bench, WHO).await.unwrap();
    // From its load on, without a further call.
    bench.memory.refuse_only(Operation::Usage, u32::MAX);
    bench.node.resume(&bench.pool, &name(WHO), &me()).await.unwrap();
    bench.memory.refuse_only(Operation::Usage, 0);
    let own = bench.node.reached(&bench.pool, &name(WHO)).await.unwrap().1;
    assert_eq!(own, Some(EgressPolicy::default()));
}

#[tokio::test(start_paused = true)]
async fn copies_are_taken_listed_forked_and_removed() {
    for change in [machines as fn(&mut PoolSpec), |_| {}] {
        let bench = with_state(change).await;
        let (pool, key) = (&bench.pool, name(WHO));
        let kept = bench.memory.sandboxes().len();
        let copy = bench.node.snapshot(pool, &key, Some("first".to_owned()), &me()).await.unwrap();
        assert_eq!(bench.memory.sandboxes().len(), kept, "it goes on");
        let again = bench.node.snapshot(pool, &key, Some("first".to_owned()), &me()).await.unwrap_err();
        assert!(matches!(again, NodeError::Invalid(_)));
        bench.run(WHO, "set x 8\nsave /mnt/data/kept later").await;
        assert_eq!(bench.node.snapshots(pool, &key).unwrap(), std::slice::from_ref(&copy));
        // Of another session it is none, whoever guesses.
        let other = bench.node.fork(pool, &name("chat-99"), Some("first"), &name("fork-0"), &me()).await.unwrap_err();
        assert!(matches!(other, NodeError::NoSnapshot(_)));
        let is_machine = copy.keeps == Keeps::Machine;
        let variable = |value: &str| if is_machine { value.to_owned() } else { String::new() };
        let by_name = bench.node.fork(pool, &key, Some("first"), &name("fork-1"), &me()).await.unwrap();
        assert!(by_name.new && by_name.session.owner == "me" && by_name.resumed == Some(copy.keeps));
        assert_eq!(state(&bench, "fork-1").await, ("as it was".to_owned(), variable("7")));
        assert_eq!(state(&bench, WHO).await, both("later", "8"), "the other went on");
        bench.node.delete_session(pool, &name("fork-1")).await.unwrap();
        bench.node.fork(pool, &key, None, &name("fork-2"), &me()).await.unwrap();
        assert_eq!(state(&bench, "fork-2").await, ("later".to_owned(), variable("8")));
        bench.run("fork-2", "set x 9\nsave /mnt/data/kept its own").await;
        assert_eq!(state(&bench, WHO).await, both("later", "8"));
        let taken = bench.node.fork(pool, &key, None, &name("fork-2"), &me()).await.unwrap_err();
        assert_eq!(taken, NodeError::SessionExists(name("fork-2").identifier));
        // Of one that is suspended, which stays so.
        suspend(&bench, "fork-2").await.unwrap();
        let taken = bench.node.fork(pool, &key, None, &name("fork-2"), &me()).await.unwrap_err();
        assert_eq!(taken, NodeError::SessionExists(name("fork-2").identifier));
        bench.node.fork(pool, &name("fork-2"), None, &name("fork-3"), &me()).await.unwrap();
        assert_eq!(state(&bench, "fork-3").await, ("its own".to_owned(), variable("9")));
        assert!(bench.node.session(pool, &name("fork-2")).unwrap().suspended.is_some());
        // A copy outlives its session.
        bench.node.delete_session(pool, &key).await.unwrap();
        bench.node.delete_snapshot(pool, &key, &copy.id.to_string(), &me()).await.unwrap();
        let gone = bench.node.delete_snapshot(pool, &key, "first", &me()).await.unwrap_err();
        assert!(matches!(gone, NodeError::NoSnapshot(_)));
        bench.check_no_leak().await;
    }
}

#[tokio::test(start_paused = true)]
async fn idle_sessions_are_suspended_and_suspended_ones_end() {
    let bench = with_state(|spec| spec.suspends.after = Some(seconds(60))).await;
    let running = bench.start(WHO, shell("sleep 100000")).await.unwrap();
    tokio::time::advance(seconds(90)).await;
    bench.until("what runs is not idle", |bench| bench.node.session(&bench.pool, &name(WHO)).is_ok()).await;
    assert!(bench.node.session(&bench.pool, &name(WHO)).unwrap().suspended.is_none());
    running.wait(LONG).await;
    bench
        .until("it is suspended", |bench| {
            bench.node.session(&bench.pool, &name(WHO)).is_ok_and(|session| session.suspended.is_some())
        })
        .await;
    assert_eq!(state(&bench, WHO).await, both("as it was", ""));
    bench.node.delete_session(&bench.pool, &name(WHO)).await.unwrap();

    let bench = with_state(|spec| spec.suspends = Suspends { after: Some(seconds(60)), kept_for: seconds(0) }).await;
    bench
        .until("it ends on disk", |bench| {
            bench.node.session(&bench.pool, &name(WHO)).is_err() && bench.node.metrics().pools[0].suspended == 0
        })
        .await;
    assert!(bench.open(WHO).await.unwrap().new, "its name is free");
}

#[tokio::test(start_paused = true)]
async fn a_suspended_session_takes_no_place_and_wakes_within_the_rules() {
    let bench = with_state(|spec| spec.scale.max_sessions = 1).await;
    suspend(&bench, WHO).await.unwrap();
    bench.open("chat-18").await.unwrap();
    let full = bench.node.resume(&bench.pool, &name(WHO), &me()).await.unwrap_err();
    assert!(matches!(full, NodeError::Exhausted { .. }), "{full}");
    assert!(bench.node.session(&bench.pool, &name(WHO)).unwrap().suspended.is_some(), "it waits on disk");
    bench.node.delete_session(&bench.pool, &name("chat-18")).await.unwrap();
    assert_eq!(state(&bench, WHO).await, both("as it was", ""));
    suspend(&bench, WHO).await.unwrap();
    bench.node.delete_session(&bench.pool, &name(WHO)).await.unwrap();
    let gone = bench.node.resume(&bench.pool, &name(WHO), &me()).await.unwrap_err();
    assert_eq!(gone, NodeError::NoSession(name(WHO).identifier));
    // With its pool all goes.
    bench.open("chat-19").await.unwrap();
    bench.node.snapshot(&bench.pool, &name("chat-19"), None, &me()).await.unwrap();
    suspend(&bench, "chat-19").await.unwrap();
    bench.node.remove(&bench.pool).await.unwrap();
    assert!(sandpool_names(&bench.disk).is_empty());
}

fn sandpool_names(disk: &CutDisk) -> Vec<String> {
    use sandpool_store::snapshots::Disk;
    disk.names(Path::new("/snapshots")).unwrap()
}

/// The file of the first snapshot.
fn file_of(disk: &CutDisk, file: &str) -> std::path::PathBuf {
    Path::new("/snapshots").join(&sandpool_names(disk)[0]).join(file)
}

#[tokio::test(start_paused = true)]
async fn what_is_damaged_or_of_another_pool_is_refused_and_says_so() {
    for file in ["files", "manifest.json"] {
        let mut bench = with_state(|_| {}).await;
        suspend(&bench, WHO).await.unwrap();
        bench.disk.spoil(&file_of(&bench.disk, file), |bytes| bytes[30] ^= 1);
        for _ in 0..2 {
            for open in [Open::OrCreate, Open::Existing] {
                let refused = bench.node.open(&bench.pool, &name(WHO), open, &me()).await.unwrap_err();
                let is_named = matches!(&refused, NodeError::SnapshotDamaged { why, .. } if why.contains(file));
                assert!(is_named, "{file}: {refused}");
            }
            assert_eq!(sandpool_names(&bench.disk).len(), 1, "it is kept");
            bench.restart().await;
        }
        bench.node.delete_session(&bench.pool, &name(WHO)).await.unwrap();
        assert!(bench.open(WHO).await.unwrap().new);
        bench.check_no_leak().await;
    }
    for (change, word) in [
        ((|spec| spec.rootfs = "/other/rootfs".into()) as fn(&mut PoolSpec), "image"),
        (|spec| spec.limits.memory += 1, "limits.memory"),
        (|spec| spec.limits.data -= 1, "limits.dataDisk"),
    ] {
        let bench = with_state(|spec| spec.rootfs = "/image/rootfs".into()).await;
        suspend(&bench, WHO).await.unwrap();
        let mut spec = bench.node.pool(&bench.pool).unwrap().spec;
        change(&mut spec);
        bench.node.apply(spec).await.unwrap();
        let refused = bench.node.resume(&bench.pool, &name(WHO), &me()).await.unwrap_err();
        let is_named = matches!(&refused, NodeError::SnapshotUnusable { why, .. } if why.contains(word));
        assert!(is_named, "{word}: {refused}");
        assert!(bench.node.session(&bench.pool, &name(WHO)).unwrap().suspended.is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn what_fails_on_the_way_leaves_the_session_as_it_was() {
    for change in [machines as fn(&mut PoolSpec), |_| {}] {
        let bench = with_state(change).await;
        bench.disk.has_room_for(10);
        let refused = suspend(&bench, WHO).await.unwrap_err();
        assert!(matches!(refused, NodeError::SnapshotsFull(_)), "{refused}");
        assert_eq!(state(&bench, WHO).await, both("as it was", "7"), "it goes on");
        assert!(sandpool_names(&bench.disk).is_empty());
        bench.disk.has_room_for(1 << 30);
        suspend(&bench, WHO).await.unwrap();
        // The driver does not answer: what was there is there.
        for operation in [Operation::Load, Operation::Assign, Operation::Activate, Operation::Dial] {
            bench.memory.refuse_only(operation, 3);
            drop(bench.node.resume(&bench.pool, &name(WHO), &me()).await);
            bench.memory.refuse_only(operation, 0);
            let is_there = bench.node.session(&bench.pool, &name(WHO)).unwrap();
            if is_there.suspended.is_none() {
                suspend(&bench, WHO).await.unwrap();
            }
        }
        assert_eq!(state(&bench, WHO).await.0, "as it was");
        bench.check_no_leak().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_killed_server_left_of_a_machine_is_nobodys() {
    let mut bench = with_state(machines).await;
    suspend(&bench, WHO).await.unwrap();
    // It is killed while the machine comes back: a load that nobody waits for.
    let (key, caller) = (name(WHO), me());
    let resuming = bench.node.resume(&bench.pool, &key, &caller);
    let _ = tokio::time::timeout(std::time::Duration::ZERO, resuming).await;
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    bench.restart().await;
    bench.until("the reservoir is full", |bench| bench.node.is_ready()).await;
    for who in ["chat-20", "chat-21"] {
        bench.open(who).await.unwrap();
        assert_eq!(text(&bench.run(who, "get x").await), "", "no other's variables");
    }
    assert_eq!(state(&bench, WHO).await, both("as it was", "7"));
    bench.check_no_leak().await;
}

/// Suspends, resumes, changes and suspends again; what was promised last.
async fn story(bench: &Bench) -> &'static str {
    let mut promised = "one";
    bench.open(WHO).await.unwrap();
    bench.run(WHO, "save /mnt/data/kept one").await;
    if suspend(bench, WHO).await.is_err() || bench.disk.is_off() {
        return promised;
    }
    // Whatever answers, the state behind it must be there.
    let Ok(_) = bench.node.resume(&bench.pool, &name(WHO), &me()).await else { return promised };
    if bench.disk.is_off() {
        return promised;
    }
    bench.run(WHO, "save /mnt/data/kept two").await;
    promised = "two";
    drop(suspend(bench, WHO).await);
    promised
}

#[tokio::test(start_paused = true)]
async fn whenever_the_power_is_cut_a_session_is_as_before_or_suspended_whole() {
    let whole = Bench::new(|_| {}).await;
    assert_eq!(story(&whole).await, "two");
    let operations = whole.disk.operations();
    assert!(operations > 15, "{operations}");
    for operation in 0..=operations {
        for (bytes, after, everything) in [
            (0, After::Kept, false),
            (3, After::Kept, true),
            (0, After::Lost, true),
            (9, After::Mixed(u64::try_from(operation).unwrap()), true),
        ] {
            let at = format!("operation {operation}+{bytes}, {after:?}, everything {everything}");
            let mut bench = Bench::new(|_| {}).await;
            bench.disk.cut_at(operation, bytes);
            // The server goes with the power: from then on it does nothing to its sandboxes either.
            let host = bench.memory.clone();
            bench.disk.when_cut(move || drop(host.driver()));
            if operation == 0 {
                // Before the first start there was nothing.
                bench.restart().await;
                continue;
            }
            let promised = story(&bench).await;
            let was_suspended = bench.node.session(&bench.pool, &name(WHO)).is_ok_and(|it| it.suspended.is_some());
            bench.disk = bench.disk.after(after);
            if everything {
                bench.memory = Memory::new(MemoryConfig::default());
            }
            bench.restart().await;
            match bench.node.open(&bench.pool, &name(WHO), Open::Existing, &me()).await {
                Ok(_) => {
                    let found = state(&bench, WHO).await.0;
                    assert_eq!(found, promised, "{at}");
                }
                // With everything killed, one that was alive is gone as every other; nothing stands for it.
                Err(NodeError::NoSession(_)) => assert!(everything && !was_suspended, "{at}: it was on disk"),
                Err(error) => panic!("{at}: {error}"),
            }
            bench.check_no_leak().await;
        }
    }
}
