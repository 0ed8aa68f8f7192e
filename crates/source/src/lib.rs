//! Contexts and sources that are fetched: git repositories and files by HTTP.
//!
//! Invariants:
//! - a URL that reaches a message or a record has no user information in it ([`redact_url`]);
//! - `git` runs without the user's configuration, without hooks, without prompts, without local and `ext::` protocols, and
//!   nothing that a user or repository names can become one of its options;
//! - what a server sends is bounded by a size that the caller gives.

mod git;
mod http;

pub use git::{Checkout, GitAuth, GitError, GitFetcher, url_credentials};
pub use http::{HttpClient, HttpError, HttpFile, HttpOptions};
pub use kiln_graph::redact_url;
