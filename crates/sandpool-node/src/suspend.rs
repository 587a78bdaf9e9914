//! Sessions on disk: suspended, resumed, copied, forked. What is done is in `pools::suspending` and `pools::waking`.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sandpool_core::ids::{PoolName, SessionKey, TerminalName};
use sandpool_store::snapshots::Kind;

use crate::api::*;
use crate::metrics::Kept;
use crate::node::{Node, held};
use crate::pools::{PoolState, Whom, on_disk};

/// Copies of one session, at most.
const COPIES: usize = 64;

impl Node {
    /// Puts a session on the host's disk, and ends its sandbox. What is kept of it its level says ([`Keeps`]). The next use brings it back.
    /// One that is suspended stays so. Nothing may go on in it, unless `force` ends that.
    ///
    /// # Errors
    /// `NoPool`, `NoSession`, `SessionLost`; `Busy`; `NotSuspendable`, `SnapshotsFull`, `Unsupported`, `Unavailable`: then it goes on as it was.
    pub async fn suspend(
        &self,
        pool: &PoolName,
        key: &SessionKey,
        force: bool,
        caller: &Caller,
    ) -> Result<SessionInfo, NodeError> {
        let pool = self.state(pool)?;
        pool.suspend(&pool.scoped(key), force, &caller.subject).await
    }

    /// Brings a suspended session back, as every use does. One that is there stays.
    ///
    /// # Errors
    /// `SnapshotDamaged` and `SnapshotUnusable`, and then it stays suspended; and those of [`Node::open`].
    pub async fn resume(&self, pool: &PoolName, key: &SessionKey, caller: &Caller) -> Result<Opened, NodeError> {
        self.open(pool, key, Open::Existing, caller).await
    }

    /// Copies a session to the host's disk. It stands still meanwhile, and goes on. One that is suspended is brought back first.
    ///
    /// # Errors
    /// `Invalid` for a name that is none, or is taken; `TooMany`; `Busy`, `NotSuspendable`, `SnapshotsFull`, and those of [`Node::open`].
    pub async fn snapshot(
        &self,
        pool: &PoolName,
        key: &SessionKey,
        name: Option<String>,
        caller: &Caller,
    ) -> Result<SnapshotInfo, NodeError> {
        let pool = self.state(pool)?;
        let key = pool.scoped(key).into_owned();
        if let Some(name) = &name {
            TerminalName::parse(name).map_err(|_| {
                let why = "a snapshot's name has 1 to 64 characters, of those that a session's identifier may have";
                NodeError::Invalid(why.to_owned())
            })?;
            if pool.snapshots()?.copy(&pool.name, &key, name).is_some() {
                return Err(NodeError::Invalid(format!("there is a snapshot {name} already")));
            }
        }
        if pool.snapshots()?.copies(&pool.name, &key).len() >= COPIES {
            return Err(NodeError::TooMany(format!("{COPIES} snapshots of this session are there already")));
        }
        let (owner, of) = (caller.subject.clone(), key.clone());
        let now = pool.now();
        let manifest = pool
            .copy(&key, move |session| Whom {
                kind: Kind::Snapshot,
                name,
                key: of,
                payer: session.tenant.name.clone(),
                owner,
                created: session.created,
                alive: now.saturating_sub(session.activity.born()),
            })
            .await?;
        pool.counts.kept(Kept::Copied);
        let nonsense = || NodeError::Unavailable("a snapshot is of no session".to_owned());
        pool.describe_copy(&manifest).ok_or_else(nonsense)
    }

    /// The copies of a session, the oldest first. They are there also when it has ended.
    ///
    /// # Errors
    /// `NoPool`, `Unsupported`.
    pub fn snapshots(&self, pool: &PoolName, key: &SessionKey) -> Result<Vec<SnapshotInfo>, NodeError> {
        let pool = self.state(pool)?;
        let copies = pool.snapshots()?.copies(&pool.name, &pool.scoped(key));
        Ok(copies.iter().filter_map(|copy| pool.describe_copy(copy)).collect())
    }

