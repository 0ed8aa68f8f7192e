//! Mount points that a container needs and its root lacks: made before, removed after, and nobody can tell.
//!
//! Invariants: everything goes through [`Root`], so nothing outside of the root is touched whatever links the container
//! made meanwhile (CVE-2024-23652); only what was made here is removed, only if it is still the same inode and empty; the
//! modification times of directories that existed before are as they were, unless the container changed them.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use kiln_rootfs::{FileKind, Root, RootfsError};
use rustix::fs::{AtFlags, Timespec, Timestamps};

use crate::error::{Error, Result};

/// Mount points made in one root.
pub struct Stubs {
    root: Root,
    made: Vec<Made>,
    parents: Vec<Parent>,
}

struct Made {
    path: PathBuf,
    /// The directory it is in, kept open: wherever the container moves that to, it stays in the root.
    parent: OwnedFd,
    dir: bool,
    inode: (u64, u64),
}

/// A directory that existed before and in which something was made.
struct Parent {
    path: PathBuf,
    before: Timespec,
    after: Timespec,
}

impl Stubs {
    pub fn new(root: Root) -> Stubs {
        Stubs { root, made: Vec::new(), parents: Vec::new() }
    }

    pub fn root(&self) -> &Root {
        &self.root
    }

    /// Makes sure that `path` (canonical, absolute) is a directory or something that is not one.
    pub fn ensure(&mut self, path: &Path, dir: bool) -> Result<()> {
        let failed = |source: RootfsError| mount_point(path, source);
        if let Some(stat) = self.root.try_stat(path, false).map_err(failed)? {
            return match (stat.kind == FileKind::Dir, dir) {
                (true, false) => Err(wrong_kind(path, io::ErrorKind::IsADirectory)),
                (false, true) => Err(wrong_kind(path, io::ErrorKind::NotADirectory)),
                _ => Ok(()),
            };
        }
        let mut existing = path.parent().unwrap_or(Path::new("/"));
        while self.root.try_stat(existing, false).map_err(failed)?.is_none() {
            existing = existing.parent().unwrap_or(Path::new("/"));
        }
        let before = self.mtime(existing)?;
        let made = self.make(path, dir);
        // Also after a failure: what was made on the way is recorded and removed.
        let after = self.mtime(existing)?;
        match self.parents.iter_mut().find(|p| p.path == existing) {
            Some(parent) => parent.after = after,
            None => self.parents.push(Parent { path: existing.to_owned(), before, after }),
        }
        made
    }

    fn make(&mut self, path: &Path, dir: bool) -> Result<()> {
        let parent = path.parent().unwrap_or(Path::new("/"));
        let dirs = self.root.create_dir_all(if dir { path } else { parent }, 0o755, None);
        for made in dirs.map_err(|e| mount_point(path, e))? {
            self.record(&made, true)?;
        }
        if !dir {
            self.root.write_file(path, b"", 0o644, None).map_err(|e| mount_point(path, e))?;
            self.record(path, false)?;
        }
        Ok(())
    }

    fn record(&mut self, path: &Path, dir: bool) -> Result<()> {
        let path = Path::new("/").join(path);
        let failed = |e| mount_point(&path, e);
        let stat = self.root.stat(&path, false).map_err(failed)?;
        let parent = self.root.open_dir_nofollow(path.parent().unwrap_or(Path::new("/"))).map_err(failed)?;
        self.made.push(Made { path, parent, dir, inode: (stat.dev, stat.ino) });
        Ok(())
    }

    fn mtime(&self, dir: &Path) -> Result<Timespec> {
        let failed = |e: rustix::io::Errno| Error::MountPoint { path: dir.to_owned(), source: e.into() };
        let fd = self.root.open_dir_nofollow(dir).map_err(|e| mount_point(dir, e))?;
        let stat = rustix::fs::fstat(fd).map_err(failed)?;
        Ok(Timespec { tv_sec: stat.st_mtime as _, tv_nsec: stat.st_mtime_nsec as _ })
    }

    /// Removes what was made and is still unused; returns it, outermost last. Never fails: what cannot be removed
    /// was taken over by the container.
    pub fn remove(self) -> Vec<PathBuf> {
        let mut removed = Vec::new();
        for made in self.made.iter().rev() {
            if self.remove_one(made).is_some() {
                removed.push(made.path.clone());
            }
        }
        removed
    }

    fn remove_one(&self, made: &Made) -> Option<()> {
        let (path, name) = (made.path.parent()?, made.path.file_name()?);
        let dir = &made.parent;
        let now = rustix::fs::fstat(dir).ok()?;
        let now = Timespec { tv_sec: now.st_mtime as _, tv_nsec: now.st_mtime_nsec as _ };
        unlink_if_unused(dir, name, made)?;
        let time = match self.parents.iter().find(|p| p.path == path) {
            Some(p) if (p.after.tv_sec, p.after.tv_nsec) == (now.tv_sec, now.tv_nsec) => p.before,
            _ => now,
        };
        // Several stubs in one directory: the last removal finds the time restored by the one before it, which is
        // then "changed by the container" and restored again.
        let omit = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
        let _ = rustix::fs::futimens(dir.as_fd(), &Timestamps { last_access: omit, last_modification: time });
        Some(())
    }
}

fn unlink_if_unused(dir: &OwnedFd, name: &OsStr, made: &Made) -> Option<()> {
    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    if (stat.st_dev as u64, stat.st_ino as u64) != made.inode {
        return None;
    }
    if made.dir {
        // Fails unless empty.
        return rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR).ok();
    }
    if stat.st_size != 0 || FileKind::from_mode(stat.st_mode as u32) != FileKind::File || stat.st_nlink != 1 {
        return None;
    }
    rustix::fs::unlinkat(dir, name, AtFlags::empty()).ok()
}

pub fn mount_point(path: &Path, source: RootfsError) -> Error {
    let kind = source.io_kind().unwrap_or(io::ErrorKind::Other);
    Error::MountPoint { path: path.to_owned(), source: io::Error::new(kind, source) }
}

pub fn wrong_kind(path: &Path, kind: io::ErrorKind) -> Error {
    Error::MountPoint { path: path.to_owned(), source: kind.into() }
}
