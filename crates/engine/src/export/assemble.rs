//! Layers and config become manifest and config blobs.
//!
//! What decides the bytes: the layers' digests, the config, and `created` times, which are those of the steps when they
//! ran, or `SOURCE_DATE_EPOCH`. Nothing else: a build of which every step is cached gives the same digest again.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use kiln_graph::Location;
use kiln_oci::{Descriptor, Digest, History, ImageConfig, Manifest, Platform, Timestamp, media};
use kiln_store::{Snapshot, Store};

use super::ahead::Early;
use crate::build::Job;
use crate::cache::InlineRecords;
use crate::error::{Error, Result};
use crate::events::Stream;
use crate::leaks::{BASE_IMAGE, LeakSearch};
use crate::pack::{PackOptions, Packed, growing_key};
use crate::request::{AnnotationTarget, LayerFormat};
use crate::steps::Step;
use crate::transfer::in_parallel_by;

/// An image whose layers are in the store.
#[derive(Debug, Clone)]
pub struct Assembled {
    /// For which platform.
    pub platform: Platform,
    /// The manifest.
    pub manifest: Descriptor,
    /// Its config: the image ID.
    pub config: Descriptor,
    /// Its layers.
    pub layers: Vec<Descriptor>,
    /// Where layers that are not in the store can be had, by digest.
    pub remotes: BTreeMap<Digest, String>,
}

/// Manifests, configs and indexes that are not in the store before it is known that no secret is in them.
#[derive(Debug, Default)]
pub struct Documents(Vec<Vec<u8>>);

impl Documents {
    /// One of them.
    pub fn of(bytes: Vec<u8>) -> Self {
        Self(vec![bytes])
    }

    /// Takes over others.
    pub fn append(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// Writes them to the store.
    pub fn write(self, store: &Store) -> Result<()> {
        self.0.iter().try_for_each(|bytes| store.content().put(bytes).map(drop)).map_err(Error::from)
    }
}

/// What an image is made of.
pub struct Parts<'a> {
    /// Its layers.
    pub snapshot: &'a Snapshot,
    /// When each layer was made.
    pub created: &'a [Timestamp],
    /// The steps that made them, for messages; `None` for those of the base image.
    pub places: &'a [Option<String>],
    /// The instructions of the build's own history entries, for messages.
    pub lines: &'a [Location],
    /// The config without layers.
    pub config: &'a ImageConfig,
    /// That of the base image.
    pub base: Option<&'a ImageConfig>,
    /// The platform.
    pub platform: &'a Platform,
    /// Keys of the layers, for builds that take the image as a cache.
    pub inline: Option<&'a InlineRecords>,
    /// Takes what can be pushed before the image is whole.
    pub ahead: Option<&'a dyn Fn(Early)>,
}

