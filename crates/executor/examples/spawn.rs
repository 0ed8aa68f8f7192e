//! How long a container takes, from the call to its reported end: `cargo run --release --example spawn [count] [threads]`.
//!
//! Runs busybox's `true` over an overlay (or a plain directory where overlays cannot be mounted).

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use kiln_executor::{CancelToken, Executor, Limits, Network, ProcessSpec, helper_main_if_requested, rootless};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    helper_main_if_requested();
    let identity = rootless::enter()?;
    let mut args = std::env::args().skip(1).map(|a| a.parse::<usize>());
    let count = args.next().transpose()?.unwrap_or(200);
    let threads = args.next().transpose()?.unwrap_or(1);
    let dir = tempfile::tempdir()?;
    let lower = dir.path().join("lower");
    std::fs::create_dir_all(lower.join("bin"))?;
    for sub in ["proc", "sys", "dev", "etc"] {
        std::fs::create_dir_all(lower.join(sub))?;
    }
    std::fs::write(lower.join("etc/hostname"), "")?;
    std::fs::copy("/bin/busybox", lower.join("bin/true"))?;
    println!("as {identity:?}, {count} containers each, {threads} at once");
    let executor = Executor::new(Default::default())?;
    run(&executor, spec(directory(&lower)?))?;
    let plain = |_: usize| Ok(spec(directory(&lower)?));
    measure("directory", &executor, (count, threads), &plain)?;
    let overlay = |i: usize| overlay(dir.path(), &lower, i).map(spec);
    if let Err(error) = overlay(usize::MAX) {
        println!("no overlay: {error}");
    } else {
        measure("overlay", &executor, (count, threads), &overlay)?;
    }
    let no_network = |_: usize| Ok(ProcessSpec { network: Network::None, ..spec(directory(&lower)?) });
    measure("directory, no network", &executor, (count, threads), &no_network)?;
    let limits = Limits { memory: Some(256 << 20), pids: Some(100), ..Limits::default() };
    let limited = |_: usize| Ok(ProcessSpec { limits: limits.clone(), ..spec(directory(&lower)?) });
    measure("directory, limits", &executor, (count, threads), &limited)?;
    Ok(())
}

fn spec(root: OwnedFd) -> ProcessSpec {
    ProcessSpec::new(root, ["/bin/true"])
}

fn directory(path: &Path) -> Result<OwnedFd, Failure> {
    Ok(std::fs::File::open(path)?.into())
}

fn overlay(dir: &Path, lower: &Path, i: usize) -> Result<OwnedFd, Failure> {
    let (upper, work) = (dir.join(format!("upper{i}")), dir.join(format!("work{i}")));
    std::fs::create_dir(&upper)?;
    std::fs::create_dir(&work)?;
    let spec = kiln_rootfs::overlay::OverlaySpec { lowers: &[lower], upper: Some((&upper, &work)), volatile: true };
    Ok(kiln_rootfs::overlay::mount(&spec)?)
}

fn run(executor: &Executor, spec: ProcessSpec) -> Result<(), Failure> {
    let exit = executor.run(spec, |_| {}, &CancelToken::new())?;
    if exit.success() { Ok(()) } else { Err(format!("{exit:?}").into()) }
}

type Make<'a> = dyn Fn(usize) -> Result<ProcessSpec, Failure> + Sync + 'a;

fn measure(name: &str, executor: &Executor, (count, threads): (usize, usize), make: &Make<'_>) -> Result<(), Failure> {
    let begin = Instant::now();
    let mut times: Vec<Duration> = std::thread::scope(|scope| {
        let worker = |t: usize| {
            move || -> Result<Vec<Duration>, String> {
                (0..count)
                    .map(|i| {
                        let start = Instant::now();
                        run(executor, make(t * count + i).map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
                        Ok(start.elapsed())
                    })
                    .collect()
            }
        };
        let handles: Vec<_> = (0..threads).map(|t| scope.spawn(worker(t))).collect();
        handles.into_iter().map(|h| h.join().unwrap_or_else(|_| Err("panic".to_owned()))).collect::<Result<Vec<_>, _>>()
    })?
    .concat();
    let wall = begin.elapsed();
    times.sort();
    let at = |q: usize| times[(times.len() - 1) * q / 100].as_secs_f64() * 1e3;
    let per = wall.as_secs_f64() * 1e3 / times.len() as f64;
    println!(
        "{name:24} best {:.2} ms, median {:.2}, 95% {:.2}; {per:.2} ms a container overall",
        at(0),
        at(50),
        at(95)
    );
    Ok(())
}
