//! The build checks. Those that only need the text run over the whole file; those that need the state of a stage (variables, shell) run over
//! the stages that the target needs, or over all of them.

mod names;
mod options;
mod scope;
mod stages;
mod structure;

use std::collections::{BTreeMap, BTreeSet, HashSet};

pub use names::is_secret_name;
pub use options::{CheckOptions, CheckOptionsError};
pub use scope::is_in_environment;

use crate::ast::Dockerfile;
use crate::diagnostic::Diagnostic;
use crate::ignore::IgnoreMatcher;
use crate::rules::Rule;
use crate::source::Span;

/// More findings than this are not collected.
const MAX_FINDINGS: usize = 1000;

/// What a base image is known to define.
#[derive(Clone, Debug, Default)]
pub struct BaseImage {
    /// Its environment, as `NAME=value`.
    pub env: Vec<String>,
    /// Its configuration sets a shell.
    pub has_shell: bool,
}

/// Answers what a base image, by its expanded name, defines.
pub type BaseImageLookup<'a> = &'a dyn Fn(&str) -> Option<BaseImage>;

/// What is known about the build besides the Dockerfile.
#[derive(Default)]
pub struct LintContext<'a> {
    /// `--build-arg`.
    pub build_args: BTreeMap<String, String>,
    /// The automatic platform args (`TARGETPLATFORM`, `BUILDOS`, ...); those of linux/amd64 when empty.
    pub platform_args: BTreeMap<String, String>,
    /// `--target`.
    pub target: Option<String>,
    /// Check all stages even when there is a target. Without a target `--check` means all stages, a build means those of the last stage.
    pub all_stages: bool,
    /// The context's ignore file, for `CopyIgnoredFile`.
    pub ignore: Option<&'a IgnoreMatcher>,
    /// Looks up what a base image (by its expanded name) defines. Where it answers `None`, variables that the image may define are only
    /// reported when a declared one is spelled almost the same.
    pub base_image: Option<BaseImageLookup<'a>>,
    /// Options that replace the `# check=` directive (`BUILDKIT_DOCKERFILE_CHECK`).
    pub options: Option<CheckOptions>,
}

/// What the checks found.
#[derive(Clone, Debug, Default)]
pub struct LintReport {
    /// Findings in the order of the file: warnings, or an error when the options are malformed.
    pub diagnostics: Vec<Diagnostic>,
    failed: bool,
}

impl LintReport {
    /// Whether `error=true` is in force and something was found: the build has to fail with [`violation`].
    pub fn fails_build(&self) -> bool {
        self.failed
    }
}

/// The message of the failure that `error=true` makes of these findings.
pub fn violation(findings: &[Diagnostic]) -> String {
    let rules: BTreeSet<&str> = findings.iter().filter_map(|d| d.rule).map(Rule::name).collect();
    format!("lint violation found for rules: {}", rules.into_iter().collect::<Vec<_>>().join(", "))
}

/// Runs the build checks.
pub fn lint(dockerfile: &Dockerfile, context: &LintContext<'_>) -> LintReport {
    let mut malformed = None;
    let options = match (&context.options, &dockerfile.directives.check) {
        (Some(options), _) => options.clone(),
        (None, Some(check)) => CheckOptions::parse(check).unwrap_or_else(|error| {
            malformed = Some(Diagnostic::error(check.span, error.to_string()));
            CheckOptions::default()
        }),
        (None, None) => CheckOptions::default(),
    };
    let mut findings =
        Findings { options, list: Vec::new(), seen: HashSet::new(), fail: false, comments: Vec::new(), merged: None };
    structure::check(dockerfile, &mut findings);
    stages::check(dockerfile, context, &mut findings);
    let mut diagnostics = findings.list;
    diagnostics.sort_by_key(|d| d.span.start);
    diagnostics.extend(malformed);
    LintReport { diagnostics, failed: findings.fail }
}

/// Collects findings of rules that are allowed to run.
pub(crate) struct Findings {
    options: CheckOptions,
    list: Vec<Diagnostic>,
    seen: HashSet<(Rule, usize, String)>,
    fail: bool,
    /// The comments before the instruction that is being checked, and the options merged with theirs.
    comments: Vec<String>,
    merged: Option<CheckOptions>,
}

impl Findings {
    /// From here on, findings belong to an instruction with these comments.
    pub(crate) fn at(&mut self, comments: &[String]) {
        if self.comments != comments {
            self.comments = comments.to_vec();
            self.merged = self.options.with_comments(comments);
        }
    }

    /// Whether a finding of this rule would be kept; lets callers skip work.
    pub(crate) fn wants(&self, rule: Rule) -> bool {
        self.list.len() < MAX_FINDINGS && self.merged.as_ref().unwrap_or(&self.options).allows(rule)
    }

    pub(crate) fn add(&mut self, rule: Rule, span: Span, message: String) {
        self.push(Diagnostic::lint(rule, span, message));
    }

    pub(crate) fn push(&mut self, diagnostic: Diagnostic) {
        let Some(rule) = diagnostic.rule.filter(|r| self.wants(*r)) else { return };
        if self.seen.insert((rule, diagnostic.span.start, diagnostic.message.clone())) {
            self.fail |= self.merged.as_ref().unwrap_or(&self.options).error;
            self.list.push(diagnostic);
        }
    }
}
