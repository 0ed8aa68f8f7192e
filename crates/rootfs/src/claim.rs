//! Files that a process made while the kernel could not give them its user: they get it afterwards, in `user.kiln.stat`.
//!
//! Overlayfs marks what it copied up from below (`overlay.origin`), so what has no mark, and was not in the upper directory
//! before, is new. Links and the like take no attributes: they stay root's, and are counted.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crate::dir::{self, DirRef};
use crate::error::{Context as _, Result};
use crate::meta::{self, Owner};
use crate::root::Root;
use crate::stat::{FileKind, Ownership, Stat};
use crate::xattr;

/// Of mounts in a user namespace, without which the kernel would know the user.
const ORIGIN: &str = "user.overlay.origin";

/// The inodes in the upper directory of an overlay before a process ran over it.
pub struct Before(HashSet<u64>);

impl Before {
    /// Looks at all that is there.
    pub fn of(upper: &Root) -> Result<Self> {
        let mut inodes = HashSet::new();
        walk(upper, &mut |_, _, stat| {
            inodes.insert(stat.ino);
            Ok(())
        })?;
        Ok(Self(inodes))
    }

    /// Gives what is new to `owner`; in a directory with the set-group-ID bit, to the directory's group. Returns how many
    /// could not be given.
    pub fn claim(&self, upper: &Root, owner: Owner) -> Result<u64> {
        let mut left = 0;
        walk(upper, &mut |dir, name, stat| {
            if self.0.contains(&stat.ino) || stat.is_whiteout() || is_copy(dir, name)? {
                return Ok(());
            }
            if !matches!(stat.kind, FileKind::File | FileKind::Dir) {
                left += 1;
                return Ok(());
            }
            let parent = Stat::of(dir, Ownership::Recorded)?;
            let gid = if parent.mode & 0o2000 == 0 { owner.gid } else { parent.gid };
            meta::record_owner(dir.as_fd(), name, stat, Owner { uid: owner.uid, gid })
        })?;
        Ok(left)
    }
}

fn is_copy(dir: &OwnedFd, name: &OsStr) -> rustix::io::Result<bool> {
    Ok(xattr::get_at(dir, name, OsStr::new(ORIGIN))?.is_some())
}

/// Calls `each` with every name below the root, directories before what is in them.
fn walk(root: &Root, each: &mut impl FnMut(&OwnedFd, &OsStr, &Stat) -> rustix::io::Result<()>) -> Result<()> {
    let top = root.as_fd().try_clone_to_owned().map_err(|e| crate::error::RootfsError::io("open", "/", e))?;
    let mut todo = vec![(OsString::from("/"), DirRef::new(Arc::new(top)))];
    while let Some((shown, dir)) = todo.pop() {
        let fd = Arc::new(dir.open().at("open directory", &shown)?);
        for entry in dir::read_names(&*fd).at("read directory", &shown)? {
            let stat = Stat::at(&*fd, &entry.name, Ownership::Native).at("stat", &entry.name)?;
            each(&fd, &entry.name, &stat).at("record the owner of", &entry.name)?;
            if stat.kind == FileKind::Dir {
                todo.push((entry.name.clone(), dir.child(&fd, &entry.name)));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn new_files_get_the_owner_and_the_group_of_a_set_group_directory() {
        let tmp = tempfile::tempdir().unwrap();
        let file = |name: &str| std::fs::write(tmp.path().join(name), "").unwrap();
        std::fs::create_dir(tmp.path().join("shared")).unwrap();
        rustix::fs::chmod(tmp.path().join("shared"), 0o2775.into()).unwrap();
        let root = Root::open(tmp.path()).unwrap().with_ownership(Ownership::Recorded);
        let set =
            |name: &str, attr: &str, value: &[u8]| xattr::set_at(&root, OsStr::new(name), OsStr::new(attr), value);
        if set("shared", xattr::KILN_STAT, b"3:9:42775").is_err() {
            eprintln!("SKIPPED: no attributes in the temporary directory");
            return;
        }
        let before = Before::of(&root).unwrap();
        std::fs::create_dir(tmp.path().join("new")).unwrap();
        ["a", "shared/b", "new/c", "copied"].iter().for_each(|name| file(name));
        std::os::unix::fs::symlink("a", tmp.path().join("link")).unwrap();
        set("copied", "user.overlay.origin", b"").unwrap();
        // What a copy with attributes makes.
        set("a", xattr::KILN_STAT, b"1:1:100644").unwrap();
        assert_eq!(before.claim(&root, Owner { uid: 7, gid: 8 }).unwrap(), 1);
        let owner = |name: &str, ownership: Ownership| {
            let stat = Stat::of(root.open_path(Path::new(name), false).unwrap(), ownership).unwrap();
            (stat.uid, stat.gid)
        };
        for (name, expected) in
            [("a", (7, 8)), ("new", (7, 8)), ("new/c", (7, 8)), ("shared/b", (7, 9)), ("shared", (3, 9))]
        {
            assert_eq!(owner(name, Ownership::Recorded), expected, "{name}");
        }
        for name in ["copied", "link"] {
            assert_eq!(owner(name, Ownership::Recorded), owner(name, Ownership::Native), "{name}");
        }
    }
}
