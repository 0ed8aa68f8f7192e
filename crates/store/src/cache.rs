//! Cache records: keys that lead to snapshots; and what steps were made of, for miss reasons.

use kiln_oci::{Digest, Timestamp};
use rusqlite::{Connection, OptionalExtension, params};

use crate::db;
use crate::error::{Error, Result};
use crate::fsutil::{boot_id, now_ms};
use crate::images;
use crate::layers::{LayerId, Snapshot};
use crate::session::Pin;
use crate::store::Store;

/// The digest of what a result depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CacheKey(pub Digest);

/// A result that keys lead to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The result.
    pub snapshot: Snapshot,
    /// When it was made.
    pub created: Timestamp,
    /// All keys that lead to it. Filled in by look-ups; not used by [`CacheRecords::insert`].
    pub aliases: Vec<CacheKey>,
    /// What kind of step made it, for filters: `regular`, `exec`, `source.image`, ….
    pub kind: String,
    /// The step, for people.
    pub description: String,
}

impl Record {
    /// A record of a result made now.
    pub fn new(snapshot: Snapshot) -> Self {
        let kind = "regular".to_owned();
        Self { snapshot, created: Timestamp::now(), aliases: Vec::new(), kind, description: String::new() }
    }

    /// The same, with a kind and a description.
    pub fn described(mut self, kind: &str, description: &str) -> Self {
        self.kind = kind.to_owned();
        self.description = description.to_owned();
        self
    }
}

/// The cache records of a store.
#[derive(Debug, Clone, Copy)]
pub struct CacheRecords<'a>(pub(crate) &'a Store);

/// What a look-up finds before it looks at the files.
struct Found {
    record: Record,
    /// Layers that were written in another boot and not verified since.
    unsettled: Vec<LayerId>,
    /// Layers that have to have a directory.
    unpacked: Vec<LayerId>,
}

