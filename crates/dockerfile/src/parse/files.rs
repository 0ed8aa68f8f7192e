//! `COPY` and `ADD`.

use crate::ast::{Add, Copy, InlineFile, InstructionKind};
use crate::diagnostic::Diagnostic;
use crate::expand::{ExpandMode, expand_word};
use crate::source::Spanned;

use super::Context;
use super::flags::{Takes, split_blank};
use super::instructions::{Line, json_form, spanned_word};
use super::json::Array;

const COPY_FLAGS: &[(&str, Takes)] = &[
    ("from", Takes::Text),
    ("chown", Takes::Text),
    ("chmod", Takes::Text),
    ("link", Takes::Bool),
    ("parents", Takes::Bool),
    ("exclude", Takes::Texts),
];

const ADD_FLAGS: &[(&str, Takes)] = &[
    ("chown", Takes::Text),
    ("chmod", Takes::Text),
    ("link", Takes::Bool),
    ("exclude", Takes::Texts),
    ("checksum", Takes::Text),
    ("keep-git-dir", Takes::Bool),
    ("unpack", Takes::Bool),
];

/// An operand.
enum Operand {
    Path(Spanned<String>),
    Document(InlineFile),
}

pub(crate) fn parse(line: &Line<'_>, context: &mut Context<'_>) -> Option<InstructionKind> {
    line.check_flags(if line.name == "COPY" { COPY_FLAGS } else { ADD_FLAGS }, context);
    let mut operands = operands(line, context)?;
    if operands.len() < 2 {
        let message = match operands.len() {
            0 => format!("{} requires at least two arguments", line.name),
            _ => format!(
                "{} requires at least two arguments, but only one was provided. Destination could not be determined",
                line.name
            ),
        };
        let help = format!("write {} <source>... <destination>", line.name);
        context.sink.push(Diagnostic::error(line.place(), message).with_help(help));
        return None;
    }
    let dest = match operands.pop()? {
        Operand::Path(path) => path,
        Operand::Document(file) => {
            context.sink.error(file.span, format!("{} cannot accept a heredoc as a destination", line.name));
            return None;
        }
    };
    let (mut sources, mut files) = (Vec::new(), Vec::new());
    for operand in operands {
        match operand {
            Operand::Path(path) => sources.push(path),
            Operand::Document(file) => files.push(file),
        }
    }
    let flags = line.flags;
    let (chown, chmod) = (flags.text("chown"), flags.text("chmod"));
    let (link, excludes) = (flags.boolean("link").unwrap_or(false), flags.texts("exclude"));
    if line.name == "ADD" {
        return Some(InstructionKind::Add(Add {
            sources,
            files,
            dest,
            chown,
            chmod,
            link,
            excludes,
            checksum: flags.text("checksum"),
            keep_git_dir: flags.boolean("keep-git-dir"),
            unpack: flags.boolean("unpack"),
        }));
    }
    let from = flags.text("from");
    if let Some(from) = &from {
        check_from(from, context)?;
    }
    let parents = flags.boolean("parents").unwrap_or(false);
    Some(InstructionKind::Copy(Copy { sources, files, dest, from, chown, chmod, link, parents, excludes }))
}

/// `--from` is not expanded, and Docker refuses what expansion would change.
fn check_from(from: &Spanned<String>, context: &mut Context<'_>) -> Option<()> {
    let unchanged = expand_word(from, context.escape, &|_| None, ExpandMode::WORD).is_ok_and(|e| e.value == from.value);
    if unchanged {
        return Some(());
    }
    let error = Diagnostic::error(from.span, "variable expansion is not supported for --from");
    let help = "define a new stage with FROM using ARG from global scope as a workaround";
    context.sink.push(error.with_help(help));
    None
}

/// Sources and destination in order. Here-documents are recognised by their place, so that a delimiter with white space works.
fn operands(line: &Line<'_>, context: &mut Context<'_>) -> Option<Vec<Operand>> {
    let arguments = line.arguments;
    if let Array::Strings(strings) = json_form(arguments, context)? {
        return Some(strings.into_iter().map(|s| Operand::Path(Spanned::new(s, arguments.span()))).collect());
    }
    let mut operands = Vec::new();
    let mut documents = context.heads.iter().zip(&context.heredocs).peekable();
    let mut covered = 0;
    for word in split_blank(arguments) {
        if word.start < covered {
            continue;
        }
        while documents.next_if(|(head, _)| head.start < word.start).is_some() {}
        match documents.next_if(|(head, _)| head.start == word.start) {
            Some((head, document)) => {
                covered = head.end;
                operands.push(Operand::Document(InlineFile {
                    name: document.name.clone(),
                    content: document.text(),
                    expand: document.expand,
                    span: document.span,
                }));
            }
            None => operands.push(Operand::Path(spanned_word(arguments, &word))),
        }
    }
    Some(operands)
}
