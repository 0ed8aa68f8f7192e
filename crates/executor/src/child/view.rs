//! What a container sees: its root, /proc, /dev, /sys and the mounts of the request, as with Docker's defaults.
//!
//! Order matters for safety: /proc, /dev and /sys are fresh and masked before anything of the request is mounted, and
//! the sources of masks are nodes of our own new /dev, which no other process can reach yet (CVE-2025-31133).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MoveMountFlags, UnmountFlags};

use super::mounts::{attach, copy_of, create_file, kind, make_target, new_fs, open_at, open_exactly, unlink};
use crate::error::StartError;
use crate::request::{Container, FdTable, MountRequest, Request, RequestSource};
use crate::spec::{Network, Security};
use crate::sys::{self, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY};

/// Files and directories of /proc that tell about, or act on, the whole machine. Docker's list.
const MASKED_PROC: &[&str] = &[
    "acpi",
    "asound",
    "interrupts",
    "kcore",
    "keys",
    "latency_stats",
    "sched_debug",
    "scsi",
    "timer_list",
    "timer_stats",
];
/// Places in /proc that can be read but not written. Docker's list.
const READONLY_PROC: &[&str] = &["bus", "fs", "irq", "sys", "sysrq-trigger"];
/// Directories of /sys that are hidden. Docker's list, without the thermal counters of single CPUs.
const MASKED_SYS: &[&str] = &["firmware", "devices/virtual/powercap"];

/// Device nodes: name, major, minor.
const NODES: &[(&str, u32, u32)] =
    &[("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
/// Links in /dev.
const LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
    ("core", "/proc/kcore"),
];

const NOSUID: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID;
const NODEV: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NODEV;
const NOEXEC: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOEXEC;
const RDONLY: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY;

/// Builds the view and makes it this process's root.
pub fn build(request: &Request, container: &Container, fds: &FdTable, own_cgroup: bool) -> Result<(), StartError> {
    let root = fds.get(container.root).map_err(|e| StartError::setup("read the request")(e.into()))?;
    let at = Path::new("/");
    sys::make_mounts_private().map_err(StartError::mount(at, "make the mounts private"))?;
    // Over our own "/": needs no directory anywhere, and pivot_root below swaps the two.
    rustix::mount::move_mount(root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|e| StartError::mount(at, "attach the root")(e.into()))?;
    let readonly = container.readonly.then(|| readonly_copy(root)).transpose();
    let readonly = readonly.map_err(StartError::mount(at, "make it read-only"))?;
    let root = readonly.as_ref().map_or(root, AsFd::as_fd);
    let mut view =
        View { root, masked: request.security == Security::Sandbox, userns: request.userns, empty: None, null: None };
    let dev = view.dev(container)?;
    view.proc()?;
    view.sys(container.network, own_cgroup)?;
    for mount in &container.mounts {
        view.mount(mount, fds, dev.as_fd())?;
    }
    pivot(root).map_err(StartError::mount(at, "change the root"))
}

/// A read-only mount over the root. The root's own mount stays writable, as kiln removes mount points through it.
fn readonly_copy(root: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let copy = copy_of(root, false)?;
    sys::mount_setattr(copy.as_fd(), MOUNT_ATTR_RDONLY, false)?;
    attach(copy.as_fd(), root)?;
    Ok(copy)
}

fn pivot(root: BorrowedFd<'_>) -> io::Result<()> {
    rustix::process::fchdir(root)?;
    // The old root lands on top of the new one at the same place, and goes away whole.
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    Ok(rustix::process::chdir("/")?)
}

struct View<'a> {
    root: BorrowedFd<'a>,
    masked: bool,
    userns: bool,
    /// An empty read-only directory that is mounted somewhere: the source of further masks.
    empty: Option<OwnedFd>,
    /// Our /dev/null.
    null: Option<OwnedFd>,
}

