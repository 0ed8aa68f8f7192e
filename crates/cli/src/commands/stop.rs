//! `kiln stop`, `kill`, `wait` and `restart`: from outside, by signals to the container's own process.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use kiln_engine::Error;
use kiln_engine::container::{Container, Status};

use super::containers::{each, named, signal};
use super::monitor::start_detached;
use crate::environment::Environment;
use crate::error::CliError;
use crate::output;

/// Ask containers to stop, and kill those that do not
///
/// Examples:
///   kiln stop web
///   kiln stop -t 60 db
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct StopArgs {
    #[command(flatten)]
    patience: Patience,
    /// Containers: names, IDs, or their beginnings
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Stop containers that run, and start them
///
/// Examples:
///   kiln restart web
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct RestartArgs {
    #[command(flatten)]
    patience: Patience,
    /// Containers: names, IDs, or their beginnings
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// How a container is asked, and for how long.
#[derive(Debug, Args)]
struct Patience {
    /// Seconds until it is killed; -1 for never
    #[arg(
        short,
        long,
        visible_alias = "timeout",
        value_name = "SECONDS",
        default_value_t = 10,
        allow_negative_numbers = true
    )]
    time: i64,
    /// Signal in place of the container's own, which is TERM unless its image says otherwise
    #[arg(short, long, value_name = "SIGNAL")]
    signal: Option<String>,
}

/// Send containers a signal
///
/// Examples:
///   kiln kill web
///   kiln kill -s HUP web
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct KillArgs {
    /// The signal
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL")]
    signal: String,
    /// Containers: names, IDs, or their beginnings
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Wait until containers have ended, and print their exit codes
///
/// Examples:
///   kiln run -d --name job app make; kiln wait job
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct WaitArgs {
    /// Containers: names, IDs, or their beginnings
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// `kiln stop`.
pub fn stop(args: &StopArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    each(&args.containers, |name| args.patience.stop(&named(environment, name)?).map(|()| true))
}

/// `kiln restart`.
pub fn restart(args: &RestartArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    each(&args.containers, |name| {
        let container = named(environment, name)?;
        args.patience.stop(&container)?;
        start_detached(&container, environment).map(|()| true)
    })
}

impl Patience {
    fn stop(&self, container: &Container) -> Result<(), CliError> {
        let own = container.config.stop_signal.as_deref().unwrap_or("TERM");
        let asked = signal(self.signal.as_deref().unwrap_or(own))?;
        let limit = u64::try_from(self.time).ok().map(Duration::from_secs);
        if container.signal(asked).map_err(Error::from)? && !container.wait(limit).map_err(Error::from)? {
            super::rm::kill(container)?;
        }
        Ok(())
    }
}

/// `kiln kill`.
pub fn kill(args: &KillArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    let number = signal(&args.signal)?;
    each(&args.containers, |name| {
        let container = named(environment, name)?;
        if !container.signal(number).map_err(Error::from)? {
            return Err(CliError::failed(format!("cannot kill container {name}: it is not running")));
        }
        if number == libc::SIGKILL {
            super::rm::kill(&container)?;
        }
        Ok(true)
    })
}

/// `kiln wait`.
pub fn wait(args: &WaitArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    for name in &args.containers {
        let mut container = named(environment, name)?;
        if container.status() == Status::Running {
            container.wait(None).map_err(Error::from)?;
            container.reload().map_err(|_| {
                CliError::failed(format!("the container {name} has ended, and its exit code went with it"))
                    .with_hint("leave --rm out to keep it")
            })?;
        }
        output::print(&format!("{}\n", container.exit_code()))?;
    }
    Ok(ExitCode::SUCCESS)
}
