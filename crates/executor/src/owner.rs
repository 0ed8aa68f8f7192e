//! Keeps owners that the kernel cannot: what `chown` asked for is written to `user.kiln.stat` of the file, from where
//! layers, copies and exports take it.
//!
//! The file is found as the calling process sees it (its root, working directory and descriptors), but opened with
//! `openat2` confined to that root and without magic links, so that a race with the process can only choose another of its own
//! files. Nothing here waits: files are opened with `O_PATH` only.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use kiln_rootfs::xattr::{KILN_STAT, Recorded};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, XattrFlags};
use rustix::io::Errno;

use crate::child::open_at;

/// One call that changes an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chown {
    file: Named,
    uid: u32,
    gid: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    Descriptor(i32),
    Path { dir: i32, address: u64, follow: bool, may_be_empty: bool },
}

/// What to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Let the kernel do it.
    Kernel,
    /// It worked: the owner is recorded.
    Recorded,
    /// It did not, but say so: nothing can be recorded on this kind of file.
    Pretend,
    /// It failed.
    Error(i32),
}

const KEEP: u32 = u32::MAX;

impl Chown {
    /// From a system call's name and arguments.
    pub fn from_call(name: &str, args: [u64; 6]) -> Option<Chown> {
        let path = |dir: i32, address: u64, follow: bool, may_be_empty: bool| Named::Path {
            dir,
            address,
            follow,
            may_be_empty,
        };
        let (file, first) = match name {
            "chown" | "chown32" => (path(libc::AT_FDCWD, args[0], true, false), 1),
            "lchown" | "lchown32" => (path(libc::AT_FDCWD, args[0], false, false), 1),
            "fchown" | "fchown32" => (Named::Descriptor(args[0] as i32), 1),
            "fchownat" => {
                let flags = args[4] as i32;
                let follow = flags & libc::AT_SYMLINK_NOFOLLOW == 0;
                (path(args[0] as i32, args[1], follow, flags & libc::AT_EMPTY_PATH != 0), 2)
            }
            _ => return None,
        };
        Some(Chown { file, uid: args[first] as u32, gid: args[first + 1] as u32 })
    }

    fn only_root(self) -> bool {
        [self.uid, self.gid].iter().all(|id| *id == 0 || *id == KEEP)
    }