impl View<'_> {
    /// Attaches at a real directory of the root: a link there would let an image choose where /proc is
    /// (CVE-2023-27561).
    fn attach_real(&self, mount: BorrowedFd<'_>, name: &str) -> Result<(), StartError> {
        let path = Path::new("/").join(name);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let target = open_at(self.root, Path::new(name), flags, resolve)
            .map_err(|e| StartError::mount(&path, "open the directory")(e.into()))?;
        attach(mount, target.as_fd()).map_err(StartError::mount(&path, "attach"))
    }

    fn dev(&mut self, container: &Container) -> Result<OwnedFd, StartError> {
        let at = Path::new("/dev");
        let dev =
            new_fs("tmpfs", &[("mode", "755"), ("size", "65536k")], NOSUID).map_err(StartError::mount(at, "create"))?;
        self.attach_real(dev.as_fd(), "dev")?;
        for (name, major, minor) in NODES {
            self.node(dev.as_fd(), name, (*major, *minor))
                .map_err(StartError::mount(&at.join(name), "make the device"))?;
        }
        for (name, target) in LINKS {
            rustix::fs::symlinkat(*target, &dev, *name)
                .map_err(|e| StartError::mount(&at.join(name), "make the link")(e.into()))?;
        }
        let null = open_exactly(dev.as_fd(), "null");
        self.null = Some(null.map_err(|e| StartError::mount(&at.join("null"), "open")(e.into()))?);
        let shm = format!("{}", container.shm_size);
        let shm = new_fs("tmpfs", &[("mode", "1777"), ("size", &shm)], NOSUID | NODEV | NOEXEC);
        self.in_dev(dev.as_fd(), "shm", shm)?;
        let options = [("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")];
        // Group 5 (tty) may not be mapped.
        let pts =
            new_fs("devpts", &options, NOSUID | NOEXEC).or_else(|_| new_fs("devpts", &options[..3], NOSUID | NOEXEC));
        self.in_dev(dev.as_fd(), "pts", pts)?;
        self.in_dev(dev.as_fd(), "mqueue", new_fs("mqueue", &[], NOSUID | NODEV | NOEXEC))?;
        Ok(dev)
    }

    fn in_dev(&self, dev: BorrowedFd<'_>, name: &str, mount: io::Result<OwnedFd>) -> Result<(), StartError> {
        let path = Path::new("/dev").join(name);
        let mount = mount.map_err(StartError::mount(&path, "create"))?;
        let made = rustix::fs::mkdirat(dev, name, Mode::from_raw_mode(0o755)).and_then(|()| open_exactly(dev, name));
        let target = made.map_err(|e| StartError::mount(&path, "make the directory")(e.into()))?;
        attach(mount.as_fd(), target.as_fd()).map_err(StartError::mount(&path, "attach"))
    }

    /// A device: made, or bound from the machine's own where making one is not allowed.
    fn node(&self, dev: BorrowedFd<'_>, name: &str, (major, minor): (u32, u32)) -> io::Result<()> {
        let device = rustix::fs::makedev(major, minor);
        if !self.userns {
            let mode = Mode::from_raw_mode(0o666);
            match rustix::fs::mknodat(dev, name, FileType::CharacterDevice, mode, device) {
                Err(Errno::PERM) => {}
                done => return Ok(done?),
            }
        }
        let path = format!("/dev/{name}");
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let source = rustix::fs::open(path, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&source)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice || stat.st_rdev != device {
            return Err(Errno::NODEV.into());
        }
        create_file(dev, name, 0o666)?;
        let target = open_exactly(dev, name)?;
        attach(copy_of(source.as_fd(), false)?.as_fd(), target.as_fd())
    }

    fn proc(&mut self) -> Result<(), StartError> {
        let at = Path::new("/proc");
        let proc = new_fs("proc", &[], NOSUID | NODEV | NOEXEC).or_else(|error| {
            // The kernel refuses a new one where ours is partly hidden (inside another container): show that.
            if self.userns { host_copy("/proc") } else { Err(error) }
        });
        let proc = proc.map_err(StartError::mount(at, "create"))?;
        self.attach_real(proc.as_fd(), "proc")?;
        if !self.masked {
            return Ok(());
        }
        for name in READONLY_PROC {
            self.readonly(proc.as_fd(), name).map_err(StartError::mount(&at.join(name), "make it read-only"))?;
        }
        for name in MASKED_PROC {
            self.mask(proc.as_fd(), name).map_err(StartError::mount(&at.join(name), "mask"))?;
        }
        Ok(())
    }

    fn sys(&mut self, network: Network, own_cgroup: bool) -> Result<(), StartError> {
        let at = Path::new("/sys");
        let attrs = if self.masked { NOSUID | NODEV | NOEXEC | RDONLY } else { NOSUID | NODEV | NOEXEC };
        // sysfs shows a network: only who owns the network's user namespace may mount it.
        let fresh =
            if self.userns && network == Network::Host { Err(Errno::PERM.into()) } else { new_fs("sysfs", &[], attrs) };
        let sys = match fresh {
            Ok(sys) => sys,
            Err(_) => match host_sys(self.masked) {
                Ok(sys) => sys,
                // A machine without /sys: the container has none either.
                Err(_) => return Ok(()),
            },
        };
        self.attach_real(sys.as_fd(), "sys")?;
        let cgroup = at.join("fs/cgroup");
        if let Ok(target) = open_exactly(sys.as_fd(), "fs/cgroup") {
            let mount = if own_cgroup {
                new_fs("cgroup2", &[], attrs)
            } else {
                // Of a copied /sys this hides the machine's groups (CVE-2023-25809).
                new_fs("tmpfs", &[("mode", "755"), ("size", "4k")], NOSUID | NODEV | NOEXEC | RDONLY)
            };
            if let Ok(mount) = mount {
                attach(mount.as_fd(), target.as_fd()).map_err(StartError::mount(&cgroup, "attach"))?;
            }
        }
        if self.masked {
            for name in MASKED_SYS {
                self.mask(sys.as_fd(), name).map_err(StartError::mount(&at.join(name), "mask"))?;
            }
        }
        Ok(())
    }

    /// Binds a place onto itself, read-only.
    fn readonly(&self, dir: BorrowedFd<'_>, name: &str) -> io::Result<()> {
        let target = match open_exactly(dir, name) {
            Err(Errno::NOENT) => return Ok(()),
            target => target?,
        };
        let copy = copy_of(target.as_fd(), true)?;
        let attrs = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
        sys::mount_setattr(copy.as_fd(), attrs, true)?;
        attach(copy.as_fd(), target.as_fd())
    }

    /// Hides a file behind our /dev/null, a directory behind an empty one.
    fn mask(&mut self, dir: BorrowedFd<'_>, name: &str) -> io::Result<()> {
        let target = match open_exactly(dir, name) {
            Err(Errno::NOENT) => return Ok(()),
            target => target?,
        };
        if kind(target.as_fd())? != FileType::Directory {
            let null = self.null.as_ref().ok_or(Errno::NOENT)?;
            let stat = rustix::fs::fstat(null)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice
                || stat.st_rdev != rustix::fs::makedev(1, 3)
            {
                return Err(Errno::NODEV.into());
            }
            return attach(copy_of(null.as_fd(), false)?.as_fd(), target.as_fd());
        }
        let mount = match &self.empty {
            Some(empty) => copy_of(empty.as_fd(), false)?,
            None => new_fs("tmpfs", &[("size", "4k"), ("mode", "755")], NOSUID | NODEV | NOEXEC | RDONLY)?,
        };
        attach(mount.as_fd(), target.as_fd())?;
        self.empty.get_or_insert(mount);
        Ok(())
    }

    /// One mount of the request.
    fn mount(&self, mount: &MountRequest, fds: &FdTable, dev: BorrowedFd<'_>) -> Result<(), StartError> {
        let path = &mount.target;
        let (dir, optional) = match &mount.source {
            RequestSource::Mount { dir, .. } => (*dir, false),
            RequestSource::Tmpfs { .. } => (true, false),
            // Below somebody's read-only /etc there may be no place for it.
            RequestSource::Content(_) => (false, true),
        };
        let target = match make_target(self.root, path, dir) {
            Ok(target) => target,
            Err(Errno::ROFS | Errno::ACCESS | Errno::PERM) if optional => return Ok(()),
            Err(e) => return Err(StartError::mount(path, "open or make the mount point")(e.into())),
        };
        let is_dir = kind(target.as_fd()).is_ok_and(|kind| kind == FileType::Directory);
        if is_dir != dir {
            let what = if dir { "it is not a directory" } else { "it is a directory" };
            let errno = if dir { Errno::NOTDIR } else { Errno::ISDIR };
            return Err(StartError::mount(path, what)(errno.into()));
        }
        let made;
        let source = match &mount.source {
            RequestSource::Mount { fd, .. } => {
                fds.get(*fd).map_err(|e| StartError::mount(path, "read the request")(e.into()))?
            }
            RequestSource::Tmpfs { size, mode } => {
                made = tmpfs(*size, *mode).map_err(StartError::mount(path, "create"))?;
                made.as_fd()
            }
            RequestSource::Content(content) => {
                made = content_file(dev, content).map_err(StartError::mount(path, "write the file"))?;
                made.as_fd()
            }
        };
        if mount.readonly {
            sys::mount_setattr(source, MOUNT_ATTR_RDONLY, true)
                .map_err(StartError::mount(path, "make it read-only"))?;
        }
        let attached = attach(source, target.as_fd()).map_err(StartError::mount(path, "attach"));
        if matches!(mount.source, RequestSource::Content(_)) {
            // Only now: what has no name cannot be attached.
            unlink(dev, CONTENT).map_err(StartError::mount(path, "remove its other name"))?;
        }
        attached
    }
}

