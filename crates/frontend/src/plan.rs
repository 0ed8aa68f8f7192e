//! Stages, what each of them is based on and copies from, and which of them the target needs.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use kiln_dockerfile::{Instruction, InstructionKind, Span, Stage, nearest, parse_onbuild};
use kiln_graph::SourceOp;
use kiln_oci::{Platform, Reference};

use crate::args::Globals;
use crate::context::context_source;
use crate::request::{LowerError, LowerRequest};

/// A stage, or an image or context that an instruction names (then without `stage`).
#[derive(Debug)]
pub struct Node<'a> {
    /// The stage of the Dockerfile.
    pub stage: Option<&'a Stage>,
    /// The `FROM`, or the flag that names it.
    pub span: Span,
    /// Its base with variables expanded.
    pub base_name: String,
    /// `FROM --platform`.
    pub platform: Option<Platform>,
    /// What it begins with.
    pub origin: Origin,
    /// Its instructions, those of `ONBUILD` triggers first.
    pub steps: Vec<Step<'a>>,
    /// What its steps read: nodes, and where they are named.
    pub reads: Vec<(usize, Span)>,
    /// Name in messages and progress.
    pub label: String,
    /// Whether results of earlier builds count.
    pub ignore_cache: bool,
    /// Global args that its `FROM` uses.
    pub uses: Vec<String>,
    triggers_added: bool,
}

/// What a node begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Another stage.
    Stage(usize),
    /// Nothing.
    Scratch,
    /// An image or a named context, by [`Node::base_name`].
    External,
    /// The same, instead of all that the Dockerfile says about the stage: a context with the stage's name.
    Replaced,
}

/// An instruction to be lowered.
#[derive(Debug)]
pub struct Step<'a> {
    /// The instruction.
    pub instruction: Cow<'a, Instruction>,
    /// For a trigger: the `FROM` that brought it. Spans of the instruction mean nothing in the Dockerfile then.
    pub trigger: Option<Span>,
    /// The node that each `--from` names: one for `COPY`, one for each mount of `RUN`.
    pub from: Vec<Option<usize>>,
}

impl Step<'_> {
    /// A place inside the instruction, in the Dockerfile.
    pub fn at(&self, span: Span) -> Span {
        self.trigger.unwrap_or(span)
    }

    /// The place of the instruction in the Dockerfile.
    pub fn span(&self) -> Span {
        self.at(self.instruction.span)
    }

    /// Whether it is counted in `[stage 1/3]`.
    fn is_shown(&self) -> bool {
        use InstructionKind::{Add, Copy, Run, Workdir};
        matches!(self.instruction.kind, Add(_) | Copy(_) | Run(_) | Workdir(_))
    }
}

impl Node<'_> {
    /// Steps that are shown, the `FROM` of an image included.
    pub fn shown(&self) -> usize {
        self.steps.iter().filter(|s| s.is_shown()).count() + usize::from(self.origin == Origin::External)
    }
}

/// All nodes: the stages in order, then what instructions name.
#[derive(Debug)]
pub struct Plan<'a> {
    /// All nodes.
    pub nodes: Vec<Node<'a>>,
    /// How many of them are stages.
    pub stages: usize,
    by_name: HashMap<String, usize>,
    named: HashMap<String, usize>,
}

impl<'a> Plan<'a> {
    /// Reads all stages.
    pub fn new(request: &LowerRequest<'a>, globals: &Globals, contexts: &Contexts) -> Result<Self, LowerError> {
        let stages = &request.dockerfile.stages;
        let mut plan = Self {
            nodes: Vec::with_capacity(stages.len()),
            stages: stages.len(),
            by_name: HashMap::new(),
            named: HashMap::new(),
        };
        for (index, stage) in stages.iter().enumerate() {
            let node = plan.stage(request, globals, contexts, stage)?;
            plan.nodes.push(node);
            if let Some(name) = &stage.name {
                plan.by_name.insert(name.value.to_lowercase(), index);
            }
        }
        for (index, stage) in stages.iter().enumerate() {
            if plan.nodes[index].origin != Origin::Replaced {
                for instruction in &stage.instructions {
                    plan.add_step(index, Cow::Borrowed(instruction), None)?;
                }
            }
        }
        if let [only] = &mut plan.nodes[..] {
            only.label.clear();
        }
        plan.refuse_cycles()?;
        Ok(plan)
    }

