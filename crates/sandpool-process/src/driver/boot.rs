//! From a created sandbox to a ready one, and from an assigned one to a configured one: the driver's own words with
//! the agent.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use sandpool_core::ids::{PoolName, SandboxId};
use sandpool_driver::{
    Change, Driver, DriverError, GoneReason, Isolation, Main, Owner, Phase, Sandbox, Stream, Template,
};
use sandpool_wire::agent::{self, Activation, FromAgent, PROTOCOL, ToAgent};
use sandpool_wire::frame;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::oneshot;

use super::stream::AgentStream;
use super::{Known, ProcessDriver, unavailable};
use crate::control::{Call, Purpose};

/// The longest wait for a zygote: an interpreter starts, loads what sessions load, and writes its memory.
const ZYGOTE: Duration = Duration::from_secs(90);

/// The same of a machine, which boots first, on a processor that may be an emulated one.
pub(super) const MACHINE: Duration = Duration::from_secs(5 * 60);

/// How long a pool's zygote is used.
const ZYGOTE_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// The longest wait for the agent's answer to its configuration.
const ACTIVATION: Duration = Duration::from_secs(10);

/// The driver's number for its one request on a stream: none that the stream's next user would choose first.
const REQUEST: u32 = u32::MAX;

/// The same, for what a container's agent is told to begin.
const BEGIN: u32 = u32::MAX - 1;

/// The most that a greeting may be, in bytes.
const MAX_GREETING: usize = 64 * 1024;

/// A stream to an agent that has told of its readiness.
#[derive(Debug)]
pub(super) struct Dialled {
    stream: AgentStream,
    /// What the agent said first, for whoever gets the stream next.
    greeting: Vec<u8>,
    boot_id: [u8; 16],
    /// What the agent said of the runtime's version.
    version: String,
}

impl Dialled {
    /// Reads until the agent says that it is ready; tells the boot id as soon as it is known. A container's agent is told what to begin.
    async fn greet(mut stream: AgentStream, main: Option<Main>, mut hello: impl FnMut([u8; 16])) -> io::Result<Self> {
        let mut greeting = Vec::new();
        let mut boot = None;
        let (mut is_ready, mut is_begun) = (false, main.is_none());
        loop {
            if is_ready
                && is_begun
                && let Some((boot_id, version)) = boot
            {
                return Ok(Self { stream, greeting, boot_id, version });
            }
            let before = greeting.len();
            let message: FromAgent = next(&mut stream, &mut greeting).await?;
            match message {
                FromAgent::Hello { protocol: PROTOCOL, boot_id, version, .. } => {
                    hello(boot_id);
                    boot = Some((boot_id, version));
                    if let Some(main) = &main {
                        let call = ToAgent::Call { request: BEGIN, call: agent::Call::Begin(Box::new(main.clone())) };
                        stream.write_all(&frame::encode(&call).map_err(io::Error::other)?).await?;
                    }
                }
                FromAgent::Reply { request: BEGIN, result } if !is_begun => {
                    // It is ours, and nobody's who gets the stream next.
                    greeting.truncate(before);
                    result.map_err(|refusal| io::Error::other(refusal.to_string()))?;
                    is_begun = true;
                }
                FromAgent::Hello { protocol, .. } => {
                    return Err(io::Error::other(format!("the agent speaks version {protocol}, not {PROTOCOL}")));
                }
                FromAgent::Broken { reason, .. } => return Err(io::Error::other(reason)),
                FromAgent::Ready if boot.is_none() => return Err(io::Error::other("the agent did not say hello")),
                FromAgent::Ready => is_ready = true,
                _ => return Err(io::Error::other("the agent spoke before it was asked")),
            }
        }
    }

    async fn configure(&mut self, activation: &Activation) -> io::Result<Result<(), agent::Refusal>> {
        self.send(activation).await?;
        of_activation(next(&mut self.stream, &mut Vec::new()).await?)
    }

