//! The search itself: one automaton for all forms of all secrets and all shapes.

use std::collections::BTreeSet;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};

use crate::encode::{Encoding, forms};
use crate::shapes::{LOOKAHEAD, PREFIXES, Shape, confirms};
use crate::{Origin, Secret};

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
    automaton: Option<AhoCorasick>,
    /// In the order of the automaton's patterns.
    texts: Vec<Vec<u8>>,
    patterns: Vec<Pattern>,
    /// Bytes that must be seen together around a match.
    window: usize,
}

struct Pattern {
    kind: HitKind,
    /// For shapes: how many characters must follow.
    follow: usize,
}

/// Hits of one stream that are kept; a file full of keys needs no million hits.
const MOST_HITS: usize = 64;

impl Searcher {
    /// Compiles the search for `secrets`, and for the well-known shapes if asked.
    pub fn new(secrets: &[Secret], with_shapes: bool) -> Self {
        let mut texts: Vec<Vec<u8>> = Vec::new();
        let mut patterns = Vec::new();
        for secret in secrets.iter().filter(|s| s.is_searchable()) {
            for (encoding, bytes) in forms(secret.value()) {
                let kind = HitKind::Secret { name: secret.name.clone(), origin: secret.origin, encoding };
                patterns.push(Pattern { kind, follow: 0 });
                texts.push(bytes);
            }
        }
        if with_shapes {
            for (prefix, shape, follow) in PREFIXES {
                patterns.push(Pattern { kind: HitKind::Shape(shape), follow });
                texts.push(prefix.as_bytes().to_vec());
            }
        }
        let longest = texts.iter().map(Vec::len).max().unwrap_or(0);
        let window = longest + if with_shapes { LOOKAHEAD } else { 0 };
        // Only an absurd number of patterns can fail to compile; then nothing can be proven and the caller is told.
        let automaton = match texts.is_empty() {
            true => None,
            false => AhoCorasick::builder().match_kind(MatchKind::Standard).build(&texts).ok(),
        };
        Self(Arc::new(Inner { automaton, texts, patterns, window }))
    }

    /// Whether there is nothing to search for.
    pub fn is_empty(&self) -> bool {
        self.0.automaton.is_none()
    }

    /// Starts a pass over one stream.
    pub fn scan(&self) -> Scan {
        Scan { searcher: self.clone(), carry: Vec::new(), position: 0, hits: BTreeSet::new() }
    }

    /// Searches a whole value at once.
    pub fn search(&self, bytes: &[u8]) -> Vec<Hit> {
        let mut scan = self.scan();
        scan.feed(bytes);
        scan.finish()
    }

    pub(crate) fn automaton(&self) -> Option<&AhoCorasick> {
        self.0.automaton.as_ref()
    }

    /// Whether a secret in some form begins with `bytes`.
    pub(crate) fn begins_with(&self, bytes: &[u8]) -> bool {
        self.0.texts.iter().any(|t| t.len() > bytes.len() && t.starts_with(bytes))
    }

    pub(crate) fn window(&self) -> usize {
        self.0.window
    }
}

/// A pass over one stream.
pub struct Scan {
    searcher: Searcher,
    /// The end of what was fed, in which a match may begin that is not complete yet.
    carry: Vec<u8>,
    /// Where in the stream `carry` begins.
    position: u64,
    hits: BTreeSet<Hit>,
}

impl Scan {
    /// Searches the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        let inner = Arc::clone(&self.searcher.0);
        if inner.automaton.is_none() || bytes.is_empty() {
            return;
        }
        let window = inner.window;
        if bytes.len() < window * 2 {
            // Small pieces are gathered: searching them one by one would search the carry again and again.
            self.carry.extend_from_slice(bytes);
            if self.carry.len() >= window * 4 {
                let whole = std::mem::take(&mut self.carry);
                self.search_in(&inner, &whole, self.position, whole.len() - window);
                self.keep(&whole, window);
            }
            return;
        }
        // The seam between the carry and the new bytes, then the new bytes in place.
        let mut seam = std::mem::take(&mut self.carry);
        let seam_start = self.position;
        let carried = seam.len();
        seam.extend_from_slice(&bytes[..window]);
        self.search_in(&inner, &seam, seam_start, carried);
        let start = seam_start + carried as u64;
        self.search_in(&inner, bytes, start, bytes.len() - window);
        self.position = start;
        self.keep(bytes, window);
    }

    /// Ends the stream; hits are in order of kind, then place.
    pub fn finish(mut self) -> Vec<Hit> {
        let rest = std::mem::take(&mut self.carry);
        let inner = Arc::clone(&self.searcher.0);
        self.search_in(&inner, &rest, self.position, rest.len());
        self.hits.into_iter().collect()
    }

    /// Keeps the last `window` bytes (and one before, for word boundaries) of `bytes` that began at `position`.
    fn keep(&mut self, bytes: &[u8], window: usize) {
        let from = bytes.len().saturating_sub(window);
        self.position += from as u64;
        self.carry = bytes[from..].to_vec();
    }

    /// Records matches that begin before `limit` in `haystack`, which begins at `start` in the stream.
    fn search_in(&mut self, inner: &Inner, haystack: &[u8], start: u64, limit: usize) {
        let Some(automaton) = &inner.automaton else { return };
        for found in automaton.find_overlapping_iter(haystack) {
            if found.start() >= limit || self.hits.len() >= MOST_HITS {
                continue;
            }
            let pattern = &inner.patterns[found.pattern().as_usize()];
            if let HitKind::Shape(shape) = pattern.kind {
                let before = found.start().checked_sub(1).map(|i| haystack[i]);
                if !confirms(shape, pattern.follow, before, &haystack[found.end()..]) {
                    continue;
                }
            }
            self.hits.insert(Hit { kind: pattern.kind.clone(), offset: start + found.start() as u64 });
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
    fn a_line_of_a_private_key_is_enough() {
        let key = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW\nQyNTUxOQAAACDcMPG1Q9n8Zl0W1n4bq2m7r8yq0d8M2n3b1u5w7x9zAQAAAJj1lK1N9ZS\n-----END OPENSSH PRIVATE KEY-----\n";
        let s = searcher(key.as_bytes());
        let hits = s.search(b"x QyNTUxOQAAACDcMPG1Q9n8Zl0W1n4bq2m7r8yq0d8M2n3b1u5w7x9zAQAAAJj1lK1N9ZS y");
        assert_eq!(encodings(&hits), [Encoding::Line]);
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
