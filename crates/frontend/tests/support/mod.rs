//! A resolver that knows a few images, and graphs as text.
#![allow(clippy::unwrap_used, dead_code, missing_docs)]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;

use kiln_dockerfile::{Dockerfile, parse};
use kiln_frontend::{BoxError, Image, LowerError, LowerRequest, Lowered, MetaResolver, Resolved, lower};
use kiln_graph::{
    ActionInput, CopyAction, ExecOp, FileAction, FileActionKind, Graph, Mode, Mount, MountKind, Op, Owner, SourceOp,
    UserRef, Vertex,
};
use kiln_oci::{Digest, ImageConfig, Platform};

/// Knows `base`, `alpine:3`, `onbuild`, `empty`, `arm-only`, and every deb:// base and OCI layout.
#[derive(Default)]
pub struct Images {
    pub extra: BTreeMap<String, ImageConfig>,
    pub asked: Mutex<Vec<String>>,
}

impl Images {
    pub fn with(mut self, name: &str, config: &str) -> Self {
        self.extra.insert(name.to_owned(), config_of(config));
        self
    }

    pub fn asked(&self) -> Vec<String> {
        let mut asked = self.asked.lock().unwrap().clone();
        asked.sort();
        asked
    }
}

pub fn config_of(json: &str) -> ImageConfig {
    let layer = Digest::of(b"layer");
    let text = format!(
        r#"{{"architecture":"amd64","os":"linux","created":"2020-01-02T03:04:05Z","config":{json},
        "rootfs":{{"type":"layers","diff_ids":["{layer}"]}},
        "history":[{{"created":"2020-01-02T03:04:05Z","created_by":"base layer"}}]}}"#
    );
    serde_json::from_str(&text).unwrap()
}

