//! Files that are as they were at an earlier copy become hard links to that one's: no new inode, no bytes written, and
//! layers that differ in one file share the others.
//!
//! Invariant: a file is linked only if all its metadata are those that a copy would have and its bytes were compared.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, OFlags};

use super::data;
use super::engine::{Engine, OneFile};
use crate::error::{Context as _, Result};
use crate::export::open_file;
use crate::resolve;
use crate::root::Root;
use crate::stat::Stat;
use crate::xattr;

/// Stands for the earlier copy where layers have numbers.
const LAYER: usize = usize::MAX;

/// The directory of an earlier copy, if it is still there.
pub(super) fn dir(root: &Root, path: &Path) -> Option<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    resolve::open_beneath(root.as_fd(), path, OFlags::RDONLY | OFlags::DIRECTORY).ok()
}

impl Engine<'_> {
    /// Links a file to the earlier one of that name, if nothing would tell it from a copy. What goes wrong with the earlier
    /// file, which may be removed at any time, is no error.
    pub(super) fn link_earlier(&self, file: &OneFile<'_>, wanted: &Stat) -> Result<bool> {
        let (Some(dir), Some(root)) = (file.earlier, &self.request.earlier) else { return Ok(false) };
        let Ok(there) = Stat::at(dir, file.name, root.ownership()) else { return Ok(false) };
        let facts = |s: &Stat| (s.kind, s.mode, s.uid, s.gid, s.size, s.mtime);
        if facts(&there) != facts(wanted) {
            return Ok(false);
        }
        let Ok(Some(earlier)) = open_file(dir, file.name, &there) else { return Ok(false) };
        let (from, before) = self.open_source(file)?;
        let same = data::same_bytes(from.as_fd(), earlier.as_fd(), before.size).at("read", file.path)?;
        let plain = has_no_xattrs(from.as_fd()) && has_no_xattrs(earlier.as_fd());
        self.still_same(file, &from, &before)?;
        // Two names of one inode would be one file.
        let linked =
            || self.linked.lock().unwrap_or_else(PoisonError::into_inner).insert((LAYER, there.dev, there.ino));
        if !same || !plain || !linked() {
            return Ok(false);
        }
        let made = rustix::fs::linkat(dir, file.name, &file.to.upper, file.name, AtFlags::empty()).is_ok();
        self.links.fetch_add(u64::from(made), Ordering::Relaxed);
        Ok(made)
    }
}

fn has_no_xattrs(fd: BorrowedFd<'_>) -> bool {
    xattr::list(fd).is_ok_and(|names| !names.iter().any(|name| xattr::is_content(name)))
}
