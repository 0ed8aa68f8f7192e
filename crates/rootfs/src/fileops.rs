//! The other file operations of a build graph: making directories (`WORKDIR`), files (heredocs) and links, and removing.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::error::{Context as _, Result, RootfsError};
use crate::meta::{self, Owner};
use crate::select;
use crate::stat::{FileKind, Ownership, Stat, Time};
use crate::target::{self, MakeDirs, Restore, Target, TargetDir};

/// Metadata of something that is made.
#[derive(Debug, Clone, Copy)]
pub struct Make {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub owner: Owner,
    /// Modification time; else now.
    pub mtime: Option<Time>,
}

/// Makes a directory, with missing parents if `parents`. One that exists is left as it is. Says whether it was made.
pub fn mkdir(target: &Target, path: &Path, make: &Make, parents: bool) -> Result<bool> {
    let view = target.view();
    let found = view.find(path, true)?;
    if !parents
        && let Some(parent) = found.path.parent()
        && view.stat(parent, false)?.is_none()
    {
        return Err(RootfsError::NotFound { path: parent.to_owned() });
    }
    let mut restore = Restore::default();
    let dirs = MakeDirs { mode: make.mode, owner: make.owner, mtime: make.mtime };
    let (_, made) = target.open_dir(&found.path, &dirs, &mut restore)?;
    restore.run()?;
    Ok(made)
}

/// Writes a file, in place of what was there (directories excepted). The parent must exist; a link is followed. An error while
/// reading the content names the file that is written.
pub fn mkfile(target: &Target, path: &Path, mut content: impl Read, make: &Make) -> Result<()> {
    in_parent(target, path, true, |dir, name, shown| {
        target.clear(dir, name, FileKind::File, shown)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&dir.upper, name, flags, Mode::from_raw_mode(0o600)).at("create", shown)?;
        let mut file = File::from(fd);
        std::io::copy(&mut content, &mut file).at("write", shown)?;
        finish(target, dir, name, make).at("set metadata of", shown)
    })
}

/// Makes a symbolic link, in place of what was there (directories excepted). The parent must exist.
pub fn symlink(target: &Target, points_to: &Path, path: &Path, make: &Make) -> Result<()> {
    in_parent(target, path, false, |dir, name, shown| {
        target.clear(dir, name, FileKind::Symlink, shown)?;
        rustix::fs::symlinkat(points_to, &dir.upper, name).at("create symbolic link", shown)?;
        finish(target, dir, name, make).at("set metadata of", shown)
    })
}

/// Removes what is at a path (or matches a pattern), with all below it. Links are not followed. Returns what was removed.
pub fn rm(target: &Target, path: &Path, wildcard: bool, allow_missing: bool) -> Result<Vec<PathBuf>> {
    let view = target.view();
    let selector = select::Selector { wildcard, ..select::Selector::default() };
    let paths = select::expand(select::Source::Stack(&view), path, &selector)?;
    let mut removed = Vec::new();
    for path in paths {
        let gone = in_parent_or(target, &path, |dir, name, shown| target.remove(dir, name, shown))?;
        if gone == Some(true) {
            removed.push(path);
        } else if !allow_missing {
            return Err(RootfsError::NotFound { path });
        }
    }
    if removed.is_empty() && !allow_missing {
        return Err(RootfsError::NotFound { path: path.to_owned() });
    }
    Ok(removed)
}

fn in_parent(
    target: &Target,
    path: &Path,
    follow: bool,
    make: impl FnOnce(&TargetDir, &OsStr, &Path) -> Result<()>,
) -> Result<()> {
    let found = target.view().find(path, follow)?.path;
    match in_parent_or(target, &found, make)? {
        Some(()) => Ok(()),
        None => Err(RootfsError::NotFound { path: found.parent().unwrap_or(Path::new("/")).to_owned() }),
    }
}

/// Runs `act` in the directory that holds the last component; `None` if that does not exist.
fn in_parent_or<T>(
    target: &Target,
    path: &Path,
    act: impl FnOnce(&TargetDir, &OsStr, &Path) -> Result<T>,
) -> Result<Option<T>> {
    let bad = || RootfsError::BadPath { path: path.to_owned(), reason: "it has no last component" };
    let name = path.file_name().ok_or_else(bad)?;
    let view = target.view();
    let parent = view.find(path.parent().unwrap_or(Path::new("")), true)?;
    match parent.entry {
        None => return Ok(None),
        Some((stat, _)) if stat.kind != FileKind::Dir => return Ok(None),
        Some(_) => {}
    }
    let mut restore = Restore::default();
    let (dir, _) = target.open_dir(&parent.path, &MakeDirs::default(), &mut restore)?;
    let done = act(&dir, name, path)?;
    restore.run()?;
    Ok(Some(done))
}

fn finish(target: &Target, dir: &TargetDir, name: &OsStr, make: &Make) -> rustix::io::Result<()> {
    let mut stat = Stat::at(&dir.upper, name, Ownership::Native)?;
    (stat.uid, stat.gid, stat.mode) = (make.owner.uid, make.owner.gid, make.mode & 0o7777);
    meta::set_owner_mode(dir.upper.as_fd(), name, &stat, target.upper.ownership())?;
    make.mtime.map_or(Ok(()), |time| target::set_times(dir.upper.as_fd(), name, time))
}
