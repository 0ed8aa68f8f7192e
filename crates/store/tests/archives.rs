//! Archives: what kiln saves, others read, and the other way round.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{Cursor, Read, Write};
use std::path::Path;
use std::process::Command;

use common::*;
use kiln_oci::media::Compression;
use kiln_oci::{Descriptor, Digest, Index, Platform, Reference, media};
use kiln_store::*;

fn name(s: &str) -> Reference {
    s.parse().unwrap()
}

fn save(store: &Store, images: &[(&TestImage, &[&str])], format: ArchiveFormat) -> Vec<u8> {
    let images: Vec<SaveImage> = images
        .iter()
        .map(|(image, names)| SaveImage {
            target: image.target.clone(),
            names: names.iter().map(|n| name(n).with_default_tag()).collect(),
        })
        .collect();
    let mut out = Vec::new();
    let report = store.save(&images, format, None, &mut out).unwrap();
    assert_eq!(report.bytes, out.len() as u64);
    out
}

fn load(store: &Store, bytes: Vec<u8>) -> Result<Vec<Loaded>> {
    store.load(Box::new(Cursor::new(bytes)), &LoadOptions::default())
}

fn entries(bytes: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(bytes);
    archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect()
}

/// A tar of files, symbolic links (`->`) and hard links (`=>`).
fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(0);
        match content {
            [b'-', b'>', target @ ..] | [b'=', b'>', target @ ..] => {
                let kind = if content[0] == b'-' { tar::EntryType::Symlink } else { tar::EntryType::Link };
                header.set_entry_type(kind);
                tar.append_link(&mut header, path, std::str::from_utf8(target).unwrap()).unwrap();
            }
            content => {
                header.set_size(content.len() as u64);
                // Set by hand: the library would not write `..`.
                header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
                header.set_cksum();
                tar.append(&header, *content).unwrap();
            }
        }
    }
    tar.into_inner().unwrap()
}

