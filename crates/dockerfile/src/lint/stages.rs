//! Checks that follow the state of a stage: variables, work directory, shell, platforms.

use std::collections::{BTreeSet, HashMap};

use crate::ast::{Command, Copy, Dockerfile, Instruction, InstructionKind, KeyValue, Stage};
use crate::diagnostic::Diagnostic;
use crate::expand::{ExpandMode, Expanded, expand_heredoc, expand_word, expand_words};
use crate::ignore::IgnoreMatcher;
use crate::nearest::nearest;
use crate::rules::Rule;
use crate::source::{Span, Spanned};
use crate::values::parse_port_spec;
use crate::words::{How, Word, expanded_words, variable_places};

use super::names::{is_reference, is_secret_name, platform_parts};
use super::scope::{Globals, StageState, Variables, expand};
use super::{Findings, LintContext};

/// More comparisons than this take longer than "did you mean" is worth: files that programs write may use ten thousand variables
/// where ten thousand others are known.
const MOST_COMPARED: usize = 1 << 18;

pub(super) fn check(dockerfile: &Dockerfile, context: &LintContext<'_>, out: &mut Findings) {
    default_bases(dockerfile, context, out);
    let globals = Globals::new(dockerfile, context, &context.build_args);
    let mut bases = Vec::with_capacity(dockerfile.stages.len());
    for stage in &dockerfile.stages {
        bases.push(from(dockerfile, stage, &globals, out));
    }
    let parents = parents(dockerfile, &bases);
    let wanted = wanted(dockerfile, context, &parents);
    let mut checker = Checker { dockerfile, context, globals: &globals, out, compared: 0 };
    let mut finished: Vec<StageState> = Vec::with_capacity(dockerfile.stages.len());
    for (stage, parent) in dockerfile.stages.iter().zip(&parents) {
        let mut state = match parent.and_then(|p| finished.get(p)) {
            Some(state) => state.clone(),
            None => checker.base_state(bases[stage.index].as_deref()),
        };
        let triggers = parent.and_then(|p| dockerfile.stages.get(p)).into_iter().flat_map(triggers);
        checker.stage(triggers.chain(&stage.instructions), &mut state, wanted.contains(&stage.index));
        finished.push(state);
    }
}

/// Each `FROM` must give a valid name when nobody passes build args.
fn default_bases(dockerfile: &Dockerfile, context: &LintContext<'_>, out: &mut Findings) {
    let defaults = Globals::new(dockerfile, context, &Variables::new());
    let mut earlier: BTreeSet<&str> = BTreeSet::new();
    for stage in dockerfile.stages.iter().filter(|s| !s.base.is_empty()) {
        let Some(expanded) = expand(&stage.base, dockerfile.escape, &defaults.values) else { return };
        // A stage may be named in any case, an image may not.
        let is_stage = earlier.contains(expanded.value.to_lowercase().as_str());
        earlier.extend(stage.name.as_ref().map(|n| n.as_str()));
        if !is_stage && !is_reference(&expanded.value) {
            out.at(&stage.comments);
            let message = format!("Default value for ARG {} results in empty or invalid base image name", stage.base);
            let finding = Diagnostic::lint(Rule::InvalidDefaultArgInFrom, stage.base.span, message);
            let help = format!("without build args the name is {:?}", expanded.value);
            out.push(finding.with_help(help));
        }
    }
}

/// Checks a `FROM` and returns the expanded base name.
fn from(dockerfile: &Dockerfile, stage: &Stage, globals: &Globals, out: &mut Findings) -> Option<String> {
    out.at(&stage.comments);
    let base = expand(&stage.base, dockerfile.escape, &globals.values);
    if let Some(base) = &base {
        undeclared(dockerfile, &stage.base, base, globals, out);
    }
    let platform = stage.platform.as_ref().and_then(|p| Some((p, expand(p, dockerfile.escape, &globals.values)?)));
    if let Some((written, expanded)) = platform {
        undeclared(dockerfile, written, &expanded, globals, out);
        let target = globals.values.get("TARGETPLATFORM");
        if expanded.used == ["TARGETPLATFORM"] && expanded.undefined.is_empty() && Some(&expanded.value) == target {
            let message = format!(
                "Setting platform to predefined {written} in FROM is redundant as this is the default behavior"
            );
            out.add(Rule::RedundantTargetPlatform, written.span, message);
        }
        constant_platform(stage, written, &expanded, out);
    }
    base.map(|b| b.value)
}

