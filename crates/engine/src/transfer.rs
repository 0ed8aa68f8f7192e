//! Images between the store and registries.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::Arc;

use kiln_oci::media;
use kiln_oci::{Descriptor, Digest, ImageConfig, Manifest, ManifestKind, Platform, Reference};
use kiln_registry::{BlobSource, Client, Pushed, Resolved};
use kiln_store::{LayerBlob, LayerId, LayerMeta, Snapshot};

use crate::cache::Location;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::layers::{Fetch, Remote};
use crate::steps::Step;

/// Largest image config that is read, in bytes.
const MAX_CONFIG: u64 = 16 << 20;
/// Blobs that are transferred at once.
const PARALLEL: usize = 4;

/// Fetches blobs from registries and caches.
pub struct RegistryFetch {
    client: Arc<Client>,
    keys: Arc<crate::cache::Keys>,
}

impl RegistryFetch {
    /// With this client.
    pub fn new(client: Arc<Client>, keys: Arc<crate::cache::Keys>) -> Self {
        Self { client, keys }
    }
}

impl Fetch for RegistryFetch {
    fn blob(&self, remote: &Remote, descriptor: &Descriptor) -> Result<Box<dyn Read + Send>> {
        if let Some(location) = &remote.cache
            && *location != Location::Registry
        {
            return crate::cache::open(location, &self.keys, descriptor);
        }
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

    pub(crate) fn find_local(&self, name: &Reference, platform: &Platform) -> Result<Option<KnownImage>> {
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
        for (descriptor, diff_id) in layers.into_iter().zip(diff_ids) {
            let compression = media::layer_compression(&descriptor.media_type).ok_or_else(|| {
                Error::request(format!("layer media type {:?} is not supported", descriptor.media_type))
            })?;
            let remote = image.remote.as_ref().and_then(|r| Remote::image(r).to_text());
            let blob = LayerBlob { compression, level: None, descriptor: descriptor.clone() };
            let meta = LayerMeta { diff_id: Some(*diff_id), blobs: vec![blob], remote, ..LayerMeta::default() };
            // Overlay refuses a directory twice, but an image may have a layer twice: an empty one, for example.
            ids.push(self.store.layers().create_lazy_beside(&meta, &ids)?);
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

    /// One stream: download, store, verify. A download that was cut off goes on where it was.
    pub(crate) fn fetch_blob(&self, name: &Reference, blob: &Descriptor, step: Option<&Step>) -> Result<()> {
        let _lock = self.store.lock(&format!("blob.{}", blob.digest.hex()), &mut || {})?;
        if self.store.content().has(&blob.digest)? {
            return Ok(());
        }
        match self.download(name, blob, step) {
            // What an earlier try left may be what is wrong: once more, from the beginning.
            Err(Error::Store(kiln_store::Error::DigestMismatch { .. })) => self.download(name, blob, step),
            other => other,
        }
    }

    fn download(&self, name: &Reference, blob: &Descriptor, step: Option<&Step>) -> Result<()> {
        let (mut writer, offset) = self.store.content().writer_resume(&blob.digest)?;
        let mut reader = self.registry.blob(name, blob, offset)?.without_digest_check();
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

    /// Downloads an image with all its blobs, and gives it its name in the store. Without a platform, an index is kept as it
    /// is, so that the name has the registry's digest; of its images, the one for this machine is fetched.
    pub fn pull_image(&self, name: &Reference, platform: Option<&Platform>, step: &Step) -> Result<Pulled> {
        let before = self.store.images().resolve(name)?.map(|image| image.target.digest);
        let found = self.registry.resolve(name)?;
        self.store.content().put(&found.bytes)?;
        let whole = found.descriptor.clone();
        let known = self.select_remote(name, found, platform.unwrap_or(&Platform::host()))?;
        let mut blobs = known.manifest.layers.clone();
        blobs.sort_by_key(|b| b.digest);
        blobs.dedup_by_key(|b| b.digest);
        in_parallel(&blobs, |blob| {
            if self.store.content().has(&blob.digest)? {
                step.progress(&format!("layer {} is here", blob.digest.short()), blob.size, Some(blob.size), true);
                return Ok(());
            }
            self.fetch_blob(name, blob, Some(step))
        })?;
        // Layers remember where they came from: a later push to the same registry mounts them.
        if known.manifest.layers.iter().all(|l| media::layer_compression(&l.media_type).is_some()) {
            self.image_snapshot(&known)?;
        }
        let target = if platform.is_some() { known.descriptor } else { whole };
        self.store.meta().put_as(&origin_key(&target.digest), &name.to_string(), None)?;
        self.store.images().put(name, &target)?;
        Ok(Pulled { changed: before != Some(target.digest), target })
    }

    /// Uploads an image; blobs that the registry has are left out.
    pub fn push_image(&self, name: &Reference, target: &Descriptor, by_digest: bool, step: &Step) -> Result<()> {
        let origin = self.origin(&target.digest)?;
        self.push_target(name, target, by_digest, origin.as_ref(), step)
    }

    fn push_target(
        &self,
        name: &Reference,
        target: &Descriptor,
        by_digest: bool,
        origin: Option<&Reference>,
        step: &Step,
    ) -> Result<()> {
        let bytes = self.manifest_bytes(target, origin)?;
        let kind =
            kiln_oci::parse_manifest(&bytes, Some(&target.media_type)).map_err(|e| Error::request(e.to_string()))?;
        match kind {
            ManifestKind::Manifest(manifest) => self.push_blobs(name, &manifest, origin, step)?,
            ManifestKind::Index(index) => {
                for entry in &index.manifests {
                    self.push_target(&name.with_digest(entry.digest), entry, true, origin, step)?;
                }
            }
        }
        let dest = if by_digest { name.with_digest(target.digest) } else { name.clone() };
        self.registry.push_manifest(&dest, &target.media_type, &bytes)?;
        step.progress(&format!("pushed {dest}"), target.size, Some(target.size), true);
        Ok(())
    }

    /// A manifest of the store. Of an index, only one platform was pulled: the others go from their registry to the new one.
    fn manifest_bytes(&self, target: &Descriptor, origin: Option<&Reference>) -> Result<Vec<u8>> {
        if self.store.content().has(&target.digest)? {
            return Ok(self.store.content().read_small(&target.digest, kiln_oci::MAX_MANIFEST)?);
        }
        let missing = || {
            let platform = target.platform.as_ref().map_or_else(|| target.digest.to_string(), ToString::to_string);
            Error::request_with_hint(
                format!("the image's manifest for {platform} is not in the store"),
                "push one platform: --platform",
            )
        };
        let found = self.registry.manifest(origin.ok_or_else(missing)?, target)?;
        self.store.content().put(&found.bytes)?;
        Ok(found.bytes)
    }

    fn push_blobs(&self, name: &Reference, manifest: &Manifest, origin: Option<&Reference>, step: &Step) -> Result<()> {
        let mut blobs: Vec<Descriptor> = manifest.layers.clone();
        blobs.push(manifest.config.clone());
        blobs.sort_by_key(|b| b.digest);
        blobs.dedup_by_key(|b| b.digest);
        in_parallel(&blobs, |blob| self.push_blob(name, blob, origin, step))
    }

    fn push_blob(&self, name: &Reference, blob: &Descriptor, origin: Option<&Reference>, step: &Step) -> Result<()> {
        let from = self.blob_origin(&blob.digest)?.or_else(|| origin.cloned());
        let item = format!("layer {}", blob.digest.short());
        let report = |what: &str| step.progress(&format!("{item}{what}"), blob.size, Some(blob.size), true);
        if !self.store.content().has(&blob.digest)? {
            // A layer of a base that was never needed here: it goes from registry to registry.
            if self.registry.has_blob(name, &blob.digest)? {
                report(" is there");
                return Ok(());
            }
            let from = from.as_ref().ok_or_else(|| kiln_store::Error::BlobMissing(Box::new(blob.digest)))?;
            self.fetch_blob(from, blob, Some(step))?;
        }
        let source = StoredBlob { engine: self, blob, step, item: item.clone() };
        let mounts: Vec<Reference> = from.into_iter().collect();
        match self.registry.push_blob(name, blob, &source, &mounts)? {
            Pushed::Exists => report(" is there"),
            Pushed::Mounted(from) => report(&format!(" mounted from {from}")),
            Pushed::Uploaded(_) => report(""),
        }
        Ok(())
    }

    /// The repository that a blob is known to be in.
    pub(crate) fn blob_origin(&self, digest: &Digest) -> Result<Option<Reference>> {
        let layer = self.store.layers().find_by_blob(digest)?.map(|id| self.store.layers().get(&id)).transpose()?;
        let remote = layer.as_ref().and_then(Remote::of);
        Ok(remote.and_then(|r| r.reference.parse().ok()))
    }

    /// Where an image was pulled from.
    fn origin(&self, target: &Digest) -> Result<Option<Reference>> {
        Ok(self.store.meta().get_as::<String>(&origin_key(target))?.and_then(|name| name.parse().ok()))
    }
}

/// An image that was pulled.
#[derive(Debug, Clone)]
pub struct Pulled {
    /// Its manifest or index.
    pub target: Descriptor,
    /// Whether the name led to something else before, or to nothing.
    pub changed: bool,
}

fn origin_key(target: &Digest) -> String {
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
        let workers: Vec<_> = (0..parallel.min(items.len())).map(|_| scope.spawn(worker)).collect();
        let results: Vec<Result<()>> = workers.into_iter().map(|w| w.join().unwrap_or(Err(Error::Cancelled))).collect();
        results.into_iter().collect()
    })
}

/// A blob of the store, for uploads.
struct StoredBlob<'a> {
    engine: &'a Engine,
    blob: &'a Descriptor,
    step: &'a Step,
    item: String,
}

impl BlobSource for StoredBlob<'_> {
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + '_>> {
        let mut file = self.engine.store.content().open(&self.blob.digest).map_err(io::Error::other)?;
        io::Seek::seek(&mut file, io::SeekFrom::Start(offset))?;
        Ok(Box::new(Shown { file, done: offset, source: self }))
    }
}

/// Shows how far an upload is.
struct Shown<'a> {
    file: std::fs::File,
    done: u64,
    source: &'a StoredBlob<'a>,
}

impl Read for Shown<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buf)?;
        self.done += n as u64;
        self.source.step.progress(&self.source.item, self.done, Some(self.source.blob.size), false);
        Ok(n)
    }
}

fn registry_error(error: io::Error) -> Error {
    match kiln_registry::Error::from_io(error) {
        Ok(error) => Error::Registry(error),
        Err(error) => Error::io("download", "a blob", error),
    }
}
