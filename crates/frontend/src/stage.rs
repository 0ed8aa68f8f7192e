//! A stage while its instructions are lowered.

use std::sync::Arc;

use kiln_dockerfile::{ExpandError, ExpandMode, InstructionKind, Span, Spanned, expand_heredoc, expand_word};
use kiln_graph::{Edge, Op, ProgressGroup, VertexMeta};
use kiln_oci::{History, ImageConfig, Platform, RootFs};

use crate::env::Env;
use crate::lower::Lowering;
use crate::names::{Progress, uppercase_command};
use crate::plan::Step;
use crate::request::{BaseImage, LowerError};

const COMMENT: &str = "buildkit.dockerfile.v0";
/// Characters of a step's name, for instructions that programs write.
const MAX_TITLE: usize = 4000;
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where a stage is.
#[derive(Debug, Clone)]
pub struct StageState {
    /// Its file system so far; absent while there is nothing in it.
    pub root: Option<Edge>,
    /// Its config so far. The variables and the history are kept apart.
    pub config: ImageConfig,
    /// Variables of the image.
    pub image_env: Env,
    /// Variables of the steps: the image's, and the args.
    pub env: Env,
    /// What it runs on.
    pub platform: Platform,
    /// Args that were declared, those of its base first; empty where they have no value.
    pub args: Env,
    /// Its own history entries.
    pub history: Vec<History>,
    /// The instruction of each entry.
    pub history_spans: Vec<Span>,
    /// The stage that it is based on.
    pub parent: Option<usize>,
    /// The image at the bottom.
    pub base: Option<Arc<BaseImage>>,
    /// Whether this stage itself has a `CMD`.
    pub has_cmd: bool,
    /// For the names of the steps.
    pub progress: Progress,
}

impl StageState {
    /// Scratch.
    pub fn empty(platform: &Platform) -> Self {
        let mut config = ImageConfig::empty(platform);
        config.config.working_dir = "/".to_owned();
        let env = Env::parse(&[format!("PATH={DEFAULT_PATH}")]);
        Self {
            root: None,
            config,
            image_env: env.clone(),
            env,
            platform: platform.clone(),
            args: Env::default(),
            history: Vec::new(),
            history_spans: Vec::new(),
            parent: None,
            base: None,
            has_cmd: false,
            progress: Progress { stage: String::new(), total: 0, done: 0, platforms: false },
        }
    }

    /// On top of an image.
    pub fn from_image(base: Arc<BaseImage>, root: Option<Edge>, platform: Platform) -> Self {
        let env = Env::parse(&base.config.config.env);
        // The history is put in front of the target's, and may be long.
        let mut config = ImageConfig { history: Vec::new(), rootfs: RootFs::default(), ..base.config.clone() };
        config.created = None;
        config.config.on_build.clear();
        Self {
            root,
            config,
            image_env: env.clone(),
            env,
            platform: platform.clone(),
            base: Some(base),
            ..Self::empty(&platform)
        }
    }

    /// On top of this stage, which has the given index.
    pub fn child(&self, index: usize) -> Self {
        let mut child = Self {
            root: self.root,
            config: self.config.clone(),
            image_env: self.image_env.clone(),
            env: self.env.clone(),
            platform: self.platform.clone(),
            args: self.args.clone(),
            history: Vec::new(),
            history_spans: Vec::new(),
            parent: Some(index),
            base: self.base.clone(),
            has_cmd: false,
            progress: self.progress.clone(),
        };
        child.config.config.on_build.clear();
        child
    }

    /// What every stage has before its first instruction.
    pub fn begin(&mut self, progress: Progress) {
        self.progress = progress;
        if self.image_env.get("PATH").is_none() && self.platform.os != "windows" {
            self.image_env.set("PATH", DEFAULT_PATH);
        }
        // In a stage based on another, what is in the image wins over an arg of the same name again.
        for (name, value) in self.image_env.iter() {
            self.env.set(name, value);
        }
        if self.config.config.working_dir.is_empty() {
            self.config.config.working_dir = "/".to_owned();
        }
    }

    /// The working directory.
    pub fn dir(&self) -> String {
        join("/", &self.config.config.working_dir)
    }

