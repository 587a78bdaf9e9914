//! The contract that every driver keeps: one suite, run on each of them.
//!
//! A clause is a function; a broken one panics with what was seen. The suite needs a host that nobody else uses, and
//! leaves it empty. How to break things (end a sandbox, kill the server) is the [`Harness`]'s to know.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sandpool_core::ids::{PoolName, SandboxId};
use sandpool_wire::agent::{Activation, Answer, Call, Event, Execute, FromAgent, PROTOCOL, Refusal, ToAgent, Work};
use sandpool_wire::frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::{Change, Driver, DriverError, GoneReason, Keeps, MAX_RECORD, Owner, Phase, Sandbox, Stream, Template};

/// The longest wait for something that has to happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// The execution that these tests start in a sandbox.
const EXEC: [u8; 16] = [0xec; 16];

/// A driver under test, and the ways to break what is below it.
#[async_trait]
pub trait Harness: Send + Sync {
    /// The driver, as the server that is alive now has it.
    fn driver(&self) -> Arc<dyn Driver>;

    /// A pool whose sandboxes start.
    fn template(&self) -> Template;

    /// A command that writes `on` and a line's end to its standard output, and then runs until it is stopped.
    fn endless(&self) -> Work;

    /// Changes that are surely kept for a watcher that does not look, or more.
    fn changes_kept(&self) -> usize;

    /// Ends the first process of the one sandbox that there is, from below the driver.
    async fn kill(&self, id: SandboxId);

    /// Kills the server and starts it again: from now on [`Harness::driver`] is another. `false` when this harness
    /// cannot, and kills its server elsewhere.
    async fn restart(&self) -> bool {
        false
    }

    /// Lets a sandbox start anew in its place. `false` when sandboxes of this driver never do: they are gone instead.
    async fn reboot(&self, _id: SandboxId) -> bool {
        false
    }
}

/// Runs every clause, and says so on standard output.
///
/// # Panics
/// When a clause is broken.
pub async fn run(harness: &dyn Harness) {
    macro_rules! clauses {
        ($($clause:ident)*) => {
            $(
                let case = Case::begin(harness).await;
                $clause(&case).await;
                case.end().await;
                println!("clause {} ... ok", stringify!($clause));
            )*
        };
    }
    clauses! {
        create_is_idempotent_by_id
        of_a_removed_pool_nothing_more_is_made
        a_sandbox_is_assigned_when_it_is_ready_and_not_before
        sixty_four_tasks_race_for_eight_sandboxes_and_eight_win
        a_sandbox_is_configured_once_and_by_its_owner_only
        of_many_that_ask_to_be_given_a_sandbox_one_has_it_whole
        destroy_is_idempotent_and_final
        the_list_tells_all_and_the_watch_tells_the_same
        a_watcher_that_lags_is_told_so_and_finds_all_in_the_list
        every_dial_is_a_stream_of_its_own_to_the_boot_that_the_list_shows
        a_sandbox_that_dies_is_gone_with_a_reason
        a_sandbox_that_dies_in_the_middle_of_an_execution_ends_its_streams
        a_dropped_call_is_done_or_not_done
        a_server_killed_between_create_assign_and_activate_finds_all_as_it_was
        another_boot_has_another_id
        what_is_saved_of_a_machine_goes_on_in_another_and_where_it_stays
    }
}

/// One clause's run.
struct Case<'a> {
    harness: &'a dyn Harness,
    pool: PoolName,
}

impl<'a> Case<'a> {
    async fn begin(harness: &'a dyn Harness) -> Self {
        let template = harness.template();
        harness.driver().ensure_pool(&template).await.expect("the pool is made");
        Self { harness, pool: template.pool }
    }

    fn driver(&self) -> Arc<dyn Driver> {
        self.harness.driver()
    }

