//! Git URLs of `ADD`, `FROM` contexts and `--build-context`: `URL#ref:subdir` and `URL?branch=…&subdir=…`.
//!
//! A reference that could be taken for an option of `git` is refused here already, with the place in the Dockerfile
//! (CVE-2019-13139).

use kiln_dockerfile::parse_bool;
use kiln_graph::GitSource;

/// A git URL, taken apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GitRef {
    /// Without fragment and query.
    pub remote: String,
    /// Branch, tag, commit or full ref name.
    pub reference: Option<String>,
    /// Directory of the checkout.
    pub subdir: Option<String>,
    /// Commit that the reference must lead to.
    pub checksum: Option<String>,
    /// `keep-git-dir`.
    pub keep_git_dir: Option<bool>,
    /// `submodules`.
    pub submodules: Option<bool>,
}

/// Why text is not a usable git URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GitRefError {
    /// Two parts of it say different things.
    #[error("{what} conflicts: {first:?} and {second:?}")]
    Conflict {
        /// `ref` or `subdir`.
        what: &'static str,
        /// One.
        first: String,
        /// The other.
        second: String,
    },
    /// A query parameter that means nothing.
    #[error(
        "unexpected query {0:?} in a git URL: expected ref, tag, branch, subdir, checksum, keep-git-dir or submodules"
    )]
    Query(String),
    /// A query parameter without a value, or with one that means nothing.
    #[error("invalid value {value:?} of query {key:?} in a git URL")]
    Value {
        /// The parameter.
        key: String,
        /// Its value.
        value: String,
    },
    /// A reference that no git has.
    #[error("{0:?} is not a git reference")]
    Reference(String),
    /// A directory outside of the checkout.
    #[error("{0:?} is not a directory inside of the repository")]
    Subdir(String),
}

/// Whether text is a git URL rather than a file's: `git://`, `ssh://`, `user@host:path`, or an HTTP URL whose path ends
/// in `.git`.
pub fn is_git_url(text: &str) -> bool {
    let bare = text.split(['#', '?']).next().unwrap_or(text);
    if text.starts_with("git://") || text.starts_with("ssh://") {
        return true;
    }
    if text.starts_with("http://") || text.starts_with("https://") {
        return bare.ends_with(".git");
    }
    let word = |s: &str| !s.is_empty() && s.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'));
    let scp = bare.split_once('@').and_then(|(user, rest)| Some((user, rest.split_once(':')?)));
    scp.is_some_and(|(user, (host, path))| word(user) && word(host) && !path.is_empty() && !path.starts_with("//"))
}

/// Whether text is the URL of a file.
pub fn is_http_url(text: &str) -> bool {
    (text.starts_with("http://") || text.starts_with("https://")) && !is_git_url(text)
}

impl GitRef {
    /// Takes a git URL apart.
    pub fn parse(text: &str) -> Result<Self, GitRefError> {
        let (url, fragment) = text.split_once('#').unwrap_or((text, ""));
        let (remote, query) = url.split_once('?').unwrap_or((url, ""));
        let (reference, subdir) = fragment.split_once(':').unwrap_or((fragment, ""));
        let some = |s: &str| Some(s.to_owned()).filter(|s| !s.is_empty());
        let mut parsed =
            Self { remote: remote.to_owned(), reference: some(reference), subdir: some(subdir), ..Self::default() };
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            parsed.query(pair)?;
        }
        if parsed.reference.is_none() {
            parsed.reference.clone_from(&parsed.checksum);
        }
        parsed.check()?;
        Ok(parsed)
    }

    /// The source that it stands for.
    pub fn source(self) -> GitSource {
        GitSource {
            remote: self.remote,
            reference: self.reference,
            subdir: self.subdir,
            checksum: self.checksum,
            keep_git_dir: self.keep_git_dir.unwrap_or(false),
            skip_submodules: self.submodules == Some(false),
            ..GitSource::default()
        }
    }

    fn query(&mut self, pair: &str) -> Result<(), GitRefError> {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_decode(value);
        let bad = || GitRefError::Value { key: key.to_owned(), value: value.clone() };
        let flag = || if value.is_empty() { Some(true) } else { parse_bool(&value) };
        match key {
            "keep-git-dir" => self.keep_git_dir = Some(flag().ok_or_else(bad)?),
            "submodules" => self.submodules = Some(flag().ok_or_else(bad)?),
            "ref" | "tag" | "branch" | "subdir" | "checksum" | "commit" if value.is_empty() => return Err(bad()),
            "ref" => set(&mut self.reference, "ref", value)?,
            "tag" => set(&mut self.reference, "ref", full_name("refs/tags/", &value))?,
            "branch" => set(&mut self.reference, "ref", full_name("refs/heads/", &value))?,
            "subdir" => set(&mut self.subdir, "subdir", value)?,
            "checksum" | "commit" => self.checksum = Some(value),
            other => return Err(GitRefError::Query(other.to_owned())),
        }
        Ok(())
    }

    fn check(&self) -> Result<(), GitRefError> {
        if let Some(reference) = &self.reference {
            let odd = |c: char| c.is_control() || c.is_whitespace() || "~^:?*[\\".contains(c);
            if reference.starts_with('-') || reference.contains("..") || reference.chars().any(odd) {
                return Err(GitRefError::Reference(reference.clone()));
            }
        }
        match &self.subdir {
            Some(dir) if dir.split('/').any(|p| p == "..") => Err(GitRefError::Subdir(dir.clone())),
            _ => Ok(()),
        }
    }
}

