//! The patterns of `${v#p}`, `${v%p}` and `${v/p/r}`: `*`, `?` and `\` escapes, no bracket expressions. As in BuildKit (which translates
//! them to regular expressions) neither wildcard matches a line break.
//!
//! A match is found by following all positions of the pattern at once, so the time is pattern times value and the memory that of the
//! pattern, whatever the value.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Char(char),
    One,
    Any,
}

impl Token {
    fn accepts(self, c: char) -> bool {
        match self {
            Token::Char(wanted) => c == wanted,
            Token::One | Token::Any => c != '\n',
        }
    }
}

/// A compiled pattern.
#[derive(Debug)]
pub(super) struct ShellPattern {
    tokens: Vec<Token>,
}

impl ShellPattern {
    pub(super) fn parse(pattern: &str) -> Result<ShellPattern, String> {
        let mut tokens = Vec::new();
        let mut chars = pattern.chars().peekable();
        while let Some(c) = chars.next() {
            tokens.push(match c {
                '*' => Token::Any,
                '?' => Token::One,
                // Inside `${}` these two must be escaped to reach the pattern at all; the escape is not part of it.
                '\\' if matches!(chars.peek(), Some('}' | '/')) => continue,
                '\\' => match chars.next() {
                    Some(c @ ('*' | '?' | '\\')) => Token::Char(c),
                    Some(c) => return Err(format!("invalid escape '\\{c}'")),
                    None => return Err("the pattern ends with an escape character".to_owned()),
                },
                c => Token::Char(c),
            });
        }
        Ok(ShellPattern { tokens })
    }

    /// `${v#p}` and, with `longest`, `${v##p}`.
    pub(super) fn strip_prefix<'v>(&self, value: &'v str, longest: bool) -> &'v str {
        &value[matched_at_start(&self.tokens, value.chars(), longest)..]
    }

    /// `${v%p}` and, with `longest`, `${v%%p}`: the same on the mirror image.
    pub(super) fn strip_suffix<'v>(&self, value: &'v str, longest: bool) -> &'v str {
        let mirrored: Vec<Token> = self.tokens.iter().rev().copied().collect();
        &value[..value.len() - matched_at_start(&mirrored, value.chars().rev(), longest)]
    }

    /// `${v/p/r}` and, with `all`, `${v//p/r}`.
    pub(super) fn replace(&self, value: &str, replacement: &str, all: bool) -> String {
        let mut result = String::with_capacity(value.len());
        let (mut from, mut copied, mut last_end) = (0, 0, None);
        while let Some((start, end)) = self.find(value, from) {
            // An empty match right after a match does not count.
            if start != end || last_end != Some(start) {
                result.push_str(&value[copied..start]);
                result.push_str(replacement);
                (copied, last_end) = (end, Some(end));
            }
            if !all {
                break;
            }
            from = match value[end..].chars().next() {
                _ if end > start => end,
                Some(c) => end + c.len_utf8(),
                None => break,
            };
        }
        result + &value[copied..]
    }

    /// The leftmost match that begins at `from` or later, and of those the longest.
    fn find(&self, value: &str, from: usize) -> Option<(usize, usize)> {
        // For each position in the pattern that was reached, where the match would begin: the earliest of those that got there.
        let mut active: Vec<Option<usize>> = vec![None; self.tokens.len() + 1];
        let mut best: Option<(usize, usize)> = None;
        let ends = value[from..].char_indices().map(|(i, c)| (from + i, Some(c)));
        for (at, c) in ends.chain([(value.len(), None)]) {
            if best.is_none() {
                earlier(&mut active[0], Some(at));
            }
            for (i, token) in self.tokens.iter().enumerate() {
                if *token == Token::Any {
                    let start = active[i];
                    earlier(&mut active[i + 1], start);
                }
            }
            if let Some(start) = active[self.tokens.len()].filter(|s| best.is_none_or(|(b, _)| *s <= b)) {
                best = Some((start, at));
            }
            let Some(c) = c else { break };
            let mut next = vec![None; active.len()];
            for (i, token) in self.tokens.iter().enumerate().filter(|(_, t)| t.accepts(c)) {
                let start = active[i].filter(|s| best.is_none_or(|(b, _)| *s <= b));
                earlier(&mut next[i + usize::from(*token != Token::Any)], start);
            }
            active = next;
            if best.is_some() && active.iter().all(Option::is_none) {
                break;
            }
        }
        best
    }
}

