//! Variable expansion and quote removal, with the rules of BuildKit's shell lexer (not a shell's: no field splitting of unquoted results in a
//! word, no bracket expressions in patterns, `\` in double quotes escapes only `"`, `$` and itself).
//!
//! Invariants: never panics, time is linear in the length of word and result except for the pattern operators (pattern times value), and
//! nesting and growth are limited so that hostile input can exhaust neither the stack nor the memory.

mod lexer;
mod pattern;

use crate::diagnostic::Diagnostic;
use crate::source::{Source, Span};

/// How quotes, escapes and unset variables are treated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExpandMode {
    /// Quotes stay in the result.
    pub raw_quotes: bool,
    /// Escape characters stay in the result.
    pub raw_escapes: bool,
    /// Quotes have no meaning.
    pub skip_quotes: bool,
    /// References to unset variables stay as written.
    pub keep_unset: bool,
}

impl ExpandMode {
    /// Ordinary words: quotes and escapes are removed, unset variables are empty.
    pub const WORD: ExpandMode =
        ExpandMode { raw_quotes: false, raw_escapes: false, skip_quotes: false, keep_unset: false };
    /// Contents of here-documents that `COPY` and `ADD` write.
    pub const HEREDOC: ExpandMode = ExpandMode { skip_quotes: true, ..ExpandMode::WORD };
    /// What progress shows for a `RUN`: quotes and unset variables stay.
    pub const DISPLAY: ExpandMode = ExpandMode { raw_quotes: true, keep_unset: true, ..ExpandMode::WORD };
    /// Finding here-documents on a line: nothing changes but the splitting.
    pub(crate) const LINE: ExpandMode =
        ExpandMode { raw_quotes: true, raw_escapes: true, skip_quotes: false, keep_unset: true };
}

/// The result of an expansion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expanded {
    /// The word.
    pub value: String,
    /// The same split at unquoted white space (also white space that came from variables).
    pub words: Vec<String>,
    /// Variables that were looked up and found, in order of appearance.
    pub used: Vec<String>,
    /// Variables that were looked up and not found, in order of appearance.
    pub undefined: Vec<String>,
    /// Where each of `words` begins and ends in the input.
    pub(crate) places: Vec<(usize, usize)>,
}

/// A word that cannot be expanded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind}")]
pub struct ExpandError {
    /// What is wrong.
    pub kind: ExpandErrorKind,
    /// The byte offset in the word where what is wrong begins.
    pub offset: usize,
}

/// What is wrong with a word.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExpandErrorKind {
    /// `${x` without `}`.
    #[error("syntax error: missing '}}'")]
    MissingBrace,
    /// `${x/a` without `/`.
    #[error("syntax error: missing '/' in ${{}}")]
    MissingSlash,
    /// `${}`, `${:x}`, `${{`.
    #[error("syntax error: bad substitution")]
    BadSubstitution,
    /// `${x=y}`.
    #[error("unsupported modifier ({0}) in substitution")]
    UnsupportedModifier(String),
    /// A quote without its partner.
    #[error("unexpected end of statement while looking for matching {0}-quote")]
    UnclosedQuote(&'static str),
    /// `${x?message}` and the variable is not set, or empty with `:?`.
    #[error("{name}: {message}")]
    Required {
        /// The variable.
        name: String,
        /// The message.
        message: String,
    },
    /// A pattern with an escape that means nothing.
    #[error("invalid pattern ({pattern}) in substitution: {reason}")]
    BadPattern {
        /// The pattern.
        pattern: String,
        /// Why.
        reason: String,
    },
    /// Too many nested `${...}`.
    #[error("variable references are nested too deeply")]
    TooDeep,
    /// Variables make the word longer by more than that.
    #[error("variables make this longer by more than {} KiB", .0 / 1024)]
    TooLong(usize),
}

impl ExpandErrorKind {
    /// It is wrong whatever the values of the variables are. (A pattern may come from a variable.)
    pub(crate) fn is_about_form(&self) -> bool {
        !matches!(self, Self::TooLong(_) | Self::Required { .. } | Self::BadPattern { .. })
    }

    /// Noticed inside an operand it is the operand's, not a sign that the `${` around it has no end.
    fn is_about_values(&self) -> bool {
        matches!(self, Self::TooDeep | Self::TooLong(_) | Self::Required { .. })
    }

    fn help(&self) -> Option<&'static str> {
        Some(match self {
            Self::MissingBrace => "expected a } in the same word; a word ends at white space",
            Self::MissingSlash => "expected ${NAME/pattern/replacement}",
            Self::BadSubstitution => "expected a name, as in ${NAME}",
            Self::UnsupportedModifier(_) => "expected one of - + ? (each also after a colon), # ## % %% / //",
            Self::UnclosedQuote(_) => "close the quote, or put the escape character before it",
            Self::Required { .. } | Self::BadPattern { .. } | Self::TooDeep | Self::TooLong(_) => return None,
        })
    }
}

impl ExpandError {
    /// The error with its place; `word` is written at `span`.
    pub fn diagnostic(&self, source: &Source, word: &str, span: Span) -> Diagnostic {
        let rest = word.get(self.offset..).unwrap_or_default();
        let length = rest.find(char::is_whitespace).unwrap_or(rest.len());
        // With continuations inside the word its offsets are others than those of the file.
        let exact = source.bytes().get(span.start..span.end) == Some(word.as_bytes());
        let start = span.start + self.offset;
        let place = if exact && length > 0 { Span::new(start, start + length) } else { span };
        let error = Diagnostic::error(place, self.to_string());
        match self.kind.help() {
            Some(help) => error.with_help(help),
            None => error,
        }
    }
}

/// Expands one word. `escape` is the Dockerfile's escape character; `lookup` knows the variables.
pub fn expand_word(
    word: &str,
    escape: char,
    lookup: &dyn Fn(&str) -> Option<String>,
    mode: ExpandMode,
) -> Result<Expanded, ExpandError> {
    lexer::expand(word, escape, lookup, mode)
}

/// Expands and splits: the words of `EXPOSE`.
pub fn expand_words(
    text: &str,
    escape: char,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<String>, ExpandError> {
    Ok(expand_word(text, escape, lookup, ExpandMode::WORD)?.words)
}

/// Expands the content of a here-document for `COPY` or `ADD`: always with `\` as the escape character, quotes are ordinary text.
pub fn expand_heredoc(content: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<Expanded, ExpandError> {
    expand_word(content, '\\', lookup, ExpandMode::HEREDOC)
}
