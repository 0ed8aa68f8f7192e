//! The lexer: one pass over a word, with a recursion for each `${...}` in it.

use std::collections::HashSet;

use super::pattern::ShellPattern;
use super::{ExpandError, ExpandErrorKind, ExpandMode, Expanded};

/// `${a:-${b:-...}}` deeper than this is refused.
const MAX_DEPTH: usize = 100;

/// Bytes by which variables may make one word longer. `ENV A=$A$A`, sixty times, would be more than any memory; no process
/// can be started with a variable of more than 128 KiB.
const MAX_GROWTH: usize = 1 << 20;

/// See [`super::expand_word`].
pub(super) fn expand(
    word: &str,
    escape: char,
    lookup: &dyn Fn(&str) -> Option<String>,
    mode: ExpandMode,
) -> Result<Expanded, ExpandError> {
    let mut lexer = Lexer {
        text: word,
        position: 0,
        escape,
        mode,
        raw_escapes: mode.raw_escapes,
        lookup,
        depth: 0,
        growth: 0,
        used: Names::default(),
        undefined: Names::default(),
    };
    let (value, words) = lexer.until(None, mode.raw_escapes)?;
    let Words { done, places, .. } = words;
    Ok(Expanded { value, words: done, used: lexer.used.list, undefined: lexer.undefined.list, places })
}

/// Names in the order in which they were met, each once.
#[derive(Default)]
struct Names {
    list: Vec<String>,
    seen: HashSet<String>,
}

impl Names {
    fn add(&mut self, name: &str) {
        if self.seen.insert(name.to_owned()) {
            self.list.push(name.to_owned());
        }
    }
}

/// Collects words while the text is read.
#[derive(Default)]
struct Words {
    done: Vec<String>,
    places: Vec<(usize, usize)>,
    word: String,
    start: usize,
    /// Where in the input the piece that is being added begins.
    at: usize,
}

impl Words {
    fn raw(&mut self, text: &str) {
        if self.word.is_empty() {
            self.start = self.at;
        }
        self.word.push_str(text);
    }

    fn split_or_push(&mut self, c: char) {
        if !c.is_whitespace() {
            self.raw(c.encode_utf8(&mut [0; 4]));
        } else {
            self.end_word(self.at);
        }
    }

    fn end_word(&mut self, end: usize) {
        if !self.word.is_empty() {
            self.done.push(std::mem::take(&mut self.word));
            self.places.push((self.start, end.max(self.start)));
        }
    }

    fn finish(mut self, end: usize) -> Words {
        self.end_word(end);
        self
    }
}

struct Lexer<'a> {
    text: &'a str,
    position: usize,
    escape: char,
    mode: ExpandMode,
    /// Of the mode, or on while a pattern is read.
    raw_escapes: bool,
    lookup: &'a dyn Fn(&str) -> Option<String>,
    depth: usize,
    /// Bytes that substitutions gave beyond those that they were written with.
    growth: usize,
    used: Names,
    undefined: Names,
}

