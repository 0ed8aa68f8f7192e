//! Opening the state directory, and what its parts share.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;

use rustix::fs::FlockOperation;

use crate::db::Db;
use crate::error::{Context, Result};
use crate::lock::{self, LockGuard};
use crate::session::{self, Lease, Session, guard};
use crate::{
    Builds, CacheMounts, CacheRecords, Containers, Content, Images, LayerId, Layers, Meta, Roots, Steps, fsutil, index,
    sources,
};

/// A state directory. Cheap to clone; may be used from any thread, and by any number of processes at once.
#[derive(Debug, Clone)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) root: PathBuf,
    pub(crate) db: Db,
    session: Mutex<Current>,
    pub(crate) index: Mutex<index::Waiting>,
    sweeper: Mutex<Option<JoinHandle<()>>>,
    layers_dir: OnceLock<OwnedFd>,
    /// Kinds of sources that this process uses, with their locks.
    sources: Mutex<HashMap<String, fs::File>>,
}

/// The session of this process, and how many leases hold it. Under one lock: a lease that begins while the last one ends gets
/// either the session that stays, or a new one.
#[derive(Debug, Default)]
struct Current {
    session: Option<Arc<Session>>,
    leases: usize,
}

impl Current {
    fn session(&mut self, root: &Path) -> Result<Arc<Session>> {
        if let Some(session) = &self.session {
            return Ok(session.clone());
        }
        let session = Arc::new(Session::start(root)?);
        self.session = Some(session.clone());
        Ok(session)
    }
}

impl Inner {
    /// The session of this process; started if there is none.
    pub(crate) fn session(&self) -> Result<Arc<Session>> {
        guard(&self.session).session(&self.root)
    }

    /// The session, to which look-ups pin from now on.
    pub(crate) fn begin_lease(&self) -> Result<Arc<Session>> {
        let mut current = guard(&self.session);
        let session = current.session(&self.root)?;
        current.leases += 1;
        Ok(session)
    }

    /// Returns whether it was the last one. Drafts in flight keep the session alive by themselves.
    pub(crate) fn end_lease(&self) -> bool {
        let mut current = guard(&self.session);
        current.leases -= 1;
        let is_last = current.leases == 0;
        let ended = if is_last { current.session.take() } else { None };
        // Its end may remove files, for which nobody need wait.
        drop(current);
        drop(ended);
        is_last
    }

    /// Whether a layer has a directory; 1 µs.
    pub(crate) fn has_layer_dir(&self, id: &LayerId) -> bool {
        use rustix::fs::{Access, AtFlags, Mode, OFlags};
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = match self.layers_dir.get() {
            Some(dir) => dir,
            None => match rustix::fs::open(self.root.join("layers"), flags, Mode::empty()) {
                Ok(dir) => self.layers_dir.get_or_init(|| dir),
                Err(_) => return false,
            },
        };
        rustix::fs::accessat(dir, id.to_string(), Access::EXISTS, AtFlags::empty()).is_ok()
    }

    /// The session, if somebody holds a lease: look-ups pin only then. What is made is pinned in any case.
    pub(crate) fn leased_session(&self) -> Option<Arc<Session>> {
        let current = guard(&self.session);
        current.session.clone().filter(|_| current.leases > 0)
    }
}

const DIRECTORIES: [&str; 8] =
    ["content/blobs/sha256", "layers", "locks", "leases", "builds", "mounts", "sources", "tmp"];

impl Store {
    /// Opens the store at `root`; makes it if it is not there. Debris of dead processes is removed in the background.
    pub fn open(root: &Path) -> Result<Self> {
        let root = std::path::absolute(root).ctx("resolve", root)?;
        let db = match Db::open(&root)? {
            Some(db) => db,
            None => create(&root)?,
        };
        let (session, sweeper, index) = (Mutex::default(), Mutex::new(None), Mutex::default());
        let (layers_dir, sources) = (OnceLock::new(), Mutex::default());
        let store = Self(Arc::new(Inner { root, db, session, index, sweeper, layers_dir, sources }));
        let debris = session::find_debris(&store.0.root, session::LOOK_LIMIT)?;
        if !debris.is_empty() {
            let inner = store.0.clone();
            let sweeper = std::thread::Builder::new().name("kiln-sweep".into());
            // Without a thread the debris waits for the next process.
            *guard(&store.0.sweeper) = sweeper.spawn(move || session::sweep(&inner, debris)).ok();
        }
        Ok(store)
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.0
    }

    /// To be called before something is removed: on a full disk, gives back the little space that is kept for it, until the
    /// next collection.
    pub fn use_reserve(&self) {
        if !self.free_space().is_ok_and(|free| free > RESERVE) {
            _ = fs::remove_file(self.root().join("reserve"));
        }
    }

    /// The state directory.
    pub fn root(&self) -> &Path {
        &self.0.root
    }

