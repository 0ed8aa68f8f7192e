//! The search itself: one pass for all forms of all secrets and all shapes.
//!
//! Of each form one or two anchors of four bytes that are rare in other files are looked for, with vector instructions where
//! they are few enough; only around an anchor that is found anything is compared. So the cost hardly depends on what is
//! looked for.

use std::collections::BTreeMap;
use std::sync::Arc;

use aho_corasick::packed;
use aho_corasick::{AhoCorasick, MatchKind};

use crate::encode::{Encoding, Form, LONGEST_WRAPPED, Text, forms};
use crate::shapes::{LOOKAHEAD, PREFIXES, Shape, confirms};
use crate::spell::Unit;
use crate::{Origin, SHORTEST, Secret, spell};

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum HitKind {
    /// One of the build's own secrets.
    Secret {
        /// Its name.
        name: String,
        /// What it is.
        origin: Origin,
        /// How it was written.
        encoding: Encoding,
        /// It is a word or so short that it may be there by chance.
        chance: bool,
    },
    /// Something that looks like a credential.
    Shape(Shape),
}

/// Something found, and where in the stream.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hit {
    /// What.
    pub kind: HitKind,
    /// Bytes from the start of the stream.
    pub offset: u64,
}

/// The compiled search. Cheap to clone.
#[derive(Clone)]
pub struct Searcher(Arc<Inner>);

struct Inner {
    finder: Option<Finder>,
    /// In the order of the finder's patterns.
    anchors: Vec<Vec<Anchor>>,
    patterns: Vec<Pattern>,
    /// Bytes that must be seen on both sides of an anchor.
    window: usize,
}

struct Pattern {
    kind: HitKind,
    text: Text,
    /// For shapes: how many characters must follow.
    follow: usize,
}

/// Where in which pattern an anchor is: at which byte, or at which unit of a spelled one.
#[derive(Clone, Copy)]
struct Anchor {
    pattern: usize,
    offset: usize,
}

/// Length of anchors. All have the same, so at one place there is one at most.
const ANCHOR: usize = SHORTEST;
/// Anchors that the vector search takes.
const MOST_PACKED: usize = 128;
/// Line breaks in wrapped text, which may be indented or escaped: at most this many bytes each.
const MOST_GAP: usize = 24;

enum Finder {
    Packed(packed::Searcher),
    Automaton(AhoCorasick),
}

impl Finder {
    fn new(texts: &[Vec<u8>]) -> Option<Self> {
        if texts.len() <= MOST_PACKED {
            let mut config = packed::Config::new();
            let builder = config.match_kind(packed::MatchKind::LeftmostFirst).heuristic_pattern_limits(false);
            if let Some(packed) = builder.builder().extend(texts).build() {
                return Some(Self::Packed(packed));
            }
        }
        // Only an absurd number of patterns can fail to compile.
        AhoCorasick::builder().match_kind(MatchKind::LeftmostFirst).build(texts).ok().map(Self::Automaton)
    }

    /// The next anchor at `from` or behind it.
    fn next(&self, haystack: &[u8], from: usize) -> Option<(usize, usize)> {
        let found = match self {
            Self::Packed(packed) => packed.find_in(haystack, aho_corasick::Span { start: from, end: haystack.len() }),
            Self::Automaton(automaton) => automaton.find(aho_corasick::Input::new(haystack).range(from..)),
        };
        found.map(|m| (m.start(), m.pattern().as_usize()))
    }
}

/// How common a byte is in programs and texts, roughly: the higher, the worse as part of an anchor.
fn commonness(byte: u8) -> u32 {
    match byte {
        0 => 40,
        b' ' | b'-' | b'=' | b'_' | 0xff => 20,
        b'e' | b't' | b'a' | b'o' | b'i' | b'n' | b's' | b'r' | b'0' => 14,
        b'a'..=b'z' => 8,
        b'1'..=b'9' | b'A'..=b'F' | b'\n' | b'/' | b'.' => 5,
        b'A'..=b'Z' => 4,
        1..=31 => 4,
        _ => 2,
    }
}

fn cost(anchor: &[u8]) -> u32 {
    anchor.iter().map(|b| commonness(*b)).sum()
}

/// Where in `text` its rarest four bytes are. Letters and digits are written in the same way in most forms, which then have the
/// same anchor.
fn rarest(text: &[u8]) -> usize {
    let cost = |i: &usize| {
        let anchor = &text[*i..i + ANCHOR];
        (!anchor.iter().all(u8::is_ascii_alphanumeric), cost(anchor))
    };
    (0..=text.len() - ANCHOR).min_by_key(cost).unwrap_or(0)
}

