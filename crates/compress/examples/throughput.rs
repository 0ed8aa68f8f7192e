//! `cargo run --release -p kiln-compress --example throughput -- FILE [THREADS]`: speed and ratio on a real tar.

use std::io::{self, Write};
use std::time::Instant;

use kiln_compress::{Encoder, decoder};
use kiln_oci::media::Compression;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let data = std::fs::read(args.next().ok_or("usage: throughput FILE [THREADS]")?)?;
    let threads: Vec<usize> = match args.next() {
        Some(count) => vec![count.parse()?],
        None => vec![1, 2],
    };
    let runs = [(Compression::Gzip, vec![1, 5, 6, 7, 8, 9]), (Compression::Zstd, vec![1, 3, 9])];
    for (compression, levels) in runs {
        for level in levels {
            for &threads in &threads {
                measure(&data, compression, level, threads)?;
            }
        }
    }
    Ok(())
}

/// Seconds of processor time of all threads so far, which other load on the machine does not change.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u32 = after_name.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u32>().ok()).sum();
    f64::from(ticks) / 100.0
}

fn measure(
    data: &[u8],
    compression: Compression,
    level: i32,
    threads: usize,
) -> Result<(), Box<dyn std::error::Error>> {
    let (start, busy) = (Instant::now(), cpu());
    let mut encoder = Encoder::new(Vec::new(), compression, Some(level), threads)?;
    for chunk in data.chunks(256 * 1024) {
        encoder.write_all(chunk)?;
    }
    let packed = encoder.finish()?;
    let encoding = start.elapsed().as_secs_f64();
    let busy = cpu() - busy;
    let ratio = packed.len() as f64 / data.len() as f64;
    let start = Instant::now();
    let (_, mut reader) = decoder(Box::new(io::Cursor::new(packed)))?;
    let back = io::copy(&mut reader, &mut io::sink())?;
    if back != data.len() as u64 {
        return Err("the length differs after decoding".into());
    }
    let decoding = start.elapsed().as_secs_f64();
    let megabytes = data.len() as f64 / 1e6;
    println!(
        "{:<5} level {level} threads {threads}: {:>6.1} MB/s ({:.1} for each cpu) ratio {ratio:.4}, decoding {:>6.1} MB/s",
        compression.name(),
        megabytes / encoding,
        megabytes / busy,
        megabytes / decoding
    );
    Ok(())
}
