//! `kiln cp`.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use kiln_engine::Error;
use kiln_engine::container::Container;
use kiln_engine::container::copy::{Options, Side, copy, pack, unpack};
use kiln_engine::containers::{Files, files};
use kiln_engine::rootfs::Root;

use super::containers::named;
use crate::environment::Environment;
use crate::error::CliError;
use crate::progress::human_size;

/// Copy files between a container and this machine
///
/// The container may run or not. A directory comes with its name, `DIR/.` is what is in it. If the destination is a directory,
/// the source is put into it; else it takes that name. `-` is a tar stream on standard input or output. What is mounted in
/// the container is not seen, and no link in it leads out.
///
/// Examples:
///   kiln cp extract:/app/server ./server
///   kiln cp ./config/. web:/etc/app
///   kiln cp web:/var/log - | tar -tv
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct CpArgs {
    /// `CONTAINER:PATH`, a path, or -
    #[arg(add = super::complete::containers_and_files())]
    source: String,
    /// `CONTAINER:PATH`, a path, or -
    #[arg(add = super::complete::containers_and_files())]
    destination: String,
    /// Keep owners; else all belongs to root in the container, to the user outside
    #[arg(short, long)]
    archive: bool,
    /// If the source is a link, copy what it leads to
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Say nothing, also on a terminal
    #[arg(short, long)]
    quiet: bool,
}

/// One side of the copy.
enum End<'a> {
    Stream,
    Host(PathBuf),
    Container(&'a str, PathBuf),
}

impl<'a> End<'a> {
    /// Docker's rule: what begins with `/` or `.` is a path here, whatever colons it has.
    fn parse(text: &'a str) -> Result<Self, CliError> {
        if text == "-" {
            return Ok(Self::Stream);
        }
        match text.split_once(':') {
            Some((name, path)) if !text.starts_with(['/', '.']) && !name.is_empty() => {
                Ok(Self::Container(name, Path::new("/").join(path)))
            }
            _ => {
                let here =
                    std::env::current_dir().map_err(|e| CliError::failed(format!("no working directory: {e}")))?;
                // As it is written: a slash at its end means something.
                Ok(Self::Host(here.join(text)))
            }
        }
    }
}

/// Copies.
pub fn run(args: &CpArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    let options = Options { archive: args.archive, follow: args.follow_link };
    let bytes = match (End::parse(&args.source)?, End::parse(&args.destination)?) {
        (End::Container(..), End::Container(..)) => {
            return Err(CliError::usage("copying between containers is not supported")
                .with_hint("kiln cp ONE:PATH - | kiln cp - OTHER:DIRECTORY"));
        }
        (End::Container(name, path), end) => {
            let files = open(&mut named(environment, name)?, &path, environment)?;
            let from = Side { root: &files.root, path: &path, container: Some(name) };
            match end {
                End::Host(path) => copy(from, Side { root: &host()?, path: &path, container: None }, options),
                _ if std::io::stdout().is_terminal() => {
                    return Err(CliError::usage("an archive is not written to a terminal").with_hint("use a pipe"));
                }
                _ => pack(from, options, &mut std::io::BufWriter::new(std::io::stdout().lock())).map(|()| 0),
            }
        }
        (end, End::Container(name, path)) => {
            let mut container = named(environment, name)?;
            if container.config.read_only {
                return Err(CliError::failed(format!("container {name} was made with --read-only")));
            }
            let files = open(&mut container, &path, environment)?;
            let to = Side { root: &files.root, path: &path, container: Some(name) };
            match end {
                End::Host(path) => copy(Side { root: &host()?, path: &path, container: None }, to, options),
                _ => unpack(std::io::stdin().lock(), to, options).map(|()| 0),
            }
        }
        _ => return Err(CliError::usage("one of the two must be in a container").with_hint("CONTAINER:PATH")),
    };
    let bytes = bytes.map_err(Error::from)?;
    if !args.quiet && bytes > 0 && std::io::stderr().is_terminal() {
        eprintln!("Successfully copied {} to {}", human_size(bytes), args.destination);
    }
    Ok(ExitCode::SUCCESS)
}

fn open(container: &mut Container, path: &Path, environment: &Environment) -> Result<Files, CliError> {
    if let Some(bind) = container.config.binds.iter().find(|bind| path.starts_with(&bind.target)) {
        let (name, target, source) = (&container.config.name, bind.target.display(), bind.source.display());
        return Err(CliError::failed(format!("{target} of container {name} is mounted from {source}"))
            .with_hint("copy there, or from there, without kiln"));
    }
    let engine = environment.engine_beside(container)?;
    Ok(files(&engine, container)?)
}

fn host() -> Result<Root, CliError> {
    Ok(Root::open(Path::new("/")).map_err(Error::from)?)
}
