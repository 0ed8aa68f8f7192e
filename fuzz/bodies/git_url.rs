//! Any text as a git URL: no panic; what is accepted gives git nothing that it takes for an option, a local path or a
//! program, and no directory outside of the checkout.

use kiln_graph::{GitUrl, is_git_context, is_reference, redact_url};

/// One input.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = is_git_context(text);
    let shown = redact_url(text);
    if let Some((_, rest)) = shown.split_once("://") {
        assert!(!rest.split(['/', '?', '#']).next().unwrap_or_default().contains('@'), "{shown:?}");
    }
    let Ok(url) = GitUrl::parse(text) else { return };
    let source = url.source();
    let remote = &source.remote;
    assert!(!remote.starts_with('-') && !remote.chars().any(char::is_control), "{remote:?}");
    let scheme = remote.split_once("://").map(|(scheme, _)| scheme);
    assert!(scheme.is_none_or(|s| ["http", "https", "git", "ssh"].contains(&s)), "{remote:?}");
    assert!(scheme.is_some() || remote.contains('@') && remote.contains(':'), "{remote:?} is a path");
    assert!(source.reference.as_deref().is_none_or(is_reference), "{source:?}");
    let subdir = source.subdir.as_deref().unwrap_or_default();
    assert!(subdir.split('/').all(|part| part != ".."), "{subdir:?}");
}
