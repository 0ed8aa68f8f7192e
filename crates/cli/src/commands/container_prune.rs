//! `kiln container prune`.

use std::process::ExitCode;

use clap::Args;
use kiln_engine::Error;
use kiln_engine::container::{Status, list};

use super::confirm::confirm;
use crate::environment::Environment;
use crate::error::CliError;
use crate::output;
use crate::progress::human_size;

/// Remove all containers that do not run
///
/// Examples:
///   kiln container prune
///   kiln container prune --force
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct ContainerPruneArgs {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

/// Removes them.
pub fn run(args: &ContainerPruneArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    let store = environment.store()?;
    store.use_reserve();
    if !args.force && !confirm("This will remove all stopped containers.")? {
        return Ok(ExitCode::SUCCESS);
    }
    let (mut ids, mut bytes) = (String::new(), 0);
    for container in list(store.root()).map_err(Error::from)? {
        if container.status() == Status::Running {
            continue;
        }
        // One that is being started or copied from is in use.
        let Some(_lock) = store.containers().try_lock(container.id()).map_err(Error::from)? else { continue };
        bytes += store.containers().remove(container.id()).map_err(Error::from)?.bytes;
        ids.push_str(&format!("{}\n", container.id()));
    }
    if !ids.is_empty() {
        ids = format!("Deleted Containers:\n{ids}\n");
    }
    output::print(&format!("{ids}Total reclaimed space: {}\n", human_size(bytes)))?;
    Ok(ExitCode::SUCCESS)
}
