//! What can go wrong, in terms a user can act on.
//!
//! Invariants:
//! - no variant carries a credential: URLs are shown without user, password and query (signed download links),
//!   and what a server answered is taken from its error list only, shortened and without control characters;
//! - [`Error::is_transient`] decides what is retried, here and nowhere else.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use kiln_oci::{Digest, ManifestError};
use serde::Deserialize;

/// One entry of a registry's error answer (distribution spec, "Error Codes").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryCode {
    /// `MANIFEST_UNKNOWN`, `DENIED`, ….
    pub code: String,
    /// The registry's own words, shortened.
    pub message: String,
}

impl std::fmt::Display for RegistryCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.message.is_empty() {
            true => f.write_str(&self.code),
            false => write!(f, "{}: {}", self.code, self.message),
        }
    }
}

/// Why there is no connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionFault {
    /// The name does not exist.
    NoSuchHost,
    /// Nobody listens there.
    Refused,
    /// It broke, or could not be made in time.
    Broken,
}

/// An error of the distribution client.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The thing asked for does not exist there (or may not be seen by this user).
    #[error("{what} not found{}", shown(codes))]
    NotFound {
        /// The image, blob or list that was asked for, with the registry's name.
        what: String,
        /// What the registry said.
        codes: Vec<RegistryCode>,
    },
    /// The registry wants a log-in, or another one.
    #[error("{registry} refuses access to {what}: {reason}{}", shown(codes))]
    Unauthorized {
        /// Registry as the user names it.
        registry: String,
        /// What was asked for.
        what: String,
        /// Which credential was tried and why it was not enough.
        reason: String,
        /// What the registry said.
        codes: Vec<RegistryCode>,
    },
    /// Logged in, but not allowed to.
    #[error("{registry} denies access to {what}{}", shown(codes))]
    Denied {
        /// Registry as the user names it.
        registry: String,
        /// What was asked for.
        what: String,
        /// What the registry said.
        codes: Vec<RegistryCode>,
    },
    /// 429 for longer than we are willing to wait.
    #[error("{registry} limits the rate of requests{}{}", after(*retry_after), shown(codes))]
    RateLimited {
        /// Registry as the user names it.
        registry: String,
        /// How long it asked to wait.
        retry_after: Option<Duration>,
        /// What the registry said.
        codes: Vec<RegistryCode>,
    },
    /// Any other answer that is not a success.
    #[error("{registry} answered {status} to {request}{}", shown(codes))]
    Status {
        /// Registry as the user names it.
        registry: String,
        /// Method and URL without its query.
        request: String,
        /// HTTP status.
        status: u16,
        /// How long it asked to wait.
        retry_after: Option<Duration>,
        /// What the registry said.
        codes: Vec<RegistryCode>,
    },
    /// No connection, or it broke.
    #[error("connection to {host} failed: {reason}")]
    Connection {
        /// Host (and port) of the registry, mirror, token server or proxy.
        host: String,
        /// What the network said.
        reason: String,
        /// What kind of failure it is.
        fault: ConnectionFault,
    },
    /// The TLS handshake failed.
    #[error("TLS connection to {host} failed: {reason}")]
    Tls {
        /// Host and port.
        host: String,
        /// What the TLS library said.
        reason: String,
    },
    /// Nothing, or far too little, came for too long.
    #[error("{host} sent {received} bytes in {seconds} s: too slow, giving up on this connection")]
    Stalled {
        /// Host and port.
        host: String,
        /// Bytes in the observed time.
        received: u64,
        /// The observed time.
        seconds: u64,
    },
    /// An answer that breaks the protocol.
    #[error("{host} does not follow the distribution protocol: {reason}")]
    Protocol {
        /// Host and port.
        host: String,
        /// What is wrong.
        reason: String,
    },
    /// The bytes are not what their digest says.
    #[error("content from {host} is not {expected}: its digest is {actual}")]
    DigestMismatch {
        /// Host and port that sent it.
        host: String,
        /// The digest asked for.
        expected: Digest,
        /// The digest of what came.
        actual: Box<Digest>,
        /// It came from a mirror, which this client will not ask again: a retry goes elsewhere.
        retry_elsewhere: bool,
    },
    /// The length is not what the descriptor says.
    #[error("{host} sends {actual} bytes for {digest}, which has {expected}")]
    SizeMismatch {
        /// Host and port that sent it.
        host: String,
        /// The blob.
        digest: Box<Digest>,
        /// Size in the descriptor.
        expected: u64,
        /// `more than …`, or a number.
        actual: String,
    },
    /// A manifest that is malformed, ambiguous or of an unknown type.
    #[error("{what}: {source}")]
    Manifest {
        /// The image.
        what: String,
        /// Why.
        source: ManifestError,
    },
    /// Configuration says that this registry is not to be used.
    #[error("registry {registry} is blocked by {origin}")]
    Blocked {
        /// Registry or prefix.
        registry: String,
        /// The configuration file.
        origin: String,
    },
    /// A configuration, certificate or credential file can't be used.
    #[error("{}: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A credential helper failed.
    #[error("credential helper docker-credential-{helper}: {reason}")]
    Helper {
        /// Its short name.
        helper: String,
        /// Why; never what it printed on success.
        reason: String,
    },
    /// Reading what is to be uploaded failed: a local problem.
    #[error("reading {digest} for upload: {source}")]
    Source {
        /// The blob, or `a new layer`.
        digest: String,
        /// The cause.
        source: io::Error,
    },
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
}

