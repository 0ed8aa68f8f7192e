//! [`Target`]: the layer that a step writes, over the layers that it sees.
//!
//! Invariants:
//! - only the upper directory is ever written; what exists below is copied up (directories) or hidden (the rest);
//! - a destination path is resolved in the merged view, so that links of lower layers count, and stays inside;
//! - directories that existed keep their metadata, modification time included, though entries are added to them.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;

use crate::error::{Context as _, Result, RootfsError};
use crate::meta::{self, Owner};
use crate::root::Root;
use crate::stack::{Stack, StackDir};
use crate::stat::{FileKind, Stat, Time};
use crate::{whiteout, xattr};

/// Where file operations write.
#[derive(Clone, Debug)]
pub struct Target {
    /// The layer that is written, in overlay upper format.
    pub upper: Root,
    /// What is below, if anything.
    pub lower: Option<Stack>,
}

/// How directories that are missing on the way to a destination are made.
#[derive(Debug, Clone, Copy)]
pub struct MakeDirs {
    /// Permission bits; Docker makes parents with 0755.
    pub mode: u32,
    /// Owner of what is made.
    pub owner: Owner,
    /// Modification time of what is made; else the time of the last change, as usual.
    pub mtime: Option<Time>,
}

impl Default for MakeDirs {
    fn default() -> Self {
        Self { mode: 0o755, owner: Owner { uid: 0, gid: 0 }, mtime: None }
    }
}

/// An open destination directory.
#[derive(Debug, Clone)]
pub(crate) struct TargetDir {
    pub upper: Arc<OwnedFd>,
    /// The same directory below, unless there is none or it is hidden.
    pub lower: Option<StackDir>,
    /// Nothing can be in it: it was just made and hides nothing.
    pub fresh: bool,
}

/// Directories whose modification time has to be set when all is done.
#[derive(Debug, Default)]
pub(crate) struct Restore(Vec<(Arc<OwnedFd>, Time)>);

impl Restore {
    /// Also, or instead of what was to be set.
    pub fn add(&mut self, dir: &TargetDir, time: Time) {
        self.0.push((dir.upper.clone(), time));
    }

    pub fn run(self) -> Result<()> {
        for (fd, time) in self.0 {
            set_times(fd.as_fd(), OsStr::new(""), time).at("set times of", "directory")?;
        }
        Ok(())
    }
}

/// What is at a name of a destination directory.
pub(crate) struct Existing {
    pub stat: Stat,
    pub in_upper: bool,
}

impl Target {
    /// A layer over nothing.
    pub fn scratch(upper: Root) -> Self {
        Self { upper, lower: None }
    }

    /// A layer over others.
    pub fn over(upper: Root, lower: Stack) -> Self {
        Self { upper, lower: Some(lower) }
    }

    /// Gives the upper directory itself the metadata of the root below: to the kernel the uppermost root's metadata are
    /// those of the container's `/`. To be done once, before anything is written.
    pub fn adopt_root(&self) -> Result<()> {
        let Some(lower) = &self.lower else { return Ok(()) };
        let below = lower.root_dir().at("open directory", "/")?;
        let Some((layer, from)) = below.parts.first() else { return Ok(()) };
        let stat = Stat::of(from, lower.layer(*layer).ownership()).at("stat", "/")?;
        let (to, here) = (self.upper.as_fd(), OsStr::new(""));
        copy_xattrs(from.as_fd(), to).at("copy attributes of", "/")?;
        meta::set_owner_mode(to, here, &stat, self.upper.ownership()).at("set metadata of", "/")?;
        set_times(to, here, stat.mtime).at("set times of", "/")
    }

    /// The merged tree as it is now.
    pub fn view(&self) -> Stack {
        match &self.lower {
            Some(lower) => lower.with_upper(self.upper.clone()),
            None => self.upper.clone().into(),
        }
    }

