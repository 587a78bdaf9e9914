//! The in-memory driver: the whole life of sandboxes and the agent's whole protocol, without a wall.
//!
//! ```text
//! Memory (the host: sandboxes, faults)
//!   |-- driver(): MemoryDriver, one server's view. The next one is a server that was started again:
//!   |             the sandboxes are as they were, and the old one's calls, watches and streams are cut off
//!   `-- sandbox: an agent that runs scripts (see the table in `script.rs`)
//! ```
//!
//! Its boundary is none, and its level says so. Everything in it is deterministic: time is tokio's, so that tests can
//! pause it, and numbers count up. Faults come on demand, by the methods of [`Memory`].

mod agent;
mod files;
mod saved;
mod script;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use sandpool_core::ids::{PoolName, SandboxId};
use sandpool_wire::agent::Activation;
use sandpool_wire::egress::{Policy, SecretValue, Told};
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::sync::{broadcast, mpsc, watch};

use crate::{
    Change, Description, Driver, DriverError, GoneReason, Isolation, Keeps, MAX_RECORD, Owner, Phase, Sandbox, Stream,
    Template, Usage,
};
use agent::{Agent, Warmth};

/// The level's name. Sessions report it, so that nobody takes it for a wall.
pub const LEVEL: &str = "memory (no boundary)";

/// How long a boot takes, unless it is set otherwise.
const BOOT_TIME: Duration = Duration::from_millis(5);

/// Changes that are kept for a watcher that is slow, unless it is set otherwise.
const CHANGES: usize = 1024;

/// Bytes of a stream that wait for their reader, in each direction.
const PIPE: usize = 64 * 1024;

/// A host of sandboxes in memory. Cheap to clone; all clones are the same host.
///
/// Needs a tokio runtime wherever it is used.
#[derive(Clone, Debug)]
pub struct Memory {
    host: Arc<Host>,
}

/// What a host is made with.
#[derive(Clone)]
pub struct MemoryConfig {
    /// Sandboxes at the same time, at most.
    pub max_sandboxes: usize,
    /// From `create` to ready.
    pub boot_time: Duration,
    /// Changes that are kept for a watcher that is slow.
    pub changes: usize,
    /// What listens at the ports of its sandboxes.
    pub port: Option<Port>,
}

/// Serves a connection to a port; `None` where nobody listens.
pub type Port = Arc<dyn Fn(u16, DuplexStream) -> Option<()> + Send + Sync>;

impl std::fmt::Debug for MemoryConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryConfig").field("max_sandboxes", &self.max_sandboxes).finish_non_exhaustive()
    }
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self { max_sandboxes: 1000, boot_time: BOOT_TIME, changes: CHANGES, port: None }
    }
}

/// The calls of a driver, for faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// [`Driver::ensure_pool`] and [`Driver::remove_pool`].
    EnsurePool,
    /// [`Driver::create`].
    Create,
    /// [`Driver::assign`].
    Assign,
    /// [`Driver::activate`].
    Activate,
    /// [`Driver::destroy`].
    Destroy,
    /// [`Driver::list`].
    List,
    /// [`Driver::dial`].
    Dial,
    /// [`Driver::usage`].
    Usage,
    /// [`Driver::save`].
    Save,
    /// [`Driver::load`].
    Load,
}

/// What becomes of a boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Boot {
    /// It succeeds, after the host's boot time.
    Succeeds,
    /// The interpreter cannot be started: says why.
    Fails(String),
    /// Nothing is ever heard of it.
    Hangs,
}

#[derive(Debug)]
struct Host {
    config: MemoryConfig,
    state: Mutex<State>,
    /// The number of the server that is alive.
    server: watch::Sender<u64>,
    /// What an egress proxy has said.
    told: (mpsc::UnboundedSender<Told>, tokio::sync::Mutex<mpsc::UnboundedReceiver<Told>>),
}