/// Packs the layers, and makes config and manifest of them.
pub fn assemble(
    job: &Job,
    parts: &Parts<'_>,
    format: &LayerFormat,
    search: Option<&LeakSearch>,
    step: &Step,
) -> Result<(Assembled, Documents)> {
    let packed = pack_all(job, parts, format, search, step)?;
    say_what_is_not_searched(job, parts.snapshot, search, step)?;
    let mut config = parts.config.clone();
    config.rootfs.diff_ids = packed.iter().map(|p| p.diff_id).collect();
    set_times(&mut config, parts.created, job.request.source_date_epoch);
    if let Some(inline) = parts.inline {
        inline.add_to(&mut config)?;
    }
    let layers_in_history = config.history.iter().filter(|h| h.empty_layer != Some(true)).count();
    if layers_in_history != packed.len() {
        // Bases without history exist; the rest of the field shows what it can and so do we.
        pad_history(&mut config, packed.len());
    }
    let config_bytes = serde_json::to_vec(&config).map_err(|e| Error::request(e.to_string()))?;
    let config_type = if format.oci { media::OCI_CONFIG } else { media::DOCKER_CONFIG };
    let config_descriptor = Descriptor::of(config_type, &config_bytes);
    let layers: Vec<Descriptor> = packed.into_iter().map(|p| p.descriptor).collect();
    let manifest = Manifest {
        schema_version: 2,
        media_type: if format.oci { media::OCI_MANIFEST } else { media::DOCKER_MANIFEST }.to_owned(),
        config: config_descriptor.clone(),
        layers: layers.clone(),
        annotations: annotations(job, AnnotationTarget::Manifest, parts.platform),
        extra: BTreeMap::new(),
    };
    let manifest_bytes = serde_json::to_vec(&manifest).map_err(|e| Error::request(e.to_string()))?;
    if let Some(search) = search {
        search.config(&config_bytes, &config, parts.base, parts.lines);
        search.value("the manifest", &manifest_bytes);
    }
    let mut descriptor = Descriptor::of(&manifest.media_type, &manifest_bytes);
    descriptor.annotations = annotations(job, AnnotationTarget::ManifestDescriptor, parts.platform);
    let image = Assembled {
        platform: parts.platform.clone(),
        manifest: descriptor,
        config: config_descriptor,
        layers,
        remotes: remotes(job, parts.snapshot)?,
    };
    Ok((image, Documents(vec![config_bytes, manifest_bytes])))
}

/// Annotations of one kind for one platform.
pub fn annotations(job: &Job, target: AnnotationTarget, platform: &Platform) -> BTreeMap<String, String> {
    let wanted =
        |a: &&crate::request::Annotation| a.target == target && a.platform.as_ref().is_none_or(|p| p == platform);
    job.request.annotations.iter().filter(wanted).map(|a| (a.key.clone(), a.value.clone())).collect()
}

/// Those that were packed before are found at once; of the others a few are packed at the same time.
fn pack_all(
    job: &Job,
    parts: &Parts<'_>,
    format: &LayerFormat,
    search: Option<&LeakSearch>,
    step: &Step,
) -> Result<Vec<Packed>> {
    let options = PackOptions::new(job, format.clone());
    let of_base = search.and_then(LeakSearch::of_base);
    let search = |index: usize| match parts.places.get(index).and_then(Option::as_deref) {
        Some(place) => search.map(|s| (s, place)),
        None => of_base.as_ref().map(|s| (s, BASE_IMAGE)),
    };
    let done = |packed: Packed| {
        let size = packed.descriptor.size;
        step.progress(&format!("layer {}", packed.descriptor.digest.short()), size, Some(size), true);
        packed
    };
    let mut packed = Vec::with_capacity(parts.snapshot.0.len());
    for index in 0..parts.snapshot.0.len() {
        packed.push(job.engine.packed_before(parts.snapshot, index, &options, search(index))?.map(done));
    }
    let missing: Vec<usize> = (0..packed.len()).filter(|i| packed[*i].is_none()).collect();
    let keys: Vec<String> = missing.iter().map(|i| growing_key(&parts.snapshot.0[*i], &options)).collect();
    if let (Some(ahead), false) = (parts.ahead, missing.is_empty()) {
        keys.iter().for_each(|key| ahead(Early::Growing(job.engine.growing.of(key))));
        ahead(Early::Whole(packed.iter().flatten().map(|p| p.descriptor.clone()).collect()));
    }
    let made = Mutex::new(Vec::with_capacity(missing.len()));
    let result = in_parallel_by(job.engine.layers_at_once(), &missing, |&index| {
        let one = job.engine.pack_searched(parts.snapshot, index, &options, search(index)).map(done)?;
        made.lock().unwrap_or_else(PoisonError::into_inner).push((index, one));
        Ok(())
    });
    keys.iter().for_each(|key| job.engine.growing.over(key));
    result?;
    for (index, one) in made.into_inner().unwrap_or_else(PoisonError::into_inner) {
        packed[index] = Some(one);
    }
    Ok(packed.into_iter().flatten().collect())
}

