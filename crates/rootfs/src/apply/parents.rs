//! Directories: the ones that entries are placed in, found without following links out of the root and made where they
//! are missing; and the metadata of all directories, which are set at the end.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::node;
use super::reader::archive;
use crate::error::{Context as _, Result, RootfsError};
use crate::export::Level;
use crate::resolve::open_beneath;
use crate::root::Root;
use crate::stat::{FileKind, Ownership, Stat};
use crate::{whiteout, xattr};

/// Descriptors kept open to place things by.
const CACHE: usize = 128;
/// Directories kept open on the way down when metadata are set.
const MAX_OPEN: usize = 64;

/// A directory to place things in.
#[derive(Clone)]
pub(super) struct Parent {
    pub fd: Arc<OwnedFd>,
    /// From the root, without links.
    pub path: PathBuf,
}

/// Metadata for the end.
struct Pending {
    stat: Stat,
    /// Made because something is in it, not because the archive has it.
    implicit: bool,
    /// Hides what the layers below have, so that it takes no metadata from them either.
    fresh: bool,
}

pub(super) struct Directories<'a> {
    root: &'a Root,
    layer: bool,
    open: HashMap<PathBuf, Parent>,
    pending: BTreeMap<PathBuf, Pending>,
    /// Bytes of memory that `pending` may take, and about how many it took so far.
    limit: usize,
    taken: usize,
}

impl<'a> Directories<'a> {
    pub fn new(root: &'a Root, layer: bool, limit: usize) -> Self {
        Self { root, layer, open: HashMap::new(), pending: BTreeMap::new(), limit, taken: 0 }
    }

    fn remember(&mut self, path: PathBuf, pending: Pending) -> Result<()> {
        let size = path.as_os_str().len() + size_of::<(PathBuf, Pending)>();
        if self.pending.insert(path, pending).is_none() {
            // What is forgotten later is not counted back: it could be made again and again.
            self.taken += size;
        }
        if self.taken > self.limit {
            let limit = self.limit as u64;
            return Err(RootfsError::Limit { what: "memory for the directories of the archive", limit });
        }
        Ok(())
    }

    /// The directory at `path` (clean, as in the archive), made if it is missing; `needed_by` lends it owner and time.
    pub fn get(&mut self, path: &Path, needed_by: &Stat) -> Result<Parent> {
        self.find(path, Some(needed_by))
    }

    /// As [`Self::get`], but what is missing is an error.
    pub fn existing(&mut self, path: &Path) -> Result<Parent> {
        self.find(path, None)
    }

    fn find(&mut self, path: &Path, make: Option<&Stat>) -> Result<Parent> {
        if let Some(known) = self.open.get(path) {
            return Ok(known.clone());
        }
        let found = match self.step_down(path) {
            Some(found) => found,
            None => match open_beneath(self.root.as_fd(), path, OFlags::PATH | OFlags::DIRECTORY) {
                Ok(fd) => Parent { fd: Arc::new(fd), path: path.to_owned() },
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => self.resolve(path, make)?,
                Err(e) => return Err(RootfsError::io("open directory", path, e)),
            },
        };
        if self.open.len() >= CACHE {
            self.open.clear();
        }
        self.open.insert(path.to_owned(), found.clone());
        Ok(found)
    }

    /// In most archives the directory above was used just before.
    fn step_down(&self, path: &Path) -> Option<Parent> {
        let (above, name) = (path.parent()?, path.file_name()?);
        let above = self.open.get(above)?;
        let fd = node::open_dir(above.fd.as_fd(), name).ok()?;
        Some(Parent { fd: Arc::new(fd), path: above.path.join(name) })
    }

    /// A link is on the way, or something is missing: resolves inside the root and goes down step by step.
    fn resolve(&mut self, path: &Path, make: Option<&Stat>) -> Result<Parent> {
        let canonical = self.root.resolve(path)?;
        let open = |e| RootfsError::io("open directory", path, e);
        let mut at = Arc::new(node::open_dir(self.root.as_fd(), OsStr::new(".")).map_err(open)?);
        let mut so_far = PathBuf::new();
        for name in &canonical {
            so_far.push(name);
            let child = match (node::open_dir(at.as_fd(), name), make) {
                (Err(Errno::NOENT), Some(stat)) => self.make_implicit(&at, name, &so_far, stat)?,
                (Err(Errno::NOTDIR | Errno::LOOP), Some(stat)) => self.replace_whiteout(&at, name, &so_far, stat)?,
                (opened, _) => opened.map_err(open)?,
            };
            at = Arc::new(child);
        }
        Ok(Parent { fd: at, path: canonical })
    }

    fn make_implicit(&mut self, dir: &OwnedFd, name: &OsStr, path: &Path, needed_by: &Stat) -> Result<OwnedFd> {
        rustix::fs::mkdirat(dir, name, Mode::RWXU).at("create directory", path)?;
        let stat = Stat { kind: FileKind::Dir, mode: 0o755, ..*needed_by };
        self.remember(path.to_owned(), Pending { stat, implicit: true, fresh: false })?;
        node::open_dir(dir.as_fd(), name).at("open directory", path)
    }

    /// A whiteout in the way hides the directory of the layers below; what this layer has in it is a new one.
    fn replace_whiteout(&mut self, dir: &OwnedFd, name: &OsStr, path: &Path, needed_by: &Stat) -> Result<OwnedFd> {
        if !self.layer || !whiteout::is_at(dir, name).at("stat", path)? {
            return Err(archive(path, "something is to be put in it, but it is not a directory"));
        }
        rustix::fs::unlinkat(dir, name, rustix::fs::AtFlags::empty()).at("remove", path)?;
        let made = self.make_implicit(dir, name, path, needed_by)?;
        whiteout::set_opaque(dir, name).at("make opaque", path)?;
        if let Some(pending) = self.pending.get_mut(path) {
            pending.fresh = true;
        }
        Ok(made)
    }

