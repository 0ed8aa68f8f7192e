//! Contexts and sources that are fetched: git repositories and files by HTTP.
//!
//! Invariants:
//! - a URL that reaches a message or a record has no user information in it ([`redact_url`]);
//! - `git` runs without the user's configuration, without hooks, without prompts, without local and `ext::` protocols, and
//!   nothing that a user or repository names can become one of its options;
//! - what a server sends is bounded by a size that the caller gives.

mod git;
mod git_url;
mod http;

pub use git::{Checkout, GitAuth, GitError, GitFetcher};
pub use git_url::{GitUrl, GitUrlError, is_git_url};
pub use http::{HttpClient, HttpError, HttpFile, HttpOptions, is_http_url};

/// The URL without user name, password and query values that look like tokens.
pub fn redact_url(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (authority, path) = match rest.find(['/', '?', '#']) {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cve_2023_26054_credentials_are_cut_from_urls() {
        assert_eq!(redact_url("https://user:token@host/o/r.git#main"), "https://host/o/r.git#main");
        assert_eq!(redact_url("https://a@b@host/x"), "https://host/x");
        assert_eq!(redact_url("git@host:o/r.git"), "git@host:o/r.git");
    }
}
