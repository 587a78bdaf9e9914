//! The Driver seam over the control socket: what the server knows of its launcher's sandboxes.

mod boot;
mod machines;
mod port;
mod stream;

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use rustix::net::SocketType;
use sandpool_core::ids::{PoolName, SandboxId};
use sandpool_driver::{
    Change, Description, Driver, DriverError, GoneReason, MAX_RECORD, Owner, Phase, Sandbox, Start, Stream, Template,
    Usage,
};
use sandpool_wire::agent::{Activation, Runtime};
use sandpool_wire::egress::{Policy, SecretValue};
use tokio::io::unix::AsyncFd;
use tokio::sync::{broadcast, oneshot, watch};

use crate::control::{self, Answer, Call, FromLauncher, Purpose, Record, Refusal, ToLauncher, Why};
use boot::Dialled;
pub use machines::{EMULATED, MachineDriver, Machines};
use stream::AgentStream;

/// The longest wait for the launcher's answer. It builds a sandbox in milliseconds.
const DEADLINE: Duration = Duration::from_secs(20);

/// Changes kept for a watcher that is slow; then it must list.
const CHANGES: usize = 4096;

/// How long a connection to a port of a sandbox may take: it stays on this host.
const CONNECT: Duration = Duration::from_secs(5);

/// How long a sandbox that was there before this server may take to answer.
const REDIAL: Duration = Duration::from_secs(30);

/// Makes sandboxes of processes, through the launcher.
#[derive(Debug)]
pub struct ProcessDriver {
    socket: AsyncFd<OwnedFd>,
    next_request: AtomicU32,
    state: Mutex<State>,
    changes: broadcast::Sender<Change>,
    /// The same, of sandboxes around machines: [`MachineDriver`] is theirs.
    machine_changes: broadcast::Sender<Change>,
    closed: watch::Sender<bool>,
    this: Weak<Self>,
}

#[derive(Debug, Default)]
struct State {
    waiting: HashMap<u32, oneshot::Sender<Reply>>,
    known: HashMap<SandboxId, Known>,
    templates: HashMap<PoolName, Template>,
    /// Those of them whose sandboxes are around machines.
    machines: HashSet<PoolName>,
    /// Pools whose zygotes are kept fresh.
    fresh: HashSet<PoolName>,
}

/// A call that the launcher has been sent.
struct Asked {
    request: u32,
    answer: oneshot::Receiver<Reply>,
}

type Reply = (Result<Answer, Refusal>, Option<OwnedFd>);

/// What the server knows of a sandbox beyond the launcher's record.
#[derive(Debug)]
struct Known {
    sandbox: Sandbox,
    /// It is around a machine.
    is_machine: bool,
    /// The stream that told of its readiness, until somebody dials.
    stream: Option<Dialled>,
    /// Why we ask for its end, when it is more than "destroyed".
    fate: Option<GoneReason>,
}

/// Takes the server's end of the control socket, where the launcher put it. Once.
///
/// # Errors
/// When this process was not started by the launcher.
pub fn control() -> io::Result<OwnedFd> {
    let fd = sandpool_sys::workload::inherited(crate::CONTROL_FD)?;
    match rustix::net::sockopt::socket_type(&fd) {
        Ok(SocketType::SEQPACKET) => Ok(fd),
        _ => Err(io::Error::other("this is not a server that the launcher started")),
    }
}

impl ProcessDriver {
    /// Takes up the conversation with the launcher, and with the sandboxes that are already there.
    ///
    /// # Errors
    /// `Unavailable` when the launcher does not answer.
    pub async fn connect(control: OwnedFd) -> Result<Arc<Self>, DriverError> {
        #[expect(deprecated, reason = "what it fears is a descriptor that changes; an `OwnedFd` does not")]
        let socket = AsyncFd::new(control).map_err(|error| unavailable(&error))?;
        let driver = Arc::new_cyclic(|this| Self {
            socket,
            next_request: AtomicU32::new(1),
            state: Mutex::default(),
            changes: broadcast::channel(CHANGES).0,
            machine_changes: broadcast::channel(CHANGES).0,
            closed: watch::channel(false).0,
            this: Weak::clone(this),
        });
        tokio::spawn(Arc::clone(&driver).listen());
        for record in driver.records().await?.into_iter().filter(|record| !record.leaving && !record.lost) {
            let id = SandboxId(record.id);
            if record.purpose == Purpose::Zygote {
                // Its maker is gone. The pool's next one begins anew.
                driver.ask(Call::Destroy { id: record.id }).await?;
                continue;
            }
            let Ok(pool) = PoolName::parse(&record.pool) else { continue };
            let sandbox = Sandbox {
                id,
                pool,
                phase: Phase::Booting,
                boot_id: None,
                owner: record.owner.map(|record| Owner { record }),
                activated: record.activated,
            };
            driver.state().known.insert(id, Known { sandbox, is_machine: record.is_machine, stream: None, fate: None });
            tokio::spawn(Arc::clone(&driver).watch_boot(id, REDIAL));
        }
        Ok(driver)
    }