    /// Remembers the metadata of a directory that has an entry.
    pub fn describe(&mut self, path: PathBuf, stat: Stat) -> Result<()> {
        self.remember(path, Pending { stat, implicit: false, fresh: false })
    }

    /// A directory or a link at `path` was removed: forgets what was known by way of it.
    pub fn forget(&mut self, path: &Path) {
        self.open.clear();
        let below: Vec<PathBuf> = self
            .pending
            .range(path.to_owned()..)
            .map(|(p, _)| p)
            .take_while(|p| p.starts_with(path))
            .cloned()
            .collect();
        for path in below {
            self.pending.remove(&path);
        }
    }

    /// Sets the metadata of all directories, inner ones first: an outer one may become inaccessible. Returns those
    /// without an entry of their own that may exist below.
    pub fn finish(self, lower: Option<&Root>) -> Result<Vec<PathBuf>> {
        let mut implicit = Vec::new();
        let mut way = Way::new(self.root)?;
        for (path, pending) in self.pending {
            let mut stat = pending.stat;
            way.go(&path)?;
            if pending.implicit && !pending.fresh && self.layer {
                if let Some(lower) = lower {
                    copy_up(&*way.fd(&path)?, lower, &path, &mut stat)?;
                }
                implicit.push(path.clone());
            }
            way.set_later(stat);
        }
        way.finish()?;
        Ok(implicit)
    }
}

/// A way down from the root through directories in sorted order. What is to be set on one is set when it is left.
struct Way {
    steps: Vec<Step>,
    path: PathBuf,
    ownership: Ownership,
}

struct Step {
    level: Level,
    stat: Option<Stat>,
}

impl Way {
    fn new(root: &Root) -> Result<Self> {
        let top = Level::top(Arc::new(root.open_dir(Path::new(""))?));
        let steps = vec![Step { level: top, stat: None }];
        Ok(Self { steps, path: PathBuf::new(), ownership: root.ownership() })
    }

    /// Goes to `path`, up as far as needed and then down.
    fn go(&mut self, path: &Path) -> Result<()> {
        while !path.starts_with(&self.path) {
            self.leave()?;
        }
        let names: Vec<_> = path.iter().skip(self.steps.len() - 1).collect();
        for name in names {
            let Some(step) = self.steps.last_mut() else { return Ok(()) };
            let level = step.level.child(name).at("open directory", path)?;
            self.path.push(name);
            self.steps.push(Step { level, stat: None });
            if let Some(far) = self.steps.len().checked_sub(MAX_OPEN).and_then(|far| self.steps.get_mut(far)) {
                far.level.close();
            }
        }
        Ok(())
    }

    fn fd(&mut self, path: &Path) -> Result<Arc<OwnedFd>> {
        match self.steps.last_mut() {
            Some(step) => step.level.fd().at("open directory", path),
            None => Err(RootfsError::io("open directory", path, Errno::NOENT)),
        }
    }

    fn set_later(&mut self, stat: Stat) {
        if let Some(step) = self.steps.last_mut() {
            step.stat = Some(stat);
        }
    }

    fn leave(&mut self) -> Result<()> {
        if let Some(Step { mut level, stat: Some(stat) }) = self.steps.pop() {
            let context = "set owner, mode and time of";
            let fd = level.fd().at(context, &self.path)?;
            // Once the owner is another, an unprivileged process may not set the time any more.
            rustix::fs::futimens(&fd, &node::times(stat.mtime)).at(context, &self.path)?;
            node::set_owner_mode(fd.as_fd(), &stat, self.ownership).at(context, &self.path)?;
        }
        self.path.pop();
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        while !self.steps.is_empty() {
            self.leave()?;
        }
        Ok(())
    }
}

/// Takes metadata from the same directory of the layers below, if there is one.
fn copy_up(target: &OwnedFd, lower: &Root, path: &Path, stat: &mut Stat) -> Result<()> {
    let Some(below) = lower.try_stat(path, true)? else { return Ok(()) };
    if below.kind != FileKind::Dir {
        return Ok(());
    }
    *stat = below;
    let source = lower.open_path(path, true)?;
    let own = OsStr::new("");
    for (name, value) in xattr::read_at(&source, own, xattr::is_content).at("read attributes of", path)? {
        xattr::set_at(target, own, &name, &value).at("set attribute of", path)?;
    }
    Ok(())
}

/// Gives the directories in `implicit` (see [`super::Applied::implicit`]) of an applied layer the metadata that they
/// have in `lower`, the merged view of the layers below. For layers that were unpacked out of order.
pub fn copy_up_parents(upper: &Root, lower: &Root, implicit: &[PathBuf]) -> Result<()> {
    let mut sorted: Vec<&PathBuf> = implicit.iter().collect();
    sorted.sort();
    let mut way = Way::new(upper)?;
    for path in sorted {
        way.go(path)?;
        let fd = way.fd(path)?;
        let mut stat = Stat::of(&fd, upper.ownership()).at("stat", path)?;
        copy_up(&fd, lower, path, &mut stat)?;
        way.set_later(stat);
    }
    way.finish()
}

/// What is at `name`, if anything.
pub(super) fn look(dir: &OwnedFd, name: &OsStr, path: &Path) -> Result<Option<Stat>> {
    match Stat::at(dir, name, Ownership::Native) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(RootfsError::io("stat", path, e)),
    }
}