fn compressed(bytes: &[u8], compression: Compression) -> Vec<u8> {
    let mut encoder = kiln_compress::Encoder::new(Vec::new(), compression, None, 1).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn what_is_saved_loads_with_all_names_and_the_same_digests() {
    let env = Env::new();
    let (one, two) = (image(&env.store, &amd64(), &["1", "shared"]), image(&env.store, &amd64(), &["2", "shared"]));
    for format in [ArchiveFormat::Docker, ArchiveFormat::Oci] {
        let images: [(&TestImage, &[&str]); 2] = [(&one, &["app:1", "localhost:5000/team/app"]), (&two, &["app:2"])];
        let bytes = save(&env.store, &images, format);
        assert_eq!(bytes, save(&env.store, &images, format), "the same bytes each time");
        let names = entries(&bytes);
        // Two configs, two manifests, two layers of their own and a shared one.
        assert_eq!(names.iter().filter(|n| n.len() > 60).count(), 7);
        assert_eq!(names.contains(&"manifest.json".to_owned()), format == ArchiveFormat::Docker);
        let forms = [bytes.clone(), compressed(&bytes, Compression::Gzip), compressed(&bytes, Compression::Zstd)];
        for bytes in forms {
            let other = Env::new();
            let loaded = load(&other.store, bytes).unwrap();
            assert_eq!(loaded.len(), 2);
            for (given, image) in [("app:1", &one), ("localhost:5000/team/app:latest", &one), ("app:2", &two)] {
                let found = other.store.images().resolve(&name(given)).unwrap().unwrap();
                assert_eq!(found.target, image.target);
            }
            assert_eq!(other.store.images().list().unwrap().len(), 3);
            other.store.collect().unwrap();
            check_invariants(&other.store);
        }
    }
}

#[test]
fn several_platforms_or_one() {
    let env = Env::new();
    let platforms = [amd64(), Platform::new("linux", "arm64", None)];
    let entry = |p: &Platform| Descriptor { platform: Some(p.clone()), ..image(&env.store, p, &["x"]).target };
    let mut manifests: Vec<Descriptor> = platforms.iter().map(entry).collect();
    let missing = Descriptor::of(media::OCI_MANIFEST, b"elsewhere");
    manifests.push(Descriptor { platform: Some(Platform::new("linux", "s390x", None)), ..missing });
    let index = Index {
        schema_version: 2,
        media_type: media::OCI_INDEX.into(),
        manifests,
        annotations: Default::default(),
        extra: Default::default(),
    };
    let bytes = serde_json::to_vec(&index).unwrap();
    env.store.content().put(&bytes).unwrap();
    let target = Descriptor::of(media::OCI_INDEX, &bytes);
    let images = [SaveImage { target: target.clone(), names: vec![name("multi:1")] }];
    let mut all = Vec::new();
    env.store.save(&images, ArchiveFormat::Docker, None, &mut all).unwrap();
    let other = Env::new();
    assert_eq!(load(&other.store, all).unwrap()[0].target, target);
    assert_eq!(other.store.images().manifests(&target).unwrap().len(), 2);

    let mut one = Vec::new();
    env.store.save(&images, ArchiveFormat::Oci, Some(&platforms[1]), &mut one).unwrap();
    let other = Env::new();
    let loaded = load(&other.store, one).unwrap();
    assert_eq!(loaded[0].target.digest, index.manifests[1].digest);
    let error = env.store.save(&images, ArchiveFormat::Oci, Some(&"linux/386".parse().unwrap()), &mut Vec::new());
    assert!(matches!(error, Err(Error::NoPlatform { .. })));
}

#[test]
fn a_layer_that_is_not_here_is_said_before_and_a_damaged_one_is_not_passed_on() {
    let env = Env::new();
    let image = image(&env.store, &amd64(), &["1"]);
    let images = [SaveImage { target: image.target.clone(), names: vec![] }];
    fs::write(env.store.content().path(&image.layers[0].digest), "damaged").unwrap();
    let error = env.store.save(&images, ArchiveFormat::Oci, None, &mut Vec::new()).unwrap_err();
    assert!(matches!(error, Error::BlobDamaged { .. }), "{error}");
    env.store.content().remove(&image.layers[0].digest).unwrap();
    assert_eq!(env.store.missing_blobs(&image.target, None).unwrap(), [image.layers[0].clone()]);
    let error = env.store.save(&images, ArchiveFormat::Oci, None, &mut Vec::new()).unwrap_err();
    assert!(matches!(error, Error::BlobMissing(_)), "{error}");
    /// A pipe whose reader went away.
    struct Closed;
    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let error = env.store.save(&images, ArchiveFormat::Oci, None, &mut Closed).unwrap_err();
    assert!(matches!(error, Error::Output(e) if e.kind() == std::io::ErrorKind::BrokenPipe));
}

/// An archive as docker 20 writes it, with its entries in a given order.
struct OldDocker {
    tar1: Vec<u8>,
    tar2: Vec<u8>,
    config: Vec<u8>,
}

impl OldDocker {
    fn new() -> Self {
        let (tar1, tar2) = (tar("a", b"1"), tar("b", b"2"));
        let mut config = kiln_oci::ImageConfig::empty(&amd64());
        config.rootfs.diff_ids = vec![Digest::of(&tar1), Digest::of(&tar2), Digest::of(&tar1)];
        Self { tar1, tar2, config: serde_json::to_vec(&config).unwrap() }
    }

    fn manifest(&self) -> String {
        let config = Digest::of(&self.config).hex();
        format!(
            r#"[{{"Config":"{config}.json","RepoTags":["app:1","<none>:<none>","Not A Name"],"Layers":["a/layer.tar","b/layer.tar","c/layer.tar"]}}]"#
        )
    }

    fn config_name(&self) -> String {
        format!("{}.json", Digest::of(&self.config).hex())
    }
}

#[test]
fn archives_of_older_dockers_in_any_order() {
    let old = OldDocker::new();
    let (manifest, config) = (old.manifest(), old.config_name());
    let files: [(&str, &[u8]); 8] = [
        ("c/layer.tar", b"->../a/layer.tar"),
        ("manifest.json", manifest.as_bytes()),
        ("./a/layer.tar", &old.tar1),
        ("a/json", b"{}"),
        ("a/VERSION", b"1.0"),
        ("repositories", b"{}"),
        ("b/layer.tar", &old.tar2),
        (&config, &old.config),
    ];
    let mut targets = Vec::new();
    for reversed in [false, true] {
        let mut files = files.to_vec();
        if reversed {
            files.reverse();
        }
        let env = Env::new();
        let loaded = load(&env.store, archive(&files)).unwrap();
        assert_eq!(loaded[0].names, [name("app:1")]);
        assert_eq!(loaded[0].ignored, ["Not A Name"]);
        let found = env.store.images().by_id(&Digest::of(&old.config).short()).unwrap().unwrap();
        let view = env.store.images().manifest(&found.target, &amd64()).unwrap();
        assert_eq!(view.raw_config, old.config);
        assert_eq!(view.manifest.layers.len(), 3);
        assert_eq!(view.manifest.layers[0].media_type, media::OCI_LAYER);
        env.store.collect().unwrap();
        // Two different layers, the config and the manifest; nothing of the other files.
        assert_eq!(names(&env.root().join("content/blobs/sha256")).len(), 4);
        check_invariants(&env.store);
        targets.push(found.target);
    }
    assert_eq!(targets[0], targets[1]);
}

#[test]
fn layers_are_checked_against_their_diff_ids() {
    let old = OldDocker::new();
    let (manifest, config) = (old.manifest(), old.config_name());
    let (gz, other) = (gzip(&old.tar2), tar("b", b"3"));
    let with = |b: &[u8]| {
        archive(&[
            ("a/layer.tar", &old.tar1),
            ("c/layer.tar", b"=>a/layer.tar"),
            ("b/layer.tar", b),
            (&config, &old.config),
            ("manifest.json", manifest.as_bytes()),
        ])
    };
    let env = Env::new();
    let loaded = load(&env.store, with(&gz)).unwrap();
    let view = env.store.images().manifest(&loaded[0].target, &amd64()).unwrap();
    assert_eq!(view.manifest.layers[1].media_type, media::OCI_LAYER_GZIP);
    let env = Env::new();
    for bad in [other.clone(), gzip(&other), b"no tar".to_vec()] {
        let error = load(&env.store, with(&bad)).unwrap_err();
        assert!(error.to_string().contains("b/layer.tar is not what the image's config says"), "{error}");
    }
    assert!(env.store.images().list().unwrap().is_empty());
}

#[test]
fn hostile_and_broken_archives_are_refused_with_a_reason() {
    let env = Env::new();
    let old = OldDocker::new();
    let config = old.config_name();
    let manifest = |layers: &str| format!(r#"[{{"Config":"{config}","RepoTags":null,"Layers":{layers}}}]"#);
    let wrong = format!("blobs/sha256/{}", Digest::of(b"right").hex());
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{}","digest":"{}","size":5}}]}}"#,
        media::OCI_MANIFEST,
        Digest::of(b"absent")
    );
    let whole = save(&env.store, &[(&image(&env.store, &amd64(), &["x"]), &["app"])], ArchiveFormat::Oci);
    let (link, escape, few) =
        (manifest(r#"["a","a","a"]"#), manifest(r#"["../../etc/passwd","b","c"]"#), manifest(r#"["a"]"#));
    let short = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{}","digest":"{}","size":5}}]}}"#,
        media::OCI_MANIFEST,
        Digest::of(b"{}")
    );
    let there = format!("blobs/sha256/{}", Digest::of(b"{}").hex());
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (archive(&[(&there, b"{}"), ("index.json", short.as_bytes())]), "has 2 bytes, not 5"),
        (vec![], "neither an index.json nor a manifest.json"),
        (b"PK\x03\x04 something else that is not a tar at all".repeat(40), "it is not a tar"),
        (archive(&[("etc/passwd", b"root")]), "neither an index.json nor a manifest.json"),
        (archive(&[("0123/layer.tar", b"x"), ("0123/json", b"{}")]), "before 1.10"),
        (archive(&[(&wrong, b"wrong")]), "is damaged: expected"),
        (archive(&[("manifest.json", b"{")]), "its manifest.json is not valid"),
        (archive(&[("index.json", index.as_bytes())]), "it lacks the blob sha256:"),
        (
            archive(&[("manifest.json", link.as_bytes()), (&config, &old.config), ("a", b"->b"), ("b", b"->a")]),
            "it lacks \"a\"",
        ),
        (archive(&[("manifest.json", escape.as_bytes()), (&config, &old.config)]), "it lacks \"../../etc/passwd\""),
        (
            archive(&[("manifest.json", few.as_bytes()), (&config, &old.config), ("a", b"x")]),
            "lists 1 layers, its config 3",
        ),
        (whole[..whole.len() / 2].to_vec(), "damaged or cut off"),
        (gzip(&whole)[..200].to_vec(), "damaged or cut off"),
    ];
    let other = Env::new();
    let store = &other.store;
    for (bytes, expected) in cases {
        let error = load(store, bytes).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }
    assert!(store.images().list().unwrap().is_empty());

    let bomb = gzip(&archive(&[("x", &vec![0; 4 << 20])]));
    let options = LoadOptions { max_size: 1 << 20, ..LoadOptions::default() };
    let error = store.load(Box::new(Cursor::new(bomb)), &options).unwrap_err();
    assert!(matches!(error, Error::DiskFull { .. }), "{error}");
}

#[test]
fn a_name_without_end_is_not_read_into_memory() {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_path("././@LongLink").unwrap();
    header.set_size(4 << 30);
    header.set_cksum();
    let (read, writer) = std::io::pipe().unwrap();
    let feeding = std::thread::spawn(move || {
        use std::io::Write;
        let mut writer = writer;
        let mut sent = 0;
        let zeros = vec![b'a'; 1 << 20];
        _ = writer.write_all(header.as_bytes());
        while sent < 64 && writer.write_all(&zeros).is_ok() {
            sent += 1;
        }
        sent
    });
    let error = Env::new().store.load(Box::new(read), &LoadOptions::default()).unwrap_err();
    assert!(error.to_string().contains("a name of more than"), "{error}");
    assert!(feeding.join().unwrap() < 16, "it stopped soon");
}

#[test]
fn the_whole_stream_is_read() {
    let env = Env::new();
    let mut bytes = save(&env.store, &[(&image(&env.store, &amd64(), &["x"]), &["app"])], ArchiveFormat::Docker);
    bytes.extend([0; 20 * 512]);
    /// Notes how much was taken.
    struct Noting(Cursor<Vec<u8>>, std::sync::Arc<std::sync::atomic::AtomicU64>);
    impl Read for Noting {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            let n = self.0.read(buf)?;
            self.1.store(self.0.position(), std::sync::atomic::Ordering::SeqCst);
            Ok(n)
        }
    }
    let (len, taken) = (bytes.len() as u64, std::sync::Arc::default());
    let reader = Noting(Cursor::new(bytes), std::sync::Arc::clone(&taken));
    env.store.load(Box::new(reader), &LoadOptions::default()).unwrap();
    assert_eq!(taken.load(std::sync::atomic::Ordering::SeqCst), len);
}

