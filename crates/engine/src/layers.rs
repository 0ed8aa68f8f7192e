//! Layers between their two forms: unpacking blobs, and packing directories.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use kiln_compress::{Encoder, ReadAhead};
use kiln_executor::CancelToken;
use kiln_oci::{Descriptor, Digest, Hasher, Reference};
use kiln_rootfs::apply::{Applied, ApplyOptions, Limits, apply, copy_up_parents};
use kiln_rootfs::diff::ContentObserver;
use kiln_rootfs::diff::{DiffOptions, diff};
use kiln_rootfs::export::tar_tree;
use kiln_rootfs::{Ownership, Root};
use kiln_secrets::HitKind;
use kiln_store::{Layer, LayerBlob, LayerDraft, LayerId, Snapshot, Store};
use serde::{Deserialize, Serialize};

use crate::build::Job;
use crate::cache::Location;
use crate::download::{Download, Origins, worth_another};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::leaks::{Leak, LeakSearch, ShapeFound};
use crate::request::LayerFormat;
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
}

/// A layer that is unpacked but for the metadata of directories that only layers below it describe.
struct Pending {
    draft: LayerDraft,
    implicit: Vec<PathBuf>,
}

impl Unpacker {
    /// Into a store.
    pub fn new(store: Store, ownership: Ownership, origins: Origins) -> Self {
        Self { store, ownership, origins, steps: Arc::default() }
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
        for (index, id) in layers.iter().enumerate() {
            let layer = self.store.layers().get(id)?;
            if !layer.unpacked {
                missing.push((index, layer));
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
        for (index, Pending { draft, implicit }) in pending.into_inner().unwrap_or_else(PoisonError::into_inner) {
            let below: Vec<PathBuf> = layers[..index].iter().map(|id| self.store.layers().path(id)).collect();
            if !below.is_empty() {
                let upper = Root::open(draft.fs())?.with_ownership(self.ownership);
                copy_up_parents(&upper, &crate::views::merged(&below, self.ownership)?, &implicit)?;
            }
            self.store.layers().commit_unpack(&layers[index], draft)?;
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
            match self.unpack_blob(layer, blob, &reporter) {
                Ok(unfinished) => return Ok(unfinished),
                Err(error) => failure = error,
            }
        }
        if is_done { Ok(None) } else { Err(Error::lost(layer, failure)) }
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
        self.store.layers().commit_unpack(&layer.id, unfinished.draft)?;
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
        let unpacked = self.decode(stream, &root, blob);
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
        Ok(Pending { draft, implicit: applied.implicit })
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
    fn decode(&self, stream: Box<dyn Read + Send>, root: &Root, blob: &Descriptor) -> Result<(Applied, Digest)> {
        let plain = kiln_compress::decoder(stream).and_then(|(_, plain)| ReadAhead::new(plain));
        let mut plain = Hashed { inner: plain.map_err(|e| damaged(blob, &e))?, hasher: Hasher::new() };
        // No archive can be worth more than the disk: one that claims to be is stopped before it is full.
        let limits = Limits { bytes: self.store.free_space()?, ..Limits::default() };
        let applied = apply(&mut plain, root, &ApplyOptions { limits, ..ApplyOptions::default() })?;
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

/// A layer as an image needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packed {
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// The blob.
    pub descriptor: Descriptor,
}

/// How layers are to be packed.
#[derive(Clone)]
pub struct PackOptions {
    /// Compression and media types.
    pub format: LayerFormat,
    /// Clamp for files' times.
    pub epoch: Option<i64>,
    /// Ends the work.
    pub cancel: CancelToken,
}

impl PackOptions {
    /// For one output of a build.
    pub fn new(job: &Job, format: LayerFormat) -> Self {
        Self { format, epoch: job.request.source_date_epoch, cancel: job.cancel.clone() }
    }

    /// For layers of no build.
    pub fn alone(format: LayerFormat) -> Self {
        Self { format, epoch: None, cancel: CancelToken::new() }
    }
}

/// A search for secrets, and the step that made the layer.
type Search<'a> = Option<(&'a LeakSearch, &'a str)>;

impl Engine {
    /// The blob of the layer at `index` of a state, made if it is not here. It is searched for secrets, unless it came as a
    /// blob from elsewhere or the same search was done before; then what that one found is used.
    ///
    /// Layers can be packed at the same time; the same one by two is packed once.
    pub fn pack_searched(
        &self,
        snapshot: &Snapshot,
        index: usize,
        options: &PackOptions,
        search: Search<'_>,
    ) -> Result<Packed> {
        let id = snapshot.0[index];
        if let Some(packed) = self.packed_before(&id, options, search)? {
            return Ok(packed);
        }
        let mut keep_waiting = || !options.cancel.is_cancelled();
        let Some(_lock) = self.store.lock_while(&format!("pack.{id}"), &mut keep_waiting)? else {
            return Err(Error::Cancelled);
        };
        // Somebody else may have packed it in the meantime.
        if let Some(packed) = self.packed_before(&id, options, search)? {
            return Ok(packed);
        }
        let layer = self.store.layers().get(&id)?;
        let search = search.filter(|_| layer.remote.is_none());
        let before = self.searched_before(&id, search)?;
        let mut observer = match (search, &before) {
            (Some((search, place)), None) => Some(search.layer(place)),
            _ => None,
        };
        let packed = match self.usable_blob(&layer, options)? {
            Some(packed) => {
                if let Some(observer) = &mut observer {
                    self.write_tar(snapshot, index, options, Some(observer), &mut io::sink())?;
                }
                packed
            }
            None => {
                self.pack_now(snapshot, index, options, observer.as_mut().map(|o| o as &mut dyn ContentObserver))?
            }
        };
        if let (Some((search, place)), Some(found)) = (search, &before) {
            search.add_shapes(place, found);
        }
        if let (Some((search, _)), Some(observer)) = (search, observer)
            && let Some(shapes) = observer.shapes_only()
        {
            self.store.meta().put_as(&searched_key(&id, search), &shapes, None)?;
        }
        Ok(packed)
    }

    /// Searches the files of a state as they leave the store. `place` says what a path is blamed on.
    pub fn search_tree(&self, snapshot: &Snapshot, search: &LeakSearch, place: &dyn Fn(&str) -> String) -> Result<()> {
        let ids: Vec<String> = snapshot.0.iter().map(ToString::to_string).collect();
        let memo = format!("searched tree {} {}", ids.join(" "), search.fingerprint());
        if let Some(shapes) = self.store.meta().get_as::<Vec<(String, ShapeFound)>>(&memo)? {
            shapes.iter().for_each(|(place, shape)| search.add_shapes(place, std::slice::from_ref(shape)));
            return Ok(());
        }
        let own = search.fresh();
        let mut observer = own.layer("the result");
        let view = self.views.readable(snapshot)?;
        let mut options = DiffOptions { observer: Some(&mut observer), ..DiffOptions::default() };
        tar_tree(&view, &mut io::sink(), &mut options)?;
        let mut shapes = Some(Vec::new());
        for leak in own.finish() {
            let leak = Leak { place: leak.path.as_deref().map_or_else(|| leak.place.clone(), place), ..leak };
            match (&leak.kind, &mut shapes) {
                (HitKind::Shape(shape), Some(all)) => {
                    all.push((leak.place.clone(), (shape.describe().to_owned(), leak.path.clone())));
                }
                // Secrets are found again each time.
                _ => shapes = None,
            }
            search.push(leak);
        }
        match shapes {
            Some(shapes) => Ok(self.store.meta().put_as(&memo, &shapes, None)?),
            None => Ok(()),
        }
    }

    /// The blob, if nothing has to be made and nothing to be searched for it.
    pub fn packed_before(&self, id: &LayerId, options: &PackOptions, search: Search<'_>) -> Result<Option<Packed>> {
        let layer = self.store.layers().get(id)?;
        let search = search.filter(|_| layer.remote.is_none());
        let found = self.searched_before(id, search)?;
        if search.is_some() && found.is_none() {
            return Ok(None);
        }
        let packed = self.usable_blob(&layer, options)?;
        if let (Some(_), Some((search, place)), Some(found)) = (&packed, search, found) {
            search.add_shapes(place, &found);
        }
        Ok(packed)
    }

    /// What the same search found in a layer, if that was no secret.
    fn searched_before(&self, id: &LayerId, search: Search<'_>) -> Result<Option<Vec<ShapeFound>>> {
        let Some((search, _)) = search else { return Ok(None) };
        Ok(self.store.meta().get_as::<Vec<ShapeFound>>(&searched_key(id, search))?)
    }

    fn usable_blob(&self, layer: &Layer, options: &PackOptions) -> Result<Option<Packed>> {
        Ok(match self.known_blob(layer, options)? {
            Some(packed) if self.is_within_reach(layer, &packed.descriptor)? => Some(packed),
            _ => None,
        })
    }

    /// The blob, if it was made before. One that came from elsewhere is passed on as it is unless `force` is set.
    fn known_blob(&self, layer: &Layer, options: &PackOptions) -> Result<Option<Packed>> {
        let format = &options.format;
        let Some(diff_id) = layer.diff_id else { return self.known_clamped(layer, options) };
        if options.epoch.is_some() && layer.remote.is_none() {
            return self.known_clamped(layer, options);
        }
        for blob in &layer.blobs {
            let wanted = blob.compression == format.compression && blob.level == format.level;
            let foreign = layer.remote.is_some() && !format.force;
            if (wanted || foreign) && (layer.remote.is_some() || self.store.content().has(&blob.descriptor.digest)?) {
                return Ok(Some(Packed { diff_id, descriptor: typed(blob, format.oci) }));
            }
        }
        Ok(None)
    }

    /// Blobs with clamped times are remembered beside the layer's own.
    fn known_clamped(&self, layer: &Layer, options: &PackOptions) -> Result<Option<Packed>> {
        let Some(key) = clamped_key(&layer.id, options) else { return Ok(None) };
        let packed = self.store.meta().get_as::<Packed>(&key)?;
        Ok(match packed {
            Some(packed) if self.store.content().has(&packed.descriptor.digest)? => Some(packed),
            _ => None,
        })
    }

    fn pack_now(
        &self,
        snapshot: &Snapshot,
        index: usize,
        options: &PackOptions,
        observer: Option<&mut dyn ContentObserver>,
    ) -> Result<Packed> {
        let id = snapshot.0[index];
        let format = &options.format;
        let mut blob = self.store.content().writer()?;
        let encoder = Encoder::new(&mut blob, format.compression, format.level, self.threads)
            .map_err(|e| Error::request(e.to_string()))?;
        let mut sink = HashingSink { inner: encoder, hasher: Hasher::new(), size: 0 };
        self.write_tar(snapshot, index, options, observer, &mut sink)?;
        let size = sink.size;
        let diff_id = sink.hasher.finish();
        sink.inner.finish().map_err(|e| Error::io("write", "a layer", e))?;
        let (digest, blob_size) = blob.commit(None)?;
        let descriptor = Descriptor::new(format.compression.layer_media_type(true), digest, blob_size);
        let blob = LayerBlob { compression: format.compression, level: format.level, descriptor };
        let packed = Packed { diff_id, descriptor: typed(&blob, format.oci) };
        match clamped_key(&id, options) {
            Some(key) => self.store.meta().put_as(&key, &packed, None)?,
            None => {
                self.store.layers().set_diff_id(&id, &diff_id, size)?;
                self.store.layers().add_blob(&id, &blob)?;
            }
        }
        Ok(packed)
    }

    fn write_tar(
        &self,
        snapshot: &Snapshot,
        index: usize,
        options: &PackOptions,
        observer: Option<&mut dyn ContentObserver>,
        out: &mut dyn Write,
    ) -> Result<()> {
        let id = snapshot.0[index];
        let below = Snapshot(snapshot.0[..index].to_vec());
        let lower = if below.0.is_empty() { None } else { Some(self.views.readable(&below)?) };
        self.unpacker.unpack(&snapshot.0[..=index])?;
        let upper = Root::open(&self.store.layers().path(&id))?.with_ownership(self.ownership);
        let mut diffing = DiffOptions { rewrite_timestamp: options.epoch, observer, ..DiffOptions::default() };
        let mut out = Cancellable { inner: out, cancel: &options.cancel };
        match diff(&upper, lower.as_ref(), &mut out, &mut diffing) {
            Err(_) if options.cancel.is_cancelled() => Err(Error::Cancelled),
            done => Ok(done.map(|_| ())?),
        }
    }
}

/// Names what a search found in a layer.
fn searched_key(id: &LayerId, search: &LeakSearch) -> String {
    format!("searched {id} {}", search.fingerprint())
}

/// Names a blob whose files' times are clamped.
fn clamped_key(id: &LayerId, options: &PackOptions) -> Option<String> {
    let format = &options.format;
    options
        .epoch
        .map(|epoch| format!("clamped {id} {} {:?} {} {epoch}", format.compression.name(), format.level, format.oci))
}

/// The descriptor with the media type that the manifest's kind wants.
fn typed(blob: &LayerBlob, oci: bool) -> Descriptor {
    let mut descriptor = blob.descriptor.clone();
    descriptor.media_type = blob.compression.layer_media_type(oci).to_owned();
    descriptor
}

/// Fails once the build is cancelled: a large layer is not finished for nobody.
struct Cancellable<'a> {
    inner: &'a mut dyn Write,
    cancel: &'a CancelToken,
}

impl Write for Cancellable<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        self.inner.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

struct HashingSink<W: Write> {
    inner: W,
    hasher: Hasher,
    size: u64,
}

impl<W: Write> Write for HashingSink<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.hasher.update(&buf[..n]);
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
