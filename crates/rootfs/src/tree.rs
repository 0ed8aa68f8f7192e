//! [`ContextTree`]: a directory tree as it was at one moment, in memory: names, metadata, and content digests on demand.
//!
//! Invariants:
//! - entries of a directory are sorted by name, so that everything derived from a tree is deterministic;
//! - links are never followed while scanning;
//! - a digest, once there, is that of the content which the entry's metadata describe: the file is checked again after
//!   it was read.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use kiln_oci::Digest;
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::error::{Context as _, Result};
use crate::meta::Owner;
use crate::resolve;
use crate::root::Root;
use crate::scan;
use crate::stack::Stack;
use crate::stat::{FileKind, Stat, Time};
use crate::statcache::StatCache;
use crate::xattr::Xattrs;

/// What a filter says about a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ignore {
    /// Take it.
    Keep,
    /// Leave it out, with all below it.
    Skip,
    /// Leave it out, but look below it; if something there is kept, it comes along as a parent.
    SkipButDescend,
}

/// Called with a path (relative to the root of what is walked) and whether it is a directory, by several threads.
pub type Filter<'a> = &'a (dyn Fn(&Path, bool) -> Ignore + Sync);

/// A name in a directory of a tree.
#[derive(Debug)]
pub(crate) struct Entry {
    pub name: OsString,
    pub stat: Stat,
    /// Which layer of the stack it comes from.
    pub layer: usize,
    /// Index of the directory, of directories.
    pub dir: Option<usize>,
    /// Target, of symbolic links.
    pub target: Option<PathBuf>,
    /// Of regular files: content, and attributes if there are any.
    pub digest: OnceLock<[u8; 32]>,
}

impl Entry {
    pub fn digest(&self) -> Option<Digest> {
        self.digest.get().map(|d| Digest::sha256(*d))
    }
}

/// A directory of a tree.
#[derive(Debug, Default)]
pub(crate) struct Dir {
    /// Relative to the root of the tree.
    pub path: PathBuf,
    /// Layers that it is in.
    pub layers: Vec<usize>,
    pub xattrs: Xattrs,
    pub entries: Vec<Entry>,
    /// Only there for what is below it.
    pub tentative: bool,
    /// Why it can't be read. An error for who needs its contents only.
    pub unreadable: Option<Errno>,
}

/// A scanned directory tree.
#[derive(Debug)]
pub struct ContextTree {
    pub(crate) stack: Stack,
    /// Canonical path of the tree's root in the stack.
    pub(crate) base: PathBuf,
    pub(crate) root: Stat,
    /// The first is the root.
    pub(crate) dirs: Vec<Dir>,
    /// Layers do not change, but their inodes do: other builds make hard links to them at any time.
    pub(crate) immutable: bool,
    /// When the scan began: files that changed at about that time, or later, may change again unnoticed.
    pub(crate) started: Time,
    /// Digests were computed that the cache did not have.
    pub(crate) computed: AtomicBool,
    pub(crate) cache_hits: AtomicU64,
}

impl ContextTree {
    /// Reads names and metadata of a directory tree, in parallel; contents only when they are asked for, unless `cache`
    /// has their digests. All owners read as root's, since who checked out a context must not matter.
    pub fn scan(root: &Root, filter: Option<Filter<'_>>, cache: Option<&StatCache>) -> Result<Self> {
        let owner = Some(Owner { uid: 0, gid: 0 });
        scan::scan(&scan::Request {
            stack: root.clone().into(),
            base: PathBuf::new(),
            filter,
            cache,
            owner,
            immutable: false,
        })
    }

    /// As [`ContextTree::scan`] of a directory of a container's file system, with the owners that files have there.
    pub fn scan_layers(stack: &Stack, path: &Path) -> Result<Self> {
        let base = stack.resolve(path)?;
        scan::scan(&scan::Request {
            stack: stack.clone(),
            base,
            filter: None,
            cache: None,
            owner: None,
            immutable: true,
        })
    }

    /// Number of entries below the root.
    pub fn len(&self) -> usize {
        self.dirs.iter().map(|d| d.entries.len()).sum()
    }

    /// Nothing is below the root.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All entries as (path, metadata), in depth-first order, directories before what is in them.
    pub fn entries(&self) -> Vec<(PathBuf, Stat)> {
        let mut all = Vec::with_capacity(self.len());
        let mut todo = vec![(0, 0)];
        while let Some((dir, next)) = todo.pop() {
            let Some(entry) = self.dirs[dir].entries.get(next) else { continue };
            todo.push((dir, next + 1));
            all.push((self.dirs[dir].path.join(&entry.name), entry.stat));
            if let Some(child) = entry.dir {
                todo.push((child, 0));
            }
        }
        all
    }

    /// Metadata at a path, symbolic links followed inside the tree (also the last if `follow`).
    pub fn stat(&self, path: &Path, follow: bool) -> Result<Option<Stat>> {
        Ok(match self.find(path, follow)?.1 {
            At::Root => Some(self.root),
            At::Entry(dir, i) => Some(self.dirs[dir].entries[i].stat),
            At::Missing => None,
        })
    }

