//! Snapshots of sessions, on disk: one directory each, whole or not there.
//!
//! ```text
//! <state>/snapshots/suspended-<id>-<key>/  manifest.json        what it is of, and each file's length and SHA-256; then a line with its own
//!                                          files | machine      the bytes
//!                   partial-...            being written: removed at the next start
//!                   used-...               over: removed, now or at the next start
//! ```
//!
//! Written in this order: directory, files, each synced, manifest, synced, directory synced, renamed, parent synced. So there is the snapshot
//! or there is none, whenever the power is cut ([`cut`] tries all of it). The directories are the truth about who is suspended; the
//! database knows what is told of it. In a directory's name is a hash of whose it is, so that nobody's session is forgotten because a manifest
//! cannot be read. All of it waits for the disk: for threads that may.

pub mod cut;
mod disk;

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sandpool_core::ids::{PoolName, SessionKey, SnapshotId, TenantName};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use disk::{Disk, HostDisk, Written};

/// The version of what this program writes.
pub const FORMAT: u32 = 1;

/// The largest manifest that is read, in bytes.
const MAX_MANIFEST: u64 = 1 << 20;

/// The manifest's name.
const MANIFEST: &str = "manifest.json";

/// Bytes that are read at a time.
const READ: usize = 256 * 1024;

/// What a snapshot is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Its session is nowhere else.
    Suspended,
    /// A copy: its session went on.
    Snapshot,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Suspended => "suspended",
            Self::Snapshot => "snapshot",
        }
    }
}

/// What is known of a snapshot, as it is written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// Its id.
    pub id: String,
    /// What it is for.
    pub kind: Kind,
    /// What its maker calls it.
    pub name: Option<String>,
    /// The session's pool.
    pub pool: String,
    /// In whose room the session is.
    pub tenant: String,
    /// Its name there.
    pub identifier: String,
    /// Against whose quota it counts.
    pub payer: String,
    /// The subject of the token that made the session.
    pub owner: String,
    /// The sandbox that it had.
    pub sandbox: String,
    /// When the session was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// How long it had been alive, without what it was suspended.
    pub alive_ms: u64,
    /// When this was taken, in milliseconds since 1970.
    pub taken_ms: u64,
    /// The snapshot that its session came from.
    pub parent: Option<String>,
    /// The wall that it had, as sessions report it.
    pub level: String,
    /// What is kept: `files`, or `machine`.
    pub keeps: String,
    /// What a sandbox must be made of that it becomes: another value of one of these is another sandbox.
    pub made_of: BTreeMap<String, String>,
    /// What its session may reach of what its pool may, in the words of its API.
    pub narrowed: Option<serde_json::Value>,
    /// Variables that its session was given, over those of its pool.
    pub env: Vec<(String, String)>,
    /// The files beside this one.
    pub files: Vec<Part>,
}

impl Manifest {
    /// Bytes of its files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|part| part.size).sum()
    }
}

/// A file of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// Its length in bytes.
    pub size: u64,
    /// Its SHA-256, in hexadecimal digits.
    pub sha256: String,
}

/// Why something was not done with a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// There is none.
    #[error("there is no snapshot {0}")]
    Missing(String),
    /// It is not what was written.
    #[error("the snapshot {id} is damaged: its file {file} {why}")]
    Damaged {
        /// Which.
        id: String,
        /// Which of its files.
        file: String,
        /// What is wrong.
        why: String,
    },
    /// It would be more than there may be.
    #[error("snapshots of {whose} may have {limit} bytes, and would have more")]
    TooMuch {
        /// All, or one tenant.
        whose: String,
        /// How much.
        limit: u64,
    },
    /// The disk is full.
    #[error("the host's disk has no room for the snapshot")]
    NoSpace,
    /// The disk does not do what it should.
    #[error("the snapshot cannot be written or read: {0}")]
    Failed(String),
}

