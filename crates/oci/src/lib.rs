//! Image and distribution types of the OCI specifications, and the Docker ones that are still in use.
//!
//! Invariants:
//! - no I/O, and no dependency on another kiln crate;
//! - what is serialised is deterministic: maps are sorted, absent fields are left out;
//! - fields that this crate does not know survive a round trip (`extra`), because a digest is over bytes:
//!   a manifest or config that came from elsewhere is kept as the bytes received, never re-encoded.

mod config;
mod digest;
mod manifest;
pub mod media;
mod platform;
mod reference;
pub mod signal;
mod time;

pub use config::{ContainerConfig, Empty, Health, History, ImageConfig, RootFs};
pub use digest::{Digest, DigestError, Hasher, chain_id};
pub use manifest::{Descriptor, Index, MAX_MANIFEST, Manifest, ManifestError, ManifestKind, parse_manifest};
pub use platform::{Platform, PlatformError};
pub use reference::{Reference, ReferenceError};
pub use time::{Timestamp, TimestampError};

/// Annotation that carries an image's name inside an OCI layout's `index.json` (OCI image spec, annotations).
pub const ANNOTATION_REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Annotation with which containerd and docker carry the full image name.
pub const ANNOTATION_CONTAINERD_NAME: &str = "io.containerd.image.name";
