//! The way from a request to a graph, for each platform.

use std::collections::BTreeMap;
use std::sync::Arc;

use kiln_dockerfile::{CheckOptions, Diagnostic, InstructionKind, Rule, Span};
use kiln_graph::{Edge, Graph, LocalSource, Op, ProxyEnv, SourceOp, VertexMeta};
use kiln_oci::{History, ImageConfig, Platform};

use crate::args::{Globals, is_on, proxy};
use crate::outline::Capture;
use crate::plan::{Contexts, Origin, Plan, external};
use crate::request::{BaseImage, Image, LowerError, LowerRequest, Lowered, MetaResolver, Resolved};
use crate::resolve::{Answers, Question};
use crate::stage::{StageState, finish_config};

/// Lowers the target of a Dockerfile for all platforms of the request.
pub fn lower(request: &LowerRequest, resolver: &dyn MetaResolver) -> Result<Lowered, LowerError> {
    let (lowered, _) = lower_capturing(request, resolver)?;
    Ok(lowered)
}

/// The same, with what was seen of the first platform's arguments and secrets.
pub(crate) fn lower_capturing(
    request: &LowerRequest,
    resolver: &dyn MetaResolver,
) -> Result<(Lowered, Capture), LowerError> {
    let platforms = match &request.platforms[..] {
        [] => std::slice::from_ref(&request.build_platform),
        all => all,
    };
    let mut shared = Shared::default();
    let mut images = Vec::with_capacity(platforms.len());
    let mut capture = None;
    let mut epoch = None;
    for platform in platforms {
        let mut lowering = Lowering::new(request, resolver, platform, &mut shared)?;
        images.push(lowering.run()?);
        epoch = lowering.epoch;
        capture.get_or_insert(lowering.capture);
    }
    let Shared { graph, mut warnings, base_configs, .. } = shared;
    // Two platforms notice the same.
    warnings.sort_by_key(|w| w.span.start);
    warnings.dedup();
    Ok((Lowered { graph, images, warnings, base_configs, source_date_epoch: epoch }, capture.unwrap_or_default()))
}

/// What the platforms of a request have in common.
#[derive(Default)]
struct Shared {
    graph: Graph,
    warnings: Vec<Diagnostic>,
    answers: Answers,
    base_configs: BTreeMap<String, ImageConfig>,
}

/// Lowering for one platform.
pub(crate) struct Lowering<'a, 'r> {
    pub request: &'r LowerRequest<'a>,
    resolver: &'r dyn MetaResolver,
    /// The target platform.
    pub platform: Platform,
    pub globals: Globals,
    contexts: Contexts,
    pub plan: Plan<'a>,
    /// For each node that was lowered, where it ended.
    pub states: Vec<Option<StageState>>,
    pub graph: &'r mut Graph,
    warnings: &'r mut Vec<Diagnostic>,
    answers: &'r mut Answers,
    base_configs: &'r mut BTreeMap<String, ImageConfig>,
    pub proxy: ProxyEnv,
    pub epoch: Option<i64>,
    pub file: Arc<str>,
    /// Whether names show the platform.
    pub show_platforms: bool,
    pub capture: Capture,
    context_edge: Option<Edge>,
}

impl<'a, 'r> Lowering<'a, 'r> {
    fn new(
        request: &'r LowerRequest<'a>,
        resolver: &'r dyn MetaResolver,
        platform: &Platform,
        shared: &'r mut Shared,
    ) -> Result<Self, LowerError> {
        let mut globals = Globals::new(request, platform)?;
        let contexts = Contexts::new(request);
        let epoch = crate::epoch::resolve(request, &globals, &contexts, resolver)?;
        if let Some(epoch) = epoch {
            globals.env.set("SOURCE_DATE_EPOCH", &epoch.to_string());
        }
        let plan = Plan::new(request, &globals, &contexts)?;
        Ok(Self {
            request,
            resolver,
            platform: platform.clone(),
            contexts,
            plan,
            states: Vec::new(),
            graph: &mut shared.graph,
            warnings: &mut shared.warnings,
            answers: &mut shared.answers,
            base_configs: &mut shared.base_configs,
            proxy: proxy(request),
            epoch,
            file: request.dockerfile.source.name().into(),
            show_platforms: request.platforms.len() > 1 || is_on(&request.build_args, "BUILDKIT_MULTI_PLATFORM"),
            capture: Capture::new(&globals),
            globals,
            context_edge: None,
        })
    }