#[derive(Debug)]
struct State {
    pools: HashMap<PoolName, Template>,
    sandboxes: BTreeMap<SandboxId, Place>,
    /// Every id that was ever there and is not any more.
    over: HashSet<SandboxId>,
    /// Those that ended by themselves while they were a session's, and have not been destroyed yet.
    lost: BTreeMap<SandboxId, Sandbox>,
    changes: broadcast::Sender<Change>,
    /// Numbers the boots.
    boots: u64,
    faults: Faults,
}

/// A sandbox's place on the host.
#[derive(Debug)]
struct Place {
    sandbox: Sandbox,
    agent: Arc<Agent>,
    /// What it is said to have used.
    used: Usage,
    narrowed: Option<Policy>,
    entrusted: Vec<SecretValue>,
}

#[derive(Debug)]
struct Faults {
    /// What becomes of the next boots, the first of them first.
    boots: Vec<Boot>,
    /// What becomes of all others.
    boot: Boot,
    late: Duration,
    refuse: u32,
    refuse_only: HashMap<Operation, u32>,
    is_silent: bool,
}

impl Memory {
    /// An empty host.
    #[must_use]
    pub fn new(config: MemoryConfig) -> Self {
        let faults = Faults {
            boots: Vec::new(),
            boot: Boot::Succeeds,
            late: Duration::ZERO,
            refuse: 0,
            refuse_only: HashMap::new(),
            is_silent: false,
        };
        let state = State {
            pools: HashMap::new(),
            sandboxes: BTreeMap::new(),
            over: HashSet::new(),
            lost: BTreeMap::new(),
            changes: broadcast::channel(config.changes).0,
            boots: 0,
            faults,
        };
        let (sender, receiver) = mpsc::unbounded_channel();
        let told = (sender, tokio::sync::Mutex::new(receiver));
        Self { host: Arc::new(Host { config, state: Mutex::new(state), server: watch::channel(0).0, told }) }
    }

    /// The driver of a server that has just been started. The server before it counts as killed: its calls are
    /// `Unavailable`, its watches end, its streams are closed. The sandboxes do not notice.
    #[must_use]
    pub fn driver(&self) -> Arc<MemoryDriver> {
        let mut number = 0;
        self.host.state().changes = broadcast::channel(self.host.config.changes).0;
        self.host.server.send_modify(|server| {
            *server += 1;
            number = *server;
        });
        Arc::new(MemoryDriver { host: Arc::clone(&self.host), number })
    }

    /// What becomes of the next boots, in this order.
    pub fn next_boots(&self, boots: impl IntoIterator<Item = Boot>) {
        self.host.state().faults.boots.extend(boots);
    }

    /// What becomes of all boots from now on, after those of [`Memory::next_boots`].
    pub fn all_boots(&self, boot: Boot) {
        self.host.state().faults.boot = boot;
    }

    /// Every call is answered so much later (also the driver's own deadlines do not shorten it).
    pub fn answer_late(&self, late: Duration) {
        self.host.state().faults.late = late;
    }

    /// The next calls are `Unavailable`, whatever they are.
    pub fn refuse(&self, calls: u32) {
        self.host.state().faults.refuse = calls;
    }

    /// The next calls of one kind are `Unavailable`.
    pub fn refuse_only(&self, operation: Operation, calls: u32) {
        self.host.state().faults.refuse_only.insert(operation, calls);
    }

    /// Loses the changes that `work` brings about: watchers are told that they lag, and nothing else.
    pub fn lose_changes<T>(&self, work: impl FnOnce() -> T) -> T {
        self.host.state().faults.is_silent = true;
        let done = work();
        let mut state = self.host.state();
        state.faults.is_silent = false;
        // Of a sandbox that never was: it only takes the room of what is kept.
        let nothing = Change::Gone { id: SandboxId([0; 16]), reason: GoneReason::Destroyed };
        for _ in 0..=self.host.config.changes.next_power_of_two() {
            state.say(nothing.clone());
        }
        done
    }

    /// The first process of a sandbox ends. Whether there was one.
    pub fn kill(&self, id: SandboxId, reason: GoneReason) -> bool {
        self.host.gone(id, reason)
    }

    /// A sandbox starts anew, with another boot id and without all that was in it. Whether there was one.
    pub fn reboot(&self, id: SandboxId) -> bool {
        self.host.boot(id)
    }

