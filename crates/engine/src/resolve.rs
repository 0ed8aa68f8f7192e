//! What sources mean now: an image name a manifest, a branch a commit, a `deb://` spec a list of packages.
//!
//! Each source is resolved once in a build; the answers are shared by the frontend, which needs configs, the plan, which
//! needs identities, and the operations, which need to know what to fetch.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use kiln_graph::{GitSource, HttpSource, OciLayoutSource, ResolveMode, Selector, SourceOp, Vertex};
use kiln_oci::{Digest, ImageConfig, Platform, Reference};
use kiln_source::{HttpFile, HttpOptions};

use crate::build::plan::Identify;
use crate::contexts::Contexts;
use crate::debian::{Asked, UserFiles};
use crate::engine::Engine;
use crate::error::{Cause, Error, Result, StepError};
use crate::git_access::GitAccess;
use crate::steps::Steps;
use crate::transfer::KnownImage;

/// What a source means.
#[derive(Clone)]
pub enum Meaning {
    /// An image.
    Image(Arc<KnownImage>),
    /// A base made of packages.
    Deb(Arc<kiln_deb::Resolution>),
    /// A commit.
    Git(GitSource, String),
    /// A file whose content is in the store.
    Http(HttpFile),
}

impl Meaning {
    fn identity(&self) -> (&'static str, Digest) {
        match self {
            Self::Image(image) => ("image", image.descriptor.digest),
            Self::Deb(resolution) => ("deb", resolution.digest),
            Self::Git(url, commit) => {
                // The name is in a `.git` that is kept.
                let name = url.reference.as_ref().filter(|_| url.keep_git_dir);
                let parts = (commit, &url.subdir, name, url.keep_git_dir, url.skip_submodules);
                ("git", Digest::of(format!("{parts:?}").as_bytes()))
            }
            Self::Http(file) => ("http", Digest::of(format!("{}\n{}", file.digest, file.filename).as_bytes())),
        }
    }
}

/// Sources that were resolved.
pub struct Resolved {
    engine: Arc<Engine>,
    contexts: Arc<Contexts>,
    git: Arc<GitAccess>,
    steps: Steps,
    pull: bool,
    dockerfile: Option<kiln_dockerfile::Source>,
    deb: DebOptions,
    /// One lock for each source, so that two that ask for the same wait for one answer.
    known: Mutex<BTreeMap<String, Arc<Mutex<Option<Meaning>>>>>,
}

/// What [`Resolved`] needs to know.
pub struct ResolveOptions {
    /// Contexts by name.
    pub contexts: Arc<Contexts>,
    /// Tokens and the ssh agent for git.
    pub git: Arc<GitAccess>,
    /// Always ask registries.
    pub pull: bool,
    /// The Dockerfile, for messages.
    pub dockerfile: Option<kiln_dockerfile::Source>,
    /// For bases made of packages.
    pub deb: DebOptions,
}

/// What bases made of packages may use.
#[derive(Default)]
pub struct DebOptions {
    /// Lock files and keyrings.
    pub files: UserFiles,
    /// Replace what lock files have.
    pub relock: bool,
}

impl Resolved {
    /// Nothing is resolved yet.
    pub fn new(engine: Arc<Engine>, steps: Steps, options: ResolveOptions) -> Self {
        let ResolveOptions { contexts, git, pull, dockerfile, deb } = options;
        Self { engine, contexts, git, steps, pull, dockerfile, deb, known: Mutex::default() }
    }

