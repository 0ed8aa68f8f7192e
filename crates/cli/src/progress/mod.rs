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
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

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

/// How long events gather before they are shown: to wake the display thread for each of them costs more than to show it.
const GATHER: Duration = Duration::from_millis(10);

/// The time between two ticks of a renderer.
const TICK: Duration = Duration::from_millis(100);

/// A running display.
pub struct Display {
    queue: Arc<Queue>,
    thread: Mutex<Option<JoinHandle<bool>>>,
    screen: Arc<Mutex<Screen>>,
}

/// Events that were not shown yet.
#[derive(Default)]
struct Queue {
    state: Mutex<Gathered>,
    changed: Condvar,
}

#[derive(Default)]
struct Gathered {
    events: Vec<Event>,
    /// No more are taken.
    ended: bool,
    /// The display thread sleeps until there is an event.
    idle: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Gathered> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, event: Event) {
        let mut state = self.lock();
        if state.ended {
            return;
        }
        state.events.push(event);
        if std::mem::take(&mut state.idle) {
            self.changed.notify_one();
        }
    }

    fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_one();
    }

    /// Waits for events, for `TICK` at most. Returns what there is, and whether it is the last.
    fn next(&self) -> (Vec<Event>, bool) {
        let mut state = self.lock();
        if state.events.is_empty() {
            state.idle = true;
            let nothing = |s: &mut Gathered| s.events.is_empty() && !s.ended;
            state = self.changed.wait_timeout_while(state, TICK, nothing).unwrap_or_else(PoisonError::into_inner).0;
            state.idle = false;
        }
        (std::mem::take(&mut state.events), state.ended)
    }

    fn gather(&self) {
        let state = self.lock();
        drop(self.changed.wait_timeout_while(state, GATHER, |s| !s.ended));
    }
}

/// Who may write to the screen; the display thread holds it while it shows something.
#[derive(Default)]
struct Screen {
    /// Something else wrote to it.
    disturbed: bool,
    /// What it shows has failed.
    failed: bool,
}

/// One way of showing events.
trait Renderer: Send {
    /// Takes an event.
    fn event(&mut self, event: Event);
    /// Called every 100 ms while anything runs.
    fn tick(&mut self) {}
    /// Called when something else has written to the screen.
    fn disturbed(&mut self) {}
    /// Called once, after the last event, with how it all ended. Tells whether the output of the step that failed is what the
    /// screen ends with.
    fn finish(&mut self, _failed: bool) -> bool {
        false
    }
}

/// Whether what is on standard error can be drawn over.
fn can_redraw() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|kind| kind != "dumb")
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
        let terminal = can_redraw();
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
        let terminal = can_redraw();
        match quiet {
            true => Self::showing(Box::new(Quiet)),
            false => Self::showing(Box::new(transfer::Transfer::new(direction, terminal))),
        }
    }

    fn showing(renderer: Box<dyn Renderer>) -> Arc<Self> {
        let (queue, screen) = (Arc::<Queue>::default(), Arc::<Mutex<Screen>>::default());
        let theirs = (Arc::clone(&queue), Arc::clone(&screen));
        let thread = std::thread::Builder::new().name("display".into());
        let thread = thread.spawn(move || show(renderer, &theirs.0, &theirs.1)).ok();
        if thread.is_none() {
            queue.end();
        }
        Arc::new(Self { queue, thread: Mutex::new(thread), screen })
    }

    /// Nothing is shown while `then` has the screen; what happens meanwhile is shown afterwards.
    pub fn pause<T>(&self, then: impl FnOnce() -> T) -> T {
        let mut screen = self.screen.lock().unwrap_or_else(PoisonError::into_inner);
        screen.disturbed = true;
        then()
    }

    /// The same for what failed, also if no step did.
    pub fn finish_failed(&self) -> bool {
        self.screen.lock().unwrap_or_else(PoisonError::into_inner).failed = true;
        self.finish()
    }

    /// Shows what is left and ends the display. Later events are dropped. Tells whether the output of the step that failed
    /// is what the screen ends with.
    pub fn finish(&self) -> bool {
        self.queue.end();
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
        self.queue.push(event);
    }
}

fn show(mut renderer: Box<dyn Renderer>, queue: &Queue, screen: &Mutex<Screen>) -> bool {
    let mut last_tick = Instant::now();
    loop {
        let (events, ended) = queue.next();
        let mut screen = screen.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut screen.disturbed) {
            renderer.disturbed();
        }
        events.into_iter().for_each(|e| renderer.event(e));
        if ended {
            return renderer.finish(screen.failed);
        }
        if last_tick.elapsed() >= TICK {
            renderer.tick();
            last_tick = Instant::now();
        }
        drop(screen);
        queue.gather();
    }
}
