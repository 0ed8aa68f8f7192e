//! `kiln prune`, the same as `kiln system prune`; `kiln builder prune` leaves images alone.

use std::process::ExitCode;

use clap::Args;
use kiln_engine::store::{Filter, Kind, PrunePolicy, Report, Store};

use super::budget::BudgetArgs;
use super::confirm::confirm;
use super::filters::{ImageFilter, duration, point_in_time};
use super::image_prune;
use super::parse::key_value;
use crate::environment::Environment;
use crate::error::CliError;
use crate::output;
use crate::progress::human_size;

/// Free disk space: the build cache, and images without a name
///
/// Without a limit all of the build cache goes that no image needs, with cache mounts and downloads of sources. With
/// a limit, what was not used for the longest time goes first, until the limit is met; it is measured on the file
/// system. What a running kiln uses always stays. Builds keep to KILN_MAX_USED_SPACE, KILN_MIN_FREE_SPACE and
/// KILN_RESERVED_SPACE, or to `[store]` in kiln.toml, by themselves.
///
/// Examples:
///   kiln prune
///   kiln prune --force --max-used-space 20g
///   kiln prune -f --min-free-space 10g --reserved-space 2g
///   kiln prune --all --filter until=240h
///   kiln prune --filter type=exec.cachemount
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct PruneArgs {
    /// Also images with a name, unless something that runs uses them, and the cache that they hold
    #[arg(short, long)]
    all: bool,
    /// Only what fits: until=TIME, unused-for=DURATION, type=KIND, description=TEXT, label=NAME[=VALUE] (images)
    #[arg(long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    #[command(flatten)]
    budget: BudgetArgs,
    /// Name each thing that was removed
    #[arg(long)]
    verbose: bool,
}

/// Removes, and tells what was.
pub fn run(args: &PruneArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    prune(args, environment, true)
}

/// `kiln builder prune`: as in docker, it is about the cache, even with --all.
pub fn run_of_cache(args: &PruneArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    prune(args, environment, false)
}