impl CacheRecords<'_> {
    /// The result for `key`, if all its layers are here. Writes nothing to the database. Its layers are pinned, under a lease.
    pub fn lookup(&self, key: &CacheKey) -> Result<Option<Record>> {
        let inner = self.0.inner();
        let find = || inner.db.read(|db| find(db, key));
        let found = match inner.leased_session() {
            None => find()?,
            Some(session) => session.pinning(|pin| {
                let found = find()?;
                found.iter().flat_map(|f| &f.record.snapshot.0).for_each(|id| pin(&Pin::Layer(*id)));
                Ok(found)
            })?,
        };
        let Some(found) = found else { return Ok(None) };
        let layers = self.0.layers();
        for id in &found.unpacked {
            if !inner.has_layer_dir(id) && !layers.intact(id)? {
                return self.lookup(key);
            }
        }
        for id in &found.unsettled {
            if !layers.intact(id)? {
                return self.lookup(key);
            }
        }
        Ok(Some(found.record))
    }

    /// Makes `keys` lead to the record, whatever they led to before.
    pub fn insert(&self, keys: &[CacheKey], record: &Record) -> Result<()> {
        self.0.inner().db.write(|tx| {
            for id in &record.snapshot.0 {
                if !tx.prepare_cached("SELECT 1 FROM layers WHERE id=?1")?.exists([id.0])? {
                    return Err(Error::LayerMissing(*id));
                }
            }
            let created = record.created.seconds().saturating_mul(1000);
            tx.prepare_cached("INSERT INTO records(created, used, kind, description) VALUES(?1,?2,?3,?4)")?
                .execute(params![created, now_ms(), record.kind, record.description])?;
            let row = tx.last_insert_rowid();
            for (pos, id) in record.snapshot.0.iter().enumerate() {
                tx.prepare_cached("INSERT INTO record_layers(record, pos, layer) VALUES(?1,?2,?3)")?
                    .execute(params![row, pos as i64, id.0])?;
            }
            for key in keys {
                let old = key_owner(tx, key)?;
                tx.prepare_cached("INSERT OR REPLACE INTO record_keys(key, record) VALUES(?1,?2)")?
                    .execute(params![key.0.bytes(), row])?;
                if let Some(old) = old.filter(|old| *old != row) {
                    remove_if_keyless(tx, old)?;
                }
            }
            Ok(())
        })
    }

    /// Makes another key lead to the result of a known one. Returns false if that is gone.
    pub fn alias(&self, known: &CacheKey, new: &CacheKey) -> Result<bool> {
        self.0.inner().db.write(|tx| {
            let Some(record) = key_owner(tx, known)? else { return Ok(false) };
            let old = key_owner(tx, new)?;
            tx.prepare_cached("INSERT OR REPLACE INTO record_keys(key, record) VALUES(?1,?2)")?
                .execute(params![new.0.bytes(), record])?;
            if let Some(old) = old.filter(|old| *old != record) {
                remove_if_keyless(tx, old)?;
            }
            Ok(true)
        })
    }

    /// Records that the results of these keys, and these images, were used now. Call it once, at the end of a build.
    pub fn touch(&self, keys: &[CacheKey], images: &[Digest]) -> Result<()> {
        if keys.is_empty() && images.is_empty() {
            return Ok(());
        }
        let sql = "UPDATE records SET used=?2 WHERE id=(SELECT record FROM record_keys WHERE key=?1)";
        self.0.inner().db.write(|tx| {
            let mut statement = tx.prepare_cached(sql)?;
            let now = now_ms();
            keys.iter().try_for_each(|key| statement.execute(params![key.0.bytes(), now]).map(|_| ()))?;
            let mut statement = tx.prepare_cached("INSERT OR REPLACE INTO meta(key, value) VALUES(?1,?2)")?;
            for image in images {
                statement.execute(params![images::used_key(image), now.to_string().as_bytes()])?;
            }
            Ok(())
        })
    }

    /// Forgets what these keys lead to, with all other keys that lead there.
    pub fn remove(&self, keys: &[CacheKey]) -> Result<()> {
        self.0.inner().db.write(|tx| {
            for key in keys {
                if let Some(record) = key_owner(tx, key)? {
                    remove_record(tx, record)?;
                }
            }
            Ok(())
        })
    }

    /// Number of records.
    pub fn count(&self) -> Result<u64> {
        self.0
            .inner()
            .db
            .read(|db| Ok(db.query_row("SELECT count(*) FROM records", [], |r| r.get::<_, i64>(0))? as u64))
    }
}

fn key_owner(db: &Connection, key: &CacheKey) -> Result<Option<i64>> {
    let mut statement = db.prepare_cached("SELECT record FROM record_keys WHERE key=?1")?;
    Ok(statement.query_row([key.0.bytes()], |r| r.get(0)).optional()?)
}

/// One statement, which sees one state of the database without a transaction around it. Aliases are only told, so they may be of
/// a later one.
fn find(db: &Connection, key: &CacheKey) -> Result<Option<Found>> {
    let sql = "SELECT r.id, r.created, r.kind, r.description, rl.layer, l.unpacked, l.boot \
               FROM record_keys k JOIN records r ON r.id=k.record LEFT JOIN record_layers rl ON rl.record=r.id \
               LEFT JOIN layers l ON l.id=rl.layer WHERE k.key=?1 ORDER BY rl.pos";
    let mut statement = db.prepare_cached(sql)?;
    let mut rows = statement.query([key.0.bytes()])?;
    let mut found: Option<(i64, Found)> = None;
    while let Some(row) = rows.next()? {
        let (_, found) = match &mut found {
            Some(found) => found,
            None => found.insert((row.get(0)?, Found::of(row)?)),
        };
        let Some(id) = row.get_ref(4)?.as_blob_or_null().map_err(rusqlite::Error::from)? else { break };
        let id = LayerId::from_column(id)?;
        let Some(unpacked) = row.get::<_, Option<bool>>(5)? else { return Ok(None) };
        let boot = row.get_ref(6)?.as_str_or_null().map_err(rusqlite::Error::from)?;
        if unpacked {
            found.unpacked.push(id);
        }
        if boot.is_some_and(|b| b != boot_id()) {
            found.unsettled.push(id);
        }
        found.record.snapshot.0.push(id);
    }
    let Some((record, mut found)) = found else { return Ok(None) };
    let mut statement = db.prepare_cached("SELECT key FROM record_keys WHERE record=?1 ORDER BY key")?;
    let mut rows = statement.query([record])?;
    while let Some(row) = rows.next()? {
        let key = row.get_ref(0)?.as_blob().map_err(rusqlite::Error::from)?;
        found.record.aliases.push(CacheKey(crate::db::digest_from(key, "record_keys")?));
    }
    Ok(Some(found))
}