fn failed(error: &io::Error) -> SnapshotError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => SnapshotError::NoSpace,
        _ => SnapshotError::Failed(error.to_string()),
    }
}

/// What a session is known by on disk: 16 bytes of a hash of its pool and its key.
type KeyHash = [u8; 16];

fn key_hash(pool: &PoolName, key: &SessionKey) -> KeyHash {
    let text = format!("{pool}\0{}\0{}", key.tenant, key.identifier);
    let hash = Sha256::digest(text.as_bytes());
    std::array::from_fn(|at| hash[at])
}

/// A snapshot that is there. Its manifest may be unreadable.
#[derive(Clone, Debug)]
pub struct Held {
    /// Its id.
    pub id: SnapshotId,
    /// What is known of it, or why nothing is.
    pub manifest: Result<Arc<Manifest>, SnapshotError>,
    kind: Kind,
    key: KeyHash,
}

impl Held {
    fn directory(&self) -> String {
        format!("{}-{}-{}", self.kind.word(), self.id, hex::encode(self.key))
    }

    fn bytes(&self) -> u64 {
        self.manifest.as_ref().map_or(0, |manifest| manifest.bytes())
    }
}

/// How much there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of all snapshots.
    pub all: u64,
    /// Bytes of one tenant's.
    pub of_tenant: u64,
}

/// The snapshots of a server. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Snapshots {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    disk: Arc<dyn Disk>,
    bounds: Bounds,
    held: Mutex<Index>,
}

#[derive(Debug, Default)]
struct Index {
    all: HashMap<SnapshotId, Held>,
    suspended: HashMap<KeyHash, SnapshotId>,
    /// Bytes on their way, of each tenant.
    coming: HashMap<String, u64>,
}

impl Index {
    fn add(&mut self, held: Held) {
        if held.kind == Kind::Suspended {
            self.suspended.insert(held.key, held.id);
        }
        self.all.insert(held.id, held);
    }

    fn remove(&mut self, id: SnapshotId) -> Option<Held> {
        let held = self.all.remove(&id)?;
        if self.suspended.get(&held.key) == Some(&id) {
            self.suspended.remove(&held.key);
        }
        Some(held)
    }

    fn bytes(&self, payer: Option<&str>) -> u64 {
        let is_payers = |held: &&Held| {
            payer.is_none_or(|payer| held.manifest.as_ref().is_ok_and(|manifest| manifest.payer == payer))
        };
        let there: u64 = self.all.values().filter(is_payers).map(Held::bytes).sum();
        let coming = self.coming.iter().filter(|(of, _)| payer.is_none_or(|payer| payer == of.as_str()));
        there.saturating_add(coming.map(|(_, bytes)| *bytes).sum())
    }
}

