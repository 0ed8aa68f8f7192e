//! `kiln start`.

use std::process::ExitCode;

use clap::Args;

use super::containers::{named, run_attached};
use crate::environment::Environment;
use crate::error::CliError;

/// Start a container that does not run
///
/// Its command runs in the foreground, over the files as they were left.
///
/// Examples:
///   kiln create --name tests app make check
///   kiln start -a tests
///   kiln start -ai shell
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct StartArgs {
    /// Container: a name, an ID, or its beginning
    container: String,
    /// Show what it writes, and pass signals on
    #[arg(short, long)]
    attach: bool,
    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,
}

/// Starts it.
pub fn run(args: &StartArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    if !args.attach && !args.interactive {
        return Err(CliError::usage("containers in the background are not there yet")
            .with_hint("start --attach runs it in the foreground"));
    }
    let mut container = named(environment, &args.container)?;
    let engine = environment.engine()?;
    let interactive = args.interactive && container.config.interactive;
    run_attached(&engine, &mut container, interactive, None)
}
