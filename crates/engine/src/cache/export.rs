//! Exports: the records of a build's steps, and their layers.
//!
//! Layers of base images that come from a registry are named but not uploaded: who imports the record resolves the same base.
//! A layer in which a secret of the build is found is not exported, and neither are the records that need it.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read};

use kiln_graph::{Op, SourceOp};
use kiln_oci::{Descriptor, Digest, Timestamp};
use kiln_registry::BlobSource;
use kiln_store::{CacheKey, LayerId, Snapshot};

use super::config::{Builder, KilnRecord, NewLayer, annotated};
use super::{Backend, CacheTo, Publish, import};
use crate::build::Job;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::layers::Remote;
use crate::leaks::Leak;
use crate::pack::PackOptions;
use crate::request::{LayerFormat, Output};
use crate::steps::Step;
use crate::transfer::in_parallel_by;
use crate::value::Value;

/// Exports the build's cache wherever it was asked for. What goes wrong is a warning.
pub fn export(job: &Job, roots: &[Snapshot]) -> Result<()> {
    for (number, to) in job.cache_to.iter().enumerate() {
        let Some(place) = &to.place else { continue };
        let backend = job.engine.backend(place, &job.platforms);
        let mut step = job.steps.begin(&format!("exporting cache to {}", backend.name()));
        match one(job, number, &*backend, roots, &step) {
            Ok(()) => step.end(crate::events::Outcome::Done),
            Err(Error::Cancelled) => return Err(Error::Cancelled),
            Err(error) => {
                step.end(crate::events::Outcome::Done);
                job.steps.warn(format!("the cache was not exported to {}: {error}", backend.name()));
            }
        }
    }
    Ok(())
}

/// A step's result.
struct Entry {
    kiln: KilnRecord,
    snapshot: Snapshot,
}

fn one(job: &Job, number: usize, backend: &dyn Backend, roots: &[Snapshot], step: &Step) -> Result<()> {
    let to = &job.cache_to[number];
    let entries = entries(job, to, roots)?;
    let mut packer = Packer::new(job, to);
    let mut builder = Builder::default();
    for entry in &entries {
        let mut layers = Vec::with_capacity(entry.snapshot.0.len());
        for index in 0..entry.snapshot.0.len() {
            layers.push(packer.layer(&entry.snapshot, index, &entry.kiln.name)?);
        }
        if layers.iter().all(|l| packer.layers[*l].is_some()) {
            let layers: Vec<&NewLayer> = layers.iter().filter_map(|l| packer.layers[*l].as_ref()).collect();
            builder.add(&layers, entry.kiln.clone());
        }
    }
    let mut upload: Vec<Descriptor> =
        packer.upload.iter().filter_map(|l| packer.layers[*l].as_ref()).map(annotated).collect();
    // Layers of the same content have the same blob.
    let mut seen = HashSet::new();
    upload.retain(|blob| seen.insert(blob.digest));
    let sources: HashMap<Digest, Remote> = packer.remotes;
    in_parallel_by(backend.parallel(), &upload, |blob| {
        let source = LayerBlob { engine: &job.engine, blob, remote: sources.get(&blob.digest) };
        let early = job.early.was_sent(number, blob.digest);
        let sent = if early { blob.size } else { backend.put(blob, &source)? };
        let note = if sent == 0 { " is there" } else { "" };
        step.progress(&format!("layer {}{note}", blob.digest.short()), blob.size, Some(blob.size), true);
        Ok(())
    })?;
    let (mounts, chunks) = super::mounts::export(job, to, backend, step)?;
    let config = serde_json::to_vec(&builder.finish(mounts)).map_err(|e| Error::request(e.to_string()))?;
    let blobs: Vec<Descriptor> = upload.into_iter().chain(chunks).collect();
    backend.publish(&Publish { config: &config, blobs: &blobs, to })?;
    step.progress("cache manifest", config.len() as u64, Some(config.len() as u64), true);
    Ok(())
}

/// The results of the build's steps: all of them, or those of which the result is made.
fn entries(job: &Job, to: &CacheTo, roots: &[Snapshot]) -> Result<Vec<Entry>> {
    let of_result: HashSet<LayerId> = roots.iter().flat_map(|r| r.0.iter().copied()).collect();
    let mut entries = Vec::new();
    for (index, vertex) in job.graph.vertices().iter().enumerate() {
        // What an image is, its registry knows.
        let known = matches!(&vertex.op, Op::Source(SourceOp::Image(_) | SourceOp::OciLayout(_) | SourceOp::Local(_)));
        let (false, true, Some(key)) = (known, job.plan.is_needed(index), job.plan.definition(index)) else { continue };
        let Some((Value::Tree { snapshot, identity }, mut keys)) = look_up(job, &key)? else { continue };
        if !to.max && !snapshot.0.iter().all(|l| of_result.contains(l)) {
            continue;
        }
        keys.retain(|k| *k != key);
        keys.insert(0, key);
        entries.push(Entry {
            kiln: KilnRecord { keys, layer: 0, identity, name: job.steps.shown(&vertex.meta.name) },
            snapshot,
        });
    }
    Ok(entries)
}

