//! From bytes to logical lines: continuations joined, comments inside them dropped, with a map back to the bytes of the file.

use crate::source::{Source, Span};

/// One logical line. `text` is what BuildKit calls the original: the first line without leading white space, the others as they are.
#[derive(Debug)]
pub(crate) struct Logical {
    pub(crate) text: String,
    /// (offset in `text`, offset in the file), ascending; each piece runs to the next.
    pieces: Vec<(usize, usize)>,
    /// From the first character to the end of the last physical line.
    pub(crate) span: Span,
    /// The first empty continuation line.
    pub(crate) empty_line: Option<Span>,
    /// Bytes that are not UTF-8.
    pub(crate) bad_bytes: Option<Span>,
}

impl Logical {
    /// Where a range of `text` was written.
    pub(crate) fn span_of(&self, start: usize, end: usize) -> Span {
        let at = |offset: usize| {
            let index = self.pieces.partition_point(|(joined, _)| *joined <= offset);
            match index.checked_sub(1).and_then(|i| self.pieces.get(i)) {
                Some((joined, source)) => source + (offset - joined),
                None => self.span.start,
            }
        };
        let start_at = at(start).min(self.span.end);
        let end_at = if end > start { at(end - 1) + 1 } else { start_at };
        Span::new(start_at, end_at.min(self.span.end))
    }
}

/// A part of a logical line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    pub(crate) line: &'a Logical,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

impl<'a> View<'a> {
    pub(crate) fn whole(line: &'a Logical) -> View<'a> {
        View { line, start: 0, end: line.text.len() }.trim()
    }

    pub(crate) fn str(&self) -> &'a str {
        &self.line.text[self.start..self.end]
    }

    pub(crate) fn span(&self) -> Span {
        self.line.span_of(self.start, self.end)
    }

    /// A part, by offsets in this view.
    pub(crate) fn sub(&self, start: usize, end: usize) -> View<'a> {
        View { line: self.line, start: self.start + start, end: self.start + end }
    }

    pub(crate) fn from(&self, start: usize) -> View<'a> {
        self.sub(start, self.end - self.start)
    }

    pub(crate) fn trim(&self) -> View<'a> {
        let text = self.str();
        let start = text.len() - text.trim_start().len();
        self.sub(start, start.max(text.trim_end().len()))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start >= self.end
    }
}

/// The white space at which instructions are split into words (not line breaks, not Unicode's other blanks).
pub(crate) fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\u{b}' | '\u{c}' | '\r')
}

/// The physical lines of a file, one after the other.
pub(crate) struct Lines<'a> {
    source: &'a Source,
    position: usize,
}

/// A physical line without its line ending.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) start: usize,
    /// Offset of the next line.
    pub(crate) next: usize,
}

impl Line<'_> {
    pub(crate) fn span(&self) -> Span {
        Span::new(self.start, self.start + self.bytes.len())
    }

    fn trimmed(&self) -> &[u8] {
        let text = self.bytes.utf8_chunks().next().map_or("", |chunk| chunk.valid());
        &self.bytes[text.len() - text.trim_start().len()..]
    }

    pub(crate) fn is_comment(&self) -> bool {
        self.trimmed().first() == Some(&b'#')
    }

    pub(crate) fn is_blank(&self) -> bool {
        self.trimmed().is_empty()
    }
}

impl<'a> Lines<'a> {
    pub(crate) fn new(source: &'a Source) -> Lines<'a> {
        let bom = source.bytes().starts_with(b"\xef\xbb\xbf");
        Lines { source, position: if bom { 3 } else { 0 } }
    }

    pub(crate) fn position(&self) -> usize {
        self.position
    }

    /// The next physical line; nothing at the end of the file.
    pub(crate) fn next(&mut self) -> Option<Line<'a>> {
        let bytes = self.source.bytes();
        if self.position >= bytes.len() {
            return None;
        }
        let start = self.position;
        // The index of line starts is sorted, so this is a search, not a scan.
        let line = self.source.line_of(start);
        let next = self.source.line_start(line + 1).unwrap_or(bytes.len());
        self.position = next;
        let mut end = next;
        while end > start && matches!(bytes[end - 1], b'\n' | b'\r') {
            end -= 1;
        }
        Some(Line { bytes: &bytes[start..end], start, next })
    }

    /// Joins `first` with the lines that continue it.
    pub(crate) fn join(&mut self, first: Line<'a>, escape: char) -> Logical {
        let mut logical =
            Logical { text: String::new(), pieces: Vec::new(), span: first.span(), empty_line: None, bad_bytes: None };
        let mut continued = append(&mut logical, first, escape, true);
        logical.span.start = logical.pieces.first().map_or(first.start, |(_, s)| *s);
        while continued {
            let Some(line) = self.next() else { break };
            if line.is_comment() {
                continue;
            }
            if line.is_blank() {
                logical.empty_line.get_or_insert(line.span());
                continue;
            }
            continued = append(&mut logical, line, escape, false);
            logical.span.end = line.span().end;
        }
        logical
    }
}

/// Adds a physical line and says whether another one follows.
fn append(logical: &mut Logical, line: Line<'_>, escape: char, first: bool) -> bool {
    let text = match std::str::from_utf8(line.bytes) {
        Ok(text) => std::borrow::Cow::Borrowed(text),
        Err(error) => {
            let at = line.start + error.valid_up_to();
            logical.bad_bytes.get_or_insert(Span::new(at, at + error.error_len().unwrap_or(1)));
            String::from_utf8_lossy(line.bytes)
        }
    };
    let skipped = if first { text.len() - text.trim_start().len() } else { 0 };
    let body = &text[skipped..];
    let bare = body.trim_end_matches([' ', '\t']);
    // The escape character continues the line unless it is itself escaped.
    let continued = bare.strip_suffix(escape).filter(|before| !before.ends_with(escape));
    logical.pieces.push((logical.text.len(), line.start + skipped));
    logical.text.push_str(continued.unwrap_or(body));
    continued.is_some()
}
