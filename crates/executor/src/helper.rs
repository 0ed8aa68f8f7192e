//! The helper: a small single-threaded process that starts containers for the executor.
//!
//! It exists because a program with threads must not go on running Rust code after a fork (another thread may have
//! held the allocator's lock), and because forking a small process is fast. It is kiln's own binary, executed with a
//! marker argument.
//!
//! Invariants:
//! - one thread, always;
//! - each container is tied to its request's socket: when the executor closes it, or dies, the container dies;
//! - when the executor dies the helper kills every container, waits for it, and exits;
//! - it keeps nothing: no files, no mounts outside of the containers' own namespaces.

use std::io;
use std::io::Read as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::child;
use crate::error::StartError;
use crate::pretend::Pretender;
use crate::request::{FdTable, Request, Target};
use crate::spec::Network;
use crate::sys::{self, Ended, Forked};
use crate::wire::{self, Decoder, Encoder};

/// First argument of the helper.
pub(crate) const MARKER: &str = "--kiln-container-helper";

/// Answers of the helper on a request's socket.
pub(crate) mod answer {
    /// The program runs: pid; descriptors: pidfd, and the terminal if one was asked for.
    pub const STARTED: u8 = 1;
    /// It could not be started: a `StartError`.
    pub const FAILED: u8 = 2;
    /// It ended: how, and what was pretended to it.
    pub const EXITED: u8 = 3;
}

/// What the new process tells the helper until its program runs.
pub(crate) mod report {
    /// A `StartError`.
    pub const FAILED: u8 = 1;
    /// The descriptor is the terminal.
    pub const TERMINAL: u8 = 2;
    /// The descriptor is a seccomp listener.
    pub const LISTENER: u8 = 3;
    /// The program runs (only sent where the end of the socket cannot say so).
    pub const STARTED: u8 = 4;
    /// The program ended with this wait status (only from kiln's own init process).
    pub const ENDED: u8 = 5;
    /// The descriptor is the real process, which joined a container (exec).
    pub const JOINED: u8 = 6;
}

/// Becomes the container helper, and never returns, when this process was started as one. Call it first in `main`,
/// before any thread exists.
pub fn helper_main_if_requested() {
    if std::env::args_os().nth(1).is_some_and(|arg| arg == MARKER) {
        std::process::exit(match serve() {
            Ok(()) => 0,
            Err(_) => 1,
        });
    }
}

/// One container, from request to exit.
struct Task {
    reply: OwnedFd,
    pid: i32,
    pidfd: OwnedFd,
    /// Open until the program runs, or for kiln's own init process until it ends.
    status: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
    pretender: Option<Pretender>,
    started: bool,
    failed: bool,
    /// What the init process said about the program it ran.
    ended: Option<Ended>,
    /// For exec: the process that enters the container, before it hands over to the one inside.
    entering: Option<OwnedFd>,
}

