//! The new process, from clone to exec.
//!
//! Invariants:
//! - it runs in a copy of the single-threaded helper, so that allocating is allowed;
//! - nothing from outside reaches the program: every descriptor but the three streams is close-on-exec, the old root is
//!   detached, signals and umask are reset, identity and capabilities are set exactly;
//! - paths of the container are only opened relative to its root with `openat2`; mounts go onto descriptors, not paths;
//! - each failure is a [`StartError`] that names its step.

mod exec;
mod identity;
mod init;
mod join;
mod mounts;
mod terminal;
mod view;

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::error::StartError;
use crate::helper::report;
use crate::request::{Container, FdTable, Request, Target};
use crate::spec::{Network, Ulimit};
use crate::sys::{self, check};
use crate::wire;

#[cfg(test)]
pub(crate) use identity::DOCKER_CAPABILITIES;
pub(crate) use identity::prepare;
pub(crate) use mounts::open_at;

/// Becomes the container's process. Returns only if that failed.
pub(crate) fn run(request: &Request, fds: &FdTable, status: &OwnedFd) -> Result<Infallible, StartError> {
    // If the helper is killed, so is the container; repeated later because a change of user clears it.
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0).map_err(StartError::setup("tie it to kiln"))?;
    default_signals(&IGNORED_BY_HELPER);
    let null = open_null()?;
    join_cgroups(request, fds)?;
    match &request.target {
        Target::New(container) => {
            enter_new(request, container, fds)?;
            if container.init {
                init::split(request, status)?;
            }
        }
        Target::Existing(_) => join::enter(request, fds, status)?,
    }
    let terminal = match request.terminal {
        Some(size) => Some(terminal::open(size, request.user.uid, matches!(request.target, Target::New(_)))?),
        None => None,
    };
    // With the rights of before, so that a directory which only root may search works as with runc.
    let cwd = enter_cwd(&request.cwd);
    set_limits(&request.ulimits)?;
    streams(request, fds, &null, terminal, status)?;
    identity::apply(request, status)?;
    cwd.or_else(|_| enter_cwd(&request.cwd))?;
    check_still_wanted(status)?;
    // SAFETY: no memory is passed.
    unsafe { libc::umask(0o022) };
    exec::exec(&request.args, &request.env)
}

/// Signals that a terminal sends to its foreground processes, of which the helper is one: kiln decides what they mean.
pub(crate) const IGNORED_BY_HELPER: [i32; 5] =
    [libc::SIGINT, libc::SIGQUIT, libc::SIGTSTP, libc::SIGHUP, libc::SIGTERM];

fn default_signals(signals: &[i32]) {
    // The system call itself: the library refuses to touch the two signals that it uses for threads.
    #[repr(C)]
    struct KernelSigaction {
        handler: usize,
        flags: libc::c_ulong,
        restorer: usize,
        mask: u64,
    }
    let default = KernelSigaction { handler: libc::SIG_DFL, flags: 0, restorer: 0, mask: 0 };
    for signal in signals {
        let old = std::ptr::null_mut::<KernelSigaction>();
        // SAFETY: SIG_DFL installs no code; numbers that cannot be changed answer an error.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, *signal, &raw const default, old, size_of::<u64>()) };
    }
}

/// For the helper, and through it for all containers: default action for every signal and none blocked, whatever
/// kiln was started with.
pub(crate) fn reset_signals() {
    default_signals(&std::array::from_fn::<i32, 64, _>(|i| i as i32 + 1));
    // SAFETY: an all-zero set is the empty set.
    unsafe {
        let none: libc::sigset_t = std::mem::zeroed();
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// The machine's own /dev/null, opened before anything of the container is in sight.
fn open_null() -> Result<OwnedFd, StartError> {
    rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| StartError::setup("open /dev/null")(e.into()))
}

/// Moves into v1 groups (a v2 group was given at clone) by writing "myself".
fn join_cgroups(request: &Request, fds: &FdTable) -> Result<(), StartError> {
    for index in &request.cgroup1 {
        let step = || StartError::setup("enter its control group");
        let fd = fds.get(*index).map_err(|e| step()(e.into()))?;
        rustix::io::write(fd, b"0").map_err(|e| step()(e.into()))?;
    }
    Ok(())
}

fn enter_new(request: &Request, container: &Container, fds: &FdTable) -> Result<(), StartError> {
    if let Some(score) = container.oom_score_adj {
        let path = Path::new("/proc/self/oom_score_adj");
        std::fs::write(path, score.to_string()).map_err(StartError::setup("set the OOM score"))?;
    }
    // The group's own directory becomes the top of what the container sees.
    let own_cgroup_view = container.cgroup_view && sys::unshare(libc::CLONE_NEWCGROUP).is_ok();
    // SAFETY: no memory is passed. Modes of what is made now are meant as written.
    unsafe { libc::umask(0) };
    view::build(request, container, fds, own_cgroup_view)?;
    rustix::system::sethostname(container.hostname.as_bytes())
        .map_err(|e| StartError::setup("set the host name")(e.into()))?;
    if container.network == Network::None {
        loopback_up().map_err(StartError::setup("bring up loopback"))?;
    }
    Ok(())
}

/// `ip link set lo up`.
fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    // SAFETY: plain data, valid as zeroes.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the structure is what SIOCSIFFLAGS takes.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) }.into()).map(drop)
}

