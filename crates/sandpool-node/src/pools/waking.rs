//! Sessions on their way back from the disk: verified first, then put into a sandbox, and gone from the disk before anybody has an answer.

use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sandpool_core::ids::{SandboxId, SessionKey, SnapshotId, TenantName};
use sandpool_driver::{Change, DriverError, GoneReason, Phase, Stream};
use sandpool_store::snapshots::{Held, Manifest, Reading};
use sandpool_wire::agent::{Call, MAX_CHUNK, Refusal};
use tokio::io::AsyncWriteExt;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};
use tokio::time::Instant;

use super::connecting::Coming;
use super::suspending::{FILES, MACHINE, ROOTS, keeps_of, of_disk, on_disk, time};
use super::{Found, PoolState};
use crate::api::*;
use crate::metrics::Kept;
use crate::owner::OwnerRecord;
use crate::session::Session;

/// Pieces that wait for whoever takes them.
const PIECES: usize = 4;

/// Bytes of a piece of files: as much as an agent takes.
const PIECE: usize = MAX_CHUNK / 2;

/// Bytes of a machine that wait for its driver.
const PIPE: usize = 1 << 20;

/// Where a session comes from.
pub(super) struct Source {
    held: Held,
    manifest: Arc<Manifest>,
    payer: TenantName,
}

impl Source {
    pub(super) fn keeps(&self) -> Keeps {
        keeps_of(&self.manifest)
    }

    /// Against whose quota it counts.
    pub(super) fn payer(&self) -> &TenantName {
        &self.payer
    }

    pub(super) fn found(&self) -> Found {
        Found::Woken(self.keeps())
    }
}

impl PoolState {
    /// The session is suspended, and this is where it is.
    pub(super) fn away(&self, key: &SessionKey) -> Result<Option<Source>, NodeError> {
        let Some(held) = self.snapshots.as_ref().and_then(|snapshots| snapshots.suspended(&self.name, key)) else {
            return Ok(None);
        };
        let manifest = held.manifest.clone().map_err(|error| of_disk(&key.identifier, error))?;
        let payer = TenantName::parse(&manifest.payer).unwrap_or_default();
        Ok(Some(Source { held, manifest, payer }))
    }

    /// Puts a session into a sandbox. When it has failed the session is on disk as it was.
    pub(super) async fn wake(
        self: &Arc<Self>,
        sandbox: SandboxId,
        record: OwnerRecord,
        source: Source,
    ) -> Result<Arc<Session>, NodeError> {
        let woken = self.wake_patiently(sandbox, record, &source).await;
        match &woken {
            Ok(session) => {
                self.counts.kept(Kept::Resumed);
                if let Some(journal) = &session.journal {
                    let detail = format!("snapshot:{} keeps:{}", source.held.id, source.manifest.keeps);
                    journal.store.did(sandbox, "", "session.resumed", detail);
                }
                tracing::info!(pool = %self.name, session = %session.key, %sandbox, "a session is resumed");
            }
            Err(error) => {
                self.counts.kept(Kept::NotResumed);
                tracing::warn!(pool = %self.name, session = %source.manifest.identifier, "it is not resumed: {error}");
            }
        }
        woken
    }

