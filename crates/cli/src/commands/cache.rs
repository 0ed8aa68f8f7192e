//! `kiln cache`: the group of the commands about cache mounts.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{cache_export, cache_import, cache_ls, cache_rm};
use crate::environment::Environment;
use crate::error::CliError;

/// Manage cache mounts: what RUN --mount=type=cache keeps between builds
///
/// Builds carry them between machines: --cache-to type=…,mounts=all and --cache-from. `kiln prune` removes the build cache.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true, subcommand_required = true)]
pub struct CacheArgs {
    #[command(subcommand)]
    command: CacheCommand,
}

#[derive(Debug, Subcommand)]
enum CacheCommand {
    #[command(visible_alias = "list")]
    Ls(cache_ls::CacheLsArgs),
    #[command(visible_alias = "remove")]
    Rm(cache_rm::CacheRmArgs),
    Export(cache_export::CacheExportArgs),
    Import(cache_import::CacheImportArgs),
}

/// Runs the command.
pub fn run(args: &CacheArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    match &args.command {
        CacheCommand::Ls(args) => cache_ls::run(args, environment),
        CacheCommand::Rm(args) => cache_rm::run(args, environment),
        CacheCommand::Export(args) => cache_export::run(args, environment),
        CacheCommand::Import(args) => cache_import::run(args, environment),
    }
}
