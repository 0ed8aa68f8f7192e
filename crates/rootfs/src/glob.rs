//! Patterns of one path component, as Go's `filepath.Match`: `*`, `?`, `[a-z]`, `[^a-z]`, and `\` to quote.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Star,
    Any,
    /// A character as it is.
    Is(char),
    /// A byte that is not part of valid UTF-8.
    Byte(u8),
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

/// A parsed pattern.
#[derive(Debug, Clone)]
pub(crate) struct Pattern(Vec<Token>);

/// Whether there is anything but plain and quoted characters.
pub(crate) fn has_pattern(component: &[u8]) -> bool {
    let mut bytes = component.iter();
    while let Some(b) = bytes.next() {
        match b {
            b'\\' => {
                bytes.next();
            }
            b'*' | b'?' | b'[' => return true,
            _ => {}
        }
    }
    false
}

/// Takes the quoting away.
pub(crate) fn unquote(component: &OsStr) -> OsString {
    let mut out = Vec::with_capacity(component.len());
    let mut bytes = component.as_bytes().iter();
    while let Some(b) = bytes.next() {
        match b {
            b'\\' => out.extend(bytes.next().or(Some(b))),
            _ => out.push(*b),
        }
    }
    OsString::from_vec(out)
}

/// Characters, or single bytes where the text is not UTF-8.
fn chars(mut bytes: &[u8]) -> Vec<Token> {
    let mut out = Vec::with_capacity(bytes.len());
    while !bytes.is_empty() {
        match std::str::from_utf8(bytes) {
            Ok(text) => {
                out.extend(text.chars().map(Token::Is));
                break;
            }
            Err(e) => {
                let (valid, rest) = bytes.split_at(e.valid_up_to());
                out.extend(String::from_utf8_lossy(valid).chars().map(Token::Is));
                out.push(Token::Byte(rest[0]));
                bytes = &rest[1..];
            }
        }
    }
    out
}

impl Pattern {
    pub fn new(component: &[u8]) -> Result<Self, &'static str> {
        let raw = chars(component);
        let mut tokens = Vec::with_capacity(raw.len());
        let mut i = 0;
        while i < raw.len() {
            match &raw[i] {
                Token::Is('*') => {
                    if tokens.last() != Some(&Token::Star) {
                        tokens.push(Token::Star);
                    }
                }
                Token::Is('?') => tokens.push(Token::Any),
                Token::Is('\\') => {
                    i += 1;
                    tokens.push(raw.get(i).ok_or("a backslash at the end quotes nothing")?.clone());
                }
                Token::Is('[') => {
                    let (class, next) = class(&raw, i + 1)?;
                    tokens.push(class);
                    i = next;
                    continue;
                }
                other => tokens.push(other.clone()),
            }
            i += 1;
        }
        Ok(Self(tokens))
    }

    pub fn matches(&self, name: &[u8]) -> bool {
        let name = chars(name);
        let (mut p, mut n) = (0, 0);
        let mut star: Option<(usize, usize)> = None;
        // Only the last star needs to be tried again: linear in the product of the lengths, not exponential.
        loop {
            match self.0.get(p) {
                Some(Token::Star) => {
                    star = Some((p + 1, n));
                    p += 1;
                    continue;
                }
                Some(token) if name.get(n).is_some_and(|c| one(token, c)) => {
                    p += 1;
                    n += 1;
                    continue;
                }
                None if n == name.len() => return true,
                _ => {}
            }
            match star {
                Some((after, at)) if at < name.len() => {
                    star = Some((after, at + 1));
                    p = after;
                    n = at + 1;
                }
                _ => return false,
            }
        }
    }
}

fn one(token: &Token, c: &Token) -> bool {
    match token {
        Token::Any => true,
        Token::Class { negated, ranges } => match c {
            Token::Is(c) => ranges.iter().any(|(a, b)| a <= c && c <= b) != *negated,
            _ => *negated,
        },
        other => other == c,
    }
}

