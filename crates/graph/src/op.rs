//! The operations, and the sources.

use std::collections::BTreeMap;

use kiln_oci::{Digest, Reference};

use crate::{ExecOp, FileOp};

/// What a vertex does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Brings a file system from outside.
    Source(SourceOp),
    /// Runs a process.
    Exec(ExecOp),
    /// Copies, makes and removes files.
    File(FileOp),
    /// Puts file systems on top of each other.
    Merge(MergeOp),
    /// What one file system has that another has not.
    Diff(DiffOp),
    /// A nested build.
    Build(BuildOp),
}

/// Where a file system comes from. A source has no inputs and one output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceOp {
    /// A directory of the client.
    Local(LocalSource),
    /// An image by name.
    Image(ImageSource),
    /// An image in an OCI layout directory or archive.
    OciLayout(OciLayoutSource),
    /// One file by HTTP.
    Http(HttpSource),
    /// A checkout of a git repository.
    Git(GitSource),
    /// A base made from distribution packages: the whole `deb://…` text.
    Deb(String),
}

/// A directory of the client, read in place. One vertex for each context name: who reads it says what of it it needs
/// (see [`Selector`](crate::Selector)), so that unrelated files never matter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalSource {
    /// Name of the context; `context` is the main one.
    pub name: String,
    /// Only these (patterns).
    pub include: Vec<String>,
    /// But not these (patterns, as in `.dockerignore`).
    pub exclude: Vec<String>,
    /// Also what these paths lead to through symbolic links.
    pub follow_paths: Vec<String>,
    /// A hint for what to share between builds; not part of the digest.
    pub shared_key: Option<String>,
}

/// An image by name; its platform is the vertex's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSource {
    /// The name; with a digest once it was resolved.
    pub reference: Reference,
    /// Whether the registry is to be asked.
    pub resolve: ResolveMode,
}

/// Whether a registry is asked for the meaning of a name. Not part of the digest: once resolved, the name has a digest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum ResolveMode {
    /// The image store first; the registry if the image is not there.
    #[default]
    Default,
    /// Always the registry (`--pull`).
    ForcePull,
    /// What is here is preferred even if it is old.
    PreferLocal,
}

/// An image in an OCI layout; its platform is the vertex's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OciLayoutSource {
    /// The directory or archive, as the user wrote it.
    pub path: String,
    /// Which image of it, by tag.
    pub tag: Option<String>,
    /// Which image of it, by digest; set once resolved.
    pub digest: Option<Digest>,
}

/// One file by HTTP.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HttpSource {
    /// `http://…` or `https://…`.
    pub url: String,
    /// What the file must hash to.
    pub checksum: Option<Digest>,
    /// The file's name in the output; from the answer or the URL where absent.
    pub filename: Option<String>,
    /// Its permissions (0600 where absent).
    pub mode: Option<u32>,
    /// Its owner (0 where absent).
    pub uid: Option<u32>,
    /// Its group (0 where absent).
    pub gid: Option<u32>,
    /// Secret that holds the `Authorization` header.
    pub auth_header_secret: Option<String>,
}

/// A checkout of a git repository.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GitSource {
    /// The repository's URL or `user@host:path`, without fragment and query.
    pub remote: String,
    /// Branch, tag, commit or full ref name; the default branch where absent.
    pub reference: Option<String>,
    /// Directory of the checkout that becomes the root.
    pub subdir: Option<String>,
    /// Commit that the reference must lead to (a prefix will do).
    pub checksum: Option<String>,
    /// Whether `.git` stays.
    pub keep_git_dir: bool,
    /// Whether submodules are left out.
    pub skip_submodules: bool,
    /// Secret that holds a token; `GIT_AUTH_TOKEN` by default.
    pub auth_token_secret: Option<String>,
    /// Secret that holds a header; `GIT_AUTH_HEADER` by default.
    pub auth_header_secret: Option<String>,
    /// Lines for `known_hosts`.
    pub known_ssh_hosts: Option<String>,
    /// The ssh agent to use, by id.
    pub ssh: Option<String>,
}

/// Puts its inputs on top of each other, the first one lowest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MergeOp;

/// What `upper` has that `lower` has not. An absent input is scratch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiffOp {
    /// Index of the input that is taken away.
    pub lower: Option<usize>,
    /// Index of the input that is looked at.
    pub upper: Option<usize>,
}

/// A nested build: another frontend's definition is solved in place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BuildOp {
    /// Index of the input with the builder; absent for the builder that reads LLB itself.
    pub builder: Option<usize>,
    /// Named inputs, by index.
    pub inputs: BTreeMap<String, usize>,
    /// A definition in wire form.
    pub definition: Option<Vec<u8>>,
    /// Options of the builder.
    pub attrs: BTreeMap<String, String>,
}

impl Op {
    /// How many outputs it has.
    pub fn outputs(&self) -> u32 {
        match self {
            Op::Source(_) | Op::Merge(_) | Op::Diff(_) | Op::Build(_) => 1,
            Op::Exec(exec) => exec.mounts.iter().filter_map(|m| m.output).max().map_or(0, |n| n + 1),
            Op::File(file) => file.actions.iter().filter_map(|a| a.output).max().map_or(0, |n| n + 1),
        }
    }

    /// `source`, `exec`, `file`, `merge`, `diff` or `build`.
    pub fn kind(&self) -> &'static str {
        match self {
            Op::Source(_) => "source",
            Op::Exec(_) => "exec",
            Op::File(_) => "file",
            Op::Merge(_) => "merge",
            Op::Diff(_) => "diff",
            Op::Build(_) => "build",
        }
    }

    /// Every index into the vertex's inputs that the op mentions.
    pub(crate) fn mentioned_inputs(&self) -> Vec<usize> {
        match self {
            Op::Source(_) | Op::Merge(_) => Vec::new(),
            Op::Exec(exec) => exec.mounts.iter().filter_map(|m| m.input).collect(),
            Op::File(file) => file.mentioned_inputs(),
            Op::Diff(diff) => diff.lower.iter().chain(&diff.upper).copied().collect(),
            Op::Build(build) => build.builder.iter().chain(build.inputs.values()).copied().collect(),
        }
    }
}

impl SourceOp {
    /// Whether another platform gives another file system.
    pub fn depends_on_platform(&self) -> bool {
        matches!(self, SourceOp::Image(_) | SourceOp::OciLayout(_) | SourceOp::Deb(_))
    }

    /// The source as a URL, for people: `docker-image://…`, `local://context`, ….
    pub fn identifier(&self) -> String {
        match self {
            SourceOp::Local(local) => format!("local://{}", local.name),
            SourceOp::Image(image) => format!("docker-image://{}", image.reference),
            SourceOp::OciLayout(layout) => {
                let tag = layout.tag.as_ref().map(|t| format!(":{t}")).unwrap_or_default();
                let digest = layout.digest.as_ref().map(|d| format!("@{d}")).unwrap_or_default();
                format!("oci-layout://{}{tag}{digest}", layout.path)
            }
            SourceOp::Http(http) => http.url.clone(),
            SourceOp::Git(git) => match (&git.reference, &git.subdir) {
                (None, None) => git.remote.clone(),
                (reference, None) => format!("{}#{}", git.remote, reference.as_deref().unwrap_or("")),
                (reference, Some(dir)) => format!("{}#{}:{dir}", git.remote, reference.as_deref().unwrap_or("")),
            },
            SourceOp::Deb(spec) => spec.clone(),
        }
    }
}