fn set_limits(limits: &[Ulimit]) -> Result<(), StartError> {
    for limit in limits {
        let value = libc::rlimit { rlim_cur: limit.soft, rlim_max: limit.hard };
        // SAFETY: the structure is valid for the call.
        check(unsafe { libc::setrlimit(limit.resource as _, &raw const value) }.into()).map_err(|error| {
            let step = format!("set resource limit {} to {}:{}", limit.resource, limit.soft, limit.hard);
            StartError::setup(step)(error)
        })?;
    }
    Ok(())
}

/// Enters the working directory, opened inside of the root: never through a magic link such as `/proc/self/fd/7`,
/// which could lead out of it (CVE-2024-21626), and checks that the kernel, too, sees it inside.
fn enter_cwd(path: &Path) -> Result<(), StartError> {
    let failed = |e: rustix::io::Errno| StartError::Cwd { path: path.to_owned(), errno: e.raw_os_error() };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open("/", flags, Mode::empty()).map_err(failed)?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let fd = mounts::open_at(root.as_fd(), mounts::relative(path), flags, resolve).map_err(failed)?;
    rustix::process::fchdir(&fd).map_err(failed)?;
    let mut buffer = [0u8; 4096];
    // SAFETY: the buffer is valid for its length.
    let ret = unsafe { libc::syscall(libc::SYS_getcwd, buffer.as_mut_ptr(), buffer.len()) };
    // The system call (not the library) says "(unreachable)..." for a directory outside of the root.
    if (ret < 0 && io::Error::last_os_error().raw_os_error() != Some(libc::ERANGE)) || (ret > 0 && buffer[0] != b'/') {
        return Err(failed(rustix::io::Errno::XDEV));
    }
    Ok(())
}

/// Own session, and descriptors 0 to 2.
fn streams(
    request: &Request,
    fds: &FdTable,
    null: &OwnedFd,
    terminal: Option<terminal::Pair>,
    status: &OwnedFd,
) -> Result<(), StartError> {
    let step = || StartError::setup("connect the standard streams");
    // An exec'd process may already lead its session; that is what is wanted.
    let _ = rustix::process::setsid();
    let terminal_fd = match &terminal {
        Some(pair) => {
            wire::send(status.as_fd(), &[report::TERMINAL], &[pair.master.as_raw_fd()]).map_err(step())?;
            terminal::make_controlling(&pair.slave).map_err(StartError::setup("take the terminal"))?;
            Some(pair.slave.as_fd())
        }
        None => None,
    };
    for (number, index) in request.stdio.iter().enumerate() {
        let from = match (terminal_fd, index) {
            (Some(slave), _) => slave,
            (None, Some(index)) => fds.get(*index).map_err(|e| step()(e.into()))?,
            (None, None) => null.as_fd(),
        };
        give_pipe_to(from, request.user.uid);
        // SAFETY: duplicating onto our own standard descriptors; received descriptors are all above 2.
        check(unsafe { libc::dup2(from.as_raw_fd(), number as i32) }.into()).map_err(step())?;
    }
    sys::cloexec_from(3).map_err(StartError::setup("close descriptors"))
}

/// A process that is not root may open `/dev/stdout` again only if the pipe is its own.
fn give_pipe_to(fd: BorrowedFd<'_>, uid: u32) {
    let is_pipe = rustix::fs::fstat(fd)
        .is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Fifo);
    if uid != 0 && is_pipe {
        // SAFETY: no memory is passed. Best effort: an unmapped id leaves it as it was.
        let _ = unsafe { libc::fchown(fd.as_raw_fd(), uid, u32::MAX) };
    }
}

/// The helper may have died before the death signal was set for the second time.
fn check_still_wanted(status: &OwnedFd) -> Result<(), StartError> {
    let mut fd = [libc::pollfd { fd: status.as_raw_fd(), events: 0, revents: 0 }];
    match sys::poll(&mut fd, Some(0)) {
        Ok(0) => Ok(()),
        _ => Err(StartError::Setup { step: "kiln is gone".to_owned(), errno: libc::ECANCELED }),
    }
}
