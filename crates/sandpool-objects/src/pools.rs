//! Where pools are kept: those of the configuration, and those that were applied while the server ran.
//!
//! ```text
//! apply --check--> image --> written to the store --> Node::apply --> answered
//!                                  ^                       |
//!                                  +---- taken back -------+ when no sandbox can be made of it
//! ```
//!
//! A pool of the configuration file is that file's to change. A pool that `up` makes by default can be applied over, and one that was
//! applied comes back with the next start.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sandpool_core::ids::PoolName;
use sandpool_node::{ByName, Node, NodeError, PoolSpec, PoolStatus, Store};
use time::OffsetDateTime;
use tokio::sync::Semaphore;

use crate::pool::PoolObject;
use crate::{Fault, ImageConfig, Metadata, PoolFace, fault};

/// Pools that may be applied, besides those of the configuration.
const MOST: usize = 1_000;

/// The longest that a change may take to be written.
const WRITTEN: Duration = Duration::from_secs(10);

/// Finds images that are there.
pub trait Images: Send + Sync + 'static {
    /// The image of this name. It must hold this runtime (`python`, `node`, `shell`; or `container`, which is any), and be known to be
    /// signed with this key (PEM), if there is one.
    ///
    /// # Errors
    /// Why it cannot be used, as the rest of a sentence.
    fn find(&self, name: &str, runtime: &str, key: Option<&str>) -> Result<Found, String>;

    /// Whether this is a public key as images are signed with (PEM).
    ///
    /// # Errors
    /// Why not, as the rest of a sentence.
    fn check_key(&self, key: &str) -> Result<(), String>;

    /// Gets an image from its registry, as this user with this password, and only if it is signed with this key, if there is one. Waits
    /// for it. `progress` hears how many bytes are here, and of how many.
    ///
    /// # Errors
    /// Why it is not here.
    fn pull(
        &self,
        reference: &str,
        credentials: Option<(String, String)>,
        key: Option<&str>,
        progress: &dyn Fn(u64, u64),
    ) -> Result<(), String>;
}

/// How far it is with the image of a pool that is got from a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pull {
    /// So many bytes are here, and of how many; 0 of 0 before that is known.
    Coming(u64, u64),
    /// It is here.
    Done,
    /// It cannot be had: why.
    Failed(String),
}

/// Images that are got at the same time.
const PULLS: usize = 4;

/// Why a pool has no sandboxes while its image comes.
const COMING: &str = "its image is being pulled";

/// An image that is there.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its root file system.
    pub rootfs: PathBuf,
    /// What is in it.
    pub metadata: Metadata,
    /// What it says about how it is run.
    pub config: ImageConfig,
}

/// Where a pool comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The configuration file.
    File,
    /// What a server without one has.
    Default,
    /// It was applied.
    Applied,
}

impl Origin {
    /// As clients are told.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Default => "default",
            Self::Applied => "applied",
        }
    }
}

/// A pool, as it is kept.
#[derive(Clone, Debug)]
pub struct Kept {
    /// As declared.
    pub object: PoolObject,
    /// Where it comes from.
    pub origin: Origin,
    /// Counts its changes, from 1.
    pub generation: u64,
    /// Tells it from others that had its name, or will; 0 for one that nobody applied.
    pub uid: u64,
    /// When it was first applied; the server's start, for one that never was.
    pub created: SystemTime,
    /// How it looks to clients.
    pub face: Arc<PoolFace>,
    /// Why no sandbox can be made of it, if that was so when it was read.
    pub broken: Option<String>,
}

impl Kept {
    /// When it was first applied, in RFC 3339.
    #[must_use]
    pub fn created_at(&self) -> String {
        let time = OffsetDateTime::from(self.created).replace_nanosecond(0).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        time.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
    }
}

/// What came of an apply.
#[derive(Clone, Debug)]
pub enum Applied {
    /// The pool is new.
    Created(Kept),
    /// It was there, and something has changed.
    Changed(Kept),
    /// It was so already.
    Unchanged(Kept),
}

