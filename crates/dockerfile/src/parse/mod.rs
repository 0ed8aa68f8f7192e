//! The parser: physical lines -> logical lines -> instructions -> stages.
//!
//! Invariants: never panics, time and memory are linear in the input, and one bad instruction does not hide the next one's errors. Spans
//! count bytes of the input as received.

mod directives;
mod files;
mod flags;
mod heredoc;
mod instructions;
mod json;
mod lines;
mod run;

pub use directives::is_docker_syntax;

pub(crate) use directives::split_directive;

use crate::ast::{Dockerfile, EmptyContinuation, Heredoc, Instruction, InstructionKind, Stage};
use crate::diagnostic::Diagnostic;
use crate::source::{Source, Span};

use instructions::Parsed;
use lines::{Lines, Logical, View};

/// More findings than this are of no use to anybody; the rest is counted.
const MAX_DIAGNOSTICS: usize = 1000;

/// What [`parse`] returns.
#[derive(Clone, Debug)]
pub struct ParseResult {
    /// The tree; incomplete when there are errors.
    pub dockerfile: Dockerfile,
    /// The findings, in the order of the file. Only errors: warnings come from [`crate::lint()`].
    pub diagnostics: Vec<Diagnostic>,
}

impl ParseResult {
    /// Whether the file cannot be built.
    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(Diagnostic::is_error)
    }
}

/// Parses a Dockerfile. `file_name` is only for messages.
pub fn parse(source: &[u8], file_name: &str) -> ParseResult {
    let source = Source::new(file_name, source);
    let mut parser = Parser::new(&source);
    parser.run();
    parser.finish()
}

/// Parses the text of an `ONBUILD` trigger, as it is stored in an image's configuration. Spans count bytes of `text`.
pub fn parse_onbuild(text: &str) -> Result<Instruction, Vec<Diagnostic>> {
    let source = Source::new("ONBUILD", text.as_bytes());
    let mut parser = Parser::new(&source);
    parser.onbuild = true;
    parser.run();
    let mut instructions = std::mem::take(&mut parser.loose);
    let mut diagnostics = parser.sink.into_list(&source);
    if diagnostics.is_empty() && instructions.len() != 1 {
        let span = Span::new(0, text.len());
        diagnostics.push(Diagnostic::error(span, "an ONBUILD trigger should be a single instruction"));
    }
    match instructions.pop() {
        Some(instruction) if diagnostics.is_empty() => Ok(instruction),
        _ => Err(diagnostics),
    }
}

/// Collects findings, up to a limit.
#[derive(Debug, Default)]
pub(crate) struct Sink {
    list: Vec<Diagnostic>,
    dropped: usize,
}

impl Sink {
    pub(crate) fn push(&mut self, diagnostic: Diagnostic) {
        if self.is_full() {
            self.dropped += 1;
        } else {
            self.list.push(diagnostic);
        }
    }

    pub(crate) fn error(&mut self, span: Span, message: impl Into<String>) {
        self.push(Diagnostic::error(span, message));
    }

    pub(crate) fn is_full(&self) -> bool {
        self.list.len() >= MAX_DIAGNOSTICS
    }

    fn into_list(mut self, source: &Source) -> Vec<Diagnostic> {
        self.list.sort_by_key(|d| d.span.start);
        if self.dropped > 0 {
            let end = source.bytes().len();
            let message = format!("too many errors: {} more are not shown", self.dropped);
            self.list.push(Diagnostic::error(Span::new(end, end), message));
        }
        self.list
    }
}

/// What instruction parsers need besides the line.
pub(crate) struct Context<'a> {
    pub(crate) escape: char,
    pub(crate) comments: &'a [String],
    pub(crate) heredocs: Vec<Heredoc>,
    pub(crate) heads: Vec<heredoc::Head>,
    pub(crate) sink: &'a mut Sink,
}

struct Parser<'a> {
    source: &'a Source,
    lines: Lines<'a>,
    dockerfile: Dockerfile,
    sink: Sink,
    comments: Vec<String>,
    directives_end: usize,
    /// An instruction before the first `FROM` was reported.
    complained: bool,
    any_instruction: bool,
    /// Parsing a trigger: instructions go to `loose`.
    onbuild: bool,
    loose: Vec<Instruction>,
}

