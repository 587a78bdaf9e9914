//! Executions: their order, their events, and their ends.

mod support;

use std::time::Duration;

use futures::StreamExt;
use sandpool_core::ids::ExecutionId;
use sandpool_node::{Event, ExecutionState, NodeError, Outcome, Sequenced, Stdin, Stop, Work};
use support::{Bench, LONG, code, ended, name, seconds, shell, stdout, text};

async fn bench() -> Bench {
    let bench = Bench::new(|_| ()).await;
    bench.open("mine").await.unwrap();
    bench
}

#[tokio::test(start_paused = true)]
async fn code_takes_turns_in_the_order_it_was_accepted_and_commands_do_not_wait() {
    let bench = bench().await;
    let one = bench.start("mine", code("sleep 1000\nset k 1")).await.unwrap();
    let two = bench.start("mine", code("get k\nset k 2\nsleep 1000")).await.unwrap();
    let three = bench.start("mine", code("get k")).await.unwrap();
    let full = bench.start("mine", code("")).await;
    assert_eq!(full.unwrap_err(), NodeError::QueueFull { waiting: 2 });
    let beside = bench.start("mine", shell("out beside")).await.unwrap().wait(Duration::from_millis(100)).await;
    assert_eq!((stdout(&beside), &beside.state), ("beside\n", &ended(Outcome::Exited(0))));
    assert_eq!((one.snapshot().state, two.snapshot().state), (ExecutionState::Running, ExecutionState::Queued));
    let seen = three.wait(LONG).await;
    assert_eq!(text(&seen), "2");
    assert!(seen.queued.unwrap() >= seconds(2), "{:?}", seen.queued);
    assert_eq!(text(&two.snapshot()), "1");
    assert_eq!(one.snapshot().state, ended(Outcome::Succeeded));
    let order: Vec<_> =
        bench.node.executions(&bench.pool, &name("mine")).await.unwrap().iter().map(|one| one.id()).collect();
    assert_eq!(order[..3], [one.id(), two.id(), three.id()]);
}

/// On many threads a task that was started later may run earlier.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_order_holds_on_many_threads_too() {
    let bench = Bench::new(|spec| spec.queue = 100).await;
    bench.open("mine").await.unwrap();
    bench.run("mine", "set last 0").await;
    let mut all = Vec::new();
    for number in 1..=40 {
        all.push(bench.start("mine", code(&format!("get last\nset last {number}"))).await.unwrap());
    }
    for (before, handle) in all.iter().enumerate() {
        assert_eq!(text(&handle.wait(seconds(60)).await), before.to_string());
    }
}

#[tokio::test(start_paused = true)]
async fn an_execution_goes_on_when_nobody_listens_and_is_read_later() {
    let bench = bench().await;
    let handle = bench.start_as("mine", Some(5), code("out a\nsleep 1000\nerr b\npng\nvalue 3")).await.unwrap();
    let first = handle.wait(Duration::from_millis(10)).await;
    assert_eq!((stdout(&first), &first.state), ("a\n", &ExecutionState::Running));
    drop(handle);
    tokio::time::sleep(seconds(2)).await;
    let found = bench.node.execution(&bench.pool, &name("mine"), &ExecutionId([5; 16])).await.unwrap().snapshot();
    assert_eq!((stdout(&found), found.stderr.as_slice(), text(&found)), ("a\n", &b"b\n"[..], "3"));
    assert_eq!((found.displays.len(), found.state.clone()), (1, ended(Outcome::Succeeded)));
    assert!(found.duration.unwrap() >= seconds(1));
    let missing = bench.node.execution(&bench.pool, &name("mine"), &ExecutionId([6; 16])).await;
    assert!(matches!(missing, Err(NodeError::NoExecution(_))), "{missing:?}");
}

#[tokio::test(start_paused = true)]
async fn the_same_id_is_the_same_execution_also_at_the_same_time() {
    let bench = bench().await;
    let all = (0..20).map(|_| bench.start_as("mine", Some(1), code("out once\nsleep 100")));
    for handle in futures::future::join_all(all).await {
        assert_eq!(stdout(&handle.unwrap().wait(LONG).await), "once\n");
    }
    assert_eq!(bench.node.executions(&bench.pool, &name("mine")).await.unwrap().len(), 1);
    assert_eq!(bench.run("mine", "value 1").await.state, ended(Outcome::Succeeded));
}

#[tokio::test(start_paused = true)]
async fn events_resume_after_any_number_and_a_slow_reader_misses_nothing() {
    let bench = bench().await;
    let handle = bench.start("mine", code("out a\nout b\nsleep 1000\nout c\nvalue 1")).await.unwrap();
    let mut early = handle.events(0);
    let first = early.next().await.unwrap();
    assert_eq!(first, Sequenced { seq: 1, event: Event::Started });
    handle.wait(LONG).await;
    // The early reader was slow, and reads on.
    let rest: Vec<_> = early.collect().await;
    let all: Vec<_> = handle.events(0).collect().await;
    assert_eq!(all[1..], rest);
    assert!(all.iter().zip(1..).all(|(one, seq)| one.seq == seq), "{all:?}");
    assert!(matches!(all.last().unwrap().event, Event::Finished(_)));
    for after in 0..=all.len() {
        let some: Vec<_> = handle.events(after as u64).collect().await;
        assert_eq!(some, all[after..]);
    }
    assert_eq!(handle.events(u64::MAX).count().await, 0);
}

