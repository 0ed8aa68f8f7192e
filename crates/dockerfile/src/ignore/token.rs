//! Wildcard tokens, shared by ignore patterns and by Go's `filepath.Match`.
//!
//! Text is compared character by character; a byte that is not part of a UTF-8 character counts as a character of its own (so names in any
//! encoding can be matched).

/// One character: a Unicode scalar value, or `STRAY + byte`.
pub(crate) type Rune = u32;

const STRAY: Rune = 0x11_0000;

/// One step of a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    /// Exactly this character.
    Char(Rune),
    /// `?`: any character but `/`.
    One,
    /// `*`: any characters but `/`.
    Star,
    /// `[...]`
    Class(Class),
    /// `**` (and a following `/`) inside a pattern: nothing, or anything up to and with a `/`.
    DeepSlash,
    /// `**` at the end: anything.
    DeepEnd,
}

/// `[a-z]` or `[^a-z]`. As in Go, a class may match `/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Class {
    pub(crate) negated: bool,
    pub(crate) ranges: Vec<(Rune, Rune)>,
}

impl Class {
    pub(crate) fn contains(&self, c: Rune) -> bool {
        self.ranges.iter().any(|(lo, hi)| (*lo..=*hi).contains(&c)) != self.negated
    }
}

/// A pattern with a syntax error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("syntax error in pattern {0:?}")]
pub struct BadPattern(pub String);

impl BadPattern {
    pub(crate) fn new(pattern: &[u8]) -> BadPattern {
        BadPattern(String::from_utf8_lossy(pattern).into_owned())
    }
}

/// The first character of `bytes` and its length.
pub(crate) fn rune(bytes: &[u8]) -> Option<(Rune, usize)> {
    let first = *bytes.first()?;
    if first < 0x80 {
        return Some((u32::from(first), 1));
    }
    let length = match first {
        0xC2..=0xDF => 2,
        0xE0..=0xEF => 3,
        0xF0..=0xF4 => 4,
        _ => 1,
    };
    let text = bytes.get(..length).and_then(|b| std::str::from_utf8(b).ok());
    match text.and_then(|t| t.chars().next()) {
        Some(c) => Some((u32::from(c), length)),
        None => Some((STRAY + u32::from(first), 1)),
    }
}

/// Parses a pattern. `deep` gives `**` its meaning; without it two stars are just two stars.
pub(crate) fn parse(pattern: &[u8], deep: bool) -> Result<Vec<Token>, BadPattern> {
    let bad = || BadPattern::new(pattern);
    let mut tokens = Vec::new();
    let mut rest = pattern;
    while let Some((c, length)) = rune(rest) {
        rest = &rest[length..];
        tokens.push(match u8::try_from(c) {
            Ok(b'*') if deep && rest.first() == Some(&b'*') => {
                rest = &rest[1..];
                rest = rest.strip_prefix(b"/").unwrap_or(rest);
                if rest.is_empty() { Token::DeepEnd } else { Token::DeepSlash }
            }
            Ok(b'*') => Token::Star,
            Ok(b'?') => Token::One,
            Ok(b'\\') => {
                let (c, length) = rune(rest).ok_or_else(bad)?;
                rest = &rest[length..];
                Token::Char(c)
            }
            Ok(b'[') => {
                let (class, after) = parse_class(rest).ok_or_else(bad)?;
                rest = after;
                Token::Class(class)
            }
            _ => Token::Char(c),
        });
    }
    Ok(tokens)
}

fn parse_class(mut rest: &[u8]) -> Option<(Class, &[u8])> {
    let negated = rest.first() == Some(&b'^');
    if negated {
        rest = &rest[1..];
    }
    let mut ranges = Vec::new();
    loop {
        if rest.first() == Some(&b']') && !ranges.is_empty() {
            return Some((Class { negated, ranges }, &rest[1..]));
        }
        let lo;
        (lo, rest) = class_char(rest)?;
        let mut hi = lo;
        if rest.first() == Some(&b'-') {
            (hi, rest) = class_char(&rest[1..])?;
        }
        ranges.push((lo, hi));
    }
}

/// A character inside a class; `-` and `]` must be escaped, and something must follow.
fn class_char(rest: &[u8]) -> Option<(Rune, &[u8])> {
    let rest = match rest.first()? {
        b'-' | b']' => return None,
        b'\\' => &rest[1..],
        _ => rest,
    };
    let (c, length) = rune(rest)?;
    let after = &rest[length..];
    (c < STRAY && !after.is_empty()).then_some((c, after))
}

/// Whether tokens without `**` match the whole text. One star is tried again at a time, so the cost is at most pattern times text.
pub(crate) fn match_flat(tokens: &[Token], text: &[u8]) -> bool {
    let (mut token, mut position) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    loop {
        let current = rune(&text[position..]);
        let step = match (tokens.get(token), current) {
            (None, None) => return true,
            (Some(Token::Star), _) => {
                retry = Some((token, position));
                token += 1;
                continue;
            }
            (Some(Token::Char(want)), Some((c, length))) if *want == c => Some(length),
            (Some(Token::One), Some((c, length))) if c != u32::from(b'/') => Some(length),
            (Some(Token::Class(class)), Some((c, length))) if class.contains(c) => Some(length),
            _ => None,
        };
        if let Some(length) = step {
            token += 1;
            position += length;
            continue;
        }
        // Let the last star take one character more; it cannot take a separator.
        let Some((star, from)) = retry else { return false };
        match rune(&text[from..]) {
            Some((c, length)) if c != u32::from(b'/') => {
                retry = Some((star, from + length));
                (token, position) = (star + 1, from + length);
            }
            _ => return false,
        }
    }
}

