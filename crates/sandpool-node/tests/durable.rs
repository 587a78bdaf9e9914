//! What is known after everything has been killed.

mod support;

use sandpool_driver::memory::{Memory, MemoryConfig};
use sandpool_node::{ExecutionState, NodeError, Outcome, Store};
use support::*;

/// In real time: the store has a thread of its own.
async fn bench(directory: &std::path::Path) -> Bench {
    let mut bench = Bench::new(|_| {}).await;
    bench.restart_with(Store::open(&directory.join("state.db")).unwrap()).await;
    bench
}

/// Everything is killed, launcher and sandboxes too; then all starts anew on the same state.
async fn anew(before: Bench, directory: &std::path::Path) -> Bench {
    let store = before.store.clone().unwrap();
    store.written().await;
    let mut after = Bench::of(Memory::new(MemoryConfig::default()), vec![spec("pool")]).await;
    // A killed server closes nothing.
    after.restart_with(Store::open(&directory.join("state.db")).unwrap()).await;
    after
}

#[tokio::test]
async fn sessions_that_ended_with_their_launcher_are_told_as_lost_once_and_their_executions_can_be_read() {
    let directory = tempfile::tempdir().unwrap();
    let before = bench(directory.path()).await;
    before.open("mine").await.unwrap();
    before.open("other").await.unwrap();
    let ended = before.run("mine", "out hello").await;
    before.node.delete_session(&before.pool, &name("other")).await.unwrap();
    let after = anew(before, directory.path()).await;
    let read = after.node.past_execution(&after.pool, &name("mine"), ended.id).await.unwrap();
    assert_eq!((&read.state, stdout(&read)), (&ended.state, stdout(&ended)));
    let counted = |bench: &Bench| {
        bench.node.metrics().pools[0].lost.iter().copied().filter(|(_, count)| *count > 0).collect::<Vec<_>>()
    };
    assert_eq!(counted(&after), [("restart", 1)]);
    assert_eq!(after.node.metrics().store_trouble, Some(false));
    // Another restart before its owner has heard: it is not lost twice.
    let after = anew(after, directory.path()).await;
    assert_eq!(counted(&after), []);
    let lost = after.open("mine").await.unwrap_err();
    assert!(matches!(&lost, NodeError::SessionLost { reason, .. } if reason.contains("launcher")), "{lost}");
    assert!(after.open("mine").await.unwrap().new, "it is said once");
    assert!(after.open("other").await.unwrap().new, "it had ended in order");
    let again = anew(after, directory.path()).await;
    let lost = again.open("mine").await.unwrap_err();
    assert!(matches!(lost, NodeError::SessionLost { .. }), "the second one of that name");
    assert!(again.node.past_execution(&again.pool, &name("mine"), ended.id).await.is_some(), "for a day");
}

#[tokio::test]
async fn an_execution_that_was_told_and_never_begun_is_reported_and_not_run() {
    let directory = tempfile::tempdir().unwrap();
    let mut bench = bench(directory.path()).await;
    bench.open("mine").await.unwrap();
    let first = bench.start("mine", code("sleep 100000")).await.unwrap();
    first.kept().await.unwrap();
    let second = bench.start("mine", code("out never")).await.unwrap();
    second.kept().await.unwrap();
    let (first, second) = (first.id(), second.id());
    let store = Store::open(&directory.path().join("state.db")).unwrap();
    bench.restart_with(store).await;
    // Asked at once: the session is there, and what ran in it is found as soon as its agent has answered.
    assert!(bench.node.execution(&bench.pool, &name("mine"), &first).await.is_ok());
    let reported = bench.node.execution(&bench.pool, &name("mine"), &second).await.unwrap().snapshot();
    assert!(
        matches!(&reported.state, ExecutionState::Ended(Outcome::NotStarted(why)) if why.contains("killed")),
        "{reported:?}"
    );
    let retried = bench.start_with("mine", second, code("out never")).await.unwrap();
    assert_eq!(retried.snapshot().state, reported.state, "the same id starts nothing");
}

#[tokio::test]
async fn what_ended_in_order_leaves_no_execution_behind() {
    let directory = tempfile::tempdir().unwrap();
    let bench = bench(directory.path()).await;
    bench.open("mine").await.unwrap();
    let ended = bench.run("mine", "out secret").await;
    bench.store.clone().unwrap().written().await;
    assert!(bench.node.past_execution(&bench.pool, &name("mine"), ended.id).await.is_some());
    bench.node.delete_session(&bench.pool, &name("mine")).await.unwrap();
    bench.store.clone().unwrap().written().await;
    assert!(bench.node.past_execution(&bench.pool, &name("mine"), ended.id).await.is_none());
}
