//! `kiln system` and `kiln builder`: docker's groups.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{df, prune};
use crate::environment::Environment;
use crate::error::CliError;

/// Show and free disk space
#[derive(Debug, Args)]
#[command(arg_required_else_help = true, subcommand_required = true)]
pub struct SystemArgs {
    #[command(subcommand)]
    command: SystemCommand,
}

#[derive(Debug, Subcommand)]
enum SystemCommand {
    Df(df::DfArgs),
    Prune(prune::PruneArgs),
}

/// Runs the command.
pub fn run(args: &SystemArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    match &args.command {
        SystemCommand::Df(args) => df::run(args, environment),
        SystemCommand::Prune(args) => prune::run(args, environment),
    }
}

/// Build, and free the build cache
#[derive(Debug, Args)]
#[command(arg_required_else_help = true, subcommand_required = true)]
pub struct BuilderArgs {
    #[command(subcommand)]
    command: BuilderCommand,
}

#[derive(Debug, Subcommand)]
enum BuilderCommand {
    Build(Box<super::build::BuildArgs>),
    Prune(prune::PruneArgs),
}

/// Runs the command.
pub fn run_builder(args: &BuilderArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    match &args.command {
        BuilderCommand::Build(args) => super::build_run::run(args, environment),
        BuilderCommand::Prune(args) => prune::run_of_cache(args, environment),
    }
}