    /// A sandbox has used so much more processor time.
    pub fn use_cpu(&self, id: SandboxId, time: Duration) {
        self.using(id, |used| {
            let more = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
            used.cpu_us = Some(used.cpu_us.unwrap_or(0).saturating_add(more));
        });
    }

    /// Changes what a sandbox is said to have used. Its memory and processes are its agent's to say.
    pub fn using(&self, id: SandboxId, change: impl FnOnce(&mut Usage)) {
        if let Some(place) = self.host.state().sandboxes.get_mut(&id) {
            change(&mut place.used);
        }
    }

    /// An egress proxy, which this driver has not, says this.
    pub fn tell(&self, told: Told) {
        self.host.told.0.send(told).expect("the other end is here too");
    }

    /// The secrets that a sandbox's session has of its own.
    #[must_use]
    pub fn entrusted(&self, id: SandboxId) -> Vec<SecretValue> {
        self.host.state().sandboxes.get(&id).map(|place| place.entrusted.clone()).unwrap_or_default()
    }

    /// The sandboxes, as [`Driver::list`] shows them.
    #[must_use]
    pub fn sandboxes(&self) -> Vec<Sandbox> {
        self.host.state().list()
    }
}

impl Host {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Boots a sandbox that has its place: for the first time, or again.
    fn boot(self: &Arc<Self>, id: SandboxId) -> bool {
        let mut state = self.state();
        let Some(place) = state.sandboxes.get(&id) else { return false };
        let pool = place.sandbox.pool.clone();
        let Some(template) = state.pools.get(&pool).cloned() else { return false };
        let (number, fate) = state.next_boot();
        let agent = Arc::new(self.agent(id, number, &template));
        if let Some(place) = state.sandboxes.get_mut(&id) {
            place.agent.end();
            place.agent = Arc::clone(&agent);
            place.sandbox.phase = Phase::Booting;
            place.sandbox.boot_id = None;
            place.sandbox.activated = false;
            let sandbox = place.sandbox.clone();
            state.say(Change::Upsert(sandbox));
        }
        drop(state);
        self.watch_boot(id, &agent, fate, template.boot_limit);
        true
    }

    fn agent(self: &Arc<Self>, id: SandboxId, number: u64, template: &Template) -> Agent {
        let host: Weak<Self> = Arc::downgrade(self);
        let crash = move || {
            if let Some(host) = host.upgrade() {
                host.gone(id, GoneReason::Died("its first process ended with exit code 1".to_owned()));
            }
        };
        let mut boot_id = [0xb0; 16];
        boot_id[..8].copy_from_slice(&number.to_be_bytes());
        Agent::new(template.runtime, boot_id, template.limits.data, Box::new(crash))
    }

    /// Lets a boot take its course, in a task of the sandbox.
    fn watch_boot(self: &Arc<Self>, id: SandboxId, agent: &Arc<Agent>, fate: Boot, limit: Duration) {
        let (host, booted, time) = (Arc::downgrade(self), Arc::clone(agent), self.config.boot_time);
        agent.spawn(async move {
            let is_late = time > limit || fate == Boot::Hangs;
            tokio::time::sleep(if is_late { limit } else { time }).await;
            let Some(host) = host.upgrade() else { return };
            let failure = match fate {
                _ if is_late => format!("it was not ready after {} s", limit.as_secs_f64()),
                Boot::Fails(why) => {
                    booted.warm(Warmth::Broken(why.clone()));
                    why
                }
                Boot::Succeeds | Boot::Hangs => {
                    booted.warm(Warmth::Ready);
                    return host.update(id, |sandbox| {
                        sandbox.phase = Phase::Ready;
                        sandbox.boot_id = Some(booted.boot_id);
                    });
                }
            };
            host.gone(id, GoneReason::BootFailed(failure));
        });
    }

    fn update(&self, id: SandboxId, change: impl FnOnce(&mut Sandbox)) {
        let mut state = self.state();
        if let Some(place) = state.sandboxes.get_mut(&id) {
            change(&mut place.sandbox);
            let sandbox = place.sandbox.clone();
            state.say(Change::Upsert(sandbox));
        }
    }

