//! `kiln run`: one container in the foreground, over an image.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_executor::{CancelToken, MountSource, Network, ProcessSpec, Started, Stdio, Terminal, User};
use kiln_oci::{ContainerConfig, Platform, Reference};
use kiln_rootfs::{Root, ids};

use crate::debug::Shell;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::transfer::KnownImage;

/// A container to run.
#[derive(Debug, Clone, Default)]
pub struct RunRequest {
    /// Name of the image, or the beginning of its ID.
    pub image: String,
    /// Command in place of the image's.
    pub command: Vec<String>,
    /// Pass standard input on.
    pub interactive: bool,
    /// Give it a terminal of this size.
    pub terminal: Option<Terminal>,
    /// A small init as process 1.
    pub init: bool,
    /// Variables, `NAME=value`.
    pub env: Vec<String>,
    /// Bind mounts.
    pub mounts: Vec<BindMount>,
    /// Working directory in place of the image's.
    pub workdir: Option<String>,
    /// User in place of the image's.
    pub user: Option<String>,
    /// Entry point in place of the image's.
    pub entrypoint: Option<String>,
    /// The host's network rather than none.
    pub host_network: bool,
    /// Host name.
    pub hostname: Option<String>,
    /// The root can't be written to.
    pub read_only: bool,
    /// Ports that are to be reachable.
    pub published: Vec<Published>,
    /// A shell with tools rather than the image's command, for images that have none.
    pub debug: Option<DebugTools>,
}

/// What a debugging shell brings along.
#[derive(Debug, Clone, Default)]
pub struct DebugTools {
    /// A static busybox of the host.
    pub busybox: Option<PathBuf>,
}

/// A path of the host in the container.
#[derive(Debug, Clone)]
pub struct BindMount {
    /// On the host.
    pub source: PathBuf,
    /// In the container.
    pub target: PathBuf,
    /// Not to be written to.
    pub readonly: bool,
}

/// A port; on the host's network it is reachable as it is.
#[derive(Debug, Clone, Copy)]
pub struct Published {
    /// The port.
    pub port: u16,
}

/// Who is connected with a container.
pub trait Attach {
    /// All is ready: from now on signals are the container's.
    fn starting(&self);

    /// It runs. If it has a terminal, that is to be served.
    fn started(&self, container: Started);
}

/// Runs the container and returns its exit code.
pub fn run_image(engine: &Arc<Engine>, request: &RunRequest, attach: &dyn Attach, cancel: &CancelToken) -> Result<i32> {
    let image = engine.image_by_name_or_id(&request.image)?;
    let snapshot = engine.image_snapshot(&image)?;
    let draft = engine.store.layers().draft()?;
    let root = engine.views.writable(&snapshot, draft.fs(), draft.work()).map_err(|e| e.of_image(&request.image))?;
    let (spec, shell) = process(engine, request, &image.config.config, &root)?;
    attach.starting();
    let exit = engine.executor()?.run(spec, |started| attach.started(started), cancel);
    drop((root, shell));
    match exit {
        Ok(exit) => Ok(exit.shell_code()),
        Err(kiln_executor::Error::Cancelled) => Err(Error::Cancelled),
        Err(e) => Err(e.into()),
    }
}

impl Engine {
    /// An image by name (from a registry if it is not here) or by the beginning of its ID.
    pub fn image_by_name_or_id(&self, text: &str) -> Result<KnownImage> {
        let host = Platform::host();
        let name = text.parse::<Reference>().map(Reference::with_default_tag);
        if let Ok(name) = &name
            && self.store.images().resolve(name)?.is_some()
        {
            return self.find_image(name, &host, false);
        }
        if text.trim_start_matches("sha256:").chars().all(|c| c.is_ascii_hexdigit())
            && let Some(image) = self.store.images().by_id(text)?
        {
            return self.known(&image.target, &host, None).map_err(|e| e.of_image(text));
        }
        match name {
            Ok(name) => self.find_image(&name, &host, false),
            Err(e) => Err(Error::request(e.to_string())),
        }
    }
}

