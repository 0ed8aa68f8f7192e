//! Measures the client against `docker-registry` on loopback: push and pull of 500 MB in 5 layers.
//!
//! `cargo run --release -p kiln-registry --features testing --example transfer_rate [THREADS]`
#![allow(clippy::unwrap_used)]

use std::io::Read;
use std::time::Instant;

use kiln_oci::{Descriptor, Digest, Reference, media};
use kiln_registry::testing::{DockerRegistry, RegistryOptions};
use kiln_registry::{Client, ClientOptions};

const LAYERS: usize = 5;
const SIZE: usize = 100_000_000;

fn layer(seed: u64) -> Vec<u8> {
    let mut state = seed * 2 + 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..SIZE / 8).flat_map(|_| next()).collect()
}

fn rate(what: &str, bytes: usize, started: Instant) {
    let seconds = started.elapsed().as_secs_f64();
    println!("{what}: {:.0} ms, {:.0} MB/s", seconds * 1e3, bytes as f64 / 1e6 / seconds);
}

fn read_all(client: &Client, image: &Reference, blob: &Descriptor, check: bool) {
    let mut reader = client.blob(image, blob, 0).unwrap();
    if !check {
        reader = reader.without_digest_check();
    }
    let mut buf = vec![0; 256 * 1024];
    while reader.read(&mut buf).unwrap() > 0 {}
}

fn main() {
    let threads: usize = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(3);
    let Some(registry) = DockerRegistry::start(&RegistryOptions::default()) else { return };
    let image: Reference = format!("{}/bench/app:1", registry.host()).parse().unwrap();
    let client = Client::new(ClientOptions::default());
    let layers: Vec<_> = (1..=LAYERS as u64).map(layer).collect();
    let blobs: Vec<_> = layers.iter().map(|l| Descriptor::of(media::OCI_LAYER, l)).collect();
    let started = Instant::now();
    for (bytes, blob) in layers.iter().zip(&blobs) {
        client.push_blob(&image, blob, bytes, &[]).unwrap();
    }
    rate("push, one after another", LAYERS * SIZE, started);
    let started = Instant::now();
    for (bytes, blob) in layers.iter().zip(&blobs) {
        client.push_blob(&image, blob, bytes, &[]).unwrap();
    }
    rate("push again", LAYERS * SIZE, started);
    let started = Instant::now();
    let mut fresh = layers[0].clone();
    fresh[0] ^= 1;
    client.push_stream(&image, &mut &fresh[..], &mut || Some(Digest::of(&fresh))).unwrap();
    rate("stream of one layer", SIZE, started);
    for check in [true, false] {
        for threads in [1, threads] {
            let started = Instant::now();
            let queue = std::sync::Mutex::new(blobs.iter());
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| {
                        loop {
                            let next = queue.lock().unwrap().next();
                            let Some(blob) = next else { return };
                            read_all(&client, &image, blob, check);
                        }
                    });
                }
            });
            rate(&format!("pull, {threads} threads, digest check {check}"), LAYERS * SIZE, started);
        }
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    println!("{}", status.lines().find(|l| l.starts_with("VmHWM")).unwrap_or_default());
}
