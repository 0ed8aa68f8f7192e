//! Credentials that can be told by their shape. A hit is a warning: test keys and documentation have these shapes too.

/// A kind of credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shape {
    /// A PEM block with a private key.
    PrivateKey,
    /// An AWS access key ID.
    AwsAccessKey,
    /// The key of an Azure storage account.
    AzureAccountKey,
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
    /// A Stripe key.
    StripeKey,
}

impl Shape {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::PrivateKey,
        Self::AwsAccessKey,
        Self::AzureAccountKey,
        Self::GithubToken,
        Self::GitlabToken,
        Self::SlackToken,
        Self::GoogleApiKey,
        Self::NpmToken,
        Self::StripeKey,
    ];

    /// For messages.
    pub fn describe(self) -> &'static str {
        match self {
            Self::PrivateKey => "a private key",
            Self::AwsAccessKey => "an AWS access key",
            Self::AzureAccountKey => "an Azure storage key",
            Self::GithubToken => "a GitHub token",
            Self::GitlabToken => "a GitLab token",
            Self::SlackToken => "a Slack token",
            Self::GoogleApiKey => "a Google API key",
            Self::NpmToken => "an npm token",
            Self::StripeKey => "a Stripe key",
        }
    }
}

/// Bytes after the prefix that a shape may have to look at.
pub(crate) const LOOKAHEAD: usize = 160;

/// The prefix of each shape, and how many characters of its alphabet must follow.
pub(crate) const PREFIXES: [(&str, Shape, usize); 19] = [
    ("-----BEGIN PRIVATE KEY-----", Shape::PrivateKey, 40),
    ("-----BEGIN RSA PRIVATE KEY-----", Shape::PrivateKey, 40),
    ("-----BEGIN EC PRIVATE KEY-----", Shape::PrivateKey, 40),
    ("-----BEGIN DSA PRIVATE KEY-----", Shape::PrivateKey, 40),
    ("-----BEGIN OPENSSH PRIVATE KEY-----", Shape::PrivateKey, 40),
    ("AKIA", Shape::AwsAccessKey, 16),
    ("ASIA", Shape::AwsAccessKey, 16),
    ("AccountKey=", Shape::AzureAccountKey, 86),
    ("ghp_", Shape::GithubToken, 36),
    ("gho_", Shape::GithubToken, 36),
    ("ghu_", Shape::GithubToken, 36),
    ("ghs_", Shape::GithubToken, 36),
    ("github_pat_", Shape::GithubToken, 60),
    ("glpat-", Shape::GitlabToken, 20),
    ("xoxb-", Shape::SlackToken, 30),
    ("xoxp-", Shape::SlackToken, 30),
    ("AIzaSy", Shape::GoogleApiKey, 33),
    ("npm_", Shape::NpmToken, 36),
    ("sk_live_", Shape::StripeKey, 24),
];

fn is_base64(b: &&u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(**b, b'+' | b'/' | b'=')
}

/// Whether what stands before and after a prefix makes it the shape.
pub(crate) fn confirms(shape: Shape, count: usize, before: Option<u8>, after: &[u8]) -> bool {
    if shape == Shape::PrivateKey {
        let body = after.strip_prefix(b"\r").unwrap_or(after);
        // Escaped in the JSON files of Google's service accounts.
        let Some(body) = body.strip_prefix(b"\n").or_else(|| body.strip_prefix(b"\\n")) else { return false };
        return body.iter().take_while(is_base64).count() >= count;
    }
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    if before.is_some_and(word) {
        return false;
    }
    let in_alphabet = |b: &&u8| match shape {
        Shape::AwsAccessKey => b.is_ascii_uppercase() || b.is_ascii_digit(),
        Shape::GithubToken => word(**b),
        Shape::NpmToken | Shape::StripeKey => b.is_ascii_alphanumeric(),
        Shape::AzureAccountKey => is_base64(b),
        _ => word(**b) || **b == b'-',
    };
    let run = after.iter().take_while(in_alphabet).count();
    match shape {
        Shape::AwsAccessKey | Shape::NpmToken => run == count,
        _ => run >= count,
    }
}
