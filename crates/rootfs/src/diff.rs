//! An overlay's upper directory as an OCI layer.
//!
//! What goes into the layer:
//! - everything in the upper directory, directories before their content, sorted by name (bytewise) in each directory;
//! - a whiteout for each 0:0 device and an opaque marker for each directory marked so, the marker first in its directory;
//! - not: directories that were copied up but are the same as below (times aside, as in BuildKit) and have nothing in
//!   them that changed; files that were copied up without any change; whiteouts of things that are not below; sockets;
//!   overlayfs's, kiln's and the host's extended attributes; the root itself.
//!
//! The bytes depend on the trees only, not on holes, inode numbers or the order of the file system.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use crate::dir::{self, DirRef};
use crate::error::{Context as _, Result, RootfsError};
use crate::export::{self, Emitter, Level, Source};
use crate::root::Root;
use crate::stat::{FileKind, Ownership, Stat};
use crate::whiteout;
use crate::xattr::{self, Xattrs};

pub use crate::export::ContentObserver;

/// Directories kept open on the way down.
const MAX_OPEN: usize = 64;

/// How to write a layer or an archive.
#[derive(Default)]
pub struct DiffOptions<'a> {
    /// Later times become this one (seconds since the epoch): `SOURCE_DATE_EPOCH` with `rewrite-timestamp`.
    pub rewrite_timestamp: Option<i64>,
    /// Keep fractions of seconds, with a PAX record each. Docker and BuildKit cut them off, and so does the default.
    pub subsecond_times: bool,
    /// Sees what is written.
    pub observer: Option<&'a mut dyn ContentObserver>,
}

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiffStats {
    /// Entries, whiteouts included. None means an empty layer.
    pub entries: u64,
    /// Regular files with content of their own (further names of a file not counted).
    pub files: u64,
    /// Bytes of regular files.
    pub bytes: u64,
    /// Whiteouts and opaque markers.
    pub whiteouts: u64,
    /// Length of the archive.
    pub archive_bytes: u64,
}

/// Writes the layer that `upper` (an overlay's upper directory, or an applied layer) is.
///
/// `lower` is the merged view of the layers below; without it nothing can be left out as unchanged.
pub fn diff(
    upper: &Root,
    lower: Option<&Root>,
    out: &mut dyn Write,
    options: &mut DiffOptions<'_>,
) -> Result<DiffStats> {
    Walk::layer(upper, lower, out, options)?.run()
}

/// A directory on the way from the root to where the walk is.
struct Frame {
    level: Level,
    path: PathBuf,
    /// Names that are still to come, last first.
    names: Vec<OsString>,
    /// The same directory below, if its content shines through.
    lower: Option<Level>,
    /// Not written yet, because nothing in it was.
    pending: Option<(Stat, Xattrs)>,
}

/// The inodes that have several names in the tree. (A link count says less: layers share inodes with other layers.)
struct Shared {
    root: Arc<OwnedFd>,
    found: Option<HashSet<(u64, u64)>>,
}

impl Shared {
    /// Looks at the whole tree the first time, which is needed for copied-up files with links only.
    fn contains(&mut self, stat: &Stat) -> Result<bool> {
        let found = match self.found.take() {
            Some(found) => found,
            None => Self::scan(&self.root)?,
        };
        let known = found.contains(&(stat.dev, stat.ino));
        self.found = Some(found);
        Ok(known)
    }

    fn scan(root: &Arc<OwnedFd>) -> Result<HashSet<(u64, u64)>> {
        let (mut once, mut several) = (HashSet::new(), HashSet::new());
        let mut todo = vec![(DirRef::new(root.clone()), PathBuf::new())];
        while let Some((dir, path)) = todo.pop() {
            let fd = Arc::new(dir.open().at("open directory", &path)?);
            for entry in dir::read_names(&fd).at("read directory", &path)? {
                let below = path.join(&entry.name);
                let stat = Stat::at(&fd, &entry.name, Ownership::Native).at("stat", &below)?;
                if stat.kind == FileKind::Dir {
                    todo.push((dir.child(&fd, &entry.name), below));
                } else if stat.nlink > 1 && !once.insert((stat.dev, stat.ino)) {
                    several.insert((stat.dev, stat.ino));
                }
            }
        }
        Ok(several)
    }
}

/// One walk over a tree. Frames are explicit: trees may be deeper than the stack and than `PATH_MAX`.
pub(crate) struct Walk<'o> {
    frames: Vec<Frame>,
    emitter: Emitter<'o>,
    layer: bool,
    compare: bool,
    shared: Shared,
    lower_ownership: Ownership,
}

impl<'o> Walk<'o> {
    pub fn tree(root: &Root, out: &'o mut dyn Write, options: &'o mut DiffOptions<'_>) -> Result<Self> {
        Self::new(root, None, false, Emitter::new(out, options, root.ownership()))
    }

