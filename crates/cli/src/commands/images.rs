//! `kiln images`, the same as `kiln image ls`.

use std::process::ExitCode;

use clap::Args;
use kiln_engine::images::{Summary, summaries, variants};
use kiln_engine::oci::Reference;
use kiln_engine::store::Store;

use super::filters::ImageFilter;
use crate::environment::Environment;
use crate::error::CliError;
use crate::listing::{self, Format, Listing, Row};
use crate::output;
use crate::progress::human_size;

/// List images
///
/// SIZE is that of the files, as docker counts; of layers that were not unpacked yet, that of the stored layers.
/// Fields for --format: .ID .Repository .Tag .Digest .CreatedSince .CreatedAt .Size
///
/// Examples:
///   kiln images
///   kiln images 'team/*' --filter dangling=false
///   kiln images --filter label=stage=test --filter until=24h -q
///   kiln images --format '{{.Repository}}:{{.Tag}} {{.Size}}'
///   kiln images --tree
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct ImagesArgs {
    /// Only images of this name; `*` and `?` match parts of it
    name: Option<String>,
    /// Show all images; there are no intermediate ones that would be hidden
    #[arg(short, long)]
    all: bool,
    /// Only what fits: dangling=, reference=, label=, before=IMAGE, since=IMAGE, until=TIME
    #[arg(short, long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<String>,
    /// table, json, raw, or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Print IDs only
    #[arg(short, long)]
    quiet: bool,
    /// Do not shorten IDs
    #[arg(long)]
    no_trunc: bool,
    /// Show digests
    #[arg(long)]
    digests: bool,
    /// Show the platforms of each image
    #[arg(long, conflicts_with_all = ["format", "quiet", "digests"])]
    tree: bool,
}

const HEADS: [(&str, &str); 11] = [
    ("ID", "IMAGE ID"),
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("Digest", "DIGEST"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("Size", "SIZE"),
    ("Containers", "CONTAINERS"),
    ("VirtualSize", "SIZE"),
    ("SharedSize", "SHARED SIZE"),
    ("UniqueSize", "UNIQUE SIZE"),
];

/// Prints the list.
pub fn run(args: &ImagesArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    let raw = raw(args);
    let format = Format::parse(raw.as_deref().or(args.format.as_deref()))?;
    let store = environment.store()?;
    let mut filters =
        ImageFilter::parse(&args.filters, &["dangling", "reference", "label", "before", "since", "until"], &store)?;
    filters.extend(args.name.clone().map(ImageFilter::Reference));
    let mut images = summaries(&store)?;
    images.retain(|image| filters.iter().all(|f| f.accepts(image)));
    for image in &mut images {
        image.names.retain(|name| filters.iter().all(|f| f.accepts_name(name)));
    }
    if args.quiet && raw.is_none() {
        let ids: String = images.iter().map(|i| format!("{}\n", shown_id(i, args.no_trunc))).collect();
        return output::print(&ids).map(|()| ExitCode::SUCCESS);
    }
    if args.tree {
        return tree(&store, &images, args.no_trunc).map(|()| ExitCode::SUCCESS);
    }
    let mut rows = Vec::new();
    for image in &images {
        let names: Vec<Option<&Reference>> = match image.names.is_empty() {
            true => vec![None],
            false => image.names.iter().map(Some).collect(),
        };
        rows.extend(names.into_iter().map(|name| row(image, name, args.no_trunc)));
    }
    let shown: &[&str] = match args.digests {
        true => &["Repository", "Tag", "Digest", "ID", "CreatedSince", "Size"],
        false => &["Repository", "Tag", "ID", "CreatedSince", "Size"],
    };
    Listing { heads: &HEADS, shown, rows: &rows }.print(&format)?;
    Ok(ExitCode::SUCCESS)
}

/// What docker makes of `--format raw`: a block of lines for each image.
fn raw(args: &ImagesArgs) -> Option<String> {
    if args.format.as_deref() != Some("raw") {
        return None;
    }
    let digest = if args.digests { "digest: {{.Digest}}\n" } else { "" };
    Some(match args.quiet {
        true => "image_id: {{.ID}}".to_owned(),
        false => format!(
            "repository: {{{{.Repository}}}}\ntag: {{{{.Tag}}}}\n{digest}image_id: {{{{.ID}}}}\n\
             created_at: {{{{.CreatedAt}}}}\nvirtual_size: {{{{.Size}}}}\n"
        ),
    })
}

fn shown_id(image: &Summary, whole: bool) -> String {
    if whole { image.id.to_string() } else { image.id.short() }
}

fn row(image: &Summary, name: Option<&Reference>, whole: bool) -> Row {
    let none = || "<none>".to_owned();
    let size = human_size(image.size);
    let unknown = || "N/A".to_owned();
    listing::row([
        ("ID", shown_id(image, whole)),
        ("Repository", name.map_or_else(none, Reference::familiar_name)),
        ("Tag", name.and_then(Reference::tag).map_or_else(none, str::to_owned)),
        ("Digest", image.target.digest.to_string()),
        ("CreatedSince", image.created.map_or_else(unknown, listing::ago)),
        ("CreatedAt", image.created.map_or_else(unknown, listing::go_time)),
        ("Size", size.clone()),
        ("VirtualSize", size),
        ("Containers", unknown()),
        ("SharedSize", unknown()),
        ("UniqueSize", unknown()),
    ])
}

/// The names of each image, and below them its platforms.
fn tree(store: &Store, images: &[Summary], whole: bool) -> Result<(), CliError> {
    let head = ["IMAGE", "ID", "FILES", "CONTENT"].map(str::to_owned).to_vec();
    let mut rows = vec![head];
    for image in images {
        let parts = variants(store, &image.target)?;
        let sum = |of: fn(&kiln_engine::images::Variant) -> u64| human_size(parts.iter().map(of).sum());
        let names: Vec<String> = image.names.iter().map(Reference::familiar).collect();
        let (first, others) = names.split_first().map_or(("<none>", &[][..]), |(f, o)| (f.as_str(), o));
        rows.push(vec![first.to_owned(), shown_id(image, whole), sum(|v| v.files), sum(|v| v.content)]);
        rows.extend(others.iter().map(|name| vec![name.clone()]));
        for (index, part) in parts.iter().enumerate() {
            let branch = if index + 1 == parts.len() { "└─" } else { "├─" };
            let id = part.view.as_ref().map_or(part.descriptor.digest, |v| v.manifest.config.digest);
            let id = if whole { id.to_string() } else { id.short() };
            let mut cells = vec![format!("{branch} {}", part.platform), id];
            match part.view {
                Some(_) => cells.extend([human_size(part.files), human_size(part.content)]),
                None => cells.extend(["not pulled".to_owned(), human_size(0)]),
            }
            rows.push(cells);
        }
    }
    output::print(&listing::aligned(&rows))
}