fn earlier(slot: &mut Option<usize>, start: Option<usize>) {
    if let Some(start) = start.filter(|s| slot.is_none_or(|old| *s < old)) {
        *slot = Some(start);
    }
}

/// How many bytes at the start of the text the pattern matches; 0 if it does not match.
fn matched_at_start(tokens: &[Token], text: impl Iterator<Item = char>, longest: bool) -> usize {
    let mut active = vec![false; tokens.len() + 1];
    active[0] = true;
    let (mut at, mut matched) = (0, 0);
    for c in text.map(Some).chain([None]) {
        for (i, token) in tokens.iter().enumerate() {
            active[i + 1] |= active[i] && *token == Token::Any;
        }
        if active[tokens.len()] {
            matched = at;
            if !longest {
                break;
            }
        }
        let Some(c) = c.filter(|_| active.contains(&true)) else { break };
        // Backwards, so that what one character has reached is not taken on by the same character.
        active[tokens.len()] = false;
        for (i, token) in tokens.iter().enumerate().rev() {
            let here = std::mem::take(&mut active[i]) && token.accepts(c);
            active[i + usize::from(*token != Token::Any)] |= here;
        }
        at += c.len_utf8();
    }
    matched
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> ShellPattern {
        ShellPattern::parse(text).unwrap()
    }

    #[test]
    fn the_shortest_and_the_longest_end_are_cut() {
        for (value, text, shortest, longest) in [
            ("a/b/c", "*/", "b/c", "c"),
            ("a/b/c", "x", "a/b/c", "a/b/c"),
            ("abbab", "*ab*b", "ab", ""),
            ("aé☺b", "?é", "☺b", "☺b"),
            ("one\ntwo", "*", "one\ntwo", "\ntwo"),
            ("", "*", "", ""),
        ] {
            assert_eq!(pattern(text).strip_prefix(value, false), shortest, "{value} # {text}");
            assert_eq!(pattern(text).strip_prefix(value, true), longest, "{value} ## {text}");
        }
        assert_eq!(pattern("/*").strip_suffix("a/b/c", false), "a/b");
        assert_eq!(pattern("/*").strip_suffix("a/b/c", true), "a");
        assert_eq!(pattern("☺?").strip_suffix("aé☺b", true), "aé");
    }

    #[test]
    fn the_leftmost_longest_match_is_replaced() {
        for (value, text, first, all) in [
            ("abcabc", "b", "aXcabc", "aXcaXc"),
            ("abcabc", "b*", "aX", "aX"),
            ("a\nb", "*", "X\nb", "X\nX"),
            ("abc", "", "Xabc", "XaXbXcX"),
            ("aab", "a*", "X", "X"),
            ("aab", "?", "Xab", "XXX"),
            ("xaxbx", "a*b", "xXx", "xXx"),
            ("é☺é", "é", "X☺é", "X☺X"),
            ("abab", "ba*z", "abab", "abab"),
        ] {
            assert_eq!(pattern(text).replace(value, "X", false), first, "{value} / {text}");
            assert_eq!(pattern(text).replace(value, "X", true), all, "{value} // {text}");
        }
    }

    #[test]
    fn a_long_value_costs_neither_time_nor_memory() {
        let value = "a".repeat(1 << 18);
        assert_eq!(pattern("*a*a*a*b").strip_prefix(&value, true).len(), value.len());
        assert_eq!(pattern("*a*a*a*b").replace(&value, "X", true).len(), value.len());
    }
}
