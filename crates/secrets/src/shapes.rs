//! Credentials that can be told by their shape. A hit is a warning: test keys and documentation have these shapes too.

/// A kind of credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shape {
    /// A PEM block with a private key.
    PrivateKey,
    /// An AWS access key ID.
    AwsAccessKey,
    /// A GitHub token.
    GithubToken,
    /// A GitLab token.
    GitlabToken,
    /// A Slack token.
    SlackToken,
    /// A Google API key.
    GoogleApiKey,
    /// An npm token.
    NpmToken,
}

impl Shape {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::PrivateKey,
        Self::AwsAccessKey,
        Self::GithubToken,
        Self::GitlabToken,
        Self::SlackToken,
        Self::GoogleApiKey,
        Self::NpmToken,
    ];

    /// For messages.
    pub fn describe(self) -> &'static str {
        match self {
            Self::PrivateKey => "a private key",
            Self::AwsAccessKey => "an AWS access key",
            Self::GithubToken => "a GitHub token",
            Self::GitlabToken => "a GitLab token",
            Self::SlackToken => "a Slack token",
            Self::GoogleApiKey => "a Google API key",
            Self::NpmToken => "an npm token",
        }
    }
}

/// Bytes after the prefix that a shape may have to look at.
pub(crate) const LOOKAHEAD: usize = 160;

/// The prefix of each shape, and how many characters of its alphabet must follow.
pub(crate) const PREFIXES: [(&str, Shape, usize); 15] = [
    ("-----BEGIN PRIVATE KEY-----", Shape::PrivateKey, 40),
    ("-----BEGIN RSA PRIVATE KEY-----", Shape::PrivateKey, 40),
    ("-----BEGIN EC PRIVATE KEY-----", Shape::PrivateKey, 40),
    ("-----BEGIN DSA PRIVATE KEY-----", Shape::PrivateKey, 40),
    ("-----BEGIN OPENSSH PRIVATE KEY-----", Shape::PrivateKey, 40),
    ("AKIA", Shape::AwsAccessKey, 16),
    ("ASIA", Shape::AwsAccessKey, 16),
    ("ghp_", Shape::GithubToken, 36),
    ("gho_", Shape::GithubToken, 36),
    ("ghs_", Shape::GithubToken, 36),
    ("github_pat_", Shape::GithubToken, 60),
    ("glpat-", Shape::GitlabToken, 20),
    ("xoxb-", Shape::SlackToken, 30),
    ("AIzaSy", Shape::GoogleApiKey, 33),
    ("npm_", Shape::NpmToken, 36),
];

/// Whether what stands before and after a prefix makes it the shape.
pub(crate) fn confirms(shape: Shape, count: usize, before: Option<u8>, after: &[u8]) -> bool {
    if shape == Shape::PrivateKey {
        let body = after.strip_prefix(b"\r").unwrap_or(after);
        let Some(body) = body.strip_prefix(b"\n") else { return false };
        let base64 = |b: &&u8| b.is_ascii_alphanumeric() || matches!(**b, b'+' | b'/' | b'=');
        return body.iter().take_while(base64).count() >= count;
    }
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    if before.is_some_and(word) {
        return false;
    }
    let in_alphabet = |b: &&u8| match shape {
        Shape::AwsAccessKey => b.is_ascii_uppercase() || b.is_ascii_digit(),
        Shape::GithubToken => word(**b),
        Shape::NpmToken => b.is_ascii_alphanumeric(),
        _ => word(**b) || **b == b'-',
    };
    let run = after.iter().take_while(in_alphabet).count();
    match shape {
        Shape::AwsAccessKey | Shape::NpmToken => run == count,
        _ => run >= count,
    }
}