fn process(
    engine: &Engine,
    request: &RunRequest,
    config: &ContainerConfig,
    root: &Root,
) -> Result<(ProcessSpec, Option<Shell>)> {
    let mut shell = None;
    let args = match &request.debug {
        Some(tools) => {
            let shell = shell.insert(Shell::new(root, tools.busybox.as_deref(), &request.command)?);
            std::mem::take(&mut shell.args)
        }
        None => arguments(request, config)?.into_iter().map(OsString::from).collect(),
    };
    let user = ids::lookup_user(root, request.user.as_deref().unwrap_or(&config.user))?;
    let cwd = request.workdir.clone().filter(|w| !w.is_empty()).unwrap_or_else(|| config.working_dir.clone());
    let cwd = PathBuf::from(if cwd.is_empty() { "/" } else { &cwd });
    if !root.exists(&cwd)? {
        root.create_dir_all(&cwd, 0o755, None)?;
    }
    let mut spec = ProcessSpec::new(crate::build::owned_fd(root)?, args);
    spec.env = environment(request, config, &user.home).into_iter().map(Into::into).collect();
    spec.cwd = cwd;
    spec.user = User { uid: user.uid, gid: user.gid, groups: user.groups };
    spec.hostname = request.hostname.clone().unwrap_or_else(|| "kiln".to_owned());
    spec.hosts =
        format!("127.0.0.1\tlocalhost {0}\n::1\tlocalhost ip6-localhost ip6-loopback\n", spec.hostname).into_bytes();
    spec.resolv_conf = engine.resolv_conf();
    spec.writable_etc = true;
    spec.network = if request.host_network { Network::Host } else { Network::None };
    spec.readonly = request.read_only;
    spec.init = request.init;
    spec.mounts = request.mounts.iter().map(bind).collect::<Result<_>>()?;
    spec.mounts.extend(shell.iter_mut().flat_map(|s| s.mounts.drain(..)));
    spec.terminal = request.terminal;
    spec.stdin = if request.interactive { inherit(0)? } else { Stdio::Null };
    spec.stdout = inherit(1)?;
    spec.stderr = inherit(2)?;
    Ok((spec, shell))
}

fn arguments(request: &RunRequest, config: &ContainerConfig) -> Result<Vec<String>> {
    let mut args: Vec<String> = match &request.entrypoint {
        Some(program) => vec![program.clone()].into_iter().filter(|p| !p.is_empty()).collect(),
        None => config.entrypoint.clone().unwrap_or_default(),
    };
    match (request.command.is_empty(), &request.entrypoint) {
        (false, _) => args.extend(request.command.iter().cloned()),
        (true, None) => args.extend(config.cmd.clone().unwrap_or_default()),
        (true, Some(_)) => {}
    }
    if args.is_empty() {
        return Err(Error::request_with_hint(
            format!("the image {} has no command", request.image),
            "name one: kiln run IMAGE COMMAND",
        ));
    }
    Ok(args)
}

fn environment(request: &RunRequest, config: &ContainerConfig, home: &str) -> Vec<String> {
    let mut env: Vec<String> = config.env.clone();
    let name = |pair: &str| pair.split('=').next().unwrap_or_default().to_owned();
    for pair in &request.env {
        env.retain(|e| name(e) != name(pair));
        env.push(pair.clone());
    }
    let has = |env: &[String], n: &str| env.iter().any(|e| name(e) == n);
    if !has(&env, "PATH") {
        env.push("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
    }
    // As runc: an empty HOME is none.
    env.retain(|e| e != "HOME=");
    if !has(&env, "HOME") {
        env.push(format!("HOME={home}"));
    }
    if request.terminal.is_some() && !has(&env, "TERM") {
        env.push("TERM=xterm".to_owned());
    }
    env
}

fn bind(mount: &BindMount) -> Result<kiln_executor::Mount> {
    use rustix::fs::{CWD, Mode, OFlags, openat};
    let path: &Path = &mount.source;
    let fd: OwnedFd = openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::io("open", path, e.into()))?;
    Ok(kiln_executor::Mount { source: MountSource::Fd(fd), target: mount.target.clone(), readonly: mount.readonly })
}

fn inherit(fd: i32) -> Result<Stdio> {
    let path = PathBuf::from(format!("/proc/self/fd/{fd}"));
    // SAFETY: descriptors 0 to 2 stay open for the whole life of the process; only a duplicate is kept.
    let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    borrowed.try_clone_to_owned().map(Stdio::Fd).map_err(|e| Error::io("open", path, e))
}
