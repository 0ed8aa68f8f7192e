//! `kiln history`, the same as `kiln image history`.

use std::process::ExitCode;

use clap::Args;
use kiln_engine::images::{best, find, layer_sizes};
use kiln_engine::oci::{History, Timestamp};

use super::parse::platform;
use crate::environment::Environment;
use crate::error::CliError;
use crate::listing::{self, Format, Listing, Row};
use crate::output;
use crate::progress::human_size;

/// Show the steps that made an image, and the size of each
///
/// Fields for --format: .ID .CreatedSince .CreatedAt .CreatedBy .Size .Comment
///
/// Examples:
///   kiln history app
///   kiln history --no-trunc --format '{{.Size}}\t{{.CreatedBy}}' app
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct HistoryArgs {
    /// Image: a name, or the beginning of an ID
    #[arg(add = super::complete::images())]
    image: String,
    /// table, json, or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Sizes and dates for people; =false for bytes and RFC 3339
    #[arg(short = 'H', long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = true,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    human: bool,
    /// Do not shorten commands and IDs
    #[arg(long)]
    no_trunc: bool,
    /// Print IDs only
    #[arg(short, long)]
    quiet: bool,
    /// Of an image for several platforms, this one
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
}

/// Columns of a shortened command, as docker has it.
const COMMAND: usize = 45;

const HEADS: [(&str, &str); 6] = [
    ("ID", "IMAGE"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("CreatedBy", "CREATED BY"),
    ("Size", "SIZE"),
    ("Comment", "COMMENT"),
];

/// Prints the table, newest step first.
pub fn run(args: &HistoryArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    let format = Format::parse(args.format.as_deref())?;
    let store = environment.store()?;
    let image = find(&store, &args.image)?;
    let wanted = args.platform.as_deref().map(platform).transpose()?;
    let view = best(&store, &image.target, wanted.as_ref())?;
    let id = kiln_engine::images::id(&image);
    let mut sizes = layer_sizes(&store, &view.manifest, &view.config)?.into_iter();
    let mut rows: Vec<Row> = Vec::new();
    for entry in &view.config.history {
        let size = if entry.empty_layer == Some(true) { 0 } else { sizes.next().unwrap_or(0) };
        rows.push(row(args, entry, size));
    }
    rows.reverse();
    if let Some(newest) = rows.first_mut() {
        newest.insert("ID".to_owned(), if args.no_trunc { id.to_string() } else { id.short() }.into());
    }
    if args.quiet {
        let ids: String = rows.iter().map(|r| format!("{}\n", r["ID"].as_str().unwrap_or_default())).collect();
        return output::print(&ids).map(|()| ExitCode::SUCCESS);
    }
    let since = if args.human { "CreatedSince" } else { "CreatedAt" };
    Listing { heads: &HEADS, shown: &["ID", since, "CreatedBy", "Size", "Comment"], rows: &rows }.print(&format)?;
    Ok(ExitCode::SUCCESS)
}

fn row(args: &HistoryArgs, entry: &History, size: u64) -> Row {
    let command = entry.created_by.clone().unwrap_or_default().replace(['\n', '\t'], " ");
    let command = match args.no_trunc || command.chars().count() <= COMMAND {
        true => command,
        false => command.chars().take(COMMAND - 1).chain(['…']).collect(),
    };
    let unknown = || "N/A".to_owned();
    listing::row([
        ("ID", "<missing>".to_owned()),
        ("CreatedSince", entry.created.map_or_else(unknown, listing::ago)),
        ("CreatedAt", entry.created.map_or_else(unknown, |t: Timestamp| t.to_string())),
        ("CreatedBy", command),
        ("Size", if args.human { human_size(size) } else { size.to_string() }),
        ("Comment", entry.comment.clone().unwrap_or_default()),
    ])
}
