//! Resolves a base, shows it, and builds it into a directory if one is given; for measuring.
//!
//! `base CACHE deb://… [DIRECTORY]`; configuring a minbase needs root.
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use kiln_deb::{BuildOptions, Configure, Context, Event, Outcome, Spec, Step, build, fetch, resolve};

struct Chroot;

impl Configure for Chroot {
    fn run(&self, root: &Path, step: &Step<'_>) -> Result<Outcome, String> {
        let inner = "mount -t proc proc \"$1/proc\" && mount --rbind /dev \"$1/dev\" && root=$1 && shift && exec chroot \"$root\" \"$@\"";
        if std::env::var_os("STOP").is_some() {
            return Err("stopped before configuring".into());
        }
        let started = Instant::now();
        let output = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "sh", "-c", inner, "sh"])
            .arg(root)
            .args(&step.argv)
            .env_clear()
            .envs(step.env.iter().cloned())
            .output()
            .map_err(|error| error.to_string())?;
        eprintln!("configured in {:?}", started.elapsed());
        let text = [output.stdout, output.stderr].concat();
        if std::env::var_os("SHOW").is_some() {
            eprintln!("{}", String::from_utf8_lossy(&text));
        }
        Ok(Outcome {
            success: output.status.success(),
            status: output.status.to_string(),
            output: String::from_utf8_lossy(&text).into_owned(),
        })
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (cache, spec) = (args.next().ok_or("usage: base CACHE deb://… [DIRECTORY]")?, args.next().ok_or("no deb://…")?);
    let show = |event: Event<'_>| {
        if let Event::Index { .. } | Event::Warning(_) = event {
            eprintln!("{event:?}");
        }
    };
    let mut context = Context::new(cache);
    context.events = Some(&show);
    let start = Instant::now();
    let resolution = resolve(&Spec::parse(&spec)?, &context)?;
    eprintln!("resolved in {:?}", start.elapsed());
    let Some(dest) = args.next() else {
        for package in &resolution.packages {
            println!("{} {} {} {}", package.id(), package.size, package.installed_size, package.reason.describe());
        }
        for (package, clause) in &resolution.skipped {
            println!("  not followed: {package} {clause}");
        }
        println!(
            "{} packages, {} to download, {} installed",
            resolution.packages.len(),
            resolution.download_size(),
            resolution.installed_size()
        );
        return Ok(());
    };
    let start = Instant::now();
    fetch(&resolution, &context)?;
    eprintln!("fetched {} packages in {:?}", resolution.packages.len(), start.elapsed());
    std::fs::create_dir_all(&dest)?;
    let start = Instant::now();
    let built = build(
        &resolution,
        Path::new(&dest),
        &context,
        &BuildOptions { configure: Some(&Chroot), ..BuildOptions::default() },
    )?;
    eprintln!("built in {:?}", start.elapsed());
    println!("{}", serde_json::to_string_pretty(&built.config)?);
    Ok(())
}
