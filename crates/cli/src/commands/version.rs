//! `kiln version`.

use std::process::ExitCode;

use clap::Args;
use kiln_engine::oci::Platform;

use crate::error::CliError;
use crate::output;

/// Show the version
#[derive(Debug, Args)]
pub struct VersionArgs {}

/// Prints it.
pub fn run(_: &VersionArgs) -> Result<ExitCode, CliError> {
    output::print(&format!("kiln {} {}\n", env!("CARGO_PKG_VERSION"), Platform::host()))?;
    Ok(ExitCode::SUCCESS)
}
