//! Containers in the background. Each has a kiln of its own that watches it: no daemon, and none is needed to look at it.
//!
//! The watching kiln is this program again, in a session of its own, with the container's id. Its standard output and error are a
//! pipe to the kiln that started it, until the container runs: then it says so, and lets go of the pipe.

use std::fs::{File, OpenOptions};
use std::io::{PipeWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use clap::Args;
use kiln_engine::Error;
use kiln_engine::container::{Container, Error as ContainerError, LogWriter};
use kiln_engine::containers::{Connection, Streams, start};
use kiln_engine::executor::{CancelToken, Started, Stdio as Stream, Terminal};
use kiln_engine::run::Attach;

use super::containers::{named, passed_on};
use crate::environment::{Environment, watch_signals};
use crate::error::{CliError, code};

/// What the pipe says when the container runs.
const RUNS: &[u8] = b"runs";

/// Watch a container in the background; `kiln run -d` and `kiln start` do this
#[derive(Debug, Args)]
pub struct MonitorArgs {
    container: String,
}

/// Starts a container in the background. Returns when it runs; the error of one that can't be started has its exit code.
pub fn start_detached(container: &Container, environment: &Environment) -> Result<(), CliError> {
    let failed = |e: std::io::Error| CliError::failed(format!("cannot start a kiln for the container: {e}"));
    let (mut said, says) = std::io::pipe().map_err(failed)?;
    let mut monitor = Command::new("/proc/self/exe");
    monitor.arg("--root").arg(environment.root()).args(["container-monitor", container.id()]);
    monitor.current_dir("/").stdin(Stdio::null()).stdout(says.try_clone().map_err(failed)?).stderr(says);
    let mut child = monitor.spawn().map_err(failed)?;
    // It has the other ends now, and nobody else.
    drop(monitor);
    let mut text = Vec::new();
    said.read_to_end(&mut text).map_err(failed)?;
    let runs = text.strip_suffix(RUNS);
    eprint!("{}", String::from_utf8_lossy(runs.unwrap_or(&text)));
    if runs.is_some() {
        return Ok(());
    }
    let code = child.wait().ok().and_then(|status| status.code()).and_then(|c| u8::try_from(c).ok());
    Err(CliError::failed("").with_code(code.filter(|c| *c != 0).unwrap_or(code::RUN_FAILED)))
}

/// Watches the container to its end.
pub fn run(args: &MonitorArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    let _ = rustix::process::setsid();
    let mut container = named(environment, &args.container)?;
    let engine = environment.engine()?;
    let background = Arc::new(Background::new(&container)?);
    let signalled = Arc::clone(&background);
    watch_signals(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP], move |signal| signalled.signal(signal));
    let (streams, _stdin) = background.streams(&container)?;
    let cancel = CancelToken::new();
    let connection = Connection { streams, attach: &*background, cancel: &cancel };
    let exit = start(&engine, &mut container, None, connection);
    background.finish();
    if matches!(exit, Err(Error::Container(ContainerError::Running(_)))) {
        // Another kiln was asked for the same, and was faster.
        background.say_that_it_runs();
        return Ok(ExitCode::SUCCESS);
    }
    passed_on(exit, code::RUN_FAILED)
}

/// The side of a container that nobody looks at.
struct Background {
    /// Where it is written what the command says, unless that is lost.
    log: Option<Arc<LogWriter>>,
    started: Mutex<Option<Started>>,
    readers: Mutex<Vec<JoinHandle<()>>>,
}

impl Background {
    fn new(container: &Container) -> Result<Self, CliError> {
        let path = container.log_path();
        let open = || LogWriter::open(&path, container.config.log_limits).map(Arc::new);
        let log = (!container.config.unlogged).then(open).transpose().map_err(|e| Error::io("open", &path, e))?;
        Ok(Self { log, started: Mutex::default(), readers: Mutex::default() })
    }

    /// What the command reads and writes. Its input, if it is to be open, is so for as long as the second value is there.
    fn streams(&self, container: &Container) -> Result<(Streams, Option<PipeWriter>), CliError> {
        let failed = |e: std::io::Error| CliError::failed(format!("cannot make a pipe: {e}"));
        if container.config.tty {
            return Ok((Streams { terminal: Some(Terminal::default()), ..Streams::default() }, None));
        }
        let open = || {
            let (ours, theirs) = std::io::pipe().map_err(failed)?;
            Ok::<_, CliError>((OwnedFd::from(ours), Stream::Fd(theirs.into())))
        };
        let ((out, stdout), (err, stderr)) = (open()?, open()?);
        self.follow(File::from(out), "stdout");
        self.follow(File::from(err), "stderr");
        let (stdin, kept) = match container.config.interactive {
            true => std::io::pipe().map(|(theirs, ours)| (Stream::Fd(theirs.into()), Some(ours))).map_err(failed)?,
            false => (Stream::Null, None),
        };
        Ok((Streams { stdin, stdout, stderr, terminal: None }, kept))
    }

    fn follow(&self, from: File, stream: &'static str) {
        let log = self.log.clone();
        let reader = std::thread::spawn(move || match log {
            Some(log) => log.follow(from, stream),
            // It must be read all the same, or the command would wait.
            None => _ = std::io::copy(&mut { from }, &mut std::io::sink()),
        });
        self.readers.lock().unwrap_or_else(PoisonError::into_inner).push(reader);
    }

    fn signal(&self, signal: i32) {
        match &*self.started.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(started) => _ = started.signal(signal),
            // Nobody would miss it.
            None => std::process::exit(i32::from(code::INTERRUPTED)),
        }
    }

    fn say_that_it_runs(&self) {
        let _ = std::io::stdout().write_all(RUNS).and_then(|()| std::io::stdout().flush());
    }

    /// Writes what is left of the output.
    fn finish(&self) {
        for reader in std::mem::take(&mut *self.readers.lock().unwrap_or_else(PoisonError::into_inner)) {
            let _ = reader.join();
        }
    }
}

impl Attach for Background {
    fn starting(&self) {}

    fn started(&self, mut started: Started) {
        if let Some(terminal) = started.terminal.take() {
            self.follow(File::from(terminal), "stdout");
        }
        *self.started.lock().unwrap_or_else(PoisonError::into_inner) = Some(started);
        self.say_that_it_runs();
        if let Ok(null) = OpenOptions::new().read(true).write(true).open("/dev/null") {
            let _ = rustix::stdio::dup2_stdout(&null);
            let _ = rustix::stdio::dup2_stderr(&null);
        }
    }
}
