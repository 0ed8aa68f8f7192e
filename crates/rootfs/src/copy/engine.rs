//! The parallel part: one task per directory (large ones in chunks), all relative to open directories.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::data::{self, Ways};
use super::{CopyReport, CopyRequest};
use crate::dir::DirRef;
use crate::error::{Context as _, Result, RootfsError};
use crate::meta;
use crate::par::{self, Queue};
use crate::select::Pick;
use crate::stack::StackDir;
use crate::stat::{FileKind, Ownership, Stat, Time};
use crate::target::{self, Target, TargetDir};
use crate::tree::{At, ContextTree, Entry};
use crate::xattr::{self, Xattrs};

/// Entries of one directory that one thread copies at a time.
const CHUNK: usize = 256;

/// Metadata that a directory gets when all its entries are there.
#[derive(Debug)]
struct Finish {
    stat: Stat,
    xattrs: Xattrs,
}

/// A directory to copy into, which may not be open yet.
pub(crate) struct Job {
    source: usize,
    /// The source directory in each layer that has it.
    from: Vec<(usize, DirRef)>,
    place: Place,
    /// Relative to the source, for messages.
    path: PathBuf,
    finish: Option<Finish>,
}

enum Place {
    Open(TargetDir),
    /// Directories of the upper and of lower layers, and whether it can have no entries.
    Closed {
        upper: DirRef,
        lower: Option<Vec<(usize, DirRef)>>,
        fresh: bool,
    },
}

impl Job {
    /// The source itself, into an open directory.
    pub fn top(pick: &Pick<'_>, source: usize, dir: TargetDir) -> Result<Self> {
        let mut from = Vec::new();
        for layer in &pick.tree.dirs[source].layers {
            from.push((*layer, DirRef::new(Arc::new(pick.tree.open_dir(source, *layer)?))));
        }
        Ok(Self { source, from, place: Place::Open(dir), path: PathBuf::new(), finish: None })
    }
}

/// A directory that is open and being filled, perhaps by several threads.
struct Open {
    source: usize,
    from: Vec<(usize, Arc<OwnedFd>)>,
    from_refs: Vec<(usize, DirRef)>,
    to: TargetDir,
    upper_ref: DirRef,
    lower_refs: Option<Vec<(usize, DirRef)>>,
    path: PathBuf,
    finish: Option<Finish>,
    chunks_left: AtomicUsize,
}

enum Task {
    Dir(Job),
    Chunk(Arc<Open>, Vec<usize>),
}

/// A further name of a file that was already copied under another one.
struct Deferred {
    dir: TargetDir,
    name: OsString,
    key: Inode,
    path: PathBuf,
    finish_time: Option<Time>,
}

type Inode = (usize, u64, u64);

/// Where the first name of a file with several is.
struct FirstName {
    dir: Arc<OwnedFd>,
    name: OsString,
}

pub(crate) struct Engine<'a> {
    pub request: &'a CopyRequest<'a>,
    pub target: &'a Target,
    ways: Ways,
    own: (u32, u32),
    names: Mutex<HashMap<Inode, Option<FirstName>>>,
    deferred: Mutex<Vec<Deferred>>,
    files: AtomicU64,
    dirs: AtomicU64,
    bytes: AtomicU64,
    skipped: AtomicU64,
}

