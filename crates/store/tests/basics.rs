//! What each part of the store promises.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::time::Duration;

use common::*;
use kiln_oci::media::Compression;
use kiln_oci::{Descriptor, Digest, Index, Platform, media};
use kiln_store::*;

#[test]
fn a_new_store_is_an_empty_oci_layout_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let env = Env::new();
    assert_eq!(fs::metadata(env.root()).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::read_to_string(env.root().join("content/oci-layout")).unwrap(), r#"{"imageLayoutVersion":"1.0.0"}"#);
    check_invariants(&env.store);
    // Looking at it again leaves nothing behind.
    let again = env.reopen();
    assert!(again.images().list().unwrap().is_empty());
    assert!(again.cache().lookup(&key(1)).unwrap().is_none());
    drop(again);
    assert!(names(&env.root().join("leases")).is_empty() && names(&env.root().join("tmp")).is_empty());
}

#[test]
fn a_store_of_a_newer_kiln_is_refused_and_not_touched() {
    let env = Env::new();
    let root = env.root().to_path_buf();
    let db = rusqlite::Connection::open(root.join("kiln.db")).unwrap();
    db.pragma_update(None, "user_version", FORMAT + 1).unwrap();
    drop(db);
    let error = Store::open(&root).unwrap_err();
    let expected = format!("has format {}, this kiln knows formats up to {FORMAT}", FORMAT + 1);
    assert!(matches!(error, Error::NewerStore { .. }) && error.to_string().contains(&expected), "{error}");
}

#[test]
fn blobs_are_verified_and_appear_whole() {
    let env = Env::new();
    let content = env.store.content();
    let digest = Digest::of(b"hello");
    let mut writer = content.writer().unwrap();
    writer.write_all(b"hel").unwrap();
    assert!(!content.has(&digest).unwrap());
    writer.write_all(b"lo").unwrap();
    assert_eq!(writer.commit(Some(&digest)).unwrap(), (digest, 5));
    assert_eq!((content.size(&digest).unwrap(), content.read_small(&digest, 5).unwrap()), (Some(5), b"hello".to_vec()));
    assert!(matches!(content.read_small(&digest, 4), Err(Error::BlobTooLarge { size: 5, max: 4, .. })));

    let mut writer = content.writer().unwrap();
    writer.write_all(b"other").unwrap();
    assert!(matches!(writer.commit(Some(&digest)), Err(Error::DigestMismatch { .. })));
    drop(content.writer().unwrap());
    assert!(names(&env.root().join("tmp")).is_empty());

    let missing = Digest::of(b"missing");
    assert!(matches!(content.open(&missing), Err(Error::BlobMissing(d)) if *d == missing));
    fs::write(content.path(&digest), "jello").unwrap();
    assert!(matches!(content.read_small(&digest, 10), Err(Error::BlobDamaged { .. })));
    assert!(!content.has(&digest).unwrap() && !content.remove(&digest).unwrap());
}

#[test]
fn sha512_blobs_have_their_own_directory() {
    let env = Env::new();
    let digest: Digest = format!("sha512:{}", "cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e").parse().unwrap();
    let writer = env.store.content().writer_for(&digest).unwrap();
    assert_eq!(writer.commit(Some(&digest)).unwrap(), (digest, 0));
    assert!(env.root().join("content/blobs/sha512").join(digest.hex()).exists());
    assert!(env.store.content().has(&digest).unwrap());
}

#[test]
fn a_cut_download_goes_on_where_it_stopped() {
    let env = Env::new();
    let digest = Digest::of(b"0123456789");
    let (mut writer, offset) = env.store.content().writer_resume(&digest).unwrap();
    assert_eq!(offset, 0);
    writer.write_all(b"01234").unwrap();
    // Somebody else at the same time works beside it.
    let (other, offset) = env.store.content().writer_resume(&digest).unwrap();
    assert_eq!(offset, 0);
    drop((writer, other));

    let store = env.reopen();
    let (mut writer, offset) = store.content().writer_resume(&digest).unwrap();
    assert_eq!(offset, 5);
    writer.write_all(b"56789").unwrap();
    assert_eq!(writer.commit(Some(&digest)).unwrap().1, 10);
    assert_eq!(store.content().read_small(&digest, 10).unwrap(), b"0123456789");

    // Wrong bytes are not resumed.
    let digest = Digest::of(b"right");
    let (mut writer, _) = store.content().writer_resume(&digest).unwrap();
    writer.write_all(b"wrong").unwrap();
    assert!(writer.commit(Some(&digest)).is_err());
    assert_eq!(store.content().writer_resume(&digest).unwrap().1, 0);
}