fn undeclared(
    dockerfile: &Dockerfile,
    word: &Spanned<String>,
    expanded: &Expanded,
    globals: &Globals,
    out: &mut Findings,
) {
    for name in expanded.undefined.iter().filter(|n| !globals.declared.contains(*n)) {
        let places = variable_places(&dockerfile.source, word.span);
        let span = places.get(name.as_str()).copied().unwrap_or(word.span);
        let message = format!("FROM argument '{name}' is not declared");
        out.push(match nearest(name, globals.declared.iter().map(String::as_str)) {
            Some(best) => Diagnostic::lint(Rule::UndefinedArgInFrom, span, format!("{message} (did you mean {best}?)")),
            None => Diagnostic::lint(Rule::UndefinedArgInFrom, span, message)
                .with_help("declare it with ARG before the first FROM"),
        });
    }
}

fn constant_platform(stage: &Stage, written: &Spanned<String>, expanded: &Expanded, out: &mut Findings) {
    if !expanded.used.is_empty() || !expanded.undefined.is_empty() {
        return;
    }
    let Some((os, arch)) = platform_parts(&expanded.value) else { return };
    // A stage that is named after its platform means it.
    if stage.name.as_ref().is_some_and(|n| n.contains(&os) || n.contains(&arch)) {
        return;
    }
    let message = format!("FROM --platform flag should not use constant value {:?}", expanded.value);
    out.add(Rule::FromPlatformFlagConstDisallowed, written.span, message);
}

/// The earlier stage that each stage builds on.
fn parents(dockerfile: &Dockerfile, bases: &[Option<String>]) -> Vec<Option<usize>> {
    let mut by_name: HashMap<&str, usize> = HashMap::new();
    let mut parents = Vec::with_capacity(bases.len());
    for (stage, base) in dockerfile.stages.iter().zip(bases) {
        parents.push(base.as_ref().and_then(|b| by_name.get(b.to_lowercase().as_str()).copied()));
        if let Some(name) = &stage.name {
            by_name.insert(name, stage.index);
        }
    }
    parents
}

/// The stages to check: all, or those that the target needs.
fn wanted(dockerfile: &Dockerfile, context: &LintContext<'_>, parents: &[Option<usize>]) -> BTreeSet<usize> {
    let last = dockerfile.stages.len().checked_sub(1);
    let target = match &context.target {
        Some(name) => dockerfile.find_stage(name).map(|s| s.index),
        None => last,
    };
    let mut todo = match target {
        Some(target) if !context.all_stages => vec![target],
        _ => return (0..dockerfile.stages.len()).collect(),
    };
    let mut wanted = BTreeSet::new();
    let mut names: HashMap<&str, usize> = HashMap::new();
    for stage in &dockerfile.stages {
        names.extend(stage.name.as_ref().map(|n| (n.as_str(), stage.index)));
    }
    let find = |name: &str| {
        let by_index = || name.parse::<usize>().ok().filter(|i| *i < dockerfile.stages.len());
        names.get(name.to_lowercase().as_str()).copied().or_else(by_index)
    };
    while let Some(index) = todo.pop() {
        let Some(stage) = dockerfile.stages.get(index).filter(|_| wanted.insert(index)) else { continue };
        todo.extend(parents.get(index).copied().flatten());
        for instruction in &stage.instructions {
            match &instruction.kind {
                InstructionKind::Copy(Copy { from: Some(from), .. }) => todo.extend(find(from)),
                InstructionKind::Run(run) => todo.extend(run.mounts.iter().filter_map(|m| m.from()).filter_map(find)),
                _ => {}
            }
        }
    }
    wanted
}