impl<'a> Engine<'a> {
    pub fn new(request: &'a CopyRequest<'a>, target: &'a Target) -> Self {
        Self {
            request,
            target,
            ways: Ways::default(),
            own: (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
            names: Mutex::default(),
            deferred: Mutex::default(),
            files: AtomicU64::new(0),
            dirs: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
        }
    }

    pub fn report(&self) -> CopyReport {
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        CopyReport {
            files: get(&self.files),
            dirs: get(&self.dirs),
            bytes: get(&self.bytes),
            skipped: get(&self.skipped),
        }
    }

    /// Copies the contents of a directory.
    pub fn run(&self, pick: &Pick<'_>, job: Job) -> Result<()> {
        par::run(vec![Task::Dir(job)], |task, queue| match task {
            Task::Dir(job) => self.directory(pick, job, queue),
            Task::Chunk(open, entries) => self.chunk(pick, &open, &entries, queue),
        })
    }

    /// Copies one file, link or device.
    pub fn copy_one(&self, pick: &Pick<'_>, to: TargetDir, name: &OsStr, dest: &Path) -> Result<()> {
        let At::Entry(dir, i) = pick.at else {
            return Err(RootfsError::NotFound { path: pick.path.clone() });
        };
        let entry = &pick.tree.dirs[dir].entries[i];
        let from = pick.tree.open_dir(dir, entry.layer)?;
        self.target.clear(&to, name, entry.stat.kind, dest)?;
        let file = OneFile { tree: &pick.tree, entry, from: &from, to: &to, name, path: &pick.path };
        self.entry(&file, None)
    }

    fn directory(&self, pick: &Pick<'_>, job: Job, queue: &Queue<'_, Task>) -> Result<()> {
        let dest = || self.shown(pick, &job.path);
        let (to, upper_ref, lower_refs) = match job.place {
            Place::Open(dir) => {
                let upper_ref = DirRef::new(dir.upper.clone());
                let refs = |l: &StackDir| l.parts.iter().map(|(i, fd)| (*i, DirRef::new(fd.clone()))).collect();
                let lower_refs = dir.lower.as_ref().map(refs);
                (dir, upper_ref, lower_refs)
            }
            Place::Closed { upper, lower, fresh } => {
                let fd = Arc::new(upper.open().at("open directory", dest())?);
                let mut parts = None;
                if let Some(lower) = &lower {
                    let open = |(i, dir): &(usize, DirRef)| dir.open().map(|fd| (*i, Arc::new(fd)));
                    let opened: rustix::io::Result<Vec<_>> = lower.iter().map(open).collect();
                    parts = Some(StackDir { parts: opened.at("open directory", dest())? });
                }
                (TargetDir { upper: fd, lower: parts, fresh }, upper, lower)
            }
        };
        let indices: Vec<usize> = pick.entries(job.source).map(|(i, _)| i).collect();
        let mut from = Vec::with_capacity(job.from.len());
        for (layer, dir) in &job.from {
            from.push((*layer, Arc::new(dir.open().at("open directory", dest())?)));
        }
        let chunks: Vec<Vec<usize>> = indices.chunks(CHUNK).map(<[usize]>::to_vec).collect();
        let open = Arc::new(Open {
            source: job.source,
            from,
            from_refs: job.from,
            to,
            upper_ref,
            lower_refs,
            path: job.path,
            finish: job.finish,
            chunks_left: AtomicUsize::new(chunks.len().max(1)),
        });
        let mut chunks = chunks.into_iter();
        let first = chunks.next().unwrap_or_default();
        queue.extend(chunks.map(|c| Task::Chunk(open.clone(), c)).collect());
        self.chunk(pick, &open, &first, queue)
    }

    fn chunk(&self, pick: &Pick<'_>, open: &Arc<Open>, indices: &[usize], queue: &Queue<'_, Task>) -> Result<()> {
        let mut children = Vec::new();
        let mut path = open.path.clone();
        for i in indices {
            let entry = &pick.tree.dirs[open.source].entries[*i];
            path.push(&entry.name);
            match entry.dir {
                Some(source) => children.push(Task::Dir(self.child(pick, open, source, entry, &path)?)),
                None => {
                    let shown = self.shown(pick, &path);
                    self.target.clear(&open.to, &entry.name, entry.stat.kind, &shown)?;
                    let Some((_, from)) = open.from.iter().find(|(l, _)| *l == entry.layer) else {
                        return Err(RootfsError::NotFound { path: shown });
                    };
                    let file = OneFile { tree: &pick.tree, entry, from, to: &open.to, name: &entry.name, path: &shown };
                    self.entry(&file, open.finish.as_ref())?;
                }
            }
            path.pop();
        }
        // Before the children: their contents do not change this directory any more.
        if open.chunks_left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.finish(open).at("set metadata of", self.shown(pick, &open.path))?;
        }
        queue.extend(children);
        Ok(())
    }

