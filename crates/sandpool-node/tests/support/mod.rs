//! A node over sandboxes in memory, under paused time.

#![allow(dead_code, reason = "each test program uses its own part")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sandpool_core::ids::{ExecutionId, Identifier, PoolName, SessionKey};
use sandpool_core::limits::{Life, Limits, Scale};
use sandpool_driver::memory::{Memory, MemoryConfig};
use sandpool_driver::{Driver, Phase};
use sandpool_node::{
    Bounds, Caller, ExecuteRequest, Execution, ExecutionHandle, ExecutionState, Node, NodeConfig, NodeError, Open,
    Opened, Outcome, PoolSpec, Runtime, Snapshots, Stdin, Store, Tenant, Work, cut::CutDisk,
};

/// Longer than anything in these tests takes.
pub(crate) const LONG: Duration = Duration::from_secs(3600);

pub(crate) struct Bench {
    pub(crate) memory: Memory,
    pub(crate) node: Node,
    pub(crate) pool: PoolName,
    specs: Vec<PoolSpec>,
    tenants: Vec<Tenant>,
    pub(crate) store: Option<Store>,
    /// Where its snapshots are.
    pub(crate) disk: CutDisk,
}

pub(crate) fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

pub(crate) fn name(text: &str) -> SessionKey {
    Identifier::parse(text).unwrap().into()
}

pub(crate) fn spec(pool: &str) -> PoolSpec {
    PoolSpec {
        name: PoolName::parse(pool).unwrap(),
        runtime: Runtime::Python,
        rootfs: "/nowhere".into(),
        scale: Scale { max_sessions: 3, ready: 1, most_ready: 1, boots: 2 },
        life: Life { cooldown: seconds(300), max_alive: None },
        limits: Limits::default(),
        queue: 2,
        output_limit: 1 << 20,
        max_timeout: seconds(120),
        env: vec![("SAID".to_owned(), "hello".to_owned())],
        start: sandpool_node::Start::Cold,
        egress: None,
        scope: sandpool_node::SessionScope::Tenant,
        container: None,
        session_secrets: false,
        isolation: sandpool_node::Isolation::default(),
        local_servers: true,
        suspends: sandpool_core::limits::Suspends::default(),
        full_wait: Duration::ZERO,
    }
}

impl Bench {
    pub(crate) async fn new(change: impl FnOnce(&mut PoolSpec)) -> Self {
        Self::with(MemoryConfig::default(), change).await
    }

    pub(crate) async fn with(config: MemoryConfig, change: impl FnOnce(&mut PoolSpec)) -> Self {
        let mut spec = spec("pool");
        change(&mut spec);
        Self::of(Memory::new(config), vec![spec]).await
    }

    pub(crate) async fn of(memory: Memory, specs: Vec<PoolSpec>) -> Self {
        Self::for_tenants(memory, specs, Vec::new()).await
    }

    pub(crate) async fn for_tenants(memory: Memory, specs: Vec<PoolSpec>, tenants: Vec<Tenant>) -> Self {
        let pool = specs[0].name.clone();
        let disk = CutDisk::default();
        let node = start(&memory, &specs, &tenants, None, &disk).await;
        Self { memory, node, pool, specs, tenants, store: None, disk }
    }

    /// The server is killed, and started again with this store.
    pub(crate) async fn restart_with(&mut self, store: Store) {
        self.store = Some(store);
        self.restart().await;
    }

    /// The server is killed and started again.
    pub(crate) async fn restart(&mut self) {
        self.node = start(&self.memory, &self.specs, &self.tenants, self.store.clone(), &self.disk).await;
    }

    pub(crate) async fn open(&self, who: &str) -> Result<Opened, NodeError> {
        let caller = Caller { subject: format!("owner of {who}") };
        self.node.open(&self.pool, &name(who), Open::OrCreate, &caller).await
    }

    pub(crate) async fn start(&self, who: &str, work: Work) -> Result<ExecutionHandle, NodeError> {
        self.start_as(who, None, work).await
    }

    pub(crate) async fn start_as(&self, who: &str, id: Option<u8>, work: Work) -> Result<ExecutionHandle, NodeError> {
        let id = id.map(|number| ExecutionId([number; 16]));
        let request = ExecuteRequest { id, work, timeout: None, output_limit: None };
        self.node.execute(&self.pool, &name(who), request).await
    }

    pub(crate) async fn start_with(
        &self,
        who: &str,
        id: ExecutionId,
        work: Work,
    ) -> Result<ExecutionHandle, NodeError> {
        let request = ExecuteRequest { id: Some(id), work, timeout: None, output_limit: None };
        self.node.execute(&self.pool, &name(who), request).await
    }

    pub(crate) async fn run(&self, who: &str, text: &str) -> Execution {
        let seen = self.start(who, code(text)).await.unwrap().wait(LONG).await;
        assert!(matches!(seen.state, ExecutionState::Ended(_)), "{seen:?}");
        seen
    }

    /// Waits until something is so, a millisecond at a time.
    pub(crate) async fn until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        for _ in 0..200_000 {
            if is_so(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("it never came true: {what}; {:?} {:?}", self.node.pools(), self.memory.sandboxes());
    }

    pub(crate) async fn until_full(&self) {
        self.until("every reservoir is full", |bench| bench.node.is_ready()).await;
    }

    /// Every sandbox is accounted for, and none is there that nobody knows.
    pub(crate) async fn check_no_leak(&self) {
        self.until("nothing leaks", |bench| {
            let known: u32 = bench.node.pools().iter().map(|pool| pool.ready + pool.booting + pool.sessions).sum();
            bench.memory.sandboxes().len() == known as usize
        })
        .await;
    }
}

thread_local! {
    /// When this thread's test began. Each runs on one.
    static BEGAN: std::cell::OnceCell<tokio::time::Instant> = const { std::cell::OnceCell::new() };
}

async fn start(memory: &Memory, specs: &[PoolSpec], tenants: &[Tenant], store: Option<Store>, disk: &CutDisk) -> Node {
    let bounds = Bounds { all: 1 << 30, of_tenant: 1 << 30 };
    // A disk without power has none.
    let snapshots = Snapshots::open(Path::new("/snapshots"), Arc::new(disk.clone()), bounds).ok();
    // Paused time stands for the host's monotonic clock.
    let monotonic = BEGAN.with(|began| began.get_or_init(tokio::time::Instant::now).elapsed());
    let (pools, tenants) = (specs.to_vec(), tenants.to_vec());
    let config = NodeConfig { pools, applied: Vec::new(), tenants, monotonic, store, snapshots, identities: None };
    Node::start(config, memory.driver() as Arc<dyn Driver>).await.unwrap()
}

pub(crate) fn code(text: &str) -> Work {
    Work::Code { code: text.to_owned(), fresh: false }
}

pub(crate) fn shell(text: &str) -> Work {
    Work::Shell { command: text.to_owned(), stdin: Stdin::Empty }
}

pub(crate) fn ended(outcome: Outcome) -> ExecutionState {
    ExecutionState::Ended(outcome)
}

pub(crate) fn text(execution: &Execution) -> &str {
    execution.result.as_ref().map_or("", |rich| rich.text.as_str())
}

pub(crate) fn stdout(execution: &Execution) -> &str {
    std::str::from_utf8(&execution.stdout).unwrap()
}

pub(crate) fn ready(memory: &Memory) -> usize {
    memory.sandboxes().iter().filter(|sandbox| sandbox.phase == Phase::Ready).count()
}