/// Go's `filepath.Match`: does the pattern match the whole name? `*` and `?` do not match `/`.
pub fn path_match(pattern: impl AsRef<[u8]>, name: impl AsRef<[u8]>) -> Result<bool, BadPattern> {
    Ok(match_flat(&parse(pattern.as_ref(), false)?, name.as_ref()))
}

/// Go's `filepath.Clean`: `.` and doubled slashes go, `x/..` goes, a trailing slash goes; nothing becomes `.`.
pub(crate) fn clean(path: &[u8]) -> Vec<u8> {
    let rooted = path.first() == Some(&b'/');
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => match parts.last() {
                Some(last) if *last != b".." => drop(parts.pop()),
                _ if rooted => {}
                _ => parts.push(part),
            },
            _ => parts.push(part),
        }
    }
    let joined = parts.join(&b'/');
    match (rooted, joined.is_empty()) {
        (true, _) => [b"/", joined.as_slice()].concat(),
        (false, true) => b".".to_vec(),
        (false, false) => joined,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of Go's own test of `filepath.Match`, plus classes that hold a separator.
    #[test]
    fn go_filepath_match() {
        let cases: &[(&str, &str, Option<bool>)] = &[
            ("abc", "abc", Some(true)),
            ("*", "abc", Some(true)),
            ("*c", "abc", Some(true)),
            ("a*", "a", Some(true)),
            ("a*", "abc", Some(true)),
            ("a*", "ab/c", Some(false)),
            ("a*/b", "abc/b", Some(true)),
            ("a*/b", "a/c/b", Some(false)),
            ("a*b*c*d*e*/f", "axbxcxdxe/f", Some(true)),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/f", Some(true)),
            ("a*b*c*d*e*/f", "axbxcxdxe/xxx/f", Some(false)),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/fff", Some(false)),
            ("a*b?c*x", "abxbbxdbxebxczzx", Some(true)),
            ("a*b?c*x", "abxbbxdbxebxczzy", Some(false)),
            ("ab[c]", "abc", Some(true)),
            ("ab[b-d]", "abc", Some(true)),
            ("ab[e-g]", "abc", Some(false)),
            ("ab[^c]", "abc", Some(false)),
            ("ab[^b-d]", "abc", Some(false)),
            ("ab[^e-g]", "abc", Some(true)),
            ("a\\*b", "a*b", Some(true)),
            ("a\\*b", "ab", Some(false)),
            ("a?b", "a☺b", Some(true)),
            ("a[^a]b", "a☺b", Some(true)),
            ("a???b", "a☺b", Some(false)),
            ("a[^a][^a][^a]b", "a☺b", Some(false)),
            ("[a-ζ]*", "α", Some(true)),
            ("*[a-ζ]", "A", Some(false)),
            ("a?b", "a/b", Some(false)),
            ("a*b", "a/b", Some(false)),
            ("a[^x]b", "a/b", Some(true)),
            ("[\\]a]", "]", Some(true)),
            ("[\\-]", "-", Some(true)),
            ("[x\\-]", "x", Some(true)),
            ("[x\\-]", "-", Some(true)),
            ("[x\\-]", "z", Some(false)),
            ("[\\-x]", "x", Some(true)),
            ("[\\-x]", "a", Some(false)),
            ("[]a]", "]", None),
            ("[-]", "-", None),
            ("[x-]", "x", None),
            ("[-x]", "x", None),
            ("\\", "a", None),
            ("[a-b-c]", "a", None),
            ("[", "a", None),
            ("[^", "a", None),
            ("[^bc", "a", None),
            ("a[", "a", None),
            ("a[", "ab", None),
            ("a[", "x", None),
            ("a/b[", "x", None),
            ("*x", "xxx", Some(true)),
            ("", "", Some(true)),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(path_match(pattern, name).ok(), *expected, "{pattern} {name}");
        }
        assert_eq!(path_match(b"a?b".as_slice(), b"a\xffb".as_slice()), Ok(true));
        assert_eq!(path_match(b"a\xffb".as_slice(), b"a\xfeb".as_slice()), Ok(false));
    }

    #[test]
    fn go_filepath_clean() {
        let cases = [
            ("abc", "abc"),
            ("abc/def", "abc/def"),
            ("a/b/c", "a/b/c"),
            (".", "."),
            ("..", ".."),
            ("../..", "../.."),
            ("", "."),
            ("/abc", "/abc"),
            ("/", "/"),
            ("abc/", "abc"),
            ("../", ".."),
            ("/abc/", "/abc"),
            ("abc//def//ghi", "abc/def/ghi"),
            ("//abc", "/abc"),
            ("abc/./def", "abc/def"),
            ("/./abc/def", "/abc/def"),
            ("abc/def/ghi/../jkl", "abc/def/jkl"),
            ("abc/def/../..", "."),
            ("abc/def/../../..", ".."),
            ("/abc/def/../../..", "/"),
            ("abc/../../././../def", "../../def"),
        ];
        for (path, expected) in cases {
            assert_eq!(clean(path.as_bytes()), expected.as_bytes(), "{path}");
        }
    }
}