/// The unit with the fewest and rarest spellings of what begins with it, and these.
fn rarest_spelled(units: &[Unit]) -> (usize, Vec<Vec<u8>>) {
    /// Units that are tried: what comes later is hardly better.
    const TRIED: usize = 256;
    let all = (0..units.len().min(TRIED)).filter_map(|i| Some((i, spell::beginnings(&units[i..], ANCHOR)?)));
    all.min_by_key(|(_, anchors)| (anchors.len(), anchors.iter().map(|a| cost(a)).sum::<u32>())).unwrap_or_default()
}

impl Pattern {
    /// The anchors with their places. In text that may be wrapped they are two, of which a line break leaves one whole.
    fn anchors(&self) -> Vec<(usize, Vec<u8>)> {
        let at = |text: &[u8], i: usize| (i, text[i..i + ANCHOR].to_vec());
        match &self.text {
            Text::Spelled(units, _) => {
                let (unit, anchors) = rarest_spelled(units);
                anchors.into_iter().map(|anchor| (unit, anchor)).collect()
            }
            Text::Wrapped(text) if text.len() >= 2 * ANCHOR => {
                let (first, second) = text.split_at(text.len() / 2);
                vec![at(text, rarest(first)), at(text, first.len() + rarest(second))]
            }
            Text::Exact(text) | Text::Wrapped(text) => vec![at(text, rarest(text))],
        }
    }

    /// Bytes that a confirmation may look at.
    fn reach(&self) -> usize {
        match &self.text {
            Text::Exact(text) => text.len(),
            Text::Wrapped(_) => LONGEST_WRAPPED + 3 * MOST_GAP,
            Text::Spelled(units, _) => units.iter().filter_map(|u| u.iter().map(Vec::len).max()).sum(),
        }
    }

    /// Where the pattern begins if the anchor at `offset` of it is at `at`.
    fn confirm(&self, haystack: &[u8], at: usize, offset: usize) -> Option<usize> {
        let (start, end) = match &self.text {
            Text::Exact(text) => {
                let start = at.checked_sub(offset)?;
                let found = haystack.get(start..)?.starts_with(text);
                found.then_some((start, start + text.len()))?
            }
            Text::Wrapped(text) => {
                let (before, rest) = text.split_at(offset);
                (backwards(haystack, at, before)?, forwards(haystack, at, rest)?)
            }
            Text::Spelled(units, plain) => {
                let (before, rest) = units.split_at(offset);
                let (start, end) = (spell::backwards(haystack, at, before)?, spell::forwards(haystack, at, rest)?);
                (haystack[start..end] != plain[..]).then_some((start, end))?
            }
        };
        let HitKind::Shape(shape) = self.kind else { return Some(start) };
        let previous = start.checked_sub(1).map(|i| haystack[i]);
        confirms(shape, self.follow, previous, &haystack[end..]).then_some(start)
    }
}

/// What may stand where a line is broken: the break itself, escaped or not, quotes and indentation.
fn is_gap(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\r' | b' ' | b'\t' | b'\\' | b'n' | b'"' | b'\'' | b'+' | b',')
}

/// Follows `text` from `at`, over line breaks.
fn forwards(haystack: &[u8], mut at: usize, text: &[u8]) -> Option<usize> {
    for wanted in text {
        let mut skipped = 0;
        while haystack.get(at)? != wanted {
            (skipped < MOST_GAP && is_gap(haystack[at])).then_some(())?;
            skipped += 1;
            at += 1;
        }
        at += 1;
    }
    Some(at)
}

/// Follows `text` from its end to its beginning, which is returned, over line breaks.
fn backwards(haystack: &[u8], mut at: usize, text: &[u8]) -> Option<usize> {
    for wanted in text.iter().rev() {
        let mut skipped = 0;
        while *haystack.get(at.checked_sub(1)?)? != *wanted {
            (skipped < MOST_GAP && is_gap(haystack[at - 1])).then_some(())?;
            skipped += 1;
            at -= 1;
        }
        at -= 1;
    }
    Some(at)
}

