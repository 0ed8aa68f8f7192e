//! How fast the search is over files, for a growing number of secrets:
//! `cargo run --release -p kiln-secrets --example search_rate -- FILE...`
#![allow(clippy::unwrap_used)]

use std::time::Instant;

use kiln_secrets::{Origin, Searcher, Secret};

fn main() {
    let files: Vec<Vec<u8>> = std::env::args().skip(1).map(|p| std::fs::read(p).unwrap()).collect();
    let total: usize = files.iter().map(Vec::len).sum();
    println!("{} files, {} MB", files.len(), total >> 20);
    for count in [0, 1, 2, 4, 8, 16] {
        let secrets: Vec<Secret> = (0..count)
            .map(|i| Secret::new(format!("s{i}"), Origin::Secret, format!("value-{i}-of-a-secret-{}", i * 7_919)))
            .collect();
        let searcher = Searcher::new(&secrets, true);
        let start = Instant::now();
        let mut hits = 0;
        for file in &files {
            let mut scan = searcher.scan();
            file.chunks(256 << 10).for_each(|chunk| scan.feed(chunk));
            hits += scan.finish().len();
        }
        let rate = total as f64 / start.elapsed().as_secs_f64() / 1e6;
        println!("{count:>3} secrets and all shapes: {rate:>6.0} MB/s, {hits} hits");
    }
}