    /// Completes when the launcher is gone, and every sandbox with it.
    pub async fn closed(&self) {
        // An error means that the sender is gone: it lives in `self`.
        let _ = self.closed.subscribe().wait_for(|closed| *closed).await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn listen(self: Arc<Self>) {
        loop {
            let Ok(mut ready) = self.socket.readable().await else { break };
            match control::receive_from_launcher(self.socket.get_ref()) {
                Ok(Some((FromLauncher::Reply { request, result }, fd))) => {
                    let waiting = self.state().waiting.remove(&request);
                    if let Some(waiting) = waiting {
                        // The caller may have gone; a stream then closes here.
                        let _ = waiting.send((result, fd));
                    }
                }
                Ok(Some((FromLauncher::Gone { id, why }, _))) => self.gone(SandboxId(id), why),
                Ok(None) => break,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) => {
                    tracing::error!("the launcher cannot be understood: {error}");
                    break;
                }
            }
        }
        self.state().waiting.clear();
        self.closed.send_replace(true);
    }

    fn gone(&self, id: SandboxId, why: Why) {
        let known = self.state().known.remove(&id);
        let is_machine = known.as_ref().is_some_and(|known| known.is_machine);
        let fate = known.and_then(|known| known.fate);
        let reason = fate.unwrap_or(match why {
            Why::Destroyed => GoneReason::Destroyed,
            Why::OutOfMemory => GoneReason::OutOfMemory,
            Why::Died(how) => GoneReason::Died(how),
            Why::BootFailed(why) => GoneReason::BootFailed(why),
        });
        self.tell(is_machine, Change::Gone { id, reason });
    }

    fn tell(&self, is_machine: bool, change: Change) {
        // Nobody may be watching.
        let _ = if is_machine { &self.machine_changes } else { &self.changes }.send(change);
    }

    async fn ask(&self, call: Call) -> Result<(Answer, Option<OwnedFd>), DriverError> {
        self.finish(self.begin(call).await?).await
    }

    /// Sends a call to the launcher.
    async fn begin(&self, call: Call) -> Result<Asked, DriverError> {
        let request = self.next_request.fetch_add(1, Ordering::Relaxed);
        let bytes = control::encode(&ToLauncher { request, call }).map_err(|error| unavailable(&error))?;
        let (sender, answer) = oneshot::channel();
        self.state().waiting.insert(request, sender);
        let asked = Asked { request, answer };
        let sent = tokio::time::timeout(DEADLINE, self.send(&bytes)).await;
        let sent = sent.unwrap_or_else(|_| Err(unavailable(&"the launcher did not listen in time")));
        if sent.is_err() {
            self.state().waiting.remove(&request);
        }
        sent.map(|()| asked)
    }

