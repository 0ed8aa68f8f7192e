//! What a network or a registry does wrong, as the user sees it: recovery, or an error that says who and what; and nothing
//! half-written has a name.

use std::io::Write;
use std::process::{Command, Stdio};

use kiln_oci::{Descriptor, Digest, Reference, media};
use kiln_registry::testing::Fault;
use kiln_registry::{Client, ClientOptions};

use super::{World, hello};

impl World {
    /// Pulls through the proxy after a fault was set.
    fn pull_with(&self, method: &str, part: &str, times: usize, fault: Fault) -> super::Run {
        self.proxy.fault(method, part, times, fault);
        self.elsewhere(&["pull", &self.through("app:1")])
    }

    fn nothing_has_a_name(&self) {
        let images = self.elsewhere(&["images", "-q"]).ok().stdout;
        assert_eq!(images, "", "nothing half-written is visible");
    }

    /// Without further faults it works, whatever the first try has left.
    fn then_it_works(&self) {
        let name = self.through("app:1");
        self.elsewhere(&["pull", "-q", &name]).ok();
        assert_eq!(self.text_of(&name), hello());
    }
}

#[test]
fn a_connection_that_breaks_is_replaced_in_the_middle_of_a_blob() {
    let Some(world) = World::new() else { return };
    world.push("app:1");
    world.pull_with("GET", "/blobs/", 3, Fault::CutAfter(100_000)).ok().says(&["going on at byte"]);
    let resumed = world.proxy.requests().iter().filter(|r| r.header("range").is_some()).count();
    assert!(resumed > 0);
    world.then_it_works();
}

#[test]
fn wrong_bytes_and_lengths_are_refused() {
    let Some(world) = World::new() else { return };
    world.push("app:1");
    let large = world.large_blob();
    for (fault, says) in [
        (Fault::Flip(500_000), "its digest is sha256:"),
        (Fault::Resize(-1000), "bytes for"),
        (Fault::Resize(1000), "bytes for"),
        (Fault::Endless, "more than"),
    ] {
        world.pull_with("GET", &large, 9, fault).fails(1).says(&[says, &world.proxy.host()]);
        world.nothing_has_a_name();
        world.proxy.clear();
    }
    world.then_it_works();
}

impl World {
    /// Path of the largest layer.
    fn large_blob(&self) -> String {
        let image: Reference = self.name("app:1").parse().expect("a name");
        let found = Client::new(ClientOptions::default()).resolve(&image).expect("it is there");
        let kiln_oci::ManifestKind::Manifest(manifest) = found.kind else { panic!("an index") };
        let largest = manifest.layers.iter().max_by_key(|l| l.size).expect("layers");
        format!("/blobs/{}", largest.digest)
    }
}

#[test]
fn a_registry_that_is_busy_is_asked_again() {
    let Some(world) = World::new() else { return };
    world.push("app:1");
    world.proxy.fault("GET", "/blobs/", 1, Fault::answer(429, &[("retry-after", "1")], b"{}"));
    world.pull_with("GET", "/manifests/", 2, Fault::status(503)).ok().says(&["503", "trying again in"]);
    assert_eq!(world.proxy.pending(), 0);
}

#[test]
fn who_is_told_to_wait_for_an_hour_is_told_so() {
    let Some(world) = World::new() else { return };
    world.push("app:1");
    let busy = Fault::answer(429, &[("retry-after", "3600")], b"{}");
    let failed = world.pull_with("GET", "/manifests/", 9, busy).fails(1);
    failed.says(&["limits the rate of requests and asks to wait 3600 s", "hint: wait, log in"]);
}

#[test]
fn what_an_interrupted_pull_has_is_not_fetched_again() {
    let Some(world) = World::new() else { return };
    world.push("app:1");
    let large = world.large_blob();
    world.proxy.fault("GET", &large, 1, Fault::CutAfter(300_000));
    world.pull_with("GET", &large, 9, Fault::status(403)).fails(1).says(&["denies access"]);
    world.nothing_has_a_name();
    world.proxy.clear();
    let before = world.proxy.requests().len();
    world.then_it_works();
    let later = &world.proxy.requests()[before..];
    let ranges: Vec<_> = later.iter().filter(|r| r.path.contains(&large)).map(|r| r.header("range")).collect();
    assert!(ranges.iter().all(Option::is_some) && !ranges.is_empty(), "{ranges:?}");
}

