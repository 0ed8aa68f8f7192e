//! Blobs become unpacked layers. The other direction is `pack`.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use kiln_compress::ReadAhead;
use kiln_oci::{Descriptor, Digest, Hasher, Reference};
use kiln_rootfs::apply::{Applied, ApplyOptions, Limits, apply, copy_up_parents};
use kiln_rootfs::{Ownership, Root, RootfsError};
use kiln_store::{Layer, LayerDraft, LayerId, Store};
use serde::{Deserialize, Serialize};

use crate::cache::Location;
use crate::download::{Download, Origins, worth_another};
use crate::error::{Error, Result};
use crate::steps::{Reporter, Step, Steps};
use crate::transfer::in_parallel;

/// Where the blob of a lazy layer can be had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remote {
    /// An image name in the repository that has it; empty if it is not in a registry.
    pub reference: String,
    /// Set if it came with an imported cache: then it can also be made again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<Location>,
}

impl Remote {
    /// In a registry, as part of an image.
    pub fn image(reference: &Reference) -> Self {
        Self { reference: reference.to_string(), cache: None }
    }

    /// Of a layer.
    pub fn of(layer: &Layer) -> Option<Self> {
        serde_json::from_str(layer.remote.as_deref()?).ok()
    }

    /// As people know it.
    fn name(&self) -> String {
        if self.reference.is_empty() { "the imported cache".to_owned() } else { self.reference.clone() }
    }

    /// What is recorded.
    pub fn to_text(&self) -> Option<String> {
        serde_json::to_string(self).ok()
    }
}

/// Unpacks layers.
#[derive(Clone)]
pub struct Unpacker {
    store: Store,
    ownership: Ownership,
    origins: Origins,
    /// Where a download that nobody announced becomes a step of its own.
    steps: Arc<Mutex<Option<Steps>>>,
    /// Layers that were found unpacked: a state of fifty layers is asked for with each of its steps.
    unpacked: Arc<Mutex<HashSet<LayerId>>>,
}

/// A layer that is unpacked but for the metadata of directories that only layers below it describe.
struct Pending {
    draft: LayerDraft,
    implicit: Vec<PathBuf>,
    /// Bytes of the regular files.
    size: u64,
}

impl Unpacker {
    /// Into a store.
    pub fn new(store: Store, ownership: Ownership, origins: Origins) -> Self {
        Self { store, ownership, origins, steps: Arc::default(), unpacked: Arc::default() }
    }

    /// Where it has its blobs from.
    pub(crate) fn origins(&self) -> &Origins {
        &self.origins
    }

    /// Shows downloads as steps from now on.
    pub fn show(&self, steps: Steps) {
        *self.steps.lock().unwrap_or_else(PoisonError::into_inner) = Some(steps);
    }

    /// Makes sure that all of them are unpacked. They are those of one state, lowest first.
    pub fn unpack(&self, layers: &[LayerId]) -> Result<()> {
        let missing = self.missing(layers)?;
        let mut remote = None;
        for (_, layer) in &missing {
            if let (Some(blob), None) = (layer.blobs.first(), &remote)
                && !self.store.content().has(&blob.descriptor.digest)?
            {
                remote = Remote::of(layer).map(|r| r.name());
            }
        }
        let steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match (remote, steps) {
            (Some(name), Some(steps)) => {
                let step = steps.begin(&format!("[internal] pull {name}"));
                let result = self.unpack_missing(layers, &missing, Some(&step));
                step.conclude(result)
            }
            _ => self.unpack_missing(layers, &missing, None),
        }
    }

    /// The same, as part of a step that shows the progress of each layer.
    pub fn unpack_shown(&self, layers: &[LayerId], step: &Step) -> Result<()> {
        let missing = self.missing(layers)?;
        self.unpack_missing(layers, &missing, Some(step))
    }