    fn stage(
        &self,
        request: &LowerRequest<'a>,
        globals: &Globals,
        contexts: &Contexts,
        stage: &'a Stage,
    ) -> Result<Node<'a>, LowerError> {
        let (base_name, mut uses) = globals.expand(request.dockerfile, &stage.base)?;
        if base_name.is_empty() {
            let message = format!("base name ({}) should not be blank", stage.base.value);
            let help = suggest_arg(&stage.base.value, globals);
            return Err(LowerError::at(stage.base.span, message).with_help(help));
        }
        let platform = match &stage.platform {
            Some(written) => {
                let (text, used) = globals.expand(request.dockerfile, written)?;
                uses.extend(used);
                Some(parse_platform(&written.value, &text, written.span, globals)?)
            }
            None => None,
        };
        let replaced = stage.name.as_ref().is_some_and(|n| contexts.find(&n.value, platform.as_ref()).is_some());
        let earlier = self.by_name.get(&base_name.to_lowercase()).copied();
        let origin = match earlier {
            _ if replaced => Origin::Replaced,
            Some(index) => Origin::Stage(index),
            None if base_name == "scratch" => Origin::Scratch,
            None => Origin::External,
        };
        let base_name = match &stage.name {
            Some(name) if replaced => name.value.clone(),
            _ => base_name,
        };
        Ok(Node {
            stage: Some(stage),
            span: stage.span,
            base_name,
            platform,
            origin,
            steps: Vec::with_capacity(stage.instructions.len()),
            reads: Vec::new(),
            label: stage.display_name(),
            ignore_cache: ignores_cache(request, stage),
            uses,
            triggers_added: false,
        })
    }

    fn add_step(
        &mut self,
        index: usize,
        instruction: Cow<'a, Instruction>,
        trigger: Option<Span>,
    ) -> Result<(), LowerError> {
        let mut step = Step { instruction, trigger, from: Vec::new() };
        let names: Vec<Option<(String, Span)>> = match &step.instruction.kind {
            InstructionKind::Copy(copy) => vec![copy.from.as_ref().map(|f| (f.value.clone(), f.span))],
            InstructionKind::Run(run) => run.mounts.iter().map(|m| m.from().map(|f| (f.to_owned(), m.span))).collect(),
            _ => Vec::new(),
        };
        for name in names {
            let Some((name, span)) = name else {
                step.from.push(None);
                continue;
            };
            let span = step.at(span);
            let node = self.from(&name, span)?;
            self.nodes[index].reads.push((node, span));
            step.from.push(Some(node));
        }
        self.nodes[index].steps.push(step);
        Ok(())
    }

    /// The node that `--from=name` means: a stage by name or index, or an image or context.
    fn from(&mut self, name: &str, span: Span) -> Result<usize, LowerError> {
        if let Ok(index) = name.parse::<i64>() {
            if let Some(index) = usize::try_from(index).ok().filter(|i| *i < self.stages) {
                return Ok(index);
            }
            let help = format!("the stages have the indexes 0 to {}", self.stages.saturating_sub(1));
            return Err(LowerError::at(span, format!("invalid stage index {index}")).with_help(Some(help)));
        }
        if let Some(&index) = self.by_name.get(&name.to_lowercase()) {
            return Ok(index);
        }
        if let Some(&index) = self.named.get(name) {
            return Ok(index);
        }
        let index = self.nodes.len();
        self.nodes.push(Node {
            stage: None,
            span,
            base_name: name.to_owned(),
            platform: None,
            origin: if name == "scratch" { Origin::Scratch } else { Origin::External },
            steps: Vec::new(),
            reads: Vec::new(),
            label: String::new(),
            ignore_cache: false,
            uses: Vec::new(),
            triggers_added: true,
        });
        self.named.insert(name.to_owned(), index);
        Ok(index)
    }

    /// Puts the triggers of its base in front of a stage's steps, once.
    pub fn add_triggers(&mut self, index: usize, triggers: &[String]) -> Result<(), LowerError> {
        let node = &mut self.nodes[index];
        if std::mem::replace(&mut node.triggers_added, true) || triggers.is_empty() {
            return Ok(());
        }
        let span = node.span;
        let own = std::mem::take(&mut node.steps);
        for text in triggers {
            let instruction = parse_onbuild(text).map_err(|errors| {
                let why = errors.first().map_or_else(String::new, |e| format!(": {}", e.message));
                LowerError::at(span, format!("the base image has a broken ONBUILD trigger {text:?}{why}"))
            })?;
            self.add_step(index, Cow::Owned(instruction), Some(span))?;
        }
        self.nodes[index].steps.extend(own);
        Ok(())
    }

    /// Whether the triggers of a node's base are still to be added.
    pub fn wants_triggers(&self, index: usize) -> bool {
        !self.nodes[index].triggers_added
    }

    /// The stage to build.
    pub fn target(&self, request: &LowerRequest) -> Result<usize, LowerError> {
        let last = self.stages.checked_sub(1).ok_or_else(|| LowerError::request("the Dockerfile has no stages"))?;
        let Some(name) = request.target.as_deref().filter(|t| !t.is_empty()) else { return Ok(last) };
        let index = name.parse::<usize>().ok().filter(|i| *i < self.stages);
        let found = self.by_name.get(&name.to_lowercase()).copied().or(index);
        found.ok_or_else(|| {
            let names = || request.dockerfile.stage_names();
            let help = match nearest(name, names()) {
                Some(near) => format!("did you mean {near}?"),
                None if names().next().is_none() => "no stage of the Dockerfile has a name".to_owned(),
                None => format!("the stages are {}", names().collect::<Vec<_>>().join(", ")),
            };
            LowerError::request(format!("target stage {name:?} could not be found")).with_help(Some(help))
        })
    }

    /// For each node, whether `target` needs it.
    pub fn reachable(&self, target: usize) -> Vec<bool> {
        let mut needed = vec![false; self.nodes.len()];
        let mut todo = vec![target];
        while let Some(index) = todo.pop() {
            if !std::mem::replace(&mut needed[index], true) {
                todo.extend(self.needs(index).map(|(i, _)| i));
            }
        }
        needed
    }

    fn needs(&self, index: usize) -> impl Iterator<Item = (usize, Span)> + '_ {
        let node = &self.nodes[index];
        let base = match node.origin {
            Origin::Stage(base) => Some((base, node.span)),
            _ => None,
        };
        base.into_iter().chain(node.reads.iter().copied())
    }

    /// A depth-first search with a stack of its own: a hostile Dockerfile may chain more stages than threads have stack.
    pub fn refuse_cycles(&self) -> Result<(), LowerError> {
        #[derive(Clone, Copy, PartialEq)]
        enum Mark {
            New,
            Open,
            Closed,
        }
        let mut marks = vec![Mark::New; self.nodes.len()];
        for start in 0..self.stages {
            if marks[start] != Mark::New {
                continue;
            }
            marks[start] = Mark::Open;
            let mut path = vec![(start, self.needs(start), self.nodes[start].span)];
            while let Some((index, needs, _)) = path.last_mut() {
                let index = *index;
                match needs.next() {
                    Some((next, span)) if marks[next] == Mark::Open => {
                        let from = path.iter().position(|(i, ..)| *i == next).unwrap_or(0);
                        let cycle: Vec<(usize, Span)> = path[from..].iter().map(|(i, _, s)| (*i, *s)).collect();
                        return Err(self.cycle(&cycle, span));
                    }
                    Some((next, span)) if marks[next] == Mark::New => {
                        marks[next] = Mark::Open;
                        path.push((next, self.needs(next), span));
                    }
                    Some(_) => {}
                    None => {
                        marks[index] = Mark::Closed;
                        path.pop();
                    }
                }
            }
        }
        Ok(())
    }

    fn cycle(&self, cycle: &[(usize, Span)], closing: Span) -> LowerError {
        let label = |i: usize| self.nodes[i].stage.map_or_else(String::new, Stage::display_name);
        let first = cycle.first().map_or(0, |(i, _)| *i);
        let mut names: Vec<String> = cycle.iter().map(|(i, _)| label(*i)).collect();
        names.push(label(first));
        let message = format!("circular dependency detected on stage: {}", label(first));
        let error = LowerError::at(closing, message);
        let mut error = error.with_help(Some(format!("each of these stages needs the next: {}", names.join(" -> "))));
        if let LowerError::Dockerfile(diagnostic) = &mut error {
            for (index, span) in cycle.iter().skip(1) {
                diagnostic
                    .labels
                    .push(kiln_dockerfile::Label { span: *span, text: format!("needs {}", label(*index)) });
            }
        }
        error
    }
}