#[test]
fn content_for_a_build_gets_no_name() {
    let env = Env::new();
    let bytes = save(&env.store, &[(&image(&env.store, &amd64(), &["x"]), &["app"])], ArchiveFormat::Docker);
    let other = Env::new();
    let lease = other.store.lease().unwrap();
    let options = LoadOptions { content_only: true, ..LoadOptions::default() };
    let loaded = other.store.load(Box::new(Cursor::new(bytes)), &options).unwrap();
    other.reopen().collect().unwrap();
    assert_eq!(other.store.images().manifests(&loaded[0].target).unwrap().len(), 1);
    assert!(other.store.images().list().unwrap().is_empty());
    drop(lease);
    other.reopen().collect().unwrap();
    assert!(names(&other.root().join("content/blobs/sha256")).is_empty());
}

#[test]
fn a_root_file_system_becomes_an_image() {
    let env = Env::new();
    let plain = tar("hello", b"world");
    let diff_id = Digest::of(&plain);
    let bytes = gzip(&plain);
    let layer = Descriptor::of(media::OCI_LAYER_GZIP, &bytes);
    env.store.content().put(&bytes).unwrap();
    let mut options = ImportOptions::new("rootfs.tar");
    options.config.cmd = Some(vec!["/hello".into()]);
    let target = env.store.import_image(&layer, &diff_id, &options).unwrap();
    env.store.images().put(&name("imported"), &target).unwrap();
    let view = env.store.images().manifest(&target, &Platform::host()).unwrap();
    assert_eq!(view.config.rootfs.diff_ids, [diff_id]);
    assert_eq!(view.config.history[0].comment.as_deref(), Some("Imported from rootfs.tar"));
    assert_eq!(view.config.config.cmd, Some(vec!["/hello".into()]));
    let options = ImportOptions { message: Some("mine".into()), ..ImportOptions::new("-") };
    let layer = Descriptor::of(media::OCI_LAYER, b"");
    let target = env.store.import_image(&layer, &diff_id, &options).unwrap();
    let config = env.store.images().manifest(&target, &Platform::host()).unwrap().config;
    assert_eq!(config.history[0].comment.as_deref(), Some("mine"));
}