    fn gone(&self, id: SandboxId, reason: GoneReason) -> bool {
        let mut state = self.state();
        let Some(place) = state.sandboxes.remove(&id) else { return false };
        state.over.insert(id);
        if place.sandbox.activated && reason != GoneReason::Destroyed {
            state.lost.insert(id, Sandbox { phase: Phase::Lost, ..place.sandbox.clone() });
        }
        state.say(Change::Gone { id, reason });
        drop(state);
        place.agent.end();
        true
    }
}

impl State {
    fn say(&self, change: Change) {
        if !self.faults.is_silent {
            // Nobody may be watching.
            let _ = self.changes.send(change);
        }
    }

    fn list(&self) -> Vec<Sandbox> {
        self.sandboxes.values().map(|place| &place.sandbox).chain(self.lost.values()).cloned().collect()
    }

    fn next_boot(&mut self) -> (u64, Boot) {
        self.boots += 1;
        let faults = &mut self.faults;
        let fate = if faults.boots.is_empty() { faults.boot.clone() } else { faults.boots.remove(0) };
        (self.boots, fate)
    }

    fn place(&mut self, id: SandboxId) -> Result<&mut Place, DriverError> {
        self.sandboxes.get_mut(&id).ok_or_else(|| DriverError::Gone(format!("there is no sandbox {id}")))
    }
}

/// Makes sandboxes in memory: one server's view of a [`Memory`].
#[derive(Debug)]
pub struct MemoryDriver {
    host: Arc<Host>,
    number: u64,
}

impl MemoryDriver {
    /// Begins a call: late, and refused, where that was asked for.
    async fn begin(&self, operation: Operation) -> Result<MutexGuard<'_, State>, DriverError> {
        let late = self.host.state().faults.late;
        if !late.is_zero() {
            tokio::time::sleep(late).await;
        }
        if *self.host.server.borrow() != self.number {
            return Err(unavailable("this server was killed"));
        }
        let mut state = self.host.state();
        let only = state.faults.refuse_only.entry(operation).or_default();
        if *only > 0 {
            *only -= 1;
            return Err(unavailable("on demand"));
        }
        if state.faults.refuse > 0 {
            state.faults.refuse -= 1;
            return Err(unavailable("on demand"));
        }
        Ok(state)
    }

    /// Makes a place for a sandbox, whose boot is then to be watched; `None` for one that is there already.
    fn place(
        &self,
        mut state: MutexGuard<'_, State>,
        id: SandboxId,
        pool: &PoolName,
        narrowed: Option<&Policy>,
    ) -> Result<Option<(Arc<Agent>, Boot, Duration)>, DriverError> {
        let Some(template) = state.pools.get(pool).cloned() else {
            return Err(DriverError::Invalid(format!("there is no pool {pool}")));
        };
        if state.over.contains(&id) {
            return Err(DriverError::Gone(format!("the sandbox {id} has been there, and is over")));
        }
        if let Some(place) = state.sandboxes.get(&id) {
            return if place.sandbox.pool == *pool {
                Ok(None)
            } else {
                Err(DriverError::Conflict(format!("it is of the pool {}", place.sandbox.pool)))
            };
        }
        if state.sandboxes.len() >= self.host.config.max_sandboxes {
            return Err(DriverError::Exhausted(format!(
                "all {} places for sandboxes are taken",
                self.host.config.max_sandboxes
            )));
        }
        let (number, fate) = state.next_boot();
        let agent = Arc::new(self.host.agent(id, number, &template));
        let sandbox =
            Sandbox { id, pool: pool.clone(), phase: Phase::Booting, boot_id: None, owner: None, activated: false };
        state.sandboxes.insert(
            id,
            Place {
                sandbox: sandbox.clone(),
                agent: Arc::clone(&agent),
                used: Usage::default(),
                narrowed: narrowed.cloned(),
                entrusted: Vec::new(),
            },
        );
        state.say(Change::Upsert(sandbox));
        Ok(Some((agent, fate, template.boot_limit)))
    }
}

