//! Errors about containers, in docker's words where docker has some.

use std::io;
use std::path::{Path, PathBuf};

/// Result of an operation on containers.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is none of that name or id.
    #[error("No such container: {0}")]
    Missing(String),
    /// Several ids begin so.
    #[error("several container IDs begin with {0}")]
    Ambiguous(String),
    /// The name is taken.
    #[error(
        "Conflict. The container name \"/{name}\" is already in use by container \"{id}\": remove that to use its name again"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// Whose it is.
        id: String,
    },
    /// Not a name.
    #[error("invalid container name ({0}): at least two of [a-zA-Z0-9_.-], the first one a letter or digit")]
    BadName(String),
    /// It runs, and must not.
    #[error("the container {0} is running already")]
    Running(String),
    /// Another process has its lock.
    #[error("the container {0} is in use: another kiln starts it, removes it or copies its files")]
    InUse(String),
    /// A file of a container.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as an infinitive.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A record can't be understood.
    #[error("{} is damaged, so the container can only be removed, by deleting its directory: {source}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A copy that can't be, in docker's words.
    #[error("{0}")]
    Copy(String),
    /// The store.
    #[error(transparent)]
    Store(#[from] kiln_store::Error),
    /// Files of a container, or of the host.
    #[error(transparent)]
    Rootfs(#[from] kiln_rootfs::RootfsError),
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }

    pub(crate) fn is_broken_pipe(&self) -> bool {
        match self {
            Self::Io { source, .. } => source.kind() == io::ErrorKind::BrokenPipe,
            Self::Rootfs(e) => e.io_kind() == Some(io::ErrorKind::BrokenPipe),
            _ => false,
        }
    }
}
