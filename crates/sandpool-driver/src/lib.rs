//! The Driver seam: what makes sandboxes, and nothing else.
//!
//! The core owns pools, sessions, identifiers, cool-down and quotas; a driver owns sandboxes. The seam fits local
//! namespaces, a microVM and a Kubernetes pod alike: ids are chosen by the caller, so every call can be repeated;
//! readiness is watched and not awaited; the agent inside is reached over a byte stream, never an address.
//!
//! ```text
//! ensure_pool -> create -> (watch: Ready) -> assign -> activate -> dial ... -> destroy
//!                                            `-------- give --------'
//! ```

pub mod contract;
pub mod levels;
pub mod memory;

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use sandpool_core::ids::{PoolName, SandboxId};
use sandpool_core::limits::Limits;
pub use sandpool_wire::agent::Main;
use sandpool_wire::agent::{Activation, Runtime};
use sandpool_wire::egress::{Policy, SecretValue, Told};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::broadcast;

/// The largest [`Owner::record`], in bytes.
pub const MAX_RECORD: usize = 1024;

/// Makes, hands out and destroys sandboxes at one isolation level.
///
/// Every call has a deadline of the driver's own and then answers [`DriverError::Unavailable`]; none hangs.
/// Dropping the future of a call leaves it done or not done, never half done: repeat it, or ask [`Driver::list`].
#[async_trait]
pub trait Driver: Send + Sync + 'static {
    /// What this driver is, and what it proved about its wall on this host.
    fn describe(&self) -> Description;

    /// The same of one pool that it was given: a driver may have more than one kind of wall.
    fn describe_pool(&self, _pool: &PoolName) -> Description {
        self.describe()
    }

    /// Makes what a pool's sandboxes are made from ready for use. Idempotent; a changed template takes effect for
    /// sandboxes created afterwards.
    async fn ensure_pool(&self, template: &Template) -> Result<(), DriverError>;

    /// Forgets what a pool's sandboxes are made from, and what was made ahead of it. Those that are there stay until they are destroyed,
    /// and reach nothing any more. Idempotent.
    async fn remove_pool(&self, pool: &PoolName) -> Result<(), DriverError>;

    /// Starts to make a sandbox. Idempotent by `id`. Answers when it is known to [`Driver::list`]; [`Driver::watch`]
    /// tells when it is ready.
    ///
    /// # Errors
    /// `Invalid` for an unknown pool, `Conflict` when the id exists in another pool, `Gone` when it was there and is
    /// not any more, `Exhausted` when the host has no room.
    async fn create(&self, id: SandboxId, pool: &PoolName) -> Result<(), DriverError>;

    /// Binds a ready sandbox to its one owner, atomically, and durably before it answers: this is the truth of "this
    /// sandbox belongs to that session", also after the server has been killed. The same owner again is fine.
    ///
    /// # Errors
    /// `Conflict` when it has another owner, `Gone` when it is not there, `Unavailable` when it is not ready yet.
    async fn assign(&self, id: SandboxId, owner: &Owner) -> Result<(), DriverError>;

    /// Gives an assigned sandbox its session's configuration. Once per boot; a second time with the same boot is
    /// `Conflict`.
    async fn activate(&self, id: SandboxId, activation: &Activation) -> Result<(), DriverError>;

    /// Gives a ready sandbox to its one owner, with its configuration, and answers with a stream to its agent:
    /// [`Driver::assign`], [`Driver::activate`] and [`Driver::dial`] in one, for the way of a caller that waits. A
    /// driver that can does them at the same time. Two promises are as in the single calls: when it answers, both the
    /// owner and the configuration are there, durably; and of several owners one has it.
    ///
    /// Once per sandbox: the same owner again is `Conflict`. After an error, and after a server that was killed in the
    /// middle, the sandbox may be half given away: free, or owned and not activated, or listed as activated while its
    /// agent refuses every call. It is good for nobody then, and to be destroyed.
    ///
    /// # Errors
    /// Those of the three.
    async fn give(&self, id: SandboxId, owner: &Owner, activation: &Activation) -> Result<Stream, DriverError> {
        self.assign(id, owner).await?;
        self.activate(id, activation).await?;
        self.dial(id).await
    }

    /// Ends a sandbox and removes every trace of it. Idempotent; a destroyed id never comes back. Answers when its
    /// processes are gone.
    async fn destroy(&self, id: SandboxId) -> Result<(), DriverError>;

    /// Every sandbox there is: the truth after a restart. Also those that were activated, ended by themselves and have
    /// not been destroyed yet, as [`Phase::Lost`]; of these a driver may forget the oldest when there are very many.
    async fn list(&self) -> Result<Vec<Sandbox>, DriverError>;

    /// Changes from now on. A receiver that lags gets `Lagged` from the channel: it must then [`Driver::list`].
    fn watch(&self) -> broadcast::Receiver<Change>;

    /// A new byte stream to the agent of a sandbox.
    ///
    /// # Errors
    /// `Gone` when the sandbox is not there, `Unavailable` when it does not answer.
    async fn dial(&self, id: SandboxId) -> Result<Stream, DriverError>;

    /// A new byte stream to what listens at this TCP port of a sandbox's loopback.
    ///
    /// # Errors
    /// `Gone` when the sandbox is not there, `Refused` when nobody listens, or programs of its pool may not.
    async fn connect(&self, id: SandboxId, port: u16) -> Result<Stream, DriverError>;

    /// What a sandbox uses now. Asked of those that somebody looks at, and of tenants with a quota: it costs the host some reads of files.
    async fn usage(&self, id: SandboxId) -> Result<Usage, DriverError>;

    /// Takes away, of what a sandbox's pool may reach, all that `policy` does not allow too; `None` gives it back. When it answers,
    /// what is forbidden now is reached no more, and the driver keeps to it also without this server.
    ///
    /// # Errors
    /// `Invalid` for a policy that cannot be used or a pool from which nothing is reached, `Gone` when the sandbox is not
    /// there.
    async fn narrow(&self, id: SandboxId, policy: Option<&Policy>) -> Result<(), DriverError>;

    /// Gives a sandbox's session secrets of its own: its egress puts their values in for their placeholders, at their hosts. Those that
    /// it had are replaced; the values are kept by no server. When it answers, they are in use.
    ///
    /// # Errors
    /// `Invalid` for secrets that cannot be used, or where sessions have none of their own; `Gone` when the sandbox is not there.
    async fn entrust(&self, id: SandboxId, secrets: &[SecretValue]) -> Result<(), DriverError>;

    /// The next decisions about what sandboxes would reach; there may be many between two calls, and what nobody asks for in time is
    /// missed, which is told. For one caller. Cancelling it loses none.
    async fn decided(&self) -> Told {
        // A driver without a way out has nothing to tell.
        std::future::pending().await
    }

    /// What a sandbox is narrowed to.
    ///
    /// # Errors
    /// `Gone` when the sandbox is not there.
    async fn narrowed(&self, id: SandboxId) -> Result<Option<Policy>, DriverError>;

    /// What of a sandbox of this pool outlives it, when it is saved.
    fn keeps(&self, _pool: &PoolName) -> Keeps {
        Keeps::Files
    }

    /// Everything of a sandbox, as bytes of the driver's own: from the first of them to the last it stands still. Where it `stays` it goes
    /// on afterwards, also when the stream is dropped early; else it stands until it is destroyed, and goes on only when the stream is
    /// dropped before that, at whatever place it was. A stream that is not whole ends with an error, never early.
    ///
    /// # Errors
    /// `Invalid` where the pool keeps [`Keeps::Files`], or nobody has the sandbox yet; `Gone` when it is not there.
    async fn save(&self, id: SandboxId, _stays: bool) -> Result<Stream, DriverError> {
        Err(DriverError::Invalid(format!("nothing but files is kept of {id}")))
    }

    /// Starts to make a sandbox as [`Driver::create`] does, from what [`Driver::save`] gave of one of the same template, which may have been
    /// long ago and another server's. It is narrowed to `narrowed` before anything of it runs ([`Driver::narrow`]). [`Driver::watch`] tells
    /// when it is ready; then it is to be given to its owner like every other: it has a boot id of its own, and has not been activated.
    /// Bytes that are not whole never become ready.
    ///
    /// # Errors
    /// Those of [`Driver::create`] and [`Driver::narrow`]; `Invalid` where the pool keeps [`Keeps::Files`].
    async fn load(
        &self,
        _id: SandboxId,
        pool: &PoolName,
        _saved: Stream,
        _narrowed: Option<&Policy>,
    ) -> Result<(), DriverError> {
        Err(DriverError::Invalid(format!("nothing but files is kept of sandboxes of {pool}")))
    }
}

