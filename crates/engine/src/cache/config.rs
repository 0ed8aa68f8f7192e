//! The cache config: BuildKit's `application/vnd.buildkit.cacheconfig.v0`, with kiln's records in it.
//!
//! BuildKit's keys and kiln's are made of different things and can never be equal, so a record of kiln's has the member
//! `kiln` and its digest is kiln's definition key. BuildKit ignores members that it does not know and keys that it does not
//! ask for; kiln ignores records without the member. Layers mean the same to both. The result of a record is in its member
//! `kiln` too: some releases of BuildKit refuse a cache with a result of which a layer is not in the manifest.

use std::collections::{BTreeMap, HashMap};

use kiln_oci::{Descriptor, Digest, Timestamp};
use serde::{Deserialize, Deserializer, Serialize};

/// Media type of the config.
pub const CONFIG_TYPE: &str = "application/vnd.buildkit.cacheconfig.v0";
/// Largest config that is read, in bytes: a build of 10,000 steps has 5 MB.
pub const MAX_CONFIG: u64 = 64 << 20;
/// More layers than this are in no overlay.
pub const MAX_CHAIN: usize = 1000;
/// BuildKit's annotation with the digest of the uncompressed layer.
pub const UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// BuildKit's annotation with the time at which a layer was made.
pub const CREATED_AT: &str = "buildkit/createdat";

/// What a cache has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheConfig {
    /// Layers, each with the one below it.
    #[serde(default, deserialize_with = "null_is_default")]
    pub layers: Vec<CacheLayer>,
    /// Keys, and what they lead to.
    #[serde(default, deserialize_with = "null_is_default")]
    pub records: Vec<CacheRecord>,
    /// Cache mounts.
    #[serde(default, rename = "kilnMounts", skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<super::mounts::MountEntry>,
}

/// A layer in its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheLayer {
    /// The blob.
    pub blob: Digest,
    /// The layer below; negative if there is none. BuildKit leaves 0 out.
    #[serde(default)]
    pub parent: i64,
    /// It is a base image's and not in the cache.
    #[serde(rename = "kilnBase", default, skip_serializing_if = "std::ops::Not::not")]
    pub base: bool,
    /// What is known of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<LayerAnnotations>,
}

/// What is known of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LayerAnnotations {
    /// Media type of the blob.
    #[serde(default)]
    pub media_type: String,
    /// Digest of the uncompressed tar.
    #[serde(rename = "diffID", default, skip_serializing_if = "Option::is_none")]
    pub diff_id: Option<Digest>,
    /// Bytes of the blob.
    #[serde(default)]
    pub size: u64,
    /// When the layer was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
}

/// A key and what it leads to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheRecord {
    /// The key. BuildKit's are not all digests that kiln knows.
    #[serde(default)]
    pub digest: String,
    /// Kiln's part; BuildKit's records have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kiln: Option<KilnRecord>,
}

/// What makes a record one of kiln's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KilnRecord {
    /// All keys that lead to it.
    pub keys: Vec<Digest>,
    /// The state, named by its highest layer.
    pub layer: usize,
    /// What stands for the result in the keys of what is made from it.
    pub identity: Digest,
    /// The step, for people.
    #[serde(default)]
    pub name: String,
}

fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(d: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(d).map(Option::unwrap_or_default)
}

impl CacheConfig {
    /// The layers of the state whose highest one is `top`, lowest first. `None` if the config is not sound there.
    pub fn chain(&self, top: usize) -> Option<Vec<usize>> {
        let mut chain = vec![top];
        self.layers.get(top)?;
        let mut at = top;
        while let Ok(parent) = usize::try_from(self.layers.get(at)?.parent) {
            // Layers may be in any order; one that is below itself has no end.
            if chain.len() >= MAX_CHAIN {
                return None;
            }
            self.layers.get(parent)?;
            chain.push(parent);
            at = parent;
        }
        chain.reverse();
        Some(chain)
    }
}

/// A layer that goes into a config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewLayer {
    /// The blob.
    pub descriptor: Descriptor,
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// When it was made.
    pub created: Timestamp,
    /// It is a base image's and not uploaded.
    pub base: bool,
}

/// Puts a config together. Layers that states have in common are in it once.
#[derive(Default)]
pub struct Builder {
    config: CacheConfig,
    known: HashMap<(i64, Digest), i64>,
}