    fn run(&mut self) -> Result<Image, LowerError> {
        let target = self.plan.target(self.request)?;
        let needed = self.resolve(target)?;
        self.states = (0..self.plan.nodes.len()).map(|_| None).collect();
        // What instructions name comes after the stages in the list, but has nothing below it.
        for index in (0..needed.len()).filter(|&i| needed[i]) {
            if matches!(self.plan.nodes[index].origin, Origin::Replaced) || index >= self.plan.stages {
                self.states[index] = Some(self.begin(index)?);
            }
        }
        for index in (0..self.plan.stages).filter(|&i| needed[i]) {
            if self.states[index].is_none() {
                let state = self.begin(index)?;
                self.states[index] = Some(self.steps(index, state)?);
            }
        }
        self.image(target)
    }

    /// Resolves what the target needs; triggers of a base may need more.
    fn resolve(&mut self, target: usize) -> Result<Vec<bool>, LowerError> {
        loop {
            let needed = self.plan.reachable(target);
            let mut questions = Vec::new();
            for index in (0..needed.len()).filter(|&i| needed[i]) {
                questions.extend(self.question(index)?);
            }
            self.answers.ask(questions, self.request, self.resolver)?;
            let mut changed = false;
            for index in (0..needed.len()).filter(|&i| needed[i]) {
                if self.plan.wants_triggers(index) {
                    let triggers = self.triggers(index)?;
                    changed |= !triggers.is_empty();
                    self.plan.add_triggers(index, &triggers)?;
                }
            }
            if !changed {
                return Ok(needed);
            }
            self.plan.refuse_cycles()?;
        }
    }

    /// The platform that a node's base is wanted for. Only a stage's own `FROM` counts; a stage that is based on
    /// another one has that one's.
    fn base_platform(&self, index: usize) -> Platform {
        self.plan.nodes[index].platform.clone().unwrap_or_else(|| self.platform.clone())
    }

    fn question(&self, index: usize) -> Result<Option<Question>, LowerError> {
        let node = &self.plan.nodes[index];
        if !matches!(node.origin, Origin::External | Origin::Replaced) {
            return Ok(None);
        }
        let platform = self.base_platform(index);
        let Some((source, context)) = external(self.request, &self.contexts, node, &platform)? else { return Ok(None) };
        if !source.depends_on_platform() {
            return Ok(None);
        }
        let shown = match &source {
            SourceOp::Image(image) => image.reference.to_string(),
            other => other.identifier(),
        };
        let prefix = match context {
            Some(name) => format!("[context {name}]"),
            None if self.show_platforms => format!("[{platform} internal]"),
            None => "[internal]".to_owned(),
        };
        Ok(Some(Question {
            title: format!("{prefix} load metadata for {shown}"),
            written: node.base_name.clone(),
            span: node.stage.map_or(node.span, |s| s.base.span),
            source,
            platform,
        }))
    }

    /// The `ONBUILD` triggers that a stage's base has for it.
    fn triggers(&self, index: usize) -> Result<Vec<String>, LowerError> {
        if is_on(&self.request.build_args, "BUILDKIT_DISABLE_ONBUILD") {
            return Ok(Vec::new());
        }
        match self.plan.nodes[index].origin {
            Origin::Stage(base) => {
                // A trigger does not trigger again, so only what is written in the stage itself counts.
                let own = self.plan.nodes[base].stage.map_or(&[][..], |s| &s.instructions);
                let replaced = self.plan.nodes[base].origin == Origin::Replaced;
                if replaced {
                    return Ok(self.resolved(base)?.map_or_else(Vec::new, |r| r.config.config.on_build.clone()));
                }
                let trigger = |i: &kiln_dockerfile::Instruction| match &i.kind {
                    InstructionKind::Onbuild(onbuild) => Some(onbuild.expression.clone()),
                    _ => None,
                };
                Ok(own.iter().filter_map(trigger).collect())
            }
            Origin::External => Ok(self.resolved(index)?.map_or_else(Vec::new, |r| r.config.config.on_build.clone())),
            Origin::Scratch | Origin::Replaced => Ok(Vec::new()),
        }
    }

    fn resolved(&self, index: usize) -> Result<Option<Arc<Resolved>>, LowerError> {
        let platform = self.base_platform(index);
        let source = external(self.request, &self.contexts, &self.plan.nodes[index], &platform)?;
        Ok(source.and_then(|(source, _)| self.answers.get(&source, &platform)))
    }

