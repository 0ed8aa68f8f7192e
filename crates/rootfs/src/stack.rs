//! [`Stack`]: layers in overlay upper format seen as one tree, without a mount.
//!
//! It does what overlayfs does for readers: the upper entry wins, directories merge, whiteouts and opaque directories hide
//! what is below. Unlike a mount it knows which layer a file is in, so that files can be hard linked out of it.

use std::collections::{HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::dir;
use crate::error::{Context as _, Result};
use crate::resolve;
use crate::root::Root;
use crate::stat::{FileKind, Ownership, Stat};
use crate::whiteout::is_opaque;

/// As the kernel's limit on links in one path.
const MAX_LINKS: u32 = 40;

/// Read-only layers seen as one tree. A single directory, for example a mounted overlay, is a stack of one.
#[derive(Clone, Debug)]
pub struct Stack {
    /// Uppermost first.
    layers: Arc<[Root]>,
}

impl From<Root> for Stack {
    fn from(root: Root) -> Self {
        Self { layers: Arc::new([root]) }
    }
}

/// Something found in a stack.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    /// Without links and `..`, relative to the root.
    pub path: PathBuf,
    /// What is there, and in which layer; `None` if nothing is.
    pub entry: Option<(Stat, usize)>,
}

/// A directory of a stack, open in every layer that has it.
#[derive(Debug, Clone, Default)]
pub(crate) struct StackDir {
    /// Layer index and descriptor, uppermost first.
    pub parts: Vec<(usize, Arc<OwnedFd>)>,
}

impl Stack {
    /// Of layers given lowest first, as a snapshot lists them.
    pub fn new(lowest_first: &[Root]) -> Self {
        Self { layers: lowest_first.iter().rev().cloned().collect() }
    }

    /// The same layers under another one.
    pub fn with_upper(&self, upper: Root) -> Self {
        Self { layers: std::iter::once(upper).chain(self.layers.iter().cloned()).collect() }
    }

    pub(crate) fn layer(&self, index: usize) -> &Root {
        &self.layers[index]
    }

    /// Metadata of what is at a path, symbolic links followed inside the stack (the last one if `follow`).
    pub fn stat(&self, path: &Path, follow: bool) -> Result<Option<Stat>> {
        Ok(self.find(path, follow)?.entry.map(|(stat, _)| stat))
    }

    /// The path without links and `..`, relative to the root; components that do not exist are taken as written.
    pub fn resolve(&self, path: &Path) -> Result<PathBuf> {
        Ok(self.find(path, true)?.path)
    }

    /// Opens a regular file for reading; links are followed inside the stack.
    pub fn open_file(&self, path: &Path) -> Result<std::fs::File> {
        let found = self.find(path, true)?;
        match found.entry.and_then(|(_, layer)| self.layers.get(layer)) {
            Some(layer) => layer.open_file(&found.path),
            None => Err(crate::RootfsError::NotFound { path: path.to_owned() }),
        }
    }

    /// The target of a symbolic link.
    pub fn read_link(&self, path: &Path) -> Result<PathBuf> {
        let parent = self.find(path.parent().unwrap_or(Path::new("")), true)?.path;
        let name = path.file_name().unwrap_or_default();
        let dir = self.open(&parent)?.ok_or(Errno::NOENT).at("open directory", &parent)?;
        dir.read_link(name).at("read link", path)
    }

    /// Resolves. A path through something that is not a directory is an error, as it is to the kernel.
    pub(crate) fn find(&self, path: &Path, follow: bool) -> Result<Found> {
        self.walk(path, follow).at("resolve", path)
    }

