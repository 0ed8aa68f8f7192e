//! Positions: byte spans in the file as it was read, and their translation to lines and columns.
//!
//! Invariant: every [`Span`] in the tree and in a diagnostic counts bytes of the file *as received* (a byte order mark included), so an
//! excerpt can be cut from the original bytes without any knowledge of how continuation lines were joined.

use std::fmt;
use std::sync::Arc;

/// A half-open range of bytes in the source file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Span {
    /// Offset of the first byte.
    pub start: usize,
    /// Offset one past the last byte.
    pub end: usize,
}

impl Span {
    /// A span from `start` to `end`; an `end` before `start` gives an empty span at `start`.
    pub fn new(start: usize, end: usize) -> Span {
        Span { start, end: end.max(start) }
    }

    /// The smallest span that covers both.
    pub fn to(self, other: Span) -> Span {
        Span { start: self.start.min(other.start), end: self.end.max(other.end) }
    }

    /// Whether the span covers no byte.
    pub fn is_empty(self) -> bool {
        self.start >= self.end
    }
}

/// A value together with where it was written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Spanned<T> {
    /// The value.
    pub value: T,
    /// Where it was written.
    pub span: Span,
}

impl<T> Spanned<T> {
    /// Pairs a value with its place.
    pub fn new(value: T, span: Span) -> Spanned<T> {
        Spanned { value, span }
    }
}

impl<T> std::ops::Deref for Spanned<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: fmt::Display> fmt::Display for Spanned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}

/// A line and column, both counted from 1; the column counts characters, not bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LineCol {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

/// The file that was parsed: its name, its bytes and where its lines start. Cheap to clone.
#[derive(Clone)]
pub struct Source {
    inner: Arc<SourceInner>,
}

struct SourceInner {
    name: String,
    bytes: Vec<u8>,
    line_starts: Vec<usize>,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Source({}, {} bytes)", self.inner.name, self.inner.bytes.len())
    }
}

impl Source {
    /// Indexes a file's lines.
    pub fn new(name: &str, bytes: &[u8]) -> Source {
        let mut line_starts = vec![0];
        line_starts.extend(bytes.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(i, _)| i + 1));
        Source { inner: Arc::new(SourceInner { name: name.to_owned(), bytes: bytes.to_vec(), line_starts }) }
    }

    /// The name the file was given, for messages.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The file's bytes as received.
    pub fn bytes(&self) -> &[u8] {
        &self.inner.bytes
    }

    /// Line and column of a byte offset; an offset past the end gives the end.
    pub fn line_col(&self, offset: usize) -> LineCol {
        let offset = offset.min(self.inner.bytes.len());
        let line = self.line_of(offset);
        let start = self.inner.line_starts.get(line - 1).copied().unwrap_or(0);
        let before = &self.inner.bytes[start..offset];
        // A byte order mark takes no column.
        let before = if line == 1 { before.strip_prefix(b"\xef\xbb\xbf").unwrap_or(before) } else { before };
        // Every byte but those that continue a character; lines may be megabytes long.
        let characters = before.iter().filter(|b| **b & 0xC0 != 0x80).count();
        LineCol { line, column: characters + 1 }
    }

    /// The line (from 1) that holds a byte offset.
    pub fn line_of(&self, offset: usize) -> usize {
        self.inner.line_starts.partition_point(|s| *s <= offset).max(1)
    }

    /// Where a line (from 1) starts.
    pub fn line_start(&self, line: usize) -> Option<usize> {
        self.inner.line_starts.get(line.checked_sub(1)?).copied()
    }

    /// First and last line (from 1) that a span touches.
    pub fn lines_of(&self, span: Span) -> (usize, usize) {
        let last = if span.is_empty() { span.start } else { span.end - 1 };
        (self.line_of(span.start), self.line_of(last.max(span.start)))
    }

    /// The text of a line (from 1) without its line ending, or an empty string when there is no such line.
    pub fn line_text(&self, line: usize) -> std::borrow::Cow<'_, str> {
        let Some(index) = line.checked_sub(1) else { return "".into() };
        let Some(&start) = self.inner.line_starts.get(index) else { return "".into() };
        let end = self.inner.line_starts.get(line).copied().unwrap_or(self.inner.bytes.len());
        let bytes = self.inner.bytes[start..end].strip_suffix(b"\n").unwrap_or(&self.inner.bytes[start..end]);
        String::from_utf8_lossy(bytes.strip_suffix(b"\r").unwrap_or(bytes))
    }

    /// The number of lines; a final line ending does not start a line.
    pub fn line_count(&self) -> usize {
        let starts = self.inner.line_starts.len();
        if starts > 1 && self.inner.line_starts.last() == Some(&self.inner.bytes.len()) { starts - 1 } else { starts }
    }

    /// The text a span covers, exactly as written (continuations and comments included).
    pub fn text(&self, span: Span) -> std::borrow::Cow<'_, str> {
        let end = span.end.min(self.inner.bytes.len());
        String::from_utf8_lossy(&self.inner.bytes[span.start.min(end)..end])
    }
}
