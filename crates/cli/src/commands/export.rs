//! `kiln export`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use kiln_engine::containers::export;
use kiln_engine::request::Destination;

use super::containers::named;
use crate::environment::Environment;
use crate::error::CliError;

/// Write all files of a container as a tar stream
///
/// What is mounted in it is not included.
///
/// Examples:
///   kiln export web > web.tar
///   kiln export -o web.tar web
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct ExportArgs {
    /// Container: a name, an ID, or its beginning
    #[arg(add = super::complete::containers())]
    container: String,
    /// File to write, in place of standard output
    #[arg(short, long, value_name = "FILE", value_hint = clap::ValueHint::AnyPath)]
    output: Option<PathBuf>,
}

/// Writes the archive.
pub fn run(args: &ExportArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    if args.output.is_none() && std::io::stdout().is_terminal() {
        return Err(CliError::usage("an archive is not written to a terminal").with_hint("use -o FILE, or a pipe"));
    }
    let mut container = named(environment, &args.container)?;
    let engine = environment.engine_beside(&container)?;
    let dest = args.output.clone().map_or(Destination::Stdout, Destination::Path);
    export(&engine, &mut container, &dest)?;
    Ok(ExitCode::SUCCESS)
}