    async fn end(self) {
        let driver = self.driver();
        for sandbox in self.list().await {
            driver.destroy(sandbox.id).await.expect("what is left is destroyed");
        }
        assert_eq!(self.list().await, [], "nothing is left");
    }

    async fn list(&self) -> Vec<Sandbox> {
        self.driver().list().await.expect("a list")
    }

    async fn find(&self, id: SandboxId) -> Option<Sandbox> {
        self.list().await.into_iter().find(|sandbox| sandbox.id == id)
    }

    async fn create(&self, id: SandboxId) {
        self.driver().create(id, &self.pool).await.expect("a sandbox is begun");
    }

    /// A sandbox that is ready.
    async fn made(&self, id: SandboxId) -> Sandbox {
        let watch = self.driver().watch();
        self.create(id).await;
        self.ready(id, watch).await
    }

    async fn ready(&self, id: SandboxId, mut watch: broadcast::Receiver<Change>) -> Sandbox {
        let ready = async {
            loop {
                let sandbox = self.find(id).await.unwrap_or_else(|| panic!("the sandbox {id} is gone"));
                if sandbox.phase == Phase::Ready {
                    return sandbox;
                }
                if let Err(RecvError::Closed) = watch.recv().await {
                    panic!("the watch of the server that is alive has ended");
                }
            }
        };
        tokio::time::timeout(PATIENCE, ready).await.expect("a sandbox becomes ready")
    }

    /// A sandbox with an owner and its configuration.
    async fn given(&self, id: SandboxId) -> Sandbox {
        self.made(id).await;
        self.driver().assign(id, &owner("me")).await.expect("it is assigned");
        self.driver().activate(id, &Activation::default()).await.expect("it is configured");
        self.find(id).await.expect("it is there")
    }

    async fn dial(&self, id: SandboxId) -> Dialled {
        greeted(self.driver().dial(id).await.expect("a stream")).await
    }
}

/// Hears the hello on a new stream.
async fn greeted(stream: Stream) -> Dialled {
    let mut dialled = Dialled { stream };
    match dialled.hear().await {
        Some(FromAgent::Hello { protocol: PROTOCOL, .. }) => dialled,
        other => panic!("the first word on a stream was {other:?}"),
    }
}

/// A stream whose hello was heard.
struct Dialled {
    stream: Stream,
}

impl Dialled {
    /// The next message; `None` when the stream has ended.
    async fn hear(&mut self) -> Option<FromAgent> {
        let hear = async {
            let mut header = [0; frame::HEADER];
            self.stream.read_exact(&mut header).await.ok()?;
            let mut body = vec![0; frame::body_length(header).expect("a frame's length")];
            self.stream.read_exact(&mut body).await.ok()?;
            Some(frame::decode(&body).expect("a message"))
        };
        tokio::time::timeout(PATIENCE, hear).await.expect("a message, or the end of the stream")
    }

