//! Measures scanning, digesting and copying a tree, beside `cp -a`.
//!
//! `cargo run --release -p kiln-rootfs --example figures [FILES [BYTES_PER_FILE [DIRECTORY]]]`

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kiln_rootfs::copy::{CopyRequest, copy};
use kiln_rootfs::{ContextTree, Result, Root, Selector, Source, Stack, StatCache, Target};

fn main() -> Result<()> {
    let arg = |n: usize| std::env::args().nth(n);
    let files = arg(1).and_then(|a| a.parse().ok()).unwrap_or(50_000);
    let size = arg(2).and_then(|a| a.parse().ok()).unwrap_or(4096);
    let base = arg(3).map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = base.join(format!("kiln-figures-{}", std::process::id()));
    println!("{files} files of {size} bytes in {}", dir.display());
    let done = measure(&dir, files, size);
    let _ = std::fs::remove_dir_all(&dir); // a leftover only takes space
    done
}

fn measure(dir: &Path, files: usize, size: usize) -> Result<()> {
    let source = dir.join("source");
    fill(&source, files, size).map_err(|e| kiln_rootfs::RootfsError::io("fill", &source, e))?;
    std::thread::sleep(Duration::from_millis(100)); // so that no file counts as just changed
    let root = Root::open(&source)?;
    let all = Selector { sources: vec![PathBuf::from(".")], ..Selector::default() };
    let cache_path = dir.join("stat-cache");

    let (time, tree) = timed(|| ContextTree::scan(&root, None, None))?;
    println!("scan, no cache             {time:?} ({} entries)", tree.len());
    let (time, first) = timed(|| tree.digest(&all))?;
    println!("digest, reading all        {time:?}");
    let (time, _) = timed(|| StatCache::load(&cache_path).save_if_changed(&tree))?;
    println!("cache written              {time:?}");
    for _ in 0..3 {
        let start = Instant::now();
        let cache = StatCache::load(&cache_path);
        let loaded = start.elapsed();
        let tree = ContextTree::scan(&root, None, Some(&cache))?;
        let scanned = start.elapsed();
        assert_eq!(tree.digest(&all)?, first);
        let digested = start.elapsed();
        let wrote = cache.save_if_changed(&tree)?;
        println!(
            "warm: load {loaded:?}, scan {:?}, digest {:?}, save {:?} (wrote: {wrote}); all {:?}",
            scanned - loaded,
            digested - scanned,
            start.elapsed() - digested,
            start.elapsed()
        );
    }
    for round in 0..3 {
        let cp = dir.join(format!("cp{round}"));
        let (time, _) = timed(|| {
            let status = std::process::Command::new("cp").arg("-a").arg(&source).arg(&cp).status();
            status.map_err(|e| kiln_rootfs::RootfsError::io("run", "cp", e))
        })?;
        let ours = run_copy(dir, &format!("copy{round}"), Source::Tree(&tree))?;
        println!("cp -a {time:?}   copy {ours:?}   ratio {:.2}", ours.as_secs_f64() / time.as_secs_f64());
    }
    let stack = Stack::from(Root::open(&source)?);
    for round in 0..3 {
        let time = run_copy(dir, &format!("layer{round}"), Source::Stack(&stack))?;
        println!("of a layer (with scan)     {time:?}");
    }
    Ok(())
}

fn run_copy(dir: &Path, name: &str, source: Source<'_>) -> Result<Duration> {
    let upper = dir.join(name);
    std::fs::create_dir(&upper).map_err(|e| kiln_rootfs::RootfsError::io("create", &upper, e))?;
    let target = Target::scratch(Root::open(&upper)?);
    let select = Selector { sources: vec![PathBuf::from(".")], ..Selector::default() };
    let request = CopyRequest { select, dest: PathBuf::from("/app/"), ..CopyRequest::default() };
    let (time, report) = timed(|| copy(&request, source, &target))?;
    assert!(report.files > 0, "{report:?}");
    Ok(time)
}

fn timed<T>(f: impl FnOnce() -> Result<T>) -> Result<(Duration, T)> {
    let start = Instant::now();
    let value = f()?;
    Ok((start.elapsed(), value))
}

/// Twenty files a directory, ten directories a directory.
fn fill(dir: &Path, files: usize, size: usize) -> std::io::Result<()> {
    let mut content = vec![b'x'; size];
    for i in 0..files {
        let d = i / 20;
        let parent = dir.join(format!("d{}", d / 100)).join(format!("d{}", d / 10 % 10)).join(format!("d{}", d % 10));
        if i % 20 == 0 {
            std::fs::create_dir_all(&parent)?;
        }
        for (b, n) in content.iter_mut().zip(i.to_le_bytes()) {
            *b = n;
        }
        std::fs::write(parent.join(format!("file-{i}.txt")), &content)?;
    }
    Ok(())
}
