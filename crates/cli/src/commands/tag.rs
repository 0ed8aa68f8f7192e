//! `kiln tag`, the same as `kiln image tag`.

use std::process::ExitCode;

use clap::Args;
use kiln_engine::images::find;
use kiln_engine::oci::Reference;

use crate::environment::Environment;
use crate::error::CliError;

/// Give an image another name
///
/// A name that leads to another image is moved.
///
/// Examples:
///   kiln tag app:dev registry.example.com/team/app:1.2
///   kiln tag 3f2a91 app:old
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct TagArgs {
    /// Image: a name, or the beginning of an ID
    #[arg(add = super::complete::images())]
    source: String,
    /// The new name, `name[:tag]`
    #[arg(value_name = "NAME")]
    target: String,
}

/// Adds the name.
pub fn run(args: &TagArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    let name: Reference =
        args.target.parse().map_err(|e: kiln_engine::oci::ReferenceError| CliError::usage(e.to_string()))?;
    if name.digest().is_some() {
        return Err(CliError::usage(format!("{}: a name by digest can't be given, only a tag", args.target)));
    }
    let store = environment.store()?;
    let image = find(&store, &args.source)?;
    store.images().put(&name, &image.target).map_err(kiln_engine::Error::from)?;
    Ok(ExitCode::SUCCESS)
}