fn prune(args: &PruneArgs, environment: &Environment, images: bool) -> Result<ExitCode, CliError> {
    let store = environment.store()?;
    store.use_reserve();
    let (mut policy, image_filters) = policy(args, &store)?;
    if !images {
        policy.images = false;
        policy.filters.push(Filter::NotKind("image".to_owned()));
    }
    if !args.force && !confirm(&warning(args, images))? {
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = String::new();
    if images && policy.filters.is_empty() && !args.budget.is_given() {
        let pruned = image_prune::prune(&store, args.all, &image_filters)?;
        if !pruned.is_empty() {
            text = format!("Deleted Images:\n{}\n", image_prune::lines(&pruned));
        }
    }
    let report = match image_filters.iter().any(|f| matches!(f, ImageFilter::Label(..) | ImageFilter::NotLabel(..))) {
        // Labels are of images: the cache has none.
        true => store.collect(),
        false => store.gc(&policy),
    };
    let report = report.map_err(kiln_engine::Error::from)?;
    text.push_str(&told(&report, args.verbose));
    output::print(&text)?;
    if args.budget.is_given() {
        warn_of_rest(&store, &policy)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn policy(args: &PruneArgs, store: &Store) -> Result<(PrunePolicy, Vec<ImageFilter>), CliError> {
    let budget = args.budget.budget()?;
    let mut policy = PrunePolicy {
        max_used_space: budget.max_used_space,
        min_free_space: budget.min_free_space,
        reserved_space: budget.reserved_space,
        all: args.all,
        images: args.all && args.budget.is_given(),
        ..PrunePolicy::default()
    };
    let mut of_images = Vec::new();
    for text in &args.filters {
        let (key, value) = key_value("--filter", text)?;
        match key.as_str() {
            "until" => {
                let at = point_in_time("--filter until", &value)?;
                let age = at.seconds_until(kiln_engine::oci::Timestamp::now()).max(0);
                policy.keep_since = Some(std::time::Duration::from_secs(age.unsigned_abs()));
                of_images.push(text.clone());
            }
            "unused-for" => match duration(&value) {
                Some(time) => policy.filters.push(Filter::UnusedFor(time)),
                None => return Err(CliError::usage(format!("--filter {text}: expected a duration such as 24h"))),
            },
            "type" => policy.filters.push(Filter::Kind(value)),
            "type!" => policy.filters.push(Filter::NotKind(value)),
            "description" => policy.filters.push(Filter::Description(value)),
            "label" | "label!" => of_images.push(text.clone()),
            _ => {
                return Err(CliError::usage(format!(
                    "--filter {text}: the filters are until, unused-for, type, description and label"
                )));
            }
        }
    }
    let of_images = ImageFilter::parse(&of_images, &["until", "label"], store)?;
    Ok((policy, of_images))
}

fn warning(args: &PruneArgs, images: bool) -> String {
    let mut text = "This will remove:".to_owned();
    if args.budget.is_given() {
        let images = match (images, args.all) {
            (_, false) => "",
            (true, true) => ", images included",
            (false, true) => ", images excluded",
        };
        text.push_str(&format!("\n  - what was not used for the longest time{images}, until the limit is met"));
    } else {
        text.push_str(match (images, args.all) {
            (false, _) => "",
            (true, true) => "\n  - all images that nothing uses",
            (true, false) => "\n  - all dangling images",
        });
        let which = if args.all { "all build cache" } else { "the build cache that no image needs" };
        text.push_str(&format!("\n  - {which}, cache mounts and downloads"));
    }
    if !args.filters.is_empty() {
        text.push_str(&format!("\n  - of these, only what fits: {}", args.filters.join(", ")));
    }
    text + "\n"
}

fn told(report: &Report, verbose: bool) -> String {
    let mut text = String::new();
    if verbose {
        for (kind, description) in &report.evicted {
            text.push_str(&format!("deleted: {kind}  {}\n", step_name(description)));
        }
    }
    let name = |kind: &Kind| match kind {
        Kind::Records => "cache record",
        Kind::Layers => "layer",
        Kind::Blobs => "blob",
        Kind::CacheMounts => "cache mount",
        Kind::Sources => "download",
        Kind::Images => "image",
        Kind::Logs => "log",
        Kind::Partials => "unfinished download",
        Kind::Debris => "leftover",
    };
    let plural = |count: u64| if count == 1 { "" } else { "s" };
    let parts: Vec<String> = report
        .freed
        .iter()
        .map(|(kind, freed)| format!("{} {}{}", freed.count, name(kind), plural(freed.count)))
        .collect();
    if !parts.is_empty() {
        text.push_str(&format!("Removed: {}\n", parts.join(", ")));
    }
    text.push_str(&format!("Total reclaimed space: {}\n", human_size(report.bytes())));
    text
}

/// A step's description without the identity of its result, which the engine writes in front of it.
pub fn step_name(description: &str) -> &str {
    description.strip_prefix("sha256:").and_then(|d| d.split_once(' ')).map_or(description, |(_, name)| name)
}

/// A limit that is not met is said so.
fn warn_of_rest(store: &Store, policy: &PrunePolicy) -> Result<(), CliError> {
    let usage = store.usage().map_err(kiln_engine::Error::from)?;
    let free = store.free_space().map_err(kiln_engine::Error::from)?;
    let over = policy.max_used_space > 0 && usage.total > policy.max_used_space.max(policy.reserved_space);
    let short = free < policy.min_free_space && usage.total > policy.reserved_space;
    if over || short {
        let hint = if policy.images { "" } else { "; --all removes images as well" };
        eprintln!(
            "WARNING: the limit is not met: the store uses {}, the disk has {} left. What is left is held by images, or in use{hint}",
            human_size(usage.total),
            human_size(free)
        );
    }
    Ok(())
}
