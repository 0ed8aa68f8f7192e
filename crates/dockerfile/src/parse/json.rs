//! JSON as far as the exec form needs it: is this text a JSON array, and are its members strings? Syntax errors are not errors here, they
//! make the instruction a shell form.

/// How deep values may nest; deeper text counts as not JSON.
const MAX_DEPTH: usize = 256;

/// What a text is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Array {
    /// An array of strings.
    Strings(Vec<String>),
    /// An array with other members.
    Mixed,
    /// Not a JSON array.
    Other,
}

/// Looks at an instruction's arguments.
pub(crate) fn array(text: &str) -> Array {
    let mut reader = Reader { rest: text };
    reader.blanks();
    if !reader.rest.starts_with('[') {
        return Array::Other;
    }
    match reader.array_of_strings() {
        Some((strings, mixed)) => {
            reader.blanks();
            match (reader.rest.is_empty(), mixed) {
                (false, _) => Array::Other,
                (true, true) => Array::Mixed,
                (true, false) => Array::Strings(strings),
            }
        }
        None => Array::Other,
    }
}

/// The string value of a member of the object that the whole text is.
pub(crate) fn string_member(text: &str, name: &str) -> Option<String> {
    let mut reader = Reader { rest: text };
    reader.blanks();
    reader.eat('{')?;
    let mut found = None;
    reader.blanks();
    if reader.eat('}').is_none() {
        loop {
            reader.blanks();
            let key = reader.string()?;
            reader.blanks();
            reader.eat(':')?;
            reader.blanks();
            if key == name && reader.rest.starts_with('"') {
                found = Some(reader.string()?);
            } else {
                reader.value(1)?;
            }
            reader.blanks();
            if reader.eat(',').is_none() {
                reader.eat('}')?;
                break;
            }
        }
    }
    reader.blanks();
    found.filter(|_| reader.rest.is_empty())
}

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn blanks(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r']);
    }

    fn eat(&mut self, c: char) -> Option<()> {
        self.rest = self.rest.strip_prefix(c)?;
        Some(())
    }

    /// The strings of an array, and whether it also has other members.
    fn array_of_strings(&mut self) -> Option<(Vec<String>, bool)> {
        let (mut strings, mut mixed) = (Vec::new(), false);
        self.eat('[')?;
        self.blanks();
        if self.eat(']').is_some() {
            return Some((strings, mixed));
        }
        loop {
            self.blanks();
            if self.rest.starts_with('"') {
                strings.push(self.string()?);
            } else {
                self.value(1)?;
                mixed = true;
            }
            self.blanks();
            if self.eat(',').is_none() {
                self.eat(']')?;
                return Some((strings, mixed));
            }
        }
    }

    fn value(&mut self, depth: usize) -> Option<()> {
        if depth > MAX_DEPTH {
            return None;
        }
        match self.rest.chars().next()? {
            '"' => self.string().map(drop),
            '[' => self.members(']', depth),
            '{' => self.members('}', depth),
            '-' | '0'..='9' => self.number(),
            _ => {
                let word = ["true", "false", "null"].into_iter().find(|w| self.rest.starts_with(w))?;
                self.rest = &self.rest[word.len()..];
                Some(())
            }
        }
    }

    fn members(&mut self, close: char, depth: usize) -> Option<()> {
        self.rest = &self.rest[1..];
        self.blanks();
        if self.eat(close).is_some() {
            return Some(());
        }
        loop {
            self.blanks();
            if close == '}' {
                self.string()?;
                self.blanks();
                self.eat(':')?;
                self.blanks();
            }
            self.value(depth + 1)?;
            self.blanks();
            if self.eat(',').is_none() {
                return self.eat(close);
            }
        }
    }

    fn number(&mut self) -> Option<()> {
        let digits = |r: &mut Self| {
            let n = r.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(r.rest.len());
            r.rest = &r.rest[n..];
            (n > 0).then_some(())
        };
        self.rest = self.rest.strip_prefix('-').unwrap_or(self.rest);
        if self.eat('0').is_none() {
            digits(self)?;
        }
        if self.eat('.').is_some() {
            digits(self)?;
        }
        if self.rest.starts_with(['e', 'E']) {
            self.rest = &self.rest[1..];
            self.rest = self.rest.strip_prefix(['+', '-']).unwrap_or(self.rest);
            digits(self)?;
        }
        Some(())
    }

    fn string(&mut self) -> Option<String> {
        self.eat('"')?;
        let mut value = String::new();
        loop {
            let plain = self.rest.find(|c: char| matches!(c, '"' | '\\') || c < ' ')?;
            value.push_str(&self.rest[..plain]);
            self.rest = &self.rest[plain..];
            if self.eat('"').is_some() {
                return Some(value);
            }
            self.eat('\\')?;
            let escaped = self.rest.chars().next()?;
            self.rest = &self.rest[escaped.len_utf8()..];
            value.push(match escaped {
                '"' | '\\' | '/' => escaped,
                'b' => '\u{8}',
                'f' => '\u{c}',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                'u' => self.unicode()?,
                _ => return None,
            });
        }
    }

    /// `\uXXXX`, also as a surrogate pair; half a pair is the replacement character, as in Go.
    fn unicode(&mut self) -> Option<char> {
        let first = self.hex4()?;
        if (0xD800..0xDC00).contains(&first) {
            let before = self.rest;
            if let Some(rest) = self.rest.strip_prefix("\\u") {
                self.rest = rest;
                let second = self.hex4()?;
                if (0xDC00..0xE000).contains(&second) {
                    return char::from_u32(0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00));
                }
                self.rest = before;
            }
        }
        Some(char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER))
    }

    fn hex4(&mut self) -> Option<u32> {
        let digits = self.rest.get(..4).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))?;
        self.rest = &self.rest[4..];
        u32::from_str_radix(digits, 16).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays() {
        let strings = |list: &[&str]| Array::Strings(list.iter().map(|s| (*s).to_string()).collect());
        assert_eq!(array(r#"["a", "b c"]"#), strings(&["a", "b c"]));
        assert_eq!(array(" [ ] "), strings(&[]));
        assert_eq!(array(r#"["\u0041\n\"\\\/\ud83d\ude00\ud800x"]"#), strings(&["A\n\"\\/😀\u{fffd}x"]));
        for mixed in [r#"["a", 1]"#, "[null]", "[[\"a\"]]", r#"[{"a": [true, -1.5e3]}, "b"]"#] {
            assert_eq!(array(mixed), Array::Mixed, "{mixed}");
        }
        for other in [
            "",
            "a",
            "['a']",
            r#"["a",]"#,
            r#"["a"] x"#,
            r#"["a" "b"]"#,
            r#"["\x"]"#,
            "[\"a\tb\"]",
            "[",
            "[\"",
            "[01]",
            "[\"a\"",
            "[1.]",
            "{}",
        ] {
            assert_eq!(array(other), Array::Other, "{other}");
        }
        assert_eq!(array(&"[".repeat(100_000)), Array::Other);
    }

    #[test]
    fn members() {
        assert_eq!(string_member(r#" {"a": {"syntax": "no"}, "syntax": "yes"} "#, "syntax").as_deref(), Some("yes"));
        assert_eq!(string_member(r#"{"syntax": 1}"#, "syntax"), None);
        assert_eq!(string_member("{}", "syntax"), None);
    }
}