#[test]
fn layers_are_committed_or_leave_nothing() {
    use std::os::unix::fs::PermissionsExt;
    let env = Env::new();
    let layers = env.store.layers();
    let draft = layers.draft().unwrap();
    assert_eq!(fs::metadata(draft.fs()).unwrap().permissions().mode() & 0o7777, 0o755);
    assert!(fs::read_dir(draft.work()).unwrap().next().is_none());
    fs::create_dir(draft.work().join("work")).unwrap();
    fs::write(draft.fs().join("f"), "x").unwrap();
    let id = draft.commit(LayerMeta { remote: Some("r".into()), ..LayerMeta::default() }).unwrap();
    assert_eq!(fs::read(layers.path(&id).join("f")).unwrap(), b"x");
    assert_eq!(names(&env.root().join("layers").join(id.to_string())), ["fs"]);
    let created = layers.get(&id).unwrap().created;
    assert!(created.seconds_until(kiln_oci::Timestamp::now()) < 60);
    assert_eq!(
        layers.get(&id).unwrap(),
        Layer { id, created, diff_id: None, size: None, blobs: vec![], unpacked: true, remote: Some("r".into()) }
    );
    assert_eq!(id.to_string().parse::<LayerId>().unwrap(), id);

    let draft = layers.draft().unwrap();
    fs::create_dir_all(draft.fs().join("a/b")).unwrap();
    drop(draft);
    // What overlays left goes with the session.
    drop(env.store.lease().unwrap());
    assert!(names(&env.root().join("tmp")).is_empty());
    let unknown: LayerId = "00000000000000000000000000000000".parse().unwrap();
    assert!(matches!(layers.get(&unknown), Err(Error::LayerMissing(id)) if id == unknown));
    assert!(layers.set_diff_id(&unknown, &Digest::of(b""), 0).is_err());
}

#[test]
fn lazy_layers_are_found_by_what_they_are_and_unpacked_once() {
    let env = Env::new();
    let layers = env.store.layers();
    let (diff_id, blob) = (Digest::of(b"tar"), Digest::of(b"tar.gz"));
    let gz = LayerBlob {
        compression: Compression::Gzip,
        level: Some(9),
        descriptor: Descriptor::new(media::OCI_LAYER_GZIP, blob, 6),
    };
    let meta = LayerMeta {
        diff_id: Some(diff_id),
        blobs: vec![gz.clone()],
        remote: Some("registry/x".into()),
        ..LayerMeta::default()
    };
    let id = layers.create_lazy(&meta).unwrap();
    assert_eq!(layers.create_lazy(&meta).unwrap(), id, "the same layer is recorded once");
    assert_eq!(layers.find_by_diff_id(&diff_id).unwrap(), Some(id));
    assert_eq!(layers.find_by_blob(&blob).unwrap(), Some(id));
    assert_eq!(layers.find_by_blob(&diff_id).unwrap(), None);
    assert!(!layers.get(&id).unwrap().unpacked);

    let zst = LayerBlob { compression: Compression::Zstd, level: None, ..gz.clone() };
    let zst = LayerBlob { descriptor: Descriptor::new(media::OCI_LAYER_ZSTD, Digest::of(b"z"), 1), ..zst };
    layers.add_blob(&id, &zst).unwrap();
    layers.set_diff_id(&id, &diff_id, 77).unwrap();
    let layer = layers.get(&id).unwrap();
    assert_eq!((layer.size, layer.blobs.len()), (Some(77), 2));
    assert!(layer.blobs.contains(&gz) && layer.blobs.contains(&zst));

    // What a dead process left under that name is not taken for the layer.
    fs::create_dir_all(env.root().join("layers").join(id.to_string()).join("fs/half")).unwrap();
    let first = layers.unpack_draft(&id).unwrap();
    let second = layers.unpack_draft(&id).unwrap();
    fs::write(first.fs().join("f"), "1").unwrap();
    layers.commit_unpack(&id, first, 5).unwrap();
    layers.commit_unpack(&id, second, 5).unwrap();
    assert!(layers.get(&id).unwrap().unpacked);
    assert_eq!(names(&layers.path(&id)), ["f"]);
    assert!(names(&env.root().join("tmp")).is_empty());
}