fn serve() -> io::Result<()> {
    let _ = sys::prctl(libc::PR_SET_NAME, c"kiln-helper".as_ptr() as u64, 0);
    // Nobody but its own children needs to look into this process.
    let _ = sys::prctl(libc::PR_SET_DUMPABLE, 0, 0);
    // SAFETY: descriptor 0 is the socket that the executor gave us as standard input; nothing else uses it.
    let socket = unsafe { OwnedFd::from_raw_fd(0) };
    sys::cloexec_from(0)?;
    child::reset_signals();
    ignore_terminal_signals();
    // SAFETY: getppid has no failure and takes nothing.
    let parent = sys::pidfd_open(unsafe { libc::getppid() })?;
    let mut tasks: Vec<Task> = Vec::new();
    loop {
        let ready = wait(&socket, &parent, &tasks)?;
        if ready.parent_gone {
            break;
        }
        let mut index = 0;
        tasks.retain_mut(|task| {
            index += 1;
            !ready.tasks.get(index - 1).copied().unwrap_or(false) || task.step()
        });
        if ready.request {
            match wire::recv(socket.as_fd(), false) {
                Ok(Some(packet)) => tasks.extend(accept(packet)),
                Ok(None) => break,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
    for task in &tasks {
        task.kill();
    }
    for task in &tasks {
        let _ = sys::wait_pidfd(task.pidfd.as_fd(), false);
    }
    Ok(())
}

fn ignore_terminal_signals() {
    for signal in child::IGNORED_BY_HELPER {
        // SAFETY: ignoring a signal installs no code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

struct Ready {
    parent_gone: bool,
    request: bool,
    tasks: Vec<bool>,
}

fn wait(socket: &OwnedFd, parent: &OwnedFd, tasks: &[Task]) -> io::Result<Ready> {
    let mut fds = vec![sys::poll_in(parent.as_raw_fd()), sys::poll_in(socket.as_raw_fd())];
    let mut ends = Vec::with_capacity(tasks.len());
    for task in tasks {
        fds.push(sys::poll_in(task.reply.as_raw_fd()));
        fds.push(sys::poll_in(task.pidfd.as_raw_fd()));
        fds.extend(task.status.iter().map(|fd| sys::poll_in(fd.as_raw_fd())));
        fds.extend(task.pretender.iter().filter_map(Pretender::fd).map(|fd| sys::poll_in(fd.as_raw_fd())));
        ends.push(fds.len());
    }
    sys::poll(&mut fds, None)?;
    let mut start = 2;
    let tasks = ends
        .into_iter()
        .map(|end| {
            let any = fds[start..end].iter().any(|fd| fd.revents != 0);
            start = end;
            any
        })
        .collect();
    Ok(Ready { parent_gone: fds[0].revents != 0, request: fds[1].revents != 0, tasks })
}

/// Starts what a packet asks for. Any failure is answered on the request's own socket.
fn accept(packet: wire::Packet) -> Option<Task> {
    let mut fds = packet.fds;
    if fds.len() < 2 {
        return None;
    }
    let reply = fds.remove(1);
    let body = fds.remove(0);
    match start(body, FdTable(fds)) {
        Ok(started) => Some(Task {
            reply,
            pid: started.pid,
            pidfd: started.pidfd,
            status: Some(started.status),
            terminal: None,
            pretender: None,
            started: false,
            failed: false,
            ended: None,
            entering: None,
        }),
        Err(error) => {
            send_failure(reply.as_fd(), &error);
            None
        }
    }
}

struct Born {
    pid: i32,
    pidfd: OwnedFd,
    status: OwnedFd,
}

fn start(body: OwnedFd, fds: FdTable) -> Result<Born, StartError> {
    let failed = |step: &'static str| StartError::setup(step);
    let mut bytes = Vec::new();
    std::fs::File::from(body).read_to_end(&mut bytes).map_err(failed("read the request"))?;
    let request = Request::decode(&bytes).map_err(|e| failed("read the request")(e.into()))?;
    drop(bytes);
    child::prepare(&request);
    let (ours, theirs) = wire::socketpair().map_err(failed("make a socket"))?;
    let cgroup = request.cgroup2.map(|fd| fds.get(fd)).transpose().map_err(|e| failed("read the request")(e.into()))?;
    // SAFETY: this process has one thread.
    match unsafe { sys::clone3(namespaces(&request), cgroup) }.map_err(failed("create the process"))? {
        Forked::Parent { pid, pidfd } => Ok(Born { pid, pidfd, status: ours }),
        Forked::Child => {
            drop(ours);
            run_child(request, fds, theirs)
        }
    }
}

fn namespaces(request: &Request) -> u64 {
    let Target::New(container) = &request.target else { return 0 };
    let mut flags = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    if container.network == Network::None {
        flags |= libc::CLONE_NEWNET;
    }
    flags as u64
}

/// The new process: never returns into the helper's loop, not even by a panic.
fn run_child(request: Request, fds: FdTable, status: OwnedFd) -> ! {
    let run = std::panic::AssertUnwindSafe(|| child::run(&request, &fds, &status));
    let error = match std::panic::catch_unwind(run) {
        Ok(Err(error)) => error,
        Ok(Ok(never)) => match never {},
        Err(_) => StartError::Setup { step: "internal error in the set-up code".to_owned(), errno: libc::EIO },
    };
    report_failure(status.as_fd(), &error);
    // SAFETY: leaves at once, without the exit handlers of a process that this is only a copy of.
    unsafe { libc::_exit(127) }
}

/// Tells the helper why the program was not started.
pub(crate) fn report_failure(status: BorrowedFd<'_>, error: &StartError) {
    let mut e = Encoder::default();
    e.u8(report::FAILED);
    error.encode(&mut e);
    e.buf.truncate(wire::MAX_PACKET);
    let _ = wire::send(status, &e.buf, &[]);
}

fn send_failure(reply: BorrowedFd<'_>, error: &StartError) {
    let mut e = Encoder::default();
    e.u8(answer::FAILED);
    error.encode(&mut e);
    e.buf.truncate(wire::MAX_PACKET);
    let _ = wire::send(reply, &e.buf, &[]);
}

impl Task {
    fn kill(&self) {
        let _ = sys::pidfd_signal(self.pidfd.as_fd(), libc::SIGKILL);
        if let Some(entering) = &self.entering {
            let _ = sys::pidfd_signal(entering.as_fd(), libc::SIGKILL);
        }
    }

    /// Handles whatever is ready; false once the task is over.
    fn step(&mut self) -> bool {
        self.read_status();
        if let Some(pretender) = &mut self.pretender {
            pretender.serve();
        }
        match wire::recv(self.reply.as_fd(), false) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // Any word from the executor, and its absence, means: kill.
            _ => self.kill(),
        }
        match sys::wait_pidfd(self.pidfd.as_fd(), true) {
            Ok(None) => true,
            Ok(Some(ended)) => {
                self.read_status();
                self.finish(ended);
                false
            }
            Err(_) => {
                self.finish(Ended::Signal(libc::SIGKILL));
                false
            }
        }
    }

    fn finish(&mut self, ended: Ended) {
        if let Some(entering) = self.entering.take() {
            let _ = sys::wait_pidfd(entering.as_fd(), false);
        }
        if self.failed {
            return;
        }
        if !self.started {
            // Killed during the set-up, or a program so short that its end came with the news of its start.
            self.announce_start();
        }
        let mut e = Encoder::default();
        e.u8(answer::EXITED);
        match self.ended.unwrap_or(ended) {
            Ended::Code(code) => e.u8(0).i32(code),
            Ended::Signal(signal) => e.u8(1).i32(signal),
        };
        self.pretender.as_ref().map(Pretender::counts).unwrap_or_default().encode(&mut e);
        let _ = wire::send(self.reply.as_fd(), &e.buf, &[]);
    }

    fn announce_start(&mut self) {
        self.started = true;
        let mut e = Encoder::default();
        e.u8(answer::STARTED).i32(self.pid);
        let mut fds = vec![self.pidfd.as_raw_fd()];
        fds.extend(self.terminal.iter().map(AsRawFd::as_raw_fd));
        let _ = wire::send(self.reply.as_fd(), &e.buf, &fds);
        self.terminal = None;
    }

    /// Reads what the new process reported; its end of file means that the program was executed.
    fn read_status(&mut self) {
        while let Some(status) = &self.status {
            match wire::recv(status.as_fd(), false) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Ok(Some(packet)) => self.report(packet),
                Ok(None) | Err(_) => {
                    self.status = None;
                    if !self.started && !self.failed {
                        self.announce_start();
                    }
                }
            }
        }
    }

    fn report(&mut self, packet: wire::Packet) {
        let mut d = Decoder(&packet.data);
        let mut fds = packet.fds.into_iter();
        match d.u8() {
            Ok(report::FAILED) => {
                let error = StartError::decode(&mut d)
                    .unwrap_or(StartError::Setup { step: "read its report".to_owned(), errno: libc::EPROTO });
                self.failed = true;
                send_failure(self.reply.as_fd(), &error);
            }
            Ok(report::TERMINAL) => self.terminal = fds.next(),
            Ok(report::LISTENER) => self.pretender = fds.next().map(Pretender::new),
            Ok(report::STARTED) if !self.started && !self.failed => self.announce_start(),
            Ok(report::ENDED) => {
                self.ended = match (d.u8(), d.i32()) {
                    (Ok(0), Ok(code)) => Some(Ended::Code(code)),
                    (Ok(_), Ok(signal)) => Some(Ended::Signal(signal)),
                    _ => None,
                }
            }
            Ok(report::JOINED) => {
                if let (Some(pidfd), Ok(pid)) = (fds.next(), d.i32()) {
                    self.entering = Some(std::mem::replace(&mut self.pidfd, pidfd));
                    self.pid = pid;
                }
            }
            _ => {}
        }
    }
}
