//! A container in the foreground: its terminal is shown in the user's, and signals are passed on.
//!
//! The user's terminal is as it was before when [`Foreground`] is gone, however the container ended. The first interrupt is
//! the container's; who asks twice ends it.

use std::fs::File;
use std::io::{ErrorKind, IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use kiln_engine::executor::{CancelToken, Started, Terminal};
use kiln_engine::run::Attach;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use crate::environment::watch_signals;
use crate::error::CliError;

/// Signals that are the container's business.
const FORWARDED: [i32; 6] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2];

/// What connects the user with one container.
pub struct Foreground {
    shared: Arc<Shared>,
    cancel: CancelToken,
    /// The user's terminal passes on every key, and how it was before.
    raw: Option<Termios>,
    interactive: bool,
}

#[derive(Default)]
struct Shared {
    container: Mutex<Container>,
}

#[derive(Default)]
struct Container {
    starting: bool,
    started: Option<Started>,
    /// Signals that came when it was about to run.
    waiting: Vec<i32>,
    /// A duplicate of the container's terminal, for its size.
    terminal: Option<OwnedFd>,
    /// Copies what the container shows.
    output: Option<JoinHandle<()>>,
    /// Requests to end.
    asked: u32,
}

impl Foreground {
    /// Takes over signals, and with `terminal` the user's terminal. To be called before any thread is started.
    pub fn new(interactive: bool, terminal: bool) -> Result<Self, CliError> {
        if interactive && terminal && !std::io::stdin().is_terminal() {
            return Err(CliError::failed("the input device is not a terminal").with_hint("leave --tty out"));
        }
        let shared = Arc::<Shared>::default();
        let cancel = CancelToken::new();
        let (theirs, token) = (Arc::clone(&shared), cancel.clone());
        let mut watched = FORWARDED.to_vec();
        watched.push(libc::SIGWINCH);
        watch_signals(&watched, move |signal| theirs.signal(signal, &token));
        let raw = if interactive && terminal { Some(make_raw()?) } else { None };
        Ok(Self { shared, cancel, raw, interactive })
    }

    /// Ends the container.
    pub fn cancel(&self) -> &CancelToken {
        &self.cancel
    }

    /// Shows the rest of what the container wrote, and gives the user's terminal back.
    pub fn finish(self) {
        let output = {
            let mut container = self.shared.lock();
            container.started = None;
            container.terminal = None;
            container.output.take()
        };
        if let Some(output) = output {
            let _ = output.join();
        }
    }
}

impl Attach for Foreground {
    fn starting(&self) {
        self.shared.lock().starting = true;
    }

    fn started(&self, mut started: Started) {
        let terminal = started.terminal.take().map(File::from);
        let mut container = self.shared.lock();
        if let Some(terminal) = terminal {
            container.terminal = terminal.as_fd().try_clone_to_owned().ok();
            if let Ok(from) = terminal.try_clone() {
                container.output = Some(std::thread::spawn(move || show(from)));
            }
            if self.interactive {
                // Ends with the process: a read of the user's terminal can't be interrupted.
                std::thread::spawn(move || pass_keys(terminal));
            }
        }
        for signal in std::mem::take(&mut container.waiting) {
            let _ = started.signal(signal);
        }
        container.started = Some(started);
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        if let Some(before) = &self.raw {
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, before);
        }
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Container> {
        self.container.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal(&self, signal: i32, cancel: &CancelToken) {
        let mut container = self.lock();
        if signal == libc::SIGWINCH {
            if let (Some(terminal), Some(size)) = (&container.terminal, user_size()) {
                let _ = tcsetwinsize(terminal, size);
            }
            return;
        }
        if matches!(signal, libc::SIGINT | libc::SIGTERM) {
            container.asked += 1;
        }
        match &container.started {
            // Process 1 ignores signals that it has no handler for, so the first one may do nothing.
            Some(started) if container.asked < 2 => {
                let _ = started.signal(signal);
            }
            None if container.starting && container.asked < 2 => container.waiting.push(signal),
            _ => cancel.cancel(),
        }
    }
}

/// The size of the user's terminal, for the container's.
pub fn terminal_size() -> Terminal {
    user_size().map_or_else(Terminal::default, |size| Terminal { rows: size.ws_row, columns: size.ws_col })
}

fn user_size() -> Option<rustix::termios::Winsize> {
    let size = tcgetwinsize(std::io::stdout()).or_else(|_| tcgetwinsize(std::io::stdin())).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some(size)
}

fn make_raw() -> Result<Termios, CliError> {
    let failed = |e: rustix::io::Errno| CliError::failed(format!("cannot set up the terminal: {e}"));
    let before = tcgetattr(std::io::stdin()).map_err(failed)?;
    let mut raw = before.clone();
    raw.make_raw();
    tcsetattr(std::io::stdin(), OptionalActions::Now, &raw).map_err(failed)?;
    Ok(before)
}

/// Until the last process of the container has closed its terminal, which a reader sees as an error.
fn show(mut from: File) {
    let mut buffer = [0; 16 << 10];
    let mut out = std::io::stdout();
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => {
                if out.write_all(&buffer[..n]).and_then(|()| out.flush()).is_err() {
                    return;
                }
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

fn pass_keys(mut to: File) {
    let mut buffer = [0; 4096];
    let mut keys = std::io::stdin();
    while let Ok(n @ 1..) = keys.read(&mut buffer) {
        if to.write_all(&buffer[..n]).is_err() {
            return;
        }
    }
}