    /// What is at `path`, under another name.
    pub fn path(root: &Root, path: &Path, name: &Path, emitter: Emitter<'o>) -> Result<Self> {
        let stat = root.stat(path, false)?;
        if stat.kind != FileKind::Dir {
            let (dir, last) = root.parent(path)?;
            let dir = Arc::new(dir);
            let mut walk = Self::nowhere(dir.clone(), emitter);
            walk.emitter.leaf(&Source { dir: &dir, name: last, path: name, stat: &stat })?;
            return Ok(walk);
        }
        let fd = Arc::new(root.open_dir(path)?);
        let xattrs = xattr::read_at(&fd, OsStr::new(""), xattr::is_content).at("read attributes of", path)?;
        let mut walk = Self::nowhere(fd.clone(), emitter);
        walk.emitter.directory(name, &stat, &xattrs)?;
        walk.enter(fd, name, None)?;
        Ok(walk)
    }

    fn layer(
        upper: &Root,
        lower: Option<&Root>,
        out: &'o mut dyn Write,
        options: &'o mut DiffOptions<'_>,
    ) -> Result<Self> {
        Self::new(upper, lower, true, Emitter::new(out, options, upper.ownership()))
    }

    fn new(root: &Root, lower: Option<&Root>, layer: bool, emitter: Emitter<'o>) -> Result<Self> {
        let top = Path::new("");
        let fd = Arc::new(root.open_dir(top)?);
        let mut walk = Self {
            layer,
            compare: lower.is_some(),
            lower_ownership: lower.map_or(Ownership::Native, Root::ownership),
            ..Self::nowhere(fd.clone(), emitter)
        };
        let lower = lower.map(|lower| lower.open_dir(top)).transpose()?.map(|fd| Level::top(Arc::new(fd)));
        let opaque = layer && whiteout::is_opaque(&fd, OsStr::new("")).at("read attributes of", "/")?;
        walk.enter(fd, top, lower.filter(|_| !opaque))?;
        if opaque {
            walk.emitter.marker(Path::new(OsStr::from_bytes(whiteout::OPAQUE)))?;
        }
        Ok(walk)
    }

    /// A walk over a tree that is in no directory yet.
    fn nowhere(root: Arc<OwnedFd>, emitter: Emitter<'o>) -> Self {
        Self {
            frames: Vec::new(),
            emitter,
            layer: false,
            compare: false,
            shared: Shared { root, found: None },
            lower_ownership: Ownership::Native,
        }
    }

    /// Goes into the uppermost directory, which is called `path`.
    fn enter(&mut self, fd: Arc<OwnedFd>, path: &Path, lower: Option<Level>) -> Result<()> {
        let names = sorted_names(&fd, path)?;
        self.frames.push(Frame { names, level: Level::top(fd), path: path.to_owned(), lower, pending: None });
        Ok(())
    }

    pub fn run(mut self) -> Result<DiffStats> {
        while let Some(frame) = self.frames.last_mut() {
            let Some(name) = frame.names.pop() else {
                self.frames.pop();
                continue;
            };
            let path = frame.path.join(&name);
            let dir = frame.level.fd().at("open directory", &frame.path)?;
            let stat = Stat::at(&dir, &name, self.emitter.ownership()).at("stat", &path)?;
            let source = Source { dir: &dir, name: &name, path: &path, stat: &stat };
            if self.layer && stat.is_whiteout() {
                self.whiteout(&source)?;
            } else if self.layer && name.as_bytes().starts_with(whiteout::PREFIX) {
                let reason = "names that start with \".wh.\" cannot be stored in a layer";
                return Err(RootfsError::BadPath { path, reason });
            } else if stat.kind == FileKind::Dir {
                self.directory(&source)?;
            } else if !self.unchanged(&source)? {
                self.write_pending()?;
                self.emitter.leaf(&source)?;
            }
        }
        self.emitter.finish()
    }

    /// The directory below the one that the walk is in.
    fn lower_dir(&mut self) -> Result<Option<Arc<OwnedFd>>> {
        let Some(frame) = self.frames.last_mut() else { return Ok(None) };
        let Some(lower) = &mut frame.lower else { return Ok(None) };
        lower.fd().map(Some).at("open directory below", &frame.path)
    }

    /// The directories on the way that were held back.
    fn write_pending(&mut self) -> Result<()> {
        for frame in &mut self.frames {
            if let Some((stat, xattrs)) = frame.pending.take() {
                self.emitter.directory(&frame.path, &stat, &xattrs)?;
            }
        }
        Ok(())
    }

    fn whiteout(&mut self, source: &Source<'_>) -> Result<()> {
        if self.compare {
            let Some(lower) = self.lower_dir()? else { return Ok(()) };
            if below(&lower, source.name, Ownership::Native, source.path)?.is_none() {
                return Ok(());
            }
        }
        self.write_pending()?;
        let mut name = OsString::from(OsStr::from_bytes(whiteout::PREFIX));
        name.push(source.name);
        self.emitter.marker(&source.path.with_file_name(name))
    }

