//! The caller's side: turns a [`ProcessSpec`] into a request, sends it to the helper, waits for the end.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::fs::{Mode, OFlags};
use rustix::mount::OpenTreeFlags;

use crate::cancel::CancelToken;
use crate::cgroup::{self, CgroupMode, Cgroups, Entrances, Group};
use crate::error::{Error, Result, StartError};
use crate::helper::{MARKER, answer};
use crate::oom;
use crate::plan;
use crate::pretend::Pretended;
use crate::request::{Container, FdIndex, FdList, Request, Target};
use crate::rootless;
use crate::spec::{ExecSpec, ProcessSpec, Stdio};
use crate::stubs::Stubs;
use crate::sys::{self, MOUNT_ATTR_RDONLY};
use crate::wire::{self, Decoder, MAX_FDS};

const DEFAULT_SHM: u64 = 64 << 20;

/// How an [`Executor`] works.
#[derive(Debug, Clone, Default)]
pub struct ExecutorOptions {
    /// The program that is started as helper; by default the running one. Its `main` must call
    /// [`helper_main_if_requested`](crate::helper_main_if_requested).
    pub helper: Option<PathBuf>,
    /// Where control groups are made.
    pub cgroup: CgroupMode,
}

/// Runs containers. One per process is enough; runs may overlap freely.
pub struct Executor {
    options: ExecutorOptions,
    helper: Mutex<Option<Helper>>,
    cgroups: OnceLock<Cgroups>,
}

impl std::fmt::Debug for Executor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Executor").field("options", &self.options).finish_non_exhaustive()
    }
}

/// How a container ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exit {
    /// Exit code, if it exited.
    pub code: Option<i32>,
    /// Signal, if it was killed by one.
    pub signal: Option<i32>,
    /// The kernel killed something in its control group for lack of memory (counted by the kernel).
    pub oom_killed: bool,
    /// It has no control group of its own, ended by SIGKILL (or 137) and meanwhile the kernel killed something
    /// on this machine for lack of memory: probably it.
    pub oom_suspected: bool,
    /// Calls that were answered with success without effect, in single-id mode.
    pub pretended: Pretended,
    /// Mount points that were made in the root and removed again.
    pub stubs_removed: Vec<PathBuf>,
}

impl Exit {
    /// It exited with code 0.
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }

    /// The code a shell would show: 128 + signal for a signal.
    pub fn shell_code(&self) -> i32 {
        self.code.or(self.signal.map(|s| 128 + s)).unwrap_or(255)
    }
}

/// A limit without effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotEnforced {
    /// The limit, as in Docker's flags: `memory`, `cpus`, `pids-limit`, ...
    pub limit: &'static str,
    /// Why.
    pub reason: String,
}

/// A container whose program runs.
#[derive(Debug)]
pub struct Started {
    /// Process id as kiln sees it.
    pub pid: i32,
    /// Handle on the process; readable once it has ended.
    pub pidfd: OwnedFd,
    /// The controlling side of its terminal, if it was to have one.
    pub terminal: Option<OwnedFd>,
    /// Limits that it has not, because this machine has no control group for them.
    pub not_enforced: Vec<NotEnforced>,
    entrances: Entrances,
}

impl Started {
    /// A container that another kiln started, by its first process. What joins it stays in our own control group.
    pub fn elsewhere(pid: i32) -> Result<Started> {
        let pidfd = sys::pidfd_open(pid).map_err(Error::helper("find the container for"))?;
        Ok(Started { pid, pidfd, terminal: None, not_enforced: Vec::new(), entrances: Entrances::default() })
    }

    /// Sends a signal to the container's first process.
    pub fn signal(&self, signal: i32) -> std::io::Result<()> {
        sys::pidfd_signal(self.pidfd.as_fd(), signal)
    }
}

/// The helper process; it ends when this is dropped.
struct Helper {
    socket: Arc<OwnedFd>,
    child: Option<Child>,
}

impl Drop for Helper {
    fn drop(&mut self) {
        // The end of the socket tells it to kill what still runs and leave.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
    }
}

impl Executor {
    /// An executor; the helper is started with the first container.
    pub fn new(options: ExecutorOptions) -> Result<Executor> {
        Ok(Executor { options, helper: Mutex::new(None), cgroups: OnceLock::new() })
    }

    /// Runs one process to its end. `on_started` is called once its program was executed. Cancelling the token kills
    /// every process of the container at once and gives [`Error::Cancelled`].
    pub fn run(&self, spec: ProcessSpec, on_started: impl FnOnce(Started), cancel: &CancelToken) -> Result<Exit> {
        check(&spec.args, &spec.env)?;
        if cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let group = self.group(&spec)?;
        let entrances = group.as_ref().map(Group::entrances).unwrap_or_default();
        let (prepared, stubs) = self.prepare(spec, &entrances);
        let not_enforced = group.as_ref().map(|g| g.not_enforced().to_vec()).unwrap_or_default();
        let on_started = |started| on_started(Started { entrances, not_enforced, ..started });
        let result = prepared.and_then(|(request, fds)| self.execute(&request, fds, on_started, cancel));
        let stubs_removed = stubs.map(Stubs::remove).unwrap_or_default();
        let mut exit = result?;
        exit.stubs_removed = stubs_removed;
        if let Some(group) = group {
            exit.oom_killed = group.oom_kills() > 0;
        }
        Ok(exit)
    }

