//! Why a step was not cached.
//!
//! After a step ran, what went into it is remembered under its place in the Dockerfile, as pairs of a name and a value.
//! When the step at the same place runs again, the pairs that differ are the reasons.

use std::collections::BTreeMap;

use kiln_graph::{InputUse, MountKind, Op, SourceOp, Vertex};
use kiln_oci::Hasher;
use kiln_solver::KeyPart;

use super::job::Job;
use crate::steps::place_of;

/// More files than this are not listed one by one.
const MOST_FILES: usize = 200_000;
/// Reasons that are shown of one kind.
const MOST_SHOWN: usize = 10;

/// What went into a step: names and values.
pub type Ingredients = Vec<(String, String)>;

/// The step's place: the context, the Dockerfile, the stage and the name without what changes with the text.
fn slot(job: &Job, vertex: &Vertex) -> String {
    let mut hasher = Hasher::new();
    hasher.field(&job.project);
    hasher.field(vertex.meta.stage.as_deref().unwrap_or_default());
    // `[builder 2/5] RUN make`: the part in brackets stays when the command changes.
    let brackets = vertex.meta.name.split(']').next().unwrap_or_default();
    hasher.field(brackets).field(vertex.op.kind());
    hasher.field(vertex.platform.as_ref().map(ToString::to_string).unwrap_or_default());
    hasher.finish().hex()
}

fn place(vertex: &Vertex) -> &str {
    place_of(&vertex.meta.name).unwrap_or(&vertex.meta.name)
}

/// What goes into a step.
pub fn ingredients(job: &Job, vertex: &Vertex, parts: &[KeyPart]) -> Ingredients {
    let mut all = Ingredients::new();
    match &vertex.op {
        Op::Exec(exec) => {
            all.push(("the command".into(), exec.args.join(" ")));
            all.push(("the working directory".into(), exec.cwd.clone()));
            all.push(("the user".into(), exec.user.clone()));
            all.push(("the network mode".into(), format!("{:?}", exec.network)));
            all.push(("the security mode".into(), format!("{:?}", exec.security)));
            for pair in &exec.env {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                all.push((format!("variable or build arg {name}"), shown_value(name, value)));
            }
            all.extend(exec.mounts.iter().filter_map(mount));
        }
        _ => all.push(("the instruction".into(), format!("{:?}", vertex.op_digest()))),
    }
    let uses = vertex.input_uses();
    for (index, (edge, part)) in vertex.inputs.iter().zip(parts).enumerate() {
        let input = &job.graph.vertices()[edge.vertex.index()];
        match (&input.op, &uses[index], part) {
            (Op::Source(SourceOp::Local(local)), InputUse::Content(selectors), _) => {
                for (path, what) in job.context_manifest(&local.name, selectors, MOST_FILES) {
                    all.push((format!("file {path}"), what));
                }
            }
            (Op::Source(source), _, KeyPart::Output { key, .. } | KeyPart::Tree(key)) => {
                let identity = job.source_identity(edge.vertex.index()).unwrap_or_else(|| key.to_string());
                all.push((format!("base {}", source.identifier()), identity));
            }
            (_, _, KeyPart::Output { key, .. }) => {
                all.push((format!("the result of {}", place(input)), key.to_string()));
            }
            (_, _, KeyPart::Tree(key)) => {
                all.push((format!("what it reads of {}", place(input)), key.to_string()));
            }
        }
    }
    all
}

/// A mount that the user asked for, and its settings. What is mounted is an input.
fn mount(mount: &kiln_graph::Mount) -> Option<(String, String)> {
    let (what, settings) = match &mount.kind {
        MountKind::Bind if mount.dest == "/" => return None,
        MountKind::Bind => ("bind mount".to_owned(), format!("{:?} {}", mount.readonly, mount.selector)),
        MountKind::Cache { id, sharing, mode, uid, gid } => {
            (format!("cache mount {id}"), format!("{sharing:?} {mode:?} {uid:?} {gid:?} {}", mount.selector))
        }
        MountKind::Tmpfs { size } => ("tmpfs mount".to_owned(), size.to_string()),
        MountKind::Secret { id, uid, gid, mode, optional } => {
            (format!("secret {id}"), format!("{uid}:{gid} {mode:04o} {optional}"))
        }
        MountKind::Ssh { id, uid, gid, mode, optional } => {
            (format!("ssh agent {id}"), format!("{uid}:{gid} {mode:04o} {optional}"))
        }
    };
    Some((format!("the {what} at {}", mount.dest), settings))
}

/// Values that may be credentials are kept as digests.
fn shown_value(name: &str, value: &str) -> String {
    match kiln_secrets::looks_like_credential(name) || value.len() > 200 {
        true => format!("a value with digest {}", kiln_oci::Digest::of(value.as_bytes()).short()),
        false => value.to_owned(),
    }
}

