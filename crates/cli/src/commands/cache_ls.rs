//! `kiln cache ls`.

use std::process::ExitCode;

use clap::Args;
use kiln_engine::store::{MountInfo, Store};

use crate::environment::Environment;
use crate::error::CliError;
use crate::listing::{self, Format, Listing, Row};
use crate::output;
use crate::progress::human_size;

/// List cache mounts
///
/// A mount that several private users had at once is listed once for each.
///
/// Fields for --format: .ID .Size .LastUsed .LastUsedAt .CreatedAt .Path
///
/// Examples:
///   kiln cache ls
///   kiln cache ls --format '{{.ID}} {{.Size}}'
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct CacheLsArgs {
    /// table, json, or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
}

const HEADS: [(&str, &str); 6] = [
    ("ID", "ID"),
    ("Size", "SIZE"),
    ("LastUsed", "LAST USED"),
    ("LastUsedAt", "LAST USED AT"),
    ("CreatedAt", "CREATED AT"),
    ("Path", "PATH"),
];

/// Prints the list.
pub fn run(args: &CacheLsArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    let format = Format::parse(args.format.as_deref())?;
    let store = environment.store()?;
    let mounts = store.cache_mounts().list().map_err(kiln_engine::Error::from)?;
    if args.quiet {
        let mut ids: Vec<&str> = mounts.iter().map(|m| m.id.as_str()).collect();
        ids.dedup();
        output::print(&ids.iter().map(|id| format!("{id}\n")).collect::<String>())?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Row> = mounts.iter().map(|m| row(&store, m)).collect();
    Listing { heads: &HEADS, shown: &["ID", "Size", "LastUsed"], rows: &rows }.print(&format)?;
    Ok(ExitCode::SUCCESS)
}

fn row(store: &Store, mount: &MountInfo) -> Row {
    // One that is being written to, or removed, may not be measurable now.
    let size = store.cache_mounts().size(mount).map_or_else(|_| "N/A".to_owned(), human_size);
    listing::row([
        ("ID", mount.id.clone()),
        ("Size", size),
        ("LastUsed", listing::ago(mount.used)),
        ("LastUsedAt", listing::go_time(mount.used)),
        ("CreatedAt", listing::go_time(mount.created)),
        ("Path", mount.path.display().to_string()),
    ])
}
