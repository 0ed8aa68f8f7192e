//! The database: a pool of connections, the schema, and error context.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use kiln_oci::Digest;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};

use crate::error::{Error, Result};
use crate::session::guard;

/// Version of the format of the state directory.
pub const FORMAT: u32 = 1;

/// How long to wait for another process that writes.
const BUSY: Duration = Duration::from_secs(60);
/// A log of this size is read in 0.3 ms.
const LOG_SHORT: u64 = 256 << 10;

const SCHEMA: &str = "
CREATE TABLE layers(
    id BLOB PRIMARY KEY, diff_id BLOB, size INTEGER, unpacked INTEGER NOT NULL, remote TEXT, created INTEGER NOT NULL,
    disk INTEGER, checksum INTEGER, boot TEXT, written INTEGER) WITHOUT ROWID;
CREATE INDEX layers_by_diff_id ON layers(diff_id) WHERE diff_id IS NOT NULL;
CREATE INDEX layers_unsettled ON layers(written) WHERE boot IS NOT NULL;
CREATE TABLE layer_blobs(
    layer BLOB NOT NULL, digest BLOB NOT NULL, compression TEXT NOT NULL, level INTEGER, descriptor TEXT NOT NULL,
    PRIMARY KEY(layer, digest)) WITHOUT ROWID;
CREATE INDEX layer_blobs_by_digest ON layer_blobs(digest);
CREATE TABLE records(
    id INTEGER PRIMARY KEY, created INTEGER NOT NULL, used INTEGER NOT NULL, kind TEXT NOT NULL, description TEXT NOT NULL);
