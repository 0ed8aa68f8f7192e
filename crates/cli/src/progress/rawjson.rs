//! BuildKit's `--progress=rawjson`: one `SolveStatus` object a line on standard error.

use std::collections::HashMap;
use std::io::Write;
use std::sync::Arc;
use std::time::SystemTime;

use kiln_engine::dockerfile::{Diagnostic, Source};
use kiln_engine::events::{Event, Outcome, StepId, Stream};
use serde_json::{Value, json};

use super::Renderer;

#[derive(Default)]
pub struct RawJson {
    steps: HashMap<StepId, Step>,
    /// When each part of a step was first heard of.
    items: HashMap<(StepId, Arc<str>), String>,
}

struct Step {
    digest: String,
    name: String,
    inputs: Vec<String>,
    started: Option<SystemTime>,
}

impl RawJson {
    fn vertex(&self, id: StepId) -> Option<Value> {
        let step = self.steps.get(&id)?;
        let mut value = json!({ "digest": step.digest, "name": step.name });
        if !step.inputs.is_empty() {
            value["inputs"] = json!(step.inputs);
        }
        if let Some(started) = step.started {
            value["started"] = json!(rfc3339(started));
        }
        Some(value)
    }

    /// A warning about the Dockerfile belongs to the first step, which read it.
    fn lint(&self, diagnostic: &Diagnostic, file: &Source) -> Value {
        let at = diagnostic.line_col(file);
        let rule = diagnostic.rule.map(|r| format!("{}: ", r.name())).unwrap_or_default();
        let place = json!({ "line": at.line, "character": at.column.saturating_sub(1) });
        let mut value = json!({
            "level": 1,
            "short": base64(format!("{rule}{} (line {})", diagnostic.message, at.line).as_bytes()),
            "sourceInfo": { "filename": file.name(), "data": base64(file.bytes()), "language": "Dockerfile" },
            "range": [{ "start": place, "end": place }],
        });
        if let Some(first) = self.steps.keys().min() {
            value["vertex"] = json!(self.digest(*first));
        }
        if let Some(rule) = diagnostic.rule {
            value["detail"] = json!([base64(rule.description().as_bytes())]);
        }
        if let Some(url) = diagnostic.url {
            value["url"] = json!(url);
        }
        value
    }

    fn digest(&self, id: StepId) -> &str {
        self.steps.get(&id).map_or("", |s| &s.digest)
    }
}

impl Renderer for RawJson {
    fn event(&mut self, event: Event) {
        let status = match event {
            Event::Step { id, digest, name, inputs } => {
                let inputs = inputs.iter().map(|i| self.digest(*i).to_owned()).collect();
                self.steps
                    .insert(id, Step { digest: digest.to_string(), name: name.to_string(), inputs, started: None });
                self.vertex(id).map(|v| json!({ "vertexes": [v] }))
            }
            Event::Started { id, at } => {
                if let Some(step) = self.steps.get_mut(&id) {
                    step.started = Some(at);
                }
                self.vertex(id).map(|v| json!({ "vertexes": [v] }))
            }
            Event::Finished { id, at, outcome, .. } => self.vertex(id).map(|mut v| {
                v["completed"] = json!(rfc3339(at));
                match outcome {
                    Outcome::Cached => v["cached"] = json!(true),
                    Outcome::Failed(why) => v["error"] = json!(why),
                    Outcome::Cancelled => v["error"] = json!("context canceled"),
                    Outcome::Done => {}
                }
                json!({ "vertexes": [v] })
            }),
            Event::Log { id, stream, bytes } => Some(json!({ "logs": [{
                "vertex": self.digest(id),
                "stream": match stream { Stream::Stdout => 1, Stream::Stderr => 2 },
                "data": base64(&bytes),
                "timestamp": rfc3339(SystemTime::now()),
            }]})),
            Event::Progress { id, item, current, total, done } => {
                let now = rfc3339(SystemTime::now());
                let started = self.items.entry((id, item.clone())).or_insert_with(|| now.clone()).clone();
                let mut value = json!({
                    "id": &*item, "name": &*item, "vertex": self.digest(id), "current": current, "timestamp": now, "started": started,
                });
                if let Some(total) = total {
                    value["total"] = json!(total);
                }
                if done {
                    value["completed"] = json!(rfc3339(SystemTime::now()));
                }
                Some(json!({ "statuses": [value] }))
            }
            Event::Lint { diagnostic, file } => Some(json!({ "warnings": [self.lint(&diagnostic, &file)] })),
            Event::Warning(text) => Some(json!({ "warnings": [{ "level": 1, "short": base64(text.as_bytes()) }] })),
            Event::Miss { .. } => None,
        };
        if let Some(status) = status {
            let _ = writeln!(std::io::stderr().lock(), "{status}");
        }
    }
}

fn rfc3339(at: SystemTime) -> String {
    kiln_oci::Timestamp::try_from(at).map(|t| t.to_string()).unwrap_or_default()
}

/// Go encodes byte slices in JSON as base64.
fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