#[test]
fn a_layer_that_changed_before_it_was_on_disk_is_forgotten_in_the_next_boot() {
    let env = Env::new();
    let _lease = env.store.lease().unwrap();
    let (good, bad, below) = (layer(&env.store, "good"), layer(&env.store, "bad"), layer(&env.store, "below"));
    let lazy = layer_with(&env.store, "blob", LayerMeta { remote: Some("again".into()), ..LayerMeta::default() });
    for (n, layers) in [(1, vec![good]), (2, vec![below, bad]), (3, vec![below]), (4, vec![lazy])] {
        record(&env.store, n, &layers);
    }
    let db = rusqlite::Connection::open(env.root().join("kiln.db")).unwrap();
    db.execute("UPDATE layers SET boot='before'", []).unwrap();
    for id in [bad, lazy] {
        fs::write(env.store.layers().path(&id).join("file"), "").unwrap();
    }
    let cache = env.store.cache();
    assert!(cache.lookup(&key(1)).unwrap().is_some());
    assert!(cache.lookup(&key(2)).unwrap().is_none());
    assert!(cache.lookup(&key(3)).unwrap().is_some());
    assert!(env.store.layers().find(&bad).unwrap().is_none() && !env.store.layers().path(&bad).exists());
    // One that can be had again is only unpacked again.
    assert_eq!(cache.lookup(&key(4)).unwrap().unwrap().snapshot, Snapshot(vec![lazy]));
    assert!(!env.store.layers().get(&lazy).unwrap().unpacked);
    // Verified ones are not looked at again.
    fs::write(env.store.layers().path(&good).join("file"), "").unwrap();
    assert!(cache.lookup(&key(1)).unwrap().is_some());
}

#[test]
fn a_layer_removed_by_hand_is_a_miss_not_an_error() {
    let env = Env::new();
    let id = layer(&env.store, "x");
    record(&env.store, 1, &[id]);
    fs::remove_dir_all(env.root().join("layers").join(id.to_string())).unwrap();
    assert!(env.store.cache().lookup(&key(1)).unwrap().is_none());
    assert!(env.store.layers().find(&id).unwrap().is_none());
}

#[test]
fn cache_keys_lead_to_snapshots() {
    let env = Env::new();
    let cache = env.store.cache();
    let (a, b) = (layer(&env.store, "a"), layer(&env.store, "b"));
    let first = Record::new(Snapshot(vec![b, a, b])).described("exec", "RUN make");
    cache.insert(&[key(1), key(2)], &first).unwrap();
    let found = cache.lookup(&key(2)).unwrap().unwrap();
    assert_eq!((&found.snapshot, &found.kind, &found.description), (&first.snapshot, &first.kind, &first.description));
    let mut aliases = vec![key(1), key(2)];
    aliases.sort();
    assert_eq!(found.aliases, aliases);

    // An empty snapshot is a result as well.
    cache.insert(&[key(3)], &Record::new(Snapshot::default())).unwrap();
    assert_eq!(cache.lookup(&key(3)).unwrap().unwrap().snapshot, Snapshot::default());

    cache.insert(&[key(1)], &Record::new(Snapshot(vec![a]))).unwrap();
    assert_eq!(cache.lookup(&key(1)).unwrap().unwrap().snapshot, Snapshot(vec![a]));
    assert_eq!(cache.lookup(&key(2)).unwrap().unwrap().aliases, [key(2)]);
    assert!(cache.alias(&key(2), &key(4)).unwrap() && !cache.alias(&key(9), &key(4)).unwrap());
    assert_eq!(cache.lookup(&key(4)).unwrap().unwrap().snapshot, first.snapshot);
    assert_eq!(cache.count().unwrap(), 3);
    cache.remove(&[key(2)]).unwrap();
    assert!(cache.lookup(&key(4)).unwrap().is_none());

    let gone: LayerId = "00000000000000000000000000000001".parse().unwrap();
    assert!(matches!(
        cache.insert(&[key(5)], &Record::new(Snapshot(vec![a, gone]))),
        Err(Error::LayerMissing(id)) if id == gone
    ));
    assert!(cache.lookup(&key(5)).unwrap().is_none());
}

