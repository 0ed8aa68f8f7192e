//! What a caller may want to tell the user while a request is under way.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Something that happened and did not end the operation.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A request failed and will be sent again.
    Retry {
        /// Registry as the user names it.
        registry: String,
        /// What is being done.
        what: String,
        /// Why it failed.
        reason: String,
        /// How long we wait.
        delay: Duration,
    },
    /// A broken download goes on from where it was.
    Resumed {
        /// Host that failed.
        host: String,
        /// The blob.
        what: String,
        /// From this byte.
        offset: u64,
        /// Why it had broken.
        reason: String,
    },
    /// A credential was not accepted: the request goes on without one (warning).
    CredentialRejected {
        /// Registry as the user names it.
        registry: String,
        /// Where the credential came from: a file, a helper.
        origin: String,
        /// What the server said.
        reason: String,
    },
    /// A credential source can't be used; we go on without it (warning).
    CredentialSource {
        /// Which file or helper, and why.
        reason: String,
    },
    /// A configuration file of another program can't be used; we go on without it (warning).
    ConfigIgnored {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A mirror failed: the next one, or the registry itself, is asked (warning).
    MirrorFailed {
        /// The mirror.
        mirror: String,
        /// The registry that it mirrors.
        registry: String,
        /// Why.
        reason: String,
    },
}

impl Event {
    /// Worth a line of its own even in quiet output.
    pub fn is_warning(&self) -> bool {
        !matches!(self, Self::Retry { .. } | Self::Resumed { .. })
    }
}

impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Retry { registry, what, reason, delay } => {
                write!(f, "{registry}: {what}: {reason}; trying again in {:.1} s", delay.as_secs_f32())
            }
            Self::Resumed { host, what, offset, reason } => {
                write!(f, "{host}: {what}: {reason}; going on at byte {offset}")
            }
            Self::CredentialRejected { registry, origin, reason } => {
                write!(f, "{registry} rejected the credentials from {origin} ({reason}): going on without")
            }
            Self::CredentialSource { reason } => write!(f, "{reason}; going on without its credentials"),
            Self::ConfigIgnored { path, reason } => write!(f, "{} is ignored: {reason}", path.display()),
            Self::MirrorFailed { mirror, registry, reason } => {
                write!(f, "mirror {mirror} of {registry} failed: {reason}")
            }
        }
    }
}

/// Receives events, from any thread.
#[derive(Clone, Default)]
pub struct EventSink(Option<Arc<dyn Fn(Event) + Send + Sync>>);

impl EventSink {
    /// Calls `f` for each event.
    pub fn new(f: impl Fn(Event) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(f)))
    }

    pub(crate) fn send(&self, event: Event) {
        if let Some(f) = &self.0 {
            f(event);
        }
    }
}

impl std::fmt::Debug for EventSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "EventSink(..)" } else { "EventSink(none)" })
    }
}
