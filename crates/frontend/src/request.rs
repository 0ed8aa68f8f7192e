//! What goes in and what comes out.

use std::collections::BTreeMap;

use kiln_dockerfile::{Diagnostic, Dockerfile, ExpandError, Source, Span};
use kiln_graph::{Edge, Graph, GraphError, HostIp, Limits, Location, NetworkMode, ResolveMode, Resources, SourceOp};
use kiln_oci::{ImageConfig, Platform};

/// What is to be built.
#[derive(Debug, Clone)]
pub struct LowerRequest<'a> {
    /// The Dockerfile, without syntax errors.
    pub dockerfile: &'a Dockerfile,
    /// Stage to build, by name in any case or by index; the last one where absent.
    pub target: Option<String>,
    /// `--build-arg`.
    pub build_args: BTreeMap<String, String>,
    /// Platforms to build for; the build platform where empty.
    pub platforms: Vec<Platform>,
    /// The platform of the machine that builds.
    pub build_platform: Platform,
    /// `--build-context`: name to what it stands for (a directory or a URL, see [`context_source`](crate::context_source)).
    pub named_contexts: BTreeMap<String, String>,
    /// The main context; the local one named `context` where absent.
    pub main_context: Option<SourceOp>,
    /// `--label`.
    pub labels: BTreeMap<String, String>,
    /// Network of steps that don't say.
    pub network: NetworkMode,
    /// `--add-host`.
    pub extra_hosts: Vec<HostIp>,
    /// `--ulimit`, `--shm-size`.
    pub limits: Limits,
    /// `--memory`, `--cpus`, `--cgroup-parent`, ….
    pub resources: Resources,
    /// Host name of steps.
    pub hostname: Option<String>,
    /// `--no-cache`.
    pub no_cache: bool,
    /// `--no-cache-filter`: stages by name or index.
    pub no_cache_filter: Vec<String>,
    /// Fetch or make sources again, too.
    pub remake_sources: bool,
    /// `--pull` and the like.
    pub resolve: ResolveMode,
    /// Clamp for timestamps in seconds since 1970; a build arg of that name counts as well.
    pub source_date_epoch: Option<i64>,
    /// Proxy variables of the client. Build args with these names win.
    pub proxy: BTreeMap<String, String>,
}

impl<'a> LowerRequest<'a> {
    /// The request of a command line without flags.
    pub fn new(dockerfile: &'a Dockerfile, build_platform: Platform) -> Self {
        Self {
            dockerfile,
            target: None,
            build_args: BTreeMap::new(),
            platforms: Vec::new(),
            build_platform,
            named_contexts: BTreeMap::new(),
            main_context: None,
            labels: BTreeMap::new(),
            network: NetworkMode::Default,
            extra_hosts: Vec::new(),
            limits: Limits::default(),
            resources: Resources::default(),
            hostname: None,
            no_cache: false,
            no_cache_filter: Vec::new(),
            remake_sources: false,
            resolve: ResolveMode::Default,
            source_date_epoch: None,
            proxy: BTreeMap::new(),
        }
    }
}

/// An error of the resolver.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Knows what is behind the name of an image. Called from several threads at once, once for each source and platform.
pub trait MetaResolver: Sync {
    /// The config of an image, and the source with the name pinned to what it means now.
    ///
    /// `source` is an image, an OCI layout or a `deb://` base. `name` is what to show to people:
    /// `[internal] load metadata for docker.io/library/alpine:3`.
    fn resolve(&self, source: &SourceOp, platform: &Platform, name: &str) -> Result<Resolved, BoxError>;

    /// The time of a source, for `SOURCE_DATE_EPOCH=context` and `=<stage>`: a git commit's time, a file's
    /// `Last-Modified`, the newest file of an archive.
    fn epoch(&self, source: &SourceOp) -> Result<Option<i64>, BoxError> {
        let _ = source;
        Ok(None)
    }
}

/// What the resolver knows about an image.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The source, pinned: an image by digest.
    pub source: SourceOp,
    /// The image's config.
    pub config: ImageConfig,
}