impl Applied {
    /// The pool.
    #[must_use]
    pub fn kept(&self) -> &Kept {
        let (Self::Created(kept) | Self::Changed(kept) | Self::Unchanged(kept)) = self;
        kept
    }
}

/// Why a pool was not applied or removed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PoolsError {
    /// The object is wrong: says where.
    #[error(transparent)]
    Invalid(#[from] Fault),
    /// It is not to be changed here.
    #[error("{0}")]
    Forbidden(String),
    /// It contradicts what is there: says where, if it is about a field.
    #[error("{}", conflict(.0.as_deref(), .1))]
    Conflict(Option<String>, String),
    /// No sandbox can be made of it, or the server cannot for now.
    #[error(transparent)]
    Node(#[from] NodeError),
}

/// What is applied, in the store's words.
#[derive(serde::Serialize, serde::Deserialize)]
struct Written {
    generation: u64,
    #[serde(default)]
    uid: u64,
    created: u64,
    object: PoolObject,
}

/// Pools before there is a node for them.
#[derive(Debug, Default)]
pub struct Prepared {
    /// Those of the configuration.
    pub declared: Vec<PoolSpec>,
    /// Those that were applied, and why one cannot be made.
    pub applied: Vec<(PoolSpec, Option<String>)>,
    kept: BTreeMap<PoolName, Kept>,
    defaults: BTreeMap<PoolName, (Kept, PoolSpec)>,
}

/// All pools of a server. Cheap to clone.
#[derive(Clone)]
pub struct Pools {
    inner: Arc<Inner>,
}

struct Inner {
    node: Node,
    store: Option<Store>,
    images: Arc<dyn Images>,
    kept: RwLock<BTreeMap<PoolName, Kept>>,
    /// The generation of each that has had a full reservoir.
    settled: Mutex<BTreeMap<PoolName, u64>>,
    /// What comes back when what was applied over it is removed.
    defaults: BTreeMap<PoolName, (Kept, PoolSpec)>,
    /// One change of a pool at a time.
    changing: ByName,
    /// How far it is with images, and the number of each attempt.
    pulls: Mutex<BTreeMap<PoolName, (u64, Pull)>>,
    attempts: AtomicU64,
    pulling: Semaphore,
}

impl std::fmt::Debug for Pools {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pools").finish_non_exhaustive()
    }
}

impl Prepared {
    /// Those of the configuration, whose images and faces are known.
    pub fn declare(&mut self, object: PoolObject, spec: PoolSpec, face: PoolFace, origin: Origin) {
        let name = spec.name.clone();
        let (created, face) = (SystemTime::now(), Arc::new(face));
        let kept = Kept { object, origin, generation: 1, uid: 0, created, face, broken: None };
        if origin == Origin::Default {
            self.defaults.insert(name.clone(), (kept.clone(), spec.clone()));
        }
        self.kept.insert(name, kept);
        self.declared.push(spec);
    }

    /// Those that were applied to an earlier server.
    pub async fn read(&mut self, store: &Store, images: &dyn Images) {
        for (name, text) in store.pools().await {
            let read = serde_json::from_str::<Written>(&text).map_err(|error| error.to_string());
            let read = read.and_then(|written| {
                let name = PoolName::parse(&name).map_err(|error| error.to_string())?;
                Ok((name, written))
            });
            let (name, Written { generation, uid, created, object }) = match read {
                Ok(read) => read,
                Err(why) => {
                    tracing::error!(pool = name, "an applied pool cannot be read, and is left out: {why}");
                    continue;
                }
            };
            if self.kept.get(&name).is_some_and(|kept| kept.origin == Origin::File) {
                tracing::warn!(pool = %name, "the configuration file has a pool that was applied before: the file's counts");
                continue;
            }
            let (spec, face, broken) = match made(&object, images) {
                Ok((spec, face)) => (Ok(spec), face, None),
                Err(why) => (
                    object.to_spec(PathBuf::from("/nowhere"), &anything(&object)),
                    unknown(&object),
                    Some(why.to_string()),
                ),
            };
            let spec = match spec {
                Ok(spec) => spec,
                Err(why) => {
                    tracing::error!(pool = %name, "an applied pool cannot be made, and is left out: {why}");
                    continue;
                }
            };
            self.declared.retain(|declared| declared.name != name);
            self.applied.push((spec, broken.clone()));
            let created = UNIX_EPOCH + Duration::from_secs(created);
            let (origin, face) = (Origin::Applied, Arc::new(face));
            let kept = Kept { object, origin, generation, uid, created, face, broken };
            self.kept.insert(name, kept);
        }
    }