    /// Blobs.
    pub fn content(&self) -> Content<'_> {
        Content(self)
    }

    /// Layers.
    pub fn layers(&self) -> Layers<'_> {
        Layers(self)
    }

    /// Cache records.
    pub fn cache(&self) -> CacheRecords<'_> {
        CacheRecords(self)
    }

    /// What steps were made of, to tell why one is not cached.
    pub fn steps(&self) -> Steps<'_> {
        Steps(self)
    }

    /// Images.
    pub fn images(&self) -> Images<'_> {
        Images(self)
    }

    /// Small values with an expiry.
    pub fn meta(&self) -> Meta<'_> {
        Meta(self)
    }

    /// What others keep from being collected.
    pub fn roots(&self) -> Roots<'_> {
        Roots(self)
    }

    /// Build records and logs.
    pub fn builds(&self) -> Builds<'_> {
        Builds(self)
    }

    /// Containers.
    pub fn containers(&self) -> Containers<'_> {
        Containers(self)
    }

    /// Cache mounts.
    pub fn cache_mounts(&self) -> CacheMounts<'_> {
        CacheMounts(self)
    }

    /// Begins to keep what is made and looked up through this store from being collected.
    pub fn lease(&self) -> Result<Lease> {
        Lease::new(self)
    }

    /// Takes the lock `name`, exclusive across threads and processes. Calls `on_wait` once if somebody else has it.
    pub fn lock(&self, name: &str, on_wait: &mut dyn FnMut()) -> Result<LockGuard> {
        lock::lock(self.lock_path(name), on_wait)
    }

    /// Takes the lock `name`, or gives up when `keep_waiting` (asked every few milliseconds) says no.
    pub fn lock_while(&self, name: &str, keep_waiting: &mut dyn FnMut() -> bool) -> Result<Option<LockGuard>> {
        lock::lock_while(self.lock_path(name), keep_waiting)
    }

    /// Bytes that the store's file system has left for us.
    pub fn free_space(&self) -> Result<u64> {
        crate::usage::free_space(self)
    }

    /// Takes the lock `name` if it is free.
    pub fn try_lock(&self, name: &str) -> Result<Option<LockGuard>> {
        lock::try_lock(self.lock_path(name))
    }

    fn lock_path(&self, name: &str) -> PathBuf {
        lock::path_of(&self.0.root.join("locks"), name)
    }

    /// The directory `sources/<kind>`, made if it is not there. What is in it belongs to the source of that kind, and
    /// is not collected as long as this process lives.
    pub fn sources_dir(&self, kind: &str) -> Result<PathBuf> {
        let safe = !kind.is_empty() && kind.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        let kind = if safe { kind } else { "other" };
        let path = self.0.root.join("sources").join(kind);
        let mut used = guard(&self.0.sources);
        if !used.contains_key(kind) {
            let (file, lock_path) = sources::open_lock(self, kind)?;
            lock::flock(&file, FlockOperation::LockShared, &lock_path)?;
            used.insert(kind.to_owned(), file);
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).ctx("create", &path)?;
        Ok(path)
    }

    /// A new empty directory on the store's file system, removed with the returned value or after this process died.
    pub fn scratch(&self) -> Result<Scratch> {
        let session = self.0.session()?;
        let path = session.draft();
        fs::DirBuilder::new().mode(0o700).create(&path).ctx("create", &path)?;
        Ok(Scratch { path, _session: session })
    }

    /// Removes the debris of dead processes now, and waits until that is done. [`Store::open`] does the same in the background.
    pub fn sweep(&self) -> Result<()> {
        if let Some(running) = guard(&self.0.sweeper).take() {
            _ = running.join();
        }
        session::sweep(&self.0, session::find_debris(&self.0.root, usize::MAX)?);
        Ok(())
    }
}

/// A temporary directory inside the store.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    _session: Arc<Session>,
}

impl Scratch {
    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        _ = fsutil::remove_path(&self.path);
    }
}

/// Makes the state directory. Many processes may try at once.
fn create(root: &Path) -> Result<Db> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(root).ctx("create", root)?;
    for dir in DIRECTORIES {
        let path = root.join(dir);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).ctx("create", &path)?;
    }
    let _lock = lock::lock(lock::path_of(&root.join("locks"), "init"), &mut || {})?;
    write_once(&root.join("content/oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    write_once(&root.join("content/index.json"), index::EMPTY.as_bytes())?;
    reserve(root);
    Db::create(root)
}

/// What a collection needs to write before it has freed anything: the journal of the database.
const RESERVE: u64 = 256 << 10;

/// Keeps a little of the disk, so that a full one can be made emptier. Without it that may fail, and nothing else.
pub(crate) fn reserve(root: &Path) {
    let path = root.join("reserve");
    if !path.exists()
        && let Ok(file) = fs::File::create_new(&path)
        && rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, RESERVE).is_err()
    {
        _ = fs::remove_file(&path);
    }
}

fn write_once(path: &Path, bytes: &[u8]) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    let draft = path.with_extension("new");
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        file.write_all(bytes)?;
        fs::rename(&draft, path)
    };
    write().ctx("write", path)
}
