//! `kiln diff`.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use kiln_engine::container_diff::{Change, changes};

use super::containers::named;
use crate::environment::Environment;
use crate::error::CliError;
use crate::output;

/// List what a container changed of its image's files: A is added, C changed, D deleted
///
/// Examples:
///   kiln diff web
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct DiffArgs {
    /// Container: a name, an ID, or its beginning
    #[arg(add = super::complete::containers())]
    container: String,
}

/// Prints the list.
pub fn run(args: &DiffArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    let container = named(environment, &args.container)?;
    let engine = environment.engine()?;
    let mut text = String::new();
    for (path, change) in changes(&engine, &container)? {
        let letter = match change {
            Change::Added => 'A',
            Change::Changed => 'C',
            Change::Deleted => 'D',
        };
        text.push_str(&format!("{letter} {}\n", Path::new("/").join(path).display()));
    }
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}
