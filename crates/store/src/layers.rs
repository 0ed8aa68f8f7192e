//! Layers: unpacked trees in overlay's upper format, their blobs, or only the knowledge where a blob is.

use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::PathBuf;
use std::str::FromStr;

use kiln_oci::media::Compression;
use kiln_oci::{Descriptor, Digest, Timestamp};
use rusqlite::{Connection, OptionalExtension, params};

use crate::db;
use crate::error::{Context, Error, Result};
use crate::fsutil::{self, Measured, boot_id, now_ms};
use crate::session::Pin;
use crate::store::Store;

mod draft;

pub use draft::LayerDraft;

/// Names a layer of this store. Random: most layers are never exported, so their digest is not computed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerId(pub(crate) [u8; 16]);

impl LayerId {
    fn new() -> Result<Self> {
        fsutil::random_hex(16).ctx("read", "/dev/urandom")?.parse()
    }

    pub(crate) fn from_column(bytes: &[u8]) -> Result<Self> {
        bytes.try_into().map(Self).map_err(|_| Error::record("layers", "an id is not 16 bytes"))
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for LayerId {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let parsed =
            (s.len() == 32 && s.bytes().all(|b| b.is_ascii_hexdigit())).then(|| u128::from_str_radix(s, 16).ok());
        match parsed.flatten() {
            Some(n) => Ok(Self(n.to_be_bytes())),
            None => Err(Error::record("layers", format!("{s:?} is not a layer id"))),
        }
    }
}

/// A file system state: layers, lowest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Snapshot(pub Vec<LayerId>);

impl Snapshot {
    /// The same with another layer on top.
    pub fn with(&self, layer: LayerId) -> Self {
        Self(self.0.iter().copied().chain([layer]).collect())
    }
}

/// A compressed (or not) form of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerBlob {
    /// How it is compressed.
    pub compression: Compression,
    /// With which level, if kiln did it and it was not the default.
    pub level: Option<i32>,
    /// The blob. It may be in the store or not.
    pub descriptor: Descriptor,
}

/// What is known of a layer when it is made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LayerMeta {
    /// Digest of the uncompressed tar.
    pub diff_id: Option<Digest>,
    /// Bytes of its regular files.
    pub size: Option<u64>,
    /// Its blobs.
    pub blobs: Vec<LayerBlob>,
    /// Where a blob can be had; only the engine understands it.
    pub remote: Option<String>,
    /// When it was made, if that was not now.
    pub created: Option<Timestamp>,
}

/// A layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Its name.
    pub id: LayerId,
    /// Digest of the uncompressed tar, once known.
    pub diff_id: Option<Digest>,
    /// Bytes of its regular files, once known: what docker calls the size of a layer.
    pub size: Option<u64>,
    /// Its blobs, wherever they are.
    pub blobs: Vec<LayerBlob>,
    /// Whether [`Layers::path`] has its files.
    pub unpacked: bool,
    /// Where a blob can be had; only the engine understands it.
    pub remote: Option<String>,
    /// When it was recorded here.
    pub created: Timestamp,
}

/// The layers of a store.
#[derive(Debug, Clone, Copy)]
pub struct Layers<'a>(pub(crate) &'a Store);

/// Trees up to this size are summarised when they are committed: 3 ms. Others by the collector.
const MEASURE_AT_ONCE: u64 = 4_000;
/// Trees beyond this size are not summarised at all.
const MEASURE_MAX: u64 = 400_000;
/// The kernel writes dirty pages after 30 s; what is this old is taken to be on disk.
const SETTLED_AFTER_MS: i64 = 30 * 60 * 1000;