/// What a stage has for those that are based on it; they run it first.
fn triggers(stage: &Stage) -> impl Iterator<Item = &Instruction> {
    stage.instructions.iter().filter_map(|i| match &i.kind {
        InstructionKind::Onbuild(onbuild) => Some(&*onbuild.trigger),
        _ => None,
    })
}

struct Checker<'a, 'f> {
    dockerfile: &'a Dockerfile,
    context: &'a LintContext<'a>,
    globals: &'a Globals,
    out: &'f mut Findings,
    /// Names that undefined variables were compared with.
    compared: usize,
}

/// The last of each instruction that should be given once.
#[derive(Default)]
struct Once<'a> {
    cmd: Option<&'a Instruction>,
    entrypoint: Option<&'a Instruction>,
    healthcheck: Option<&'a Instruction>,
}

impl Checker<'_, '_> {
    fn base_state(&self, base: Option<&str>) -> StageState {
        let mut state = StageState::default();
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        state.set("PATH".to_owned(), path.to_owned());
        let known = base.and_then(|b| self.context.base_image?(b));
        state.unknown_base = known.is_none() && base != Some("scratch");
        for variable in known.iter().flat_map(|k| &k.env) {
            let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
            state.set(name.to_owned(), value.to_owned());
        }
        state.shell_set = known.is_some_and(|k| k.has_shell);
        state
    }

