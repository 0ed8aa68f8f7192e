//! `kiln rm`, the same as `kiln container rm`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use kiln_engine::Error;
use kiln_engine::container::Container;

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
    #[arg(required = true, value_name = "CONTAINER")]
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

/// Removes them.
pub fn run(args: &RmArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    // Signals first: after that we are in a user namespace, beside those of the containers.
    let mut found = Vec::new();
    for name in &args.containers {
        let container = named(environment, name);
        if let (Ok(container), true) = (&container, args.force) {
            kill(container)?;
        }
        found.push((name, container));
    }
    let store = environment.store()?;
    store.use_reserve();
    let mut found = found.into_iter();
    each(&args.containers, |_| match found.next() {
        Some((_, Ok(container))) => remove(&store, container).map(|()| true),
        Some((_, Err(e))) if args.force => {
            // Docker names what it did not find, and goes on.
            e.show();
            Ok(false)
        }
        Some((_, Err(e))) => Err(e),
        None => Ok(false),
    })
}

/// Ends a container that runs, and waits for that.
pub fn kill(container: &Container) -> Result<(), CliError> {
    if container.signal(libc::SIGKILL).map_err(Error::from)? {
        container.wait(Some(PATIENCE)).map_err(Error::from)?;
    }
    Ok(())
}

/// Removes one that does not run.
pub fn remove(store: &kiln_engine::store::Store, mut container: Container) -> Result<(), CliError> {
    let name = container.config.name.clone();
    let lock = match container.lock(store) {
        // It went with its command.
        Err(kiln_engine::container::Error::Missing(_)) => return Ok(()),
        lock => lock.map_err(Error::from)?,
    };
    if lock.is_none() {
        return Err(CliError::failed(format!("cannot remove container {name:?}: container is running"))
            .with_hint("stop it before, or remove it with --force"));
    }
    store.containers().remove(container.id()).map_err(Error::from)?;
    Ok(())
}
