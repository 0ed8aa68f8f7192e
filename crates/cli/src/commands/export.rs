//! `kiln export`.

use std::fs::File;
use std::io::{BufWriter, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use kiln_engine::Error;
use kiln_engine::containers::files;
use kiln_engine::rootfs::diff::DiffOptions;
use kiln_engine::rootfs::export::tar_tree;

use super::containers::named;
use crate::environment::Environment;
use crate::error::CliError;

/// Write all files of a container as a tar stream
///
/// What is mounted in it is not included.
///
/// Examples:
///   kiln export web > web.tar
///   kiln export -o web.tar web
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct ExportArgs {
    /// Container: a name, an ID, or its beginning
    container: String,
    /// File to write, in place of standard output
    #[arg(short, long, value_name = "FILE", value_hint = clap::ValueHint::AnyPath)]
    output: Option<PathBuf>,
}

/// Writes the archive.
pub fn run(args: &ExportArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    if args.output.is_none() && std::io::stdout().is_terminal() {
        return Err(CliError::usage("an archive is not written to a terminal").with_hint("use -o FILE, or a pipe"));
    }
    let mut container = named(environment, &args.container)?;
    let engine = environment.engine_beside(&container)?;
    let files = files(&engine, &mut container)?;
    let mut out: Box<dyn Write> = match &args.output {
        Some(path) => Box::new(File::create(path).map_err(|e| Error::io("create", path, e))?),
        None => Box::new(std::io::stdout().lock()),
    };
    let mut out = BufWriter::new(&mut out);
    let mut options = DiffOptions { subsecond_times: true, ..DiffOptions::default() };
    tar_tree(&files.root, &mut out, &mut options).map_err(Error::from)?;
    out.flush().map_err(|e| CliError::failed(format!("cannot write the archive: {e}")))?;
    Ok(ExitCode::SUCCESS)
}