    /// Waits for the launcher's answer.
    async fn finish(&self, asked: Asked) -> Result<(Answer, Option<OwnedFd>), DriverError> {
        let outcome = tokio::time::timeout(DEADLINE, asked.answer).await;
        self.state().waiting.remove(&asked.request);
        let outcome = outcome.map_err(|_| unavailable(&"the launcher did not answer in time"))?;
        let (result, fd) = outcome.map_err(|_| unavailable(&"the launcher is gone"))?;
        Ok((result.map_err(refused)?, fd))
    }
    async fn send(&self, bytes: &[u8]) -> Result<(), DriverError> {
        loop {
            let mut ready = self.socket.writable().await.map_err(|error| unavailable(&error))?;
            match control::send(self.socket.get_ref(), bytes, None) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                result => return result.map_err(|error| unavailable(&error)),
            }
        }
    }

    async fn records(&self) -> Result<Vec<Record>, DriverError> {
        let mut all: Vec<Record> = Vec::new();
        loop {
            match self.ask(Call::List { after: all.last().map(|record| record.id) }).await?.0 {
                Answer::Page { sandboxes, more } => {
                    let more = more && !sandboxes.is_empty();
                    all.extend(sandboxes);
                    if !more {
                        return Ok(all);
                    }
                }
                _ => return Err(unavailable(&"the launcher answered something else")),
            }
        }
    }

    fn shared(&self) -> Result<Arc<Self>, DriverError> {
        self.this.upgrade().ok_or_else(|| unavailable(&"the driver is being dropped"))
    }

    /// A new stream from the launcher.
    async fn dial_new(&self, id: SandboxId) -> Result<AgentStream, DriverError> {
        match self.ask(Call::Dial { id: id.0 }).await? {
            (Answer::Dialled, Some(fd)) => AgentStream::new(UnixStream::from(fd)).map_err(|error| unavailable(&error)),
            _ => Err(unavailable(&"the launcher sent no stream")),
        }
    }

    fn changed(&self, known: &Known) {
        self.tell(known.is_machine, Change::Upsert(known.sandbox.clone()));
    }

    async fn ensure(&self, template: &Template, machine: Option<(&Path, &Path)>) -> Result<(), DriverError> {
        let text = |path: &Path| {
            let text = path.to_str().map(str::to_owned);
            text.ok_or_else(|| DriverError::Invalid(format!("the image's path {} is not UTF-8", path.display())))
        };
        let call = Call::EnsurePool {
            pool: template.pool.to_string(),
            runtime: template.runtime,
            rootfs: text(machine.map_or(&template.rootfs, |(root, _)| root))?,
            limits: template.limits.into(),
            local_servers: template.local_servers,
            egress: template.egress.as_ref().map(Policy::encode).transpose().map_err(DriverError::Invalid)?,
            machine_image: machine.map(|(_, image)| text(image)).transpose()?,
        };
        let has_zygote = match self.ask(call).await?.0 {
            Answer::Pool { has_zygote } => has_zygote,
            _ => return Err(unavailable(&"the launcher answered something else")),
        };
        {
            let mut state = self.state();
            state.templates.insert(template.pool.clone(), template.clone());
            match machine {
                Some(_) => state.machines.insert(template.pool.clone()),
                None => state.machines.remove(&template.pool),
            };
        }
        // A machine is frozen whatever is in it: that is not begun yet.
        let can_be_frozen = machine.is_some() || template.runtime == Runtime::Python;
        if template.start != Start::Zygote || !can_be_frozen {
            return Ok(());
        }
        if !has_zygote {
            let (driver, template) = (self.shared()?, template.clone());
            whole(async move { driver.make_zygote(&template).await }).await?;
        }
        if self.state().fresh.insert(template.pool.clone()) {
            tokio::spawn(Self::keep_zygote_fresh(self.this.clone(), template.pool.clone()));
        }
        Ok(())
    }

    async fn list_those(&self, are_machines: bool) -> Result<Vec<Sandbox>, DriverError> {
        let records = self.records().await?;
        let state = self.state();
        let asked = |record: &Record| record.purpose == Purpose::Session && record.is_machine == are_machines;
        let sandboxes = records.into_iter().filter(asked).filter_map(|record| {
            let known = state.known.get(&SandboxId(record.id)).map(|known| &known.sandbox);
            let phase = known.map_or(Phase::Booting, |known| known.phase);
            Some(Sandbox {
                id: SandboxId(record.id),
                pool: PoolName::parse(&record.pool).ok()?,
                phase: match (record.lost, record.leaving) {
                    (true, _) => Phase::Lost,
                    (false, true) => Phase::Leaving,
                    (false, false) => phase,
                },
                boot_id: known.and_then(|known| known.boot_id),
                owner: record.owner.map(|record| Owner { record }),
                activated: record.activated,
            })
        });
        Ok(sandboxes.collect())
    }
}

#[async_trait]
impl Driver for ProcessDriver {
    fn describe(&self) -> Description {
        crate::host::describe()
    }

    async fn ensure_pool(&self, template: &Template) -> Result<(), DriverError> {
        self.ensure(template, None).await
    }

    async fn remove_pool(&self, pool: &PoolName) -> Result<(), DriverError> {
        {
            let mut state = self.state();
            state.templates.remove(pool);
            state.machines.remove(pool);
        }
        self.ask(Call::RemovePool { pool: pool.to_string() }).await.map(drop)
    }

    async fn create(&self, id: SandboxId, pool: &PoolName) -> Result<(), DriverError> {
        let (driver, pool) = (self.shared()?, pool.clone());
        whole(async move { driver.create_watched(id, &pool).await }).await
    }

    async fn assign(&self, id: SandboxId, owner: &Owner) -> Result<(), DriverError> {
        if owner.record.len() > MAX_RECORD {
            return Err(DriverError::Invalid(format!("the owner's record is over {MAX_RECORD} bytes")));
        }
        match self.state().known.get(&id).map(|known| known.sandbox.phase) {
            None | Some(Phase::Leaving | Phase::Lost) => return Err(DriverError::Gone(id.to_string())),
            Some(Phase::Booting) => return Err(unavailable(&"the sandbox is not ready yet")),
            Some(Phase::Ready) => {}
        }
        self.ask(Call::Assign { id: id.0, record: owner.record.clone() }).await?;
        self.update(id, |sandbox| sandbox.owner = Some(owner.clone()))
    }