fn shown(codes: &[RegistryCode]) -> String {
    match codes.is_empty() {
        true => String::new(),
        false => format!(" ({})", codes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")),
    }
}

fn after(delay: Option<Duration>) -> String {
    delay.map(|d| format!(" and asks to wait {} s", d.as_secs())).unwrap_or_default()
}

impl Error {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unauthorized { registry, .. } => {
                Some(format!("check the name, or log in with: kiln login {registry}"))
            }
            Self::Denied { registry, .. } => {
                Some(format!("log in as a user who may do this: kiln login {registry}; or check the image's name"))
            }
            Self::RateLimited { registry, .. } => {
                Some(format!("wait, log in (kiln login {registry}) for a higher limit, or configure a mirror"))
            }
            Self::Status { status: 405, request, .. } if request.contains("/uploads/") => {
                Some("it takes no uploads: it is read-only, or a mirror of another registry".to_owned())
            }
            Self::Tls { host, reason } => Some(tls_hint(host, reason)),
            _ => None,
        }
    }

    /// The thing does not exist: not a failure where something optional was looked for.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Whether the same request may succeed a moment later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Connection { fault, .. } => *fault != ConnectionFault::NoSuchHost,
            Self::Stalled { .. } | Self::RateLimited { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 425 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }

    /// A fresh call of the same operation would ask another host, since the one that failed is now avoided.
    pub fn may_retry_elsewhere(&self) -> bool {
        matches!(self, Self::DigestMismatch { retry_elsewhere: true, .. })
    }

    /// The registry no longer knows an upload, or knows it differently: it can only begin anew.
    pub(crate) fn is_lost_upload(&self) -> bool {
        let lost =
            |c: &RegistryCode| matches!(&*c.code, "BLOB_UPLOAD_INVALID" | "BLOB_UPLOAD_UNKNOWN" | "RANGE_INVALID");
        self.is_not_found() || self.codes().iter().any(lost)
    }

    /// How long the server asked to wait.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. } | Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// The registry's error codes, where there were any.
    pub fn codes(&self) -> &[RegistryCode] {
        match self {
            Self::NotFound { codes, .. }
            | Self::Unauthorized { codes, .. }
            | Self::Denied { codes, .. }
            | Self::RateLimited { codes, .. }
            | Self::Status { codes, .. } => codes,
            _ => &[],
        }
    }

    /// The error inside what a [`crate::BlobReader`] returned, if it is ours.
    pub fn of_io(error: &io::Error) -> Option<&Self> {
        error.get_ref().and_then(|e| e.downcast_ref())
    }

    /// Takes the error out of what a [`crate::BlobReader`] returned; gives back what is not ours.
    pub fn from_io(error: io::Error) -> Result<Self, io::Error> {
        error.downcast::<Self>()
    }

    pub(crate) fn into_io(self) -> io::Error {
        let kind = match &self {
            Self::Stalled { .. } => io::ErrorKind::TimedOut,
            Self::DigestMismatch { .. } | Self::SizeMismatch { .. } => io::ErrorKind::InvalidData,
            Self::NotFound { .. } => io::ErrorKind::NotFound,
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, self)
    }
}

fn tls_hint(host: &str, reason: &str) -> String {
    // an unknown issuer, or one of a known name with another key
    if reason.contains("UnknownIssuer") || reason.contains("BadSignature") {
        format!(
            "if {host} has a private CA, put its certificate into certs.d/{host}/ca.crt or name it in SSL_CERT_FILE; \
             if this system has no CA certificates, install the package ca-certificates"
        )
    } else {
        format!(
            "if {host} is a registry without proper TLS, use --tls-verify=false, or write into kiln.toml: \
             [registries.\"{host}\"] insecure = true"
        )
    }
}

/// The error list in an answer's body. Anything else (an HTML page of some proxy) is not shown.
pub(crate) fn parse_codes(body: &[u8]) -> Vec<RegistryCode> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        errors: Vec<Entry>,
        /// Token servers answer `{"details": …}` or OAuth's `error_description`.
        details: Option<String>,
        error_description: Option<String>,
    }
    #[derive(Deserialize)]
    struct Entry {
        #[serde(default)]
        code: serde_json::Value,
        message: Option<String>,
    }
    let Ok(answer) = serde_json::from_slice::<Answer>(body) else { return Vec::new() };
    let mut codes: Vec<_> = answer
        .errors
        .into_iter()
        .take(5)
        .map(|e| RegistryCode {
            code: printable(&e.code.as_str().map_or_else(|| e.code.to_string(), str::to_owned), 60),
            message: printable(e.message.as_deref().unwrap_or(""), 300),
        })
        .collect();
    if let (true, Some(text)) = (codes.is_empty(), answer.details.or(answer.error_description)) {
        codes.push(RegistryCode { code: printable(&text, 300), message: String::new() });
    }
    codes
}

/// Text from a server, safe for a terminal.
pub(crate) fn printable(text: &str, max: usize) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(max).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_error_lists_are_shown_and_without_control_characters() {
        let codes = parse_codes(b"{\"errors\":[{\"code\":\"DENIED\",\"message\":\"no\\u001b[31m way\"}]}");
        assert_eq!(codes[0].to_string(), "DENIED: no [31m way");
        assert!(parse_codes(b"<html>502</html>").is_empty());
        assert_eq!(parse_codes(b"{\"details\":\"incorrect username or password\"}").len(), 1);
        assert_eq!(parse_codes(b"{\"errors\":[{\"code\":7}]}")[0].code, "7");
    }
}