impl MetaResolver for Images {
    fn resolve(&self, source: &SourceOp, platform: &Platform, name: &str) -> Result<Resolved, BoxError> {
        self.asked.lock().unwrap().push(format!("{name} for {platform}"));
        let id = source.identifier();
        let short = id.strip_prefix("docker-image://docker.io/library/").unwrap_or(&id);
        let short = short.strip_suffix(":latest").unwrap_or(short);
        let mut config = match (self.extra.get(short), short) {
            (Some(config), _) => config.clone(),
            (None, "base" | "alpine:3") => config_of(r#"{"Env":["PATH=/bin"],"Cmd":["sh"]}"#),
            (None, "empty") => ImageConfig::empty(platform),
            (None, "arm-only") => config_of("{}"),
            (None, id) if id.contains("://") && !id.starts_with("docker-image") => config_of(r#"{"Env":["FROM=pkg"]}"#),
            (None, _) => return Err("pull access denied, repository does not exist".into()),
        };
        config.architecture = if short == "arm-only" { "arm64".to_owned() } else { platform.architecture.clone() };
        config.variant.clone_from(&platform.variant);
        let source = match source.clone() {
            SourceOp::Image(mut image) => {
                image.reference = image.reference.with_digest(Digest::of(format!("{short} {platform}").as_bytes()));
                SourceOp::Image(image)
            }
            other => other,
        };
        Ok(Resolved { source, config })
    }

    fn epoch(&self, source: &SourceOp) -> Result<Option<i64>, BoxError> {
        Ok(match source {
            SourceOp::Git(_) => Some(1_700_000_000),
            SourceOp::Http(_) => Some(1_600_000_000),
            _ => None,
        })
    }
}

pub fn dockerfile(text: &str) -> Dockerfile {
    let parsed = parse(text.as_bytes(), "Dockerfile");
    assert!(!parsed.has_errors(), "{:#?}", parsed.diagnostics);
    parsed.dockerfile
}

pub fn amd64() -> Platform {
    "linux/amd64".parse().unwrap()
}

pub fn try_lower(text: &str, change: impl FnOnce(&mut LowerRequest)) -> Result<Lowered, LowerError> {
    try_lower_with(&Images::default(), text, change)
}

pub fn try_lower_with(
    images: &Images,
    text: &str,
    change: impl FnOnce(&mut LowerRequest),
) -> Result<Lowered, LowerError> {
    let dockerfile = dockerfile(text);
    let mut request = LowerRequest::new(&dockerfile, amd64());
    change(&mut request);
    lower(&request, images)
}

pub fn lowered(text: &str) -> Lowered {
    try_lower(text, |_| {}).unwrap()
}

/// The one image of a Dockerfile.
pub fn image(text: &str) -> Image {
    lowered(text).images.remove(0)
}

/// `file:line:column: error: message (help)`.
pub fn error(text: &str) -> String {
    error_with(text, |_| {})
}

pub fn error_with(text: &str, change: impl FnOnce(&mut LowerRequest)) -> String {
    let error = try_lower(text, change).err().unwrap_or_else(|| panic!("no error: {text}"));
    match error.diagnostic() {
        Some(diagnostic) => diagnostic.one_line(&dockerfile(text).source),
        None => match error.help() {
            Some(help) => format!("{error} ({help})"),
            None => error.to_string(),
        },
    }
}

/// History entries of an image without those of its base; `-` marks those without a layer.
pub fn history(image: &Image) -> Vec<String> {
    let new = &image.config.history[image.inherited_history..];
    let show = |h: &kiln_oci::History| {
        assert_eq!(h.comment.as_deref(), Some("buildkit.dockerfile.v0"));
        assert_eq!(h.created, None);
        let mark = if h.empty_layer == Some(true) { "- " } else { "" };
        format!("{mark}{}", h.created_by.clone().unwrap())
    };
    new.iter().map(show).collect()
}

pub fn config_json(image: &Image) -> serde_json::Value {
    serde_json::to_value(&image.config.config).unwrap()
}

/// The names of all vertices.
pub fn names(lowered: &Lowered) -> Vec<String> {
    lowered.graph.vertices().iter().map(|v| short(&v.meta.name)).collect()
}

/// All vertices that the images need, one a line.
pub fn dump(lowered: &Lowered) -> String {
    let mut out = String::new();
    for id in lowered.graph.reachable(lowered.images.iter().filter_map(|i| i.root).map(|e| e.vertex)) {
        let vertex = &lowered.graph[id];
        let _ = writeln!(out, "{} {}", id.index(), show(&lowered.graph, vertex));
    }
    out
}

/// Digests cut to what can be read.
fn short(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("@sha256:") {
        let hex = &rest[at + "@sha256:".len()..];
        let digits = hex.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(hex.len());
        out += &rest[..at];
        out += "@…";
        rest = &hex[digits..];
    }
    out + rest
}

fn show(graph: &Graph, vertex: &Vertex) -> String {
    let edge = |i: usize| {
        let e = vertex.inputs[i];
        assert!(e.vertex.index() < graph.len());
        match e.output {
            0 => format!("#{}", e.vertex.index()),
            n => format!("#{}.{n}", e.vertex.index()),
        }
    };
    let text = match &vertex.op {
        Op::Source(source) => source.identifier(),
        Op::Exec(exec) => show_exec(exec, &edge),
        Op::File(file) => {
            let all: Vec<String> = file.actions.iter().map(|a| show_action(a, &edge)).collect();
            all.join("; ")
        }
        Op::Merge(_) => format!("merge {}", (0..vertex.inputs.len()).map(edge).collect::<Vec<_>>().join(" ")),
        other => format!("{other:?}"),
    };
    let platform = vertex.platform.as_ref().map(|p| format!(" @{p}")).unwrap_or_default();
    let fresh = if vertex.meta.ignore_cache { " !" } else { "" };
    short(&format!("{text}{platform}{fresh}"))
}

fn show_exec(exec: &ExecOp, edge: &dyn Fn(usize) -> String) -> String {
    let mounts: Vec<String> = exec.mounts.iter().map(|m| show_mount(m, edge)).collect();
    let mut out = format!("run {:?} [{}]", exec.args, mounts.join(" "));
    if !exec.user.is_empty() {
        out += &format!(" user={}", exec.user);
    }
    if exec.cwd != "/" {
        out += &format!(" cwd={}", exec.cwd);
    }
    out
}

fn show_mount(mount: &Mount, edge: &dyn Fn(usize) -> String) -> String {
    let kind = match &mount.kind {
        MountKind::Bind => String::new(),
        MountKind::Cache { id, sharing, mode, uid, gid } => {
            let own = [
                mode.map(|m| format!(",mode={m:o}")),
                uid.map(|u| format!(",uid={u}")),
                gid.map(|g| format!(",gid={g}")),
            ];
            format!("cache:{id},{sharing:?}{}", own.into_iter().flatten().collect::<String>())
        }
        MountKind::Tmpfs { size } => format!("tmpfs:{size}"),
        MountKind::Secret { id, uid, gid, mode, optional } => {
            format!("secret:{id},{uid}:{gid},{mode:o},optional={optional}")
        }
        MountKind::Ssh { id, uid, gid, mode, optional } => format!("ssh:{id},{uid}:{gid},{mode:o},optional={optional}"),
    };
    let input = mount.input.map_or_else(String::new, edge);
    let selector = &mount.selector;
    let mode = match (mount.readonly, mount.output) {
        (true, _) => " ro",
        (false, Some(_)) => "",
        (false, None) if matches!(mount.kind, MountKind::Bind) => " discard",
        (false, None) => "",
    };
    format!("{}={kind}{input}{selector}{mode}", mount.dest)
}

fn show_action(action: &FileAction, edge: &dyn Fn(usize) -> String) -> String {
    let input = |i: &ActionInput| match i {
        ActionInput::Scratch => "scratch".to_owned(),
        ActionInput::Input(n) => edge(*n),
        ActionInput::Action(n) => format!("action{n}"),
    };
    let on = input(&action.input);
    match &action.kind {
        FileActionKind::Copy(copy) => {
            let source = input(&copy.from);
            format!("copy {source}:{} -> {on}:{}{}", copy.src, copy.dest, show_copy(copy, &input))
        }
        FileActionKind::Mkfile(a) => {
            format!("mkfile {on}:{} {:o} {:?}", a.path, a.mode, String::from_utf8_lossy(&a.data))
        }
        FileActionKind::Mkdir(a) => {
            let owner = a.owner.as_ref().map(|o| format!(" owner={}", show_owner(o, &input))).unwrap_or_default();
            let time = a.timestamp.map(|t| format!(" time={t}")).unwrap_or_default();
            format!("mkdir {on}:{} {:o}{owner}{time}{}", a.path, a.mode, if a.make_parents { " -p" } else { "" })
        }
        other => format!("{other:?}"),
    }
}

fn show_copy(copy: &CopyAction, input: &dyn Fn(&ActionInput) -> String) -> String {
    let mut out = String::new();
    if let Some(owner) = &copy.owner {
        out += &format!(" owner={}", show_owner(owner, input));
    }
    match &copy.mode {
        Some(Mode::Octal(bits)) => out += &format!(" mode={bits:o}"),
        Some(Mode::Symbolic(text)) => out += &format!(" mode={text}"),
        None => {}
    }
    let lists =
        [("include", &copy.include_patterns), ("exclude", &copy.exclude_patterns), ("require", &copy.required_paths)];
    for (name, list) in lists.into_iter().filter(|(_, l)| !l.is_empty()) {
        out += &format!(" {name}={list:?}");
    }
    if copy.parents {
        out += " parents";
    }
    if copy.attempt_unpack {
        out += " unpack";
    }
    if let Some(time) = copy.timestamp {
        out += &format!(" time={time}");
    }
    assert!(copy.create_dest_path);
    out
}

fn show_owner(owner: &Owner, input: &dyn Fn(&ActionInput) -> String) -> String {
    let who = |who: &Option<UserRef>| match who {
        None => "-".to_owned(),
        Some(UserRef::Id(id)) => id.to_string(),
        Some(UserRef::Name { name, input: i }) => format!("{name}@{}", input(i)),
    };
    format!("{}:{}", who(&owner.user), who(&owner.group))
}

/// The only exec of a graph.
pub fn exec(lowered: &Lowered) -> &ExecOp {
    let mut all = lowered.graph.vertices().iter().filter_map(|v| match &v.op {
        Op::Exec(exec) => Some(exec),
        _ => None,
    });
    let exec = all.next().unwrap();
    assert!(all.next().is_none());
    exec
}

pub fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}