    /// Bytes of all regular files.
    pub fn size(&self) -> u64 {
        let entries = self.dirs.iter().flat_map(|d| &d.entries);
        entries.filter(|e| e.stat.kind == FileKind::File).map(|e| e.stat.size).sum()
    }

    pub(crate) fn child(&self, dir: usize, name: &OsStr) -> Option<usize> {
        self.dirs[dir].entries.binary_search_by(|e| e.name.as_os_str().cmp(name)).ok()
    }

    /// Resolves in memory: what the filter left out does not exist.
    pub(crate) fn find(&self, path: &Path, follow: bool) -> Result<(PathBuf, At)> {
        self.walk(path, follow).at("resolve", path)
    }

    fn walk(&self, path: &Path, follow: bool) -> rustix::io::Result<(PathBuf, At)> {
        let mut names: Vec<OsString> = Vec::new();
        let mut at = At::Root;
        let mut links = 0;
        let mut todo: std::collections::VecDeque<OsString> = resolve::components(path).map(OsStr::to_owned).collect();
        while let Some(name) = todo.pop_front() {
            if name == "." {
                continue;
            }
            if name == ".." {
                names.pop();
                at = names.iter().fold(At::Root, |at, n| self.step(at, n));
                continue;
            }
            if matches!(at, At::Entry(..)) && self.dir_of(at).is_none() {
                return Err(Errno::NOTDIR);
            }
            if let Some(error) = self.dir_of(at).and_then(|dir| self.dirs[dir].unreadable) {
                return Err(error);
            }
            let next = self.step(at, &name);
            if let At::Entry(dir, i) = next
                && let Some(target) = &self.dirs[dir].entries[i].target
                && (follow || !todo.is_empty())
            {
                links += 1;
                if links > 40 {
                    return Err(Errno::LOOP);
                }
                if target.is_absolute() {
                    names.clear();
                    at = At::Root;
                }
                let parts: Vec<OsString> = resolve::components(target).map(OsStr::to_owned).collect();
                parts.into_iter().rev().for_each(|p| todo.push_front(p));
                continue;
            }
            names.push(name);
            at = next;
        }
        Ok((names.iter().collect(), at))
    }

    fn step(&self, at: At, name: &OsStr) -> At {
        match self.dir_of(at).and_then(|dir| Some((dir, self.child(dir, name)?))) {
            Some((dir, i)) => At::Entry(dir, i),
            None => At::Missing,
        }
    }

    /// The directory's index, if it is one.
    pub(crate) fn dir_of(&self, at: At) -> Option<usize> {
        match at {
            At::Root => Some(0),
            At::Entry(dir, i) => self.dirs[dir].entries[i].dir,
            At::Missing => None,
        }
    }

    /// An error if a directory could not be listed.
    pub(crate) fn readable(&self, dir: usize) -> Result<()> {
        let dir = &self.dirs[dir];
        dir.unreadable.map_or(Ok(()), Err).at("open directory", &dir.path)
    }

    /// The directory of `layer` that stands behind a directory of the tree.
    pub(crate) fn open_dir(&self, dir: usize, layer: usize) -> Result<OwnedFd> {
        let path = self.base.join(&self.dirs[dir].path);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        resolve::open_beneath(self.stack.layer(layer).as_fd(), &path, flags).at("open directory", &path)
    }

    /// Whether an entry can be trusted to be unchanged as long as its metadata are: not if it changed within the
    /// granularity of the file system's clock before the scan.
    pub(crate) fn is_settled(&self, stat: &Stat) -> bool {
        let latest = stat.mtime.max(stat.ctime);
        // No fraction on either: a file system with whole seconds, or even (FAT) two.
        let coarse = stat.mtime.1 == 0 && stat.ctime.1 == 0;
        let (add_s, add_ns) = if coarse { (2, 0) } else { (0, 50_000_000) };
        let ns = latest.1 + add_ns;
        let seconds = latest.0.saturating_add(add_s + i64::from(ns / 1_000_000_000));
        let settled = (seconds, ns % 1_000_000_000);
        settled < self.started
    }

    /// Whether what `now` describes is the file that `then` described.
    pub(crate) fn is_unchanged(&self, then: &Stat, now: &Stat) -> bool {
        (then.ino, then.size, then.mtime) == (now.ino, now.size, now.mtime)
            && (self.immutable || then.ctime == now.ctime)
    }

    pub(crate) fn note_computed(&self) {
        self.computed.store(true, Ordering::Relaxed);
    }
}

/// A place in a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    Root,
    /// Directory and index in it.
    Entry(usize, usize),
    Missing,
}

pub(crate) fn now() -> Time {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    (i64::try_from(since.as_secs()).unwrap_or(i64::MAX), since.subsec_nanos())
}
