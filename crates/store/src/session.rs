//! Sessions: the liveness of a process that uses the store, and what it pins.
//!
//! A session is the file `leases/<id>`, `flock`ed by its process for as long as it lives. Drafts under `tmp/` begin with its
//! id. The file holds one line for each thing that must not be collected: `l <layer>`, `b <digest>`, or `i <digest>`
//! of an image. Lines are appended under a shared lock of `locks/gc`; the collector reads them under an exclusive one.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kiln_oci::Digest;
use rustix::fs::FlockOperation;

use crate::LayerId;
use crate::error::{Context, Error, Result};
use crate::fsutil;
use crate::lock::{self, flock};
use crate::store::{Inner, Store};

/// Something that a live process uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Pin {
    Layer(LayerId),
    Blob(Digest),
    /// A manifest or index, with all that it leads to.
    Image(Digest),
}

impl std::fmt::Display for Pin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Layer(id) => write!(f, "l {id}"),
            Self::Blob(digest) => write!(f, "b {digest}"),
            Self::Image(digest) => write!(f, "i {digest}"),
        }
    }
}

impl Pin {
    pub(crate) fn parse(line: &str) -> Option<Self> {
        match line.split_once(' ')? {
            ("l", id) => id.parse().ok().map(Self::Layer),
            ("b", digest) => digest.parse().ok().map(Self::Blob),
            ("i", digest) => digest.parse().ok().map(Self::Image),
            _ => None,
        }
    }
}

/// Keeps everything that is made or looked up through its [`Store`] from being collected, until it is dropped or the
/// process ends, in whatever way. Several at once are fine: the last one lets go.
#[derive(Debug)]
pub struct Lease {
    store: Store,
    session: Arc<Session>,
}

impl Lease {
    pub(crate) fn new(store: &Store) -> Result<Self> {
        let session = store.inner().begin_lease()?;
        Ok(Self { store: store.clone(), session })
    }

    /// Pins a layer explicitly. It may turn out to be gone already: look it up afterwards.
    pub fn pin_layer(&self, id: &LayerId) -> Result<()> {
        self.session.pin(&[Pin::Layer(*id)])
    }

    /// Pins a blob explicitly. It may turn out to be gone already: look it up afterwards.
    pub fn pin_blob(&self, digest: &Digest) -> Result<()> {
        self.session.pin(&[Pin::Blob(*digest)])
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let inner = self.store.inner();
        if inner.end_lease() {
            inner.db.tidy();
        }
    }
}

/// The live file of this process.
#[derive(Debug)]
pub(crate) struct Session {
    id: String,
    path: PathBuf,
    tmp: PathBuf,
    counter: AtomicU64,
    state: Mutex<State>,
    trash: Mutex<Vec<PathBuf>>,
}

/// More than this is removed at once.
const TRASH_MAX: usize = 256;

#[derive(Debug)]
struct State {
    file: File,
    gc: File,
    gc_path: PathBuf,
    pinned: HashSet<Pin>,
}

/// A poisoned mutex guards a set that is valid after each of its operations.
pub(crate) fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    pub(crate) fn start(root: &Path) -> Result<Self> {
        let id = fsutil::random_hex(8).ctx("read", "/dev/urandom")?;
        let tmp = root.join("tmp");
        // Locked before it has its name: a lease file that can be locked is one of a dead process.
        let (draft, path) = (tmp.join(format!("new.{id}")), root.join("leases").join(&id));
        let file = OpenOptions::new().create_new(true).append(true).mode(0o600).open(&draft).ctx("create", &draft)?;
        flock(&file, FlockOperation::LockExclusive, &draft)?;
        fs::rename(&draft, &path).ctx("rename", &path)?;
        let gc_path = root.join("locks/gc");
        let gc = lock::open_lock_file(&gc_path)?;
        let state = Mutex::new(State { file, gc, gc_path, pinned: HashSet::new() });
        Ok(Self { id, path, tmp, counter: AtomicU64::new(0), state, trash: Mutex::default() })
    }

    /// A new name under `tmp/` that is swept when this process is dead.
    pub(crate) fn draft(&self) -> PathBuf {
        self.tmp.join(format!("{}.{}", self.id, self.counter.fetch_add(1, Ordering::Relaxed)))
    }

    /// Takes a directory out of the way, to be removed at the end: ext4 does not reuse an inode for seconds after its removal,
    /// and looks at all such inodes whenever it makes a new one. That was a quarter of the time of many short steps.
    pub(crate) fn discard(&self, path: &Path) -> Result<()> {
        let name = self.draft();
        fs::rename(path, &name).ctx("rename", path)?;
        let mut trash = guard(&self.trash);
        trash.push(name);
        if trash.len() > TRASH_MAX {
            remove_all(&std::mem::take(&mut *trash));
        }
        Ok(())
    }

    pub(crate) fn pin(&self, pins: &[Pin]) -> Result<()> {
        self.pinning(|add| {
            pins.iter().for_each(add);
            Ok(())
        })
    }

    /// Runs `look_up` while nothing can be collected, and pins what it says. It must be short.
    pub(crate) fn pinning<T>(&self, look_up: impl FnOnce(&mut dyn FnMut(&Pin)) -> Result<T>) -> Result<T> {
        let mut state = guard(&self.state);
        flock(&state.gc, FlockOperation::LockShared, &state.gc_path)?;
        let mut new = Vec::new();
        let found = look_up(&mut |pin: &Pin| new.push(*pin));
        let found = found.and_then(|found| {
            state.append(&new, &self.path)?;
            Ok(found)
        });
        flock(&state.gc, FlockOperation::Unlock, &state.gc_path)?;
        found
    }
}