#[async_trait]
impl Driver for MemoryDriver {
    fn describe(&self) -> Description {
        Description {
            level: LEVEL.to_owned(),
            wall: Vec::new(),
            weaker: vec!["sandboxes in memory have no boundary at all; scripts run in the server itself".to_owned()],
        }
    }

    async fn ensure_pool(&self, template: &Template) -> Result<(), DriverError> {
        let mut state = self.begin(Operation::EnsurePool).await?;
        state.pools.insert(template.pool.clone(), template.clone());
        Ok(())
    }

    async fn remove_pool(&self, pool: &PoolName) -> Result<(), DriverError> {
        self.begin(Operation::EnsurePool).await?.pools.remove(pool);
        Ok(())
    }

    async fn create(&self, id: SandboxId, pool: &PoolName) -> Result<(), DriverError> {
        let state = self.begin(Operation::Create).await?;
        let Some((agent, fate, limit)) = self.place(state, id, pool, None)? else { return Ok(()) };
        self.host.watch_boot(id, &agent, fate, limit);
        Ok(())
    }

    async fn assign(&self, id: SandboxId, owner: &Owner) -> Result<(), DriverError> {
        if owner.record.len() > MAX_RECORD {
            return Err(DriverError::Invalid(format!("the owner's record is over {MAX_RECORD} bytes")));
        }
        let mut state = self.begin(Operation::Assign).await?;
        let place = state.place(id)?;
        match &place.sandbox.owner {
            _ if place.sandbox.phase != Phase::Ready => Err(unavailable("the sandbox is not ready yet")),
            Some(other) if other != owner => Err(DriverError::Conflict("it belongs to another session".to_owned())),
            _ => {
                place.sandbox.owner = Some(owner.clone());
                let sandbox = place.sandbox.clone();
                state.say(Change::Upsert(sandbox));
                Ok(())
            }
        }
    }

    async fn activate(&self, id: SandboxId, activation: &Activation) -> Result<(), DriverError> {
        let mut state = self.begin(Operation::Activate).await?;
        let place = state.place(id)?;
        if place.sandbox.owner.is_none() {
            return Err(DriverError::Invalid("it belongs to nobody yet".to_owned()));
        }
        if place.sandbox.phase != Phase::Ready {
            return Err(unavailable("the sandbox is not ready yet"));
        }
        let configured = place.agent.activate(activation.clone());
        configured.map_err(|refusal| DriverError::Conflict(refusal.to_string()))?;
        place.sandbox.activated = true;
        let sandbox = place.sandbox.clone();
        state.say(Change::Upsert(sandbox));
        Ok(())
    }

