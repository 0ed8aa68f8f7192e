//! Small values with an expiry, and roots that others keep.

use std::time::Duration;

use rusqlite::{OptionalExtension, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::db;
use crate::error::Result;
use crate::fsutil::now_ms;
use crate::store::Store;

/// Small values by key: resolved tags, tokens, validators of downloads. Losing one costs time, never correctness.
#[derive(Debug, Clone, Copy)]
pub struct Meta<'a>(pub(crate) &'a Store);

impl Meta<'_> {
    /// The bytes of `key`, unless they expired.
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let sql = "SELECT value FROM meta WHERE key=?1 AND (expires IS NULL OR expires>?2)";
        self.0.inner().db.read(|db| {
            let mut statement = db.prepare_cached(sql)?;
            Ok(statement.query_row(params![key, now_ms()], |r| r.get(0)).optional()?)
        })
    }

    /// Stores bytes; they expire after `keep`, or never.
    pub fn put(&self, key: &str, value: &[u8], keep: Option<Duration>) -> Result<()> {
        let expires = keep.map(|k| now_ms().saturating_add(k.as_millis().min(i64::MAX as u128) as i64));
        let sql = "INSERT OR REPLACE INTO meta(key, value, expires) VALUES(?1,?2,?3)";
        self.0.inner().db.write(|tx| Ok(tx.prepare_cached(sql)?.execute(params![key, value, expires]).map(|_| ())?))
    }

    /// A typed value; one that has another shape (of an earlier kiln) counts as absent.
    pub fn get_as<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        Ok(self.get(key)?.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }

    /// Stores a typed value.
    pub fn put_as<T: Serialize>(&self, key: &str, value: &T, keep: Option<Duration>) -> Result<()> {
        self.put(key, db::to_json(value, "meta")?.as_bytes(), keep)
    }

    /// Forgets a key. Returns whether it was there.
    pub fn remove(&self, key: &str) -> Result<bool> {
        self.0.inner().db.write(|tx| Ok(tx.execute("DELETE FROM meta WHERE key=?1", [key])? > 0))
    }
}