    fn missing(&self, layers: &[LayerId]) -> Result<Vec<(usize, Layer)>> {
        let mut missing = Vec::new();
        let mut unpacked = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        for (index, id) in layers.iter().enumerate().filter(|(_, id)| !unpacked.contains(id)).collect::<Vec<_>>() {
            let layer = self.store.layers().get(id)?;
            if !layer.unpacked {
                missing.push((index, layer));
            } else if self.store.layers().intact(id)? {
                unpacked.insert(*id);
            } else {
                let gone = || Error::lost(&layer, kiln_store::Error::LayerMissing(*id).into());
                missing.push((index, self.store.layers().find(id)?.ok_or_else(gone)?));
            }
        }
        Ok(missing)
    }

    fn unpack_missing(&self, layers: &[LayerId], missing: &[(usize, Layer)], step: Option<&Step>) -> Result<()> {
        let pending = Mutex::new(BTreeMap::new());
        in_parallel(missing, |(index, layer)| {
            if let Some(unfinished) = self.unpack_one(layer, step)? {
                pending.lock().unwrap_or_else(PoisonError::into_inner).insert(*index, unfinished);
            }
            Ok(())
        })?;
        // From below, since a layer may take what it lacks from one that lacked something itself.
        for (index, Pending { draft, implicit, size }) in pending.into_inner().unwrap_or_else(PoisonError::into_inner) {
            let below: Vec<PathBuf> = layers[..index].iter().map(|id| self.store.layers().path(id)).collect();
            if !below.is_empty() {
                let upper = Root::open(draft.fs())?.with_ownership(self.ownership);
                copy_up_parents(&upper, &crate::views::merged(&below, self.ownership)?, &implicit)?;
            }
            self.store.layers().commit_unpack(&layers[index], draft, size)?;
        }
        Ok(())
    }

    /// Unpacks it from the first of its blobs that is good; those that are here come first.
    fn unpack_one(&self, layer: &Layer, step: Option<&Step>) -> Result<Option<Pending>> {
        let _lock = self.store.lock(&format!("layer.{}", layer.id), &mut || {})?;
        let is_done = self.store.layers().get(&layer.id)?.unpacked;
        let (mut here, mut elsewhere) = (Vec::new(), Vec::new());
        for blob in &layer.blobs {
            let known = self.store.content().has(&blob.descriptor.digest)?;
            if known { here.push(&blob.descriptor) } else { elsewhere.push(&blob.descriptor) }
        }
        let mut failure = Error::request(format!("layer {} has no content", layer.id));
        for blob in here.into_iter().chain(elsewhere) {
            let item = format!("layer {}", blob.digest.short());
            let reporter = step.map_or_else(Reporter::none, |s| s.reporter(&item));
            if is_done {
                reporter.done(blob.size, "is here");
                return Ok(None);
            }
            match self.unpack_good(layer, blob, &reporter) {
                Ok(unfinished) => return Ok(unfinished),
                Err(error) => failure = error,
            }
        }
        if is_done { Ok(None) } else { Err(Error::lost(layer, failure)) }
    }

    /// Unpacks a blob; one that was damaged here is fetched again, if it is known from where.
    fn unpack_good(&self, layer: &Layer, blob: &Descriptor, reporter: &Reporter) -> Result<Option<Pending>> {
        let content = self.store.content();
        let was_here = content.holds(blob)?;
        let failure = match self.unpack_blob(layer, blob, reporter) {
            Err(error) if was_here => error,
            other => return other,
        };
        match content.check(&blob.digest) {
            Err(kiln_store::Error::BlobDamaged { .. }) if layer.remote.is_some() => {
                self.unpack_blob(layer, blob, reporter)
            }
            Err(damage @ kiln_store::Error::BlobDamaged { .. }) => Err(damage.into()),
            _ => Err(failure),
        }
    }

    fn unpack_blob(&self, layer: &Layer, blob: &Descriptor, reporter: &Reporter) -> Result<Option<Pending>> {
        let unfinished = match self.try_unpack(layer, blob, reporter) {
            Err((error, resumed)) if worth_another(&error, resumed) => self.try_unpack(layer, blob, reporter),
            other => other,
        };
        let unfinished = unfinished.map_err(|(error, _)| error)?;
        reporter.done(blob.size, "");
        if !unfinished.implicit.is_empty() {
            return Ok(Some(unfinished));
        }
        self.store.layers().commit_unpack(&layer.id, unfinished.draft, unfinished.size)?;
        Ok(None)
    }

