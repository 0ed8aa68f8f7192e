//! Imported caches: records for keys that the store does not know.
//!
//! Caches are read when the store first misses a key, all at once. A hit makes the record's layers known to the store as lazy
//! ones and the key a key of the store.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use kiln_graph::{Op, SourceOp};
use kiln_oci::{Descriptor, Digest, Timestamp, media};
use kiln_store::{CacheKey, LayerBlob, LayerId, LayerMeta, Record, Snapshot};

use super::config::{CREATED_AT, CacheConfig, UNCOMPRESSED};
use super::mounts::MountEntry;
use super::{Backend, CacheFrom, Loaded, inline};
use crate::build::Job;
use crate::error::{Error, Result};
use crate::layers::Remote;
use crate::resolve::Meaning;
use crate::transfer::KnownImage;
use crate::value::Value;

/// The caches that a build imports.
#[derive(Default)]
pub struct Imports {
    sources: Vec<CacheFrom>,
    loaded: OnceLock<Vec<Imported>>,
    /// Blobs that turned out not to be there, or not to be what they should be.
    lost: Mutex<HashSet<Digest>>,
    bases: OnceLock<()>,
}

/// A cache that was read.
pub struct Imported {
    /// For messages.
    pub source: String,
    /// Where its layers are; `None` for an image of the store.
    pub remote: Option<Remote>,
    /// Cache mounts.
    pub mounts: Vec<MountEntry>,
    layers: Vec<ImportLayer>,
    records: Vec<ImportRecord>,
    by_key: HashMap<Digest, usize>,
}

/// A layer of a cache.
pub struct ImportLayer {
    pub diff_id: Digest,
    pub descriptor: Descriptor,
    pub created: Option<Timestamp>,
    /// Whether the cache has the blob. Layers of base images are had from where the base comes from.
    pub here: bool,
}

/// A record of a cache.
pub struct ImportRecord {
    pub keys: Vec<Digest>,
    pub identity: Digest,
    pub name: String,
    /// Layers, lowest first.
    pub chain: Vec<usize>,
}

impl Imported {
    /// Without records.
    pub fn new(source: &str, remote: Option<Remote>, layers: Vec<ImportLayer>) -> Self {
        let source = source.to_owned();
        Self { source, remote, mounts: Vec::new(), layers, records: Vec::new(), by_key: HashMap::new() }
    }

    /// Adds a record. Of two for one key, the first counts.
    pub fn add(&mut self, record: ImportRecord) {
        for key in &record.keys {
            self.by_key.entry(*key).or_insert(self.records.len());
        }
        self.records.push(record);
    }

    /// The records of a config. Those that are not kiln's, or not sound, are left out.
    fn of_config(source: &str, remote: Remote, config: CacheConfig, blobs: &HashMap<Digest, Descriptor>) -> Self {
        let mut layers = Vec::with_capacity(config.layers.len());
        // Positions in `layers` of the config's layers.
        let mut known = HashMap::new();
        for (index, layer) in config.layers.iter().enumerate() {
            let blob = blobs.get(&layer.blob);
            let noted = layer.annotations.as_ref();
            let text = |name: &str| blob.and_then(|b| b.annotations.get(name));
            let diff_id = noted.and_then(|n| n.diff_id).or_else(|| text(UNCOMPRESSED)?.parse().ok());
            let created = noted.and_then(|n| n.created_at).or_else(|| text(CREATED_AT)?.parse().ok());
            let described = noted.map(|n| Descriptor::new(&n.media_type, layer.blob, n.size));
            let (Some(diff_id), Some(mut descriptor)) = (diff_id, blob.cloned().or(described)) else { continue };
            descriptor.annotations.clear();
            known.insert(index, layers.len());
            layers.push(ImportLayer { diff_id, descriptor, created, here: blob.is_some() });
        }
        let mut imported = Self::new(source, Some(remote), layers);
        imported.mounts.clone_from(&config.mounts);
        for record in &config.records {
            let Some(kiln) = &record.kiln else { continue };
            let chain = config.chain(kiln.layer).into_iter().flatten().map(|i| known.get(&i).copied());
            let Some(chain) = chain.collect::<Option<Vec<usize>>>().filter(|c| !c.is_empty()) else { continue };
            let (keys, identity, name) = (kiln.keys.clone(), kiln.identity, kiln.name.clone());
            imported.add(ImportRecord { keys, identity, name, chain });
        }
        imported
    }
}

