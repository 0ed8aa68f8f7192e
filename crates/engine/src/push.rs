//! `push`: an image of the store into a registry, with as little traffic as possible.
//!
//! Manifests go last, and an index after its manifests: a name never leads to something that is not whole.

use std::collections::HashSet;
use std::io::{self, Read};
use std::time::Duration;

use kiln_oci::{Descriptor, Digest, Manifest, ManifestKind, Reference};
use kiln_registry::{BlobSource, Pushed};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::steps::{Reporter, Step};
use crate::transfer::in_parallel;

/// How long it is remembered where a blob was pushed to.
const REMEMBER: Duration = Duration::from_secs(90 * 24 * 3600);

impl Engine {
    /// Uploads an image; blobs that the registry has are left out.
    pub fn push_image(&self, name: &Reference, target: &Descriptor, by_digest: bool, step: &Step) -> Result<()> {
        Push::new(self, step).image(name, target, by_digest)
    }
}

/// A push.
pub(crate) struct Push<'a> {
    engine: &'a Engine,
    step: &'a Step,
    /// Blobs that are known to be there.
    sent: HashSet<Digest>,
}

impl<'a> Push<'a> {
    pub fn new(engine: &'a Engine, step: &'a Step) -> Self {
        Self { engine, step, sent: HashSet::new() }
    }

    /// Leaves out what was sent before.
    pub fn without(self, sent: HashSet<Digest>) -> Self {
        Self { sent, ..self }
    }

    /// An image with all that belongs to it.
    pub fn image(&self, name: &Reference, target: &Descriptor, by_digest: bool) -> Result<()> {
        let origin = self.engine.origin(&target.digest)?;
        self.target(name, target, by_digest, origin.as_ref()).map_err(|e| e.of_image(&name.familiar()))
    }

    fn target(&self, name: &Reference, target: &Descriptor, by_digest: bool, origin: Option<&Reference>) -> Result<()> {
        let bytes = self.engine.manifest_bytes(target, origin)?;
        let kind =
            kiln_oci::parse_manifest(&bytes, Some(&target.media_type)).map_err(|e| Error::request(e.to_string()))?;
        match kind {
            ManifestKind::Manifest(manifest) => self.blobs(name, &manifest, origin)?,
            ManifestKind::Index(index) => {
                for entry in &index.manifests {
                    self.target(&name.with_digest(entry.digest), entry, true, origin)?;
                }
            }
        }
        let dest = if by_digest { name.with_digest(target.digest) } else { name.clone() };
        self.engine.registry.push_manifest(&dest, &target.media_type, &bytes)?;
        self.step.progress(&format!("pushed {dest}"), target.size, Some(target.size), true);
        Ok(())
    }

    fn blobs(&self, name: &Reference, manifest: &Manifest, origin: Option<&Reference>) -> Result<()> {
        let mut blobs: Vec<Descriptor> = manifest.layers.clone();
        blobs.push(manifest.config.clone());
        self.each(&blobs, |blob| {
            let kind = if blob.digest == manifest.config.digest { "config" } else { "layer" };
            self.blob(name, blob, kind, origin)
        })
    }

    /// Each blob once, if it was not sent, a few at the same time.
    pub fn each(&self, blobs: &[Descriptor], push: impl Fn(&Descriptor) -> Result<()> + Sync) -> Result<()> {
        let mut blobs: Vec<&Descriptor> = blobs.iter().filter(|b| !self.sent.contains(&b.digest)).collect();
        blobs.sort_by_key(|b| b.digest);
        blobs.dedup_by_key(|b| b.digest);
        in_parallel(&blobs, |blob| push(blob))
    }

    /// One blob, which is shown as a `kind`.
    pub fn blob(&self, name: &Reference, blob: &Descriptor, kind: &str, origin: Option<&Reference>) -> Result<()> {
        let engine = self.engine;
        let from = engine.blob_origin(&blob.digest)?.or_else(|| origin.cloned());
        let reporter = self.step.reporter(&format!("{kind} {}", blob.digest.short()));
        if !engine.store.content().holds(blob)? {
            // A layer of a base that was never needed here: it goes from registry to registry.
            if engine.registry.has_blob(name, &blob.digest)? {
                reporter.done(blob.size, "is there");
                return Ok(());
            }
            let from = from.as_ref().ok_or_else(|| kiln_store::Error::BlobMissing(Box::new(blob.digest)))?;
            engine.fetch_blob(from, blob, Some(self.step))?;
        }
        let source = StoredBlob { engine, blob, reporter: reporter.clone() };
        let before = engine.store.meta().get_as::<String>(&pushed_key(name, &blob.digest))?;
        let mounts: Vec<Reference> = from.into_iter().chain(before.iter().filter_map(|n| n.parse().ok())).collect();
        let pushed = engine.registry.push_blob(name, blob, &source, &mounts);
        // Whatever the registry made of it: if the blob is damaged, that is why.
        match pushed.map_err(|e| engine.store.content().check(&blob.digest).err().map_or(e.into(), Error::from))? {
            Pushed::Exists => reporter.done(blob.size, "is there"),
            Pushed::Mounted(from) => reporter.done(blob.size, &format!("mounted from {from}")),
            Pushed::Uploaded(_) => reporter.done(blob.size, ""),
        }
        self.remember(name, &blob.digest, before.as_deref())
    }

    /// That a repository has a blob, for mounts from there; `before` was remembered.
    pub fn remember(&self, name: &Reference, blob: &Digest, before: Option<&str>) -> Result<()> {
        let here = name.name();
        if before != Some(&here) {
            self.engine.store.meta().put_as(&pushed_key(name, blob), &here, Some(REMEMBER))?;
        }
        Ok(())
    }
}

impl Engine {
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
}

/// Where a registry has a blob, for a mount from there.
fn pushed_key(name: &Reference, blob: &Digest) -> String {
    format!("pushed {} {blob}", name.registry())
}

/// A blob of the store, for uploads.
struct StoredBlob<'a> {
    engine: &'a Engine,
    blob: &'a Descriptor,
    reporter: Reporter,
}

impl BlobSource for StoredBlob<'_> {
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + '_>> {
        let mut file = self.engine.store.content().open(&self.blob.digest).map_err(io::Error::other)?;
        io::Seek::seek(&mut file, io::SeekFrom::Start(offset))?;
        Ok(Box::new(Shown { file, done: offset, total: self.blob.size, reporter: self.reporter.clone() }))
    }
}

/// Shows how far an upload is.
struct Shown {
    file: std::fs::File,
    done: u64,
    total: u64,
    reporter: Reporter,
}

impl Read for Shown {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buf)?;
        self.done += n as u64;
        self.reporter.progress(self.done, self.total);
        Ok(n)
    }
}
