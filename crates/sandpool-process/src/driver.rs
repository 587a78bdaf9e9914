//! The Driver seam over the control socket: what the server knows of its launcher's sandboxes.

mod boot;
mod machines;
mod port;
mod proof;
mod saved;
mod stream;

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use rustix::net::SocketType;
use sandpool_core::ids::{PoolName, SandboxId};
use sandpool_driver::{
    Change, Description, Driver, DriverError, GoneReason, Isolation, Keeps, MAX_RECORD, Owner, Phase, Sandbox, Start,
    Stream, Template, Usage,
};
use sandpool_sys::packet;
use sandpool_wire::agent::{Activation, Runtime};
use sandpool_wire::egress::{MAX_TOLD, Policy, SecretValue, Told};
use tokio::io::unix::AsyncFd;
use tokio::sync::{broadcast, oneshot, watch};

use crate::control::{self, Answer, Call, FromLauncher, MadeBy, Purpose, Record, Refusal, ToLauncher, Why};
use boot::Dialled;
pub use machines::Prepare;
use stream::AgentStream;

/// The longest wait for the launcher's answer. It builds a sandbox in milliseconds.
const DEADLINE: Duration = Duration::from_secs(20);

/// Changes kept for a watcher that is slow; then it must list.
const CHANGES: usize = 4096;

/// How long a sandbox that was there before this server may take to answer.
const REDIAL: Duration = Duration::from_secs(30);

/// Makes sandboxes of processes, through the launcher.
pub struct ProcessDriver {
    socket: AsyncFd<OwnedFd>,
    /// Where the egress proxy tells what it decides.
    hears: AsyncFd<OwnedFd>,
    next_request: AtomicU32,
    state: Mutex<State>,
    changes: broadcast::Sender<Change>,
    closed: watch::Sender<bool>,
    /// Where images are, and what machines are made of.
    images: PathBuf,
    prepare: OnceLock<Box<Prepare>>,
    this: Weak<Self>,
}

impl std::fmt::Debug for ProcessDriver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProcessDriver").finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct State {
    waiting: HashMap<u32, oneshot::Sender<Reply>>,
    known: HashMap<SandboxId, Known>,
    templates: HashMap<PoolName, Template>,
    /// What those of them are made from whose sandboxes are around machines.
    machines: HashMap<PoolName, machines::Pool>,
    /// Pools whose zygotes are kept fresh.
    fresh: HashSet<PoolName>,
    /// Which OCI runtime makes the sandboxes of those pools that one does.
    made_by: HashMap<PoolName, MadeBy>,
    /// Why the pools that nothing is made for are refused.
    refused: HashMap<PoolName, String>,
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
    packets(crate::CONTROL_FD)
}

/// Takes the end on which the server hears the egress proxy, as [`control`].
///
/// # Errors
/// As [`control`].
pub fn hearing() -> io::Result<OwnedFd> {
    packets(crate::HEARING_FD)
}

fn packets(number: i32) -> io::Result<OwnedFd> {
    let fd = sandpool_sys::workload::inherited(number)?;
    match rustix::net::sockopt::socket_type(&fd) {
        Ok(SocketType::SEQPACKET) => Ok(fd),
        _ => Err(io::Error::other("this is not a server that the launcher started")),
    }
}

