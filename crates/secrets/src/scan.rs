//! The search itself: one pass for all forms of all secrets and all shapes.
//!
//! Of each form one or two anchors of four bytes that are rare in other files are looked for, with vector instructions where
//! they are few enough; only around an anchor that is found anything is compared. So the cost hardly depends on what is
//! looked for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aho_corasick::packed;
use aho_corasick::{AhoCorasick, MatchKind};

use crate::encode::{Encoding, Form, LONGEST_WRAPPED, forms};
use crate::shapes::{LOOKAHEAD, PREFIXES, Shape, confirms};
use crate::{Origin, SHORTEST, Secret};

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
    text: Vec<u8>,
    wraps: bool,
    /// For shapes: how many characters must follow.
    follow: usize,
}

/// Where in which pattern an anchor is.
#[derive(Clone, Copy)]
struct Anchor {
    pattern: usize,
    offset: usize,
}

/// Length of anchors. All have the same, so at one place there is one at most.
const ANCHOR: usize = SHORTEST;
/// Anchors that the vector search takes.
const MOST_PACKED: usize = 128;
/// Hits of one stream that are kept; a file full of keys needs no million hits.
const MOST_HITS: usize = 64;
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

/// Where in `text` its rarest four bytes are.
fn rarest(text: &[u8]) -> usize {
    let cost = |i: &usize| text[*i..i + ANCHOR].iter().map(|b| commonness(*b)).sum::<u32>();
    (0..=text.len() - ANCHOR).min_by_key(cost).unwrap_or(0)
}

impl Pattern {
    /// One anchor, or two of which a line break leaves one whole.
    fn anchors(&self) -> Vec<usize> {
        if !self.wraps || self.text.len() < 2 * ANCHOR {
            return vec![rarest(&self.text)];
        }
        let (first, second) = self.text.split_at(self.text.len() / 2);
        vec![rarest(first), first.len() + rarest(second)]
    }

    /// Where the pattern begins if the anchor at `offset` of it is at `at`.
    fn confirm(&self, haystack: &[u8], at: usize, offset: usize) -> Option<usize> {
        let (before, rest) = self.text.split_at(offset);
        let (start, end) = match self.wraps {
            false => {
                let start = at.checked_sub(offset)?;
                let found = haystack.get(start..)?.starts_with(&self.text);
                found.then_some((start, start + self.text.len()))?
            }
            true => (backwards(haystack, at, before)?, forwards(haystack, at, rest)?),
        };
        let HitKind::Shape(shape) = self.kind else { return Some(start) };
        let previous = start.checked_sub(1).map(|i| haystack[i]);
        confirms(shape, self.follow, previous, &haystack[end..]).then_some(start)
    }
}