/// Keeps what went into a step that ran.
pub fn remember(job: &Job, vertex: &Vertex, ingredients: &Ingredients) {
    // The explanation of a later build is not worth failing this one.
    let _ = job.engine.store.steps().put(&slot(job, vertex), ingredients);
}

/// Why the step is not cached, in sentences.
pub fn reasons(job: &Job, vertex: &Vertex, now: &Ingredients) -> Vec<String> {
    let mut reasons = own_reasons(job, vertex, now);
    let caches: Vec<&str> = job.imports.read().iter().map(|c| c.source.as_str()).collect();
    if !caches.is_empty() && !vertex.meta.ignore_cache {
        reasons.push(format!("no imported cache has it: {}", caches.join(", ")));
    }
    reasons
}

fn own_reasons(job: &Job, vertex: &Vertex, now: &Ingredients) -> Vec<String> {
    if vertex.meta.ignore_cache {
        let flag = if job.request.no_cache { "--no-cache" } else { "--no-cache-filter" };
        return vec![format!("the cache is not used: {flag}")];
    }
    match job.engine.store.steps().get(&slot(job, vertex)) {
        Ok(Some(before)) => {
            let reasons = differences(&before, now);
            match reasons.is_empty() {
                true => {
                    vec!["it ran before with the same inputs, but its result was removed from the store".to_owned()]
                }
                false => reasons,
            }
        }
        _ => vec!["this step has not run before".to_owned()],
    }
}

fn differences(before: &[(String, String)], now: &[(String, String)]) -> Vec<String> {
    let old: BTreeMap<&str, &str> = before.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let new: BTreeMap<&str, &str> = now.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let mut reasons = Vec::new();
    for (name, value) in &new {
        match old.get(name) {
            Some(was) if was == value => {}
            Some(was) => reasons.push(changed(name, was, value)),
            None => reasons.push(format!(
                "{name} is new{}",
                if name.starts_with("variable") { format!(": {value}") } else { String::new() }
            )),
        }
    }
    reasons.extend(old.keys().filter(|k| !new.contains_key(*k)).map(|name| format!("{name} is gone")));
    if reasons.len() > MOST_SHOWN {
        let more = reasons.len() - MOST_SHOWN;
        reasons.truncate(MOST_SHOWN);
        reasons.push(format!("… and {more} more"));
    }
    reasons
}

fn changed(name: &str, was: &str, value: &str) -> String {
    if let Some(path) = name.strip_prefix("file ") {
        return format!("{path}: {}", file_change(was, value));
    }
    if name.starts_with("base ") {
        return format!("{name} moved from {was} to {value}");
    }
    if name.starts_with("the result of")
        || name.starts_with("what it reads of")
        || name == "the instruction"
        || name.contains(" at /")
    {
        return format!("{name} changed");
    }
    format!("{name} changed: {was:?} -> {value:?}")
}

/// `mode 0644 -> 0664`, from `field=value` lists.
fn file_change(was: &str, now: &str) -> String {
    let fields = |text: &str| -> BTreeMap<String, String> {
        text.split(' ').filter_map(|f| f.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    };
    let (old, new) = (fields(was), fields(now));
    let mut changes = Vec::new();
    for (field, value) in &new {
        match old.get(field) {
            Some(before) if before == value => {}
            Some(_) if field == "content" => changes.push("content changed".to_owned()),
            Some(before) => changes.push(format!("{field} {before} -> {value}")),
            None => changes.push(format!("{field} is now {value}")),
        }
    }
    if changes.is_empty() { "changed".to_owned() } else { changes.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_can_be_acted_on() {
        let pairs =
            |list: &[(&str, &str)]| list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect::<Vec<_>>();
        let before = pairs(&[
            ("file src/a.py", "kind=file mode=0644 content=aa"),
            ("variable or build arg VERSION", "1"),
            ("base docker-image://a", "sha256:1"),
        ]);
        let now = pairs(&[
            ("file src/a.py", "kind=file mode=0664 content=aa"),
            ("variable or build arg VERSION", "2"),
            ("base docker-image://a", "sha256:2"),
            ("file b", "kind=file"),
        ]);
        let got = differences(&before, &now);
        assert!(got.contains(&"src/a.py: mode 0644 -> 0664".to_owned()), "{got:?}");
        assert!(got.contains(&"variable or build arg VERSION changed: \"1\" -> \"2\"".to_owned()), "{got:?}");
        assert!(got.contains(&"base docker-image://a moved from sha256:1 to sha256:2".to_owned()), "{got:?}");
        assert!(got.contains(&"file b is new".to_owned()), "{got:?}");
    }
}
