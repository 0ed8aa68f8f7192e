//! Making one inode, with its content and metadata. Everything here fails with EEXIST if the name is taken.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::reader::{Entry, EntryKind, TarReader, archive};
use crate::error::{Context as _, Result};
use crate::meta;
use crate::stat::{FileKind, Ownership, Stat, Time};
use crate::xattr;

/// The entry's metadata as a [`Stat`]; hard links have none of their own.
pub(super) fn stat_of(entry: &Entry, kind: FileKind) -> Stat {
    Stat {
        kind,
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        size: entry.size,
        blocks: 0,
        mtime: entry.mtime,
        ctime: entry.mtime,
        rdev: entry.rdev,
        nlink: 1,
        dev: 0,
        ino: 0,
    }
}

pub(super) fn file_kind(kind: EntryKind) -> FileKind {
    match kind {
        EntryKind::File | EntryKind::HardLink => FileKind::File,
        EntryKind::Symlink => FileKind::Symlink,
        EntryKind::Dir => FileKind::Dir,
        EntryKind::CharDevice => FileKind::CharDevice,
        EntryKind::BlockDevice => FileKind::BlockDevice,
        EntryKind::Fifo => FileKind::Fifo,
    }
}

pub(super) fn times((seconds, nanos): Time) -> Timestamps {
    let at = Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
    Timestamps { last_access: at, last_modification: at }
}

/// Sets the mtime (and the atime to the same) without following.
pub(super) fn set_time(dir: BorrowedFd<'_>, name: &OsStr, mtime: Time) -> rustix::io::Result<()> {
    rustix::fs::utimensat(dir, name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW)
}

/// Creates a file for writing.
pub(super) fn create(dir: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<File> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o600)).map(File::from)
}

/// Copies the entry's data, holes included, and sets the metadata. Returns the number of attributes that were dropped.
pub(super) fn fill<R: Read>(
    mut file: File,
    entry: &Entry,
    tar: &mut TarReader<R>,
    ownership: Ownership,
) -> Result<u64> {
    let path = entry.display();
    match &entry.sparse {
        None => copy(&mut file, entry, tar, u64::MAX)?,
        Some(map) => {
            for &(offset, length) in &map.pieces {
                file.seek(SeekFrom::Start(offset)).at("write", &path)?;
                copy(&mut file, entry, tar, length)?;
            }
            file.set_len(entry.size).at("write", &path)?;
        }
    }
    set_file_metadata(&file, entry, ownership)
}

/// Owner, then mode, then attributes, then time: each takes away something of the next.
pub(super) fn set_file_metadata(file: &File, entry: &Entry, ownership: Ownership) -> Result<u64> {
    let stat = stat_of(entry, FileKind::File);
    set_owner_mode(file.as_fd(), &stat, ownership).at("set owner and mode of", entry.display())?;
    let dropped =
        set_xattrs(entry, FileKind::File, |name, value| rustix::fs::fsetxattr(file, name, value, XattrFlags::empty()))?;
    rustix::fs::futimens(file, &times(entry.mtime)).at("set the time of", entry.display())?;
    Ok(dropped)
}

/// Copies up to `limit` bytes. The map of a sparse file was checked to have exactly what is stored.
fn copy<R: Read>(file: &mut File, entry: &Entry, tar: &mut TarReader<R>, mut limit: u64) -> Result<()> {
    while limit > 0 {
        let piece = tar.data_up_to(limit)?;
        if piece.is_empty() {
            return Ok(());
        }
        limit -= piece.len() as u64;
        file.write_all(piece).at("write", entry.display())?;
    }
    Ok(())
}

/// As [`meta::set_owner_mode`], with fewer system calls for what is open and can be changed natively.
pub(super) fn set_owner_mode(fd: BorrowedFd<'_>, stat: &Stat, ownership: Ownership) -> rustix::io::Result<()> {
    if ownership == Ownership::Recorded {
        return meta::set_owner_mode(fd, OsStr::new(""), stat, ownership);
    }
    rustix::fs::fchown(fd, Some(Uid::from_raw(stat.uid)), Some(Gid::from_raw(stat.gid)))?;
    rustix::fs::fchmod(fd, Mode::from_raw_mode(stat.mode))
}

/// Makes a symbolic link, device or FIFO, with metadata.
pub(super) fn make_special(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    entry: &Entry,
    ownership: Ownership,
) -> rustix::io::Result<()> {
    let stat = stat_of(entry, file_kind(entry.kind));
    if entry.kind == EntryKind::Symlink {
        rustix::fs::symlinkat(entry.link.as_slice(), dir, name)?;
        meta::set_owner_mode(dir, name, &stat, ownership)?;
    } else {
        meta::make_node(dir, name, &stat, ownership)?;
    }
    set_time(dir, name, entry.mtime)
}

/// Sets the entry's attributes with `set`, except those that an archive must not bring.
///
/// Attributes that the file system or the file's type does not know are dropped and counted, as Docker does.
pub(super) fn set_xattrs(
    entry: &Entry,
    kind: FileKind,
    set: impl Fn(&OsStr, &[u8]) -> rustix::io::Result<()>,
) -> Result<u64> {
    let mut dropped = 0;
    for (name, value) in &entry.xattrs {
        if !wanted(name, kind) {
            dropped += 1;
            continue;
        }
        match set(name, value) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP) => dropped += 1,
            // Capabilities for other user namespaces, without the privilege to give them.
            Err(Errno::PERM) if name == xattr::CAPABILITY && !rustix::process::geteuid().is_root() => dropped += 1,
            Err(Errno::INVAL | Errno::RANGE | Errno::TOOBIG) => {
                let reason = format!("the attribute {} has a value that cannot be stored", name.display());
                return Err(archive(&entry.display(), &reason));
            }
            Err(e) => return Err(e).at("set an attribute of", entry.display()),
        }
    }
    Ok(dropped)
}

fn wanted(name: &OsString, kind: FileKind) -> bool {
    match kind {
        FileKind::File => xattr::is_content(name),
        FileKind::Dir => xattr::is_content(name) && name != xattr::CAPABILITY,
        // The kernel allows neither here.
        _ => false,
    }
}

/// Opens a directory that was just made, or is to be merged.
pub(super) fn open_dir(dir: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}