impl Layers<'_> {
    /// Begins a layer.
    pub fn draft(&self) -> Result<LayerDraft> {
        let session = self.0.inner().session()?;
        let dir = session.draft();
        let (fs_dir, work) = (dir.join("fs"), dir.join("work"));
        for path in [&dir, &fs_dir, &work] {
            fs::DirBuilder::new().mode(0o700).create(path).ctx("create", path)?;
        }
        // The mode of `/` in the container; not subject to the umask.
        fs::set_permissions(&fs_dir, fs::Permissions::from_mode(0o755)).ctx("chmod", &fs_dir)?;
        Ok(LayerDraft { dir, fs: fs_dir, work, session, store: self.0.clone(), done: false })
    }

    /// Records a layer whose files are not here, only the knowledge of where they come from. If a layer with that
    /// diff ID is already here, adds what is new to it and returns it.
    pub fn create_lazy(&self, meta: &LayerMeta) -> Result<LayerId> {
        self.create_lazy_beside(meta, &[])
    }

    /// Like [`create_lazy`](Self::create_lazy), but never one of `used`: a state may have two layers of the same content, and an
    /// overlay can't have a directory twice.
    pub fn create_lazy_beside(&self, meta: &LayerMeta, used: &[LayerId]) -> Result<LayerId> {
        let session = self.0.inner().session()?;
        let id = LayerId::new()?;
        session.pinning(|pin| {
            self.0.inner().db.write(|tx| {
                let known = match &meta.diff_id {
                    Some(diff_id) => all_by_diff_id(tx, diff_id)?.into_iter().find(|id| !used.contains(id)),
                    None => None,
                };
                let id = known.unwrap_or(id);
                match known {
                    Some(_) if meta.remote.is_some() => {
                        tx.execute("UPDATE layers SET remote=?2 WHERE id=?1", params![id.0, meta.remote])?;
                    }
                    Some(_) => {}
                    None => insert(tx, &id, meta, None)?,
                }
                meta.blobs.iter().try_for_each(|blob| insert_blob(tx, &id, blob))?;
                pin(&Pin::Layer(id));
                Ok(id)
            })
        })
    }

    /// A layer that must be here.
    pub fn get(&self, id: &LayerId) -> Result<Layer> {
        self.find(id)?.ok_or(Error::LayerMissing(*id))
    }

    /// A layer, if it is here.
    pub fn find(&self, id: &LayerId) -> Result<Option<Layer>> {
        self.0.inner().db.snapshot(|db| load(db, id))
    }

    /// The directory of an unpacked layer.
    pub fn path(&self, id: &LayerId) -> PathBuf {
        self.dir(id).join("fs")
    }

    pub(crate) fn dir(&self, id: &LayerId) -> PathBuf {
        self.0.root().join("layers").join(id.to_string())
    }

    /// Records the digest of the uncompressed tar, and the bytes of its regular files.
    pub fn set_diff_id(&self, id: &LayerId, diff_id: &Digest, size: u64) -> Result<()> {
        let sql = "UPDATE layers SET diff_id=?2, size=?3 WHERE id=?1";
        let changed =
            self.0.inner().db.write(|tx| Ok(tx.execute(sql, params![id.0, diff_id.bytes(), size as i64])?))?;
        if changed == 0 { Err(Error::LayerMissing(*id)) } else { Ok(()) }
    }

    /// Records a blob of the layer.
    pub fn add_blob(&self, id: &LayerId, blob: &LayerBlob) -> Result<()> {
        self.0.inner().db.write(|tx| {
            let here = tx.prepare_cached("SELECT 1 FROM layers WHERE id=?1")?.exists([id.0])?;
            if !here {
                return Err(Error::LayerMissing(*id));
            }
            insert_blob(tx, id, blob)
        })
    }

    /// Begins to unpack a lazy layer. Hold the lock of the layer's name if others may do the same.
    pub fn unpack_draft(&self, id: &LayerId) -> Result<LayerDraft> {
        self.get(id)?;
        self.draft()
    }

    /// Ends what [`unpack_draft`](Self::unpack_draft) began. If somebody else was faster, theirs is kept. `size`: bytes of the
    /// regular files.
    pub fn commit_unpack(&self, id: &LayerId, mut draft: LayerDraft, size: u64) -> Result<()> {
        let _lock = self.0.lock(&format!("unpack {id}"), &mut || {})?;
        if self.get(id)?.unpacked {
            return Ok(());
        }
        let measured = draft.seal()?;
        let target = self.dir(id);
        // Without the record it is debris: of a process that died here, or of a loss of power.
        let trash = draft.session.draft();
        _ = fs::rename(&target, &trash);
        _ = fsutil::remove_path(&trash);
        draft.publish(&target)?;
        self.0.inner().db.write(|tx| {
            let (disk, check) = columns(measured);
            let sql = "UPDATE layers SET unpacked=1, disk=?2, checksum=?3, boot=?4, written=?5, size=?6 WHERE id=?1";
            Ok(tx.execute(sql, params![id.0, disk, check, boot_id(), now_ms(), size as i64])?)
        })?;
        Ok(())
    }

    /// A layer with this diff ID, unpacked ones first. Pinned from then on, under a lease.
    pub fn find_by_diff_id(&self, diff_id: &Digest) -> Result<Option<LayerId>> {
        self.find_pinned(&|db| by_diff_id(db, diff_id))
    }

    /// A layer that has this blob, unpacked ones first. Pinned from then on, under a lease.
    pub fn find_by_blob(&self, blob: &Digest) -> Result<Option<LayerId>> {
        let sql = "SELECT b.layer FROM layer_blobs b JOIN layers l ON l.id=b.layer WHERE b.digest=?1 \
                   ORDER BY l.unpacked DESC, l.created LIMIT 1";
        self.find_pinned(&|db| first_layer(db, sql, blob))
    }

    /// The same, but none of `used`.
    pub fn find_by_diff_id_beside(&self, diff_id: &Digest, used: &[LayerId]) -> Result<Option<LayerId>> {
        self.find_pinned(&|db| Ok(all_by_diff_id(db, diff_id)?.into_iter().find(|id| !used.contains(id))))
    }

    /// Forgets a layer that is not unpacked and can't be had any more, with all cache records that need it.
    pub fn forget_lost(&self, id: &LayerId) -> Result<()> {
        self.0.inner().db.write(|tx| {
            let unpacked = "SELECT 1 FROM layers WHERE id=?1 AND unpacked=1";
            if tx.prepare_cached(unpacked)?.exists([id.0])? {
                return Ok(());
            }
            crate::cache::remove_records_of(tx, id)?;
            delete(tx, id)
        })
    }

    fn find_pinned(&self, look_up: &dyn Fn(&Connection) -> Result<Option<LayerId>>) -> Result<Option<LayerId>> {
        let inner = self.0.inner();
        loop {
            let find = || inner.db.read(look_up);
            let found = match inner.leased_session() {
                None => find()?,
                Some(session) => session.pinning(|pin| {
                    let found = find()?;
                    found.iter().for_each(|id| pin(&Pin::Layer(*id)));
                    Ok(found)
                })?,
            };
            match found {
                // A damaged one is not unpacked any more; maybe another one is.
                Some(id) if !self.intact(&id)? => {}
                other => return Ok(other),
            }
        }
    }

    /// Whether a layer is what was committed. If not, it is not unpacked any more: forgotten, or lazy if a blob of it is here.
    pub fn intact(&self, id: &LayerId) -> Result<bool> {
        let sql = "SELECT boot, checksum FROM layers WHERE id=?1 AND unpacked=1";
        let inner = self.0.inner();
        type Row = (Option<String>, Option<i64>);
        let row: Option<Row> = inner.db.read(|db| {
            let mut statement = db.prepare_cached(sql)?;
            Ok(statement.query_row([id.0], |r| Ok((r.get(0)?, r.get(1)?))).optional()?)
        })?;
        let Some((boot, check)) = row else { return Ok(true) };
        let path = self.path(id);
        let same = match boot {
            Some(boot) if boot != boot_id() => {
                let found = match fsutil::measure(&path, MEASURE_MAX) {
                    Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => None,
                    // That it can't be read now says nothing of what is there.
                    found => found.ctx("read", &path)?,
                };
                check.is_some() && found.map(|m| m.check as i64) == check
            }
            _ => return Ok(path.try_exists().ctx("stat", &path)? || self.forget_files(id)?),
        };
        if same {
            inner.db.write(|tx| Ok(tx.execute("UPDATE layers SET boot=NULL WHERE id=?1", [id.0])?))?;
            return Ok(true);
        }
        self.forget_files(id)
    }

    /// Summarises the layers that were too large to do so when they were committed.
    pub(crate) fn measure_new(&self) -> Result<()> {
        let inner = self.0.inner();
        let ids = inner.db.read(|db| {
            let mut statement = db.prepare_cached("SELECT id FROM layers WHERE unpacked=1 AND disk IS NULL")?;
            let ids = statement.query_map([], |r| r.get::<_, Vec<u8>>(0))?;
            ids.map(|id| LayerId::from_column(&id?)).collect::<Result<Vec<_>>>()
        })?;
        for id in ids {
            // One that can't be read now, or goes away, is for the next time.
            let Ok(Some(found)) = fsutil::measure(&self.path(&id), MEASURE_MAX) else { continue };
            let (disk, check) = columns(Some(found));
            // A summary that is made in another boot would vouch for damage.
            let sql =
                "UPDATE layers SET disk=?2, checksum=iif(boot IS NULL OR boot=?4, ?3, NULL) WHERE id=?1 AND unpacked=1";
            inner.db.write(|tx| Ok(tx.execute(sql, params![id.0, disk, check, boot_id()])?))?;
        }
        Ok(())
    }

    /// Forgets the files of a layer that was damaged from outside. Returns false, for its callers.
    fn forget_files(&self, id: &LayerId) -> Result<bool> {
        let session = self.0.inner().session()?;
        let layer = self.find(id)?;
        let recoverable = layer.is_some_and(|l| l.remote.is_some() || l.blobs.iter().any(|b| self.has_blob(b)));
        self.0.inner().db.write(|tx| {
            if recoverable {
                tx.execute("UPDATE layers SET unpacked=0, boot=NULL, disk=NULL, checksum=NULL WHERE id=?1", [id.0])?;
                return Ok(());
            }
            crate::cache::remove_records_of(tx, id)?;
            delete(tx, id)
        })?;
        let trash = session.draft();
        if fs::rename(self.dir(id), &trash).is_ok() {
            _ = fsutil::remove_path(&trash);
        }
        Ok(false)
    }

    fn has_blob(&self, blob: &LayerBlob) -> bool {
        self.0.content().path(&blob.descriptor.digest).exists()
    }
}

