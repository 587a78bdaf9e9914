//! Sessions: how they are found and made, how they end, and what becomes of them when things break.

mod support;

use std::time::Duration;

use sandpool_driver::memory::{Boot, Memory, MemoryConfig, Operation};
use sandpool_driver::{Driver, GoneReason, Owner};
use sandpool_node::{ExecutionState, NodeError, Open, Outcome};
use support::{Bench, LONG, code, ended, name, ready, seconds, shell, spec, stdout, text};

#[tokio::test(start_paused = true)]
async fn a_hundred_callers_of_one_name_get_one_session() {
    let bench = Bench::new(|_| ()).await;
    let all = futures::future::join_all((0..100).map(|_| bench.open("same"))).await;
    let opened: Vec<_> = all.into_iter().map(Result::unwrap).collect();
    assert_eq!(opened.iter().filter(|one| one.new).count(), 1);
    assert!(opened.iter().all(|one| one.session.sandbox == opened[0].session.sandbox));
    assert_eq!(bench.memory.sandboxes().iter().filter(|sandbox| sandbox.owner.is_some()).count(), 1);
    bench.check_no_leak().await;
}

#[tokio::test(start_paused = true)]
async fn a_hundred_names_get_three_sessions_and_the_rest_hear_when_to_come_back() {
    let bench = Bench::new(|_| ()).await;
    let names: Vec<String> = (0..100).map(|number| format!("name-{number}")).collect();
    let all = futures::future::join_all(names.iter().map(|name| bench.open(name))).await;
    let mut sandboxes: Vec<_> = all.iter().flatten().map(|one| one.session.sandbox).collect();
    sandboxes.sort();
    sandboxes.dedup();
    assert_eq!(sandboxes.len(), 3, "each has its own");
    for refused in all.iter().filter_map(|one| one.as_ref().err()) {
        let NodeError::Exhausted { active: 3, limit: 3, retry_after, .. } = refused else { panic!("{refused:?}") };
        assert!(*retry_after > seconds(290) && *retry_after <= seconds(300), "{retry_after:?}");
    }
    assert_eq!(all.iter().filter(|one| one.is_err()).count(), 97);
    assert_eq!(bench.memory.sandboxes().len(), 3, "a full pool keeps nothing in reserve that nobody may have");
    let one = all.iter().flatten().next().unwrap().session.identifier.clone().into();
    bench.node.delete_session(&bench.pool, &one).await.unwrap();
    assert!(bench.open("another").await.unwrap().new);
    bench.check_no_leak().await;
}

