//! From a [`Resolution`] to a root file system: packages fetched, unpacked and made into a base of their variant.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use kiln_oci::{History, ImageConfig, Timestamp};
use kiln_rootfs::{Ownership, Root};

use crate::context::{Context, Event, redact};
use crate::deb::Deb;
use crate::error::{Error, Result};
use crate::fetch::{Expected, Fetcher};
use crate::resolution::{Resolution, ResolvedPackage};
use crate::spec::Variant;
use crate::{distroless, minbase, tidy, unpack};

/// How to build.
#[derive(Clone, Copy, Default)]
pub struct BuildOptions<'a> {
    /// How owners are stored in the new tree.
    pub ownership: Ownership,
    /// Runs programs of the new root in a sandbox; `variant=minbase` needs it.
    pub configure: Option<&'a dyn Configure>,
}

/// Runs programs inside a root.
pub trait Configure {
    /// Runs one program with `root` as its `/`, as root, with `/proc` and `/dev` there and no network needed. An error is
    /// for when it could not be run at all.
    fn run(&self, root: &Path, step: &Step<'_>) -> std::result::Result<Outcome, String>;
}

/// One program to run.
#[derive(Debug, Clone)]
pub struct Step<'a> {
    /// A few words for display.
    pub name: &'a str,
    /// The program (an absolute path) and its arguments.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
}

/// How it ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Exit code 0.
    pub success: bool,
    /// `exit code 1`, `signal 9`, …
    pub status: String,
    /// The end of what it printed, standard error included.
    pub output: String,
}

/// A base that was built.
#[derive(Debug, Clone)]
pub struct Built {
    /// The config of an image with this base as its only layer; without the layer's digest.
    pub config: ImageConfig,
}

/// Downloads all packages of a resolution that are not in the cache.
pub fn fetch(resolution: &Resolution, context: &Context<'_>) -> Result<()> {
    context.dir("debs")?;
    let missing: Vec<&ResolvedPackage> =
        resolution.packages.iter().filter(|p| !context.deb_path(&p.sha256).exists()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let bytes = missing.iter().map(|p| p.size).sum();
    context.send(Event::Downloads { packages: missing.len(), bytes });
    let fetcher = Fetcher::new(context);
    let next = AtomicUsize::new(0);
    let failure: Mutex<Option<Error>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..context.downloads.clamp(1, missing.len()) {
            scope.spawn(|| {
                while let Some(package) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match fetch_one(resolution, context, &fetcher, package) {
                        Ok(()) => context.send(Event::Fetched { package: &package.name }),
                        Err(error) => {
                            next.store(usize::MAX / 2, Ordering::Relaxed);
                            failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                        }
                    }
                }
            });
        }
    });
    failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

fn fetch_one(
    resolution: &Resolution,
    context: &Context<'_>,
    fetcher: &Fetcher<'_>,
    package: &ResolvedPackage,
) -> Result<()> {
    let repository = resolution
        .repositories
        .get(package.suite)
        .ok_or_else(|| Error::NoSources { suite: package.name.clone(), why: "its suite is unknown".into() })?;
    let url = format!("{}/{}", repository.uri, package.path.trim_start_matches("./"));
    let expected = Expected { sha256: &package.sha256, size: package.size };
    fetcher.download(&url, expected, &context.deb_path(&package.sha256))
}

/// Builds a base into the directory `dest`, which must exist and be empty. After an error it holds debris.
pub fn build(resolution: &Resolution, dest: &Path, context: &Context<'_>, options: &BuildOptions<'_>) -> Result<Built> {
    if resolution.variant == Variant::Minbase && options.configure.is_none() {
        return Err(Error::NoRunner);
    }
    let root = Root::open(dest)?.with_ownership(options.ownership);
    fetch(resolution, context)?;
    let certificates = match fill(resolution, dest, &root, context, options) {
        // A package in the cache was damaged on disk after it had been verified.
        Err(Error::Hash { .. } | Error::Size { .. }) => {
            remove_damaged(resolution, context)?;
            fetch(resolution, context)?;
            root.remove_all(Path::new(""))?;
            fill(resolution, dest, &root, context, options)?
        }
        filled => filled?,
    };
    tidy::clamp_times(&root, resolution.date)?;
    context.check()?;
    Ok(Built { config: config(resolution, certificates) })
}

/// Unpacks and finishes; tells whether there are certificates.
fn fill(
    resolution: &Resolution,
    dest: &Path,
    root: &Root,
    context: &Context<'_>,
    options: &BuildOptions<'_>,
) -> Result<bool> {
    if let (Variant::Minbase, Some(configure)) = (resolution.variant, options.configure) {
        let unpacked = unpack::unpack(resolution, context, root, &|_, _| true)?;
        minbase::finish(root, dest, resolution, context, (&unpacked, configure))?;
        return Ok(false);
    }
    let docs = resolution.spec.docs;
    let unpacked = unpack::unpack(resolution, context, root, &|_, path| distroless::keep(path, docs))?;
    distroless::finish(root, resolution, &unpacked)?;
    distroless::has_certificates(root)
}

/// Removes packages from the cache that are not what their name says.
fn remove_damaged(resolution: &Resolution, context: &Context<'_>) -> Result<()> {
    for package in &resolution.packages {
        let path = context.deb_path(&package.sha256);
        if let Err(Error::Hash { .. } | Error::Size { .. }) = Deb::verify(&path, &package.sha256, package.size) {
            std::fs::remove_file(&path).map_err(Error::io(&path))?;
        }
    }
    Ok(())
}

impl Resolution {
    /// The config of an image with this base, as far as it is known before the base is built.
    pub fn config(&self) -> ImageConfig {
        config(self, self.package("ca-certificates").is_some())
    }
}

fn config(resolution: &Resolution, certificates: bool) -> ImageConfig {
    let platform =
        resolution.spec.platform().unwrap_or_else(|| kiln_oci::Platform::new("linux", &resolution.arch, None));
    let mut config = ImageConfig::empty(&platform);
    let created: Option<Timestamp> = Timestamp::from_seconds(resolution.date).ok();
    config.created = created;
    let debug = resolution.spec.debug && resolution.variant == Variant::Distroless;
    let more = if debug { ":/busybox" } else { "" };
    config.config.env.push(format!("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin{more}"));
    if certificates {
        // For programs that look for certificates somewhere else than Debian's OpenSSL.
        config.config.env.push("SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt".into());
    }
    config.config.working_dir = "/".into();
    if resolution.variant == Variant::Minbase && resolution.package("bash").is_some() {
        config.config.cmd = Some(vec!["bash".into()]);
    }
    if debug {
        config.config.cmd = Some(vec!["/busybox/sh".into()]);
    }
    let mut public = resolution.spec.clone();
    (public.mirror, public.keyring, public.lock) = (None, None, None);
    config.history.push(History { created, created_by: Some(redact(&public.to_string())), ..History::default() });
    config
}
