//! What the collector keeps and what it removes.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Write;
use std::time::Duration;

use common::*;
use kiln_oci::{Digest, Reference};
use kiln_store::*;
use proptest::prelude::*;

/// Ends the session of the store, so that nothing is pinned.
fn fresh(env: &mut Env) {
    let root = env.root().to_path_buf();
    env.store = Store::open(&root).unwrap();
}

#[test]
fn only_what_something_leads_to_is_kept() {
    let mut env = Env::new();
    let kept = layer(&env.store, "kept by a record");
    record(&env.store, 1, &[kept]);
    let loose = layer(&env.store, "loose");
    let named = image(&env.store, &amd64(), &["named"]);
    env.store.images().put(&"app".parse().unwrap(), &named.target).unwrap();
    let of_image = layer_with(&env.store, "of image", blob_meta(&named, 0));
    let loose_image = image(&env.store, &amd64(), &["loose image"]);
    let untagged = image(&env.store, &amd64(), &["untagged"]);
    env.store.images().put_untagged(&untagged.target).unwrap();
    let rooted = layer(&env.store, "rooted");
    let rooted_image = image(&env.store, &amd64(), &["rooted image"]);
    let items = [RootItem::Layer(rooted), RootItem::Blob(rooted_image.target.digest)];
    env.store.roots().put("somebody", &items).unwrap();

    // All of it was made by this session, which lives.
    assert_eq!(env.store.collect().unwrap(), Report::default());
    fresh(&mut env);
    let report = env.store.collect().unwrap();
    assert_eq!((report.freed[&Kind::Layers].count, report.freed[&Kind::Blobs].count), (1, 3));
    assert!(report.freed[&Kind::Layers].bytes >= 8192, "{report:?}");
    let layers = env.store.layers();
    assert!(layers.find(&loose).unwrap().is_none() && !layers.path(&loose).exists());
    for id in [kept, of_image, rooted] {
        assert!(layers.path(&id).join("file").exists());
    }
    assert!(!env.store.content().has(&loose_image.target.digest).unwrap());
    for image in [&named, &untagged, &rooted_image] {
        assert!(
            env.store.content().has(&image.layers[0].digest).unwrap()
                && env.store.content().has(&image.config).unwrap()
        );
    }
    env.store.roots().remove("somebody").unwrap();
    env.store.images().remove(&"app".parse().unwrap()).unwrap();
    fresh(&mut env);
    let report = env.store.collect().unwrap();
    assert_eq!((report.freed[&Kind::Layers].count, report.freed[&Kind::Blobs].count), (2, 6));
    check_invariants(&env.store);
}

#[test]
fn what_is_looked_up_under_a_lease_stays() {
    let env = Env::new();
    let (record_layer, image) = {
        let store = env.reopen();
        let id = layer(&store, "x");
        record(&store, 1, &[id]);
        let image = image(&store, &amd64(), &["y"]);
        store.images().put(&"app".parse().unwrap(), &image.target).unwrap();
        (id, image)
    };
    let lease = env.store.lease().unwrap();
    assert!(env.store.cache().lookup(&key(1)).unwrap().is_some());
    assert!(env.store.images().resolve(&"app".parse().unwrap()).unwrap().is_some());
    let other = env.reopen();
    other.images().remove(&"app".parse().unwrap()).unwrap();
    let report = other.gc(&PrunePolicy { all: true, ..PrunePolicy::default() }).unwrap();
    assert_eq!(report, Report::default());
    assert!(other.layers().path(&record_layer).exists() && other.content().has(&image.layers[0].digest).unwrap());
    drop(lease);
    let report = other.gc(&PrunePolicy { all: true, ..PrunePolicy::default() }).unwrap();
    assert_eq!((report.freed[&Kind::Records].count, report.freed[&Kind::Blobs].count), (1, 3));
    assert!(other.layers().find(&record_layer).unwrap().is_none());
}