impl Snapshots {
    /// Takes over what is in a directory, or makes it, and removes what is not whole or was used.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(root: &Path, disk: Arc<dyn Disk>, bounds: Bounds) -> io::Result<Self> {
        match disk.make_directory(root) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            // Or all that is put into it would go with its own name.
            _ => disk.sync_directory(root.parent().unwrap_or(Path::new("/")))?,
        }
        let mut index = Index::default();
        for name in disk.names(root)? {
            let path = root.join(&name);
            if name.starts_with("partial-") || name.starts_with("used-") {
                clear(&*disk, &path);
                continue;
            }
            let Some((kind, id, key)) = parse(&name) else {
                tracing::warn!("what is in {} is no snapshot, and stays", path.display());
                continue;
            };
            let manifest = read_manifest(&*disk, &path, id).and_then(|manifest| {
                let hash = whose(&manifest).map(|(pool, key)| key_hash(&pool, &key));
                let is_it = manifest.kind == kind && hash == Some(key) && manifest.id == id.to_string();
                if is_it { Ok(Arc::new(manifest)) } else { Err(damaged(id, MANIFEST, "is of another snapshot")) }
            });
            if let Err(error) = &manifest {
                tracing::error!("{error}; it is in {}", path.display());
            }
            let held = Held { id, manifest, kind, key };
            // Of two, which cannot be, the later one counts.
            let before = index.suspended.get(&key).and_then(|id| index.all.get(id)).filter(|_| kind == Kind::Suspended);
            let taken = |held: &Held| held.manifest.as_ref().map_or(0, |manifest| manifest.taken_ms);
            if before.is_some_and(|before| taken(before) > taken(&held)) {
                index.all.insert(id, held);
            } else {
                index.add(held);
            }
        }
        Ok(Self { inner: Arc::new(Inner { root: root.to_owned(), disk, bounds, held: Mutex::new(index) }) })
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.inner.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, held: &Held) -> PathBuf {
        self.inner.root.join(held.directory())
    }

    /// The snapshot that a session is, while it is suspended.
    #[must_use]
    pub fn suspended(&self, pool: &PoolName, key: &SessionKey) -> Option<Held> {
        let index = self.index();
        // As nearly always.
        if index.suspended.is_empty() {
            return None;
        }
        index.suspended.get(&key_hash(pool, key)).and_then(|id| index.all.get(id)).cloned()
    }

    /// All that is suspended of a pool, but for what cannot be read.
    #[must_use]
    pub fn suspended_of(&self, pool: &PoolName) -> Vec<Arc<Manifest>> {
        self.manifests(pool, Kind::Suspended)
    }

    /// All of a pool, suspended and copied.
    #[must_use]
    pub fn of_pool(&self, pool: &PoolName) -> Vec<SnapshotId> {
        let index = self.index();
        let is_its = |held: &&Held| held.manifest.as_ref().is_ok_and(|manifest| manifest.pool == pool.as_str());
        index.all.values().filter(is_its).map(|held| held.id).collect()
    }

    /// The copies of a session, the oldest first.
    #[must_use]
    pub fn copies(&self, pool: &PoolName, key: &SessionKey) -> Vec<Arc<Manifest>> {
        let mut copies = self.manifests(pool, Kind::Snapshot);
        copies.retain(|copy| copy.tenant == key.tenant.as_str() && copy.identifier == key.identifier.as_str());
        copies
    }

    fn manifests(&self, pool: &PoolName, kind: Kind) -> Vec<Arc<Manifest>> {
        let index = self.index();
        let of_kind = index.all.values().filter(|held| held.kind == kind);
        let readable = of_kind.filter_map(|held| held.manifest.as_ref().ok());
        let mut all: Vec<_> = readable.filter(|manifest| manifest.pool == pool.as_str()).cloned().collect();
        all.sort_by(|one, other| (one.taken_ms, &one.id).cmp(&(other.taken_ms, &other.id)));
        all
    }

    /// One of a session's copies, by its id or its name.
    #[must_use]
    pub fn copy(&self, pool: &PoolName, key: &SessionKey, which: &str) -> Option<Held> {
        let hash = key_hash(pool, key);
        let index = self.index();
        let of_it = || index.all.values().filter(|held| held.kind == Kind::Snapshot && held.key == hash);
        let by_id = SnapshotId::parse(which).and_then(|id| of_it().find(|held| held.id == id));
        let is_named =
            |held: &&Held| held.manifest.as_ref().is_ok_and(|manifest| manifest.name.as_deref() == Some(which));
        by_id.or_else(|| of_it().find(is_named)).cloned()
    }

    /// How many sessions of a pool are suspended, and bytes of all of its snapshots.
    #[must_use]
    pub fn counts(&self, pool: &PoolName) -> (usize, u64) {
        let index = self.index();
        let of_pool = |held: &&Held| held.manifest.as_ref().is_ok_and(|manifest| manifest.pool == pool.as_str());
        let bytes = index.all.values().filter(of_pool).map(Held::bytes).sum();
        let suspended = index.all.values().filter(of_pool).filter(|held| held.kind == Kind::Suspended).count();
        (suspended, bytes)
    }

    /// Begins to write one.
    ///
    /// # Errors
    /// `TooMuch` when there is no room for any, and those of the disk.
    pub fn begin(&self, payer: &TenantName) -> Result<Writing, SnapshotError> {
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|error| SnapshotError::Failed(error.to_string()))?;
        let id = SnapshotId::from_random(random);
        let path = self.inner.root.join(format!("partial-{id}"));
        let writing = Writing {
            snapshots: self.clone(),
            id,
            payer: payer.to_string(),
            path,
            parts: Vec::new(),
            open: None,
            bytes: 0,
            is_done: false,
        };
        writing.room(1)?;
        self.inner.disk.make_directory(&writing.path).map_err(|error| failed(&error))?;
        Ok(writing)
    }

    /// Reads all of a snapshot, and answers whether it is what was written; then its files can be read.
    ///
    /// # Errors
    /// `Damaged` names the file that is changed, missing, too short, too long, or too many.
    pub fn verify(&self, held: &Held) -> Result<Reading, SnapshotError> {
        let disk = &*self.inner.disk;
        let manifest = Arc::clone(held.manifest.as_ref().map_err(Clone::clone)?);
        let path = self.path(held);
        let names = disk.names(&path).map_err(|error| missing(held.id, &error))?;
        // It is on disk as it was, too.
        if read_manifest(disk, &path, held.id)? != *manifest {
            return Err(damaged(held.id, MANIFEST, "has changed"));
        }
        let is_known = |name: &String| name == MANIFEST || manifest.files.iter().any(|part| part.name == *name);
        if let Some(other) = names.iter().find(|name| !is_known(name)) {
            return Err(damaged(held.id, other, "does not belong to it"));
        }
        for part in &manifest.files {
            let wrong = |why: String| damaged(held.id, &part.name, &why);
            let opened = disk.open(&path.join(&part.name));
            let (mut file, length) = opened.map_err(|error| wrong(format!("cannot be opened: {error}")))?;
            if length != part.size {
                return Err(wrong(format!("has {length} bytes, and had {}", part.size)));
            }
            let mut hash = Sha256::new();
            let mut buffer = vec![0; READ];
            loop {
                match file.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(count) => hash.update(&buffer[..count]),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(wrong(format!("cannot be read: {error}"))),
                }
            }
            if hex::encode(hash.finalize()) != part.sha256 {
                return Err(wrong("has other bytes than were written".to_owned()));
            }
        }
        Ok(Reading { snapshots: self.clone(), held: held.clone(), manifest })
    }

    /// Nothing becomes of it any more: when this answers, no start finds it. Its bytes are removed then, or at the next start.
    ///
    /// # Errors
    /// `Missing`, and those of the disk: then it is there as it was, or only the next start knows whether it is.
    pub fn retire(&self, id: SnapshotId) -> Result<(), SnapshotError> {
        let Inner { root, disk, .. } = &*self.inner;
        let held = self.index().all.get(&id).cloned().ok_or_else(|| SnapshotError::Missing(id.to_string()))?;
        let used = root.join(format!("used-{id}"));
        let path = self.path(&held);
        disk.rename(&path, &used).map_err(|error| failed(&error))?;
        if let Err(error) = disk.sync_directory(root) {
            if disk.rename(&used, &path).is_err() {
                self.index().remove(id);
            }
            return Err(failed(&error));
        }
        self.index().remove(id);
        clear(&**disk, &used);
        Ok(())
    }
}