    async fn send(&mut self, activation: &Activation) -> io::Result<()> {
        let call = ToAgent::Call { request: REQUEST, call: agent::Call::Activate(activation.clone()) };
        self.stream.write_all(&frame::encode(&call).map_err(io::Error::other)?).await
    }

    /// The stream, as if nothing had been read from it.
    pub(super) fn replay(self) -> Replayed {
        Replayed { greeting: io::Cursor::new(self.greeting), answer: None, stream: self.stream }
    }

    /// The stream, as if nothing had been read from it. What comes first is the answer to the configuration that was sent: it
    /// is taken out, told to `heard`, and when it is anything but a yes, reading fails.
    fn replay_configured(self, heard: oneshot::Sender<Result<(), String>>) -> Replayed {
        let answer = Some(Awaited { bytes: Vec::new(), heard: Some(heard) });
        Replayed { greeting: io::Cursor::new(self.greeting), answer, stream: self.stream }
    }
}

fn of_activation(message: FromAgent) -> io::Result<Result<(), agent::Refusal>> {
    match message {
        FromAgent::Reply { request: REQUEST, result } => Ok(result.map(drop)),
        _ => Err(io::Error::other("the agent answered something else")),
    }
}

/// Reads one frame, and keeps its bytes in `seen`.
pub(super) async fn next(stream: &mut AgentStream, seen: &mut Vec<u8>) -> io::Result<FromAgent> {
    let mut header = [0; frame::HEADER];
    stream.read_exact(&mut header).await?;
    let length = frame::body_length(header).map_err(io::Error::other)?;
    if seen.len() + length > MAX_GREETING {
        return Err(io::Error::other("the agent's greeting is too long"));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    seen.extend_from_slice(&header);
    seen.extend_from_slice(&body);
    frame::decode(&body).map_err(io::Error::other)
}

/// A stream whose first bytes have been read already.
pub(super) struct Replayed {
    greeting: io::Cursor<Vec<u8>>,
    answer: Option<Awaited>,
    stream: AgentStream,
}

/// The answer to a configuration, on its way.
struct Awaited {
    bytes: Vec<u8>,
    heard: Option<oneshot::Sender<Result<(), String>>>,
}

impl Awaited {
    /// Reads the answer, and not a byte more.
    fn poll(&mut self, stream: &mut AgentStream, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let judged = loop {
            let wanted = match self.bytes.first_chunk::<{ frame::HEADER }>() {
                None => frame::HEADER,
                Some(header) => match frame::body_length(*header) {
                    Ok(length) if length <= MAX_GREETING => frame::HEADER + length,
                    Ok(_) => break Err("the agent's answer to its configuration is too long".to_owned()),
                    Err(error) => break Err(error.to_string()),
                },
            };
            if self.bytes.len() == wanted {
                let answer =
                    frame::decode(&self.bytes[frame::HEADER..]).map_err(io::Error::other).and_then(of_activation);
                break match answer {
                    Ok(Ok(())) => Ok(()),
                    Ok(Err(refusal)) => Err(refusal.to_string()),
                    Err(error) => Err(error.to_string()),
                };
            }
            let mut piece = [0; 256];
            let mut room = ReadBuf::new(&mut piece[..(wanted - self.bytes.len()).min(256)]);
            match ready!(Pin::new(&mut *stream).poll_read(context, &mut room)) {
                Ok(()) if room.filled().is_empty() => break Err("the agent ended before it was configured".to_owned()),
                Ok(()) => self.bytes.extend_from_slice(room.filled()),
                Err(error) => break Err(error.to_string()),
            }
        };
        if let Some(heard) = self.heard.take() {
            // Whoever waits for it may have given up.
            let _ = heard.send(judged.clone());
        }
        Poll::Ready(judged.map_err(io::Error::other))
    }
}

impl AsyncRead for Replayed {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        // A cursor is always ready; at its end it adds nothing.
        let greeting = Pin::new(&mut self.greeting).poll_read(context, out);
        if out.filled().len() > before || out.remaining() == 0 {
            return greeting;
        }
        let this = &mut *self;
        if let Some(answer) = &mut this.answer {
            ready!(answer.poll(&mut this.stream, context))?;
            this.answer = None;
        }
        Pin::new(&mut self.stream).poll_read(context, out)
    }
}

