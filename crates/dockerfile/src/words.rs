//! The words of an instruction that are expanded, each with its place; where in such a word a variable is used, and which of them no
//! values could make right.

use std::collections::HashMap;

use crate::ast::{Copy, Dockerfile, InlineFile, Instruction, InstructionKind};
use crate::diagnostic::Diagnostic;
use crate::expand::{ExpandMode, expand_heredoc, expand_word};
use crate::source::{Source, Span, Spanned};

/// How a word is expanded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    Word,
    Heredoc,
}

/// A word and its place.
pub(crate) struct Word<'a> {
    pub(crate) text: &'a str,
    pub(crate) span: Span,
    pub(crate) how: How,
}

fn plain(word: &Spanned<String>) -> Word<'_> {
    Word { text: &word.value, span: word.span, how: How::Word }
}

/// Here-documents that expand, placed at their content.
fn documents<'a>(files: &'a [InlineFile], instruction: &'a Instruction) -> impl Iterator<Item = Word<'a>> {
    // Both lists have the order of the line.
    let mut documents = instruction.heredocs.iter();
    files.iter().filter(|f| f.expand).map(move |file| {
        let document = documents.find(|d| d.span == file.span);
        Word { text: &file.content, span: document.map_or(file.span, |d| d.content_span), how: How::Heredoc }
    })
}

/// Everything that expansion applies to, except `ARG` (whose defaults depend on build args).
pub(crate) fn expanded_words(instruction: &Instruction) -> Vec<Word<'_>> {
    match &instruction.kind {
        InstructionKind::Copy(Copy { sources, files, dest, chown, chmod, .. }) => {
            let flags = [chown, chmod].into_iter().flatten();
            flags.chain(sources).chain([dest]).map(plain).chain(documents(files, instruction)).collect()
        }
        InstructionKind::Add(add) => {
            let flags = [&add.chown, &add.chmod, &add.checksum].into_iter().flatten();
            let words = flags.chain(&add.sources).chain([&add.dest]).map(plain);
            words.chain(documents(&add.files, instruction)).collect()
        }
        InstructionKind::Env(pairs) | InstructionKind::Label(pairs) => {
            pairs.iter().flat_map(|p| [plain(&p.key), plain(&p.value)]).collect()
        }
        InstructionKind::Expose(list) | InstructionKind::Volume(list) => list.iter().map(plain).collect(),
        InstructionKind::Stopsignal(word) | InstructionKind::User(word) | InstructionKind::Workdir(word) => {
            vec![plain(word)]
        }
        InstructionKind::Run(run) => {
            let values =
                run.mounts.iter().flat_map(|m| m.fields.iter().filter(|f| f.key != "from").map(move |f| (m, f)));
            values.filter_map(|(m, f)| Some(Word { text: f.value.as_deref()?, span: m.span, how: How::Word })).collect()
        }
        _ => Vec::new(),
    }
}

/// Where each variable is used first in a place, as `$name` or `${name`. What was written with continuations or escapes inside a
/// name is not found.
pub(crate) fn variable_places(source: &Source, place: Span) -> HashMap<&str, Span> {
    let bytes = source.bytes().get(place.start..place.end).unwrap_or_default();
    let text = std::str::from_utf8(bytes).unwrap_or_default();
    let mut places = HashMap::new();
    for (at, _) in text.match_indices('$') {
        let (start, braced) = if text[at + 1..].starts_with('{') { (at + 2, true) } else { (at + 1, false) };
        let length = text[start..].find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len() - start);
        let end = start + length;
        let close = usize::from(braced && text[end..].starts_with('}'));
        places.entry(&text[start..end]).or_insert(Span::new(place.start + at, place.start + end + close));
    }
    places
}

/// The words of all stages that can't be expanded, whatever the values of their variables: a build meets the first of them only. Defaults
/// of `ARG` are left out, because a build arg may stand in for them.
pub fn malformed(dockerfile: &Dockerfile) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    let mut check = |word: Word<'_>| {
        let none = |_: &str| None;
        let expanded = match word.how {
            How::Word => expand_word(word.text, dockerfile.escape, &none, ExpandMode::WORD),
            How::Heredoc => expand_heredoc(word.text, &none),
        };
        if let Err(error) = expanded
            && error.kind.is_about_form()
        {
            found.push(error.diagnostic(&dockerfile.source, word.text, word.span));
        }
    };
    for stage in &dockerfile.stages {
        [Some(&stage.base), stage.platform.as_ref()].into_iter().flatten().map(plain).for_each(&mut check);
        stage.instructions.iter().flat_map(expanded_words).for_each(&mut check);
    }
    found
}
