//! Archives and layouts that are small and want much.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::Cursor;

use common::*;
use kiln_oci::{Descriptor, Digest, Index, media};
use kiln_store::*;

/// Indexes on top of an image, each of which names the one below so often.
fn tower(target: &Descriptor, height: usize, often: usize) -> Vec<(Descriptor, Vec<u8>)> {
    let mut below = target.clone();
    (0..height)
        .map(|_| {
            let index = Index {
                schema_version: 2,
                media_type: media::OCI_INDEX.into(),
                manifests: vec![below.clone(); often],
                annotations: Default::default(),
                extra: Default::default(),
            };
            let bytes = serde_json::to_vec(&index).unwrap();
            below = Descriptor::of(media::OCI_INDEX, &bytes);
            (below.clone(), bytes)
        })
        .collect()
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// All files of a layout with an image below a tower of indexes; the last one is what its `index.json` names.
fn layout(height: usize, often: usize) -> Vec<(String, Vec<u8>)> {
    let env = Env::new();
    let target = image(&env.store, &amd64(), &["x"]).target;
    let tower = tower(&target, height, often);
    let top = &tower.last().unwrap().0;
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{}","digest":"{}","size":{}}}]}}"#,
        top.media_type, top.digest, top.size
    );
    let mut files = vec![("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
    files.push(("index.json".to_owned(), index.into_bytes()));
    files.extend(tower.iter().map(|(descriptor, bytes)| (blob_name(&descriptor.digest), bytes.clone())));
    for blob in names(&env.root().join("content/blobs/sha256")) {
        let bytes = fs::read(env.root().join("content/blobs/sha256").join(&blob)).unwrap();
        files.push((format!("blobs/sha256/{blob}"), bytes));
    }
    files
}

fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, bytes.as_slice()).unwrap();
    }
    archive.into_inner().unwrap()
}

/// Sixty to the power of four manifests would have to be looked at.
#[test]
fn indexes_that_name_each_other_again_and_again_are_read_once() {
    let files = layout(4, 60);
    let env = Env::new();
    let loaded = env.store.load(Box::new(Cursor::new(archive(&files))), &LoadOptions::default()).unwrap();
    let target = loaded[0].target.clone();
    assert_eq!(env.store.images().manifests(&target).unwrap().len(), 60, "of the lowest index");

    let mut out = Vec::new();
    let images = [SaveImage { target: target.clone(), names: Vec::new() }];
    let report = env.store.save(&images, ArchiveFormat::Oci, None, &mut out).unwrap();
    assert_eq!(report.blobs, 4 + 3, "the indexes, the manifest, its config and layer");

    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in &files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let other = Env::new();
    let copied = OciLayout::open(dir.path()).unwrap().load(None, &other.store).unwrap();
    assert_eq!(copied[0].target.digest, target.digest);
    assert_eq!(names(&other.root().join("content/blobs/sha256")).len(), 7);
}

#[test]
fn names_longer_than_any_file_system_has_are_refused() {
    for (name, fits) in [("n/".repeat(2000), true), ("n/".repeat(3000), false)] {
        let loaded = Env::new()
            .store
            .load(Box::new(Cursor::new(archive(&[(format!("{name}x"), b"x".to_vec())]))), &LoadOptions::default());
        let error = loaded.unwrap_err().to_string();
        assert_eq!(error.contains("a name of more than 4096 bytes"), !fits, "{error}");
    }
}
