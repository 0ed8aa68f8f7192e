//! Setting owner and mode, natively or recorded. The only place that knows what to do when `chown` is refused.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};
use rustix::io::{Errno, Result};

use crate::stat::{FileKind, Ownership, Stat};
use crate::xattr::{self, Recorded};

/// Owner and group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Sets owner and mode of `name` in `dir` to what `stat` says (of `dir`'s own file if `name` is empty). Links are not
/// followed and their mode is left alone.
pub(crate) fn set_owner_mode(dir: BorrowedFd<'_>, name: &OsStr, stat: &Stat, ownership: Ownership) -> Result<()> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
    let chowned = chown(dir, name, stat, flags);
    let refused = match chowned {
        Err(Errno::PERM | Errno::INVAL) if ownership == Ownership::Recorded => true,
        Err(e) => return Err(e),
        Ok(()) => false,
    };
    // Before the mode, which may forbid writing attributes.
    record(dir, name, stat, refused, ownership)?;
    if stat.kind == FileKind::Symlink {
        return Ok(());
    }
    chmod(dir, name, stat.mode)
}

fn chown(dir: BorrowedFd<'_>, name: &OsStr, stat: &Stat, flags: AtFlags) -> Result<()> {
    // u32::MAX means "leave" to the kernel, so it cannot be an owner.
    if stat.uid == u32::MAX || stat.gid == u32::MAX {
        return Err(Errno::INVAL);
    }
    rustix::fs::chownat(dir, name, Some(Uid::from_raw(stat.uid)), Some(Gid::from_raw(stat.gid)), flags)
}

/// `fchmodat` follows links on older kernels: the file is pinned first, and changed through its descriptor.
fn chmod(dir: BorrowedFd<'_>, name: &OsStr, mode: u32) -> Result<()> {
    let pinned;
    let fd = if name.is_empty() {
        dir.as_raw_fd()
    } else {
        pinned = rustix::fs::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        pinned.as_raw_fd()
    };
    rustix::fs::chmod(format!("/proc/self/fd/{fd}"), Mode::from_raw_mode(mode))
}

/// Writes `user.kiln.stat` where the inode could not take the owner, and removes a stale one.
fn record(dir: BorrowedFd<'_>, name: &OsStr, stat: &Stat, refused: bool, ownership: Ownership) -> Result<()> {
    let attr = OsStr::new(xattr::KILN_STAT);
    if ownership == Ownership::Native {
        return Ok(());
    }
    if refused && matches!(stat.kind, FileKind::File | FileKind::Dir) {
        return record_owner(dir, name, stat, Owner { uid: stat.uid, gid: stat.gid });
    }
    if matches!(stat.kind, FileKind::File | FileKind::Dir) {
        return xattr::remove_at(dir, name, attr);
    }
    Ok(())
}

/// Writes `user.kiln.stat` of a file or directory.
pub(crate) fn record_owner(dir: BorrowedFd<'_>, name: &OsStr, stat: &Stat, owner: Owner) -> Result<()> {
    let recorded = Recorded { uid: owner.uid, gid: owner.gid, mode: stat.full_mode(), rdev: None };
    xattr::set_at(dir, name, OsStr::new(xattr::KILN_STAT), recorded.format().as_bytes())
}

/// Makes a device, FIFO or socket. Where `mknod` is refused and metadata are recorded, an empty file stands for it.
pub(crate) fn make_node(dir: impl AsFd, name: &OsStr, stat: &Stat, ownership: Ownership) -> Result<()> {
    let dir = dir.as_fd();
    let device = rustix::fs::makedev(stat.rdev.0, stat.rdev.1);
    let made = rustix::fs::mknodat(dir, name, stat.kind.file_type(), Mode::from_raw_mode(stat.mode & 0o777), device);
    match made {
        Ok(()) => set_owner_mode(dir, name, stat, ownership),
        Err(Errno::PERM) if ownership == Ownership::Recorded => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o600))?;
            let rdev = stat.kind.is_device().then_some(stat.rdev);
            let recorded = Recorded { uid: stat.uid, gid: stat.gid, mode: stat.full_mode(), rdev };
            xattr::set_at(dir, name, OsStr::new(xattr::KILN_STAT), recorded.format().as_bytes())
        }
        Err(e) => Err(e),
    }
}
