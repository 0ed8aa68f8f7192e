//! One build from beginning to end.

mod ahead;
mod checks;
mod explain;
mod job;
mod load;
mod log;
pub mod plan;
mod result;
mod solve;

use std::sync::{Arc, Mutex};

use kiln_dockerfile::Diagnostic;
use kiln_executor::CancelToken;
use kiln_frontend::{LowerError, LowerRequest, Lowered};
use kiln_graph::{ResolveMode, VertexId};
use kiln_oci::Platform;
use kiln_secrets::{Origin, Redactor, Secret};

pub use checks::{Checked, check};
pub use job::{Job, owned_fd};
pub use load::{Loaded, load};
pub use result::BuildResult;

use crate::admission::Admission;
use crate::cache::{CacheFrom, CacheTo, Early, Imports};
use crate::contexts::{Contexts, MAIN};
use crate::debian::UserFiles;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::events::EventSink;
use crate::plan_source::Meta;
use crate::request::{BuildRequest, ContextSource, DockerfileSource, OnFinding};
use crate::resolve::{DebOptions, ResolveOptions, Resolved};
use crate::secrets::Secrets;
use crate::steps::Steps;
use plan::{Identify, Plan};

/// Builds, and writes the result where it was asked for.
pub fn build(
    engine: &Arc<Engine>,
    request: BuildRequest,
    sink: Arc<dyn EventSink>,
    cancel: &CancelToken,
) -> Result<BuildResult> {
    let registry = engine.registry.canceller();
    let _cancelled = cancel.on_cancel(move || registry.cancel());
    let (log, id) = log::BuildLogSink::create(engine, &request, sink)?;
    let log = Arc::new(log);
    let steps = Steps::new(Arc::clone(&log) as Arc<dyn EventSink>);
    let outcome = run(engine, request, steps, cancel);
    log.finish(&outcome);
    outcome.map(|result| BuildResult { id, ..result })
}

fn run(engine: &Arc<Engine>, request: BuildRequest, steps: Steps, cancel: &CancelToken) -> Result<BuildResult> {
    let loaded = load(engine, &request, &steps)?;
    let job = prepare(engine, request, loaded, steps, cancel)?;
    let result = result::produce(&job);
    job.contexts.save();
    engine.settle(&job.used_records());
    result
}

/// The build args, secrets and ssh agents of a target.
pub fn outline(engine: &Arc<Engine>, request: &BuildRequest, loaded: &Loaded) -> Result<kiln_frontend::Outline> {
    let options = ResolveOptions {
        contexts: Arc::default(),
        git: Arc::clone(&loaded.git),
        pull: request.pull,
        dockerfile: None,
        deb: deb_options(request, &Contexts::default()),
    };
    let steps = Steps::new(Arc::new(crate::events::NoEvents));
    let resolved = Arc::new(Resolved::new(Arc::clone(engine), steps, options));
    let asked = lower_request(request, &loaded.dockerfile);
    kiln_frontend::outline(&asked, &Meta(resolved)).map_err(|e| lower_error(e, engine, &loaded.dockerfile))
}

/// What the user named may be anywhere; what the Dockerfile names is in the context, if that is a directory of the user.
fn deb_options(request: &BuildRequest, contexts: &Contexts) -> DebOptions {
    let named = request.named_contexts.values().filter(|v| v.starts_with("deb://")).cloned();
    let here = match &request.context {
        ContextSource::Local(_) => contexts.get(MAIN).ok().map(|c| c.directory().to_owned()),
        ContextSource::Stream(_) | ContextSource::Remote(_) => None,
    };
    DebOptions { files: UserFiles::new(named, here), relock: request.relock }
}

