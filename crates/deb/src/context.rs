//! What the caller gives to every operation: where things are, what may be used, and who listens.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

/// Surroundings of an operation. [`Context::new`] fills in the usual values.
#[derive(Clone)]
pub struct Context<'a> {
    /// Directory for indexes and packages (`sources/deb` of the state directory); created when needed, and safe to
    /// share between processes.
    pub cache: PathBuf,
    /// Root of the machine whose apt configuration and keyrings count; normally `/`.
    pub host: PathBuf,
    /// Proxy for all requests; without it, the one in the apt configuration. An empty string means none at all.
    pub proxy: Option<String>,
    /// The proxy for an address where neither `proxy` nor the apt configuration names one.
    pub environment_proxy: Option<&'a Proxies<'a>>,
    /// The time, in seconds since 1970: signatures and indexes are judged by it.
    pub now: i64,
    /// When indexes are looked at again.
    pub refresh: Refresh,
    /// How many downloads run at once.
    pub downloads: usize,
    /// Pause before the second try of a request that failed; later ones take 4, 10 and 20 times as long.
    pub retry_pause: std::time::Duration,
    /// How many packages are unpacked at once; 0 means one per core.
    pub workers: usize,
    /// Debian's name of the architecture when the spec has none.
    pub default_arch: String,
    /// The text of the lock file, when the spec has one and it exists.
    pub lock: Option<String>,
    /// Set from outside to stop soon.
    pub cancelled: Option<&'a AtomicBool>,
    /// Told about progress, from several threads.
    pub events: Option<&'a (dyn Fn(Event<'_>) + Sync)>,
}

/// Names the proxy for an address.
pub type Proxies<'a> = dyn Fn(&str) -> Option<String> + Sync + 'a;

/// When an index in the cache is compared with the mirror's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refresh {
    /// Every time.
    Always,
    /// When it was fetched or confirmed longer ago than this many seconds.
    After(u32),
    /// Never: only what is in the cache is used, for indexes and packages.
    Offline,
}

/// Something happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'a> {
    /// An index is being fetched or checked.
    Index {
        /// Its address, without credentials.
        url: &'a str,
    },
    /// How much is to be downloaded; sent once before the first package.
    Downloads {
        /// Packages that are not in the cache.
        packages: usize,
        /// Their size.
        bytes: u64,
    },
    /// Some more bytes of packages have come, from the archive or by another build's download. Those of a download that
    /// had to start over count again.
    Received {
        /// How many.
        bytes: u64,
    },
    /// A package is in the cache and verified.
    Fetched {
        /// Its name.
        package: &'a str,
    },
    /// A package has been unpacked.
    Unpacked {
        /// Its name.
        package: &'a str,
    },
    /// The base is being configured by its own scripts.
    Configuring {
        /// How many packages.
        packages: usize,
    },
    /// Something that a person should know, but that does not stop the work.
    Warning(&'a str),
}

impl<'a> Context<'a> {
    /// The usual surroundings: this machine's apt configuration, the time of the clock, indexes good for an hour.
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self {
            cache: cache.into(),
            host: PathBuf::from("/"),
            proxy: None,
            environment_proxy: None,
            now: now.map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX)),
            refresh: Refresh::After(3600),
            downloads: 6,
            retry_pause: std::time::Duration::from_millis(150),
            workers: 0,
            default_arch: native_arch().to_owned(),
            lock: None,
            cancelled: None,
            events: None,
        }
    }

    pub(crate) fn send(&self, event: Event<'_>) {
        if let Some(events) = self.events {
            events(event);
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        match self.cancelled.is_some_and(|flag| flag.load(Ordering::Relaxed)) {
            true => Err(Error::Cancelled),
            false => Ok(()),
        }
    }

    /// A directory of the cache, made if need be.
    pub(crate) fn dir(&self, name: &str) -> Result<PathBuf> {
        let path = self.cache.join(name);
        std::fs::create_dir_all(&path).map_err(Error::io(&path))?;
        Ok(path)
    }

    pub(crate) fn deb_path(&self, sha256: &[u8; 32]) -> PathBuf {
        self.cache.join("debs").join(format!("{}.deb", crate::files::hex(sha256)))
    }

    pub(crate) fn worker_count(&self, jobs: usize) -> usize {
        let wanted = if self.workers == 0 { kiln_rootfs::processors() } else { self.workers };
        wanted.clamp(1, jobs.max(1))
    }

    pub(crate) fn host(&self) -> &Path {
        &self.host
    }
}

/// Debian's name of the architecture that this program was built for.
pub fn native_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "i386",
        "arm" => "armhf",
        "powerpc64" => "ppc64el",
        other => other,
    }
}

/// Removes user name and password from an address, for messages.
pub(crate) fn redact(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let end = rest.find('/').unwrap_or(rest.len());
    match rest[..end].rfind('@') {
        Some(at) => format!("{scheme}://{}", &rest[at + 1..]),
        None => url.to_owned(),
    }
}
