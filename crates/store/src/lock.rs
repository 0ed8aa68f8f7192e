//! Named locks: `flock(2)`ed files under `locks/`, exclusive across processes and threads.
//!
//! The holder removes the file before it lets go, so that locks leave nothing behind. A waiter that gets the lock of a file
//! that has no name any more starts over. A lock dies with its process.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_oci::Digest;
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::error::{Context, Error, Result};

/// A held lock. Dropping it lets go.
#[derive(Debug)]
pub struct LockGuard {
    _file: File,
    path: PathBuf,
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        // Still locked here: nobody else can hold a file of this name.
        _ = fs::remove_file(&self.path);
    }
}

/// `flock` that goes on after signals; `Ok(false)` if it would block.
pub(crate) fn flock(file: &File, op: FlockOperation, path: &Path) -> Result<bool> {
    loop {
        match rustix::fs::flock(file, op) {
            Ok(()) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(e) => return Err(Error::io("lock", path, e.into())),
        }
    }
}

pub(crate) fn open_lock_file(path: &Path) -> Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).read(true).mode(0o600).open(path).ctx("open lock", path)
}

/// Whether `file` is still what `path` names.
pub(crate) fn is_named(file: &File, path: &Path) -> Result<bool> {
    let own = file.metadata().ctx("stat", path)?;
    Ok(fs::metadata(path).is_ok_and(|m| (m.dev(), m.ino()) == (own.dev(), own.ino())))
}

/// The file of a named lock. Names may be anything, so they are hashed.
pub(crate) fn path_of(locks: &Path, name: &str) -> PathBuf {
    locks.join(&Digest::of(name.as_bytes()).hex()[..40])
}

pub(crate) fn try_lock(path: PathBuf) -> Result<Option<LockGuard>> {
    loop {
        let file = open_lock_file(&path)?;
        if !flock(&file, FlockOperation::NonBlockingLockExclusive, &path)? {
            return Ok(None);
        }
        if is_named(&file, &path)? {
            return Ok(Some(LockGuard { _file: file, path }));
        }
    }
}

/// Waits for the lock; calls `on_wait` once before it waits.
pub(crate) fn lock(path: PathBuf, on_wait: &mut dyn FnMut()) -> Result<LockGuard> {
    if let Some(guard) = try_lock(path.clone())? {
        return Ok(guard);
    }
    on_wait();
    loop {
        let file = open_lock_file(&path)?;
        flock(&file, FlockOperation::LockExclusive, &path)?;
        if is_named(&file, &path)? {
            return Ok(LockGuard { _file: file, path });
        }
    }
}

/// Waits for the lock for as long as `keep_waiting` says so; it is asked every few milliseconds.
pub(crate) fn lock_while(path: PathBuf, keep_waiting: &mut dyn FnMut() -> bool) -> Result<Option<LockGuard>> {
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(guard) = try_lock(path.clone())? {
            return Ok(Some(guard));
        }
        if !keep_waiting() {
            return Ok(None);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}