fn full_name(prefix: &str, name: &str) -> String {
    if name.starts_with(prefix) { name.to_owned() } else { format!("{prefix}{name}") }
}

fn set(slot: &mut Option<String>, what: &'static str, value: String) -> Result<(), GitRefError> {
    match slot {
        Some(first) if *first != value => Err(GitRefError::Conflict { what, first: first.clone(), second: value }),
        _ => {
            *slot = Some(value);
            Ok(())
        }
    }
}

fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|h| std::str::from_utf8(h).ok());
        match hex.filter(|_| bytes[at] == b'%').and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_git_url() {
        for yes in [
            "https://h/o/r.git",
            "https://h/o/r.git#main:dir",
            "http://h/r.git?branch=x",
            "git@github.com:o/r.git",
            "git@h:r",
            "ssh://git@h/r",
            "git://h/r",
        ] {
            assert!(is_git_url(yes), "{yes}");
        }
        for no in ["https://h/o/r", "a.git", "./x@y:z", "github.com/o/r", "https://h/x.git/y", "user@host", "a@b://c"] {
            assert!(!is_git_url(no), "{no}");
        }
        assert!(is_http_url("https://h/file.tar.gz") && !is_http_url("https://h/r.git") && !is_http_url("file"));
    }

    #[test]
    fn fragment_and_query_say_the_same() {
        let fragment = GitRef::parse("https://h/r.git#v1:a/b").unwrap();
        let query = GitRef::parse("https://h/r.git?ref=v1&subdir=a%2Fb").unwrap();
        assert_eq!(fragment, query);
        assert_eq!((fragment.reference.as_deref(), fragment.subdir.as_deref()), (Some("v1"), Some("a/b")));
        let parse = |q: &str| GitRef::parse(&format!("https://h/r.git{q}"));
        assert_eq!(parse("?tag=v1").unwrap().reference.as_deref(), Some("refs/tags/v1"));
        assert_eq!(parse("?branch=refs/heads/x").unwrap().reference.as_deref(), Some("refs/heads/x"));
        assert_eq!(parse("?commit=abc").unwrap().reference.as_deref(), Some("abc"));
        assert_eq!(
            parse("?keep-git-dir&submodules=0").unwrap().source(),
            GitSource {
                remote: "https://h/r.git".into(),
                keep_git_dir: true,
                skip_submodules: true,
                ..GitSource::default()
            }
        );
    }

    #[test]
    fn nonsense_and_attacks_are_refused() {
        let error = |q: &str| GitRef::parse(&format!("https://h/r.git{q}")).unwrap_err().to_string();
        assert_eq!(error("?tag=a&branch=b"), r#"ref conflicts: "refs/tags/a" and "refs/heads/b""#);
        assert!(error("?x=1").starts_with("unexpected query \"x\""));
        assert_eq!(error("?ref="), r#"invalid value "" of query "ref" in a git URL"#);
        assert_eq!(error("#--upload-pack=x"), r#""--upload-pack=x" is not a git reference"#);
        assert_eq!(error("#main:../../etc"), r#""../../etc" is not a directory inside of the repository"#);
        assert!(error("?submodules=maybe").starts_with("invalid value"));
    }
}
