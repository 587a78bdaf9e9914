//! Tenants that share pools: what each may use, and whose turn it is.

mod support;

use std::time::Duration;

use sandpool_core::ids::{Identifier, SessionKey, TenantName};
use sandpool_driver::memory::{Memory, MemoryConfig};
use sandpool_node::{Caller, ExecutionState, NodeError, Open, Opened, Quota, Resource, SessionScope, Tenant, Whose};
use support::*;

fn tenant(name: &str) -> TenantName {
    TenantName::parse(name).unwrap()
}

fn key(tenant_name: &str, identifier: &str) -> SessionKey {
    SessionKey::new(tenant(tenant_name), Identifier::parse(identifier).unwrap())
}

async fn open(bench: &Bench, tenant: &str, identifier: &str) -> Result<Opened, NodeError> {
    let caller = Caller { subject: format!("somebody of {tenant}") };
    bench.node.open(&bench.pool, &key(tenant, identifier), Open::OrCreate, &caller).await
}

fn refused(outcome: Result<Opened, NodeError>) -> (Resource, u64) {
    match outcome {
        Err(NodeError::OverQuota { resource, limit, .. }) => (resource, limit),
        other => panic!("{other:?}"),
    }
}

async fn pool_for(tenants: Vec<Tenant>, change: impl FnOnce(&mut sandpool_node::PoolSpec)) -> Bench {
    let mut spec = spec("pool");
    change(&mut spec);
    Bench::for_tenants(Memory::new(MemoryConfig::default()), vec![spec], tenants).await
}

#[tokio::test(start_paused = true)]
async fn a_full_pool_gives_its_next_place_to_who_has_waited_least_of_it() {
    let bench = pool_for(Vec::new(), |spec| {
        spec.scale.max_sessions = 2;
        spec.full_wait = seconds(60);
    })
    .await;
    for name in ["held-1", "held-2"] {
        open(&bench, "noisy", name).await.unwrap();
    }
    let order = std::sync::Mutex::new(Vec::new());
    let wait = async |tenant: &str, name: &str, after: u64| {
        tokio::time::sleep(Duration::from_millis(after)).await;
        open(&bench, tenant, name).await.unwrap();
        order.lock().unwrap().push(name.to_owned());
    };
    let end = async {
        for (round, name) in ["held-1", "noisy-1", "quiet-1", "noisy-2", "noisy-3"].iter().enumerate() {
            tokio::time::sleep(seconds(1)).await;
            bench.node.delete_session(&bench.pool, &key(&name[..5].replace("held-", "noisy"), name)).await.unwrap();
            let served = || order.lock().unwrap().len();
            bench.until("one is served", |_| served() > round).await;
        }
    };
    tokio::join!(
        wait("noisy", "noisy-1", 1),
        wait("noisy", "noisy-2", 2),
        wait("noisy", "noisy-3", 3),
        wait("noisy", "noisy-4", 4),
        wait("quiet", "quiet-1", 5),
        end
    );
    assert_eq!(*order.lock().unwrap(), ["noisy-1", "quiet-1", "noisy-2", "noisy-3", "noisy-4"]);
}

#[tokio::test(start_paused = true)]
async fn a_full_pool_is_waited_for_so_long_and_no_longer() {
    let bench = pool_for(Vec::new(), |spec| {
        spec.scale.max_sessions = 1;
        spec.full_wait = seconds(5);
    })
    .await;
    open(&bench, "acme", "held").await.unwrap();
    let began = tokio::time::Instant::now();
    let late = open(&bench, "globex", "late").await;
    assert!(matches!(late, Err(NodeError::Exhausted { active: 1, limit: 1, .. })), "{late:?}");
    assert_eq!(began.elapsed().as_secs(), 5);
    // Whoever waits no more is in nobody's way.
    bench.node.delete_session(&bench.pool, &key("acme", "held")).await.unwrap();
    assert!(open(&bench, "globex", "late").await.unwrap().new);
}

