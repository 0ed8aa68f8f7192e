//! What a build is asked to do: values only, already parsed from the command line.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use kiln_graph::{HostIp, Limits, NetworkMode, Resources};
use kiln_oci::media::Compression;
use kiln_oci::{Platform, Reference};

use crate::debug::OnFailure;

/// A build.
pub struct BuildRequest {
    /// The main context.
    pub context: ContextSource,
    /// The Dockerfile.
    pub dockerfile: DockerfileSource,
    /// The stage to build; the last one where absent.
    pub target: Option<String>,
    /// `--build-arg`; a value that is absent was not in the environment either.
    pub build_args: BTreeMap<String, String>,
    /// `--build-context`: name to source.
    pub named_contexts: BTreeMap<String, String>,
    /// Platforms to build for; the host's where empty.
    pub platforms: Vec<Platform>,
    /// Names for the result.
    pub tags: Vec<Reference>,
    /// `--label`.
    pub labels: BTreeMap<String, String>,
    /// `--annotation`.
    pub annotations: Vec<Annotation>,
    /// Where the result goes; the image store where empty.
    pub outputs: Vec<Output>,
    /// Cache sources.
    pub cache_from: Vec<CacheSpec>,
    /// Cache destinations.
    pub cache_to: Vec<CacheSpec>,
    /// Secrets by id.
    pub secrets: BTreeMap<String, SecretSource>,
    /// ssh agents by id.
    pub ssh: BTreeMap<String, SshSource>,
    /// Ignore the cache for everything.
    pub no_cache: bool,
    /// Ignore the cache for these stages.
    pub no_cache_filter: Vec<String>,
    /// Ask registries even if the image is here.
    pub pull: bool,
    /// Make `deb://` bases again, although they are here.
    pub remake: bool,
    /// Replace what lock files have for `deb://` bases.
    pub relock: bool,
    /// How RUN steps are run.
    pub run: RunOptions,
    /// Steps that use a processor at once.
    pub jobs: usize,
    /// Tell for each step why it was not cached.
    pub explain: bool,
    /// Clamp for timestamps, seconds since 1970.
    pub source_date_epoch: Option<i64>,
    /// What to do if a secret is found in the result.
    pub leaks: OnFinding,
    /// A shell for steps that fail.
    pub on_failure: Option<OnFailure>,
    /// What to do if a program of the result can't start.
    pub check_programs: OnFinding,
}

/// How RUN steps are run.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// Network of steps that do not say.
    pub network: NetworkMode,
    /// More lines of `/etc/hosts`.
    pub extra_hosts: Vec<HostIp>,
    /// Limits of a process.
    pub limits: Limits,
    /// Limits of a step.
    pub resources: Resources,
    /// Host name of steps.
    pub hostname: Option<String>,
    /// `--allow`.
    pub allow: Entitlements,
    /// Proxy variables of the client.
    pub proxy: BTreeMap<String, String>,
}

/// What steps may do beyond the default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Entitlements {
    /// `network.host`.
    pub network_host: bool,
    /// `security.insecure`.
    pub security_insecure: bool,
}

/// A stream that can be read once.
pub type Once = Arc<Mutex<Option<Box<dyn Read + Send>>>>;

/// Where the context comes from.
#[derive(Clone)]
pub enum ContextSource {
    /// A directory.
    Local(PathBuf),
    /// A tar of any compression, or a Dockerfile alone.
    Stream(Once),
    /// A git URL or an HTTP URL.
    Remote(String),
}

/// Where the Dockerfile comes from.
#[derive(Clone)]
pub enum DockerfileSource {
    /// `Dockerfile` (or `Containerfile`) in the context.
    Default,
    /// A path: relative to the context if it is remote, else to the working directory.
    Path(PathBuf),
    /// Its text.
    Inline(Vec<u8>),
    /// Text that the user never wrote, and so is not shown.
    Generated(Vec<u8>),
    /// A URL.
    Remote(String),
}

/// Where an annotation goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnnotationTarget {
    /// The image manifest.
    Manifest,
    /// The index.
    Index,
    /// The manifest's descriptor in the index.
    ManifestDescriptor,
    /// The index's descriptor in the layout.
    IndexDescriptor,
}

/// `--annotation`.
#[derive(Debug, Clone)]
pub struct Annotation {
    /// Where it goes.
    pub target: AnnotationTarget,
    /// Only for this platform.
    pub platform: Option<Platform>,
    /// Key.
    pub key: String,
    /// Value.
    pub value: String,
}

/// Where a result goes.
#[derive(Debug, Clone)]
pub enum Output {
    /// The image store, and a registry if `push`.
    Image(ImageOutput),
    /// An archive or layout directory.
    Archive(ArchiveOutput),
    /// The files of the root, as a tar.
    Tar(Destination),
    /// The files of the root, into a directory.
    Local {
        /// The directory.
        dest: PathBuf,
        /// Remove what is there but not in the result.
        delete: bool,
    },
    /// Nowhere.
    CacheOnly,
}

/// `type=image`.
#[derive(Debug, Clone, Default)]
pub struct ImageOutput {
    /// Names, beside `--tag`.
    pub names: Vec<Reference>,
    /// Upload.
    pub push: bool,
    /// Upload without a tag.
    pub push_by_digest: bool,
    /// A result without a name is kept as this and its digest.
    pub dangling_prefix: Option<Reference>,
    /// Also keep it under `name@digest`.
    pub name_canonical: bool,
    /// Upload without verifying the registry's certificate, or with plain http.
    pub insecure: bool,
    /// How layers are written.
    pub layers: LayerFormat,
}

/// `type=oci` and `type=docker` with a destination.
#[derive(Debug, Clone)]
pub struct ArchiveOutput {
    /// Docker's `manifest.json` too.
    pub docker: bool,
    /// Where to.
    pub dest: Destination,
    /// A directory rather than a tar.
    pub directory: bool,
    /// Names, beside `--tag`.
    pub names: Vec<Reference>,
    /// How layers are written.
    pub layers: LayerFormat,
}

/// How layers are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerFormat {
    /// Compression of new layers.
    pub compression: Compression,
    /// Its level.
    pub level: Option<i32>,
    /// Also for layers that exist in another compression.
    pub force: bool,
    /// OCI rather than Docker media types.
    pub oci: bool,
    /// Clamp files' times to `SOURCE_DATE_EPOCH`.
    pub rewrite_timestamp: bool,
}

impl Default for LayerFormat {
    fn default() -> Self {
        Self { compression: Compression::Gzip, level: None, force: false, oci: true, rewrite_timestamp: false }
    }
}

/// A file or standard output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// A path.
    Path(PathBuf),
    /// Standard output.
    Stdout,
}

/// `--cache-from`, `--cache-to`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheSpec {
    /// `registry`, `local`, `inline`, `s3`.
    pub kind: String,
    /// The rest.
    pub attrs: BTreeMap<String, String>,
}

/// Where a secret's value is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// A file.
    File(PathBuf),
    /// A value that the command line read from the environment.
    Value(Vec<u8>),
}

/// Where an ssh agent is.
#[derive(Debug, Clone)]
pub enum SshSource {
    /// A socket.
    Socket(PathBuf),
    /// Here, with keys that were read from files.
    Keys(Arc<kiln_sshagent::Agent>),
}

/// What to do if a check of the result finds something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnFinding {
    /// Write no result. What only looks like a credential is a warning all the same.
    #[default]
    Fail,
    /// Warn.
    Warn,
    /// Do not look.
    Off,
}
