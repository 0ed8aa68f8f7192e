//! `kiln images`.

use std::process::ExitCode;

use clap::Args;
use kiln_engine::Engine;
use kiln_engine::oci::Platform;
use kiln_engine::store::Image;

use super::table;
use crate::environment::Environment;
use crate::error::CliError;
use crate::progress::human_size;

/// List images
#[derive(Debug, Args)]
pub struct ImagesArgs {
    /// Only images of this name
    name: Option<String>,
    /// Print IDs only
    #[arg(short, long)]
    quiet: bool,
    /// Do not shorten IDs
    #[arg(long)]
    no_trunc: bool,
    /// Show digests
    #[arg(long)]
    digests: bool,
}

/// Prints the list.
pub fn run(args: &ImagesArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    let engine = environment.engine()?;
    let mut rows = Vec::new();
    let wanted = args.name.as_ref().map(|n| n.parse::<kiln_engine::oci::Reference>()).transpose();
    let wanted = wanted.map_err(|e| CliError::usage(e.to_string()))?;
    for image in engine.store.images().list().map_err(kiln_engine::Error::from)? {
        let fits = wanted.as_ref().is_none_or(|w| {
            image.name.as_ref().is_some_and(|n| n.name() == w.name() && (w.tag().is_none() || n.tag() == w.tag()))
        });
        if fits {
            rows.push(row(&engine, &image, args)?);
        }
    }
    if args.quiet {
        rows.iter().filter_map(|r| r.get(if args.digests { 3 } else { 2 })).for_each(|id| println!("{id}"));
        return Ok(ExitCode::SUCCESS);
    }
    let head: &[&str] = match args.digests {
        true => &["REPOSITORY", "TAG", "DIGEST", "IMAGE ID", "CREATED", "SIZE"],
        false => &["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"],
    };
    table::print(head, &rows);
    Ok(ExitCode::SUCCESS)
}

fn row(engine: &Engine, image: &Image, args: &ImagesArgs) -> Result<Vec<String>, CliError> {
    let view = engine.store.images().manifest(&image.target, &Platform::host()).ok();
    let id = view.as_ref().map_or(image.target.digest, |v| v.manifest.config.digest);
    let created = view.as_ref().and_then(|v| v.config.created);
    let size = view.as_ref().map_or(Ok(0), |v| engine.image_size(&v.manifest, &v.config))?;
    let none = || "<none>".to_owned();
    let mut row = vec![
        image.name.as_ref().map_or_else(none, |n| n.familiar_name()),
        image.name.as_ref().and_then(|n| n.tag().map(str::to_owned)).unwrap_or_else(none),
    ];
    if args.digests {
        row.push(image.target.digest.to_string());
    }
    row.push(if args.no_trunc { id.to_string() } else { id.short() });
    row.push(created.map_or_else(|| "N/A".to_owned(), table::ago));
    row.push(human_size(size));
    Ok(row)
}