    async fn wake_patiently(
        self: &Arc<Self>,
        sandbox: SandboxId,
        record: OwnerRecord,
        source: &Source,
    ) -> Result<Arc<Session>, NodeError> {
        let identifier = record.identifier.clone();
        let unusable = |why: String| NodeError::SnapshotUnusable { identifier: identifier.clone(), why };
        let manifest = &source.manifest;
        self.is_as_it_was(manifest).map_err(unusable)?;
        let reading = {
            let (snapshots, held) = (self.snapshots()?.clone(), source.held.clone());
            Arc::new(on_disk(&identifier, move || snapshots.verify(&held)).await?)
        };
        let narrowed: Option<EgressPolicy> =
            manifest.narrowed.clone().map(serde_json::from_value).transpose().map_err(|error| {
                NodeError::SnapshotDamaged {
                    identifier: identifier.clone(),
                    why: format!("what it may reach cannot be read: {error}"),
                }
            })?;
        let spec = self.spec();
        // A pool that reaches nothing any more has nothing to take away.
        let narrowed = narrowed.filter(|_| spec.egress.is_some());
        let mut given = Given { env: manifest.env.clone(), secrets: Vec::new() };
        given.env.retain(|(name, _)| spec.env.iter().all(|(other, _)| other != name));
        given.check(&spec).map_err(|(field, why)| unusable(format!("{field}: {why}")))?;
        let given = Arc::new(given);
        // The time that it was suspended is not its own.
        let record = OwnerRecord {
            created: time(manifest.created_ms),
            began: self.clock.monotonic().checked_sub(Duration::from_millis(manifest.alive_ms)),
            subject: manifest.owner.clone(),
            ..record
        };
        // Younger than the host: it is told by the other clock, as far as that goes.
        let record = match record.began {
            Some(_) => record,
            None => OwnerRecord { created: SystemTime::now() - Duration::from_millis(manifest.alive_ms), ..record },
        };
        let session = match source.keeps() {
            Keeps::Files => {
                if let Some(policy) = &narrowed {
                    // Before anything of it runs.
                    let done = self.driver.0.narrow(sandbox, Some(policy)).await;
                    done.map_err(|error| refused(error, &unusable))?;
                }
                let session = self.connect(sandbox, record, Coming::Fresh(given)).await?;
                unpack(&session, &reading).await.map_err(|error| match error {
                    NodeError::NoSpace => unusable("its files do not fit any more".to_owned()),
                    error => error,
                })?;
                session
            }
            Keeps::Machine => {
                let closed = |_| NodeError::Unavailable("the server is stopping".to_owned());
                let _one = self.loads.acquire().await.map_err(closed)?;
                let watch = self.driver.0.watch();
                let stream = machine(&reading);
                let loaded = self.driver.0.load(sandbox, &self.name, stream, narrowed.as_ref()).await;
                loaded.map_err(|error| refused(error, &unusable))?;
                self.until_ready(sandbox, watch).await?;
                self.connect(sandbox, record, Coming::Machine(given)).await?
            }
        };
        // From here on the sandbox is the truth; and nobody has had an answer from it.
        let (snapshots, id) = (self.snapshots()?.clone(), source.held.id);
        on_disk(&identifier, move || snapshots.retire(id)).await.map_err(|error| match error {
            NodeError::NoSnapshot(_) => NodeError::NoSession(identifier.clone()),
            error => error,
        })?;
        // There is one at most, and it is this session's first.
        let _ = session.parent.set(manifest.parent.as_deref().and_then(SnapshotId::parse).unwrap_or(source.held.id));
        *session.resumed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(source.keeps());
        Ok(session)
    }

    /// Whether a sandbox of the pool as it is now is what the session had; says what is not.
    fn is_as_it_was(&self, manifest: &Manifest) -> Result<(), String> {
        let now = self.made_of();
        let names: std::collections::BTreeSet<&String> = now.keys().chain(manifest.made_of.keys()).collect();
        for name in names {
            let (was, is) = (manifest.made_of.get(name), now.get(name));
            if was != is {
                let word = |value: Option<&String>| value.map_or("nothing", String::as_str).to_owned();
                return Err(format!("{name} of its pool was {}, and is {} now", word(was), word(is)));
            }
        }
        if self.driver.0.keeps(&self.name) != keeps_of(manifest) {
            return Err(format!("{} was kept of it, which cannot be put back here", manifest.keeps));
        }
        Ok(())
    }

