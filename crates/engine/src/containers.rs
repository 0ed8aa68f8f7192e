//! The life of a container: its command is started and watched, other commands join it, its files are opened.
//!
//! Whoever starts a container watches it to its end, with the container's lock; if that kiln dies, so does the container. Its
//! files are an overlay over the image's layers, mounted nowhere but in the container. While it runs, other kilns reach it
//! through the watching one's descriptor; else whoever has the lock mounts it.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_container::{Config, Container, Process, State, Status};
use kiln_executor::{
    CancelToken, ExecSpec, MountSource, Network, ProcessSpec, Security, Started, Stdio, Terminal, User,
};
use kiln_oci::Timestamp;
use kiln_rootfs::diff::DiffOptions;
use kiln_rootfs::export::tar_tree;
use kiln_rootfs::{Root, ids};
use kiln_store::LockGuard;
use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::debug::Shell;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::export::with_writer;
use crate::request::Destination;
use crate::run::{Attach, DebugTools, merged, name};

/// The user's side of a process in a container.
pub struct Connection<'a> {
    /// What its streams are.
    pub streams: Streams,
    /// Who is told of it.
    pub attach: &'a dyn Attach,
    /// Ends it.
    pub cancel: &'a CancelToken,
}

/// What a process reads and writes.
#[derive(Debug, Default)]
pub struct Streams {
    /// Standard input.
    pub stdin: Stdio,
    /// Standard output.
    pub stdout: Stdio,
    /// Standard error.
    pub stderr: Stdio,
    /// In place of the three, a terminal of this size.
    pub terminal: Option<Terminal>,
}

impl Streams {
    /// This process's own, standard input only if it is asked for.
    pub fn own(interactive: bool, terminal: Option<Terminal>) -> Result<Self> {
        let stdin = if interactive { inherit(0)? } else { Stdio::Null };
        Ok(Self { stdin, stdout: inherit(1)?, stderr: inherit(2)?, terminal })
    }
}

/// Another command for a container that runs.
#[derive(Debug, Clone, Default)]
pub struct ExecRequest {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Variables besides the container's.
    pub env: Vec<String>,
    /// Working directory in place of the container's.
    pub workdir: Option<String>,
    /// User in place of the container's.
    pub user: Option<String>,
}

/// The files of a container, without what is mounted in it.
pub struct Files {
    /// They.
    pub root: Root,
    /// Keeps it from being started meanwhile.
    _lock: Option<LockGuard>,
}

/// Runs a container's command to its end and returns its exit code. With `debug`, a shell instead of the command.
pub fn start(
    engine: &Arc<Engine>,
    container: &mut Container,
    debug: Option<&DebugTools>,
    connection: Connection<'_>,
) -> Result<i32> {
    let _lock = container.lock(&engine.store)?;
    let started = run(engine, container, debug, connection);
    let finished = Some(Timestamp::now());
    let (exit, state) = match started {
        Ok(code) => {
            (Ok(code), State { finished, exit_code: Some(code), error: String::new(), ..container.state.clone() })
        }
        Err(e) => {
            let executor = if let Error::Executor(e) = &e { e.exit_code() } else { None };
            let exit_code = Some(executor.unwrap_or(if container.state.started.is_some() { 137 } else { 128 }));
            let error = e.to_string();
            (Err(e), State { finished, exit_code, error, ..container.state.clone() })
        }
    };
    let saved = container.save(State { root: None, ..state });
    if container.config.auto_remove {
        engine.store.containers().remove(container.id())?;
        return exit;
    }
    saved?;
    exit
}

fn run(
    engine: &Arc<Engine>,
    container: &mut Container,
    debug: Option<&DebugTools>,
    Connection { streams, attach, cancel }: Connection<'_>,
) -> Result<i32> {
    container.save(State::default())?;
    let root = mount(engine, container)?;
    let (spec, shell) = process(engine, &container.config, &root, debug, streams)?;
    attach.starting();
    let exit = engine.executor()?.run(
        spec,
        |started| {
            let state = State {
                process: Process::behind(&started.pidfd, started.pid),
                monitor: Process::own(),
                root: Some(root.as_fd().as_raw_fd()),
                started: Some(Timestamp::now()),
                ..State::default()
            };
            // If this fails nobody else sees that it runs, which is no reason to end it; the end is recorded again.
            let _ = container.save(state);
            attach.started(started);
        },
        cancel,
    );
    drop((root, shell));
    ended(exit)
}

/// Runs another command in a container that runs, to its end.
pub fn exec(
    engine: &Arc<Engine>,
    container: &Container,
    request: &ExecRequest,
    connection: Connection<'_>,
) -> Result<i32> {
    let (root, process) = running(container).ok_or_else(|| not_running(container))?;
    let inside = Started::elsewhere(process.pid)?;
    if !process.lives() {
        return Err(not_running(container));
    }
    let root = root?.with_ownership(engine.ownership);
    let config = &container.config;
    let user = ids::lookup_user(&root, request.user.as_deref().unwrap_or(&config.user))?;
    let Connection { streams, attach, cancel } = connection;
    let spec = ExecSpec {
        args: request.command.iter().map(OsString::from).collect(),
        env: environment(&merged(&config.env, &request.env), &user.home, streams.terminal.is_some()),
        cwd: PathBuf::from(request.workdir.as_deref().unwrap_or(&config.workdir)),
        user: User { uid: user.uid, gid: user.gid, groups: user.groups },
        security: Security::Sandbox,
        ulimits: Vec::new(),
        stdin: streams.stdin,
        stdout: streams.stdout,
        stderr: streams.stderr,
        terminal: streams.terminal,
    };
    attach.starting();
    let exit = engine.executor()?.exec(&inside, spec, |started| attach.started(started), cancel);
    match exit {
        Err(kiln_executor::Error::Start(_)) if !process.lives() => Err(not_running(container)),
        exit => ended(exit),
    }
}