#[test]
fn the_least_recently_used_goes_first_and_the_budget_is_met() {
    let mut env = Env::new();
    let size = 1 << 20;
    for n in 0..8 {
        let id = layer(&env.store, &"x".repeat(size));
        record(&env.store, n, &[id]);
    }
    let db = rusqlite::Connection::open(env.root().join("kiln.db")).unwrap();
    db.execute("UPDATE records SET used=used-100000+id", []).unwrap();
    env.store.cache().touch(&[key(0), key(3)], &[]).unwrap();
    fresh(&mut env);
    let before = env.store.usage().unwrap();
    assert!(before.build_cache.bytes >= 8 << 20 && before.build_cache.count == 8, "{before:?}");

    let policy = PrunePolicy { max_used_space: before.total - (5 << 19), ..PrunePolicy::default() };
    let report = env.store.gc(&policy).unwrap();
    assert_eq!(report.freed[&Kind::Records].count, 3);
    let left: Vec<i32> = (0..8).filter(|n| env.store.cache().lookup(&key(n)).unwrap().is_some()).collect();
    assert_eq!(left, [0, 3, 5, 6, 7]);
    let after = env.store.usage().unwrap();
    assert!(after.total <= policy.max_used_space);
    assert_eq!(before.build_cache.bytes - after.build_cache.bytes, report.bytes());
    // It is met: nothing more goes.
    assert_eq!(env.store.gc(&policy).unwrap(), Report::default());
    // Nothing goes below what is reserved, and nothing that was used a short time ago.
    let policy = PrunePolicy { max_used_space: 1, reserved_space: after.total, ..PrunePolicy::default() };
    assert_eq!(env.store.gc(&policy).unwrap().evicted, []);
    let policy = PrunePolicy { keep_since: Some(Duration::from_secs(50)), ..PrunePolicy::default() };
    assert_eq!(env.store.gc(&policy).unwrap().evicted.len(), 3);
    let policy = PrunePolicy { min_free_space: u64::MAX, ..PrunePolicy::default() };
    assert_eq!(env.store.gc(&policy).unwrap().evicted.len(), 2);
    assert_eq!(env.store.cache().count().unwrap(), 0);
    let policy = PrunePolicy { min_free_space: 1, ..PrunePolicy::default() };
    assert_eq!(env.store.gc(&policy).unwrap(), Report::default());
}

#[test]
fn files_shared_by_hard_links_count_once() {
    let mut env = Env::new();
    let first = layer(&env.store, &"x".repeat(1 << 20));
    let draft = env.store.layers().draft().unwrap();
    fs::hard_link(env.store.layers().path(&first).join("file"), draft.fs().join("file")).unwrap();
    let second = draft.commit(LayerMeta::default()).unwrap();
    record(&env.store, 1, &[first]);
    record(&env.store, 2, &[second]);
    let usage = env.store.usage().unwrap();
    assert!((1 << 20..2 << 20).contains(&usage.build_cache.bytes), "{usage:?}");
    fresh(&mut env);
    let policy = PrunePolicy { max_used_space: usage.total - (1 << 19), ..PrunePolicy::default() };
    // The first one alone frees next to nothing, so both have to go.
    let report = env.store.gc(&policy).unwrap();
    assert_eq!(report.evicted.len(), 2);
    assert_eq!(report.bytes(), usage.build_cache.bytes);
}

#[test]
fn filters_and_images_restrict_what_goes() {
    let mut env = Env::new();
    let named = image(&env.store, &amd64(), &["i"]);
    env.store.images().put(&"app".parse().unwrap(), &named.target).unwrap();
    let of_image = layer_with(&env.store, "i", blob_meta(&named, 0));
    let own = layer(&env.store, "own");
    let insert = |n: u32, layers: &[LayerId], kind: &str, words: &str| {
        let record = Record::new(Snapshot(layers.to_vec())).described(kind, words);
        env.store.cache().insert(&[key(n)], &record).unwrap();
    };
    insert(1, &[of_image], "source.image", "FROM app");
    insert(2, &[of_image, own], "exec", "RUN make");
    insert(3, &[own], "exec", "RUN test");
    env.store.cache_mounts().open("go-build", &MountOpts::default()).unwrap();
    let usage = env.store.usage().unwrap();
    assert_eq!((usage.images.count, usage.build_cache.count, usage.cache_mounts.count), (1, 3, 1));
    assert!(usage.layers_shared >= 4096 && usage.layers_unshared == 0, "{usage:?}");
    fresh(&mut env);

    let gc = |policy: PrunePolicy| {
        let mut evicted = env.store.gc(&policy).unwrap().evicted;
        evicted.sort();
        evicted.into_iter().map(|(_, words)| words).collect::<Vec<_>>()
    };
    let filters = vec![Filter::Description("make".into()), Filter::NotKind("exec".into())];
    assert!(gc(PrunePolicy { filters, ..PrunePolicy::default() }).is_empty());
    let filters = vec![Filter::UnusedFor(Duration::from_secs(3600))];
    assert!(gc(PrunePolicy { filters, ..PrunePolicy::default() }).is_empty());
    let filters = vec![Filter::Kind("exec.cachemount".into())];
    assert_eq!(gc(PrunePolicy { filters, ..PrunePolicy::default() }), ["go-build"]);
    let filters = vec![Filter::Description("make".into())];
    assert_eq!(gc(PrunePolicy { filters, ..PrunePolicy::default() }), ["RUN make"]);
    assert!(env.store.layers().find(&own).unwrap().is_some(), "another record needs it");
    assert_eq!(gc(PrunePolicy::default()), ["RUN test"]);
    assert!(env.store.layers().find(&own).unwrap().is_none());
    assert_eq!(gc(PrunePolicy { all: true, ..PrunePolicy::default() }), ["FROM app"]);
    assert!(env.store.layers().path(&of_image).exists(), "the image needs it");
}

