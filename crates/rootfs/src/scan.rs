//! Filling a [`ContextTree`]: one task per directory, several threads, `getdents` and `statx` relative to descriptors.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::io::Errno;

use crate::dir::{self, DirRef};
use crate::error::{Context as _, Result};
use crate::meta::Owner;
use crate::par::{self, Queue};
use crate::stack::Stack;
use crate::stat::{FileKind, Stat};
use crate::statcache::{CachedDir, StatCache};
use crate::tree::{ContextTree, Dir, Entry, Filter, Ignore, now};
use crate::whiteout::is_opaque;
use crate::xattr::{self, Xattrs};

pub(crate) struct Request<'a> {
    pub stack: Stack,
    /// Canonical path of a directory in the stack.
    pub base: PathBuf,
    pub filter: Option<Filter<'a>>,
    pub cache: Option<&'a StatCache>,
    pub owner: Option<Owner>,
    pub immutable: bool,
}

struct Task {
    id: usize,
    path: PathBuf,
    /// Layer and directory, uppermost first.
    parts: Vec<(usize, DirRef)>,
    tentative: bool,
}

struct Scan<'a> {
    request: &'a Request<'a>,
    next_id: AtomicUsize,
    done: Mutex<Vec<(usize, Dir)>>,
    hits: AtomicU64,
}

pub(crate) fn scan(request: &Request<'_>) -> Result<ContextTree> {
    let started = now();
    let top = request.stack.open(&request.base)?.ok_or(Errno::NOENT).at("open directory", &request.base)?;
    let (first, fd) = top.parts.first().cloned().ok_or(Errno::NOENT).at("open directory", &request.base)?;
    let mut root = Stat::of(&fd, request.stack.layer(first).ownership()).at("stat", &request.base)?;
    set_owner(&mut root, request.owner);
    let parts = top.parts.into_iter().map(|(layer, fd)| (layer, DirRef::new(fd))).collect();
    let scan = Scan { request, next_id: AtomicUsize::new(1), done: Mutex::new(Vec::new()), hits: AtomicU64::new(0) };
    let task = Task { id: 0, path: PathBuf::new(), parts, tentative: false };
    par::run(vec![task], |task, queue| scan.directory(task, queue))?;
    let dirs = scan.assemble();
    let mut tree = ContextTree {
        stack: request.stack.clone(),
        base: request.base.clone(),
        root,
        dirs,
        immutable: request.immutable,
        started,
        computed: AtomicBool::new(false),
        cache_hits: AtomicU64::new(scan.hits.into_inner()),
    };
    drop_empty_parents(&mut tree.dirs);
    Ok(tree)
}

/// A tree of one file, for a source that is no directory.
pub(crate) fn single(stack: &Stack, canonical: &Path, stat: Stat, layer: usize) -> Result<ContextTree> {
    let name = canonical.file_name().unwrap_or_default().to_owned();
    let target = match stat.kind {
        FileKind::Symlink => Some(stack.read_link(canonical)?),
        _ => None,
    };
    let entry = Entry { name, stat, layer, dir: None, target, digest: OnceLock::new() };
    Ok(ContextTree {
        stack: stack.clone(),
        base: canonical.parent().unwrap_or(Path::new("")).to_owned(),
        root: stat,
        dirs: vec![Dir { entries: vec![entry], ..Dir::default() }],
        immutable: true,
        started: now(),
        computed: AtomicBool::new(false),
        cache_hits: AtomicU64::new(0),
    })
}

fn set_owner(stat: &mut Stat, owner: Option<Owner>) {
    if let Some(Owner { uid, gid }) = owner {
        (stat.uid, stat.gid) = (uid, gid);
    }
}

/// A listed name, before it becomes an entry.
struct Listed {
    name: OsString,
    stat: Stat,
    /// By index into the task's parts.
    part: usize,
    /// Further parts of a directory, below that one.
    more: Vec<usize>,
}

/// A directory while it is read.
struct Reading<'a> {
    task: &'a Task,
    fds: &'a [Arc<OwnedFd>],
    cached: Option<CachedDir<'a>>,
    path: PathBuf,
    entries: Vec<Entry>,
    children: Vec<Task>,
}

