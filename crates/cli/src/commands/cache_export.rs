//! `kiln cache export`.

use std::fs::File;
use std::io::{BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use kiln_engine::Engine;
use kiln_engine::cache::mounts::no_mount;

use crate::environment::Environment;
use crate::error::CliError;

/// Write the files of a cache mount as a tar
///
/// Examples:
///   kiln cache export npm -o npm.tar
///   kiln cache export npm | zstd | ssh host 'zstd -d | kiln cache import npm -'
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct CacheExportArgs {
    /// Id of the cache mount
    #[arg(value_name = "ID")]
    id: String,
    /// Write to a file instead of standard output
    #[arg(short, long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    output: Option<PathBuf>,
}

/// Writes it.
pub fn run(args: &CacheExportArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    let path = args.output.as_deref().filter(|p| *p != Path::new("-"));
    if path.is_none() && std::io::stdout().is_terminal() {
        return Err(CliError::usage("an archive is not written to a terminal").with_hint("use -o FILE, or a pipe"));
    }
    let engine = environment.engine()?;
    let Some(path) = path else {
        write(&engine, &args.id, std::io::stdout().lock())?;
        return Ok(ExitCode::SUCCESS);
    };
    let known = engine.store.cache_mounts().list().map_err(kiln_engine::Error::from)?;
    if !known.iter().any(|m| m.id == args.id) {
        return Err(no_mount(&args.id).into());
    }
    let file = File::create(path).map_err(|e| CliError::failed(format!("can't create {}: {e}", path.display())))?;
    // Half an archive is worse than none.
    write(&engine, &args.id, file).inspect_err(|_| _ = std::fs::remove_file(path))?;
    Ok(ExitCode::SUCCESS)
}

fn write(engine: &Engine, id: &str, out: impl Write) -> Result<(), CliError> {
    let mut out = BufWriter::with_capacity(256 << 10, out);
    engine.export_mount(id, &mut out)?;
    out.flush().map_err(|e| CliError::failed(format!("can't write the archive: {e}")))
}
