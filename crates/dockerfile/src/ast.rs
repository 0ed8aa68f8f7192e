//! The syntax tree. Strings are as written: variables are not expanded and quotes are not removed, because both depend on the state of the
//! build at that instruction (see [`crate::expand_word`]). What is expanded where:
//!
//! | where | how |
//! |---|---|
//! | `Stage::base`, `Stage::platform` | `expand_word` with global args only |
//! | `ArgDecl::default` | `expand_word`, only when no build arg gives the value; the name never |
//! | keys and values of `ENV` and `LABEL`; `WORKDIR`, `USER`, `VOLUME`, `STOPSIGNAL` | `expand_word` |
//! | `EXPOSE` | `expand_words` (splits again) |
//! | sources, dest, `chown`, `chmod`, `checksum` of `COPY` and `ADD` | `expand_word` |
//! | [`InlineFile`] with `expand` | `expand_heredoc` (quotes are ordinary characters) |
//! | values of `RUN --mount` | [`crate::Mount::resolve`] |
//! | everything else (`RUN`, `CMD`, `ENTRYPOINT`, `SHELL`, `HEALTHCHECK`, `--exclude`, `--from`, ...) | never |

use std::time::Duration;

use crate::mount::Mount;
use crate::source::{Source, Span, Spanned};

/// A parsed Dockerfile.
#[derive(Clone, Debug)]
pub struct Dockerfile {
    /// The file itself.
    pub source: Source,
    /// The parser directives at its top.
    pub directives: Directives,
    /// The escape character in force: backslash or backtick.
    pub escape: char,
    /// The `ARG` instructions before the first `FROM`; their kind is always [`InstructionKind::Arg`].
    pub global_args: Vec<Instruction>,
    /// The stages in order.
    pub stages: Vec<Stage>,
    /// Instructions that contain an empty continuation line (the place is the empty line).
    pub empty_continuations: Vec<EmptyContinuation>,
}

impl Dockerfile {
    /// Each name that a global `ARG` declares, with its instruction.
    pub fn global_arg_decls(&self) -> impl Iterator<Item = (&ArgDecl, &Instruction)> {
        self.global_args.iter().flat_map(|i| match &i.kind {
            InstructionKind::Arg(arg) => arg.args.iter().map(|a| (a, i)).collect::<Vec<_>>(),
            _ => Vec::new(),
        })
    }

    /// The stage that a `--target`, `--from` or `FROM` operand names: by name in any case (the last stage of that name wins), else by index.
    pub fn find_stage(&self, name: &str) -> Option<&Stage> {
        let by_name =
            self.stages.iter().rev().find(|s| s.name.as_ref().is_some_and(|n| n.value.eq_ignore_ascii_case(name)));
        by_name.or_else(|| name.parse::<usize>().ok().and_then(|i| self.stages.get(i)))
    }

    /// All stage names, for suggestions.
    pub fn stage_names(&self) -> impl Iterator<Item = &str> {
        self.stages.iter().filter_map(|s| s.name.as_ref().map(|n| n.value.as_str()))
    }
}

/// The parser directives.
#[derive(Clone, Debug, Default)]
pub struct Directives {
    /// `# syntax=`: the image reference (up to the first space).
    pub syntax: Option<Spanned<String>>,
    /// `# escape=`.
    pub escape: Option<Spanned<char>>,
    /// `# check=`: the raw options (up to the first space).
    pub check: Option<Spanned<String>>,
}

/// Where an instruction has an empty continuation line.
#[derive(Clone, Debug)]
pub struct EmptyContinuation {
    /// The first empty line.
    pub line: Span,
    /// The whole instruction.
    pub instruction: Span,
    /// The comments before the instruction (they may hold `check=`).
    pub comments: Vec<String>,
}

/// A build stage: a `FROM` and the instructions up to the next.
#[derive(Clone, Debug)]
pub struct Stage {
    /// Position in the file, from 0.
    pub index: usize,
    /// The name after `AS`, in lower case.
    pub name: Option<Spanned<String>>,
    /// The name as written.
    pub written_name: Option<String>,
    /// The base as written, with variables. Empty only when the `FROM` itself was a syntax error.
    pub base: Spanned<String>,
    /// `--platform`, with variables.
    pub platform: Option<Spanned<String>>,
    /// The word `FROM` as written.
    pub keyword: Spanned<String>,
    /// The word `AS` as written.
    pub as_keyword: Option<Spanned<String>>,
    /// The instructions.
    pub instructions: Vec<Instruction>,
    /// The `FROM` instruction.
    pub span: Span,
    /// The `FROM` instruction as one line, continuations joined.
    pub original: String,
    /// Comment lines directly before, without `#`.
    pub comments: Vec<String>,
    /// The comment `# <name> <description>` before the stage, for `--call=targets`.
    pub doc: Option<String>,
}

