//! Images between the store and registries.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::Arc;

use kiln_oci::media;
use kiln_oci::{Descriptor, Digest, ImageConfig, Manifest, ManifestKind, Platform, Reference};
use kiln_registry::{BlobSource, Client};
use kiln_store::{LayerBlob, LayerId, LayerMeta, Snapshot};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::layers::{Fetch, Remote};
use crate::steps::Step;

/// Largest image config that is read, in bytes.
const MAX_CONFIG: u64 = 16 << 20;
/// Blobs that are transferred at once.
const PARALLEL: usize = 4;

/// Fetches blobs from registries.
pub struct RegistryFetch {
    client: Arc<Client>,
}

impl RegistryFetch {
    /// With this client.
    pub fn new(client: Arc<Client>) -> Self {
        Self { client }
    }
}

impl Fetch for RegistryFetch {
    fn blob(&self, remote: &Remote, descriptor: &Descriptor) -> Result<Box<dyn Read + Send>> {
        let reference: Reference = remote
            .reference
            .parse()
            .map_err(|e: kiln_oci::ReferenceError| Error::request(format!("a layer's origin is not valid: {e}")))?;
        Ok(Box::new(self.client.blob(&reference, descriptor, 0)?))
    }
}

/// An image that is known, its layers not necessarily here.
#[derive(Debug, Clone)]
pub struct KnownImage {
    /// Its manifest.
    pub descriptor: Descriptor,
    /// Parsed.
    pub manifest: Manifest,
    /// Its config.
    pub config: ImageConfig,
    /// Where its layers come from; `None` if they are here.
    pub remote: Option<Reference>,
}

impl Engine {
    /// An image's manifest and config for a platform, from the store or a registry.
    pub fn find_image(&self, name: &Reference, platform: &Platform, ask_registry: bool) -> Result<KnownImage> {
        if !ask_registry && let Some(known) = self.find_image_here(name, platform)? {
            return Ok(known);
        }
        let remembered = format!("image {name} {platform}");
        let known = self.find_remote(name, platform)?;
        self.store.meta().put_as(&remembered, &known.descriptor, None)?;
        Ok(known)
    }

    /// The same, without asking anybody: from the store, or as it was last seen in a registry.
    pub fn find_image_here(&self, name: &Reference, platform: &Platform) -> Result<Option<KnownImage>> {
        if let Some(known) = self.find_local(name, platform)? {
            return Ok(Some(known));
        }
        let Some(descriptor) = self.store.meta().get_as::<Descriptor>(&format!("image {name} {platform}"))? else {
            return Ok(None);
        };
        Ok(self.known(&descriptor, platform, Some(name.clone())).ok())
    }

