//! Git URLs in the forms of `docker build` and `ADD`: `URL[#ref[:subdir]]` and `URL?branch=…&subdir=…`.

/// A parsed git URL.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GitUrl {
    /// What `git` is given; may hold credentials.
    pub remote: String,
    /// Branch, tag, commit or full ref name.
    pub reference: Option<String>,
    /// Directory below the checkout's root.
    pub subdir: Option<String>,
    /// Commit (or the beginning of one) that the reference must lead to.
    pub checksum: Option<String>,
    /// `?keep-git-dir=`.
    pub keep_git_dir: Option<bool>,
    /// `?submodules=`.
    pub submodules: Option<bool>,
}

/// Why text is not a git URL that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GitUrlError {
    /// The reference could be taken for an option, or has characters that no ref has.
    #[error("{0:?} is not a usable git ref")]
    Reference(String),
    /// The directory leaves the checkout.
    #[error("{0:?} is not a directory inside a repository")]
    Subdir(String),
    /// The host or path could be taken for an option.
    #[error("{0:?} is not a usable git URL")]
    Remote(String),
    /// A query parameter is not known.
    #[error("unknown parameter {0:?} in a git URL: use ref, tag, branch, checksum, subdir, keep-git-dir or submodules")]
    Parameter(String),
    /// Two ways to name a ref, or a value that is not one.
    #[error("{0}")]
    Conflict(String),
}

/// Whether text is a git URL rather than a file's URL or a path: `git://`, `ssh://`, `user@host:path`, a path that ends in
/// `.git`, or the old `github.com/` short form.
pub fn is_git_url(text: &str) -> bool {
    let bare = text.split(['#', '?']).next().unwrap_or(text);
    if text.starts_with("git://") || text.starts_with("ssh://") || text.starts_with("github.com/") {
        return true;
    }
    if text.starts_with("http://") || text.starts_with("https://") {
        return bare.trim_end_matches('/').ends_with(".git");
    }
    is_scp_like(bare)
}

/// `user@host:path`, as ssh and git write it.
fn is_scp_like(text: &str) -> bool {
    let Some((user, rest)) = text.split_once('@') else { return false };
    let word = |s: &str| !s.is_empty() && s.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'));
    rest.split_once(':')
        .is_some_and(|(host, path)| word(user) && word(host) && !path.is_empty() && !path.starts_with("//"))
}

impl GitUrl {
    /// Parses and checks a git URL.
    pub fn parse(text: &str) -> Result<Self, GitUrlError> {
        let (url, fragment) = match text.split_once('#') {
            Some((url, fragment)) => (url, Some(fragment)),
            None => (text, None),
        };
        let (remote, query) = match url.split_once('?') {
            Some((remote, query)) => (remote, query),
            None => (url, ""),
        };
        let remote = match remote.strip_prefix("github.com/") {
            Some(path) => format!("https://github.com/{path}"),
            None => remote.to_owned(),
        };
        check_remote(&remote)?;
        let mut parsed = Self { remote, ..Self::default() };
        if let Some(fragment) = fragment.filter(|f| !f.is_empty()) {
            let (reference, subdir) = fragment.split_once(':').unwrap_or((fragment, ""));
            parsed.reference = Some(reference.to_owned()).filter(|r| !r.is_empty());
            parsed.subdir = Some(subdir.to_owned()).filter(|s| !s.is_empty());
        }
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            parsed.parameter(pair)?;
        }
        parsed.check()?;
        Ok(parsed)
    }

    fn parameter(&mut self, pair: &str) -> Result<(), GitUrlError> {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_decode(value);
        let flag = || match value.as_str() {
            "" | "1" | "true" => Ok(true),
            "0" | "false" => Ok(false),
            other => Err(GitUrlError::Conflict(format!("{key}={other}: use true or false"))),
        };
        let reference = match key {
            "ref" => value.clone(),
            "tag" => format!("refs/tags/{value}"),
            "branch" => format!("refs/heads/{value}"),
            "subdir" => {
                self.subdir = Some(value);
                return Ok(());
            }
            "checksum" | "commit" => {
                self.checksum = Some(value);
                return Ok(());
            }
            "keep-git-dir" => {
                self.keep_git_dir = Some(flag()?);
                return Ok(());
            }
            "submodules" => {
                self.submodules = Some(flag()?);
                return Ok(());
            }
            other => return Err(GitUrlError::Parameter(other.to_owned())),
        };
        if let Some(other) = &self.reference
            && *other != reference
        {
            return Err(GitUrlError::Conflict(format!("both {other} and {reference} are asked for")));
        }
        self.reference = Some(reference);
        Ok(())
    }

    fn check(&self) -> Result<(), GitUrlError> {
        if let Some(reference) = &self.reference {
            check_reference(reference)?;
        }
        if let Some(subdir) = &self.subdir
            && subdir.split('/').any(|part| part == "..")
        {
            return Err(GitUrlError::Subdir(subdir.clone()));
        }
        match &self.checksum {
            Some(c) if c.len() < 7 || !c.bytes().all(|b| b.is_ascii_hexdigit()) => {
                Err(GitUrlError::Conflict(format!("checksum {c:?} is not a commit: at least 7 hex digits")))
            }
            _ => Ok(()),
        }
    }
}

