//! Scans a directory several times, and prints wall and processor time of each scan.
//!
//! `cargo run --release -p kiln-rootfs --example scan DIRECTORY [CACHE]`

use std::path::{Path, PathBuf};
use std::time::Instant;

use kiln_rootfs::{ContextTree, Result, Root, Selector, StatCache};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().unwrap_or_else(|| ".".to_owned());
    let cache_path = args.next().map(PathBuf::from);
    let root = Root::open(Path::new(&dir))?;
    let all = Selector { sources: vec![PathBuf::from(".")], ..Selector::default() };
    for _ in 0..10 {
        let (start, used) = (Instant::now(), processor_ms());
        let cache = cache_path.as_deref().map(StatCache::load);
        let tree = ContextTree::scan(&root, None, cache.as_ref())?;
        let scanned = (start.elapsed(), processor_ms() - used);
        let mut digested = String::new();
        if let Some(cache) = &cache {
            tree.digest(&all)?;
            cache.save_if_changed(&tree)?;
            digested = format!("; with digest {:?}, {:.1} ms of processor", start.elapsed(), processor_ms() - used);
        }
        println!("{} entries: {:?}, {:.1} ms of processor{digested}", tree.len(), scanned.0, scanned.1);
    }
    Ok(())
}

fn processor_ms() -> f64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    t.tv_sec as f64 * 1e3 + t.tv_nsec as f64 / 1e6
}
