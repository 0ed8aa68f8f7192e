//! What the store uses, measured on the file system: allocated blocks, a file with several links counted once.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use kiln_oci::{Digest, Timestamp};
use rusqlite::Connection;

use crate::error::{Context, Error, Result};
use crate::fsutil::{self, now_ms};
use crate::layers::LayerId;
use crate::mark::Marks;
use crate::session::{Pin, all_pins, partials};
use crate::store::Store;

/// Space of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KindUsage {
    /// How many.
    pub count: u64,
    /// How many of them are in use.
    pub active: u64,
    /// Allocated bytes.
    pub bytes: u64,
    /// Bytes that a prune could free.
    pub reclaimable: u64,
}

/// What the store uses. The kinds add up to `total`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Images: their blobs, and the unpacked layers that an image needs.
    pub images: KindUsage,
    /// Of `images.bytes`: unpacked layers that more than one image needs, or an image and the build cache.
    pub layers_shared: u64,
    /// Of `images.bytes`: unpacked layers that one image needs and nothing else.
    pub layers_unshared: u64,
    /// Cache records, with the layers and blobs that no image needs.
    pub build_cache: KindUsage,
    /// Cache mounts.
    pub cache_mounts: KindUsage,
    /// Containers: what they wrote, and their logs.
    pub containers: KindUsage,
    /// Build logs.
    pub logs: KindUsage,
    /// What sources keep: git, http, packages. And downloads of layers that were cut off.
    pub sources: KindUsage,
    /// The database, and what is being made.
    pub other: u64,
    /// All of it.
    pub total: u64,
}

/// A cache record, for lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheEntry {
    pub(crate) id: i64,
    /// What kind of step made it.
    pub kind: String,
    /// The step.
    pub description: String,
    /// When it was made.
    pub created: Timestamp,
    /// When it was last used.
    pub used: Timestamp,
    /// Its layers, lowest first.
    pub layers: Vec<LayerId>,
    /// Allocated bytes of those of its layers that no image needs, as far as they were measured.
    pub bytes: u64,
    /// The same without the layers that it has in common with an older record.
    pub own_bytes: u64,
    /// Whether an image needs all of its layers anyway.
    pub in_image: bool,
    /// Whether a live process uses all of its layers.
    pub in_use: bool,
    pub(crate) used_ms: i64,
}

impl Store {
    /// Measures what the store uses. Walks all layers and cache mounts.
    pub fn usage(&self) -> Result<Usage> {
        let mut marks = Marks::default();
        let (cached, named) = self.inner().db.snapshot(|db| {
            marks.refresh(self, db, &HashSet::new())?;
            Ok((cached_layers(db)?, Marks::of_named(self, db)?))
        })?;
        let mut count = Counter::default();
        let mut usage = Usage::default();
        self.measure_layers(&marks, &named, &cached, (&mut count, &mut usage))?;
        self.measure_blobs(&marks, &named, (&mut count, &mut usage))?;
        for mount in self.cache_mounts().list()? {
            let bytes = count.tree(mount.path.parent().unwrap_or(&mount.path))?;
            usage.cache_mounts.count += 1;
            usage.cache_mounts.bytes += bytes;
            usage.cache_mounts.reclaimable += bytes;
        }
        for id in self.containers().list()? {
            let bytes = count.tree(&self.containers().dir(&id))?;
            let active = self.containers().try_lock(&id)?.is_none();
            usage.containers.count += 1;
            usage.containers.active += u64::from(active);
            usage.containers.bytes += bytes;
            usage.containers.reclaimable += if active { 0 } else { bytes };
        }
        for build in self.builds().list()? {
            usage.logs.count += 1;
            usage.logs.active += u64::from(build.status == crate::BuildStatus::Running);
        }
        usage.logs.bytes = count.tree(&self.root().join("builds"))?;
        usage.logs.reclaimable = usage.logs.bytes;
        usage.sources.count = crate::sources::list(self).len() as u64;
        usage.sources.bytes = count.tree(&self.root().join("sources"))?;
        let partial: Vec<u64> = partials(self.root())?.iter().map(|(path, _)| tree(path)).collect::<Result<_>>()?;
        usage.sources.count += partial.len() as u64;
        usage.sources.bytes += partial.iter().sum::<u64>();
        usage.sources.reclaimable = usage.sources.bytes;
        usage.other = count.tree(&self.root().join("tmp"))?.saturating_sub(partial.iter().sum());
        usage.other += database(self.root());
        let images = self.images().list()?;
        usage.images.count = images.iter().map(|i| i.target.digest).collect::<HashSet<_>>().len() as u64;
        usage.images.active =
            images.iter().filter(|i| i.name.is_some()).map(|i| i.target.digest).collect::<HashSet<_>>().len() as u64;
        let entries = cache_entries(self, &marks)?;
        usage.build_cache.count = entries.len() as u64;
        usage.build_cache.active = entries.iter().filter(|e| e.in_use).count() as u64;
        usage.total = usage.images.bytes
            + usage.build_cache.bytes
            + usage.containers.bytes
            + usage.cache_mounts.bytes
            + usage.logs.bytes
            + usage.sources.bytes
            + usage.other;
        Ok(usage)
    }

