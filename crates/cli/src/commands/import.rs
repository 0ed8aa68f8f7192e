//! `kiln import`, the same as `kiln image import`.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, ValueHint};
use kiln_engine::Steps;
use kiln_engine::archives::{ImportRequest, ImportSource};
use kiln_engine::events::EventSink;
use kiln_engine::oci::{Platform, Reference};

use super::parse::platform;
use crate::environment::Environment;
use crate::error::CliError;
use crate::output;
use crate::progress::{Direction, Display};

/// Make an image of a root file system in a tar archive
///
/// The archive may be compressed with gzip, bzip2, xz or zstd. The image has one layer, and its history says where it is from.
///
/// Examples:
///   kiln import rootfs.tar.xz base:1
///   debootstrap --variant=minbase bookworm root && tar -C root -c . | kiln import - debian:bookworm
///   kiln import -c 'CMD ["/bin/sh"]' -c 'ENV LANG=C.UTF-8' -m 'our base' https://example.com/rootfs.tar.gz base
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct ImportArgs {
    /// File, URL, or `-` for standard input
    #[arg(value_name = "FILE|URL|-", value_hint = ValueHint::FilePath)]
    source: String,
    /// Name for the image, `name[:tag]`
    name: Option<String>,
    /// Change the image's config: CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME, WORKDIR
    #[arg(short, long = "change", value_name = "INSTRUCTION")]
    changes: Vec<String>,
    /// Comment for the history
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// What the image runs on [default: this machine]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

/// Makes the image and prints its ID.
pub fn run(args: &ImportArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    let name = args.name.as_deref().map(str::parse::<Reference>).transpose();
    let name = name.map_err(|e| CliError::usage(e.to_string()))?;
    if name.as_ref().is_some_and(|n| n.digest().is_some()) {
        return Err(CliError::usage("a name by digest can't be given, only a tag"));
    }
    let request = ImportRequest {
        source: source(&args.source)?,
        name,
        changes: args.changes.clone(),
        message: args.message.clone(),
        platform: args.platform.as_deref().map(platform).transpose()?.unwrap_or_else(Platform::host),
    };
    let engine = environment.engine()?;
    let display = Display::transfer(Direction::Load, args.quiet);
    let step = Steps::new(Arc::clone(&display) as Arc<dyn EventSink>).begin("import");
    let outcome = engine.import_image(request, &step);
    let outcome = step.conclude(outcome);
    display.finish();
    let target = match outcome {
        Ok(target) => target,
        Err(error) => {
            let what = if args.source == "-" { "the archive" } else { &args.source };
            return Err(CliError::of_transfer(error, engine, what));
        }
    };
    let rows = engine.store.images().of(&target.digest).map_err(kiln_engine::Error::from)?;
    let id = rows.first().map_or(target.digest, kiln_engine::images::id);
    output::print(&format!("{id}\n"))?;
    Ok(ExitCode::SUCCESS)
}

fn source(text: &str) -> Result<ImportSource, CliError> {
    if text == "-" {
        if std::io::stdin().is_terminal() {
            return Err(CliError::usage("there is no archive on standard input").with_hint("use a file, or a pipe"));
        }
        return Ok(ImportSource::Stream(Box::new(std::io::stdin()), "-".to_owned(), None));
    }
    if text.starts_with("http://") || text.starts_with("https://") {
        return Ok(ImportSource::Url(text.to_owned()));
    }
    let failed = |e: std::io::Error| CliError::failed(format!("can't open {text}: {e}"));
    let file = std::fs::File::open(text).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_dir() {
        return Err(CliError::usage(format!("{text} is a directory"))
            .with_hint(format!("tar -C {text} -c . | kiln import - NAME")));
    }
    let length = metadata.is_file().then_some(metadata.len());
    Ok(ImportSource::Stream(Box::new(file), text.to_owned(), length))
}