    /// Removes a copy of a session, by its id or its name.
    ///
    /// # Errors
    /// `NoPool`, `NoSnapshot`, `Unsupported`.
    pub async fn delete_snapshot(
        &self,
        pool: &PoolName,
        key: &SessionKey,
        which: &str,
        caller: &Caller,
    ) -> Result<(), NodeError> {
        let pool = self.state(pool)?;
        let key = pool.scoped(key);
        let snapshots = pool.snapshots()?.clone();
        let copy = snapshots.copy(&pool.name, &key, which).ok_or_else(|| no_snapshot(which))?;
        on_disk(&key.identifier, move || snapshots.retire(copy.id)).await?;
        if let Ok(manifest) = &copy.manifest {
            pool.audit("snapshot.removed", manifest, &caller.subject);
        }
        Ok(())
    }

    /// Makes a session of another: of how it is now, or of a copy of it, by its id or its name. It is its own from then on.
    ///
    /// # Errors
    /// `SessionExists`, `NoSnapshot`, and those of [`Node::snapshot`] and [`Node::resume`]: then there is none.
    pub async fn fork(
        &self,
        pool: &PoolName,
        key: &SessionKey,
        from: Option<&str>,
        new: &SessionKey,
        caller: &Caller,
    ) -> Result<Opened, NodeError> {
        let began = tokio::time::Instant::now();
        let pool = self.state(pool)?;
        let (key, into) = (pool.scoped(key).into_owned(), pool.scoped(new).into_owned());
        match pool.info(&into) {
            Err(NodeError::NoSession(_)) => {}
            Err(error @ NodeError::SessionLost { .. }) => return Err(error),
            _ => return Err(NodeError::SessionExists(into.identifier)),
        }
        let whom = Whom {
            kind: Kind::Suspended,
            name: None,
            key: into.clone(),
            payer: new.tenant.clone(),
            owner: caller.subject.clone(),
            created: SystemTime::now(),
            alive: Duration::ZERO,
        };
        // On disk it is a suspended session; from there it comes as every other: so there is never a half of it.
        let manifest = pool.fork_on_disk(&key, from, whom).await?;
        let opened = self.open(&pool.name, new, Open::Existing, caller).await;
        match opened {
            Ok(mut opened) => {
                pool.counts.kept(Kept::Forked);
                (opened.new, opened.took) = (true, began.elapsed());
                Ok(opened)
            }
            Err(error) => {
                // It was to be used now, or not at all.
                let snapshots = pool.snapshots()?.clone();
                if let Some(held) = snapshots.suspended(&pool.name, &into).filter(|it| it.id.to_string() == manifest) {
                    on_disk(&into.identifier, move || snapshots.retire(held.id)).await?;
                }
                Err(held(&pool, error).await)
            }
        }
    }
}

impl PoolState {
    /// Writes what a fork begins with, and answers its id.
    async fn fork_on_disk(
        self: &Arc<Self>,
        key: &SessionKey,
        from: Option<&str>,
        whom: Whom,
    ) -> Result<String, NodeError> {
        let snapshots = self.snapshots()?.clone();
        let source = match from {
            Some(which) => Some(snapshots.copy(&self.name, key, which).ok_or_else(|| no_snapshot(which))?),
            None => snapshots.suspended(&self.name, key),
        };
        let Some(source) = source else {
            return Ok(self.copy(key, move |_| whom).await?.id.clone());
        };
        let verify = move || snapshots.verify(&source);
        let reading = on_disk(&key.identifier, verify).await?;
        Ok(self.copy_on_disk(reading, whom).await?.id.clone())
    }
}

fn no_snapshot(which: &str) -> NodeError {
    NodeError::NoSnapshot(which.chars().filter(|letter| !letter.is_control()).take(100).collect())
}
