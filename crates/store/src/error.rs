//! Errors of the store. Each says what was being done, to which path or name.

use std::io;
use std::path::{Path, PathBuf};

use kiln_oci::{Digest, ManifestError};

use crate::LayerId;

/// Result of a store operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in the store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as an infinitive.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// No space, or over quota. What was there before is untouched.
    #[error("no space left to {action} {}", path.display())]
    DiskFull {
        /// What was tried, as an infinitive.
        action: &'static str,
        /// On what.
        path: PathBuf,
    },
    /// The database failed.
    #[error("database {}: {source}", path.display())]
    Db {
        /// The database file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// A record of the database can't be understood.
    #[error("a record in the store's table {table} is not valid: {detail}")]
    Record {
        /// The table.
        table: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// The directory was written by a newer kiln.
    #[error(
        "the store {} has format {found}, this kiln knows formats up to {supported}: use the newer kiln, or another --root",
        root.display()
    )]
    NewerStore {
        /// The store.
        root: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format this build reads.
        supported: u32,
    },
    /// A blob is not here.
    #[error("blob {0} is not in the store")]
    BlobMissing(Box<Digest>),
    /// A blob of the store is not what its name says. It is not there any more, so that it can be had anew.
    #[error("blob {digest} of the store was damaged (its content is {actual}) and has been removed")]
    BlobDamaged {
        /// Its name.
        digest: Box<Digest>,
        /// What it had become.
        actual: Box<Digest>,
    },
    /// Bytes do not have the digest they should have.
    #[error("content is damaged: expected {expected}, got {actual}")]
    DigestMismatch {
        /// What was asked for.
        expected: Box<Digest>,
        /// What the bytes have.
        actual: Box<Digest>,
    },
    /// A blob that is read into memory is larger than allowed.
    #[error("blob {digest} has {size} bytes, more than the {max} that are read here")]
    BlobTooLarge {
        /// The blob.
        digest: Box<Digest>,
        /// Its size.
        size: u64,
        /// The limit.
        max: u64,
    },
    /// A layer is not here (any more).
    #[error("layer {0} is not in the store")]
    LayerMissing(LayerId),
    /// No image has this name or id.
    #[error("no image {0:?} in the store")]
    ImageMissing(String),
    /// An id prefix fits several images.
    #[error("image id {prefix:?} fits several images: {}", shown(candidates))]
    AmbiguousId {
        /// As given.
        prefix: String,
        /// The ids that fit.
        candidates: Vec<Digest>,
    },
    /// A manifest in the store can't be read.
    #[error("manifest {digest}: {source}")]
    Manifest {
        /// The manifest.
        digest: Box<Digest>,
        /// Why.
        source: ManifestError,
    },
    /// An image config can't be read.
    #[error("image config {digest}: {source}")]
    Config {
        /// The config.
        digest: Box<Digest>,
        /// Why.
        source: serde_json::Error,
    },
    /// An index has nothing for a platform.
    #[error("image {digest} has no manifest for {wanted}: it has {available}")]
    NoPlatform {
        /// The index.
        digest: Box<Digest>,
        /// The platform asked for.
        wanted: String,
        /// The platforms that it has.
        available: String,
    },
    /// No build has this id.
    #[error("no build {0:?} in the store")]
    BuildMissing(String),
    /// An image archive or layout is not what it should be.
    #[error("the image archive is not valid: {0}")]
    Archive(String),
    /// An archive could not be written to where the caller wants it.
    #[error("cannot write the archive: {0}")]
    Output(#[source] io::Error),
    /// Something that is in use was to be removed.
    #[error("{0} is in use")]
    InUse(String),
}

fn shown(candidates: &[Digest]) -> String {
    candidates.iter().map(Digest::short).collect::<Vec<_>>().join(", ")
}

impl Error {
    /// An I/O error with its context; no space and over quota become [`Error::DiskFull`].
    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>, source: io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { action, path },
            _ => Self::Io { action, path, source },
        }
    }

    pub(crate) fn record(table: &'static str, detail: impl std::fmt::Display) -> Self {
        Self::Record { table, detail: detail.to_string() }
    }

    /// Fills in the database's path, which `From<rusqlite::Error>` can't know.
    pub(crate) fn in_db(self, db: &Path) -> Self {
        match self {
            Self::Db { path, source } if path.as_os_str().is_empty() => match source.sqlite_error_code() {
                Some(rusqlite::ErrorCode::DiskFull) => Self::DiskFull { action: "write", path: db.to_path_buf() },
                _ => Self::Db { path: db.to_path_buf(), source },
            },
            other => other,
        }
    }
}

impl From<rusqlite::Error> for Error {
    fn from(source: rusqlite::Error) -> Self {
        Self::Db { path: PathBuf::new(), source }
    }
}

/// Adds what was done to what.
pub(crate) trait Context<T> {
    fn ctx(self, action: &'static str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn ctx(self, action: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|e| Error::io(action, path, e.into()))
    }
}
