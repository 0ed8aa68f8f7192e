//! Searches for secrets in the bytes that reach an image, and hides them in logs.
//!
//! - [`Searcher`] knows a build's secrets in every encoding in which a build would write them by mistake: plain (with any
//!   line ends, and in UTF-16), base64 (both alphabets, any alignment), hex (both wrapped in lines, too), percent-encoded and
//!   JSON-escaped as any encoder does it; tokens within a secret; and the shapes of well-known credentials. What is
//!   compressed or encrypted inside a file is not looked into.
//! - [`Scan`] is one pass over a stream; a hit is found wherever the stream is cut into chunks.
//! - [`Redactor`] replaces secrets in a process's output.
//!
//! Invariants: no I/O; a secret's bytes never appear in `Debug` output, errors or hits.

mod encode;
mod pem;
mod redact;
mod scan;
mod shapes;
mod spell;

pub use encode::Encoding;
pub use redact::Redactor;
pub use scan::{Hit, HitKind, Scan, Searcher};
pub use shapes::Shape;

use std::fmt;

/// Shorter values are not searched for: they would be found everywhere by chance.
pub const SHORTEST: usize = 4;

/// What a secret is, which decides how a hit is explained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// `--secret`.
    Secret,
    /// A key file given to `--ssh`.
    SshKey,
    /// A build argument whose name looks like a credential's.
    BuildArg,
    /// A registry or git token that the build used.
    Token,
}

/// A value that must not reach an image.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    /// How the user named it: the id of `--secret`, the name of the build argument, a host.
    pub name: String,
    /// Where it came from.
    pub origin: Origin,
    value: Vec<u8>,
    /// As it was given.
    was_empty: bool,
    public: Vec<u8>,
}

impl Secret {
    /// A secret. White space around it does not count: files end with a newline, and the copy in an image may not.
    /// Nor do certificates and public keys in it.
    pub fn new(name: impl Into<String>, origin: Origin, value: impl Into<Vec<u8>>) -> Self {
        let value = value.into();
        let was_empty = value.trim_ascii().is_empty();
        let value = pem::private_part(value).trim_ascii().to_vec();
        Self { name: name.into(), origin, value, was_empty, public: Vec::new() }
    }

    /// Says what of it everybody may see: the public key that is in the file of a private one.
    pub fn with_public_part(mut self, public: impl Into<Vec<u8>>) -> Self {
        self.public = public.into();
        self
    }

    /// Whether it is long enough to be searched for.
    pub fn is_searchable(&self) -> bool {
        self.value.len() >= SHORTEST
    }

    /// Why it can't be searched for, if that may surprise.
    pub fn why_not_searchable(&self) -> Option<String> {
        match self.value.len() {
            0 => self.was_empty.then(|| format!("secret {:?} is empty", self.name)),
            1..SHORTEST => {
                Some(format!("secret {:?} is too short to be searched for in the result, or hidden in logs", self.name))
            }
            _ => None,
        }
    }

    /// Whether files that have nothing to do with it may hold it: it is short, a word, or a number.
    pub fn is_guessable(&self) -> bool {
        let one_kind = |test: fn(&u8) -> bool| self.value.len() <= 12 && self.value.iter().all(test);
        self.value.len() < 8
            || one_kind(u8::is_ascii_lowercase)
            || one_kind(u8::is_ascii_uppercase)
            || one_kind(u8::is_ascii_digit)
    }

    /// Hands its name and value to a hash function, field by field.
    pub fn fingerprint(&self, field: &mut dyn FnMut(&[u8])) {
        field(self.name.as_bytes());
        field(&self.value);
    }

    pub(crate) fn value(&self) -> &[u8] {
        &self.value
    }

    pub(crate) fn public(&self) -> &[u8] {
        &self.public
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({:?}, {:?}, {} bytes)", self.name, self.origin, self.value.len())
    }
}

/// Whether a build argument or environment variable of this name usually holds a credential. The words are those of
/// BuildKit's `SecretsUsedInArgOrEnv` check.
pub fn looks_like_credential(name: &str) -> bool {
    const WORDS: [&str; 9] =
        ["apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret"];
    const ALLOWED: [&str; 2] = ["public", "cache"];
    let words: Vec<String> = name.to_ascii_lowercase().split(['_', '-', '.']).map(str::to_owned).collect();
    let has = |list: &[&str]| words.iter().any(|w| list.contains(&w.as_str()));
    (has(&WORDS) || has(&["token", "pwd", "pass"])) && !has(&ALLOWED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_look_like_credentials() {
        for name in ["SSH_PRIVATE_KEY", "npm_token", "DB_PASSWORD", "AWS_SECRET_ACCESS_KEY"] {
            assert!(looks_like_credential(name), "{name}");
        }
        for name in ["VERSION", "PUBLIC_KEY", "MONKEY", "KEYBOARD", "AUTHOR"] {
            assert!(!looks_like_credential(name), "{name}");
        }
    }

    #[test]
    fn words_and_numbers_are_guessable() {
        let guessable = |value: &str| Secret::new("s", Origin::Secret, value).is_guessable();
        assert!(["test", "postgres", "12345678", "abc123"].iter().all(|v| guessable(v)));
        assert!(!["hunter22", "correcthorsebattery", "p@ssword"].iter().any(|v| guessable(v)));
    }

    #[test]
    fn debug_output_does_not_show_the_value() {
        assert!(!format!("{:?}", Secret::new("id", Origin::Secret, "hunter22")).contains("hunter"));
    }
}
