//! RUN: a process over a new layer.

use std::ffi::OsString;
use std::io::{PipeReader, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kiln_executor::{
    Exit, Limits, Network, NotEnforced, Pretended, ProcessSpec, Security, Started, Stdio, Terminal, Ulimit, User,
};
use kiln_graph::{ExecOp, NetworkMode, SecurityMode, Vertex};
use kiln_rootfs::claim::Before;
use kiln_rootfs::{Owner, Ownership, Root, Target, ids};
use kiln_store::{LayerMeta, Snapshot};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::mounts::Mounts;
use crate::admission::is_awake;
use crate::build::{Job, owned_fd};
use crate::debug::{OnFailure, Shell};
use crate::error::{Cause, Error, Result, StepError};
use crate::events::Stream;
use crate::run::Attach;
use crate::steps::Step;
use crate::value::Value;

/// Lines of output that are shown again when a step fails.
const TAIL: usize = 20;
/// A step that says nothing and does nothing for this long is named.
const HUNG_AFTER: Duration = Duration::from_secs(300);
/// How often, and how far apart, it is made sure that it does nothing.
const LOOKS: u32 = 10;
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Runs the process; what it wrote to its root becomes the new layer.
pub fn run(job: &Job, vertex: &Vertex, op: &ExecOp, inputs: &[Value], step: &Step) -> Result<Snapshot> {
    let permit = job.admission.enter();
    if job.cancel.is_cancelled() {
        return Err(Error::Cancelled);
    }
    tell_shortage(job);
    let base = root_input(op, inputs)?;
    let draft = job.engine.store.layers().draft()?;
    if let Some(top) = job.engine.views.top(&base)? {
        // The layer's own directory stands for `/`: it has the base's owner, mode and time.
        let upper = Root::open(draft.fs())?.with_ownership(job.engine.ownership);
        Target::over(upper, top.into()).adopt_root()?;
    }
    let root = job.engine.views.writable(&base, draft.fs(), draft.work())?;
    let mut mounts = Mounts::prepare(job, op, inputs, step)?;
    if job.engine.ownership == Ownership::Recorded {
        mounts.for_single_id(&root)?;
    }
    let output = Output::new(job, vertex, step)?;
    let mut spec = process(job, op, &root, &mounts)?;
    (spec.stdout, spec.stderr) = output.take_writers();
    let claim = Claim::prepare(job, &spec.user, draft.fs())?;
    spec.mounts = std::mem::take(&mut mounts.list);
    let started = |started: Started| {
        permit.started(started.pid);
        output.pid.store(started.pid, Ordering::Relaxed);
        tell_not_enforced(job, &started.not_enforced);
    };
    let exit = job.engine.executor()?.run(spec, started, &job.cancel);
    let tail = output.finish();
    // Caches are free again: a shell wants them, too.
    drop(mounts);
    let exit = match exit {
        Ok(exit) => exit,
        Err(kiln_executor::Error::Cancelled) => return Err(Error::Cancelled),
        Err(error) => return Err(failure(job, vertex, Cause::Other(Box::new(error.into())), tail)),
    };
    let unclaimed = claim.map(Claim::finish).transpose()?;
    tell_pretended(job, vertex, &exit.pretended, unclaimed);
    let checked = check(job, vertex, op, &exit, tail);
    if let (Err(_), Some(hook)) = (&checked, &job.request.on_failure) {
        Failed { job, vertex, op, inputs, step }.shell(&root, hook)?;
    }
    drop(root);
    checked?;
    let layer = draft.commit(LayerMeta::default())?;
    Ok(base.with(layer))
}

/// With a single id the kernel makes all files root's: those of another user are given to it when the process has ended.
struct Claim {
    upper: Root,
    before: Before,
    owner: Owner,
}

impl Claim {
    fn prepare(job: &Job, user: &User, upper: &Path) -> Result<Option<Self>> {
        if job.engine.ownership != Ownership::Recorded || user.uid == 0 {
            return Ok(None);
        }
        let upper = Root::open(upper)?.with_ownership(Ownership::Recorded);
        let before = Before::of(&upper)?;
        Ok(Some(Self { upper, before, owner: Owner { uid: user.uid, gid: user.gid } }))
    }

    /// Returns how many files could not be given.
    fn finish(self) -> Result<u64> {
        Ok(self.before.claim(&self.upper, self.owner)?)
    }
}

/// Says, once in a build and before it matters, which limits the steps do not have.
fn tell_not_enforced(job: &Job, limits: &[NotEnforced]) {
    if limits.is_empty() {
        return;
    }
    job.told_limits.call_once(|| {
        for NotEnforced { limit, reason } in limits {
            job.steps.warn(format!("the limit {limit} of RUN steps is not enforced: {reason}"));
        }
    });
}

/// Says, once in a build and before a step runs, that there are fewer ids than images expect.
fn tell_shortage(job: &Job) {
    job.told_ids.call_once(|| {
        let Some(short) = kiln_executor::shortage() else { return };
        let what = match short.ids {
            1 => "RUN steps have a single user id: owners that they give to files are recorded for the image, their own programs \
                  see root"
                .to_owned(),
            ids => format!("RUN steps have the user ids up to {} only, others can't be used", ids.saturating_sub(1)),
        };
        let remedy = short.remedy.map(|r| format!(" ({r})")).unwrap_or_default();
        job.steps.warn(format!("{what}. Why: {}{remedy}", short.detail));
    });
}

/// Says, once in a build, what a step was told but is not in the image either.
fn tell_pretended(job: &Job, vertex: &Vertex, pretended: &Pretended, unclaimed: Option<u64>) {
    let what = match (pretended, unclaimed) {
        (_, Some(1)) => "1 link that it made as another user than root belongs to root".to_owned(),
        (_, Some(left @ 2..)) => format!("{left} links that it made as another user than root belong to root"),
        (Pretended { chown: 1.., .. }, _) => {
            format!("{} changes of owners had no effect (links and devices can not record theirs)", pretended.chown)
        }
        _ => return,
    };
    job.told_owners.call_once(|| job.steps.warn(format!("{}: {what}, for want of user ids", vertex.meta.name)));
}

fn root_input(op: &ExecOp, inputs: &[Value]) -> Result<Snapshot> {
    let root = op.mounts.iter().find(|m| m.dest == "/");
    let input = root.and_then(|m| m.input);
    match input.map(|i| inputs.get(i)) {
        None => Ok(Snapshot::default()),
        Some(Some(Value::Tree { snapshot, .. })) => Ok(snapshot.clone()),
        Some(_) => Err(Error::request("a step can't run over a local context")),
    }
}

/// What the process is: everything but its mounts.
fn process(job: &Job, op: &ExecOp, root: &Root, mounts: &Mounts) -> Result<ProcessSpec> {
    let user = ids::lookup_user(root, &op.user)?;
    let mut env: Vec<OsString> = op.env.iter().map(OsString::from).collect();
    let has = |env: &[OsString], name: &str| env.iter().any(|e| e.to_string_lossy().starts_with(&format!("{name}=")));
    for (name, value) in &op.proxy.0 {
        if !has(&env, name) {
            env.push(format!("{name}={value}").into());
        }
    }
    env.extend(mounts.env.iter().cloned());
    // As runc: an empty HOME is none.
    env.retain(|e| e != "HOME=");
    if !has(&env, "HOME") {
        env.push(format!("HOME={}", user.home).into());
    }
    let cwd = PathBuf::from(if op.cwd.is_empty() { "/" } else { &op.cwd });
    if !root.exists(&cwd)? {
        root.create_dir_all(&cwd, 0o755, None)?;
    }
    let mut spec = ProcessSpec::new(owned_fd(root)?, &op.args);
    spec.env = env;
    spec.cwd = cwd;
    spec.user = User { uid: user.uid, gid: user.gid, groups: user.groups };
    spec.hostname = op.hostname.clone().unwrap_or_else(|| "buildkitsandbox".to_owned());
    spec.hosts = hosts_file(&spec.hostname, &op.extra_hosts);
    spec.resolv_conf = job.engine.resolv_conf();
    spec.network = match op.network {
        NetworkMode::Default | NetworkMode::Host => Network::Host,
        NetworkMode::None => Network::None,
    };
    spec.security = match op.security {
        SecurityMode::Sandbox => Security::Sandbox,
        SecurityMode::Insecure => Security::Insecure,
    };
    spec.limits = limits(op)?;
    Ok(spec)
}

/// A step that failed, with what it was given.
struct Failed<'a> {
    job: &'a Job,
    vertex: &'a Vertex,
    op: &'a ExecOp,
    inputs: &'a [Value],
    step: &'a Step,
}