    fn once(&self, key: String, resolve: impl FnOnce() -> Result<Meaning>) -> Result<Meaning> {
        let slot = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(known.entry(key).or_default())
        };
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(meaning) = &*slot {
            return Ok(meaning.clone());
        }
        let meaning = resolve()?;
        *slot = Some(meaning.clone());
        Ok(meaning)
    }

    /// An image's manifest and config.
    pub fn image(&self, name: &Reference, platform: &Platform, mode: ResolveMode) -> Result<Arc<KnownImage>> {
        let name = name.clone().with_default_tag();
        let meaning = self.once(format!("image {name} {platform}"), || {
            let ask = self.pull || mode == ResolveMode::ForcePull;
            if !ask && let Some(known) = self.engine.find_image_here(&name, platform)? {
                return Ok(Meaning::Image(Arc::new(known)));
            }
            let step = self.steps.begin(&format!("[internal] load metadata for {name}"));
            step.conclude(self.engine.find_image(&name, platform, ask).map(|i| Meaning::Image(Arc::new(i))))
        })?;
        match meaning {
            Meaning::Image(image) => Ok(image),
            _ => Err(Error::request(format!("{name} is not an image"))),
        }
    }

    /// A base made of packages: its package list, and the config that it gives.
    pub fn deb(&self, spec: &str, platform: &Platform) -> Result<Arc<kiln_deb::Resolution>> {
        let meaning = self.once(format!("deb {spec} {platform}"), || {
            let step = self.steps.begin(&format!("[internal] resolve packages of {spec}"));
            let (refresh, relock) = (self.pull || self.deb.relock, self.deb.relock);
            let asked = Asked { text: spec, platform, refresh, relock };
            let resolved = crate::debian::resolve(&self.engine, &asked, &self.deb.files, &step);
            step.conclude(resolved.map(|r| Meaning::Deb(Arc::new(r))))
        })?;
        match meaning {
            Meaning::Deb(resolution) => Ok(resolution),
            _ => Err(Error::request(format!("{spec} is not a package base"))),
        }
    }

    /// The config of a base made of packages.
    pub fn deb_config(&self, spec: &str, platform: &Platform) -> Result<ImageConfig> {
        Ok(self.deb(spec, platform)?.config())
    }

    /// An image of an OCI layout.
    pub fn layout(&self, layout: &OciLayoutSource, platform: &Platform) -> Result<Arc<KnownImage>> {
        let key = format!("layout {layout:?} {platform}");
        match self
            .once(key, || crate::layout::find(&self.engine, layout, platform).map(|i| Meaning::Image(Arc::new(i))))?
        {
            Meaning::Image(image) => Ok(image),
            _ => Err(Error::request(format!("{} is not an image", layout.path))),
        }
    }

    /// What a vertex's source means.
    pub fn meaning(&self, vertex: &Vertex, source: &SourceOp) -> Result<Option<Meaning>> {
        let host = Platform::host();
        let platform = vertex.platform.as_ref().unwrap_or(&host);
        match source {
            SourceOp::Local(_) => Ok(None),
            SourceOp::Image(image) => {
                self.image(&image.reference, platform, image.resolve).map(|i| Some(Meaning::Image(i)))
            }
            SourceOp::OciLayout(layout) => self.layout(layout, platform).map(|i| Some(Meaning::Image(i))),
            SourceOp::Deb(spec) => self.deb(spec, platform).map(|d| Some(Meaning::Deb(d))),
            SourceOp::Git(git) => self.once(format!("git {git:?}"), || self.git(git)).map(Some),
            SourceOp::Http(http) => self.once(format!("http {http:?}"), || self.http(http)).map(Some),
        }
    }

    /// A file by HTTP.
    pub fn http_file(&self, http: &HttpSource) -> Result<HttpFile> {
        match self.once(format!("http {http:?}"), || self.http(http))? {
            Meaning::Http(file) => Ok(file),
            _ => Err(Error::request(format!("{} is not a file", kiln_source::redact_url(&http.url)))),
        }
    }

    /// The name of a base image that has this layer.
    pub fn base_with(&self, blob: &Digest) -> Option<String> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().find_map(|(key, slot)| {
            let slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(Meaning::Image(image)) = &*slot else { return None };
            let has_it = image.manifest.layers.iter().any(|l| l.digest == *blob);
            has_it.then(|| key.split(' ').nth(1).unwrap_or_default().to_owned())
        })
    }

    /// The identity of a source that was resolved.
    pub fn identity(&self, vertex: &Vertex) -> Option<Digest> {
        let kiln_graph::Op::Source(source) = &vertex.op else { return None };
        self.meaning(vertex, source).ok().flatten().map(|m| m.identity().1)
    }

    /// How to get at git remotes.
    pub fn git_access(&self) -> &GitAccess {
        &self.git
    }

    fn git(&self, git: &GitSource) -> Result<Meaning> {
        let commit = self.git.fetcher()?.resolve(git, &self.git.auth(&git.remote)?)?;
        Ok(Meaning::Git(git.clone(), commit))
    }

    fn http(&self, http: &HttpSource) -> Result<Meaning> {
        self.git.note(&http.url);
        let known = format!("http {}", http.url);
        let content = self.engine.store.content();
        if let Some(checksum) = &http.checksum
            && let Some(file) = self.engine.store.meta().get_as::<HttpRecord>(&known)?
            && file.digest == *checksum
            && content.has(checksum)?
        {
            return Ok(Meaning::Http(file.file(http)));
        }
        let before =
            self.engine.store.meta().get_as::<HttpRecord>(&known)?.filter(|f| content.has(&f.digest).unwrap_or(false));
        let etag = before.as_ref().and_then(|f| f.etag.clone());
        let options = HttpOptions { checksum: http.checksum, etag, ..HttpOptions::default() };
        let step = self.steps.begin(&format!("[internal] download {}", kiln_source::redact_url(&http.url)));
        let mut blob = content.writer()?;
        let got = self.engine.http.get(&http.url, &options, &mut blob);
        let record = match (step.conclude(got.map_err(Error::from))?, before) {
            (Some(file), _) => {
                let (digest, size) = blob.commit(None)?;
                HttpRecord {
                    digest,
                    size,
                    filename: file.filename,
                    modified: file.modified.map(|m| m.seconds()),
                    etag: file.etag,
                }
            }
            (None, Some(before)) => before,
            (None, None) => {
                return Err(Error::request(format!("{}: the server sent nothing", kiln_source::redact_url(&http.url))));
            }
        };
        self.engine.store.meta().put_as(&known, &record, None)?;
        Ok(Meaning::Http(record.file(http)))
    }
}

