//! `kiln run`, and what it has in common with `kiln create`.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use kiln_engine::container::{Bind, Container, LogLimits};
use kiln_engine::oci::Platform;
use kiln_engine::run::{DebugTools, Pull, RunRequest, create};

use super::containers::run_attached;
use super::monitor::start_detached;
use super::parse::{bytes, key_value, platform};
use crate::environment::Environment;
use crate::error::{CliError, code};
use crate::foreground::Foreground;
use crate::output;

/// Run a command in a new container
///
/// The container is on the host's network, and in the foreground unless --detach says otherwise. Afterwards it is kept, with its
/// files, until `kiln rm`; with --rm it is gone. Its exit code is passed on; 125 means that it could not be made, 126 that the
/// command can't be executed, 127 that there is no such command.
///
/// Examples:
///   kiln run --rm -it debian:bookworm bash
///   kiln run --rm -v $PWD:/src -w /src gcc make
///   kiln run -d --name web -p 3000:3000 app; kiln logs -f web
///   kiln run --name tests app make check; kiln cp tests:/src/report.xml .
#[derive(Debug, Default, Args)]
#[command(verbatim_doc_comment)]
pub struct RunArgs {
    #[command(flatten)]
    pub container: ContainerArgs,
    /// Run it in the background and print its ID
    #[arg(short, long)]
    detach: bool,
    /// Image: a name, or the beginning of an ID
    #[arg(add = super::complete::images())]
    image: String,
    /// Command and its arguments, in place of the image's
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// What a container is to be.
#[derive(Debug, Default, Args)]
pub struct ContainerArgs {
    /// Name of the container; without one it gets a short one
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Keep standard input open
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Remove the container when its command has ended
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
    /// Set a label of the container
    #[arg(short, long = "label", value_name = "NAME[=VALUE]")]
    labels: Vec<String>,
    /// Write the container's ID to a file, which must not be there yet
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    cidfile: Option<PathBuf>,
    /// When to ask the registry for the image
    #[arg(long, value_name = "WHEN", default_value = "missing")]
    pull: PullWhen,
    /// Which of the image's platforms, such as linux/arm64; another one than this machine's needs an emulator
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// What becomes of what a container in the background writes: json-file (the default) or none
    #[arg(long, value_name = "DRIVER", default_value = "json-file")]
    log_driver: LogDriver,
    /// Keep less of the log: max-size=10m, of one file; max-file=3, of so many
    #[arg(long = "log-opt", value_name = "NAME=VALUE")]
    log_options: Vec<String>,
    /// Signal that asks the command to stop
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
}

/// Docker's words.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum PullWhen {
    Always,
    #[default]
    Missing,
    Never,
}

/// Docker's words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum LogDriver {
    #[default]
    JsonFile,
    None,
}

/// Runs the container.
pub fn run(args: &RunArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    start(args, None, environment)
}

impl RunArgs {
    /// A container in the foreground with the image's own settings, which goes with its command.
    pub fn simple(image: &str, command: &[String], user: Option<String>) -> Self {
        let container = ContainerArgs { interactive: true, rm: true, user, ..ContainerArgs::default() };
        Self { container, detach: false, image: image.to_owned(), command: command.to_vec() }
    }
}

/// Runs a container, or with `debug` a shell in it.
pub fn start(args: &RunArgs, debug: Option<DebugTools>, environment: &Environment) -> Result<ExitCode, CliError> {
    let request = RunRequest { debug, ..args.container.request(&args.image, &args.command)? };
    if !args.detach {
        Foreground::check(request.interactive, request.tty)?;
    }
    let engine = environment.engine().map_err(|e| e.with_code(code::RUN_FAILED))?;
    let made = args.container.make(|| create(&engine, &request));
    let mut container = made.map_err(|e| e.with_code(code::RUN_FAILED))?;
    if args.detach {
        // The kiln that watches it takes over.
        drop(engine);
        start_detached(&container, environment).map_err(|e| match e.code() {
            code::FAILED => e.with_code(code::RUN_FAILED),
            _ => e,
        })?;
        output::print(&format!("{}\n", container.id()))?;
        return Ok(ExitCode::SUCCESS);
    }
    run_attached(&engine, &mut container, request.interactive, request.debug.as_ref())
}