impl Failed<'_> {
    /// A shell in the file system as the step left it, with its mounts, environment and user.
    fn shell(&self, root: &Root, hook: &OnFailure) -> Result<()> {
        let job = self.job;
        let mut run = |terminal: Terminal, attach: &dyn Attach| {
            let mut mounts = Mounts::prepare(job, self.op, self.inputs, self.step)?;
            let mut shell = Shell::new(root, hook.tools.as_deref(), &[])?;
            let mut spec = process(job, self.op, root, &mounts)?;
            spec.args = std::mem::take(&mut shell.args);
            spec.mounts = std::mem::take(&mut mounts.list);
            spec.mounts.append(&mut shell.mounts);
            spec.terminal = Some(terminal);
            attach.starting();
            match job.engine.executor()?.run(spec, |started| attach.started(started), &job.cancel) {
                Ok(_) | Err(kiln_executor::Error::Cancelled) => Ok(()),
                Err(error) => Err(error.into()),
            }
        };
        hook.show.show(&job.steps.shown(&self.vertex.meta.name), &mut run)
    }
}

/// `/etc/hosts` of a step or container.
pub(crate) fn hosts_file(hostname: &str, extra: &[kiln_graph::HostIp]) -> Vec<u8> {
    let mut text = format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for host in extra {
        // The host's network is shared, so its gateway is the host itself.
        let ip = if host.ip == "host-gateway" { "127.0.0.1" } else { &host.ip };
        text.push_str(&format!("{ip}\t{}\n", host.host));
    }
    text.into_bytes()
}

