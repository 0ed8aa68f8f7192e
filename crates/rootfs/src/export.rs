//! File trees as tar streams, and what is common to that and to layers: one inode at a time into a [`TarWriter`].

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use crate::diff::{DiffOptions, DiffStats, Walk};
use crate::dir::DirRef;
use crate::error::{Context as _, Result, RootfsError};
use crate::pax::{TarEntry, TarKind, TarWriter};
use crate::root::Root;
use crate::stat::{FileKind, Ownership, Stat, Time};
use crate::xattr::{self, Xattrs};

const BUFFER: usize = 256 * 1024;

/// Sees everything that goes into a layer or archive, in its order: names, contents, link targets, attributes' values.
pub trait ContentObserver: Send {
    /// What follows belongs to this path. One path may come several times, for the parts of its content.
    fn entry(&mut self, path: &[u8]);
    /// The next piece of the content. Holes are left out.
    fn data(&mut self, bytes: &[u8]);
    /// There is nothing more. Not called when the operation fails.
    fn finish(&mut self);
}

/// The whole tree under `root` as a tar stream, sorted, without an entry for the root itself. Names that would be
/// whiteouts in a layer are ordinary here.
pub fn tar_tree(root: &Root, out: &mut dyn Write, options: &mut DiffOptions<'_>) -> Result<DiffStats> {
    Walk::tree(root, out, options)?.run()
}

/// One file or directory of `root`, with all below it, as a tar stream in which it is called `name`. The last link of `path`
/// is not followed.
pub fn tar_path(
    root: &Root,
    path: &Path,
    name: &Path,
    out: &mut dyn Write,
    options: &mut DiffOptions<'_>,
) -> Result<DiffStats> {
    Walk::path(root, path, name, Emitter::new(out, options, root.ownership()))?.run()
}

/// A directory on the way down that can be closed and opened again: a tree may be deeper than there are descriptors.
pub(crate) struct Level {
    dir: DirRef,
    open: Option<Arc<OwnedFd>>,
}

impl Level {
    pub fn top(fd: Arc<OwnedFd>) -> Self {
        Self { dir: DirRef::new(fd.clone()), open: Some(fd) }
    }

    pub fn fd(&mut self) -> rustix::io::Result<Arc<OwnedFd>> {
        let fd = match &self.open {
            Some(fd) => fd.clone(),
            None => Arc::new(self.dir.open()?),
        };
        self.open = Some(fd.clone());
        Ok(fd)
    }

    /// Opens a directory in this one; links are not followed.
    pub fn child(&mut self, name: &OsStr) -> rustix::io::Result<Self> {
        let fd = self.fd()?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let child = rustix::fs::openat(&fd, name, flags, Mode::empty())?;
        Ok(Self { dir: self.dir.child(&fd, name), open: Some(Arc::new(child)) })
    }

    pub fn close(&mut self) {
        self.open = None;
    }
}

/// Writes inodes of one tree.
pub(crate) struct Emitter<'o> {
    tar: TarWriter<&'o mut dyn Write>,
    observer: Option<&'o mut dyn ContentObserver>,
    clamp: Option<i64>,
    subsecond: bool,
    ownership: Ownership,
    /// The first name of each inode that has several.
    links: HashMap<(u64, u64), Vec<u8>>,
    buffer: Vec<u8>,
    pub stats: DiffStats,
}

/// One name in an open directory.
pub(crate) struct Source<'a> {
    pub dir: &'a OwnedFd,
    pub name: &'a OsStr,
    /// In the archive.
    pub path: &'a Path,
    pub stat: &'a Stat,
}

impl<'o> Emitter<'o> {
    pub fn new(out: &'o mut dyn Write, options: &'o mut DiffOptions<'_>, ownership: Ownership) -> Self {
        Self {
            tar: TarWriter::new(out),
            observer: match &mut options.observer {
                Some(observer) => Some(&mut **observer),
                None => None,
            },
            clamp: options.rewrite_timestamp,
            subsecond: options.subsecond_times,
            ownership,
            links: HashMap::new(),
            buffer: vec![0; BUFFER],
            stats: DiffStats::default(),
        }
    }