/// What of a sandbox outlives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Keeps {
    /// The files of its session: [`Driver::save`] and [`Driver::load`] are not there, and whoever is above carries the files.
    Files,
    /// All of it: memory, processes, files.
    Machine,
}

impl Keeps {
    /// The word for it in the APIs.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Files => "files",
            Self::Machine => "machine",
        }
    }
}

/// A byte stream to an agent.
pub type Stream = Box<dyn ByteStream>;

/// Any two-way byte stream: a Unix socket, vsock, a port-forward.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// What a driver is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// The isolation level's name, as sessions report it: `process`, `memory (no boundary)`, ...
    pub level: String,
    /// What the wall is made of on this host, as proved at start: one line each, such as `seccomp: 269 calls allowed`.
    pub wall: Vec<String>,
    /// What is weaker than the level promises elsewhere, in one sentence each. Empty on a good host.
    pub weaker: Vec<String>,
}

/// What a pool's sandboxes are made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// The pool.
    pub pool: PoolName,
    /// What answers code inside.
    pub runtime: Runtime,
    /// The image's root file system, on this host.
    pub rootfs: PathBuf,
    /// Which wall stands around its sandboxes.
    pub isolation: Isolation,
    /// What each sandbox may use.
    pub limits: Limits,
    /// How long a sandbox may take from `create` to ready, before it is given up.
    pub boot_limit: Duration,
    /// Programs in it may listen, and connect to each other, on loopback. Otherwise they connect to what leads out, and to nothing else.
    pub local_servers: bool,
    /// How its interpreters start.
    pub start: Start,
    /// The program that its sandboxes are for, where they are containers: a sandbox is ready when it listens.
    pub main: Option<Main>,
    /// What may be reached from it; `None` for nothing. A changed one holds at once, for all sandboxes of the pool, unless it
    /// comes or goes: then for those created afterwards.
    pub egress: Option<Policy>,
}

