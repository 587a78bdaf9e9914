//! The words of the service layer: what dialects ask for, and what they get.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use sandpool_core::ids::{ExecutionId, Identifier, PoolName, SandboxId, SessionKey, SnapshotId, TenantName};
pub use sandpool_core::limits::Suspends;
use sandpool_core::limits::{Life, Limits, Scale};
pub use sandpool_core::tenants::{Quota, Resource, Tenant};
pub use sandpool_driver::{Isolation, Keeps, Main, OciRuntime, Start, Usage};
pub use sandpool_wire::agent::{
    Entry, EntryKind, Event, Finished, IdentityToken, MAX_CODE, Outcome, Raised, Rich, Runtime, Stdin, Stop, Work,
};
use sandpool_wire::egress::{MAX_VALUE, MIN_VALUE, SecretValue};
pub use sandpool_wire::egress::{Mode as EgressMode, Policy as EgressPolicy};

/// One pool, as declared.
#[derive(Clone, Debug)]
pub struct PoolSpec {
    /// Its name.
    pub name: PoolName,
    /// What answers code.
    pub runtime: Runtime,
    /// The root file system of its image.
    pub rootfs: PathBuf,
    /// Sandboxes at once.
    pub scale: Scale,
    /// When sessions end.
    pub life: Life,
    /// Which wall stands around its sandboxes.
    pub isolation: Isolation,
    /// What each sandbox may use.
    pub limits: Limits,
    /// Executions of one session that may wait for its interpreter, besides the one that runs. More are refused.
    pub queue: usize,
    /// Bytes of output of one execution that are kept: stdout and stderr together.
    pub output_limit: u64,
    /// The longest time-out a caller may ask for.
    pub max_timeout: Duration,
    /// Environment variables of every session.
    pub env: Vec<(String, String)>,
    /// How interpreters start.
    pub start: Start,
    /// What sessions may reach; `None` for nothing, and no way out at all.
    pub egress: Option<EgressPolicy>,
    /// Sessions may bring secrets of their own.
    pub session_secrets: bool,
    /// What its sandboxes are for, where they are containers.
    pub container: Option<Container>,
    /// Sessions may have servers of their own, on loopback.
    pub local_servers: bool,
    /// Who shares a session's name.
    pub scope: SessionScope,
    /// How long a caller waits for a place when every one is taken, before it hears [`NodeError::Exhausted`].
    pub full_wait: Duration,
    /// When sessions are suspended, and for how long.
    pub suspends: Suspends,
}

/// What sessions of a custom container are for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its program, which is there before a session is.
    pub main: Main,
    /// A session ends in order when the program does; otherwise it is lost then.
    pub ends_with_program: bool,
    /// Its program speaks HTTP/2 at its port, without TLS.
    pub is_http2: bool,
    /// For whom its program gets tokens that say which pool and session it is of; nobody, if there is none.
    pub audiences: Vec<String>,
}

/// Signs what sessions' programs say who they are with.
pub trait Identities: std::fmt::Debug + Send + Sync {
    /// A token for each audience, good for longer than [`IDENTITY_RENEWED`] twice; none where none can be made.
    fn tokens(&self, pool: &PoolName, key: &SessionKey, audiences: &[String]) -> Vec<IdentityToken>;
}

/// How often sessions get new tokens.
pub const IDENTITY_RENEWED: Duration = Duration::from_secs(15 * 60);

/// Who shares a session's name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SessionScope {
    /// The callers of one tenant: to all others its sessions are not there.
    #[default]
    Tenant,
    /// Every caller that may use the pool, as on the service whose wire this is.
    Pool,
}

/// A pool, as it is now.
#[derive(Clone, Debug)]
pub struct PoolStatus {
    /// As declared.
    pub spec: PoolSpec,
    /// Sandboxes that are ready for a session.
    pub ready: u32,
    /// Sandboxes that should be ready: what the rate of new sessions asks for, within the pool's scale.
    pub target: u32,
    /// Sandboxes that are being made.
    pub booting: u32,
    /// Sandboxes that belong to a session.
    pub sessions: u32,
    /// It has as many ready sandboxes as it was asked to keep, or sessions that use them.
    pub is_full: bool,
    /// New sessions that found no ready sandbox and waited for one, since this server's start.
    pub waited: u64,
    /// The isolation level in force.
    pub level: String,
    /// What the wall is made of on this host, one line each.
    pub wall: Vec<String>,
    /// What is weaker here than the level promises elsewhere, one sentence each.
    pub weaker: Vec<String>,
    /// Why sandboxes do not start, when they do not.
    pub trouble: Option<String>,
}

