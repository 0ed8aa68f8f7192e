//! Credentials, which never show themselves.

use std::fmt;

/// Text that `Debug` and `Display` do not show.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself: for request headers and helper input only.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// How to prove who we are to a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// User and password (or personal access token).
    Basic {
        /// User name.
        username: String,
        /// Password.
        password: Secret,
    },
    /// An OAuth2 refresh token, exchanged at the registry's token server.
    IdentityToken(Secret),
    /// A bearer token sent as it is.
    Bearer(Secret),
}

impl Credential {
    /// A user name and password.
    pub fn basic(username: impl Into<String>, password: impl Into<String>) -> Self {
        Self::Basic { username: username.into(), password: Secret::new(password) }
    }

    /// The user name, if it has one.
    pub fn username(&self) -> Option<&str> {
        match self {
            Self::Basic { username, .. } => Some(username),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_secret() {
        let shown =
            format!("{:?} {:?}", Credential::basic("me", "hunter2"), Credential::Bearer(Secret::new("hunter2")));
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
