//! `kiln create`.

use std::process::ExitCode;

use clap::Args;
use kiln_engine::run::create;

use super::run::ContainerArgs;
use crate::environment::Environment;
use crate::error::{CliError, code};
use crate::output;

/// Make a container without running it
///
/// Prints its ID. Files can be copied out of it and into it before it runs, or without ever running it.
///
/// Examples:
///   kiln create --name extract app
///   kiln cp extract:/usr/local/bin/app .
///   kiln rm extract
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct CreateArgs {
    #[command(flatten)]
    container: ContainerArgs,
    /// Image: a name, or the beginning of an ID
    #[arg(add = super::complete::images())]
    image: String,
    /// Command and its arguments, in place of the image's
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Makes the container.
pub fn run(args: &CreateArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    let request = args.container.request(&args.image, &args.command)?;
    let engine = environment.engine()?;
    let container = args.container.make(|| create(&engine, &request)).map_err(|e| e.with_code(code::FAILED))?;
    output::print(&format!("{}\n", container.id()))?;
    Ok(ExitCode::SUCCESS)
}
