//! Cache mounts: directories that steps keep between builds.
//!
//! `mounts/<hash of the id>/<n>/fs`, with `<n>.lock` beside it: shared users hold a shared `flock`, others an exclusive one.
//! The id never becomes a path, and what is opened is always a directory that kiln made (CVE-2024-9675). A private user who finds
//! instance 0 in use takes the next one. The lock file of an instance is never removed while its hash directory is there.

use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use kiln_oci::{Digest, Timestamp};
use rusqlite::params;
use rustix::fs::FlockOperation;

use crate::error::{Context, Error, Result};
use crate::fsutil::{self, Removed, now_ms};
use crate::lock::{flock, open_lock_file};
use crate::store::Store;

/// How a cache mount is used by several steps at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Sharing {
    /// By all at once.
    #[default]
    Shared,
    /// Each gets one of its own.
    Private,
    /// One waits for the other.
    Locked,
}

/// How to open a cache mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MountOpts {
    /// Use by several at once.
    pub sharing: Sharing,
    /// Mode of a new directory.
    pub mode: u32,
    /// Owner of a new directory.
    pub uid: u32,
    /// Group of a new directory.
    pub gid: u32,
}

impl Default for MountOpts {
    fn default() -> Self {
        Self { sharing: Sharing::Shared, mode: 0o755, uid: 0, gid: 0 }
    }
}

/// An open cache mount. In use until it is dropped.
#[derive(Debug)]
pub struct CacheMount {
    path: PathBuf,
    created: bool,
    owned: bool,
    _lock: File,
}

impl CacheMount {
    /// The directory to mount.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is new.
    pub fn created(&self) -> bool {
        self.created
    }

    /// Whether a new one has the owner that was asked for. Not where the kernel does not let us.
    pub fn owner_applied(&self) -> bool {
        self.owned
    }
}

/// A cache mount on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountInfo {
    /// Its id.
    pub id: String,
    /// 0, or higher where private users met.
    pub instance: u32,
    /// Its directory.
    pub path: PathBuf,
    /// When it was made.
    pub created: Timestamp,
    /// When it was last opened.
    pub used: Timestamp,
    pub(crate) used_ms: i64,
    pub(crate) hash: String,
}

/// The cache mounts of a store.
#[derive(Debug, Clone, Copy)]
pub struct CacheMounts<'a>(pub(crate) &'a Store);

/// Private instances of one id; more than anyone runs at once.
const MAX_INSTANCES: u32 = 4096;

