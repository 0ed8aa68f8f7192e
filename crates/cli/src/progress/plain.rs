//! The plain log: one line for each thing that happens, in BuildKit's form, never clipped.

use std::collections::HashMap;
use std::io::Write;
use std::time::{Instant, SystemTime};

use kiln_engine::events::{Event, Outcome, StepId};

use super::Renderer;
use super::format::{amount, seconds};

pub struct Plain {
    explain: bool,
    colour: bool,
    steps: HashMap<StepId, Step>,
    /// Numbers are given in the order in which steps start.
    next_number: usize,
    last_shown: Option<StepId>,
    /// The step that failed, if its output was right above.
    failed: Option<StepId>,
}

struct Step {
    name: std::sync::Arc<str>,
    number: Option<usize>,
    started: Option<SystemTime>,
    /// Output after the last newline.
    partial: Vec<u8>,
    last_progress: HashMap<std::sync::Arc<str>, Instant>,
}

impl Plain {
    pub fn new(explain: bool, terminal: bool) -> Self {
        let colour = terminal && std::env::var_os("NO_COLOR").is_none();
        Self { explain, colour, steps: HashMap::new(), next_number: 1, last_shown: None, failed: None }
    }

    /// Writes one line of a step, with its header first if another step was shown last.
    fn line(&mut self, id: StepId, text: &str) {
        let Some(step) = self.steps.get_mut(&id) else { return };
        // One write, so that lines of several builds into one log stay whole.
        let mut out = Vec::new();
        let fresh = step.number.is_none();
        let number = *step.number.get_or_insert_with(|| {
            self.next_number += 1;
            self.next_number - 1
        });
        if self.last_shown != Some(id) {
            let gap = if self.last_shown.is_some() { "\n" } else { "" };
            let dots = if fresh { "" } else { "..." };
            let _ = match fresh {
                true => writeln!(out, "{gap}#{number} {}", step.name),
                false => writeln!(out, "{gap}#{number} {dots}{}", step.name),
            };
            self.last_shown = Some(id);
        }
        if !text.is_empty() {
            let _ = writeln!(out, "#{number} {text}");
        }
        let _ = std::io::stderr().write_all(&out);
    }

    fn log(&mut self, id: StepId, bytes: &[u8]) {
        let Some(step) = self.steps.get_mut(&id) else { return };
        let mut pending = std::mem::take(&mut step.partial);
        pending.extend_from_slice(bytes);
        let age = step.started.and_then(|s| s.elapsed().ok()).unwrap_or_default().as_secs_f64();
        let end = pending.iter().rposition(|b| *b == b'\n').map_or(0, |p| p + 1);
        let rest = pending.split_off(end);
        for line in pending.split_terminator_newline() {
            self.line(id, &format!("{age:.3} {}", String::from_utf8_lossy(line)));
        }
        if let Some(step) = self.steps.get_mut(&id) {
            step.partial = rest;
        }
    }

    fn flush_partial(&mut self, id: StepId) {
        let rest = self.steps.get_mut(&id).map(|s| std::mem::take(&mut s.partial)).unwrap_or_default();
        if !rest.is_empty() {
            self.log(id, &[rest.as_slice(), b"\n"].concat());
        }
    }

    fn paint(&self, code: &str, text: String) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text }
    }
}

/// `split` without the empty piece after a last newline.
trait SplitLines {
    fn split_terminator_newline(&self) -> impl Iterator<Item = &[u8]>;
}

impl SplitLines for Vec<u8> {
    fn split_terminator_newline(&self) -> impl Iterator<Item = &[u8]> {
        self.split_inclusive(|b| *b == b'\n').map(|l| {
            let l = l.strip_suffix(b"\n").unwrap_or(l);
            l.strip_suffix(b"\r").unwrap_or(l)
        })
    }
}

impl Renderer for Plain {
    fn event(&mut self, event: Event) {
        match event {
            Event::Step { id, name, .. } => {
                let step =
                    Step { name, number: None, started: None, partial: Vec::new(), last_progress: HashMap::new() };
                self.steps.insert(id, step);
            }
            Event::Started { id, at } => {
                if let Some(step) = self.steps.get_mut(&id) {
                    step.started = Some(at);
                }
                self.line(id, "");
            }
            Event::Finished { id, outcome, elapsed, .. } => {
                self.flush_partial(id);
                if matches!(outcome, Outcome::Failed(_)) && self.last_shown == Some(id) {
                    self.failed = Some(id);
                }
                let text = match outcome {
                    Outcome::Done => format!("DONE {}", seconds(elapsed)),
                    Outcome::Cached => self.paint("36", "CACHED".into()),
                    Outcome::Failed(why) => self.paint("31", format!("ERROR: {why}")),
                    Outcome::Cancelled => self.paint("33", "CANCELED".into()),
                };
                self.line(id, &text);
            }
            Event::Log { id, bytes, .. } => self.log(id, &bytes),
            Event::Progress { id, item, current, total, done } => {
                let Some(step) = self.steps.get_mut(&id) else { return };
                // What is over within a few seconds has one line, at its end.
                let last = step.last_progress.entry(item.clone()).or_insert_with(Instant::now);
                if last.elapsed().as_secs() < 5 && !done {
                    return;
                }
                *last = Instant::now();
                let amount = amount(current, total);
                let parts = [&*item, &amount, if done { "done" } else { "" }];
                self.line(id, &parts.into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>().join(" "));
            }
            Event::Miss { id, reasons } if self.explain => {
                for reason in reasons {
                    self.line(id, &format!("not cached: {reason}"));
                }
            }
            Event::Warning(text) => {
                self.last_shown = None;
                eprintln!("{}", self.paint("33", format!("WARNING: {text}")));
            }
            Event::Miss { .. } | Event::Lint { .. } => {}
        }
    }

    fn disturbed(&mut self) {
        self.last_shown = None;
    }

    fn finish(&mut self, _failed: bool) -> bool {
        self.failed.is_some() && self.failed == self.last_shown
    }
}