/// A snapshot that is being written. Dropped before its end there is none.
#[derive(Debug)]
pub struct Writing {
    snapshots: Snapshots,
    /// Its id.
    pub id: SnapshotId,
    payer: String,
    path: PathBuf,
    parts: Vec<Part>,
    open: Option<Open>,
    bytes: u64,
    is_done: bool,
}

struct Open {
    name: String,
    file: Box<dyn Written>,
    size: u64,
    hash: Sha256,
}

impl std::fmt::Debug for Open {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Open").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Writing {
    /// Begins a file.
    ///
    /// # Errors
    /// Those of the disk, here and below.
    pub fn file(&mut self, name: &str) -> Result<(), SnapshotError> {
        self.close()?;
        let file = self.snapshots.inner.disk.create(&self.path.join(name)).map_err(|error| failed(&error))?;
        self.open = Some(Open { name: name.to_owned(), file, size: 0, hash: Sha256::new() });
        Ok(())
    }

    /// Appends to the file that was begun.
    ///
    /// # Errors
    /// `TooMuch`, and as above.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        let more = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.room(more)?;
        let Some(open) = &mut self.open else { return Err(SnapshotError::Failed("no file was begun".to_owned())) };
        open.file.write(bytes).map_err(|error| failed(&error))?;
        open.hash.update(bytes);
        open.size += more;
        self.bytes += more;
        *self.snapshots.index().coming.entry(self.payer.clone()).or_default() += more;
        Ok(())
    }

    /// It is whole: when this answers, it is there whatever happens. What the manifest says of its files and its id is put right.
    ///
    /// # Errors
    /// As above: then it is not there, unless the disk fails at the very end.
    pub fn commit(mut self, mut manifest: Manifest) -> Result<Arc<Manifest>, SnapshotError> {
        self.close()?;
        let Inner { root, disk, .. } = &*self.snapshots.inner;
        manifest.format = FORMAT;
        manifest.id = self.id.to_string();
        manifest.files = std::mem::take(&mut self.parts);
        let whose = whose(&manifest).ok_or_else(|| SnapshotError::Failed("it is of no session".to_owned()))?;
        let key = key_hash(&whose.0, &whose.1);
        let bytes = encode(&manifest).map_err(|error| SnapshotError::Failed(error.to_string()))?;
        let result = (|| {
            let mut file = disk.create(&self.path.join(MANIFEST))?;
            file.write(&bytes)?;
            file.sync()?;
            disk.sync_directory(&self.path)
        })();
        result.map_err(|error| failed(&error))?;
        let manifest = Arc::new(manifest);
        let held = Held { id: self.id, manifest: Ok(Arc::clone(&manifest)), kind: manifest.kind, key };
        let path = root.join(held.directory());
        disk.rename(&self.path, &path).map_err(|error| failed(&error))?;
        if let Err(error) = disk.sync_directory(root) {
            // Nobody is promised anything: it is taken back. What cannot be, is whole, and a start will find it.
            self.is_done = disk.rename(&path, &self.path).is_err();
            return Err(failed(&error));
        }
        self.is_done = true;
        self.snapshots.index().add(held);
        Ok(manifest)
    }

    fn close(&mut self) -> Result<(), SnapshotError> {
        let Some(Open { name, mut file, size, hash }) = self.open.take() else { return Ok(()) };
        file.sync().map_err(|error| failed(&error))?;
        self.parts.push(Part { name, size, sha256: hex::encode(hash.finalize()) });
        Ok(())
    }

    fn room(&self, more: u64) -> Result<(), SnapshotError> {
        let Bounds { all, of_tenant } = self.snapshots.inner.bounds;
        let index = self.snapshots.index();
        let too_much = |whose: String, limit| Err(SnapshotError::TooMuch { whose, limit });
        if index.bytes(None).saturating_add(more) > all {
            return too_much("all tenants".to_owned(), all);
        }
        if index.bytes(Some(&self.payer)).saturating_add(more) > of_tenant {
            return too_much(format!("tenant {}", self.payer), of_tenant);
        }
        Ok(())
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        {
            let mut index = self.snapshots.index();
            if let Some(coming) = index.coming.get_mut(&self.payer) {
                *coming = coming.saturating_sub(self.bytes);
                if *coming == 0 {
                    index.coming.remove(&self.payer);
                }
            }
        }
        if !self.is_done {
            clear(&*self.snapshots.inner.disk, &self.path);
        }
    }
}