/// The result of lowering.
#[derive(Debug)]
pub struct Lowered {
    /// All vertices of all platforms.
    pub graph: Graph,
    /// One image for each platform of the request, in its order.
    pub images: Vec<Image>,
    /// What was noticed that needs the base images, as far as `# check=` allows. All other build checks are
    /// `kiln_dockerfile::lint`'s.
    pub warnings: Vec<Diagnostic>,
    /// Configs of the base images that were resolved, by their names in the Dockerfile with variables expanded: the build
    /// checks want to know which variables they define.
    pub base_configs: BTreeMap<String, ImageConfig>,
    /// The clamp for timestamps that is in force.
    pub source_date_epoch: Option<i64>,
}

/// An image to be built.
#[derive(Debug, Clone)]
pub struct Image {
    /// What it is for.
    pub platform: Platform,
    /// Its root file system; absent if it has no layers.
    pub root: Option<Edge>,
    /// Its config. `rootfs.diff_ids` is empty, and new history entries have no time.
    pub config: ImageConfig,
    /// How many of the first history entries are the base image's.
    pub inherited_history: usize,
    /// The instructions that the other entries are of.
    pub history_locations: Vec<Location>,
    /// Name of the stage, or `stage-N`.
    pub stage: String,
    /// The image that the stage is based on in the end; absent for scratch and contexts.
    pub base: Option<BaseImage>,
}

/// A base image.
#[derive(Debug, Clone)]
pub struct BaseImage {
    /// As the Dockerfile names it, variables expanded.
    pub name: String,
    /// The pinned source.
    pub source: SourceOp,
    /// Its config as resolved, layers included.
    pub config: ImageConfig,
}

/// Why a Dockerfile can't be lowered.
#[derive(Debug, thiserror::Error)]
pub enum LowerError {
    /// Something in the Dockerfile.
    #[error("{}", .0.message)]
    Dockerfile(Box<Diagnostic>),
    /// Something in the request.
    #[error("{message}")]
    Request {
        /// What is wrong.
        message: String,
        /// What to do.
        help: Option<String>,
    },
    /// A base image could not be resolved.
    #[error("{}", .diagnostic.message)]
    Resolve {
        /// The place that names it.
        diagnostic: Box<Diagnostic>,
        /// Why.
        source: BoxError,
    },
    /// A mistake in this crate.
    #[error("internal error: {0}")]
    Graph(#[from] GraphError),
}

impl LowerError {
    /// The place in the Dockerfile, where there is one.
    pub fn diagnostic(&self) -> Option<&Diagnostic> {
        match self {
            LowerError::Dockerfile(diagnostic) | LowerError::Resolve { diagnostic, .. } => Some(diagnostic),
            LowerError::Request { .. } | LowerError::Graph(_) => None,
        }
    }

    /// What to do about it.
    pub fn help(&self) -> Option<&str> {
        match self {
            LowerError::Request { help, .. } => help.as_deref(),
            other => other.diagnostic()?.help.as_deref(),
        }
    }

    pub(crate) fn at(span: Span, message: impl Into<String>) -> Self {
        Self::Dockerfile(Box::new(Diagnostic::error(span, message)))
    }

    /// A word that can't be expanded. It is written at `span`, or brought by the trigger of the `FROM` there.
    pub(crate) fn expansion(
        source: &Source,
        word: &str,
        span: Span,
        trigger: Option<Span>,
        error: &ExpandError,
    ) -> Self {
        let mut diagnostic = error.diagnostic(source, word, span);
        diagnostic.span = trigger.unwrap_or(diagnostic.span);
        Self::Dockerfile(Box::new(diagnostic))
    }

    pub(crate) fn request(message: impl Into<String>) -> Self {
        Self::Request { message: message.into(), help: None }
    }

    pub(crate) fn with_help(mut self, text: Option<String>) -> Self {
        match &mut self {
            LowerError::Dockerfile(diagnostic) | LowerError::Resolve { diagnostic, .. } => {
                if text.is_some() {
                    diagnostic.help = text;
                }
            }
            LowerError::Request { help, .. } => *help = text,
            LowerError::Graph(_) => {}
        }
        self
    }
}