    pub fn finish(mut self) -> Result<DiffStats> {
        if let Some(observer) = &mut self.observer {
            observer.finish();
        }
        (_, self.stats.archive_bytes) = self.tar.finish().at("write", "the archive")?;
        Ok(self.stats)
    }

    /// A regular empty file with a reserved name. Without a time: it stands for something that is not there any more.
    pub fn marker(&mut self, path: &Path) -> Result<()> {
        let path = path.as_os_str().as_bytes();
        self.see(path, None);
        self.stats.whiteouts += 1;
        let entry = TarEntry { path, kind: TarKind::File(0), mode: 0, uid: 0, gid: 0, mtime: (0, 0), xattrs: None };
        self.put(&entry)
    }

    /// A directory; `stat` is its metadata.
    pub fn directory(&mut self, path: &Path, stat: &Stat, xattrs: &Xattrs) -> Result<()> {
        self.see(path.as_os_str().as_bytes(), Some(xattrs));
        self.put(&self.describe(path, stat, TarKind::Dir, Some(xattrs)))
    }

    /// Anything but a directory. Sockets are left out: no program waits behind them any more.
    pub fn leaf(&mut self, source: &Source<'_>) -> Result<()> {
        let Source { path, stat, .. } = *source;
        if stat.kind == FileKind::Socket {
            return Ok(());
        }
        if stat.nlink > 1 {
            let inode = (stat.dev, stat.ino);
            if let Some(first) = self.links.get(&inode).cloned() {
                self.see(path.as_os_str().as_bytes(), None);
                return self.put(&self.describe(path, stat, TarKind::HardLink(&first), None));
            }
            self.links.insert(inode, path.as_os_str().as_bytes().to_vec());
        }
        let target;
        let kind = match stat.kind {
            FileKind::Symlink => {
                target = read_link(source)?;
                TarKind::Symlink(target.as_bytes())
            }
            FileKind::CharDevice => TarKind::CharDevice(stat.rdev.0, stat.rdev.1),
            FileKind::BlockDevice => TarKind::BlockDevice(stat.rdev.0, stat.rdev.1),
            FileKind::Fifo => TarKind::Fifo,
            _ => return self.file(source),
        };
        self.see(path.as_os_str().as_bytes(), None);
        if let (TarKind::Symlink(target), Some(observer)) = (kind, &mut self.observer) {
            observer.data(target);
        }
        self.put(&self.describe(path, stat, kind, None))
    }

    fn file(&mut self, source: &Source<'_>) -> Result<()> {
        let Source { dir, name, path, stat } = *source;
        let fd = open_file(dir, name, stat).at("open", path)?.ok_or_else(|| changed(path))?;
        let xattrs = read_xattrs(&fd).at("read attributes of", path)?;
        self.see(path.as_os_str().as_bytes(), Some(&xattrs));
        self.put(&self.describe(path, stat, TarKind::File(stat.size), Some(&xattrs)))?;
        self.stats.files += 1;
        self.stats.bytes += stat.size;
        if stat.is_sparse() { self.sparse(&fd, path, stat.size) } else { self.copy(&fd, path, 0, stat.size) }
    }

    /// Reads `from..to` of a file that must be that long.
    fn copy(&mut self, fd: &OwnedFd, path: &Path, from: u64, to: u64) -> Result<()> {
        let mut at = from;
        while at < to {
            let most = usize::try_from(to - at).unwrap_or(usize::MAX).min(self.buffer.len());
            let count = match rustix::io::pread(fd, &mut self.buffer[..most], at) {
                Ok(0) => return Err(changed(path)),
                Err(Errno::INTR) => continue,
                count => count.at("read", path)?,
            };
            let bytes = &self.buffer[..count];
            if let Some(observer) = &mut self.observer {
                observer.data(bytes);
            }
            self.tar.data(bytes).at("write", "the archive")?;
            at += count as u64;
        }
        Ok(())
    }