/// Everything up to the point where something may have to run.
fn prepare(
    engine: &Arc<Engine>,
    request: BuildRequest,
    loaded: Loaded,
    steps: Steps,
    cancel: &CancelToken,
) -> Result<ReadyJob> {
    let secrets = Arc::clone(loaded.git.secrets());
    let known = known_secrets(&request, &secrets)?;
    let steps = steps.masking(Redactor::new(&known));
    if request.leaks != OnFinding::Off {
        known.iter().filter_map(Secret::why_not_searchable).for_each(|why| steps.warn(why));
    }
    engine.unpacker.show(steps.clone());
    let contexts = Arc::clone(&loaded.contexts);
    let options = ResolveOptions {
        contexts: Arc::clone(&contexts),
        git: Arc::clone(&loaded.git),
        pull: request.pull,
        dockerfile: shown(&request, &loaded.dockerfile),
        deb: deb_options(&request, &contexts),
    };
    let resolved = Arc::new(Resolved::new(Arc::clone(engine), steps.clone(), options));
    let lowered = lower(engine, &request, &loaded.dockerfile, &resolved);
    // Whatever was being asked for then is not to blame.
    let lowered = lowered.map_err(|e| if cancel.is_cancelled() { Error::Cancelled } else { e })?;
    checks::report(&request, &loaded, &lowered, &steps)?;
    epoch_of_context(&request, &steps)?;
    let targets: Vec<VertexId> = lowered.images.iter().filter_map(|i| i.root.map(|e| e.vertex)).collect();
    let plan = Plan::new(&lowered.graph, &targets, &*resolved).inspect_err(|e| show_failed(&steps, e))?;
    check_entitlements(&request, &lowered, &resolved).inspect_err(|e| show_failed(&steps, e))?;
    let step_ids = announce(&lowered, &plan, &steps);
    let mut request = request;
    request.source_date_epoch = lowered.source_date_epoch.or(request.source_date_epoch);
    let platforms: Vec<Platform> = lowered.images.iter().map(|i| i.platform.clone()).collect();
    let from = request.cache_from.iter().map(CacheFrom::parse).collect::<Result<_>>()?;
    let imports = Imports::new(from);
    let cache_to = request.cache_to.iter().map(CacheTo::parse).collect::<Result<_>>()?;
    let job = Job {
        engine: Arc::clone(engine),
        admission: Admission::new(request.jobs),
        graph: lowered.graph,
        plan,
        contexts,
        resolved,
        steps,
        step_ids,
        cancel: cancel.clone(),
        redactor: Redactor::new(&known),
        known_secrets: known,
        search: Mutex::default(),
        imports,
        early: Early::default(),
        cache_to,
        secrets,
        dockerfile: shown(&request, &loaded.dockerfile),
        project: loaded.project,
        platforms,
        digests: Mutex::default(),
        told_owners: std::sync::Once::new(),
        told_ids: std::sync::Once::new(),
        told_limits: std::sync::Once::new(),
        request,
    };
    Ok(ReadyJob { job, images: lowered.images })
}

/// A job with the images that it is to make.
pub struct ReadyJob {
    job: Job,
    images: Vec<kiln_frontend::Image>,
}

impl std::ops::Deref for ReadyJob {
    type Target = Job;

    fn deref(&self) -> &Job {
        &self.job
    }
}

/// What must not be in the result.
fn known_secrets(request: &BuildRequest, secrets: &Secrets) -> Result<Vec<Secret>> {
    let mut all = crate::check_leaks::known(secrets, &request.ssh)?;
    for (name, value) in &request.build_args {
        // Short values are words such as `true`, which are everywhere.
        if kiln_secrets::looks_like_credential(name) && value.len() >= 8 {
            all.push(Secret::new(name.clone(), Origin::BuildArg, value.as_bytes()));
        }
    }
    Ok(all)
}

/// What the frontend is to know.
pub fn lower_request<'a>(request: &BuildRequest, dockerfile: &'a kiln_dockerfile::Dockerfile) -> LowerRequest<'a> {
    LowerRequest {
        target: request.target.clone(),
        build_args: request.build_args.clone(),
        platforms: request.platforms.clone(),
        named_contexts: request.named_contexts.clone(),
        labels: request.labels.clone(),
        network: request.run.network,
        extra_hosts: request.run.extra_hosts.clone(),
        limits: request.run.limits.clone(),
        resources: request.run.resources.clone(),
        hostname: request.run.hostname.clone(),
        no_cache: request.no_cache,
        no_cache_filter: request.no_cache_filter.clone(),
        remake_sources: request.remake,
        resolve: if request.pull { ResolveMode::ForcePull } else { ResolveMode::Default },
        source_date_epoch: request.source_date_epoch,
        proxy: request.run.proxy.clone(),
        ..LowerRequest::new(dockerfile, Platform::host())
    }
}

fn lower(
    engine: &Engine,
    request: &BuildRequest,
    dockerfile: &kiln_dockerfile::Dockerfile,
    resolved: &Arc<Resolved>,
) -> Result<Lowered> {
    kiln_frontend::lower(&lower_request(request, dockerfile), &Meta(Arc::clone(resolved))).map_err(|e| match e {
        LowerError::Resolve { source, .. } if shown(request, dockerfile).is_none() => match source.downcast() {
            Ok(error) => *error,
            Err(other) => Error::request(other.to_string()),
        },
        e => lower_error(e, engine, dockerfile),
    })
}

/// The Dockerfile for messages, if the user knows it.
fn shown(request: &BuildRequest, dockerfile: &kiln_dockerfile::Dockerfile) -> Option<kiln_dockerfile::Source> {
    let generated = matches!(request.dockerfile, DockerfileSource::Generated(_));
    (!generated).then(|| dockerfile.source.clone())
}