impl State {
    fn append(&mut self, pins: &[Pin], path: &Path) -> Result<()> {
        let mut text = String::new();
        let new: Vec<Pin> = pins.iter().filter(|p| !self.pinned.contains(*p)).copied().collect();
        for pin in &new {
            text.push_str(&format!("{pin}\n"));
        }
        if !text.is_empty() {
            let whole = self.file.metadata().ctx("stat", path)?.len();
            if let Err(e) = self.file.write_all(text.as_bytes()) {
                // Half a line would spoil the next one.
                self.file.set_len(whole).ctx("truncate", path)?;
                return Err(Error::io("write", path, e));
            }
            self.pinned.extend(new);
        }
        Ok(())
    }
}

/// What can't be removed is swept when this process is dead.
fn remove_all(paths: &[PathBuf]) {
    for path in paths {
        _ = fsutil::remove_path(path);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        remove_all(&guard(&self.trash));
        // Locked until the descriptor closes, so a sweeper either sees it alive or not at all.
        _ = fs::remove_file(&self.path);
    }
}

/// What all live processes pin. Must be called under the exclusive lock of `locks/gc`.
pub(crate) fn all_pins(root: &Path) -> Result<HashSet<Pin>> {
    let dir = root.join("leases");
    let mut pins = HashSet::new();
    for entry in fs::read_dir(&dir).ctx("list", &dir)? {
        let path = entry.ctx("list", &dir)?.path();
        let text = match fs::read_to_string(&path) {
            // It ended.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            // What can't be read may pin anything.
            text => text.ctx("read", &path)?,
        };
        pins.extend(text.lines().filter_map(Pin::parse));
    }
    Ok(pins)
}

/// Debris of dead processes.
#[derive(Debug, Default)]
pub(crate) struct Debris {
    /// Lease files of the dead, locked so that nobody else sweeps for them.
    dead: Vec<(PathBuf, File)>,
    /// Drafts.
    drafts: Vec<PathBuf>,
}

impl Debris {
    pub(crate) fn is_empty(&self) -> bool {
        self.dead.is_empty() && self.drafts.is_empty()
    }
}

/// A download that nobody went on with for this long is debris; so is a lease file that did not get its name.
const PARTIAL_MAX_AGE_MS: i64 = 24 * 3600 * 1000;

/// How many lease files opening a store tests at most, so that it stays cheap beside hundreds of other processes.
pub(crate) const LOOK_LIMIT: usize = 32;

/// Finds debris, of at most `limit` processes. Costs two directory listings when there is none.
pub(crate) fn find_debris(root: &Path, limit: usize) -> Result<Debris> {
    let (leases, tmp) = (root.join("leases"), root.join("tmp"));
    let mut debris = Debris::default();
    // The drafts first: one that is listed now had its lease file before, or is an orphan.
    let drafts: Vec<_> = fs::read_dir(&tmp).ctx("list", &tmp)?.filter_map(|e| e.ok()).collect();
    for entry in fs::read_dir(&leases).ctx("list", &leases)?.filter_map(|e| e.ok()).take(limit) {
        let path = entry.path();
        let Ok(file) = File::open(&path) else { continue };
        if flock(&file, FlockOperation::NonBlockingLockExclusive, &path)? && lock::is_named(&file, &path)? {
            debris.dead.push((path, file));
        }
    }
    for draft in drafts {
        let name = draft.file_name();
        let Some((owner, rest)) = name.to_str().and_then(|n| n.split_once('.')) else { continue };
        let dead = match owner {
            "partial" | "new" => is_stale(&draft.path()),
            owner => {
                let lease = leases.join(owner);
                debris.dead.iter().any(|(path, _)| *path == lease) || !lease.exists()
            }
        };
        if dead && !rest.is_empty() {
            debris.drafts.push(draft.path());
        }
    }
    Ok(debris)
}

/// Downloads that were cut off and that nobody goes on with now, nor can while the files are open.
pub(crate) fn partials(root: &Path) -> Result<Vec<(PathBuf, File)>> {
    let tmp = root.join("tmp");
    let all = fs::read_dir(&tmp).ctx("list", &tmp)?.filter_map(|e| e.ok());
    let partial = all.filter(|e| e.file_name().to_str().is_some_and(|name| name.starts_with("partial.")));
    let locked = |path: PathBuf| {
        let file = File::open(&path).ok()?;
        let is_free = flock(&file, FlockOperation::NonBlockingLockExclusive, &path).unwrap_or(false);
        is_free.then_some((path, file))
    };
    Ok(partial.filter_map(|entry| locked(entry.path())).collect())
}

fn is_stale(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).is_ok_and(|m| fsutil::now_ms() - m.mtime() * 1000 > PARTIAL_MAX_AGE_MS)
}

/// Removes debris. What can't be removed now is left for the next time.
pub(crate) fn sweep(inner: &Inner, debris: Debris) {
    let mut left = false;
    for draft in &debris.drafts {
        left |= fsutil::remove_path(draft).is_err();
    }
    if !debris.dead.is_empty() {
        // It may have died between the record of an image and `index.json`.
        left |= crate::index::rewrite(inner).is_err();
    }
    if !left {
        for (path, _file) in &debris.dead {
            _ = fs::remove_file(path);
        }
    }
}