/// Who asks. Dialects fill it from the verified token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// The token's subject, for "who holds the slots". Not a secret.
    pub subject: String,
}

/// Whose sessions are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose<'a> {
    /// Those that a tenant may see.
    Tenant(&'a TenantName),
    /// All.
    Everybody,
}

/// A session, as it is now.
#[derive(Clone, Debug)]
pub struct SessionInfo {
    /// Its pool.
    pub pool: PoolName,
    /// Its name.
    pub identifier: Identifier,
    /// Against whose quota it counts.
    pub tenant: TenantName,
    /// The sandbox bound to it.
    pub sandbox: SandboxId,
    /// Who made it.
    pub owner: String,
    /// The wall it really has.
    pub level: String,
    /// When it was made.
    pub created: SystemTime,
    /// When it was last used.
    pub used: SystemTime,
    /// When it ends, if it is not used again.
    pub expires: SystemTime,
    /// Executions that run or wait.
    pub busy: usize,
    /// It has no sandbox now, and the next request brings it back. Then `expires` is when it ends without one.
    pub suspended: Option<Suspended>,
}

/// How a session is suspended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspended {
    /// Since when.
    pub since: SystemTime,
    /// Bytes of it on the host's disk.
    pub bytes: u64,
    /// What is kept of it.
    pub keeps: Keeps,
}

/// A copy of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its id.
    pub id: SnapshotId,
    /// What its maker calls it.
    pub name: Option<String>,
    /// The session's pool.
    pub pool: PoolName,
    /// The session.
    pub identifier: Identifier,
    /// When it was taken.
    pub taken: SystemTime,
    /// Bytes of it on the host's disk.
    pub bytes: u64,
    /// What is kept in it.
    pub keeps: Keeps,
    /// The snapshot that the session had come from.
    pub parent: Option<SnapshotId>,
}

impl SessionInfo {
    /// What lists are sorted by: the oldest first, and no two alike.
    #[must_use]
    pub fn order(&self) -> (SystemTime, &Identifier, &TenantName) {
        (self.created, &self.identifier, &self.tenant)
    }
}

/// A session that a call found or made.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The session.
    pub session: SessionInfo,
    /// This call made it.
    pub new: bool,
    /// This call brought it back from being suspended, with this of what had been there.
    pub resumed: Option<Keeps>,
    /// How long it took to get it.
    pub took: Duration,
}

/// Whether a call may make a session that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// Make it.
    OrCreate,
    /// Answer [`NodeError::NoSession`].
    Existing,
}

/// What a session is given when it is made, besides what its pool gives to all.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// Environment variables.
    pub env: Vec<(String, String)>,
    /// Secrets: the session has variables of these names, whose values are placeholders.
    pub secrets: Vec<SessionSecret>,
}

/// A secret of one session.
#[derive(Clone)]
pub struct SessionSecret {
    /// The variable's name.
    pub name: String,
    /// What its hosts get.
    pub value: String,
    /// Its hosts.
    pub hosts: Vec<String>,
}

/// Never the value.
impl std::fmt::Debug for SessionSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionSecret").field("name", &self.name).field("hosts", &self.hosts).finish_non_exhaustive()
    }
}

/// Variables and secrets of one session, at most, of each.
const MOST_GIVEN: usize = 64;

/// Bytes of one session's variables, at most: with their names, all together.
const MAX_ENV: usize = 32 * 1024;