impl Builder {
    /// Adds a record. A state without layers is no record.
    pub fn add(&mut self, layers: &[&NewLayer], mut kiln: KilnRecord) {
        let mut top = -1;
        for layer in layers {
            top = self.layer(top, layer);
        }
        let (Ok(layer), Some(key)) = (usize::try_from(top), kiln.keys.first()) else { return };
        let digest = key.to_string();
        kiln.layer = layer;
        self.config.records.push(CacheRecord { digest, kiln: Some(kiln) });
    }

    fn layer(&mut self, parent: i64, layer: &NewLayer) -> i64 {
        let blob = layer.descriptor.digest;
        let next = self.config.layers.len() as i64;
        let index = *self.known.entry((parent, blob)).or_insert(next);
        if index == next {
            let annotations = LayerAnnotations {
                media_type: layer.descriptor.media_type.clone(),
                diff_id: Some(layer.diff_id),
                size: layer.descriptor.size,
                created_at: Some(layer.created),
            };
            self.config.layers.push(CacheLayer { blob, parent, base: layer.base, annotations: Some(annotations) });
        }
        index
    }

    /// The config.
    pub fn finish(self, mounts: Vec<super::mounts::MountEntry>) -> CacheConfig {
        CacheConfig { mounts, ..self.config }
    }
}

/// The descriptor of a layer as BuildKit writes it into the manifest of a cache.
pub fn annotated(layer: &NewLayer) -> Descriptor {
    let annotations = BTreeMap::from([
        (UNCOMPRESSED.to_owned(), layer.diff_id.to_string()),
        (CREATED_AT.to_owned(), layer.created.to_string()),
    ]);
    Descriptor { annotations, urls: Vec::new(), platform: None, extra: BTreeMap::new(), ..layer.descriptor.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(name: &str) -> NewLayer {
        let descriptor = Descriptor::of("application/vnd.oci.image.layer.v1.tar+gzip", name.as_bytes());
        NewLayer { descriptor, diff_id: Digest::of(name.as_bytes()), created: Timestamp::EPOCH, base: false }
    }

    fn record(name: &str) -> KilnRecord {
        let key = Digest::of(name.as_bytes());
        KilnRecord { keys: vec![key], layer: 0, identity: key, name: name.to_owned() }
    }

    #[test]
    fn states_share_layers_and_come_back() {
        let (a, b, c) = (layer("a"), layer("b"), layer("c"));
        let mut builder = Builder::default();
        builder.add(&[&a], record("1"));
        builder.add(&[&a, &b], record("2"));
        builder.add(&[&a, &c], record("3"));
        builder.add(&[&c], record("4"));
        builder.add(&[], record("5"));
        let config = builder.finish(Vec::new());
        assert_eq!((config.layers.len(), config.records.len()), (4, 4));
        let text = serde_json::to_string(&config).unwrap();
        let config: CacheConfig = serde_json::from_str(&text).unwrap();
        let blobs = |r: usize| -> Vec<Digest> {
            let top = config.records[r].kiln.as_ref().unwrap().layer;
            config.chain(top).unwrap().into_iter().map(|i| config.layers[i].blob).collect()
        };
        assert_eq!(blobs(1), [a.descriptor.digest, b.descriptor.digest]);
        assert_eq!(blobs(2), [a.descriptor.digest, c.descriptor.digest]);
        assert_eq!(blobs(3), [c.descriptor.digest]);
    }

    #[test]
    fn chains_without_an_end_or_a_layer_are_none() {
        let text = r#"{"layers":[{"blob":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","parent":1},
            {"blob":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
            {"blob":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","parent":9}],"records":null}"#;
        let config: CacheConfig = serde_json::from_str(text).unwrap();
        assert_eq!(config.chain(0), None);
        assert_eq!(config.chain(2), None);
        assert_eq!(config.chain(3), None);
        assert_eq!(config.chain(usize::MAX), None);
    }

    #[test]
    fn a_config_of_buildkit_is_read_and_has_nothing_for_kiln() {
        let text = r#"{"layers":[{"blob":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","parent":-1}],
            "records":[{"layers":[{"layer":0,"createdAt":"2026-01-02T03:04:05.678Z"}],
            "digest":"random:e3b0","inputs":[[{"link":0,"selector":"sha256:aa"}]]},{"chains":[{"layers":[0]}],"digest":"sha256:00"}]}"#;
        let config: CacheConfig = serde_json::from_str(text).unwrap();
        assert_eq!(config.records.len(), 2);
        assert!(config.records.iter().all(|r| r.kiln.is_none()));
    }
}