/// Opens a container's files, whether it runs or not.
pub fn files(engine: &Arc<Engine>, container: &mut Container) -> Result<Files> {
    loop {
        if let Some((root, _)) = running(container) {
            return Ok(Files { root: root?.with_ownership(engine.ownership), _lock: None });
        }
        match container.lock(&engine.store) {
            // It was started meanwhile.
            Err(kiln_container::Error::Running(_)) => {}
            lock => {
                let _lock = Some(lock?);
                return Ok(Files { root: mount(engine, container)?, _lock });
            }
        }
    }
}

/// Writes all files of a container as a tar stream, without what is mounted in it.
pub fn export(engine: &Arc<Engine>, container: &mut Container, dest: &Destination) -> Result<()> {
    let files = files(engine, container)?;
    let mut options = DiffOptions { subsecond_times: true, ..DiffOptions::default() };
    with_writer(dest, |out| Ok(tar_tree(&files.root, out, &mut options).map(drop)?))
}

/// The error of whoever needs a container that runs.
pub fn not_running(container: &Container) -> Error {
    Error::request_with_hint(
        format!("the container {} is not running", container.config.name),
        format!("`kiln start {}` starts it", container.config.name),
    )
}

/// The root of a container that runs, out of the kiln that watches it, and its first process.
fn running(container: &Container) -> Option<(Result<Root>, &Process)> {
    let state = &container.state;
    let (process, monitor, root) = (state.process.as_ref()?, state.monitor.as_ref()?, state.root?);
    let path = PathBuf::from(format!("/proc/{}/fd/{root}", monitor.pid));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = openat(CWD, &path, flags, Mode::empty()).map_err(|e| Error::io("open", &path, e.into()));
    // Asked last: while it runs, both the number of its kiln and that of the descriptor are what they were.
    (container.status() == Status::Running).then(|| (opened.map(Root::from_fd), process))
}

fn mount(engine: &Engine, container: &Container) -> Result<Root> {
    let work = engine.store.containers().work(container.id())?;
    let upper = container.dir().join("fs");
    let root = engine.views.writable_as(&container.below()?, &upper, &work, container.config.auto_remove);
    root.map_err(|e| e.of_image(&container.config.image))
}

fn ended(exit: kiln_executor::Result<kiln_executor::Exit>) -> Result<i32> {
    match exit {
        Ok(exit) => Ok(exit.shell_code()),
        Err(kiln_executor::Error::Cancelled) => Err(Error::Cancelled),
        Err(e) => Err(e.into()),
    }
}

fn process(
    engine: &Engine,
    config: &Config,
    root: &Root,
    debug: Option<&DebugTools>,
    streams: Streams,
) -> Result<(ProcessSpec, Option<Shell>)> {
    let mut shell = debug.map(|tools| Shell::new(root, tools.busybox.as_deref(), &config.command)).transpose()?;
    let args = match &mut shell {
        Some(shell) => std::mem::take(&mut shell.args),
        None => config.entrypoint.iter().chain(&config.command).map(OsString::from).collect(),
    };
    let user = ids::lookup_user(root, &config.user)?;
    let cwd = PathBuf::from(&config.workdir);
    if !root.exists(&cwd)? {
        root.create_dir_all(&cwd, 0o755, None)?;
    }
    let mut spec = ProcessSpec::new(crate::build::owned_fd(root)?, args);
    spec.env = environment(&config.env, &user.home, streams.terminal.is_some());
    spec.cwd = cwd;
    spec.user = User { uid: user.uid, gid: user.gid, groups: user.groups };
    spec.hosts = crate::ops::exec::hosts_file(&config.hostname, &[]);
    spec.hostname.clone_from(&config.hostname);
    spec.resolv_conf = engine.resolv_conf();
    spec.writable_etc = true;
    spec.network = if config.host_network { Network::Host } else { Network::None };
    spec.readonly = config.read_only;
    spec.init = config.init;
    spec.mounts = config.binds.iter().map(bind).collect::<Result<_>>()?;
    spec.mounts.extend(shell.iter_mut().flat_map(|s| s.mounts.drain(..)));
    (spec.stdin, spec.stdout, spec.stderr) = (streams.stdin, streams.stdout, streams.stderr);
    spec.terminal = streams.terminal;
    Ok((spec, shell))
}

/// The variables, with those that every process has.
fn environment(env: &[String], home: &str, terminal: bool) -> Vec<OsString> {
    // As runc: an empty HOME is none.
    let mut env: Vec<String> = env.iter().filter(|e| *e != "HOME=").cloned().collect();
    let mut add = |pair: String| {
        if !env.iter().any(|e| name(e) == name(&pair)) {
            env.push(pair);
        }
    };
    add("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
    add(format!("HOME={home}"));
    if terminal {
        add("TERM=xterm".to_owned());
    }
    env.into_iter().map(Into::into).collect()
}

fn bind(mount: &kiln_container::Bind) -> Result<kiln_executor::Mount> {
    let path: &Path = &mount.source;
    let fd: OwnedFd = openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::io("open", path, e.into()))?;
    Ok(kiln_executor::Mount { source: MountSource::Fd(fd), target: mount.target.clone(), readonly: mount.readonly })
}

fn inherit(fd: i32) -> Result<Stdio> {
    let path = PathBuf::from(format!("/proc/self/fd/{fd}"));
    // SAFETY: descriptors 0 to 2 stay open for the whole life of the process; only a duplicate is kept.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    borrowed.try_clone_to_owned().map(Stdio::Fd).map_err(|e| Error::io("open", path, e))
}
