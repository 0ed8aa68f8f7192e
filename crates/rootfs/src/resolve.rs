//! Opening paths inside a root: `openat2(RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)`, or a walk by hand.
//!
//! Invariant of the walk (used where the kernel has no `openat2`, for canonical paths, and for paths longer than
//! `PATH_MAX`): each component is opened with `O_NOFOLLOW` relative to the directory before it, links are read and
//! expanded as text, and `..` never asks the kernel but goes down again from the root. Whatever is renamed meanwhile, the
//! walk cannot leave the root.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::{Errno, Result};

/// As the kernel's limit on links in one path.
const MAX_LINKS: u32 = 40;
/// `RESOLVE_IN_ROOT` and `RESOLVE_BENEATH` answer EAGAIN when a rename races with `..`; then it is tried again.
const MAX_RETRIES: u32 = 64;

static NO_OPENAT2: AtomicBool = AtomicBool::new(false);

/// Opens a path that exists. `flags` are those of a directory or `O_PATH`; the last component is followed unless they
/// have `O_NOFOLLOW`.
pub(crate) fn open_in_root(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match try_openat2(root, path, flags, resolve) {
        Some(Err(Errno::NAMETOOLONG)) | None => {}
        Some(done) => return done,
    }
    let found = walk(root, path, !flags.contains(OFlags::NOFOLLOW), false)?;
    reopen(found.fd.ok_or(Errno::NOENT)?, flags)
}

/// Opens `path` below `dir`, where no component may be a link and none `..`.
pub(crate) fn open_beneath(dir: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match try_openat2(dir, path, flags, resolve) {
        Some(Err(Errno::NAMETOOLONG)) | None => {}
        Some(done) => return done,
    }
    let mut names = Vec::new();
    for name in components(path) {
        match name.as_bytes() {
            b"." => {}
            b".." => return Err(Errno::XDEV),
            _ => names.push(name),
        }
    }
    reopen(descend(dir, &names)?, flags)
}

/// `None`: the kernel (or a seccomp filter around us) has no `openat2`.
fn try_openat2(dir: BorrowedFd<'_>, path: &Path, flags: OFlags, resolve: ResolveFlags) -> Option<Result<OwnedFd>> {
    if NO_OPENAT2.load(Ordering::Relaxed) {
        return None;
    }
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    for _ in 0..MAX_RETRIES {
        match rustix::fs::openat2(dir, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(Errno::NOSYS) => {
                NO_OPENAT2.store(true, Ordering::Relaxed);
                return None;
            }
            done => return Some(done),
        }
    }
    None // a storm of renames: the walk does not mind them
}

/// Where a walk ended.
pub(crate) struct Walked {
    /// The file, if it exists.
    pub fd: Option<OwnedFd>,
    /// The path without links and `..`, relative to the root; empty for the root.
    pub path: PathBuf,
}

/// Resolves by hand. With `missing`, the part that does not exist is taken as it is written.
pub(crate) fn walk(root: BorrowedFd<'_>, path: &Path, follow: bool, missing: bool) -> Result<Walked> {
    let mut names: Vec<OsString> = Vec::new();
    let mut at = Some(dup_root(root)?);
    let mut todo: VecDeque<OsString> = components(path).map(OsStr::to_owned).collect();
    let mut must_be_dir = path.as_os_str().as_bytes().ends_with(b"/");
    let mut links = 0;
    while let Some(name) = todo.pop_front() {
        if name == "." {
            must_be_dir |= todo.is_empty();
            continue;
        }
        if name == ".." {
            names.pop();
            must_be_dir |= todo.is_empty();
            at = match descend(root, &names) {
                Err(Errno::NOENT) if missing => None,
                found => Some(found?),
            };
            continue;
        }
        let Some(dir) = &at else {
            names.push(name);
            continue;
        };
        let fd = match open_path(dir, &name) {
            Err(Errno::NOENT) if missing => {
                names.push(name);
                at = None;
                continue;
            }
            fd => fd?,
        };
        let last = todo.is_empty();
        if kind_of(&fd)? == FileType::Symlink && (!last || follow || must_be_dir) {
            links += 1;
            if links > MAX_LINKS {
                return Err(Errno::LOOP);
            }
            let target = PathBuf::from(OsString::from_vec(rustix::fs::readlinkat(&fd, "", Vec::new())?.into_bytes()));
            must_be_dir |= last && target.as_os_str().as_bytes().ends_with(b"/");
            if target.is_absolute() {
                names.clear();
                at = Some(dup_root(root)?);
            }
            for part in components(&target).map(OsStr::to_owned).collect::<Vec<_>>().into_iter().rev() {
                todo.push_front(part);
            }
            continue;
        }
        names.push(name);
        at = Some(fd);
    }
    if must_be_dir
        && let Some(fd) = &at
        && kind_of(fd)? != FileType::Directory
    {
        return Err(Errno::NOTDIR);
    }
    Ok(Walked { fd: at, path: names.iter().collect() })
}

/// The components as written, `.` and `..` included (`Path::components` would drop some of the former).
pub(crate) fn components(path: &Path) -> impl Iterator<Item = &OsStr> {
    path.as_os_str().as_bytes().split(|b| *b == b'/').filter(|c| !c.is_empty()).map(OsStr::from_bytes)
}

fn descend<N: AsRef<OsStr>>(root: BorrowedFd<'_>, names: &[N]) -> Result<OwnedFd> {
    let mut at = dup_root(root)?;
    for name in names {
        at = open_path(&at, name.as_ref())?;
        if kind_of(&at)? == FileType::Symlink {
            return Err(Errno::LOOP);
        }
    }
    Ok(at)
}

