//! Collection: what nothing leads to goes; then, for a budget, the least recently used cache records and cache mounts.
//!
//! Roots are images, cache records, leases of live processes and the table `roots`. Everything is removed in short batches
//! under the exclusive lock of `locks/gc` (see the crate's header): in each, leases and rows are read again, rows
//! are deleted, and files are moved to `tmp/`. Files are deleted after the lock is gone.
//! The budget is measured on the file system: allocated blocks, a file with several links counted once.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;

use kiln_oci::Digest;
use rusqlite::params;
use rustix::fs::FlockOperation;

use crate::error::{Context, Result};
use crate::fsutil::{self, Removed, now_ms};
use crate::layers::{self, LayerId};
use crate::lock::{self, flock};
use crate::mark::Marks;
use crate::mounts::MountInfo;
use crate::session::{self, Pin, Session};
use crate::store::Store;
use crate::usage::CacheEntry;
use crate::{cache, usage};

/// What may be evicted, and down to what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PrunePolicy {
    /// The store may use this many bytes; 0 is no limit.
    pub max_used_space: u64,
    /// The file system must have this many bytes free; 0 is no demand.
    pub min_free_space: u64,
    /// Never go below this, whatever the others say. Alone it is the limit.
    pub reserved_space: u64,
    /// Keep what was used within this time.
    pub keep_since: Option<Duration>,
    /// Also evict records all of whose layers an image holds anyway.
    pub all: bool,
    /// Evict only what fits all of these.
    pub filters: Vec<Filter>,
}

/// Restricts what is evicted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    /// Of this kind; cache mounts are `exec.cachemount`.
    Kind(String),
    /// Not of this kind.
    NotKind(String),
    /// Whose description contains this.
    Description(String),
    /// Not used for this long.
    UnusedFor(Duration),
}

impl Filter {
    fn accepts(&self, kind: &str, description: &str, used_ms: i64) -> bool {
        match self {
            Self::Kind(wanted) => kind == wanted,
            Self::NotKind(other) => kind != other,
            Self::Description(part) => description.contains(part),
            Self::UnusedFor(time) => is_older(used_ms, *time),
        }
    }
}

fn is_older(used_ms: i64, time: Duration) -> bool {
    i128::from(now_ms()) - i128::from(used_ms) >= time.as_millis() as i128
}

/// What space is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Cache records. Their bytes count under what they held.
    Records,
    /// Unpacked layers.
    Layers,
    /// Blobs.
    Blobs,
    /// Cache mounts.
    CacheMounts,
    /// Build logs.
    Logs,
    /// What dead processes left.
    Debris,
}

/// What was removed of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Freed {
    /// How many.
    pub count: u64,
    /// Allocated bytes that are free now.
    pub bytes: u64,
}

/// What a collection removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// By kind.
    pub freed: BTreeMap<Kind, Freed>,
    /// What was evicted: (kind, description), in that order.
    pub evicted: Vec<(String, String)>,
}

impl Report {
    /// Bytes freed in all.
    pub fn bytes(&self) -> u64 {
        self.freed.values().map(|f| f.bytes).sum()
    }

    fn add(&mut self, kind: Kind, count: u64, bytes: u64) {
        if count > 0 {
            let freed = self.freed.entry(kind).or_default();
            freed.count += count;
            freed.bytes += bytes;
        }
    }
}

/// Rows that are changed under one hold of the lock.
const BATCH: usize = 64;
/// Steps whose ingredients are remembered for this long without a build.
const STEPS_MAX_AGE_MS: i64 = 90 * 24 * 3600 * 1000;
/// Files without a record that are younger may be in the making.
const ORPHAN_MIN_AGE_MS: i64 = 3600 * 1000;

/// Something that can be evicted.
#[derive(Debug)]
enum Candidate {
    Record(CacheEntry),
    Mount(MountInfo),
}

impl Candidate {
    fn used_ms(&self) -> i64 {
        match self {
            Self::Record(entry) => entry.used_ms,
            Self::Mount(mount) => mount.used_ms,
        }
    }

    fn words(&self) -> (&str, &str) {
        match self {
            Self::Record(entry) => (&entry.kind, &entry.description),
            Self::Mount(mount) => ("exec.cachemount", &mount.id),
        }
    }
}

impl Store {
    /// Removes what nothing leads to, and nothing else. For after images were removed.
    pub fn collect(&self) -> Result<Report> {
        let _run = self.lock("gc-run", &mut || {})?;
        let mut collector = Collector::new(self)?;
        collector.unreferenced()?;
        Ok(collector.report)
    }

