//! `kiln rm`, the same as `kiln container rm`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use kiln_engine::Error;
use kiln_engine::container::{Container, Error as ContainerError};
use kiln_engine::store::Store;

use super::containers::{each, named};
use crate::environment::Environment;
use crate::error::CliError;

/// Remove containers, with their files
///
/// Examples:
///   kiln rm extract
///   kiln rm -f $(kiln ps -aq)
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct RmArgs {
    /// Containers: names, IDs, or their beginnings
    #[arg(required = true, value_name = "CONTAINER", add = super::complete::containers())]
    containers: Vec<String>,
    /// Kill those that run; do not fail for what is not there
    #[arg(short, long)]
    force: bool,
    /// Also volumes without a name, of which there are none
    #[arg(short, long)]
    volumes: bool,
}

/// For how long a killed container may take to be gone.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often one is killed that others start again and again.
const MOST_ATTEMPTS: u32 = 10;

/// Removes them.
pub fn run(args: &RmArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    // Signals first: after that we are in a user namespace, beside those of the containers.
    let mut found = Vec::new();
    for name in &args.containers {
        let container = named(environment, name);
        if let (Ok(container), true) = (&container, args.force) {
            // What stands against it is told when it is tried again.
            _ = kill(container);
        }
        found.push((name, container));
    }
    let store = environment.store()?;
    store.use_reserve();
    each(found, |(name, container)| match container {
        Ok(container) => remove(&store, container, args.force).map(|()| Some(name.clone())),
        Err(e) if args.force => {
            // Docker names what it did not find, and goes on.
            e.show();
            Ok(None)
        }
        Err(e) => Err(e),
    })
}

/// Ends a container that runs, and waits for that.
pub fn kill(container: &Container) -> Result<(), CliError> {
    if container.signal(libc::SIGKILL).map_err(Error::from)? {
        container.wait(Some(PATIENCE)).map_err(Error::from)?;
    }
    Ok(())
}

/// Removes one that does not run; one that was started meanwhile, if that is wanted, too.
fn remove(store: &Store, mut container: Container, force: bool) -> Result<(), CliError> {
    for attempt in 0.. {
        match container.lock(store) {
            Ok(_lock) => {
                store.containers().remove(container.id()).map_err(Error::from)?;
                break;
            }
            // It went with its command.
            Err(ContainerError::Missing(_)) => break,
            Err(ContainerError::Running(_)) if force && attempt < MOST_ATTEMPTS => kill(&container)?,
            Err(ContainerError::Running(name)) => {
                return Err(CliError::failed(format!("cannot remove container {name:?}: container is running"))
                    .with_hint("stop it before, or remove it with --force"));
            }
            Err(e) => return Err(Error::from(e).into()),
        }
    }
    Ok(())
}