    /// Does what can be done. `pid` is the caller, stopped in the call.
    pub fn carry_out(self, pid: i32) -> Answer {
        match self.try_carry_out(pid) {
            Ok(answer) => answer,
            // The kernel says it better: for a file that is not there, for instance.
            Err(_) if self.only_root() => Answer::Kernel,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ROFS | Errno::BADF | Errno::NAMETOOLONG | Errno::FAULT)
                if self.kernel_would_fail(pid) =>
            {
                Answer::Kernel
            }
            Err(Errno::ROFS) => Answer::Error(libc::EROFS),
            Err(_) => Answer::Pretend,
        }
    }

    /// Whether the file cannot even be found: then the kernel's own error is the right one.
    fn kernel_would_fail(self, pid: i32) -> bool {
        matches!(self.open(pid), Err(Errno::NOENT | Errno::NOTDIR | Errno::BADF | Errno::NAMETOOLONG | Errno::FAULT))
    }

    fn try_carry_out(self, pid: i32) -> rustix::io::Result<Answer> {
        let fd = self.open(pid)?;
        let stat = rustix::fs::fstat(&fd)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if !matches!(kind, FileType::RegularFile | FileType::Directory) {
            return Ok(if self.only_root() { Answer::Kernel } else { Answer::Pretend });
        }
        let through = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let recorded = read_record(&through);
        if self.only_root() && recorded.is_none() {
            return Ok(Answer::Kernel);
        }
        let (uid, gid) = recorded.as_ref().map_or((0, 0), |r| (r.uid, r.gid));
        let pick = |asked: u32, old: u32| if asked == KEEP { old } else { asked };
        let (uid, gid) = (pick(self.uid, uid), pick(self.gid, gid));
        // A stand-in for a device keeps its kind; otherwise the mode is the inode's.
        let (mode, rdev) = match recorded {
            Some(Recorded { mode, rdev, .. }) if FileType::from_raw_mode(mode) != kind && mode & !0o7777 != 0 => {
                (mode, rdev)
            }
            _ => (without_set_id(&through, kind, stat.st_mode)?, None),
        };
        let stand_in = mode & !0o7777 != 0 && FileType::from_raw_mode(mode) != kind;
        if (uid, gid) == (0, 0) && !stand_in {
            rustix::fs::removexattr(&through, KILN_STAT)?;
        } else {
            let value = Recorded { uid, gid, mode, rdev }.format();
            rustix::fs::setxattr(&through, KILN_STAT, value.as_bytes(), XattrFlags::empty())?;
        }
        Ok(Answer::Recorded)
    }

    /// The file, as the caller sees it.
    fn open(self, pid: i32) -> rustix::io::Result<OwnedFd> {
        let process = format!("/proc/{pid}");
        let open = |path: String| rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let of_descriptor =
            |fd: i32| open(format!("{process}/fd/{fd}")).map_err(|e| if e == Errno::NOENT { Errno::BADF } else { e });
        let (dir, address, follow, may_be_empty) = match self.file {
            Named::Descriptor(fd) => return of_descriptor(fd),
            Named::Path { dir, address, follow, may_be_empty } => (dir, address, follow, may_be_empty),
        };
        let path = read_path(pid, address)?;
        let base = || if dir == libc::AT_FDCWD { open(format!("{process}/cwd")) } else { of_descriptor(dir) };
        if path.as_os_str().is_empty() {
            return if may_be_empty { base() } else { Err(Errno::NOENT) };
        }
        let flags = if follow { OFlags::PATH } else { OFlags::PATH | OFlags::NOFOLLOW };
        let no_magic = ResolveFlags::NO_MAGICLINKS;
        if path.is_relative() {
            match open_at(base()?.as_fd(), &path, flags, ResolveFlags::BENEATH | no_magic) {
                // Out of the directory, by `..` or an absolute link: again, from the root.
                Err(Errno::XDEV) => {}
                found => return found,
            }
        }
        let from = if dir == libc::AT_FDCWD { format!("{process}/cwd") } else { format!("{process}/fd/{dir}") };
        let absolute = if path.is_absolute() {
            path
        } else {
            let dir = rustix::fs::readlinkat(CWD, from, Vec::new())?;
            Path::new(OsStr::from_bytes(dir.to_bytes())).join(path)
        };
        let root = open(format!("{process}/root"))?;
        let below = absolute.strip_prefix("/").unwrap_or(&absolute);
        let below = if below.as_os_str().is_empty() { Path::new(".") } else { below };
        open_at(root.as_fd(), below, flags, ResolveFlags::IN_ROOT | no_magic)
    }
}

fn read_record(through: &str) -> Option<Recorded> {
    let mut value = [0u8; 128];
    let n = rustix::fs::getxattr(through, KILN_STAT, &mut value).ok()?;
    Recorded::parse(&value[..n])
}

/// The file's mode after a change of owner, which takes set-id bits away from programs as the kernel does.
fn without_set_id(through: &str, kind: FileType, mode: u32) -> rustix::io::Result<u32> {
    let mut clear = 0;
    if kind == FileType::RegularFile {
        clear = mode & libc::S_ISUID;
        if mode & libc::S_IXGRP != 0 {
            clear |= mode & libc::S_ISGID;
        }
    }
    if clear != 0 {
        rustix::fs::chmod(through, Mode::from_raw_mode(mode & 0o7777 & !clear))?;
    }
    Ok(mode & !clear)
}