impl Imports {
    /// To be read when they are needed.
    pub fn new(sources: Vec<CacheFrom>) -> Self {
        Self { sources, ..Self::default() }
    }

    /// The caches that were read, if any key was missed so far.
    pub fn read(&self) -> &[Imported] {
        self.loaded.get().map_or(&[], Vec::as_slice)
    }

    /// The caches, read now if they were not.
    pub fn all(&self, job: &Job) -> &[Imported] {
        self.loaded.get_or_init(|| {
            let mut read: Vec<Vec<Imported>> = Vec::new();
            std::thread::scope(|scope| {
                let readers: Vec<_> = self.sources.iter().map(|s| scope.spawn(|| load(job, s))).collect();
                read.extend(readers.into_iter().map(|r| r.join().unwrap_or_default()));
            });
            read.into_iter().flatten().collect()
        })
    }

    /// What a key leads to in one of the caches. It is known to the store from then on.
    pub fn find(&self, job: &Job, key: &Digest) -> Result<Option<Value>> {
        if self.sources.is_empty() {
            return Ok(None);
        }
        for cache in self.all(job) {
            let Some(record) = cache.by_key.get(key).and_then(|i| cache.records.get(*i)) else { continue };
            if let Some(value) = self.admit(job, cache, record, key)? {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    /// Never offers this blob again. Returns whether it was offered so far.
    pub fn lose(&self, blob: Digest) -> bool {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).insert(blob)
    }

    fn admit(&self, job: &Job, cache: &Imported, record: &ImportRecord, key: &Digest) -> Result<Option<Value>> {
        // Layers of the bases are known by where the bases come from, which may outlive the cache.
        self.bases.get_or_init(|| know_bases(job));
        let mut ids: Vec<LayerId> = Vec::with_capacity(record.chain.len());
        for index in &record.chain {
            let Some(id) = self.layer(job, cache, &cache.layers[*index], &ids)? else { return Ok(None) };
            ids.push(id);
        }
        let snapshot = Snapshot(ids);
        let times: Vec<Option<Timestamp>> = record.chain.iter().map(|i| cache.layers[*i].created).collect();
        super::times::keep(&job.engine, &snapshot, &times)?;
        let store = job.engine.store.cache();
        // A cache from elsewhere adds keys; it does not change what known ones lead to.
        let mut keys = vec![CacheKey(*key)];
        for other in record.keys.iter().filter(|k| *k != key) {
            if store.lookup(&CacheKey(*other))?.is_none() {
                keys.push(CacheKey(*other));
            }
        }
        let made: Record = Value::record(&snapshot, &record.identity, &record.name);
        store.insert(&keys, &made)?;
        Ok(Some(Value::Tree { snapshot, identity: record.identity }))
    }

    /// The layer in the store; `None` if it can't be had.
    fn layer(&self, job: &Job, cache: &Imported, layer: &ImportLayer, used: &[LayerId]) -> Result<Option<LayerId>> {
        let store = &job.engine.store;
        if let Some(id) = store.layers().find_by_diff_id_beside(&layer.diff_id, used)? {
            let known = store.layers().get(&id)?;
            let elsewhere = Remote::of(&known).is_some_and(|r| r.cache.is_none());
            let blob = |b: &LayerBlob| store.content().has(&b.descriptor.digest);
            if known.unpacked || elsewhere || known.blobs.iter().map(blob).any(|has| has.unwrap_or(false)) {
                return Ok(Some(id));
            }
        }
        let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner).contains(&layer.descriptor.digest);
        let compression = media::layer_compression(&layer.descriptor.media_type);
        let (Some(compression), true, false) = (compression, layer.here, lost) else { return Ok(None) };
        let blob = LayerBlob { compression, level: None, descriptor: layer.descriptor.clone() };
        let remote = cache.remote.as_ref().and_then(Remote::to_text);
        let meta = LayerMeta {
            diff_id: Some(layer.diff_id),
            blobs: vec![blob],
            remote,
            created: layer.created,
            ..LayerMeta::default()
        };
        Ok(Some(store.layers().create_lazy_beside(&meta, used)?))
    }
}

/// Makes the layers of the build's base images known.
fn know_bases(job: &Job) {
    for image in bases(job) {
        // If that fails, the step that needs it says why.
        let _ = job.engine.image_snapshot(&image);
    }
}

/// The build's base images.
pub(super) fn bases(job: &Job) -> impl Iterator<Item = Arc<KnownImage>> {
    job.graph.vertices().iter().enumerate().filter_map(|(index, vertex)| match &vertex.op {
        Op::Source(source @ (SourceOp::Image(_) | SourceOp::OciLayout(_))) if job.plan.is_needed(index) => {
            match job.resolved.meaning(vertex, source) {
                Ok(Some(Meaning::Image(image))) => Some(image),
                _ => None,
            }
        }
        _ => None,
    })
}

/// Reads a cache. What is wrong with it is a warning.
fn load(job: &Job, from: &CacheFrom) -> Vec<Imported> {
    let backend = job.engine.backend(&from.place, &job.platforms);
    let mut step = job.steps.begin(&format!("importing cache from {}", backend.name()));
    match read(&*backend) {
        Ok((found, note)) => {
            step.end(crate::events::Outcome::Done);
            if let Some(note) = note {
                job.steps.warn(note);
            }
            found
        }
        Err(error) => {
            step.end(crate::events::Outcome::Done);
            job.steps.warn(format!("the cache {} is not used: {error}", backend.name()));
            Vec::new()
        }
    }
}

fn read(backend: &dyn Backend) -> Result<(Vec<Imported>, Option<String>)> {
    let name = backend.name();
    let images = match backend.load()? {
        Loaded::Cache(config, blobs) => {
            let note = || format!("the cache {name} is not used: it is BuildKit's, whose keys kiln can't have");
            let is_foreign = !config.records.is_empty() && config.records.iter().all(|r| r.kiln.is_none());
            let imported = Imported::of_config(&name, backend.remote(), config, &blobs);
            return Ok((vec![imported], is_foreign.then(note)));
        }
        Loaded::Images(images) => images,
    };
    let remote = backend.remote();
    let found: Vec<Imported> = images
        .iter()
        .filter_map(|image| inline::of_image(&name, image, image.remote.is_some().then_some(&remote)))
        .collect();
    let note = found.is_empty().then(|| format!("the image {name} has no cache records: it was not built by kiln"));
    Ok((found, note))
}

impl Job {
    /// After a layer turned out to be lost: forgets it, so that what it was to save is made again. Returns whether trying again
    /// makes sense; it does not for a layer of a base image, which is lost each time.
    pub fn forgive(&self, error: &Error) -> Result<bool> {
        let Error::LostLayer { layer, blob, cause } = error else { return Ok(false) };
        let first_time = blob.as_ref().is_none_or(|blob| self.imports.lose(**blob));
        let imported = self.engine.store.layers().find(layer)?.as_ref().and_then(Remote::of).is_some();
        self.engine.store.layers().forget_lost(layer)?;
        if imported {
            self.steps.warn(format!("a cached layer can't be had, so its step is run: {cause}"));
        }
        Ok((first_time || imported) && !self.cancel.is_cancelled())
    }
}