impl AsyncWrite for Replayed {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl ProcessDriver {
    pub(super) async fn create_watched(&self, id: SandboxId, pool: &PoolName) -> Result<(), DriverError> {
        if let (Some(limit), Some(driver)) = (self.create_known(id, pool).await?, self.this.upgrade()) {
            tokio::spawn(driver.watch_boot(id, limit));
        }
        Ok(())
    }

    /// Has the launcher make a sandbox. Answers how long it may take to be ready, which nobody watches yet; `None` for one that was
    /// there.
    pub(super) async fn create_known(&self, id: SandboxId, pool: &PoolName) -> Result<Option<Duration>, DriverError> {
        let limit = {
            let state = self.state();
            let limit = state.templates.get(pool).map(|template| template.boot_limit);
            let why = || state.refused.get(pool).cloned().unwrap_or_else(|| format!("there is no pool {pool}"));
            limit.ok_or_else(|| DriverError::Invalid(why()))?
        };
        let sandbox =
            Sandbox { id, pool: pool.clone(), phase: Phase::Booting, boot_id: None, owner: None, activated: false };
        // Known before the launcher knows it, so that its end cannot come first.
        let is_new = !self.state().known.contains_key(&id);
        if is_new {
            self.state().known.insert(id, Known { sandbox: sandbox.clone(), stream: None, fate: None });
        }
        let created = self.ask(Call::Create { id: id.0, pool: pool.to_string(), purpose: Purpose::Session }).await;
        if !is_new {
            return created.map(|_| None);
        }
        if let Err(error) = created {
            self.state().known.remove(&id);
            return Err(error);
        }
        self.tell(Change::Upsert(sandbox));
        Ok(Some(limit))
    }

    /// Makes what interpreters of a pool start from. Where it cannot be made, they start from the one before, or cold.
    pub(super) async fn make_zygote(&self, template: &Template) -> Result<(), DriverError> {
        let (began, pool) = (Instant::now(), &template.pool);
        let limit = match template.isolation {
            Isolation::Microvm => MACHINE,
            Isolation::Process | Isolation::Container(_) => ZYGOTE,
        };
        match self.frozen(pool.as_str(), true, limit).await? {
            Ok(_) => tracing::info!(%pool, took = ?began.elapsed(), "the zygote is made"),
            Err(why) => {
                tracing::warn!(%pool, why, "no zygote was made: interpreters start from the one before, or cold if there is none");
            }
        }
        Ok(())
    }