    fn find_local(&self, name: &Reference, platform: &Platform) -> Result<Option<KnownImage>> {
        let Some(image) = self.store.images().resolve(name)? else { return Ok(None) };
        match self.known(&image.target, platform, None) {
            Ok(known) => Ok(Some(known)),
            Err(Error::Store(kiln_store::Error::BlobMissing(_) | kiln_store::Error::NoPlatform { .. })) => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub(crate) fn known(
        &self,
        target: &Descriptor,
        platform: &Platform,
        remote: Option<Reference>,
    ) -> Result<KnownImage> {
        let view = self.store.images().manifest(target, platform)?;
        Ok(KnownImage { descriptor: view.descriptor, manifest: view.manifest, config: view.config, remote })
    }

    fn find_remote(&self, name: &Reference, platform: &Platform) -> Result<KnownImage> {
        let mut found = self.registry.resolve(name)?;
        self.store.content().put(&found.bytes)?;
        if let ManifestKind::Index(index) = &found.kind {
            let entry = index.select(platform).ok_or_else(|| {
                let available: Vec<String> =
                    index.manifests.iter().filter_map(|m| m.platform.as_ref()).map(ToString::to_string).collect();
                Error::request(format!("{name} has no image for {platform}: it has {}", available.join(", ")))
            })?;
            found = self.registry.manifest(name, entry)?;
            self.store.content().put(&found.bytes)?;
        }
        let ManifestKind::Manifest(manifest) = found.kind else {
            return Err(Error::request(format!("{name}: an index inside an index is not supported")));
        };
        let config = self.registry.small_blob(name, &manifest.config, MAX_CONFIG)?;
        self.store.content().put(&config)?;
        self.known(&found.descriptor, platform, Some(name.clone()))
    }

    /// The layers of an image as a state. Nothing is fetched.
    pub fn image_snapshot(&self, image: &KnownImage) -> Result<Snapshot> {
        let diff_ids = &image.config.rootfs.diff_ids;
        let layers: Vec<&Descriptor> = image.manifest.layers.iter().collect();
        if diff_ids.len() != layers.len() {
            return Err(Error::request(format!(
                "image {} is damaged: {} layers, but {} diff IDs",
                image.descriptor.digest,
                layers.len(),
                diff_ids.len()
            )));
        }
        let mut ids: Vec<LayerId> = Vec::new();
        for (descriptor, diff_id) in layers.into_iter().zip(diff_ids) {
            let compression = media::layer_compression(&descriptor.media_type).ok_or_else(|| {
                Error::request(format!("layer media type {:?} is not supported", descriptor.media_type))
            })?;
            let remote = image.remote.as_ref().map(|r| Remote { reference: r.to_string() });
            let remote = remote.and_then(|r| serde_json::to_string(&r).ok());
            let blob = LayerBlob { compression, level: None, descriptor: descriptor.clone() };
            let meta = LayerMeta { diff_id: Some(*diff_id), size: None, blobs: vec![blob], remote };
            let id = self.store.layers().create_lazy(&meta)?;
            // Overlay refuses a directory twice; the upper one decides in any case.
            ids.retain(|known| *known != id);
            ids.push(id);
        }
        Ok(Snapshot(ids))
    }

    /// Makes sure that the blobs are in the store.
    pub fn fetch_missing(&self, blobs: &[Descriptor], remotes: &BTreeMap<Digest, String>) -> Result<()> {
        for blob in blobs {
            if self.store.content().has(&blob.digest)? {
                continue;
            }
            let remote = remotes.get(&blob.digest).and_then(|r| serde_json::from_str::<Remote>(r).ok());
            let remote = remote.ok_or_else(|| kiln_store::Error::BlobMissing(Box::new(blob.digest)))?;
            self.fetch_blob(&remote.reference, blob, None)?;
        }
        Ok(())
    }

    fn fetch_blob(&self, reference: &str, blob: &Descriptor, step: Option<&Step>) -> Result<()> {
        let name: Reference = reference.parse().map_err(|e: kiln_oci::ReferenceError| Error::request(e.to_string()))?;
        let (mut writer, offset) = self.store.content().writer_resume(&blob.digest)?;
        let mut reader = self.registry.blob(&name, blob, offset)?.without_digest_check();
        let mut buffer = vec![0; 256 << 10];
        let item = format!("layer {}", blob.digest.short());
        let mut done = offset;
        loop {
            let n = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) => return Err(registry_error(e)),
            };
            io::Write::write_all(&mut writer, &buffer[..n]).map_err(|e| Error::io("write", "a blob", e))?;
            done += n as u64;
            if let Some(step) = step {
                step.progress(&item, done, Some(blob.size), false);
            }
        }
        writer.commit(Some(&blob.digest))?;
        if let Some(step) = step {
            step.progress(&item, blob.size, Some(blob.size), true);
        }
        Ok(())
    }

    /// Downloads an image with all its blobs and gives it its name in the store.
    pub fn pull_image(&self, name: &Reference, platform: Option<&Platform>, step: &Step) -> Result<Descriptor> {
        let host = Platform::host();
        let found = self.registry.resolve(name)?;
        self.store.content().put(&found.bytes)?;
        let known = self.find_image(name, platform.unwrap_or(&host), true)?;
        let blobs: Vec<Descriptor> = known.manifest.layers.clone();
        self.in_parallel(&blobs, |blob| {
            if self.store.content().has(&blob.digest)? {
                step.progress(&format!("layer {} is here", blob.digest.short()), blob.size, Some(blob.size), true);
                return Ok(());
            }
            self.fetch_blob(&name.to_string(), blob, Some(step))
        })?;
        let target = if platform.is_some() { known.descriptor } else { found.descriptor };
        self.store.images().put(name, &target)?;
        Ok(target)
    }

    /// Uploads an image; blobs that the registry has are left out.
    pub fn push_image(&self, name: &Reference, target: &Descriptor, by_digest: bool, step: &Step) -> Result<()> {
        let bytes = self.store.content().read_small(&target.digest, kiln_oci::MAX_MANIFEST)?;
        let kind =
            kiln_oci::parse_manifest(&bytes, Some(&target.media_type)).map_err(|e| Error::request(e.to_string()))?;
        match kind {
            ManifestKind::Manifest(manifest) => self.push_blobs(name, &manifest, step)?,
            ManifestKind::Index(index) => {
                for entry in &index.manifests {
                    self.push_image(&name.with_digest(entry.digest), entry, true, step)?;
                }
            }
        }
        let dest = if by_digest { name.with_digest(target.digest) } else { name.clone() };
        self.registry.push_manifest(&dest, &target.media_type, &bytes)?;
        step.progress(&format!("pushed {dest}"), target.size, Some(target.size), true);
        Ok(())
    }