impl Stage {
    /// The stage's name, or `stage-<index>` as in Docker's progress output.
    pub fn display_name(&self) -> String {
        self.name.as_ref().map_or_else(|| format!("stage-{}", self.index), |n| n.value.clone())
    }
}

/// One instruction inside a stage (or a global `ARG`).
#[derive(Clone, Debug)]
pub struct Instruction {
    /// What it does.
    pub kind: InstructionKind,
    /// The keyword as written (`RUN`, `run`, ...).
    pub keyword: Spanned<String>,
    /// The instruction as one line: continuations joined, comments dropped, heredoc contents not included. This is what progress shows.
    pub original: String,
    /// The here-documents, in order, with their contents.
    pub heredocs: Vec<Heredoc>,
    /// Everything, here-documents included.
    pub span: Span,
    /// Comment lines directly before, without `#`.
    pub comments: Vec<String>,
}

impl Instruction {
    /// The keyword in upper case.
    pub fn name(&self) -> &'static str {
        self.kind.name()
    }

    /// [`Instruction::original`] followed by the here-documents as written: a text that parses to the same instruction.
    pub fn original_with_heredocs(&self) -> String {
        let mut text = self.original.clone();
        for doc in &self.heredocs {
            text.push('\n');
            text.push_str(&doc.content);
            text.push_str(&doc.name);
        }
        text
    }
}

/// A here-document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heredoc {
    /// The delimiter, quotes removed; for `COPY` the file's name.
    pub name: String,
    /// The lines between, as written (tabs not stripped).
    pub content: String,
    /// No part of the delimiter was quoted.
    pub expand: bool,
    /// `<<-`: leading tabs are stripped.
    pub strip_tabs: bool,
    /// The number before `<<` (0 when none).
    pub fd: u32,
    /// The `<<...` word.
    pub span: Span,
    /// The lines between.
    pub content_span: Span,
}

impl Heredoc {
    /// The content with leading tabs removed when `<<-` asks for it.
    pub fn text(&self) -> String {
        if self.strip_tabs { strip_leading_tabs(&self.content) } else { self.content.clone() }
    }
}

/// Removes the tabs at the start of every line.
pub(crate) fn strip_leading_tabs(text: &str) -> String {
    text.split_inclusive('\n').map(|l| l.trim_start_matches('\t')).collect()
}

/// Every instruction but `FROM`.
#[derive(Clone, Debug)]
pub enum InstructionKind {
    /// `ADD`
    Add(Add),
    /// `ARG`
    Arg(Arg),
    /// `CMD`
    Cmd(Command),
    /// `COPY`
    Copy(Copy),
    /// `ENTRYPOINT`
    Entrypoint(Command),
    /// `ENV`
    Env(Vec<KeyValue>),
    /// `EXPOSE`: the words, sorted by text as Docker does before expansion (this order shows in the history).
    Expose(Vec<Spanned<String>>),
    /// `HEALTHCHECK`
    Healthcheck(Healthcheck),
    /// `LABEL`
    Label(Vec<KeyValue>),
    /// `MAINTAINER`
    Maintainer(Spanned<String>),
    /// `ONBUILD`
    Onbuild(Onbuild),
    /// `RUN`
    Run(Run),
    /// `SHELL`
    Shell(Vec<String>),
    /// `STOPSIGNAL`
    Stopsignal(Spanned<String>),
    /// `USER`
    User(Spanned<String>),
    /// `VOLUME`
    Volume(Vec<Spanned<String>>),
    /// `WORKDIR`
    Workdir(Spanned<String>),
}

impl InstructionKind {
    /// The keyword in upper case.
    pub fn name(&self) -> &'static str {
        match self {
            InstructionKind::Add(_) => "ADD",
            InstructionKind::Arg(_) => "ARG",
            InstructionKind::Cmd(_) => "CMD",
            InstructionKind::Copy(_) => "COPY",
            InstructionKind::Entrypoint(_) => "ENTRYPOINT",
            InstructionKind::Env(_) => "ENV",
            InstructionKind::Expose(_) => "EXPOSE",
            InstructionKind::Healthcheck(_) => "HEALTHCHECK",
            InstructionKind::Label(_) => "LABEL",
            InstructionKind::Maintainer(_) => "MAINTAINER",
            InstructionKind::Onbuild(_) => "ONBUILD",
            InstructionKind::Run(_) => "RUN",
            InstructionKind::Shell(_) => "SHELL",
            InstructionKind::Stopsignal(_) => "STOPSIGNAL",
            InstructionKind::User(_) => "USER",
            InstructionKind::Volume(_) => "VOLUME",
            InstructionKind::Workdir(_) => "WORKDIR",
        }
    }
}

