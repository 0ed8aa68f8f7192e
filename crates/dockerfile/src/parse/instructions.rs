//! One logical line to one typed instruction.

use crate::ast::{Arg, ArgDecl, Instruction, InstructionKind, KeyValue, Onbuild, Stage};
use crate::diagnostic::Diagnostic;
use crate::nearest::nearest;
use crate::source::{Span, Spanned};

use super::flags::{Flags, Takes, Word, split_blank, split_quoted};
use super::json::{self, Array};
use super::lines::{View, is_blank};
use super::{Context, doc_comment, empty_stage, files, heredoc, run};

/// All instructions, for suggestions.
const NAMES: &[&str] = &[
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// `ONBUILD ONBUILD ...` is refused, but only after parsing; this bounds the recursion.
const MAX_NESTING: usize = 4;

/// What a line turned out to be.
pub(crate) enum Parsed {
    Stage(Box<Stage>),
    Instruction(Box<Instruction>),
    /// An error was reported.
    Nothing,
}

/// Splits off the first word.
fn keyword(view: View<'_>) -> (View<'_>, View<'_>) {
    let text = view.str();
    let end = text.find(is_blank).unwrap_or(text.len());
    (view.sub(0, end), view.from(end).trim())
}

/// The here-documents a line announces; only some instructions can have them, and never in JSON form.
pub(crate) fn heredoc_heads(view: View<'_>) -> Vec<heredoc::Head> {
    if !view.str().contains("<<") {
        return Vec::new();
    }
    let mut rest = view;
    for _ in 0..MAX_NESTING {
        let (word, after) = keyword(rest);
        let (_, arguments) = Flags::take(after);
        match word.str().to_ascii_uppercase().as_str() {
            "ONBUILD" => rest = arguments,
            "RUN" | "COPY" | "ADD" if !matches!(json::array(arguments.str()), Array::Strings(_)) => {
                return heredoc::find(view);
            }
            _ => return Vec::new(),
        }
    }
    Vec::new()
}

/// Parses a line. `span` covers its here-documents too.
pub(crate) fn parse_instruction(view: View<'_>, span: Span, context: &mut Context<'_>) -> Parsed {
    parse_nested(view, span, context, 0)
}

fn parse_nested(view: View<'_>, span: Span, context: &mut Context<'_>, depth: usize) -> Parsed {
    let (word, after) = keyword(view);
    let name = word.str().to_uppercase();
    if !NAMES.contains(&name.as_str()) {
        unknown_instruction(word, context);
        return Parsed::Nothing;
    }
    let (flags, arguments) = Flags::take(after);
    if name == "FROM" {
        let mut stage = empty_stage(view, word, span, context.comments);
        parse_from(&mut stage, &flags, arguments, context);
        return Parsed::Stage(Box::new(stage));
    }
    let line = Line { name: &name, view, arguments, flags: &flags, span };
    let kind = match name.as_str() {
        "ADD" | "COPY" => files::parse(&line, context),
        "RUN" => run::parse_run(&line, context),
        "CMD" | "ENTRYPOINT" | "SHELL" | "HEALTHCHECK" => run::parse_command(&line, context),
        "ONBUILD" => parse_onbuild(&line, context, depth),
        "ENV" | "LABEL" => parse_pairs(&line, context),
        "ARG" => parse_arg(&line, context),
        "EXPOSE" => parse_expose(&line, context),
        "VOLUME" => parse_volume(&line, context),
        _ => parse_text(&line, context),
    };
    let Some(kind) = kind else { return Parsed::Nothing };
    Parsed::Instruction(Box::new(Instruction {
        kind,
        keyword: Spanned::new(word.str().to_owned(), word.span()),
        original: view.str().to_owned(),
        heredocs: context.heredocs.clone(),
        span,
        comments: context.comments.to_vec(),
    }))
}

/// A line taken apart.
pub(crate) struct Line<'a> {
    /// The keyword in upper case.
    pub(crate) name: &'a str,
    pub(crate) view: View<'a>,
    pub(crate) arguments: View<'a>,
    pub(crate) flags: &'a Flags,
    pub(crate) span: Span,
}

