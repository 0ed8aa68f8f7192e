//! Images between the store and registries: what is known of them, and the blobs of one that is used.

use std::collections::BTreeMap;

use kiln_oci::media;
use kiln_oci::{Descriptor, Digest, ImageConfig, Manifest, ManifestKind, Platform, Reference};
use kiln_registry::Resolved;
use kiln_store::{LayerBlob, LayerId, LayerMeta, Snapshot};

use crate::download::{Download, worth_another};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::layers::Remote;
use crate::steps::{Reporter, Step};

/// Largest image config that is read, in bytes.
const MAX_CONFIG: u64 = 16 << 20;
/// Blobs that are transferred at once: enough that few images have a last layer that goes alone.
const PARALLEL: usize = 6;

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

    pub(crate) fn find_local(&self, name: &Reference, platform: &Platform) -> Result<Option<KnownImage>> {
        let Some(image) = self.store.images().resolve(name)? else { return Ok(None) };
        match self.known(&image.target, platform, None) {
            Ok(known) => {
                self.uses_image(image.target.digest);
                Ok(Some(known))
            }
            Err(Error::Store(kiln_store::Error::NoPlatform { .. })) => Ok(None),
            Err(Error::Store(e @ (kiln_store::Error::BlobMissing(_) | kiln_store::Error::BlobDamaged { .. }))) => {
                // Other platforms of an index are asked for where it came from, and so is what was damaged.
                let elsewhere =
                    media::is_index(&image.target.media_type) || self.origin(&image.target.digest)?.is_some();
                if elsewhere { Ok(None) } else { Err(Error::from(e).of_image(&name.familiar())) }
            }
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
        let found = self.registry.resolve(name)?;
        self.store.content().put(&found.bytes)?;
        self.select_remote(name, found, platform)
    }

    /// The manifest for a platform behind what a name led to, and its config.
    pub(crate) fn select_remote(
        &self,
        name: &Reference,
        mut found: Resolved,
        platform: &Platform,
    ) -> Result<KnownImage> {
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
        // A layer that a build makes again of this image (as a cache) is as old as it was: so the image is the same.
        let mut made = image.config.history.iter().filter(|h| h.empty_layer != Some(true)).map(|h| h.created);
        for (descriptor, diff_id) in layers.into_iter().zip(diff_ids) {
            let created = made.next().flatten();
            let compression = media::layer_compression(&descriptor.media_type).ok_or_else(|| {
                Error::request(format!("layer media type {:?} is not supported", descriptor.media_type))
            })?;
            let remote = image.remote.as_ref().and_then(|r| Remote::image(r).to_text());
            let blob = LayerBlob { compression, level: None, descriptor: descriptor.clone() };
            let meta = LayerMeta { diff_id: Some(*diff_id), blobs: vec![blob], remote, created, size: None };
            // Overlay refuses a directory twice, but an image may have a layer twice: an empty one, for example.
            ids.push(self.store.layers().create_lazy_beside(&meta, &ids)?);
        }
        Ok(Snapshot(ids))
    }

    /// Makes sure that the blobs are in the store.
    pub fn fetch_missing(&self, blobs: &[Descriptor], remotes: &BTreeMap<Digest, String>) -> Result<()> {
        for blob in blobs {
            if self.store.content().holds(blob)? {
                continue;
            }
            let remote = remotes.get(&blob.digest).and_then(|r| serde_json::from_str::<Remote>(r).ok());
            let remote = remote.ok_or_else(|| kiln_store::Error::BlobMissing(Box::new(blob.digest)))?;
            self.fetch_blob(&parse_origin(&remote.reference)?, blob, None)?;
        }
        Ok(())
    }

    /// Makes sure that all layers of an image of the store are in it, fetching those that were left where they came from.
    pub fn fetch_layers(&self, target: &Descriptor, platform: Option<&Platform>, step: &Step) -> Result<()> {
        let missing = self.store.missing_blobs(target, platform)?;
        in_parallel(&missing, |blob| {
            let origin = self.blob_origin(&blob.digest)?;
            let origin = origin.ok_or_else(|| kiln_store::Error::BlobMissing(Box::new(blob.digest)))?;
            self.fetch_blob(&origin, blob, Some(step))
        })
    }

    /// A blob into the store, without unpacking it. A download that was cut off goes on where it was.
    pub(crate) fn fetch_blob(&self, name: &Reference, blob: &Descriptor, step: Option<&Step>) -> Result<()> {
        let _lock = self.store.lock(&format!("blob.{}", blob.digest.hex()), &mut || {})?;
        if self.store.content().holds(blob)? {
            return Ok(());
        }
        let item = format!("layer {}", blob.digest.short());
        let reporter = step.map_or_else(Reporter::none, |s| s.reporter(&item));
        let fetch = || {
            let origins = self.unpacker.origins();
            let download = Download::start(&self.store, origins, &Remote::image(name), blob, reporter.clone());
            let download = download.map_err(|e| (e, false))?;
            download.finish().map_err(|e| (e, download.resumed()))
        };
        let fetched = match fetch() {
            Err((e, resumed)) if worth_another(&e, resumed) => fetch(),
            other => other,
        };
        fetched.map_err(|(e, _)| e)?;
        reporter.done(blob.size, "");
        Ok(())
    }

    /// The repository that a blob is known to be in.
    pub(crate) fn blob_origin(&self, digest: &Digest) -> Result<Option<Reference>> {
        let layer = self.store.layers().find_by_blob(digest)?.map(|id| self.store.layers().get(&id)).transpose()?;
        let remote = layer.as_ref().and_then(Remote::of);
        Ok(remote.and_then(|r| r.reference.parse().ok()))
    }

    /// Where an image was pulled from.
    pub(crate) fn origin(&self, target: &Digest) -> Result<Option<Reference>> {
        Ok(self.store.meta().get_as::<String>(&origin_key(target))?.and_then(|name| name.parse().ok()))
    }
}

pub(crate) fn origin_key(target: &Digest) -> String {
    format!("origin {target}")
}

fn parse_origin(text: &str) -> Result<Reference> {
    text.parse().map_err(|e: kiln_oci::ReferenceError| Error::request(e.to_string()))
}

/// Runs `work` on all items, a few at once. After an error, no more are begun.
pub(crate) fn in_parallel<T: Sync>(items: &[T], work: impl Fn(&T) -> Result<()> + Sync) -> Result<()> {
    in_parallel_by(PARALLEL, items, work)
}

/// The same, so many at once.
pub(crate) fn in_parallel_by<T: Sync>(
    parallel: usize,
    items: &[T],
    work: impl Fn(&T) -> Result<()> + Sync,
) -> Result<()> {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let next = AtomicUsize::new(0);
    let worker = || {
        loop {
            let Some(item) = items.get(next.fetch_add(1, Ordering::SeqCst)) else { return Ok(()) };
            work(item).inspect_err(|_| next.store(items.len(), Ordering::SeqCst))?;
        }
    };
    if items.len() < 2 {
        return worker();
    }
    std::thread::scope(|scope| {
        let spawn = |_| std::thread::Builder::new().name("transfer".into()).spawn_scoped(scope, worker).ok();
        let workers: Vec<_> = (0..parallel.min(items.len())).filter_map(spawn).collect();
        if workers.is_empty() {
            return worker();
        }
        let results: Vec<Result<()>> = workers.into_iter().map(|w| w.join().unwrap_or(Err(Error::Cancelled))).collect();
        results.into_iter().collect()
    })
}
