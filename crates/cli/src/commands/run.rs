//! `kiln run`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use kiln_engine::run::{BindMount, DebugTools, Published, RunRequest, run_image};

use crate::environment::Environment;
use crate::error::{CliError, code};
use crate::foreground::{Foreground, terminal_size};

/// Run a command in a new container
///
/// The container is in the foreground, on the host's network, and gone afterwards. Its exit code is passed on; 125 means
/// that it could not be made, 126 that the command can't be executed, 127 that there is no such command.
///
/// Examples:
///   kiln run --rm -it debian:bookworm bash
///   kiln run --rm -v $PWD:/src -w /src gcc make
#[derive(Debug, Default, Args)]
#[command(verbatim_doc_comment)]
pub struct RunArgs {
    /// Image: a name, or the beginning of an ID
    image: String,
    /// Command and its arguments, in place of the image's
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
    /// Keep standard input open
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Remove the container afterwards; this is always so
    #[arg(long)]
    rm: bool,
    /// Run a small init as process 1, which reaps processes and passes signals on
    #[arg(long)]
    init: bool,
    /// Set a variable; without `=VALUE` it is taken from the environment
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// File with lines NAME=VALUE or NAME, and # comments
    #[arg(long = "env-file", value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    env_files: Vec<PathBuf>,
    /// Bind a directory or file, `SOURCE:TARGET[:ro]`
    #[arg(short, long = "volume", value_name = "SOURCE:TARGET")]
    volumes: Vec<String>,
    /// Working directory
    #[arg(short, long, value_name = "PATH")]
    workdir: Option<String>,
    /// User, `name|uid[:group|gid]`
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// Program in place of the image's entry point
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Network: host (the default) or none
    #[arg(long, value_name = "MODE", default_value = "host", alias = "net")]
    network: String,
    /// Host name
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Make the root read-only
    #[arg(long)]
    read_only: bool,
    /// Ports; on the host's network every port is reachable as it is, so PORT:PORT is accepted
    #[arg(short, long = "publish", value_name = "PORT:PORT")]
    publish: Vec<String>,
}

/// Runs the container.
pub fn run(args: &RunArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    start(args, None, environment)
}

impl RunArgs {
    /// A container in the foreground with the image's own settings.
    pub fn simple(image: &str, command: &[String], user: Option<String>) -> Self {
        Self { image: image.to_owned(), command: command.to_vec(), interactive: true, user, ..Self::default() }
    }
}

/// Runs a container, or with `debug` a shell in it.
pub fn start(args: &RunArgs, debug: Option<DebugTools>, environment: &Environment) -> Result<ExitCode, CliError> {
    let request = RunRequest { debug, ..request(args)? };
    let engine = environment.engine().map_err(|e| e.with_code(code::RUN_FAILED))?;
    let foreground = Foreground::new(args.interactive, args.tty)?;
    let exit = run_image(&engine, &request, &foreground, foreground.cancel());
    foreground.detach();
    match exit {
        Ok(code) => Ok(ExitCode::from(u8::try_from(code & 0xff).unwrap_or(code::RUN_FAILED))),
        Err(error) => {
            let code = match &error {
                kiln_engine::Error::Executor(e) => e.exit_code().and_then(|c| u8::try_from(c).ok()),
                kiln_engine::Error::Cancelled => Some(code::INTERRUPTED),
                _ => None,
            };
            Err(CliError::from(error).with_code(code.unwrap_or(code::RUN_FAILED)))
        }
    }
}

fn request(args: &RunArgs) -> Result<RunRequest, CliError> {
    let host_network = match args.network.as_str() {
        "host" | "default" | "" => true,
        "none" => false,
        other => return Err(CliError::usage(format!("--network {other}: use host or none"))),
    };
    let mut env = Vec::new();
    for file in &args.env_files {
        let text = std::fs::read_to_string(file).map_err(|e| {
            CliError::failed(format!("cannot read {}: {e}", file.display())).with_code(code::RUN_FAILED)
        })?;
        let lines = text.trim_start_matches('\u{feff}').lines().map(str::trim_start);
        env.extend(lines.filter(|l| !l.is_empty() && !l.starts_with('#')).filter_map(variable));
    }
    env.extend(args.env.iter().filter_map(|e| variable(e)));
    Ok(RunRequest {
        image: args.image.clone(),
        command: args.command.clone(),
        interactive: args.interactive,
        terminal: args.tty.then(terminal_size),
        init: args.init,
        env,
        mounts: args.volumes.iter().map(|v| volume(v)).collect::<Result<_, _>>()?,
        workdir: args.workdir.clone(),
        user: args.user.clone(),
        entrypoint: args.entrypoint.clone(),
        host_network,
        hostname: args.hostname.clone(),
        read_only: args.read_only,
        debug: None,
        published: args.publish.iter().map(|p| published(p)).collect::<Result<_, _>>()?,
    })
}

/// `NAME=VALUE`; the value of a name alone is the environment's.
fn variable(text: &str) -> Option<String> {
    match text.contains('=') {
        true => Some(text.to_owned()),
        false => std::env::var(text).ok().map(|v| format!("{text}={v}")),
    }
}

fn volume(text: &str) -> Result<BindMount, CliError> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, mode) = match parts[..] {
        [source, target] => (source, target, "rw"),
        [source, target, mode] => (source, target, mode),
        _ => return Err(CliError::usage(format!("--volume {text}: expected SOURCE:TARGET[:ro]"))),
    };
    if !source.contains('/') && source != "." {
        return Err(CliError::usage(format!("--volume {text}: named volumes are not supported, give a path")));
    }
    if !target.starts_with('/') {
        return Err(CliError::usage(format!("--volume {text}: the target must be an absolute path")));
    }
    let readonly = match mode {
        "ro" => true,
        "rw" | "z" | "Z" => false,
        other => return Err(CliError::usage(format!("--volume {text}: the option {other} is not supported"))),
    };
    Ok(BindMount { source: PathBuf::from(source), target: PathBuf::from(target), readonly })
}

fn published(text: &str) -> Result<Published, CliError> {
    let bad = || {
        CliError::usage(format!(
            "--publish {text}: the container is on the host's network, so only PORT:PORT with equal ports is possible"
        ))
    };
    let (ports, _) = text.split_once('/').unwrap_or((text, "tcp"));
    let (host, container) = ports.rsplit_once(':').ok_or_else(bad)?;
    let host = host.rsplit(':').next().unwrap_or(host);
    let port = |p: &str| p.parse::<u16>().map_err(|_| bad());
    let (host, container) = (port(host)?, port(container)?);
    if host != container { Err(bad()) } else { Ok(Published { port: host }) }
}
