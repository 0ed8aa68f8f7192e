//! Layers that other builders make: directories without entries of their own, and roots that hide what is below.

use std::os::unix::fs::PermissionsExt;

use kiln_oci::{Descriptor, Digest, Reference, media};
use kiln_registry::{Client, ClientOptions};

use super::World;
use super::support::{names, text};

#[test]
fn a_directory_that_a_layer_does_not_describe_keeps_what_it_was() {
    let Some(world) = World::new() else { return };
    let name = world.name("implicit:1");
    let below = tar(&[("private/", 0o750, ""), ("private/a", 0o600, "a")]);
    push(&name, &[below, tar(&[("private/b", 0o640, "b")]), tar(&[("private/c", 0o640, "c")])]);
    let out = unpacked(&world, &name);
    assert_eq!(names(out.join("private")), ["a", "b", "c"]);
    let mode = std::fs::metadata(out.join("private")).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o7777, 0o750);
}

#[test]
fn a_root_that_is_opaque_hides_all_layers_below() {
    let Some(world) = World::new() else { return };
    let name = world.name("opaque:1");
    let layers = [tar(&[("old", 0o644, "old")]), tar(&[(".wh..wh..opq", 0o644, ""), ("new", 0o644, "new")])];
    push(&name, &[&layers[..], &[tar(&[("more", 0o644, "more")])]].concat());
    let out = unpacked(&world, &name);
    assert_eq!(names(&out), ["more", "new"]);
    assert_eq!(text(out.join("new")), "new");
}

fn unpacked(world: &World, name: &str) -> std::path::PathBuf {
    world.elsewhere(&["pull", "-q", name]).ok();
    world.sandbox.file("Again", format!("FROM {name}\n"));
    world.elsewhere(&["build", "-q", "-f", "ctx/Again", "-o", "type=local,dest=out", "ctx"]).ok();
    world.sandbox.path("out")
}

/// A ustar archive; a name that ends with `/` is a directory.
fn tar(entries: &[(&str, u32, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, mode, data) in entries {
        let mut header = [0u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..107].copy_from_slice(format!("{mode:07o}").as_bytes());
        for id in [108, 116] {
            header[id..id + 7].copy_from_slice(b"0000000");
        }
        header[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
        header[136..147].copy_from_slice(b"00000000000");
        header[156] = if name.ends_with('/') { b'5' } else { b'0' };
        header[257..265].copy_from_slice(b"ustar\x0000");
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.extend_from_slice(&header);
        out.extend_from_slice(data.as_bytes());
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

fn push(name: &str, layers: &[Vec<u8>]) {
    let client = Client::new(ClientOptions::default());
    let image: Reference = name.parse().expect("a name");
    let diff_ids: Vec<String> = layers.iter().map(|l| Digest::of(l).to_string()).collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {}, "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config_bytes = config.to_string().into_bytes();
    let config = Descriptor::of(media::OCI_CONFIG, &config_bytes);
    let blobs: Vec<Descriptor> = layers.iter().map(|l| Descriptor::of(media::OCI_LAYER, l)).collect();
    for (blob, bytes) in blobs.iter().zip(layers).chain([(&config, &config_bytes)]) {
        client.push_blob(&image, blob, bytes, &[]).expect("pushed");
    }
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": media::OCI_MANIFEST, "config": config, "layers": blobs,
    });
    let bytes = serde_json::to_vec(&manifest).expect("JSON");
    client.push_manifest(&image, media::OCI_MANIFEST, &bytes).expect("pushed");
}
