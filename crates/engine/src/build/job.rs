//! One build's state, which all its threads share.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Mutex, Once, PoisonError};

use kiln_dockerfile::Source;
use kiln_executor::CancelToken;
use kiln_graph::{Graph, Selector};
use kiln_oci::{Digest, Platform};
use kiln_rootfs::{Owner, Ownership, Root};
use kiln_secrets::{Origin, Redactor, Secret};
use kiln_store::{CacheKey, Snapshot};

use super::plan::Plan;
use crate::admission::Admission;
use crate::cache::{CacheTo, Early, Imports};
use crate::contexts::Contexts;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::events::StepId;
use crate::leaks::LeakSearch;
use crate::missing;
use crate::request::{BuildRequest, OnFinding};
use crate::resolve::Resolved;
use crate::secrets::Secrets;
use crate::ssh::AgentSocket;
use crate::steps::Steps;
use crate::value::Value;

/// One build.
pub struct Job {
    /// What is shared with other operations.
    pub engine: Arc<Engine>,
    /// What is to be done.
    pub request: BuildRequest,
    /// The graph.
    pub graph: Graph,
    /// Its definition keys.
    pub plan: Plan,
    /// Local and remote contexts.
    pub contexts: Arc<Contexts>,
    /// Images and other sources that were resolved.
    pub resolved: Arc<Resolved>,
    /// What the user sees.
    pub steps: Steps,
    /// The steps of the vertices.
    pub step_ids: Vec<StepId>,
    /// Ends the build.
    pub cancel: CancelToken,
    /// How many steps run at once.
    pub admission: Admission,
    /// Caches from elsewhere.
    pub imports: Imports,
    /// Layers that are exported while the build runs.
    pub early: Early,
    /// Where the cache goes.
    pub cache_to: Vec<CacheTo>,
    /// Values of secrets.
    pub secrets: Arc<Secrets>,
    /// What must not be in the result.
    pub known_secrets: Vec<kiln_secrets::Secret>,
    /// The last search for them that was made: making one costs more than searching a small layer.
    pub search: Mutex<Option<LeakSearch>>,
    /// Hides them in logs.
    pub redactor: Redactor,
    /// The Dockerfile, for excerpts.
    pub dockerfile: Option<Source>,
    /// Identifies the context and Dockerfile between builds.
    pub project: String,
    /// Platforms of the result.
    pub platforms: Vec<Platform>,
    /// Digests of parts of trees that were computed.
    pub digests: Mutex<BTreeMap<(Digest, Vec<u8>), Digest>>,
    /// Whether it was told that owners can't be what steps make them.
    pub told_owners: Once,
    /// Whether it was said that there are few ids.
    pub told_ids: Once,
    /// Whether it was said which limits are not enforced.
    pub told_limits: Once,
}

impl Job {
    /// The step of a vertex.
    pub fn step_id(&self, index: usize) -> StepId {
        self.step_ids.get(index).copied().unwrap_or(StepId(0))
    }

    /// The keys of all steps that the result needs, also of those that nobody had to look up.
    pub fn used_records(&self) -> Vec<CacheKey> {
        let needed = (0..self.graph.vertices().len()).filter(|i| self.plan.is_needed(*i));
        needed.filter_map(|i| self.plan.definition(i)).map(CacheKey).collect()
    }