    /// With the node that was made of them.
    #[must_use]
    pub fn with(self, node: Node, store: Option<Store>, images: Arc<dyn Images>) -> Pools {
        let (kept, settled, changing) = (RwLock::new(self.kept), Mutex::default(), ByName::default());
        let (pulls, attempts, pulling) = (Mutex::default(), AtomicU64::new(0), Semaphore::new(PULLS));
        let defaults = self.defaults;
        let inner = Inner { node, store, images, kept, settled, defaults, changing, pulls, attempts, pulling };
        let pools = Pools { inner: Arc::new(inner) };
        // What was being pulled when an earlier server ended, and what has been removed since.
        for kept in pools.all() {
            if let (Some(_), Some(_), Ok(name)) =
                (&kept.broken, kept.object.reference(), PoolName::parse(&kept.object.metadata.name))
            {
                pools.pull(&name, &kept);
            }
        }
        pools
    }
}

/// What an object means here.
fn made(object: &PoolObject, images: &dyn Images) -> Result<(PoolSpec, PoolFace), Fault> {
    let runtime = object.spec.container_type.runtime().word();
    let found = images.find(object.image(), runtime, object.image_key());
    let field = match object.spec.custom_container_template {
        Some(_) => "spec.customContainerTemplate.containers[0].image",
        None => "spec.image",
    };
    let Found { rootfs, metadata, config } = found.map_err(|why| fault(field, why))?;
    Ok((object.to_spec(rootfs, &config)?, object.to_face(metadata)))
}

/// What stands for the words of an image that is not there.
fn anything(object: &PoolObject) -> ImageConfig {
    ImageConfig { entrypoint: vec![object.image().to_owned()], ..ImageConfig::default() }
}

/// The face of a pool whose image is not there.
fn unknown(object: &PoolObject) -> PoolFace {
    let runtime = object.spec.container_type.runtime().word().to_owned();
    object.to_face(Metadata { runtime, version: String::new(), packages: Vec::new(), created: UNIX_EPOCH })
}