#[test]
fn ingredients_and_values_are_kept_and_expire() {
    let env = Env::new();
    let pairs = vec![("command".to_owned(), "make".to_owned()), ("arg V".to_owned(), "1".to_owned())];
    assert_eq!(env.store.steps().get("s").unwrap(), None);
    env.store.steps().put("s", &pairs).unwrap();
    assert_eq!(env.store.steps().get("s").unwrap(), Some(pairs));

    let meta = env.store.meta();
    meta.put("k", b"v", None).unwrap();
    meta.put("short", b"v", Some(Duration::ZERO)).unwrap();
    meta.put_as("typed", &vec![1, 2], Some(Duration::from_secs(u64::MAX))).unwrap();
    assert_eq!((meta.get("k").unwrap(), meta.get("short").unwrap()), (Some(b"v".to_vec()), None));
    assert_eq!(meta.get_as::<Vec<u8>>("typed").unwrap(), Some(vec![1, 2]));
    assert_eq!(meta.get_as::<String>("typed").unwrap(), None);
    assert!(meta.remove("k").unwrap() && !meta.remove("k").unwrap());
}

#[test]
fn of_many_names_the_index_is_written_once() {
    let env = Env::new();
    let images = env.store.images();
    let one = image(&env.store, &amd64(), &["1"]);
    let index = env.root().join("content/index.json");
    let before = std::fs::read(&index).unwrap();
    let (first, second) = (images.many().unwrap(), images.many().unwrap());
    for n in 0..50 {
        images.put(&format!("app:{n}").parse().unwrap(), &one.target).unwrap();
    }
    images.remove(&"app:7".parse().unwrap()).unwrap();
    drop(first);
    assert_eq!(std::fs::read(&index).unwrap(), before, "somebody is not done");
    assert_eq!(images.list().unwrap().len(), 49);
    drop(second);
    check_invariants(&env.store);
    images.put(&"app:7".parse().unwrap(), &one.target).unwrap();
    check_invariants(&env.store);
}

#[test]
fn names_move_and_leave_dangling_images() {
    let env = Env::new();
    let images = env.store.images();
    let (one, two) = (image(&env.store, &amd64(), &["1"]), image(&env.store, &amd64(), &["2"]));
    let (app, app1) = ("app".parse().unwrap(), "app:1".parse().unwrap());
    assert_eq!(images.put(&app, &one.target).unwrap(), Put { previous: None, dangling: false });
    let found = images.resolve(&"docker.io/library/app:latest".parse().unwrap()).unwrap().unwrap();
    assert_eq!((found.target, found.config), (one.target.clone(), Some(one.config)));
    assert_eq!(images.put(&app, &one.target).unwrap(), Put { previous: None, dangling: false });
    images.put(&app1, &one.target).unwrap();
    assert_eq!(images.put(&app, &two.target).unwrap(), Put { previous: Some(one.target.clone()), dangling: false });
    assert_eq!(images.put(&app1, &two.target).unwrap(), Put { previous: Some(one.target.clone()), dangling: true });
    assert_eq!(images.dangling().unwrap()[0].target, one.target);
    assert_eq!(images.list().unwrap().len(), 3);
    check_invariants(&env.store);

    // A name makes it one that is not dangling.
    images.put(&"again".parse().unwrap(), &one.target).unwrap();
    assert!(images.dangling().unwrap().is_empty());
    images.put_untagged(&one.target).unwrap();
    assert!(images.dangling().unwrap().is_empty(), "it has a name");

    let by_digest = "app".parse::<kiln_oci::Reference>().unwrap().with_digest(two.target.digest);
    assert_eq!(images.resolve(&by_digest).unwrap().unwrap().target, two.target);
    assert_eq!(images.remove(&app).unwrap().unwrap().target, two.target);
    assert_eq!(images.remove(&app).unwrap(), None);
    assert_eq!(images.remove_digest(&two.target.digest).unwrap().len(), 1);
    assert!(images.resolve(&app1).unwrap().is_none());
    check_invariants(&env.store);
    let missing = Descriptor::of(media::OCI_MANIFEST, b"{}");
    assert!(matches!(images.put(&app, &missing), Err(Error::BlobMissing(_))));
}