/// What is remembered of a download.
#[derive(serde::Serialize, serde::Deserialize)]
struct HttpRecord {
    digest: Digest,
    size: u64,
    filename: String,
    modified: Option<i64>,
    etag: Option<String>,
}

impl HttpRecord {
    fn file(self, http: &HttpSource) -> HttpFile {
        HttpFile {
            digest: self.digest,
            size: self.size,
            filename: http.filename.clone().unwrap_or(self.filename),
            modified: self.modified.and_then(|s| kiln_oci::Timestamp::from_seconds(s).ok()),
            etag: self.etag,
        }
    }
}

impl Identify for Resolved {
    fn source(&self, vertex: &Vertex, source: &SourceOp) -> Result<Option<(&'static str, Digest)>> {
        match self.meaning(vertex, source) {
            Ok(meaning) => Ok(meaning.map(|m| m.identity())),
            // A download is blamed on the line that asks for it.
            Err(error) if vertex.meta.location.is_some() && !matches!(error, Error::Cancelled) => {
                Err(self.located(vertex, error))
            }
            Err(error) => Err(error),
        }
    }

    fn located(&self, vertex: &Vertex, error: Error) -> Error {
        Error::Step(Box::new(StepError {
            name: self.steps.shown(&vertex.meta.name),
            location: vertex.meta.location.clone(),
            source_text: self.dockerfile.clone(),
            cause: Cause::Other(Box::new(error)),
            output: Vec::new(),
        }))
    }

    fn context(&self, name: &str, selectors: &[Selector]) -> Result<Digest> {
        self.contexts.get(name)?.digest(selectors)
    }
}
