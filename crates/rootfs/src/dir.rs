//! Reading directories, and referring to many of them without holding a descriptor for each.

use std::cell::RefCell;
use std::ffi::{CStr, OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, OFlags, RawDir};
use rustix::io::Result;

use crate::resolve::open_beneath;
use crate::stat::FileKind;

/// Longest path from an anchor to a directory; well under `PATH_MAX`.
const ANCHOR_EVERY: usize = 2048;

/// A directory below an open one. A tree that is walked may be deeper than `PATH_MAX` and than the number of descriptors
/// that a process can have, so that only every so often a directory on the way stays open as an anchor.
#[derive(Clone, Debug)]
pub(crate) struct DirRef {
    anchor: Arc<OwnedFd>,
    below: PathBuf,
}

impl DirRef {
    pub fn new(anchor: Arc<OwnedFd>) -> Self {
        Self { anchor, below: PathBuf::new() }
    }

    /// Opens it; no component below the anchor may have become a link.
    pub fn open(&self) -> Result<OwnedFd> {
        open_beneath(self.anchor.as_fd(), &self.below, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// The directory `name` in this one, which is open as `fd`.
    pub fn child(&self, fd: &Arc<OwnedFd>, name: &OsStr) -> Self {
        if self.below.as_os_str().len() + name.len() < ANCHOR_EVERY {
            return Self { anchor: self.anchor.clone(), below: self.below.join(name) };
        }
        Self { anchor: fd.clone(), below: PathBuf::from(name) }
    }
}

/// A name in a directory, with the kind if the file system tells.
pub(crate) struct Name {
    pub name: OsString,
    pub kind: Option<FileKind>,
}

thread_local! {
    /// What the kernel fills with entries; kept, since a large tree has many directories.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(32 << 10));
}

/// All names but `.` and `..` in an open directory, in the order of the file system.
pub(crate) fn read_names(fd: impl AsFd) -> Result<Vec<Name>> {
    let fd = fd.as_fd();
    rustix::fs::seek(fd, rustix::fs::SeekFrom::Start(0))?;
    BUFFER.with_borrow_mut(|buffer| {
        let mut dir = RawDir::new(fd, buffer.spare_capacity_mut());
        let mut names = Vec::new();
        while let Some(entry) = dir.next() {
            let entry = entry?;
            if !is_dot(entry.file_name()) {
                let kind = match entry.file_type() {
                    FileType::Unknown => None,
                    t => Some(FileKind::from_mode(t.as_raw_mode())),
                };
                names.push(Name { name: OsString::from_vec(entry.file_name().to_bytes().to_vec()), kind });
            }
        }
        Ok(names)
    })
}

fn is_dot(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

/// `path` without a leading slash.
pub(crate) fn relative(path: &Path) -> &Path {
    let bytes = path.as_os_str().as_bytes();
    let start = bytes.iter().position(|b| *b != b'/').unwrap_or(bytes.len());
    Path::new(OsStr::from_bytes(&bytes[start..]))
}
