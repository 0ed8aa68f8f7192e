//! What sources keep between builds: `sources/<kind>/…`. Their layout is theirs; here is only what a collection has to know.
//!
//! A process that uses a kind holds a shared `flock` of `locks/sources.<kind>`; the collector removes parts of a kind only when it
//! gets that lock exclusively. A part is a file, or a directory that is named by a hash; of other directories, what is in them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use crate::error::Result;
use crate::lock::{self, flock};
use crate::store::Store;

/// Directories that are always there and always empty.
const FIXED: [&str; 1] = ["empty"];

/// A part that can be removed by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SourceItem {
    /// `git`, `deb`, ….
    pub kind: String,
    /// The file or directory.
    pub path: PathBuf,
    /// When it was last used, as far as the file system knows.
    pub used_ms: i64,
}

impl SourceItem {
    /// Its name below `sources`.
    pub fn name(&self) -> String {
        let parts: Vec<_> = self.path.components().rev().take(2).map(|c| c.as_os_str().to_string_lossy()).collect();
        format!("{}: {}", self.kind, parts.first().map(|p| p.as_ref()).unwrap_or_default())
    }
}

/// The lock of a kind, not taken yet.
pub(crate) fn open_lock(store: &Store, kind: &str) -> Result<(fs::File, PathBuf)> {
    let path = store.root().join("locks").join(format!("sources.{kind}"));
    Ok((lock::open_lock_file(&path)?, path))
}

/// All parts of all kinds.
pub(crate) fn list(store: &Store) -> Vec<SourceItem> {
    let mut items = Vec::new();
    for kind in children(&store.root().join("sources")) {
        let Some(name) = kind.file_name().and_then(|n| n.to_str()).map(str::to_owned) else { continue };
        if FIXED.contains(&name.as_str()) {
            continue;
        }
        for path in children(&kind) {
            if path.is_dir() && !is_hash(&path) {
                items.extend(children(&path).into_iter().map(|p| item(&name, p)));
            } else if path.extension().is_none_or(|e| e != "lock") {
                items.push(item(&name, path));
            }
        }
    }
    items
}

/// Runs `remove` while nobody uses the kind. `None` if somebody does.
pub(crate) fn while_unused<T>(store: &Store, kind: &str, remove: impl FnOnce() -> T) -> Result<Option<T>> {
    let (file, path) = open_lock(store, kind)?;
    if !flock(&file, FlockOperation::NonBlockingLockExclusive, &path)? {
        return Ok(None);
    }
    Ok(Some(remove()))
}

fn is_hash(path: &Path) -> bool {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    name.len() >= 32 && name.bytes().all(|b| b.is_ascii_hexdigit())
}

fn children(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).map(|entries| entries.filter_map(|e| Some(e.ok()?.path())).collect()).unwrap_or_default()
}

fn item(kind: &str, path: PathBuf) -> SourceItem {
    let times = |path: &Path| {
        fs::symlink_metadata(path).map_or(0, |m| {
            let ms = |seconds: i64, nanos: i64| seconds * 1000 + nanos / 1_000_000;
            ms(m.mtime(), m.mtime_nsec()).max(ms(m.atime(), m.atime_nsec()))
        })
    };
    // Who uses a repository takes the lock beside it, by making the file again.
    let used_ms = times(&path).max(times(&path.with_extension("lock")));
    SourceItem { kind: kind.to_owned(), path, used_ms }
}
