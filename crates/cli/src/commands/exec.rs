//! `kiln exec`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use kiln_engine::container::Status;
use kiln_engine::containers::{Connection, ExecRequest, Streams, exec, not_running};

use super::containers::{named, passed_on};
use super::run::variables;
use crate::environment::Environment;
use crate::error::{CliError, code};
use crate::foreground::{Foreground, terminal_size};

/// Run another command in a container that runs
///
/// It sees what the container's own command sees and may do no more than that. Its exit code is passed on; 126 means
/// that it can't be executed, 127 that there is no such command.
///
/// Examples:
///   kiln exec -it web bash
///   kiln exec -u postgres db psql -c 'select 1'
///   kiln exec -i web sh -c 'cat > /etc/motd' < motd
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct ExecArgs {
    /// Keep standard input open
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// Set a variable; without `=VALUE` it is taken from the environment
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// File with lines NAME=VALUE or NAME, and # comments
    #[arg(long = "env-file", value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    env_files: Vec<PathBuf>,
    /// User in place of the container's, `name|uid[:group|gid]`
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// Working directory in place of the container's
    #[arg(short, long, value_name = "PATH")]
    workdir: Option<String>,
    /// Container: a name, an ID, or its beginning
    #[arg(add = super::complete::running_containers())]
    container: String,
    /// Command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    command: Vec<String>,
}

/// Runs the command.
pub fn run(args: &ExecArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    let request = ExecRequest {
        command: args.command.clone(),
        env: variables(&args.env_files, &args.env)?,
        workdir: args.workdir.clone(),
        user: args.user.clone(),
    };
    let container = named(environment, &args.container)?;
    if container.status() != Status::Running {
        return Err(not_running(&container).into());
    }
    Foreground::check(args.interactive, args.tty)?;
    let engine = environment.engine_beside(&container)?;
    let foreground = Foreground::new(args.interactive, args.tty)?;
    let streams = Streams::own(args.interactive, args.tty.then(terminal_size))?;
    let connection = Connection { streams, attach: &foreground, cancel: foreground.cancel() };
    let exit = exec(&engine, &container, &request, connection);
    foreground.detach();
    passed_on(exit, code::FAILED)
}