#[test]
fn layouts_are_read_in_place() {
    let env = Env::new();
    let (one, two) = (image(&env.store, &amd64(), &["1"]), image(&env.store, &amd64(), &["2"]));
    let bytes = save(&env.store, &[(&one, &["app:1"]), (&two, &["app:2"])], ArchiveFormat::Oci);
    let file = env.dir.path().join("layout.tar");
    fs::write(&file, &bytes).unwrap();
    let dir = env.dir.path().join("layout");
    tar::Archive::new(&bytes[..]).unpack(&dir).unwrap();
    for path in [&file, &dir] {
        let layout = OciLayout::open(path).unwrap();
        for wanted in ["app:2", "docker.io/library/app:2", &two.target.digest.to_string()] {
            assert_eq!(layout.resolve(Some(wanted)).unwrap().digest, two.target.digest, "{wanted}");
        }
        let error = layout.resolve(Some("app:3")).unwrap_err().to_string();
        assert!(error.contains("docker.io/library/app:1, docker.io/library/app:2"), "{error}");
        assert!(layout.resolve(None).is_err(), "there are two");
        let other = Env::new();
        let _lease = other.store.lease().unwrap();
        let target = layout.copy_image(&layout.resolve(Some("app:1")).unwrap(), Some(&amd64()), &other.store).unwrap();
        assert_eq!(other.store.images().manifest(&target, &amd64()).unwrap().manifest.layers, one.layers);
    }
    // Blobs that are not what they say, and files that are none.
    let blob = |d: &Digest| dir.join("blobs/sha256").join(d.hex());
    fs::write(blob(&two.config), "{}").unwrap();
    let layout = OciLayout::open(&dir).unwrap();
    let copy = |layout: &OciLayout, d: &Descriptor| layout.copy_image(d, None, &env.reopen());
    assert!(copy(&layout, &two.target).unwrap_err().to_string().contains("is damaged"));
    fs::remove_file(blob(&two.config)).unwrap();
    let made = Command::new("mkfifo").arg(blob(&two.config)).status().unwrap();
    assert!(made.success() && copy(&layout, &two.target).unwrap_err().to_string().contains("not a regular file"));
    fs::remove_file(blob(&two.config)).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", blob(&two.config)).unwrap();
    assert!(matches!(copy(&layout, &two.target), Err(Error::Io { .. })));
    fs::write(&file, gzip(&bytes)).unwrap();
    assert!(OciLayout::open(&file).unwrap_err().to_string().contains("compressed with gzip"));
    assert!(OciLayout::open(env.dir.path()).unwrap_err().to_string().contains("it lacks oci-layout"));
}

