//! The terminal view: finished steps scroll up, running steps are redrawn below with the tail of their output.
//!
//! A frame is one write, which terminals that know how show at once. Lines never exceed the terminal, and if it was made
//! narrower meanwhile, the rows that the terminal itself made of the last frame are counted.

use std::collections::HashMap;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_engine::events::{Event, Outcome, StepId};

use super::Renderer;
use super::format::{after_carriage_return, amount, columns, cut, human_size, printable, seconds};

/// Lines of output shown for each running step, `BUILDKIT_TTY_LOG_LINES` overrides.
const TAIL: usize = 6;

/// Mode 2026: what is written between the two is shown at once. Terminals that do not know it ignore it.
const BEGIN_FRAME: &str = "\x1b[?2026h";
const END_FRAME: &str = "\x1b[?2026l";

pub struct Tty {
    explain: bool,
    colour: bool,
    tail: usize,
    begun: Instant,
    steps: HashMap<StepId, Step>,
    running: Vec<StepId>,
    known: usize,
    finished: usize,
    cached: usize,
    failed: bool,
    started: usize,
    /// Columns of each line of the live part that is now on the screen.
    drawn: Vec<usize>,
    pending: Vec<String>,
}

struct Step {
    name: Arc<str>,
    started: Option<Instant>,
    lines: Vec<Vec<u8>>,
    partial: Vec<u8>,
    items: Vec<Item>,
    reasons: Vec<String>,
}

struct Item {
    name: Arc<str>,
    current: u64,
    total: Option<u64>,
    since: Instant,
    done: bool,
}

impl Tty {
    pub fn new(explain: bool) -> Self {
        let tail = std::env::var("BUILDKIT_TTY_LOG_LINES").ok().and_then(|v| v.parse().ok()).unwrap_or(TAIL);
        Self {
            explain,
            colour: std::env::var_os("NO_COLOR").is_none(),
            tail,
            begun: Instant::now(),
            steps: HashMap::new(),
            running: Vec::new(),
            known: 0,
            finished: 0,
            cached: 0,
            failed: false,
            started: 0,
            drawn: Vec::new(),
            pending: Vec::new(),
        }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// A line with `left` cut to fit and `right` at the right edge.
    fn row(left: &str, right: &str, width: usize) -> String {
        let room = width.saturating_sub(columns(right) + 1);
        let left = cut(left, room);
        let pad = room.saturating_sub(columns(&left));
        format!("{left}{} {right}", " ".repeat(pad))
    }

    fn finish_step(&mut self, id: StepId, elapsed: Duration, outcome: &Outcome) {
        self.running.retain(|r| *r != id);
        self.finished += 1;
        let width = width();
        let Some(step) = self.steps.get(&id) else { return };
        let (mark, code) = match outcome {
            Outcome::Cached => {
                self.cached += 1;
                return;
            }
            Outcome::Done => ("", "34"),
            Outcome::Failed(_) => {
                self.failed = true;
                ("ERROR ", "31")
            }
            Outcome::Cancelled => ("CANCELED ", "33"),
        };
        let row = Self::row(&format!(" => {mark}{}", step.name), &seconds(elapsed), width);
        let mut lines = vec![self.paint(code, &row)];
        for item in step.items.iter().filter(|i| i.done) {
            let row = Self::row(&format!(" => => {}", item.name), &amount(item.current, None), width);
            lines.push(self.paint("2", row.trim_end()));
        }
        if self.explain {
            lines.extend(step.reasons.iter().map(|r| self.paint("2", &cut(&format!("    not cached: {r}"), width))));
        }
        self.pending.extend(lines);
    }

    fn head(&self, known: usize, end: &str) -> String {
        let cached = if self.cached > 0 { format!(", {} cached", self.cached) } else { String::new() };
        let elapsed = seconds(self.begun.elapsed());
        format!("[+] Building {elapsed} ({}/{}{cached}){end}", self.finished, known.max(self.finished))
    }

    fn live(&self) -> Vec<String> {
        let (width, height) = size();
        let mut lines = vec![cut(&self.head(self.known, ""), width)];
        // The cursor stands in the line below; what did not fit would scroll up with each frame.
        let most = height.saturating_sub(1).max(1);
        let tail = ((most - 1) / self.running.len().max(1)).saturating_sub(1).min(self.tail);
        for id in &self.running {
            let Some(step) = self.steps.get(id) else { continue };
            let age = step.started.map(|s| seconds(s.elapsed())).unwrap_or_default();
            lines.push(self.paint("1", &Self::row(&format!(" => {}", step.name), &age, width)));
            for item in step.items.iter().filter(|i| !i.done).take(tail.max(1)) {
                lines.push(Self::row(&format!(" => => {}", item.name), &item.shown(), width));
            }
            for line in step.last_lines(tail) {
                lines.push(self.paint("2", &cut(&format!(" => => # {}", printable(line)), width)));
            }
        }
        let hidden = lines.len().saturating_sub(most);
        if hidden > 0 && most > 2 {
            lines.truncate(most - 1);
            lines.push(cut(&format!(" => … {} more lines of what runs", hidden + 1), width));
        }
        lines.truncate(most);
        lines
    }

    fn redraw(&mut self, live: &[String]) {
        let width = width();
        let rows: usize = self.drawn.iter().map(|columns| columns.div_ceil(width).max(1)).sum();
        let mut out = String::from(BEGIN_FRAME);
        if rows > 0 {
            out.push_str(&format!("\x1b[{rows}A\r"));
        }
        for line in self.pending.drain(..).as_slice().iter().chain(live) {
            out.push_str(line);
            out.push_str("\x1b[K\n");
        }
        out.push_str("\x1b[J");
        out.push_str(END_FRAME);
        self.drawn = live.iter().map(|line| columns(&printable(line.as_bytes()))).collect();
        let mut err = std::io::stderr().lock();
        let _ = err.write_all(out.as_bytes());
        let _ = err.flush();
    }
}

impl Item {
    fn shown(&self) -> String {
        let rate = self.current as f64 / self.since.elapsed().as_secs_f64().max(0.1);
        match (self.current, self.total) {
            (0, None) => String::new(),
            (current, total) => format!("{} {}/s", amount(current, total), human_size(rate as u64)),
        }
    }
}

impl Step {
    /// The end of the output, with the line that is still being written: progress bars redraw it for long.
    fn last_lines(&self, most: usize) -> impl Iterator<Item = &[u8]> {
        let partial = Some(after_carriage_return(&self.partial)).filter(|l| !l.is_empty());
        let skip = (self.lines.len() + usize::from(partial.is_some())).saturating_sub(most);
        self.lines.iter().map(Vec::as_slice).chain(partial).skip(skip)
    }