#[test]
fn a_cache_mount_in_use_is_not_evicted() {
    let env = Env::new();
    let mount = env.store.cache_mounts().open("m", &MountOpts::default()).unwrap();
    fs::write(mount.path().join("f"), "x").unwrap();
    let other = env.reopen();
    other.gc(&PrunePolicy::default()).unwrap();
    assert!(mount.path().join("f").exists());
    drop(mount);
    assert_eq!(other.gc(&PrunePolicy::default()).unwrap().freed[&Kind::CacheMounts].count, 1);
}

#[test]
fn debris_of_every_kind_is_collected() {
    let env = Env::new();
    let root = env.root().to_path_buf();
    // As processes leave it that die between two system calls.
    fs::write(root.join("leases/0123456789abcdef"), "l 00000000000000000000000000000009\n").unwrap();
    fs::create_dir_all(root.join("tmp/0123456789abcdef.0/fs/a/b")).unwrap();
    fs::write(root.join("tmp/fedcba9876543210.7"), "a blob of a session whose lease is gone").unwrap();
    fs::create_dir_all(root.join("layers/00000000000000000000000000000009/fs")).unwrap();
    fs::create_dir_all(root.join("mounts").join("a".repeat(40)).join("0/fs")).unwrap();
    fs::write(root.join("content/blobs/sha256").join(Digest::of(b"lost").hex()), "lost").unwrap();
    fs::write(root.join("locks").join("b".repeat(40)), "").unwrap();
    let partial = root.join(format!("tmp/partial.sha256.{}", Digest::of(b"p").hex()));
    fs::write(&partial, "half").unwrap();
    let report = env.store.collect().unwrap();
    assert!(!partial.with_extension("none").exists() && partial.exists(), "it may be resumed");
    assert_eq!(names(&root.join("tmp")).len(), 1);
    assert!(names(&root.join("layers")).is_empty() && names(&root.join("content/blobs/sha256")).is_empty());
    assert_eq!(names(&root.join("mounts").join("a".repeat(40))), ["0.lock"]);
    assert_eq!(names(&root.join("locks")), ["gc"]);
    assert_eq!(names(&root.join("leases")).len(), 1, "only the one that lives");
    assert_eq!((report.freed[&Kind::Debris].count, report.freed[&Kind::Blobs].count), (2, 1));
}

#[test]
fn an_image_that_cannot_be_read_stops_nothing() {
    let mut env = Env::new();
    let (broken, good) = (image(&env.store, &amd64(), &["1"]), image(&env.store, &amd64(), &["2"]));
    env.store.images().put(&"broken".parse().unwrap(), &broken.target).unwrap();
    env.store.images().put(&"good".parse().unwrap(), &good.target).unwrap();
    fs::write(env.store.content().path(&broken.target.digest), "{").unwrap();
    fresh(&mut env);
    env.store.collect().unwrap();
    assert!(env.store.content().has(&good.layers[0].digest).unwrap());
    assert!(!env.store.content().has(&broken.layers[0].digest).unwrap());
    assert!(env.store.usage().is_ok() && env.store.images().remove(&"broken".parse().unwrap()).unwrap().is_some());
}