impl Line<'_> {
    /// The place to point at when something is missing.
    pub(crate) fn place(&self) -> Span {
        self.view.span()
    }

    pub(crate) fn check_flags(&self, known: &[(&'static str, Takes)], context: &mut Context<'_>) {
        self.flags.check(self.name, known, context.sink);
    }
}

pub(crate) fn spanned(view: View<'_>) -> Spanned<String> {
    Spanned::new(view.str().to_owned(), view.span())
}

/// The words between white space, each with its place.
fn spanned_words(view: View<'_>) -> Vec<Spanned<String>> {
    split_blank(view).iter().map(|w| spanned_word(view, w)).collect()
}

pub(crate) fn spanned_word(view: View<'_>, word: &Word) -> Spanned<String> {
    Spanned::new(word.text.clone(), view.line.span_of(word.start, word.end))
}

fn unknown_instruction(word: View<'_>, context: &mut Context<'_>) {
    let shown: String = word.str().chars().take(64).collect();
    let help = match nearest(&shown.to_uppercase(), NAMES.iter().copied()) {
        Some(best) => format!("did you mean {best}?"),
        None => {
            "if this belongs to the instruction before it, end that line with the escape character or use a heredoc"
                .into()
        }
    };
    context.sink.push(Diagnostic::error(word.span(), format!("unknown instruction: {shown}")).with_help(help));
}

fn parse_from(stage: &mut Stage, flags: &Flags, arguments: View<'_>, context: &mut Context<'_>) {
    flags.check("FROM", &[("platform", Takes::Text)], context.sink);
    stage.platform = flags.text("platform");
    let words = split_blank(arguments);
    if let Some(first) = words.first() {
        stage.base = spanned_word(arguments, first);
    }
    match words.as_slice() {
        [_] => {}
        [_, as_word, name] if as_word.text.eq_ignore_ascii_case("as") => {
            let lower = name.text.to_lowercase();
            let place = arguments.line.span_of(name.start, name.end);
            stage.as_keyword = Some(spanned_word(arguments, as_word));
            stage.written_name = Some(name.text.clone());
            if is_stage_name(&lower) {
                stage.doc = doc_comment(context.comments, &lower);
                stage.name = Some(Spanned::new(lower, place));
            } else {
                let message = format!(
                    "invalid name for build stage: {:?}, name can't start with a number or contain symbols",
                    name.text
                );
                let help = "a stage name is a letter followed by letters, digits, '-', '_' and '.'";
                context.sink.push(Diagnostic::error(place, message).with_help(help));
            }
        }
        _ => {
            let place = if arguments.is_empty() { stage.keyword.span } else { arguments.span() };
            let help = match words.as_slice() {
                [base, name] if !name.text.eq_ignore_ascii_case("as") => {
                    format!("to name the stage write FROM {} AS {}", base.text, name.text)
                }
                _ => "expected FROM [--platform=<platform>] <image> [AS <name>]".to_owned(),
            };
            let error = Diagnostic::error(place, "FROM requires either one or three arguments");
            context.sink.push(error.with_help(help));
        }
    }
}

fn is_stage_name(lower: &str) -> bool {
    lower.starts_with(|c: char| c.is_ascii_lowercase())
        && lower.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.'))
}

fn parse_pairs(line: &Line<'_>, context: &mut Context<'_>) -> Option<InstructionKind> {
    line.check_flags(&[], context);
    let (name, arguments) = (line.name, line.arguments);
    let words = split_quoted(arguments, context.escape);
    let usage = format!("write {name} <key>=<value> ...");
    let Some(first) = words.first() else {
        let error = Diagnostic::error(line.place(), format!("{name} requires at least one argument"));
        context.sink.push(error.with_help(usage));
        return None;
    };
    let mut pairs = Vec::with_capacity(words.len());
    if !first.text.contains('=') {
        let text = arguments.str();
        let key_end = text.find(is_blank).unwrap_or(text.len());
        let value_start = text[key_end..].find(|c| !is_blank(c)).map_or(text.len(), |i| key_end + i);
        if key_end == text.len() {
            let error = Diagnostic::error(arguments.span(), format!("{name} must have two arguments"));
            context.sink.push(error.with_help(usage));
            return None;
        }
        let (key, value) = (arguments.sub(0, key_end), arguments.from(value_start));
        pairs.push(KeyValue { key: spanned(key), value: spanned(value), legacy: true });
    } else {
        for word in &words {
            pairs.extend(pair(name, arguments, word, context));
        }
        if pairs.len() != words.len() {
            return None;
        }
    }
    Some(if name == "ENV" { InstructionKind::Env(pairs) } else { InstructionKind::Label(pairs) })
}

/// `key=value` with the place of each half.
fn pair(name: &str, view: View<'_>, word: &Word, context: &mut Context<'_>) -> Option<KeyValue> {
    let place = view.line.span_of(word.start, word.end);
    let Some((key, value)) = word.text.split_once('=') else {
        let text = &word.text;
        let message = format!("Syntax error - can't find = in {text:?}. Must be of the form: name=value");
        let help = "quote the value if it holds white space";
        context.sink.push(Diagnostic::error(place, message).with_help(help));
        return None;
    };
    if key.is_empty() {
        context.sink.error(place, format!("{name} names can not be blank"));
        return None;
    }
    let middle = (word.start + key.len()).min(word.end);
    let key = Spanned::new(key.to_owned(), view.line.span_of(word.start, middle));
    let value = Spanned::new(value.to_owned(), view.line.span_of((middle + 1).min(word.end), word.end));
    Some(KeyValue { key, value, legacy: false })
}

fn parse_arg(line: &Line<'_>, context: &mut Context<'_>) -> Option<InstructionKind> {
    line.check_flags(&[], context);
    let words = split_quoted(line.arguments, context.escape);
    if words.is_empty() {
        let error = Diagnostic::error(line.place(), "ARG requires at least one argument");
        context.sink.push(error.with_help("write ARG <name>[=<default>] ..."));
        return None;
    }
    let mut args = Vec::with_capacity(words.len());
    for word in &words {
        let (name, default) = match word.text.contains('=') {
            true => {
                let KeyValue { key, value, .. } = pair("ARG", line.arguments, word, context)?;
                (key, Some(value))
            }
            false => (spanned_word(line.arguments, word), None),
        };
        let doc = doc_comment(context.comments, &name);
        args.push(ArgDecl { name, default, doc });
    }
    Some(InstructionKind::Arg(Arg { args }))
}

fn parse_expose(line: &Line<'_>, context: &mut Context<'_>) -> Option<InstructionKind> {
    line.check_flags(&[], context);
    let mut ports = spanned_words(line.arguments);
    if ports.is_empty() {
        context.sink.error(line.place(), "EXPOSE requires at least one argument");
        return None;
    }
    ports.sort_by(|a, b| a.value.cmp(&b.value));
    Some(InstructionKind::Expose(ports))
}

fn parse_volume(line: &Line<'_>, context: &mut Context<'_>) -> Option<InstructionKind> {
    line.check_flags(&[], context);
    let place = line.arguments.span();
    let mut paths: Vec<_> = match json_form(line.arguments, context)? {
        Array::Strings(paths) => paths.into_iter().map(|p| Spanned::new(p, place)).collect(),
        _ => spanned_words(line.arguments),
    };
    paths.iter_mut().for_each(|p| p.value = p.value.trim().to_owned());
    let error = match paths.iter().find(|p| p.value.is_empty()) {
        Some(empty) => (empty.span, "VOLUME specified can not be an empty string"),
        None if paths.is_empty() => (line.place(), "VOLUME requires at least one argument"),
        None => return Some(InstructionKind::Volume(paths)),
    };
    context.sink.error(error.0, error.1);
    None
}

/// Tells the JSON form from others; `None` after an error.
pub(crate) fn json_form(view: View<'_>, context: &mut Context<'_>) -> Option<Array> {
    let form = json::array(view.str());
    if form == Array::Mixed {
        let message = "when using JSON array syntax, arrays must be comprised of strings only";
        context.sink.error(view.span(), message);
        return None;
    }
    Some(form)
}

fn parse_text(line: &Line<'_>, context: &mut Context<'_>) -> Option<InstructionKind> {
    line.check_flags(&[], context);
    if line.arguments.is_empty() {
        context.sink.error(line.place(), format!("{} requires exactly one argument", line.name));
        return None;
    }
    let text = spanned(line.arguments);
    Some(match line.name {
        "MAINTAINER" => InstructionKind::Maintainer(text),
        "STOPSIGNAL" => InstructionKind::Stopsignal(text),
        "USER" => InstructionKind::User(text),
        _ => InstructionKind::Workdir(text),
    })
}

fn parse_onbuild(line: &Line<'_>, context: &mut Context<'_>, depth: usize) -> Option<InstructionKind> {
    line.check_flags(&[], context);
    let trigger = line.arguments;
    if trigger.is_empty() {
        context.sink.error(line.place(), "ONBUILD requires at least one argument");
        return None;
    }
    let (word, _) = keyword(trigger);
    match word.str().to_uppercase().as_str() {
        "ONBUILD" => {
            context.sink.error(word.span(), "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed");
            return None;
        }
        name @ ("FROM" | "MAINTAINER") => {
            context.sink.error(word.span(), format!("{name} isn't allowed as an ONBUILD trigger"));
            return None;
        }
        _ => {}
    }
    let span = Span::new(trigger.span().start, line.span.end);
    let Parsed::Instruction(instruction) = parse_nested(trigger, span, context, depth + 1) else { return None };
    let expression = instruction.original_with_heredocs();
    Some(InstructionKind::Onbuild(Onbuild { expression, trigger: instruction }))
}