/// What a key leads to, and all keys that lead there.
fn look_up(job: &Job, key: &Digest) -> Result<Option<(Value, Vec<Digest>)>> {
    if job.engine.store.cache().lookup(&CacheKey(*key))?.is_none() {
        // A step that nobody had to look at in this build: it may be known to an imported cache.
        job.imports.find(job, key)?;
    }
    let record = job.engine.store.cache().lookup(&CacheKey(*key))?;
    let aliases = |r: &kiln_store::Record| r.aliases.iter().map(|k| k.0).collect();
    Ok(record.and_then(|r| Value::from_record(&r).map(|v| (v, aliases(&r)))))
}

/// Packs layers, each once.
struct Packer<'a> {
    job: &'a Job,
    options: PackOptions,
    known: HashMap<LayerId, usize>,
    /// `None` for a layer that may not leave.
    layers: Vec<Option<NewLayer>>,
    /// Those that are uploaded.
    upload: Vec<usize>,
    /// Where blobs that are not here can be had.
    remotes: HashMap<Digest, Remote>,
}

impl<'a> Packer<'a> {
    fn new(job: &'a Job, to: &CacheTo) -> Self {
        let options = PackOptions::new(job, format(job, to));
        Self { job, options, known: HashMap::new(), layers: Vec::new(), upload: Vec::new(), remotes: HashMap::new() }
    }

    fn layer(&mut self, snapshot: &Snapshot, index: usize, place: &str) -> Result<usize> {
        let id = snapshot.0[index];
        if let Some(known) = self.known.get(&id) {
            return Ok(*known);
        }
        if self.job.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let next = self.layers.len();
        self.known.insert(id, next);
        match pack(self.job, &self.options, snapshot, index, place)? {
            Ok((layer, remote)) => {
                if !layer.base {
                    self.upload.push(next);
                    self.remotes.extend(remote.map(|r| (layer.descriptor.digest, r)));
                }
                self.layers.push(Some(layer));
            }
            Err(leak) => {
                self.job.steps.warn(format!("{}: the step is not exported to the cache", leak.describe()));
                self.layers.push(None);
            }
        }
        Ok(next)
    }
}

/// Packs a layer of a state. `Err` within: there is a secret in it.
pub(super) fn pack(
    job: &Job,
    options: &PackOptions,
    snapshot: &Snapshot,
    index: usize,
    place: &str,
) -> Result<std::result::Result<(NewLayer, Option<Remote>), Leak>> {
    let search = job.leak_search();
    let packed = job.engine.pack_searched(snapshot, index, options, search.as_ref().map(|s| (s, place)))?;
    let leaks: Vec<Leak> = search.map(|s| s.finish()).unwrap_or_default();
    if let Some(leak) = leaks.into_iter().find(Leak::is_secret) {
        return Ok(Err(leak));
    }
    let layer = job.engine.store.layers().get(&snapshot.0[index])?;
    let remote = Remote::of(&layer);
    // One of the build's own may have been pulled since, with an image that it made.
    let of_base = || import::bases(job).any(|image| image.config.rootfs.diff_ids.contains(&packed.diff_id));
    let base = remote.as_ref().is_some_and(|r| r.cache.is_none()) && of_base();
    let created: Timestamp = layer.created;
    Ok(Ok((NewLayer { descriptor: packed.descriptor, diff_id: packed.diff_id, created, base }, remote)))
}

/// How layers are packed: as for the image where that is not said, so that each is packed once.
pub(super) fn format(job: &Job, to: &CacheTo) -> LayerFormat {
    let of_image = job.request.outputs.iter().find_map(|o| match o {
        Output::Image(image) => Some(image.layers.clone()),
        Output::Archive(archive) => Some(archive.layers.clone()),
        _ => None,
    });
    let base = of_image.unwrap_or_default();
    LayerFormat {
        compression: to.compression.unwrap_or(base.compression),
        level: if to.compression.is_some() || to.level.is_some() { to.level } else { base.level },
        force: to.force,
        oci: to.oci,
        rewrite_timestamp: base.rewrite_timestamp,
    }
}

/// A layer's blob: in the store, or still where it was imported from.
pub(super) struct LayerBlob<'a> {
    pub engine: &'a Engine,
    pub blob: &'a Descriptor,
    pub remote: Option<&'a Remote>,
}

impl BlobSource for LayerBlob<'_> {
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + '_>> {
        let digest = &self.blob.digest;
        if !self.engine.store.content().has(digest).map_err(io::Error::other)? {
            let remote = self.remote.ok_or_else(|| io::Error::other(format!("blob {} is not here", digest.short())))?;
            self.engine.fetch_from(remote, self.blob).map_err(io::Error::other)?;
        }
        let mut file = self.engine.store.content().open(digest).map_err(io::Error::other)?;
        io::Seek::seek(&mut file, io::SeekFrom::Start(offset))?;
        Ok(Box::new(file))
    }
}
