//! What a container is made from: an image, and what `kiln run` and `kiln create` are told. Its life is in `containers`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use kiln_container::{Bind, Config, Container, LogLimits};
use kiln_executor::Started;
use kiln_oci::{ContainerConfig, Platform, Reference};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::images::is_for;
use crate::transfer::KnownImage;

/// A container to make.
#[derive(Debug, Clone, Default)]
pub struct RunRequest {
    /// Name of the image, or the beginning of its ID.
    pub image: String,
    /// Whether a registry is asked for it.
    pub pull: Pull,
    /// Which of its platforms; without one, this machine's, or the only one.
    pub platform: Option<Platform>,
    /// The container's name; empty for one of kiln's choice.
    pub name: String,
    /// Labels besides the image's.
    pub labels: BTreeMap<String, String>,
    /// It goes with its command.
    pub auto_remove: bool,
    /// Command in place of the image's.
    pub command: Vec<String>,
    /// Its standard input is open.
    pub interactive: bool,
    /// It has a terminal.
    pub tty: bool,
    /// A small init as process 1.
    pub init: bool,
    /// Variables, `NAME=value`.
    pub env: Vec<String>,
    /// Bind mounts.
    pub binds: Vec<Bind>,
    /// Working directory in place of the image's.
    pub workdir: Option<String>,
    /// User in place of the image's.
    pub user: Option<String>,
    /// Entry point in place of the image's.
    pub entrypoint: Option<String>,
    /// The host's network rather than none.
    pub host_network: bool,
    /// Host name.
    pub hostname: Option<String>,
    /// The root can't be written to.
    pub read_only: bool,
    /// Ports that are to be reachable.
    pub ports: Vec<u16>,
    /// What asks it to stop, in place of the image's.
    pub stop_signal: Option<String>,
    /// What it writes in the background is lost.
    pub unlogged: bool,
    /// How much of its log is kept.
    pub log_limits: LogLimits,
    /// A shell with tools rather than the image's command, for images that have none.
    pub debug: Option<DebugTools>,
}

/// When a registry is asked for an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Pull {
    /// If it is not here.
    #[default]
    Missing,
    /// In any case.
    Always,
    /// Not at all.
    Never,
}

/// What a debugging shell brings along.
#[derive(Debug, Clone, Default)]
pub struct DebugTools {
    /// A static busybox of the host.
    pub busybox: Option<PathBuf>,
}

/// Who is connected with a container.
pub trait Attach {
    /// All is ready: from now on signals are the container's.
    fn starting(&self);

    /// It runs. If it has a terminal, that is to be served.
    fn started(&self, container: Started);
}

/// Makes a container. It does not run yet.
pub fn create(engine: &Arc<Engine>, request: &RunRequest) -> Result<Container> {
    let image = engine.image_to_run(&request.image, request.pull, request.platform.as_ref())?;
    let layers = engine.image_snapshot(&image)?;
    let of_image = &image.config.config;
    let (entrypoint, command) = words(request, of_image)?;
    let mut labels = of_image.labels.clone();
    labels.extend(request.labels.clone());
    let workdir = request.workdir.clone().filter(|w| !w.is_empty()).unwrap_or_else(|| of_image.working_dir.clone());
    let config = Config {
        name: request.name.clone(),
        image: request.image.clone(),
        image_id: image.manifest.config.digest.to_string(),
        platform: image.config.platform().to_string(),
        layers: layers.0.iter().map(ToString::to_string).collect(),
        entrypoint,
        command,
        env: merged(&of_image.env, &request.env),
        workdir: if workdir.is_empty() { "/".to_owned() } else { workdir },
        user: request.user.clone().unwrap_or_else(|| of_image.user.clone()),
        hostname: request.hostname.clone().unwrap_or_else(|| "kiln".to_owned()),
        labels,
        tty: request.tty,
        interactive: request.interactive,
        init: request.init,
        read_only: request.read_only,
        host_network: request.host_network,
        binds: request.binds.clone(),
        ports: request.ports.clone(),
        stop_signal: request
            .stop_signal
            .clone()
            .or_else(|| Some(of_image.stop_signal.clone()))
            .filter(|s| !s.is_empty()),
        auto_remove: request.auto_remove,
        unlogged: request.unlogged,
        log_limits: request.log_limits,
        ..Config::default()
    };
    Ok(kiln_container::create(&engine.store, config)?)
}

