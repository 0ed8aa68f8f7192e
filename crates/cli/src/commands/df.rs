//! `kiln system df`.

use std::process::ExitCode;

use clap::Args;
use kiln_engine::images::summaries;
use kiln_engine::oci::Reference;
use kiln_engine::store::{KindUsage, Store, Usage};

use super::prune::step_name;
use crate::environment::Environment;
use crate::error::CliError;
use crate::listing::{self, Format, Listing, Row, aligned};
use crate::output;
use crate::progress::human_size;

/// Show what the store uses of the disk
///
/// Sizes are measured on the file system; a file that several layers share counts once. Fields for --format: .Type
/// .TotalCount .Active .Size .Reclaimable
///
/// Examples:
///   kiln system df
///   kiln system df -v
///   kiln system df --format '{{.Type}}: {{.Size}}'
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct DfArgs {
    /// Show each image, cache record and cache mount
    #[arg(short, long, conflicts_with = "format")]
    verbose: bool,
    /// table, json, or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

const HEADS: [(&str, &str); 5] =
    [("Type", "TYPE"), ("TotalCount", "TOTAL"), ("Active", "ACTIVE"), ("Size", "SIZE"), ("Reclaimable", "RECLAIMABLE")];

/// Measures and prints.
pub fn run(args: &DfArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    let format = Format::parse(args.format.as_deref())?;
    let store = environment.store()?;
    let usage = store.usage().map_err(kiln_engine::Error::from)?;
    let rows = [
        row("Images", &usage.images),
        row("Containers", &usage.containers),
        row("Build Cache", &usage.build_cache),
        row("Cache Mounts", &usage.cache_mounts),
        row("Downloads", &usage.sources),
        row("Build Logs", &usage.logs),
    ];
    let shown = ["Type", "TotalCount", "Active", "Size", "Reclaimable"];
    Listing { heads: &HEADS, shown: &shown, rows: &rows }.print(&format)?;
    if matches!(format, Format::Table) {
        total(&store, &usage)?;
        if args.verbose {
            details(&store)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn row(kind: &str, usage: &KindUsage) -> Row {
    let percent = (usage.reclaimable * 100).checked_div(usage.bytes).unwrap_or(0);
    listing::row([
        ("Type", kind.to_owned()),
        ("TotalCount", usage.count.to_string()),
        ("Active", usage.active.to_string()),
        ("Size", human_size(usage.bytes)),
        ("Reclaimable", format!("{} ({percent}%)", human_size(usage.reclaimable))),
    ])
}

fn total(store: &Store, usage: &Usage) -> Result<(), CliError> {
    let free = store.free_space().map_err(kiln_engine::Error::from)?;
    let (used, free) = (human_size(usage.total), human_size(free));
    output::print(&format!("\n{used} in {}, {free} left on its file system\n", store.root().display()))
}

fn details(store: &Store) -> Result<(), CliError> {
    let error = kiln_engine::Error::from;
    let cells = |row: &[&str]| row.iter().map(|c| (*c).to_owned()).collect::<Vec<_>>();
    let mut images = vec![cells(&["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"])];
    for image in summaries(store)? {
        let none = || "<none>".to_owned();
        let name = image.names.first();
        images.push(vec![
            name.map_or_else(none, Reference::familiar_name),
            name.and_then(Reference::tag).map_or_else(none, str::to_owned),
            image.id.short(),
            image.created.map_or_else(|| "N/A".to_owned(), listing::ago),
            human_size(image.size),
        ]);
    }
    let mut cache = vec![cells(&["CACHE TYPE", "SIZE", "CREATED", "LAST USED", "STATE", "DESCRIPTION"])];
    let mut entries = store.cache_entries().map_err(error)?;
    entries.reverse();
    for entry in entries {
        let state = match (entry.in_use, entry.in_image) {
            (true, _) => "in use",
            (false, true) => "in image",
            (false, false) => "",
        };
        let description = step_name(&entry.description).chars().take(100).collect();
        cache.push(vec![
            entry.kind,
            human_size(entry.own_bytes),
            listing::ago(entry.created),
            listing::ago(entry.used),
            state.to_owned(),
            description,
        ]);
    }
    let mut mounts = vec![cells(&["CACHE MOUNT", "SIZE", "CREATED", "LAST USED"])];
    for mount in store.cache_mounts().list().map_err(error)? {
        let size = store.cache_mounts().size(&mount).unwrap_or(0);
        mounts.push(vec![mount.id, human_size(size), listing::ago(mount.created), listing::ago(mount.used)]);
    }
    output::print(&format!(
        "\nImages:\n{}\nBuild cache:\n{}\nCache mounts:\n{}",
        aligned(&images),
        aligned(&cache),
        aligned(&mounts)
    ))
}