impl ProcessDriver {
    /// Takes up the conversation with the launcher, and with the sandboxes that are already there. `images` are the launcher's.
    ///
    /// # Errors
    /// `Unavailable` when the launcher does not answer.
    pub async fn connect(control: OwnedFd, hears: OwnedFd, images: &Path) -> Result<Arc<Self>, DriverError> {
        #[expect(deprecated, reason = "what it fears is a descriptor that changes; an `OwnedFd` does not")]
        let watched = |fd| AsyncFd::new(fd).map_err(|error| unavailable(&error));
        let (socket, hears) = (watched(control)?, watched(hears)?);
        let driver = Arc::new_cyclic(|this| Self {
            socket,
            hears,
            next_request: AtomicU32::new(1),
            state: Mutex::default(),
            changes: broadcast::channel(CHANGES).0,
            closed: watch::channel(false).0,
            images: images.to_owned(),
            prepare: OnceLock::new(),
            this: Weak::clone(this),
        });
        tokio::spawn(Arc::clone(&driver).listen());
        for record in driver.records().await?.into_iter().filter(|record| !record.leaving && !record.lost) {
            let id = SandboxId(record.id);
            if record.purpose != Purpose::Session {
                // Whoever made it is gone, and begins anew.
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
            driver.state().known.insert(id, Known { sandbox, stream: None, fate: None });
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
        let fate = known.and_then(|known| known.fate);
        let reason = fate.unwrap_or(match why {
            Why::Destroyed => GoneReason::Destroyed,
            Why::OutOfMemory => GoneReason::OutOfMemory,
            Why::Died(how) => GoneReason::Died(how),
            Why::BootFailed(why) => GoneReason::BootFailed(why),
        });
        self.tell(Change::Gone { id, reason });
    }

    fn tell(&self, change: Change) {
        // Nobody may be watching.
        let _ = self.changes.send(change);
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
        self.tell(Change::Upsert(known.sandbox.clone()));
    }
}

#[async_trait]
impl Driver for ProcessDriver {
    fn describe(&self) -> Description {
        crate::host::describe()
    }

    fn describe_pool(&self, pool: &PoolName) -> Description {
        let state = self.state();
        let template = state.templates.get(pool);
        match state.made_by.get(pool) {
            Some(made_by) => made_by.describe(template.is_some_and(|template| template.egress.is_some())),
            None => state.machines.get(pool).map_or_else(crate::host::describe, machines::describe),
        }
    }

    async fn ensure_pool(&self, template: &Template) -> Result<(), DriverError> {
        let machine = match template.isolation {
            Isolation::Microvm => Some(self.machine_of(template).await?),
            Isolation::Process | Isolation::Container(_) => None,
        };
        let (machine, machine_image) = machine.unzip();
        let rootfs = machine.as_ref().map_or_else(|| template.rootfs.clone(), |machine| machine.root.clone());
        let rootfs = rootfs
            .to_str()
            .ok_or_else(|| DriverError::Invalid(format!("the image's path {} is not UTF-8", rootfs.display())))?;
        let egress = template.egress.as_ref().map(Policy::encode).transpose().map_err(DriverError::Invalid)?;
        let call = |pool: String| Call::EnsurePool {
            pool,
            runtime: template.runtime,
            rootfs: rootfs.to_owned(),
            limits: template.limits.into(),
            local_servers: template.local_servers,
            container: match template.isolation {
                Isolation::Process | Isolation::Microvm => None,
                Isolation::Container(wanted) => Some(wanted),
            },
            egress: egress.clone(),
            machine_image: machine_image.clone(),
        };
        if let Isolation::Container(_) = template.isolation {
            let (driver, pool, limit) = (self.shared()?, template.pool.clone(), template.boot_limit);
            let call = call(control::of_proof(pool.as_str()));
            let proved = whole(async move { driver.prove(&pool, call, limit).await }).await;
            if let Err(error @ DriverError::Invalid(why)) = &proved {
                let mut state = self.state();
                if !state.templates.contains_key(&template.pool) {
                    state.refused.insert(template.pool.clone(), why.clone());
                }
                return Err(error.clone());
            }
            proved?;
        }
        let machine = match machine {
            Some(prepared) => {
                let (driver, template, call) =
                    (self.shared()?, template.clone(), call(control::of_proof(template.pool.as_str())));
                Some(whole(async move { driver.try_machine(&template, prepared, call).await }).await?)
            }
            None => None,
        };
        let (has_zygote, made_by) = match self.ask(call(template.pool.to_string())).await?.0 {
            Answer::Pool { has_zygote, made_by } => (has_zygote, made_by),
            _ => return Err(unavailable(&"the launcher answered something else")),
        };
        {
            let mut state = self.state();
            state.refused.remove(&template.pool);
            state.templates.insert(template.pool.clone(), template.clone());
            match made_by {
                Some(made_by) => drop(state.made_by.insert(template.pool.clone(), made_by)),
                None => drop(state.made_by.remove(&template.pool)),
            }
            match machine.clone() {
                Some(machine) => drop(state.machines.insert(template.pool.clone(), machine)),
                None => drop(state.machines.remove(&template.pool)),
            }
        }
        if let Some(machine) = machine
            && let (Start::Zygote, false) = (template.start, has_zygote)
        {
            let (driver, pool) = (self.shared()?, template.pool.clone());
            return whole(async move { driver.make_template(&pool, machine).await }).await;
        }
        let can_be_frozen = match template.isolation {
            Isolation::Process => template.runtime == Runtime::Python,
            Isolation::Container(_) | Isolation::Microvm => false,
        };
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

    async fn remove_pool(&self, pool: &PoolName) -> Result<(), DriverError> {
        {
            let mut state = self.state();
            state.templates.remove(pool);
            state.made_by.remove(pool);
            state.refused.remove(pool);
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

    fn keeps(&self, pool: &PoolName) -> Keeps {
        if self.state().machines.contains_key(pool) { Keeps::Machine } else { Keeps::Files }
    }

    async fn save(&self, id: SandboxId, stays: bool) -> Result<Stream, DriverError> {
        self.save_machine(id, stays).await
    }

    async fn load(
        &self,
        id: SandboxId,
        pool: &PoolName,
        saved: Stream,
        narrowed: Option<&Policy>,
    ) -> Result<(), DriverError> {
        let (driver, pool, narrowed) = (self.shared()?, pool.clone(), narrowed.cloned());
        whole(async move { driver.load_machine(id, &pool, saved, narrowed.as_ref()).await }).await
    }

    async fn destroy(&self, id: SandboxId) -> Result<(), DriverError> {
        if let Some(known) = self.state().known.get_mut(&id) {
            known.sandbox.phase = Phase::Leaving;
        }
        self.ask(Call::Destroy { id: id.0 }).await.map(drop)
    }

    async fn list(&self) -> Result<Vec<Sandbox>, DriverError> {
        let records = self.records().await?;
        let state = self.state();
        let asked = |record: &Record| record.purpose == Purpose::Session;
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
        let patience = {
            let state = self.state();
            let template = state.known.get(&id).and_then(|known| state.templates.get(&known.sandbox.pool));
            template.filter(|template| template.main.is_some()).map_or(Duration::ZERO, |template| template.boot_limit)
        };
        port::take(stream, port, patience).await
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

    async fn decided(&self) -> Told {
        let mut buffer = vec![0; MAX_TOLD];
        loop {
            let Ok(mut ready) = self.hears.readable().await else { return std::future::pending().await };
            match packet::receive(self.hears.get_ref(), &mut buffer) {
                // The launcher holds the other end for as long as it lives.
                Ok((0, _)) => return std::future::pending().await,
                Ok((length, _)) => match Told::decode(&buffer[..length]) {
                    Ok(told) => return told,
                    Err(error) => {
                        tracing::error!("the egress proxy cannot be understood: {error}");
                        return Told { missed: 1, decided: Vec::new() };
                    }
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) => {
                    tracing::error!("the egress proxy cannot be heard: {error}");
                    return Told { missed: 1, decided: Vec::new() };
                }
            }
        }
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