    /// Makes, or takes over, the directory for a source directory.
    fn child(&self, pick: &Pick<'_>, open: &Open, source: usize, entry: &Entry, path: &Path) -> Result<Job> {
        let shown = || self.shown(pick, path);
        let existing = self.target.existing(&open.to, &entry.name).at("stat", shown())?;
        let made = match existing {
            Some(e) if e.stat.kind != FileKind::Dir => {
                return Err(RootfsError::CannotReplace { path: shown(), existing: e.stat.kind, new: FileKind::Dir });
            }
            Some(e) => self.target.enter(&open.to, &entry.name, &e).at("open directory", shown())?,
            None => self.target.make_dir(&open.to, &entry.name).at("create directory", shown())?,
        };
        self.dirs.fetch_add(1, Ordering::Relaxed);
        let place = Place::Closed {
            upper: open.upper_ref.child(&open.to.upper, &entry.name),
            lower: made.lower.as_ref().map(|l| lower_refs(open, l, &entry.name)),
            fresh: made.fresh,
        };
        let stat = self.wanted(&entry.stat);
        let finish = Some(Finish { stat, xattrs: pick.tree.dirs[source].xattrs.clone() });
        let layers = &pick.tree.dirs[source].layers;
        let from = child_refs(&open.from_refs, &open.from, layers, &entry.name);
        Ok(Job { source, from, place, path: path.to_owned(), finish })
    }

    fn finish(&self, open: &Open) -> rustix::io::Result<()> {
        let fd = open.to.upper.as_fd();
        let here = OsStr::new("");
        let Some(Finish { stat, xattrs }) = &open.finish else { return Ok(()) };
        meta::set_owner_mode(fd, here, stat, self.target.upper.ownership())?;
        for (name, value) in xattrs {
            xattr::set_at(fd, here, name, value)?;
        }
        target::set_times(fd, here, stat.mtime)
    }

    /// Where a path is, as the user knows it.
    fn shown(&self, pick: &Pick<'_>, below: &Path) -> PathBuf {
        if below.as_os_str().is_empty() { pick.path.clone() } else { pick.path.join(below) }
    }

    /// Metadata of the copy of something.
    fn wanted(&self, source: &Stat) -> Stat {
        let mut stat = *source;
        if let Some(owner) = self.request.owner {
            (stat.uid, stat.gid) = (owner.uid, owner.gid);
        }
        if let Some(change) = &self.request.mode
            && stat.kind != FileKind::Symlink
        {
            stat.mode = change.apply(stat.mode, stat.kind == FileKind::Dir);
        }
        stat.mtime = self.request.mtime.apply(stat.mtime);
        stat
    }