    /// Makes a sandbox that is frozen when it is ready, and keeps what was written of it, if it is to be kept. Answers what its first process
    /// says of its version, or why there is none.
    pub(super) async fn frozen(
        &self,
        pool: &str,
        is_kept: bool,
        limit: Duration,
    ) -> Result<Result<String, String>, DriverError> {
        let mut id = [0; 16];
        rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty()).map_err(|error| unavailable(&error))?;
        self.ask(Call::Create { id, pool: pool.to_owned(), purpose: Purpose::Zygote }).await?;
        let made = tokio::time::timeout(limit, async {
            let stream = self.dial_new(SandboxId(id)).await.map_err(io::Error::other)?;
            Dialled::greet(stream, None, |_| ()).await
        });
        let why = match made.await {
            Ok(Ok(dialled)) if is_kept => {
                self.ask(Call::KeepZygote { id }).await?;
                return Ok(Ok(dialled.version));
            }
            Ok(Ok(dialled)) => Ok(dialled.version),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("it was not made after {} s", limit.as_secs())),
        };
        self.ask(Call::Destroy { id }).await.map(|_| why)
    }

    /// Makes a pool's zygote anew. Sandboxes that are there already keep theirs.
    ///
    /// # Errors
    /// `Invalid` for a pool that nobody ensured; those of a launcher that does not answer.
    pub async fn renew_zygote(&self, pool: &PoolName) -> Result<(), DriverError> {
        let template = self.state().templates.get(pool).cloned();
        let template = template.ok_or_else(|| DriverError::Invalid(format!("there is no pool {pool}")))?;
        self.make_zygote(&template).await
    }

    /// What sessions of a pool have in common, addresses and hashes, is not for ever (ZG1).
    pub(super) async fn keep_zygote_fresh(driver: std::sync::Weak<Self>, pool: PoolName) {
        loop {
            tokio::time::sleep(ZYGOTE_AGE).await;
            let Some(driver) = driver.upgrade() else { return };
            {
                let mut state = driver.state();
                if !state.templates.contains_key(&pool) {
                    state.fresh.remove(&pool);
                    return;
                }
            }
            if let Err(error) = driver.renew_zygote(&pool).await {
                tracing::warn!(%pool, "the zygote could not be made anew: {error}");
            }
        }
    }

    /// Waits until the sandbox is ready, or ends it.
    pub(super) async fn watch_boot(self: std::sync::Arc<Self>, id: SandboxId, limit: Duration) {
        let main = {
            let state = self.state();
            let pool = state.known.get(&id).map(|known| &known.sandbox.pool);
            pool.and_then(|pool| state.templates.get(pool)).and_then(|template| template.main.clone())
        };
        let greet = async {
            let stream = self.dial_new(id).await.map_err(io::Error::other)?;
            let hello = |boot_id| {
                if let Some(known) = self.state().known.get_mut(&id) {
                    known.sandbox.boot_id = Some(boot_id);
                }
            };
            Dialled::greet(stream, main, hello).await
        };
        let why = match tokio::time::timeout(limit, greet).await {
            Ok(Ok(dialled)) => {
                let mut state = self.state();
                let Some(known) = state.known.get_mut(&id) else { return };
                if known.sandbox.phase == Phase::Booting {
                    known.sandbox.phase = Phase::Ready;
                    known.sandbox.boot_id = Some(dialled.boot_id);
                    known.stream = Some(dialled);
                    self.changed(known);
                }
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("it was not ready after {} s", limit.as_secs_f64()),
        };
        if let Some(known) = self.state().known.get_mut(&id) {
            if known.sandbox.activated {
                // It is a session's, from before this server: whoever has the session dials it too, hears the same, and knows
                // what was lost.
                return;
            }
            // When its first process ended, the launcher's reason is the better one, and is on its way.
            if !why.contains("early eof") {
                known.fate.get_or_insert(GoneReason::BootFailed(why));
            }
        }
        if let Err(error) = self.destroy(id).await {
            tracing::error!("a sandbox that did not start could not be destroyed: {error}");
        }
    }

    pub(super) fn update(&self, id: SandboxId, change: impl FnOnce(&mut Sandbox)) -> Result<(), DriverError> {
        let mut state = self.state();
        let known = state.known.get_mut(&id).ok_or_else(|| DriverError::Gone(id.to_string()))?;
        change(&mut known.sandbox);
        self.changed(known);
        Ok(())
    }

    /// Gives a sandbox away with two messages: the owner to the launcher, the configuration to the agent. The launcher's is
    /// sent first: what it has been sent it remembers, also if this server is killed before the other leaves, and then
    /// nobody else gets the sandbox. Nobody waits for the answers, which are yes but for a sandbox that ends meanwhile: the
    /// agent takes what comes next after its configuration, and a no ends the sandbox, as its death would.
    pub(super) async fn give_at_once(
        &self,
        id: SandboxId,
        owner: Owner,
        activation: &Activation,
    ) -> Result<Stream, DriverError> {
        let record = owner.record.clone();
        let kept = {
            let mut state = self.state();
            let known = state.known.get_mut(&id).ok_or_else(|| DriverError::Gone(id.to_string()))?;
            let Sandbox { phase, owner: other, .. } = &known.sandbox;
            match (phase, other) {
                (Phase::Leaving | Phase::Lost, _) => return Err(DriverError::Gone(id.to_string())),
                (Phase::Booting, _) => return Err(unavailable(&"the sandbox is not ready yet")),
                (Phase::Ready, Some(_)) => return Err(DriverError::Conflict("it has an owner".to_owned())),
                (Phase::Ready, None) => {}
            }
            // This server is the only one there is, so who comes first is decided here.
            known.sandbox.owner = Some(owner);
            known.stream.take()
        };
        let mut dialled = match kept {
            Some(dialled) => dialled,
            // Somebody has dialled, and took the stream that told of its readiness.
            None => {
                Dialled::greet(self.dial_new(id).await?, None, |_| ()).await.map_err(|error| unavailable(&error))?
            }
        };
        let assigned = self.begin(Call::Give { id: id.0, record }).await?;
        if let Err(error) = dialled.send(activation).await {
            // Its end is on its way from the launcher, or comes now.
            self.forsake(id, format!("its agent could not be configured: {error}")).await;
            return Err(DriverError::Gone(id.to_string()));
        }
        self.update(id, |sandbox| sandbox.activated = true)?;
        let (heard, configured) = oneshot::channel();
        if let Some(driver) = self.this.upgrade() {
            tokio::spawn(async move {
                let assigned = driver.finish(assigned).await.map(drop).map_err(|error| error.to_string());
                let configured = match tokio::time::timeout(ACTIVATION, configured).await {
                    Ok(Ok(judged)) => judged,
                    // Nobody reads that stream any more: whoever has it has ended the session.
                    Ok(Err(_)) => Ok(()),
                    Err(_) => Err("the agent did not take its configuration in time".to_owned()),
                };
                if let Err(why) = assigned.and(configured) {
                    driver.forsake(id, why).await;
                }
            });
        }
        Ok(Box::new(dialled.replay_configured(heard)))
    }

    /// Ends a sandbox that was given away and cannot be used. Its session hears that it was lost, and why.
    async fn forsake(&self, id: SandboxId, why: String) {
        let logged = agent::without_words(&why);
        tracing::warn!(sandbox = %id, why = logged, "a sandbox that was given to a session is of no use");
        if let Some(known) = self.state().known.get_mut(&id) {
            known.fate.get_or_insert(GoneReason::Died(why));
        }
        if let Err(error) = self.destroy(id).await {
            tracing::error!("it could not be destroyed either: {error}");
        }
    }

    pub(super) async fn configure(&self, id: SandboxId, activation: &Activation) -> Result<(), DriverError> {
        let kept = {
            let mut state = self.state();
            let known = state.known.get_mut(&id).ok_or_else(|| DriverError::Gone(id.to_string()))?;
            match &known.sandbox {
                sandbox if sandbox.activated => {
                    return Err(DriverError::Conflict("it has had its configuration".to_owned()));
                }
                sandbox if sandbox.owner.is_none() => {
                    return Err(DriverError::Invalid("it belongs to nobody yet".to_owned()));
                }
                _ => known.stream.take(),
            }
        };
        let conversation = async {
            let mut dialled = match kept {
                Some(dialled) => dialled,
                None => {
                    let stream = self.dial_new(id).await?;
                    Dialled::greet(stream, None, |_| ()).await.map_err(|error| unavailable(&error))?
                }
            };
            let answer = dialled.configure(activation).await.map_err(|error| unavailable(&error))?;
            answer.map_err(|refusal| DriverError::Conflict(refusal.to_string()))?;
            Ok(dialled)
        };
        let outcome = tokio::time::timeout(ACTIVATION, conversation).await;
        let dialled = outcome.map_err(|_| unavailable(&"the agent did not take its configuration in time"))??;
        if let Some(known) = self.state().known.get_mut(&id) {
            known.stream = Some(dialled);
        }
        Ok(())
    }
}
