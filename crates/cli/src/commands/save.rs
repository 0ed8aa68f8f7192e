//! `kiln save`, the same as `kiln image save`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, ValueEnum, ValueHint};
use kiln_engine::Steps;
use kiln_engine::archives::SaveRequest;
use kiln_engine::events::EventSink;
use kiln_engine::images::find;
use kiln_engine::oci::Reference;
use kiln_engine::request::Destination;
use kiln_engine::store::{ArchiveFormat, SaveImage, Store};

use super::parse::platform;
use crate::environment::{Environment, stop_on_signal};
use crate::error::CliError;
use crate::progress::{Direction, Display};

/// Write images to an archive, for `kiln load`, `docker load`, podman or skopeo
///
/// A name without a tag means all its tags. The archive is the same, byte for byte, whenever the images are.
///
/// Examples:
///   kiln save -o app.tar app:1.2 db:5
///   kiln save app | bzip2 | ssh host kiln load
///   kiln save --format oci-archive --platform linux/arm64 -o app.tar app
///   kiln save --format oci-dir -o layout app
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct SaveArgs {
    /// Images: names, or beginnings of IDs
    #[arg(required = true, value_name = "IMAGE", add = super::complete::images())]
    images: Vec<String>,
    /// File to write, in place of standard output
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::AnyPath)]
    output: Option<PathBuf>,
    /// Kind of archive
    #[arg(long, value_name = "FORMAT", default_value = "docker-archive")]
    format: SaveFormat,
    /// Of images for several platforms, only this one
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

/// Kinds of archives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SaveFormat {
    /// Docker's, which is an OCI layout as well
    #[value(alias = "docker")]
    DockerArchive,
    /// An OCI layout in a tar
    #[value(alias = "oci")]
    OciArchive,
    /// An OCI layout in a directory
    OciDir,
}

/// Writes the archive.
pub fn run(args: &SaveArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    let dest = match &args.output {
        Some(path) if path.as_os_str() != "-" => Destination::Path(path.clone()),
        _ if args.format == SaveFormat::OciDir => return Err(CliError::usage("--format=oci-dir needs --output")),
        _ if std::io::stdout().is_terminal() => {
            return Err(CliError::usage("an archive is not written to a terminal").with_hint("use -o FILE, or a pipe"));
        }
        _ => Destination::Stdout,
    };
    let engine = environment.engine()?;
    let request = SaveRequest {
        images: chosen(&engine.store, &args.images)?,
        format: if args.format == SaveFormat::DockerArchive { ArchiveFormat::Docker } else { ArchiveFormat::Oci },
        directory: args.format == SaveFormat::OciDir,
        platform: args.platform.as_deref().map(platform).transpose()?,
        dest,
    };
    let _stop = stop_on_signal(engine.registry.canceller());
    let display = Display::transfer(Direction::Save, args.quiet);
    let step = Steps::new(Arc::clone(&display) as Arc<dyn EventSink>).begin("save");
    let outcome = engine.save_images(&request, &step);
    let outcome = step.conclude(outcome);
    display.finish();
    outcome?;
    Ok(ExitCode::SUCCESS)
}

/// The images, each once, with the names that they were asked for by.
fn chosen(store: &Store, texts: &[String]) -> Result<Vec<SaveImage>, CliError> {
    let mut chosen: Vec<SaveImage> = Vec::new();
    for text in texts {
        for (target, name) in meant(store, text)? {
            match chosen.iter_mut().find(|c| c.target.digest == target.digest) {
                Some(known) => known.names.extend(name.filter(|n| !known.names.contains(n))),
                None => chosen.push(SaveImage { target, names: name.into_iter().collect() }),
            }
        }
    }
    Ok(chosen)
}

type Meant = Vec<(kiln_engine::oci::Descriptor, Option<Reference>)>;

/// What a text means: an image by its name, all tags of a name without one, or an image by its ID, which has no name.
fn meant(store: &Store, text: &str) -> Result<Meant, CliError> {
    let error = kiln_engine::Error::from;
    if let Ok(name) = text.parse::<Reference>() {
        if name.tag().is_none() && name.digest().is_none() {
            let all = store.images().list().map_err(error)?.into_iter();
            let of_name = all.filter_map(|i| i.name.filter(|n| n.name() == name.name()).map(|n| (i.target, Some(n))));
            let found: Meant = of_name.collect();
            if !found.is_empty() {
                return Ok(found);
            }
        }
        if let Some(image) = store.images().resolve(&name).map_err(error)? {
            return Ok(vec![(image.target, Some(name.with_default_tag()))]);
        }
    }
    let image = find(store, text)?;
    Ok(vec![(image.target, None)])
}
