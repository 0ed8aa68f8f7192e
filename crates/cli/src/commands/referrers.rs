//! `kiln referrers`.

use std::process::ExitCode;

use clap::Args;
use kiln_engine::Error;
use kiln_engine::oci::{Descriptor, Reference};

use crate::environment::Environment;
use crate::error::CliError;
use crate::listing::{Format, Listing, Row};
use crate::progress::human_size;

/// List what refers to an image in its registry: signatures, SBOMs, attestations
///
///   kiln referrers registry.example.com/app:1.2
///   kiln referrers --artifact-type application/spdx+json registry.example.com/app:1.2
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct ReferrersArgs {
    /// Name of the image
    #[arg(add = super::complete::images())]
    name: String,
    /// Only artifacts of this type
    #[arg(long, value_name = "TYPE")]
    artifact_type: Option<String>,
    /// Output: table, json, or a template with .Digest, .ArtifactType, .MediaType, .Size, .Annotations
    #[arg(long)]
    format: Option<String>,
}

/// Prints the list.
pub fn run(args: &ReferrersArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    let name: Reference = args.name.parse().map_err(|e| CliError::usage(format!("{e}")))?;
    let name = name.with_default_tag();
    let format = Format::parse(args.format.as_deref())?;
    let client = environment.client();
    let subject = match name.digest() {
        Some(digest) => *digest,
        None => client.resolve(&name).map_err(Error::from)?.descriptor.digest,
    };
    let found = client.referrers(&name, &subject, args.artifact_type.as_deref()).map_err(Error::from)?;
    let rows: Vec<Row> = found.iter().map(row).collect();
    let heads = [
        ("Digest", "DIGEST"),
        ("ArtifactType", "ARTIFACT TYPE"),
        ("MediaType", "MEDIA TYPE"),
        ("Size", "SIZE"),
        ("Annotations", "ANNOTATIONS"),
    ];
    Listing { heads: &heads, shown: &["Digest", "ArtifactType", "Size"], rows: &rows }.print(&format)?;
    Ok(ExitCode::SUCCESS)
}

fn row(found: &Descriptor) -> Row {
    let kind = found.extra.get("artifactType").cloned().unwrap_or_else(|| "-".into());
    let annotations = serde_json::to_value(&found.annotations).unwrap_or_default();
    [
        ("Digest", found.digest.to_string().into()),
        ("ArtifactType", kind),
        ("MediaType", found.media_type.clone().into()),
        ("Size", human_size(found.size).into()),
        ("Annotations", annotations),
    ]
    .into_iter()
    .map(|(field, value)| (field.to_owned(), value))
    .collect()
}