impl Pools {
    fn kept(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<PoolName, Kept>> {
        self.inner.kept.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, name: PoolName, kept: Kept) {
        self.inner.kept.write().unwrap_or_else(PoisonError::into_inner).insert(name, kept);
    }

    /// How a pool looks to clients.
    #[must_use]
    pub fn face(&self, name: &PoolName) -> Option<Arc<PoolFace>> {
        self.kept().get(name).map(|kept| Arc::clone(&kept.face))
    }

    /// One pool.
    #[must_use]
    pub fn get(&self, name: &PoolName) -> Option<Kept> {
        self.kept().get(name).cloned()
    }

    /// All of them, by name.
    #[must_use]
    pub fn all(&self) -> Vec<Kept> {
        self.kept().values().cloned().collect()
    }

    /// How it is: what stands in the object's `status`, and whether it is as it was asked to be.
    ///
    /// # Errors
    /// `NoPool`.
    pub fn status(&self, name: &PoolName) -> Result<PoolStatus, NodeError> {
        self.inner.node.pool(name)
    }

    /// Whether this generation of a pool has had a full reservoir; `is_full` says that it has now. A change is through then, whatever
    /// callers take out of the reservoir later.
    #[must_use]
    pub fn is_settled(&self, name: &PoolName, generation: u64, is_full: bool) -> bool {
        if matches!(self.pulled(name), Some(Pull::Coming(..))) {
            return false;
        }
        let mut settled = self.inner.settled.lock().unwrap_or_else(PoisonError::into_inner);
        if is_full && self.kept().get(name).is_some_and(|kept| kept.generation == generation && kept.broken.is_none()) {
            settled.insert(name.clone(), generation);
        }
        settled.get(name) == Some(&generation)
    }

    /// Makes the pool, or changes it: sessions that are there keep their sandboxes. With `dry_run` all is checked and nothing done.
    ///
    /// # Errors
    /// See [`PoolsError`]; then all is as it was.
    pub async fn apply(&self, object: PoolObject, dry_run: bool) -> Result<Applied, PoolsError> {
        let pools = self.clone();
        whole(async move { pools.applied(object, dry_run).await }).await
    }

    /// What an object means with the images that are here.
    async fn made(&self, object: PoolObject) -> Result<(PoolObject, Result<(PoolSpec, PoolFace), Fault>), PoolsError> {
        let images = Arc::clone(&self.inner.images);
        let looking = tokio::task::spawn_blocking(move || {
            // It reads the image store.
            let made = made(&object, &*images);
            (object, made)
        });
        looking.await.map_err(|_| NodeError::Unavailable("the server is stopping".to_owned()).into())
    }

    async fn applied(&self, mut object: PoolObject, dry_run: bool) -> Result<Applied, PoolsError> {
        let name = PoolName::parse(&object.metadata.name).map_err(|why| fault("metadata.name", why.to_string()))?;
        if let Some(before) = self.get(&name) {
            object.keep_values(&before.object);
        }
        object.check()?;
        object.check_applied()?;
        if let Some(key) = object.image_key() {
            self.inner.images.check_key(key).map_err(|why| fault("spec.imageKey", why))?;
        }
        let (object, made) = self.made(object).await?;
        let (spec, face, broken) = match made {
            Ok((spec, face)) => (spec, face, None),
            // What is not here may be where its reference says.
            Err(_) if object.reference().is_some() => {
                let spec = object.to_spec(PathBuf::from("/nowhere"), &anything(&object))?;
                (spec, unknown(&object), Some(COMING.to_owned()))
            }
            Err(fault) => return Err(fault.into()),
        };
        let _one = self.inner.changing.lock(&name).await;
        let before = self.get(&name);
        match &before {
            Some(kept) if kept.origin == Origin::File => return Err(PoolsError::Forbidden(of_file(&name))),
            Some(kept) if kept.object.spec.container_type != object.spec.container_type => {
                let why = format!("is {}, and stays so: remove the pool, and make it anew", kept.face.container_type);
                return Err(PoolsError::Conflict(Some("spec.containerType".to_owned()), why));
            }
            Some(kept) if kept.object.spec.session_scope != object.spec.session_scope => {
                let why = "a pool keeps its scope: remove it, and make it anew";
                return Err(PoolsError::Conflict(Some("spec.sessionScope".to_owned()), why.to_owned()));
            }
            Some(kept) if kept.object.spec.isolation() != object.spec.isolation() => {
                let why = "a pool keeps its wall, which its sessions were promised: remove it, and make it anew";
                return Err(PoolsError::Conflict(Some("spec.isolation".to_owned()), why.to_owned()));
            }
            Some(kept)
                if kept.object.image_key() != object.image_key() && kept.broken.is_none() && broken.is_some() =>
            {
                let why =
                    "the image that it runs is not known to be signed with this key: remove the pool, and make it anew";
                return Err(PoolsError::Conflict(Some("spec.imageKey".to_owned()), why.to_owned()));
            }
            Some(kept) if kept.object == object && kept.broken.is_none() && self.is_made_of(&name, &spec) => {
                if !dry_run {
                    self.pull(&name, kept);
                }
                return Ok(Applied::Unchanged(kept.clone()));
            }
            Some(kept) if kept.object == object && matches!(self.pulled(&name), Some(Pull::Coming(..))) => {
                return Ok(Applied::Unchanged(kept.clone()));
            }
            None if self.kept().len() >= MOST => {
                return Err(PoolsError::Conflict(None, format!("there are {MOST} pools already")));
            }
            _ => {}
        }
        let uid = match before.as_ref().filter(|kept| kept.origin == Origin::Applied) {
            Some(kept) => kept.uid,
            None => getrandom::u64().map_err(|error| NodeError::Unavailable(error.to_string()))?.max(1),
        };
        let kept = Kept {
            object,
            uid,
            origin: Origin::Applied,
            generation: before.as_ref().map_or(1, |kept| kept.generation + 1),
            created: before.as_ref().map_or_else(SystemTime::now, |kept| kept.created),
            face: Arc::new(face),
            broken,
        };
        if !dry_run {
            self.write(&name, Some(&kept)).await?;
            let done = match &kept.broken {
                None => self.inner.node.apply(spec).await,
                Some(why) => self.inner.node.announce(spec, why.clone()).await,
            };
            if let Err(error) = done {
                let applied = before.as_ref().filter(|before| before.origin == Origin::Applied);
                self.write(&name, applied).await?;
                return Err(error.into());
            }
            self.inner.settled.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
            self.keep(name.clone(), kept.clone());
            self.pull(&name, &kept);
        }
        Ok(if before.is_some() { Applied::Changed(kept) } else { Applied::Created(kept) })
    }

    /// How far it is with the pool's image; `None` where no registry was asked for it.
    #[must_use]
    pub fn pulled(&self, name: &PoolName) -> Option<Pull> {
        self.pulls().get(name).map(|(_, pull)| pull.clone())
    }

    fn pulls(&self) -> std::sync::MutexGuard<'_, BTreeMap<PoolName, (u64, Pull)>> {
        self.inner.pulls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to get a pool's image from its registry, or to see whether its tag means another one by now. A digest that is here needs neither.
    fn pull(&self, name: &PoolName, kept: &Kept) {
        let Some(reference) = kept.object.reference() else {
            self.pulls().remove(name);
            return;
        };
        if kept.broken.is_none() && reference.contains("@sha256:") {
            self.pulls().insert(name.clone(), (0, Pull::Done));
            return;
        }
        let attempt = self.inner.attempts.fetch_add(1, Ordering::Relaxed) + 1;
        self.pulls().insert(name.clone(), (attempt, Pull::Coming(0, 0)));
        let (pools, name, kept, reference) = (self.clone(), name.clone(), kept.clone(), reference.to_owned());
        tokio::spawn(async move {
            // Never closed.
            let _turn = pools.inner.pulling.acquire().await;
            let (images, credentials) = (Arc::clone(&pools.inner.images), kept.object.registry_credentials());
            let key = kept.object.image_key().map(str::to_owned);
            let (telling, called) = (pools.clone(), name.clone());
            let pulling = tokio::task::spawn_blocking(move || {
                images.pull(&reference, credentials, key.as_deref(), &|here, of| {
                    telling.is_at(&called, attempt, Pull::Coming(here, of));
                })
            });
            // An error is the server's end, or a panic, whose message has been printed.
            let Ok(pulled) = pulling.await else { return };
            pools.has_pulled(&name, attempt, kept.uid, pulled).await;
        });
    }

    /// Says how far an attempt is, unless a later one has begun.
    fn is_at(&self, name: &PoolName, attempt: u64, at: Pull) -> bool {
        let mut pulls = self.pulls();
        let Some(known) = pulls.get_mut(name).filter(|(number, _)| *number == attempt) else { return false };
        known.1 = at;
        true
    }

    /// The image of a pool is here, or cannot be had.
    async fn has_pulled(&self, name: &PoolName, attempt: u64, uid: u64, pulled: Result<(), String>) {
        let _one = self.inner.changing.lock(name).await;
        let Some(kept) = self.get(name).filter(|kept| kept.uid == uid) else { return };
        if self.pulls().get(name).is_none_or(|(number, _)| *number != attempt) {
            return;
        }
        let done = match pulled {
            Ok(()) => self.made_anew(name, &kept).await.map_err(|error| error.to_string()),
            Err(why) => Err(why),
        };
        if let Err(why) = &done {
            tracing::warn!(pool = %name, "the image of a pool could not be pulled: {why}");
            if kept.broken.is_some() {
                let why = format!("its image cannot be pulled: {why}");
                if let Ok(spec) = kept.object.to_spec(PathBuf::from("/nowhere"), &anything(&kept.object)) {
                    // It only fails where nobody can ask any more.
                    let _ = self.inner.node.announce(spec, why.clone()).await;
                }
                self.keep(name.clone(), Kept { broken: Some(why), ..kept });
            }
        }
        self.is_at(name, attempt, done.map_or_else(Pull::Failed, |()| Pull::Done));
    }

    /// With the image that its reference means by now.
    async fn made_anew(&self, name: &PoolName, kept: &Kept) -> Result<(), PoolsError> {
        let (object, made) = self.made(kept.object.clone()).await?;
        let (spec, face) = made?;
        if kept.broken.is_none() && self.is_made_of(name, &spec) {
            return Ok(());
        }
        self.inner.node.apply(spec).await?;
        self.inner.settled.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        self.keep(name.clone(), Kept { object, face: Arc::new(face), broken: None, ..kept.clone() });
        Ok(())
    }

    /// Whether the pool is made of the image that its name means now.
    fn is_made_of(&self, name: &PoolName, spec: &PoolSpec) -> bool {
        self.inner.node.spec(name).is_ok_and(|now| now.rootfs == spec.rootfs)
    }

    /// Removes a pool that was applied, and ends its sessions; where it was applied over a default one, that comes back, and they stay.
    ///
    /// # Errors
    /// `NoPool`; `Forbidden` for one of the configuration, or one that a server without a file has.
    pub async fn remove(&self, name: &PoolName) -> Result<(), PoolsError> {
        let (pools, name) = (self.clone(), name.clone());
        whole(async move { pools.removed(&name).await }).await
    }

    async fn removed(&self, name: &PoolName) -> Result<(), PoolsError> {
        let _one = self.inner.changing.lock(name).await;
        match self.get(name).map(|kept| kept.origin) {
            None => return Err(NodeError::NoPool(name.to_string()).into()),
            Some(Origin::File) => return Err(PoolsError::Forbidden(of_file(name))),
            Some(Origin::Default) => {
                let why = format!(
                    "{name} is a pool that a server without a configuration file has: start it with one to be without it"
                );
                return Err(PoolsError::Forbidden(why));
            }
            Some(Origin::Applied) => {}
        }
        self.write(name, None).await?;
        self.pulls().remove(name);
        if let Some((kept, spec)) = self.inner.defaults.get(name) {
            self.inner.node.apply(spec.clone()).await?;
            self.keep(name.clone(), kept.clone());
            return Ok(());
        }
        self.inner.settled.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        self.inner.kept.write().unwrap_or_else(PoisonError::into_inner).remove(name);
        Ok(self.inner.node.remove(name).await?)
    }

    /// Writes what is kept of a pool, and waits until it is written.
    async fn write(&self, name: &PoolName, kept: Option<&Kept>) -> Result<(), PoolsError> {
        let Some(store) = &self.inner.store else { return Ok(()) };
        if let Some(why) = store.trouble() {
            return Err(NodeError::Unavailable(why).into());
        }
        let text = kept.map(|kept| {
            let created = kept.created.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            let Kept { generation, uid, ref object, .. } = *kept;
            let written = Written { generation, uid, created, object: object.clone() };
            // Plain data: this cannot fail.
            serde_json::to_string(&written).unwrap_or_default()
        });
        store.pool(name, text);
        let written = tokio::time::timeout(WRITTEN, store.written()).await;
        written.map_err(|_| NodeError::Unavailable("the change cannot be written".to_owned()).into())
    }
}

fn conflict(field: Option<&str>, why: &str) -> String {
    field.map_or_else(|| why.to_owned(), |field| format!("{field}: {why}"))
}

/// Goes through with a change also when its caller does not wait for it, so that nothing is left half done.
async fn whole<T: Send + 'static>(
    change: impl Future<Output = Result<T, PoolsError>> + Send + 'static,
) -> Result<T, PoolsError> {
    let stopping = || NodeError::Unavailable("the server is stopping".to_owned());
    // An error is a panic, whose message has been printed, or the server's end.
    tokio::spawn(change).await.unwrap_or_else(|_| Err(stopping().into()))
}

fn of_file(name: &PoolName) -> String {
    format!("{name} is a pool of the configuration file: change it there, and start the server again")
}
