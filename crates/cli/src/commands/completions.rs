//! `kiln completions`.

use std::process::ExitCode;

use clap::{Args, CommandFactory};

use crate::error::CliError;

/// Print a completion script for a shell
///
/// For bash: source <(kiln completions bash)
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    shell: clap_complete::Shell,
}

/// Prints the script.
pub fn run(args: &CompletionsArgs) -> Result<ExitCode, CliError> {
    clap_complete::generate(args.shell, &mut super::Cli::command(), "kiln", &mut std::io::stdout());
    Ok(ExitCode::SUCCESS)
}
