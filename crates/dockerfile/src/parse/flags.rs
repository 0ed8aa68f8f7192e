//! Words and flags of an instruction, with BuildKit's quoting rules for each.

use std::collections::HashMap;

use crate::diagnostic::Diagnostic;
use crate::nearest::nearest;
use crate::source::{Span, Spanned};

use super::Sink;
use super::lines::{View, is_blank};

/// A word as written (quotes kept) and its place in the logical text.
#[derive(Clone, Debug)]
pub(crate) struct Word {
    pub(crate) text: String,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// Splits at white space only: no quotes, no escapes.
pub(crate) fn split_blank(view: View<'_>) -> Vec<Word> {
    let text = view.str();
    let mut words = Vec::new();
    let mut start = None;
    for (i, c) in text.char_indices().chain([(text.len(), ' ')]) {
        match (is_blank(c), start) {
            (false, None) => start = Some(i),
            (true, Some(s)) => {
                words.push(Word { text: text[s..i].to_owned(), start: view.start + s, end: view.start + i });
                start = None;
            }
            _ => {}
        }
    }
    words
}

/// Splits at unquoted white space; quotes and escapes stay in the words (they are removed at expansion). For `ENV`, `LABEL` and `ARG`.
pub(crate) fn split_quoted(view: View<'_>, escape: char) -> Vec<Word> {
    let text = view.str();
    let mut words = Vec::new();
    let mut word = String::new();
    let mut start = None;
    let mut quote = None;
    let mut quoted = false;
    let mut chars = text.char_indices();
    let end_word =
        |word: &mut String, quoted: &mut bool, start: &mut Option<usize>, end: usize, words: &mut Vec<Word>| {
            if let Some(s) = start.take()
                && (*quoted || !word.is_empty())
            {
                words.push(Word { text: std::mem::take(word), start: view.start + s, end: view.start + end });
            }
            *quoted = false;
        };
    while let Some((i, c)) = chars.next() {
        if quote.is_none() && c.is_whitespace() {
            end_word(&mut word, &mut quoted, &mut start, i, &mut words);
            continue;
        }
        start.get_or_insert(i);
        match quote {
            Some(q) if c == q => quote = None,
            None if c == '\'' || c == '"' => (quote, quoted) = (Some(c), true),
            _ => {}
        }
        if c == escape && quote != Some('\'') {
            // An escape character at the very end is dropped.
            let Some((_, protected)) = chars.next() else { break };
            word.push(c);
            word.push(protected);
            continue;
        }
        word.push(c);
    }
    end_word(&mut word, &mut quoted, &mut start, text.len(), &mut words);
    words
}

/// How a flag takes values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Takes {
    /// `--x` or `--x=true`.
    Bool,
    /// `--x=value`, once.
    Text,
    /// `--x=value`, repeatable.
    Texts,
}

#[derive(Debug)]
struct Flag {
    name: String,
    value: Option<Spanned<String>>,
    span: Span,
}

/// The `--name=value` words that an instruction begins with.
#[derive(Debug, Default)]
pub(crate) struct Flags {
    flags: Vec<Flag>,
}

impl Flags {
    /// Takes the flags off the front and returns what is left. Quotes in flags are removed; `\` is always their escape character.
    pub(crate) fn take<'a>(view: View<'a>) -> (Flags, View<'a>) {
        let text = view.str();
        let mut flags = Flags::default();
        let mut position = 0;
        loop {
            let rest = &text[position..];
            position += rest.len() - rest.trim_start().len();
            if !text[position..].starts_with("--") {
                return (flags, view.from(position).trim());
            }
            let (word, length) = flag_word(&text[position..]);
            let place = view.sub(position, position + length);
            position += length;
            if word == "--" {
                return (flags, view.from(position).trim());
            }
            flags.add(&word, place);
        }
    }

    fn add(&mut self, word: &str, place: View<'_>) {
        let body = &word[2.min(word.len())..];
        let (name, value) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (body, None),
        };
        let value = value.map(|value| {
            // With quotes or escapes in the word offsets differ; then the whole flag is the place.
            let span = match place.str().find('=') {
                Some(at) if place.str() == word => place.from(at + 1).span(),
                _ => place.span(),
            };
            Spanned::new(value.to_owned(), span)
        });
        self.flags.push(Flag { name: name.to_owned(), value, span: place.span() });
    }

    /// Reports unknown, repeated and incomplete flags.
    pub(crate) fn check(&self, instruction: &str, known: &[(&'static str, Takes)], out: &mut Sink) {
        let mut first: HashMap<&str, Span> = HashMap::new();
        for flag in &self.flags {
            let name = flag.name.as_str();
            if out.is_full() {
                return;
            }
            let Some((_, takes)) = known.iter().find(|(k, _)| *k == name) else {
                let names = known.iter().map(|(k, _)| *k);
                let help = match nearest(name, names.clone()) {
                    Some(best) => format!("did you mean --{best}?"),
                    None if known.is_empty() => format!("{instruction} has no flags"),
                    None => {
                        format!("{instruction} has {}", names.map(|n| format!("--{n}")).collect::<Vec<_>>().join(", "))
                    }
                };
                out.push(Diagnostic::error(flag.span, format!("unknown flag: --{name}")).with_help(help));
                continue;
            };
            if let Some(earlier) = first.get(name).filter(|_| *takes != Takes::Texts) {
                let error = Diagnostic::error(flag.span, format!("duplicate flag specified: {name}"));
                out.push(error.with_other(*earlier, "first given here"));
            }
            first.entry(name).or_insert(flag.span);
            let value = flag.value.as_ref();
            if *takes == Takes::Bool {
                let error = match value.map(|v| v.value.as_str()) {
                    None => continue,
                    Some("") => format!("missing a value on flag: {name}"),
                    Some(v) if v.eq_ignore_ascii_case("true") || v.eq_ignore_ascii_case("false") => continue,
                    Some(v) => format!("expecting boolean value for flag {name}, not: {v}"),
                };
                out.push(Diagnostic::error(flag.span, error).with_help(format!("write --{name} or --{name}=false")));
            } else if value.is_none() {
                let error = Diagnostic::error(flag.span, format!("missing a value on flag: {name}"));
                out.push(error.with_help(format!("write --{name}=<value>")));
            }
        }
    }

    fn last(&self, name: &str) -> Option<&Flag> {
        self.flags.iter().rev().find(|f| f.name == name)
    }

    /// The value of a text flag; an empty one counts as absent.
    pub(crate) fn text(&self, name: &str) -> Option<Spanned<String>> {
        self.last(name)?.value.clone().filter(|v| !v.value.is_empty())
    }

    /// All values of a repeatable flag.
    pub(crate) fn texts(&self, name: &str) -> Vec<Spanned<String>> {
        self.flags.iter().filter(|f| f.name == name).filter_map(|f| f.value.clone()).collect()
    }

    /// The value of a bool flag, if it was given.
    pub(crate) fn boolean(&self, name: &str) -> Option<bool> {
        let flag = self.last(name)?;
        Some(flag.value.as_ref().is_none_or(|v| v.eq_ignore_ascii_case("true")))
    }
}

/// One flag with its quotes removed, and how much of the text it takes.
fn flag_word(text: &str) -> (String, usize) {
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        match quote {
            None if c.is_whitespace() => return (word, i),
            None if c == '\'' || c == '"' => quote = Some(c),
            Some(q) if c == q => quote = None,
            _ if c == '\\' => word.extend(chars.next().map(|(_, protected)| protected)),
            _ => word.push(c),
        }
    }
    (word, text.len())
}
