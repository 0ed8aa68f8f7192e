//! The error type of this crate. Each variant carries the path (or entry) that it is about.

use std::io;
use std::path::{Path, PathBuf};

use crate::stat::FileKind;

/// Result with [`RootfsError`].
pub type Result<T> = std::result::Result<T, RootfsError>;

/// What can go wrong on a root file system. Paths are shown as the user knows them: relative to the root in question.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RootfsError {
    /// A system call failed.
    #[error("{op} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb: "open", "read", "create directory".
        op: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A regular file was expected.
    #[error("{}: expected a regular file, found a {kind}", path.display())]
    NotRegular {
        /// The path.
        path: PathBuf,
        /// What it is.
        kind: FileKind,
    },
    /// A path exists, with a kind that must not be replaced by what is to be put there.
    #[error("cannot put a {new} at {}: a {existing} is there", path.display())]
    CannotReplace {
        /// The path in the target.
        path: PathBuf,
        /// What is there.
        existing: FileKind,
        /// What was to come.
        new: FileKind,
    },
    /// A file is larger than its reader accepts.
    #[error("{} is larger than the limit of {limit} bytes", path.display())]
    TooLarge {
        /// The path.
        path: PathBuf,
        /// The limit.
        limit: u64,
    },
    /// A file changed while it was read, or is not what was digested before.
    #[error("{} changed while it was being copied", path.display())]
    Changed {
        /// The path in the source.
        path: PathBuf,
    },
    /// A source path or pattern has no match.
    #[error("{} not found", path.display())]
    NotFound {
        /// As the user wrote it.
        path: PathBuf,
    },
    /// Several sources, or a directory, can go only into a directory.
    #[error("the destination {} must be a directory, with a trailing slash, for more than one source", path.display())]
    DestinationNotDirectory {
        /// The destination.
        path: PathBuf,
    },
    /// A pattern that does not parse.
    #[error("pattern {pattern:?}: {reason}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A path that cannot be used here, for example with a NUL byte or no last component.
    #[error("{} is not a usable path: {reason}", path.display())]
    BadPath {
        /// The path.
        path: PathBuf,
        /// Why.
        reason: &'static str,
    },
    /// A user or group that is neither a number nor in the image.
    #[error("{what} {name:?} is not in {file} of the image")]
    UnknownId {
        /// "user" or "group".
        what: &'static str,
        /// The name.
        name: String,
        /// `/etc/passwd` or `/etc/group`.
        file: &'static str,
    },
    /// A user specification or mode that does not parse.
    #[error("{what} {value:?}: {reason}")]
    Invalid {
        /// What kind of value.
        what: &'static str,
        /// The value.
        value: String,
        /// Why.
        reason: String,
    },
    /// The kernel refused an overlay mount.
    #[error("cannot mount an overlay of {layers} layers: {message}")]
    Overlay {
        /// Number of lower layers.
        layers: usize,
        /// The kernel's own messages, or the error number's text.
        message: String,
    },
    /// Layers can't be kept on this kind of file system.
    #[error("{} is on a file system of type {kind}, which cannot hold the layers of containers", path.display())]
    UnfitFileSystem {
        /// The directory that was to be written through an overlay.
        path: PathBuf,
        /// The kind of the file system.
        kind: &'static str,
    },
    /// More layers than overlayfs can stack.
    #[error("{count} layers are more than the {limit} that overlayfs can stack")]
    TooManyLayers {
        /// How many.
        count: usize,
        /// How many at most.
        limit: usize,
    },
    /// A malformed or hostile archive.
    #[error("archive entry {}: {reason}", entry.display())]
    Archive {
        /// The entry's name as it stands in the archive.
        entry: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A limit on the resources that one operation may use.
    #[error("{what} is over the limit of {limit}")]
    Limit {
        /// What was counted.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
}

impl RootfsError {
    /// An [`RootfsError::Io`]; also takes rustix's `Errno`.
    pub fn io(op: &'static str, path: impl AsRef<Path>, source: impl Into<io::Error>) -> Self {
        Self::Io { op, path: path.as_ref().to_owned(), source: source.into() }
    }

    /// The kind of the underlying I/O error, if there is one.
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        match self {
            Self::Io { source, .. } => Some(source.kind()),
            Self::NotFound { .. } => Some(io::ErrorKind::NotFound),
            _ => None,
        }
    }

    /// Nothing is at the path.
    pub fn is_not_found(&self) -> bool {
        self.io_kind() == Some(io::ErrorKind::NotFound)
    }
}

/// Adds operation and path to a system call's error.
pub(crate) trait Context<T> {
    fn at(self, op: &'static str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn at(self, op: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|e| RootfsError::io(op, path, e))
    }
}