/// A snapshot that was verified.
#[derive(Debug)]
pub struct Reading {
    snapshots: Snapshots,
    held: Held,
    /// What it is.
    pub manifest: Arc<Manifest>,
}

impl Reading {
    /// One of its files, from its beginning.
    ///
    /// # Errors
    /// `Damaged` when it cannot be opened any more.
    pub fn file(&self, name: &str) -> Result<Box<dyn Read + Send>, SnapshotError> {
        let path = self.snapshots.path(&self.held).join(name);
        let opened = self.snapshots.inner.disk.open(&path);
        opened.map(|(file, _)| file).map_err(|error| damaged(self.held.id, name, &error.to_string()))
    }
}

fn damaged(id: SnapshotId, file: &str, why: &str) -> SnapshotError {
    SnapshotError::Damaged { id: id.to_string(), file: file.chars().take(100).collect(), why: why.to_owned() }
}

fn missing(id: SnapshotId, error: &io::Error) -> SnapshotError {
    damaged(id, MANIFEST, &format!("cannot be found: {error}"))
}

/// Whose session a manifest is of.
fn whose(manifest: &Manifest) -> Option<(PoolName, SessionKey)> {
    let pool = PoolName::parse(&manifest.pool).ok()?;
    let tenant = TenantName::parse(&manifest.tenant).ok()?;
    let identifier = sandpool_core::ids::Identifier::parse(&manifest.identifier).ok()?;
    Some((pool, SessionKey::new(tenant, identifier)))
}