    async fn destroy(&self, id: SandboxId) -> Result<(), DriverError> {
        let mut state = self.begin(Operation::Destroy).await?;
        // Also one that was never there: a `create` that is still on its way must not bring it back.
        state.over.insert(id);
        state.lost.remove(&id);
        drop(state);
        self.host.gone(id, GoneReason::Destroyed);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Sandbox>, DriverError> {
        Ok(self.begin(Operation::List).await?.list())
    }

    fn watch(&self) -> broadcast::Receiver<Change> {
        let state = self.host.state();
        if *self.host.server.borrow() == self.number {
            state.changes.subscribe()
        } else {
            // Nobody is left to say anything to a server that was killed.
            broadcast::channel(1).1
        }
    }

    async fn dial(&self, id: SandboxId) -> Result<Stream, DriverError> {
        let mut state = self.begin(Operation::Dial).await?;
        let agent = Arc::clone(&state.place(id)?.agent);
        drop(state);
        let (here, there) = tokio::io::duplex(PIPE);
        let (mut server, number) = (self.host.server.subscribe(), self.number);
        let serving = Arc::clone(&agent);
        agent.spawn(async move {
            tokio::select! {
                () = serving.serve(there) => {}
                // With the server its ends of all streams are closed.
                _ = server.wait_for(|server| *server != number) => {}
            }
        });
        Ok(Box::new(here))
    }

    async fn connect(&self, id: SandboxId, port: u16) -> Result<Stream, DriverError> {
        self.begin(Operation::Dial).await?.place(id)?;
        let (here, there) = tokio::io::duplex(PIPE);
        match self.host.config.port.as_ref().and_then(|serve| serve(port, there)) {
            Some(()) => Ok(Box::new(here)),
            None => Err(DriverError::Refused(format!("nothing listens at port {port}"))),
        }
    }

    async fn usage(&self, id: SandboxId) -> Result<Usage, DriverError> {
        let mut state = self.begin(Operation::Usage).await?;
        let place = state.place(id)?;
        let (memory, running) = place.agent.usage();
        let pids = u32::try_from(running).unwrap_or(u32::MAX).saturating_add(1);
        Ok(Usage {
            memory,
            memory_peak: Some(memory),
            pids,
            cpu_us: Some(place.used.cpu_us.unwrap_or(0)),
            ..place.used
        })
    }

    async fn narrow(&self, id: SandboxId, policy: Option<&Policy>) -> Result<(), DriverError> {
        // Nothing is reached from what this driver makes, whatever is allowed.
        self.begin(Operation::Usage).await?.place(id)?.narrowed = policy.cloned();
        Ok(())
    }

    async fn entrust(&self, id: SandboxId, secrets: &[SecretValue]) -> Result<(), DriverError> {
        self.begin(Operation::Usage).await?.place(id)?.entrusted = secrets.to_vec();
        Ok(())
    }

    async fn decided(&self) -> Told {
        // The sender is in the same host: there is always another to come.
        self.host.told.1.lock().await.recv().await.unwrap_or_default()
    }

    async fn narrowed(&self, id: SandboxId) -> Result<Option<Policy>, DriverError> {
        Ok(self.begin(Operation::Usage).await?.place(id)?.narrowed.clone())
    }

    fn keeps(&self, pool: &PoolName) -> Keeps {
        let is_machine = |template: &Template| template.isolation == Isolation::Microvm;
        if self.host.state().pools.get(pool).is_some_and(is_machine) { Keeps::Machine } else { Keeps::Files }
    }

    async fn save(&self, id: SandboxId, _stays: bool) -> Result<Stream, DriverError> {
        let mut state = self.begin(Operation::Save).await?;
        let place = state.place(id)?;
        if !place.sandbox.activated {
            return Err(DriverError::Invalid("nobody has it yet".to_owned()));
        }
        let (pool, agent) = (place.sandbox.pool.clone(), Arc::clone(&place.agent));
        drop(state);
        if self.keeps(&pool) == Keeps::Files {
            return Err(DriverError::Invalid(format!("nothing but files is kept of sandboxes of {pool}")));
        }
        // All of it at one moment: nothing goes on between its first byte and its last.
        let saved = agent.save();
        let (here, mut there) = tokio::io::duplex(PIPE);
        agent.spawn(async move {
            // Whoever does not read it to the end does not want it.
            let _ = there.write_all(&saved).await;
        });
        Ok(Box::new(here))
    }

    async fn load(
        &self,
        id: SandboxId,
        pool: &PoolName,
        mut saved: Stream,
        narrowed: Option<&Policy>,
    ) -> Result<(), DriverError> {
        let state = self.begin(Operation::Load).await?;
        let Some((agent, fate, limit)) = self.place(state, id, pool, narrowed)? else { return Ok(()) };
        if self.keeps(pool) == Keeps::Files {
            self.host.gone(id, GoneReason::Destroyed);
            return Err(DriverError::Invalid(format!("nothing but files is kept of sandboxes of {pool}")));
        }
        let (host, loading) = (Arc::clone(&self.host), Arc::clone(&agent));
        tokio::spawn(async move {
            match loading.load(&mut saved).await {
                Ok(()) => host.watch_boot(id, &loading, fate, limit),
                Err(error) => drop(host.gone(id, GoneReason::BootFailed(format!("it is not whole: {error}")))),
            }
        });
        Ok(())
    }
}

fn unavailable(reason: &str) -> DriverError {
    DriverError::Unavailable { reason: reason.to_owned(), retry_after: Duration::from_secs(1) }
}

#[cfg(test)]
mod tests;
