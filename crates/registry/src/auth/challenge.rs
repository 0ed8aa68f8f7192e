//! `WWW-Authenticate` (RFC 9110, section 11.6.1): several headers, several challenges in one header, quoted commas.

use std::collections::BTreeMap;

/// One challenge; parameter names are lower-case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Challenge {
    /// Lower-case: `bearer`, `basic`.
    pub scheme: String,
    pub params: BTreeMap<String, String>,
}

impl Challenge {
    pub fn param(&self, name: &str) -> Option<&str> {
        self.params.get(name).map(String::as_str)
    }
}

/// Parses the values of all headers. What does not follow the grammar ends that header's list.
pub(crate) fn parse<'a>(headers: impl IntoIterator<Item = &'a str>) -> Vec<Challenge> {
    let mut all = Vec::new();
    for header in headers {
        Parser { rest: header }.challenges(&mut all);
    }
    all
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn challenges(&mut self, all: &mut Vec<Challenge>) {
        loop {
            self.skip(|c| c == ',' || c.is_ascii_whitespace());
            let Some(word) = self.token() else { return };
            let spaced = self.skip(|c| c.is_ascii_whitespace());
            // `name = value` belongs to the challenge before; `Scheme` stands alone or is followed by its first parameter
            if self.rest.starts_with('=') && !(spaced && self.is_token68()) {
                self.rest = &self.rest[1..];
                self.skip(|c| c.is_ascii_whitespace());
                let Some(value) = self.value() else { return };
                let Some(last) = all.last_mut() else { return };
                last.params.entry(word.to_ascii_lowercase()).or_insert(value);
            } else {
                all.push(Challenge { scheme: word.to_ascii_lowercase(), params: BTreeMap::new() });
                if self.is_token68() {
                    self.skip(|c| c != ',');
                }
            }
        }
    }

    /// `Negotiate abc==`: data instead of parameters.
    fn is_token68(&self) -> bool {
        let word = self.rest.split(|c: char| c == ',' || c.is_ascii_whitespace()).next().unwrap_or("");
        let bare = word.trim_end_matches('=');
        !bare.is_empty()
            && !bare.contains(['=', '"'])
            && (word.len() > bare.len() || !self.rest.contains('='))
            && !self.rest[word.len()..].trim_start().starts_with('=')
    }

    fn skip(&mut self, f: impl Fn(char) -> bool) -> bool {
        let before = self.rest.len();
        self.rest = self.rest.trim_start_matches(f);
        self.rest.len() != before
    }

    fn token(&mut self) -> Option<&'a str> {
        let is_tchar = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        let end = self.rest.find(|c| !is_tchar(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        (!word.is_empty()).then_some(word)
    }

    fn value(&mut self) -> Option<String> {
        let Some(quoted) = self.rest.strip_prefix('"') else {
            // registries put colons and slashes into unquoted values
            let end = self.rest.find(|c: char| c == ',' || c.is_ascii_whitespace()).unwrap_or(self.rest.len());
            let (word, rest) = self.rest.split_at(end);
            self.rest = rest;
            return Some(word.to_owned());
        };
        let mut value = String::new();
        let mut chars = quoted.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.rest = &quoted[at + 1..];
                    return Some(value);
                }
                '\\' => value.push(chars.next()?.1),
                c => value.push(c),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(header: &str) -> Challenge {
        let mut all = parse([header]);
        assert_eq!(all.len(), 1, "{header}: {all:?}");
        all.remove(0)
    }

    #[test]
    fn bearer_with_quoted_commas_and_escapes() {
        let c =
            one(r#"Bearer realm="https://auth.example/token",service="reg \"x\"",scope="repository:a/b:pull,push""#);
        assert_eq!(c.scheme, "bearer");
        assert_eq!(c.param("realm"), Some("https://auth.example/token"));
        assert_eq!(c.param("service"), Some("reg \"x\""));
        assert_eq!(c.param("scope"), Some("repository:a/b:pull,push"));
    }

    #[test]
    fn several_challenges_in_one_and_in_several_headers() {
        let all = parse([r#"Basic realm="a, b", Bearer realm="https://t/" , service=s"#, "Negotiate", "BASIC realm=x"]);
        let schemes: Vec<_> = all.iter().map(|c| c.scheme.as_str()).collect();
        assert_eq!(schemes, ["basic", "bearer", "negotiate", "basic"]);
        assert_eq!(all[0].param("realm"), Some("a, b"));
        assert_eq!(all[1].param("service"), Some("s"));
    }

    #[test]
    fn token68_spaces_and_unquoted_values() {
        let all = parse(["Negotiate YWJj==, Bearer realm = \"https://t/\", service=a:b/c"]);
        assert_eq!(all.len(), 2, "{all:?}");
        assert_eq!(all[1].param("realm"), Some("https://t/"));
        assert_eq!(all[1].param("service"), Some("a:b/c"));
    }

    #[test]
    fn garbage_ends_quietly() {
        for bad in ["", ",,,", "=", "\"", "Bearer realm=\"open", "realm=x", "\u{e9}"] {
            for c in parse([bad]) {
                assert!(c.params.is_empty(), "{bad}: {c:?}");
            }
        }
    }
}