fn dup_root(root: BorrowedFd<'_>) -> Result<OwnedFd> {
    rustix::fs::openat(root, ".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn open_path(dir: impl AsFd, name: &OsStr) -> Result<OwnedFd> {
    rustix::fs::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn kind_of(fd: impl AsFd) -> Result<FileType> {
    let stat = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::TYPE)?;
    Ok(FileType::from_raw_mode(u32::from(stat.stx_mode)))
}

/// An `O_PATH` descriptor as what `flags` ask for.
fn reopen(fd: OwnedFd, flags: OFlags) -> Result<OwnedFd> {
    if flags.contains(OFlags::PATH) {
        if flags.contains(OFlags::DIRECTORY) && kind_of(&fd)? != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        return Ok(fd);
    }
    if !flags.contains(OFlags::DIRECTORY) {
        return Err(Errno::INVAL);
    }
    rustix::fs::openat(&fd, ".", flags | OFlags::CLOEXEC, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// The walk and openat2 agree, on links of every kind.
    #[test]
    fn walk_agrees_with_openat2() {
        let tmp = tempfile::tempdir().unwrap();
        let p = tmp.path();
        std::fs::create_dir_all(p.join("a/b/c")).unwrap();
        std::fs::write(p.join("a/b/file"), "x").unwrap();
        symlink("/a/b", p.join("abs")).unwrap();
        symlink("../../../../a", p.join("a/b/up")).unwrap();
        symlink("up/b/file", p.join("a/b/chain")).unwrap();
        symlink("loop", p.join("loop")).unwrap();
        symlink("nowhere", p.join("dangling")).unwrap();
        symlink("/proc/self/root", p.join("magic")).unwrap();
        let root = rustix::fs::open(p, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let id = |fd: &OwnedFd| {
            let s = rustix::fs::fstat(fd).unwrap();
            (s.st_dev, s.st_ino)
        };
        for path in [
            "",
            "/",
            ".",
            "..",
            "../..",
            "a",
            "/a/",
            "a/b/../b/c",
            "abs",
            "abs/c",
            "abs/..",
            "a/b/up",
            "a/b/up/b/chain",
            "a/b/chain",
            "a/b/chain/",
            "loop",
            "loop/x",
            "dangling",
            "missing/..",
            "magic/etc",
            "abs/file/",
            "abs/file/.",
            "../../../../../../etc/passwd",
            "a/b/file/x",
            "abs/",
            "abs/.",
        ] {
            for flags in [OFlags::PATH, OFlags::PATH | OFlags::NOFOLLOW] {
                let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
                let kernel = rustix::fs::openat2(
                    &root,
                    if path.is_empty() { "." } else { path },
                    flags | OFlags::CLOEXEC,
                    Mode::empty(),
                    resolve,
                );
                if kernel.as_ref().err() == Some(&Errno::NOSYS) {
                    eprintln!("SKIPPED: no openat2 here");
                    return;
                }
                let walked = walk(root.as_fd(), Path::new(path), !flags.contains(OFlags::NOFOLLOW), false)
                    .and_then(|w| w.fd.ok_or(Errno::NOENT));
                match (kernel, walked) {
                    (Ok(k), Ok(w)) => assert_eq!(id(&k), id(&w), "{path} {flags:?}"),
                    (Err(k), Err(w)) => assert_eq!(k, w, "{path} {flags:?}"),
                    (k, w) => panic!("{path} {flags:?}: {k:?} {w:?}"),
                }
            }
        }
    }

    /// As on a kernel, or under a seccomp filter, without openat2.
    #[test]
    fn without_openat2_all_is_the_same() {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::write(tmp.path().join("outside"), "secret").unwrap();
        let p = tmp.path().join("root");
        std::fs::create_dir_all(p.join("a/b")).unwrap();
        std::fs::write(p.join("a/b/f"), "F").unwrap();
        symlink("/a/b", p.join("abs")).unwrap();
        symlink("../../../outside", p.join("a/out")).unwrap();
        NO_OPENAT2.store(true, Ordering::Relaxed);
        let root = crate::Root::open(&p).unwrap();
        assert_eq!(root.read_small(Path::new("abs/../b/f"), 9).unwrap().unwrap(), b"F");
        assert_eq!(root.read_small(Path::new("a/out"), 9).unwrap(), None);
        assert!(root.open_dir(Path::new("abs/f")).is_err() && root.open_dir(Path::new("a/b/f/")).is_err());
        assert_eq!(root.read_dir(Path::new("abs")).unwrap().len(), 1);
        assert!(root.open_dir_nofollow(Path::new("abs")).is_err() && root.open_dir_nofollow(Path::new("/a/b")).is_ok());
        assert_eq!(root.create_dir_all(Path::new("abs/c/d"), 0o755, None).unwrap().len(), 2);
        root.write_file(Path::new("abs/c/x"), b"x", 0o600, None).unwrap();
        root.remove_all(Path::new("a")).unwrap();
        assert!(!root.exists(Path::new("abs/f")).unwrap() && tmp.path().join("outside").exists());
        NO_OPENAT2.store(false, Ordering::Relaxed);
    }

    #[test]
    fn beneath_refuses_links_and_dotdot() {
        let tmp = tempfile::tempdir().unwrap();
        let p = tmp.path();
        std::fs::create_dir_all(p.join("a/b")).unwrap();
        symlink("a", p.join("l")).unwrap();
        let root = rustix::fs::open(p, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        assert!(open_beneath(root.as_fd(), Path::new("a/b"), OFlags::DIRECTORY).is_ok());
        for bad in ["l", "l/b", "../x", "a/../../x", "/a"] {
            assert!(open_beneath(root.as_fd(), Path::new(bad), OFlags::DIRECTORY).is_err(), "{bad}");
        }
    }
}