    /// A search for all that this build must not show: what it was given, and the tokens that it used so far. `None` if there
    /// is to be none.
    pub fn leak_search(&self) -> Option<LeakSearch> {
        if self.request.leaks == OnFinding::Off {
            return None;
        }
        let mut secrets = self.known_secrets.clone();
        secrets.extend(self.resolved.git_access().used());
        secrets.extend(self.engine.registry.used_credentials().into_iter().map(|(registry, secret)| {
            Secret::new(format!("the password for {registry}"), Origin::Token, secret.expose().as_bytes())
        }));
        let mut last = self.search.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some(search) if search.is_for(&secrets) => Some(search.fresh()),
            _ => Some(last.insert(LeakSearch::new(&secrets)).fresh()),
        }
    }

    /// What stands for a source between builds.
    pub fn source_identity(&self, index: usize) -> Option<String> {
        self.resolved.identity(&self.graph.vertices()[index]).map(|d| d.to_string())
    }

    /// A value to read.
    pub fn readable(&self, value: &Value) -> Result<Root> {
        match value {
            Value::Tree { snapshot, .. } => self.engine.views.readable(snapshot),
            Value::Context(name) => self.readable_context(name),
        }
    }

    /// A context without what its ignore file excludes.
    fn readable_context(&self, name: &str) -> Result<Root> {
        let context = self.contexts.get(name)?;
        if !context.has_ignore_rules() {
            return Ok(context.root().clone());
        }
        let draft = self.engine.store.scratch()?;
        let (fs, work) = (draft.path().join("fs"), draft.path().join("work"));
        for dir in [&fs, &work] {
            std::fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
        }
        let root = self.writable_context(name, &fs, &work)?;
        self.contexts.keep(draft);
        Ok(root)
    }

    /// A context to write to without changing it, without what its ignore file excludes.
    pub fn writable_context(&self, name: &str, upper: &Path, work: &Path) -> Result<Root> {
        let context = self.contexts.get(name)?;
        let hidden = Root::open(upper)?;
        context.hide_ignored(&hidden)?;
        self.engine.views.over(&[context.directory().to_owned()], upper, work)
    }

    /// The digest of what selectors see of a value.
    pub fn digest(&self, value: &Value, selectors: &[Selector]) -> Result<Digest> {
        match value {
            Value::Context(name) => self.contexts.get(name)?.digest(selectors),
            Value::Tree { snapshot, identity } => {
                let key = (*identity, format!("{selectors:?}").into_bytes());
                if let Some(known) = self.digests.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
                    return Ok(*known);
                }
                let digest = crate::contexts::digest_tree(&self.engine, snapshot, selectors);
                let digest = digest.map_err(|e| self.not_in_tree(snapshot, e))?;
                self.digests.lock().unwrap_or_else(PoisonError::into_inner).insert(key, digest);
                Ok(digest)
            }
        }
    }

    /// Says of a file that a stage or image has not what may have been meant.
    pub fn not_in_tree(&self, snapshot: &Snapshot, error: Error) -> Error {
        let Error::Rootfs(kiln_rootfs::RootfsError::NotFound { path }) = &error else { return error };
        let Ok(root) = self.engine.views.readable(snapshot) else { return error };
        let shown = Path::new("/").join(path.strip_prefix("/").unwrap_or(path));
        Error::Request {
            message: format!("{} was not found in the stage or image that --from names", shown.display()),
            hint: missing::did_you_mean(&root, path, Path::new("/")),
        }
    }

    /// The files that selectors see of a context, for explanations.
    pub fn context_manifest(&self, name: &str, selectors: &[Selector], most: usize) -> Vec<(String, String)> {
        self.contexts.get(name).and_then(|c| c.manifest(selectors, most)).unwrap_or_default()
    }

    /// Copies a directory's content; for the first content of a cache mount.
    pub fn copy_tree(&self, from: &Root, path: &Path, to: &Root) -> Result<()> {
        crate::contexts::copy_all(from, path, to, None)
    }

    /// Copies a result out of the store. Who has a single id owns all of it, as nothing else is possible.
    pub fn copy_out(&self, from: &Root, to: &Root) -> Result<()> {
        let owner = (self.engine.ownership == Ownership::Recorded).then_some(Owner { uid: 0, gid: 0 });
        crate::contexts::copy_all(from, Path::new("/"), to, owner)
    }

    /// A socket of an ssh agent for one step, with the owner and mode that the step wants.
    pub fn ssh_agent(&self, id: &str, owner: (u32, u32, u32)) -> Result<Option<AgentSocket>> {
        let source = self.request.ssh.get(id);
        source.map(|s| AgentSocket::open(&self.engine.store, s, Some(owner))).transpose()
    }
}

/// A descriptor that can be sent elsewhere.
pub fn owned_fd(root: &Root) -> Result<std::os::fd::OwnedFd> {
    root.as_fd().try_clone_to_owned().map_err(|e| Error::io("open", "/", e))
}