    /// The state in which a node begins.
    fn begin(&mut self, index: usize) -> Result<StageState, LowerError> {
        let mut state = match self.plan.nodes[index].origin {
            Origin::Stage(base) => {
                let state = self.states[base].as_ref();
                let state =
                    state.ok_or_else(|| LowerError::request("internal error: a stage's base is not lowered"))?;
                state.child(base)
            }
            Origin::Scratch => StageState::empty(&self.platform),
            Origin::External | Origin::Replaced => self.begin_external(index)?,
        };
        let node = &self.plan.nodes[index];
        state.begin(crate::names::Progress {
            stage: node.label.clone(),
            total: node.shown(),
            done: usize::from(node.origin == Origin::External && state.root.is_some()),
            platforms: self.show_platforms,
        });
        Ok(state)
    }

    fn begin_external(&mut self, index: usize) -> Result<StageState, LowerError> {
        let platform = self.base_platform(index);
        let node = &self.plan.nodes[index];
        let Some((source, context)) = external(self.request, &self.contexts, node, &platform)? else {
            return Ok(StageState::empty(&self.platform));
        };
        let resolved = self.answers.get(&source, &platform);
        let (name, span) = (self.source_name(index, &source, context.as_deref(), resolved.as_deref()), node.span);
        let base_name = node.base_name.clone();
        let Some(resolved) = resolved else {
            let root = self.source(source, None, name, Some(span))?;
            let mut state = StageState::empty(&self.platform);
            state.platform = platform;
            state.root = Some(root);
            return Ok(state);
        };
        self.check_platform(index, &resolved.config, &platform);
        self.base_configs.entry(base_name.clone()).or_insert_with(|| resolved.config.clone());
        let root = match has_layers(&resolved.config) {
            true => Some(self.source(resolved.source.clone(), Some(platform.clone()), name, Some(span))?),
            false => None,
        };
        let base = BaseImage { name: base_name, source: resolved.source.clone(), config: resolved.config.clone() };
        Ok(StageState::from_image(Arc::new(base), root, platform))
    }

    fn source_name(
        &self,
        index: usize,
        source: &SourceOp,
        context: Option<&str>,
        resolved: Option<&Resolved>,
    ) -> String {
        let pinned = resolved.map_or(source, |r| &r.source);
        let shown = match (source, pinned) {
            // People want to see the tag that they wrote, too.
            (SourceOp::Image(asked), SourceOp::Image(found)) => {
                match (asked.reference.digest(), found.reference.digest()) {
                    (None, Some(digest)) => format!("{}@{digest}", asked.reference),
                    _ => found.reference.to_string(),
                }
            }
            (_, other) => other.identifier(),
        };
        match (context, pinned) {
            (Some(name), SourceOp::Local(_)) => format!("[context {name}] load from client"),
            (Some(name), SourceOp::OciLayout(_)) => format!("[context {name}] OCI load from client"),
            (Some(name), _) => format!("[context {name}] {shown}"),
            (None, _) => {
                let node = &self.plan.nodes[index];
                let (stage, total) = (node.label.clone(), if node.stage.is_some() { node.shown() } else { 0 });
                let progress = crate::names::Progress { stage, total, done: 1, platforms: self.show_platforms };
                progress.name(&format!("FROM {shown}"), &self.base_platform(index), &Default::default(), false)
            }
        }
    }

    /// Adds a source to the graph.
    pub fn source(
        &mut self,
        source: SourceOp,
        platform: Option<Platform>,
        name: String,
        span: Option<Span>,
    ) -> Result<Edge, LowerError> {
        let platform = platform.filter(|_| source.depends_on_platform());
        let (location, ignore_cache) = (span.map(|s| self.location(s)), self.request.remake_sources);
        let meta = VertexMeta { name, location, ignore_cache, ..VertexMeta::default() };
        Ok(self.graph.add(Op::Source(source), Vec::new(), platform, meta)?.into())
    }

    /// The main build context.
    pub fn context(&mut self) -> Result<Edge, LowerError> {
        if let Some(edge) = self.context_edge {
            return Ok(edge);
        }
        let local = || SourceOp::Local(LocalSource { name: "context".to_owned(), ..LocalSource::default() });
        let source = self.request.main_context.clone().unwrap_or_else(local);
        let name = match &source {
            SourceOp::Local(_) => "[internal] load build context".to_owned(),
            SourceOp::Git(git) => format!("[internal] load git source {}", git.remote),
            _ => "[internal] load remote build context".to_owned(),
        };
        let edge = self.source(source, Some(self.platform.clone()), name, None)?;
        self.context_edge = Some(edge);
        Ok(edge)
    }