    /// One stream: fetch, store the blob, verify, decompress, verify, unpack.
    ///
    /// The error tells with it whether what was left of an earlier download was used.
    fn try_unpack(&self, layer: &Layer, blob: &Descriptor, reporter: &Reporter) -> Result<Pending, (Error, bool)> {
        let plain = |e: Error| (e, false);
        let draft = self.store.layers().unpack_draft(&layer.id).map_err(|e| plain(e.into()))?;
        let root = Root::open(draft.fs()).map_err(|e| plain(e.into()))?.with_ownership(self.ownership);
        let (download, stream): (_, Box<dyn Read + Send>) = match self.download(layer, blob, reporter).map_err(plain)? {
            Some(download) => (Some(download.clone()), Box::new(download)),
            None => (None, Box::new(self.store.content().open(&blob.digest).map_err(|e| plain(e.into()))?)),
        };
        let hasher = layer.diff_id.map_or_else(Hasher::new, |diff_id| diff_id.hasher());
        let unpacked = self.decode((stream, hasher), &root, blob);
        let resumed = download.as_ref().is_some_and(Download::resumed);
        let (applied, diff_id) = match (unpacked, &download) {
            (Ok(done), Some(download)) => download.finish().map(|()| done).map_err(|e| (e, resumed))?,
            (Ok(done), None) => done,
            (Err(e), Some(download)) => return Err((download.failure(e), resumed)),
            (Err(e), None) => return Err(plain(e)),
        };
        if let Some(expected) = layer.diff_id.filter(|expected| *expected != diff_id) {
            return Err(plain(Error::request(format!(
                "layer {} is damaged: its content is {diff_id}, the image says {expected}",
                blob.digest
            ))));
        }
        Ok(Pending { draft, implicit: applied.implicit, size: applied.bytes })
    }

    /// `None` if the blob is here.
    fn download(&self, layer: &Layer, blob: &Descriptor, reporter: &Reporter) -> Result<Option<Download>> {
        if self.store.content().has(&blob.digest)? {
            return Ok(None);
        }
        let remote = Remote::of(layer).ok_or_else(|| kiln_store::Error::BlobMissing(Box::new(blob.digest)))?;
        Download::start(&self.store, &self.origins, &remote, blob, reporter.clone()).map(Some)
    }

    /// Decompresses in a thread of its own, and hashes and unpacks in this one.
    fn decode(
        &self,
        (stream, hasher): (Box<dyn Read + Send>, Hasher),
        root: &Root,
        blob: &Descriptor,
    ) -> Result<(Applied, Digest)> {
        let plain = kiln_compress::decoder(stream).and_then(|(_, plain)| ReadAhead::new(plain));
        let mut plain = Hashed { inner: plain.map_err(|e| damaged(blob, &e))?, hasher };
        // No archive can be worth more than the disk: one that claims to be is stopped before it is full.
        let limits = Limits { bytes: self.store.free_space()?, ..Limits::default() };
        let applied = apply(&mut plain, root, &ApplyOptions { limits, ..ApplyOptions::default() });
        let no_room = || Error::no_room("unpack a layer into", self.store.root());
        let applied = applied.map_err(|e| match e {
            RootfsError::Limit { limit, .. } if limit == limits.bytes => no_room(),
            RootfsError::Io { source, .. } if Error::is_full(&source) => no_room(),
            other => other.into(),
        })?;
        // What follows the end of the archive counts for the digest too.
        io::copy(&mut plain, &mut io::sink()).map_err(|e| damaged(blob, &e))?;
        Ok((applied, plain.hasher.finish()))
    }
}

fn damaged(descriptor: &Descriptor, error: &io::Error) -> Error {
    Error::request(format!("layer {}: {error}", descriptor.digest))
}

/// Reads, and hashes what was read.
struct Hashed<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hasher.update(&buf[..n]);
        Ok(n)
    }
}