impl Given {
    /// Nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.env.is_empty() && self.secrets.is_empty()
    }

    /// Whether a session of this pool may be given this.
    ///
    /// # Errors
    /// The field, and a sentence about it.
    pub fn check(&self, pool: &PoolSpec) -> Result<(), (String, String)> {
        // As nearly always.
        if self.is_empty() {
            return Ok(());
        }
        if !self.secrets.is_empty() && !pool.session_secrets {
            let why =
                format!("sessions of {} have no secrets of their own: its pool does not say sessionSecrets", pool.name);
            return Err(("secrets".to_owned(), why));
        }
        for (field, count) in [("env", self.env.len()), ("secrets", self.secrets.len())] {
            if count > MOST_GIVEN {
                return Err((field.to_owned(), format!("{count} are too many: {MOST_GIVEN} at most")));
            }
        }
        let mut names: std::collections::BTreeSet<&str> = pool.env.iter().map(|(name, _)| name.as_str()).collect();
        let own = self.env.iter().map(|(name, _)| (format!("env.{name}"), name));
        let secret = |(at, secret): (usize, &SessionSecret)| (format!("secrets[{at}].name"), secret.name.clone());
        let secrets: Vec<_> = self.secrets.iter().enumerate().map(secret).collect();
        for (field, name) in own.chain(secrets.iter().map(|(field, name)| (field.clone(), name))) {
            if !is_variable(name) {
                return Err((field, format!("{name:?} is not the name of an environment variable")));
            }
            if !names.insert(name) {
                return Err((field, format!("{name} is there already, in the pool or in this session")));
            }
        }
        if let Some((name, _)) = self.env.iter().find(|(_, value)| value.contains('\0')) {
            return Err((format!("env.{name}"), "a variable's value has no NUL".to_owned()));
        }
        let bytes: usize = self.env.iter().map(|(name, value)| name.len() + value.len()).sum();
        if bytes > MAX_ENV {
            return Err(("env".to_owned(), format!("{bytes} bytes are too many: {MAX_ENV} at most, with the names")));
        }
        for (at, secret) in self.secrets.iter().enumerate() {
            let is_printable = secret.value.chars().all(|c| c.is_ascii_graphic() || c == ' ');
            if !is_printable || !(MIN_VALUE..=MAX_VALUE).contains(&secret.value.len()) {
                let why = format!("a value must be {MIN_VALUE} to {MAX_VALUE} printable ASCII characters");
                return Err((format!("secrets[{at}].value"), why));
            }
            if secret.hosts.is_empty() || secret.hosts.len() > MOST_GIVEN {
                let why = format!("there are {}, must be from 1 to {MOST_GIVEN}", secret.hosts.len());
                return Err((format!("secrets[{at}].hosts"), why));
            }
        }
        Ok(())
    }

    /// The secrets with their placeholders; the variables that a session gets are added to `env`.
    pub(crate) fn made(&self, env: &mut Vec<(String, String)>) -> Result<Vec<SecretValue>, getrandom::Error> {
        let mut secrets = Vec::new();
        env.extend_from_slice(&self.env);
        for SessionSecret { name, value, hosts } in &self.secrets {
            let mut random = [0; 16];
            getrandom::fill(&mut random)?;
            let placeholder = placeholder(name, random);
            env.push((name.clone(), placeholder.clone()));
            secrets.push(SecretValue { name: name.clone(), placeholder, value: value.clone(), hosts: hosts.clone() });
        }
        Ok(secrets)
    }
}

/// What a session has instead of a secret's value: of no use anywhere else.
#[must_use]
pub fn placeholder(name: &str, random: [u8; 16]) -> String {
    let name = name.to_ascii_lowercase().replace('_', "-");
    format!("sandpool-{name}-{:032x}", u128::from_be_bytes(random))
}

/// Whether this is a name that an environment variable can have: 1 to 64 letters, digits and underscores, no digit first.
#[must_use]
pub fn is_variable(name: &str) -> bool {
    name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.len() <= 64
}

/// An execution to start.
#[derive(Clone, Debug)]
pub struct ExecuteRequest {
    /// The caller's own id for it, else one is made. The same id again finds the execution that has it.
    pub id: Option<ExecutionId>,
    /// What to run.
    pub work: Work,
    /// Wall-clock limit; `None`: the pool's longest.
    pub timeout: Option<Duration>,
    /// Bytes of output to keep, at most the pool's limit; `None`: the pool's limit.
    pub output_limit: Option<u64>,
}

/// Where an execution is.
#[derive(Clone, Debug, PartialEq)]
pub enum ExecutionState {
    /// It waits for its turn.
    Queued,
    /// It runs.
    Running,
    /// It has ended.
    Ended(Outcome),
}

/// An execution, as it is now, with its output so far.
#[derive(Clone, Debug)]
pub struct Execution {
    /// Its id.
    pub id: ExecutionId,
    /// Its session.
    pub identifier: Identifier,
    /// Where it is.
    pub state: ExecutionState,
    /// When it was asked for.
    pub created: SystemTime,
    /// Standard output so far.
    pub stdout: Vec<u8>,
    /// Standard error so far.
    pub stderr: Vec<u8>,
    /// Bytes of stdout and stderr that were dropped over the limit.
    pub dropped: (u64, u64),
    /// The value of the last expression.
    pub result: Option<Rich>,
    /// All that was displayed, in order.
    pub displays: Vec<Rich>,
    /// The exception that ended it.
    pub error: Option<Raised>,
    /// Wall-clock time inside the sandbox.
    pub duration: Option<Duration>,
    /// How long it waited for its turn.
    pub queued: Option<Duration>,
    /// The interpreter's variables were lost by it.
    pub state_lost: bool,
}