#[test]
fn ids_are_found_by_prefix() {
    let env = Env::new();
    let images = env.store.images();
    let made: Vec<_> = (0..40).map(|i| image(&env.store, &amd64(), &[&i.to_string()])).collect();
    for (i, image) in made.iter().enumerate() {
        images.put(&format!("app:{i}").parse().unwrap(), &image.target).unwrap();
    }
    let hex = made[7].target.digest.hex();
    assert_eq!(images.by_id(&hex[..12]).unwrap().unwrap().target, made[7].target);
    assert_eq!(images.by_id(&made[7].config.to_string()).unwrap().unwrap().target, made[7].target);
    // 80 digests can't begin with 16 different digits each.
    let ambiguous = (0..16).find_map(|d| images.by_id(&format!("{d:x}")).err()).unwrap();
    assert!(matches!(&ambiguous, Error::AmbiguousId { candidates, .. } if candidates.len() > 1), "{ambiguous}");
    for none in ["", "zz", "ABC", "*", &"0".repeat(65)] {
        assert_eq!(images.by_id(none).unwrap(), None, "{none:?}");
    }
}

#[test]
fn manifests_of_platforms() {
    let env = Env::new();
    let images = env.store.images();
    let arm = Platform::new("linux", "arm64", None);
    let parts: Vec<_> = [amd64(), arm.clone()].iter().map(|p| (p.clone(), image(&env.store, p, &["x"]))).collect();
    let entry = |(platform, image): &(Platform, TestImage)| Descriptor {
        platform: Some(platform.clone()),
        ..image.target.clone()
    };
    let mut entries: Vec<Descriptor> = parts.iter().map(entry).collect();
    // One that was not pulled, and one that is no image.
    entries.push(Descriptor {
        platform: Some(Platform::new("linux", "s390x", None)),
        ..Descriptor::of(media::OCI_MANIFEST, b"?")
    });
    let index = Index {
        schema_version: 2,
        media_type: media::OCI_INDEX.into(),
        manifests: entries,
        annotations: Default::default(),
        extra: Default::default(),
    };
    let bytes = serde_json::to_vec(&index).unwrap();
    env.store.content().put(&bytes).unwrap();
    let target = Descriptor::of(media::OCI_INDEX, &bytes);
    images.put(&"multi".parse().unwrap(), &target).unwrap();

    let view = images.manifest(&target, &arm).unwrap();
    assert_eq!((view.descriptor.digest, view.config.platform()), (parts[1].1.target.digest, arm));
    assert_eq!(Digest::of(&view.raw_config), view.manifest.config.digest);
    assert_eq!(images.manifests(&target).unwrap().len(), 2);
    let error = images.manifest(&target, &Platform::new("linux", "riscv64", None)).unwrap_err();
    assert!(error.to_string().contains("linux/amd64, linux/arm64, linux/s390x"), "{error}");
    assert!(matches!(images.manifest(&target, &Platform::new("linux", "s390x", None)), Err(Error::BlobMissing(_))));
    assert_eq!(images.index(&target).unwrap(), Some(index));
    // Collecting keeps the parts.
    let store = env.reopen();
    store.collect().unwrap();
    assert_eq!(store.images().manifests(&target).unwrap().len(), 2);
}