impl Engine {
    fn image_to_run(&self, text: &str, pull: Pull, wanted: Option<&Platform>) -> Result<KnownImage> {
        let host = Platform::host();
        let platform = wanted.unwrap_or(&host);
        let found = match pull {
            Pull::Missing => self.image_by_name_or_id(text, platform).map_err(|e| self.why_not(text, platform, e))?,
            Pull::Never => {
                let image = crate::images::find(&self.store, text)?;
                self.known(&image.target, platform, None).map_err(|e| e.of_image(text))?
            }
            Pull::Always => self.find_image(&parsed(text)?, platform, true)?,
        };
        let own = found.config.platform();
        let Some(wanted) = wanted.filter(|wanted| !is_for(&own, wanted)) else { return Ok(found) };
        let other = |why: &str| {
            Error::request_with_hint(
                format!("{text} is an image for {own}, not for {wanted}{why}"),
                "`kiln pull --platform` and `kiln build --platform` make one for another platform",
            )
        };
        // It may be here for one platform, and elsewhere for several.
        let (Pull::Missing, None, Ok(name)) = (pull, &found.remote, parsed(text)) else { return Err(other("")) };
        if self.store.images().resolve(&name)?.is_none() {
            return Err(other(", and was named by its ID"));
        }
        let pulled = self.find_image(&name, wanted, true);
        let pulled = pulled.map_err(|e| other(&format!(", and one could not be pulled: {e}")))?;
        if is_for(&pulled.config.platform(), wanted) { Ok(pulled) } else { Err(other("")) }
    }

    /// The error of an image that could not be had, which may be here for other platforms.
    fn why_not(&self, text: &str, platform: &Platform, error: Error) -> Error {
        let here = parsed(text).ok().and_then(|name| self.store.images().resolve(&name).ok()?);
        match here.map(|image| self.known(&image.target, platform, None)) {
            Some(Err(Error::Store(kiln_store::Error::NoPlatform { wanted, available, .. }))) => {
                Error::request(format!(
                    "{text} has no image for {wanted}: here it has {available}, and another one could not be pulled: {error}"
                ))
            }
            _ => error,
        }
    }

    /// An image by name (from a registry if it is not here) or by the beginning of its ID.
    pub fn image_by_name_or_id(&self, text: &str, platform: &Platform) -> Result<KnownImage> {
        let name = parsed(text);
        if let Ok(name) = &name
            && self.store.images().resolve(name)?.is_some()
        {
            return self.find_image(name, platform, false);
        }
        if text.trim_start_matches("sha256:").chars().all(|c| c.is_ascii_hexdigit())
            && let Some(image) = self.store.images().by_id(text)?
        {
            return self.known(&image.target, platform, None).map_err(|e| e.of_image(text));
        }
        self.find_image(&name?, platform, false)
    }
}

/// The name of an image, with the tag that is meant by none.
fn parsed(text: &str) -> Result<Reference> {
    text.parse().map(Reference::with_default_tag).map_err(|e| Error::request(e.to_string()))
}

/// Entry point and command.
fn words(request: &RunRequest, config: &ContainerConfig) -> Result<(Vec<String>, Vec<String>)> {
    if request.debug.is_some() {
        return Ok((Vec::new(), request.command.clone()));
    }
    let entrypoint = match &request.entrypoint {
        Some(program) => vec![program.clone()].into_iter().filter(|p| !p.is_empty()).collect(),
        None => config.entrypoint.clone().unwrap_or_default(),
    };
    let command = match (request.command.is_empty(), &request.entrypoint) {
        (false, _) => request.command.clone(),
        (true, None) => config.cmd.clone().unwrap_or_default(),
        (true, Some(_)) => Vec::new(),
    };
    if entrypoint.is_empty() && command.is_empty() {
        return Err(Error::request_with_hint(
            format!("the image {} has no command", request.image),
            "name one after the image; any word will do for a container that only files are copied from",
        ));
    }
    Ok((entrypoint, command))
}

/// Variables, of which later ones replace earlier ones.
pub(crate) fn merged(first: &[String], then: &[String]) -> Vec<String> {
    let mut env = first.to_vec();
    for pair in then {
        env.retain(|e| name(e) != name(pair));
        env.push(pair.clone());
    }
    env
}

/// The name in `NAME=value`.
pub(crate) fn name(pair: &str) -> &str {
    pair.split('=').next().unwrap_or_default()
}
