//! `kiln stop`, `kill`, `wait` and `restart`: from outside, by signals to the container's own process.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use kiln_engine::Error;
use kiln_engine::container::{Container, Status};

use super::containers::{each, named, signal};
use super::monitor::start_detached;
use crate::environment::Environment;
use crate::error::CliError;

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
    #[arg(required = true, value_name = "CONTAINER", add = super::complete::running_containers())]
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
    #[arg(required = true, value_name = "CONTAINER", add = super::complete::containers())]
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
    #[arg(required = true, value_name = "CONTAINER", add = super::complete::running_containers())]
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
    #[arg(required = true, value_name = "CONTAINER", add = super::complete::containers())]
    containers: Vec<String>,
}

/// A container that was asked to stop.
struct Asked {
    container: Container,
    /// It ran.
    ran: bool,
    /// When it is killed.
    until: Option<Instant>,
}

/// `kiln stop`.
pub fn stop(args: &StopArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    let asked = ask_all(&args.containers, |name| args.patience.ask(named(environment, name)?));
    each(asked, |(name, asked)| asked?.end().map(|_| Some(name.to_owned())))
}

/// `kiln restart`.
pub fn restart(args: &RestartArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    let asked = ask_all(&args.containers, |name| {
        let container = named(environment, name)?;
        if container.config.auto_remove {
            let why = "it was made with --rm, so it would be gone when it has stopped";
            return Err(CliError::failed(format!("cannot restart container {name}: {why}")));
        }
        args.patience.ask(container)
    });
    each(asked, |(name, asked)| {
        start_detached(&asked?.end()?, environment)?;
        Ok(Some(name.to_owned()))
    })
}

/// All are asked before any is waited for: together they take as long as the slowest.
fn ask_all(names: &[String], ask: impl Fn(&str) -> Result<Asked, CliError>) -> Vec<(&str, Result<Asked, CliError>)> {
    names.iter().map(|name| (name.as_str(), ask(name))).collect()
}

impl Patience {
    fn ask(&self, container: Container) -> Result<Asked, CliError> {
        // One that an image names and that there is not is docker's default, too.
        let own =
            || container.config.stop_signal.as_deref().and_then(|name| signal(name).ok()).unwrap_or(libc::SIGTERM);
        let asked = self.signal.as_deref().map_or_else(|| Ok(own()), signal)?;
        let ran = container.signal(asked).map_err(Error::from)?;
        let limit = u64::try_from(self.time).ok().map(Duration::from_secs);
        Ok(Asked { container, ran, until: limit.and_then(|limit| Instant::now().checked_add(limit)) })
    }
}

impl Asked {
    /// Waits until it has ended, and kills it when that takes too long.
    fn end(self) -> Result<Container, CliError> {
        let left = self.until.map(|until| until.saturating_duration_since(Instant::now()));
        if self.ran && !self.container.wait(left).map_err(Error::from)? {
            super::rm::kill(&self.container)?;
        }
        Ok(self.container)
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
        Ok(Some(name.clone()))
    })
}

/// `kiln wait`.
pub fn wait(args: &WaitArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    each(&args.containers, |name| {
        let mut container = named(environment, name)?;
        if container.status() != Status::Created && container.state.exit_code.is_none() {
            container.wait(None).map_err(Error::from)?;
            container.reload().map_err(|_| {
                CliError::failed(format!("the container {name} has ended, and its exit code went with it"))
                    .with_hint("leave --rm out to keep it")
            })?;
        }
        Ok(Some(container.exit_code().to_string()))
    })
}
