//! The cache that travels: imported from and exported to registries, directories, buckets and images.
//!
//! | module | what |
//! |---|---|
//! | `spec` | the attributes of `--cache-from` and `--cache-to` |
//! | `config` | the cache config: BuildKit's form, kiln's records |
//! | `registry`, `local`, `s3` | where a cache can be ([`Backend`]) |
//! | `import` | records for keys that the store does not know |
//! | `times` | when imported layers were made |
//! | `inline` | keys inside an image's config |
//! | `export`, `early` | records and layers of a build |
//! | `mounts`, `chunks` | cache mounts |
//!
//! Invariants:
//! - a cache is advisory: whatever is wrong with one is one warning, and the step that it should have saved is run;
//! - importing reads manifests and configs. Layers are recorded as lazy and fetched by whoever reads them. One that turns out
//!   to be missing or damaged is forgotten with all records that need it, and the build is solved again
//!   ([`Error::LostLayer`]);
//! - what is fetched is verified against its digest, and what it unpacks to against its diff ID.

mod chunks;
mod config;
mod early;
mod export;
mod import;
mod inline;
mod local;
pub mod mounts;
mod registry;
mod s3;
mod sign;
mod spec;
mod times;

use std::collections::HashMap;
use std::io::Read;
use std::path::PathBuf;

use kiln_oci::{Descriptor, Digest};
use kiln_registry::BlobSource;
use serde::{Deserialize, Serialize};

pub use early::{Early, sending};
pub use export::export;
pub use import::Imports;
pub use inline::{InlineRecords, describe as inline_records};
pub use s3::{Bucket, Credentials, Keys};
pub use spec::{CacheFrom, CacheTo, MountSelection, Place};
pub use times::created;

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::transfer::KnownImage;
use config::CacheConfig;

/// Where the layers of an imported cache are, as it is recorded with each of them. Without credentials.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Location {
    /// In the registry that the reference beside it names.
    Registry,
    /// In an OCI layout.
    Local(PathBuf),
    /// In a bucket.
    S3(Box<Bucket>),
}

/// A place for a cache.
trait Backend: Send + Sync {
    /// For messages.
    fn name(&self) -> String;
    /// The cache that is there.
    fn load(&self) -> Result<Loaded>;
    /// What is recorded with its layers.
    fn remote(&self) -> crate::layers::Remote;
    /// Puts a blob there if it is not. Returns the bytes that were sent.
    fn put(&self, blob: &Descriptor, source: &dyn BlobSource) -> Result<u64>;
    /// Opens a blob.
    fn open(&self, blob: &Descriptor) -> Result<Box<dyn Read + Send>>;
    /// Makes the cache visible, all blobs of which are there.
    fn publish(&self, manifest: &Publish<'_>) -> Result<()>;
    /// Blobs that are put at once.
    fn parallel(&self) -> usize {
        4
    }
}

/// What a place has.
enum Loaded {
    /// A cache, and the blobs that are there by digest.
    Cache(CacheConfig, HashMap<Digest, Descriptor>),
    /// Images, which may have records inside.
    Images(Vec<KnownImage>),
}

/// A cache to make visible.
struct Publish<'a> {
    config: &'a [u8],
    blobs: &'a [Descriptor],
    to: &'a CacheTo,
}

impl Publish<'_> {
    /// The manifest: as an image manifest, or as an index whose entries are layers, which older registries take no better
    /// but which BuildKit wrote for years.
    fn manifest(&self) -> Result<(String, Vec<u8>)> {
        use kiln_oci::media;
        let config = Descriptor::of(config::CONFIG_TYPE, self.config);
        let bytes = if self.to.image_manifest {
            let manifest = kiln_oci::Manifest {
                schema_version: 2,
                media_type: if self.to.oci { media::OCI_MANIFEST } else { media::DOCKER_MANIFEST }.to_owned(),
                config,
                layers: self.blobs.to_vec(),
                annotations: Default::default(),
                extra: Default::default(),
            };
            (manifest.media_type.clone(), serde_json::to_vec(&manifest))
        } else {
            let index = kiln_oci::Index {
                schema_version: 2,
                media_type: if self.to.oci { media::OCI_INDEX } else { media::DOCKER_LIST }.to_owned(),
                manifests: self.blobs.iter().cloned().chain([config]).collect(),
                annotations: Default::default(),
                extra: Default::default(),
            };
            (index.media_type.clone(), serde_json::to_vec(&index))
        };
        let text = bytes.1.map_err(|e| Error::request(e.to_string()))?;
        if text.len() > kiln_oci::MAX_MANIFEST {
            return Err(Error::request_with_hint(
                format!("the cache has {} blobs, more than a manifest may list", self.blobs.len()),
                "use mode=min, or fewer cache mounts",
            ));
        }
        Ok((bytes.0, text))
    }
}

