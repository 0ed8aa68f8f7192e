//! Git URLs of the build context, of `ADD` and of `--build-context`: `URL#ref:subdir` and `URL?branch=…&subdir=…`.
//!
//! What could be taken for an option of `git` or `ssh`, and protocols that run programs or read local files, are refused
//! here already, with the place in the Dockerfile (CVE-2019-13139).

use crate::GitSource;

/// A git URL, taken apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GitUrl {
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
pub enum GitUrlError {
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
    /// Not `http`, `https`, `git` or `ssh`, or a host or user that could be taken for an option.
    #[error("{0:?} is not a git URL that can be used: expected https://, http://, ssh://, git:// or user@host:path")]
    Remote(String),
}

/// The URL without user name and password.
pub fn redact_url(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (authority, path) = match rest.find(['/', '?', '#']) {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}

/// Whether a context is a git repository: what [`is_git_url`] says, and `github.com/…`, which `docker build` takes for one
/// where `ADD` takes it for a path.
pub fn is_git_context(text: &str) -> bool {
    is_git_url(text) || text.starts_with("github.com/")
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
    is_scp_like(bare)
}

/// `user@host:path`, as ssh and git write it.
fn is_scp_like(text: &str) -> bool {
    let word = |s: &str| !s.is_empty() && s.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'));
    let parts = text.split_once('@').and_then(|(user, rest)| Some((user, rest.split_once(':')?)));
    parts.is_some_and(|(user, (host, path))| word(user) && word(host) && !path.is_empty() && !path.starts_with("//"))
}

/// Whether text is the URL of a file.
pub fn is_http_url(text: &str) -> bool {
    (text.starts_with("http://") || text.starts_with("https://")) && !is_git_url(text)
}

impl GitUrl {
    /// Takes a git URL apart.
    pub fn parse(text: &str) -> Result<Self, GitUrlError> {
        let (url, fragment) = text.split_once('#').unwrap_or((text, ""));
        let (remote, query) = url.split_once('?').unwrap_or((url, ""));
        let (reference, subdir) = fragment.split_once(':').unwrap_or((fragment, ""));
        let remote = match remote.strip_prefix("github.com/") {
            Some(path) => format!("https://github.com/{path}"),
            None => remote.to_owned(),
        };
        check_remote(&remote)?;
        let some = |s: &str| Some(s.to_owned()).filter(|s| !s.is_empty());
        let mut parsed = Self { remote, reference: some(reference), subdir: some(subdir), ..Self::default() };
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

    fn query(&mut self, pair: &str) -> Result<(), GitUrlError> {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_decode(value);
        let bad = || GitUrlError::Value { key: key.to_owned(), value: value.clone() };
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
            other => return Err(GitUrlError::Query(other.to_owned())),
        }
        Ok(())
    }

    fn check(&self) -> Result<(), GitUrlError> {
        if let Some(reference) = &self.reference
            && !is_reference(reference)
        {
            return Err(GitUrlError::Reference(reference.clone()));
        }
        match (&self.subdir, &self.checksum) {
            (Some(dir), _) if dir.split('/').any(|p| p == "..") => Err(GitUrlError::Subdir(dir.clone())),
            (_, Some(sum)) if sum.len() < 7 || !sum.bytes().all(|b| b.is_ascii_hexdigit()) => {
                Err(GitUrlError::Value { key: "checksum".to_owned(), value: sum.clone() })
            }
            _ => Ok(()),
        }
    }
}

/// CVE-2019-13139: whether git can take the text for nothing but a ref or commit.
pub fn is_reference(text: &str) -> bool {
    let odd = |c: char| c.is_control() || c.is_whitespace() || "~^:?*[\\".contains(c);
    !(text.is_empty() || text.starts_with('-') || text.contains("..") || text.chars().any(odd))
}

fn check_remote(remote: &str) -> Result<(), GitUrlError> {
    let (user, host) = match remote.split_once("://") {
        Some(("http" | "https" | "git" | "ssh", rest)) => {
            let authority = rest.split('/').next().unwrap_or_default();
            authority.rsplit_once('@').unwrap_or(("", authority))
        }
        None if is_scp_like(remote) => {
            let (user, rest) = remote.split_once('@').unwrap_or_default();
            (user, rest.split(':').next().unwrap_or_default())
        }
        _ => ("", ""),
    };
    let bad = host.is_empty() || host.starts_with('-') || user.starts_with('-');
    if bad || remote.chars().any(|c| c.is_control() || c == ' ') {
        return Err(GitUrlError::Remote(redact_url(remote)));
    }
    Ok(())
}

/// As Go reads it, which BuildKit is written in.
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

fn full_name(prefix: &str, name: &str) -> String {
    if name.starts_with(prefix) { name.to_owned() } else { format!("{prefix}{name}") }
}

fn set(slot: &mut Option<String>, what: &'static str, value: String) -> Result<(), GitUrlError> {
    match slot {
        Some(first) if *first != value => Err(GitUrlError::Conflict { what, first: first.clone(), second: value }),
        _ => {
            *slot = Some(value);
            Ok(())
        }
    }
}

/// `%41` as `A`; what is not two hexadecimal digits stays as it is.
pub fn percent_decode(text: &str) -> String {
    let digit = |b: Option<&u8>| b.and_then(|b| char::from(*b).to_digit(16));
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = match (first, digit(after.first()), digit(after.get(1))) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                &after[2..]
            }
            _ => {
                out.push(first);
                after
            }
        };
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
        let fragment = GitUrl::parse("https://h/r.git#v1:a/b").unwrap();
        let query = GitUrl::parse("https://h/r.git?ref=v1&subdir=a%2Fb").unwrap();
        assert_eq!(fragment, query);
        assert_eq!((fragment.reference.as_deref(), fragment.subdir.as_deref()), (Some("v1"), Some("a/b")));
        let parse = |q: &str| GitUrl::parse(&format!("https://h/r.git{q}"));
        assert_eq!(parse("?tag=v1").unwrap().reference.as_deref(), Some("refs/tags/v1"));
        assert_eq!(parse("?branch=refs/heads/x").unwrap().reference.as_deref(), Some("refs/heads/x"));
        assert_eq!(parse("?commit=abcdef0").unwrap().reference.as_deref(), Some("abcdef0"));
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
    fn short_forms_of_contexts() {
        assert_eq!(GitUrl::parse("github.com/o/r#v1").unwrap().remote, "https://github.com/o/r");
        assert!(is_git_context("github.com/o/r") && !is_git_context("github.com") && is_git_context("git@h:r"));
        assert_eq!(GitUrl::parse("git@host:o/r.git#v1").unwrap().remote, "git@host:o/r.git");
        assert_eq!(GitUrl::parse("https://u:p@h/r.git").unwrap().remote, "https://u:p@h/r.git");
    }

    #[test]
    fn cve_2023_26054_credentials_are_cut_from_urls() {
        assert_eq!(redact_url("https://user:token@host/o/r.git#main"), "https://host/o/r.git#main");
        assert_eq!(redact_url("https://a@b@host/x"), "https://host/x");
        assert_eq!(redact_url("git@host:o/r.git"), "git@host:o/r.git");
    }

    #[test]
    fn cve_2019_13139_options_of_git_and_ssh_are_refused() {
        for bad in [
            "https://h/a.git#--upload-pack=sh",
            "https://h/a.git#-x:y",
            "https://h/a.git?ref=-x",
            "https://h/a.git#a..b",
            "ssh://-oProxyCommand=x/a.git",
            "ssh://-oProxyCommand=x@h/a.git",
            "git@-oProxyCommand:x",
            "ext::sh -c x",
            "file:///etc/a.git",
            "/etc/a.git",
            "https://h/a.git?upload-pack=sh",
        ] {
            assert!(GitUrl::parse(bad).is_err(), "{bad}");
        }
        // What only looks odd is a branch as any other.
        for good in ["feature/x-y", "v1.0-rc.1", "refs/pull/1/head", "a@b"] {
            assert_eq!(GitUrl::parse(&format!("https://h/r.git#{good}")).unwrap().reference.as_deref(), Some(good));
        }
    }

    #[test]
    fn cve_2026_33748_directories_outside_are_refused() {
        for bad in ["#main:../..", "#main:a/../../b", "?subdir=a/../../b", "?subdir=%2e%2e/x"] {
            assert!(GitUrl::parse(&format!("https://h/a.git{bad}")).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_digits_are_decoded() {
        assert_eq!(percent_decode("a%2Fb%e2%98%BA%"), "a/b☺%");
        assert_eq!(percent_decode("%+5%5%zz%4"), "%+5%5%zz%4");
    }

    #[test]
    fn nonsense_is_refused() {
        let error = |q: &str| GitUrl::parse(&format!("https://h/r.git{q}")).unwrap_err().to_string();
        assert_eq!(error("?tag=a&branch=b"), r#"ref conflicts: "refs/tags/a" and "refs/heads/b""#);
        assert!(error("?x=1").starts_with("unexpected query \"x\""));
        assert_eq!(error("?ref="), r#"invalid value "" of query "ref" in a git URL"#);
        assert_eq!(error("#--upload-pack=x"), r#""--upload-pack=x" is not a git reference"#);
        assert!(error("?checksum=abc").starts_with("invalid value \"abc\" of query \"checksum\""));
        assert_eq!(error("#main:../../etc"), r#""../../etc" is not a directory inside of the repository"#);
        assert!(error("?submodules=maybe").starts_with("invalid value"));
    }
}