/// `COPY`
#[derive(Clone, Debug)]
pub struct Copy {
    /// Source paths, in order (here-documents are in `files`).
    pub sources: Vec<Spanned<String>>,
    /// Here-documents used as sources; Docker copies them after the paths.
    pub files: Vec<InlineFile>,
    /// Destination.
    pub dest: Spanned<String>,
    /// `--from`: stage name, stage index, image or named context; never expanded.
    pub from: Option<Spanned<String>>,
    /// `--chown`
    pub chown: Option<Spanned<String>>,
    /// `--chmod`
    pub chmod: Option<Spanned<String>>,
    /// `--link`
    pub link: bool,
    /// `--parents`
    pub parents: bool,
    /// `--exclude`, not expanded.
    pub excludes: Vec<Spanned<String>>,
}

/// `ADD`
#[derive(Clone, Debug)]
pub struct Add {
    /// Source paths and URLs, in order.
    pub sources: Vec<Spanned<String>>,
    /// Here-documents used as sources.
    pub files: Vec<InlineFile>,
    /// Destination.
    pub dest: Spanned<String>,
    /// `--chown`
    pub chown: Option<Spanned<String>>,
    /// `--chmod`
    pub chmod: Option<Spanned<String>>,
    /// `--link`
    pub link: bool,
    /// `--exclude`, not expanded.
    pub excludes: Vec<Spanned<String>>,
    /// `--checksum`
    pub checksum: Option<Spanned<String>>,
    /// `--keep-git-dir`, if given.
    pub keep_git_dir: Option<bool>,
    /// `--unpack`, if given.
    pub unpack: Option<bool>,
}

/// A file whose content is written in the Dockerfile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InlineFile {
    /// File name: the delimiter.
    pub name: String,
    /// Content, tabs already stripped for `<<-`.
    pub content: String,
    /// Variables in it are to be expanded.
    pub expand: bool,
    /// The `<<...` word.
    pub span: Span,
}

/// What `RUN`, `CMD`, `ENTRYPOINT` and `HEALTHCHECK CMD` execute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// JSON form: executed as it is.
    Exec(Vec<String>),
    /// Shell form: one argument for the shell. When the line holds here-documents among other words, their text follows the line so that
    /// the shell interprets them.
    Shell(String),
    /// `RUN <<EOF` and nothing else: the document is the script (tabs stripped for `<<-`). With `shebang` it is to be written to
    /// `/dev/pipes/<name>`, mode 0755, and that path given to the shell; otherwise the content is the shell's argument.
    Script {
        /// The delimiter.
        name: String,
        /// The script.
        content: String,
        /// It starts with `#!`.
        shebang: bool,
    },
}

/// `RUN`
#[derive(Clone, Debug)]
pub struct Run {
    /// What runs.
    pub command: Command,
    /// `--mount`, in order.
    pub mounts: Vec<Mount>,
    /// `--network`
    pub network: Option<Spanned<NetworkMode>>,
    /// `--security`
    pub security: Option<Spanned<SecurityMode>>,
    /// `--device`
    pub devices: Vec<Device>,
}

/// `RUN --network`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NetworkMode {
    /// The build's network.
    Default,
    /// None but loopback.
    None,
    /// The host's.
    Host,
}

/// `RUN --security`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SecurityMode {
    /// The usual restrictions.
    Sandbox,
    /// No restrictions (needs an entitlement).
    Insecure,
}

/// `RUN --device`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// CDI name.
    pub name: String,
    /// The build fails when the device is missing.
    pub required: bool,
    /// The flag's value.
    pub span: Span,
}

/// `ARG`
#[derive(Clone, Debug)]
pub struct Arg {
    /// The names declared.
    pub args: Vec<ArgDecl>,
}

/// One name in an `ARG`.
#[derive(Clone, Debug)]
pub struct ArgDecl {
    /// Name; never expanded.
    pub name: Spanned<String>,
    /// Default value, if any.
    pub default: Option<Spanned<String>>,
    /// The comment `# <name> <description>` before it.
    pub doc: Option<String>,
}

/// One pair of `ENV` or `LABEL`.
#[derive(Clone, Debug)]
pub struct KeyValue {
    /// Key.
    pub key: Spanned<String>,
    /// Value.
    pub value: Spanned<String>,
    /// Written as `key value` instead of `key=value`.
    pub legacy: bool,
}

/// `HEALTHCHECK`
#[derive(Clone, Debug)]
pub enum Healthcheck {
    /// `HEALTHCHECK NONE`
    None,
    /// `HEALTHCHECK CMD`
    Check {
        /// The test; [`Command::Exec`] or [`Command::Shell`].
        command: Command,
        /// `--interval`; `None` when absent or 0.
        interval: Option<Duration>,
        /// `--timeout`
        timeout: Option<Duration>,
        /// `--start-period`
        start_period: Option<Duration>,
        /// `--start-interval`
        start_interval: Option<Duration>,
        /// `--retries`; 0 means the default.
        retries: u32,
    },
}

/// `ONBUILD`
#[derive(Clone, Debug)]
pub struct Onbuild {
    /// The trigger's text, here-documents included: what goes into the image config.
    pub expression: String,
    /// The trigger.
    pub trigger: Box<Instruction>,
}
