//! What `--build-context name=VALUE` stands for.

use kiln_graph::{ImageSource, LocalSource, OciLayoutSource, ResolveMode, SourceOp};

/// Why a context can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContextError {
    /// The image's name is malformed.
    #[error(transparent)]
    Reference(#[from] kiln_oci::ReferenceError),
    /// The git URL is malformed.
    #[error(transparent)]
    Git(#[from] kiln_graph::GitUrlError),
    /// The digest of an OCI layout is malformed.
    #[error(transparent)]
    Digest(#[from] kiln_oci::DigestError),
    /// No kind of context begins so.
    #[error(
        "unsupported context {0:?}: expected a directory, docker-image://, oci-layout://, oci-archive://, docker-archive://, \
         deb://, a git URL or an http(s) URL"
    )]
    Scheme(String),
}

/// The source behind `--build-context name=spec`; `None` is scratch. A directory becomes the local source `name`.
pub fn context_source(name: &str, spec: &str, resolve: ResolveMode) -> Result<Option<SourceOp>, ContextError> {
    if let Some(reference) = spec.strip_prefix("docker-image://") {
        if reference == "scratch" {
            return Ok(None);
        }
        let reference = reference.parse::<kiln_oci::Reference>()?.with_default_tag();
        return Ok(Some(SourceOp::Image(ImageSource { reference, resolve })));
    }
    for scheme in ["oci-layout://", "oci-archive://", "docker-archive://"] {
        if let Some(path) = spec.strip_prefix(scheme) {
            return Ok(Some(SourceOp::OciLayout(layout(path)?)));
        }
    }
    if spec.starts_with("deb://") {
        return Ok(Some(SourceOp::Deb(spec.to_owned())));
    }
    if kiln_graph::is_git_context(spec) {
        return Ok(Some(SourceOp::Git(kiln_graph::GitUrl::parse(spec)?.source())));
    }
    if spec.starts_with("http://") || spec.starts_with("https://") {
        let http = kiln_graph::HttpSource {
            url: spec.to_owned(),
            filename: Some("context".to_owned()),
            ..kiln_graph::HttpSource::default()
        };
        return Ok(Some(SourceOp::Http(http)));
    }
    let scheme = spec.split_once("://").map(|(scheme, _)| scheme);
    if scheme.is_some_and(|s| s != "local" && s.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '+')) {
        return Err(ContextError::Scheme(spec.to_owned()));
    }
    Ok(Some(SourceOp::Local(LocalSource { name: name.to_owned(), ..LocalSource::default() })))
}

/// `path[:tag][@digest]`; a colon in a directory's name is not a tag.
fn layout(text: &str) -> Result<OciLayoutSource, ContextError> {
    let (rest, digest) = match text.rsplit_once('@') {
        Some((rest, digest)) if digest.contains(':') && !digest.contains('/') => (rest, Some(digest.parse()?)),
        _ => (text, None),
    };
    let (path, tag) = match rest.rsplit_once(':') {
        Some((path, tag)) if !tag.is_empty() && !tag.contains('/') => (path, Some(tag.to_owned())),
        _ => (rest, None),
    };
    Ok(OciLayoutSource { path: path.to_owned(), tag, digest })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_context() {
        let id = |spec: &str| match context_source("base", spec, ResolveMode::Default).unwrap() {
            Some(source) => source.identifier(),
            None => "scratch".to_owned(),
        };
        assert_eq!(id("docker-image://alpine"), "docker-image://docker.io/library/alpine:latest");
        assert_eq!(id("docker-image://scratch"), "scratch");
        assert_eq!(id("oci-layout:///a/b"), "oci-layout:///a/b");
        assert_eq!(id("oci-layout:///a/b:1.0"), "oci-layout:///a/b:1.0");
        let digest = kiln_oci::Digest::of(b"");
        assert_eq!(id(&format!("oci-layout://./x@y@{digest}")), format!("oci-layout://./x@y@{digest}"));
        assert_eq!(id("docker-archive://x.tar:app"), "oci-layout://x.tar:app");
        assert_eq!(id("deb://bookworm?packages=a"), "deb://bookworm?packages=a");
        assert_eq!(id("https://h/r.git#v1"), "https://h/r.git#v1");
        assert_eq!(id("https://h/x.tar"), "https://h/x.tar");
        assert_eq!(id("../dir"), "local://base");
        assert_eq!(id("/a:b"), "local://base");
    }

    #[test]
    fn what_is_not_a_context() {
        let error = |spec: &str| context_source("base", spec, ResolveMode::Default).unwrap_err().to_string();
        assert!(error("docker-image://A b").contains("not an image name"));
        assert!(error("oci-layout:///x@sha256:1").contains("not a digest"));
        assert!(error("ftp://x").starts_with("unsupported context \"ftp://x\""));
    }
}
