//! A container in the foreground: its terminal is shown in the user's, and signals are passed on.
//!
//! The user's terminal is as it was before when a container is detached, however it ended. The first interrupt is the
//! container's; who asks twice ends it.

use std::fs::File;
use std::io::{ErrorKind, IsTerminal, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use kiln_engine::executor::{CancelToken, Started, Terminal};
use kiln_engine::run::Attach;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use crate::environment::{end_soon, watch_signals};
use crate::error::CliError;

/// Signals that are the container's business.
const FORWARDED: [i32; 6] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2];

/// What connects the user with containers, one at a time.
pub struct Foreground {
    shared: Arc<Shared>,
    cancel: CancelToken,
    /// Keys go to the container.
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
    /// Requests to end.
    asked: u32,
    terminal: Option<Attached>,
}

/// A container's terminal that is shown.
struct Attached {
    /// A duplicate of it, for its size.
    size: OwnedFd,
    /// Copies what the container shows.
    output: JoinHandle<()>,
    /// How the user's terminal was before, if keys are passed on; closing the pipe ends that.
    keys: Option<(Termios, PipeWriter)>,
}

impl Foreground {
    /// With `interactive` and `terminal` the user must have a terminal, which is better told before anything is made.
    pub fn check(interactive: bool, terminal: bool) -> Result<(), CliError> {
        if interactive && terminal && !std::io::stdin().is_terminal() {
            return Err(CliError::failed("the input device is not a terminal").with_hint("leave --tty out"));
        }
        Ok(())
    }

    /// Takes over signals. To be called before any thread is started.
    pub fn new(interactive: bool, terminal: bool) -> Result<Self, CliError> {
        Self::check(interactive, terminal)?;
        let shared = Arc::<Shared>::default();
        let cancel = CancelToken::new();
        let (theirs, token) = (Arc::clone(&shared), cancel.clone());
        let mut watched = FORWARDED.to_vec();
        watched.push(libc::SIGWINCH);
        watch_signals(&watched, move |signal| theirs.signal(signal, &token));
        Ok(Self { shared, cancel, interactive })
    }

    /// Ends what is under way.
    pub fn cancel(&self) -> &CancelToken {
        &self.cancel
    }

    /// Shows the rest of what the container wrote, and gives the user's terminal back.
    pub fn detach(&self) {
        let ended = std::mem::take(&mut *self.shared.lock());
        if let Some(terminal) = ended.terminal {
            let _ = terminal.output.join();
            if let Some((before, stop)) = terminal.keys {
                let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &before);
                drop(stop);
            }
        }
    }

    fn terminal(&self, terminal: File) -> std::io::Result<Attached> {
        let size = terminal.as_fd().try_clone_to_owned()?;
        let from = terminal.try_clone()?;
        let output = std::thread::spawn(move || show(from));
        let keys = match self.interactive {
            true => {
                let (end, stop) = std::io::pipe()?;
                let before = make_raw()?;
                std::thread::spawn(move || pass_keys(terminal, end));
                Some((before, stop))
            }
            false => None,
        };
        Ok(Attached { size, output, keys })
    }
}

impl Attach for Foreground {
    fn starting(&self) {
        self.shared.lock().starting = true;
    }

    fn started(&self, mut started: Started) {
        let terminal = started.terminal.take().map(File::from);
        let mut container = self.shared.lock();
        container.terminal = terminal.and_then(|terminal| self.terminal(terminal).ok());
        for signal in std::mem::take(&mut container.waiting) {
            let _ = started.signal(signal);
        }
        container.started = Some(started);
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        self.detach();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Container> {
        self.container.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal(&self, signal: i32, cancel: &CancelToken) {
        let mut container = self.lock();
        if signal == libc::SIGWINCH {
            if let (Some(terminal), Some(size)) = (&container.terminal, user_size()) {
                let _ = tcsetwinsize(&terminal.size, size);
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
            Some(_) => cancel.cancel(),
            None => {
                cancel.cancel();
                // It may wait for another kiln, or for what can't be interrupted.
                end_soon();
            }
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

fn make_raw() -> rustix::io::Result<Termios> {
    let before = tcgetattr(std::io::stdin())?;
    let mut raw = before.clone();
    raw.make_raw();
    tcsetattr(std::io::stdin(), OptionalActions::Now, &raw)?;
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

/// Until `end` is closed or the user's terminal is.
fn pass_keys(mut to: File, end: PipeReader) {
    let mut buffer = [0; 4096];
    loop {
        let stdin = std::io::stdin();
        let mut ready = [PollFd::new(&stdin, PollFlags::IN), PollFd::new(&end, PollFlags::IN)];
        match poll(&mut ready, None) {
            Ok(_) if !ready[1].revents().is_empty() => return,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
        if ready[0].revents().is_empty() {
            continue;
        }
        // Past the library's buffer, which could keep keys that are not ours.
        match rustix::io::read(&stdin, &mut buffer) {
            Ok(n @ 1..) if to.write_all(&buffer[..n]).is_ok() => {}
            _ => return,
        }
    }
}
