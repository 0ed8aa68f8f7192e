//! The build graph, with the meaning of BuildKit's LLB (`solver/pb/ops.proto`).
//!
//! A [`Graph`] holds [`Vertex`]es. A vertex is an [`Op`] (source, exec, file, merge, diff, build), the [`Edge`]s that it
//! takes its inputs from, a platform, and [`VertexMeta`] for people and schedulers.
//!
//! Invariants:
//! - a vertex can only name vertices that are in the graph already, so there are no cycles, and the order in which
//!   vertices are stored is topological: inputs come first;
//! - two vertices of one graph never have the same [`VertexDigest`];
//! - `scratch` is not a vertex: it is the absence of an edge;
//! - no wire type: what reads and writes LLB protobuf lives at the edge of the program;
//! - a digest is written field by field with a version (see [`digest`] for the table), never from a serialised struct.

pub mod digest;
mod exec;
mod file;
mod git_url;
mod graph;
mod op;
mod uses;

pub use digest::{OpDigest, VertexDigest};
pub use exec::{
    CacheSharing, ContentCache, Device, ExecOp, HostIp, Limits, Mount, MountKind, NetworkMode, ProxyEnv, Resources,
    SecretEnv, SecurityMode, Ulimit,
};
pub use file::{
    ActionInput, CopyAction, FileAction, FileActionKind, FileOp, MkdirAction, MkfileAction, Mode, Owner, RmAction,
    SymlinkAction, UserRef,
};
pub use git_url::{
    GitUrl, GitUrlError, is_git_context, is_git_url, is_http_url, is_reference, percent_decode, redact_url,
};
pub use graph::{Edge, Graph, GraphError, Location, ProgressGroup, Vertex, VertexId, VertexMeta};
pub use op::{
    BuildOp, DiffOp, GitSource, HttpSource, ImageSource, LocalSource, MergeOp, OciLayoutSource, Op, ResolveMode,
    SourceOp,
};
pub use uses::{InputUse, Selector};