/// Deletes the rows of a layer. Its records must be gone.
pub(crate) fn delete(db: &Connection, id: &LayerId) -> Result<()> {
    db.prepare_cached("DELETE FROM layer_blobs WHERE layer=?1")?.execute([id.0])?;
    db.prepare_cached("DELETE FROM layers WHERE id=?1")?.execute([id.0])?;
    Ok(())
}

fn columns(measured: Option<Measured>) -> (Option<i64>, Option<i64>) {
    (measured.map(|m| m.disk as i64), measured.map(|m| m.check as i64))
}

/// Inserts a row; `files` is given for a layer that is unpacked.
fn insert(db: &Connection, id: &LayerId, meta: &LayerMeta, files: Option<Option<Measured>>) -> Result<()> {
    let (disk, check) = columns(files.flatten());
    let boot = files.map(|_| boot_id());
    let sql = "INSERT INTO layers(id, diff_id, size, unpacked, remote, created, disk, checksum, boot, written) \
               VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10)";
    let (diff_id, size) = (meta.diff_id.as_ref().map(Digest::bytes), meta.size.map(|s| s as i64));
    let unpacked = files.is_some();
    let now = now_ms();
    let created = meta.created.map_or(now, |c| c.seconds().saturating_mul(1000));
    db.prepare_cached(sql)?.execute(params![
        id.0,
        diff_id,
        size,
        unpacked,
        meta.remote,
        created,
        disk,
        check,
        boot,
        now
    ])?;
    Ok(())
}