    /// Removes what nothing leads to, then evicts cache records and cache mounts, the least recently used first, until
    /// the policy's budget is met. Without limits, evicts all that its filters accept.
    pub fn gc(&self, policy: &PrunePolicy) -> Result<Report> {
        let _run = self.lock("gc-run", &mut || {})?;
        let mut collector = Collector::new(self)?;
        collector.unreferenced()?;
        collector.evict(policy)?;
        Ok(collector.report)
    }
}

struct Collector<'a> {
    store: &'a Store,
    session: std::sync::Arc<Session>,
    gc: File,
    gc_path: PathBuf,
    marks: Marks,
    report: Report,
}

impl<'a> Collector<'a> {
    fn new(store: &'a Store) -> Result<Self> {
        let gc_path = store.root().join("locks/gc");
        let gc = lock::open_lock_file(&gc_path)?;
        let session = store.inner().session()?;
        Ok(Self { store, session, gc, gc_path, marks: Marks::default(), report: Report::default() })
    }

    /// Runs one batch under the exclusive lock, with the pins of all live processes. `f` returns what to delete afterwards.
    fn batch<T>(&mut self, f: impl FnOnce(&mut Self, &HashSet<Pin>) -> Result<T>) -> Result<T> {
        flock(&self.gc, FlockOperation::LockExclusive, &self.gc_path)?;
        let result = session::all_pins(self.store.root()).and_then(|pins| f(self, &pins));
        flock(&self.gc, FlockOperation::Unlock, &self.gc_path)?;
        result
    }

    /// Moves files out of the way, to be deleted later. What is not there is fine.
    fn trash(&self, path: &std::path::Path) -> Option<PathBuf> {
        let trash = self.session.draft();
        fs::rename(path, &trash).is_ok().then_some(trash)
    }

    fn delete(&mut self, kind: Kind, trash: &[PathBuf]) -> Result<u64> {
        let mut total = 0;
        for path in trash {
            let Removed { bytes, .. } = fsutil::remove_path(path).ctx("remove", path)?;
            self.report.add(kind, 1, bytes);
            total += bytes;
        }
        Ok(total)
    }

    /// Everything that goes without a question. Returns the bytes freed.
    fn unreferenced(&mut self) -> Result<u64> {
        self.store.sweep()?;
        self.small_records()?;
        let mut bytes = self.layers()?;
        bytes += self.orphan_layers()?;
        bytes += self.blobs()?;
        bytes += self.orphan_mounts()?;
        self.store.layers().measure_new()?;
        self.orphan_logs()?;
        self.stale_locks();
        Ok(bytes)
    }

    fn small_records(&self) -> Result<()> {
        self.store.inner().db.write(|tx| {
            tx.execute("DELETE FROM meta WHERE expires<=?1", [now_ms()])?;
            tx.execute("DELETE FROM steps WHERE used<?1", [now_ms() - STEPS_MAX_AGE_MS])?;
            Ok(())
        })
    }

    /// Layers that nothing leads to.
    fn layers(&mut self) -> Result<u64> {
        let (store, marks) = (self.store, &mut self.marks);
        let candidates = store.inner().db.snapshot(|db| {
            marks.refresh(store, db, &HashSet::new())?;
            let sql = "SELECT id FROM layers WHERE id NOT IN (SELECT layer FROM record_layers)";
            let mut statement = db.prepare_cached(sql)?;
            let ids = statement.query_map([], |r| r.get::<_, Vec<u8>>(0))?;
            let ids = ids.map(|id| LayerId::from_column(&id?)).collect::<Result<Vec<_>>>()?;
            Ok(ids.into_iter().filter(|id| !marks.layers.contains(id)).collect::<Vec<_>>())
        })?;
        let mut bytes = 0;
        for chunk in candidates.chunks(BATCH) {
            let trash = self.batch(|this, pins| this.layer_batch(chunk, pins))?;
            bytes += self.delete(Kind::Layers, &trash)?;
        }
        Ok(bytes)
    }

    fn layer_batch(&mut self, chunk: &[LayerId], pins: &HashSet<Pin>) -> Result<Vec<PathBuf>> {
        let (store, marks) = (self.store, &mut self.marks);
        let gone = store.inner().db.write(|tx| {
            marks.refresh(store, tx, pins)?;
            let mut gone = Vec::new();
            for id in chunk.iter().filter(|id| !marks.layers.contains(*id)) {
                if !tx.prepare_cached("SELECT 1 FROM record_layers WHERE layer=?1")?.exists([id.0])? {
                    layers::delete(tx, id)?;
                    gone.push(*id);
                }
            }
            Ok(gone)
        })?;
        Ok(gone.iter().filter_map(|id| self.trash(&store.layers().dir(id))).collect())
    }

