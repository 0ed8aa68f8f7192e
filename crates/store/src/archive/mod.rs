//! Image archives: what `save` writes, what `load` reads, and images from a root file system.
//!
//! Three formats: the OCI image layout (a directory, or a tar of one), docker's of today (an OCI layout with `manifest.json` and
//! `repositories` beside it), and docker's from 1.10 to 24 (`manifest.json`, a config and `<id>/layer.tar`s).
//!
//! An archive comes from anywhere. Names in it are keys of a map and never become paths; blobs are verified against their names,
//! and layers that have no digest of their own against the config's diff IDs; what is read into memory has a limit.

mod import;
mod layout;
mod load;
mod save;

pub use import::ImportOptions;
pub use layout::OciLayout;
pub use load::{LoadOptions, Loaded};
pub use save::{ArchiveFormat, SaveImage, SaveReport};

use serde::{Deserialize, Serialize};

/// An entry of docker's `manifest.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerManifest {
    config: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    layers: Vec<String>,
}

/// Go writes an empty list as `null`.
fn null_is_empty<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

/// Largest `index.json` or `manifest.json` that is read.
const MAX_INDEX: u64 = 16 << 20;