impl Lexer<'_> {
    fn peek(&self) -> Option<char> {
        self.text[self.position..].chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.position += c.len_utf8();
        Some(c)
    }

    fn error<T>(&self, kind: ExpandErrorKind) -> Result<T, ExpandError> {
        Err(ExpandError { kind, offset: self.position.min(self.text.len()) })
    }

    /// Reads up to the unquoted character `stop` (consumed), or to the end when it is `None`.
    fn until(&mut self, stop: Option<char>, raw_escapes: bool) -> Result<(String, Words), ExpandError> {
        if self.depth >= MAX_DEPTH {
            return self.error(ExpandErrorKind::TooDeep);
        }
        self.depth += 1;
        let outer = std::mem::replace(&mut self.raw_escapes, raw_escapes);
        let result = self.until_inner(stop);
        self.raw_escapes = outer;
        self.depth -= 1;
        result
    }

    fn until_inner(&mut self, stop: Option<char>) -> Result<(String, Words), ExpandError> {
        let mut value = String::new();
        let mut words = Words::default();
        while let Some(c) = self.peek() {
            words.at = self.position;
            if Some(c) == stop {
                self.next();
                return Ok((value, words.finish(self.position)));
            }
            match c {
                '$' => {
                    let text = self.substitution()?;
                    text.chars().for_each(|c| words.split_or_push(c));
                    value.push_str(&text);
                }
                '\'' | '"' | '<' if !self.mode.skip_quotes => {
                    let text = match c {
                        '\'' => self.single_quoted()?,
                        '"' => self.double_quoted()?,
                        _ => self.angle(),
                    };
                    words.raw(&text);
                    value.push_str(&text);
                }
                _ => self.plain(c, &mut value, &mut words),
            }
        }
        match stop {
            // The callers turn this into the error for their construct.
            Some(_) => self.error(ExpandErrorKind::MissingBrace),
            None => Ok((value, words.finish(self.position))),
        }
    }

    /// A character without meaning, or an escape character and what it protects.
    fn plain(&mut self, c: char, value: &mut String, words: &mut Words) {
        self.next();
        if c != self.escape {
            words.split_or_push(c);
            value.push(c);
            return;
        }
        if self.raw_escapes {
            words.raw(c.encode_utf8(&mut [0; 4]));
            value.push(c);
        }
        if let Some(protected) = self.next() {
            words.raw(protected.encode_utf8(&mut [0; 4]));
            value.push(protected);
        }
    }

    /// `<`, or `<<` with the white space that may separate it from a here-document's delimiter.
    fn angle(&mut self) -> String {
        self.next();
        let mut text = String::from("<");
        if self.peek() != Some('<') {
            return text;
        }
        self.next();
        text.push('<');
        // `<<- EOF`: without this the dash would end the word before the delimiter.
        if self.text[self.position..].starts_with("- ") || self.text[self.position..].starts_with("-\t") {
            self.next();
            text.push('-');
        }
        while let Some(c) = self.peek().filter(|c| matches!(c, ' ' | '\t' | '\u{b}' | '\u{c}' | '\r')) {
            self.next();
            text.push(c);
        }
        text
    }

    fn single_quoted(&mut self) -> Result<String, ExpandError> {
        let start = self.position;
        self.next();
        let Some(length) = self.text[self.position..].find('\'') else {
            return Err(ExpandError { kind: ExpandErrorKind::UnclosedQuote("single"), offset: start });
        };
        let inner = self.position..self.position + length;
        self.position = inner.end + 1;
        Ok(if self.mode.raw_quotes { self.text[start..self.position].to_owned() } else { self.text[inner].to_owned() })
    }

    fn double_quoted(&mut self) -> Result<String, ExpandError> {
        let start = self.position;
        let mut value = String::new();
        self.next();
        if self.mode.raw_quotes {
            value.push('"');
        }
        loop {
            match self.peek() {
                None => return Err(ExpandError { kind: ExpandErrorKind::UnclosedQuote("double"), offset: start }),
                Some('"') => {
                    self.next();
                    if self.mode.raw_quotes {
                        value.push('"');
                    }
                    return Ok(value);
                }
                Some('$') => value.push_str(&self.substitution()?),
                Some(c) => {
                    self.next();
                    if c != self.escape {
                        value.push(c);
                        continue;
                    }
                    if self.raw_escapes {
                        value.push(c);
                    }
                    match self.peek() {
                        None => {}
                        Some(p) if p == '"' || p == '$' || p == self.escape => {
                            self.next();
                            value.push(p);
                        }
                        Some(_) => value.push(c),
                    }
                }
            }
        }
    }

    fn get(&mut self, name: &str) -> Option<String> {
        let value = (self.lookup)(name);
        if value.is_some() {
            self.used.add(name)
        } else {
            self.undefined.add(name)
        }
        value
    }

    fn substitution(&mut self) -> Result<String, ExpandError> {
        let start = self.position;
        let text = self.dollar()?;
        self.growth += text.len().saturating_sub(self.position - start);
        match self.growth {
            0..=MAX_GROWTH => Ok(text),
            _ => self.error(ExpandErrorKind::TooLong(MAX_GROWTH)),
        }
    }

    fn dollar(&mut self) -> Result<String, ExpandError> {
        let start = self.position;
        self.next();
        if self.peek() != Some('{') {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".to_owned());
            }
            return Ok(match self.get(&name) {
                None if self.mode.keep_unset => format!("${name}"),
                value => value.unwrap_or_default(),
            });
        }
        self.next();
        let missing = ExpandError { kind: ExpandErrorKind::MissingBrace, offset: start };
        match self.peek() {
            None => return Err(missing),
            Some('{' | '}' | ':') => return Err(ExpandError { kind: ExpandErrorKind::BadSubstitution, offset: start }),
            Some(_) => {}
        }
        let name = self.name();
        match self.next().ok_or_else(|| missing.clone())? {
            '}' => Ok(match self.get(&name) {
                None if self.mode.keep_unset => format!("${{{name}}}"),
                value => value.unwrap_or_default(),
            }),
            ':' => {
                let operator = self.next().ok_or(missing)?;
                self.modifier(&name, operator, true, start)
            }
            operator @ ('+' | '-' | '?' | '#' | '%') => self.modifier(&name, operator, false, start),
            '/' => self.replace(&name, start),
            blank if blank.is_whitespace() => Err(missing),
            other => Err(ExpandError { kind: ExpandErrorKind::UnsupportedModifier(other.to_string()), offset: start }),
        }
    }

    /// Reads the operand of `${...}`; running off the end is an error of the construct that began at `start`.
    fn operand(&mut self, stop: char, raw: bool, start: usize) -> Result<String, ExpandError> {
        match self.until(Some(stop), raw) {
            Ok((word, _)) => Ok(word),
            Err(error) if error.kind.is_about_values() => Err(error),
            Err(_) if self.peek().is_none() => {
                let kind = if stop == '/' { ExpandErrorKind::MissingSlash } else { ExpandErrorKind::MissingBrace };
                Err(ExpandError { kind, offset: start })
            }
            Err(error) => Err(error),
        }
    }

    fn modifier(&mut self, name: &str, operator: char, colon: bool, start: usize) -> Result<String, ExpandError> {
        let written = || format!("{}{operator}", if colon { ":" } else { "" });
        let word = self.operand('}', matches!(operator, '#' | '%'), start)?;
        let value = self.get(name);
        if value.is_none() && self.mode.keep_unset {
            return Ok(format!("${{{name}{}{word}}}", written()));
        }
        let missing = value.as_deref().is_none_or(|v| colon && v.is_empty());
        match operator {
            '-' => Ok(if missing { word } else { value.unwrap_or_default() }),
            '+' => Ok(if missing { String::new() } else { word }),
            '?' if !missing => Ok(value.unwrap_or_default()),
            '?' => {
                let state = if value.is_none() { "unset" } else { "empty" };
                let message = if word.is_empty() { format!("is not allowed to be {state}") } else { word };
                let kind = ExpandErrorKind::Required { name: name.to_owned(), message };
                Err(ExpandError { kind, offset: start })
            }
            '#' | '%' => {
                let longest = word.starts_with(operator);
                let pattern = if longest { &word[1..] } else { &word[..] };
                let compiled = compile(pattern, start)?;
                let value = value.unwrap_or_default();
                let rest = match operator {
                    '#' => compiled.strip_prefix(&value, longest),
                    _ => compiled.strip_suffix(&value, longest),
                };
                Ok(rest.to_owned())
            }
            _ => Err(ExpandError { kind: ExpandErrorKind::UnsupportedModifier(written()), offset: start }),
        }
    }

    fn replace(&mut self, name: &str, start: usize) -> Result<String, ExpandError> {
        let all = self.peek() == Some('/');
        if all {
            self.next();
        }
        let pattern = self.operand('/', true, start)?;
        let replacement = self.operand('}', true, start)?;
        let value = self.get(name);
        if value.is_none() && self.mode.keep_unset {
            let slash = if all { "//" } else { "/" };
            return Ok(format!("${{{name}{slash}{pattern}/{replacement}}}"));
        }
        Ok(compile(&pattern, start)?.replace(&value.unwrap_or_default(), &replacement, all))
    }

    /// A variable's name: a number, one special parameter, or letters, digits and `_`. May be empty.
    fn name(&mut self) -> String {
        let rest = &self.text[self.position..];
        let Some(first) = rest.chars().next() else { return String::new() };
        let length = if first.is_ascii_digit() {
            rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())
        } else if matches!(first, '@' | '*' | '#' | '?' | '-' | '$' | '!') {
            1
        } else {
            rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())
        };
        let name = rest[..length].to_owned();
        self.position += length;
        name
    }
}

fn compile(pattern: &str, offset: usize) -> Result<ShellPattern, ExpandError> {
    ShellPattern::parse(pattern).map_err(|reason| ExpandError {
        kind: ExpandErrorKind::BadPattern { pattern: pattern.to_owned(), reason },
        offset,
    })
}