    /// Runs another process in a container that runs, to its end.
    pub fn exec(
        &self,
        container: &Started,
        spec: ExecSpec,
        on_started: impl FnOnce(Started),
        cancel: &CancelToken,
    ) -> Result<Exit> {
        check(&spec.args, &spec.env)?;
        let mut fds = FdList::default();
        let pidfd = container.pidfd.try_clone().map_err(Error::helper("duplicate a descriptor for"))?;
        let identity = rootless::ids();
        let mut request = Request {
            target: Target::Existing(fds.push(pidfd)),
            args: spec.args,
            env: spec.env,
            cwd: spec.cwd,
            security: spec.security,
            ulimits: spec.ulimits,
            terminal: spec.terminal.map(Into::into),
            stdio: [spec.stdin, spec.stdout, spec.stderr].map(|s| stdio(s, &mut fds)),
            pretend: identity.single,
            userns: identity.userns,
            user: spec.user,
            ..Request::default()
        };
        container.entrances.add_to(&mut request, &mut fds)?;
        self.execute(&request, fds, on_started, cancel)
    }

    fn group(&self, spec: &ProcessSpec) -> Result<Option<Group>> {
        if !spec.limits.needs_cgroup() {
            return Ok(None);
        }
        self.cgroups.get_or_init(|| Cgroups::detect(&self.options.cgroup)).create(&spec.limits).map(Some)
    }

    /// The request, its descriptors, and (also after a failure) the mount points to remove.
    fn prepare(&self, spec: ProcessSpec, entrances: &Entrances) -> (Result<(Request, FdList)>, Option<Stubs>) {
        let mut spec = spec;
        let mut fds = FdList::default();
        let Ok(root) = rustix::io::fcntl_dupfd_cloexec(&spec.root, 3) else {
            return (Err(Error::Invalid("the root is not an open descriptor".to_owned())), None);
        };
        let (root, confined) = match plan::root(root) {
            Ok(root) => root,
            Err(error) => return (Err(error), None),
        };
        let mut stubs = Stubs::new(confined);
        let root = fds.push(root);
        let mounts = match plan::plan(&mut spec, &mut stubs, &mut fds) {
            Ok(mounts) => mounts,
            Err(error) => return (Err(error), Some(stubs)),
        };
        let identity = rootless::ids();
        let limits = &spec.limits;
        let container = Container {
            root,
            mounts,
            hostname: spec.hostname,
            network: spec.network,
            shm_size: limits.shm_size.unwrap_or(DEFAULT_SHM),
            oom_score_adj: limits.oom_score_adj,
            init: spec.init,
            readonly: spec.readonly,
            volatile: spec.volatile,
            cgroup_view: cgroup::unified_only(),
        };
        let mut request = Request {
            args: spec.args,
            env: spec.env,
            cwd: spec.cwd,
            security: spec.security,
            ulimits: limits.ulimits.clone(),
            terminal: spec.terminal.map(Into::into),
            stdio: [spec.stdin, spec.stdout, spec.stderr].map(|s| stdio(s, &mut fds)),
            pretend: identity.single,
            userns: identity.userns,
            user: spec.user,
            cgroup2: None,
            cgroup1: Vec::new(),
            target: Target::New(container),
        };
        let added = entrances.add_to(&mut request, &mut fds);
        (added.map(|()| (request, fds)), Some(stubs))
    }

    /// Sends the request and follows the container until it is gone.
    fn execute(
        &self,
        request: &Request,
        fds: FdList,
        on_started: impl FnOnce(Started),
        cancel: &CancelToken,
    ) -> Result<Exit> {
        let socket = Arc::new(self.send(request, &fds)?);
        // From now on only the container has the other ends of its streams.
        drop(fds);
        let to_kill = socket.clone();
        let _kill_on_cancel = cancel.on_cancel(move || drop(wire::send(to_kill.as_fd(), b"k", &[])));
        let mut on_started = Some(on_started);
        let mut result = loop {
            let packet = wire::recv(socket.as_fd(), true).map_err(Error::helper("hear from"))?;
            let Some(packet) = packet else { break Err(Error::HelperDied) };
            match understand(packet)? {
                Answer::Started(started) => {
                    if let Some(on_started) = on_started.take() {
                        on_started(started);
                    }
                }
                Answer::Failed(error) => {
                    // Its process goes, and with it the mounts; the end of the socket says that it is gone.
                    while matches!(wire::recv(socket.as_fd(), true), Ok(Some(_))) {}
                    break Err(error.into());
                }
                Answer::Exited(exit) => break Ok(exit),
            }
        };
        if cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        if let Ok(exit) = &mut result {
            exit.pretended.user = request.pretend && request.user.uid != 0;
            let killed = exit.signal == Some(libc::SIGKILL) || exit.code == Some(128 + libc::SIGKILL);
            exit.oom_suspected = killed && oom::happened();
        }
        result
    }

