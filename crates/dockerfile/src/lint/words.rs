//! The words of an instruction that are expanded, each with its place, and where in such a word a variable is used.

use crate::ast::{Copy, InlineFile, Instruction, InstructionKind};
use crate::source::{Source, Span, Spanned};

/// How a word is expanded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    Word,
    Heredoc,
}

/// A word and its place.
pub(super) struct Word<'a> {
    pub(super) text: &'a str,
    pub(super) span: Span,
    pub(super) how: How,
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
pub(super) fn expanded_words(instruction: &Instruction) -> Vec<Word<'_>> {
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

/// Where `$name` or `${name` stands in a place; the whole place when it cannot be found (the text was written with continuations).
pub(super) fn variable_span(source: &Source, place: Span, name: &str) -> Span {
    let text = source.text(place);
    let bytes = text.as_bytes();
    if bytes.len() != place.end - place.start {
        return place;
    }
    let mut from = 0;
    while let Some(at) = text[from..].find('$').map(|i| from + i) {
        let after = &text[at + 1..];
        let (braced, after) = after.strip_prefix('{').map_or((false, after), |a| (true, a));
        if let Some(rest) = after.strip_prefix(name)
            && !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_')
        {
            let close = usize::from(braced && rest.starts_with('}'));
            let length = 1 + usize::from(braced) + name.len() + close;
            return Span::new(place.start + at, place.start + at + length);
        }
        from = at + 1;
    }
    place
}
