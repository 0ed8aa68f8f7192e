//! `pull`: an image from a registry into the store, unpacked while it comes.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use kiln_oci::{Descriptor, Digest, Platform, Reference, media};
use kiln_registry::Resolved;

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::steps::Step;
use crate::transfer::{in_parallel, origin_key};

/// An image that was pulled.
#[derive(Debug, Clone)]
pub struct Pulled {
    /// What the name leads to in the store: the registry's manifest or index, or one platform's manifest.
    pub target: Descriptor,
    /// What the name leads to in the registry.
    pub digest: Digest,
    /// Whether the name led to something else before, or to nothing.
    pub changed: bool,
}

impl Engine {
    /// Downloads an image, unpacks its layers, and gives it its name in the store. Without a platform, an index is kept as
    /// it is, so that the name has the registry's digest; of its images, the one for this machine is fetched.
    ///
    /// The name is changed last: an image that did not come whole is not there.
    pub fn pull_image(&self, name: &Reference, platform: Option<&Platform>, step: &Step) -> Result<Pulled> {
        self.pull_found(name, self.registry.resolve(name)?, platform, step)
    }

    /// Asks what names lead to, several at once: where a registry is far away, asking for one after the other would take longer
    /// than all else. Each answer is for [`Engine::pull_found`].
    pub fn find_all(&self, names: &[Reference]) -> Vec<Result<Resolved>> {
        let found: Vec<Mutex<Option<Result<Resolved>>>> = names.iter().map(|_| Mutex::default()).collect();
        let asked: Vec<_> = names.iter().zip(&found).collect();
        // The errors are in the answers; what has none was not asked.
        _ = in_parallel(&asked, |(name, answer)| {
            let resolved = self.registry.resolve(name).map_err(Error::from);
            *answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(resolved);
            Ok(())
        });
        let taken = |answer: Mutex<Option<_>>| answer.into_inner().unwrap_or_else(PoisonError::into_inner);
        found.into_iter().map(|answer| taken(answer).unwrap_or(Err(Error::Cancelled))).collect()
    }

    /// [`Engine::pull_image`] of what the name was found to lead to.
    pub fn pull_found(
        &self,
        name: &Reference,
        found: Resolved,
        platform: Option<&Platform>,
        step: &Step,
    ) -> Result<Pulled> {
        let before = self.store.images().resolve(name)?.map(|image| image.target.digest);
        self.store.content().put(&found.bytes)?;
        let whole = found.descriptor.clone();
        let known = self.select_remote(name, found, platform.unwrap_or(&Platform::host()))?;
        let layers = &known.manifest.layers;
        if layers.iter().all(|l| media::layer_compression(&l.media_type).is_some()) {
            let snapshot = self.image_snapshot(&known)?;
            let mut unpacked = BTreeSet::new();
            for (id, blob) in snapshot.0.iter().zip(layers) {
                if self.store.layers().get(id)?.unpacked && unpacked.insert(blob.digest) {
                    step.reporter(&format!("layer {}", blob.digest.short())).done(blob.size, "is here");
                }
            }
            self.unpacker.unpack_shown(&snapshot.0, step)?;
        } else {
            self.pull_artifact(name, layers, step)?;
        }
        let (digest, target) = (whole.digest, if platform.is_some() { known.descriptor } else { whole });
        self.store.meta().put_as(&origin_key(&target.digest), &name.to_string(), None)?;
        self.store.images().put(name, &target)?;
        Ok(Pulled { changed: before != Some(target.digest), digest, target })
    }

    /// What has the form of an image but no file systems in it, a chart for example: its blobs as they are.
    fn pull_artifact(&self, name: &Reference, blobs: &[Descriptor], step: &Step) -> Result<()> {
        let mut blobs = blobs.to_vec();
        blobs.sort_by_key(|b| b.digest);
        blobs.dedup_by_key(|b| b.digest);
        in_parallel(&blobs, |blob| match self.store.content().has(&blob.digest)? {
            true => {
                step.reporter(&format!("layer {}", blob.digest.short())).done(blob.size, "is here");
                Ok(())
            }
            false => self.fetch_blob(name, blob, Some(step)),
        })
    }
}
