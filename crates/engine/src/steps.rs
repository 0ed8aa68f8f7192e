//! Steps as the user sees them: each has a name, begins, and ends once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Instant, SystemTime};

use kiln_oci::Digest;
use kiln_secrets::Redactor;

use crate::error::Error;
use crate::events::{Event, EventSink, Outcome, StepId, Stream};

/// `[builder 2/5] RUN` of `[builder 2/5] RUN make`: what stays of a step's name when the command changes. Nothing of a name
/// without brackets.
pub fn place_of(name: &str) -> Option<&str> {
    let at = name.find("] ")? + 2;
    let word = &name[at..];
    Some(&name[..at + word.find(' ').unwrap_or(word.len())])
}

/// Gives out steps.
#[derive(Clone)]
pub struct Steps {
    sink: Arc<dyn EventSink>,
    next: Arc<AtomicU32>,
    redactor: Option<Arc<Redactor>>,
}

/// A step that runs. Dropped without an end, it counts as cancelled.
pub struct Step {
    steps: Steps,
    id: StepId,
    since: Instant,
    ended: bool,
}

impl Steps {
    /// That report to `sink`.
    pub fn new(sink: Arc<dyn EventSink>) -> Self {
        Self { sink, next: Arc::default(), redactor: None }
    }

    /// The same, hiding secrets in names and messages.
    pub fn masking(mut self, redactor: Redactor) -> Self {
        self.redactor = Some(Arc::new(redactor));
        self
    }

    /// Text without secrets.
    pub fn masked(&self, text: &str) -> String {
        match &self.redactor {
            None => text.to_owned(),
            Some(redactor) => redactor.text(text),
        }
    }

    /// The name of a step as it is shown: masked, then on one line (what a secret is may end at a line's end).
    pub fn shown(&self, name: &str) -> String {
        self.masked(name).replace(['\r', '\n'], " ")
    }

    /// Where events go.
    pub fn sink(&self) -> &Arc<dyn EventSink> {
        &self.sink
    }

    /// Makes a step known.
    pub fn announce(&self, name: &str, digest: Digest, inputs: Vec<StepId>) -> StepId {
        let id = StepId(self.next.fetch_add(1, Ordering::Relaxed));
        self.sink.event(Event::Step { id, digest, name: self.shown(name).into(), inputs });
        id
    }

    /// Begins a known step.
    pub fn start(&self, id: StepId) -> Step {
        self.sink.event(Event::Started { id, at: SystemTime::now() });
        Step { steps: self.clone(), id, since: Instant::now(), ended: false }
    }

    /// Begins a step that is not part of the graph, such as an export.
    pub fn begin(&self, name: &str) -> Step {
        let id = self.announce(name, Digest::of(name.as_bytes()), Vec::new());
        self.start(id)
    }

    /// A known step whose result is there already.
    pub fn cached(&self, id: StepId) {
        let mut step = self.start(id);
        step.end(Outcome::Cached);
    }

    /// Says something that is not about a step.
    pub fn warn(&self, text: impl Into<String>) {
        self.sink.event(Event::Warning(self.masked(&text.into())));
    }
}

/// Reports how far one part of a step is, from any thread, and not more often than anybody can see.
#[derive(Clone)]
pub struct Reporter {
    sink: Option<Arc<dyn EventSink>>,
    id: StepId,
    item: Arc<str>,
    last: Option<Instant>,
}

/// Time between two reports of the same part.
const REPORT_EVERY: std::time::Duration = std::time::Duration::from_millis(50);

impl Reporter {
    /// Nobody wants to know.
    pub fn none() -> Self {
        Self { sink: None, id: StepId(0), item: "".into(), last: None }
    }

    /// So many bytes of so many.
    pub fn progress(&mut self, current: u64, total: u64) {
        let due = self.last.is_none_or(|l| l.elapsed() >= REPORT_EVERY);
        if let (Some(sink), true) = (&self.sink, due) {
            self.last = Some(Instant::now());
            let (id, item) = (self.id, Arc::clone(&self.item));
            sink.event(Event::Progress { id, item, current, total: Some(total), done: false });
        }
    }

    /// All bytes. `how` is added to the part's name.
    pub fn done(&self, total: u64, how: &str) {
        if let Some(sink) = &self.sink {
            let item = if how.is_empty() { Arc::clone(&self.item) } else { format!("{} {how}", self.item).into() };
            sink.event(Event::Progress { id: self.id, item, current: total, total: Some(total), done: true });
        }
    }
}

impl Step {
    /// For the progress of one part.
    pub fn reporter(&self, item: &str) -> Reporter {
        Reporter { sink: Some(Arc::clone(&self.steps.sink)), id: self.id, item: item.into(), last: None }
    }

    /// Its id.
    pub fn id(&self) -> StepId {
        self.id
    }

    /// Where its events go.
    pub fn sink(&self) -> &Arc<dyn EventSink> {
        &self.steps.sink
    }

    /// Output.
    pub fn log(&self, stream: Stream, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.steps.sink.event(Event::Log { id: self.id, stream, bytes: bytes.into() });
        }
    }

    /// How far a part is.
    pub fn progress(&self, item: &str, current: u64, total: Option<u64>, done: bool) {
        self.steps.sink.event(Event::Progress { id: self.id, item: item.into(), current, total, done });
    }

    /// Why it is not cached.
    pub fn missed(&self, reasons: Vec<String>) {
        let reasons = reasons.iter().map(|r| self.steps.masked(r)).collect();
        self.steps.sink.event(Event::Miss { id: self.id, reasons });
    }

    /// Ends it.
    pub fn end(&mut self, outcome: Outcome) {
        if !std::mem::replace(&mut self.ended, true) {
            let outcome = match outcome {
                Outcome::Failed(why) => Outcome::Failed(self.steps.masked(&why)),
                other => other,
            };
            let event = Event::Finished { id: self.id, at: SystemTime::now(), elapsed: self.since.elapsed(), outcome };
            self.steps.sink.event(event);
        }
    }

    /// Ends it as `result` says, and returns that.
    pub fn conclude<T>(mut self, result: Result<T, Error>) -> Result<T, Error> {
        self.end(match &result {
            Ok(_) => Outcome::Done,
            // What a layer of an imported cache was to save is made now, and then this is done again.
            Err(Error::Cancelled | Error::LostLayer { .. }) => Outcome::Cancelled,
            Err(e) => Outcome::Failed(e.to_string()),
        });
        result
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.end(Outcome::Cancelled);
    }
}
