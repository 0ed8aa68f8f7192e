//! Where an entry goes, what it replaces, and what it means there.

use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;

use super::name::{self, LayerName};
use super::node;
use super::parents::{Directories, Parent, look};
use super::reader::{Entry, EntryKind, TarReader, archive};
use super::writers::Writers;
use super::{Applied, Limits, Meaning};
use crate::error::{Context as _, Result, RootfsError};
use crate::root::Root;
use crate::stat::{FileKind, Stat};
use crate::{whiteout, xattr};

pub(super) struct Placer<'a> {
    root: &'a Root,
    meaning: Meaning<'a>,
    directories: Directories<'a>,
    writers: Writers,
    pub report: Applied,
}

/// A cleaned name, taken apart.
struct Place<'a> {
    parent: Parent,
    name: &'a OsStr,
    /// The canonical path.
    path: PathBuf,
}

impl<'a> Placer<'a> {
    pub fn new(root: &'a Root, meaning: Meaning<'a>, limits: &Limits) -> Self {
        let layer = matches!(meaning, Meaning::Layer { .. });
        Self {
            root,
            meaning,
            directories: Directories::new(root, layer, limits.directories),
            writers: Writers::new(root.ownership()),
            report: Applied::default(),
        }
    }

    fn is_layer(&self) -> bool {
        matches!(self.meaning, Meaning::Layer { .. })
    }

    /// Puts one entry where it belongs.
    pub fn place<R: Read>(&mut self, entry: &Entry, tar: &mut TarReader<R>) -> Result<()> {
        let path = name::clean(&entry.path, self.is_layer())?;
        if self.is_layer() {
            match name::layer_name(&path)? {
                LayerName::Plain => {}
                LayerName::Ignored => return Ok(()),
                LayerName::Opaque => return self.opaque(&path, entry),
                LayerName::Whiteout(hidden) => return self.whiteout(&path, hidden, entry),
            }
        }
        let Some(name) = path.file_name() else { return self.root_entry(entry) };
        let place = self.find(&path, name, entry)?;
        match entry.kind {
            EntryKind::Dir => self.directory(place, entry),
            EntryKind::File => self.file(&place, entry, tar),
            EntryKind::HardLink => self.hard_link(&place, entry),
            EntryKind::Symlink if entry.link.is_empty() => Err(archive(&path, "a symbolic link to nothing")),
            EntryKind::Symlink | EntryKind::CharDevice | EntryKind::BlockDevice | EntryKind::Fifo => {
                let ownership = self.root.ownership();
                self.replacing(&place, "create", |place| {
                    node::make_special(place.parent.fd.as_fd(), place.name, entry, ownership)
                })?;
                self.report.dropped_xattrs += entry.xattrs.len() as u64;
                Ok(())
            }
        }
    }

    /// Sets what had to wait.
    pub fn finish(self) -> Result<Applied> {
        let lower = match self.meaning {
            Meaning::Layer { lower } => lower,
            Meaning::Files { .. } => None,
        };
        let dropped_xattrs = self.report.dropped_xattrs + self.writers.finish()?;
        let implicit = self.directories.finish(lower)?;
        Ok(Applied { implicit, dropped_xattrs, ..self.report })
    }

    /// The root exists and stays a directory: `./` with another type would replace it (CVE-2021-29136).
    fn root_entry(&mut self, entry: &Entry) -> Result<()> {
        if entry.kind != EntryKind::Dir {
            return Err(archive(&entry.display(), "the root is to be replaced by something else than a directory"));
        }
        if let Meaning::Files { keep_top: false, .. } = self.meaning {
            self.report.dropped_xattrs += self.dir_xattrs(self.root.as_fd(), entry)?;
            self.directories.describe(PathBuf::new(), node::stat_of(entry, FileKind::Dir))?;
        }
        Ok(())
    }