fn tmpfs(size: Option<u64>, mode: u32) -> io::Result<OwnedFd> {
    let mode = format!("{mode:o}");
    match size {
        Some(size) => new_fs("tmpfs", &[("mode", &mode), ("size", &size.to_string())], NOSUID | NODEV),
        None => new_fs("tmpfs", &[("mode", &mode)], NOSUID | NODEV),
    }
}

/// Name in our /dev of a file that will exist only as a mount.
const CONTENT: &str = ".kiln";

/// A detached mount of a new file. The caller removes the file's name once that is attached.
fn content_file(dev: BorrowedFd<'_>, content: &[u8]) -> io::Result<OwnedFd> {
    let file = create_file(dev, CONTENT, 0o644)?;
    write_all(&file, content)?;
    copy_of(file.as_fd(), false)
}

fn write_all(file: &OwnedFd, mut content: &[u8]) -> io::Result<()> {
    while !content.is_empty() {
        let n = rustix::io::write(file, content)?;
        content = &content[n..];
    }
    Ok(())
}

/// The machine's own tree, with all that is mounted in it (the kernel does not let a user namespace leave that out).
fn host_copy(path: &str) -> io::Result<OwnedFd> {
    let fd = rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    copy_of(fd.as_fd(), true)
}

fn host_sys(readonly: bool) -> io::Result<OwnedFd> {
    let sys = host_copy("/sys")?;
    let attrs = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
    sys::mount_setattr(sys.as_fd(), if readonly { attrs | MOUNT_ATTR_RDONLY } else { attrs }, true)?;
    Ok(sys)
}