fn parse(directory: &str) -> Option<(Kind, SnapshotId, KeyHash)> {
    let (kind, rest) = directory.split_once('-')?;
    let kind = [Kind::Suspended, Kind::Snapshot].into_iter().find(|one| one.word() == kind)?;
    let (id, key) = rest.rsplit_once('-')?;
    Some((kind, SnapshotId::parse(id)?, hex::decode(key).ok()?.try_into().ok()?))
}

/// A line that says what it is, and a line with its hash.
fn encode(manifest: &Manifest) -> serde_json::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(manifest)?;
    let digest = hex::encode(Sha256::digest(&line));
    line.extend(format!("\nsha256:{digest}\n").into_bytes());
    Ok(line)
}

fn read_manifest(disk: &dyn Disk, directory: &Path, id: SnapshotId) -> Result<Manifest, SnapshotError> {
    let wrong = |why: &str| damaged(id, MANIFEST, why);
    let (file, length) = disk.open(&directory.join(MANIFEST)).map_err(|error| missing(id, &error))?;
    if length > MAX_MANIFEST {
        return Err(wrong("is too long"));
    }
    let mut bytes = Vec::new();
    let read = file.take(MAX_MANIFEST).read_to_end(&mut bytes);
    read.map_err(|error| wrong(&format!("cannot be read: {error}")))?;
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let digest = format!("\nsha256:{}\n", hex::encode(Sha256::digest(line)));
    if bytes[line.len()..] != *digest.as_bytes() {
        return Err(wrong("has other bytes than were written"));
    }
    let manifest: Manifest = serde_json::from_slice(line).map_err(|error| wrong(&format!("is not ours: {error}")))?;
    if manifest.format != FORMAT {
        return Err(wrong(&format!("has format {}, and this program knows {FORMAT}", manifest.format)));
    }
    Ok(manifest)
}

/// Removes a directory with its files, as far as that goes: what stays is removed at the next start.
fn clear(disk: &dyn Disk, path: &Path) {
    for name in disk.names(path).unwrap_or_default() {
        let _ = disk.remove_file(&path.join(name));
    }
    let _ = disk.remove_directory(path);
}

#[cfg(test)]
mod tests;