/// One event of an execution, as streams carry it.
#[derive(Clone, Debug, PartialEq)]
pub struct Sequenced {
    /// Counts up from 1 in each execution.
    pub seq: u64,
    /// What happened.
    pub event: Event,
}

/// Why the service layer did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// No such pool.
    #[error("there is no pool {0}")]
    NoPool(String),
    /// No such session.
    #[error("there is no session {0}")]
    NoSession(Identifier),
    /// The session's sandbox is gone, and with it all state.
    #[error("session {identifier} was lost: {reason}")]
    SessionLost {
        /// Which.
        identifier: Identifier,
        /// Why.
        reason: String,
    },
    /// No such execution in the session.
    #[error("there is no execution {0}")]
    NoExecution(String),
    /// Every session of the pool is in use.
    #[error("pool {pool} has {active} of {limit} sessions in use")]
    Exhausted {
        /// The pool.
        pool: PoolName,
        /// Sessions in use.
        active: u32,
        /// Sessions allowed.
        limit: u32,
        /// When the next one may end.
        retry_after: Duration,
    },
    /// The tenant may have no more of something.
    #[error("tenant {tenant} has used up its quota of {limit} {resource}")]
    OverQuota {
        /// Whose quota.
        tenant: TenantName,
        /// What of.
        resource: Resource,
        /// How much it is.
        limit: u64,
        /// When to come again.
        retry_after: Duration,
    },
    /// Sandboxes of this pool do not start: says why.
    #[error("pool {pool} cannot start sandboxes: {reason}")]
    PoolBroken {
        /// The pool.
        pool: PoolName,
        /// Why.
        reason: String,
    },
    /// Too many executions wait for the session's interpreter.
    #[error("{waiting} executions already wait in this session")]
    QueueFull {
        /// How many.
        waiting: usize,
    },
    /// This pool's runtime cannot do that.
    #[error("{0}")]
    Unsupported(String),
    /// A value is not acceptable: says which and why.
    #[error("{0}")]
    Invalid(String),
    /// An execution has ended, and takes nothing more.
    #[error("execution {0} has ended")]
    Ended(ExecutionId),
    /// No such terminal in the session.
    #[error("there is no terminal {0}")]
    NoTerminal(String),
    /// The session has as many of something as it may: says of what.
    #[error("{0}")]
    TooMany(String),
    /// No such file.
    #[error("there is no file {0}")]
    NoFile(String),
    /// It is there, but not a file (or not a directory).
    #[error("{0}")]
    WrongKind(String),
    /// The session's own rights do not allow it.
    #[error("permission denied: {0}")]
    Denied(String),
    /// The session's disk is full.
    #[error("no space is left in the session")]
    NoSpace,
    /// The session is there, and no program in it takes the connection.
    #[error("{0}")]
    Refused(String),
    /// The session is there, and its program says that it takes no requests now.
    #[error("session {0} takes no requests now: its readiness probe fails")]
    NotReady(Identifier),
    /// Something runs in the session, and it cannot be suspended.
    #[error("session {identifier} is busy: {busy} executions or transfers go on in it")]
    Busy {
        /// Which.
        identifier: Identifier,
        /// How many.
        busy: usize,
    },
    /// The session has no sandbox now, and this does not bring it back.
    #[error("session {0} is suspended")]
    Suspended(Identifier),
    /// The session cannot be suspended: says why.
    #[error("{0}")]
    NotSuspendable(String),
    /// There is a session of that name.
    #[error("there is a session {0} already")]
    SessionExists(Identifier),
    /// No such snapshot of the session.
    #[error("there is no snapshot {0}")]
    NoSnapshot(String),
    /// What is on disk is not what was written: says which file. It stays there until the session, or the snapshot, is deleted.
    #[error("session {identifier} cannot be resumed: {why}")]
    SnapshotDamaged {
        /// Of which session.
        identifier: Identifier,
        /// Which file, and what is wrong.
        why: String,
    },
    /// It would become another sandbox than it was: says why. It stays until the session, or the snapshot, is deleted.
    #[error("session {identifier} cannot be resumed: {why}")]
    SnapshotUnusable {
        /// Of which session.
        identifier: Identifier,
        /// What is not as it was.
        why: String,
    },
    /// The host has no room for it: says which.
    #[error("{0}")]
    SnapshotsFull(String),
    /// The server is stopping, or the host is in trouble: try again later.
    #[error("unavailable: {0}")]
    Unavailable(String),
}