/// Which wall stands around a sandbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// Namespaces, filters and limits of the host's kernel, made by us.
    #[default]
    Process,
    /// The same sandboxes through an OCI runtime, this one, or the first that is good enough here.
    Container(Option<OciRuntime>),
    /// A machine for each sandbox: a kernel of its own behind a VMM, and the process level's walls around that and inside.
    Microvm,
}

impl Isolation {
    /// Its name in settings.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Container(_) => "container",
            Self::Microvm => "microvm",
        }
    }
}

/// A program that runs containers as the Open Container Initiative's runtime specification has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OciRuntime {
    /// <https://github.com/opencontainers/runc>
    Runc,
    /// <https://github.com/containers/crun>
    Crun,
    /// <https://github.com/youki-dev/youki>
    Youki,
    /// gVisor's, <https://gvisor.dev>: a kernel of its own in front of the host's.
    Runsc,
}

impl OciRuntime {
    /// All of them, in the order in which one is chosen where a pool names none.
    pub const ALL: [Self; 4] = [Self::Runc, Self::Crun, Self::Youki, Self::Runsc];

    /// Its program's name.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Crun => "crun",
            Self::Youki => "youki",
            Self::Runsc => "runsc",
        }
    }
}

/// How interpreters start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// Each from its own beginning: nothing at all is alike in two of them.
    #[default]
    Cold,
    /// From the pool's zygote, where the driver can make one: in milliseconds, with libraries loaded that they share.
    /// Alike in sessions of one pool are then the addresses of what is loaded, and the seed of `hash`.
    Zygote,
}

