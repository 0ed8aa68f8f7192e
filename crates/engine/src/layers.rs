//! Layers between their two forms: unpacking blobs, and packing directories.

use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

use kiln_compress::Encoder;
use kiln_oci::{Descriptor, Digest, Hasher, Reference};
use kiln_rootfs::apply::{ApplyOptions, apply};
use kiln_rootfs::diff::ContentObserver;
use kiln_rootfs::diff::{DiffOptions, diff};
use kiln_rootfs::{Ownership, Root};
use kiln_store::{BlobWriter, Layer, LayerBlob, LayerId, Snapshot, Store};
use serde::{Deserialize, Serialize};

use crate::cache::Location;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::leaks::{LeakSearch, ShapeFound};
use crate::request::LayerFormat;

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

    /// What is recorded.
    pub fn to_text(&self) -> Option<String> {
        serde_json::to_string(self).ok()
    }
}

/// Fetches blobs that are not here.
pub trait Fetch: Send + Sync {
    /// The blob's bytes.
    fn blob(&self, remote: &Remote, descriptor: &Descriptor) -> Result<Box<dyn Read + Send>>;
}

/// Unpacks layers.
#[derive(Clone)]
pub struct Unpacker {
    store: Store,
    ownership: Ownership,
    fetch: Arc<dyn Fetch>,
}

impl Unpacker {
    /// Into a store.
    pub fn new(store: Store, ownership: Ownership, fetch: Arc<dyn Fetch>) -> Self {
        Self { store, ownership, fetch }
    }

    /// Makes sure that all of them are unpacked.
    pub fn unpack(&self, layers: &[LayerId]) -> Result<()> {
        let mut missing = Vec::new();
        for id in layers {
            let layer = self.store.layers().get(id)?;
            if !layer.unpacked {
                missing.push(layer);
            }
        }
        match missing.as_slice() {
            [] => Ok(()),
            [one] => self.unpack_one(one),
            many => std::thread::scope(|scope| {
                let workers: Vec<_> = many.iter().map(|layer| scope.spawn(|| self.unpack_one(layer))).collect();
                workers.into_iter().try_for_each(|w| w.join().unwrap_or(Err(Error::Cancelled)))
            }),
        }
    }

    /// Unpacks it from the first of its blobs that is good.
    fn unpack_one(&self, layer: &Layer) -> Result<()> {
        let _lock = self.store.lock(&format!("layer.{}", layer.id), &mut || {})?;
        if self.store.layers().get(&layer.id)?.unpacked {
            return Ok(());
        }
        let (mut here, mut elsewhere) = (Vec::new(), Vec::new());
        for blob in &layer.blobs {
            let known = self.store.content().has(&blob.descriptor.digest)?;
            if known { here.push(&blob.descriptor) } else { elsewhere.push(&blob.descriptor) }
        }
        let mut failure = Error::request(format!("layer {} has no content", layer.id));
        for descriptor in here.into_iter().chain(elsewhere) {
            match self.unpack_blob(layer, descriptor) {
                Ok(()) => return Ok(()),
                Err(error) => failure = error,
            }
        }
        Err(Error::lost(layer, failure))
    }

    /// One stream: fetch, store the blob, verify, decompress, verify, unpack.
    fn unpack_blob(&self, layer: &Layer, descriptor: &Descriptor) -> Result<()> {
        let draft = self.store.layers().unpack_draft(&layer.id)?;
        let root = Root::open(draft.fs())?.with_ownership(self.ownership);
        let hasher = Arc::new(Mutex::new(Hasher::new()));
        let source = self.source(layer, descriptor)?;
        let (_, plain) = kiln_compress::decoder(source.reader()).map_err(|e| damaged(descriptor, &e))?;
        let mut plain = Tee { inner: plain, hasher: Arc::clone(&hasher) };
        let options = ApplyOptions::default();
        apply(&mut plain, &root, &options)?;
        // What follows the end of the archive counts for the digest too.
        io::copy(&mut plain, &mut io::sink()).map_err(|e| damaged(descriptor, &e))?;
        drop(plain);
        source.finish(descriptor)?;
        let found = hasher.lock().unwrap_or_else(PoisonError::into_inner).clone().finish();
        if let Some(expected) = layer.diff_id.filter(|expected| *expected != found) {
            return Err(Error::request(format!(
                "layer {} is damaged: its content is {found}, the image says {expected}",
                descriptor.digest
            )));
        }
        self.store.layers().commit_unpack(&layer.id, draft)?;
        Ok(())
    }

