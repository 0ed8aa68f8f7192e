//! Decides where each mount of a request goes and which mount points have to be made in the root for it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use kiln_rootfs::{FileKind, Root};
use rustix::fs::FileType;
use rustix::mount::OpenTreeFlags;

use crate::error::{Error, Result};
use crate::request::{FdList, MountRequest, RequestSource};
use crate::spec::{Mount, MountSource, ProcessSpec};
use crate::stubs::{Stubs, mount_point, wrong_kind};

/// Mounted in every container, in front of all others.
const STANDARD: [&str; 3] = ["/proc", "/dev", "/sys"];

/// A place where something is mounted: as asked for, and without links.
struct Placed {
    asked: PathBuf,
    real: PathBuf,
}

struct Wanted {
    target: PathBuf,
    readonly: bool,
    source: RequestSource,
}

/// Takes the mounts out of `spec`; makes missing mount points.
pub fn plan(spec: &mut ProcessSpec, stubs: &mut Stubs, fds: &mut FdList) -> Result<Vec<MountRequest>> {
    let mut placed = Vec::new();
    for path in STANDARD {
        let path = PathBuf::from(path);
        let stat = stubs.root().try_stat(&path, false).map_err(|e| mount_point(&path, e))?;
        if stat.is_some_and(|stat| stat.kind != FileKind::Dir) {
            return Err(wrong_kind(&path, io::ErrorKind::NotADirectory));
        }
        stubs.ensure(&path, true)?;
        placed.push(Placed { asked: path.clone(), real: path });
    }
    let mut wanted = etc_files(spec);
    for mount in std::mem::take(&mut spec.mounts) {
        wanted.push(take(mount, fds)?);
    }
    // Parents first. Stable: of two mounts at one place the later one wins.
    wanted.sort_by_key(|w| w.target.components().count());
    let mut requests = Vec::with_capacity(wanted.len());
    for Wanted { target, readonly, source } in wanted {
        let dir = match &source {
            RequestSource::Mount { dir, .. } => *dir,
            RequestSource::Tmpfs { .. } => true,
            RequestSource::Content(_) => false,
        };
        let real = place(&target, dir, &placed, stubs)?;
        placed.push(Placed { asked: target, real: real.clone() });
        requests.push(MountRequest { target: real, readonly, source });
    }
    Ok(requests)
}

fn place(target: &Path, dir: bool, placed: &[Placed], stubs: &mut Stubs) -> Result<PathBuf> {
    // The innermost mount that the target is in, if any: then the container side finds or makes it.
    let inside = |path: &Path, which: fn(&Placed) -> &Path| {
        let over = placed.iter().filter(|p| path.starts_with(which(p)));
        over.max_by_key(|p| which(p).components().count()).map(|p| {
            let rest = path.strip_prefix(which(p)).unwrap_or(Path::new(""));
            if rest.as_os_str().is_empty() { p.real.clone() } else { p.real.join(rest) }
        })
    };
    if let Some(real) = inside(target, |p| &p.asked) {
        return Ok(real);
    }
    let resolved = stubs.root().resolve(target).map_err(|e| mount_point(target, e))?;
    let real = Path::new("/").join(resolved);
    if real == Path::new("/") {
        return Err(Error::Invalid(format!("a mount on {} would cover the whole root", target.display())));
    }
    if let Some(real) = inside(&real, |p| &p.real) {
        return Ok(real);
    }
    stubs.ensure(&real, dir)?;
    Ok(real)
}

fn etc_files(spec: &mut ProcessSpec) -> Vec<Wanted> {
    let readonly = !spec.writable_etc;
    let hostname = format!("{}\n", spec.hostname).into_bytes();
    let files = [
        ("/etc/hosts", std::mem::take(&mut spec.hosts)),
        ("/etc/hostname", hostname),
        ("/etc/resolv.conf", std::mem::take(&mut spec.resolv_conf)),
    ];
    let wanted =
        |(path, content)| Wanted { target: PathBuf::from(path), readonly, source: RequestSource::Content(content) };
    files.into_iter().filter(|(_, content)| !content.is_empty()).map(wanted).collect()
}

fn take(mount: Mount, fds: &mut FdList) -> Result<Wanted> {
    let target = clean(&mount.target)?;
    let source = match mount.source {
        MountSource::Tmpfs { size, mode } => RequestSource::Tmpfs { size, mode: mode & 0o7777 },
        MountSource::Fd(fd) => {
            let dir = is_dir(&fd, &target)?;
            let fd = detach(fd).map_err(|source| Error::MountPoint { path: target.clone(), source })?;
            RequestSource::Mount { fd: fds.push(fd), dir }
        }
        MountSource::OverlayFd(fd) => RequestSource::Mount { dir: is_dir(&fd, &target)?, fd: fds.push(fd) },
    };
    Ok(Wanted { target, readonly: mount.readonly, source })
}

fn is_dir(fd: &OwnedFd, target: &Path) -> Result<bool> {
    let stat = rustix::fs::fstat(fd).map_err(|e| Error::MountPoint { path: target.to_owned(), source: e.into() })?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// An absolute path without `.` and `..`.
fn clean(path: &Path) -> Result<PathBuf> {
    if !path.is_absolute() {
        return Err(Error::Invalid(format!("the mount target {} is not absolute", path.display())));
    }
    let mut clean = VecDeque::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push_back(name),
            Component::ParentDir => drop(clean.pop_back()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    if clean.is_empty() {
        return Err(Error::Invalid("a mount on / would cover the whole root".to_owned()));
    }
    Ok(Path::new("/").join(clean.into_iter().collect::<PathBuf>()))
}

/// A detached mount of what `fd` is: the container's namespace can take only such.
pub fn detach(fd: OwnedFd) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    match rustix::mount::open_tree(fd.as_fd(), "", flags) {
        // In a user namespace a tree with mounts below can only be taken whole.
        Err(rustix::io::Errno::INVAL) => {
            match rustix::mount::open_tree(fd.as_fd(), "", flags | OpenTreeFlags::AT_RECURSIVE) {
                // It is detached already (before 6.15 such cannot be copied).
                Err(rustix::io::Errno::INVAL) => Ok(fd),
                copy => Ok(copy?),
            }
        }
        copy => Ok(copy?),
    }
}

/// The root of a container as a detached mount, and as something in which mount points can be made.
pub fn root(fd: OwnedFd) -> Result<(OwnedFd, Root)> {
    let failed = |source| Error::MountPoint { path: PathBuf::from("/"), source };
    let stat = rustix::fs::fstat(&fd).map_err(|e| failed(e.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Err(failed(io::ErrorKind::NotADirectory.into()));
    }
    let kept = fd.try_clone().map_err(failed)?;
    Ok((detach(fd).map_err(failed)?, Root::from_fd(kept)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_cleaned() {
        assert_eq!(clean(Path::new("/a/./b/../c//d")).unwrap(), Path::new("/a/c/d"));
        assert_eq!(clean(Path::new("/../../etc")).unwrap(), Path::new("/etc"));
        for bad in ["/", "/..", "a", "", "/a/.."] {
            assert!(clean(Path::new(bad)).is_err(), "{bad}");
        }
    }
}
