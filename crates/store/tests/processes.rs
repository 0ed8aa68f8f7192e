//! Several processes at once, processes that are killed, and disks that are full.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;

use common::*;
use kiln_store::*;

#[test]
fn two_hundred_open_a_store_that_is_not_there_yet() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("a/store");
    let barrier = std::sync::Barrier::new(200);
    std::thread::scope(|scope| {
        for n in 0..200 {
            let (root, barrier) = (&root, &barrier);
            scope.spawn(move || {
                barrier.wait();
                let store = Store::open(root).unwrap();
                let _lease = store.lease().unwrap();
                store.meta().put(&n.to_string(), b"x", None).unwrap();
                assert!(store.meta().get(&n.to_string()).unwrap().is_some());
            });
        }
    });
    let store = Store::open(&root).unwrap();
    assert!((0..200).all(|n| store.meta().get(&n.to_string()).unwrap().is_some()));
    assert!(names(&root.join("leases")).is_empty() && names(&root.join("tmp")).is_empty());
}

#[test]
fn a_lease_that_begins_while_another_ends_pins() {
    let env = Env::new();
    let digest = env.store.content().put(b"blob").unwrap();
    let line = format!("b {digest}");
    let is_pinned = || {
        let leases = fs::read_dir(env.root().join("leases")).unwrap();
        leases.filter_map(|l| fs::read_to_string(l.unwrap().path()).ok()).any(|text| text.contains(&line))
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..500 {
                    let _lease = env.store.lease().unwrap();
                    assert!(env.store.content().has(&digest).unwrap());
                    assert!(is_pinned());
                }
            });
        }
    });
}

#[test]
fn a_lease_that_cannot_be_read_stops_a_collection() {
    let env = Env::new();
    env.store.content().put(b"blob").unwrap();
    let lease = env.store.lease().unwrap();
    // Stands for a file that can't be read: root may read any.
    fs::create_dir(env.root().join("leases/0123456789abcdef")).unwrap();
    assert!(env.reopen().collect().unwrap_err().to_string().contains("leases"));
    assert_eq!(names(&env.root().join("content/blobs/sha256")).len(), 1);
    drop(lease);
}

/// What a build does: look up, and make what is not there under the step's lock.
#[test]
#[ignore = "run by same_steps_run_once_across_processes"]
fn child_builds() {
    let Some((store, log)) = in_child() else { return };
    let _lease = store.lease().unwrap();
    for n in 0..20 {
        if store.cache().lookup(&key(n)).unwrap().is_some() {
            continue;
        }
        let _lock = store.lock(&format!("step {n}"), &mut || {}).unwrap();
        if store.cache().lookup(&key(n)).unwrap().is_none() {
            let mut log = OpenOptions::new().append(true).create(true).open(&log).unwrap();
            writeln!(log, "{n}").unwrap();
            let below: Vec<LayerId> = match n {
                0 => Vec::new(),
                n => store.cache().lookup(&key(n - 1)).unwrap().unwrap().snapshot.0,
            };
            let mut layers = below;
            layers.push(layer(&store, &n.to_string()));
            record(&store, n, &layers);
        }
    }
    let image = image(&store, &amd64(), &["same"]);
    store.images().put(&"app".parse().unwrap(), &image.target).unwrap();
}

#[test]
fn same_steps_run_once_across_processes() {
    let dir = tempfile::tempdir().unwrap();
    let (root, log) = (dir.path().join("store"), dir.path().join("log"));
    let children: Vec<_> = (0..24).map(|_| child("child_builds", &root, log.display())).collect();
    for child in children {
        assert!(child.wait_with_output().unwrap().status.success());
    }
    let log = fs::read_to_string(&log).unwrap();
    assert_eq!(log.lines().count(), 20, "{log:?}");
    let store = Store::open(&root).unwrap();
    assert_eq!(store.cache().lookup(&key(19)).unwrap().unwrap().snapshot.0.len(), 20);
    assert!(names(&root.join("locks")).iter().all(|n| n == "gc"));
    check_invariants(&store);
}