fn insert_blob(db: &Connection, id: &LayerId, blob: &LayerBlob) -> Result<()> {
    let sql =
        "INSERT OR REPLACE INTO layer_blobs(layer, digest, compression, level, descriptor) VALUES(?1,?2,?3,?4,?5)";
    let descriptor = db::to_json(&blob.descriptor, "layer_blobs")?;
    let digest = blob.descriptor.digest;
    db.prepare_cached(sql)?.execute(params![id.0, digest.bytes(), blob.compression.name(), blob.level, descriptor])?;
    Ok(())
}

fn first_layer(db: &Connection, sql: &str, digest: &Digest) -> Result<Option<LayerId>> {
    let id: Option<Vec<u8>> = db.prepare_cached(sql)?.query_row([digest.bytes()], |r| r.get(0)).optional()?;
    id.map(|id| LayerId::from_column(&id)).transpose()
}

fn all_by_diff_id(db: &Connection, diff_id: &Digest) -> Result<Vec<LayerId>> {
    let sql = "SELECT id FROM layers WHERE diff_id=?1 ORDER BY unpacked DESC, created";
    let mut statement = db.prepare_cached(sql)?;
    let rows = statement.query_map([diff_id.bytes()], |r| r.get::<_, Vec<u8>>(0))?;
    rows.map(|id| LayerId::from_column(&id?)).collect()
}

