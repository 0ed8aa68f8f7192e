//! `.dockerignore`: the file format and the exact matching rules of moby/patternmatcher.
//!
//! The last pattern that matches a path *or one of its parent directories* decides; `!` re-includes; `**` crosses directories.

mod pattern;
mod token;

pub use token::{BadPattern, path_match};

use crate::diagnostic::Diagnostic;
use crate::source::{Source, Span};

use pattern::{Cuts, Pattern};
pub(crate) use token::clean;

/// A parsed ignore file.
#[derive(Clone, Debug)]
pub struct IgnoreFile {
    /// The file itself.
    pub source: Source,
    /// The patterns in order.
    pub patterns: Vec<IgnorePattern>,
    /// Patterns that cannot be used. Docker refuses to build with any of these.
    pub diagnostics: Vec<Diagnostic>,
}

/// One line of an ignore file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IgnorePattern {
    /// The pattern, cleaned, without `!`.
    pub pattern: Vec<u8>,
    /// It began with `!`.
    pub negated: bool,
    /// Line number, from 1.
    pub line: usize,
    /// Where it is written.
    pub span: Span,
}

impl IgnorePattern {
    /// The pattern as a person would write it.
    pub fn display(&self) -> String {
        format!("{}{}", if self.negated { "!" } else { "" }, String::from_utf8_lossy(&self.pattern))
    }
}

impl IgnoreFile {
    /// Parses an ignore file; never fails, see [`IgnoreFile::diagnostics`]. `name` is only for messages.
    pub fn parse(bytes: &[u8], name: &str) -> IgnoreFile {
        let source = Source::new(name, bytes);
        let mut file = IgnoreFile { source, patterns: Vec::new(), diagnostics: Vec::new() };
        let mut start = if bytes.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
        for (index, raw) in bytes[start..].split(|b| *b == b'\n').enumerate() {
            // A comment must begin in the first column.
            if raw.first() != Some(&b'#') {
                file.add(raw, start, index + 1);
            }
            start += raw.len() + 1;
        }
        file
    }

    fn add(&mut self, raw: &[u8], start: usize, line: usize) {
        let text = raw.trim_ascii();
        if text.is_empty() {
            return;
        }
        let at = start + (raw.len() - raw.trim_ascii_start().len());
        let span = Span::new(at, at + text.len());
        let (negated, body) = match text.strip_prefix(b"!") {
            Some(body) => (true, body.trim_ascii()),
            None => (false, text),
        };
        if body.is_empty() {
            let error = Diagnostic::error(span, "illegal exclusion pattern: \"!\"");
            self.diagnostics.push(error.with_help("write the pattern to re-include after the !"));
            return;
        }
        let cleaned = relative(clean(body));
        match Pattern::new(&cleaned) {
            Ok(_) => self.patterns.push(IgnorePattern { pattern: cleaned, negated, line, span }),
            Err(error) => self.diagnostics.push(Diagnostic::error(span, error.to_string())),
        }
    }
}

/// A leading slash means the root of the context, as does its absence.
fn relative(cleaned: Vec<u8>) -> Vec<u8> {
    match cleaned.strip_prefix(b"/") {
        Some(rest) if !rest.is_empty() => rest.to_vec(),
        _ => cleaned,
    }
}

/// Decides which paths are ignored. Cheap to use from several threads.
#[derive(Debug, Default)]
pub struct IgnoreMatcher {
    name: String,
    rules: Vec<Rule>,
    negations: bool,
}

#[derive(Debug)]
struct Rule {
    source: IgnorePattern,
    compiled: Pattern,
}

/// What an ignore file says about a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict<'a> {
    /// The path is ignored.
    pub ignored: bool,
    /// The pattern that decided; `None` when none matched.
    pub rule: Option<&'a IgnorePattern>,
}

impl IgnoreMatcher {
    /// Compiles the patterns of a file; fails with what [`IgnoreFile::diagnostics`] has.
    pub fn new(file: &IgnoreFile) -> Result<IgnoreMatcher, Vec<Diagnostic>> {
        if !file.diagnostics.is_empty() {
            return Err(file.diagnostics.clone());
        }
        Ok(IgnoreMatcher::of(file))
    }

