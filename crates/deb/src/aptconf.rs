//! The few settings of `apt.conf` that matter for fetching: proxies and the date checks.
//!
//! The format is ISC's: `A::B "v";` and `A { B "v"; };`, with `//`, `/* */` and `#` comments.

use std::collections::BTreeMap;
use std::path::Path;

use crate::files;

/// Settings by their full name in lower case; for a list, the last value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AptConf(BTreeMap<String, String>);

impl AptConf {
    /// Reads `etc/apt/apt.conf.d/*` and `etc/apt/apt.conf` below `root`, as apt orders them. Unreadable files are
    /// passed over: they are apt's, not ours.
    pub fn load(root: &Path) -> Self {
        let mut conf = Self::default();
        let mut paths = files::sorted(&root.join("etc/apt/apt.conf.d"), |name| {
            let plain = name.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c));
            plain && (!name.contains('.') || name.ends_with(".conf"))
        });
        paths.push(root.join("etc/apt/apt.conf"));
        for path in paths {
            if let Ok(text) = files::read_limited(&path, 1 << 20) {
                conf.parse(&String::from_utf8_lossy(&text));
            }
        }
        conf
    }

    /// The value of a setting, named as `Acquire::http::Proxy`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(&name.to_ascii_lowercase()).map(String::as_str)
    }

    /// A boolean setting.
    pub fn flag(&self, name: &str, default: bool) -> bool {
        match self.get(name).map(str::to_ascii_lowercase).as_deref() {
            Some("false" | "no" | "0" | "off" | "without" | "disable") => false,
            Some("true" | "yes" | "1" | "on" | "with" | "enable") => true,
            _ => default,
        }
    }

    /// The proxy for an address: None when nothing is configured, an empty string for `DIRECT`.
    pub fn proxy(&self, url: &str) -> Option<String> {
        let (scheme, rest) = url.split_once("://")?;
        let host = rest.split('/').next().unwrap_or_default();
        let host = host.rsplit('@').next().unwrap_or_default().split(':').next().unwrap_or_default();
        let value = self
            .get(&format!("acquire::{scheme}::proxy::{host}"))
            .or_else(|| self.get(&format!("acquire::{scheme}::proxy")))
            // apt uses the http proxy for https too when nothing else is said.
            .or_else(|| (scheme == "https").then(|| self.get("acquire::http::proxy")).flatten())?;
        Some(if value.eq_ignore_ascii_case("direct") || value == "false" { String::new() } else { value.to_owned() })
    }

    fn parse(&mut self, text: &str) {
        let mut scope: Vec<String> = Vec::new();
        let mut pending: Vec<String> = Vec::new();
        for token in Tokens(text) {
            match token {
                Token::Word(word) => pending.push(word),
                Token::Open => {
                    scope.push(pending.first().cloned().unwrap_or_default());
                    pending.clear();
                }
                Token::Close => {
                    scope.pop();
                    pending.clear();
                }
                Token::End => {
                    if let [name, value] = pending.as_slice() {
                        let full: Vec<&str> = scope.iter().chain([name]).map(String::as_str).collect();
                        self.0.insert(full.join("::").to_ascii_lowercase(), value.clone());
                    }
                    pending.clear();
                }
            }
        }
    }
}

enum Token {
    Word(String),
    Open,
    Close,
    End,
}

struct Tokens<'a>(&'a str);

impl Iterator for Tokens<'_> {
    type Item = Token;

    fn next(&mut self) -> Option<Token> {
        loop {
            self.0 = self.0.trim_start();
            let text = self.0;
            let skip_to = |end: &str| text.find(end).map_or("", |at| &text[at + end.len()..]);
            if text.starts_with("//") || text.starts_with('#') {
                self.0 = skip_to("\n");
            } else if text.starts_with("/*") {
                self.0 = skip_to("*/");
            } else {
                break;
            }
        }
        let first = self.0.chars().next()?;
        let rest = &self.0[first.len_utf8()..];
        let (token, rest) = match first {
            '{' => (Token::Open, rest),
            '}' => (Token::Close, rest),
            ';' => (Token::End, rest),
            '"' => {
                let end = rest.find('"').unwrap_or(rest.len());
                (Token::Word(rest[..end].to_owned()), rest.get(end + 1..).unwrap_or_default())
            }
            _ => {
                let stop = |c: char| c.is_whitespace() || "{};\"".contains(c);
                let end = self.0.find(stop).unwrap_or(self.0.len());
                (Token::Word(self.0[..end].to_owned()), &self.0[end..])
            }
        };
        self.0 = rest;
        Some(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(text: &str) -> AptConf {
        let mut conf = AptConf::default();
        conf.parse(text);
        conf
    }

    #[test]
    fn both_spellings_comments_and_lists() {
        let c = conf(
            "// x\nAcquire::http::Proxy \"http://127.0.0.1:3142\"; # y\nAcquire { Check-Valid-Until \"false\"; https { Proxy\n\"DIRECT\"; } };\n/* Acquire::x \"1\"; */ DPkg::Post-Invoke { \"rm -f /x || true\"; };",
        );
        assert_eq!(c.get("acquire::HTTP::proxy"), Some("http://127.0.0.1:3142"));
        assert!(!c.flag("Acquire::Check-Valid-Until", true));
        assert!(c.flag("Acquire::Check-Date", true));
        assert_eq!(c.get("Acquire::x"), None);
        assert_eq!(c.proxy("http://a/b").as_deref(), Some("http://127.0.0.1:3142"));
        assert_eq!(c.proxy("https://a/b").as_deref(), Some(""));
        assert_eq!(conf("").proxy("http://a/b"), None);
    }

    #[test]
    fn a_host_can_have_its_own() {
        let c = conf("Acquire::http::Proxy::local \"DIRECT\"; Acquire::http::Proxy \"http://p:1\";");
        assert_eq!(c.proxy("http://u:p@local:80/x").as_deref(), Some(""));
        assert_eq!(c.proxy("https://other/x").as_deref(), Some("http://p:1"));
    }

    #[test]
    fn broken_text_is_not_fatal() {
        for text in ["{", "}", "a \"b", ";;;", "a { b { c \"", "\u{e9}\u{e9} \"\u{e9}\";"] {
            conf(text);
        }
    }
}