    /// All cache records.
    pub fn cache_entries(&self) -> Result<Vec<CacheEntry>> {
        let mut marks = Marks::default();
        self.inner().db.snapshot(|db| marks.refresh(self, db, &HashSet::new()))?;
        cache_entries(self, &marks)
    }

    fn measure_layers(
        &self,
        marks: &Marks,
        named: &Marks,
        cached: &HashSet<LayerId>,
        (count, usage): (&mut Counter, &mut Usage),
    ) -> Result<()> {
        let dir = self.root().join("layers");
        let mut ids: Vec<LayerId> =
            fs::read_dir(&dir).ctx("list", &dir)?.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).collect();
        // A file that an image and the cache share counts for the image.
        ids.sort_by_key(|id| (!marks.layers.contains(id), *id));
        for id in ids {
            let bytes = count.tree(&self.layers().dir(&id))?;
            if marks.layers.contains(&id) {
                usage.images.bytes += bytes;
                if !named.layers.contains(&id) {
                    usage.images.reclaimable += bytes;
                }
                match cached.contains(&id) || marks.users.get(&id).is_some_and(|n| *n > 1) {
                    true => usage.layers_shared += bytes,
                    false => usage.layers_unshared += bytes,
                }
            } else {
                usage.build_cache.bytes += bytes;
                usage.build_cache.reclaimable += bytes;
            }
        }
        Ok(())
    }

    fn measure_blobs(&self, marks: &Marks, named: &Marks, (count, usage): (&mut Counter, &mut Usage)) -> Result<()> {
        for digest in blobs(self)? {
            let Ok(metadata) = fs::metadata(self.content().path(&digest)) else { continue };
            let bytes = count.file(metadata.dev(), metadata.ino(), metadata.nlink() > 1, metadata.blocks() * 512);
            if marks.blobs.contains(&digest) {
                usage.images.bytes += bytes;
                if !named.blobs.contains(&digest) {
                    usage.images.reclaimable += bytes;
                }
            } else {
                usage.build_cache.bytes += bytes;
                usage.build_cache.reclaimable += bytes;
            }
        }
        Ok(())
    }
}

/// Counts each file once.
#[derive(Debug, Default)]
struct Counter {
    linked: HashSet<(u64, u64)>,
}

impl Counter {
    fn file(&mut self, dev: u64, ino: u64, linked: bool, bytes: u64) -> u64 {
        if linked && !self.linked.insert((dev, ino)) { 0 } else { bytes }
    }

    /// The allocated bytes of the directory `path` and what is below it. One that went away meanwhile has none.
    fn tree(&mut self, path: &Path) -> Result<u64> {
        let mut bytes = fs::symlink_metadata(path).map_or(0, |m| m.blocks() * 512);
        let visited = fsutil::visit(path, &mut |st, _| {
            let dir = rustix::fs::FileType::from_raw_mode(st.st_mode) == rustix::fs::FileType::Directory;
            bytes += self.file(st.st_dev, st.st_ino, !dir && st.st_nlink > 1, st.st_blocks as u64 * 512);
            true
        });
        match visited {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("read", path, e)),
            _ => Ok(bytes),
        }
    }
}

/// The allocated bytes of a file or tree.
pub(crate) fn tree(path: &Path) -> Result<u64> {
    match path.is_dir() {
        true => Counter::default().tree(path),
        false => Ok(fs::symlink_metadata(path).map_or(0, |m| m.blocks() * 512)),
    }
}