// With other tools. Each is skipped, aloud, where the tool is not installed.

/// Runs a tool; `None` if it is not installed.
fn tool(program: &str, args: &[&str], dir: &Path) -> Option<String> {
    let output = match Command::new(program).args(args).current_dir(dir).output() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("{program} is not installed: not tested");
            return None;
        }
        other => other.unwrap(),
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    Some(text)
}

const POLICY: &str = "--insecure-policy";

#[test]
fn skopeo_reads_the_store_in_place() {
    let env = Env::new();
    let (one, two) = (image(&env.store, &amd64(), &["1"]), image(&env.store, &amd64(), &["2"]));
    for (n, i) in [("app", &one), ("app:2", &two), ("localhost:5000/team/app:x", &two), ("example.com/a/b:1", &one)] {
        env.store.images().put(&name(n), &i.target).unwrap();
    }
    for (given, image) in
        [("app:latest", &one), ("app:2", &two), ("localhost:5000/team/app:x", &two), ("example.com/a/b:1", &one)]
    {
        let source = format!("oci:{}:{given}", env.root().join("content").display());
        let Some(text) = tool("skopeo", &["inspect", &source], env.dir.path()) else { return };
        assert!(text.contains(&image.target.digest.to_string()) && text.contains(&image.layers[0].digest.to_string()));
        let target = format!("dir:{}", env.dir.path().join("copied").display());
        tool("skopeo", &[POLICY, "copy", &source, &target], env.dir.path());
    }
}