    fn entry(&self, file: &OneFile<'_>, finish: Option<&Finish>) -> Result<()> {
        let wanted = self.wanted(&file.entry.stat);
        let (to, name) = (file.to.upper.as_fd(), file.name);
        match wanted.kind {
            FileKind::Socket => {
                self.skipped.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            FileKind::File => self.regular(file, &wanted, finish)?,
            FileKind::Symlink => self.symlink(file, &wanted).at("copy", file.path)?,
            FileKind::CharDevice | FileKind::BlockDevice | FileKind::Fifo => {
                meta::make_node(to, name, &wanted, self.target.upper.ownership()).at("copy", file.path)?;
                target::set_times(to, name, wanted.mtime).at("set times of", file.path)?;
            }
            FileKind::Dir => {}
        }
        self.files.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn symlink(&self, file: &OneFile<'_>, wanted: &Stat) -> rustix::io::Result<()> {
        let (to, name) = (file.to.upper.as_fd(), file.name);
        let target = file.entry.target.as_deref().unwrap_or(Path::new(""));
        rustix::fs::symlinkat(target, to, name)?;
        if (wanted.uid, wanted.gid) != self.own {
            meta::set_owner_mode(to, name, wanted, self.target.upper.ownership())?;
        }
        target::set_times(to, name, wanted.mtime)
    }

    fn regular(&self, file: &OneFile<'_>, wanted: &Stat, finish: Option<&Finish>) -> Result<()> {
        let stat = &file.entry.stat;
        let key = (file.entry.layer, stat.dev, stat.ino);
        if stat.nlink > 1 && !self.claim(key, file, finish) {
            return Ok(());
        }
        self.copy_regular(file, wanted)?;
        if stat.nlink > 1 {
            let first = FirstName { dir: file.to.upper.clone(), name: file.name.to_owned() };
            self.names.lock().unwrap_or_else(PoisonError::into_inner).insert(key, Some(first));
        }
        Ok(())
    }

    /// The first name of a file with several is copied; the others wait until that is done.
    fn claim(&self, key: Inode, file: &OneFile<'_>, finish: Option<&Finish>) -> bool {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let std::collections::hash_map::Entry::Vacant(vacant) = names.entry(key) {
            vacant.insert(None);
            return true;
        }
        let finish_time = finish.map(|f| f.stat.mtime);
        let later =
            Deferred { dir: file.to.clone(), name: file.name.to_owned(), key, path: file.path.to_owned(), finish_time };
        self.deferred.lock().unwrap_or_else(PoisonError::into_inner).push(later);
        false
    }

    /// Gives files with several names the others.
    pub fn link_deferred(&self) -> Result<()> {
        let deferred = std::mem::take(&mut *self.deferred.lock().unwrap_or_else(PoisonError::into_inner));
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        for later in deferred {
            let Some(Some(first)) = names.get(&later.key) else { continue };
            rustix::fs::linkat(&first.dir, &first.name, &later.dir.upper, &later.name, AtFlags::empty())
                .at("link", &later.path)?;
            if let Some(time) = later.finish_time {
                target::set_times(later.dir.upper.as_fd(), OsStr::new(""), time).at("set times of", &later.path)?;
            }
        }
        // Names of another source are not names of the same file, even if they share an inode.
        names.clear();
        Ok(())
    }

    fn copy_regular(&self, file: &OneFile<'_>, wanted: &Stat) -> Result<()> {
        let expected = &file.entry.stat;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let changed = || RootfsError::Changed { path: file.path.to_owned() };
        let from = match rustix::fs::openat(file.from, &file.entry.name, flags, Mode::empty()) {
            Err(Errno::LOOP | Errno::NOENT | Errno::NXIO) => return Err(changed()),
            opened => opened.at("open", file.path)?,
        };
        let before = Stat::of(&from, Ownership::Native).at("stat", file.path)?;
        if before.kind != FileKind::File || !file.tree.is_unchanged(expected, &before) {
            return Err(changed());
        }
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(wanted.mode & 0o777);
        let to = rustix::fs::openat(&file.to.upper, file.name, flags, mode).at("create", file.path)?;
        let whole = data::copy_bytes(from.as_fd(), to.as_fd(), &before, &self.ways).at("copy", file.path)?;
        let after = Stat::of(&from, Ownership::Native).at("stat", file.path)?;
        if !whole || !file.tree.is_unchanged(&before, &after) {
            return Err(changed());
        }
        self.bytes.fetch_add(before.size, Ordering::Relaxed);
        self.set_metadata(from.as_fd(), to.as_fd(), wanted).at("set metadata of", file.path)
    }

    /// Owner before mode and capabilities: changing the owner takes setuid bits and capabilities away.
    fn set_metadata(&self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, wanted: &Stat) -> rustix::io::Result<()> {
        let ownership = self.target.upper.ownership();
        let made = Stat::of(to, Ownership::Native)?;
        let plain = (made.uid, made.gid, made.mode) == (wanted.uid, wanted.gid, wanted.mode);
        if !plain {
            meta::set_owner_mode(to, OsStr::new(""), wanted, ownership)?;
        }
        target::copy_xattrs(from, to)?;
        target::set_times(to, OsStr::new(""), wanted.mtime)
    }
}

/// One thing to copy.
struct OneFile<'a> {
    tree: &'a ContextTree,
    entry: &'a Entry,
    from: &'a OwnedFd,
    to: &'a TargetDir,
    /// In the target; another than in the source for a file that is copied to a new name.
    name: &'a OsStr,
    path: &'a Path,
}

/// References to a directory in several layers, by way of its parent's.
fn child_refs(
    refs: &[(usize, DirRef)],
    parent: &[(usize, Arc<OwnedFd>)],
    layers: &[usize],
    name: &OsStr,
) -> Vec<(usize, DirRef)> {
    let part = |layer: &usize| {
        let (_, dir) = refs.iter().find(|(l, _)| l == layer)?;
        let (_, fd) = parent.iter().find(|(l, _)| l == layer)?;
        Some((*layer, dir.child(fd, name)))
    };
    layers.iter().filter_map(part).collect()
}

/// As [`child_refs`], for the directory below the one that is written.
fn lower_refs(open: &Open, child: &StackDir, name: &OsStr) -> Vec<(usize, DirRef)> {
    let (Some(refs), Some(parent)) = (&open.lower_refs, &open.to.lower) else { return Vec::new() };
    let layers: Vec<usize> = child.parts.iter().map(|(layer, _)| *layer).collect();
    child_refs(refs, &parent.parts, &layers, name)
}
