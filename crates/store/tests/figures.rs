//! Figures, printed: `cargo test --release -p kiln-store --test figures -- --ignored --nocapture`.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::*;
use kiln_store::*;

/// Time of this process on a processor: figures that hold on a busy machine, without the waits for the disk.
struct Cpu(Duration);

impl Cpu {
    fn now() -> Self {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        Self(Duration::new(t.tv_sec as u64, t.tv_nsec as u32))
    }

    fn elapsed(&self) -> Duration {
        Self::now().0 - self.0
    }
}

#[test]
#[ignore = "prints figures"]
fn figures() {
    let env = Env::new();
    let lease = env.store.lease().unwrap();
    let mut layers = Vec::new();
    let begin = Cpu::now();
    for n in 0..200 {
        layers.push(layer(&env.store, "x"));
        record(&env.store, n, &layers[layers.len().saturating_sub(20)..]);
    }
    println!("layer and record: {:?} each", begin.elapsed() / 200);
    for leased in [true, false] {
        let store = env.reopen();
        let _lease = leased.then(|| store.lease().unwrap());
        store.cache().lookup(&key(0)).unwrap();
        let begin = Cpu::now();
        for n in 0..200 {
            assert!(store.cache().lookup(&key(n)).unwrap().is_some());
        }
        println!("look-up of 20 layers (leased: {leased}): {:?} each", begin.elapsed() / 200);
        let begin = Cpu::now();
        for n in 1000..1200 {
            assert!(store.cache().lookup(&key(n)).unwrap().is_none());
        }
        println!("miss: {:?} each", begin.elapsed() / 200);
    }
    drop(lease);
    let others = env.reopen();
    let root = env.root().to_path_buf();
    for what in ["others have it open", "alone"] {
        let begin = Cpu::now();
        for _ in 0..50 {
            Store::open(&root).unwrap();
        }
        println!("open ({what}): {:?}", begin.elapsed() / 50);
        if what == "alone" {
            break;
        }
    }
    drop(others);
    let dir = env.dir;
    drop(env.store);
    let begin = Cpu::now();
    for _ in 0..50 {
        Store::open(&root).unwrap();
    }
    println!(
        "open (first, log of {} bytes): {:?}",
        std::fs::metadata(root.join("kiln.db-wal")).unwrap().len(),
        begin.elapsed() / 50
    );
    let store = Store::open(&root).unwrap();
    let begin = Cpu::now();
    let image = image(&store, &amd64(), &["x"]);
    println!("three small blobs: {:?}", begin.elapsed());
    let begin = Cpu::now();
    store.images().put(&"app".parse().unwrap(), &image.target).unwrap();
    println!("name an image: {:?}", begin.elapsed());
    let begin = Cpu::now();
    store.collect().unwrap();
    println!("collect nothing of 200 layers: {:?}", begin.elapsed());
    drop(dir);
}
