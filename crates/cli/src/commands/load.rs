//! `kiln load`, the same as `kiln image load`.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, ValueHint};
use kiln_engine::Steps;
use kiln_engine::archives::{LoadSource, LoadedImage};
use kiln_engine::events::EventSink;

use super::parse::platform;
use crate::environment::Environment;
use crate::error::CliError;
use crate::output;
use crate::progress::{Direction, Display};

/// Read images from an archive
///
/// Archives of kiln, docker, podman, skopeo and buildx: docker's format or an OCI layout, plain or compressed with gzip,
/// bzip2, xz or zstd. Nothing is there before all of it was read and verified.
///
/// Examples:
///   kiln load -i app.tar.zst
///   ssh host docker save app | kiln load
///   kiln load -i layout-directory
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct LoadArgs {
    /// Archive or directory with an OCI layout, in place of standard input
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::AnyPath)]
    input: Option<PathBuf>,
    /// Of images for several platforms, only this one
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

/// Reads the archive.
pub fn run(args: &LoadArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    let wanted = args.platform.as_deref().map(platform).transpose()?;
    let source = match args.input.as_deref() {
        Some(path) if path.as_os_str() != "-" => open(path)?,
        _ if std::io::stdin().is_terminal() => {
            return Err(CliError::usage("there is no archive on standard input").with_hint("use -i FILE, or a pipe"));
        }
        _ => LoadSource::Stream(Box::new(std::io::stdin()), None),
    };
    let engine = environment.engine()?;
    let display = Display::transfer(Direction::Load, args.quiet);
    let step = Steps::new(Arc::clone(&display) as Arc<dyn EventSink>).begin("load");
    let outcome = engine.load_images(source, wanted.as_ref(), &step);
    let outcome = step.conclude(outcome);
    display.finish();
    let what = args.input.as_ref().map_or_else(|| "the archive".to_owned(), |path| path.display().to_string());
    let loaded = match outcome {
        Ok(loaded) => loaded,
        Err(error) => return Err(CliError::of_transfer(error, engine, &what)),
    };
    let mut text = String::new();
    for image in loaded {
        text.push_str(&told(&engine.store, &image)?);
    }
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn open(path: &Path) -> Result<LoadSource, CliError> {
    let failed = |e: std::io::Error| CliError::failed(format!("can't open {}: {e}", path.display()));
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if metadata.is_dir() {
        return Ok(LoadSource::Layout(path.to_path_buf()));
    }
    let file = std::fs::File::open(path).map_err(failed)?;
    let length = metadata.is_file().then_some(metadata.len());
    Ok(LoadSource::Stream(Box::new(file), length))
}

/// Docker's words for an image that was loaded.
fn told(store: &kiln_engine::store::Store, image: &LoadedImage) -> Result<String, CliError> {
    let mut text = String::new();
    for name in &image.ignored {
        eprintln!("WARNING: the archive calls an image {name:?}, which is not an image name: it was not given");
    }
    for (name, before) in &image.names {
        if let Some(before) = before {
            let name = name.familiar();
            text.push_str(&format!(
                "The image {name} existed already: the old one, {}, has no name now\n",
                before.digest
            ));
        }
        text.push_str(&format!("Loaded image: {}\n", name.familiar()));
    }
    if image.names.is_empty() {
        let rows = store.images().of(&image.target.digest).map_err(kiln_engine::Error::from)?;
        let id = rows.first().map_or(image.target.digest, kiln_engine::images::id);
        text.push_str(&format!("Loaded image ID: {id}\n"));
    }
    Ok(text)
}
