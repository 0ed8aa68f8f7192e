//! A store in a temporary directory, and images and layers to put into it.
#![allow(dead_code, clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use kiln_oci::media::Compression;
use kiln_oci::{Descriptor, Digest, History, ImageConfig, Manifest, Platform, media};
use kiln_store::{CacheKey, LayerBlob, LayerId, LayerMeta, Record, Snapshot, Store};

pub struct Env {
    pub store: Store,
    pub dir: tempfile::TempDir,
}

impl Env {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { store: Store::open(&dir.path().join("store")).unwrap(), dir }
    }

    pub fn root(&self) -> &Path {
        self.store.root()
    }

    /// The same store as another process would see it.
    pub fn reopen(&self) -> Store {
        Store::open(self.root()).unwrap()
    }
}

pub fn key(n: impl std::fmt::Display) -> CacheKey {
    CacheKey(Digest::of(format!("key {n}").as_bytes()))
}

/// A layer with one file.
pub fn layer(store: &Store, content: &str) -> LayerId {
    layer_with(store, content, LayerMeta::default())
}

pub fn layer_with(store: &Store, content: &str, meta: LayerMeta) -> LayerId {
    let draft = store.layers().draft().unwrap();
    fs::write(draft.fs().join("file"), content).unwrap();
    draft.commit(meta).unwrap()
}

/// A record of one layer that `key(n)` leads to.
pub fn record(store: &Store, n: impl std::fmt::Display, layers: &[LayerId]) -> CacheKey {
    let key = key(n);
    store.cache().insert(&[key], &Record::new(Snapshot(layers.to_vec()))).unwrap();
    key
}

/// A tar with one file.
pub fn tar(name: &str, content: &[u8]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_entry_type(tar::EntryType::Regular);
    tar.append_data(&mut header, name, content).unwrap();
    tar.into_inner().unwrap()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = kiln_compress::Encoder::new(Vec::new(), Compression::Gzip, None, 1).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub struct TestImage {
    pub target: Descriptor,
    pub diff_ids: Vec<Digest>,
    pub layers: Vec<Descriptor>,
    pub config: Digest,
}

/// An image of gzip layers, each with one file of the given content.
pub fn image(store: &Store, platform: &Platform, contents: &[&str]) -> TestImage {
    let mut config = ImageConfig::empty(platform);
    config.config.cmd = Some(vec!["/file0".into()]);
    let mut layers = Vec::new();
    for (i, content) in contents.iter().enumerate() {
        let tar = tar(&format!("file{i}"), content.as_bytes());
        config.rootfs.diff_ids.push(Digest::of(&tar));
        config.history.push(History { created_by: Some(format!("step {i}")), ..History::default() });
        let blob = gzip(&tar);
        store.content().put(&blob).unwrap();
        layers.push(Descriptor::of(media::OCI_LAYER_GZIP, &blob));
    }
    let bytes = serde_json::to_vec(&config).unwrap();
    store.content().put(&bytes).unwrap();
    let manifest = Manifest {
        schema_version: 2,
        media_type: media::OCI_MANIFEST.into(),
        config: Descriptor::of(media::OCI_CONFIG, &bytes),
        layers: layers.clone(),
        annotations: Default::default(),
        extra: Default::default(),
    };
    let bytes = serde_json::to_vec(&manifest).unwrap();
    store.content().put(&bytes).unwrap();
    let target = Descriptor::of(media::OCI_MANIFEST, &bytes);
    TestImage { target, diff_ids: config.rootfs.diff_ids, layers, config: manifest.config.digest }
}

pub fn blob_meta(image: &TestImage, layer: usize) -> LayerMeta {
    let descriptor = image.layers[layer].clone();
    LayerMeta {
        diff_id: Some(image.diff_ids[layer]),
        blobs: vec![LayerBlob { compression: Compression::Gzip, level: None, descriptor }],
        ..LayerMeta::default()
    }
}

pub fn amd64() -> Platform {
    Platform::new("linux", "amd64", None)
}

/// Runs the ignored test `name` of this test binary as a process of its own.
pub fn child(name: &str, root: &Path, arg: impl std::fmt::Display) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env("STORE_ROOT", root)
        .env("STORE_ARG", arg.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

/// In a child: its store and argument. `None` when the test was started by hand.
pub fn in_child() -> Option<(Store, String)> {
    let root = std::env::var_os("STORE_ROOT")?;
    Some((Store::open(Path::new(&root)).unwrap(), std::env::var("STORE_ARG").unwrap_or_default()))
}

/// Names in a directory, without those that begin with a dot.
pub fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// What must hold for any store at rest.
pub fn check_invariants(store: &Store) {
    for record in store.cache_entries().unwrap() {
        for id in &record.layers {
            let layer = store.layers().get(id).unwrap();
            assert!(!layer.unpacked || store.layers().path(id).is_dir(), "layer {id} has no files");
        }
    }
    for image in store.images().list().unwrap() {
        for view in store.images().manifests(&image.target).unwrap() {
            for layer in &view.manifest.layers {
                let mut hasher = layer.digest.hasher();
                std::io::copy(&mut store.content().open(&layer.digest).unwrap(), &mut hasher).unwrap();
                assert_eq!(hasher.finish(), layer.digest);
            }
        }
    }
    for blob in names(&store.root().join("content/blobs/sha256")) {
        let bytes = fs::read(store.root().join("content/blobs/sha256").join(&blob)).unwrap();
        assert_eq!(Digest::of(&bytes).hex(), blob, "a blob with a wrong name");
    }
    let index: kiln_oci::Index =
        serde_json::from_slice(&fs::read(store.root().join("content/index.json")).unwrap()).unwrap();
    let named = store.images().list().unwrap().into_iter().filter(|i| i.name.is_some()).count();
    assert_eq!(index.manifests.len(), named, "index.json does not list the named images");
}