/// A path in the memory of a process.
fn read_path(pid: i32, address: u64) -> rustix::io::Result<PathBuf> {
    const PAGE: usize = 4096;
    let mut path = Vec::new();
    let mut at = usize::try_from(address).map_err(|_| Errno::FAULT)?;
    while path.len() < PAGE {
        // Up to the end of a page: the next one may not exist.
        let mut chunk = [0u8; PAGE];
        let len = PAGE - at % PAGE;
        let n = read_memory(pid, at, &mut chunk[..len])?;
        if let Some(end) = chunk[..n].iter().position(|b| *b == 0) {
            path.extend_from_slice(&chunk[..end]);
            return Ok(PathBuf::from(OsStr::from_bytes(&path)));
        }
        path.extend_from_slice(&chunk[..n]);
        at = at.checked_add(n).ok_or(Errno::FAULT)?;
    }
    Err(Errno::NAMETOOLONG)
}

fn read_memory(pid: i32, address: usize, into: &mut [u8]) -> rustix::io::Result<usize> {
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: into.len() };
    // SAFETY: the local buffer is valid for writing; the remote address is checked by the kernel.
    let n = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    match usize::try_from(n) {
        Ok(0) => Err(Errno::FAULT),
        Ok(n) => Ok(n),
        Err(_) => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::FAULT)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_understood() {
        let chown = Chown::from_call("fchownat", [5, 0x1000, 7, u64::from(KEEP), 0x100, 0]).unwrap();
        assert_eq!(chown.file, Named::Path { dir: 5, address: 0x1000, follow: false, may_be_empty: false });
        assert_eq!((chown.uid, chown.gid), (7, KEEP));
        assert!(!chown.only_root());
        assert!(Chown::from_call("fchown", [3, 0, u64::from(KEEP), 0, 0, 0]).unwrap().only_root());
        assert_eq!(Chown::from_call("setuid", [0; 6]), None);
    }

    #[test]
    fn paths_are_read_from_memory_and_owners_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, "").unwrap();
        if rustix::fs::setxattr(&file, "user.kiln.test", b"", XattrFlags::empty()).is_err() {
            eprintln!("SKIPPED: no user attributes in the temporary directory");
            return;
        }
        let path = std::ffi::CString::new(file.as_os_str().as_bytes()).unwrap();
        let me = std::process::id() as i32;
        assert_eq!(read_path(me, path.as_ptr() as u64).unwrap(), file);
        assert_eq!(read_path(me, 1), Err(Errno::FAULT));
        let call = |uid: u64, gid: u64| {
            let args = [path.as_ptr() as u64, uid, gid, 0, 0, 0];
            Chown::from_call("chown", args).unwrap().carry_out(me)
        };
        let record = || read_record(file.to_str().unwrap()).map(|r| (r.uid, r.gid));
        rustix::fs::chmod(&file, Mode::from_raw_mode(0o6755)).unwrap();
        assert_eq!(call(42, 43), Answer::Recorded);
        assert_eq!(record(), Some((42, 43)));
        assert_eq!(rustix::fs::stat(&file).unwrap().st_mode & 0o7777, 0o755);
        rustix::fs::chmod(&file, Mode::from_raw_mode(0o640)).unwrap();
        let seen = kiln_rootfs::Root::open(dir.path()).unwrap().with_ownership(kiln_rootfs::Ownership::Recorded);
        let seen = seen.try_stat(Path::new("f"), false).unwrap().unwrap();
        assert_eq!((seen.uid, seen.gid, seen.mode), (42, 43, 0o640), "a later chmod counts");
        assert_eq!(call(u64::from(KEEP), 7), Answer::Recorded);
        assert_eq!(record(), Some((42, 7)));
        assert_eq!(call(0, 0), Answer::Recorded);
        assert_eq!(record(), None);
        assert_eq!(call(0, 0), Answer::Kernel);
        std::fs::remove_file(&file).unwrap();
        assert_eq!(call(42, 42), Answer::Kernel, "which says that there is no such file");
    }
}