pub(crate) fn by_diff_id(db: &Connection, diff_id: &Digest) -> Result<Option<LayerId>> {
    first_layer(db, "SELECT id FROM layers WHERE diff_id=?1 ORDER BY unpacked DESC, created LIMIT 1", diff_id)
}

pub(crate) fn diff_id(db: &Connection, id: &LayerId) -> Result<Option<Digest>> {
    let mut statement = db.prepare_cached("SELECT diff_id FROM layers WHERE id=?1")?;
    let bytes: Option<Option<Vec<u8>>> = statement.query_row([id.0], |r| r.get(0)).optional()?;
    bytes.flatten().map(|b| crate::db::digest_from(&b, "layers")).transpose()
}

fn load(db: &Connection, id: &LayerId) -> Result<Option<Layer>> {
    type Row = (Option<Vec<u8>>, Option<i64>, bool, Option<String>, i64);
    let mut statement = db.prepare_cached("SELECT diff_id, size, unpacked, remote, created FROM layers WHERE id=?1")?;
    let row: Option<Row> =
        statement.query_row([id.0], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?, r.get(4)?))).optional()?;
    let Some((diff_id, size, unpacked, remote, created)) = row else { return Ok(None) };
    let diff_id = diff_id.map(|d| db::digest_from(&d, "layers")).transpose()?;
    let mut statement =
        db.prepare_cached("SELECT compression, level, descriptor FROM layer_blobs WHERE layer=?1 ORDER BY digest")?;
    let rows = statement.query_map([id.0], |r| Ok((r.get::<_, String>(0)?, r.get(1)?, r.get::<_, String>(2)?)))?;
    let mut blobs = Vec::new();
    for row in rows {
        let (compression, level, descriptor) = row?;
        let compression = match compression.as_str() {
            "uncompressed" => Compression::Uncompressed,
            "gzip" => Compression::Gzip,
            "zstd" => Compression::Zstd,
            other => return Err(Error::record("layer_blobs", format!("compression {other:?}"))),
        };
        blobs.push(LayerBlob { compression, level, descriptor: db::json(&descriptor, "layer_blobs")? });
    }
    Ok(Some(Layer {
        id: *id,
        diff_id,
        size: size.map(|s| s as u64),
        blobs,
        unpacked,
        remote,
        created: Timestamp::from_seconds(created / 1000).unwrap_or(Timestamp::EPOCH),
    }))
}