    fn push_blobs(&self, name: &Reference, manifest: &Manifest, step: &Step) -> Result<()> {
        let mut blobs: Vec<Descriptor> = manifest.layers.clone();
        blobs.push(manifest.config.clone());
        blobs.sort_by_key(|b| b.digest);
        blobs.dedup_by_key(|b| b.digest);
        self.in_parallel(&blobs, |blob| self.push_blob(name, blob, step))
    }

    fn push_blob(&self, name: &Reference, blob: &Descriptor, step: &Step) -> Result<()> {
        let item = format!("layer {}", blob.digest.short());
        if !self.store.content().has(&blob.digest)? {
            // A layer of a base that was never needed here: it goes from registry to registry, by a mount if they are one.
            let remote =
                self.store.layers().find_by_blob(&blob.digest)?.map(|id| self.store.layers().get(&id)).transpose()?;
            let remote = remote.and_then(|l| l.remote).and_then(|r| serde_json::from_str::<Remote>(&r).ok());
            let remote = remote.ok_or_else(|| kiln_store::Error::BlobMissing(Box::new(blob.digest)))?;
            self.fetch_blob(&remote.reference, blob, Some(step))?;
        }
        let source = StoredBlob { engine: self, digest: blob.digest };
        self.registry.push_blob(name, blob, &source, &self.mount_candidates(&blob.digest)?)?;
        step.progress(&item, blob.size, Some(blob.size), true);
        Ok(())
    }

    /// Repositories that are known to have a blob.
    fn mount_candidates(&self, digest: &Digest) -> Result<Vec<Reference>> {
        let layer = self.store.layers().find_by_blob(digest)?.map(|id| self.store.layers().get(&id)).transpose()?;
        let remote = layer.and_then(|l| l.remote).and_then(|r| serde_json::from_str::<Remote>(&r).ok());
        Ok(remote.and_then(|r| r.reference.parse().ok()).into_iter().collect())
    }

    /// Bytes of each layer of an image: uncompressed where that is known, else as stored.
    pub fn layer_sizes(&self, manifest: &Manifest, config: &ImageConfig) -> Result<Vec<u64>> {
        let mut sizes = Vec::with_capacity(manifest.layers.len());
        for (descriptor, diff_id) in manifest.layers.iter().zip(&config.rootfs.diff_ids) {
            let layer =
                self.store.layers().find_by_diff_id(diff_id)?.map(|id| self.store.layers().get(&id)).transpose()?;
            sizes.push(layer.and_then(|l| l.size).unwrap_or(descriptor.size));
        }
        Ok(sizes)
    }

    /// Bytes of all layers of an image.
    pub fn image_size(&self, manifest: &Manifest, config: &ImageConfig) -> Result<u64> {
        Ok(self.layer_sizes(manifest, config)?.into_iter().sum())
    }

    /// Runs `work` on all items, a few at once; the first error ends it.
    fn in_parallel<T: Sync>(&self, items: &[T], work: impl Fn(&T) -> Result<()> + Sync) -> Result<()> {
        let next = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..PARALLEL.min(items.len()))
                .map(|_| {
                    scope.spawn(|| {
                        loop {
                            let Some(item) = items.get(next.fetch_add(1, std::sync::atomic::Ordering::SeqCst)) else {
                                return Ok(());
                            };
                            work(item)?;
                        }
                    })
                })
                .collect();
            workers.into_iter().try_for_each(|w| w.join().unwrap_or(Err(Error::Cancelled)))
        })
    }
}

/// A blob of the store, for uploads.
struct StoredBlob<'a> {
    engine: &'a Engine,
    digest: Digest,
}

impl BlobSource for StoredBlob<'_> {
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read>> {
        let mut file = self.engine.store.content().open(&self.digest).map_err(io::Error::other)?;
        io::Seek::seek(&mut file, io::SeekFrom::Start(offset))?;
        Ok(Box::new(file))
    }
}

fn registry_error(error: io::Error) -> Error {
    match kiln_registry::Error::from_io(error) {
        Ok(error) => Error::Registry(error),
        Err(error) => Error::io("download", "a blob", error),
    }
}