impl Scan<'_> {
    fn directory(&self, task: Task, queue: &Queue<'_, Task>) -> Result<()> {
        let mut fds = Vec::with_capacity(task.parts.len());
        for (_, part) in &task.parts {
            match part.open() {
                Err(error @ (Errno::ACCESS | Errno::PERM)) if !task.path.as_os_str().is_empty() => {
                    self.unreadable(task, error);
                    return Ok(());
                }
                // It was deleted since its parent was read: as if it had not been there.
                Err(Errno::NOENT) if !task.path.as_os_str().is_empty() => {
                    self.gone(task);
                    return Ok(());
                }
                opened => fds.push(Arc::new(opened.at("open directory", &task.path)?)),
            }
        }
        let mut reading = Reading {
            task: &task,
            fds: &fds,
            cached: self.request.cache.and_then(|c| c.dir(&task.path)),
            path: task.path.clone(),
            entries: Vec::new(),
            children: Vec::new(),
        };
        match fds.as_slice() {
            [fd] => self.read_one(fd, &mut reading)?,
            _ => self.read_merged(&mut reading)?,
        }
        let Reading { entries, children, .. } = reading;
        let xattrs = dir_xattrs(&fds[0], &task.path)?;
        let layers = task.parts.iter().map(|(layer, _)| *layer).collect();
        let dir = Dir { path: task.path, layers, xattrs, entries, tentative: task.tentative, unreadable: None };
        self.done.lock().unwrap_or_else(PoisonError::into_inner).push((task.id, dir));
        queue.extend(children);
        Ok(())
    }

    /// A directory of the context that no step needs may be closed to the user.
    fn unreadable(&self, task: Task, error: Errno) {
        let layers = task.parts.iter().map(|(layer, _)| *layer).collect();
        let dir = Dir { path: task.path, layers, tentative: task.tentative, unreadable: Some(error), ..Dir::default() };
        self.done.lock().unwrap_or_else(PoisonError::into_inner).push((task.id, dir));
    }

    /// A directory that is left out of its parent.
    fn gone(&self, task: Task) {
        let layers = task.parts.iter().map(|(layer, _)| *layer).collect();
        let dir = Dir { path: task.path, layers, tentative: true, ..Dir::default() };
        self.done.lock().unwrap_or_else(PoisonError::into_inner).push((task.id, dir));
    }

    /// The usual case: one layer, nothing to merge.
    fn read_one(&self, fd: &Arc<OwnedFd>, reading: &mut Reading<'_>) -> Result<()> {
        let ownership = self.request.stack.layer(reading.task.parts[0].0).ownership();
        let mut names = dir::read_names(fd).at("read directory", &reading.task.path)?;
        names.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        reading.entries.reserve_exact(names.len());
        for dir::Name { name, .. } in names {
            // A name that went between the two calls was deleted; that is a state too.
            let stat = match Stat::at(fd, &name, ownership) {
                Err(Errno::NOENT) => continue,
                stat => stat.at("stat", reading.task.path.join(&name))?,
            };
            if !stat.is_whiteout() {
                self.add(reading, Listed { name, stat, part: 0, more: Vec::new() })?;
            }
        }
        Ok(())
    }

    fn read_merged(&self, reading: &mut Reading<'_>) -> Result<()> {
        let mut listed = self.list(reading.task, reading.fds)?;
        listed.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        for item in listed {
            self.add(reading, item)?;
        }
        Ok(())
    }

    /// Filters, and adds an entry; a directory is also to be read.
    fn add(&self, reading: &mut Reading<'_>, item: Listed) -> Result<()> {
        let task = reading.task;
        let is_dir = item.stat.kind == FileKind::Dir;
        let mut tentative = false;
        if self.request.filter.is_some() || is_dir {
            reading.path.push(&item.name);
        }
        if let Some(filter) = self.request.filter {
            match filter(&reading.path, is_dir) {
                Ignore::Keep => {}
                Ignore::SkipButDescend if is_dir => tentative = true,
                _ => {
                    reading.path.pop();
                    return Ok(());
                }
            }
        }
        let mut dir = None;
        if is_dir {
            let id = self.next_id.fetch_add(1, Ordering::Relaxed);
            dir = Some(id);
            let part = |i: usize| (task.parts[i].0, task.parts[i].1.child(&reading.fds[i], &item.name));
            let parts = std::iter::once(item.part).chain(item.more).map(part).collect();
            reading.children.push(Task { id, path: reading.path.clone(), parts, tentative });
        }
        if self.request.filter.is_some() || is_dir {
            reading.path.pop();
        }
        let Listed { name, mut stat, part, .. } = item;
        let digest = OnceLock::new();
        if stat.kind == FileKind::File
            && let Some(known) = reading.cached.as_mut().and_then(|c| c.lookup(&name, &stat))
        {
            let _ = digest.set(known); // it was empty
            self.hits.fetch_add(1, Ordering::Relaxed);
        }
        set_owner(&mut stat, self.request.owner);
        let target = match stat.kind {
            FileKind::Symlink => {
                let target = rustix::fs::readlinkat(&reading.fds[part], &name, Vec::new());
                let target = target.at("read link", task.path.join(&name))?;
                Some(PathBuf::from(OsString::from_vec(target.into_bytes())))
            }
            _ => None,
        };
        reading.entries.push(Entry { name, stat, layer: task.parts[part].0, dir, target, digest });
        Ok(())
    }

    /// Several layers: names above hide those below, directories merge.
    fn list(&self, task: &Task, fds: &[Arc<OwnedFd>]) -> Result<Vec<Listed>> {
        let mut all: Vec<Listed> = Vec::new();
        // For each name, the directory in `all` that layers below still add to.
        let mut seen: HashMap<OsString, Option<usize>> = HashMap::new();
        for (part, fd) in fds.iter().enumerate() {
            let ownership = self.request.stack.layer(task.parts[part].0).ownership();
            let is_last = part + 1 == fds.len();
            for dir::Name { name, .. } in dir::read_names(fd).at("read directory", &task.path)? {
                let above = seen.get(&name).copied();
                if above == Some(None) {
                    continue;
                }
                let stat = match Stat::at(fd, &name, ownership) {
                    Err(Errno::NOENT) => continue,
                    stat => stat.at("stat", task.path.join(&name))?,
                };
                let is_dir = stat.kind == FileKind::Dir;
                let open_below =
                    is_dir && !is_last && !is_opaque(fd.as_fd(), &name).at("stat", task.path.join(&name))?;
                let index = match above.flatten() {
                    Some(i) => {
                        if is_dir {
                            all[i].more.push(part);
                        }
                        i
                    }
                    None => {
                        if !stat.is_whiteout() {
                            all.push(Listed { name: name.clone(), stat, part, more: Vec::new() });
                        }
                        all.len().saturating_sub(1)
                    }
                };
                seen.insert(name, open_below.then_some(index));
            }
        }
        Ok(all)
    }

    fn assemble(&self) -> Vec<Dir> {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let mut done = std::mem::take(&mut *done);
        done.sort_unstable_by_key(|(id, _)| *id);
        done.into_iter().map(|(_, dir)| dir).collect()
    }
}

fn dir_xattrs(fd: &Arc<OwnedFd>, path: &Path) -> Result<Xattrs> {
    let names = xattr::list(fd).at("read attributes of", path)?;
    if !names.iter().any(|n| xattr::is_content(n)) {
        return Ok(Xattrs::new());
    }
    xattr::read_at(fd, OsStr::new(""), xattr::is_content).at("read attributes of", path)
}

/// Directories that the filter left out stay only if something below them was kept. Children come after their parents.
fn drop_empty_parents(dirs: &mut [Dir]) {
    if !dirs.iter().any(|d| d.tentative) {
        return;
    }
    for i in (0..dirs.len()).rev() {
        let mut entries = std::mem::take(&mut dirs[i].entries);
        entries.retain(|e| e.dir.is_none_or(|d| !dirs[d].tentative || !dirs[d].entries.is_empty()));
        dirs[i].entries = entries;
    }
}