impl Found {
    fn of(row: &rusqlite::Row<'_>) -> Result<Self> {
        let created = Timestamp::from_seconds(row.get::<_, i64>(1)? / 1000).unwrap_or(Timestamp::EPOCH);
        let record = Record {
            snapshot: Snapshot::default(),
            created,
            aliases: Vec::new(),
            kind: row.get(2)?,
            description: row.get(3)?,
        };
        Ok(Self { record, unsettled: Vec::new(), unpacked: Vec::new() })
    }
}

pub(crate) fn remove_record(db: &Connection, record: i64) -> Result<()> {
    for sql in [
        "DELETE FROM record_keys WHERE record=?1",
        "DELETE FROM record_layers WHERE record=?1",
        "DELETE FROM records WHERE id=?1",
    ] {
        db.prepare_cached(sql)?.execute([record])?;
    }
    Ok(())
}

fn remove_if_keyless(db: &Connection, record: i64) -> Result<()> {
    if db.prepare_cached("SELECT 1 FROM record_keys WHERE record=?1")?.exists([record])? {
        return Ok(());
    }
    remove_record(db, record)
}

/// Removes the records that need a layer.
pub(crate) fn remove_records_of(db: &Connection, id: &LayerId) -> Result<()> {
    let mut statement = db.prepare_cached("SELECT DISTINCT record FROM record_layers WHERE layer=?1")?;
    let records: Vec<i64> = statement.query_map([id.0], |r| r.get(0))?.collect::<rusqlite::Result<_>>()?;
    records.into_iter().try_for_each(|record| remove_record(db, record))
}

/// The ingredients of steps, by slot: a stable name of a step across builds.
#[derive(Debug, Clone, Copy)]
pub struct Steps<'a>(pub(crate) &'a Store);

impl Steps<'_> {
    /// What the step in `slot` was made of last time: (name, value) pairs.
    pub fn get(&self, slot: &str) -> Result<Option<Vec<(String, String)>>> {
        let sql = "SELECT ingredients FROM steps WHERE slot=?1";
        let text: Option<String> =
            self.0.inner().db.read(|db| Ok(db.prepare_cached(sql)?.query_row([slot], |r| r.get(0)).optional()?))?;
        text.map(|text| db::json(&text, "steps")).transpose()
    }

    /// Records what the step in `slot` is made of.
    pub fn put(&self, slot: &str, ingredients: &[(String, String)]) -> Result<()> {
        self.put_all(&[(slot, ingredients)])
    }

    /// Records several steps in one transaction.
    pub fn put_all(&self, steps: &[(&str, &[(String, String)])]) -> Result<()> {
        self.0.inner().db.write(|tx| {
            let mut statement =
                tx.prepare_cached("INSERT OR REPLACE INTO steps(slot, ingredients, used) VALUES(?1,?2,?3)")?;
            for (slot, ingredients) in steps {
                statement.execute(params![slot, db::to_json(ingredients, "steps")?, now_ms()])?;
            }
            Ok(())
        })
    }
}