#[test]
fn children_are_images_on_top() {
    let env = Env::new();
    let images = env.store.images();
    let (base, app, other) = (
        image(&env.store, &amd64(), &["b"]),
        image(&env.store, &amd64(), &["b", "a"]),
        image(&env.store, &amd64(), &["o", "b"]),
    );
    for (name, i) in [("base", &base), ("app", &app), ("other", &other)] {
        images.put(&name.parse().unwrap(), &i.target).unwrap();
    }
    let children = images.children(&base.target.digest).unwrap();
    assert_eq!(children.iter().map(|i| i.target.digest).collect::<Vec<_>>(), [app.target.digest]);
    assert!(images.children(&app.target.digest).unwrap().is_empty());
}

#[test]
fn builds_and_their_logs() {
    let env = Env::new();
    let builds = env.store.builds();
    let info = BuildInfo { dockerfile: "Dockerfile".into(), names: vec!["app".into()], ..BuildInfo::default() };
    let log = builds.create(info.clone()).unwrap();
    let id = log.id().to_owned();
    log.append(b"#1 begin\n").unwrap();
    assert_eq!(builds.get(&id[..4]).unwrap().status, BuildStatus::Running);
    assert!(matches!(builds.remove(&id), Err(Error::InUse(_))));
    log.append(&[0xff; 1 << 20]).unwrap();
    let record =
        log.finish(BuildStatus::Failed("RUN x: exit code 1".into()), vec![("app".into(), Digest::of(b""))], (3, 4));
    assert_eq!(record.unwrap().log_bytes, 9 + (1 << 20));
    let record = builds.get("").unwrap();
    assert_eq!((record.id.as_str(), &record.info, record.steps), (id.as_str(), &info, Some((3, 4))));
    assert_eq!(record.status, BuildStatus::Failed("RUN x: exit code 1".into()));
    let mut text = Vec::new();
    builds.open_log(&id).unwrap().read_to_end(&mut text).unwrap();
    assert_eq!(text.len(), 9 + (1 << 20));

    drop(builds.create(BuildInfo::default()).unwrap());
    let statuses: Vec<_> = builds.list().unwrap().into_iter().map(|b| b.status).collect();
    assert!(statuses.contains(&BuildStatus::Interrupted), "{statuses:?}");
    for n in 0..5 {
        builds.create(info.clone()).unwrap().finish(BuildStatus::Succeeded, vec![], (n, 0)).unwrap();
    }
    assert_eq!(builds.retain(3).unwrap(), 4);
    assert_eq!((builds.list().unwrap().len(), names(&env.root().join("builds")).len()), (3, 3));
    assert!(matches!(builds.get("../x"), Err(Error::BuildMissing(_))));
    assert!(matches!(builds.get("ffffffffffffffff"), Err(Error::BuildMissing(_))));
}

#[test]
fn cache_mounts_share_as_they_are_told() {
    let env = Env::new();
    let mounts = env.store.cache_mounts();
    let with = |sharing| MountOpts { sharing, ..MountOpts::default() };
    let one = mounts.open("go", &with(Sharing::Shared)).unwrap();
    assert!(one.created() && one.path().is_dir());
    fs::write(one.path().join("f"), "x").unwrap();
    let two = mounts.open("go", &with(Sharing::Shared)).unwrap();
    assert!(!two.created() && one.path() == two.path());
    let private = mounts.open("go", &with(Sharing::Private)).unwrap();
    assert!(private.created() && private.path() != one.path() && !private.path().join("f").exists());
    drop((one, two));
    let private0 = mounts.open("go", &with(Sharing::Private)).unwrap();
    assert!(private0.path().join("f").exists() && !private0.created());
    assert!(matches!(mounts.remove("go"), Err(Error::InUse(_))));
    drop((private, private0));

    let locked = mounts.open("go", &with(Sharing::Locked)).unwrap();
    let (waiting, waited) = std::sync::mpsc::channel();
    let (store, order) = (env.store.clone(), std::sync::Arc::new(std::sync::Mutex::new(Vec::new())));
    let seen = order.clone();
    let thread = std::thread::spawn(move || {
        let opts = MountOpts { sharing: Sharing::Locked, ..MountOpts::default() };
        let mount = store.cache_mounts().open_with("go", &opts, &mut |_| Ok(()), &mut || waiting.send(()).unwrap());
        seen.lock().unwrap().push("second");
        drop(mount.unwrap());
    });
    waited.recv().unwrap();
    order.lock().unwrap().push("first lets go");
    drop(locked);
    thread.join().unwrap();
    assert_eq!(*order.lock().unwrap(), ["first lets go", "second"]);
    assert_eq!(mounts.list().unwrap().iter().map(|m| m.instance).collect::<Vec<_>>(), [0, 1]);
    assert!(mounts.size(&mounts.list().unwrap()[0]).unwrap() >= 4096);
    assert!(mounts.remove("go").unwrap().entries >= 5);
    assert!(mounts.list().unwrap().is_empty() && mounts.open("go", &with(Sharing::Shared)).unwrap().created());
}

