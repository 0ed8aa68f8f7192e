//! Collection: what nothing leads to goes; then, for a budget, the least recently used cache records, cache mounts, source caches
//! and images.
//!
//! Roots are images, cache records, leases of live processes and the table `roots`. Everything is removed in short batches
//! under the exclusive lock of `locks/gc` (see the crate's header): in each, leases and rows are read again, rows
//! are deleted, and files are moved to `tmp/`. Files are deleted after the lock is gone.
//! The budget is measured on the file system: allocated blocks, a file with several links counted once.

mod evict;
mod policy;

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::PathBuf;

use kiln_oci::Digest;
use rustix::fs::FlockOperation;

use crate::candidate::keep_bytes;
use crate::error::{Context, Result};
use crate::fsutil::{self, Removed, now_ms};
use crate::images;
use crate::layers::{self, LayerId};
use crate::lock::{self, flock};
use crate::mark::Marks;
use crate::session::{self, Pin, Session};
use crate::store::Store;
use crate::usage;

pub(crate) use policy::is_older;
pub use policy::{Filter, Freed, Kind, PrunePolicy, Report};

/// Rows that are changed under one hold of the lock.
const BATCH: usize = 64;
/// Steps whose ingredients are remembered for this long without a build.
const STEPS_MAX_AGE_MS: i64 = 90 * 24 * 3600 * 1000;
/// Builds whose records and logs are kept.
const BUILDS_KEPT: usize = 500;
/// Files without a record that are younger may be in the making.
const ORPHAN_MIN_AGE_MS: i64 = 3600 * 1000;

impl Store {
    /// Removes what nothing leads to, and nothing else. For after images were removed.
    pub fn collect(&self) -> Result<Report> {
        self.use_reserve();
        let _run = self.lock("gc-run", &mut || {})?;
        let mut collector = Collector::new(self)?;
        collector.unreferenced()?;
        crate::store::reserve(self.root());
        Ok(collector.report)
    }

    /// Removes what nothing leads to and downloads that were cut off, then evicts cache records, cache mounts, source caches and
    /// images, the least recently used first, until the policy's budget is met. Without limits, evicts all that its filters
    /// accept.
    pub fn gc(&self, policy: &PrunePolicy) -> Result<Report> {
        self.use_reserve();
        let _run = self.lock("gc-run", &mut || {})?;
        let mut collector = Collector::new(self)?;
        if policy.filters.is_empty() && policy.keep_since.is_none() {
            let (paths, _locked): (Vec<_>, Vec<_>) = session::partials(self.root())?.into_iter().unzip();
            collector.delete(Kind::Partials, &paths)?;
        }
        collector.unreferenced()?;
        collector.evict(policy)?;
        crate::store::reserve(self.root());
        Ok(collector.report)
    }

    /// Whether the store is within a policy's limits, as far as can be told without looking into layers: false may be wrong.
    pub fn is_within(&self, policy: &PrunePolicy) -> Result<bool> {
        self.layers().measure_new()?;
        let used = usage::at_most(self)?;
        Ok(used <= keep_bytes(policy, used, usage::free_space(self)?))
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
        self.store.containers().forget_dead()?;
        let mut bytes = self.layers()?;
        bytes += self.orphan_layers()?;
        bytes += self.blobs()?;
        bytes += self.orphan_mounts()?;
        self.store.layers().measure_new()?;
        self.store.builds().retain(BUILDS_KEPT)?;
        self.orphan_logs()?;
        self.stale_locks();
        Ok(bytes)
    }

    fn small_records(&self) -> Result<()> {
        self.store.inner().db.write(|tx| {
            tx.execute("DELETE FROM meta WHERE expires<=?1", [now_ms()])?;
            tx.execute("DELETE FROM steps WHERE used<?1", [now_ms() - STEPS_MAX_AGE_MS])?;
            images::forget_uses(tx)
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
}

/// Entries of a directory.
fn list(dir: &std::path::Path) -> Result<Vec<PathBuf>> {
    fs::read_dir(dir).ctx("list", dir)?.map(|e| Ok(e.ctx("list", dir)?.path())).collect()
}
