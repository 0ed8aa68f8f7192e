//! Everything that touches a root file system: confined paths, tree digests, copies, overlays, and layers as tar streams.
//!
//! Invariants:
//! - a path that comes from a Dockerfile, an image or an archive is only ever resolved inside a [`Root`]: symlinks,
//!   absolute ones included, stay in it, and magic links (`/proc/self/fd/N`) are refused;
//! - nothing here waits on a FIFO, opens a device, or trusts a file's size;
//! - every error names the path it is about.

pub mod claim;
pub mod copy;
mod dir;
mod error;
pub mod fileops;
mod glob;
mod hash;
pub mod ids;
mod meta;
mod mode;
pub mod overlay;
mod par;
mod resolve;
mod root;
mod scan;
mod select;
mod stack;
mod stat;
mod statcache;
mod target;
mod tree;
pub mod xattr;

pub mod apply;
pub mod diff;
pub mod export;
pub mod pax;
pub mod whiteout;

pub use error::{Result, RootfsError};
pub use meta::Owner;
pub use mode::ModeChange;
pub use par::processors;
pub use root::{DirEntry, Root};
pub use select::{ManifestEntry, Selector, Source, TreeDigest, manifest, matches, tree_digest};
pub use stack::Stack;
pub use stat::{FileKind, Ownership, Stat, Time};
pub use statcache::StatCache;
pub use target::{MakeDirs, Target};
pub use tree::{ContextTree, Filter, Ignore};
