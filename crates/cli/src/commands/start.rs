//! `kiln start`.

use std::process::ExitCode;

use clap::Args;
use kiln_engine::container::Status;

use super::containers::{each, named, run_attached};
use super::monitor::start_detached;
use crate::environment::Environment;
use crate::error::CliError;

/// Start containers that do not run
///
/// They run in the background, over the files as they were left; with --attach one runs in the foreground, and its exit code
/// is passed on.
///
/// Examples:
///   kiln start web
///   kiln start -a tests
///   kiln start -ai shell
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct StartArgs {
    /// Containers: names, IDs, or their beginnings
    #[arg(required = true, value_name = "CONTAINER", add = super::complete::idle_containers())]
    containers: Vec<String>,
    /// Show what it writes, and pass signals on
    #[arg(short, long)]
    attach: bool,
    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,
}

/// Starts them.
pub fn run(args: &StartArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    if !args.attach && !args.interactive {
        return each(&args.containers, |name| {
            let container = named(environment, name)?;
            if container.status() != Status::Running {
                start_detached(&container, environment)?;
            }
            Ok(Some(name.clone()))
        });
    }
    let [name] = args.containers.as_slice() else {
        return Err(CliError::usage("you cannot start and attach multiple containers at once"));
    };
    let mut container = named(environment, name)?;
    let engine = environment.engine()?;
    let interactive = args.interactive && container.config.interactive;
    run_attached(&engine, &mut container, interactive, None)
}
