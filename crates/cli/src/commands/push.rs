//! `kiln push`.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use kiln_engine::events::EventSink;
use kiln_engine::oci::{Descriptor, Platform, Reference};
use kiln_engine::{Engine, Steps};

use crate::environment::{Environment, stop_on_signal};
use crate::error::CliError;
use crate::progress::{Direction, Display};

/// Upload an image to a registry
///
/// Only what the registry lacks is sent; what it has in another of its repositories is mounted from there.
///
///   kiln push registry.example.com/team/app:1.2
///   kiln tag app registry.example.com/team/app && kiln push registry.example.com/team/app
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct PushArgs {
    /// Name of the image, which says where it goes
    #[arg(add = super::complete::images())]
    name: String,
    /// Upload all tags of the repository
    #[arg(short, long)]
    all_tags: bool,
    /// Upload the image of this platform only
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

/// Pushes, and prints what docker prints.
pub fn run(args: &PushArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    let name: Reference = args.name.parse().map_err(|e| CliError::usage(format!("{e}")))?;
    if name.digest().is_some() {
        return Err(CliError::usage(format!(
            "{name}: an image is pushed by its name: a digest follows from its content"
        ))
        .with_hint("kiln tag IMAGE NAME gives it a name"));
    }
    if args.all_tags && name.tag().is_some() {
        return Err(CliError::usage("--all-tags takes a name without a tag"));
    }
    let engine = environment.engine()?;
    let images = chosen(&engine, &name, args.all_tags)?;
    let _stop = stop_on_signal(engine.registry.canceller());
    if !args.tls_verify {
        engine.registry.allow_insecure(name.registry());
    }
    if !args.quiet {
        if !args.all_tags && name.tag().is_none() {
            eprintln!("Using default tag: latest");
        }
        eprintln!("The push refers to repository [{}]", name.name());
    }
    for (name, target) in &images {
        let target = match &args.platform {
            Some(platform) => one_platform(&engine, target, platform)?,
            None => target.clone(),
        };
        push(&engine, name, &target, (args.quiet, environment))?;
        match args.quiet {
            true => println!("{name}"),
            false => println!("{}: digest: {} size: {}", name.tag().unwrap_or("latest"), target.digest, target.size),
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn chosen(engine: &Engine, name: &Reference, all: bool) -> Result<Vec<(Reference, Descriptor)>, CliError> {
    let images = engine.store.images();
    let unknown = || {
        CliError::failed(format!("there is no image {} here", name.familiar()))
            .with_hint("`kiln images` lists what is here, `kiln tag IMAGE NAME` gives an image another name")
    };
    if !all {
        let name = name.clone().with_default_tag();
        let image = images.resolve(&name).map_err(kiln_engine::Error::from)?.ok_or_else(unknown)?;
        return Ok(vec![(name, image.target)]);
    }
    let list = images.list().map_err(kiln_engine::Error::from)?.into_iter();
    let of_repository = list.filter_map(|i| i.name.map(|n| (n, i.target)));
    let chosen: Vec<_> = of_repository.filter(|(n, _)| n.name() == name.name() && n.tag().is_some()).collect();
    if chosen.is_empty() { Err(unknown()) } else { Ok(chosen) }
}

fn one_platform(engine: &Engine, target: &Descriptor, platform: &Platform) -> Result<Descriptor, CliError> {
    let index = engine.store.images().index(target).map_err(kiln_engine::Error::from)?;
    match index {
        None => Ok(target.clone()),
        Some(index) => index
            .select(platform)
            .cloned()
            .ok_or_else(|| CliError::failed(format!("the image has no variant for {platform}"))),
    }
}

fn push(
    engine: &Arc<Engine>,
    name: &Reference,
    target: &Descriptor,
    (quiet, environment): (bool, &Environment),
) -> Result<(), CliError> {
    let display = Display::transfer(Direction::Push, quiet);
    environment.notices().attach(Arc::clone(&display) as Arc<dyn EventSink>);
    let step = Steps::new(Arc::clone(&display) as Arc<dyn EventSink>).begin(&format!("push {name}"));
    let pushed = engine.push_image(name, target, false, &step);
    display.finish();
    Ok(step.conclude(pushed)?)
}