    /// The lines of a place.
    pub fn location(&self, span: Span) -> kiln_graph::Location {
        let (start, end) = self.request.dockerfile.source.lines_of(span);
        let line = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        kiln_graph::Location { file: self.file.clone(), start_line: line(start), end_line: line(end) }
    }

    fn check_platform(&mut self, index: usize, config: &ImageConfig, wanted: &Platform) {
        let is = config.platform();
        let same = is.os == wanted.os && is.architecture == wanted.architecture;
        if same || !check_allowed(self.request, Rule::InvalidBaseImagePlatform) {
            return;
        }
        let node = &self.plan.nodes[index];
        let message = format!(
            "Base image {} was pulled with platform {:?}, expected {:?} for current build",
            node.base_name,
            is.to_string(),
            wanted.to_string()
        );
        let span = node.stage.map_or(node.span, |s| s.base.span);
        self.warnings.push(Diagnostic::lint(Rule::InvalidBaseImagePlatform, span, message));
    }

    /// The finished image of the target.
    fn image(&mut self, target: usize) -> Result<Image, LowerError> {
        let (history, spans): (Vec<_>, Vec<_>) = self.history(target).into_iter().unzip();
        let history_locations = spans.into_iter().map(|span| self.location(span)).collect();
        let missing = || LowerError::request("internal error: the target is not lowered");
        let state = self.states[target].take().ok_or_else(missing)?;
        let base = state.base.clone();
        let inherited = base.as_ref().map_or(0, |b| b.config.history.len());
        let root = state.root;
        let mut config = finish_config(state);
        config.history = base.iter().flat_map(|b| b.config.history.iter().cloned()).chain(history).collect();
        for (key, value) in &self.request.labels {
            config.config.labels.insert(key.clone(), value.clone());
        }
        if !self.request.platforms.is_empty() {
            set_platform(&mut config, &self.platform);
        }
        let stage = self.plan.nodes[target].stage.map_or_else(String::new, |s| s.display_name());
        let base = base.map(|b| (*b).clone());
        let platform = self.platform.clone();
        Ok(Image { platform, root, config, inherited_history: inherited, history_locations, stage, base })
    }

    /// The history of a stage and the stages that it is based on, without the base image's. It is put together only
    /// here: a stage that copied its base's history would make long chains of stages quadratic.
    fn history(&mut self, target: usize) -> Vec<(History, Span)> {
        let mut chain = Vec::new();
        let mut next = Some(target);
        while let Some(state) = next.and_then(|i| self.states[i].as_mut()) {
            let entries = std::mem::take(&mut state.history);
            chain.push(entries.into_iter().zip(std::mem::take(&mut state.history_spans)));
            next = state.parent;
        }
        chain.into_iter().rev().flatten().collect()
    }
}

/// Whether `# check=` (or the build arg that replaces it) lets a rule run.
fn check_allowed(request: &LowerRequest, rule: Rule) -> bool {
    let directive = request.dockerfile.directives.check.as_ref().map(|c| c.value.as_str());
    let options = request.build_args.get("BUILDKIT_DOCKERFILE_CHECK").map(String::as_str).or(directive);
    // What is wrong with the options is told by the build checks.
    options.and_then(|o| CheckOptions::parse(o).ok()).is_none_or(|o| o.allows(rule))
}

fn has_layers(config: &ImageConfig) -> bool {
    !config.rootfs.diff_ids.is_empty() || config.history.iter().any(|h| h.empty_layer != Some(true))
}

fn set_platform(config: &mut ImageConfig, platform: &Platform) {
    config.os = platform.os.clone();
    config.architecture = platform.architecture.clone();
    config.variant = platform.variant.clone();
    let mut extra: BTreeMap<String, serde_json::Value> = std::mem::take(&mut config.extra);
    if let Some(version) = &platform.os_version {
        extra.insert("os.version".to_owned(), version.as_str().into());
    }
    if !platform.os_features.is_empty() {
        extra.insert("os.features".to_owned(), platform.os_features.clone().into());
    }
    config.extra = extra;
}