/// One step of the model.
#[derive(Debug, Clone)]
enum Op {
    Layer,
    Record(u8, Vec<u8>),
    Image(u8, u8),
    Untag(u8),
    Blob(u8),
    Use(u8),
    Lease(bool),
    Gc,
    Collect,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        3 => Just(Op::Layer),
        3 => (0..6u8, prop::collection::vec(any::<u8>(), 0..4)).prop_map(|(k, l)| Op::Record(k, l)),
        2 => (0..3u8, 0..5u8).prop_map(|(name, content)| Op::Image(name, content)),
        1 => (0..3u8).prop_map(Op::Untag),
        1 => any::<u8>().prop_map(Op::Blob),
        2 => (0..6u8).prop_map(Op::Use),
        1 => any::<bool>().prop_map(Op::Lease),
        1 => Just(Op::Gc),
        2 => Just(Op::Collect),
    ];
    prop::collection::vec(op, 1..25)
}

/// What should be in the store, computed naively.
#[derive(Default)]
struct Model {
    records: HashMap<CacheKey, Vec<LayerId>>,
    names: HashMap<Reference, Digest>,
    dangling: HashSet<Digest>,
    blobs_of: HashMap<Digest, HashSet<Digest>>,
    pinned_layers: HashSet<LayerId>,
    pinned_blobs: HashSet<Digest>,
    layers: Vec<LayerId>,
    blobs: HashSet<Digest>,
}

impl Model {
    fn live_layers(&self) -> HashSet<LayerId> {
        self.records.values().flatten().chain(&self.pinned_layers).copied().collect()
    }

    fn live_blobs(&self) -> HashSet<Digest> {
        let images = self.names.values().chain(&self.dangling);
        images.flat_map(|i| &self.blobs_of[i]).chain(&self.pinned_blobs).copied().collect()
    }

    fn collected(&mut self) {
        let (layers, blobs) = (self.live_layers(), self.live_blobs());
        self.layers.retain(|id| layers.contains(id));
        self.blobs.retain(|d| blobs.contains(d));
    }
}

/// A session in which everything is pinned, or one store for each step, which pins nothing afterwards.
struct Driver {
    env: Env,
    leased: Option<(Store, Lease)>,
    model: Model,
}

impl Driver {
    fn store(&self) -> Store {
        self.leased.as_ref().map_or_else(|| self.env.reopen(), |(store, _)| store.clone())
    }

    fn run(&mut self, op: &Op) {
        let store = self.store();
        let pinning = self.leased.is_some();
        let model = &mut self.model;
        match op {
            Op::Layer => {
                let id = layer(&store, "x");
                model.layers.push(id);
                pinning.then(|| model.pinned_layers.insert(id));
            }
            Op::Record(k, layers) => {
                let n = model.layers.len();
                let chosen: Vec<LayerId> =
                    layers.iter().filter(|_| n > 0).map(|l| model.layers[*l as usize % n]).collect();
                model.records.insert(record(&store, k, &chosen), chosen);
            }
            Op::Image(name, content) => {
                let image = image(&store, &amd64(), &[&content.to_string()]);
                let blobs: HashSet<Digest> = [image.target.digest, image.config, image.layers[0].digest].into();
                model.blobs.extend(&blobs);
                pinning.then(|| model.pinned_blobs.extend(&blobs));
                model.blobs_of.insert(image.target.digest, blobs);
                let name: Reference = format!("app:{name}").parse().unwrap();
                store.images().put(&name, &image.target).unwrap();
                let old = model.names.insert(name, image.target.digest);
                model.dangling.remove(&image.target.digest);
                if let Some(old) = old.filter(|o| !model.names.values().any(|d| d == o)) {
                    model.dangling.insert(old);
                }
            }
            Op::Untag(name) => {
                let name: Reference = format!("app:{name}").parse().unwrap();
                store.images().remove(&name).unwrap();
                model.names.remove(&name);
            }
            Op::Blob(n) => {
                let digest = store.content().put(&[*n]).unwrap();
                model.blobs.insert(digest);
                pinning.then(|| model.pinned_blobs.insert(digest));
            }
            Op::Use(k) => {
                let found = store.cache().lookup(&key(k)).unwrap();
                assert_eq!(found.map(|r| r.snapshot.0), model.records.get(&key(k)).cloned());
                if pinning {
                    model.pinned_layers.extend(model.records.get(&key(k)).into_iter().flatten());
                }
            }
            Op::Lease(on) => {
                self.leased = None;
                (model.pinned_layers, model.pinned_blobs) = Default::default();
                if *on {
                    let store = self.env.reopen();
                    let lease = store.lease().unwrap();
                    self.leased = Some((store, lease));
                }
            }
            Op::Collect => {
                drop(store);
                self.env.reopen().collect().unwrap();
                model.collected();
            }
            Op::Gc => {
                drop(store);
                self.env.reopen().gc(&PrunePolicy { all: true, ..PrunePolicy::default() }).unwrap();
                let images = model.pinned_blobs.clone();
                model.dangling.retain(|digest| images.contains(digest));
                let pinned = model.pinned_layers.clone();
                model.records.retain(|_, layers| layers.iter().any(|id| pinned.contains(id)));
                model.collected();
            }
        }
    }