    /// Gives a request to the helper, a new one if the last one is gone; returns the socket for its answers.
    fn send(&self, request: &Request, fds: &FdList) -> Result<OwnedFd> {
        let body = sys::memfd(c"kiln-request").map_err(Error::helper("make a request for"))?;
        let bytes = request.encode();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let n = rustix::io::write(&body, rest).map_err(|e| Error::helper("make a request for")(e.into()))?;
            rest = &rest[n..];
        }
        rustix::fs::seek(&body, rustix::fs::SeekFrom::Start(0))
            .map_err(|e| Error::helper("make a request for")(e.into()))?;
        let (ours, theirs) = wire::socketpair().map_err(Error::helper("make a socket for"))?;
        let mut raw = vec![body.as_raw_fd(), theirs.as_raw_fd()];
        raw.extend(fds.raw());
        if raw.len() > MAX_FDS {
            return Err(Error::Invalid(format!("{} descriptors are too many (at most {MAX_FDS})", raw.len())));
        }
        let mut slot = self.helper.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(helper) = &*slot {
            // A failure means that it is gone: the next one will do.
            if wire::send(helper.socket.as_fd(), b"r", &raw).is_ok() {
                return Ok(ours);
            }
        }
        *slot = None;
        let helper = slot.insert(start(self.options.helper.as_ref())?);
        wire::send(helper.socket.as_fd(), b"r", &raw).map_err(Error::helper("speak to"))?;
        Ok(ours)
    }
}

fn check(args: &[std::ffi::OsString], env: &[std::ffi::OsString]) -> Result<()> {
    use std::os::unix::ffi::OsStrExt as _;
    if args.first().is_none_or(|program| program.is_empty()) {
        return Err(Error::Invalid("there is no command to run".to_owned()));
    }
    if args.iter().chain(env).any(|item| item.as_bytes().contains(&0)) {
        return Err(Error::Invalid("an argument or variable contains a NUL byte".to_owned()));
    }
    Ok(())
}

fn stdio(stdio: Stdio, fds: &mut FdList) -> Option<FdIndex> {
    match stdio {
        Stdio::Null => None,
        Stdio::Fd(fd) => Some(fds.push(fd)),
    }
}

enum Answer {
    Started(Started),
    Failed(StartError),
    Exited(Exit),
}

fn understand(packet: wire::Packet) -> Result<Answer> {
    let malformed = |e: wire::Malformed| Error::helper("understand")(e.into());
    let mut d = Decoder(&packet.data);
    let mut fds = packet.fds.into_iter();
    match d.u8().map_err(malformed)? {
        answer::STARTED => {
            let pid = d.i32().map_err(malformed)?;
            let pidfd = fds.next().ok_or_else(|| malformed(wire::Malformed))?;
            Ok(Answer::Started(Started {
                pid,
                pidfd,
                terminal: fds.next(),
                not_enforced: Vec::new(),
                entrances: Entrances::default(),
            }))
        }
        answer::FAILED => StartError::decode(&mut d).map(Answer::Failed).map_err(malformed),
        answer::EXITED => exited(&mut d).map(Answer::Exited).map_err(malformed),
        _ => Err(malformed(wire::Malformed)),
    }
}

fn exited(d: &mut Decoder<'_>) -> Result<Exit, wire::Malformed> {
    let (killed, value) = (d.u8()? != 0, d.i32()?);
    Ok(Exit {
        code: (!killed).then_some(value),
        signal: killed.then_some(value),
        pretended: Pretended::decode(d)?,
        ..Exit::default()
    })
}

/// Starts the helper: the given program, or our own, with the marker.
fn start(program: Option<&PathBuf>) -> Result<Helper> {
    oom::start();
    let (ours, theirs) = wire::socketpair().map_err(Error::helper("make a socket for"))?;
    let path = program.cloned().unwrap_or_else(|| PathBuf::from("/proc/self/exe"));
    let protected = read_only_copy(&path);
    let command = |path: PathBuf, stdin: OwnedFd| {
        Command::new(path)
            .arg0("kiln-helper")
            .arg(MARKER)
            .env_clear()
            .stdin(std::process::Stdio::from(stdin))
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .current_dir("/")
            .spawn()
    };
    let again = theirs.try_clone().map_err(Error::helper("make a socket for"))?;
    let child = match &protected {
        Some(fd) => command(PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd())), theirs)
            .or_else(|_| command(path, again)),
        None => command(path, again),
    };
    let child = child.map_err(Error::helper("start"))?;
    Ok(Helper { socket: Arc::new(ours), child: Some(child) })
}

/// The binary through a read-only mount that nobody else has: a container that gets hold of its process's
/// `/proc/self/exe` cannot write to kiln through it (CVE-2019-5736).
fn read_only_copy(path: &PathBuf) -> Option<OwnedFd> {
    let exe = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let copy = rustix::mount::open_tree(&exe, "", flags).ok()?;
    sys::mount_setattr(copy.as_fd(), MOUNT_ATTR_RDONLY, false).ok()?;
    Some(copy)
}
