//! What the parser and the lint rules say, as data; rendering is the command line's business.

use crate::rules::Rule;
use crate::source::{LineCol, Source, Span};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// The build can go on.
    Warning,
    /// The Dockerfile cannot be built.
    Error,
}

/// A second place worth showing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Where.
    pub span: Span,
    /// What is to be seen there.
    pub text: String,
}

/// One finding about a Dockerfile or an ignore file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Error or warning.
    pub severity: Severity,
    /// The build check that raised it; `None` for syntax errors.
    pub rule: Option<Rule>,
    /// One sentence without a final full stop.
    pub message: String,
    /// The place it is about.
    pub span: Span,
    /// What is wrong at that place, for the line under the excerpt; may be empty.
    pub label: String,
    /// Other places worth showing.
    pub labels: Vec<Label>,
    /// What was expected or what to do.
    pub help: Option<String>,
    /// Where the check is documented.
    pub url: Option<&'static str>,
}

impl Diagnostic {
    /// A syntax error.
    pub fn error(span: Span, message: impl Into<String>) -> Diagnostic {
        Diagnostic {
            severity: Severity::Error,
            rule: None,
            message: message.into(),
            span,
            label: String::new(),
            labels: Vec::new(),
            help: None,
            url: None,
        }
    }

    /// A warning raised by a build check.
    pub fn lint(rule: Rule, span: Span, message: impl Into<String>) -> Diagnostic {
        let mut diagnostic = Diagnostic::error(span, message);
        diagnostic.severity = Severity::Warning;
        diagnostic.rule = Some(rule);
        diagnostic.url = rule.url();
        diagnostic
    }

    /// Adds advice.
    pub fn with_help(mut self, help: impl Into<String>) -> Diagnostic {
        self.help = Some(help.into());
        self
    }

    /// Says what is wrong at the main place.
    pub fn with_label(mut self, label: impl Into<String>) -> Diagnostic {
        self.label = label.into();
        self
    }

    /// Adds another place.
    pub fn with_other(mut self, span: Span, text: impl Into<String>) -> Diagnostic {
        self.labels.push(Label { span, text: text.into() });
        self
    }

    /// Whether this makes the file unbuildable.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// Line and column where the span starts.
    pub fn line_col(&self, source: &Source) -> LineCol {
        source.line_col(self.span.start)
    }

    /// `file:line:column: error: message`, one line, for logs and tests.
    pub fn one_line(&self, source: &Source) -> String {
        let at = self.line_col(source);
        let severity = if self.is_error() { "error" } else { "warning" };
        let rule = self.rule.map(|r| format!("{}: ", r.name())).unwrap_or_default();
        let help = self.help.as_ref().map(|h| format!(" ({h})")).unwrap_or_default();
        format!("{}:{}:{}: {severity}: {rule}{}{help}", source.name(), at.line, at.column, self.message)
    }
}