    fn check(&self) {
        let store = self.env.reopen();
        let layers: HashSet<String> = self.model.layers.iter().map(LayerId::to_string).collect();
        assert_eq!(names(&store.root().join("layers")).into_iter().collect::<HashSet<_>>(), layers);
        for id in &self.model.layers {
            assert!(store.layers().get(id).unwrap().unpacked);
        }
        let blobs: HashSet<String> = self.model.blobs.iter().map(Digest::hex).collect();
        assert_eq!(names(&store.root().join("content/blobs/sha256")).into_iter().collect::<HashSet<_>>(), blobs);
        assert_eq!(store.cache().count().unwrap() as usize, self.model.records.len());
        check_invariants(&store);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is done: exactly what is referenced or leased survives a collection.
    #[test]
    fn model(ops in ops()) {
        let mut driver = Driver { env: Env::new(), leased: None, model: Model::default() };
        for op in &ops {
            driver.run(op);
            if matches!(op, Op::Gc | Op::Collect) {
                driver.check();
            }
        }
        driver.run(&Op::Collect);
        driver.check();
    }
}

#[test]
fn collecting_beside_builds_takes_nothing_from_them() {
    let env = Env::new();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let builders: Vec<_> = (0..3)
            .map(|n| {
                let store = env.reopen();
                scope.spawn(move || {
                    for i in 0..40 {
                        let lease = store.lease().unwrap();
                        let id = match store.cache().lookup(&key(format!("{n} {}", i % 3))).unwrap() {
                            Some(found) => found.snapshot.0[0],
                            None => layer(&store, "x"),
                        };
                        let mut blob = store.content().writer().unwrap();
                        blob.write_all(format!("{n} {i}").as_bytes()).unwrap();
                        let (digest, _) = blob.commit(None).unwrap();
                        let top = layer(&store, "top");
                        record(&store, format!("{n} {}", i % 3), &[id, top]);
                        assert!(store.layers().path(&id).join("file").exists());
                        store.content().open(&digest).unwrap();
                        let image = image(&store, &amd64(), &[&format!("{n} {i}")]);
                        store.images().put(&format!("app:{n}").parse().unwrap(), &image.target).unwrap();
                        drop(lease);
                    }
                })
            })
            .collect();
        let (store, stop) = (env.reopen(), &stop);
        let collector = scope.spawn(move || {
            let mut evicted = 0;
            while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                evicted += store.gc(&PrunePolicy { all: true, ..PrunePolicy::default() }).unwrap().evicted.len();
            }
            evicted
        });
        builders.into_iter().for_each(|b| b.join().unwrap());
        stop.store(true, std::sync::atomic::Ordering::SeqCst);
        assert!(collector.join().unwrap() > 0);
    });
    check_invariants(&env.reopen());
}

#[test]
fn a_budget_that_is_met_is_met_without_a_look_into_layers() {
    let mut env = Env::new();
    let id = layer(&env.store, "x");
    record(&env.store, 1, &[id]);
    fresh(&mut env);
    // The exact measure would not find these bytes, so that it can be told from the estimate.
    let db = rusqlite::Connection::open(env.root().join("kiln.db")).unwrap();
    db.execute("UPDATE layers SET disk=disk+1000000000", []).unwrap();
    let policy = PrunePolicy { max_used_space: 1 << 40, ..PrunePolicy::default() };
    assert_eq!(env.store.gc(&policy).unwrap(), Report::default());
    let policy = PrunePolicy { max_used_space: 1 << 29, ..PrunePolicy::default() };
    assert_eq!(env.store.gc(&policy).unwrap(), Report::default());
    let policy = PrunePolicy { max_used_space: 1, ..PrunePolicy::default() };
    assert_eq!(env.store.gc(&policy).unwrap().evicted.len(), 1);
}

