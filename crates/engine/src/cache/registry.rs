//! Caches in registries: a manifest of their own, or records inside an image.

use std::io::Read;

use kiln_oci::{Descriptor, ManifestKind, Platform, Reference};
use kiln_registry::{BlobSource, Pushed};

use super::config::{CONFIG_TYPE, MAX_CONFIG};
use super::{Backend, Loaded, Location, Publish, of_manifest, parse_config};
use crate::engine::Engine;
use crate::error::Result;
use crate::layers::Remote;

/// A name in a registry.
pub(super) struct Registry<'a> {
    pub engine: &'a Engine,
    pub reference: Reference,
    /// An image of that name in the store is as good.
    pub local_first: bool,
    pub platforms: Vec<Platform>,
}

impl Backend for Registry<'_> {
    fn name(&self) -> String {
        self.reference.to_string()
    }

    fn load(&self) -> Result<Loaded> {
        if self.local_first {
            let here = self.platforms.iter().map(|p| self.engine.find_local(&self.reference, p));
            let here: Vec<_> = here.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
            if !here.is_empty() {
                return Ok(Loaded::Images(here));
            }
        }
        let client = &self.engine.registry;
        let found = client.resolve(&self.reference)?;
        if let Some((config, blobs)) = of_manifest(&found.kind) {
            let bytes = client.small_blob(&self.reference, &config, MAX_CONFIG)?;
            return Ok(Loaded::Cache(parse_config(&bytes)?, blobs));
        }
        self.engine.store.content().put(&found.bytes)?;
        let one = matches!(&found.kind, ManifestKind::Manifest(_));
        let mut images = Vec::new();
        for platform in self.platforms.iter().take(if one { 1 } else { usize::MAX }) {
            images.push(self.engine.select_remote(&self.reference, found.clone(), platform)?);
        }
        Ok(Loaded::Images(images))
    }

    fn remote(&self) -> Remote {
        Remote { reference: self.reference.to_string(), cache: Some(Location::Registry) }
    }

    fn put(&self, blob: &Descriptor, source: &dyn BlobSource) -> Result<u64> {
        let from = self.engine.blob_origin(&blob.digest)?;
        let from: Vec<Reference> = from.into_iter().collect();
        match self.engine.registry.push_blob(&self.reference, blob, source, &from)? {
            Pushed::Uploaded(bytes) => Ok(bytes),
            Pushed::Exists | Pushed::Mounted(_) => Ok(0),
        }
    }

    fn open(&self, blob: &Descriptor) -> Result<Box<dyn Read + Send>> {
        Ok(Box::new(self.engine.registry.blob(&self.reference, blob, 0)?))
    }

    fn publish(&self, cache: &Publish<'_>) -> Result<()> {
        let config = Descriptor::of(CONFIG_TYPE, cache.config);
        self.engine.registry.push_blob(&self.reference, &config, &cache.config.to_vec(), &[])?;
        let (media_type, bytes) = cache.manifest()?;
        self.engine.registry.push_manifest(&self.reference, &media_type, &bytes)?;
        Ok(())
    }
}
