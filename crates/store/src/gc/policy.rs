//! What a collection may take, and what it says that it took.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::fsutil::now_ms;

/// What may be evicted, and down to what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PrunePolicy {
    /// The store may use this many bytes; 0 is no limit.
    pub max_used_space: u64,
    /// The file system must have this many bytes free; 0 is no demand.
    pub min_free_space: u64,
    /// Never go below this, whatever the others say. Alone it is the limit.
    pub reserved_space: u64,
    /// Keep what was used within this time.
    pub keep_since: Option<Duration>,
    /// Also evict records all of whose layers an image holds anyway.
    pub all: bool,
    /// Also evict images that have a name. Those without one are evicted in any case.
    pub images: bool,
    /// Evict only what fits all of these.
    pub filters: Vec<Filter>,
}

/// Restricts what is evicted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    /// Of this kind; cache mounts are `exec.cachemount`.
    Kind(String),
    /// Not of this kind.
    NotKind(String),
    /// Whose description contains this.
    Description(String),
    /// Not used for this long.
    UnusedFor(Duration),
}

impl Filter {
    pub(crate) fn accepts(&self, kind: &str, description: &str, used_ms: i64) -> bool {
        match self {
            Self::Kind(wanted) => kind == wanted,
            Self::NotKind(other) => kind != other,
            Self::Description(part) => description.contains(part),
            Self::UnusedFor(time) => is_older(used_ms, *time),
        }
    }
}

pub(crate) fn is_older(used_ms: i64, time: Duration) -> bool {
    i128::from(now_ms()) - i128::from(used_ms) >= time.as_millis() as i128
}

/// What space is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Cache records. Their bytes count under what they held.
    Records,
    /// Unpacked layers.
    Layers,
    /// Blobs.
    Blobs,
    /// Cache mounts.
    CacheMounts,
    /// What sources keep: repositories, packages.
    Sources,
    /// Names of images. Their bytes count under what they held.
    Images,
    /// Build logs.
    Logs,
    /// Downloads that were cut off.
    Partials,
    /// What dead processes left.
    Debris,
}

/// What was removed of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Freed {
    /// How many.
    pub count: u64,
    /// Allocated bytes that are free now.
    pub bytes: u64,
}

/// What a collection removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// By kind.
    pub freed: BTreeMap<Kind, Freed>,
    /// What was evicted: (kind, description), in that order.
    pub evicted: Vec<(String, String)>,
}

impl Report {
    /// Bytes freed in all.
    pub fn bytes(&self) -> u64 {
        self.freed.values().map(|f| f.bytes).sum()
    }

    pub(super) fn add(&mut self, kind: Kind, count: u64, bytes: u64) {
        if count > 0 {
            let freed = self.freed.entry(kind).or_default();
            freed.count += count;
            freed.bytes += bytes;
        }
    }
}
