//! Tar streams into directories: OCI layers ([`apply`]) and ordinary archives ([`extract`]).
//!
//! The archive is hostile. Invariants:
//! - nothing outside the root is read, written, linked or changed: parents are opened without following links, or
//!   resolved inside the root; the last component is never followed; hard links are made between names in the root;
//! - overlayfs's and kiln's own attributes never come from an archive;
//! - what an extended header may claim is bounded, and what is stored must match what was declared;
//! - metadata are set on what was just created, by descriptor or without following; owner before mode before
//!   capabilities, because each of them takes away the next;
//! - directories get their metadata at the end, when nothing is made in them any more.
//!
//! Where a layer is ambiguous, it means what it means to containerd, except that a whiteout never hides something of
//! its own layer, as the image specification demands.

use std::io::Read;
use std::path::PathBuf;

use crate::error::{Result, RootfsError};
use crate::export::ContentObserver;
use crate::meta::Owner;
use crate::root::Root;

mod header;
mod name;
mod node;
mod parents;
mod place;
mod reader;
mod records;
mod sparse;
mod writers;

pub use parents::copy_up_parents;
pub use reader::{Entry, EntryKind, TarReader};
pub use sparse::SparseMap;

use place::Placer;

/// What one archive may use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Number of entries.
    pub entries: u64,
    /// Sum of the files' sizes, holes included.
    pub bytes: u64,
    /// Length of a path in bytes.
    pub path: usize,
    /// Bytes of memory for the directories, whose metadata are kept to the end. One deep path is thousands of them.
    pub directories: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries: 8_000_000, bytes: 16 << 40, path: 16 << 10, directories: 512 << 20 }
    }
}

/// How to apply a layer.
#[derive(Clone, Copy, Default)]
pub struct ApplyOptions<'a> {
    /// The merged view of the layers below. Directories that have entries in them but none of their own take their
    /// metadata from it. Without it see [`Applied::implicit`].
    pub lower: Option<&'a Root>,
    /// Resource limits.
    pub limits: Limits,
}

/// How to unpack an archive.
#[derive(Clone, Copy, Default)]
pub struct ExtractOptions {
    /// All files get this owner instead of the archive's.
    pub owner: Option<Owner>,
    /// All files get this mtime (seconds) instead of the archive's, if theirs is later.
    pub clamp_mtime: Option<i64>,
    /// The directory keeps its metadata, whatever the archive says of `./`. So it is with `ADD`: an archive made in a
    /// private directory must not make `/` private.
    pub keep_top: bool,
    /// A directory takes the place of nothing else, and nothing else that of a directory. So it is with `docker cp`.
    pub keep_kinds: bool,
    /// Resource limits.
    pub limits: Limits,
}

/// What was done.
#[derive(Debug, Clone, Default)]
pub struct Applied {
    /// Entries in the archive.
    pub entries: u64,
    /// Regular files written.
    pub files: u64,
    /// Bytes of regular files, holes included.
    pub bytes: u64,
    /// Length of the uncompressed archive, with what follows its end.
    pub archive_bytes: u64,
    /// Whiteouts and opaque markers.
    pub whiteouts: u64,
    /// Directories that had to be made without an entry of their own. If layers are unpacked out of order, give these to
    /// [`copy_up_parents`] once the layers below are there; if the merged view was given, that has been done.
    pub implicit: Vec<PathBuf>,
    /// The layer's root is opaque: nothing of the layers below is to be seen. Overlayfs does not look at a root's mark.
    pub opaque_root: bool,
    /// Extended attributes that were not stored: reserved, or refused by the file system.
    pub dropped_xattrs: u64,
}

/// What is different between a layer and an archive of files.
#[derive(Clone, Copy)]
enum Meaning<'a> {
    /// `.wh.` names are whiteouts; `..` is confined, as containerd does; the root's own entry is ignored.
    Layer { lower: Option<&'a Root> },
    /// Names are names; `..` out of the root is an error, as in Docker; the root's own entry counts.
    Files { owner: Option<Owner>, clamp: Option<i64>, keep_top: bool, keep_kinds: bool },
}

/// Unpacks an OCI layer (uncompressed) into `dir`, in the format of an overlay's upper directory.
///
/// `dir` should be empty and must not be in use. Reads the stream to its end, beyond the end of the archive.
pub fn apply(reader: impl Read, dir: &Root, options: &ApplyOptions<'_>) -> Result<Applied> {
    run(reader, dir, Meaning::Layer { lower: options.lower }, options.limits)
}

/// Unpacks an ordinary archive (uncompressed) into `dir`, over what is there: `ADD`, contexts, imports.
///
/// `dir` is the archive's `/`: links do not lead out of it. What stands in the way is replaced, but directories are
/// merged.
pub fn extract(reader: impl Read, dir: &Root, options: &ExtractOptions) -> Result<Applied> {
    let &ExtractOptions { owner, clamp_mtime, keep_top, keep_kinds, limits } = options;
    run(reader, dir, Meaning::Files { owner, clamp: clamp_mtime, keep_top, keep_kinds }, limits)
}

/// Shows an observer all that an archive (uncompressed) would make: names, contents, link targets, attributes. Nothing is
/// written. Reads the stream to its end; returns the length of the contents.
pub fn observe(reader: impl Read, observer: &mut dyn ContentObserver) -> Result<u64> {
    let mut tar = TarReader::new(reader);
    let mut bytes = 0;
    while let Some(entry) = tar.next_entry()? {
        let attributes = entry.xattrs.iter().map(|(_, value)| value.as_slice());
        for value in attributes.chain([entry.link.as_slice()]).filter(|v| !v.is_empty()) {
            observer.entry(&entry.path);
            observer.data(value);
        }
        observer.entry(&entry.path);
        loop {
            let data = tar.data()?;
            if data.is_empty() {
                break;
            }
            bytes += data.len() as u64;
            observer.data(data);
        }
    }
    observer.finish();
    tar.drain()?;
    Ok(bytes)
}

fn run(reader: impl Read, dir: &Root, meaning: Meaning<'_>, limits: Limits) -> Result<Applied> {
    let mut tar = TarReader::new(reader);
    let mut placer = Placer::new(dir, meaning, &limits);
    while let Some(mut entry) = tar.next_entry()? {
        placer.report.entries += 1;
        check_limits(&placer.report, &entry, &limits)?;
        if let Meaning::Files { owner, clamp, .. } = meaning {
            if let Some(Owner { uid, gid }) = owner {
                (entry.uid, entry.gid) = (uid, gid);
            }
            if let Some(latest) = clamp {
                entry.mtime = entry.mtime.min((latest, 0));
            }
        }
        placer.place(&entry, &mut tar)?;
    }
    tar.drain()?;
    let mut report = placer.finish()?;
    report.archive_bytes = tar.offset();
    Ok(report)
}

fn check_limits(report: &Applied, entry: &Entry, limits: &Limits) -> Result<()> {
    if report.entries > limits.entries {
        return Err(RootfsError::Limit { what: "number of entries in the archive", limit: limits.entries });
    }
    if report.bytes.saturating_add(entry.size) > limits.bytes {
        return Err(RootfsError::Limit { what: "size of the files in the archive", limit: limits.bytes });
    }
    if entry.path.len().max(entry.link.len()) > limits.path {
        return Err(RootfsError::Limit { what: "length of a path in the archive", limit: limits.path as u64 });
    }
    Ok(())
}
