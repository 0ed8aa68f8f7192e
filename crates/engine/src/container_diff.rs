//! `kiln diff`: what a container changed of its image's files, as the layer tells that would be made of it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, BufWriter};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_container::Container;
use kiln_rootfs::Root;
use kiln_rootfs::apply::TarReader;
use kiln_rootfs::diff::{DiffOptions, diff};

use crate::engine::Engine;
use crate::error::{Error, Result};

/// What became of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is new.
    Added,
    /// It, or something in it, is another.
    Changed,
    /// It is gone.
    Deleted,
}

/// Mount points that are made for a container that runs.
const MOUNT_POINTS: [&str; 6] = ["proc", "dev", "sys", "etc/hosts", "etc/hostname", "etc/resolv.conf"];

/// The changes, by path.
pub fn changes(engine: &Arc<Engine>, container: &Container) -> Result<BTreeMap<PathBuf, Change>> {
    let below = engine.views.readable(&container.below()?)?;
    let own = Root::open(&container.dir().join("fs"))?.with_ownership(engine.ownership);
    let (read, write) = io::pipe().map_err(|e| Error::io("connect with", container.dir(), e))?;
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut write = BufWriter::new(write);
            diff(&own, Some(&below), &mut write, &mut DiffOptions::default())
        });
        let found = collect(TarReader::new(read), &own, &below);
        match writer.join() {
            // That nobody read to the end has a reason of its own.
            Ok(Err(e)) if e.io_kind() != Some(io::ErrorKind::BrokenPipe) => Err(e.into()),
            _ => found,
        }
    })
}

fn collect(mut layer: TarReader<impl io::Read>, own: &Root, below: &Root) -> Result<BTreeMap<PathBuf, Change>> {
    let mut found = BTreeMap::new();
    while let Some(entry) = layer.next_entry()? {
        let path = Path::new(OsStr::from_bytes(&entry.path));
        let (dir, name) = (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default().as_bytes());
        match name.strip_prefix(b".wh.") {
            Some(b".wh..opq") => {
                for hidden in below.read_dir(dir)? {
                    let path = dir.join(hidden.name);
                    if !own.exists(&path)? {
                        found.insert(path, Change::Deleted);
                    }
                }
            }
            Some(hidden) => _ = found.insert(dir.join(OsStr::from_bytes(hidden)), Change::Deleted),
            None if below.exists(path)? => _ = found.insert(path.components().collect(), Change::Changed),
            None if MOUNT_POINTS.iter().any(|point| path.starts_with(point)) => {}
            None => _ = found.insert(path.components().collect(), Change::Added),
        }
    }
    // The parent of mount points, where nothing else changed.
    let etc = Path::new("etc");
    if !found.keys().any(|path| path != etc && path.starts_with(etc)) {
        found.remove(etc);
    }
    Ok(found)
}