fn ignores_cache(request: &LowerRequest, stage: &Stage) -> bool {
    let named = |wanted: &String| {
        stage.display_name().eq_ignore_ascii_case(wanted) || wanted.parse::<usize>().is_ok_and(|i| i == stage.index)
    };
    request.no_cache || request.no_cache_filter.iter().any(named)
}

fn parse_platform(written: &str, text: &str, span: Span, globals: &Globals) -> Result<Platform, LowerError> {
    if text.is_empty() {
        let error = LowerError::at(span, format!("empty platform value from expression {written}"));
        return Err(error.with_help(suggest_arg(written, globals)));
    }
    text.parse::<Platform>().map_err(|e| {
        LowerError::at(span, format!("failed to parse platform {written}: {e}"))
            .with_help(suggest_arg(written, globals))
    })
}

/// For a word whose variables gave nothing: the global arg that was probably meant.
fn suggest_arg(word: &str, globals: &Globals) -> Option<String> {
    let mut names = word.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|n| !n.is_empty());
    let unknown = names.find(|n| word.contains('$') && globals.env.get(n).is_none())?;
    Some(match nearest(unknown, globals.env.iter().map(|(k, _)| k)) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("{unknown} has no value here: only global args (before the first FROM) can be used in FROM"),
    })
}

/// `--build-context`, by the names under which they are looked up.
#[derive(Debug, Clone, Default)]
pub struct Contexts {
    specs: BTreeMap<String, (String, String)>,
}

