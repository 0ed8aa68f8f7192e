//! What the commands about containers share.

use std::process::ExitCode;
use std::sync::Arc;

use kiln_engine::container::{Container, find, list};
use kiln_engine::containers::{Connection, Streams, start};
use kiln_engine::oci::{Descriptor, signal};
use kiln_engine::run::DebugTools;
use kiln_engine::store::Store;
use kiln_engine::{Engine, Error};

use crate::environment::Environment;
use crate::error::{CliError, code};
use crate::foreground::{Foreground, terminal_size};
use crate::output;

/// The container that a user means. Nothing is opened for that, no namespace entered.
pub fn named(environment: &Environment, text: &str) -> Result<Container, CliError> {
    Ok(find(environment.root(), text).map_err(Error::from)?)
}

/// The containers of a store, to find those of images.
pub fn all(store: &Store) -> Result<Vec<Container>, CliError> {
    Ok(list(store.root()).map_err(Error::from)?)
}

/// A container that was made from an image.
pub fn made_from<'a>(
    store: &Store,
    containers: &'a [Container],
    image: &Descriptor,
) -> Result<Option<&'a Container>, CliError> {
    if containers.is_empty() {
        return Ok(None);
    }
    let views = store.images().manifests(image).map_err(Error::from)?;
    let ids: Vec<String> = views.into_iter().map(|v| v.manifest.config.digest.to_string()).collect();
    Ok(containers.iter().find(|c| ids.contains(&c.config.image_id)))
}

/// Does something for each of several containers and prints the line that comes out, as docker does. Those that fail are told,
/// and the others done all the same.
pub fn each<T>(
    items: impl IntoIterator<Item = T>,
    mut work: impl FnMut(T) -> Result<Option<String>, CliError>,
) -> Result<ExitCode, CliError> {
    let mut failed: Option<CliError> = None;
    for item in items {
        match work(item) {
            Ok(Some(line)) => output::print(&format!("{line}\n"))?,
            Ok(None) => {}
            Err(e) => {
                if let Some(before) = failed.replace(e) {
                    before.show();
                }
            }
        }
    }
    failed.map_or(Ok(ExitCode::SUCCESS), Err)
}

/// Starts a container with the user's terminal and streams, and follows it to its end.
pub fn run_attached(
    engine: &Arc<Engine>,
    container: &mut Container,
    interactive: bool,
    debug: Option<&DebugTools>,
) -> Result<ExitCode, CliError> {
    let tty = container.config.tty;
    let foreground = Foreground::new(interactive, tty)?;
    let streams = Streams::own(interactive, tty.then(terminal_size))?;
    let connection = Connection { streams, attach: &foreground, cancel: foreground.cancel() };
    let exit = start(engine, container, debug, connection);
    foreground.detach();
    passed_on(exit, code::RUN_FAILED)
}

/// The exit code of a process in a container is kiln's; `failed` is that of a failure without one of its own.
pub fn passed_on(exit: Result<i32, Error>, failed: u8) -> Result<ExitCode, CliError> {
    match exit {
        Ok(code) => Ok(ExitCode::from(u8::try_from(code & 0xff).unwrap_or(code::RUN_FAILED))),
        Err(error) => {
            let code = match &error {
                Error::Executor(e) => e.exit_code().and_then(|c| u8::try_from(c).ok()),
                Error::Cancelled => Some(code::INTERRUPTED),
                _ => None,
            };
            Err(CliError::from(error).with_code(code.unwrap_or(failed)))
        }
    }
}

/// A signal by name, with or without `SIG`, or by number.
pub fn signal(text: &str) -> Result<i32, CliError> {
    signal::number(text).ok_or_else(|| CliError::usage(format!("invalid signal: {text}")))
}
