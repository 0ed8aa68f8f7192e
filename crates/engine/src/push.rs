//! `push`: an image of the store into a registry, with as little traffic as possible.
//!
//! Manifests go last, and an index after its manifests: a name never leads to something that is not whole.

use std::io::{self, Read};
use std::time::Duration;

use kiln_oci::{Descriptor, Manifest, ManifestKind, Reference};
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
        let origin = self.origin(&target.digest)?;
        self.push_target(name, target, by_digest, origin.as_ref(), step).map_err(|e| e.of_image(&name.familiar()))
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
        in_parallel(&blobs, |blob| {
            let kind = if blob.digest == manifest.config.digest { "config" } else { "layer" };
            let item = format!("{kind} {}", blob.digest.short());
            self.push_blob(name, blob, origin, (&item, step))
        })
    }

    fn push_blob(
        &self,
        name: &Reference,
        blob: &Descriptor,
        origin: Option<&Reference>,
        (item, step): (&str, &Step),
    ) -> Result<()> {
        let from = self.blob_origin(&blob.digest)?.or_else(|| origin.cloned());
        let reporter = step.reporter(item);
        if !self.store.content().holds(blob)? {
            // A layer of a base that was never needed here: it goes from registry to registry.
            if self.registry.has_blob(name, &blob.digest)? {
                reporter.done(blob.size, "is there");
                return Ok(());
            }
            let from = from.as_ref().ok_or_else(|| kiln_store::Error::BlobMissing(Box::new(blob.digest)))?;
            self.fetch_blob(from, blob, Some(step))?;
        }
        let source = StoredBlob { engine: self, blob, reporter: reporter.clone() };
        let pushed_before = pushed_key(name, blob);
        let before = self.store.meta().get_as::<String>(&pushed_before)?;
        let mounts: Vec<Reference> = from.into_iter().chain(before.iter().filter_map(|n| n.parse().ok())).collect();
        let pushed = self.registry.push_blob(name, blob, &source, &mounts);
        // Whatever the registry made of it: if the blob is damaged, that is why.
        let pushed =
            pushed.map_err(|e| self.store.content().check(&blob.digest).err().map_or(e.into(), Error::from))?;
        match pushed {
            Pushed::Exists => reporter.done(blob.size, "is there"),
            Pushed::Mounted(from) => reporter.done(blob.size, &format!("mounted from {from}")),
            Pushed::Uploaded(_) => reporter.done(blob.size, ""),
        }
        let here = name.name();
        if before.as_ref() != Some(&here) {
            self.store.meta().put_as(&pushed_before, &here, Some(REMEMBER))?;
        }
        Ok(())
    }
}

/// Where a registry has a blob, for a mount from there.
fn pushed_key(name: &Reference, blob: &Descriptor) -> String {
    format!("pushed {} {}", name.registry(), blob.digest)
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