fn limits(op: &ExecOp) -> Result<Limits> {
    let r = &op.resources;
    let mut ulimits = Vec::new();
    for limit in &op.limits.ulimits {
        let resource = Ulimit::resource(&limit.name)
            .ok_or_else(|| Error::request(format!("--ulimit {}: there is no such limit", limit.name)))?;
        let value = |v: i64| u64::try_from(v).unwrap_or(u64::MAX);
        ulimits.push(Ulimit { resource, soft: value(limit.soft), hard: value(limit.hard) });
    }
    Ok(Limits {
        memory: r.memory,
        memory_swap: r.memory_swap,
        cpu_quota: r.cpu_quota.and_then(|q| u64::try_from(q).ok()),
        cpu_period: r.cpu_period,
        cpu_shares: r.cpu_shares,
        cpuset_cpus: r.cpuset_cpus.clone(),
        cpuset_mems: r.cpuset_mems.clone(),
        pids: r.pids,
        ulimits,
        shm_size: op.limits.shm_size,
        oom_score_adj: None,
    })
}

fn check(job: &Job, vertex: &Vertex, op: &ExecOp, exit: &Exit, tail: Vec<String>) -> Result<()> {
    let code = exit.shell_code();
    let fine = if op.valid_exit_codes.is_empty() { code == 0 } else { op.valid_exit_codes.contains(&code) };
    if fine {
        return Ok(());
    }
    let cause = match (exit.oom_killed, exit.oom_suspected) {
        (true, _) => Cause::OutOfMemory { limit: op.resources.memory },
        (false, true) => Cause::OutOfMemory { limit: None },
        (false, false) => Cause::Exit { code },
    };
    Err(failure(job, vertex, cause, tail))
}

fn failure(job: &Job, vertex: &Vertex, cause: Cause, output: Vec<String>) -> Error {
    Error::Step(Box::new(StepError {
        name: job.steps.shown(&vertex.meta.name),
        location: vertex.meta.location.clone(),
        source_text: job.dockerfile.clone(),
        cause,
        output,
    }))
}

/// The process's output: two pipes, read by a thread that hides secrets and sends what is left as events.
struct Output {
    writers: Mutex<Option<(OwnedFd, OwnedFd)>>,
    reader: std::thread::JoinHandle<()>,
    tail: Arc<Mutex<Tail>>,
    /// The first process, once there is one.
    pid: Arc<AtomicI32>,
}

#[derive(Default)]
struct Tail {
    lines: std::collections::VecDeque<String>,
    partial: Vec<u8>,
}

impl Output {
    fn new(job: &Job, vertex: &Vertex, step: &Step) -> Result<Self> {
        let pipe = || std::io::pipe().map_err(|e| Error::io("open", "a pipe", e));
        let ((stdout, for_stdout), (stderr, for_stderr)) = (pipe()?, pipe()?);
        let readers = [(Stream::Stdout, stdout), (Stream::Stderr, stderr)].map(|(stream, pipe)| Reader {
            stream,
            pipe,
            redactor: job.redactor.another(),
        });
        let (tail, pid): (Arc<Mutex<Tail>>, Arc<AtomicI32>) = Default::default();
        let log = Log {
            steps: job.steps.clone(),
            id: step.id(),
            name: job.steps.shown(&vertex.meta.name),
            tail: Arc::clone(&tail),
            pid: Arc::clone(&pid),
        };
        let reader = std::thread::Builder::new().name("output".into());
        let reader = reader.spawn(move || log.pump(readers.into(), HUNG_AFTER));
        let reader = reader.map_err(|e| Error::io("start a thread for", "the output of a step", e))?;
        Ok(Self { writers: Mutex::new(Some((for_stdout.into(), for_stderr.into()))), reader, tail, pid })
    }

