//! `kiln cache import`.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use crate::environment::Environment;
use crate::error::CliError;

/// Make a cache mount of a tar
///
/// The tar may be compressed with gzip, bzip2, xz or zstd. A cache mount of that id must not be there already.
///
/// Examples:
///   kiln cache import npm npm.tar
///   tar c -C ~/.npm . | kiln cache import npm -
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct CacheImportArgs {
    /// Id of the cache mount
    #[arg(value_name = "ID")]
    id: String,
    /// The archive; - for standard input
    #[arg(value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    file: PathBuf,
}

/// Reads it.
pub fn run(args: &CacheImportArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    let engine = environment.engine()?;
    let archive: Box<dyn Read + Send> = match args.file == Path::new("-") {
        true => Box::new(std::io::stdin()),
        false => Box::new(
            File::open(&args.file).map_err(|e| CliError::failed(format!("can't open {}: {e}", args.file.display())))?,
        ),
    };
    engine.import_mount(&args.id, archive)?;
    Ok(ExitCode::SUCCESS)
}