#[test]
fn skopeo_reads_what_is_saved_and_writes_what_is_loaded() {
    let env = Env::new();
    let image = image(&env.store, &amd64(), &["1", "2"]);
    let dir = env.dir.path();
    fs::write(dir.join("docker.tar"), save(&env.store, &[(&image, &["app:1"])], ArchiveFormat::Docker)).unwrap();
    fs::write(dir.join("oci.tar"), save(&env.store, &[(&image, &["app:1"])], ArchiveFormat::Oci)).unwrap();
    for source in [
        "docker-archive:docker.tar:app:1",
        "docker-archive:docker.tar",
        "oci-archive:docker.tar",
        "oci-archive:oci.tar",
    ] {
        let Some(text) = tool("skopeo", &["inspect", "--config", source], dir) else { return };
        assert!(text.contains(&image.diff_ids[1].to_string()), "{source}: {text}");
    }
    let written =
        ["docker-archive:w1.tar:app:w1", "oci-archive:w2.tar:app:w2", "oci-archive:w3.tar:docker.io/library/app:w3"];
    for target in written {
        tool("skopeo", &[POLICY, "copy", "oci-archive:oci.tar", target], dir);
    }
    tool("skopeo", &[POLICY, "copy", "oci-archive:oci.tar", "oci:w4:app"], dir);
    let other = Env::new();
    for (n, wanted) in [(1, "app:w1"), (2, "app:w2"), (3, "app:w3")] {
        let loaded = load(&other.store, fs::read(dir.join(format!("w{n}.tar"))).unwrap()).unwrap();
        assert_eq!(loaded[0].names, [name(wanted)], "w{n}");
        let view = other.store.images().manifest(&loaded[0].target, &amd64()).unwrap();
        assert_eq!(view.config.rootfs.diff_ids, image.diff_ids);
    }
    let layout = OciLayout::open(&dir.join("w4")).unwrap();
    assert_eq!(layout.resolve(Some("app")).unwrap(), layout.resolve(None).unwrap());
    check_invariants(&other.store);
}

#[test]
fn umoci_unpacks_what_is_saved() {
    let env = Env::new();
    let image = image(&env.store, &amd64(), &["first", "second"]);
    let bytes = save(&env.store, &[(&image, &["app:1"])], ArchiveFormat::Docker);
    let dir = env.dir.path().join("layout");
    tar::Archive::new(&bytes[..]).unpack(&dir).unwrap();
    let args = ["unpack", "--rootless", "--image", "layout:1", "bundle"];
    if tool("umoci", &args, env.dir.path()).is_none() {
        return;
    }
    assert_eq!(fs::read_to_string(env.dir.path().join("bundle/rootfs/file1")).unwrap(), "second");
}

