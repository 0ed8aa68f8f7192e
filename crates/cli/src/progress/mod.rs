//! Readers of the engine's events: what a person or a machine sees while a build runs.
//!
//! Events arrive from many threads and are handed to one display thread, so that lines never mix and a slow
//! terminal never holds a build up.

mod format;
mod plain;
mod rawjson;
mod transfer;
mod tty;

use std::io::IsTerminal;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use kiln_engine::events::{Event, EventSink};

pub use format::{after_carriage_return, human_size, printable};
pub use transfer::Direction;

/// What to show; the values of `--progress`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// `tty` on a terminal, else `plain`.
    Auto,
    /// Lines redrawn in place.
    Tty,
    /// One line for each thing that happens.
    Plain,
    /// Nothing until the end.
    Quiet,
    /// BuildKit's JSON, one object a line.
    Rawjson,
}

/// A running display.
pub struct Display {
    events: Mutex<Option<Sender<Event>>>,
    thread: Mutex<Option<JoinHandle<bool>>>,
    screen: Arc<Mutex<Screen>>,
}

/// Who may write to the screen; the display thread holds it while it shows something.
#[derive(Default)]
struct Screen {
    /// Something else wrote to it.
    disturbed: bool,
}

/// One way of showing events.
trait Renderer: Send {
    /// Takes an event.
    fn event(&mut self, event: Event);
    /// Called every 100 ms while anything runs.
    fn tick(&mut self) {}
    /// Called when something else has written to the screen.
    fn disturbed(&mut self) {}
    /// Called once, after the last event. Tells whether the output of the step that failed is what the screen ends with.
    fn finish(&mut self) -> bool {
        false
    }
}

struct Quiet;

impl Renderer for Quiet {
    fn event(&mut self, event: Event) {
        if let Event::Warning(text) = event {
            eprintln!("WARNING: {text}");
        }
    }
}

impl Display {
    /// Starts showing events on standard error. `explain` adds the reason for each step that was not cached.
    pub fn start(mode: Mode, explain: bool) -> Arc<Self> {
        let terminal = std::io::stderr().is_terminal();
        let renderer: Box<dyn Renderer> = match mode {
            Mode::Quiet => Box::new(Quiet),
            Mode::Rawjson => Box::new(rawjson::RawJson::default()),
            Mode::Tty => Box::new(tty::Tty::new(explain)),
            Mode::Auto if terminal => Box::new(tty::Tty::new(explain)),
            Mode::Auto | Mode::Plain => Box::new(plain::Plain::new(explain, terminal)),
        };
        Self::showing(renderer)
    }

    /// Shows layers that are transferred, on standard error; of a quiet one warnings only.
    pub fn transfer(direction: Direction, quiet: bool) -> Arc<Self> {
        let terminal = std::io::stderr().is_terminal();
        match quiet {
            true => Self::showing(Box::new(Quiet)),
            false => Self::showing(Box::new(transfer::Transfer::new(direction, terminal))),
        }
    }

    fn showing(renderer: Box<dyn Renderer>) -> Arc<Self> {
        let (sender, receiver) = channel();
        let screen = Arc::<Mutex<Screen>>::default();
        let theirs = Arc::clone(&screen);
        let thread = std::thread::Builder::new().name("display".into());
        let thread = thread.spawn(move || show(renderer, &receiver, &theirs)).ok();
        Arc::new(Self { events: Mutex::new(Some(sender)), thread: Mutex::new(thread), screen })
    }

    /// Nothing is shown while `then` has the screen; what happens meanwhile is shown afterwards.
    pub fn pause<T>(&self, then: impl FnOnce() -> T) -> T {
        let mut screen = self.screen.lock().unwrap_or_else(PoisonError::into_inner);
        screen.disturbed = true;
        then()
    }

    /// Shows what is left and ends the display. Later events are dropped. Tells whether the output of the step that failed
    /// is what the screen ends with.
    pub fn finish(&self) -> bool {
        drop(self.events.lock().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        thread.is_some_and(|t| t.join().unwrap_or(false))
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        self.finish();
    }
}

impl EventSink for Display {
    fn event(&self, event: Event) {
        if let Some(sender) = &*self.events.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = sender.send(event);
        }
    }
}

fn show(mut renderer: Box<dyn Renderer>, events: &Receiver<Event>, screen: &Mutex<Screen>) -> bool {
    let mut last_tick = std::time::Instant::now();
    loop {
        let event = events.recv_timeout(Duration::from_millis(100));
        let mut screen = screen.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut screen.disturbed) {
            renderer.disturbed();
        }
        match event {
            Ok(event) => renderer.event(event),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if last_tick.elapsed() >= Duration::from_millis(100) {
            renderer.tick();
            last_tick = std::time::Instant::now();
        }
    }
    renderer.finish()
}
