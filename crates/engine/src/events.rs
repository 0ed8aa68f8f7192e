//! What happens during a build, as one typed stream. Progress displays, plain logs, JSON logs and reports are
//! readers of it; nothing in the engine prints.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kiln_dockerfile::{Diagnostic, Source};
use kiln_oci::Digest;

/// Identifies a step within one build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepId(pub u32);

/// Which output of a process a log chunk came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It ran.
    Done,
    /// Its result was there already.
    Cached,
    /// It failed; the text is for people.
    Failed(String),
    /// It was stopped because something else failed or the user asked.
    Cancelled,
}

/// One thing that happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// A step is known; it may never start.
    Step {
        /// The step.
        id: StepId,
        /// Identifies the vertex in machine-readable logs.
        digest: Digest,
        /// `[builder 2/5] RUN make`.
        name: Arc<str>,
        /// The steps it waits for.
        inputs: Vec<StepId>,
    },
    /// A step began.
    Started {
        /// The step.
        id: StepId,
        /// When.
        at: SystemTime,
    },
    /// A step ended.
    Finished {
        /// The step.
        id: StepId,
        /// When.
        at: SystemTime,
        /// How long it took.
        elapsed: Duration,
        /// How.
        outcome: Outcome,
    },
    /// Output of a step, secrets already masked.
    Log {
        /// The step.
        id: StepId,
        /// Which output.
        stream: Stream,
        /// Bytes as written by the process.
        bytes: Arc<[u8]>,
    },
    /// How far a part of a step is: a layer that is transferred, for example.
    Progress {
        /// The step.
        id: StepId,
        /// The part, unique within the step.
        item: Arc<str>,
        /// Bytes so far.
        current: u64,
        /// Bytes in all, if known.
        total: Option<u64>,
        /// No more will come.
        done: bool,
    },
    /// Why a step was not cached.
    Miss {
        /// The step.
        id: StepId,
        /// Sentences a person can act on.
        reasons: Vec<String>,
    },
    /// A warning about the Dockerfile.
    Lint {
        /// What and where.
        diagnostic: Box<Diagnostic>,
        /// The Dockerfile.
        file: Source,
    },
    /// A warning about anything else.
    Warning(String),
}

/// Receives events, from any thread. Must not block for long.
pub trait EventSink: Send + Sync {
    /// Takes one event.
    fn event(&self, event: Event);
}

/// Drops every event.
pub struct NoEvents;

impl EventSink for NoEvents {
    fn event(&self, _: Event) {}
}