    fn walk(&self, path: &Path, follow: bool) -> rustix::io::Result<Found> {
        let mut names: Vec<OsString> = Vec::new();
        let mut at = Place::Dir(self.root_dir()?);
        let mut entry = Some((Stat::of(&self.layers[0], self.layers[0].ownership())?, 0));
        let mut todo: VecDeque<OsString> = resolve::components(path).map(OsStr::to_owned).collect();
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            if name == "." {
                continue;
            }
            if name == ".." {
                names.pop();
                (at, entry) = self.descend(&names)?;
                continue;
            }
            let dir = match &at {
                Place::Dir(dir) => dir,
                Place::Missing => {
                    names.push(name);
                    continue;
                }
                Place::File => return Err(Errno::NOTDIR),
            };
            let found = dir.entry(&name, self)?;
            if let Some((Stat { kind: FileKind::Symlink, .. }, _)) = found
                && (follow || !todo.is_empty())
            {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP);
                }
                let target = dir.read_link(&name)?;
                if target.is_absolute() {
                    names.clear();
                    (at, entry) = self.descend(&names)?;
                }
                let parts: Vec<OsString> = resolve::components(&target).map(OsStr::to_owned).collect();
                parts.into_iter().rev().for_each(|p| todo.push_front(p));
                continue;
            }
            entry = found;
            at = match found {
                None => Place::Missing,
                Some((stat, _)) if stat.kind == FileKind::Dir => dir.child(&name)?.map_or(Place::Missing, Place::Dir),
                Some(_) => Place::File,
            };
            names.push(name);
        }
        Ok(Found { path: names.iter().collect(), entry })
    }

    /// From the root again, for `..`: no link can be on the way.
    fn descend(&self, names: &[OsString]) -> rustix::io::Result<(Place, Option<(Stat, usize)>)> {
        let mut dir = self.root_dir()?;
        let mut entry = Some((Stat::of(&self.layers[0], self.layers[0].ownership())?, 0));
        for name in names {
            entry = dir.entry(name, self)?;
            match entry {
                None => return Ok((Place::Missing, None)),
                Some((stat, _)) if stat.kind != FileKind::Dir => return Ok((Place::File, entry)),
                Some(_) => {}
            }
            match dir.child(name)? {
                Some(child) => dir = child,
                None => return Ok((Place::Missing, None)),
            }
        }
        Ok((Place::Dir(dir), entry))
    }

    pub(crate) fn root_dir(&self) -> rustix::io::Result<StackDir> {
        let mut parts = Vec::with_capacity(self.layers.len());
        for (i, layer) in self.layers.iter().enumerate() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            parts.push((i, Arc::new(rustix::fs::openat(layer, ".", flags, Mode::empty())?)));
            if i + 1 < self.layers.len() && is_opaque(layer, OsStr::new(""))? {
                break;
            }
        }
        Ok(StackDir { parts })
    }

    /// Opens a directory by its canonical path.
    pub(crate) fn open(&self, canonical: &Path) -> Result<Option<StackDir>> {
        let mut dir = self.root_dir().at("open directory", canonical)?;
        for name in canonical.iter() {
            match dir.child(name).at("open directory", canonical)? {
                Some(child) => dir = child,
                None => return Ok(None),
            }
        }
        Ok(Some(dir))
    }
}

enum Place {
    Dir(StackDir),
    File,
    Missing,
}

impl StackDir {
    /// What `name` is, and in which layer.
    pub fn entry(&self, name: &OsStr, stack: &Stack) -> rustix::io::Result<Option<(Stat, usize)>> {
        for (layer, fd) in &self.parts {
            match Stat::at(fd, name, stack.layer(*layer).ownership()) {
                Ok(stat) if stat.is_whiteout() => return Ok(None),
                Ok(stat) => return Ok(Some((stat, *layer))),
                Err(Errno::NOENT) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(None)
    }

    /// The directory `name`, merged; `None` if it is none.
    pub fn child(&self, name: &OsStr) -> rustix::io::Result<Option<Self>> {
        let mut parts = Vec::new();
        let last = self.parts.len().saturating_sub(1);
        for (i, (layer, fd)) in self.parts.iter().enumerate() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match rustix::fs::openat(fd, name, flags, Mode::empty()) {
                Ok(fd) => {
                    let opaque = i < last && is_opaque(&fd, OsStr::new(""))?;
                    parts.push((*layer, Arc::new(fd)));
                    if opaque {
                        break;
                    }
                }
                Err(Errno::NOENT) => {}
                Err(Errno::NOTDIR | Errno::LOOP) => break,
                Err(e) => return Err(e),
            }
        }
        Ok((!parts.is_empty()).then_some(Self { parts }))
    }

    pub fn read_link(&self, name: &OsStr) -> rustix::io::Result<PathBuf> {
        for (_, fd) in &self.parts {
            match rustix::fs::readlinkat(fd, name, Vec::new()) {
                Ok(target) => return Ok(PathBuf::from(OsString::from_vec(target.into_bytes()))),
                Err(Errno::NOENT) => {}
                Err(e) => return Err(e),
            }
        }
        Err(Errno::NOENT)
    }

    /// The merged names, sorted, each with whether it is a directory.
    pub fn names(&self) -> rustix::io::Result<Vec<(OsString, bool)>> {
        let mut seen = HashSet::new();
        let mut all = Vec::new();
        for (_, fd) in &self.parts {
            for dir::Name { name, kind } in dir::read_names(fd)? {
                if !seen.contains(name.as_os_str()) {
                    let (kind, whiteout) = match kind {
                        Some(kind) if kind != FileKind::CharDevice => (kind, false),
                        _ => {
                            let stat = Stat::at(fd, &name, Ownership::Native)?;
                            (stat.kind, stat.is_whiteout())
                        }
                    };
                    if !whiteout {
                        all.push((name.clone(), kind == FileKind::Dir));
                    }
                    seen.insert(name);
                }
            }
        }
        all.sort();
        Ok(all)
    }
}

/// `path` joined from components, so that `a//b/./c` and `a/b/c` are the same; `..` is kept.
pub(crate) fn tidy(path: &Path) -> PathBuf {
    resolve::components(path).filter(|c| c.as_bytes() != b".").collect()
}
