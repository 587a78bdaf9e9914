//! Looking up, on a thread where waiting is no trouble.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError};

use rusqlite::{Connection, OptionalExtension, params};
use sandpool_core::ids::{ExecutionId, PoolName, SandboxId, SessionKey};

use crate::{Known, Row, Store, place};

impl Store {
    /// Does `work` with the reading connection. What cannot be read is logged, and answered as what is not there.
    async fn read<T: Send + Default + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> T {
        let reader = Arc::clone(&self.inner.reader);
        let read = tokio::task::spawn_blocking(move || {
            let connection = reader.lock().unwrap_or_else(PoisonError::into_inner);
            work(&connection)
        });
        match read.await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                tracing::error!("the state cannot be read: {error}");
                T::default()
            }
            // It was cancelled: the server stops.
            Err(_) => T::default(),
        }
    }

    /// An execution of the session that has or had this name: of the latest, if there were several.
    pub async fn find(&self, pool: &PoolName, key: &SessionKey, id: ExecutionId) -> Option<Row> {
        let (pool, key) = (pool.clone(), key.clone());
        self.read(move |connection| {
            let select = "SELECT ended, body FROM executions JOIN sessions USING (sandbox)
                WHERE pool = ?1 AND tenant = ?2 AND identifier = ?3 AND id = ?4 ORDER BY created DESC LIMIT 1";
            let by = params![pool.as_str(), key.tenant.as_str(), key.identifier.as_str(), id.0];
            let mut select = connection.prepare_cached(select)?;
            select.query_row(by, |row| Ok(Row { id, is_ended: row.get(0)?, body: row.get(1)? })).optional()
        })
        .await
    }

    /// The executions of a sandbox's session that have not ended, as far as is known here; oldest first.
    pub async fn unfinished(&self, sandbox: SandboxId) -> Vec<Row> {
        self.read(move |connection| {
            let select = "SELECT id, body FROM executions WHERE sandbox = ?1 AND ended = 0 ORDER BY number";
            let mut select = connection.prepare_cached(select)?;
            let row =
                |row: &rusqlite::Row<'_>| Ok(Row { id: ExecutionId(row.get(0)?), is_ended: false, body: row.get(1)? });
            select.query_map(params![sandbox.0], row)?.collect()
        })
        .await
    }

    /// The sessions that were there and have not ended in order.
    pub async fn sessions(&self) -> Vec<Known> {
        self.read(|connection| {
            let select =
                "SELECT sandbox, pool, tenant, payer, identifier, owner, created, lost, reason, heard FROM sessions
                ORDER BY created";
            let mut select = connection.prepare(select)?;
            let rows = select.query_map([], |row| {
                let texts = (row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?);
                let lost: Option<i64> = row.get(7)?;
                let reason: Option<String> = row.get(8)?;
                let lost = lost.map(|_| reason.unwrap_or_default());
                let is_heard = row.get(9)?;
                Ok(place(row.get(0)?, texts, row.get(6)?).map(|place| Known { place, lost, is_heard }))
            })?;
            rows.filter_map(Result::transpose).collect()
        })
        .await
    }

    /// The sandboxes whose sessions have ended, or were lost: what of them is still there is to be destroyed, and nobody's.
    pub async fn over(&self) -> HashSet<SandboxId> {
        self.read(|connection| {
            let select = "SELECT DISTINCT sandbox FROM audit WHERE what IN ('session.ended', 'session.lost')";
            let mut select = connection.prepare(select)?;
            let ids = select.query_map([], |row| row.get::<_, String>(0))?;
            ids.map(|id| Ok(hex_id(&id?))).filter_map(Result::transpose).collect()
        })
        .await
    }

    /// The pools that were applied and not removed: their names, and what was written of them.
    pub async fn pools(&self) -> Vec<(String, String)> {
        self.read(|connection| {
            let mut select = connection.prepare("SELECT name, body FROM pools ORDER BY name")?;
            let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect()
        })
        .await
    }
}

/// A sandbox's id, as the audit trail has it: hexadecimal digits without dashes.
fn hex_id(text: &str) -> Option<SandboxId> {
    u128::from_str_radix(text, 16).ok().map(|id| SandboxId(id.to_be_bytes()))
}
