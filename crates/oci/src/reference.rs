//! Image names: `[registry/]repository[:tag][@digest]`, with Docker Hub's short forms (distribution/reference).

use std::fmt;
use std::str::FromStr;

use crate::{Digest, DigestError};

/// A fully qualified image name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a string is not an image name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// The repository has upper-case letters.
    #[error("image name {0:?} has upper-case letters: repository names are lower-case")]
    UpperCase(String),
    /// It does not follow the grammar.
    #[error("{0:?} is not an image name: expected [registry/]name[:tag][@sha256:…]")]
    Malformed(String),
    /// The part after `@` is not a digest.
    #[error(transparent)]
    Digest(#[from] DigestError),
}

/// The registry that short names mean.
const HUB: &str = "docker.io";

impl Reference {
    /// `docker.io`, `localhost:5000`, ….
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// `library/alpine`, `team/app`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag as written.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest as written.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The tag to ask for: the one written, or `latest` where there is neither tag nor digest.
    pub fn tag_or_latest(&self) -> Option<&str> {
        match (&self.tag, &self.digest) {
            (Some(tag), _) => Some(tag),
            (None, None) => Some("latest"),
            (None, Some(_)) => None,
        }
    }

    /// The same name with `:latest` written out where there is neither tag nor digest.
    pub fn with_default_tag(mut self) -> Self {
        self.tag = self.tag_or_latest().map(str::to_owned);
        self
    }

    /// The same repository, with another tag and no digest.
    pub fn with_tag(&self, tag: &str) -> Result<Self, ReferenceError> {
        if !is_tag(tag) {
            return Err(ReferenceError::Malformed(tag.chars().take(200).collect()));
        }
        Ok(Self { tag: Some(tag.to_owned()), digest: None, ..self.clone() })
    }

    /// The same repository, by digest.
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// `registry/repository`, without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The name as docker shows it: without `docker.io/library/`, unless it would then be another one.
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        let start = if self.registry != HUB {
            0
        } else {
            match self.repository.split_once('/') {
                Some(("library", name)) if !name.contains('/') => HUB.len() + "/library/".len(),
                Some((first, _)) if is_registry(first) => 0,
                _ => HUB.len() + "/".len(),
            }
        };
        full[start..].to_owned()
    }

    /// [`name`](Self::name) as docker shows it.
    pub fn familiar_name(&self) -> String {
        Self { tag: None, digest: None, ..self.clone() }.familiar()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(s: &str) -> Result<Self, ReferenceError> {
        let shown = || s.chars().take(300).collect::<String>();
        let (rest, digest) = match s.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse()?)),
            None => (s, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|t| !is_tag(t)) {
            return Err(ReferenceError::Malformed(shown()));
        }
        let (registry, path) = match name.split_once('/') {
            Some((first, path)) if is_registry(first) => (first, path.to_owned()),
            _ => (HUB, name.to_owned()),
        };
        let registry = if registry == "index.docker.io" { HUB } else { registry };
        let repository = if registry == HUB && !path.contains('/') { format!("library/{path}") } else { path };
        if !is_host(registry) || repository.len() > 255 || !repository.split('/').all(is_component) {
            let lower = repository.to_lowercase();
            return Err(if lower != repository && lower.split('/').all(is_component) {
                ReferenceError::UpperCase(shown())
            } else {
                ReferenceError::Malformed(shown())
            });
        }
        Ok(Self { registry: registry.to_owned(), repository, tag: tag.map(str::to_owned), digest })
    }
}

/// Whether the first path component names a registry rather than a part of the repository.
fn is_registry(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost" || first.chars().any(|c| c.is_ascii_uppercase())
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (host, None),
    };
    let bracketed = name.strip_prefix('[').and_then(|n| n.strip_suffix(']'));
    let name_ok = match bracketed {
        Some(v6) => !v6.is_empty() && v6.chars().all(|c| c.is_ascii_hexdigit() || c == ':'),
        None => name.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        }),
    };
    name_ok && port.is_none_or(|p| p.parse::<u16>().is_ok())
}

fn is_tag(tag: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (1..=128).contains(&tag.len()) && tag.starts_with(word) && tag.chars().all(|c| word(c) || matches!(c, '.' | '-'))
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(part: &str) -> bool {
    let alnum = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    part.starts_with(alnum)
        && part.ends_with(alnum)
        && part.split(alnum).all(|sep| matches!(sep, "" | "." | "_" | "__") || sep.chars().all(|c| c == '-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_mean_docker_hub() {
        let full = |s: &str| s.parse::<Reference>().map(|r| r.to_string());
        assert_eq!(full("alpine").unwrap(), "docker.io/library/alpine");
        assert_eq!(full("team/app:1").unwrap(), "docker.io/team/app:1");
        assert_eq!(full("localhost/app").unwrap(), "localhost/app");
        assert_eq!(full("127.0.0.1:5000/a/b:x").unwrap(), "127.0.0.1:5000/a/b:x");
        assert_eq!(full("index.docker.io/alpine").unwrap(), "docker.io/library/alpine");
        assert_eq!("alpine".parse::<Reference>().unwrap().with_default_tag().familiar(), "alpine:latest");
    }

    #[test]
    fn familiar_names_mean_the_same() {
        for (full, short) in [
            ("docker.io/library/alpine:1", "alpine:1"),
            ("docker.io/team/app", "team/app"),
            ("docker.io/library/library/app", "library/library/app"),
            ("docker.io/a.b/c", "docker.io/a.b/c"),
            ("docker.io/localhost/c", "docker.io/localhost/c"),
            ("localhost/c", "localhost/c"),
        ] {
            let reference: Reference = full.parse().unwrap();
            assert_eq!(reference.familiar(), short);
            assert_eq!(short.parse::<Reference>().unwrap(), reference);
        }
    }

    #[test]
    fn malformed_names_are_refused() {
        for bad in
            ["", "/a", "a/", "a//b", "a:", ":x", "a:b:c", "-a", "a..b", "a@sha256:1", "a b", "../../etc", "a:x/.."]
        {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?}");
        }
        assert!(matches!("team/App".parse::<Reference>(), Err(ReferenceError::UpperCase(_))));
    }
}