    /// `command` behind the stage's shell.
    pub fn with_shell(&self, command: &str) -> Vec<String> {
        let default = || match self.config.os.as_str() {
            "windows" => vec!["cmd".to_owned(), "/S".to_owned(), "/C".to_owned()],
            _ => vec!["/bin/sh".to_owned(), "-c".to_owned()],
        };
        let mut args = self.config.config.shell.clone().filter(|s| !s.is_empty()).unwrap_or_else(default);
        args.push(command.to_owned());
        args
    }

    /// Adds a history entry. A step that changed files through the graph is marked as BuildKit marks them.
    pub fn commit(&mut self, text: String, layer: bool) {
        self.history.push(History {
            created_by: Some(text),
            comment: Some(COMMENT.to_owned()),
            empty_layer: (!layer).then_some(true),
            ..History::default()
        });
    }
}

/// The config with everything that was kept apart.
pub fn finish_config(state: StageState) -> ImageConfig {
    let mut config = state.config;
    config.config.env = state.image_env.entries().to_vec();
    config
}

/// Lowers the instructions of one stage.
pub(crate) struct StageLowering<'l, 'a, 'r> {
    pub all: &'l mut Lowering<'a, 'r>,
    pub index: usize,
    pub state: StageState,
}

impl Lowering<'_, '_> {
    /// Lowers the instructions of a stage.
    pub fn steps(&mut self, index: usize, state: StageState) -> Result<StageState, LowerError> {
        let steps = std::mem::take(&mut self.plan.nodes[index].steps);
        let uses = std::mem::take(&mut self.plan.nodes[index].uses);
        self.capture.use_globals(&uses);
        let mut stage = StageLowering { all: self, index, state };
        for step in &steps {
            stage.step(step)?;
            stage.state.history_spans.resize(stage.state.history.len(), step.span());
        }
        Ok(stage.state)
    }
}