impl Searcher {
    /// Compiles the search for `secrets`, and for the well-known shapes if asked.
    pub fn new(secrets: &[Secret], with_shapes: bool) -> Self {
        let mut patterns = Vec::new();
        for secret in secrets.iter().filter(|s| s.is_searchable()) {
            for Form { encoding, text } in forms(secret.value(), secret.public()) {
                let (name, origin, chance) = (secret.name.clone(), secret.origin, secret.is_guessable());
                let kind = HitKind::Secret { name, origin, encoding, chance };
                patterns.push(Pattern { kind, text, follow: 0 });
            }
        }
        if with_shapes {
            patterns.extend(PREFIXES.iter().map(|(prefix, shape, follow)| Pattern {
                kind: HitKind::Shape(*shape),
                text: Text::Exact(prefix.as_bytes().to_vec()),
                follow: *follow,
            }));
        }
        let mut by_text: BTreeMap<Vec<u8>, Vec<Anchor>> = BTreeMap::new();
        for (index, pattern) in patterns.iter().enumerate() {
            for (offset, text) in pattern.anchors() {
                by_text.entry(text).or_default().push(Anchor { pattern: index, offset });
            }
        }
        let (texts, anchors): (Vec<_>, Vec<_>) = by_text.into_iter().unzip();
        let window = patterns.iter().map(Pattern::reach).max().unwrap_or(0) + LOOKAHEAD;
        let finder = if texts.is_empty() { None } else { Finder::new(&texts) };
        Self(Arc::new(Inner { finder, anchors, patterns, window }))
    }

    /// Whether there is nothing to search for.
    pub fn is_empty(&self) -> bool {
        self.0.finder.is_none()
    }

    /// Starts a pass over one stream.
    pub fn scan(&self) -> Scan {
        Scan { searcher: self.clone(), carry: Vec::new(), position: 0, searched: 0, hits: BTreeMap::new() }
    }

    /// Searches a whole value at once.
    pub fn search(&self, bytes: &[u8]) -> Vec<Hit> {
        let mut scan = self.scan();
        scan.search_in(bytes, 0, (0, bytes.len()));
        scan.found()
    }
}

/// A pass over one stream.
pub struct Scan {
    searcher: Searcher,
    /// The end of what was fed.
    carry: Vec<u8>,
    /// Where in the stream `carry` begins.
    position: u64,
    /// Anchors that begin in so many bytes of `carry` were looked at.
    searched: usize,
    /// The first of each kind: a file full of one secret still shows the other.
    hits: BTreeMap<HitKind, u64>,
}

impl Scan {
    /// Searches the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.searcher.is_empty() || bytes.is_empty() {
            return;
        }
        let window = self.searcher.0.window;
        if bytes.len() < window * 4 {
            // Small pieces are gathered: what is at both sides of an anchor must be in one piece.
            self.carry.extend_from_slice(bytes);
            if self.carry.len() >= window * 8 {
                let whole = std::mem::take(&mut self.carry);
                self.search_in(&whole, self.position, (self.searched, whole.len() - window));
                self.keep(&whole, self.position, window);
            }
            return;
        }
        // The seam between the carry and the new bytes, then the new bytes in place.
        let mut seam = std::mem::take(&mut self.carry);
        let carried = seam.len();
        seam.extend_from_slice(&bytes[..window * 2]);
        self.search_in(&seam, self.position, (self.searched, carried + window));
        let start = self.position + carried as u64;
        self.search_in(bytes, start, (window, bytes.len() - window));
        seam.clear();
        self.carry = seam;
        self.keep(bytes, start, window);
    }

    /// Ends the stream; of each kind the first hit, in order of kind.
    pub fn finish(mut self) -> Vec<Hit> {
        let rest = std::mem::take(&mut self.carry);
        self.search_in(&rest, self.position, (self.searched, rest.len()));
        self.found()
    }

    fn found(self) -> Vec<Hit> {
        self.hits.into_iter().map(|(kind, offset)| Hit { kind, offset }).collect()
    }

    /// Keeps the end of `bytes`, which began at `start`; anchors up to `window` before its end were looked at.
    fn keep(&mut self, bytes: &[u8], start: u64, window: usize) {
        let from = bytes.len() - window * 2;
        self.position = start + from as u64;
        self.carry.extend_from_slice(&bytes[from..]);
        self.searched = window;
    }

    /// Records what is found around anchors that begin in a part of `haystack`, which begins at `start` in the stream.
    fn search_in(&mut self, haystack: &[u8], start: u64, (mut from, to): (usize, usize)) {
        let inner = Arc::clone(&self.searcher.0);
        let Some(finder) = &inner.finder else { return };
        let end = haystack.len().min(to + ANCHOR - 1);
        while let Some((at, id)) = finder.next(&haystack[..end], from).filter(|(at, _)| *at < to) {
            from = at + 1;
            for anchor in &inner.anchors[id] {
                let pattern = &inner.patterns[anchor.pattern];
                if !self.hits.contains_key(&pattern.kind)
                    && let Some(begin) = pattern.confirm(haystack, at, anchor.offset)
                {
                    self.hits.insert(pattern.kind.clone(), start + begin as u64);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