/// Whom a sandbox belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The service layer's own record of the session, opaque to drivers: at most [`MAX_RECORD`] bytes.
    pub record: Vec<u8>,
}

/// One sandbox, as its driver knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// The id its creator chose.
    pub id: SandboxId,
    /// The pool it was made for.
    pub pool: PoolName,
    /// How far it is.
    pub phase: Phase,
    /// The agent's boot id, once it has answered. If it changes, the state inside is gone.
    pub boot_id: Option<[u8; 16]>,
    /// Whom it belongs to.
    pub owner: Option<Owner>,
    /// It has had its [`Driver::activate`].
    pub activated: bool,
}

/// How far a sandbox is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Being made; its interpreter is warming up.
    Booting,
    /// Its agent and interpreter answer.
    Ready,
    /// Being destroyed.
    Leaving,
    /// Ended by itself while it belonged to a session, and with it all that was inside. Listed until it is destroyed,
    /// so that its owner hears of it also from a server that was not there when it ended.
    Lost,
}

/// What happened to a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is there, and now looks like this.
    Upsert(Sandbox),
    /// It is gone for good, with all that was in it.
    Gone {
        /// Which.
        id: SandboxId,
        /// Why.
        reason: GoneReason,
    },
}

/// Why a sandbox is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GoneReason {
    /// Somebody called [`Driver::destroy`].
    Destroyed,
    /// It used up its memory and was ended.
    OutOfMemory,
    /// Its first process ended, by an exit code or signal.
    Died(String),
    /// It could not be started: says why.
    BootFailed(String),
}

/// What a sandbox uses. `None` is what its host does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of memory.
    pub memory: u64,
    /// The most bytes of memory it ever used.
    pub memory_peak: Option<u64>,
    /// Of the last ten seconds, in ten-thousandths, how long something in it waited for memory.
    pub memory_pressure: Option<u32>,
    /// Processes and threads.
    pub pids: u32,
    /// Processor time, in microseconds.
    pub cpu_us: Option<u64>,
    /// For how long it was kept from the processor because it had used its share, in microseconds.
    pub throttled_us: Option<u64>,
    /// Processes the kernel killed in it for want of memory.
    pub oom_kills: Option<u64>,
    /// Bytes of memory that are files of its own: what it has written to its directories and to shared memory.
    pub stored: u64,
    /// Bytes that it has read from disks, of what was not in memory.
    pub read: Option<u64>,
    /// Bytes that it has written to disks.
    pub written: Option<u64>,
    /// Bytes that have gone out of it, over all its connections; `None` where it has no way out.
    pub sent: Option<u64>,
    /// Bytes that have come into it.
    pub received: Option<u64>,
}

/// Why a driver did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DriverError {
    /// It contradicts what is already so.
    #[error("conflict: {0}")]
    Conflict(String),
    /// The host has no room for more.
    #[error("exhausted: {0}")]
    Exhausted(String),
    /// The request makes no sense; trying again will not help.
    #[error("invalid: {0}")]
    Invalid(String),
    /// It may work later.
    #[error("unavailable: {reason}")]
    Unavailable {
        /// Why.
        reason: String,
        /// When to try again.
        retry_after: Duration,
    },
    /// The sandbox is not there, or not any more.
    #[error("gone: {0}")]
    Gone(String),
    /// The sandbox is there, and nobody in it takes the connection.
    #[error("refused: {0}")]
    Refused(String),
    /// The sandbox is there, and its program says that it takes no requests now.
    #[error("its program takes no requests now: its readiness probe fails")]
    NotReady,
}