impl Contexts {
    /// Prepares the named contexts of a request.
    pub fn new(request: &LowerRequest) -> Self {
        let specs = request.named_contexts.iter().map(|(name, spec)| {
            let key = match name.split_once("::") {
                Some((name, platform)) => format!("{}::{platform}", normal_name(name)),
                None => normal_name(name),
            };
            (key, (name.clone(), spec.clone()))
        });
        Self { specs: specs.collect() }
    }

    /// The context with this name: its name as the user wrote it, and what it stands for.
    pub fn find(&self, name: &str, platform: Option<&Platform>) -> Option<(&str, &str)> {
        if self.specs.is_empty() || name.eq_ignore_ascii_case("scratch") || name.eq_ignore_ascii_case("context") {
            return None;
        }
        let name = normal_name(name);
        let for_platform = platform.and_then(|p| self.specs.get(&format!("{name}::{p}")));
        for_platform.or_else(|| self.specs.get(&name)).map(|(name, spec)| (name.as_str(), spec.as_str()))
    }
}

/// `docker.io/library/Alpine:latest` and `alpine` are one name.
fn normal_name(name: &str) -> String {
    let lower = name.to_lowercase();
    match lower.parse::<Reference>() {
        Ok(reference) => {
            let familiar = reference.familiar();
            familiar.strip_suffix(":latest").map_or(familiar.clone(), str::to_owned)
        }
        Err(_) => lower,
    }
}

/// The source that a node's base name means, and how to call it; `None` is scratch.
pub fn external(
    request: &LowerRequest,
    contexts: &Contexts,
    node: &Node,
    platform: &Platform,
) -> Result<Option<(SourceOp, Option<String>)>, LowerError> {
    if let Some((name, spec)) = contexts.find(&node.base_name, Some(platform)) {
        let source = context_source(name, spec, request.resolve)
            .map_err(|e| LowerError::request(format!("--build-context {name}={spec}: {e}")))?;
        return Ok(source.map(|s| (s, Some(name.to_owned()))));
    }
    if node.base_name.starts_with("deb://") {
        return Ok(Some((SourceOp::Deb(node.base_name.clone()), None)));
    }
    let reference = node.base_name.parse::<Reference>().map_err(|e| {
        let error = LowerError::at(node.span, format!("failed to parse stage name {:?}: {e}", node.base_name));
        error.with_help(suggest_stage(request, &node.base_name))
    })?;
    let image = kiln_graph::ImageSource { reference: reference.with_default_tag(), resolve: request.resolve };
    Ok(Some((SourceOp::Image(image), None)))
}

/// The stage or context that was probably meant.
pub fn suggest_stage(request: &LowerRequest, name: &str) -> Option<String> {
    let stages = request.dockerfile.stage_names();
    let contexts = request.named_contexts.keys().map(String::as_str);
    nearest(name, stages.chain(contexts)).map(|near| format!("did you mean {near}?"))
}