impl ContainerArgs {
    /// Makes a container and writes its ID where that was asked for.
    pub fn make(&self, create: impl FnOnce() -> Result<Container, kiln_engine::Error>) -> Result<Container, CliError> {
        let file = self.cidfile.as_ref().map(|path| {
            std::fs::File::create_new(path).map(|file| (file, path)).map_err(|e| {
                CliError::failed(format!("cannot create the container ID file {}: {e}", path.display()))
                    .with_hint("make sure that no other container has it, and delete it")
            })
        });
        let file = file.transpose()?;
        let made = create();
        if let Some((mut file, path)) = file {
            let written = made.as_ref().map(|container| file.write_all(container.id().as_bytes()));
            if !matches!(written, Ok(Ok(()))) {
                let _ = std::fs::remove_file(path);
            }
        }
        let container = made?;
        let own = Platform::host();
        if self.platform.is_none() && container.config.platform.parse().is_ok_and(|p: Platform| !p.runs_on(&own)) {
            let platform = &container.config.platform;
            eprintln!(
                "warning: the image is for {platform}, this machine is {own}; --platform {platform} says that you know"
            );
        }
        Ok(container)
    }

    /// What the engine is asked for.
    pub fn request(&self, image: &str, command: &[String]) -> Result<RunRequest, CliError> {
        let host_network = match self.network.as_str() {
            "host" | "default" | "" => true,
            "none" => false,
            other => return Err(CliError::usage(format!("--network {other}: use host or none"))),
        };
        if let Some(signal) = &self.stop_signal {
            super::containers::signal(signal)?;
        }
        Ok(RunRequest {
            image: image.to_owned(),
            pull: match self.pull {
                PullWhen::Always => Pull::Always,
                PullWhen::Missing => Pull::Missing,
                PullWhen::Never => Pull::Never,
            },
            name: self.name.clone().unwrap_or_default(),
            labels: labels(&self.labels),
            auto_remove: self.rm,
            command: command.to_vec(),
            interactive: self.interactive,
            tty: self.tty,
            init: self.init,
            env: variables(&self.env_files, &self.env)?,
            binds: self.volumes.iter().map(|v| volume(v)).collect::<Result<_, _>>()?,
            workdir: self.workdir.clone(),
            user: self.user.clone(),
            entrypoint: self.entrypoint.clone(),
            host_network,
            hostname: self.hostname.clone(),
            read_only: self.read_only,
            ports: self.publish.iter().map(|p| published(p)).collect::<Result<_, _>>()?,
            stop_signal: self.stop_signal.clone(),
            platform: self.platform.as_deref().map(platform).transpose()?,
            unlogged: self.log_driver == LogDriver::None,
            log_limits: log_limits(&self.log_options)?,
            debug: None,
        })
    }
}

fn log_limits(options: &[String]) -> Result<LogLimits, CliError> {
    let mut limits = LogLimits::default();
    for option in options {
        let (name, value) = key_value("--log-opt", option)?;
        match name.as_str() {
            "max-size" => limits.size = Some(bytes("--log-opt max-size=", &value)?).filter(|size| *size > 0),
            "max-file" => match value.parse() {
                Ok(files @ 1..) => limits.files = files,
                _ => return Err(CliError::usage(format!("--log-opt {option}: expected a number of files"))),
            },
            _ => return Err(CliError::usage(format!("--log-opt {option}: the options are max-size and max-file"))),
        }
    }
    if limits.files > 1 && limits.size.is_none() {
        return Err(CliError::usage("--log-opt max-file: a second file needs a max-size of the first"));
    }
    Ok(limits)
}

/// `NAME=VALUE`, or `NAME` with an empty value.
fn labels(texts: &[String]) -> BTreeMap<String, String> {
    let pair = |text: &String| {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        (name.to_owned(), value.to_owned())
    };
    texts.iter().map(pair).collect()
}

/// The variables of files, then those of flags.
pub fn variables(files: &[PathBuf], flags: &[String]) -> Result<Vec<String>, CliError> {
    let mut env = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file).map_err(|e| {
            CliError::failed(format!("cannot read {}: {e}", file.display())).with_code(code::RUN_FAILED)
        })?;
        let lines = text.trim_start_matches('\u{feff}').lines().map(str::trim_start);
        env.extend(lines.filter(|l| !l.is_empty() && !l.starts_with('#')).filter_map(variable));
    }
    env.extend(flags.iter().filter_map(|e| variable(e)));
    Ok(env)
}

/// `NAME=VALUE`; the value of a name alone is the environment's.
fn variable(text: &str) -> Option<String> {
    match text.contains('=') {
        true => Some(text.to_owned()),
        false => std::env::var(text).ok().map(|v| format!("{text}={v}")),
    }
}

fn volume(text: &str) -> Result<Bind, CliError> {
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
    // A container may be started from somewhere else.
    let source = std::path::absolute(source).map_err(|e| CliError::usage(format!("--volume {text}: {e}")))?;
    Ok(Bind { source, target: PathBuf::from(target), readonly })
}

fn published(text: &str) -> Result<u16, CliError> {
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
    if host != container { Err(bad()) } else { Ok(host) }
}