#[tokio::test(start_paused = true)]
async fn a_tenant_has_its_quota_in_all_pools_together_and_after_a_restart() {
    let quota = Quota { sessions: Some(2), executions: Some(1), ..Quota::default() };
    let acme = Tenant { name: tenant("acme"), weight: 1, quota };
    let mut bench = pool_for(vec![acme], |_| {}).await;
    open(&bench, "acme", "first").await.unwrap();
    open(&bench, "acme", "second").await.unwrap();
    assert_eq!(refused(open(&bench, "acme", "third").await), (Resource::Sessions, 2));
    assert!(!open(&bench, "acme", "first").await.unwrap().new, "what is there is not refused");
    open(&bench, "globex", "third").await.unwrap();
    let run = async |bench: &Bench, text: &str| {
        let request = sandpool_node::ExecuteRequest { id: None, work: code(text), timeout: None, output_limit: None };
        bench.node.execute(&bench.pool, &key("acme", "first"), request).await
    };
    let running = run(&bench, "sleep 10000").await.unwrap();
    bench.until("it runs", |_| running.snapshot().state == ExecutionState::Running).await;
    let more = run(&bench, "value 1").await;
    assert!(matches!(more, Err(NodeError::OverQuota { resource: Resource::Executions, limit: 1, .. })), "{more:?}");
    bench.restart().await;
    assert_eq!(refused(open(&bench, "acme", "third").await), (Resource::Sessions, 2));
    let running = bench.node.execution(&bench.pool, &key("acme", "first"), &running.id()).await.unwrap();
    assert!(run(&bench, "value 1").await.is_err(), "what ran before counts");
    running.wait(LONG).await;
    run(&bench, "value 1").await.unwrap().wait(LONG).await;
    bench.node.delete_session(&bench.pool, &key("acme", "second")).await.unwrap();
    open(&bench, "acme", "third").await.unwrap();
    let seen = bench.node.sessions(&bench.pool, Whose::Tenant(&tenant("acme"))).unwrap();
    let seen: Vec<_> = seen.iter().map(|session| session.identifier.as_str()).collect();
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert_eq!(bench.node.sessions(&bench.pool, Whose::Everybody).unwrap().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn where_the_pool_says_so_tenants_share_their_sessions_and_who_made_one_pays() {
    let quota = Quota { sessions: Some(1), ..Quota::default() };
    let acme = Tenant { name: tenant("acme"), weight: 1, quota };
    let mut bench = pool_for(vec![acme], |spec| spec.scope = SessionScope::Pool).await;
    let made = open(&bench, "acme", "common").await.unwrap();
    let found = open(&bench, "globex", "common").await.unwrap();
    assert_eq!((found.new, found.session.sandbox), (false, made.session.sandbox));
    assert_eq!(found.session.tenant, tenant("acme"));
    assert_eq!(refused(open(&bench, "acme", "another").await), (Resource::Sessions, 1));
    open(&bench, "globex", "another").await.unwrap();
    bench.restart().await;
    assert!(!open(&bench, "globex", "common").await.unwrap().new);
    assert_eq!(refused(open(&bench, "acme", "third").await), (Resource::Sessions, 1));
    assert_eq!(bench.node.sessions(&bench.pool, Whose::Tenant(&tenant("nobody"))).unwrap().len(), 2);
    bench.node.delete_session(&bench.pool, &key("globex", "common")).await.unwrap();
    open(&bench, "acme", "third").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn new_sessions_come_no_faster_than_allowed() {
    let quota = Quota { creates_per_second: Some(2), ..Quota::default() };
    let acme = Tenant { name: tenant("acme"), weight: 1, quota };
    let bench = pool_for(vec![acme], |spec| spec.scale.max_sessions = 20).await;
    let (mut made, mut refusals) = (0, 0);
    let began = tokio::time::Instant::now();
    while made < 8 {
        match open(&bench, "acme", &format!("name-{made}")).await {
            Ok(_) => made += 1,
            Err(NodeError::OverQuota { resource: Resource::Creates, retry_after, .. }) => {
                refusals += 1;
                tokio::time::sleep(retry_after).await;
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!(began.elapsed() >= seconds(3) && refusals >= 6, "{:?} {refusals}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn processor_time_that_is_used_up_refuses_what_is_new_and_ends_nothing() {
    let quota = Quota { cpu_per_hour: Some(seconds(60)), ..Quota::default() };
    let acme = Tenant { name: tenant("acme"), weight: 1, quota };
    let bench = pool_for(vec![acme], |_| {}).await;
    let sandbox = open(&bench, "acme", "first").await.unwrap().session.sandbox;
    bench.memory.use_cpu(sandbox, seconds(61));
    tokio::time::sleep(seconds(6)).await;
    assert_eq!(refused(open(&bench, "acme", "second").await), (Resource::Cpu, 60));
    assert!(!open(&bench, "acme", "first").await.unwrap().new, "what is there stays");
    open(&bench, "globex", "second").await.unwrap();
    tokio::time::sleep(seconds(3600)).await;
    let ended = open(&bench, "acme", "second").await.unwrap().session.sandbox;
    // What is used between two looks is counted at the end.
    bench.memory.use_cpu(ended, seconds(200));
    bench.node.delete_session(&bench.pool, &key("acme", "second")).await.unwrap();
    assert_eq!(refused(open(&bench, "acme", "third").await), (Resource::Cpu, 60));
}

#[tokio::test(start_paused = true)]
async fn what_a_tenant_uses_is_counted_where_something_limits_it() {
    let quota = Quota { egress_bytes_per_hour: Some(1_000), sessions: Some(5), ..Quota::default() };
    let few = Quota { sessions: Some(5), ..Quota::default() };
    let of = |name, quota| Tenant { name: tenant(name), weight: 1, quota };
    let bench = pool_for(vec![of("globex", few), of("acme", quota)], |_| {}).await;
    for name in ["acme", "globex"] {
        let sandbox = open(&bench, name, "first").await.unwrap().session.sandbox;
        bench
            .memory
            .using(sandbox, |used| (used.sent, used.received, used.cpu_us) = (Some(300), Some(200), Some(1_500_000)));
    }
    tokio::time::sleep(seconds(6)).await;
    let [acme, globex] = &bench.node.metrics().tenants[..] else { panic!("two, by name") };
    let used = acme.used.unwrap();
    assert_eq!((used.sent, used.received, used.cpu), (300, 200, Duration::from_millis(1_500)));
    let [sessions, egress] = acme.quota[..] else { panic!("{:?}", acme.quota) };
    assert_eq!(sessions, ("sessions", 1.0, 5.0));
    assert_eq!((egress.0, egress.2), ("egressBytesPerHour", 1_000.0));
    assert!((490.0..=500.0).contains(&egress.1), "half of it, of which some may have come again: {}", egress.1);
    assert_eq!((globex.name.as_str(), globex.used.is_none()), ("globex", true), "nobody looks");
}

#[tokio::test(start_paused = true)]
async fn sessions_that_end_and_those_that_are_lost_are_all_that_were_opened() {
    let bench = pool_for(Vec::new(), |spec| spec.life.cooldown = seconds(10)).await;
    for name in ["asked", "idle", "lost"] {
        open(&bench, "acme", name).await.unwrap();
    }
    bench.node.delete_session(&bench.pool, &key("acme", "asked")).await.unwrap();
    let lost = bench.node.session(&bench.pool, &key("acme", "lost")).unwrap().sandbox;
    bench.memory.kill(lost, sandpool_driver::GoneReason::OutOfMemory);
    tokio::time::sleep(seconds(11)).await;
    let [pool] = &bench.node.metrics().pools[..] else { panic!("one") };
    assert_eq!((pool.opened, pool.allocations.count, pool.status.sessions), (3, 3, 0));
    let counted =
        |counts: &[(&'static str, u64)]| counts.iter().copied().filter(|(_, count)| *count > 0).collect::<Vec<_>>();
    assert_eq!(counted(&pool.ended), [("asked", 1), ("over", 1)]);
    assert_eq!(pool.lost.iter().map(|(_, count)| count).sum::<u64>(), 1, "{:?}", pool.lost);
}
