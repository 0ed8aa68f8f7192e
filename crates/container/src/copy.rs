//! `cp`: files between two trees, or a tree and a tar stream, with docker's rules about names.
//!
//! - A source that ends with `/.` is the directory's contents; any other directory comes with its name.
//! - A destination that is a directory takes the source in; else the source takes its name, and its parent must be there.
//! - A link that is named as the source is copied as a link, unless `follow` is given or a slash follows it; links on the way,
//!   and a destination that is one, are followed. All this inside the tree.
//!
//! Between the two sides is a tar stream, as between docker and its daemon: what one side may claim, and what the
//! other does with it, is that of archives nobody trusts.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use kiln_rootfs::apply::{ExtractOptions, extract};
use kiln_rootfs::diff::DiffOptions;
use kiln_rootfs::export::tar_path;
use kiln_rootfs::{FileKind, Owner, Root};

use crate::error::{Error, Result};

/// A path in a tree, and the tree's name for messages.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    /// The tree.
    pub root: &'a Root,
    /// The path, as the user wrote it but absolute.
    pub path: &'a Path,
    /// The container's name; `None` on the host.
    pub container: Option<&'a str>,
}

/// How to copy.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Keep owners; else all belongs to root.
    pub archive: bool,
    /// Copy what a link that is named as the source leads to.
    pub follow: bool,
}

/// What is to be copied.
struct Source {
    /// Without links, but maybe for the last component.
    path: PathBuf,
    /// What it is called.
    name: OsString,
    is_dir: bool,
    /// Not itself, but what is in it.
    contents: bool,
}

/// Copies; returns the length of the archive between the two.
pub fn copy(from: Side<'_>, to: Side<'_>, options: Options) -> Result<u64> {
    let source = Source::find(from, options)?;
    let (dir, name) = destination(to, &source)?;
    let dir = to.root.sub(&dir)?;
    let broken = |e| Error::Copy(format!("cannot connect the two sides: {e}"));
    let (read, write) = io::pipe().map_err(broken)?;
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            // Whatever happens, the other side must not wait for somebody who reads.
            let read = read;
            extract(read, &dir, &extraction(options))
        });
        let packed = source.pack(from.root, &name, &mut io::BufWriter::new(write));
        match (reader.join(), packed) {
            (Ok(Ok(applied)), Ok(())) => Ok(applied.archive_bytes),
            // The side that writes only saw that nobody reads any more, or the other one that the archive ends too early.
            (Ok(Err(e)), Err(written)) if written.is_broken_pipe() => Err(e.into()),
            (_, Err(e)) => Err(e),
            (Ok(Err(e)), Ok(())) => Err(e.into()),
            (Err(_), _) => Err(Error::Copy("internal error while copying".to_owned())),
        }
    })
}

/// Writes a tar stream of the source.
pub fn pack(from: Side<'_>, options: Options, out: &mut dyn Write) -> Result<()> {
    let source = Source::find(from, options)?;
    let name = if source.contents { OsString::from(".") } else { source.name.clone() };
    source.pack(from.root, &name, out)
}

/// Unpacks a tar stream into a directory.
pub fn unpack(archive: impl Read, to: Side<'_>, options: Options) -> Result<()> {
    let path = to.resolve(true)?;
    match to.root.try_stat(&path, false)? {
        Some(stat) if stat.kind == FileKind::Dir => {}
        Some(_) => return Err(Error::Copy(format!("destination \"{}\" must be a directory", to.shown(to.path)))),
        None => return Err(to.missing(to.path)),
    }
    extract(archive, &to.root.sub(&path)?, &extraction(options))?;
    Ok(())
}

fn extraction(options: Options) -> ExtractOptions {
    let owner = if options.archive { None } else { Some(Owner { uid: 0, gid: 0 }) };
    ExtractOptions { owner, keep_top: true, keep_kinds: true, ..ExtractOptions::default() }
}

impl Side<'_> {
    /// The path without links, the last one only with `follow`.
    fn resolve(&self, follow: bool) -> Result<PathBuf> {
        let path = if follow { self.root.resolve(self.path) } else { self.root.resolve_parent(self.path) };
        path.map_err(
            |e| if e.io_kind() == Some(io::ErrorKind::NotADirectory) { self.not_a_directory() } else { e.into() },
        )
    }

    fn not_a_directory(&self) -> Error {
        Error::Copy(format!("{}: not a directory", self.shown(self.path)))
    }

    fn shown(&self, path: &Path) -> String {
        match self.container {
            Some(name) => format!("{name}:{}", path.display()),
            None => path.display().to_string(),
        }
    }

    fn missing(&self, path: &Path) -> Error {
        Error::Copy(match self.container {
            Some(name) => format!("Could not find the file {} in container {name}", path.display()),
            None => format!("lstat {}: no such file or directory", path.display()),
        })
    }
}

impl Source {
    fn find(from: Side<'_>, options: Options) -> Result<Self> {
        let (named_dir, contents) = (names_directory(from.path), ends_with_dot(from.path));
        let follow = options.follow || named_dir;
        let path = from.resolve(follow)?;
        let stat = from.root.try_stat(&path, false)?.ok_or_else(|| from.missing(from.path))?;
        let is_dir = stat.kind == FileKind::Dir;
        if named_dir && !is_dir {
            return Err(from.not_a_directory());
        }
        // A link that is followed keeps its name; `/` and `..` have none of their own.
        let last = from.path.components().next_back();
        let name = match last {
            Some(Component::Normal(name)) => name,
            _ => path.file_name().unwrap_or(OsStr::new("/")),
        };
        Ok(Self { name: name.to_owned(), path, is_dir, contents })
    }

    fn pack(&self, root: &Root, name: &OsStr, out: &mut dyn Write) -> Result<()> {
        let mut options = DiffOptions { subsecond_times: true, ..DiffOptions::default() };
        let name = if name == "/" { Path::new(".") } else { Path::new(name) };
        tar_path(root, &self.path, name, out, &mut options)?;
        out.flush().map_err(Error::io("write", Path::new("the archive")))
    }
}

/// The directory that is written to, and what the source is called in it.
fn destination(to: Side<'_>, source: &Source) -> Result<(PathBuf, OsString)> {
    let path = to.resolve(true)?;
    match to.root.try_stat(&path, false)? {
        Some(stat) if stat.kind == FileKind::Dir => {
            let name = if source.contents { OsString::from(".") } else { source.name.clone() };
            return Ok((path, name));
        }
        Some(_) if source.is_dir => return Err(Error::Copy("cannot copy directory".to_owned())),
        Some(_) if names_directory(to.path) => {
            return Err(to.not_a_directory());
        }
        None if !source.is_dir && names_directory(to.path) => return Err(Error::Copy("no such directory".to_owned())),
        _ => {}
    }
    let parent = path.parent().unwrap_or(Path::new(""));
    let is_dir = to.root.try_stat(parent, true)?.is_some_and(|stat| stat.kind == FileKind::Dir);
    let shown = Path::new("/").join(parent);
    match path.file_name().filter(|_| is_dir) {
        Some(name) => Ok((parent.to_owned(), name.to_owned())),
        None if to.container.is_some() => Err(to.missing(&shown)),
        None => Err(Error::Copy(format!("invalid output path: directory {shown:?} does not exist"))),
    }
}

/// Ends with `/` or `/.`: whatever it is, it must be a directory.
fn names_directory(path: &Path) -> bool {
    path.as_os_str().as_bytes().ends_with(b"/") || ends_with_dot(path)
}

fn ends_with_dot(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    bytes == b"." || bytes.ends_with(b"/.")
}
