//! [`Root`]: a directory that is treated as `/`.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::dir::{self, DirRef};
use crate::error::{Context as _, Result, RootfsError};
use crate::meta::{self, Owner};
use crate::resolve;
use crate::stat::{FileKind, Ownership, Stat};
use crate::xattr::{self, Xattrs};

/// A directory that is treated as `/`: every path given to it, absolute or not, stays inside.
///
/// Methods follow symbolic links (within the root) in all components but the last; those that also follow the last say
/// so. An empty path, `/` and `.` name the root itself. A clone shares the descriptor.
#[derive(Clone, Debug)]
pub struct Root {
    fd: Arc<OwnedFd>,
    ownership: Ownership,
}

/// A name in a directory, as [`Root::read_dir`] gives it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirEntry {
    /// The name.
    pub name: OsString,
    /// The kind of the inode (a recorded device shows as the file that stands for it).
    pub kind: FileKind,
}

impl Root {
    /// Opens a directory of the host.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self::from_fd(rustix::fs::open(path, flags, Mode::empty()).at("open", path)?))
    }

    /// Takes an open directory, for example a detached mount.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { fd: Arc::new(fd), ownership: Ownership::Native }
    }

    /// The same root, with `user.kiln.stat` believed and written (or not). See [`Ownership`].
    pub fn with_ownership(self, ownership: Ownership) -> Self {
        Self { ownership, ..self }
    }

    /// How owners are stored in this tree.
    pub fn ownership(&self) -> Ownership {
        self.ownership
    }

    /// The path without links and `..`, relative to the root (empty for the root itself). The last link is followed too.
    /// Components that do not exist are taken as they are written.
    pub fn resolve(&self, path: &Path) -> Result<PathBuf> {
        Ok(resolve::walk(self.fd.as_fd(), path, true, true).at("resolve", path)?.path)
    }

    /// As [`Root::resolve`], but the last component is not followed.
    pub fn resolve_parent(&self, path: &Path) -> Result<PathBuf> {
        Ok(resolve::walk(self.fd.as_fd(), path, false, true).at("resolve", path)?.path)
    }

    /// An `O_PATH` descriptor.
    pub fn open_path(&self, path: &Path, follow: bool) -> Result<OwnedFd> {
        let flags = if follow { OFlags::PATH } else { OFlags::PATH | OFlags::NOFOLLOW };
        resolve::open_in_root(self.fd.as_fd(), path, flags).at("open", path)
    }

    /// Opens a directory for reading; links are followed.
    pub fn open_dir(&self, path: &Path) -> Result<OwnedFd> {
        resolve::open_in_root(self.fd.as_fd(), path, OFlags::RDONLY | OFlags::DIRECTORY).at("open directory", path)
    }

    /// Opens a directory without following any link, `..` excluded.
    pub fn open_dir_nofollow(&self, path: &Path) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        resolve::open_beneath(self.fd.as_fd(), dir::relative(path), flags).at("open directory", path)
    }

    /// A directory of this root as a root of its own; links are followed.
    pub fn sub(&self, path: &Path) -> Result<Self> {
        Ok(Self::from_fd(self.open_dir(path)?).with_ownership(self.ownership))
    }

    /// Opens a regular file for reading; links are followed. Never waits on a FIFO and never opens a device.
    pub fn open_file(&self, path: &Path) -> Result<File> {
        let pinned = self.open_path(path, true)?;
        let kind = Stat::of(&pinned, Ownership::Native).at("stat", path)?.kind;
        if kind != FileKind::File {
            return Err(RootfsError::NotRegular { path: path.to_owned(), kind });
        }
        let through = format!("/proc/self/fd/{}", pinned.as_raw_fd());
        let fd = rustix::fs::open(through, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).at("open", path)?;
        Ok(File::from(fd))
    }

    /// The content of a regular file of at most `max` bytes, following links; `None` if there is none.
    pub fn read_small(&self, path: &Path, max: usize) -> Result<Option<Vec<u8>>> {
        let file = match self.open_file(path) {
            Ok(file) => file,
            Err(e) if e.is_not_found() => return Ok(None),
            Err(e) => return Err(e),
        };
        let mut content = Vec::new();
        file.take(max as u64 + 1).read_to_end(&mut content).at("read", path)?;
        if content.len() > max {
            return Err(RootfsError::TooLarge { path: path.to_owned(), limit: max as u64 });
        }
        Ok(Some(content))
    }

    /// Metadata.
    pub fn stat(&self, path: &Path, follow: bool) -> Result<Stat> {
        let fd = self.open_path(path, follow)?;
        Stat::of(&fd, self.ownership).at("stat", path)
    }

    /// Metadata, or `None` if nothing is there (also if a component on the way is not a directory).
    pub fn try_stat(&self, path: &Path, follow: bool) -> Result<Option<Stat>> {
        match self.stat(path, follow) {
            Ok(stat) => Ok(Some(stat)),
            Err(e) if matches!(e.io_kind(), Some(std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)) => {
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// Something is at the path (a dangling link counts).
    pub fn exists(&self, path: &Path) -> Result<bool> {
        Ok(self.try_stat(path, false)?.is_some())
    }

    /// The target of a symbolic link.
    pub fn read_link(&self, path: &Path) -> Result<PathBuf> {
        let fd = self.open_path(path, false)?;
        let target = rustix::fs::readlinkat(&fd, "", Vec::new()).at("read link", path)?;
        Ok(PathBuf::from(OsString::from_vec(target.into_bytes())))
    }

    /// The entries of a directory, sorted by name; links are followed.
    pub fn read_dir(&self, path: &Path) -> Result<Vec<DirEntry>> {
        let fd = self.open_dir(path)?;
        let mut entries = Vec::new();
        for dir::Name { name, kind } in dir::read_names(&fd).at("read directory", path)? {
            let kind = match kind {
                Some(kind) => kind,
                None => Stat::at(&fd, &name, Ownership::Native).at("stat", path.join(&name))?.kind,
            };
            entries.push(DirEntry { name, kind });
        }
        entries.sort();
        Ok(entries)
    }

    /// The extended attributes for which `keep` holds; the last link is not followed.
    pub fn xattrs(&self, path: &Path, keep: impl Fn(&OsStr) -> bool) -> Result<Xattrs> {
        let fd = self.open_path(path, false)?;
        xattr::read_at(&fd, OsStr::new(""), keep).at("read attributes of", path)
    }

    /// The directory that holds the last component (links followed), and that component.
    pub fn parent<'a>(&self, path: &'a Path) -> Result<(OwnedFd, &'a OsStr)> {
        let bad = |reason| RootfsError::BadPath { path: path.to_owned(), reason };
        let name = path.file_name().ok_or_else(|| bad("it has no last component"))?;
        let parent = path.parent().unwrap_or(Path::new(""));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        Ok((resolve::open_in_root(self.fd.as_fd(), parent, flags).at("open directory", path)?, name))
    }

    /// Makes a directory and those above it; links on the way are followed inside the root. What exists is left as it is.
    /// Returns what was made, outermost first, as canonical paths.
    pub fn create_dir_all(&self, path: &Path, mode: u32, owner: Option<Owner>) -> Result<Vec<PathBuf>> {
        let canonical = self.resolve(path)?;
        let mut made = Vec::new();
        let mut at = self.open_dir(Path::new(""))?;
        let mut so_far = PathBuf::new();
        for name in canonical.iter() {
            so_far.push(name);
            match rustix::fs::mkdirat(&at, name, Mode::from_raw_mode(mode & 0o777)) {
                Ok(()) => {
                    self.own(at.as_fd(), name, FileKind::Dir, mode, owner).at("set metadata of", &so_far)?;
                    made.push(so_far.clone());
                }
                Err(Errno::EXIST) => {}
                Err(e) => return Err(RootfsError::io("create directory", &so_far, e)),
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            at = match rustix::fs::openat(&at, name, flags, Mode::empty()) {
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    let existing = Stat::at(&at, name, self.ownership).at("stat", &so_far)?.kind;
                    return Err(RootfsError::CannotReplace { path: so_far, existing, new: FileKind::Dir });
                }
                opened => opened.at("open directory", &so_far)?,
            };
        }
        Ok(made)
    }

    /// Sets mode, and owner if given, of what was just made.
    fn own(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        kind: FileKind,
        mode: u32,
        owner: Option<Owner>,
    ) -> rustix::io::Result<()> {
        let mut stat = Stat::at(dir, name, Ownership::Native)?;
        if stat.kind != kind {
            return Err(Errno::LOOP);
        }
        if let Some(Owner { uid, gid }) = owner {
            stat.uid = uid;
            stat.gid = gid;
        }
        stat.mode = mode & 0o7777;
        meta::set_owner_mode(dir, name, &stat, self.ownership)
    }

    /// Writes a regular file in an existing directory, in place of what was there (directories excepted).
    pub fn write_file(&self, path: &Path, content: &[u8], mode: u32, owner: Option<Owner>) -> Result<()> {
        let (dir, name) = self.parent(path)?;
        self.unlink_if_present(&dir, name, path, FileKind::File)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&dir, name, flags, Mode::from_raw_mode(0o600)).at("create", path)?;
        let mut file = File::from(fd);
        file.write_all(content).at("write", path)?;
        self.own(file.as_fd(), OsStr::new(""), FileKind::File, mode, owner).at("set metadata of", path)
    }

    /// The same in one step: whoever looks sees what was there before, or all of the new file.
    pub fn replace_file(&self, path: &Path, content: &[u8], mode: u32) -> Result<()> {
        let draft = path.with_file_name(format!(".kiln.{}.new", std::process::id()));
        self.write_file(&draft, content, mode, None)?;
        let (dir, name) = self.parent(path)?;
        let from = draft.file_name().unwrap_or_default();
        let renamed = match rustix::fs::renameat(&dir, from, &dir, name) {
            Err(Errno::ISDIR) => {
                let (path, existing, new) = (path.to_owned(), FileKind::Dir, FileKind::File);
                Err(RootfsError::CannotReplace { path, existing, new })
            }
            renamed => renamed.at("replace", path),
        };
        renamed.inspect_err(|_| _ = rustix::fs::unlinkat(&dir, from, AtFlags::empty()))
    }

    /// Makes a symbolic link in an existing directory, in place of what was there (directories excepted).
    pub fn symlink(&self, target: &Path, path: &Path, owner: Option<Owner>) -> Result<()> {
        let (dir, name) = self.parent(path)?;
        self.unlink_if_present(&dir, name, path, FileKind::Symlink)?;
        rustix::fs::symlinkat(target, &dir, name).at("create symbolic link", path)?;
        self.own(dir.as_fd(), name, FileKind::Symlink, 0o777, owner).at("set metadata of", path)
    }

    fn unlink_if_present(&self, dir: &OwnedFd, name: &OsStr, path: &Path, new: FileKind) -> Result<()> {
        match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR) => {
                Err(RootfsError::CannotReplace { path: path.to_owned(), existing: FileKind::Dir, new })
            }
            Err(e) => Err(RootfsError::io("remove", path, e)),
        }
    }

    /// Removes what is at the path, with all below it; links are not followed. Absence is fine. Given the root, it
    /// empties it.
    pub fn remove_all(&self, path: &Path) -> Result<()> {
        if dir::relative(path).as_os_str().is_empty() {
            return self.empty_dir(&DirRef::new(self.fd.clone()), path);
        }
        let (parent, name) = match self.parent(path) {
            Err(e) if e.is_not_found() => return Ok(()),
            parent => parent?,
        };
        match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR) => {}
            Err(e) => return Err(RootfsError::io("remove", path, e)),
        }
        let parent = Arc::new(parent);
        self.empty_dir(&DirRef::new(parent.clone()).child(&parent, name), path)?;
        rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR).at("remove directory", path)
    }

    /// Depth first with an explicit stack: trees may be arbitrarily deep.
    fn empty_dir(&self, top: &DirRef, path: &Path) -> Result<()> {
        enum Todo {
            Empty(DirRef),
            Remove(DirRef, OsString),
        }
        let mut todo = vec![Todo::Empty(top.clone())];
        while let Some(next) = todo.pop() {
            match next {
                Todo::Remove(parent, name) => {
                    let fd = parent.open().at("open directory", path)?;
                    rustix::fs::unlinkat(&fd, &name, AtFlags::REMOVEDIR).at("remove directory", path.join(name))?;
                }
                Todo::Empty(dir) => {
                    let fd = Arc::new(open_to_empty(&dir).at("open directory", path)?);
                    for dir::Name { name, .. } in dir::read_names(&fd).at("read directory", path)? {
                        match rustix::fs::unlinkat(&fd, &name, AtFlags::empty()) {
                            Ok(()) | Err(Errno::NOENT) => {}
                            Err(Errno::ISDIR) => {
                                let child = dir.child(&fd, &name);
                                todo.push(Todo::Remove(dir.clone(), name));
                                todo.push(Todo::Empty(child));
                            }
                            Err(e) => return Err(RootfsError::io("remove", path.join(name), e)),
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// Without privileges, a directory whose owner took away his own rights could not be emptied.
fn open_to_empty(dir: &DirRef) -> rustix::io::Result<OwnedFd> {
    let fd = dir.open()?;
    let stat = Stat::of(&fd, Ownership::Native)?;
    if stat.mode & 0o300 != 0o300 {
        let _ = rustix::fs::fchmod(&fd, Mode::from_raw_mode(stat.mode | 0o700)); // the removal will tell if it matters
    }
    Ok(fd)
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
