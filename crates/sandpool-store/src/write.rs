//! The one thread that writes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant, SystemTime};

use rusqlite::{Connection, ErrorCode, Transaction, params};
use sandpool_core::ids::PoolName;

use crate::{Health, KEPT_AUDIT, KEPT_EXECUTIONS, KEPT_LOST, Place, Write, milliseconds};

/// How long what comes is gathered before it is written, unless somebody waits for it.
const GATHER: Duration = Duration::from_millis(20);

/// The pause after a failure to write.
const AGAIN: Duration = Duration::from_millis(500);

/// How often what is old is removed.
const PRUNE: Duration = Duration::from_secs(600);

/// Writes that are done in one transaction, at most.
const BATCH: usize = 4_096;

pub(crate) struct Writer {
    connection: Connection,
    writes: Receiver<Write>,
    health: Arc<Health>,
    path: PathBuf,
    pruned: Option<Instant>,
}

/// What came of a batch.
struct Done {
    is_last: bool,
}

impl Writer {
    pub(crate) fn new(connection: Connection, writes: Receiver<Write>, health: Arc<Health>, path: &Path) -> Self {
        Self { connection, writes, health, path: path.to_owned(), pruned: None }
    }

    /// Until it is closed.
    pub(crate) fn run(mut self) {
        let mut batch = Vec::new();
        loop {
            let Ok(first) = self.writes.recv() else { return };
            let is_awaited = matches!(first, Write::Ack(_) | Write::Close);
            batch.push(first);
            if !is_awaited {
                // Whoever gives something now wakes nobody, unless it waits for it.
                std::thread::park_timeout(GATHER);
            }
            batch.extend(self.writes.try_iter().take(BATCH));
            let is_last = batch.iter().any(|write| matches!(write, Write::Close));
            if self.write_patiently(&batch, is_last).is_last {
                return;
            }
            for write in batch.drain(..) {
                if let Write::Ack(told) = write {
                    // Whoever asked may have gone.
                    let _ = told.send(());
                }
            }
        }
    }

    /// Writes it as soon as it can be written; not for ever when nothing follows.
    fn write_patiently(&mut self, batch: &[Write], is_last: bool) -> Done {
        loop {
            match self.write(batch) {
                Ok(()) => {
                    if self.health.is_bad.load(Ordering::Acquire) {
                        tracing::info!("the state can be written again");
                    }
                    self.health.set(None);
                    return Done { is_last };
                }
                Err(error) => {
                    let why = match error.sqlite_error_code() {
                        Some(ErrorCode::DiskFull) => {
                            format!(
                                "no space is left for {}: free some, on its disk or under its bound",
                                self.path.display()
                            )
                        }
                        _ => format!("{} cannot be written: {error}", self.path.display()),
                    };
                    if !self.health.is_bad.load(Ordering::Acquire) {
                        tracing::error!("{why}; new sessions and executions are refused until it can");
                    }
                    self.health.set(Some(&why));
                    if self.health.is_closing.load(Ordering::Acquire) {
                        return Done { is_last: true };
                    }
                    std::thread::sleep(AGAIN);
                    // What is old may be what is in the way.
                    self.pruned = None;
                }
            }
        }
    }

    fn write(&mut self, batch: &[Write]) -> rusqlite::Result<()> {
        let prunes = self.pruned.is_none_or(|at| at.elapsed() >= PRUNE);
        let change = self.connection.transaction()?;
        if prunes {
            prune(&change, SystemTime::now())?;
        }
        let mut grown = BTreeSet::new();
        for write in batch {
            apply(&change, write, &mut grown)?;
        }
        for sandbox in grown {
            let trim = "DELETE FROM executions WHERE sandbox = ?1 AND ended = 1 AND number <= (
                SELECT number FROM executions WHERE sandbox = ?1 AND ended = 1 ORDER BY number DESC LIMIT 1 OFFSET ?2)";
            change.prepare_cached(trim)?.execute(params![sandbox, KEPT_EXECUTIONS])?;
        }
        change.commit()?;
        if prunes {
            self.pruned = Some(Instant::now());
        }
        Ok(())
    }
}