#[test]
fn large_layers_are_summarised_by_the_collector() {
    let mut env = Env::new();
    let draft = env.store.layers().draft().unwrap();
    for n in 0..4100 {
        fs::write(draft.fs().join(n.to_string()), "").unwrap();
    }
    let id = draft.commit(LayerMeta::default()).unwrap();
    record(&env.store, 1, &[id]);
    fresh(&mut env);
    let db = rusqlite::Connection::open(env.root().join("kiln.db")).unwrap();
    let summary = || db.query_row("SELECT checksum FROM layers", [], |r| r.get::<_, Option<i64>>(0)).unwrap();
    assert_eq!(summary(), None);
    env.store.collect().unwrap();
    assert!(summary().is_some());
    db.execute("UPDATE layers SET boot='before'", []).unwrap();
    assert!(env.store.cache().lookup(&key(1)).unwrap().is_some());
    // Without a summary, a layer of another boot is not trusted.
    db.execute("UPDATE layers SET boot='before', checksum=NULL", []).unwrap();
    env.store.collect().unwrap();
    assert!(env.store.cache().lookup(&key(1)).unwrap().is_none());
}

#[test]
fn downloads_of_sources_are_evicted_unless_their_kind_is_in_use() {
    let env = Env::new();
    let hash = "c".repeat(64);
    let git = env.root().join("sources/git").join(&hash);
    let deb = env.root().join("sources/deb/debs/a.deb");
    for (file, n) in [(git.join("pack"), 1), (deb.clone(), 2), (env.root().join("sources/empty/x"), 3)] {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, vec![n; 100_000]).unwrap();
    }
    let user = env.reopen();
    user.sources_dir("git").unwrap();
    let report = env.store.gc(&PrunePolicy::default()).unwrap();
    assert!(git.exists() && !deb.exists(), "the one in use stays");
    assert_eq!(report.freed[&Kind::Sources].count, 1);
    assert!(report.freed[&Kind::Sources].bytes >= 100_000);
    assert_eq!(report.evicted[0].0, "source.deb");
    drop(user);
    let filters = vec![Filter::Kind("source.git".into())];
    env.store.gc(&PrunePolicy { filters, ..PrunePolicy::default() }).unwrap();
    assert!(!git.exists() && env.root().join("sources/empty/x").exists());
}

#[test]
fn images_go_by_their_last_use_if_they_may() {
    let env = Env::new();
    let mut digests = Vec::new();
    for n in 0..3 {
        let made = image(&env.store, &amd64(), &[&format!("{n}").repeat(200_000)]);
        env.store.images().put(&format!("app{n}").parse().unwrap(), &made.target).unwrap();
        digests.push(made.target.digest);
    }
    let db = rusqlite::Connection::open(env.root().join("kiln.db")).unwrap();
    db.execute("UPDATE images SET updated=updated-1000000+id*10000", []).unwrap();
    env.store.cache().touch(&[], &digests[..1]).unwrap();
    let store = env.reopen();
    drop(env.store);
    let total = store.usage().unwrap().total;
    let policy = PrunePolicy { max_used_space: total - 1, ..PrunePolicy::default() };
    assert_eq!(store.gc(&policy).unwrap().evicted, [], "named images stay");
    let report = store.gc(&PrunePolicy { images: true, ..policy }).unwrap();
    assert_eq!(report.evicted, [("image".to_owned(), "app1:latest".to_owned())], "app0 was used, app2 is newer");
    assert_eq!(store.images().list().unwrap().len(), 2);
    // What is remembered of an image goes with it.
    let uses = || db.query_row("SELECT count(*) FROM meta WHERE key LIKE 'image used %'", [], |r| r.get::<_, i64>(0));
    store.collect().unwrap();
    assert_eq!(uses().unwrap(), 1);
    store.images().remove_digest(&digests[0]).unwrap();
    store.collect().unwrap();
    assert_eq!(uses().unwrap(), 0);
}
