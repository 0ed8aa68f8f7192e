//! `COPY` and `ADD`: files from a context, a stage or an image into a layer, with Docker's rules.
//!
//! - a file goes to the destination, or into it if that is a directory; a directory's contents go into the destination;
//! - the destination is resolved in the target with its links; one that ends with `/` is made a directory; parents that are
//!   missing are made with the requested owner, and an octal `--chmod` or else mode 0755;
//! - what exists there: a directory at the destination itself keeps its metadata, directories below it get the source's,
//!   files and links are replaced, a file never replaces a directory nor the other way round;
//! - `--chown` and `--chmod` apply to all that is copied, not to a destination directory that exists.
//!
//! Invariants:
//! - nothing is looked up by path below a directory that was opened: a rename or a link put in the way meanwhile leads to
//!   an error, never out of the tree;
//! - a file that is not what was scanned, before or after its bytes were read, is an error.

mod data;
mod engine;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::{Result, RootfsError};
use crate::glob;
use crate::meta::Owner;
use crate::mode::ModeChange;
use crate::select::{self, Pick, Selector, Source};
use crate::stat::{FileKind, Time};
use crate::target::{MakeDirs, Restore, Target};

use engine::{Engine, Job};

/// Which modification times copies get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mtime {
    /// The source's.
    #[default]
    Keep,
    /// This one.
    Set(Time),
    /// The source's, but none later than this one (`SOURCE_DATE_EPOCH`).
    Clamp(Time),
}

/// One `COPY`.
#[derive(Debug, Clone, Default)]
pub struct CopyRequest<'a> {
    /// What.
    pub select: Selector<'a>,
    /// Where to; a trailing slash means that it is a directory.
    pub dest: PathBuf,
    /// `--chown`.
    pub owner: Option<Owner>,
    /// `--chmod`.
    pub mode: Option<ModeChange>,
    /// Modification times.
    pub mtime: Mtime,
}

/// What was copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CopyReport {
    /// Regular files, links and devices.
    pub files: u64,
    /// Directories below the destination.
    pub dirs: u64,
    /// Bytes of regular files.
    pub bytes: u64,
    /// Sockets, which are not copied.
    pub skipped: u64,
}

impl Mtime {
    fn apply(self, mtime: Time) -> Time {
        match self {
            Self::Keep => mtime,
            Self::Set(time) => time,
            Self::Clamp(limit) => mtime.min(limit),
        }
    }

    /// For what has no source.
    fn of_new(self) -> Option<Time> {
        match self {
            Self::Keep => None,
            Self::Set(time) | Self::Clamp(time) => Some(time),
        }
    }
}

/// Copies.
pub fn copy(request: &CopyRequest<'_>, source: Source<'_>, target: &Target) -> Result<CopyReport> {
    let picks = select::pick(source, &request.select)?;
    let engine = Engine::new(request, target);
    let wants_dir = names_directory(&request.dest);
    let by_pattern = request.select.sources.iter().any(|s| glob::has_pattern(s.as_os_str().as_bytes()));
    for pick in &picks {
        // In a directory, or among other matches, sockets are left out.
        if pick.dir().is_none() && pick.stat().kind == FileKind::Socket && !by_pattern {
            return Err(RootfsError::NotRegular { path: pick.path.clone(), kind: FileKind::Socket });
        }
        let mut restore = Restore::default();
        let dest = target.view().find(&request.dest, true)?;
        let is_dir = dest.entry.is_some_and(|(stat, _)| stat.kind == FileKind::Dir);
        if pick.dir().is_some() {
            copy_dir(&engine, pick, &dest.path, &mut restore)?;
        } else if is_dir || wants_dir {
            copy_file(&engine, pick, &dest.path, &pick.name, &mut restore)?;
        } else if picks.len() > 1 {
            return Err(RootfsError::DestinationNotDirectory { path: request.dest.clone() });
        } else {
            let bad = || RootfsError::BadPath { path: request.dest.clone(), reason: "it has no last component" };
            let name = dest.path.file_name().ok_or_else(bad)?;
            let parent = dest.path.parent().unwrap_or(Path::new(""));
            copy_file(&engine, pick, parent, name, &mut restore)?;
        }
        engine.link_deferred()?;
        restore.run()?;
    }
    Ok(engine.report())
}

/// Ends with `/` or `/.`, or is nothing else.
fn names_directory(dest: &Path) -> bool {
    let bytes = dest.as_os_str().as_encoded_bytes();
    bytes.ends_with(b"/") || bytes.ends_with(b"/.") || bytes == b"." || bytes.is_empty()
}

fn make_dirs(request: &CopyRequest<'_>) -> MakeDirs {
    // As in BuildKit, whose umask is 022. `--chmod=700` on a directory of keys would otherwise leave the directory open to all.
    let mode = match &request.mode {
        Some(ModeChange::Octal(bits)) => bits & 0o755,
        _ => 0o755,
    };
    MakeDirs { mode, owner: request.owner.unwrap_or(Owner { uid: 0, gid: 0 }), mtime: request.mtime.of_new() }
}

fn copy_dir(engine: &Engine<'_>, pick: &Pick<'_>, dest: &Path, restore: &mut Restore) -> Result<()> {
    let request = engine.request;
    let Some(top) = pick.dir() else { return Ok(()) };
    let (dir, created) = engine.target.open_dir(dest, &make_dirs(request), restore)?;
    if created {
        // As in BuildKit, a destination that was made for a directory has the directory's time, though not its mode.
        restore.add(&dir, request.mtime.apply(pick.stat().mtime));
    }
    engine.run(pick, Job::top(pick, top, dir)?)
}

fn copy_file(engine: &Engine<'_>, pick: &Pick<'_>, parent: &Path, name: &OsStr, restore: &mut Restore) -> Result<()> {
    let (dir, _) = engine.target.open_dir(parent, &make_dirs(engine.request), restore)?;
    engine.copy_one(pick, dir, name, &parent.join(name))
}
