//! Content digests of a tree's files, computed in parallel for those that are asked for and not yet known.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::error::{Context as _, Result, RootfsError};
use crate::par;
use crate::stat::{FileKind, Ownership, Stat};
use crate::tree::{ContextTree, Entry};
use crate::xattr;

/// Files of one directory that one task reads; and bytes after which a task ends.
const FILES_PER_TASK: usize = 64;
const BYTES_PER_TASK: u64 = 8 << 20;
const BUFFER: usize = 256 << 10;

/// Files of one directory and layer, by index.
struct Task {
    dir: usize,
    layer: usize,
    files: Vec<usize>,
}

/// Reads the given files, (directory, index), as far as their digests are unknown.
pub(crate) fn ensure(tree: &ContextTree, files: impl Iterator<Item = (usize, usize)>) -> Result<()> {
    let mut tasks: Vec<Task> = Vec::new();
    let mut bytes = 0;
    for (dir, i) in files {
        let entry = &tree.dirs[dir].entries[i];
        if entry.stat.kind != FileKind::File || entry.digest.get().is_some() {
            continue;
        }
        match tasks.last_mut() {
            Some(t)
                if t.dir == dir
                    && t.layer == entry.layer
                    && t.files.len() < FILES_PER_TASK
                    && bytes < BYTES_PER_TASK =>
            {
                t.files.push(i);
                bytes += entry.stat.size;
            }
            _ => {
                tasks.push(Task { dir, layer: entry.layer, files: vec![i] });
                bytes = entry.stat.size;
            }
        }
    }
    if tasks.is_empty() {
        return Ok(());
    }
    tree.note_computed();
    par::run(tasks, |task, _| {
        let fd = tree.open_dir(task.dir, task.layer)?;
        let mut buf = vec![0; BUFFER];
        for i in task.files {
            let entry = &tree.dirs[task.dir].entries[i];
            let path = tree.dirs[task.dir].path.join(&entry.name);
            let digest = file_digest(tree, &fd, entry, &path, &mut buf)?;
            let _ = entry.digest.set(digest); // another thread can only have found the same
        }
        Ok(())
    })
}

fn file_digest(tree: &ContextTree, dir: &OwnedFd, entry: &Entry, path: &Path, buf: &mut [u8]) -> Result<[u8; 32]> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let changed = || RootfsError::Changed { path: path.to_owned() };
    let mut file = match rustix::fs::openat(dir, &entry.name, flags, Mode::empty()) {
        Err(Errno::LOOP | Errno::NOENT | Errno::NXIO) => return Err(changed()),
        opened => File::from(opened.at("open", path)?),
    };
    let before = Stat::of(file.as_fd(), Ownership::Native).at("stat", path)?;
    if before.kind != FileKind::File || !tree.is_unchanged(&entry.stat, &before) {
        return Err(changed());
    }
    let mut hasher = Sha256::new();
    let mut total = 0;
    loop {
        match file.read(buf).at("read", path)? {
            0 => break,
            n => {
                hasher.update(&buf[..n]);
                total += n as u64;
            }
        }
    }
    let xattrs = content_xattrs(&file, path)?;
    let after = Stat::of(file.as_fd(), Ownership::Native).at("stat", path)?;
    if total != entry.stat.size || !tree.is_unchanged(&before, &after) {
        return Err(changed());
    }
    let content = hasher.finalize().into();
    Ok(match xattrs {
        None => content,
        Some(attributes) => combine(&content, &attributes),
    })
}

fn content_xattrs(file: &File, path: &Path) -> Result<Option<xattr::Xattrs>> {
    let names = xattr::list(file).at("read attributes of", path)?;
    if !names.iter().any(|n| xattr::is_content(n)) {
        return Ok(None);
    }
    xattr::read_at(file, OsStr::new(""), xattr::is_content).at("read attributes of", path).map(Some)
}

/// Content and attributes; files without attributes have their plain content digest.
fn combine(content: &[u8; 32], attributes: &xattr::Xattrs) -> [u8; 32] {
    let mut hasher = Sha256::new();
    let mut field = |bytes: &[u8]| {
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    field(b"content and attributes");
    field(content);
    for (name, value) in attributes {
        field(name.as_encoded_bytes());
        field(value);
    }
    hasher.finalize().into()
}
