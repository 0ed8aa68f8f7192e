//! Keeps a build's whole output in the store, whatever the display shows of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use kiln_store::{BuildInfo, BuildLog, BuildStatus};

use super::result::BuildResult;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::events::{Event, EventSink, Outcome, StepId};
use crate::request::{BuildRequest, ContextSource, DockerfileSource};

/// Passes events on, and writes their text to the build's log.
pub struct BuildLogSink {
    inner: Arc<dyn EventSink>,
    state: Mutex<State>,
}

struct State {
    log: Option<BuildLog>,
    names: HashMap<StepId, Arc<str>>,
    last: Option<StepId>,
    finished: u32,
    cached: u32,
    /// A step's output did not end its last line.
    in_line: bool,
}

impl BuildLogSink {
    /// Begins the build's record; with its ID.
    pub fn create(engine: &Engine, request: &BuildRequest, inner: Arc<dyn EventSink>) -> Result<(Self, String)> {
        let info = BuildInfo {
            dockerfile: match &request.dockerfile {
                DockerfileSource::Path(path) => path.display().to_string(),
                DockerfileSource::Remote(url) => kiln_source::redact_url(url),
                DockerfileSource::Default | DockerfileSource::Inline(_) | DockerfileSource::Generated(_) => {
                    "Dockerfile".to_owned()
                }
            },
            context: match &request.context {
                ContextSource::Local(path) => path.display().to_string(),
                ContextSource::Stream(_) => "-".to_owned(),
                ContextSource::Remote(url) => kiln_source::redact_url(url),
            },
            target: request.target.clone(),
            names: request.tags.iter().map(ToString::to_string).collect(),
            platforms: request.platforms.iter().map(ToString::to_string).collect(),
        };
        let log = engine.store.builds().create(info)?;
        let id = log.id().to_owned();
        let state = State { log: Some(log), names: HashMap::new(), last: None, finished: 0, cached: 0, in_line: false };
        Ok((Self { inner, state: Mutex::new(state) }, id))
    }

    /// Ends the build's record.
    pub fn finish(&self, outcome: &Result<BuildResult>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (status, results) = match outcome {
            Ok(result) => (BuildStatus::Succeeded, result.image_digest().map(|d| ("image".to_owned(), d))),
            Err(Error::Cancelled) => (BuildStatus::Canceled, None),
            Err(error) => {
                state.line(&format!("ERROR: {error}"));
                (BuildStatus::Failed(error.to_string()), None)
            }
        };
        let steps = (state.finished, state.cached);
        if let Some(log) = state.log.take() {
            // A record that can't be written must not turn a good build into a failed one.
            let _ = log.finish(status, results.into_iter().collect(), steps);
        }
    }
}

impl State {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(log) = &self.log {
            let _ = log.append(bytes);
        }
        self.in_line = bytes.last().map_or(self.in_line, |last| *last != b'\n');
    }

    /// A line that no step wrote.
    fn line(&mut self, text: &str) {
        let before = if self.in_line { "\n" } else { "" };
        self.write(format!("{before}{text}\n").as_bytes());
    }

    fn head(&mut self, id: StepId) {
        if self.last.replace(id) != Some(id) {
            let name = self.names.get(&id).cloned().unwrap_or_else(|| "?".into());
            self.line(&format!("=> {name}"));
        }
    }

    fn event(&mut self, event: &Event) {
        match event {
            Event::Step { id, name, .. } => {
                self.names.insert(*id, Arc::clone(name));
            }
            Event::Log { id, bytes, .. } => {
                self.head(*id);
                self.write(bytes);
            }
            Event::Finished { id, outcome, elapsed, .. } => {
                self.finished += 1;
                match outcome {
                    // Cached steps have no output; the log of a build that did nothing stays empty.
                    Outcome::Cached => self.cached += 1,
                    Outcome::Done => {
                        self.head(*id);
                        self.line(&format!("   done in {:.1}s", elapsed.as_secs_f64()));
                    }
                    Outcome::Failed(why) => {
                        self.head(*id);
                        self.line(&format!("   failed: {why}"));
                    }
                    Outcome::Cancelled => {}
                }
            }
            Event::Miss { id, reasons } => {
                self.head(*id);
                for reason in reasons {
                    self.line(&format!("   not cached: {reason}"));
                }
            }
            Event::Warning(text) => self.line(&format!("WARNING: {text}")),
            Event::Started { .. } | Event::Progress { .. } | Event::Lint { .. } => {}
        }
    }
}

impl EventSink for BuildLogSink {
    fn event(&self, event: Event) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).event(&event);
        self.inner.event(event);
    }
}
