//! `kiln cache rm`.

use std::process::ExitCode;

use clap::Args;
use kiln_engine::cache::mounts::no_mount;

use crate::environment::Environment;
use crate::error::CliError;
use crate::output;
use crate::progress::human_size;

/// Remove cache mounts
///
/// One that a build uses is left alone, which is an error.
///
/// Examples:
///   kiln cache rm npm /root/.cache/go-build
///   kiln cache rm --all
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct CacheRmArgs {
    /// Ids of cache mounts
    #[arg(value_name = "ID", required_unless_present = "all", conflicts_with = "all")]
    ids: Vec<String>,
    /// Remove all of them
    #[arg(short, long)]
    all: bool,
    /// Do not fail for what is not there
    #[arg(short, long)]
    force: bool,
}

/// Removes them, and says how much that freed.
pub fn run(args: &CacheRmArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    let engine = environment.engine()?;
    let mounts = engine.store.cache_mounts();
    let error = |e| CliError::from(kiln_engine::Error::from(e));
    let mut known: Vec<String> = mounts.list().map_err(error)?.into_iter().map(|m| m.id).collect();
    known.dedup();
    let ids = if args.all { known.clone() } else { args.ids.clone() };
    let mut failed: Option<CliError> = None;
    let mut freed = 0;
    for id in &ids {
        let removed = match known.contains(id) {
            true => mounts.remove(id).map(|r| Some(r.bytes)).map_err(error),
            false if args.force => Ok(None),
            false => Err(no_mount(id).into()),
        };
        match removed {
            Ok(Some(bytes)) => {
                freed += bytes;
                output::print(&format!("Deleted: {id}\n"))?;
            }
            Ok(None) => {}
            Err(e) => {
                if let Some(before) = failed.replace(e) {
                    before.show();
                }
            }
        }
    }
    output::print(&format!("Total reclaimed space: {}\n", human_size(freed)))?;
    failed.map_or(Ok(ExitCode::SUCCESS), Err)
}
