//! `kiln pull`.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use kiln_engine::events::EventSink;
use kiln_engine::oci::{Platform, Reference};
use kiln_engine::registry::Resolved;
use kiln_engine::{Engine, Error, Pulled, Steps};

use crate::environment::{Environment, stop_on_signal};
use crate::error::CliError;
use crate::progress::{Direction, Display};

/// Tags that are asked for before the first of them is pulled.
const ASKED_AHEAD: usize = 16;

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
    let pulled = match args.all_tags {
        true => pull_all(&engine, &name, args, environment),
        false => {
            if !args.quiet && name.tag().is_none() && name.digest().is_none() {
                eprintln!("Using default tag: latest");
            }
            pull(&engine, &name.clone().with_default_tag(), None, args, environment)
        }
    };
    match pulled {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => Err(CliError::of_transfer(error, engine, &name.familiar())),
    }
}

/// Pulls all tags of a repository. What came before an error is there.
fn pull_all(engine: &Arc<Engine>, name: &Reference, args: &PullArgs, env: &Environment) -> Result<(), Error> {
    let tags = engine.registry.tags(name)?;
    if tags.is_empty() {
        return Err(Error::request(format!("{} has no tags", name.name())));
    }
    let tagged: Result<Vec<Reference>, _> = tags.iter().map(|tag| name.with_tag(tag)).collect();
    let tagged = tagged.map_err(|e| Error::request(e.to_string()))?;
    let _many = engine.store.images().many()?;
    let each = |names: &[Reference]| {
        let mut both = names.iter().zip(engine.find_all(names));
        both.try_for_each(|(name, found)| pull(engine, name, Some(found?), args, env))
    };
    tagged.chunks(ASKED_AHEAD).try_for_each(each)
}

/// Pulls one image, of which may be known what its name leads to.
fn pull(
    engine: &Arc<Engine>,
    name: &Reference,
    found: Option<Resolved>,
    args: &PullArgs,
    env: &Environment,
) -> Result<(), Error> {
    if !args.quiet {
        let version = name.digest().map_or_else(|| name.tag().unwrap_or("latest").to_owned(), ToString::to_string);
        eprintln!("{version}: Pulling from {}", name.repository());
    }
    let display = Display::transfer(Direction::Pull, args.quiet);
    env.notices().attach(Arc::clone(&display) as Arc<dyn EventSink>);
    let step = Steps::new(Arc::clone(&display) as Arc<dyn EventSink>).begin(&format!("pull {name}"));
    let platform = args.platform.as_ref();
    let pulled = match found {
        Some(found) => engine.pull_found(name, found, platform, &step),
        None => engine.pull_image(name, platform, &step),
    };
    display.finish();
    show(name, &step.conclude(pulled)?, args.quiet);
    Ok(())
}

fn show(name: &Reference, pulled: &Pulled, quiet: bool) {
    if !quiet {
        println!("Digest: {}", pulled.digest);
        let what = if pulled.changed { "Downloaded newer image for" } else { "Image is up to date for" };
        println!("Status: {what} {}", name.familiar());
    }
    println!("{name}");
}