#[tokio::test(start_paused = true)]
async fn a_taken_sandbox_is_replaced_after_the_first_answer_and_not_before() {
    let bench = Bench::new(|_| ()).await;
    bench.until_full().await;
    let reservoir = || {
        let status = bench.node.pool(&bench.pool).unwrap();
        status.ready + status.booting
    };
    bench.open("answered").await.unwrap();
    let handle = bench.start("answered", code("sleep 100")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(reservoir(), 0, "the caller comes first");
    handle.wait(LONG).await;
    bench.until_full().await;
    bench.open("silent").await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(reservoir(), 0, "its first request may come yet");
    bench.until_full().await;
    bench.check_no_leak().await;
}

#[tokio::test(start_paused = true)]
async fn a_deleted_session_leaves_nothing_to_the_next_of_its_name() {
    let bench = Bench::new(|_| ()).await;
    let first = bench.open("mine").await.unwrap().session.sandbox;
    bench.run("mine", "set k 1\nsave /mnt/data/f x").await;
    bench.node.delete_session(&bench.pool, &name("mine")).await.unwrap();
    assert!(bench.memory.sandboxes().iter().all(|sandbox| sandbox.id != first), "gone when it is answered");
    let again = bench.node.delete_session(&bench.pool, &name("mine")).await;
    assert_eq!(again, Err(NodeError::NoSession(name("mine").identifier)));
    assert_eq!(bench.start("mine", code("get k")).await.unwrap_err(), NodeError::NoSession(name("mine").identifier));
    assert!(bench.open("mine").await.unwrap().new);
    assert_eq!(bench.run("mine", "get k").await.state, ended(Outcome::Raised));
    let file = bench.node.stat_file(&bench.pool, &name("mine"), "/mnt/data/f").await;
    assert!(matches!(file, Err(NodeError::NoFile(_))), "{file:?}");
}

#[tokio::test(start_paused = true)]
async fn use_and_running_executions_put_the_cool_down_off() {
    let bench = Bench::new(|spec| spec.max_timeout = LONG).await;
    bench.open("used").await.unwrap();
    bench.open("busy").await.unwrap();
    bench.open("idle").await.unwrap();
    let handle = bench.start("busy", shell("sleep 1000000")).await.unwrap();
    let there = |who: &str| bench.node.session(&bench.pool, &name(who)).is_ok();
    tokio::time::sleep(seconds(200)).await;
    bench.open("used").await.unwrap();
    tokio::time::sleep(seconds(99)).await;
    assert!(there("used") && there("busy") && there("idle"));
    tokio::time::sleep(seconds(2)).await;
    assert!(there("used") && there("busy") && !there("idle"));
    tokio::time::sleep(seconds(200)).await;
    assert!(!there("used") && there("busy"));
    // 501 s: the execution ends at 1,000 s, and the cool-down begins.
    assert_eq!(handle.wait(LONG).await.state, ended(Outcome::Exited(0)));
    tokio::time::sleep(seconds(299)).await;
    assert!(there("busy"));
    tokio::time::sleep(seconds(2)).await;
    assert!(!there("busy"));
    let after = bench.node.open(&bench.pool, &name("busy"), Open::Existing, &Default::default()).await;
    assert_eq!(
        after.unwrap_err(),
        NodeError::NoSession(name("busy").identifier),
        "it ended as it should: it was not lost"
    );
    bench.check_no_leak().await;
}

#[tokio::test(start_paused = true)]
async fn what_ends_late_in_a_deleted_session_does_not_touch_the_next_of_its_name() {
    let bench = Bench::new(|spec| spec.max_timeout = LONG).await;
    bench.open("mine").await.unwrap();
    let old = bench.start("mine", shell("wait")).await.unwrap();
    bench.node.delete_session(&bench.pool, &name("mine")).await.unwrap();
    bench.open("mine").await.unwrap();
    bench.start("mine", shell("sleep 1000000")).await.unwrap();
    assert!(matches!(old.wait(LONG).await.state, ExecutionState::Ended(_)));
    tokio::time::sleep(seconds(900)).await;
    assert_eq!(bench.node.session(&bench.pool, &name("mine")).unwrap().busy, 1);
}

#[tokio::test(start_paused = true)]
async fn the_longest_life_ends_also_what_is_in_use_and_a_restart_does_not_prolong_it() {
    let mut bench = Bench::new(|spec| {
        spec.life.max_alive = Some(seconds(600));
        spec.max_timeout = LONG;
    })
    .await;
    let opened = bench.open("mine").await.unwrap();
    let handle = bench.start("mine", shell("wait")).await.unwrap();
    tokio::time::sleep(seconds(599)).await;
    assert_eq!(bench.open("mine").await.unwrap().session.sandbox, opened.session.sandbox);
    tokio::time::sleep(seconds(2)).await;
    assert!(bench.node.session(&bench.pool, &name("mine")).is_err());
    assert!(matches!(handle.snapshot().state, ExecutionState::Ended(_)), "{:?}", handle.snapshot());
    // Under paused time a clock does not go on, so an old record stands in for an old session.
    let driver = bench.memory.driver();
    let id = sandpool_core::ids::SandboxId([9; 16]);
    driver.create(id, &bench.pool).await.unwrap();
    bench
        .until("it is ready", |bench| bench.memory.sandboxes().iter().any(|one| one.id == id && one.boot_id.is_some()))
        .await;
    let created = std::time::SystemTime::now() - seconds(590);
    let millis = created.duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    driver.assign(id, &Owner { record: format!("olds\n{millis}\nme").into_bytes() }).await.unwrap();
    driver.activate(id, &Default::default()).await.unwrap();
    bench.restart().await;
    assert!(!bench.open("olds").await.unwrap().new);
    tokio::time::sleep(seconds(12)).await;
    assert!(bench.node.session(&bench.pool, &name("olds")).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_lost_session_is_told_once_and_then_its_name_is_anybodys() {
    let bench = Bench::new(|_| ()).await;
    for (reason, told) in
        [(GoneReason::OutOfMemory, "its memory was used up"), (GoneReason::Died("signal 9".to_owned()), "signal 9")]
    {
        let sandbox = bench.open("mine").await.unwrap().session.sandbox;
        let handle = bench.start("mine", code("out on\nwait")).await.unwrap();
        bench.until("it runs", |_| handle.snapshot().stdout == b"on\n").await;
        assert!(bench.memory.kill(sandbox, reason));
        let seen = handle.wait(LONG).await;
        assert!(matches!(seen.state, ExecutionState::Ended(Outcome::Died(_))), "{seen:?}");
        assert_eq!(stdout(&seen), "on\n", "what it said is kept for who has the handle");
        bench.until("it is lost", |bench| bench.node.session(&bench.pool, &name("mine")).is_err()).await;
        for _ in 0..2 {
            let peek = bench.node.execution(&bench.pool, &name("mine"), &handle.id()).await;
            assert!(matches!(peek, Err(NodeError::SessionLost { .. })), "a look is not the telling: {peek:?}");
        }
        let Err(NodeError::SessionLost { reason, .. }) = bench.open("mine").await else { panic!("amnesia") };
        assert_eq!(reason, told);
        assert!(bench.open("mine").await.unwrap().new);
        bench.node.delete_session(&bench.pool, &name("mine")).await.unwrap();
    }
    // A call that needs the session tells as well, and it also tells once.
    let sandbox = bench.open("mine").await.unwrap().session.sandbox;
    bench.memory.kill(sandbox, GoneReason::OutOfMemory);
    bench.until("it is lost", |bench| bench.node.session(&bench.pool, &name("mine")).is_err()).await;
    assert!(matches!(bench.start("mine", code("")).await, Err(NodeError::SessionLost { .. })));
    assert_eq!(bench.start("mine", code("")).await.unwrap_err(), NodeError::NoSession(name("mine").identifier));
    bench.check_no_leak().await;
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_started_anew_is_no_session_any_more() {
    let bench = Bench::new(|_| ()).await;
    let sandbox = bench.open("mine").await.unwrap().session.sandbox;
    bench.run("mine", "set k 1").await;
    bench.memory.reboot(sandbox);
    bench.until("it is lost", |bench| bench.node.session(&bench.pool, &name("mine")).is_err()).await;
    assert!(matches!(bench.open("mine").await, Err(NodeError::SessionLost { .. })));
    assert!(bench.open("mine").await.unwrap().new);
    assert_eq!(bench.run("mine", "get k").await.state, ended(Outcome::Raised));
    // One that waits in the reservoir is as good as before, once it is ready.
    bench.until_full().await;
    let waits = bench.memory.sandboxes().into_iter().find(|sandbox| sandbox.owner.is_none()).unwrap().id;
    bench.memory.reboot(waits);
    assert!(bench.open("other").await.unwrap().new);
    assert_eq!(bench.run("other", "value 1").await.state, ended(Outcome::Succeeded));
    bench.check_no_leak().await;
}

#[tokio::test(start_paused = true)]
async fn a_restarted_server_finds_sessions_executions_and_the_reservoir() {
    let mut bench = Bench::new(|_| ()).await;
    let first = bench.open("mine").await.unwrap();
    bench.run("mine", "set k 7").await;
    let done = bench.start_as("mine", Some(1), code("out done")).await.unwrap();
    done.wait(LONG).await;
    let running = bench.start_as("mine", Some(2), code("out begun\nsleep 20000\nget k")).await.unwrap();
    bench.until("it runs", |_| stdout(&running.snapshot()) == "begun\n").await;
    bench.until_full().await;
    let before = bench.memory.sandboxes();
    bench.restart().await;
    let again = bench.open("mine").await.unwrap();
    assert_eq!((again.new, again.session.sandbox), (false, first.session.sandbox));
    assert_eq!(again.session.owner, "owner of mine");
    assert_eq!(bench.memory.sandboxes(), before, "nothing was made or destroyed");
    let found = async |number: u8| {
        let id = sandpool_core::ids::ExecutionId([number; 16]);
        bench.node.execution(&bench.pool, &name("mine"), &id).await.unwrap()
    };
    assert_eq!(stdout(&found(1).await.wait(LONG).await), "done\n");
    assert_eq!(bench.node.session(&bench.pool, &name("mine")).unwrap().busy, 1, "what runs on counts as use");
    // New code waits for the code of the life before.
    let next = bench.start("mine", code("get k")).await.unwrap();
    let running = found(2).await.wait(LONG).await;
    assert_eq!((stdout(&running), text(&running)), ("begun\n", "7"));
    assert_eq!(text(&next.wait(LONG).await), "7");
    assert_eq!(bench.node.session(&bench.pool, &name("mine")).unwrap().busy, 0);
    bench.check_no_leak().await;
}

#[tokio::test(start_paused = true)]
async fn a_session_that_ended_while_no_server_was_there_is_told_as_lost_once() {
    for heard in [false, true] {
        let mut bench = Bench::new(|_| ()).await;
        let sandbox = bench.open("mine").await.unwrap().session.sandbox;
        assert!(bench.memory.kill(sandbox, GoneReason::OutOfMemory));
        if heard {
            // By the server, which is killed before it could tell the owner.
            bench.until("it is lost", |bench| bench.node.session(&bench.pool, &name("mine")).is_err()).await;
        }
        bench.restart().await;
        let told = bench.open("mine").await;
        assert!(matches!(told, Err(NodeError::SessionLost { .. })), "{told:?}");
        let new = bench.open("mine").await.unwrap();
        assert!(new.new);
        bench.check_no_leak().await;
        bench.restart().await;
        let again = bench.open("mine").await.unwrap();
        assert_eq!((again.new, again.session.sandbox), (false, new.session.sandbox), "nothing is told twice");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_killed_between_any_two_steps_leaves_nothing_behind() {
    for operation in [Operation::Create, Operation::Assign, Operation::Activate, Operation::Dial] {
        let mut bench = Bench::new(|spec| spec.scale.ready = 2).await;
        bench.until_full().await;
        // The server dies while it waits for the answer.
        bench.memory.answer_late(seconds(1));
        bench.memory.refuse_only(operation, 1);
        let opening = bench.open("mine");
        let _ = tokio::time::timeout(seconds(1) + Duration::from_millis(500), opening).await;
        bench.memory.answer_late(Duration::ZERO);
        bench.restart().await;
        bench.open("mine").await.unwrap();
        assert_eq!(bench.run("mine", "value 1").await.state, ended(Outcome::Succeeded), "{operation:?}");
        bench.until_full().await;
        bench.check_no_leak().await;
        let owned = bench.memory.sandboxes().iter().filter(|sandbox| sandbox.owner.is_some()).count();
        assert_eq!(owned, 1, "{operation:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn half_given_away_sandboxes_are_destroyed_and_of_two_for_one_session_the_older() {
    let mut bench = Bench::new(|spec| spec.scale.ready = 3).await;
    bench.until_full().await;
    let driver = bench.memory.driver();
    let ids: Vec<_> = bench.memory.sandboxes().iter().map(|sandbox| sandbox.id).collect();
    let record = |at: u64| Owner { record: format!("mine\n{at}\nme").into_bytes() };
    driver.assign(ids[0], &record(5000)).await.unwrap();
    driver.assign(ids[1], &record(7000)).await.unwrap();
    driver.assign(ids[2], &record(6000)).await.unwrap();
    driver.activate(ids[1], &Default::default()).await.unwrap();
    driver.activate(ids[2], &Default::default()).await.unwrap();
    bench.restart().await;
    let opened = bench.open("mine").await.unwrap();
    assert_eq!((opened.new, opened.session.sandbox), (false, ids[1]));
    bench
        .until("the others are gone", |bench| {
            let there = bench.memory.sandboxes();
            there.iter().all(|sandbox| sandbox.id != ids[0] && sandbox.id != ids[2])
        })
        .await;
    assert_eq!(bench.run("mine", "value 1").await.state, ended(Outcome::Succeeded));
    bench.check_no_leak().await;
}

#[tokio::test(start_paused = true)]
async fn boots_that_fail_are_told_and_tried_again_with_patience() {
    let memory = Memory::new(MemoryConfig::default());
    memory.all_boots(Boot::Fails("no numpy".to_owned()));
    let bench = Bench::of(memory, vec![spec("pool"), spec("other")]).await;
    let Err(NodeError::PoolBroken { reason, .. }) = bench.open("mine").await else { panic!("it opened") };
    assert_eq!(reason, "no numpy");
    let began = tokio::time::Instant::now();
    tokio::time::sleep(seconds(100)).await;
    let broken = bench.node.pool(&bench.pool).unwrap();
    assert_eq!((broken.trouble.as_deref(), broken.ready), (Some("no numpy"), 0));
    assert!(matches!(bench.open("mine").await, Err(NodeError::PoolBroken { .. })));
    assert!(began.elapsed() < seconds(131), "nobody waits long for what does not come");
    bench.memory.all_boots(Boot::Succeeds);
    bench.until_full().await;
    assert_eq!(bench.node.pool(&bench.pool).unwrap().trouble, None);
    assert!(bench.open("mine").await.unwrap().new);
    bench.check_no_leak().await;
}

#[tokio::test(start_paused = true)]
async fn one_pools_trouble_is_not_anothers() {
    let memory = Memory::new(MemoryConfig::default());
    let bench = Bench::of(memory, vec![spec("pool"), spec("other")]).await;
    bench.until_full().await;
    bench.memory.next_boots([Boot::Fails("bad luck".to_owned())]);
    // The reservoir's next boot, of the first pool, fails once.
    bench.open("mine").await.unwrap();
    bench.until("it failed", |bench| bench.node.pool(&bench.pool).unwrap().trouble.is_some()).await;
    let other = sandpool_core::ids::PoolName::parse("other").unwrap();
    assert_eq!(bench.node.pool(&other).unwrap().trouble, None);
    bench.until_full().await;
}

#[tokio::test(start_paused = true)]
async fn a_boot_that_hangs_is_given_up_and_one_failure_among_others_is_no_trouble_to_a_caller() {
    let memory = Memory::new(MemoryConfig::default());
    memory.next_boots([Boot::Hangs, Boot::Fails("bad luck".to_owned())]);
    let bench = Bench::of(memory, vec![spec("pool")]).await;
    assert!(bench.open("mine").await.is_ok(), "a boot that hangs does not stop the others");
    bench.until_full().await;
    bench.check_no_leak().await;
}

#[tokio::test(start_paused = true)]
async fn a_launcher_that_is_late_or_refuses_costs_time_and_no_sandbox() {
    let bench = Bench::new(|spec| spec.scale.ready = 2).await;
    bench.until_full().await;
    bench.memory.answer_late(seconds(2));
    for operation in [Operation::Assign, Operation::Activate, Operation::Dial] {
        bench.memory.refuse_only(operation, 1);
        let who = format!("{operation:?}-1");
        assert!(bench.open(&who).await.unwrap().new, "the next sandbox does it");
        assert_eq!(bench.run(&who, "value 1").await.state, ended(Outcome::Succeeded));
        bench.node.delete_session(&bench.pool, &name(&who)).await.unwrap();
    }
    bench.memory.refuse_only(Operation::Create, 3);
    bench.memory.answer_late(Duration::ZERO);
    bench.open("mine").await.unwrap();
    bench.until_full().await;
    bench.check_no_leak().await;
}

#[tokio::test(start_paused = true)]
async fn callers_who_leave_while_they_wait_leave_no_trace() {
    let bench = Bench::with(MemoryConfig { boot_time: seconds(5), ..MemoryConfig::default() }, |spec| {
        spec.scale.ready = 0;
        spec.scale.max_sessions = 50;
    })
    .await;
    for _ in 0..20 {
        let _ = tokio::time::timeout(Duration::from_millis(10), bench.open("mine")).await;
    }
    tokio::time::sleep(seconds(30)).await;
    let status = bench.node.pool(&bench.pool).unwrap();
    assert!(status.ready + status.booting <= 2, "{status:?}");
    assert!(bench.open("mine").await.unwrap().new);
    tokio::time::sleep(seconds(30)).await;
    let status = bench.node.pool(&bench.pool).unwrap();
    assert!(status.ready + status.booting <= 1, "what they waited for is not made for ever: {status:?}");
}

#[tokio::test(start_paused = true)]
async fn changes_that_were_missed_are_found_in_the_list() {
    let bench = Bench::with(MemoryConfig { changes: 4, ..MemoryConfig::default() }, |spec| spec.scale.ready = 2).await;
    let sandbox = bench.open("mine").await.unwrap().session.sandbox;
    bench.until_full().await;
    let waiting = bench.memory.sandboxes().into_iter().find(|sandbox| sandbox.owner.is_none()).unwrap().id;
    bench.memory.lose_changes(|| {
        bench.memory.kill(sandbox, GoneReason::OutOfMemory);
        bench.memory.kill(waiting, GoneReason::OutOfMemory);
    });
    bench.until("it is lost", |bench| bench.node.session(&bench.pool, &name("mine")).is_err()).await;
    assert!(matches!(bench.open("mine").await, Err(NodeError::SessionLost { .. })));
    bench.until_full().await;
    bench.check_no_leak().await;
    // Also when it was still being made, and when the list is not to be had at first.
    bench.memory.all_boots(Boot::Hangs);
    bench.open("mine").await.unwrap();
    bench.until("it is being made", |bench| bench.node.pool(&bench.pool).unwrap().booting == 1).await;
    let booting = bench.memory.sandboxes().into_iter().find(|sandbox| sandbox.boot_id.is_none()).unwrap().id;
    bench.memory.all_boots(Boot::Succeeds);
    bench.memory.refuse_only(Operation::List, 3);
    bench.memory.lose_changes(|| bench.memory.kill(booting, GoneReason::OutOfMemory));
    let before = tokio::time::Instant::now();
    bench.until_full().await;
    assert!(before.elapsed() < seconds(30), "{:?}", before.elapsed());
    bench.check_no_leak().await;
}

#[tokio::test(start_paused = true)]
async fn shutdown_lets_what_runs_end_refuses_what_is_new_and_leaves_no_sandbox() {
    let bench = Bench::new(|_| ()).await;
    bench.open("mine").await.unwrap();
    let short = bench.start("mine", code("sleep 3000\nout short")).await.unwrap();
    let endless = bench.start("mine", shell("wait")).await.unwrap();
    bench.until_full().await;
    let node = bench.node.clone();
    let shutdown = tokio::spawn(async move { node.shutdown(seconds(10)).await });
    bench.until("it is stopping", |bench| !bench.node.is_ready()).await;
    assert!(matches!(bench.open("other").await, Err(NodeError::Unavailable(_))));
    assert!(matches!(bench.start("mine", code("")).await, Err(NodeError::Unavailable(_))));
    let began = tokio::time::Instant::now();
    shutdown.await.unwrap();
    assert!(began.elapsed() >= seconds(9) && began.elapsed() <= seconds(11), "{:?}", began.elapsed());
    assert_eq!(stdout(&short.snapshot()), "short\n");
    assert!(matches!(endless.wait(LONG).await.state, ExecutionState::Ended(Outcome::Died(_))));
    assert_eq!((bench.memory.sandboxes().len(), ready(&bench.memory)), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_session_is_as_old_as_it_is_whatever_the_clock_says_when_a_server_comes_back() {
    // Time passes here while the clock that people set stands still: as if it had been set back.
    let mut bench = Bench::new(|spec| {
        spec.life.max_alive = Some(seconds(600));
        spec.life.cooldown = seconds(10_000);
    })
    .await;
    bench.open("mine").await.unwrap();
    tokio::time::sleep(seconds(400)).await;
    bench.restart().await;
    bench.open("mine").await.unwrap();
    tokio::time::sleep(seconds(199)).await;
    assert!(bench.node.session(&bench.pool, &name("mine")).is_ok());
    tokio::time::sleep(seconds(2)).await;
    assert!(bench.node.session(&bench.pool, &name("mine")).is_err(), "601 seconds are over");
}