#[test]
fn a_manifest_is_what_its_digest_and_type_say() {
    let Some(world) = World::new() else { return };
    world.push("app:1");
    world.pull_with("GET", "/manifests/", 9, Fault::Flip(100)).fails(1).says(&["its digest is"]);
    world.proxy.clear();
    let confused = Fault::SetHeader("content-type", media::OCI_INDEX.into());
    world.pull_with("GET", "/manifests/", 9, confused).fails(1).says(&["app:1"]);
    world.nothing_has_a_name();
}

#[test]
fn a_push_survives_cuts_and_lost_answers() {
    let Some(world) = World::new() else { return };
    let name = world.through("app:1");
    world.sandbox.build(&["-t", &name]).ok();
    world.proxy.fault("PUT", "/blobs/uploads/", 2, Fault::CutUploadAfter(50_000));
    world.proxy.fault("PUT", "/manifests/", 1, Fault::LoseAnswer);
    world.sandbox.kiln(&["push", &name]).ok();
    world.then_it_works();
}

#[test]
fn an_archive_that_claims_more_than_the_disk_is_not_unpacked() {
    let Some(world) = World::new() else { return };
    let name = world.name("bomb:1");
    push_layer(&name, &bomb());
    world.elsewhere(&["pull", &name]).fails(1).says(&["no space left for", "it needs more than"]);
    world.nothing_has_a_name();
}

/// Some kilobytes that become gigabytes, after the archive's end where no file's size tells of them.
#[test]
fn a_bomb_is_stopped_in_bounded_memory() {
    let Some(world) = World::new() else { return };
    let zeros = gzip(&vec![0; 32 << 20]);
    let bomb: Vec<u8> = gzip(&[0; 1024]).into_iter().chain(zeros.repeat(100)).collect();
    assert!(bomb.len() < 5 << 20);
    let name = world.name("bomb:2");
    push_layer(&name, &bomb);
    let pull = world.sandbox.command(["--root", "other-store", "pull", &name]);
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -v 1000000; exec \"$0\" \"$@\""]).arg(pull.get_program()).args(pull.get_args());
    limited.env_clear().envs(pull.get_envs().filter_map(|(name, value)| Some((name, value?))));
    limited.current_dir(world.sandbox.path(""));
    let failed: super::Run = limited.output().expect("it starts").into();
    failed.fails(1).says(&["bytes after the end of the archive"]);
    world.nothing_has_a_name();
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = Command::new("gzip").arg("-9c").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("gzip");
    let mut input = gzip.stdin.take().expect("a pipe");
    std::thread::scope(|scope| {
        scope.spawn(move || input.write_all(bytes).expect("it reads"));
        gzip.wait_with_output().expect("it ends").stdout
    })
}

#[test]
fn a_layer_that_is_not_what_the_config_says_is_refused() {
    let Some(world) = World::new() else { return };
    let name = world.name("liar:1");
    push_layer(&name, &[0; 1024]);
    world.elsewhere(&["pull", &name]).fails(1).says(&["is damaged: its content is"]);
    world.nothing_has_a_name();
}

/// A tar whose only file claims 2^60 bytes, compressed.
fn bomb() -> Vec<u8> {
    let mut header = [0u8; 512];
    header[..4].copy_from_slice(b"zero");
    header[100..107].copy_from_slice(b"0000644");
    header[124] = 0x80;
    header[128..136].copy_from_slice(&(1u64 << 60).to_be_bytes());
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    [&header[..], &[0; 4096]].concat()
}

/// An image of one layer (not compressed), whose config names another content for it.
fn push_layer(name: &str, layer: &[u8]) {
    let client = Client::new(ClientOptions::default());
    let image: Reference = name.parse().expect("a name");
    let blob = Descriptor::of(media::OCI_LAYER, layer);
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": [Digest::of(b"something else").to_string()] },
    });
    let mut config_bytes = Vec::new();
    write!(config_bytes, "{config}").expect("memory");
    let config = Descriptor::of(media::OCI_CONFIG, &config_bytes);
    client.push_blob(&image, &blob, &layer.to_vec(), &[]).expect("pushed");
    client.push_blob(&image, &config, &config_bytes, &[]).expect("pushed");
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": media::OCI_MANIFEST, "config": config, "layers": [blob],
    });
    let bytes = serde_json::to_vec(&manifest).expect("JSON");
    client.push_manifest(&image, media::OCI_MANIFEST, &bytes).expect("pushed");
}