impl CacheMounts<'_> {
    /// Opens the cache mount `id`, which may be any string; makes it if it is not there.
    pub fn open(&self, id: &str, opts: &MountOpts) -> Result<CacheMount> {
        self.open_with(id, opts, &mut |_| Ok(()), &mut || {})
    }

    /// Like [`open`](Self::open). `fill` puts content into a new directory before anybody else can see it. `on_wait` is called
    /// once if somebody else has to be waited for.
    pub fn open_with(
        &self,
        id: &str,
        opts: &MountOpts,
        fill: &mut dyn FnMut(&Path) -> std::io::Result<()>,
        on_wait: &mut dyn FnMut(),
    ) -> Result<CacheMount> {
        let hash = hash_of(id);
        let dir = self.0.root().join("mounts").join(&hash);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).ctx("create", &dir)?;
        let instances = if opts.sharing == Sharing::Private { MAX_INSTANCES } else { 1 };
        for n in 0..instances {
            let lock_path = dir.join(format!("{n}.lock"));
            let lock = Lock { file: open_lock_file(&lock_path)?, path: lock_path };
            let instance = Instance { id, hash: &hash, n, dir: dir.join(n.to_string()) };
            if opts.sharing == Sharing::Private {
                if !lock.get(FlockOperation::NonBlockingLockExclusive)? {
                    continue;
                }
            } else if opts.sharing == Sharing::Locked && !lock.get(FlockOperation::NonBlockingLockExclusive)? {
                on_wait();
                lock.get(FlockOperation::LockExclusive)?;
            }
            let (mut created, mut owned) = (false, true);
            loop {
                if opts.sharing == Sharing::Shared {
                    lock.share(&instance.dir, on_wait)?;
                }
                if let Some(applied) = self.prepare(&instance, opts, fill)? {
                    (created, owned) = (true, applied);
                }
                if opts.sharing == Sharing::Shared {
                    lock.get(FlockOperation::LockShared)?;
                }
                // Going from an exclusive to a shared lock lets go for a moment, in which it may be removed.
                if instance.dir.exists() {
                    break;
                }
            }
            return Ok(CacheMount { path: instance.dir.join("fs"), created, owned, _lock: lock.file });
        }
        Err(Error::InUse(format!("cache mount {id:?}")))
    }

    /// Makes the directory if it is not there, and records the use. Returns whether a new one has the owner it should have.
    fn prepare(
        &self,
        instance: &Instance<'_>,
        opts: &MountOpts,
        fill: &mut dyn FnMut(&Path) -> std::io::Result<()>,
    ) -> Result<Option<bool>> {
        let mut made = None;
        if !instance.dir.exists() {
            let session = self.0.inner().session()?;
            let draft = session.draft();
            let files = draft.join("fs");
            let mut make = || -> Result<bool> {
                fs::DirBuilder::new().recursive(true).mode(0o700).create(&files).ctx("create", &files)?;
                fill(&files).ctx("fill", &files)?;
                let owned = std::os::unix::fs::lchown(&files, Some(opts.uid), Some(opts.gid)).is_ok();
                let mode = fs::Permissions::from_mode(opts.mode & 0o7777);
                fs::set_permissions(&files, mode).ctx("chmod", &files)?;
                fs::rename(&draft, &instance.dir).ctx("rename", &instance.dir)?;
                Ok(owned)
            };
            made = Some(make().inspect_err(|_| _ = fsutil::remove_path(&draft))?);
        }
        self.0.inner().db.write(|tx| {
            let sql = "INSERT INTO mounts(hash, instance, id, created, used) VALUES(?1,?2,?3,?4,?4) \
                       ON CONFLICT(hash, instance) DO UPDATE SET used=?4";
            Ok(tx
                .prepare_cached(sql)?
                .execute(params![instance.hash, instance.n, instance.id, now_ms()])
                .map(|_| ())?)
        })?;
        Ok(made)
    }

    /// All cache mounts, by id.
    pub fn list(&self) -> Result<Vec<MountInfo>> {
        let sql = "SELECT hash, instance, id, created, used FROM mounts ORDER BY id, instance";
        let root = self.0.root().join("mounts");
        self.0.inner().db.read(|db| {
            let mut statement = db.prepare_cached(sql)?;
            let rows = statement.query_map([], |r| {
                let (hash, instance): (String, u32) = (r.get(0)?, r.get(1)?);
                let time = |ms: i64| Timestamp::from_seconds(ms / 1000).unwrap_or(Timestamp::EPOCH);
                Ok(MountInfo {
                    path: root.join(&hash).join(instance.to_string()).join("fs"),
                    hash,
                    instance,
                    id: r.get(2)?,
                    created: time(r.get(3)?),
                    used: time(r.get(4)?),
                    used_ms: r.get(4)?,
                })
            })?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Allocated bytes of a cache mount.
    pub fn size(&self, mount: &MountInfo) -> Result<u64> {
        let mut disk = 0;
        let measured = fsutil::visit(&mount.path, &mut |st, _| {
            disk += st.st_blocks as u64 * 512;
            true
        });
        measured.ctx("read", &mount.path)?;
        Ok(disk)
    }

    /// Removes all instances of a cache mount that are not in use. [`Error::InUse`] if one is.
    pub fn remove(&self, id: &str) -> Result<Removed> {
        let mut total = Removed::default();
        for mount in self.list()?.iter().filter(|m| m.id == id) {
            match self.remove_instance(mount)? {
                Some(removed) => {
                    total.bytes += removed.bytes;
                    total.entries += removed.entries;
                }
                None => return Err(Error::InUse(format!("cache mount {id:?}"))),
            }
        }
        Ok(total)
    }

    /// Removes one instance; `None` if it is in use.
    pub(crate) fn remove_instance(&self, mount: &MountInfo) -> Result<Option<Removed>> {
        let session = self.0.inner().session()?;
        let dir = self.0.root().join("mounts").join(&mount.hash);
        let lock_path = dir.join(format!("{}.lock", mount.instance));
        let trash = session.draft();
        {
            let lock = open_lock_file(&lock_path)?;
            if !flock(&lock, FlockOperation::NonBlockingLockExclusive, &lock_path)? {
                return Ok(None);
            }
            let sql = "DELETE FROM mounts WHERE hash=?1 AND instance=?2";
            self.0.inner().db.write(|tx| Ok(tx.execute(sql, params![mount.hash, mount.instance])?))?;
            _ = fs::rename(dir.join(mount.instance.to_string()), &trash);
        }
        fsutil::remove_path(&trash).map(Some).ctx("remove", &trash)
    }
}

/// One directory of an id.
struct Instance<'a> {
    id: &'a str,
    hash: &'a str,
    n: u32,
    dir: PathBuf,
}

fn hash_of(id: &str) -> String {
    Digest::of(id.as_bytes()).hex()[..40].to_owned()
}

/// The lock file of an instance.
struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    fn get(&self, op: FlockOperation) -> Result<bool> {
        flock(&self.file, op, &self.path)
    }

    /// Gets a shared lock if the directory is there, an exclusive one (to make it) if it is not.
    fn share(&self, dir: &Path, on_wait: &mut dyn FnMut()) -> Result<()> {
        let mut waited = false;
        loop {
            if !dir.exists() && self.get(FlockOperation::NonBlockingLockExclusive)? {
                return Ok(());
            }
            // It is there; or somebody is making it, who then takes a shared lock too; or somebody is removing it.
            if !self.get(FlockOperation::NonBlockingLockShared)? {
                if !waited {
                    on_wait();
                    waited = true;
                }
                self.get(FlockOperation::LockShared)?;
            }
            if dir.exists() {
                return Ok(());
            }
            self.get(FlockOperation::Unlock)?;
            std::thread::yield_now();
        }
    }
}
