//! What is in the file, and how older files become newer ones.

use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::StoreError;

/// Says that a database is ours: `sdpl`.
const APPLICATION: i64 = 0x7364_706c;

/// Each brings a file from the version before to the next. What has been released is never changed, only added to.
const MIGRATIONS: [&str; 3] = ["
    CREATE TABLE sessions (
        sandbox BLOB PRIMARY KEY, pool TEXT NOT NULL, tenant TEXT NOT NULL, payer TEXT NOT NULL, identifier TEXT NOT NULL,
        owner TEXT NOT NULL, created INTEGER NOT NULL, lost INTEGER, reason TEXT, heard INTEGER NOT NULL DEFAULT 0
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX sessions_by_key ON sessions (pool, tenant, identifier);
    CREATE TABLE executions (
        number INTEGER PRIMARY KEY, sandbox BLOB NOT NULL, id BLOB NOT NULL, ended INTEGER NOT NULL, body BLOB NOT NULL,
        UNIQUE (sandbox, id)
    ) STRICT;
    CREATE TABLE audit (
        number INTEGER PRIMARY KEY AUTOINCREMENT, at INTEGER NOT NULL, tenant TEXT NOT NULL, subject TEXT NOT NULL,
        pool TEXT NOT NULL, session TEXT NOT NULL, sandbox TEXT NOT NULL, what TEXT NOT NULL, detail TEXT NOT NULL
    ) STRICT;
", "
    CREATE TABLE pools (name TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT, WITHOUT ROWID;
", "
    ALTER TABLE audit ADD COLUMN hash BLOB;
    CREATE TABLE chain (one INTEGER PRIMARY KEY CHECK (one = 1), number INTEGER NOT NULL, hash BLOB NOT NULL) STRICT;
    INSERT INTO chain SELECT 1, coalesce(max(number), 0), zeroblob(32) FROM audit;
    CREATE INDEX audit_ends ON audit (sandbox) WHERE what IN ('session.ended', 'session.lost');
"];

/// The version of what this program writes.
pub const VERSION: i64 = {
    let [_, _, _] = MIGRATIONS;
    3
};

/// Opens the file for writing.
pub(crate) fn open(path: &Path, most: u64) -> Result<Connection, StoreError> {
    // For nobody else: what code has printed is in it. What SQLite puts beside it gets the same rights.
    let made = std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path);
    made.map_err(|error| StoreError::Unusable { path: path.to_owned(), why: error.to_string() })?;
    let failed = |error: rusqlite::Error| failed(path, &error);
    let mut connection = Connection::open(path).map_err(failed)?;
    connection.busy_timeout(std::time::Duration::from_secs(5)).map_err(failed)?;
    let number = |connection: &Connection, name: &str| -> rusqlite::Result<i64> {
        connection.pragma_query_value(None, name, |row| row.get(0))
    };
    let is_empty = number(&connection, "schema_version").map_err(failed)? == 0;
    let application = number(&connection, "application_id").map_err(failed)?;
    let found = number(&connection, "user_version").map_err(failed)?;
    if !is_empty && application != APPLICATION {
        return Err(StoreError::Foreign { path: path.to_owned() });
    }
    if found > VERSION {
        return Err(StoreError::Newer { path: path.to_owned(), found });
    }
    let said: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(failed)?;
    if said != "ok" {
        return Err(StoreError::Damaged { path: path.to_owned(), why: said });
    }
    // A deleted output is overwritten, not only forgotten.
    let set = "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA secure_delete = ON;
        PRAGMA journal_size_limit = 67108864;";
    connection.execute_batch(set).map_err(failed)?;
    let page = number(&connection, "page_size").map_err(failed)?;
    let pages = i64::try_from(most).unwrap_or(i64::MAX) / page.max(1);
    connection.pragma_update(None, "max_page_count", pages).map_err(failed)?;
    for (version, migration) in (1..).zip(MIGRATIONS).skip_while(|(version, _)| *version <= found) {
        // Each whole or not at all, with its version.
        let change = connection.transaction().map_err(failed)?;
        change.execute_batch(migration).map_err(failed)?;
        change.pragma_update(None, "user_version", version).map_err(failed)?;
        change.pragma_update(None, "application_id", APPLICATION).map_err(failed)?;
        change.commit().map_err(failed)?;
    }
    Ok(connection)
}

/// Opens the file for reading beside the writer.
pub(crate) fn open_to_read(path: &Path) -> Result<Connection, StoreError> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY);
    let connection = connection.map_err(|error| failed(path, &error))?;
    connection.busy_timeout(std::time::Duration::from_secs(5)).map_err(|error| failed(path, &error))?;
    Ok(connection)
}

pub(crate) fn failed(path: &Path, error: &rusqlite::Error) -> StoreError {
    let (path, why) = (path.to_owned(), error.to_string());
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreError::Damaged { path, why },
        _ => StoreError::Unusable { path, why },
    }
}
