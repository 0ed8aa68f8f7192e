//! Time stamps that do not depend on when a base was built.

use std::path::{Path, PathBuf};

use kiln_rootfs::{FileKind, Root};
use rustix::fs::{AtFlags, Timespec, Timestamps};

use crate::error::{Error, Result};

/// Sets the time of every file and directory that is younger than `date` to it.
pub fn clamp_times(root: &Root, date: i64) -> Result<()> {
    let mut todo = vec![PathBuf::new()];
    while let Some(dir) = todo.pop() {
        // A directory that somebody removes or replaces meanwhile is not ours to follow.
        let fd = root.open_dir_nofollow(&dir)?;
        for entry in root.read_dir(&dir)? {
            let path = dir.join(&entry.name);
            let stat = root.stat(&path, false)?;
            if stat.mtime > (date, 0) {
                set(&fd, Path::new(&entry.name), date).map_err(|e| Error::io(&path)(e.into()))?;
            }
            if entry.kind == FileKind::Dir {
                todo.push(path);
            }
        }
    }
    let top = root.stat(Path::new(""), false)?;
    if top.mtime > (date, 0) {
        let fd = root.open_dir(Path::new(""))?;
        set(&fd, Path::new("."), date).map_err(|e| Error::io("/")(e.into()))?;
    }
    Ok(())
}

fn set(dir: &std::os::fd::OwnedFd, name: &Path, date: i64) -> rustix::io::Result<()> {
    let at = Timespec { tv_sec: date, tv_nsec: 0 };
    rustix::fs::utimensat(dir, name, &Timestamps { last_access: at, last_modification: at }, AtFlags::SYMLINK_NOFOLLOW)
}
