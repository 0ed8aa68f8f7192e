//! Why a step was not cached.
//!
//! After a step ran, what went into it is remembered under its place in the Dockerfile, as pairs of a name and a value.
//! When the step at the same place runs again, the pairs that differ are the reasons. Several runs are remembered, and the
//! one that differs least is compared with: who goes back and forth between two values is told of the last change only.

use std::collections::BTreeMap;

use kiln_graph::{FileAction, FileActionKind, InputUse, Mode, MountKind, Op, Owner, SourceOp, UserRef, Vertex};
use kiln_oci::Hasher;
use kiln_solver::KeyPart;

use super::job::Job;
use crate::steps::place_of;

/// More files than this are not listed one by one.
const MOST_FILES: usize = 200_000;
/// Reasons that are shown of one kind.
const MOST_SHOWN: usize = 10;

/// Runs of a step that are remembered,
const MOST_RUNS: usize = 8;
/// as long as they are not larger than this together; a run that is larger is remembered alone.
const MOST_REMEMBERED: usize = 64 << 10;
/// The name that stands between two runs.
const NEXT_RUN: &str = "";
/// What is only said where nothing else is.
const INSTRUCTION: &str = "the instruction";

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
            all.push(("the network mode".into(), format!("{:?}", exec.network).to_lowercase()));
            all.push(("the security mode".into(), format!("{:?}", exec.security).to_lowercase()));
            for pair in exec.env.iter() {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                all.push((format!("variable or build arg {name}"), shown_value(name, value)));
            }
            all.extend(exec.mounts.iter().filter_map(mount));
            let hosts = exec.extra_hosts.iter().map(|h| format!("{}:{}", h.host, h.ip));
            all.push(("--add-host".into(), hosts.collect::<Vec<_>>().join(" ")));
            all.push((INSTRUCTION.into(), format!("{:?}", vertex.op_digest())));
        }
        Op::File(file) => {
            for (index, action) in file.actions.iter().enumerate() {
                let number = if index == 0 { String::new() } else { format!(" {}", index + 1) };
                all.extend(of_action(action).into_iter().map(|(name, value)| (format!("{name}{number}"), value)));
            }
            all.push((INSTRUCTION.into(), format!("{:?}", vertex.op_digest())));
        }
        _ => all.push((INSTRUCTION.into(), format!("{:?}", vertex.op_digest()))),
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

/// What an instruction that copies or makes files says.
fn of_action(action: &FileAction) -> Vec<(&'static str, String)> {
    let owner = |owner: Option<&Owner>| {
        let user = |user: &UserRef| match user {
            UserRef::Id(id) => id.to_string(),
            UserRef::Name { name, .. } => name.clone(),
        };
        owner.map_or_else(String::new, |o| o.user.iter().chain(&o.group).map(user).collect::<Vec<_>>().join(":"))
    };
    match &action.kind {
        FileActionKind::Copy(copy) => vec![
            ("the source", copy.src.clone()),
            ("the destination", copy.dest.clone()),
            ("--chown", owner(copy.owner.as_ref())),
            (
                "--chmod",
                match &copy.mode {
                    Some(Mode::Octal(bits)) => format!("{bits:o}"),
                    Some(Mode::Symbolic(text)) => text.clone(),
                    None => String::new(),
                },
            ),
            ("--exclude", copy.exclude_patterns.join(" ")),
        ],
        FileActionKind::Mkdir(dir) => vec![("the directory", dir.path.clone())],
        FileActionKind::Mkfile(file) => vec![
            ("the file", file.path.clone()),
            ("its text", format!("with digest {}", kiln_oci::Digest::of(&file.data).short())),
        ],
        _ => Vec::new(),
    }
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
    let size = |run: &[(String, String)]| run.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
    let (slot, steps) = (slot(job, vertex), job.engine.store.steps());
    let mut all = ingredients.clone();
    let mut left = MOST_REMEMBERED.saturating_sub(size(ingredients));
    let before = if left > 0 { steps.get(&slot).ok().flatten().unwrap_or_default() } else { Ingredients::new() };
    for run in runs(&before).filter(|run| *run != ingredients).take(MOST_RUNS - 1) {
        left = left.saturating_sub(size(run));
        if left == 0 {
            break;
        }
        all.push((NEXT_RUN.to_owned(), String::new()));
        all.extend_from_slice(run);
    }
    // The explanation of a later build is not worth failing this one.
    let _ = steps.put(&slot, &all);
}

/// The runs of a record, the last one first.
fn runs(record: &[(String, String)]) -> impl Iterator<Item = &[(String, String)]> {
    record.split(|(name, _)| name == NEXT_RUN)
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
            let nearest = runs(&before).map(|run| differences(run, now)).min_by_key(Vec::len).unwrap_or_default();
            match nearest.is_empty() {
                true => {
                    vec!["it ran before with the same inputs, but its result was removed from the store".to_owned()]
                }
                false => shortened(nearest),
            }
        }
        _ => vec!["this step has not run before".to_owned()],
    }
}