/// Does everything that changes a store, and says `.` between.
#[test]
#[ignore = "run by killed_at_any_moment"]
fn child_changes_everything() {
    let Some((store, seed)) = in_child() else { return };
    let say = || {
        print!(".");
        std::io::stdout().flush().unwrap();
    };
    for i in 0.. {
        let lease = store.lease().unwrap();
        let draft = store.layers().draft().unwrap();
        fs::create_dir_all(draft.fs().join("a/b/c")).unwrap();
        fs::write(draft.fs().join("a/b/c/f"), [1; 10_000]).unwrap();
        say();
        let id = draft.commit(LayerMeta::default()).unwrap();
        record(&store, i % 5, &[id]);
        say();
        let image = image(&store, &amd64(), &[&format!("{seed} {i}")]);
        say();
        store.images().put(&format!("app:{}", i % 3).parse().unwrap(), &image.target).unwrap();
        say();
        let lazy = store.layers().create_lazy(&blob_meta(&image, 0)).unwrap();
        let unpack = store.layers().unpack_draft(&lazy).unwrap();
        fs::write(unpack.fs().join("file0"), "x").unwrap();
        store.layers().commit_unpack(&lazy, unpack, 1).unwrap();
        say();
        let mount = store.cache_mounts().open(&format!("m{}", i % 2), &MountOpts::default()).unwrap();
        fs::write(mount.path().join("f"), [2; 5000]).unwrap();
        drop(mount);
        say();
        let build = store.builds().create(BuildInfo::default()).unwrap();
        build.append(b"output\n").unwrap();
        build.finish(BuildStatus::Succeeded, vec![], (1, 0)).unwrap();
        store.builds().retain(3).unwrap();
        say();
        drop(lease);
        if i % 4 == 3 {
            store.images().remove(&"app:0".parse().unwrap()).unwrap();
            store.gc(&PrunePolicy { all: true, ..PrunePolicy::default() }).unwrap();
        } else {
            store.collect().unwrap();
        }
        say();
    }
}

#[test]
fn killed_at_any_moment() {
    let env = Env::new();
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    for round in 0..18 {
        let mut child = child("child_changes_everything", env.root(), round);
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        // After some of its steps; where exactly it is then, the scheduler decides.
        let mut output = BufReader::new(child.stdout.take().unwrap()).bytes().filter(|b| matches!(b, Ok(b'.')));
        output.nth((random % 40) as usize).expect("the child ended").unwrap();
        for _ in 0..random >> 52 {
            std::hint::spin_loop();
        }
        child.kill().unwrap();
        child.wait().unwrap();

        let store = env.reopen();
        store.sweep().unwrap();
        let debris = names(&env.root().join("tmp"));
        assert!(debris.iter().all(|n| n.starts_with("new.")), "debris is left: {debris:?}");
        check_invariants(&store);
        assert!(store.builds().list().unwrap().iter().all(|b| b.status != BuildStatus::Running));
        if round % 3 == 0 {
            store.collect().unwrap();
            check_invariants(&store);
            let rows = store.layers();
            assert!(
                names(&env.root().join("layers")).iter().all(|id| rows.find(&id.parse().unwrap()).unwrap().is_some())
            );
            assert!(names(&env.root().join("locks")).iter().all(|n| n == "gc"));
            assert!(store.usage().is_ok());
        }
    }
}

#[test]
#[ignore = "run by what_a_dead_process_pinned_is_free"]
fn child_holds_a_lease() {
    let Some((store, _)) = in_child() else { return };
    let _lease = store.lease().unwrap();
    assert!(store.cache().lookup(&key(1)).unwrap().is_some());
    let draft = store.layers().draft().unwrap();
    fs::create_dir_all(draft.fs().join("half")).unwrap();
    println!("ready");
    _ = std::io::stdin().read(&mut [0]);
}

#[test]
fn what_a_dead_process_pinned_is_free() {
    let env = Env::new();
    let id = layer(&env.store, "x");
    record(&env.store, 1, &[id]);
    let store = env.reopen();
    drop(env.store);
    let mut child = child("child_holds_a_lease", store.root(), "");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|l| l.unwrap().ends_with("ready")));
    let all = PrunePolicy { all: true, ..PrunePolicy::default() };
    assert_eq!(store.gc(&all).unwrap(), Report::default());
    assert_eq!(names(&store.root().join("tmp")).len(), 1);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(store.gc(&all).unwrap().freed[&Kind::Layers].count, 1);
    assert!(names(&store.root().join("tmp")).is_empty() && names(&store.root().join("layers")).is_empty());
}

