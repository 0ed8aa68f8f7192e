//! Layers on their way to or from somewhere: a line for each, in docker's words.
//!
//! On a terminal, lines of running transfers are redrawn in place and those that ended stay above them. Elsewhere a layer has
//! a line when it ends, and one every few seconds before.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_engine::events::Event;

use super::Renderer;
use super::format::{cut, human_size, printable};

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From a registry.
    Pull,
    /// To a registry.
    Push,
    /// Into an archive; what has to be fetched for it is pulled.
    Save,
    /// From an archive.
    Load,
}

impl Direction {
    /// What is done with a part, and what was done.
    fn words(self, name: &str) -> (&'static str, &'static str) {
        match self {
            Self::Push => ("Pushing", "Pushed"),
            Self::Save if !name.starts_with("layer ") => ("Writing", "Written"),
            Self::Load => ("Reading", "Read"),
            Self::Pull | Self::Save => ("Pulling", "Pull complete"),
        }
    }

    /// Whether a part is worth a line.
    fn shows(self, name: &str) -> bool {
        // manifests and configs are small: their turn is no news
        matches!(self, Self::Save | Self::Load) || name.starts_with("layer ")
    }
}

/// Time between two lines of one layer in a log.
const LOG_EVERY: Duration = Duration::from_secs(5);
/// Columns of a bar.
const BAR: usize = 30;

/// Shows one transfer.
pub struct Transfer {
    direction: Direction,
    terminal: bool,
    width: usize,
    items: Vec<Item>,
    /// Lines that stay, not yet written.
    pending: Vec<String>,
    /// Lines on the screen that will be redrawn.
    drawn: usize,
}

struct Item {
    name: Arc<str>,
    current: u64,
    total: Option<u64>,
    /// When it began, and where: a transfer that goes on from an earlier one does not count what was there.
    since: Instant,
    first: u64,
    logged: Instant,
}

impl Transfer {
    /// Nothing is shown yet.
    pub fn new(direction: Direction, terminal: bool) -> Self {
        Self { direction, terminal, width: super::tty::width(), items: Vec::new(), pending: Vec::new(), drawn: 0 }
    }

    fn progress(&mut self, name: Arc<str>, current: u64, total: Option<u64>) {
        let now = Instant::now();
        let index = self.items.iter().position(|i| i.name == name).unwrap_or_else(|| {
            self.items.push(Item { name, current, total, since: now, first: current, logged: now });
            self.items.len() - 1
        });
        let item = &mut self.items[index];
        (item.current, item.total) = (current, total);
        if !self.terminal && item.logged.elapsed() >= LOG_EVERY {
            item.logged = now;
            let line = item.log_line();
            self.pending.push(line);
        }
    }

    fn done(&mut self, name: &str, size: u64) {
        let (id, how) = split(name);
        let known = self.items.iter().position(|i| split(&i.name).0 == id).map(|i| self.items.remove(i));
        let verdict = match how {
            "" => self.direction.words(name).1,
            "is here" => "Already exists",
            "is there" => "Layer already exists",
            other => other,
        };
        let mut line = format!("{id}: {}", capitalised(verdict));
        if let (Some(item), "") = (known, how) {
            let elapsed = item.since.elapsed().as_secs_f64();
            line.push_str(&format!("  {} in {elapsed:.1}s", human_size(size)));
        }
        self.pending.push(line);
    }

    fn redraw(&mut self, live: &[String]) {
        let mut out = String::new();
        if self.drawn > 0 {
            out.push_str(&format!("\x1b[{}A", self.drawn));
        }
        for line in self.pending.drain(..).as_slice().iter().chain(live) {
            out.push_str("\x1b[2K");
            out.push_str(line);
            out.push('\n');
        }
        if self.drawn > 0 || !live.is_empty() {
            out.push_str("\x1b[J");
        }
        self.drawn = live.len();
        write(&out);
    }

    fn live(&self) -> Vec<String> {
        let line = |item: &Item| item.bar_line(self.direction.words(&item.name).0);
        self.items.iter().map(|item| cut(&line(item), self.width)).collect()
    }
}

fn write(text: &str) {
    if !text.is_empty() {
        let mut err = std::io::stderr().lock();
        let _ = err.write_all(text.as_bytes());
        let _ = err.flush();
    }
}

/// The engine's names are `layer 4abcf2066143`, and how it ended.
fn split(name: &str) -> (&str, &str) {
    let rest = name.strip_prefix("layer ").or_else(|| name.strip_prefix("config ")).unwrap_or(name);
    rest.split_once(' ').unwrap_or((rest, ""))
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

impl Item {
    fn rate(&self) -> u64 {
        (self.current.saturating_sub(self.first) as f64 / self.since.elapsed().as_secs_f64().max(0.05)) as u64
    }

    fn bar_line(&self, verb: &str) -> String {
        let Some(total) = self.total.filter(|t| *t > 0) else {
            return format!("{}: {verb}  {}", split(&self.name).0, human_size(self.current));
        };
        let filled = (BAR as u64 * self.current.min(total) / total) as usize;
        let head = if filled < BAR { ">" } else { "" };
        let bar = format!("{}{head}{}", "=".repeat(filled), " ".repeat(BAR - filled - head.len()));
        let (current, total, rate) = (human_size(self.current), human_size(total), human_size(self.rate()));
        format!("{}: {verb} [{bar}] {current:>7}/{total}  {rate}/s", split(&self.name).0)
    }

    fn log_line(&self) -> String {
        let total = self.total.map(|t| format!(" of {}", human_size(t))).unwrap_or_default();
        format!("{}: {}{total}, {}/s", split(&self.name).0, human_size(self.current), human_size(self.rate()))
    }
}

impl Renderer for Transfer {
    fn event(&mut self, event: Event) {
        match event {
            Event::Progress { item, .. } if !self.direction.shows(&item) => {}
            Event::Progress { item, current, done: true, .. } => self.done(&item, current),
            Event::Progress { item, current, total, done: false, .. } => self.progress(item, current, total),
            Event::Warning(text) => self.pending.push(format!("WARNING: {}", printable(text.as_bytes()))),
            _ => {}
        }
        if !self.terminal {
            let lines: String = self.pending.drain(..).map(|l| l + "\n").collect();
            write(&lines);
        }
    }

    fn tick(&mut self) {
        if self.terminal {
            self.redraw(&self.live());
        }
    }

    fn finish(&mut self, _failed: bool) -> bool {
        if self.terminal {
            self.redraw(&[]);
        }
        false
    }
}