    fn directory(&mut self, source: &Source<'_>) -> Result<()> {
        let Some(parent) = self.frames.last_mut() else { return Ok(()) };
        let mut level = parent.level.child(source.name).at("open directory", source.path)?;
        let mut lower = match parent.lower.as_mut().map(|lower| lower.child(source.name)) {
            None | Some(Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP)) => None,
            Some(opened) => Some(opened.at("open directory below", source.path)?),
        };
        let fd = level.fd().at("open directory", source.path)?;
        let own = OsStr::new("");
        let xattrs = xattr::read_at(&fd, own, xattr::is_content).at("read attributes of", source.path)?;
        let opaque = self.layer && whiteout::is_opaque(&fd, own).at("read attributes of", source.path)?;
        let same = match &mut lower {
            Some(lower) if !opaque => {
                let lower = lower.fd().at("open directory below", source.path)?;
                self.same_directory(&lower, source, &xattrs)?
            }
            _ => false,
        };
        // Where nothing is below, the mark is an accident of how the directory came about.
        let mark = opaque && (!self.compare || lower.is_some());
        self.frames.push(Frame {
            names: sorted_names(&fd, source.path)?,
            level,
            path: source.path.to_owned(),
            lower: lower.filter(|_| !opaque),
            pending: Some((*source.stat, xattrs)),
        });
        if !same {
            self.write_pending()?;
        }
        if mark {
            self.emitter.marker(&source.path.join(OsStr::from_bytes(whiteout::OPAQUE)))?;
        }
        self.close_far_frame();
        Ok(())
    }

    fn close_far_frame(&mut self) {
        if let Some(far) = self.frames.len().checked_sub(MAX_OPEN).and_then(|far| self.frames.get_mut(far)) {
            far.level.close();
            if let Some(lower) = &mut far.lower {
                lower.close();
            }
        }
    }

    fn same_directory(&self, lower: &OwnedFd, source: &Source<'_>, xattrs: &Xattrs) -> Result<bool> {
        let below = Stat::of(lower, self.lower_ownership).at("stat", source.path)?;
        let same = |s: &Stat| (s.mode, s.uid, s.gid);
        if same(&below) != same(source.stat) {
            return Ok(false);
        }
        let theirs = xattr::read_at(lower, OsStr::new(""), xattr::is_content).at("read attributes of", source.path)?;
        Ok(theirs == *xattrs)
    }

    /// Copied up, but the same in all that a layer records. A file with several names in the layer is taken as it is:
    /// leaving one of them out would break the link.
    fn unchanged(&mut self, source: &Source<'_>) -> Result<bool> {
        let Some(lower) = self.lower_dir()? else { return Ok(false) };
        let ours = source.stat;
        let Some(theirs) = below(&lower, source.name, self.lower_ownership, source.path)? else { return Ok(false) };
        let same = |s: &Stat| (s.kind, s.mode, s.uid, s.gid, s.size, s.mtime, s.rdev);
        if same(ours) != same(&theirs) || (ours.nlink > 1 && self.shared.contains(ours)?) {
            return Ok(false);
        }
        let other = Source { dir: &lower, stat: &theirs, ..*source };
        match ours.kind {
            FileKind::File => same_file(source, &other),
            FileKind::Symlink => Ok(export::read_link(source)? == export::read_link(&other)?),
            _ => Ok(true),
        }
    }
}

/// Compares attributes, then content.
fn same_file(ours: &Source<'_>, theirs: &Source<'_>) -> Result<bool> {
    let mut files = Vec::with_capacity(2);
    let mut attributes = Vec::with_capacity(2);
    for source in [ours, theirs] {
        let fd = export::open_file(source.dir, source.name, source.stat).at("open", source.path)?;
        let fd = fd.ok_or_else(|| export::changed(source.path))?;
        attributes.push(xattr::read_at(&fd, OsStr::new(""), xattr::is_content).at("read attributes of", source.path)?);
        files.push(std::fs::File::from(fd));
    }
    Ok(attributes[0] == attributes[1] && same_content(&files[0], &files[1], ours.stat.size).at("read", ours.path)?)
}

fn same_content(ours: &std::fs::File, theirs: &std::fs::File, size: u64) -> std::io::Result<bool> {
    use std::os::unix::fs::FileExt;
    let mut a = vec![0; 128 * 1024];
    let mut b = vec![0; 128 * 1024];
    let mut at = 0;
    while at < size {
        let count = usize::try_from(size - at).unwrap_or(usize::MAX).min(a.len());
        ours.read_exact_at(&mut a[..count], at)?;
        theirs.read_exact_at(&mut b[..count], at)?;
        if a[..count] != b[..count] {
            return Ok(false);
        }
        at += count as u64;
    }
    Ok(true)
}

fn below(dir: &OwnedFd, name: &OsStr, ownership: Ownership, path: &Path) -> Result<Option<Stat>> {
    match Stat::at(dir, name, ownership) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(RootfsError::io("stat below", path, e)),
    }
}

/// Last first, to be taken from the end.
fn sorted_names(fd: &OwnedFd, path: &Path) -> Result<Vec<OsString>> {
    let mut names: Vec<OsString> =
        dir::read_names(fd).at("read directory", path)?.into_iter().map(|entry| entry.name).collect();
    names.sort_unstable_by(|a, b| b.cmp(a));
    Ok(names)
}
