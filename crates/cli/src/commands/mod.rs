//! The commands. Each file has the arguments of one command, whose documentation is its `--help`, and runs it.

mod again;
mod base;
mod base_print;
pub mod budget;
mod build;
mod build_cache;
mod build_limits;
mod build_output;
mod build_request;
mod build_run;
mod cache;
mod cache_export;
mod cache_import;
mod cache_ls;
mod cache_rm;
mod call_json;
mod check;
mod check_leaks;
mod complete;
pub mod completions;
mod confirm;
mod container;
mod container_json;
mod container_logs;
mod container_prune;
mod containers;
mod cp;
mod create;
mod debug;
mod df;
mod diff;
mod exec;
mod export;
mod filters;
mod history;
mod image;
mod image_prune;
mod images;
mod import;
mod inspect;
mod load;
mod login;
mod logout;
mod logs;
mod manifest;
mod monitor;
mod parse;
mod prune;
mod ps;
mod pull;
mod push;
mod referrers;
mod rm;
mod rmi;
mod run;
mod save;
mod ssh_keys;
mod start;
mod stop;
mod system;
mod tag;
mod version;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::environment::Environment;
use crate::error::CliError;

/// Build small, trustworthy container images and run them, without a daemon and without root
///
/// The store is in /var/lib/kiln for root and in ~/.local/share/kiln for others, or where --root or KILN_ROOT say.
#[derive(Debug, Parser)]
#[command(
    name = "kiln",
    version,
    propagate_version = true,
    args_override_self = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Cli {
    /// Directory of the store
    #[arg(long, global = true, value_name = "DIRECTORY", env = "KILN_ROOT", value_hint = clap::ValueHint::DirPath)]
    root: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(visible_alias = "b")]
    Build(Box<build::BuildArgs>),
    Run(Box<run::RunArgs>),
    Create(Box<create::CreateArgs>),
    Start(start::StartArgs),
    Stop(stop::StopArgs),
    Restart(stop::RestartArgs),
    Kill(stop::KillArgs),
    Wait(stop::WaitArgs),
    #[command(hide = true)]
    ContainerMonitor(monitor::MonitorArgs),
    Exec(exec::ExecArgs),
    Cp(cp::CpArgs),
    Ps(ps::PsArgs),
    Rm(rm::RmArgs),
    Diff(diff::DiffArgs),
    Export(export::ExportArgs),
    Container(container::ContainerGroup),
    Debug(debug::DebugArgs),
    Pull(pull::PullArgs),
    Push(push::PushArgs),
    Base(Box<base::BaseArgs>),
    Images(images::ImagesArgs),
    History(history::HistoryArgs),
    Inspect(inspect::InspectArgs),
    Tag(tag::TagArgs),
    Rmi(rmi::RmiArgs),
    Save(save::SaveArgs),
    Load(load::LoadArgs),
    Import(import::ImportArgs),
    Image(image::ImageArgs),
    Cache(cache::CacheArgs),
    Prune(prune::PruneArgs),
    System(system::SystemArgs),
    #[command(hide = true, alias = "buildx")]
    Builder(system::BuilderArgs),
    Login(login::LoginArgs),
    Logout(logout::LogoutArgs),
    Manifest(manifest::ManifestArgs),
    Referrers(referrers::ReferrersArgs),
    Logs(logs::LogsArgs),
    CheckLeaks(check_leaks::CheckLeaksArgs),
    Completions(completions::CompletionsArgs),
    Version(version::VersionArgs),
}

/// Runs the command.
pub fn run(cli: Cli) -> Result<ExitCode, CliError> {
    let environment = Environment::new(cli.root);
    match cli.command {
        Command::Build(args) => build_run::run(&args, &environment),
        Command::Run(args) => run::run(&args, &environment),
        Command::Create(args) => create::run(&args, &environment),
        Command::Start(args) => start::run(&args, &environment),
        Command::Stop(args) => stop::stop(&args, &environment),
        Command::Restart(args) => stop::restart(&args, &environment),
        Command::Kill(args) => stop::kill(&args, &environment),
        Command::Wait(args) => stop::wait(&args, &environment),
        Command::ContainerMonitor(args) => monitor::run(&args, &environment),
        Command::Exec(args) => exec::run(&args, &environment),
        Command::Cp(args) => cp::run(&args, &environment),
        Command::Ps(args) => ps::run(&args, &environment),
        Command::Rm(args) => rm::run(&args, &environment),
        Command::Diff(args) => diff::run(&args, &environment),
        Command::Export(args) => export::run(&args, &environment),
        Command::Container(args) => container::run(&args, &environment),
        Command::Debug(args) => debug::run(&args, &environment),
        Command::Pull(args) => pull::run(&args, &environment),
        Command::Push(args) => push::run(&args, &environment),
        Command::Base(args) => base::run(&args, &environment),
        Command::Images(args) => images::run(&args, &environment),
        Command::History(args) => history::run(&args, &environment),
        Command::Inspect(args) => inspect::run(&args, &environment),
        Command::Tag(args) => tag::run(&args, &environment),
        Command::Rmi(args) => rmi::run(&args, &environment),
        Command::Save(args) => save::run(&args, &environment),
        Command::Load(args) => load::run(&args, &environment),
        Command::Import(args) => import::run(&args, &environment),
        Command::Cache(args) => cache::run(&args, &environment),
        Command::Prune(args) => prune::run(&args, &environment),
        Command::System(args) => system::run(&args, &environment),
        Command::Builder(args) => system::run_builder(&args, &environment),
        Command::Image(args) => image::run(&args, &environment),
        Command::Login(args) => login::run(&args, &environment),
        Command::Logout(args) => logout::run(&args, &environment),
        Command::Manifest(args) => manifest::run(&args, &environment),
        Command::Referrers(args) => referrers::run(&args, &environment),
        Command::Logs(args) => logs::run(&args, &environment),
        Command::CheckLeaks(args) => check_leaks::run(&args, &environment),
        Command::Completions(args) => completions::run(&args),
        Command::Version(args) => version::run(&args),
    }
}