impl<'a> Parser<'a> {
    fn new(source: &'a Source) -> Parser<'a> {
        let scanned = directives::scan(source);
        let mut sink = Sink::default();
        scanned.diagnostics.into_iter().for_each(|d| sink.push(d));
        let escape = scanned.directives.escape.as_ref().map_or('\\', |e| e.value);
        Parser {
            source,
            lines: Lines::new(source),
            dockerfile: Dockerfile {
                source: source.clone(),
                directives: scanned.directives,
                escape,
                global_args: Vec::new(),
                stages: Vec::new(),
                empty_continuations: Vec::new(),
            },
            sink,
            comments: Vec::new(),
            directives_end: scanned.end,
            complained: false,
            any_instruction: false,
            onbuild: false,
            loose: Vec::new(),
        }
    }

    fn run(&mut self) {
        while let Some(line) = self.lines.next() {
            if line.is_comment() {
                if line.start >= self.directives_end {
                    self.comment(line.bytes);
                }
            } else if line.is_blank() {
                self.comments.clear();
            } else {
                let logical = self.lines.join(line, self.dockerfile.escape);
                self.logical(&logical);
                self.comments.clear();
            }
        }
    }

    /// Comments directly before an instruction describe it; an empty one separates.
    fn comment(&mut self, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        match text.trim().strip_prefix('#').map(str::trim).unwrap_or_default() {
            "" => self.comments.clear(),
            comment => self.comments.push(comment.to_owned()),
        }
    }

    fn logical(&mut self, logical: &Logical) {
        let view = View::whole(logical);
        if let Some(line) = logical.empty_line {
            self.dockerfile.empty_continuations.push(EmptyContinuation {
                line,
                instruction: logical.span,
                comments: self.comments.clone(),
            });
        }
        if view.is_empty() {
            return;
        }
        if let Some(span) = logical.bad_bytes {
            let error = Diagnostic::error(span, "the instruction holds bytes that are not UTF-8");
            self.sink.push(error.with_help("save the file as UTF-8"));
        }
        self.any_instruction = true;
        let heads = instructions::heredoc_heads(view);
        let mut end = logical.span.end;
        let heredocs = self.read_heredocs(logical, &heads, &mut end);
        let mut context =
            Context { escape: self.dockerfile.escape, comments: &self.comments, heredocs, heads, sink: &mut self.sink };
        let span = Span::new(view.span().start, end);
        let parsed = instructions::parse_instruction(view, span, &mut context);
        self.place(parsed, span);
    }

    /// Reads the here-documents' lines, which follow the logical line in order.
    fn read_heredocs(&mut self, logical: &Logical, heads: &[heredoc::Head], end: &mut usize) -> Vec<Heredoc> {
        let mut documents = Vec::with_capacity(heads.len());
        for head in heads {
            let place = logical.span_of(head.start, head.end);
            let start = self.lines.position();
            let mut content_end = start;
            let mut terminated = false;
            while let Some(line) = self.lines.next() {
                *end = line.span().end;
                let mut text = line.bytes;
                while let [b'\t', rest @ ..] = text
                    && head.strip_tabs
                {
                    text = rest;
                }
                if text == head.name.as_bytes() {
                    terminated = true;
                    break;
                }
                content_end = line.next;
            }
            if !terminated {
                let error = Diagnostic::error(place, "unterminated heredoc").with_label("begins here");
                self.sink.push(error.with_help(format!("expected a line that is exactly {:?}", head.name)));
            }
            let content_span = Span::new(start, content_end);
            let bytes = &self.source.bytes()[start..content_end.max(start)];
            if let Err(error) = std::str::from_utf8(bytes) {
                let at = start + error.valid_up_to();
                self.sink.error(Span::new(at, at + 1), "the heredoc holds bytes that are not UTF-8");
            }
            documents.push(Heredoc {
                name: head.name.clone(),
                content: String::from_utf8_lossy(bytes).into_owned(),
                expand: head.expand,
                strip_tabs: head.strip_tabs,
                fd: head.fd,
                span: place,
                content_span,
            });
        }
        documents
    }

    /// Puts an instruction where it belongs.
    fn place(&mut self, parsed: Parsed, span: Span) {
        match parsed {
            Parsed::Stage(_) if self.onbuild => self.sink.error(span, "FROM isn't allowed as an ONBUILD trigger"),
            Parsed::Stage(mut stage) => {
                stage.index = self.dockerfile.stages.len();
                self.dockerfile.stages.push(*stage);
            }
            Parsed::Instruction(instruction) if self.onbuild => match &instruction.kind {
                InstructionKind::Onbuild(_) | InstructionKind::Maintainer(_) => {
                    let message = format!("{} isn't allowed as an ONBUILD trigger", instruction.name());
                    self.sink.error(span, message);
                }
                _ => self.loose.push(*instruction),
            },
            Parsed::Instruction(instruction) => {
                let is_arg = matches!(instruction.kind, InstructionKind::Arg(_));
                match self.dockerfile.stages.last_mut() {
                    Some(stage) => stage.instructions.push(*instruction),
                    None if is_arg => self.dockerfile.global_args.push(*instruction),
                    None if self.complained => {}
                    None => {
                        self.complained = true;
                        let name = instruction.name();
                        let message = format!("no build stage in current context: {name} comes before the first FROM");
                        let error = Diagnostic::error(instruction.keyword.span, message);
                        self.sink.push(error.with_help("only ARG may come before FROM"));
                    }
                }
            }
            Parsed::Nothing => {}
        }
    }

    fn finish(mut self) -> ParseResult {
        let end = self.source.bytes().len();
        if self.dockerfile.stages.is_empty() && !self.complained && self.sink.list.is_empty() {
            let message = match (end, self.any_instruction) {
                (0, _) => "the Dockerfile cannot be empty",
                (_, false) => "file with no instructions",
                _ => "dockerfile contains no stages to build",
            };
            let error = Diagnostic::error(Span::new(end, end), message);
            self.sink.push(error.with_help("a Dockerfile needs at least one FROM instruction"));
        }
        ParseResult { dockerfile: self.dockerfile, diagnostics: self.sink.into_list(self.source) }
    }
}

/// The text after `<name> ` in the first comment that begins so.
pub(crate) fn doc_comment(comments: &[String], name: &str) -> Option<String> {
    // Only the nearest comments: an ARG may declare many names, and each looks here.
    let nearest = &comments[comments.len().saturating_sub(100)..];
    nearest.iter().find_map(|c| c.strip_prefix(name)?.strip_prefix(' ')).map(str::to_owned)
}

/// A stage with nothing in it, for a `FROM` (also a broken one: what follows still belongs to a stage).
pub(crate) fn empty_stage(view: View<'_>, keyword: View<'_>, span: Span, comments: &[String]) -> Stage {
    let base = keyword.sub(keyword.str().len(), keyword.str().len());
    Stage {
        index: 0,
        name: None,
        written_name: None,
        base: crate::source::Spanned::new(String::new(), base.span()),
        platform: None,
        keyword: crate::source::Spanned::new(keyword.str().to_owned(), keyword.span()),
        as_keyword: None,
        instructions: Vec::new(),
        span,
        original: view.str().to_owned(),
        comments: comments.to_vec(),
        doc: None,
    }
}