    pub(crate) fn root_dir(&self) -> rustix::io::Result<TargetDir> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let upper = Arc::new(rustix::fs::openat(&self.upper, ".", flags, Mode::empty())?);
        let lower = match &self.lower {
            Some(lower) if !whiteout::is_opaque(&upper, OsStr::new(""))? => Some(lower.root_dir()?),
            _ => None,
        };
        Ok(TargetDir { upper, lower, fresh: false })
    }

    /// Opens a directory by its canonical path, making what is missing. Says also whether the last component was made.
    pub(crate) fn open_dir(
        &self,
        canonical: &Path,
        make: &MakeDirs,
        restore: &mut Restore,
    ) -> Result<(TargetDir, bool)> {
        let mut dir = self.root_dir().at("open directory", "/")?;
        let (mut path, mut created) = (PathBuf::new(), false);
        self.keep_time(&dir, restore).at("stat", "/")?;
        for name in canonical.iter() {
            path.push(name);
            let existing = self.existing(&dir, name).at("stat", &path)?;
            created = existing.is_none();
            dir = match existing {
                Some(Existing { stat, .. }) if stat.kind != FileKind::Dir => {
                    return Err(RootfsError::CannotReplace { path, existing: stat.kind, new: FileKind::Dir });
                }
                Some(existing) => {
                    let child = self.enter(&dir, name, &existing).at("open directory", &path)?;
                    restore.0.push((child.upper.clone(), existing.stat.mtime));
                    child
                }
                None => {
                    let child = self.make_dir(&dir, name).at("create directory", &path)?;
                    self.set_owner_mode(&child, make).at("set metadata of", &path)?;
                    restore.0.extend(make.mtime.map(|t| (child.upper.clone(), t)));
                    child
                }
            };
        }
        Ok((dir, created))
    }

    fn keep_time(&self, dir: &TargetDir, restore: &mut Restore) -> rustix::io::Result<()> {
        let stat = Stat::of(&dir.upper, self.upper.ownership())?;
        restore.0.push((dir.upper.clone(), stat.mtime));
        Ok(())
    }

    fn set_owner_mode(&self, dir: &TargetDir, make: &MakeDirs) -> rustix::io::Result<()> {
        let mut stat = Stat::of(&dir.upper, self.upper.ownership())?;
        (stat.uid, stat.gid, stat.mode) = (make.owner.uid, make.owner.gid, make.mode & 0o7777);
        meta::set_owner_mode(dir.upper.as_fd(), OsStr::new(""), &stat, self.upper.ownership())
    }

    /// What is at `name`, in either layer. A whiteout counts as nothing.
    pub(crate) fn existing(&self, dir: &TargetDir, name: &OsStr) -> rustix::io::Result<Option<Existing>> {
        if dir.fresh {
            return Ok(None);
        }
        match Stat::at(&dir.upper, name, self.upper.ownership()) {
            Ok(stat) if stat.is_whiteout() => return Ok(None),
            Ok(stat) => return Ok(Some(Existing { stat, in_upper: true })),
            Err(Errno::NOENT) => {}
            Err(e) => return Err(e),
        }
        let (Some(lower), Some(stack)) = (&dir.lower, &self.lower) else { return Ok(None) };
        Ok(lower.entry(name, stack)?.map(|(stat, _)| Existing { stat, in_upper: false }))
    }

    /// Opens an existing directory; one that is only below is copied up.
    pub(crate) fn enter(&self, dir: &TargetDir, name: &OsStr, existing: &Existing) -> rustix::io::Result<TargetDir> {
        let below = match &dir.lower {
            Some(lower) => lower.child(name)?,
            None => None,
        };
        if existing.in_upper {
            let upper = Arc::new(open_dir(dir.upper.as_fd(), name)?);
            let lower = if below.is_some() && whiteout::is_opaque(&upper, OsStr::new(""))? { None } else { below };
            return Ok(TargetDir { upper, lower, fresh: false });
        }
        rustix::fs::mkdirat(&dir.upper, name, Mode::from_raw_mode(0o700))?;
        let upper = Arc::new(open_dir(dir.upper.as_fd(), name)?);
        if let Some((_, from)) = below.as_ref().and_then(|b| b.parts.first()) {
            copy_xattrs(from.as_fd(), upper.as_fd())?;
        }
        meta::set_owner_mode(upper.as_fd(), OsStr::new(""), &existing.stat, self.upper.ownership())?;
        Ok(TargetDir { upper, lower: below, fresh: false })
    }

    /// Makes a directory where nothing is. If a whiteout was there, what it hid stays hidden.
    pub(crate) fn make_dir(&self, dir: &TargetDir, name: &OsStr) -> rustix::io::Result<TargetDir> {
        let mode = Mode::from_raw_mode(0o700);
        let mut hides = false;
        match rustix::fs::mkdirat(&dir.upper, name, mode) {
            Err(Errno::EXIST) => {
                rustix::fs::unlinkat(&dir.upper, name, AtFlags::empty())?;
                rustix::fs::mkdirat(&dir.upper, name, mode)?;
                hides = match &dir.lower {
                    Some(lower) => lower.child(name)?.is_some(),
                    None => false,
                };
            }
            made => made?,
        }
        let upper = Arc::new(open_dir(dir.upper.as_fd(), name)?);
        if hides {
            whiteout::set_opaque(&upper, OsStr::new(""))?;
        }
        Ok(TargetDir { upper, lower: None, fresh: true })
    }

    /// Makes room for something that is no directory.
    pub(crate) fn clear(&self, dir: &TargetDir, name: &OsStr, new: FileKind, path: &Path) -> Result<()> {
        if dir.fresh {
            return Ok(());
        }
        if let Some(existing) = self.existing(dir, name).at("stat", path)?
            && existing.stat.kind == FileKind::Dir
        {
            return Err(RootfsError::CannotReplace { path: path.to_owned(), existing: FileKind::Dir, new });
        }
        match rustix::fs::unlinkat(&dir.upper, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(RootfsError::io("remove", path, e)),
        }
    }

    /// Removes `name` with all below it from the merged view. Says whether there was anything.
    pub(crate) fn remove(&self, dir: &TargetDir, name: &OsStr, path: &Path) -> Result<bool> {
        let Some(existing) = self.existing(dir, name).at("stat", path)? else { return Ok(false) };
        if existing.in_upper {
            let parent = Root::from_fd(dir.upper.try_clone().at("open directory", path)?);
            parent.remove_all(Path::new(name))?;
        }
        let below = match (&dir.lower, &self.lower) {
            (Some(lower), Some(stack)) => lower.entry(name, stack).at("stat", path)?.is_some(),
            _ => false,
        };
        if below {
            whiteout::make(&dir.upper, name).at("create whiteout", path)?;
        }
        Ok(true)
    }
}

fn open_dir(parent: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// Copies the attributes that are part of a file.
pub(crate) fn copy_xattrs(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> rustix::io::Result<()> {
    for name in xattr::list(from)? {
        if xattr::is_content(&name)
            && let Some(value) = xattr::get_at(from, OsStr::new(""), &name)?
        {
            xattr::set_at(to, OsStr::new(""), &name, &value)?;
        }
    }
    Ok(())
}

/// Sets the modification time, and leaves the access time; links are not followed.
pub(crate) fn set_times(dir: BorrowedFd<'_>, name: &OsStr, mtime: Time) -> rustix::io::Result<()> {
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime.0, tv_nsec: mtime.1.into() },
    };
    if name.is_empty() {
        return rustix::fs::futimens(dir, &times);
    }
    rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}
