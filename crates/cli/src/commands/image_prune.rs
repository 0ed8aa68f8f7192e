//! `kiln image prune`.

use std::collections::HashSet;
use std::process::ExitCode;

use clap::Args;
use kiln_engine::images::{Summary, summaries};
use kiln_engine::oci::Digest;
use kiln_engine::store::Store;

use super::confirm::confirm;
use super::containers::{all as all_containers, made_from};
use super::filters::ImageFilter;
use crate::environment::Environment;
use crate::error::CliError;
use crate::output;
use crate::progress::human_size;

/// Remove images without a name, and their content
///
/// Examples:
///   kiln image prune
///   kiln image prune --all --force --filter until=240h
///   kiln image prune -a --filter label!=keep
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct ImagePruneArgs {
    /// Also images with a name, unless something that runs uses them
    #[arg(short, long)]
    all: bool,
    /// Only what fits: until=TIME, label=NAME[=VALUE], label!=NAME[=VALUE]
    #[arg(long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

/// Removes the images.
pub fn run(args: &ImagePruneArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    let store = environment.store()?;
    store.use_reserve();
    let filters = ImageFilter::parse(&args.filters, &["until", "label", "dangling"], &store)?;
    let warning = match args.all {
        true => "This will remove all images that nothing uses.",
        false => "This will remove all dangling images.",
    };
    if !args.force && !confirm(warning)? {
        return Ok(ExitCode::SUCCESS);
    }
    let pruned = prune(&store, args.all, &filters)?;
    let report = store.collect().map_err(kiln_engine::Error::from)?;
    let mut text = String::new();
    if !pruned.is_empty() {
        text = format!("Deleted Images:\n{}\n", lines(&pruned));
    }
    text.push_str(&format!("Total reclaimed space: {}\n", human_size(report.bytes())));
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Removes images from the list: dangling ones, or all that no live process uses. Their content is left to a collection.
pub fn prune(store: &Store, all: bool, filters: &[ImageFilter]) -> Result<Vec<Summary>, CliError> {
    let used: HashSet<Digest> = store.images().in_use().map_err(kiln_engine::Error::from)?;
    // `dangling=false` is how docker's API says `--all`.
    let all = all || filters.iter().any(|f| matches!(f, ImageFilter::Dangling(false)));
    let mut pruned = Vec::new();
    let containers = all_containers(store)?;
    let _many = store.images().many().map_err(kiln_engine::Error::from)?;
    for image in summaries(store)? {
        let candidate = (all || image.names.is_empty()) && !used.contains(&image.target.digest);
        let fits = filters.iter().all(|f| matches!(f, ImageFilter::Dangling(false)) || f.accepts(&image));
        if candidate && fits && made_from(store, &containers, &image.target)?.is_none() {
            store.images().remove_digest(&image.target.digest).map_err(kiln_engine::Error::from)?;
            pruned.push(image);
        }
    }
    Ok(pruned)
}

/// What was removed, in docker's words.
pub fn lines(pruned: &[Summary]) -> String {
    let mut text = String::new();
    for image in pruned {
        for name in &image.names {
            text.push_str(&format!("untagged: {}\n", name.familiar()));
        }
        text.push_str(&format!("deleted: {}\n", image.id));
    }
    text
}
