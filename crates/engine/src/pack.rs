//! Directories become layers' blobs, searched for secrets on the way.

use std::io::{self, Write};

use kiln_compress::Encoder;
use kiln_executor::CancelToken;
use kiln_oci::{Descriptor, Digest, Hasher};
use kiln_rootfs::Root;
use kiln_rootfs::diff::{ContentObserver, DiffOptions, diff};
use kiln_rootfs::export::tar_tree;
use kiln_secrets::HitKind;
use kiln_store::{Layer, LayerBlob, LayerId, Snapshot};
use serde::{Deserialize, Serialize};

use crate::build::Job;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::growing::Watched;
use crate::leaks::{BASE_IMAGE, Leak, LeakSearch, ShapeFound};
use crate::request::LayerFormat;

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
    /// The blob of the layer at `index` of a state, made if it is not here. It is searched for secrets, unless it is still
    /// elsewhere or the same search was done before; then what that one found is used.
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
        if let Some(packed) = self.packed_before(snapshot, index, options, search)? {
            return Ok(packed);
        }
        let mut keep_waiting = || !options.cancel.is_cancelled();
        let Some(_lock) = self.store.lock_while(&format!("pack.{id}"), &mut keep_waiting)? else {
            return Err(Error::Cancelled);
        };
        // Somebody else may have packed it in the meantime.
        if let Some(packed) = self.packed_before(snapshot, index, options, search)? {
            return Ok(packed);
        }
        let layer = self.store.layers().get(&id)?;
        let search = self.searchable(snapshot, index, &layer, search)?;
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

    /// Searches the files of a state as they leave the store. `place` says what a path is blamed on, `None` for the base
    /// image, in which only secrets count.
    pub fn search_tree(
        &self,
        snapshot: &Snapshot,
        search: &LeakSearch,
        place: &dyn Fn(&str) -> Option<String>,
    ) -> Result<()> {
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
            let blamed = leak.path.as_deref().map_or_else(|| Some(leak.place.clone()), place);
            if blamed.is_none() && matches!(leak.kind, HitKind::Shape(_)) {
                continue;
            }
            let leak = Leak { place: blamed.unwrap_or_else(|| BASE_IMAGE.to_owned()), ..leak };
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
    pub fn packed_before(
        &self,
        snapshot: &Snapshot,
        index: usize,
        options: &PackOptions,
        search: Search<'_>,
    ) -> Result<Option<Packed>> {
        let id = &snapshot.0[index];
        let layer = self.store.layers().get(id)?;
        let search = self.searchable(snapshot, index, &layer, search)?;
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

    /// The search, unless the layer or one below it would have to be fetched for it: what never was here is only named in
    /// the result.
    fn searchable<'a>(
        &self,
        snapshot: &Snapshot,
        index: usize,
        layer: &Layer,
        search: Search<'a>,
    ) -> Result<Search<'a>> {
        if search.is_none() || layer.remote.is_none() {
            return Ok(search);
        }
        for id in &snapshot.0[..=index] {
            if !self.store.layers().get(id)?.unpacked {
                return Ok(None);
            }
        }
        Ok(search)
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
            if (wanted || foreign) && (layer.remote.is_some() || self.store.content().holds(&blob.descriptor)?) {
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
            Some(packed) if self.store.content().holds(&packed.descriptor)? => Some(packed),
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
        let key = growing_key(&snapshot.0[index], options);
        let watched = self.store.content().writer().map_err(Error::from).and_then(|w| self.growing.of(&key).watch(w));
        let packed = watched.and_then(|blob| self.pack_into(blob, (snapshot, index), options, observer));
        self.growing.over(&key);
        packed
    }

    fn pack_into(
        &self,
        mut blob: Watched,
        (snapshot, index): (&Snapshot, usize),
        options: &PackOptions,
        observer: Option<&mut dyn ContentObserver>,
    ) -> Result<Packed> {
        let id = snapshot.0[index];
        let format = &options.format;
        let encoder = Encoder::new(&mut blob, format.compression, format.level, self.threads)
            .map_err(|e| Error::request(e.to_string()))?;
        let mut sink = HashingSink { inner: encoder, hasher: Hasher::new() };
        let size = self.write_tar(snapshot, index, options, observer, &mut sink)?;
        let diff_id = sink.hasher.finish();
        sink.inner.finish().map_err(|e| Error::io("write", "a layer", e))?;
        let (digest, blob_size) = blob.commit()?;
        let descriptor = Descriptor::new(format.compression.layer_media_type(true), digest, blob_size);
        let blob = LayerBlob { compression: format.compression, level: format.level, descriptor };
        let packed = Packed { diff_id, descriptor: typed(&blob, format.oci) };
        match clamped_key(&id, options) {
            Some(key) => {
                self.store.meta().put_as(&key, &packed, None)?;
                // The layer has its own diff ID, by which an image of the clamped one does not find it.
                self.store.meta().put_as(&crate::images::size_key(&diff_id), &size, None)?;
            }
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
    ) -> Result<u64> {
        let id = snapshot.0[index];
        let below = Snapshot(snapshot.0[..index].to_vec());
        let lower = if below.0.is_empty() { None } else { Some(self.views.readable(&below)?) };
        self.unpacker.unpack(&snapshot.0[..=index])?;
        let upper = Root::open(&self.store.layers().path(&id))?.with_ownership(self.ownership);
        let mut diffing = DiffOptions { rewrite_timestamp: options.epoch, observer, ..DiffOptions::default() };
        let mut out = Cancellable { inner: out, cancel: &options.cancel };
        match diff(&upper, lower.as_ref(), &mut out, &mut diffing) {
            Err(_) if options.cancel.is_cancelled() => Err(Error::Cancelled),
            done => Ok(done?.bytes),
        }
    }
}

/// Names what a search found in a layer.
fn searched_key(id: &LayerId, search: &LeakSearch) -> String {
    format!("searched {id} {}", search.fingerprint())
}

/// Names the blob of a layer while it is written.
pub(crate) fn growing_key(id: &LayerId, options: &PackOptions) -> String {
    let format = &options.format;
    format!("{id} {} {:?} {:?}", format.compression.name(), format.level, options.epoch)
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
}

impl<W: Write> Write for HashingSink<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.hasher.update(&buf[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