/// Not less than what the store uses, without looking into layers: files that they share count for each of them.
pub(crate) fn at_most(store: &Store) -> Result<u64> {
    /// A layer's directory, and `fs` in it.
    const DIRECTORIES: u64 = 2 * 4096;
    let root = store.root();
    let mut count = Counter::default();
    let sql = "SELECT count(*), sum(disk), count(disk) FROM layers WHERE unpacked=1";
    let (layers, sum, measured) = store.inner().db.read(|db| {
        Ok(db.query_row(sql, [], |r| Ok((r.get::<_, i64>(0)?, r.get::<_, Option<i64>>(1)?, r.get::<_, i64>(2)?)))?)
    })?;
    if measured < layers {
        return Ok(u64::MAX);
    }
    let mut bytes = sum.unwrap_or(0) as u64 + layers as u64 * DIRECTORIES;
    for part in ["content", "containers", "mounts", "builds", "sources", "tmp"] {
        bytes += count.tree(&root.join(part))?;
    }
    Ok(bytes + database(root))
}

/// Allocated bytes of the database, and of what is kept for it.
fn database(root: &Path) -> u64 {
    let files = ["reserve", "kiln.db", "kiln.db-wal", "kiln.db-shm"];
    files.iter().map(|file| fs::metadata(root.join(file)).map_or(0, |m| m.blocks() * 512)).sum()
}

/// Bytes free for us on the store's file system.
pub(crate) fn free_space(store: &Store) -> Result<u64> {
    let stat = rustix::fs::statvfs(store.root()).ctx("stat", store.root())?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Milliseconds since a file was changed; 0 if that can't be told.
pub(crate) fn age_ms(path: &Path) -> i64 {
    fs::metadata(path).map_or(0, |m| now_ms() - m.mtime() * 1000)
}

/// All blobs of the store.
pub(crate) fn blobs(store: &Store) -> Result<Vec<Digest>> {
    let root = store.root().join("content/blobs");
    let mut digests = Vec::new();
    for algorithm in fs::read_dir(&root).ctx("list", &root)? {
        let dir = algorithm.ctx("list", &root)?.path();
        let Some(name) = dir.file_name().and_then(|n| n.to_str()).map(str::to_owned) else { continue };
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        let hex = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
        digests.extend(hex.filter_map(|hex| format!("{name}:{hex}").parse::<Digest>().ok()));
    }
    Ok(digests)
}

fn cached_layers(db: &Connection) -> Result<HashSet<LayerId>> {
    let mut statement = db.prepare_cached("SELECT DISTINCT layer FROM record_layers")?;
    let ids = statement.query_map([], |r| r.get::<_, Vec<u8>>(0))?;
    ids.map(|id| LayerId::from_column(&id?)).collect()
}

/// All cache records, the least recently used first.
pub(crate) fn cache_entries(store: &Store, marks: &Marks) -> Result<Vec<CacheEntry>> {
    let pins = all_pins(store.root())?;
    let sql = "SELECT r.id, r.kind, r.description, r.created, r.used, rl.layer, l.disk \
               FROM records r LEFT JOIN record_layers rl ON rl.record=r.id LEFT JOIN layers l ON l.id=rl.layer \
               ORDER BY r.used, r.id, rl.pos";
    let time = |ms: i64| Timestamp::from_seconds(ms / 1000).unwrap_or(Timestamp::EPOCH);
    store.inner().db.read(|db| {
        let mut statement = db.prepare_cached(sql)?;
        let mut rows = statement.query([])?;
        let mut entries: Vec<CacheEntry> = Vec::new();
        let mut sizes = HashMap::new();
        while let Some(row) = rows.next()? {
            let id = row.get(0)?;
            if entries.last().is_none_or(|e| e.id != id) {
                let used_ms = row.get(4)?;
                entries.push(CacheEntry {
                    id,
                    kind: row.get(1)?,
                    description: row.get(2)?,
                    created: time(row.get(3)?),
                    used: time(used_ms),
                    layers: Vec::new(),
                    bytes: 0,
                    own_bytes: 0,
                    in_image: true,
                    in_use: false,
                    used_ms,
                });
            }
            let (Some(layer), Some(entry)) = (row.get::<_, Option<Vec<u8>>>(5)?, entries.last_mut()) else { continue };
            let layer = LayerId::from_column(&layer)?;
            entry.layers.push(layer);
            if !marks.layers.contains(&layer) {
                entry.in_image = false;
                let bytes = row.get::<_, Option<i64>>(6)?.unwrap_or(0) as u64;
                entry.bytes += bytes;
                sizes.insert(layer, bytes);
            }
        }
        let mut by_age: Vec<&mut CacheEntry> = entries.iter_mut().collect();
        by_age.sort_by_key(|e| e.id);
        for entry in by_age {
            entry.in_use = !entry.layers.is_empty() && entry.layers.iter().all(|l| pins.contains(&Pin::Layer(*l)));
            entry.own_bytes = entry.layers.iter().filter_map(|l| sizes.remove(l)).sum();
        }
        Ok(entries)
    })
}