fn differences(before: &[(String, String)], now: &[(String, String)]) -> Vec<String> {
    let old: BTreeMap<&str, &str> = before.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let new: BTreeMap<&str, &str> = now.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let base = |name: &&str| name.starts_with("base ");
    let mut gone: Vec<&str> = old.keys().copied().filter(|k| !new.contains_key(k)).collect();
    let mut reasons = Vec::new();
    for (name, value) in &new {
        match old.get(name) {
            Some(was) if was == value => {}
            Some(was) => reasons.push(changed(name, was, value)),
            // One base in place of another.
            None if base(name) && gone.iter().any(base) => {
                let was = gone.iter().position(base).map(|at| gone.remove(at)).unwrap_or_default();
                reasons.push(format!("{} -> {}", shown(was, ""), shown(name, "").trim_start_matches("base ")));
            }
            None if name.starts_with("variable") => reasons.push(format!("{name} is new: {value}")),
            None => reasons.push(format!("{} is new", shown(name, value))),
        }
    }
    reasons.extend(gone.iter().map(|name| format!("{} is gone", shown(name, old.get(name).unwrap_or(&"")))));
    if reasons.len() > 1 {
        reasons.retain(|reason| !reason.starts_with(INSTRUCTION));
    }
    reasons
}

fn shortened(mut reasons: Vec<String>) -> Vec<String> {
    if reasons.len() > MOST_SHOWN {
        let more = reasons.len() - MOST_SHOWN;
        reasons.truncate(MOST_SHOWN);
        reasons.push(format!("… and {more} more"));
    }
    reasons
}

/// An ingredient's name as a person calls it.
fn shown(name: &str, value: &str) -> String {
    if let Some(path) = name.strip_prefix("file ") {
        return match value.contains("kind=Dir") {
            true => format!("directory {path}"),
            false => name.to_owned(),
        };
    }
    match name.strip_prefix("base docker-image://") {
        Some(image) => {
            let hub = image.strip_prefix("docker.io/").unwrap_or(image);
            format!("base {}", hub.strip_prefix("library/").unwrap_or(hub))
        }
        None => name.to_owned(),
    }
}

fn changed(name: &str, was: &str, value: &str) -> String {
    if let Some(path) = name.strip_prefix("file ") {
        return format!("{path}: {}", file_change(was, value));
    }
    if name.starts_with("base ") {
        return format!("{} moved from {was} to {value}", shown(name, ""));
    }
    let is_result = name.starts_with("the result of") || name.starts_with("what it reads of");
    if is_result || name == INSTRUCTION || name.contains(" at /") || name.starts_with("its text") {
        return format!("{name} changed");
    }
    match name.starts_with("--") || name.ends_with(" mode") || name.starts_with("the destination") {
        true => format!("{name} changed: {} -> {}", or_none(was), or_none(value)),
        false => format!("{name} changed: {was:?} -> {value:?}"),
    }
}

fn or_none(value: &str) -> &str {
    if value.is_empty() { "none" } else { value }
}

/// `mode 0644 -> 0664`, from `field=value` lists.
fn file_change(was: &str, now: &str) -> String {
    let fields = |text: &str| -> BTreeMap<String, String> {
        text.split(' ').filter_map(|f| f.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    };
    let (old, new) = (fields(was), fields(now));
    let kind = |fields: &BTreeMap<String, String>| match fields.get("kind").map(String::as_str) {
        Some("Dir") => "a directory",
        Some("Symlink") => "a symbolic link",
        Some("File") => "a file",
        _ => "something else",
    };
    if kind(&old) != kind(&new) {
        return format!("was {}, is {}", kind(&old), kind(&new));
    }
    let mut changes = Vec::new();
    for (field, value) in &new {
        match old.get(field) {
            Some(before) if before == value => {}
            Some(_) if field == "content" && kind(&new) == "a symbolic link" => {
                changes.push("leads elsewhere".to_owned())
            }
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
        assert!(got.contains(&"base a moved from sha256:1 to sha256:2".to_owned()), "{got:?}");
        assert!(got.contains(&"file b is new".to_owned()), "{got:?}");
        let before = pairs(&[
            ("base docker-image://docker.io/library/debian:12", "sha256:1"),
            ("the instruction", "1"),
            ("--chmod", ""),
            ("file l", "kind=Symlink mode=0777 content=aa"),
            ("file m", "kind=Symlink mode=0777 content=aa"),
        ]);
        let now = pairs(&[
            ("base docker-image://docker.io/library/debian:13", "sha256:2"),
            ("the instruction", "2"),
            ("--chmod", "644"),
            ("file l", "kind=Symlink mode=0777 content=bb"),
            ("file m", "kind=Dir mode=0755"),
            ("file d", "kind=Dir mode=0755"),
        ]);
        assert_eq!(
            differences(&before, &now),
            [
                "--chmod changed: none -> 644",
                "base debian:12 -> debian:13",
                "directory d is new",
                "l: leads elsewhere",
                "m: was a symbolic link, is a directory",
            ]
        );
    }
}