#[test]
fn podman_loads_what_is_saved_and_saves_what_is_loaded() {
    let env = Env::new();
    let image = image(&env.store, &amd64(), &["1", "2"]);
    let dir = env.dir.path();
    let path = |name: &str| dir.join(name).display().to_string();
    let (root, run) = (path("root"), path("run"));
    let podman = |args: &[&str]| {
        let common = ["--root", &root, "--runroot", &run, "--storage-driver", "vfs"];
        tool("podman", &[&common, args].concat(), dir)
    };
    let mut probe = Command::new("podman");
    probe.args(["--root", &root, "--runroot", &run, "--storage-driver", "vfs", "images"]);
    if !probe.output().is_ok_and(|o| o.status.success()) {
        eprintln!("podman does not run here: not tested");
        return;
    }
    for (format, file) in [(ArchiveFormat::Docker, "docker.tar"), (ArchiveFormat::Oci, "oci.tar")] {
        let tag = format!("example.com/app:{}", &file[..3]);
        fs::write(dir.join(file), save(&env.store, &[(&image, &[&tag])], format)).unwrap();
        let text = podman(&["load", "-i", &path(file)]).unwrap();
        assert!(text.contains(&tag), "{text}");
        let text = podman(&["image", "inspect", "--format", "{{.RootFS.Layers}}", &tag]).unwrap();
        assert!(text.contains(&image.diff_ids[1].to_string()), "{text}");
    }
    let other = Env::new();
    for format in ["docker-archive", "oci-archive"] {
        let file = path(format);
        podman(&["save", "--format", format, "-o", &file, "example.com/app:doc"]).unwrap();
        let loaded = load(&other.store, fs::read(&file).unwrap()).unwrap();
        assert_eq!(loaded[0].names, [name("example.com/app:doc")], "{format}");
        let view = other.store.images().manifest(&loaded[0].target, &amd64()).unwrap();
        assert_eq!(view.config.rootfs.diff_ids, image.diff_ids);
    }
    check_invariants(&other.store);
}

#[test]
fn docker_loads_what_is_saved_and_saves_what_is_loaded() {
    let usable = Command::new("docker").args(["info", "--format", "{{.ServerVersion}}"]).output();
    if !usable.is_ok_and(|o| o.status.success()) {
        eprintln!("no docker daemon is running: not tested");
        return;
    }
    let env = Env::new();
    let unique = env.dir.path().file_name().unwrap().to_str().unwrap().replace('.', "").to_lowercase();
    let (one, two) = (image(&env.store, &amd64(), &["1", "2"]), image(&env.store, &amd64(), &["1", &unique]));
    let (tag1, tag2) = (format!("kiln-{unique}:1"), format!("example.com/kiln-{unique}:2"));
    let dir = env.dir.path();
    fs::write(dir.join("a.tar"), save(&env.store, &[(&one, &[&tag1]), (&two, &[&tag2])], ArchiveFormat::Docker))
        .unwrap();
    let text = tool("docker", &["load", "-i", "a.tar"], dir).unwrap();
    assert!(text.contains(&tag1) && text.contains(&tag2), "{text}");
    let text = tool("docker", &["image", "inspect", "--format", "{{json .RootFS.Layers}}", &tag2], dir).unwrap();
    assert!(text.contains(&two.diff_ids[1].to_string()), "{text}");
    tool("docker", &["save", "-o", "b.tar", &tag1, &tag2], dir).unwrap();
    tool("docker", &["rmi", &tag1, &tag2], dir).unwrap();
    let other = Env::new();
    let loaded = load(&other.store, fs::read(dir.join("b.tar")).unwrap()).unwrap();
    assert_eq!(loaded.len(), 2);
    for (tag, image) in [(&tag1, &one), (&tag2, &two)] {
        let found = other.store.images().resolve(&name(tag)).unwrap().unwrap();
        let view = other.store.images().manifest(&found.target, &amd64()).unwrap();
        assert_eq!(view.config.rootfs.diff_ids, image.diff_ids);
    }
    check_invariants(&other.store);
}