    fn take_writers(&self) -> (Stdio, Stdio) {
        match self.writers.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some((stdout, stderr)) => (Stdio::Fd(stdout), Stdio::Fd(stderr)),
            None => (Stdio::Null, Stdio::Null),
        }
    }

    /// Waits for the rest of the output; returns its last lines.
    fn finish(self) -> Vec<String> {
        drop(self.take_writers());
        let _ = self.reader.join();
        let mut tail = std::mem::take(&mut *self.tail.lock().unwrap_or_else(PoisonError::into_inner));
        if !tail.partial.is_empty() {
            tail.push(b"\n");
        }
        tail.lines.into()
    }
}

struct Log {
    steps: crate::steps::Steps,
    id: crate::events::StepId,
    name: String,
    tail: Arc<Mutex<Tail>>,
    pid: Arc<AtomicI32>,
}

/// One stream of the process.
struct Reader {
    stream: Stream,
    pipe: PipeReader,
    redactor: kiln_secrets::Redactor,
}

impl Log {
    /// Reads both streams to their ends. A step that is silent for so long, and sleeps, is named once.
    fn pump(&self, mut readers: Vec<Reader>, hung_after: Duration) {
        let mut buffer = vec![0; 16 << 10];
        let mut timeout = Timespec::try_from(hung_after).ok();
        while !readers.is_empty() {
            let mut fds: Vec<_> = readers.iter().map(|r| PollFd::new(&r.pipe, PollFlags::IN)).collect();
            // If it was interrupted nothing is known of any: a read of an idle one would wait.
            let polled = rustix::event::poll(&mut fds, timeout.as_ref());
            if polled == Ok(0) && self.tell_hung(hung_after) {
                timeout = None;
            }
            let ready: Vec<bool> = fds.iter().map(|fd| polled.is_ok() && !fd.revents().is_empty()).collect();
            let mut ready = ready.into_iter();
            readers.retain_mut(|reader| !ready.next().unwrap_or(false) || self.read(reader, &mut buffer));
        }
    }

    fn tell_hung(&self, silent: Duration) -> bool {
        let pid = self.pid.load(Ordering::Relaxed);
        // More than one look: what computes also sleeps now and then.
        let mut looks = 0..LOOKS;
        let sleeps = pid != 0
            && looks.all(|_| {
                std::thread::sleep(LOOK_AGAIN);
                !is_awake(pid)
            });
        if sleeps {
            let minutes = silent.as_secs().div_ceil(60);
            self.steps.warn(format!(
                "{} may hang: for {minutes} min it has written nothing, and all its processes sleep",
                self.name
            ));
        }
        sleeps
    }

    /// Reads once from a stream that has something. Returns false at its end.
    fn read(&self, reader: &mut Reader, buffer: &mut [u8]) -> bool {
        match reader.pipe.read(buffer) {
            Ok(n) if n > 0 => self.emit(reader.stream, &reader.redactor.push(&buffer[..n])),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            _ => {
                self.emit(reader.stream, &reader.redactor.finish());
                return false;
            }
        }
        true
    }

    fn emit(&self, stream: Stream, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.tail.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
        self.steps.sink().event(crate::events::Event::Log { id: self.id, stream, bytes: bytes.into() });
    }
}

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            self.partial.extend_from_slice(piece);
            if self.partial.ends_with(b"\n") || self.partial.len() > 4096 {
                let line = String::from_utf8_lossy(&self.partial).trim_end().to_owned();
                self.partial.clear();
                self.lines.push_back(line);
                if self.lines.len() > TAIL {
                    self.lines.pop_front();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::events::{Event, EventSink};

    #[derive(Default)]
    struct Warnings(Mutex<Vec<String>>);

    impl EventSink for Warnings {
        fn event(&self, event: Event) {
            if let Event::Warning(text) = event {
                self.0.lock().unwrap().push(text);
            }
        }
    }

    #[test]
    fn a_step_that_says_and_does_nothing_is_named_once() {
        let warnings: Arc<Warnings> = Arc::default();
        let mut sleeping = Command::new("sleep").arg("60").spawn().unwrap();
        let steps = crate::steps::Steps::new(warnings.clone());
        let id = steps.begin("step").id();
        let pid = Arc::new(AtomicI32::new(sleeping.id() as i32));
        let log = Log { steps, id, name: "[2/2] RUN wait".into(), tail: Arc::default(), pid };
        let (pipe, writer) = std::io::pipe().unwrap();
        let redactor = kiln_secrets::Redactor::new(&[]);
        let reader = Reader { stream: Stream::Stdout, pipe, redactor };
        let pump = std::thread::spawn(move || log.pump(vec![reader], Duration::from_millis(1)));
        while warnings.0.lock().unwrap().is_empty() {
            std::thread::yield_now();
        }
        drop(writer);
        pump.join().unwrap();
        sleeping.kill().unwrap();
        sleeping.wait().unwrap();
        let said = warnings.0.lock().unwrap().clone();
        assert!(said.len() == 1 && said[0].starts_with("[2/2] RUN wait may hang"), "{said:?}");
    }
}