/// In a mount namespace of its own, with a small file system.
#[test]
#[ignore = "run by a_full_disk_loses_nothing"]
fn child_on_a_small_disk() {
    let Some((_, mountpoint)) = in_child() else { return };
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    // SAFETY: a mount namespace is per thread, and nothing here relies on sharing it.
    let unshared = unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) };
    if let Err(e) = unshared.and_then(|()| mount_change("/", private)) {
        println!("skipped: no mount namespace here: {e}");
        return;
    }
    mount("tmpfs", mountpoint.as_str(), "tmpfs", MountFlags::empty(), c"size=3m").unwrap();
    let root = Path::new(&mountpoint).join("store");
    let store = Store::open(&root).unwrap();
    let id = layer(&store, "before");
    record(&store, 1, &[id]);
    let image = image(&store, &amd64(), &["before"]);
    store.images().put(&"app".parse().unwrap(), &image.target).unwrap();

    let mut filler = fs::File::create(Path::new(&mountpoint).join("filler")).unwrap();
    while filler.write(&[0; 4096]).is_ok_and(|n| n > 0) {}
    let full = |e: Error| assert!(matches!(e, Error::DiskFull { .. }), "{e:?}");
    let mut seen = HashMap::new();
    let mut writer = store.content().writer().ok();
    if let Some(writer) = &mut writer {
        seen.insert("blob", writer.write_all(&[7; 100_000]).is_err());
    }
    drop(writer);
    // The log of the database has some room until it has to grow.
    for n in 0.. {
        if let Err(e) = store.meta().put(&n.to_string(), &[9; 1000], None) {
            full(e);
            break;
        }
        assert!(n < 10_000);
    }
    for result in [
        store.layers().draft().and_then(|d| d.commit(LayerMeta::default())).map(|_| ()),
        store.images().put(&"other".parse().unwrap(), &image.target).map(|_| ()),
        store.content().put(&[1; 50_000]).map(|_| ()),
    ] {
        full(result.unwrap_err());
    }
    drop(store);
    // Reading goes on, and so does everything else once there is room.
    let store = Store::open(&root).unwrap();
    assert!(store.cache().lookup(&key(1)).unwrap().is_some());
    drop(filler);
    fs::remove_file(Path::new(&mountpoint).join("filler")).unwrap();
    check_invariants(&store);
    layer(&store, "after");
    store.images().put(&"other".parse().unwrap(), &image.target).unwrap();
    store.collect().unwrap();
    check_invariants(&store);
    assert!(seen["blob"]);
    println!("held");
}

#[test]
fn a_full_disk_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mountpoint = dir.path().join("disk");
    fs::create_dir(&mountpoint).unwrap();
    let child = child("child_on_a_small_disk", &dir.path().join("unused"), mountpoint.display());
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && (text.contains("held") || text.contains("skipped:")), "{text}");
    if text.contains("skipped:") {
        eprintln!("a_full_disk_loses_nothing: {text}");
    }
}

#[test]
#[ignore = "run by a_layer_that_cannot_be_read_now_is_not_forgotten"]
fn child_without_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Some((store, id)) = in_child() else { return };
    let id: LayerId = id.parse().unwrap();
    assert!(store.layers().find(&id).unwrap().is_some());
    let usual = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(3), maximum: usual.maximum }).unwrap();
    let intact = store.layers().intact(&id);
    setrlimit(Resource::Nofile, usual).unwrap();
    assert!(intact.is_err(), "{intact:?}");
    assert!(store.layers().intact(&id).unwrap());
}

#[test]
fn a_layer_that_cannot_be_read_now_is_not_forgotten() {
    let env = Env::new();
    let id = layer(&env.store, "x");
    record(&env.store, 1, &[id]);
    let db = rusqlite::Connection::open(env.root().join("kiln.db")).unwrap();
    db.execute("UPDATE layers SET boot='before'", []).unwrap();
    let output = child("child_without_descriptors", env.root(), id).wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(env.store.cache().lookup(&key(1)).unwrap().is_some());
}
