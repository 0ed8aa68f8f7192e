//! `kiln container`: docker's group of the commands about containers.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{container_prune, cp, create, diff, exec, export, inspect, logs, ps, rm, start, stop};
use crate::environment::Environment;
use crate::error::CliError;

/// Manage containers
#[derive(Debug, Args)]
#[command(arg_required_else_help = true, subcommand_required = true)]
pub struct ContainerGroup {
    #[command(subcommand)]
    command: ContainerCommand,
}

#[derive(Debug, Subcommand)]
enum ContainerCommand {
    Cp(cp::CpArgs),
    Create(Box<create::CreateArgs>),
    Diff(diff::DiffArgs),
    Exec(exec::ExecArgs),
    Export(export::ExportArgs),
    Inspect(inspect::InspectArgs),
    Kill(stop::KillArgs),
    Logs(logs::LogsArgs),
    #[command(visible_aliases = ["list", "ps"])]
    Ls(ps::PsArgs),
    Prune(container_prune::ContainerPruneArgs),
    Restart(stop::RestartArgs),
    #[command(visible_alias = "remove")]
    Rm(rm::RmArgs),
    Run(Box<super::run::RunArgs>),
    Start(start::StartArgs),
    Stop(stop::StopArgs),
    Wait(stop::WaitArgs),
}

/// Runs the command.
pub fn run(args: &ContainerGroup, environment: &Environment) -> Result<ExitCode, CliError> {
    match &args.command {
        ContainerCommand::Cp(args) => cp::run(args, environment),
        ContainerCommand::Create(args) => create::run(args, environment),
        ContainerCommand::Diff(args) => diff::run(args, environment),
        ContainerCommand::Exec(args) => exec::run(args, environment),
        ContainerCommand::Export(args) => export::run(args, environment),
        ContainerCommand::Inspect(args) => inspect::run_containers(args, environment),
        ContainerCommand::Kill(args) => stop::kill(args, environment),
        ContainerCommand::Logs(args) => logs::run_of_containers(args, environment),
        ContainerCommand::Ls(args) => ps::run(args, environment),
        ContainerCommand::Prune(args) => container_prune::run(args, environment),
        ContainerCommand::Restart(args) => stop::restart(args, environment),
        ContainerCommand::Rm(args) => rm::run(args, environment),
        ContainerCommand::Run(args) => super::run::run(args, environment),
        ContainerCommand::Start(args) => start::run(args, environment),
        ContainerCommand::Stop(args) => stop::stop(args, environment),
        ContainerCommand::Wait(args) => stop::wait(args, environment),
    }
}
