//! What a file is: [`Stat`], with the metadata that the kernel would not let an unprivileged process store natively.
//!
//! Invariant: a recorded `user.kiln.stat` is believed only in trees that kiln itself wrote ([`Ownership::Recorded`]);
//! in a build context, or a layer of a privileged build, it is an ordinary attribute that could be forged.

use std::ffi::OsStr;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, FileType, Statx, StatxFlags};

use crate::xattr::{self, Recorded};

/// Seconds and nanoseconds since the epoch.
pub type Time = (i64, u32);

/// The kind of a directory entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
}

impl FileKind {
    /// From the type bits of `st_mode`; an unknown type counts as a regular file.
    pub fn from_mode(mode: u32) -> Self {
        match FileType::from_raw_mode(mode) {
            FileType::Directory => Self::Dir,
            FileType::Symlink => Self::Symlink,
            FileType::CharacterDevice => Self::CharDevice,
            FileType::BlockDevice => Self::BlockDevice,
            FileType::Fifo => Self::Fifo,
            FileType::Socket => Self::Socket,
            _ => Self::File,
        }
    }

    /// The type bits of `st_mode`.
    pub fn mode_bits(self) -> u32 {
        self.file_type().as_raw_mode()
    }

    /// As rustix names it.
    pub fn file_type(self) -> FileType {
        match self {
            Self::File => FileType::RegularFile,
            Self::Dir => FileType::Directory,
            Self::Symlink => FileType::Symlink,
            Self::CharDevice => FileType::CharacterDevice,
            Self::BlockDevice => FileType::BlockDevice,
            Self::Fifo => FileType::Fifo,
            Self::Socket => FileType::Socket,
        }
    }

    /// A character or block device.
    pub fn is_device(self) -> bool {
        matches!(self, Self::CharDevice | Self::BlockDevice)
    }
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "file",
            Self::Dir => "directory",
            Self::Symlink => "symbolic link",
            Self::CharDevice => "character device",
            Self::BlockDevice => "block device",
            Self::Fifo => "named pipe",
            Self::Socket => "socket",
        })
    }
}

/// How owners and devices are stored in a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ownership {
    /// In the inodes, as usual. `user.kiln.stat` means nothing.
    #[default]
    Native,
    /// A process with a single id wrote the tree: where the inode could not take it, `user.kiln.stat` tells.
    Recorded,
}

/// Metadata of one directory entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// What it is.
    pub kind: FileKind,
    /// Permission bits with setuid, setgid and sticky (`07777`).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes (the target's length of a symbolic link).
    pub size: u64,
    /// Allocated 512-byte blocks: fewer than the size needs means holes.
    pub blocks: u64,
    /// Last change of the content.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// Major and minor number of a device, else zeros.
    pub rdev: (u32, u32),
    /// Number of names.
    pub nlink: u32,
    /// Device that holds the inode.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
}

impl Stat {
    /// As the kernel tells.
    pub fn from_statx(s: &Statx) -> Self {
        let mode = u32::from(s.stx_mode);
        Self {
            kind: FileKind::from_mode(mode),
            mode: mode & 0o7777,
            uid: s.stx_uid,
            gid: s.stx_gid,
            size: s.stx_size,
            blocks: s.stx_blocks,
            mtime: (s.stx_mtime.tv_sec, s.stx_mtime.tv_nsec),
            ctime: (s.stx_ctime.tv_sec, s.stx_ctime.tv_nsec),
            rdev: (s.stx_rdev_major, s.stx_rdev_minor),
            nlink: s.stx_nlink,
            dev: rustix::fs::makedev(s.stx_dev_major, s.stx_dev_minor),
            ino: s.stx_ino,
        }
    }

    /// Of `name` in `dir`, not following a symbolic link. An empty name means `dir` itself.
    pub fn at(dir: impl AsFd, name: &OsStr, ownership: Ownership) -> rustix::io::Result<Self> {
        let dir = dir.as_fd();
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
        let mut stat = Self::from_statx(&rustix::fs::statx(dir, name, flags, StatxFlags::BASIC_STATS)?);
        stat.apply_recorded(dir, name, ownership);
        Ok(stat)
    }

    /// Of an open file, which may be an `O_PATH` one.
    pub fn of(fd: impl AsFd, ownership: Ownership) -> rustix::io::Result<Self> {
        Self::at(fd, OsStr::new(""), ownership)
    }

    /// `st_mode` with type bits.
    pub fn full_mode(&self) -> u32 {
        self.mode | self.kind.mode_bits()
    }

    /// A regular file with holes.
    pub fn is_sparse(&self) -> bool {
        self.kind == FileKind::File && self.blocks.saturating_mul(512) < self.size
    }

    /// An overlay whiteout: a character device 0:0.
    pub fn is_whiteout(&self) -> bool {
        self.kind == FileKind::CharDevice && self.rdev == (0, 0)
    }

    /// Only regular files and directories can carry `user.*` attributes, so only they are looked at.
    fn apply_recorded(&mut self, dir: BorrowedFd<'_>, name: &OsStr, ownership: Ownership) {
        if ownership == Ownership::Native || !matches!(self.kind, FileKind::File | FileKind::Dir) {
            return;
        }
        if let Ok(Some(value)) = xattr::get_at(dir, name, OsStr::new(xattr::KILN_STAT))
            && let Some(recorded) = Recorded::parse(&value)
        {
            self.apply(&recorded);
        }
    }

    /// Overrides the owner. A regular file may stand for a device, fifo or socket; a directory stays one. The mode of what
    /// stands for itself is the inode's: a `chmod` after the `chown` changed only that.
    fn apply(&mut self, recorded: &Recorded) {
        self.uid = recorded.uid;
        self.gid = recorded.gid;
        if recorded.mode & !0o7777 == 0 || self.kind != FileKind::File {
            return;
        }
        let kind = FileKind::from_mode(recorded.mode);
        if kind != FileKind::File {
            self.mode = recorded.mode & 0o7777;
        }
        match kind {
            FileKind::CharDevice | FileKind::BlockDevice => {
                if let Some(rdev) = recorded.rdev {
                    self.kind = kind;
                    self.rdev = rdev;
                    self.size = 0;
                }
            }
            FileKind::Fifo | FileKind::Socket => {
                self.kind = kind;
                self.size = 0;
            }
            FileKind::File | FileKind::Dir | FileKind::Symlink => {}
        }
    }
}