    fn of(file: &IgnoreFile) -> IgnoreMatcher {
        let compile = |p: &IgnorePattern| Some(Rule { source: p.clone(), compiled: Pattern::new(&p.pattern).ok()? });
        let rules: Vec<Rule> = file.patterns.iter().filter_map(compile).collect();
        let negations = rules.iter().any(|r| r.source.negated);
        IgnoreMatcher { name: file.source.name().to_owned(), rules, negations }
    }

    /// Compiles patterns given one by one (`--exclude`). Lines are counted from 1.
    pub fn from_patterns<P: AsRef<[u8]>>(patterns: &[P]) -> Result<IgnoreMatcher, BadPattern> {
        let mut file = IgnoreFile { source: Source::new("", b""), patterns: Vec::new(), diagnostics: Vec::new() };
        for (index, pattern) in patterns.iter().enumerate() {
            let pattern = pattern.as_ref();
            file.add(pattern, 0, index + 1);
            if !file.diagnostics.is_empty() {
                return Err(BadPattern::new(pattern));
            }
        }
        Ok(IgnoreMatcher::of(&file))
    }

    /// No pattern at all: nothing is ignored.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether any pattern begins with `!`.
    pub fn has_negations(&self) -> bool {
        self.negations
    }

    /// The patterns in order.
    pub fn patterns(&self) -> impl Iterator<Item = &IgnorePattern> {
        self.rules.iter().map(|r| &r.source)
    }

    /// A pattern with the place where it is written, in words.
    pub fn describe(&self, pattern: &IgnorePattern) -> String {
        format!("line {} of {}: {}", pattern.line, self.name, pattern.display())
    }

    /// The verdict on a path: relative to the context, cleaned, with `/` as the separator. Docker's patterns do not distinguish
    /// directories from files.
    pub fn matches(&self, path: impl AsRef<[u8]>) -> Verdict<'_> {
        let path = path.as_ref();
        let verdict = |index: usize| Verdict {
            ignored: !self.rules[index].source.negated,
            rule: Some(&self.rules[index].source),
        };
        self.deciding(path).map_or(Verdict { ignored: false, rule: None }, verdict)
    }

    /// The last pattern that matches: earlier ones cannot change the outcome.
    fn deciding(&self, path: &[u8]) -> Option<usize> {
        // The context itself is never ignored.
        if matches!(path, b"" | b"." | b"/") {
            return None;
        }
        let cuts = Cuts::new(path);
        (0..self.rules.len()).rev().find(|i| self.rules[*i].compiled.matches(&cuts))
    }

    /// Whether a directory is ignored together with everything that could be below it, so that it need not be read.
    pub fn can_skip_dir(&self, path: impl AsRef<[u8]>) -> bool {
        let path = path.as_ref();
        let Some(index) = self.deciding(path).filter(|i| !self.rules[*i].source.negated) else { return false };
        // Patterns before the deciding one lose against it below the directory too, because it matches the parent.
        let cuts = Cuts::new(path);
        let later = &self.rules[index + 1..];
        !later.iter().any(|r| r.source.negated && r.compiled.could_match_below(&cuts))
    }
}

/// The patterns of `--exclude` and the like: the same rules, a plain answer.
#[derive(Debug, Default)]
pub struct PatternSet {
    matcher: IgnoreMatcher,
}

impl PatternSet {
    /// Compiles patterns.
    pub fn new<P: AsRef<[u8]>>(patterns: &[P]) -> Result<PatternSet, BadPattern> {
        Ok(PatternSet { matcher: IgnoreMatcher::from_patterns(patterns)? })
    }

    /// Whether the path, or a directory it is in, matches (and no later `!` pattern takes that back).
    pub fn matches(&self, path: impl AsRef<[u8]>) -> bool {
        self.matcher.matches(path).ignored
    }

    /// Whether a directory matches together with everything below it.
    pub fn can_skip_dir(&self, path: impl AsRef<[u8]>) -> bool {
        self.matcher.can_skip_dir(path)
    }
}