    /// Waits until a sandbox that is loaded is ready.
    async fn until_ready(&self, sandbox: SandboxId, mut watch: broadcast::Receiver<Change>) -> Result<(), NodeError> {
        let deadline = Instant::now() + crate::node::boot_limit(&self.spec());
        let gone = |why: String| NodeError::Unavailable(format!("its machine did not come back: {why}"));
        loop {
            let heard = tokio::time::timeout_at(deadline, watch.recv()).await;
            match heard.map_err(|_| gone("it was not ready in time".to_owned()))? {
                Ok(Change::Upsert(seen)) if seen.id == sandbox && seen.phase == Phase::Ready => return Ok(()),
                Ok(Change::Gone { id, reason }) if id == sandbox => {
                    return Err(gone(match reason {
                        GoneReason::BootFailed(why) | GoneReason::Died(why) => why,
                        GoneReason::OutOfMemory => "its memory was used up".to_owned(),
                        GoneReason::Destroyed => "it was destroyed".to_owned(),
                    }));
                }
                Ok(_) => {}
                Err(RecvError::Closed) => return Err(gone("nothing is heard of it".to_owned())),
                Err(RecvError::Lagged(_)) => {
                    let listed = self.driver.0.list().await.map_err(|error| gone(error.to_string()))?;
                    match listed.iter().find(|seen| seen.id == sandbox).map(|seen| seen.phase) {
                        Some(Phase::Ready) => return Ok(()),
                        Some(Phase::Booting) => {}
                        _ => return Err(gone("it is gone".to_owned())),
                    }
                }
            }
        }
    }
}

fn refused(error: DriverError, unusable: &dyn Fn(String) -> NodeError) -> NodeError {
    match error {
        DriverError::Invalid(why) => unusable(why),
        error => NodeError::Unavailable(error.to_string()),
    }
}

/// A file's pieces, read where the disk may be waited for. A piece that cannot be read is the last, and an error.
fn pieces(reading: &Arc<Reading>, name: &'static str) -> mpsc::Receiver<std::io::Result<Vec<u8>>> {
    let (sender, pieces) = mpsc::channel(PIECES);
    let reading = Arc::clone(reading);
    tokio::task::spawn_blocking(move || {
        let mut file = match reading.file(name) {
            Ok(file) => file,
            Err(error) => return drop(sender.blocking_send(Err(std::io::Error::other(error)))),
        };
        loop {
            let mut bytes = Vec::with_capacity(PIECE);
            let read = (&mut file).take(u64::try_from(PIECE).unwrap_or(u64::MAX)).read_to_end(&mut bytes);
            let is_over = bytes.is_empty() || read.is_err();
            if read.as_ref().is_ok_and(|count| *count == 0) {
                return;
            }
            // Whoever does not take it does not want it.
            if sender.blocking_send(read.map(|_| bytes)).is_err() || is_over {
                return;
            }
        }
    });
    pieces
}

/// Gives a session its files again.
async fn unpack(session: &Session, reading: &Arc<Reading>) -> Result<(), NodeError> {
    let refused = |refusal: Refusal| match refusal {
        Refusal::NoSpace => NodeError::NoSpace,
        other => NodeError::Unavailable(format!("its files could not be put back: {other}")),
    };
    let roots = ROOTS.map(str::to_owned).to_vec();
    session.link.call(Call::Unpack { roots }).await?.map_err(refused)?;
    let mut pieces = pieces(reading, FILES);
    while let Some(piece) = pieces.recv().await {
        let data = piece.map_err(|error| NodeError::Unavailable(error.to_string()))?;
        session.link.call(Call::UnpackNext { data }).await?.map_err(refused)?;
    }
    session.link.call(Call::UnpackEnd).await?.map_err(refused)?;
    Ok(())
}

/// A machine's bytes, as its driver takes them. Where they cannot be read they end early, which the driver sees.
fn machine(reading: &Arc<Reading>) -> Stream {
    let (here, mut there) = tokio::io::duplex(PIPE);
    let mut pieces = pieces(reading, MACHINE);
    tokio::spawn(async move {
        while let Some(Ok(bytes)) = pieces.recv().await {
            if there.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
    Box::new(here)
}