/// From after the `[`; also says where the text goes on.
fn class(raw: &[Token], mut i: usize) -> Result<(Token, usize), &'static str> {
    const OPEN: &str = "a [ has no matching ]";
    let negated = raw.get(i) == Some(&Token::Is('^'));
    if negated {
        i += 1;
    }
    let mut ranges = Vec::new();
    loop {
        if raw.get(i) == Some(&Token::Is(']')) && !ranges.is_empty() {
            return Ok((Token::Class { negated, ranges }, i + 1));
        }
        let from;
        (from, i) = class_char(raw, i)?;
        let mut to = from;
        if raw.get(i) == Some(&Token::Is('-')) {
            (to, i) = class_char(raw, i + 1)?;
        }
        ranges.push((from, to));
        if i >= raw.len() {
            return Err(OPEN);
        }
    }
}

fn class_char(raw: &[Token], i: usize) -> Result<(char, usize), &'static str> {
    match raw.get(i) {
        Some(Token::Is('\\')) => match raw.get(i + 1) {
            Some(Token::Is(c)) => Ok((*c, i + 2)),
            _ => Err("a backslash at the end quotes nothing"),
        },
        Some(Token::Is('-' | ']')) => Err("a - or ] in [] must be quoted"),
        Some(Token::Is(c)) => Ok((*c, i + 1)),
        Some(_) => Err("only characters can be in []"),
        None => Err("a [ has no matching ]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matches(pattern: &str, name: &str) -> bool {
        Pattern::new(pattern.as_bytes()).unwrap().matches(name.as_bytes())
    }

    /// The cases of Go's own documentation and tests, for one component.
    #[test]
    fn as_go() {
        for (pattern, name, expected) in [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*", ".hidden", true),
            ("*c", "abc", true),
            ("a*", "abc", true),
            ("a*b*c*d*e*", "axbxcxdxe", true),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("a*b?c*x", "abxbbxdbxebxczzy", false),
            ("ab[c]", "abc", true),
            ("ab[b-d]", "abc", true),
            ("ab[e-g]", "abc", false),
            ("ab[^c]", "abc", false),
            ("ab[^b-d]", "abc", false),
            ("ab[^e-g]", "abc", true),
            ("a\\*b", "a*b", true),
            ("a\\*b", "ab", false),
            ("a?b", "a☺b", true),
            ("a[^a]b", "a☺b", true),
            ("a[\\]a]", "]", false),
            ("[\\]a]", "]", true),
            ("[\\-]", "-", true),
            ("[x\\-]", "z", false),
            ("*x", "xxx", true),
            ("", "", true),
            ("", "a", false),
            ("?", "", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
        for bad in ["[]a]", "[-]", "[x-]", "[-x]", "[a-b-c]", "[", "[^", "[^bc", "a[", "a\\"] {
            assert!(Pattern::new(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn bytes_that_are_not_utf8() {
        let p = Pattern::new(b"a*\xff").unwrap();
        assert!(p.matches(b"a\xfe\xff") && !p.matches(b"a\xff\xfe"));
        assert!(Pattern::new(b"?").unwrap().matches(b"\xff"));
    }

    #[test]
    fn many_stars_are_not_exponential() {
        let pattern = "a*".repeat(200) + "b";
        assert!(!matches(&pattern, &"a".repeat(2000)));
    }

    proptest! {
        #[test]
        fn quoted_names_match_themselves(name in "[ -~]{0,20}") {
            let quoted: String = name.chars().flat_map(|c| ['\\', c]).collect();
            prop_assert!(matches(&quoted, &name));
            prop_assert!(!has_pattern(quoted.as_bytes()));
            prop_assert_eq!(unquote(OsStr::new(&quoted)), OsString::from(name));
        }

        #[test]
        fn anything_parses_or_fails(pattern: Vec<u8>, name: Vec<u8>) {
            if let Ok(p) = Pattern::new(&pattern) {
                p.matches(&name);
            }
        }
    }
}