    async fn activate(&self, id: SandboxId, activation: &Activation) -> Result<(), DriverError> {
        let (driver, activation) = (self.shared()?, activation.clone());
        whole(async move {
            driver.configure(id, &activation).await?;
            driver.ask(Call::Activated { id: id.0 }).await?;
            driver.update(id, |sandbox| sandbox.activated = true)
        })
        .await
    }

    async fn give(&self, id: SandboxId, owner: &Owner, activation: &Activation) -> Result<Stream, DriverError> {
        if owner.record.len() > MAX_RECORD {
            return Err(DriverError::Invalid(format!("the owner's record is over {MAX_RECORD} bytes")));
        }
        let (driver, owner, activation) = (self.shared()?, owner.clone(), activation.clone());
        whole(async move { driver.give_at_once(id, owner, &activation).await }).await
    }

    async fn destroy(&self, id: SandboxId) -> Result<(), DriverError> {
        if let Some(known) = self.state().known.get_mut(&id) {
            known.sandbox.phase = Phase::Leaving;
        }
        self.ask(Call::Destroy { id: id.0 }).await.map(drop)
    }

    async fn list(&self) -> Result<Vec<Sandbox>, DriverError> {
        self.list_those(false).await
    }

    fn watch(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    async fn dial(&self, id: SandboxId) -> Result<Stream, DriverError> {
        let kept = match self.state().known.get_mut(&id) {
            None => return Err(DriverError::Gone(id.to_string())),
            Some(known) => known.stream.take(),
        };
        match kept {
            Some(dialled) => Ok(Box::new(dialled.replay())),
            None => Ok(Box::new(self.dial_new(id).await?)),
        }
    }

    async fn connect(&self, id: SandboxId, port: u16) -> Result<Stream, DriverError> {
        let stream = match self.ask(Call::Connect { id: id.0, port }).await? {
            (Answer::Dialled, Some(fd)) => fd,
            _ => return Err(unavailable(&"the launcher sent no stream")),
        };
        let connecting = tokio::time::timeout(CONNECT, port::take(stream, port));
        connecting.await.unwrap_or_else(|_| Err(DriverError::Refused(format!("nothing answers at port {port}"))))
    }

    async fn usage(&self, id: SandboxId) -> Result<Usage, DriverError> {
        match self.ask(Call::Usage { id: id.0 }).await?.0 {
            Answer::Usage(usage) => Ok(usage.into()),
            _ => Err(unavailable(&"the launcher answered something else")),
        }
    }

    async fn narrow(&self, id: SandboxId, policy: Option<&Policy>) -> Result<(), DriverError> {
        let policy = policy.map(Policy::encode).transpose().map_err(DriverError::Invalid)?;
        self.ask(Call::Narrow { id: id.0, policy }).await.map(drop)
    }

    async fn entrust(&self, id: SandboxId, secrets: &[SecretValue]) -> Result<(), DriverError> {
        let secrets = SecretValue::encode(secrets).map_err(DriverError::Invalid)?;
        self.ask(Call::Entrust { id: id.0, secrets }).await.map(drop)
    }

    async fn narrowed(&self, id: SandboxId) -> Result<Option<Policy>, DriverError> {
        match self.ask(Call::Narrowed { id: id.0 }).await?.0 {
            Answer::Narrowed { policy } => {
                policy.map(|policy| Policy::decode(&policy)).transpose().map_err(|error| unavailable(&error))
            }
            _ => Err(unavailable(&"the launcher answered something else")),
        }
    }
}

/// Goes through with a call also when its caller does not wait for it, so that nothing is left half done.
async fn whole<T: Send + 'static>(
    call: impl Future<Output = Result<T, DriverError>> + Send + 'static,
) -> Result<T, DriverError> {
    // An error is a panic, whose message has been printed.
    tokio::spawn(call).await.unwrap_or_else(|error| Err(unavailable(&error)))
}

fn unavailable(reason: &impl std::fmt::Display) -> DriverError {
    DriverError::Unavailable { reason: reason.to_string(), retry_after: Duration::from_secs(1) }
}

fn refused(refusal: Refusal) -> DriverError {
    match refusal {
        Refusal::Conflict(why) => DriverError::Conflict(why),
        Refusal::Exhausted(why) => DriverError::Exhausted(why),
        Refusal::Invalid(why) => DriverError::Invalid(why),
        Refusal::Unavailable(why) => unavailable(&why),
        Refusal::Gone => DriverError::Gone("the sandbox is not there".to_owned()),
    }
}
