//! The kernel calls that neither std nor rustix offers, each as a small typed function.
//!
//! Invariant: this is the only module of the crate with raw `libc` calls besides `child` (which runs
//! between clone and exec) and the terminal ioctls; every function returns `io::Result` with the errno kept.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Mount attribute: read-only.
pub const MOUNT_ATTR_RDONLY: u64 = 0x1;
/// Mount attribute: set-id bits have no effect.
pub const MOUNT_ATTR_NOSUID: u64 = 0x2;
/// Mount attribute: device nodes cannot be opened.
pub const MOUNT_ATTR_NODEV: u64 = 0x4;
/// Mount attribute: nothing can be executed.
pub const MOUNT_ATTR_NOEXEC: u64 = 0x8;

#[repr(C)]
#[derive(Default)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Arguments of clone3(2), as of kernel 5.7.
#[repr(C)]
#[derive(Default)]
pub struct CloneArgs {
    /// CLONE_* flags.
    pub flags: u64,
    /// Address of an int that receives the pidfd.
    pub pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    /// Signal sent to the parent at exit.
    pub exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    /// Directory descriptor of the cgroup v2 to start in (with CLONE_INTO_CGROUP).
    pub cgroup: u64,
}

/// `CLONE_INTO_CGROUP`, which libc does not define for every target.
pub const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Which side of [`clone3`] we are on.
pub enum Forked {
    /// In the new process.
    Child,
    /// In the caller.
    Parent {
        /// Process id of the child, in the caller's pid namespace.
        pid: i32,
        /// Handle on the child.
        pidfd: OwnedFd,
    },
}

pub(crate) fn check(ret: libc::c_long) -> io::Result<libc::c_long> {
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret) }
}

/// clone3(2) with fork semantics (own copy of memory and descriptors) plus namespaces.
///
/// # Safety
/// The calling process must be single-threaded: the child goes on running Rust code, allocator included.
pub unsafe fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Forked> {
    let mut pidfd: RawFd = -1;
    let mut args = CloneArgs {
        flags: flags | libc::CLONE_PIDFD as u64,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if flags & libc::CLONE_PARENT as u64 != 0 {
        args.exit_signal = 0;
    }
    if let Some(dir) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = dir.as_raw_fd() as u64;
    }
    // SAFETY: the structure is valid for the call; no stack is given, so the child runs on a copy of ours.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) })?;
    if pid == 0 {
        return Ok(Forked::Child);
    }
    // SAFETY: on success the kernel stored a descriptor that nobody else owns.
    Ok(Forked::Parent { pid: pid as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })
}

/// mount_setattr(2) on the mount that `fd` is in.
pub fn mount_setattr(fd: BorrowedFd<'_>, set: u64, recursive: bool) -> io::Result<()> {
    let attr = MountAttr { attr_set: set, ..MountAttr::default() };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: empty C string and a valid structure.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    check(ret).map(drop)
}

/// Makes every mount of this namespace private.
pub fn make_mounts_private() -> io::Result<()> {
    let none = std::ptr::null::<libc::c_char>();
    // SAFETY: MS_PRIVATE ignores source, type and data.
    let ret = unsafe { libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, std::ptr::null()) };
    check(ret.into()).map(drop)
}

/// prctl(2) with up to two arguments.
pub fn prctl(option: libc::c_int, arg2: u64, arg3: u64) -> io::Result<i32> {
    // SAFETY: only options that take integers are used through this function.
    check(unsafe { libc::prctl(option, arg2, arg3, 0u64, 0u64) }.into()).map(|v| v as i32)
}

/// unshare(2).
pub fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::unshare(flags) }.into()).map(drop)
}

/// Marks every descriptor from `first` on close-on-exec.
pub fn cloexec_from(first: u32) -> io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: no memory is passed.
    let ret = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOSE_RANGE_CLOEXEC) };
    if ret == 0 {
        return Ok(());
    }
    // Before 5.11: one by one, over what can be open.
    // SAFETY: sysconf takes no memory.
    let max = unsafe { libc::sysconf(libc::_SC_OPEN_MAX) }.clamp(256, 65_536) as i32;
    for fd in first as i32..max {
        // SAFETY: setting a descriptor flag; an EBADF is what we expect for most.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    Ok(())
}

/// An anonymous file.
pub fn memfd(name: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: a valid C string.
    let fd = check(unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) }.into())?;
    // SAFETY: fresh descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// A pidfd for `pid`.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: fresh descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Sends `signal` to the process behind a pidfd.
pub fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is allowed.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, none, 0) }).map(drop)
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// exit(code).
    Code(i32),
    /// Killed by a signal.
    Signal(i32),
}

/// Waits for a child by pidfd; `None` when `no_hang` and it still runs.
pub fn wait_pidfd(pidfd: BorrowedFd<'_>, no_hang: bool) -> io::Result<Option<Ended>> {
    let flags = libc::WEXITED | libc::__WALL | if no_hang { libc::WNOHANG } else { 0 };
    loop {
        // SAFETY: siginfo_t is plain data, valid as zeroes.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: `info` is valid for writing.
        let ret = unsafe { libc::waitid(libc::P_PIDFD, pidfd.as_raw_fd() as u32, &raw mut info, flags) };
        if ret < 0 {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        }
        // SAFETY: waitid filled the SIGCHLD fields, or left zeroes.
        let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
        return Ok(match info.si_code {
            _ if pid == 0 => None,
            libc::CLD_EXITED => Some(Ended::Code(status)),
            _ => Some(Ended::Signal(status)),
        });
    }
}

/// poll(2); `None` waits for ever. Interrupted calls are repeated.
pub fn poll(fds: &mut [libc::pollfd], timeout_ms: Option<i32>) -> io::Result<usize> {
    loop {
        // SAFETY: the slice is valid for the call.
        let ret = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout_ms.unwrap_or(-1)) };
        match check(ret.into()) {
            Ok(n) => return Ok(n as usize),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A pollfd that waits for input (hang-up and error come unasked).
pub fn poll_in(fd: RawFd) -> libc::pollfd {
    libc::pollfd { fd, events: libc::POLLIN, revents: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;

    /// Birth in a group of the unified hierarchy; our machines for tests often have no controllers there.
    #[test]
    fn a_process_can_be_born_in_a_v2_group() {
        let top = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(std::path::Path::new);
        let Some(top) = top.into_iter().find(|top| top.join("cgroup.controllers").exists()) else {
            return eprintln!("SKIPPED: no unified hierarchy");
        };
        let dir = top.join(format!("kiln-test-{}", std::process::id()));
        if std::fs::create_dir(&dir).is_err() {
            return eprintln!("SKIPPED: {} is not writable", top.display());
        }
        let group = std::fs::File::open(&dir).unwrap();
        // SAFETY: the child of this threaded process makes two system calls and nothing else.
        let Ok(Forked::Parent { pid, pidfd }) = (unsafe {
            clone3(0, Some(group.as_fd())).inspect(|forked| {
                if matches!(forked, Forked::Child) {
                    libc::pause();
                    libc::_exit(0);
                }
            })
        }) else {
            panic!("clone3 into a group")
        };
        let inside = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap();
        pidfd_signal(pidfd.as_fd(), libc::SIGKILL).unwrap();
        assert_eq!(wait_pidfd(pidfd.as_fd(), false).unwrap(), Some(Ended::Signal(libc::SIGKILL)));
        std::fs::remove_dir(&dir).unwrap();
        assert_eq!(inside.trim(), pid.to_string());
    }
}
