//! The Dockerfile language, as of syntax 1.29: text to syntax tree, variable expansion, build checks, and the patterns of ignore files.
//!
//! - [`parse`] never fails as a whole: it returns the tree and every finding. With an error among the findings the tree is incomplete and
//!   must not be built.
//! - Strings in the tree are as written; [`expand_word`] and its relatives expand them (see [`ast`] for what is expanded where). What can't
//!   be expanded is found then, or all at once by [`malformed`].
//! - [`lint`](lint()) runs the build checks that need no image; positions are byte spans ([`Span`]) that [`Source::line_col`] translates.
//! - [`IgnoreMatcher`] has Docker's ignore file semantics, [`path_match`] those of Go's `filepath.Match`.
//!
//! This crate does no I/O and depends on no other crate of the workspace.

pub mod ast;
mod diagnostic;
mod expand;
mod ignore;
mod lint;
mod mount;
mod nearest;
mod parse;
mod rules;
mod source;
mod values;
mod words;

pub use ast::*;
pub use diagnostic::{Diagnostic, Label, Severity};
pub use expand::{ExpandError, ExpandErrorKind, ExpandMode, Expanded, expand_heredoc, expand_word, expand_words};
pub use ignore::{BadPattern, IgnoreFile, IgnoreMatcher, IgnorePattern, PatternSet, Verdict, path_match};
pub use lint::{
    BaseImage, BaseImageLookup, CheckOptions, CheckOptionsError, LintContext, LintReport, is_in_environment,
    is_secret_name, lint, violation,
};
pub use mount::{Mount, MountError, MountField, MountSpec, Sharing};
pub use nearest::nearest;
pub use parse::{ParseResult, is_docker_syntax, parse, parse_onbuild};
pub use rules::Rule;
pub use source::{LineCol, Source, Span, Spanned};
pub use values::{PortSpec, ValueError, format_duration, parse_bool, parse_duration, parse_port_spec};
pub use words::malformed;