    async fn call(&mut self, call: Call) -> Result<Answer, Refusal> {
        let bytes = frame::encode(&ToAgent::Call { request: 1, call }).expect("a frame");
        self.stream.write_all(&bytes).await.expect("the agent listens");
        loop {
            match self.hear().await.expect("an answer") {
                FromAgent::Reply { request: 1, result } => return result,
                FromAgent::Ready | FromAgent::Event { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

/// Ids that nobody else makes: a host remembers those that are over.
fn id(number: u8) -> SandboxId {
    let mut bytes = [0xcc; 16];
    bytes[0] = number;
    SandboxId(bytes)
}

fn owner(name: &str) -> Owner {
    Owner { record: name.as_bytes().to_vec() }
}

/// Waits for the end of a sandbox.
async fn gone(watch: &mut broadcast::Receiver<Change>, which: SandboxId) -> GoneReason {
    let gone = async {
        loop {
            match watch.recv().await {
                Ok(Change::Gone { id, reason }) if id == which => return reason,
                Ok(_) => {}
                Err(error) => panic!("the watch says {error}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("its end is told")
}

macro_rules! refused {
    ($answer:expr, $error:pat) => {
        let answer = $answer.map(drop);
        assert!(matches!(answer, Err($error)), "{}: {answer:?}", stringify!($answer));
    };
}

async fn create_is_idempotent_by_id(case: &Case<'_>) {
    let driver = case.driver();
    let other = PoolName::parse("other").expect("a name");
    driver.ensure_pool(&Template { pool: other.clone(), ..case.harness.template() }).await.expect("another pool");
    case.create(id(1)).await;
    case.create(id(1)).await;
    assert_eq!(case.list().await.len(), 1);
    refused!(driver.create(id(1), &other).await, DriverError::Conflict(_));
    let unknown = PoolName::parse("unknown").expect("a name");
    refused!(driver.create(id(2), &unknown).await, DriverError::Invalid(_));
    driver.ensure_pool(&case.harness.template()).await.expect("again is fine");
    assert_eq!(case.list().await.len(), 1, "what was refused has left nothing");
}

async fn of_a_removed_pool_nothing_more_is_made(case: &Case<'_>) {
    let driver = case.driver();
    let other = PoolName::parse("other").expect("a name");
    let template = Template { pool: other.clone(), ..case.harness.template() };
    driver.ensure_pool(&template).await.expect("another pool");
    driver.create(id(201), &other).await.expect("it is made");
    driver.remove_pool(&other).await.expect("it is removed");
    driver.remove_pool(&other).await.expect("and again");
    refused!(driver.create(id(202), &other).await, DriverError::Invalid(_));
    assert_eq!(case.list().await.len(), 1, "what was there stays");
    driver.destroy(id(201)).await.expect("until it is destroyed");
    driver.ensure_pool(&template).await.expect("it may come back");
    driver.create(id(203), &other).await.expect("and be used");
}

async fn a_sandbox_is_assigned_when_it_is_ready_and_not_before(case: &Case<'_>) {
    let driver = case.driver();
    let watch = driver.watch();
    case.create(id(3)).await;
    let early = driver.assign(id(3), &owner("me")).await;
    if !matches!(early, Err(DriverError::Unavailable { .. })) {
        // It was quicker than we were; then it says so.
        let found = case.find(id(3)).await;
        assert!(early.is_ok() && found.is_some_and(|found| found.phase == Phase::Ready), "{early:?}");
        return;
    }
    assert_eq!(case.find(id(3)).await.and_then(|sandbox| sandbox.owner), None, "what was refused has left nothing");
    case.ready(id(3), watch).await;
    driver.assign(id(3), &owner("you")).await.expect("it is ready now");
    refused!(driver.assign(id(4), &owner("me")).await, DriverError::Gone(_));
}

async fn sixty_four_tasks_race_for_eight_sandboxes_and_eight_win(case: &Case<'_>) {
    let ids: Vec<SandboxId> = (10..18).map(id).collect();
    let watch = case.driver().watch();
    for which in &ids {
        case.create(*which).await;
    }
    for which in &ids {
        case.ready(*which, watch.resubscribe()).await;
    }
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..64_usize {
        let (driver, mut order) = (case.driver(), ids.clone());
        // Each begins elsewhere.
        order.rotate_left(number % 8);
        tasks.spawn(async move {
            let me = owner(&format!("task {number}"));
            for which in order {
                match driver.assign(which, &me).await {
                    Ok(()) => return Some((which, me)),
                    Err(DriverError::Conflict(_)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            None
        });
    }
    let won: BTreeMap<SandboxId, Owner> = tasks.join_all().await.into_iter().flatten().collect();
    assert_eq!(won.len(), 8, "each sandbox has one winner");
    for sandbox in case.list().await {
        assert_eq!(sandbox.owner.as_ref(), won.get(&sandbox.id), "the list knows the winner");
        let winner = sandbox.owner.expect("it has an owner");
        case.driver().assign(sandbox.id, &winner).await.expect("the same owner again is fine");
        refused!(case.driver().assign(sandbox.id, &owner("late")).await, DriverError::Conflict(_));
    }
}

async fn a_sandbox_is_configured_once_and_by_its_owner_only(case: &Case<'_>) {
    let driver = case.driver();
    case.made(id(20)).await;
    refused!(driver.activate(id(20), &Activation::default()).await, DriverError::Invalid(_));
    let long = Owner { record: vec![0; MAX_RECORD + 1] };
    refused!(driver.assign(id(20), &long).await, DriverError::Invalid(_));
    let longest = Owner { record: vec![0xff; MAX_RECORD] };
    driver.assign(id(20), &longest).await.expect("the longest record");
    assert_eq!(case.find(id(20)).await.and_then(|sandbox| sandbox.owner), Some(longest));
    let refusal = case.dial(id(20)).await.call(Call::Executions).await;
    assert!(matches!(refusal, Err(Refusal::Invalid(_))), "no session has taken it yet: {refusal:?}");
    let nothing = Activation::default();
    let both = tokio::join!(driver.activate(id(20), &nothing), driver.activate(id(20), &nothing));
    assert!(both.0.is_ok() != both.1.is_ok(), "of two at once one does it: {both:?}");
    refused!(driver.activate(id(20), &Activation::default()).await, DriverError::Conflict(_));
    assert!(case.find(id(20)).await.is_some_and(|sandbox| sandbox.activated));
    assert_eq!(case.dial(id(20)).await.call(Call::Executions).await, Ok(Answer::Executions(Vec::new())));
}

async fn of_many_that_ask_to_be_given_a_sandbox_one_has_it_whole(case: &Case<'_>) {
    let nothing = Activation::default();
    let (driver, watch) = (case.driver(), case.driver().watch());
    case.create(id(60)).await;
    let early = driver.give(id(60), &owner("early"), &nothing).await;
    assert!(matches!(early, Ok(_) | Err(DriverError::Unavailable { .. })), "{:?}", early.err());
    case.ready(id(60), watch).await;
    for which in [id(61), id(62)] {
        case.made(which).await;
    }
    // One of them has told of itself on a stream that somebody has.
    let other = case.dial(id(62)).await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..24_usize {
        let driver = case.driver();
        tasks.spawn(async move {
            let me = owner(&format!("task {number}"));
            let which = id(61 + u8::try_from(number % 2).unwrap_or_default());
            match driver.give(which, &me, &Activation::default()).await {
                Ok(stream) => Some((which, (me, stream))),
                Err(DriverError::Conflict(_)) => None,
                Err(error) => panic!("{error}"),
            }
        });
    }
    let won: BTreeMap<SandboxId, (Owner, Stream)> = tasks.join_all().await.into_iter().flatten().collect();
    assert_eq!(won.len(), 2, "each sandbox has one winner");
    for (which, (winner, stream)) in won {
        let mut stream = greeted(stream).await;
        assert_eq!(stream.call(Call::Executions).await, Ok(Answer::Executions(Vec::new())), "it is configured");
        let found = case.find(which).await.expect("it is there");
        assert_eq!((found.phase, found.owner.as_ref(), found.activated), (Phase::Ready, Some(&winner), true));
        refused!(driver.give(which, &owner("late"), &nothing).await, DriverError::Conflict(_));
        refused!(driver.give(which, &winner, &nothing).await, DriverError::Conflict(_));
        refused!(driver.assign(which, &owner("late")).await, DriverError::Conflict(_));
        refused!(driver.activate(which, &nothing).await, DriverError::Conflict(_));
    }
    drop(other);
    refused!(driver.give(id(63), &owner("me"), &nothing).await, DriverError::Gone(_));
    let long = Owner { record: vec![0; MAX_RECORD + 1] };
    refused!(driver.give(id(60), &long, &nothing).await, DriverError::Invalid(_));
}

async fn destroy_is_idempotent_and_final(case: &Case<'_>) {
    let driver = case.driver();
    let mut watch = driver.watch();
    for which in [id(21), id(22)] {
        case.given(which).await;
    }
    // One in the making, too.
    case.create(id(23)).await;
    let both = tokio::join!(driver.destroy(id(21)), driver.destroy(id(21)));
    assert_eq!(both, (Ok(()), Ok(())));
    driver.destroy(id(21)).await.expect("again is fine");
    driver.destroy(id(23)).await.expect("one that boots");
    driver.destroy(id(24)).await.expect("one that never was");
    assert_eq!(gone(&mut watch, id(21)).await, GoneReason::Destroyed);
    assert_eq!(case.list().await.iter().map(|sandbox| sandbox.id).collect::<Vec<_>>(), [id(22)], "and no other");
    refused!(driver.create(id(21), &case.pool).await, DriverError::Gone(_));
    refused!(driver.assign(id(21), &owner("me")).await, DriverError::Gone(_));
    refused!(driver.activate(id(21), &Activation::default()).await, DriverError::Gone(_));
    refused!(driver.dial(id(21)).await, DriverError::Gone(_));
    refused!(driver.usage(id(21)).await, DriverError::Gone(_));
    assert!(driver.usage(id(22)).await.expect("its use").pids > 0);
}

async fn the_list_tells_all_and_the_watch_tells_the_same(case: &Case<'_>) {
    let driver = case.driver();
    let mut watch = driver.watch();
    let ready = case.made(id(25)).await;
    assert!(
        ready.boot_id.is_some() && ready.owner.is_none() && !ready.activated && ready.pool == case.pool,
        "{ready:?}"
    );
    driver.assign(id(25), &owner("me")).await.expect("it is assigned");
    let assigned = Sandbox { owner: Some(owner("me")), ..ready.clone() };
    assert_eq!(case.list().await, std::slice::from_ref(&assigned));
    driver.activate(id(25), &Activation::default()).await.expect("it is configured");
    let activated = Sandbox { activated: true, ..assigned.clone() };
    assert_eq!(case.list().await, std::slice::from_ref(&activated));
    driver.destroy(id(25)).await.expect("it is destroyed");
    // In this order; what comes between them repeats one of them.
    let gone = Change::Gone { id: id(25), reason: GoneReason::Destroyed };
    let [ready, assigned, activated] = [ready, assigned, activated].map(Change::Upsert);
    for expected in [ready, assigned, activated, gone] {
        loop {
            let change = tokio::time::timeout(PATIENCE, watch.recv()).await.expect("it is told").expect("no lag");
            if change == expected {
                break;
            }
            assert!(!matches!(change, Change::Gone { .. }), "{change:?} came before {expected:?}");
        }
    }
}

async fn a_watcher_that_lags_is_told_so_and_finds_all_in_the_list(case: &Case<'_>) {
    let driver = case.driver();
    case.made(id(26)).await;
    let mut slow = driver.watch();
    // Each is a change, although it changes nothing.
    for _ in 0..case.harness.changes_kept() + 1 {
        driver.assign(id(26), &owner("me")).await.expect("the same owner again is fine");
    }
    let heard = tokio::time::timeout(PATIENCE, slow.recv()).await.expect("it hears at once");
    let now = case.find(id(26)).await;
    // Or it hears at once what is so now: some who pass changes on look at the list themselves.
    let is_told = match heard {
        Err(RecvError::Lagged(_)) => true,
        Ok(Change::Upsert(ref sandbox)) => now.as_ref() == Some(sandbox),
        Ok(Change::Gone { .. }) | Err(RecvError::Closed) => false,
    };
    assert!(is_told, "{heard:?}");
    assert_eq!(now.and_then(|sandbox| sandbox.owner), Some(owner("me")));
}

async fn every_dial_is_a_stream_of_its_own_to_the_boot_that_the_list_shows(case: &Case<'_>) {
    let shown = case.given(id(27)).await.boot_id;
    for _ in 0..3 {
        let mut stream = Dialled { stream: case.driver().dial(id(27)).await.expect("a stream") };
        let Some(FromAgent::Hello { boot_id, .. }) = stream.hear().await else { panic!("no hello") };
        assert_eq!(Some(boot_id), shown);
    }
    let (mut one, mut two) = (case.dial(id(27)).await, case.dial(id(27)).await);
    assert_eq!(one.call(Call::Ping).await, Ok(Answer::Done));
    drop(one);
    assert_eq!(two.call(Call::Ping).await, Ok(Answer::Done), "the end of one is not the end of another");
}

async fn a_sandbox_that_dies_is_gone_with_a_reason(case: &Case<'_>) {
    let mut watch = case.driver().watch();
    case.made(id(28)).await;
    case.harness.kill(id(28)).await;
    let reason = gone(&mut watch, id(28)).await;
    assert!(matches!(&reason, GoneReason::Died(how) if !how.is_empty()), "{reason:?}");
    assert_eq!(case.list().await, []);
    refused!(case.driver().assign(id(28), &owner("me")).await, DriverError::Gone(_));
    refused!(case.driver().create(id(28), &case.pool).await, DriverError::Gone(_));
    case.driver().destroy(id(28)).await.expect("to be rid of it is fine");
}

async fn a_sandbox_that_dies_in_the_middle_of_an_execution_ends_its_streams(case: &Case<'_>) {
    let mut watch = case.driver().watch();
    case.given(id(29)).await;
    let mut stream = case.dial(id(29)).await;
    let execute = Execute { exec: EXEC, work: case.harness.endless(), timeout_ms: 600_000, output_limit: 1 << 20 };
    stream.call(Call::Execute(execute)).await.expect("it is accepted");
    let mut said = Vec::new();
    while said != b"on\n" {
        if let FromAgent::Event { event: Event::Stdout(data), .. } = stream.hear().await.expect("it runs") {
            said.extend(data);
        }
    }
    case.harness.kill(id(29)).await;
    while let Some(message) = stream.hear().await {
        let ended = matches!(message, FromAgent::Event { event: Event::Finished(_), .. });
        assert!(!ended, "nobody is left to say how it ended: {message:?}");
    }
    assert!(matches!(gone(&mut watch, id(29)).await, GoneReason::Died(_)));
    // Its session's owner has yet to hear of it, also from the server's next life.
    for _ in 0..2 {
        let lost = case.find(id(29)).await.expect("it is listed until it is destroyed");
        assert_eq!((lost.phase, lost.owner), (Phase::Lost, Some(owner("me"))));
        refused!(case.driver().dial(id(29)).await.map(drop), DriverError::Gone(_));
        case.harness.restart().await;
    }
    case.driver().destroy(id(29)).await.expect("to be rid of it is fine");
    assert_eq!(case.list().await, []);
}

async fn a_dropped_call_is_done_or_not_done(case: &Case<'_>) {
    let driver = case.driver();
    for number in 30..38 {
        let which = id(number);
        // Polled once and dropped, as when a caller goes away.
        let begun = tokio::time::timeout(Duration::ZERO, driver.create(which, &case.pool)).await;
        let listed = case.find(which).await.is_some();
        assert!(listed || begun.is_err(), "what was answered is so");
        // Repeating it, or taking it back, works either way.
        case.made(which).await;
        if number % 2 == 0 {
            let _ = tokio::time::timeout(Duration::ZERO, driver.assign(which, &owner("me"))).await;
        } else {
            let _ =
                tokio::time::timeout(Duration::ZERO, driver.give(which, &owner("me"), &Activation::default())).await;
        }
        driver.assign(which, &owner("me")).await.expect("it is mine, or free");
        let _ = tokio::time::timeout(Duration::ZERO, driver.destroy(which)).await;
        driver.destroy(which).await.expect("again is fine");
        assert_eq!(case.find(which).await, None);
    }
}

async fn a_server_killed_between_create_assign_and_activate_finds_all_as_it_was(case: &Case<'_>) {
    case.create(id(40)).await;
    case.made(id(41)).await;
    case.made(id(42)).await;
    case.driver().assign(id(42), &owner("me")).await.expect("it is assigned");
    let given = case.given(id(43)).await;
    let mut stream = case.dial(id(43)).await;
    case.made(id(45)).await;
    let gift = case.driver().give(id(45), &owner("you"), &Activation::default()).await.expect("it is given");
    let whole = case.find(id(45)).await.expect("it is there");
    assert_eq!((whole.owner.as_ref(), whole.activated), (Some(&owner("you")), true));
    case.made(id(46)).await;
    // Cut off in the middle.
    let (driver, half, nothing) = (case.driver(), owner("half"), Activation::default());
    drop(tokio::time::timeout(Duration::ZERO, driver.give(id(46), &half, &nothing)).await);
    drop(driver);
    case.driver().destroy(id(44)).await.expect("one that never was");
    let (before, old) = (case.driver(), case.driver().watch());
    if !case.harness.restart().await {
        return;
    }
    drop(old);
    refused!(before.list().await, DriverError::Unavailable { .. });
    while stream.hear().await.is_some() {}
    let mut gift = greeted(gift).await;
    while gift.hear().await.is_some() {}
    case.driver().ensure_pool(&case.harness.template()).await.expect("the pool again");
    let ids: BTreeSet<u8> = case.list().await.iter().map(|sandbox| sandbox.id.0[0]).collect();
    assert_eq!(ids, BTreeSet::from([40, 41, 42, 43, 45, 46]), "nothing leaked, nothing lost");
    for number in [40, 41, 42, 43, 45, 46] {
        case.ready(id(number), case.driver().watch()).await;
    }
    let driver = case.driver();
    for (number, expected) in [(40, None), (41, None), (42, Some("me")), (43, Some("me"))] {
        let found = case.find(id(number)).await.expect("it is there");
        assert_eq!((found.owner, found.activated), (expected.map(owner), number == 43));
    }
    assert_eq!(case.find(id(43)).await, Some(given), "also its boot is the same");
    assert_eq!(case.find(id(45)).await, Some(whole), "as when it was given");
    let half = case.find(id(46)).await.and_then(|sandbox| sandbox.owner);
    assert!(half.is_none() || half == Some(owner("half")), "{half:?}");
    refused!(driver.assign(id(42), &owner("you")).await, DriverError::Conflict(_));
    driver.assign(id(42), &owner("me")).await.expect("the same owner again is fine");
    driver.activate(id(42), &Activation::default()).await.expect("it had not been configured");
    refused!(driver.activate(id(43), &Activation::default()).await, DriverError::Conflict(_));
    driver.assign(id(41), &owner("you")).await.expect("it was free");
    refused!(driver.create(id(44), &case.pool).await, DriverError::Gone(_));
    for number in [43, 45] {
        let known = case.dial(id(number)).await.call(Call::Executions).await;
        assert_eq!(known, Ok(Answer::Executions(Vec::new())));
    }
}

async fn another_boot_has_another_id(case: &Case<'_>) {
    let before = case.given(id(50)).await;
    let mut stream = case.dial(id(50)).await;
    let watch = case.driver().watch();
    if !case.harness.reboot(id(50)).await {
        return;
    }
    while stream.hear().await.is_some() {}
    let after = case.ready(id(50), watch).await;
    assert!(after.boot_id.is_some() && after.boot_id != before.boot_id, "{after:?}");
    assert_eq!((after.owner, after.activated), (before.owner, false), "its configuration went with its boot");
    let refusal = case.dial(id(50)).await.call(Call::Executions).await;
    assert!(matches!(refusal, Err(Refusal::Invalid(_))), "{refusal:?}");
    case.driver().activate(id(50), &Activation::default()).await.expect("once per boot");
}

/// The file that is looked for in what was saved.
const KEPT: &str = "/mnt/data/kept";

async fn what_is_saved_of_a_machine_goes_on_in_another_and_where_it_stays(case: &Case<'_>) {
    let driver = case.driver();
    let first = case.given(id(70)).await;
    if driver.keeps(&case.pool) == Keeps::Files {
        refused!(driver.save(id(70), true).await, DriverError::Invalid(_));
        let nothing: Stream = Box::new(tokio::io::empty());
        refused!(driver.load(id(71), &case.pool, nothing, None).await, DriverError::Invalid(_));
        assert_eq!(case.list().await.len(), 1, "what was refused has left nothing");
        return;
    }
    refused!(driver.save(id(79), true).await, DriverError::Gone(_));
    let mut stream = case.dial(id(70)).await;
    let Ok(Answer::Upload(upload)) = stream.call(Call::WriteOpen { path: KEPT.to_owned() }).await else {
        panic!("no upload")
    };
    stream.call(Call::Write { upload, data: b"as it was".to_vec() }).await.expect("it is written");
    stream.call(Call::WriteCommit { upload }).await.expect("it is in place");
    let saved = whole(driver.save(id(70), true).await.expect("it is saved")).await;
    assert_eq!(stream.call(Call::Ping).await, Ok(Answer::Done), "it stays, with its streams");
    drop(driver.save(id(70), false).await.expect("and again"));
    assert_eq!(stream.call(Call::Ping).await, Ok(Answer::Done), "what nobody reads to its end has not happened");
    drop(whole(driver.save(id(70), false).await.expect("to its end")).await);
    assert_eq!(stream.call(Call::Ping).await, Ok(Answer::Done), "nor what was read, and had no consequence");
    let again = whole(driver.save(id(70), false).await.expect("for good")).await;
    driver.destroy(id(70)).await.expect("it is not needed any more");
    // The one goes on twice, the other once; neither is the one before.
    for (number, bytes) in [(71, &saved), (72, &saved), (73, &again)] {
        let watch = driver.watch();
        let all: Stream = Box::new(std::io::Cursor::new(bytes.clone()));
        driver.load(id(number), &case.pool, all, None).await.expect("it is begun");
        let ready = case.ready(id(number), watch).await;
        assert!(ready.owner.is_none() && !ready.activated && ready.boot_id != first.boot_id, "{ready:?}");
        let refusal = case.dial(id(number)).await.call(Call::Executions).await;
        assert!(matches!(refusal, Err(Refusal::Invalid(_))), "no session has taken it yet: {refusal:?}");
        driver.assign(id(number), &owner("me")).await.expect("it is assigned");
        driver.activate(id(number), &Activation::default()).await.expect("it is configured");
        let read = Call::Read { path: KEPT.to_owned(), offset: 0, length: 100 };
        let found = case.dial(id(number)).await.call(read).await;
        assert!(matches!(&found, Ok(Answer::Data { data, .. }) if data == b"as it was"), "{found:?}");
    }
    let boots: BTreeSet<_> = case.list().await.into_iter().filter_map(|sandbox| sandbox.boot_id).collect();
    assert_eq!(boots.len(), 3, "each has a boot of its own");
    // What is not whole becomes nothing.
    let mut watch = driver.watch();
    let half: Stream = Box::new(std::io::Cursor::new(saved[..saved.len() / 2].to_vec()));
    if driver.load(id(74), &case.pool, half, None).await.is_ok() {
        gone(&mut watch, id(74)).await;
    }
    assert_eq!(case.find(id(74)).await, None);
}

/// All bytes of a stream that ends well.
async fn whole(mut stream: Stream) -> Vec<u8> {
    let mut bytes = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("it ends").expect("it is whole");
    bytes
}
