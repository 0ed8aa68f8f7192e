//! `cargo run --release -p kiln-rootfs --example layer_speed -- LAYER.tar DIR`: unpacks a layer (compressed or not) into a
//! new directory below DIR, then writes it as a layer again, and tells how long each took.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::time::Instant;

use kiln_compress::{ReadAhead, decoder};
use kiln_rootfs::Root;
use kiln_rootfs::apply::{ApplyOptions, apply};
use kiln_rootfs::diff::{DiffOptions, diff};

struct Count(u64);

impl Write for Count {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0 += buf.len() as u64;
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Seconds of processor time so far, which other load on the machine does not change.
fn cpu() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(layer), Some(dir)) = (args.next(), args.next()) else { return Err("usage: LAYER.tar DIR".into()) };
    let target = PathBuf::from(dir).join(format!("layer-{}", std::process::id()));
    std::fs::create_dir(&target)?;
    let root = Root::open(&target)?;

    let (start, busy) = (Instant::now(), cpu());
    let (format, decoded) = decoder(Box::new(std::fs::File::open(layer)?))?;
    let reader: Box<dyn Read + Send> = match format {
        kiln_compress::Format::Plain => decoded,
        _ => Box::new(ReadAhead::new(decoded)?),
    };
    let applied = apply(reader, &root, &ApplyOptions::default())?;
    println!(
        "apply {:.3} s, {:.3} s cpu ({} entries, {} MB)",
        start.elapsed().as_secs_f64(),
        cpu() - busy,
        applied.entries,
        applied.bytes / 1_000_000
    );

    let (start, busy) = (Instant::now(), cpu());
    let mut count = Count(0);
    let stats = diff(&root, None, &mut count, &mut DiffOptions::default())?;
    println!(
        "diff  {:.3} s, {:.3} s cpu ({} entries, {} MB)",
        start.elapsed().as_secs_f64(),
        cpu() - busy,
        stats.entries,
        count.0 / 1_000_000
    );
    std::fs::remove_dir_all(&target)?;
    Ok(())
}