/// CVE-2019-13139: a ref must never be taken for an option.
pub(crate) fn check_reference(reference: &str) -> Result<(), GitUrlError> {
    let bad = reference.is_empty()
        || reference.starts_with('-')
        || reference.contains("..")
        || reference.chars().any(|c| c.is_control() || c.is_whitespace() || "~^:?*[\\".contains(c));
    if bad { Err(GitUrlError::Reference(reference.to_owned())) } else { Ok(()) }
}

fn check_remote(remote: &str) -> Result<(), GitUrlError> {
    let bad = || GitUrlError::Remote(crate::redact_url(remote));
    let host = match remote.split_once("://") {
        Some(("http" | "https" | "git" | "ssh", rest)) => {
            let authority = rest.split('/').next().unwrap_or_default();
            authority.rsplit_once('@').map_or(authority, |(_, h)| h)
        }
        Some(_) => return Err(bad()),
        None if is_scp_like(remote) => remote.split(['@', ':']).nth(1).unwrap_or_default(),
        None => return Err(bad()),
    };
    let user = remote.trim_start_matches("ssh://");
    if host.is_empty()
        || host.starts_with('-')
        || user.starts_with('-')
        || remote.chars().any(|c| c.is_control() || c == ' ')
    {
        return Err(bad());
    }
    Ok(())
}

fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = bytes.get(i + 1..i + 3).and_then(|h| std::str::from_utf8(h).ok());
        match (bytes[i], hex.and_then(|h| u8::from_str_radix(h, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                i += 3;
            }
            (byte, _) => {
                out.push(byte);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let u = GitUrl::parse("https://host/o/r.git#main:sub/dir").unwrap();
        assert_eq!((u.reference.as_deref(), u.subdir.as_deref()), (Some("main"), Some("sub/dir")));
        let u = GitUrl::parse("https://host/o/r.git?branch=a%2Fb&subdir=x&checksum=0123456&keep-git-dir=1").unwrap();
        assert_eq!(u.reference.as_deref(), Some("refs/heads/a/b"));
        assert_eq!((u.keep_git_dir, u.checksum.as_deref()), (Some(true), Some("0123456")));
        assert_eq!(GitUrl::parse("github.com/o/r").unwrap().remote, "https://github.com/o/r");
        assert_eq!(GitUrl::parse("git@host:o/r.git#v1").unwrap().remote, "git@host:o/r.git");
    }

    #[test]
    fn what_is_git() {
        for yes in ["https://h/a.git", "https://h/a.git#x", "git@h:a/b", "ssh://git@h/a", "git://h/a", "github.com/a/b"]
        {
            assert!(is_git_url(yes), "{yes}");
        }
        for no in ["https://h/a.tar.gz", ".", "dir", "http://h/", "a@b", "./x@y:z/.git"] {
            assert!(!is_git_url(no), "{no}");
        }
    }

    #[test]
    fn cve_2019_13139_and_others_options_and_escapes_are_refused() {
        for bad in [
            "https://h/a.git#--upload-pack=sh",
            "https://h/a.git#-x:y",
            "https://h/a.git#main:../..",
            "https://h/a.git?subdir=a/../../b",
            "https://h/a.git#a..b",
            "ssh://-oProxyCommand=x/a.git",
            "git@-oProxyCommand:x",
            "ext::sh -c x",
            "file:///etc/a.git",
            "https://h/a.git?evil=1",
            "https://h/a.git?branch=a&tag=b",
        ] {
            assert!(GitUrl::parse(bad).is_err(), "{bad}");
        }
    }
}
