//! `kiln image`: docker's group of the commands about images.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{history, image_prune, images, import, inspect, load, pull, push, rmi, save, tag};
use crate::environment::Environment;
use crate::error::CliError;

/// Manage images
#[derive(Debug, Args)]
#[command(arg_required_else_help = true, subcommand_required = true)]
pub struct ImageArgs {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    Build(Box<super::build::BuildArgs>),
    History(history::HistoryArgs),
    Import(import::ImportArgs),
    Inspect(inspect::InspectArgs),
    Load(load::LoadArgs),
    #[command(visible_alias = "list")]
    Ls(images::ImagesArgs),
    Prune(image_prune::ImagePruneArgs),
    Pull(pull::PullArgs),
    Push(push::PushArgs),
    #[command(visible_alias = "remove")]
    Rm(rmi::RmiArgs),
    Save(save::SaveArgs),
    Tag(tag::TagArgs),
}

/// Runs the command.
pub fn run(args: &ImageArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    match &args.command {
        ImageCommand::Build(args) => super::build_run::run(args, environment),
        ImageCommand::History(args) => history::run(args, environment),
        ImageCommand::Import(args) => import::run(args, environment),
        ImageCommand::Load(args) => load::run(args, environment),
        ImageCommand::Save(args) => save::run(args, environment),
        ImageCommand::Inspect(args) => inspect::run_images(args, environment),
        ImageCommand::Ls(args) => images::run(args, environment),
        ImageCommand::Prune(args) => image_prune::run(args, environment),
        ImageCommand::Pull(args) => pull::run(args, environment),
        ImageCommand::Push(args) => push::run(args, environment),
        ImageCommand::Rm(args) => rmi::run(args, environment),
        ImageCommand::Tag(args) => tag::run(args, environment),
    }
}