/// What never was here is not fetched to be searched: a base has this build's secrets only if they were in an image before.
fn say_what_is_not_searched(job: &Job, snapshot: &Snapshot, search: Option<&LeakSearch>, step: &Step) -> Result<()> {
    if search.and_then(LeakSearch::of_base).is_none() {
        return Ok(());
    }
    let mut count = 0;
    for id in &snapshot.0 {
        count += usize::from(!job.engine.store.layers().get(id)?.unpacked);
    }
    if count > 0 {
        let layers = if count == 1 { "1 layer was" } else { &format!("{count} layers were") };
        let line = format!("{layers} never fetched and so not searched for secrets; `kiln check-leaks` does that\n");
        step.log(Stream::Stdout, line.as_bytes());
    }
    Ok(())
}

fn remotes(job: &Job, snapshot: &Snapshot) -> Result<BTreeMap<Digest, String>> {
    let mut all = BTreeMap::new();
    for id in &snapshot.0 {
        let layer = job.engine.store.layers().get(id)?;
        if let Some(remote) = layer.remote {
            all.extend(layer.blobs.iter().map(|b| (b.descriptor.digest, remote.clone())));
        }
    }
    Ok(all)
}

/// Fills in `created`: a layer's entry has the layer's time, an entry without a layer that of the layer before it (or the
/// first one made), as BuildKit does. `epoch` replaces times that are later.
fn set_times(config: &mut ImageConfig, created: &[Timestamp], epoch: Option<i64>) {
    let clamp = |t: Timestamp| match epoch {
        Some(e) if t.seconds() > e => Timestamp::from_seconds(e).unwrap_or(t),
        _ => t,
    };
    let mut layer = 0;
    for entry in &mut config.history {
        if entry.empty_layer != Some(true) {
            if entry.created.is_none() {
                entry.created = created.get(layer).copied().map(clamp);
            }
            layer += 1;
        }
    }
    let first_new = config.history.iter().skip_while(|h| h.created.is_some()).find_map(|h| h.created);
    let mut last = first_new.or_else(|| config.history.iter().rev().find_map(|h| h.created));
    let mut fresh = false;
    for entry in &mut config.history {
        match entry.created {
            Some(at) if fresh => last = Some(at),
            Some(_) => {}
            None => {
                fresh = true;
                entry.created = last;
            }
        }
    }
    let newest = config.history.last().and_then(|h| h.created).or(created.last().copied().map(clamp));
    let fallback = config.created.unwrap_or_else(|| clamp(Timestamp::EPOCH));
    config.created = Some(newest.unwrap_or(fallback));
}

fn pad_history(config: &mut ImageConfig, layers: usize) {
    let have = config.history.iter().filter(|h| h.empty_layer != Some(true)).count();
    for _ in have..layers {
        config.history.insert(0, History { created: config.created, ..History::default() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_seconds(seconds).unwrap()
    }

    fn entry(created: Option<i64>, empty: bool) -> History {
        History { created: created.map(at), empty_layer: empty.then_some(true), ..History::default() }
    }

    #[test]
    fn entries_without_a_layer_get_the_time_of_a_layer() {
        let mut config = ImageConfig::empty(&Platform::host());
        config.history = vec![entry(Some(5), false), entry(None, true), entry(None, false), entry(None, true)];
        set_times(&mut config, &[at(5), at(100)], None);
        let seconds: Vec<i64> = config.history.iter().map(|h| h.created.unwrap().seconds()).collect();
        assert_eq!(seconds, [5, 100, 100, 100]);
        assert_eq!(config.created.unwrap().seconds(), 100);
    }

    #[test]
    fn the_epoch_clamps_new_entries_and_leaves_the_base_alone() {
        let mut config = ImageConfig::empty(&Platform::host());
        config.history = vec![entry(Some(500), false), entry(None, false)];
        set_times(&mut config, &[at(500), at(600)], Some(42));
        let seconds: Vec<i64> = config.history.iter().map(|h| h.created.unwrap().seconds()).collect();
        assert_eq!(seconds, [500, 42]);
    }
}
