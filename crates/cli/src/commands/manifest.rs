//! `kiln manifest`.

use std::io::Write;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use kiln_engine::Error;
use kiln_engine::oci::{Descriptor, ManifestKind, Reference};
use kiln_engine::registry::Resolved;

use crate::environment::Environment;
use crate::error::CliError;
use crate::output;
use crate::progress::human_size;

/// Look at images in a registry without downloading them
#[derive(Debug, Args)]
pub struct ManifestArgs {
    #[command(subcommand)]
    command: ManifestCommand,
}

#[derive(Debug, Subcommand)]
enum ManifestCommand {
    Inspect(InspectArgs),
}

/// Show the manifest of an image, or the index of an image for several platforms
///
/// As JSON, like docker.
///
///   kiln manifest inspect alpine:3 > /dev/null && echo it is there
///   kiln manifest inspect --summary ghcr.io/org/app:1.2
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
struct InspectArgs {
    /// Name of the image
    name: String,
    /// Print the bytes as the registry has them
    #[arg(long, conflicts_with = "summary")]
    raw: bool,
    /// Print names, platforms and sizes for people
    #[arg(long)]
    summary: bool,
    /// Do not verify the registry's certificate, and allow plain http
    #[arg(long)]
    insecure: bool,
}

/// Runs a subcommand.
pub fn run(args: &ManifestArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    let ManifestCommand::Inspect(args) = &args.command;
    let name: Reference = args.name.parse().map_err(|e| CliError::usage(format!("{e}")))?;
    let name = name.with_default_tag();
    let client = environment.client();
    if args.insecure {
        client.allow_insecure(name.registry());
    }
    let found = client.resolve(&name).map_err(Error::from)?;
    let failed = |e: &dyn std::fmt::Display| CliError::failed(e.to_string());
    if args.raw {
        std::io::stdout().write_all(&found.bytes).map_err(|e| failed(&e))?;
    } else if args.summary {
        output::print(&described(&name, &found))?;
    } else {
        let json = match &found.kind {
            ManifestKind::Index(index) => serde_json::to_string_pretty(index),
            ManifestKind::Manifest(manifest) => serde_json::to_string_pretty(manifest),
        };
        output::print(&format!("{}\n", json.map_err(|e| failed(&e))?))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The form of `docker buildx imagetools inspect`.
fn described(name: &Reference, found: &Resolved) -> String {
    let mut out = format!(
        "Name:      {name}\nMediaType: {}\nDigest:    {}\n",
        found.descriptor.media_type, found.descriptor.digest
    );
    let mut list = |title: &str, entries: &[Descriptor]| {
        out.push_str(&format!("\n{title}:\n"));
        for entry in entries {
            let platform = entry.platform.as_ref().map(|p| format!("  Platform:  {p}\n")).unwrap_or_default();
            out.push_str(&format!(
                "  Digest:    {}\n  MediaType: {}\n{platform}  Size:      {}\n\n",
                entry.digest,
                entry.media_type,
                human_size(entry.size)
            ));
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
    };
    match &found.kind {
        ManifestKind::Index(index) => list("Manifests", &index.manifests),
        ManifestKind::Manifest(manifest) => {
            list("Config", std::slice::from_ref(&manifest.config));
            list("Layers", &manifest.layers);
        }
    }
    out
}
