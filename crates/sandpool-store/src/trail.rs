//! The journal as a file: read without a server, by whoever may read the file.

use std::path::{Path, PathBuf};

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::chain::{Chained, Found, Hash, Link};
use crate::{Audited, StoreError, schema, time};

/// A journal that is only read.
#[derive(Debug)]
pub struct Trail {
    path: PathBuf,
    connection: Connection,
}

impl Trail {
    /// Opens the database in `path` for reading, also beside a server that writes it.
    ///
    /// # Errors
    /// [`StoreError`] says what is wrong with the file, and what to do.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let trail = Self { path: path.to_owned(), connection: schema::open_to_read(path)? };
        // All that is read is of one moment, whatever is written meanwhile.
        trail.read(|connection| connection.execute_batch("BEGIN"))?;
        let version: i64 =
            trail.read(|connection| connection.pragma_query_value(None, "user_version", |row| row.get(0)))?;
        match version {
            schema::VERSION => Ok(trail),
            found if found > schema::VERSION => Err(StoreError::Newer { path: path.to_owned(), found }),
            found => Err(StoreError::Unusable {
                path: path.to_owned(),
                why: format!(
                    "it has version {found}, from an earlier program: start the server once, which brings it to {}",
                    schema::VERSION
                ),
            }),
        }
    }

    fn read<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        work(&self.connection).map_err(|error| schema::failed(&self.path, &error))
    }

    /// What the first record that is chained follows: the last one that was removed for its age.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn base(&self) -> Result<Link, StoreError> {
        self.read(base)
    }

    /// The number of the last record that was ever written.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn last(&self) -> Result<i64, StoreError> {
        self.read(last)
    }

    /// The records after number `after`, in the order in which they stand, as many as `limit`.
    ///
    /// # Errors
    /// When the file is damaged. A record that cannot be read is told in its place.
    pub fn records(&self, after: i64, limit: u32) -> Result<Vec<Found>, StoreError> {
        self.read(|connection| {
            let select = "SELECT number, at, tenant, subject, pool, session, sandbox, what, detail, hash FROM audit
                WHERE number > ?1 ORDER BY number LIMIT ?2";
            let mut select = connection.prepare_cached(select)?;
            let rows = select.query_map(params![after, limit], |row| Ok(found(row)))?;
            rows.collect()
        })
    }

    /// The number after which the last `count` records stand.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn before_last(&self, count: u32) -> Result<i64, StoreError> {
        self.read(|connection| {
            let select = "SELECT number FROM audit ORDER BY number DESC LIMIT 1 OFFSET ?1";
            Ok(connection.query_row(select, params![count], |row| row.get(0)).optional()?.unwrap_or(0))
        })
    }
}

/// One record, as far as it can be read.
fn found(row: &Row<'_>) -> Found {
    let number = row.get(0).unwrap_or(0);
    let text = |column: usize| match row.get_ref(column) {
        Ok(ValueRef::Text(text)) => {
            String::from_utf8(text.to_vec()).map_err(|_| (number, "it has bytes that are no UTF-8".to_owned()))
        }
        Ok(other) => Err((number, format!("column {column} is {}", other.data_type()))),
        Err(error) => Err((number, error.to_string())),
    };
    let at: i64 = row.get(1).map_err(|error| (number, error.to_string()))?;
    let record = Audited {
        number,
        at: time(at),
        tenant: text(2)?,
        subject: text(3)?,
        pool: text(4)?,
        session: text(5)?,
        sandbox: text(6)?,
        what: text(7)?,
        detail: text(8)?,
    };
    let hash: Option<Hash> = row.get(9).map_err(|error| (number, format!("its hash: {error}")))?;
    Ok(Chained { record, hash })
}

fn base(connection: &Connection) -> rusqlite::Result<Link> {
    let select = "SELECT number, hash FROM chain";
    connection.query_row(select, [], |row| Ok(Link { number: row.get(0)?, hash: row.get(1)? }))
}

/// The number of the last record that was ever written, whether it is there or not.
fn last(connection: &Connection) -> rusqlite::Result<i64> {
    let select = "SELECT seq FROM sqlite_sequence WHERE name = 'audit'";
    Ok(connection.query_row(select, [], |row| row.get(0)).optional()?.unwrap_or(0))
}

/// What the next record follows. Numbers are not given twice, so that a gap stays one.
pub(crate) fn head(connection: &Connection) -> rusqlite::Result<Link> {
    let select = "SELECT number, hash FROM audit WHERE hash IS NOT NULL ORDER BY number DESC LIMIT 1";
    let mut select = connection.prepare_cached(select)?;
    let found = select.query_row([], |row| Ok(Link { number: row.get(0)?, hash: row.get(1)? })).optional()?;
    let base = base(connection)?;
    let head = found.filter(|found| found.number > base.number).unwrap_or(base);
    Ok(Link { number: head.number.max(last(connection)?), ..head })
}