impl StageLowering<'_, '_, '_> {
    fn step(&mut self, step: &Step) -> Result<(), LowerError> {
        match &step.instruction.kind {
            InstructionKind::Add(add) => self.add(step, add),
            InstructionKind::Copy(copy) => self.copy(step, copy),
            InstructionKind::Run(run) => self.run(step, run),
            InstructionKind::Workdir(path) => self.workdir(step, path),
            InstructionKind::Arg(arg) => self.arg(step, arg),
            InstructionKind::Env(pairs) => self.env(step, pairs),
            InstructionKind::Label(pairs) => self.label(step, pairs),
            InstructionKind::Maintainer(name) => self.maintainer(name),
            InstructionKind::Cmd(command) => self.cmd(command),
            InstructionKind::Entrypoint(command) => self.entrypoint(command),
            InstructionKind::Healthcheck(check) => self.healthcheck(check),
            InstructionKind::Expose(ports) => self.expose(step, ports),
            InstructionKind::User(user) => self.user(step, user),
            InstructionKind::Volume(paths) => self.volume(step, paths),
            InstructionKind::Stopsignal(signal) => self.stopsignal(step, signal),
            InstructionKind::Shell(words) => self.shell(words),
            InstructionKind::Onbuild(onbuild) => {
                self.state.config.config.on_build.push(onbuild.expression.clone());
                Ok(())
            }
        }
    }

    /// Expands a word with the stage's variables.
    pub fn expand(&self, step: &Step, word: &Spanned<String>) -> Result<String, LowerError> {
        self.expand_text(&word.value).map_err(|e| self.misspelt(step, word, word.span, &e))
    }

    /// The same, without a place.
    pub fn expand_text(&self, word: &str) -> Result<String, ExpandError> {
        if !word.contains(['$', '\\', '`', '"', '\'']) {
            return Ok(word.to_owned());
        }
        self.expand_mode(word, ExpandMode::WORD)
    }

    fn expand_mode(&self, word: &str, mode: ExpandMode) -> Result<String, ExpandError> {
        let lookup = |name: &str| self.state.env.get(name).map(str::to_owned);
        Ok(expand_word(word, self.all.request.dockerfile.escape, &lookup, mode)?.value)
    }

    /// Expands the text of a file that is written in the Dockerfile.
    pub fn expand_file(&self, step: &Step, text: &str, span: Span) -> Result<String, LowerError> {
        let lookup = |name: &str| self.state.env.get(name).map(str::to_owned);
        let documents = &step.instruction.heredocs;
        let place = documents.iter().find(|d| d.span == span).map_or(span, |d| d.content_span);
        Ok(expand_heredoc(text, &lookup).map_err(|e| self.misspelt(step, text, place, &e))?.value)
    }

    /// The error of a word that can't be expanded.
    pub fn misspelt(&self, step: &Step, word: &str, span: Span, error: &ExpandError) -> LowerError {
        LowerError::expansion(&self.all.request.dockerfile.source, word, span, step.trigger, error)
    }

    /// An instruction as progress shows it, with its variables expanded as far as that works. Variables in `masked` are
    /// secrets.
    pub fn title(&self, step: &Step, mode: ExpandMode, masked: &[String]) -> String {
        let lookup = |name: &str| match masked.iter().any(|m| m == name) {
            true => Some("****".to_owned()),
            false => self.state.env.get(name).map(str::to_owned),
        };
        let text = &step.instruction.original;
        let shown = expand_word(text, self.all.request.dockerfile.escape, &lookup, mode);
        let mut title = uppercase_command(&shown.map_or_else(|_| text.clone(), |e| e.value));
        if let Some((end, _)) = title.char_indices().nth(MAX_TITLE) {
            title.truncate(end);
            title.push('…');
        }
        title
    }

    /// Names the next step.
    pub fn next_name(&mut self, step: &Step, title: &str) -> String {
        let onbuild = step.trigger.is_some();
        let (platform, env) = (&self.state.platform, &self.state.env);
        self.state.progress.next(title, platform, env, onbuild)
    }

    /// Names the current step once more.
    pub fn same_name(&self, step: &Step, title: &str) -> String {
        self.state.progress.name(title, &self.state.platform, &self.state.env, step.trigger.is_some())
    }

    /// What people and schedulers are told about a vertex of this step.
    pub fn meta(&self, step: &Step, name: String) -> VertexMeta {
        let node = &self.all.plan.nodes[self.index];
        VertexMeta {
            name,
            stage: node.stage.map(|s| s.display_name().into()),
            location: Some(self.all.location(step.span())),
            ignore_cache: node.ignore_cache,
            progress_group: None,
        }
    }

    /// The same for one of several vertices that are shown as one.
    pub fn group_meta(&self, step: &Step, name: String, group: (&str, bool)) -> VertexMeta {
        let (title, weak) = group;
        let id = format!("{}:{}:{}", self.index, self.state.progress.done, title);
        let group = ProgressGroup { id, name: title.to_owned(), weak };
        VertexMeta { progress_group: Some(group), ..self.meta(step, name) }
    }

    /// Adds a vertex of this step.
    pub fn vertex(
        &mut self,
        op: Op,
        inputs: Vec<Edge>,
        platform: Option<Platform>,
        meta: VertexMeta,
    ) -> Result<Edge, LowerError> {
        Ok(self.all.graph.add(op, inputs, platform, meta)?.into())
    }

    /// The file system that `--from` means, or the context. `what` says what is to be done with it.
    pub fn from(&mut self, step: &Step, which: usize, span: Span, what: &str) -> Result<Option<Edge>, LowerError> {
        let Some(Some(node)) = step.from.get(which).copied() else { return self.all.context().map(Some) };
        match &self.all.states[node] {
            Some(state) => Ok(state.root),
            None => {
                let label = |i: usize| self.all.plan.nodes[i].stage.map_or_else(String::new, |s| s.display_name());
                let message = format!(
                    "cannot {what} from stage {:?}, it needs to be defined before current stage {:?}",
                    label(node),
                    label(self.index)
                );
                Err(LowerError::at(step.at(span), message).with_help(Some("move that stage up in the file".to_owned())))
            }
        }
    }
}

/// The inputs of a vertex, each one once.
#[derive(Debug, Default)]
pub(crate) struct Inputs(pub Vec<Edge>);

impl Inputs {
    /// The index of an input.
    pub fn index(&mut self, edge: Edge) -> usize {
        match self.0.iter().position(|e| *e == edge) {
            Some(index) => index,
            None => {
                self.0.push(edge);
                self.0.len() - 1
            }
        }
    }
}

/// `path` seen from `dir`, without `.` and `..`.
pub(crate) fn join(dir: &str, path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let start = if path.starts_with('/') { "" } else { dir };
    for part in start.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::join;

    #[test]
    fn paths_stay_inside_of_the_root() {
        assert_eq!(join("/app", "src"), "/app/src");
        assert_eq!(join("/app", "/src/./x//y/"), "/src/x/y");
        assert_eq!(join("/app", "../../../etc"), "/etc");
        assert_eq!(join("", ""), "/");
        assert_eq!(join("/a", "."), "/a");
    }
}
