//! What a collection may evict, and in which order.

use std::collections::BTreeMap;

use kiln_oci::Digest;

use crate::error::Result;
use crate::gc::{PrunePolicy, is_older};
use crate::images::Image;
use crate::layers::LayerId;
use crate::mark::Marks;
use crate::mounts::MountInfo;
use crate::sources::{self, SourceItem};
use crate::store::Store;
use crate::usage::{self, CacheEntry};

/// Something that can be evicted.
#[derive(Debug)]
pub(crate) enum Candidate {
    Record(CacheEntry),
    Mount(MountInfo),
    Source(SourceItem),
    Image(ImageItem),
}

/// An image with all its names.
#[derive(Debug)]
pub(crate) struct ImageItem {
    pub digest: Digest,
    pub name: String,
    pub used_ms: i64,
}

impl Candidate {
    fn used_ms(&self) -> i64 {
        match self {
            Self::Record(entry) => entry.used_ms,
            Self::Mount(mount) => mount.used_ms,
            Self::Source(source) => source.used_ms,
            Self::Image(image) => image.used_ms,
        }
    }

    /// Among those that were used at the same time, the later steps of a build go first: they hold the layers of the earlier ones.
    fn order(&self) -> (i64, i64) {
        (self.used_ms(), if let Self::Record(entry) = self { -entry.id } else { 0 })
    }

    fn words(&self) -> (String, String) {
        match self {
            Self::Record(entry) => (entry.kind.clone(), entry.description.clone()),
            Self::Mount(mount) => ("exec.cachemount".into(), mount.id.clone()),
            Self::Source(source) => (format!("source.{}", source.kind), source.name()),
            Self::Image(image) => ("image".into(), image.name.clone()),
        }
    }
}

/// Bytes that evicting it is hoped to free.
pub(crate) fn estimate(store: &Store, marks: &Marks, candidate: &Candidate) -> u64 {
    match candidate {
        Candidate::Record(entry) => {
            let own = entry.layers.iter().filter(|id| !marks.layers.contains(id));
            entry.bytes + own.map(|id| blob_bytes(store, id)).sum::<u64>()
        }
        Candidate::Mount(mount) => store.cache_mounts().size(mount).unwrap_or(0),
        Candidate::Source(item) => usage::tree(&item.path).unwrap_or(0),
        Candidate::Image(image) => store.images().content_bytes(&image.digest),
    }
}

/// What may be evicted, the least recently used first.
pub(crate) fn candidates(store: &Store, marks: &Marks, policy: &PrunePolicy) -> Result<Vec<Candidate>> {
    let records = usage::cache_entries(store, marks)?;
    let records = records.into_iter().filter(|e| policy.all || !e.in_image).map(Candidate::Record);
    let mounts = store.cache_mounts().list()?.into_iter().map(Candidate::Mount);
    let sources = sources::list(store).into_iter().map(Candidate::Source);
    let images = image_candidates(store, policy.images)?.into_iter().map(Candidate::Image);
    let mut candidates: Vec<Candidate> = records
        .chain(mounts)
        .chain(sources)
        .chain(images)
        .filter(|c| {
            let (kind, description) = c.words();
            policy.keep_since.is_none_or(|since| is_older(c.used_ms(), since))
                && policy.filters.iter().all(|f| f.accepts(&kind, &description, c.used_ms()))
        })
        .collect();
    candidates.sort_by_key(Candidate::order);
    Ok(candidates)
}

/// Bytes of a layer's blobs.
fn blob_bytes(store: &Store, id: &LayerId) -> u64 {
    let layer = store.layers().find(id).ok().flatten();
    let blobs = layer.iter().flat_map(|l| &l.blobs);
    blobs.filter_map(|b| store.content().size(&b.descriptor.digest).ok().flatten()).sum()
}

/// Images without a name, and with `all` the others too.
fn image_candidates(store: &Store, all: bool) -> Result<Vec<ImageItem>> {
    let images = store.images();
    let mut by_digest: BTreeMap<Digest, Vec<Image>> = BTreeMap::new();
    for image in images.list()? {
        by_digest.entry(image.target.digest).or_default().push(image);
    }
    let mut items = Vec::new();
    for (digest, rows) in by_digest {
        if all || rows.iter().all(|r| r.name.is_none()) {
            let name = rows.iter().find_map(|r| Some(r.name.as_ref()?.familiar()));
            let name = name.unwrap_or_else(|| format!("<none> {}", digest.short()));
            items.push(ImageItem { digest, name, used_ms: images.used_ms(&digest)? });
        }
    }
    Ok(items)
}

/// BuildKit's rule for its three limits, of which at least one is set.
pub(crate) fn keep_bytes(policy: &PrunePolicy, used: u64, free: u64) -> u64 {
    let mut keep = if policy.max_used_space == 0 { None } else { Some(policy.max_used_space) };
    let missing = policy.min_free_space.saturating_sub(free);
    if missing > 0 {
        let lower = used.saturating_sub(missing);
        keep = Some(keep.map_or(lower, |k| k.min(lower)));
    }
    match keep {
        Some(keep) => keep.max(policy.reserved_space),
        // Only a demand for free space, which is met.
        None if policy.min_free_space > 0 => u64::MAX,
        None => policy.reserved_space,
    }
}