/// What may stand where a line is broken: the break itself, escaped or not, quotes and indentation.
fn is_gap(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\r' | b' ' | b'\t' | b'\\' | b'n' | b'"' | b'+' | b',')
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
            for Form { encoding, text, wraps } in forms(secret.value(), secret.public()) {
                let (name, origin, chance) = (secret.name.clone(), secret.origin, secret.is_guessable());
                let kind = HitKind::Secret { name, origin, encoding, chance };
                patterns.push(Pattern { kind, text, wraps, follow: 0 });
            }
        }
        if with_shapes {
            patterns.extend(PREFIXES.iter().map(|(prefix, shape, follow)| Pattern {
                kind: HitKind::Shape(*shape),
                text: prefix.as_bytes().to_vec(),
                wraps: false,
                follow: *follow,
            }));
        }
        let mut by_text: BTreeMap<Vec<u8>, Vec<Anchor>> = BTreeMap::new();
        for (index, pattern) in patterns.iter().enumerate() {
            for offset in pattern.anchors() {
                let text = pattern.text[offset..offset + ANCHOR].to_vec();
                by_text.entry(text).or_default().push(Anchor { pattern: index, offset });
            }
        }
        let (texts, anchors): (Vec<_>, Vec<_>) = by_text.into_iter().unzip();
        let plain = patterns.iter().filter(|p| !p.wraps).map(|p| p.text.len()).max().unwrap_or(0);
        let wrapped = if patterns.iter().any(|p| p.wraps) { LONGEST_WRAPPED + 3 * MOST_GAP } else { 0 };
        let window = plain.max(wrapped) + LOOKAHEAD;
        let finder = if texts.is_empty() { None } else { Finder::new(&texts) };
        Self(Arc::new(Inner { finder, anchors, patterns, window }))
    }

    /// Whether there is nothing to search for.
    pub fn is_empty(&self) -> bool {
        self.0.finder.is_none()
    }

    /// Starts a pass over one stream.
    pub fn scan(&self) -> Scan {
        Scan { searcher: self.clone(), carry: Vec::new(), position: 0, searched: 0, hits: BTreeSet::new() }
    }

    /// Searches a whole value at once.
    pub fn search(&self, bytes: &[u8]) -> Vec<Hit> {
        let mut scan = self.scan();
        scan.search_in(bytes, 0, (0, bytes.len()));
        scan.hits.into_iter().collect()
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
    hits: BTreeSet<Hit>,
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

    /// Ends the stream; hits are in order of kind, then place.
    pub fn finish(mut self) -> Vec<Hit> {
        let rest = std::mem::take(&mut self.carry);
        self.search_in(&rest, self.position, (self.searched, rest.len()));
        self.hits.into_iter().collect()
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
                if let Some(begin) = pattern.confirm(haystack, at, anchor.offset)
                    && self.hits.len() < MOST_HITS
                {
                    self.hits.insert(Hit { kind: pattern.kind.clone(), offset: start + begin as u64 });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use proptest::prelude::*;

    use super::*;

    fn searcher(value: &[u8]) -> Searcher {
        Searcher::new(&[Secret::new("s", Origin::Secret, value)], true)
    }

    fn encodings(hits: &[Hit]) -> Vec<Encoding> {
        hits.iter()
            .filter_map(|h| match h.kind {
                HitKind::Secret { encoding, .. } => Some(encoding),
                HitKind::Shape(_) => None,
            })
            .collect()
    }

    #[test]
    fn finds_every_encoding_within_other_text() {
        let secret = b"p@ss \"word\"\\ 123";
        let s = searcher(secret);
        let engine = base64::engine::general_purpose::STANDARD;
        let json = serde_like_json(secret);
        for (text, want) in [
            (secret.to_vec(), Encoding::Plain),
            (b"70407373 skip".to_vec(), Encoding::Plain),
            (secret.iter().flat_map(|b| format!("{b:02X}").into_bytes()).collect(), Encoding::Hex),
            (b"p%40ss%20%22word%22%5C%20123".to_vec(), Encoding::Url),
            (json, Encoding::Json),
        ] {
            let hits = s.search(&[b"before ", text.as_slice(), b" after"].concat());
            if text.ends_with(b"skip") {
                assert!(hits.is_empty());
            } else {
                assert!(encodings(&hits).contains(&want), "{want:?} not found: {hits:?}");
            }
        }
        for prefix in ["", "u:", "xx:", "user:"] {
            let text = engine.encode([prefix.as_bytes(), secret, b" tail"].concat());
            assert!(encodings(&s.search(text.as_bytes())).contains(&Encoding::Base64), "behind {prefix:?}");
        }
    }

    fn serde_like_json(secret: &[u8]) -> Vec<u8> {
        String::from_utf8_lossy(secret).replace('\\', "\\\\").replace('"', "\\\"").into_bytes()
    }

    #[test]
    fn finds_wrapped_base64_of_a_long_secret() {
        let secret: Vec<u8> = (0..400u32).map(|i| (i * 7919 % 251) as u8).collect();
        let text = base64::engine::general_purpose::STANDARD.encode(&secret);
        for width in [64, 76] {
            for lead in 0..width {
                let body: Vec<u8> = std::iter::repeat_n(b'A', lead).chain(text.bytes()).collect();
                let wrapped: Vec<u8> = body.chunks(width).flat_map(|l| [l, b"\n"].concat()).collect();
                assert!(!searcher(&secret).search(&wrapped).is_empty(), "width {width}, lead {lead}");
            }
        }
    }

    #[test]
    fn finds_short_secrets_in_wrapped_and_indented_lines() {
        let secret = b"correct horse battery staple";
        let engine = base64::engine::general_purpose::STANDARD;
        for lead in 0..80 {
            let body = [&vec![b'.'; lead][..], secret, b" and more of it"].concat();
            let hex: String = body.iter().map(|b| format!("{b:02x}")).collect();
            for (text, want) in [(engine.encode(&body), Encoding::Base64), (hex, Encoding::Hex)] {
                for (width, between) in [(76, "\n"), (64, "\r\n"), (60, "\\n"), (70, "\n      "), (70, "\" +\n  \"")] {
                    let lines: Vec<&str> =
                        text.as_bytes().chunks(width).map(|l| std::str::from_utf8(l).unwrap()).collect();
                    let hits = searcher(secret).search(lines.join(between).as_bytes());
                    assert_eq!(encodings(&hits), [want], "lead {lead}, width {width}, between {between:?}");
                }
            }
        }
    }

    #[test]
    fn a_token_in_a_configuration_file_is_a_secret_alone() {
        let npmrc = b"registry=https://registry.example.com/\n//registry.example.com/:_authToken=Zx81abcDEF0123456789ghi\nalways-auth=true\n";
        let s = searcher(npmrc);
        assert_eq!(encodings(&s.search(b"token: Zx81abcDEF0123456789ghi.")), [Encoding::Part]);
        assert!(s.search(b"registry=https://registry.example.com/\nalways-auth=true\n").is_empty());
    }

    #[test]
    fn what_is_public_or_common_proves_nothing() {
        let public = b"the public half 0123456789 of a key ABCDEF 0123456789 abcdef, long enough for a line of its own";
        let engine = base64::engine::general_purpose::STANDARD;
        let shown = engine.encode(public);
        let file =
            format!("-----BEGIN KEY-----\n{shown}\nU0VDUkVUIHBhcnQgb2YgaXQgMDEyMzQ1Njc4OQ==\n-----END KEY-----\n");
        let secret = Secret::new("k", Origin::SshKey, file.as_bytes()).with_public_part(&public[..]);
        let s = Searcher::new(&[secret], false);
        assert!(s.search(shown.as_bytes()).is_empty(), "the public key is in the private one's file");
        assert_eq!(encodings(&s.search(b"x U0VDUkVUIHBhcnQgb2YgaXQgMDEyMzQ1Njc4OQ== y")), [Encoding::Part]);
        // Another file of the same kind in base64.
        let other = engine.encode("-----BEGIN KEY-----\nc29tZXRoaW5nIGVsc2UsIGFzIGxvbmcgYXMgaXQ=\n-----END KEY-----\n");
        assert!(s.search(other.as_bytes()).is_empty());
    }

    #[test]
    fn many_secrets_are_found_as_well() {
        let secrets: Vec<Secret> = (0..200)
            .map(|i| Secret::new(format!("s{i}"), Origin::Secret, format!("value number {i:03} of many")))
            .collect();
        let s = Searcher::new(&secrets, true);
        let hits = s.search(b"x value number 123 of many, and dmFsdWUgbnVtYmVyIDA3NyBvZiBtYW55 y");
        let names: Vec<&HitKind> = hits.iter().map(|h| &h.kind).collect();
        assert!(
            matches!(&names[..], [HitKind::Secret { name: a, encoding: Encoding::Plain, .. }, HitKind::Secret { name: b, encoding: Encoding::Base64, .. }] if a == "s123" && b == "s77"),
            "{names:?}"
        );
    }

    #[test]
    fn a_line_of_a_private_key_is_enough() {
        let key = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW\nQyNTUxOQAAACDcMPG1Q9n8Zl0W1n4bq2m7r8yq0d8M2n3b1u5w7x9zAQAAAJj1lK1N9ZS\n-----END OPENSSH PRIVATE KEY-----\n";
        let s = searcher(key.as_bytes());
        let hits = s.search(b"x QyNTUxOQAAACDcMPG1Q9n8Zl0W1n4bq2m7r8yq0d8M2n3b1u5w7x9zAQAAAJj1lK1N9ZS y");
        assert_eq!(encodings(&hits), [Encoding::Part]);
        let common = s.search(b"b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW");
        assert!(encodings(&common).is_empty(), "the part that every key has proves nothing");
    }

    #[test]
    fn shapes_need_more_than_their_prefix() {
        let s = Searcher::new(&[], true);
        assert!(s.search(b"-----BEGIN PRIVATE KEY----- in the text of a library").is_empty());
        assert!(s.search(b"MAKIAVELLI AKIASHORT").is_empty());
        let hits = s.search(b"id=AKIAIOSFODNN7EXAMPLE;");
        assert_eq!(hits[0].kind, HitKind::Shape(Shape::AwsAccessKey));
        for (text, shape) in [
            (
                r#"{"private_key": "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7\n"#,
                Shape::PrivateKey,
            ),
            (&format!("DefaultEndpointsProtocol=https;AccountKey={}==", "aB3/".repeat(22)), Shape::AzureAccountKey),
            ("key: sk_live_4eC39HqLyjWDarjtT1zdp7dc", Shape::StripeKey),
        ] {
            let hits = s.search(text.as_bytes());
            assert!(hits.iter().any(|h| h.kind == HitKind::Shape(shape)), "{text}: {hits:?}");
        }
    }

    proptest! {
        #[test]
        fn cuts_do_not_hide_a_secret(lead in 0usize..5000, cuts in proptest::collection::vec(1usize..3000, 1..40)) {
            let secret = b"correct horse battery staple";
            let mut text = vec![b'.'; lead];
            text.extend_from_slice(secret);
            text.extend(std::iter::repeat_n(b'.', 700));
            let mut scan = searcher(secret).scan();
            let mut rest = text.as_slice();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (head, tail) = rest.split_at((*cut).min(rest.len()));
                scan.feed(head);
                rest = tail;
            }
            let hits = scan.finish();
            prop_assert_eq!(hits.len(), 1);
            prop_assert_eq!(hits[0].offset, lead as u64);
        }
    }
}
