//! The state directory: content, unpacked layers, images, cache records, leases, and their collection.
//!
//! # What is on disk
//!
//! ```text
//! <root>/                     mode 0700: layers hold setuid files and devices that no other user may reach
//!   kiln.db{,-wal,-shm}       SQLite (WAL); PRAGMA user_version is the version of this whole format
//!   content/                  a plain OCI image layout that other tools can read
//!     oci-layout  index.json  index.json lists the named images; derived from kiln.db, rewritten atomically
//!     blobs/sha256/<hex>      immutable; a blob that has its name is whole, on disk, and of that digest
//!   layers/<id>/fs/           one unpacked layer in overlay's upper format; immutable
//!   containers/<id>/          a container: its writable layer in fs/, and what the crate `container` keeps beside it
//!   leases/<session>          one per process that uses the store; flock(2)ed by it, lists what it pins
//!   tmp/<session>.<n>…        drafts of that process; tmp/partial.<digest> is a download that can resume
//!                             tmp/new.<session> is a lease file that is not locked yet
//!   locks/<name>              flock(2)ed; the file is removed by the holder
//!   reserve                   a little of the disk, given back when a collection needs room to write
//!   builds/<id>.log           full output of a build
//!   mounts/<hash>/<n>/fs      cache mounts (<hash> is over the id: an id is never a path); <n>.lock beside it
//!   sources/<kind>/…          caches that sources own (git, deb, …); users of a kind hold locks/sources.<kind>
//! ```
//!
//! # Rules
//!
//! - **A write is: draft under `tmp/`, rename, then the record.** The draft's name begins with the writer's session.
//!   When the session's lease file can be locked, the writer is dead and its drafts are debris. So `kill -9` loses
//!   the step in flight and nothing else; the next process sweeps in the background and says nothing.
//! - **Power loss.** Blobs are synced before they get their name. Layers are not (that would cost more than making
//!   them): a layer's row holds the boot in which it was written, and a summary of its names, sizes and modes. In a later
//!   boot, a layer that was not known to be on disk is compared with that summary before its first use,
//!   and forgotten with its cache records if it differs. The database may lose its last transactions, never more.
//! - **Collection and use.** What a process looks up or makes while it holds a [`Lease`] is pinned: appended to the lease
//!   file under a shared `flock` of `locks/gc`. The collector holds that lock exclusively for short batches, in each of
//!   which it reads the leases again, deletes the rows and moves the files away; deleting them happens after. So a use is
//!   either before the batch, and honoured, or after it, and a miss.
//! - **Readers never wait for writers** (WAL), and writers begin with `BEGIN IMMEDIATE`. A look-up writes nothing;
//!   last use is recorded in one go with [`CacheRecords::touch`].
//! - **Tables**: `layers`, `layer_blobs`, `records`, `record_keys`, `record_layers` (a cache record is a snapshot that
//!   several keys lead to), `steps`, `images`, `roots`, `meta`, `builds`, `mounts`. `content/` has no table: a file is the record.
//! - A higher `user_version` than [`FORMAT`] is refused with [`Error::NewerStore`], before anything is written.

mod archive;
mod builds;
mod cache;
mod candidate;
mod containers;
mod content;
mod db;
mod error;
mod fsutil;
mod gc;
mod images;
mod index;
mod layers;
mod lock;
mod mark;
mod meta;
mod mounts;
mod roots;
mod session;
mod sources;
mod store;
mod usage;

pub use archive::{ArchiveFormat, ImportOptions, LoadOptions, Loaded, OciLayout, SaveImage, SaveReport};
pub use builds::{BuildInfo, BuildLog, BuildRecord, BuildStatus, Builds};
pub use cache::{CacheKey, CacheRecords, Record, Steps};
pub use containers::Containers;
pub use content::{BlobWriter, Content};
pub use db::FORMAT;
pub use error::{Error, Result};
pub use fsutil::{Removed, boot_id, random_hex};
pub use gc::{Filter, Freed, Kind, PrunePolicy, Report};
pub use images::{Image, Images, ManifestView, Put};
pub use index::ManyNames;
pub use layers::{Layer, LayerBlob, LayerDraft, LayerId, LayerMeta, Layers, Snapshot};
pub use lock::LockGuard;
pub use meta::Meta;
pub use mounts::{CacheMount, CacheMounts, MountInfo, MountOpts, Sharing};
pub use roots::{RootItem, Roots};
pub use session::Lease;
pub use store::{Scratch, Store};
pub use usage::{CacheEntry, KindUsage, Usage};