    fn find<'n>(&mut self, path: &Path, name: &'n OsStr, entry: &Entry) -> Result<Place<'n>> {
        let needed_by = Stat { rdev: (0, 0), ..self.implicit_stat(entry) };
        let parent = self.directories.get(path.parent().unwrap_or(Path::new("")), &needed_by)?;
        let path = parent.path.join(name);
        Ok(Place { parent, name, path })
    }

    /// Implicit directories belong to root (or to the owner that all get), and are as old as what needed them.
    fn implicit_stat(&self, entry: &Entry) -> Stat {
        let mut stat = node::stat_of(entry, FileKind::Dir);
        if !matches!(self.meaning, Meaning::Files { owner: Some(_), .. }) {
            (stat.uid, stat.gid) = (0, 0);
        }
        stat
    }

    /// Makes something with `make`; if the name is taken, makes room and tries again.
    fn replacing<T>(
        &mut self,
        place: &Place<'_>,
        what: &'static str,
        make: impl Fn(&Place<'_>) -> rustix::io::Result<T>,
    ) -> Result<T> {
        match make(place) {
            Err(Errno::EXIST) => {
                self.clear(place, FileKind::File)?;
                make(place).at(what, &place.path)
            }
            made => made.at(what, &place.path),
        }
    }

    /// Removes what is in the way of something of this kind.
    fn clear(&mut self, place: &Place<'_>, new: FileKind) -> Result<()> {
        let Some(old) = look(&place.parent.fd, place.name, &place.path)? else { return Ok(()) };
        if let Meaning::Files { keep_kinds: true, .. } = self.meaning
            && (old.kind == FileKind::Dir) != (new == FileKind::Dir)
        {
            return Err(RootfsError::CannotReplace { path: place.path.clone(), existing: old.kind, new });
        }
        match old.kind {
            FileKind::Dir => {
                self.root.remove_all(&place.path)?;
                self.directories.forget(&place.path);
            }
            kind => {
                rustix::fs::unlinkat(&place.parent.fd, place.name, AtFlags::empty()).at("remove", &place.path)?;
                if kind == FileKind::Symlink {
                    self.directories.forget(&place.path);
                }
            }
        }
        Ok(())
    }

    fn file<R: Read>(&mut self, place: &Place<'_>, entry: &Entry, tar: &mut TarReader<R>) -> Result<()> {
        let file = self.replacing(place, "create", |place| node::create(place.parent.fd.as_fd(), place.name))?;
        self.report.dropped_xattrs += self.writers.write(file, entry, tar)?;
        self.report.files += 1;
        self.report.bytes += entry.size;
        Ok(())
    }

    fn directory(&mut self, place: Place<'_>, entry: &Entry) -> Result<()> {
        let dir = place.parent.fd.as_fd();
        match rustix::fs::mkdirat(dir, place.name, Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let old = look(&place.parent.fd, place.name, &place.path)?;
                if old.is_none_or(|old| old.kind != FileKind::Dir) {
                    self.clear(&place, FileKind::Dir)?;
                    rustix::fs::mkdirat(dir, place.name, Mode::RWXU).at("create directory", &place.path)?;
                    // What was there (a whiteout, a file) hides a directory of the layers below; this one must as well.
                    if self.is_layer() {
                        whiteout::set_opaque(dir, place.name).at("make opaque", &place.path)?;
                    }
                }
            }
            Err(e) => return Err(RootfsError::io("create directory", &place.path, e)),
        }
        if !entry.xattrs.is_empty() {
            let fd = node::open_dir(dir, place.name).at("open directory", &place.path)?;
            self.report.dropped_xattrs += self.dir_xattrs(fd.as_fd(), entry)?;
        }
        self.directories.describe(place.path, node::stat_of(entry, FileKind::Dir))
    }

    fn dir_xattrs(&self, dir: std::os::fd::BorrowedFd<'_>, entry: &Entry) -> Result<u64> {
        node::set_xattrs(entry, FileKind::Dir, |name, value| xattr::set_at(dir, OsStr::new(""), name, value))
    }

    /// The target must be a name in the root. Metadata are the target's: the entry has none of its own.
    fn hard_link(&mut self, place: &Place<'_>, entry: &Entry) -> Result<()> {
        let bad = |reason: &str| archive(&entry.display(), reason);
        let target = name::clean(&entry.link, self.is_layer())?;
        let missing = || format!("a hard link to {}, which is not in the archive", target.display());
        let name = target.file_name().ok_or_else(|| bad("a hard link to the root"))?;
        let parent = match self.directories.existing(target.parent().unwrap_or(Path::new(""))) {
            Err(e) if e.is_not_found() => return Err(bad(&missing())),
            parent => parent?,
        };
        let old = look(&parent.fd, name, &target)?.ok_or_else(|| bad(&missing()))?;
        if old.kind == FileKind::Dir {
            return Err(bad("a hard link to a directory"));
        }
        if self.is_layer() && old.is_whiteout() {
            return Err(bad(&missing()));
        }
        let present = look(&place.parent.fd, place.name, &place.path)?;
        if present.is_some_and(|present| (present.dev, present.ino) == (old.dev, old.ino)) {
            return Ok(());
        }
        let link =
            |place: &Place<'_>| rustix::fs::linkat(&parent.fd, name, &place.parent.fd, place.name, AtFlags::empty());
        self.replacing(place, "create hard link", link)
    }

    /// Hides a name of the layers below, but nothing of this one.
    fn whiteout(&mut self, path: &Path, hidden: &OsStr, entry: &Entry) -> Result<()> {
        let place = self.find(path, hidden, entry)?;
        self.report.whiteouts += 1;
        match look(&place.parent.fd, hidden, &place.path)? {
            None => whiteout::make(&place.parent.fd, hidden).at("create whiteout", &place.path),
            Some(old) if old.kind == FileKind::Dir => {
                whiteout::set_opaque(&place.parent.fd, hidden).at("make opaque", &place.path)
            }
            Some(_) => Ok(()),
        }
    }

    fn opaque(&mut self, path: &Path, entry: &Entry) -> Result<()> {
        let place = self.find(path, OsStr::new(""), entry)?;
        self.report.whiteouts += 1;
        self.report.opaque_root |= place.parent.path.as_os_str().is_empty();
        whiteout::set_opaque(&place.parent.fd, OsStr::new("")).at("make opaque", &place.parent.path)
    }
}