    fn log(&mut self, bytes: &[u8], keep: usize) {
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            self.partial.extend_from_slice(piece);
            if let Some(line) = self.partial.strip_suffix(b"\n") {
                self.lines.push(after_carriage_return(line).to_vec());
                self.partial.clear();
            }
        }
        // A line without end must not grow without bound: only its last screenful could be seen.
        if self.partial.len() > 64 << 10 {
            self.partial.drain(..32 << 10);
        }
        let extra = self.lines.len().saturating_sub(keep);
        self.lines.drain(..extra);
    }
}

fn size() -> (usize, usize) {
    match rustix::termios::tcgetwinsize(std::io::stderr()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
        _ => (80, 24),
    }
}

/// Columns of the terminal.
pub(super) fn width() -> usize {
    size().0
}

impl Renderer for Tty {
    fn event(&mut self, event: Event) {
        match event {
            Event::Step { id, name, .. } => {
                self.known += 1;
                let step = Step {
                    name,
                    started: None,
                    lines: Vec::new(),
                    partial: Vec::new(),
                    items: Vec::new(),
                    reasons: Vec::new(),
                };
                self.steps.insert(id, step);
            }
            Event::Started { id, .. } => {
                if let Some(step) = self.steps.get_mut(&id) {
                    step.started = Some(Instant::now());
                    self.started += 1;
                    self.running.push(id);
                }
            }
            Event::Finished { id, elapsed, outcome, .. } => self.finish_step(id, elapsed, &outcome),
            Event::Log { id, bytes, .. } => {
                let keep = self.tail.max(1);
                if let Some(step) = self.steps.get_mut(&id) {
                    step.log(&bytes, keep);
                }
            }
            Event::Progress { id, item, current, total, done } => {
                let Some(step) = self.steps.get_mut(&id) else { return };
                match step.items.iter_mut().find(|i| i.name == item) {
                    Some(known) => (known.current, known.total, known.done) = (current, total, done),
                    None => step.items.push(Item { name: item, current, total, since: Instant::now(), done }),
                }
            }
            Event::Miss { id, reasons } => {
                if let Some(step) = self.steps.get_mut(&id) {
                    step.reasons = reasons;
                }
            }
            Event::Warning(text) => {
                let line = self.paint("33", &format!("WARNING: {text}"));
                self.pending.push(line);
            }
            Event::Lint { .. } => {}
        }
    }

    fn tick(&mut self) {
        let live = self.live();
        self.redraw(&live);
    }

    fn disturbed(&mut self) {
        self.drawn.clear();
    }

    fn finish(&mut self, failed: bool) -> bool {
        // What was never needed does not count any more.
        let known = self.started.max(self.finished);
        let done = self.finished == known && !self.failed && !failed;
        let head = cut(&self.head(known, if done { " FINISHED" } else { "" }), width());
        self.redraw(&[head]);
        false
    }
}
