//! `--call=targets` and `--call=outline`.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use kiln_dockerfile::{ArgDecl, Dockerfile, Span};

use crate::args::{GlobalArg, Globals};
use crate::lower::lower_capturing;
use crate::plan::Step;
use crate::request::{LowerError, LowerRequest, MetaResolver};

/// A stage that can be built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Name; empty if it has none.
    pub name: String,
    /// The comment `# <name> <description>` before it.
    pub description: Option<String>,
    /// Whether it is built when no target is given.
    pub default: bool,
    /// Its base, as written.
    pub base: String,
    /// `--platform`, as written.
    pub platform: Option<String>,
    /// The `FROM`.
    pub span: Span,
}

/// The stages of a Dockerfile.
pub fn targets(dockerfile: &Dockerfile) -> Vec<Target> {
    let last = dockerfile.stages.len().saturating_sub(1);
    let target = |(index, stage): (usize, &kiln_dockerfile::Stage)| Target {
        name: stage.name.as_ref().map_or_else(String::new, |n| n.value.clone()),
        description: stage.doc.clone(),
        default: index == last,
        base: stage.base.value.clone(),
        platform: stage.platform.as_ref().map(|p| p.value.clone()),
        span: stage.span,
    };
    dockerfile.stages.iter().enumerate().map(target).collect()
}

/// What a target can be given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outline {
    /// Name of the target; empty if it has none.
    pub name: String,
    /// Its description.
    pub description: Option<String>,
    /// Build args, in the order of the file.
    pub args: Vec<OutlineArg>,
    /// Secrets, in the order of the file.
    pub secrets: Vec<OutlineMount>,
    /// ssh agents, in the order of the file.
    pub ssh: Vec<OutlineMount>,
}

/// A build arg.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutlineArg {
    /// Name.
    pub name: String,
    /// The comment `# <name> <description>` before it.
    pub description: Option<String>,
    /// The value it has in this build.
    pub value: Option<String>,
    /// The `ARG`.
    pub span: Span,
}

/// A secret or ssh agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutlineMount {
    /// Its id.
    pub id: String,
    /// Whether the build fails without it.
    pub required: bool,
    /// The mount.
    pub span: Span,
}

/// What the target of a request can be given.
pub fn outline(request: &LowerRequest, resolver: &dyn MetaResolver) -> Result<Outline, LowerError> {
    let (lowered, capture) = lower_capturing(request, resolver)?;
    let built = lowered.images.first().map(|i| i.stage.as_str()).unwrap_or_default();
    let target = request.dockerfile.stages.iter().rev().find(|s| s.display_name() == built);
    let mut outline = capture.finish();
    if let Some(stage) = target {
        outline.name = stage.name.as_ref().map_or_else(String::new, |n| n.value.clone());
        outline.description.clone_from(&stage.doc);
    }
    Ok(outline)
}

/// What was seen while the target was lowered.
#[derive(Debug, Clone, Default)]
pub(crate) struct Capture {
    globals: BTreeMap<String, GlobalArg>,
    args: HashMap<String, OutlineArg>,
    secrets: Vec<OutlineMount>,
    ssh: Vec<OutlineMount>,
}

impl Capture {
    pub fn new(globals: &Globals) -> Self {
        Self { globals: globals.declared.clone(), ..Self::default() }
    }

    /// Global args that a `FROM` uses, and those that their values are made from.
    pub fn use_globals(&mut self, names: &[String]) {
        let mut todo: Vec<String> = names.to_vec();
        while let Some(name) = todo.pop() {
            let Some(global) = self.globals.get(&name) else { continue };
            if let Entry::Vacant(entry) = self.args.entry(name.clone()) {
                todo.extend(global.uses.iter().cloned());
                entry.insert(OutlineArg {
                    name,
                    description: global.doc.clone(),
                    value: global.value.clone(),
                    span: global.span,
                });
            }
        }
    }

    /// An `ARG` of a stage. Without a default it is the global one's, if there is one.
    pub fn declared(&mut self, arg: &ArgDecl, step: &Step, value: Option<&str>) {
        let name = &arg.name.value;
        if arg.default.is_none() && self.globals.contains_key(name) {
            return self.use_globals(std::slice::from_ref(name));
        }
        // `ARG NAME`, and its default later.
        if self.args.get(name).is_none_or(|known| known.value.is_none()) {
            let arg = OutlineArg {
                name: name.clone(),
                description: arg.doc.clone(),
                value: value.map(str::to_owned),
                span: step.span(),
            };
            self.args.insert(name.clone(), arg);
        }
    }

    pub fn secret(&mut self, id: &str, required: bool, span: Span) {
        mount(&mut self.secrets, id, required, span);
    }

    pub fn ssh(&mut self, id: &str, required: bool, span: Span) {
        mount(&mut self.ssh, id, required, span);
    }

    fn finish(self) -> Outline {
        let mut args: Vec<OutlineArg> = self.args.into_values().collect();
        args.sort_by(|a, b| (a.span, &a.name).cmp(&(b.span, &b.name)));
        let sorted = |mut mounts: Vec<OutlineMount>| {
            mounts.sort_by_key(|m| m.span);
            mounts
        };
        Outline { args, secrets: sorted(self.secrets), ssh: sorted(self.ssh), ..Outline::default() }
    }
}

fn mount(all: &mut Vec<OutlineMount>, id: &str, required: bool, span: Span) {
    match all.iter_mut().find(|m| m.id == id) {
        Some(known) => known.required |= required,
        None => all.push(OutlineMount { id: id.to_owned(), required, span }),
    }
}