    fn stage<'i>(&mut self, instructions: impl Iterator<Item = &'i Instruction>, state: &mut StageState, wanted: bool) {
        let mut once = Once::default();
        for instruction in instructions {
            if wanted {
                self.out.at(&instruction.comments);
                self.undefined_variables(instruction, state);
                self.form(instruction, state);
                self.values(instruction, state);
                self.used_once(instruction, &mut once);
            }
            self.effects(instruction, state);
        }
    }

    /// What an instruction changes for those after it.
    fn effects(&self, instruction: &Instruction, state: &mut StageState) {
        let escape = self.dockerfile.escape;
        match &instruction.kind {
            InstructionKind::Arg(arg) => {
                for arg in &arg.args {
                    let default = arg.default.as_ref().and_then(|d| expand(d, escape, &state.env)).map(|e| e.value);
                    state.declare(arg, default, &self.context.build_args, self.globals);
                }
            }
            InstructionKind::Env(pairs) => {
                // All values see the environment before the instruction. Nothing else may hold it when it is changed, or
                // each ENV would copy all of it.
                let text = |word: &str| expand(word, escape, &state.env).map(|e| e.value).unwrap_or_default();
                let new: Vec<_> = pairs.iter().map(|KeyValue { key, value, .. }| (text(key), text(value))).collect();
                for (name, value) in new {
                    state.set(name, value);
                }
            }
            InstructionKind::Shell(_) => state.shell_set = true,
            InstructionKind::Workdir(_) => state.workdir_set = true,
            _ => {}
        }
    }

    fn undefined_variables(&mut self, instruction: &Instruction, state: &StageState) {
        if !self.out.wants(Rule::UndefinedVar) {
            return;
        }
        let lookup = |name: &str| state.env.get(name).cloned();
        if let InstructionKind::Arg(arg) = &instruction.kind {
            // A default is only looked at when it is used.
            let unused = |name: &str| self.context.build_args.contains_key(name);
            let defaults: Vec<_> =
                arg.args.iter().filter(|a| !unused(&a.name)).filter_map(|a| a.default.as_ref()).collect();
            for default in defaults {
                let word = Word { text: &default.value, span: default.span, how: How::Word };
                self.undefined_in(&word, state, &lookup);
            }
        }
        for word in expanded_words(instruction).iter().filter(|w| w.text.contains('$')) {
            self.undefined_in(word, state, &lookup);
        }
    }

    fn undefined_in(&mut self, word: &Word<'_>, state: &StageState, lookup: &dyn Fn(&str) -> Option<String>) {
        let expanded = match word.how {
            How::Word => expand_word(word.text, self.dockerfile.escape, lookup, ExpandMode::WORD),
            How::Heredoc => expand_heredoc(word.text, lookup),
        };
        let Ok(expanded) = expanded else { return };
        let dockerfile = self.dockerfile;
        let mut places = None;
        for name in expanded.undefined.iter().filter(|n| !state.tolerates(n)) {
            // The base image may well define it; a name one letter away from a declared one is still suspicious.
            if state.unknown_base && name.len() < 4 {
                continue;
            }
            let suggestion = self.suggestion(name, state);
            if state.unknown_base && suggestion.is_none() {
                continue;
            }
            let mut message = format!("Usage of undefined variable '${name}'");
            if let Some(best) = suggestion {
                message.push_str(&format!(" (did you mean ${best}?)"));
            }
            let places = places.get_or_insert_with(|| variable_places(&dockerfile.source, word.span));
            let span = places.get(name.as_str()).copied().unwrap_or(word.span);
            let mut finding = Diagnostic::lint(Rule::UndefinedVar, span, message);
            if self.globals.declared.contains(name) {
                finding =
                    finding.with_help(format!("a global ARG is visible in a stage after `ARG {name}` in that stage"));
            }
            self.out.push(finding);
        }
    }

    fn suggestion<'s>(&mut self, name: &str, state: &'s StageState) -> Option<&'s str> {
        self.compared += state.env.len();
        let known = state.env.keys().map(String::as_str);
        if self.compared > MOST_COMPARED { None } else { nearest(name, known) }
    }

    /// Forms that are discouraged.
    fn form(&mut self, instruction: &Instruction, state: &StageState) {
        let keyword = &instruction.keyword.value;
        match &instruction.kind {
            InstructionKind::Cmd(Command::Shell(_)) | InstructionKind::Entrypoint(Command::Shell(_))
                if !state.shell_set =>
            {
                let message = format!(
                    "JSON arguments recommended for {keyword} to prevent unintended behavior related to OS signals"
                );
                self.out.add(Rule::JSONArgsRecommended, instruction.span, message);
            }
            InstructionKind::Env(pairs) | InstructionKind::Label(pairs) if pairs.iter().any(|p| p.legacy) => {
                let message =
                    format!("\"{keyword} key=value\" should be used instead of legacy \"{keyword} key value\" format");
                self.out.add(Rule::LegacyKeyValueFormat, instruction.span, message);
            }
            _ => {}
        }
    }

    /// Values that are suspicious.
    fn values(&mut self, instruction: &Instruction, state: &StageState) {
        let text = |word: &str| expand(word, self.dockerfile.escape, &state.env).map(|e| e.value);
        match &instruction.kind {
            InstructionKind::Arg(arg) => arg.args.iter().for_each(|a| self.secret("ARG", &a.name, a.name.span)),
            InstructionKind::Env(pairs) => {
                for pair in pairs {
                    let key = text(&pair.key).unwrap_or_default();
                    self.secret("ENV", &key, pair.key.span);
                }
            }
            InstructionKind::Workdir(path) => {
                let Some(expanded) = expand(path, self.dockerfile.escape, &state.env) else { return };
                let guess = state.unknown_base && !expanded.undefined.is_empty();
                if !state.workdir_set && !guess && !expanded.value.starts_with('/') {
                    let message = format!(
                        "Relative workdir {:?} can have unexpected results if the base image changes",
                        expanded.value
                    );
                    self.out.add(Rule::WorkdirRelativePath, path.span, message);
                }
            }
            InstructionKind::Expose(ports) => self.ports(ports, state),
            InstructionKind::Copy(c) if c.from.is_none() => {
                let sources: Vec<_> = c.sources.iter().filter_map(|s| Some((text(s)?, s.span))).collect();
                self.ignored_sources("Copy", &sources);
            }
            InstructionKind::Add(a) => {
                let sources: Vec<_> = a.sources.iter().filter_map(|s| Some((text(s)?, s.span))).collect();
                self.ignored_sources("Add", &sources);
            }
            _ => {}
        }
    }

    fn secret(&mut self, instruction: &str, name: &str, span: Span) {
        if is_secret_name(name) {
            let message = format!("Do not use ARG or ENV instructions for sensitive data ({instruction} {name:?})");
            let finding = Diagnostic::lint(Rule::SecretsUsedInArgOrEnv, span, message);
            self.out.push(finding.with_help("use RUN --mount=type=secret"));
        }
    }

    fn ports(&mut self, ports: &[Spanned<String>], state: &StageState) {
        for word in ports {
            let lookup = |name: &str| state.env.get(name).cloned();
            let Ok(specs) = expand_words(word, self.dockerfile.escape, &lookup) else { continue };
            for raw in specs {
                let Ok(spec) = parse_port_spec(&raw) else { continue };
                if spec.odd_case {
                    let message = format!("Defined protocol '{raw}' in EXPOSE instruction should be lowercase");
                    self.out.add(Rule::ExposeProtoCasing, word.span, message);
                }
                if spec.has_host {
                    let message = format!(
                        "EXPOSE instruction should not define an IP address or host-port mapping, found '{raw}'"
                    );
                    self.out.add(Rule::ExposeInvalidFormat, word.span, message);
                }
            }
        }
    }

    /// Sources that the ignore file excludes. With re-inclusions that cannot be told from the patterns alone.
    fn ignored_sources(&mut self, verb: &str, sources: &[(String, Span)]) {
        let Some(ignore) = self.context.ignore.filter(|i| !i.is_empty() && !i.has_negations()) else { return };
        for (source, span) in sources {
            if source.contains("://") || source.starts_with("git@") {
                continue;
            }
            let path = clean_text(source);
            let Some(rule) = excluded(ignore, &path) else { continue };
            let message = format!("Attempting to {verb} file {path:?} that is excluded by .dockerignore");
            let finding = Diagnostic::lint(Rule::CopyIgnoredFile, *span, message);
            self.out.push(finding.with_help(rule));
        }
    }

    fn used_once<'i>(&mut self, instruction: &'i Instruction, once: &mut Once<'i>) {
        let slot = match &instruction.kind {
            InstructionKind::Cmd(_) => &mut once.cmd,
            InstructionKind::Entrypoint(_) => &mut once.entrypoint,
            InstructionKind::Healthcheck(_) => &mut once.healthcheck,
            _ => return,
        };
        if let Some(earlier) = slot.replace(instruction) {
            let message = format!(
                "Multiple {} instructions should not be used in the same stage because only the last one will be used",
                instruction.keyword
            );
            let finding = Diagnostic::lint(Rule::MultipleInstructionsDisallowed, earlier.span, message);
            self.out.push(finding.with_other(instruction.span, "this one is used"));
        }
    }
}

fn clean_text(path: &str) -> String {
    String::from_utf8_lossy(&crate::ignore::clean(path.as_bytes())).into_owned()
}

/// The pattern that excludes a source, in words. The context's root is only excluded by patterns that exclude everything in it.
fn excluded(ignore: &IgnoreMatcher, path: &str) -> Option<String> {
    let rule = match path {
        "." | "/" => ignore.patterns().filter(|p| matches!(p.pattern.as_slice(), b"*" | b"**" | b"**/*")).last()?,
        _ => {
            let verdict = ignore.matches(path.trim_start_matches('/'));
            verdict.rule.filter(|_| verdict.ignored)?
        }
    };
    Some(format!("excluded by {}", ignore.describe(rule)))
}
