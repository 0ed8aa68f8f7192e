//! What a build can end with. Each error says what happened and where; the command line adds the excerpt and the exit code.

use std::path::PathBuf;

use kiln_dockerfile::{Diagnostic, Source};
use kiln_graph::Location;
use kiln_linkage::Finding;

use crate::leaks::Leak;

/// Result of an engine operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What to do about an image of which something is missing.
pub const REMAKE: &str = "build the image again, or pull or load it again";

/// What to do where programs of another machine can't run.
pub const EMULATOR: &str =
    "install an emulator that registers itself, on most distributions the package qemu-user-static";

/// Why a build or another operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The Dockerfile can't be built; the places are in the diagnostics.
    #[error("{}", first_message(diagnostics))]
    Dockerfile {
        /// The file.
        file: Source,
        /// All that is wrong with it.
        diagnostics: Vec<Diagnostic>,
    },
    /// A step failed.
    #[error("{0}")]
    Step(Box<StepError>),
    /// Secrets are in the result.
    #[error("{} secret{} found in the result", .0.len(), if .0.len() == 1 { "" } else { "s" })]
    Leaks(Vec<Leak>),
    /// Programs of the result can't start.
    #[error("{} of the result can't start", if .0.len() == 1 { "a program" } else { "programs" })]
    Programs(Vec<Finding>),
    /// Something about what was asked for.
    #[error("{message}")]
    Request {
        /// What.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
    /// The build was interrupted.
    #[error("interrupted")]
    Cancelled,
    /// A layer can't be had: an imported cache promised it, or it was damaged in the store. What it was made by has to run.
    #[error("{cause}")]
    LostLayer {
        /// The layer in the store.
        layer: kiln_store::LayerId,
        /// Its blob, if it had one.
        blob: Option<Box<kiln_oci::Digest>>,
        /// Why.
        cause: Box<Error>,
    },
    /// A file of the user.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] kiln_store::Error),
    /// A root file system.
    #[error(transparent)]
    Rootfs(#[from] kiln_rootfs::RootfsError),
    /// A registry.
    #[error(transparent)]
    Registry(#[from] kiln_registry::Error),
    /// A process in a container.
    #[error(transparent)]
    Executor(#[from] kiln_executor::Error),
    /// What is kept of containers.
    #[error(transparent)]
    Container(#[from] kiln_container::Error),
    /// A git repository.
    #[error(transparent)]
    Git(#[from] kiln_source::GitError),
    /// A file by HTTP.
    #[error(transparent)]
    Http(#[from] kiln_source::HttpError),
    /// A base made of packages.
    #[error(transparent)]
    Deb(#[from] kiln_deb::Error),
}

/// A step that failed.
#[derive(Debug, thiserror::Error)]
#[error("{name}: {cause}")]
pub struct StepError {
    /// `[builder 2/5] RUN make`.
    pub name: String,
    /// Its lines in the Dockerfile.
    pub location: Option<Location>,
    /// The Dockerfile, to show them.
    pub source_text: Option<Source>,
    /// What went wrong.
    pub cause: Cause,
    /// The end of its output, secrets masked.
    pub output: Vec<String>,
}

/// What went wrong in a step.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The process ended with another code than 0.
    #[error("did not complete successfully: exit code: {code}{}", meaning(*code))]
    Exit {
        /// Its exit code; 128 and more for a signal.
        code: i32,
    },
    /// The process used more memory than it may.
    #[error("was killed because it used more memory than {}", limit.map_or("there is".to_owned(), |l| format!("its limit of {} MiB", l >> 20)))]
    OutOfMemory {
        /// The limit in bytes, if it was the step's own.
        limit: Option<u64>,
    },
    /// Anything else.
    #[error("{0}")]
    Other(Box<Error>),
}

/// What shells mean by an exit code.
fn meaning(code: i32) -> &'static str {
    match code {
        126 => " (the command can't be executed)",
        127 => " (command not found)",
        132 => " (SIGILL)",
        134 => " (SIGABRT)",
        135 => " (SIGBUS)",
        136 => " (SIGFPE)",
        137 => " (SIGKILL)",
        139 => " (SIGSEGV)",
        141 => " (SIGPIPE)",
        143 => " (SIGTERM)",
        _ => "",
    }
}

impl Error {
    /// An error about what was asked for.
    pub fn request(message: impl Into<String>) -> Self {
        Self::Request { message: message.into(), hint: None }
    }

    /// The same, with advice.
    pub fn request_with_hint(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Request { message: message.into(), hint: Some(hint.into()) }
    }

    /// What it means that a layer can't be had: if it came with a cache, or was made here, it can be made again.
    pub fn lost(layer: &kiln_store::Layer, cause: Self) -> Self {
        use kiln_store::Error::{BlobDamaged, BlobMissing, LayerMissing};
        let remote = crate::layers::Remote::of(layer);
        let damaged = matches!(cause, Self::Store(BlobDamaged { .. } | BlobMissing(_) | LayerMissing(_)));
        let can_be_made = remote.map_or(damaged, |r| r.cache.is_some());
        if matches!(cause, Self::LostLayer { .. }) || !can_be_made {
            return cause;
        }
        let blob = layer.blobs.first().map(|b| Box::new(b.descriptor.digest));
        Self::LostLayer { layer: layer.id, blob, cause: Box::new(cause) }
    }

    /// If it is that a part of an image is missing in the store: of this image.
    pub fn of_image(self, image: &str) -> Self {
        use kiln_store::Error::{BlobDamaged, BlobMissing, LayerMissing};
        match self {
            Self::LostLayer { cause, .. } => cause.of_image(image),
            Self::Store(cause @ (BlobDamaged { .. } | BlobMissing(_) | LayerMissing(_))) => {
                Self::request_with_hint(format!("the image {image} is damaged: {cause}"), REMAKE)
            }
            other => other,
        }
    }

    /// Whether there was no room, wherever that was noticed.
    pub fn is_disk_full(&self) -> bool {
        let mut causes = std::iter::successors(std::error::Error::source(self), |e| e.source());
        matches!(self, Self::Store(kiln_store::Error::DiskFull { .. }))
            || causes.any(|e| e.downcast_ref().is_some_and(Self::is_full))
    }

    /// The same, of what the system says.
    pub(crate) fn is_full(error: &std::io::Error) -> bool {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(error.kind(), StorageFull | QuotaExceeded)
    }

    /// What would need more than there is.
    pub(crate) fn no_room(action: &'static str, path: &std::path::Path) -> Self {
        kiln_store::Error::DiskFull { action, path: path.to_path_buf() }.into()
    }

    /// A failed file operation.
    pub fn io(action: &'static str, path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { action, path: path.into(), source }
    }
}

fn first_message(diagnostics: &[Diagnostic]) -> String {
    let errors = diagnostics.iter().filter(|d| d.is_error()).count();
    let first = diagnostics.iter().find(|d| d.is_error()).or(diagnostics.first());
    let message = first.map_or("the Dockerfile is not valid", |d| &d.message);
    if errors > 1 { format!("{message} (and {} more)", errors - 1) } else { message.to_owned() }
}
