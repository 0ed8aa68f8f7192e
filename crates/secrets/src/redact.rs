//! Hides secrets in a process's output.

use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};

use crate::Secret;
use crate::encode::hidden;

/// What stands in the log instead of a secret.
const MASK: &[u8] = b"***";

/// Replaces secrets in one stream of output. What could be the beginning of a secret is held back until it is known.
pub struct Redactor {
    hidden: Arc<Hidden>,
    held: Vec<u8>,
}

/// What is replaced.
struct Hidden {
    texts: Vec<Vec<u8>>,
    longest: usize,
    /// Only an absurd number of secrets can fail to compile; then nothing is shown at all.
    automaton: Option<AhoCorasick>,
}

impl Redactor {
    /// For a build's secrets. With none, output passes unchanged.
    pub fn new(secrets: &[Secret]) -> Self {
        let mut texts: Vec<Vec<u8>> =
            secrets.iter().filter(|s| s.is_searchable()).flat_map(|s| hidden(s.value())).collect();
        texts.sort_unstable();
        texts.dedup();
        let longest = texts.iter().map(Vec::len).max().unwrap_or(0);
        let automaton = AhoCorasick::builder().match_kind(MatchKind::Standard).build(&texts).ok();
        Self { hidden: Arc::new(Hidden { texts, longest, automaton }), held: Vec::new() }
    }

    /// A second stream with the same secrets.
    pub fn another(&self) -> Self {
        Self { hidden: Arc::clone(&self.hidden), held: Vec::new() }
    }

    /// A whole text with its secrets hidden.
    pub fn text(&self, text: &str) -> String {
        let mut one = Self { hidden: Arc::clone(&self.hidden), held: text.as_bytes().to_vec() };
        String::from_utf8_lossy(&one.finish()).into_owned()
    }

    /// Takes output and returns what may be shown by now.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        if self.hidden.texts.is_empty() {
            return bytes.to_vec();
        }
        self.held.extend_from_slice(bytes);
        let masked = self.mask();
        let keep = self.possible_beginning(&masked);
        let shown = masked.len() - keep;
        self.held = masked[shown..].to_vec();
        let mut masked = masked;
        masked.truncate(shown);
        masked
    }

    /// Returns what was held back.
    pub fn finish(&mut self) -> Vec<u8> {
        let masked = self.mask();
        self.held.clear();
        masked
    }

    /// `held` with every whole secret replaced. Overlapping finds are masked as one stretch.
    fn mask(&self) -> Vec<u8> {
        let Some(automaton) = &self.hidden.automaton else { return MASK.to_vec() };
        let mut stretches: Vec<(usize, usize)> =
            automaton.find_overlapping_iter(&self.held).map(|m| (m.start(), m.end())).collect();
        stretches.sort_unstable();
        let mut out = Vec::with_capacity(self.held.len());
        let mut done = 0;
        for (start, end) in stretches {
            if start >= done {
                out.extend_from_slice(&self.held[done..start]);
                out.extend_from_slice(MASK);
            }
            done = done.max(end);
        }
        out.extend_from_slice(&self.held[done.min(self.held.len())..]);
        out
    }

    /// How many bytes at the end of `text` may be the beginning of a secret.
    fn possible_beginning(&self, text: &[u8]) -> usize {
        let longest = self.hidden.longest.min(text.len());
        let begins = |n: &usize| {
            let end = &text[text.len() - n..];
            // The texts are sorted: what begins with `end` stands right behind it.
            let at = self.hidden.texts.partition_point(|t| t.as_slice() <= end);
            self.hidden.texts.get(at).is_some_and(|t| t.starts_with(end))
        };
        (1..=longest).rev().find(begins).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Origin;

    fn redact(chunks: &[&str]) -> String {
        let mut r = Redactor::new(&[Secret::new("s", Origin::Secret, "hunter2hunter")]);
        let mut out = Vec::new();
        for c in chunks {
            out.extend(r.push(c.as_bytes()));
        }
        out.extend(r.finish());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn masks_across_chunks_and_shows_the_rest_at_once() {
        assert_eq!(redact(&["a hunter2hunter b"]), "a *** b");
        assert_eq!(redact(&["a hun", "ter2hun", "ter b"]), "a *** b");
        assert_eq!(redact(&["a hun", "dred"]), "a hundred");
        let mut r = Redactor::new(&[Secret::new("s", Origin::Secret, "hunter2hunter")]);
        assert_eq!(r.push(b"Continue? "), b"Continue? ", "a prompt is not held back");
    }
}
