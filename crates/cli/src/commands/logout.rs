//! `kiln logout`.

use std::process::ExitCode;

use clap::Args;
use kiln_engine::Error;

use crate::environment::Environment;
use crate::error::CliError;

/// Forget the credentials for a registry
#[derive(Debug, Args)]
pub struct LogoutArgs {
    /// Registry; Docker Hub if absent
    #[arg(default_value = "docker.io", hide_default_value = true)]
    server: String,
}

/// Removes them from docker's file, or from the helper that it names.
pub fn run(args: &LogoutArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    match environment.client().logout(&args.server).map_err(Error::from)? {
        true => println!("Removing login credentials for {}", args.server),
        false => println!("Not logged in to {}", args.server),
    }
    Ok(ExitCode::SUCCESS)
}
