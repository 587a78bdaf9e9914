//! The one thread that writes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant, SystemTime};

use rusqlite::{Connection, ErrorCode, OptionalExtension, Transaction, params};
use sandpool_core::ids::SandboxId;

use crate::chain::{self, Link};
use crate::{
    Audited, Deed, Health, KEPT_AUDIT, KEPT_EXECUTIONS, KEPT_LOST, KEPT_RECORDS, Place, Write, milliseconds, trail,
};

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
    /// The journal's last record. Once known it is not read again: what somebody does to the file is not followed.
    head: Option<Link>,
}

/// What came of a batch.
struct Done {
    is_last: bool,
}

impl Writer {
    pub(crate) fn new(connection: Connection, writes: Receiver<Write>, health: Arc<Health>, path: &Path) -> Self {
        Self { connection, writes, health, path: path.to_owned(), pruned: None, head: None }
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
        let mut head = self.head.map_or_else(|| trail::head(&change), Ok)?;
        for write in batch {
            apply(&change, write, &mut grown, &mut head)?;
        }
        for sandbox in grown {
            let trim = "DELETE FROM executions WHERE sandbox = ?1 AND ended = 1 AND number <= (
                SELECT number FROM executions WHERE sandbox = ?1 AND ended = 1 ORDER BY number DESC LIMIT 1 OFFSET ?2)";
            change.prepare_cached(trim)?.execute(params![sandbox, KEPT_EXECUTIONS])?;
        }
        change.commit()?;
        self.head = Some(head);
        if prunes {
            self.pruned = Some(Instant::now());
        }
        Ok(())
    }
}

fn apply(
    change: &Transaction<'_>,
    write: &Write,
    grown: &mut BTreeSet<[u8; 16]>,
    head: &mut Link,
) -> rusqlite::Result<()> {
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
                of_session(change, head, &sandbox.0, None, ("session.opened", "", *created))?;
            }
        }
        Write::Ended(sandbox) => {
            of_session(change, head, &sandbox.0, None, ("session.ended", "", SystemTime::now()))?;
            remove(change, &sandbox.0)?;
        }
        Write::Lost { sandbox, why, told, at } => {
            let update = "UPDATE sessions SET lost = ?2, reason = ?3 WHERE sandbox = ?1 AND lost IS NULL";
            if change.prepare_cached(update)?.execute(params![sandbox.0, milliseconds(*at), why])? > 0 {
                of_session(change, head, &sandbox.0, None, ("session.lost", told, *at))?;
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
        Write::Audit(Deed { what, tenant, subject, pool, detail }, at) => {
            let record = Audited {
                tenant: tenant.clone(),
                subject: subject.clone(),
                pool: pool.clone(),
                detail: detail.clone(),
                ..Audited::new(what, *at)
            };
            append(change, head, record)?;
        }
        Write::Of { place, what, detail, at } => {
            let Place { pool, key, payer, sandbox, owner, .. } = &**place;
            let record = Audited {
                tenant: payer.to_string(),
                subject: owner.clone(),
                pool: pool.to_string(),
                session: key.identifier.to_string(),
                sandbox: chain::sandbox_text(*sandbox),
                detail: detail.clone(),
                ..Audited::new(what, *at)
            };
            append(change, head, record)?;
        }
        Write::Did { sandbox, subject, what, detail, at } => {
            of_session(change, head, &sandbox.0, Some(subject), (what, detail, *at))?;
        }
        Write::Pool { name, body: Some(body) } => {
            let insert =
                "INSERT INTO pools (name, body) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET body = excluded.body";
            change.prepare_cached(insert)?.execute(params![name.as_str(), body])?;
        }
        Write::Pool { name, body: None } => {
            change.prepare_cached("DELETE FROM pools WHERE name = ?1")?.execute(params![name.as_str()])?;
        }
        Write::Ack(_) | Write::Close => {}
    }
    Ok(())
}

/// A record about a session that is known: of what its owner did, or somebody else.
fn of_session(
    change: &Transaction<'_>,
    head: &mut Link,
    sandbox: &[u8; 16],
    subject: Option<&str>,
    (what, detail, at): (&str, &str, SystemTime),
) -> rusqlite::Result<()> {
    let select = "SELECT payer, owner, pool, identifier FROM sessions WHERE sandbox = ?1";
    let found = change.prepare_cached(select)?.query_row(params![sandbox], |row| {
        let owner: String = row.get(1)?;
        Ok(Audited {
            tenant: row.get(0)?,
            subject: subject.map_or(owner, str::to_owned),
            pool: row.get(2)?,
            session: row.get(3)?,
            sandbox: chain::sandbox_text(SandboxId(*sandbox)),
            detail: detail.to_owned(),
            ..Audited::new(what, at)
        })
    });
    match found.optional()? {
        Some(record) => append(change, head, record),
        None => Ok(()),
    }
}

/// The next record of the journal.
fn append(change: &Transaction<'_>, head: &mut Link, mut record: Audited) -> rusqlite::Result<()> {
    record.number = head.number + 1;
    let hash = chain::hash(&head.hash, &record);
    let insert = "INSERT INTO audit (number, at, tenant, subject, pool, session, sandbox, what, detail, hash)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
    let Audited { number, at, tenant, subject, pool, session, sandbox, what, detail } = record;
    let at = milliseconds(at);
    let row = params![number, at, tenant, subject, pool, session, sandbox, what, detail, hash];
    change.prepare_cached(insert)?.execute(row)?;
    *head = Link { number, hash };
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
    prune_journal(change, now, KEPT_RECORDS)
}

/// Removes the journal's oldest records, and keeps the hash that the first of the others follows.
pub(crate) fn prune_journal(change: &Transaction<'_>, now: SystemTime, most: i64) -> rusqlite::Result<()> {
    let young = "SELECT number FROM audit WHERE at >= ?1 ORDER BY number LIMIT 1";
    let young: Option<i64> =
        change.query_row(young, params![milliseconds(now - KEPT_AUDIT)], |row| row.get(0)).optional()?;
    let head = trail::head(change)?;
    let first = young.unwrap_or(head.number + 1).max(head.number + 1 - most);
    let last = "SELECT number, hash FROM audit WHERE number < ?1 AND hash IS NOT NULL ORDER BY number DESC LIMIT 1";
    let link = |row: &rusqlite::Row<'_>| Ok(Link { number: row.get(0)?, hash: row.get(1)? });
    if let Some(Link { number, hash }) = change.query_row(last, params![first], link).optional()? {
        change.execute("UPDATE chain SET number = ?1, hash = ?2", params![number, hash])?;
    }
    change.execute("DELETE FROM audit WHERE number < ?1", params![first])?;
    Ok(())
}