#[test]
fn cve_2024_9675_an_id_is_never_a_path() {
    let env = Env::new();
    let outside = env.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    for id in ["../../outside", outside.to_str().unwrap(), "", "..", "a\0b", "0.lock"] {
        let mount = env.store.cache_mounts().open(id, &MountOpts::default()).unwrap();
        let path = fs::canonicalize(mount.path()).unwrap();
        assert!(path.starts_with(fs::canonicalize(env.root().join("mounts")).unwrap()), "{id:?} -> {path:?}");
    }
    assert_eq!(env.store.cache_mounts().list().unwrap().len(), 6);
}

#[test]
fn new_cache_mounts_are_filled_before_anyone_sees_them() {
    use std::os::unix::fs::MetadataExt;
    let env = Env::new();
    let mounts = env.store.cache_mounts();
    let opts = MountOpts { mode: 0o1777, ..MountOpts::default() };
    let failed = mounts.open_with("m", &opts, &mut |_| Err(std::io::Error::other("no")), &mut || {});
    assert!(failed.unwrap_err().to_string().contains("no"));
    let mut fill = |path: &std::path::Path| fs::write(path.join("seed"), "s");
    let mount = mounts.open_with("m", &opts, &mut fill, &mut || {}).unwrap();
    assert!(mount.created() && mount.path().join("seed").exists());
    assert_eq!(fs::metadata(mount.path()).unwrap().mode() & 0o7777, 0o1777);
    let again = mounts.open_with("m", &opts, &mut |_| panic!("filled twice"), &mut || {}).unwrap();
    assert!(!again.created());
    assert!(names(&env.root().join("tmp")).is_empty());
}

#[test]
fn locks_exclude_threads_and_leave_nothing() {
    let env = Env::new();
    let held = env.store.lock("step/../1", &mut || panic!("nobody has it")).unwrap();
    assert!(env.store.try_lock("step/../1").unwrap().is_none());
    assert!(env.store.try_lock("step 2").unwrap().is_some());
    let mut asked = 0;
    let gave_up = env.store.lock_while("step/../1", &mut || {
        asked += 1;
        asked < 3
    });
    assert!(gave_up.unwrap().is_none() && asked == 3);
    let store = env.store.clone();
    let (send, receive) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let waits = send.clone();
        let _lock = store.lock("step/../1", &mut || waits.send("waits").unwrap()).unwrap();
        send.send("has it").unwrap();
    });
    assert_eq!(receive.recv().unwrap(), "waits");
    drop(held);
    assert_eq!(receive.recv().unwrap(), "has it");
    thread.join().unwrap();
    assert!(names(&env.root().join("locks")).iter().all(|n| n == "gc"));
}

#[test]
fn scratch_directories_go_with_their_value() {
    let env = Env::new();
    let scratch = env.store.scratch().unwrap();
    fs::write(scratch.path().join("f"), "x").unwrap();
    let path = scratch.path().to_path_buf();
    env.store.sweep().unwrap();
    assert!(path.join("f").exists(), "swept while its process lives");
    drop(scratch);
    assert!(!path.exists());
    assert!(env.store.sources_dir("git").unwrap().ends_with("sources/git"));
    assert!(env.store.sources_dir("../x").unwrap().ends_with("sources/other"));
}