    /// The same bytes as without holes, but holes are not read.
    fn sparse(&mut self, fd: &OwnedFd, path: &Path, size: u64) -> Result<()> {
        let mut at = 0;
        while at < size {
            let data = match rustix::fs::seek(fd, SeekFrom::Data(at)) {
                Err(Errno::NXIO) => size,
                Err(Errno::INVAL) => at,
                found => found.at("read", path)?.min(size),
            };
            self.tar.zeros(data - at).at("write", "the archive")?;
            if data == size {
                return Ok(());
            }
            let end = match rustix::fs::seek(fd, SeekFrom::Hole(data)) {
                Err(Errno::INVAL) => size,
                found => found.at("read", path)?.min(size),
            };
            if end <= data {
                return Err(changed(path));
            }
            self.copy(fd, path, data, end)?;
            at = end;
        }
        Ok(())
    }

    fn describe<'e>(&self, path: &'e Path, stat: &Stat, kind: TarKind<'e>, xattrs: Option<&'e Xattrs>) -> TarEntry<'e> {
        let path = path.as_os_str().as_bytes();
        TarEntry { path, kind, mode: stat.mode, uid: stat.uid, gid: stat.gid, mtime: self.time(stat.mtime), xattrs }
    }

    /// Whole seconds, as in the layers of Docker and BuildKit.
    fn time(&self, (seconds, nanos): Time) -> Time {
        let time = (seconds, if self.subsecond { nanos } else { 0 });
        self.clamp.map_or(time, |latest| time.min((latest, 0)))
    }

    fn see(&mut self, path: &[u8], xattrs: Option<&Xattrs>) {
        let Some(observer) = &mut self.observer else { return };
        observer.entry(path);
        for value in xattrs.into_iter().flat_map(Xattrs::values) {
            observer.data(value);
            observer.entry(path);
        }
    }

    fn put(&mut self, entry: &TarEntry<'_>) -> Result<()> {
        self.stats.entries += 1;
        self.tar.entry(entry).at("write the header of", OsStr::from_bytes(entry.path))
    }

    pub fn ownership(&self) -> Ownership {
        self.ownership
    }
}

pub(crate) fn changed(path: &Path) -> RootfsError {
    RootfsError::Changed { path: path.to_owned() }
}

/// Opens the regular file that `stat` is about; `None` if there is another one by now. Never waits on a FIFO.
pub(crate) fn open_file(dir: &OwnedFd, name: &OsStr, stat: &Stat) -> rustix::io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let fd = match rustix::fs::openat(dir, name, flags, Mode::empty()) {
        Err(Errno::LOOP | Errno::NOENT | Errno::NXIO) => return Ok(None),
        fd => fd?,
    };
    let now = Stat::of(&fd, Ownership::Native)?;
    let same = (now.dev, now.ino, now.size, now.kind) == (stat.dev, stat.ino, stat.size, FileKind::File);
    Ok(same.then_some(fd))
}

pub(crate) fn read_link(source: &Source<'_>) -> Result<OsString> {
    let target = rustix::fs::readlinkat(source.dir, source.name, Vec::new()).at("read link", source.path)?;
    Ok(OsString::from_vec(target.into_bytes()))
}

/// The attributes that go into archives, of an open file.
fn read_xattrs(fd: &OwnedFd) -> rustix::io::Result<Xattrs> {
    let names = xattr::list(fd)?;
    if !names.iter().any(|name| xattr::is_content(name)) {
        return Ok(Xattrs::new());
    }
    xattr::read_at(fd.as_fd(), OsStr::new(""), xattr::is_content)
}
