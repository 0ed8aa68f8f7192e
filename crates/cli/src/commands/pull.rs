//! `kiln pull`.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use kiln_engine::events::EventSink;
use kiln_engine::oci::{Platform, Reference};
use kiln_engine::{Engine, Pulled, Steps};

use crate::environment::{Environment, stop_on_signal};
use crate::error::CliError;
use crate::progress::{Direction, Display};

/// Download an image from a registry
///
/// Layers are unpacked while they come, several at once. A pull that was interrupted goes on where it was.
///
///   kiln pull alpine                          the newest image of that name
///   kiln pull ghcr.io/org/app:1.2             from another registry
///   kiln pull alpine@sha256:56fa17d2a7e7…     exactly this image
///   kiln pull --platform linux/arm64 alpine   for another machine
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct PullArgs {
    /// Name of the image
    name: String,
    /// Download all tags of the repository
    #[arg(short, long)]
    all_tags: bool,
    /// Platform, if the image is made for several
    #[arg(long)]
    platform: Option<Platform>,
    /// Print the image's name only
    #[arg(short, long)]
    quiet: bool,
    /// Verify the registry's certificate; false also allows plain http
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    tls_verify: bool,
}

/// Pulls, and prints what docker prints.
pub fn run(args: &PullArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    let name: Reference = args.name.parse().map_err(|e| CliError::usage(format!("{e}")))?;
    if args.all_tags && (name.tag().is_some() || name.digest().is_some()) {
        return Err(CliError::usage("--all-tags takes a name without a tag or digest"));
    }
    let engine = environment.engine()?;
    let _stop = stop_on_signal(engine.registry.canceller());
    if !args.tls_verify {
        engine.registry.allow_insecure(name.registry());
    }
    if !args.all_tags {
        if !args.quiet && name.tag().is_none() && name.digest().is_none() {
            eprintln!("Using default tag: latest");
        }
        let name = name.with_default_tag();
        let pulled = pull(&engine, &name, args, environment)?;
        show(&name, &pulled, args.quiet);
        return Ok(ExitCode::SUCCESS);
    }
    let tags = engine.registry.tags(&name).map_err(kiln_engine::Error::from)?;
    if tags.is_empty() {
        return Err(CliError::failed(format!("{} has no tags", name.name())));
    }
    for tag in tags {
        let tagged = name.with_tag(&tag).map_err(|e| CliError::failed(e.to_string()))?;
        let pulled = pull(&engine, &tagged, args, environment)?;
        show(&tagged, &pulled, args.quiet);
    }
    Ok(ExitCode::SUCCESS)
}

fn pull(engine: &Arc<Engine>, name: &Reference, args: &PullArgs, env: &Environment) -> Result<Pulled, CliError> {
    if !args.quiet {
        let version = name.digest().map_or_else(|| name.tag().unwrap_or("latest").to_owned(), ToString::to_string);
        eprintln!("{version}: Pulling from {}", name.repository());
    }
    let display = Display::transfer(Direction::Pull, args.quiet);
    env.notices().attach(Arc::clone(&display) as Arc<dyn EventSink>);
    let step = Steps::new(Arc::clone(&display) as Arc<dyn EventSink>).begin(&format!("pull {name}"));
    let pulled = engine.pull_image(name, args.platform.as_ref(), &step);
    display.finish();
    Ok(step.conclude(pulled)?)
}

fn show(name: &Reference, pulled: &Pulled, quiet: bool) {
    if !quiet {
        println!("Digest: {}", pulled.digest);
        let what = if pulled.changed { "Downloaded newer image for" } else { "Image is up to date for" };
        println!("Status: {what} {}", name.familiar());
    }
    println!("{name}");
}