#[tokio::test(start_paused = true)]
async fn interrupts_reach_what_runs_and_what_waits() {
    let bench = bench().await;
    bench.run("mine", "set k 1").await;
    let running = bench.start("mine", code("out on\nwait")).await.unwrap();
    let waiting = bench.start("mine", code("set k 2")).await.unwrap();
    let last = bench.start("mine", code("get k")).await.unwrap();
    bench.until("it runs", |_| stdout(&running.snapshot()) == "on\n").await;
    waiting.stop(Stop::Interrupt).await.unwrap();
    let seen = waiting.wait(seconds(1)).await;
    assert_eq!(seen.state, ended(Outcome::Cancelled));
    assert_eq!(last.snapshot().state, ExecutionState::Queued, "those behind still wait for the one that runs");
    let next = bench.start("mine", code("get k")).await.unwrap();
    running.stop(Stop::Interrupt).await.unwrap();
    running.stop(Stop::Interrupt).await.unwrap();
    assert_eq!(running.wait(LONG).await.state, ended(Outcome::Cancelled));
    assert_eq!((text(&last.wait(LONG).await), text(&next.wait(LONG).await)), ("1", "1"), "the state is kept");
    running.stop(Stop::Kill).await.unwrap();
    let deaf = bench.start("mine", code("hang")).await.unwrap();
    bench.until("it runs", |_| deaf.snapshot().state == ExecutionState::Running).await;
    deaf.stop(Stop::Kill).await.unwrap();
    let seen = deaf.wait(LONG).await;
    assert_eq!((seen.state, seen.state_lost), (ended(Outcome::Cancelled), true));
    assert_eq!(bench.run("mine", "get k").await.state, ended(Outcome::Raised));
}

#[tokio::test(start_paused = true)]
async fn time_limits_and_output_limits_are_the_pools_at_most() {
    let bench = Bench::new(|spec| {
        spec.max_timeout = seconds(10);
        spec.output_limit = 1000;
    })
    .await;
    bench.open("mine").await.unwrap();
    let request = |text: &str, timeout: u64, limit: u64| sandpool_node::ExecuteRequest {
        id: None,
        work: code(text),
        timeout: Some(seconds(timeout)),
        output_limit: Some(limit),
    };
    let run = async |request| bench.node.execute(&bench.pool, &name("mine"), request).await.unwrap().wait(LONG).await;
    for (asked, took) in [(3, 3), (9999, 10)] {
        let seen = run(request("wait", asked, 1)).await;
        assert_eq!((seen.state, seen.duration.unwrap().as_secs()), (ended(Outcome::TimedOut), took));
    }
    for (asked, kept) in [(10, 10), (9999, 1000)] {
        let seen = run(request("flood 5000", 1, asked)).await;
        assert_eq!((seen.stdout.len(), seen.dropped), (kept, (5000 - kept as u64, 0)));
    }
}

#[tokio::test(start_paused = true)]
async fn an_interpreter_that_dies_says_so_and_the_session_goes_on() {
    let bench = bench().await;
    bench.run("mine", "set k 1").await;
    let seen = bench.run("mine", "out last\ndie").await;
    assert!(matches!(seen.state, ExecutionState::Ended(Outcome::Died(_))) && seen.state_lost, "{seen:?}");
    assert_eq!(bench.run("mine", "get k").await.error.unwrap().name, "NameError");
    let lost = bench.run("mine", "crash").await;
    assert!(matches!(lost.state, ExecutionState::Ended(Outcome::Died(_))), "{lost:?}");
    bench.until("it is lost", |bench| bench.node.session(&bench.pool, &name("mine")).is_err()).await;
    assert!(matches!(bench.open("mine").await, Err(NodeError::SessionLost { .. })));
}

#[tokio::test(start_paused = true)]
async fn input_is_streamed() {
    let bench = bench().await;
    let work = Work::Shell { command: "cat\nout end".to_owned(), stdin: Stdin::Stream };
    let handle = bench.start("mine", work).await.unwrap();
    bench.until("it runs", |_| handle.snapshot().state == ExecutionState::Running).await;
    handle.input(b"one ".to_vec()).await.unwrap();
    handle.input(b"two ".to_vec()).await.unwrap();
    handle.input(Vec::new()).await.unwrap();
    assert_eq!(stdout(&handle.wait(LONG).await), "one two end\n");
}

#[tokio::test(start_paused = true)]
async fn the_last_sixty_four_ended_executions_are_kept_and_all_that_run() {
    let bench = bench().await;
    let running = bench.start_as("mine", Some(0), shell("wait")).await.unwrap();
    for number in 1..=70 {
        bench.start_as("mine", Some(number), shell("out x")).await.unwrap().wait(LONG).await;
    }
    bench.start_as("mine", Some(71), shell("out x")).await.unwrap();
    let kept: Vec<u8> =
        bench.node.executions(&bench.pool, &name("mine")).await.unwrap().iter().map(|one| one.id().0[0]).collect();
    assert_eq!(kept, [0].into_iter().chain(7..=71).collect::<Vec<u8>>());
    assert_eq!(running.snapshot().state, ExecutionState::Running);
}

#[tokio::test(start_paused = true)]
async fn a_shell_pool_takes_no_code() {
    let bench = Bench::new(|spec| spec.runtime = sandpool_node::Runtime::Shell).await;
    bench.open("mine").await.unwrap();
    assert!(matches!(bench.start("mine", code("out x")).await, Err(NodeError::Unsupported(_))));
    assert_eq!(stdout(&bench.start("mine", shell("env SAID")).await.unwrap().wait(LONG).await), "hello\n");
}