    fn source(&self, layer: &Layer, descriptor: &Descriptor) -> Result<Source> {
        if self.store.content().has(&descriptor.digest)? {
            let file = self.store.content().open(&descriptor.digest)?;
            return Ok(Source { reader: Mutex::new(Some(Box::new(file))), writer: None });
        }
        let remote = Remote::of(layer).ok_or_else(|| kiln_store::Error::BlobMissing(Box::new(descriptor.digest)))?;
        let writer = Arc::new(Mutex::new(Some(self.store.content().writer_for(&descriptor.digest)?)));
        let reader = StoringReader { inner: self.fetch.blob(&remote, descriptor)?, writer: Arc::clone(&writer) };
        Ok(Source { reader: Mutex::new(Some(Box::new(reader))), writer: Some(writer) })
    }
}

fn damaged(descriptor: &Descriptor, error: &io::Error) -> Error {
    Error::request(format!("layer {}: {error}", descriptor.digest))
}

/// A blob that is read, and stored on the way if it was not here.
struct Source {
    reader: Mutex<Option<Box<dyn Read + Send>>>,
    writer: Option<Arc<Mutex<Option<BlobWriter>>>>,
}

impl Source {
    fn reader(&self) -> Box<dyn Read + Send> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_else(|| Box::new(io::empty()))
    }

    fn finish(self, descriptor: &Descriptor) -> Result<()> {
        if let Some(writer) = self.writer.and_then(|w| w.lock().unwrap_or_else(PoisonError::into_inner).take()) {
            writer.commit(Some(&descriptor.digest))?;
        }
        Ok(())
    }
}

/// Reads, and writes what was read to the content store.
struct StoringReader {
    inner: Box<dyn Read + Send>,
    writer: Arc<Mutex<Option<BlobWriter>>>,
}

impl Read for StoringReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        if let Some(writer) = &mut *self.writer.lock().unwrap_or_else(PoisonError::into_inner) {
            writer.write_all(&buf[..n])?;
        }
        Ok(n)
    }
}

/// Reads, and hashes what was read.
struct Tee {
    inner: Box<dyn Read + Send>,
    hasher: Arc<Mutex<Hasher>>,
}

impl Read for Tee {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hasher.lock().unwrap_or_else(PoisonError::into_inner).update(&buf[..n]);
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
}

impl Engine {
    /// The blob of the layer at `index` of a state, made if it is not here. It is searched for secrets, unless it came as a
    /// blob from elsewhere or the same search was done before; then what that one found is used.
    pub fn pack_searched(
        &self,
        snapshot: &Snapshot,
        index: usize,
        options: &PackOptions,
        search: Option<(&LeakSearch, &str)>,
    ) -> Result<Packed> {
        let layer = self.store.layers().get(&snapshot.0[index])?;
        let search = search.filter(|_| layer.remote.is_none());
        let memo = search.map(|(s, _)| format!("searched {} {}", layer.id, s.fingerprint()));
        let before = memo.as_ref().map(|key| self.store.meta().get_as::<Vec<ShapeFound>>(key)).transpose()?.flatten();
        if let (Some((search, place)), Some(found)) = (search, &before) {
            search.add_shapes(place, found);
        }
        let mut observer = match (search, &before) {
            (Some((search, place)), None) => Some(search.layer(place)),
            _ => None,
        };
        let known = match self.known_blob(&layer, options)? {
            Some(packed) if self.is_within_reach(&layer, &packed.descriptor)? => Some(packed),
            _ => None,
        };
        let packed = match known {
            Some(packed) => {
                if let Some(observer) = &mut observer {
                    self.write_tar(snapshot, index, options.epoch, Some(observer), &mut io::sink())?;
                }
                packed
            }
            None => {
                let _lock = self.store.lock(&format!("pack.{}", layer.id), &mut || {})?;
                self.pack_now(snapshot, index, options, observer.as_mut().map(|o| o as &mut dyn ContentObserver))?
            }
        };
        if let (Some(key), Some(observer)) = (memo, observer)
            && let Some(shapes) = observer.shapes_only()
        {
            self.store.meta().put_as(&key, &shapes, None)?;
        }
        Ok(packed)
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
        self.write_tar(snapshot, index, options.epoch, observer, &mut sink)?;
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
        epoch: Option<i64>,
        observer: Option<&mut dyn ContentObserver>,
        out: &mut dyn Write,
    ) -> Result<()> {
        let id = snapshot.0[index];
        let below = Snapshot(snapshot.0[..index].to_vec());
        let lower = if below.0.is_empty() { None } else { Some(self.views.readable(&below)?) };
        self.unpacker.unpack(&[id])?;
        let upper = Root::open(&self.store.layers().path(&id))?.with_ownership(self.ownership);
        let mut options = DiffOptions { rewrite_timestamp: epoch, observer, ..DiffOptions::default() };
        diff(&upper, lower.as_ref(), out, &mut options)?;
        Ok(())
    }
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