    /// Directories without a row: their process died before it wrote one.
    fn orphan_layers(&mut self) -> Result<u64> {
        let dir = self.store.root().join("layers");
        let ids: Vec<LayerId> =
            fs::read_dir(&dir).ctx("list", &dir)?.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).collect();
        let mut bytes = 0;
        for chunk in ids.chunks(BATCH * 16) {
            let unknown = self.rowless(chunk)?;
            if unknown.is_empty() {
                continue;
            }
            let trash = self.batch(|this, pins| {
                let free: Vec<LayerId> = unknown.into_iter().filter(|id| !pins.contains(&Pin::Layer(*id))).collect();
                let still = this.rowless(&free)?;
                Ok(still.iter().filter_map(|id| this.trash(&this.store.layers().dir(id))).collect::<Vec<_>>())
            })?;
            bytes += self.delete(Kind::Debris, &trash)?;
        }
        Ok(bytes)
    }

    /// Those of `ids` that have no row, or one that does not claim the directory.
    fn rowless(&self, ids: &[LayerId]) -> Result<Vec<LayerId>> {
        self.store.inner().db.snapshot(|db| {
            let mut statement = db.prepare_cached("SELECT 1 FROM layers WHERE id=?1")?;
            let mut rowless = Vec::new();
            for id in ids {
                if !statement.exists([id.0])? {
                    rowless.push(*id);
                }
            }
            Ok(rowless)
        })
    }

    /// Blobs that no image, layer, root or process leads to.
    fn blobs(&mut self) -> Result<u64> {
        let candidates: Vec<Digest> =
            usage::blobs(self.store)?.into_iter().filter(|d| !self.marks.blobs.contains(d)).collect();
        let mut bytes = 0;
        for chunk in candidates.chunks(BATCH * 4) {
            let trash = self.batch(|this, pins| {
                let (store, marks) = (this.store, &mut this.marks);
                let free = store.inner().db.snapshot(|db| {
                    marks.refresh(store, db, pins)?;
                    let mut statement = db.prepare_cached("SELECT 1 FROM layer_blobs WHERE digest=?1")?;
                    let mut free = Vec::new();
                    for digest in chunk.iter().filter(|d| !marks.blobs.contains(*d)) {
                        if !statement.exists([digest.bytes()])? {
                            free.push(*digest);
                        }
                    }
                    Ok(free)
                })?;
                Ok(free.iter().filter_map(|d| this.trash(&store.content().path(d))).collect::<Vec<_>>())
            })?;
            bytes += self.delete(Kind::Blobs, &trash)?;
        }
        Ok(bytes)
    }

    /// Instances of cache mounts without a row.
    fn orphan_mounts(&mut self) -> Result<u64> {
        let known: HashSet<PathBuf> = self
            .store
            .cache_mounts()
            .list()?
            .into_iter()
            .filter_map(|m| Some(m.path.parent()?.to_path_buf()))
            .collect();
        let mut trash = Vec::new();
        for hash in list(&self.store.root().join("mounts"))? {
            for dir in list(&hash)?.into_iter().filter(|p| p.extension().is_none() && !known.contains(p)) {
                let lock_path = dir.with_extension("lock");
                let lock = lock::open_lock_file(&lock_path)?;
                // Whoever is making it has the lock until its row is there.
                if flock(&lock, FlockOperation::NonBlockingLockExclusive, &lock_path)? && !self.has_mount_row(&dir)? {
                    trash.extend(self.trash(&dir));
                }
            }
        }
        self.delete(Kind::Debris, &trash)
    }

    fn has_mount_row(&self, dir: &std::path::Path) -> Result<bool> {
        let mounts = self.store.cache_mounts().list()?;
        Ok(mounts.iter().any(|m| m.path.parent() == Some(dir)))
    }

    fn orphan_logs(&mut self) -> Result<()> {
        let dir = self.store.root().join("builds");
        for path in list(&dir)? {
            let Some(id) = path.file_stem().and_then(|s| s.to_str()) else { continue };
            let here = self
                .store
                .inner()
                .db
                .read(|db| Ok(db.prepare_cached("SELECT 1 FROM builds WHERE id=?1")?.exists([id])?))?;
            if !here && usage::age_ms(&path) > ORPHAN_MIN_AGE_MS {
                let removed = fsutil::remove_path(&path).ctx("remove", &path)?;
                self.report.add(Kind::Logs, 1, removed.bytes);
            }
        }
        Ok(())
    }

    /// Lock files of killed processes: taking the lock and letting go removes them.
    fn stale_locks(&self) {
        for path in list(&self.store.root().join("locks")).unwrap_or_default() {
            if path.file_name().is_some_and(|n| n.len() == 40) {
                _ = lock::try_lock(path);
            }
        }
    }

    fn evict(&mut self, policy: &PrunePolicy) -> Result<()> {
        let limited = (policy.max_used_space, policy.min_free_space, policy.reserved_space) != (0, 0, 0);
        let mut used = if limited { usage::at_most(self.store)? } else { u64::MAX };
        if limited && used <= keep_bytes(policy, used, usage::free_space(self.store)?) {
            return Ok(());
        }
        if limited {
            used = self.store.usage()?.total;
        }
        let mut candidates = self.candidates(policy)?.into_iter().peekable();
        while candidates.peek().is_some() {
            let keep = if limited { keep_bytes(policy, used, usage::free_space(self.store)?) } else { 0 };
            if limited && used <= keep {
                return Ok(());
            }
            let mut hoped = 0;
            let mut batch = Vec::new();
            while batch.len() < BATCH && (!limited || hoped < used - keep) {
                let Some(next) = candidates.next() else { break };
                // Layers that other records need as well are freed later than hoped, never earlier.
                hoped += self.estimate(&next).max(1);
                batch.push(next);
            }
            let freed = self.evict_batch(batch)?;
            used = used.saturating_sub(freed);
        }
        Ok(())
    }

    fn estimate(&self, candidate: &Candidate) -> u64 {
        match candidate {
            Candidate::Record(entry) => entry.bytes,
            Candidate::Mount(mount) => self.store.cache_mounts().size(mount).unwrap_or(0),
        }
    }

    /// What may be evicted, the least recently used first.
    fn candidates(&self, policy: &PrunePolicy) -> Result<Vec<Candidate>> {
        let records = usage::cache_entries(self.store, &self.marks)?;
        let records = records.into_iter().filter(|e| policy.all || !e.in_image).map(Candidate::Record);
        let mounts = self.store.cache_mounts().list()?.into_iter().map(Candidate::Mount);
        let mut candidates: Vec<Candidate> = records
            .chain(mounts)
            .filter(|c| {
                let (kind, description) = c.words();
                policy.keep_since.is_none_or(|since| is_older(c.used_ms(), since))
                    && policy.filters.iter().all(|f| f.accepts(kind, description, c.used_ms()))
            })
            .collect();
        candidates.sort_by_key(Candidate::used_ms);
        Ok(candidates)
    }

    fn evict_batch(&mut self, batch: Vec<Candidate>) -> Result<u64> {
        let mut freed = 0;
        let mut records = Vec::new();
        for candidate in batch {
            match candidate {
                Candidate::Record(entry) => records.push(entry),
                Candidate::Mount(mount) => {
                    if let Some(removed) = self.store.cache_mounts().remove_instance(&mount)? {
                        self.report.add(Kind::CacheMounts, 1, removed.bytes);
                        self.report.evicted.push(("exec.cachemount".into(), mount.id));
                        freed += removed.bytes;
                    }
                }
            }
        }
        if records.is_empty() {
            return Ok(freed);
        }
        let evicted = self.batch(|this, pins| {
            this.store.inner().db.write(|tx| {
                let mut evicted = Vec::new();
                // A record is in use as long as one of its layers is, or was used since it was chosen.
                for entry in records.into_iter().filter(|e| !e.layers.iter().any(|id| pins.contains(&Pin::Layer(*id))))
                {
                    let sql = "SELECT 1 FROM records WHERE id=?1 AND used=?2";
                    if tx.prepare_cached(sql)?.exists(params![entry.id, entry.used_ms])? {
                        cache::remove_record(tx, entry.id)?;
                        evicted.push((entry.kind, entry.description));
                    }
                }
                Ok(evicted)
            })
        })?;
        self.report.add(Kind::Records, evicted.len() as u64, 0);
        self.report.evicted.extend(evicted);
        Ok(freed + self.layers()? + self.blobs()?)
    }
}

/// Entries of a directory.
fn list(dir: &std::path::Path) -> Result<Vec<PathBuf>> {
    fs::read_dir(dir).ctx("list", dir)?.map(|e| Ok(e.ctx("list", dir)?.path())).collect()
}

/// BuildKit's rule for its three limits, of which at least one is set.
fn keep_bytes(policy: &PrunePolicy, used: u64, free: u64) -> u64 {
    let mut keep = if policy.max_used_space == 0 { None } else { Some(policy.max_used_space) };
    let missing = policy.min_free_space.saturating_sub(free);
    if missing > 0 {
        let lower = used.saturating_sub(missing);
        keep = Some(keep.map_or(lower, |k| k.min(lower)));
    }
    match keep {
        Some(keep) => keep.max(policy.reserved_space),
        // Only a demand for free space, which is met.
        None if policy.min_free_space > 0 => u64::MAX,
        None => policy.reserved_space,
    }
}
