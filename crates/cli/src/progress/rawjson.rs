//! BuildKit's `--progress=rawjson`: one `SolveStatus` object a line on standard error.

use std::collections::HashMap;
use std::io::Write;
use std::time::SystemTime;

use kiln_engine::events::{Event, Outcome, StepId, Stream};
use serde_json::{Value, json};

use super::Renderer;

#[derive(Default)]
pub struct RawJson {
    steps: HashMap<StepId, Step>,
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
                let mut value = json!({
                    "id": &*item, "vertex": self.digest(id), "current": current, "timestamp": rfc3339(SystemTime::now()),
                });
                if let Some(total) = total {
                    value["total"] = json!(total);
                }
                if done {
                    value["completed"] = json!(rfc3339(SystemTime::now()));
                }
                Some(json!({ "statuses": [value] }))
            }
            Event::Lint(diagnostic) => Some(json!({ "warnings": [{
                "level": 1, "short": base64(diagnostic.message.as_bytes()),
            }]})),
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