fn apply(change: &Transaction<'_>, write: &Write, grown: &mut BTreeSet<[u8; 16]>) -> rusqlite::Result<()> {
    match write {
        Write::Opened(place) => {
            let Place { pool, key, payer, sandbox, owner, created } = &**place;
            let insert = "INSERT INTO sessions (sandbox, pool, tenant, payer, identifier, owner, created)
                VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT DO NOTHING";
            let row = params![
                sandbox.0,
                pool.as_str(),
                key.tenant.as_str(),
                payer.as_str(),
                key.identifier.as_str(),
                owner,
                milliseconds(*created)
            ];
            if change.prepare_cached(insert)?.execute(row)? > 0 {
                audit_session(change, &sandbox.0, "session.opened", "", *created)?;
            }
        }
        Write::Ended(sandbox) => {
            audit_session(change, &sandbox.0, "session.ended", "", SystemTime::now())?;
            remove(change, &sandbox.0)?;
        }
        Write::Lost(sandbox, why, at) => {
            let update = "UPDATE sessions SET lost = ?2, reason = ?3 WHERE sandbox = ?1 AND lost IS NULL";
            if change.prepare_cached(update)?.execute(params![sandbox.0, milliseconds(*at), why])? > 0 {
                audit_session(change, &sandbox.0, "session.lost", why, *at)?;
            }
        }
        Write::Heard(sandbox) => {
            change.prepare_cached("UPDATE sessions SET heard = 1 WHERE sandbox = ?1")?.execute(params![sandbox.0])?;
        }
        Write::Execution(sandbox, source) => {
            let row = source.row();
            // Of a session that has ended in order nothing is kept, also not what ended with it.
            let insert = "INSERT INTO executions (sandbox, id, ended, body)
                SELECT ?1, ?2, ?3, ?4 WHERE EXISTS (SELECT 1 FROM sessions WHERE sandbox = ?1)
                ON CONFLICT (sandbox, id) DO UPDATE SET ended = excluded.ended, body = excluded.body WHERE ended = 0";
            change.prepare_cached(insert)?.execute(params![sandbox.0, row.id.0, row.is_ended, row.body])?;
            if row.is_ended {
                grown.insert(sandbox.0);
            }
        }
        Write::Audit { what, detail, at } => {
            let insert = "INSERT INTO audit (at, tenant, subject, pool, session, sandbox, what, detail)
                VALUES (?1, '', '', '', '', '', ?2, ?3)";
            change.prepare_cached(insert)?.execute(params![milliseconds(*at), what, detail])?;
        }
        Write::Pool { name, body: Some(body), at } => {
            let insert =
                "INSERT INTO pools (name, body) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET body = excluded.body";
            change.prepare_cached(insert)?.execute(params![name.as_str(), body])?;
            audit_pool(change, name, "pool.applied", *at)?;
        }
        Write::Pool { name, body: None, at } => {
            change.prepare_cached("DELETE FROM pools WHERE name = ?1")?.execute(params![name.as_str()])?;
            audit_pool(change, name, "pool.removed", *at)?;
        }
        Write::Ack(_) | Write::Close => {}
    }
    Ok(())
}

/// A line of the audit trail about a pool.
fn audit_pool(change: &Transaction<'_>, name: &PoolName, what: &str, at: SystemTime) -> rusqlite::Result<()> {
    let insert = "INSERT INTO audit (at, tenant, subject, pool, session, sandbox, what, detail)
        VALUES (?1, '', '', ?2, '', '', ?3, '')";
    change.prepare_cached(insert)?.execute(params![milliseconds(at), name.as_str(), what])?;
    Ok(())
}

/// A line of the audit trail about a session that is known.
fn audit_session(
    change: &Transaction<'_>,
    sandbox: &[u8; 16],
    what: &str,
    detail: &str,
    at: SystemTime,
) -> rusqlite::Result<()> {
    let insert = "INSERT INTO audit (at, tenant, subject, pool, session, sandbox, what, detail)
        SELECT ?2, payer, owner, pool, identifier, lower(hex(sandbox)), ?3, ?4 FROM sessions WHERE sandbox = ?1";
    change.prepare_cached(insert)?.execute(params![sandbox, milliseconds(at), what, detail])?;
    Ok(())
}

fn remove(change: &Transaction<'_>, sandbox: &[u8; 16]) -> rusqlite::Result<()> {
    change.prepare_cached("DELETE FROM executions WHERE sandbox = ?1")?.execute(params![sandbox])?;
    change.prepare_cached("DELETE FROM sessions WHERE sandbox = ?1")?.execute(params![sandbox])?;
    Ok(())
}

fn prune(change: &Transaction<'_>, now: SystemTime) -> rusqlite::Result<()> {
    let lost = milliseconds(now - KEPT_LOST);
    let old = "DELETE FROM executions WHERE sandbox IN (SELECT sandbox FROM sessions WHERE lost < ?1)";
    change.execute(old, params![lost])?;
    change.execute("DELETE FROM sessions WHERE lost < ?1", params![lost])?;
    change.execute("DELETE FROM audit WHERE at < ?1", params![milliseconds(now - KEPT_AUDIT)])?;
    Ok(())
}