/// What a manifest says about a cache: the config, and the blobs that are there. `None` if it is that of an image.
fn of_manifest(kind: &kiln_oci::ManifestKind) -> Option<(Descriptor, HashMap<Digest, Descriptor>)> {
    let (config, blobs) = match kind {
        kiln_oci::ManifestKind::Manifest(manifest) => (&manifest.config, &manifest.layers),
        kiln_oci::ManifestKind::Index(index) => {
            (index.manifests.iter().find(|m| m.media_type == config::CONFIG_TYPE)?, &index.manifests)
        }
    };
    let blobs = blobs.iter().map(|b| (b.digest, b.clone())).collect();
    (config.media_type == config::CONFIG_TYPE).then(|| (config.clone(), blobs))
}

fn parse_config(bytes: &[u8]) -> Result<CacheConfig> {
    serde_json::from_slice(bytes).map_err(|e| Error::request(format!("the cache config is not valid: {e}")))
}

/// Reads all of something that is said to have so many bytes, and verifies it.
fn read_verified(reader: impl Read, blob: &Descriptor, max: u64) -> Result<Vec<u8>> {
    let damaged = |what: String| Error::request(format!("blob {} {what}", blob.digest.short()));
    if blob.size > max {
        return Err(damaged(format!("has {} bytes, more than the limit of {max}", blob.size)));
    }
    let mut bytes = Vec::new();
    reader.take(blob.size + 1).read_to_end(&mut bytes).map_err(|e| damaged(format!("can't be read: {e}")))?;
    let mut hasher = blob.digest.hasher();
    hasher.update(&bytes);
    if bytes.len() as u64 != blob.size || hasher.finish() != blob.digest {
        return Err(damaged("is damaged: its content is not what its digest says".to_owned()));
    }
    Ok(bytes)
}

/// Opens a blob of a cache that is not in a registry.
pub(crate) fn open(location: &Location, keys: &Keys, blob: &Descriptor) -> Result<Box<dyn Read + Send>> {
    match location {
        Location::Registry => Err(Error::request("a layer's origin is not valid")),
        Location::Local(dir) => local::open(dir, blob),
        Location::S3(bucket) => s3::S3::new(bucket, keys).open(blob),
    }
}

impl Engine {
    /// Opens a blob of a cache.
    fn open_remote(&self, remote: &crate::layers::Remote, blob: &Descriptor) -> Result<Box<dyn Read + Send>> {
        match &remote.cache {
            Some(location) if *location != Location::Registry => open(location, &self.s3_keys, blob),
            _ => {
                let name = remote.reference.parse().map_err(|_| Error::request("a layer's origin is not valid"))?;
                Ok(Box::new(self.registry.blob(&name, blob, 0)?))
            }
        }
    }

    /// Makes sure that a blob of a cache is in the store.
    pub(crate) fn fetch_from(&self, remote: &crate::layers::Remote, blob: &Descriptor) -> Result<()> {
        match &remote.cache {
            Some(location) if *location != Location::Registry => {
                let mut writer = self.store.content().writer_for(&blob.digest)?;
                let mut reader = open(location, &self.s3_keys, blob)?;
                std::io::copy(&mut reader, &mut writer).map_err(|e| Error::io("read", "a cached layer", e))?;
                writer.commit(Some(&blob.digest))?;
                Ok(())
            }
            _ => {
                let name = remote.reference.parse().map_err(|_| Error::request("a layer's origin is not valid"))?;
                self.fetch_blob(&name, blob, None)
            }
        }
    }

    /// Whether the blob of a layer can be had later by what reads images: from the store or a registry. What came with a cache
    /// in a directory or bucket is fetched now. `false`: it is lost, but the layer's files are here and can be packed again.
    pub(crate) fn is_within_reach(&self, layer: &kiln_store::Layer, blob: &Descriptor) -> Result<bool> {
        let remote = crate::layers::Remote::of(layer);
        let Some(remote) = remote.filter(|r| !matches!(r.cache, None | Some(Location::Registry))) else {
            return Ok(true);
        };
        if self.store.content().has(&blob.digest)? {
            return Ok(true);
        }
        match self.fetch_from(&remote, blob) {
            Ok(()) => Ok(true),
            Err(_) if layer.unpacked => Ok(false),
            Err(error) => Err(Error::lost(layer, error)),
        }
    }

    fn backend<'a>(&'a self, place: &Place, platforms: &[kiln_oci::Platform]) -> Box<dyn Backend + 'a> {
        match place {
            Place::Registry { reference, local_first, insecure } => {
                if *insecure {
                    self.registry.allow_insecure(reference.registry());
                }
                Box::new(registry::Registry {
                    engine: self,
                    reference: reference.clone(),
                    local_first: *local_first,
                    platforms: platforms.to_vec(),
                })
            }
            Place::Local { dir, tag, digest } => {
                Box::new(local::Local { dir: dir.clone(), tag: tag.clone(), digest: *digest })
            }
            Place::S3(bucket) => Box::new(s3::S3::new(bucket, &self.s3_keys)),
        }
    }
}