fn lower_error(error: LowerError, engine: &Engine, dockerfile: &kiln_dockerfile::Dockerfile) -> Error {
    let file = dockerfile.source.clone();
    match error {
        LowerError::Dockerfile(diagnostic) => {
            Error::Dockerfile { diagnostics: with_malformed(*diagnostic, dockerfile), file }
        }
        LowerError::Resolve { mut diagnostic, source } => {
            let written = file.bytes().get(diagnostic.span.start..diagnostic.span.end).unwrap_or_default();
            diagnostic.help = diagnostic.help.or_else(|| advice(engine, &String::from_utf8_lossy(written), &*source));
            Error::Dockerfile { file, diagnostics: vec![*diagnostic] }
        }
        LowerError::Request { message, help } => Error::Request { message, hint: help },
        LowerError::Graph(error) => Error::request(error.to_string()),
    }
}

/// An error with all words that can't be expanded, so that they are told in one run.
fn with_malformed(error: Diagnostic, dockerfile: &kiln_dockerfile::Dockerfile) -> Vec<Diagnostic> {
    let mut all = kiln_dockerfile::malformed(dockerfile);
    if !all.contains(&error) {
        all.push(error);
    }
    all.sort_by_key(|d| d.span.start);
    all
}

/// What to do about a base image that can't be had: an image of the store with a name like it, or what the registry client
/// knows.
fn advice(engine: &Engine, written: &str, error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let images = engine.store.images().list().unwrap_or_default();
    let names: Vec<String> = images.iter().filter_map(|i| Some(i.name.as_ref()?.familiar())).collect();
    if let Some(near) = kiln_dockerfile::nearest(written, names.iter().map(String::as_str)) {
        return Some(format!("did you mean {near}, which is in the store?"));
    }
    match error.downcast_ref::<Error>()? {
        Error::Registry(error @ kiln_registry::Error::Connection { .. }) => error.hint().or_else(|| {
            Some("the store has no such image; check the network, HTTPS_PROXY, or configure a mirror".to_owned())
        }),
        Error::Registry(error) => error.hint(),
        Error::Request { hint, .. } => hint.clone(),
        _ => None,
    }
}

/// `SOURCE_DATE_EPOCH=context` is for contexts that have a time.
fn epoch_of_context(request: &BuildRequest, steps: &Steps) -> Result<()> {
    let asked = request.build_args.get("SOURCE_DATE_EPOCH").is_some_and(|v| v == "context");
    match (asked, &request.context) {
        (true, ContextSource::Remote(_)) => Err(Error::request_with_hint(
            "SOURCE_DATE_EPOCH=context: the time of a remote context is not known to kiln",
            "give seconds since 1970, or the name of a stage with an ADD of an HTTP URL",
        )),
        (true, _) => {
            steps.warn("SOURCE_DATE_EPOCH=context changes nothing: this context has no time".to_owned());
            Ok(())
        }
        (false, _) => Ok(()),
    }
}

/// CVE-2024-23653: what goes beyond the sandbox is granted here, in one place, for whatever asked for it.
fn check_entitlements(request: &BuildRequest, lowered: &Lowered, resolved: &Resolved) -> Result<()> {
    use kiln_graph::{NetworkMode, Op, SecurityMode};
    let allow = request.run.allow;
    for vertex in lowered.graph.vertices() {
        let Op::Exec(exec) = &vertex.op else { continue };
        let missing = match (exec.security, exec.network) {
            (SecurityMode::Insecure, _) if !allow.security_insecure => "security.insecure",
            (_, NetworkMode::Host) if !allow.network_host => "network.host",
            _ => continue,
        };
        let error = Error::request_with_hint(
            format!("the step needs the entitlement {missing}, which was not granted"),
            format!("add --allow {missing}"),
        );
        return Err(resolved.located(vertex, error));
    }
    Ok(())
}

/// Of a name and an error, as both may hold a word of the Dockerfile, which may be huge.
const MOST_SHOWN: usize = 4000;

/// A step that failed before steps are announced: a source is not in the context, say.
fn show_failed(steps: &Steps, error: &Error) {
    if let Error::Step(failed) = error {
        let short = |text: &str| text.chars().take(MOST_SHOWN).collect::<String>();
        steps.begin(&short(&failed.name)).end(crate::events::Outcome::Failed(short(&failed.cause.to_string())));
    }
}

fn announce(lowered: &Lowered, plan: &Plan, steps: &Steps) -> Vec<crate::events::StepId> {
    let mut ids = Vec::with_capacity(lowered.graph.vertices().len());
    for (index, vertex) in lowered.graph.vertices().iter().enumerate() {
        let hidden = !plan.is_needed(index);
        let id = match hidden {
            true => crate::events::StepId(u32::MAX),
            false => {
                let inputs = vertex.inputs.iter().map(|e| ids[e.vertex.index()]).collect();
                steps.announce(&vertex.meta.name, vertex.digest().0, inputs)
            }
        };
        ids.push(id);
    }
    ids
}
