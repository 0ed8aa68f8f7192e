//! Reader for the `Name: value` paragraphs of Packages, Release, control, dpkg status and `.sources` files.
//!
//! Invariants: nothing is copied, nothing is trusted to be UTF-8, and a paragraph costs one pass over its bytes
//! (a 50 MB Packages file is a second of work or less even in a debug build).

/// A line that is neither a field, a continuation, a comment nor blank.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {text:?} is not a field")]
pub struct SyntaxError {
    /// Counted from 1, in the text that was given.
    pub line: usize,
    /// The start of the line.
    pub text: String,
}

/// Iterates over the paragraphs of a text.
pub struct Paragraphs<'a> {
    rest: &'a [u8],
    line: usize,
}

impl<'a> Paragraphs<'a> {
    /// All paragraphs of `text`.
    pub fn new(text: &'a [u8]) -> Self {
        Self { rest: text, line: 1 }
    }
}

impl<'a> Iterator for Paragraphs<'a> {
    type Item = Paragraph<'a>;

    fn next(&mut self) -> Option<Paragraph<'a>> {
        loop {
            let line = first_line(self.rest);
            if line.is_empty() {
                return None;
            }
            if !is_blank(line) && line[0] != b'#' {
                break;
            }
            self.rest = &self.rest[line.len()..];
            self.line += 1;
        }
        let (start, first) = (self.rest, self.line);
        let mut length = 0;
        while length < start.len() {
            let line = first_line(&start[length..]);
            if is_blank(line) {
                break;
            }
            length += line.len();
            self.line += 1;
        }
        self.rest = &start[length..];
        Some(Paragraph { text: &start[..length], line: first })
    }
}

/// One paragraph: the fields between two blank lines.
#[derive(Clone, Copy)]
pub struct Paragraph<'a> {
    text: &'a [u8],
    line: usize,
}

impl<'a> Paragraph<'a> {
    /// The fields in order.
    pub fn fields(&self) -> Fields<'a> {
        Fields { rest: self.text, line: self.line }
    }

    /// The value of the first field of that name (in any case), if it is UTF-8.
    pub fn get(&self, name: &str) -> Option<&'a str> {
        self.fields()
            .filter_map(Result::ok)
            .find(|(field, _)| field.eq_ignore_ascii_case(name.as_bytes()))
            .and_then(|(_, value)| std::str::from_utf8(value).ok())
    }

    /// The bytes of the paragraph.
    pub fn text(&self) -> &'a [u8] {
        self.text
    }

    /// The line it starts at.
    pub fn line(&self) -> usize {
        self.line
    }
}

/// Iterates over the fields of a paragraph, as (name, value). A value holds its continuation lines, unaltered, with
/// white space cut off at both ends.
pub struct Fields<'a> {
    rest: &'a [u8],
    line: usize,
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(&'a [u8], &'a [u8]), SyntaxError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut line = first_line(self.rest);
        while line.first() == Some(&b'#') {
            self.rest = &self.rest[line.len()..];
            self.line += 1;
            line = first_line(self.rest);
        }
        if line.is_empty() {
            return None;
        }
        let number = self.line;
        let start = self.rest;
        let mut length = line.len();
        self.line += 1;
        while matches!(start.get(length), Some(b' ' | b'\t' | b'#')) {
            length += first_line(&start[length..]).len();
            self.line += 1;
        }
        self.rest = &start[length..];
        let colon = memchr::memchr(b':', line).filter(|at| *at > 0 && !matches!(line[0], b' ' | b'\t'));
        let Some(colon) = colon else {
            let text = String::from_utf8_lossy(&line[..line.len().min(80)]).trim().to_owned();
            return Some(Err(SyntaxError { line: number, text }));
        };
        Some(Ok((start[..colon].trim_ascii(), start[colon + 1..length].trim_ascii())))
    }
}

/// The first line with its end, empty at the end of the text.
fn first_line(text: &[u8]) -> &[u8] {
    match memchr::memchr(b'\n', text) {
        Some(end) => &text[..=end],
        None => text,
    }
}

fn is_blank(line: &[u8]) -> bool {
    line.iter().all(u8::is_ascii_whitespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Vec<Vec<(String, String)>> {
        let s = |b: &[u8]| String::from_utf8(b.to_vec()).unwrap();
        Paragraphs::new(text.as_bytes())
            .map(|p| p.fields().map(|f| f.map(|(n, v)| (s(n), s(v))).unwrap()).collect())
            .collect()
    }

    #[test]
    fn paragraphs_fields_and_continuations() {
        let got = fields("\n# note\nA: 1\nLong:\n x\n .\n y\n# inside\nB:2\r\n\n\nA:\n");
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            got,
            [vec![pair("A", "1"), pair("Long", "x\n .\n y\n# inside"), pair("B", "2")], vec![pair("A", "")]]
        );
    }

    #[test]
    fn names_are_case_insensitive_and_errors_have_lines() {
        let text = b"Package: a\nVERSION: 1\nnonsense\n";
        let p = Paragraphs::new(text).next().unwrap();
        assert_eq!(p.get("version"), Some("1"));
        let error = p.fields().find_map(Result::err).unwrap();
        assert_eq!(error, SyntaxError { line: 3, text: "nonsense".into() });
        assert!(Paragraphs::new(b" starts with a space: x\n").next().unwrap().fields().next().unwrap().is_err());
    }

    #[test]
    fn nothing_in_nothing() {
        assert!(Paragraphs::new(b"").next().is_none());
        assert!(Paragraphs::new(b"\n \n\t\n#c\n").next().is_none());
    }
}
