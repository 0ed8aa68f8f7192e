//! Everything that can go wrong while a base is resolved, fetched or built.

use std::io;
use std::path::{Path, PathBuf};

use crate::spec::SpecError;
use crate::suggest::hint;
use crate::time;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

fn unknown(packages: &[(String, Vec<String>)], suites: &str) -> String {
    let lines: Vec<String> =
        packages.iter().map(|(name, nearest)| format!("no package {name} in {suites}{}", hint(nearest))).collect();
    lines.join("\n")
}

/// Why a base could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The `deb://` text is wrong.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// No archive is known for the suite.
    #[error("no package archive is configured for suite {suite}: {why}; give one with mirror=ADDRESS")]
    NoSources {
        /// The suite.
        suite: String,
        /// What was looked at.
        why: String,
    },
    /// The archive does not say where its snapshots are.
    #[error(
        "the index of suite {suite} names no snapshot service: say where it is with mirror=, with @SNAPSHOTID@ in place of \
         the time, such as mirror=https://snapshot.debian.org/archive/debian/@SNAPSHOTID@"
    )]
    NoSnapshots {
        /// The suite.
        suite: String,
    },
    /// An apt source can't be understood or used.
    #[error("{}:{line}: {reason}", path.display())]
    Source {
        /// The file.
        path: PathBuf,
        /// The line in it.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// The mirror has no such suite.
    #[error("{url} has no suite {suite}{}", hint(nearest))]
    UnknownSuite {
        /// The archive.
        url: String,
        /// The suite.
        suite: String,
        /// Configured suites with a near name.
        nearest: Vec<String>,
    },
    /// The suite has no such component.
    #[error("suite {suite} has no component {component}: it has {}", available.join(", "))]
    UnknownComponent {
        /// The suite.
        suite: String,
        /// The component.
        component: String,
        /// What it has.
        available: Vec<String>,
    },
    /// The suite is not built for the architecture.
    #[error("suite {suite} has no packages for architecture {arch}: it has {}", available.join(", "))]
    UnknownArchitecture {
        /// The suite.
        suite: String,
        /// The architecture.
        arch: String,
        /// What it has.
        available: Vec<String>,
    },
    /// No package has that name.
    #[error("{}", unknown(packages, suites))]
    UnknownPackages {
        /// The names, with near ones.
        packages: Vec<(String, Vec<String>)>,
        /// Where they were looked for.
        suites: String,
    },
    /// A package exists, but not in that version.
    #[error("package {name} has no version {version} in {suites}: there is {}", available.join(", "))]
    UnknownVersion {
        /// The name.
        name: String,
        /// The version.
        version: String,
        /// Where it was looked for.
        suites: String,
        /// The versions that exist.
        available: Vec<String>,
    },
    /// No set of packages satisfies the request.
    #[error(transparent)]
    Unsatisfiable(#[from] Unsatisfiable),
    /// There are no keys to verify with.
    #[error("no OpenPGP keys to verify {url} with: {why}; give a file with keyring=PATH")]
    NoKeys {
        /// What was to be verified.
        url: String,
        /// Where keys were looked for.
        why: String,
    },
    /// A key file can't be used.
    #[error("keyring {}: {reason}", path.display())]
    Keyring {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// An index is not signed by a trusted key.
    #[error("the signature of {url} is not good: {reason}")]
    Signature {
        /// The signed file.
        url: String,
        /// What is wrong with each signature.
        reason: String,
    },
    /// An index that is too old to be trusted.
    #[error("{url} expired on {}: the mirror is stale, or something withholds updates (use snapshot= for an old state)", time::day(*until))]
    Expired {
        /// The index.
        url: String,
        /// Its Valid-Until.
        until: i64,
    },
    /// An index from the future.
    #[error("{url} is dated {}, which is in the future: check this machine's clock", time::day(*date))]
    FromTheFuture {
        /// The index.
        url: String,
        /// Its Date.
        date: i64,
    },
    /// What was received has another hash than what was signed.
    #[error("{url} has sha256 {actual}, but {expected} was signed or locked: the mirror is broken or out of sync")]
    Hash {
        /// What was fetched.
        url: String,
        /// The signed hash.
        expected: String,
        /// What came.
        actual: String,
    },
    /// What was received is longer or shorter than what was signed.
    #[error("{url} has {actual} bytes{}, but {expected} were signed or locked: the mirror is broken or out of sync", if *more { " or more" } else { "" })]
    Size {
        /// What was fetched.
        url: String,
        /// The signed size.
        expected: u64,
        /// What came.
        actual: u64,
        /// Reading was stopped.
        more: bool,
    },
    /// Something that would take an unreasonable amount of memory or space.
    #[error("{what} is larger than {limit} bytes")]
    TooBig {
        /// What.
        what: String,
        /// The limit.
        limit: u64,
    },
    /// The mirror answered with an error.
    #[error("{url}: the mirror answered {status}{}", if *status == 404 { " (not found): it may have moved on: look again with --pull, or renew the lock file with `kiln base --update-lock`" } else { "" })]
    Http {
        /// What was asked for.
        url: String,
        /// The status.
        status: u16,
    },
    /// The mirror can't be reached, or the transfer broke off, more than once.
    #[error("{url}: {reason}")]
    Network {
        /// What was asked for.
        url: String,
        /// What happened.
        reason: String,
    },
    /// It is not in the cache and fetching is not allowed.
    #[error("{0} is not in the cache, and the network may not be used")]
    Offline(String),
    /// A file of the archive that breaks its format.
    #[error("{what} is malformed: {reason}")]
    Malformed {
        /// What.
        what: String,
        /// What is wrong.
        reason: String,
    },
    /// A package with contents that must not be unpacked.
    #[error("package {package}: {reason}")]
    Package {
        /// `name_version_arch`.
        package: String,
        /// What is wrong.
        reason: String,
    },
    /// Two packages with the same file.
    #[error("{path} is in both {first} and {second}, and neither replaces the other")]
    FileConflict {
        /// The path in the image.
        path: String,
        /// A package.
        first: String,
        /// Another package.
        second: String,
    },
    /// A maintainer script, or dpkg itself, failed in the sandbox.
    #[error("configuring the base failed: {reason}{}{}", if output.is_empty() { "" } else { "\n" }, output.trim_end())]
    Configure {
        /// What happened.
        reason: String,
        /// The end of what was printed.
        output: String,
    },
    /// A base that needs programs run, without a way to run them.
    #[error("variant=minbase runs maintainer scripts, but no sandbox was given to run them in")]
    NoRunner,
    /// A lock file that can't be used.
    #[error("lock file: {0}")]
    Lock(String),
    /// The caller asked to stop.
    #[error("interrupted")]
    Cancelled,
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Writing below the new root failed.
    #[error(transparent)]
    Rootfs(#[from] kiln_rootfs::RootfsError),
}

impl Error {
    /// Wraps an I/O error on `path`.
    pub(crate) fn io(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { path: path.as_ref().to_owned(), source }
    }
}

/// No set of packages satisfies the request; each line is one step of the reasoning, from the request to the dead end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsatisfiable {
    /// `X depends on Y (>= 2)` and so on, outermost first.
    pub chain: Vec<String>,
    /// Why each alternative at the end of the chain is impossible.
    pub reasons: Vec<String>,
}

impl std::error::Error for Unsatisfiable {}

impl std::fmt::Display for Unsatisfiable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the packages can't be installed together:")?;
        for (depth, line) in self.chain.iter().enumerate() {
            write!(f, "\n  {}{line}", "  ".repeat(depth.min(12)))?;
        }
        let depth = "  ".repeat(self.chain.len().min(12));
        self.reasons.iter().try_for_each(|reason| write!(f, "\n  {depth}{reason}"))
    }
}