CREATE TABLE record_keys(key BLOB PRIMARY KEY, record INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX record_keys_by_record ON record_keys(record);
CREATE TABLE record_layers(record INTEGER NOT NULL, pos INTEGER NOT NULL, layer BLOB NOT NULL,
    PRIMARY KEY(record, pos)) WITHOUT ROWID;
CREATE INDEX record_layers_by_layer ON record_layers(layer);
CREATE TABLE steps(slot TEXT PRIMARY KEY, ingredients TEXT NOT NULL, used INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE images(
    id INTEGER PRIMARY KEY, name TEXT UNIQUE, digest BLOB NOT NULL, config BLOB, target TEXT NOT NULL,
    created INTEGER NOT NULL, updated INTEGER NOT NULL);
CREATE INDEX images_by_digest ON images(digest);
CREATE TABLE roots(owner TEXT NOT NULL, item TEXT NOT NULL, PRIMARY KEY(owner, item)) WITHOUT ROWID;
CREATE TABLE meta(key TEXT PRIMARY KEY, value BLOB NOT NULL, expires INTEGER) WITHOUT ROWID;
CREATE TABLE builds(id TEXT PRIMARY KEY, started INTEGER NOT NULL, record TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE mounts(
    hash TEXT NOT NULL, instance INTEGER NOT NULL, id TEXT NOT NULL, created INTEGER NOT NULL, used INTEGER NOT NULL,
    PRIMARY KEY(hash, instance)) WITHOUT ROWID;
";

/// Connections to one database. Each use takes one of its own, so threads never share one at a time.
#[derive(Debug)]
pub(crate) struct Db {
    path: PathBuf,
    pool: Mutex<Vec<Connection>>,
}

impl Db {
    /// Opens the database if it has the format that this build knows; `None` if it has none yet.
    pub(crate) fn open(root: &Path) -> Result<Option<Self>> {
        let db = Self { path: root.join("kiln.db"), pool: Mutex::new(Vec::new()) };
        let connection = match db.connect(false) {
            Ok(connection) => connection,
            Err(Error::Db { .. }) if !db.path.exists() => return Ok(None),
            Err(e) => return Err(e),
        };
        if db.format(&connection, root)? == 0 {
            return Ok(None);
        }
        guard(&db.pool).push(connection);
        Ok(Some(db))
    }

    /// Makes the database. The caller holds the lock `init`.
    pub(crate) fn create(root: &Path) -> Result<Self> {
        let db = Self { path: root.join("kiln.db"), pool: Mutex::new(Vec::new()) };
        let mut connection = db.connect(true)?;
        if db.format(&connection, root)? == 0 {
            let schema = |c: &mut Connection| -> Result<()> {
                c.execute_batch("PRAGMA journal_mode=WAL")?;
                let tx = c.transaction_with_behavior(TransactionBehavior::Immediate)?;
                tx.execute_batch(SCHEMA)?;
                tx.pragma_update(None, "user_version", FORMAT)?;
                Ok(tx.commit()?)
            };
            schema(&mut connection).map_err(|e| e.in_db(&db.path))?;
        }
        guard(&db.pool).push(connection);
        Ok(db)
    }

    fn connect(&self, create: bool) -> Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let flags = if create { flags | OpenFlags::SQLITE_OPEN_CREATE } else { flags };
        let open = || -> Result<Connection> {
            let connection = Connection::open_with_flags(&self.path, flags)?;
            connection.busy_timeout(BUSY)?;
            // A short-lived process must not pay for a checkpoint (two fsyncs) when it ends.
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
            // With the statistics of tables that SQLite is compiled for, every value that is bound would plan its statement anew.
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
            connection.execute_batch("PRAGMA synchronous=NORMAL")?;
            Ok(connection)
        };
        open().map_err(|e| e.in_db(&self.path))
    }

    /// Empties the log if it grew: the first process to open the database reads all of it again. Where others are using it,
    /// they will do it.
    pub(crate) fn tidy(&self) {
        let log = self.path.with_extension("db-wal");
        if !std::fs::metadata(log).is_ok_and(|m| m.len() > LOG_SHORT) {
            return;
        }
        if let Ok(connection) = self.take() {
            _ = connection.busy_timeout(Duration::ZERO);
            _ = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
            if connection.busy_timeout(BUSY).is_ok() {
                guard(&self.pool).push(connection);
            }
        }
    }

    fn format(&self, connection: &Connection, root: &Path) -> Result<u32> {
        let version = connection.pragma_query_value(None, "user_version", |r| r.get::<_, u32>(0));
        let found = version.map_err(|e| Error::from(e).in_db(&self.path))?;
        if found > FORMAT {
            return Err(Error::NewerStore { root: root.to_path_buf(), found, supported: FORMAT });
        }
        Ok(found)
    }

    fn take(&self) -> Result<Connection> {
        let pooled = guard(&self.pool).pop();
        pooled.map_or_else(|| self.connect(false), Ok)
    }

    /// Runs `f` outside of a transaction, for single statements that only read.
    pub(crate) fn read<T>(&self, f: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let connection = self.take()?;
        let result = f(&connection).map_err(|e| e.in_db(&self.path));
        guard(&self.pool).push(connection);
        result
    }

    /// Runs `f` in one consistent view.
    pub(crate) fn snapshot<T>(&self, f: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let connection = self.take()?;
        // Not rusqlite's transaction, which parses these words each time.
        let run = || -> Result<T> {
            connection.prepare_cached("BEGIN")?.execute([])?;
            let result = f(&connection);
            connection.prepare_cached("COMMIT")?.execute([])?;
            result
        };
        let result = run().map_err(|e| e.in_db(&self.path));
        // After an error it may still be in its transaction.
        if connection.is_autocommit() {
            guard(&self.pool).push(connection);
        }
        result
    }

    /// Runs `f` in a write transaction, which is rolled back if it fails.
    pub(crate) fn write<T>(&self, f: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        let mut connection = self.take()?;
        let run = || -> Result<T> {
            // Never DEFERRED: an upgrade from read to write fails at once under contention, whatever the timeout.
            let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let result = f(&tx)?;
            tx.commit()?;
            Ok(result)
        };
        let result = run().map_err(|e| e.in_db(&self.path));
        guard(&self.pool).push(connection);
        result
    }
}

/// A digest as a column holds it: its bytes, whose number tells the algorithm.
pub(crate) fn digest_from(bytes: &[u8], table: &'static str) -> Result<Digest> {
    if let Ok(sha256) = <[u8; 32]>::try_from(bytes) {
        return Ok(Digest::sha256(sha256));
    }
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    format!("sha512:{hex}").parse().map_err(|e| Error::record(table, e))
}

/// Decodes a JSON column.
pub(crate) fn json<T: serde::de::DeserializeOwned>(text: &str, table: &'static str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| Error::record(table, e))
}

/// Encodes a JSON column.
pub(crate) fn to_json<T: serde::Serialize>(value: &T, table: &'static str) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::record(table, e))
}
