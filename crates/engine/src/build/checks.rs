//! The build checks, with what only the engine knows: arguments, platforms, base images, the ignore file.

use std::collections::BTreeSet;

use kiln_dockerfile::{
    BaseImage, CheckOptions, Diagnostic, Dockerfile, InstructionKind, LintContext, lint, nearest, violation,
};
use kiln_frontend::{BoxError, LowerError, Lowered, MetaResolver, Resolved, is_proxy_arg, platform_args};
use kiln_graph::SourceOp;
use kiln_oci::{ImageConfig, Platform, Reference};

use super::load::Loaded;
use super::{lower_error, lower_request, with_malformed};
use crate::contexts::MAIN;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::events::Event;
use crate::request::BuildRequest;
use crate::steps::Steps;

/// What the checks found.
#[derive(Debug, Clone, Default)]
pub struct Checked {
    /// Findings in the order of the file.
    pub warnings: Vec<Diagnostic>,
    /// The failure that `# check=error=true` makes of them.
    pub violation: Option<String>,
    /// Why a build would be refused, as far as that is known without base images that are not here.
    pub errors: Vec<Diagnostic>,
}

/// Checks all stages, or those that the target needs. Of base images only those that are here are known.
pub fn check(engine: &Engine, request: &BuildRequest, loaded: &Loaded) -> Result<Checked> {
    let lookup = |name: &str| local_image(engine, request, name).map(|config| base(&config));
    let mut checked = run(request, loaded, &lookup, request.target.is_none())?;
    match kiln_frontend::lower(&lower_request(request, &loaded.dockerfile), &Here(engine)) {
        Ok(lowered) => checked.add(request, loaded, lowered.warnings)?,
        Err(LowerError::Resolve { .. }) => {}
        Err(LowerError::Dockerfile(error)) => checked.errors.extend(with_malformed(*error, &loaded.dockerfile)),
        Err(other) => return Err(lower_error(other, engine, &loaded.dockerfile)),
    }
    Ok(checked)
}

/// Checks what is about to be built, when its base images are known, and sends what was found; fails if that is an error.
pub(super) fn report(request: &BuildRequest, loaded: &Loaded, lowered: &Lowered, steps: &Steps) -> Result<()> {
    let mut checked = run(request, loaded, &|name| lowered.base_configs.get(name).map(base), false)?;
    checked.add(request, loaded, lowered.warnings.clone())?;
    let refused = |diagnostics| Err(Error::Dockerfile { file: loaded.dockerfile.source.clone(), diagnostics });
    if !checked.errors.is_empty() {
        return refused(checked.errors);
    }
    if checked.violation.is_some() {
        return refused(checked.warnings);
    }
    for warning in checked.warnings {
        steps.sink().event(Event::Lint { diagnostic: Box::new(warning), file: loaded.dockerfile.source.clone() });
    }
    for warning in unused(request, &loaded.dockerfile, lowered) {
        steps.warn(warning);
    }
    Ok(())
}

impl Checked {
    /// Adds what the frontend noticed about base images.
    fn add(&mut self, request: &BuildRequest, loaded: &Loaded, more: Vec<Diagnostic>) -> Result<()> {
        let directive = loaded.dockerfile.directives.check.as_ref();
        let options = options(request)?.or_else(|| CheckOptions::parse(directive?).ok());
        let found_one = !more.is_empty();
        self.warnings.extend(more);
        self.warnings.sort_by_key(|w| w.span.start);
        if found_one && options.is_some_and(|o| o.error) {
            self.violation = Some(violation(&self.warnings));
        }
        Ok(())
    }
}

/// Answers from the store alone.
struct Here<'a>(&'a Engine);

impl MetaResolver for Here<'_> {
    fn resolve(&self, source: &SourceOp, platform: &Platform, _name: &str) -> std::result::Result<Resolved, BoxError> {
        let SourceOp::Image(image) = source else { return Err("only images are looked up".into()) };
        let known = self.0.find_image_here(&image.reference, platform)?.ok_or("the image is not here")?;
        Ok(Resolved { source: source.clone(), config: known.config })
    }
}

/// The options that a build arg gives.
fn options(request: &BuildRequest) -> Result<Option<CheckOptions>> {
    let Some(text) = request.build_args.get("BUILDKIT_DOCKERFILE_CHECK") else { return Ok(None) };
    let options = CheckOptions::parse(text).map_err(|e| {
        Error::request_with_hint(format!("build arg BUILDKIT_DOCKERFILE_CHECK: {e}"), "for example skip=all;error=true")
    })?;
    Ok(Some(options))
}

/// Build args that no ARG asks for, and stages that are not there.
fn unused(request: &BuildRequest, dockerfile: &Dockerfile, lowered: &Lowered) -> Vec<String> {
    let triggers =
        lowered.base_configs.values().flat_map(|c| &c.config.on_build).filter_map(|t| t.strip_prefix("ARG "));
    let triggers = triggers.flat_map(str::split_whitespace).filter_map(|word| word.split('=').next());
    let in_stages = dockerfile.stages.iter().flat_map(|s| &s.instructions);
    let declared: BTreeSet<&str> = dockerfile
        .global_args
        .iter()
        .chain(in_stages)
        .filter_map(|i| match &i.kind {
            InstructionKind::Arg(arg) => Some(arg.args.iter().map(|a| a.name.as_str())),
            _ => None,
        })
        .flatten()
        .chain(triggers)
        .collect();
    let suggestion = |name: &str, known: &BTreeSet<&str>| {
        nearest(name, known.iter().copied()).map(|n| format!("; did you mean {n}?")).unwrap_or_default()
    };
    let args = request.build_args.keys().filter(|name| !is_predefined(name) && !declared.contains(name.as_str()));
    let mut all: Vec<String> = args
        .map(|name| format!("build arg {name} is not used: no ARG asks for it{}", suggestion(name, &declared)))
        .collect();
    let stages: BTreeSet<&str> = dockerfile.stages.iter().filter_map(|s| s.name.as_ref()).map(|n| n.as_str()).collect();
    let missing = |name: &&String| {
        let by_index = name.parse::<usize>().is_ok_and(|i| i < dockerfile.stages.len());
        !by_index && !stages.iter().any(|s| s.eq_ignore_ascii_case(name))
    };
    let filters = request.no_cache_filter.iter().filter(missing);
    all.extend(filters.map(|n| format!("--no-cache-filter {n}: there is no such stage{}", suggestion(n, &stages))));
    all
}

/// Args that need no ARG.
fn is_predefined(name: &str) -> bool {
    let platform = name.strip_prefix("TARGET").or_else(|| name.strip_prefix("BUILD"));
    name == "SOURCE_DATE_EPOCH"
        || name.starts_with("BUILDKIT_")
        || is_proxy_arg(name)
        || platform.is_some_and(|rest| matches!(rest, "PLATFORM" | "OS" | "OSVERSION" | "ARCH" | "VARIANT" | "STAGE"))
}

fn run(
    request: &BuildRequest,
    loaded: &Loaded,
    lookup: &dyn Fn(&str) -> Option<BaseImage>,
    all_stages: bool,
) -> Result<Checked> {
    let main = loaded.contexts.get(MAIN).ok();
    let platform = request.platforms.first().cloned().unwrap_or_else(Platform::host);
    let context = LintContext {
        build_args: request.build_args.clone(),
        platform_args: platform_args(&lower_request(request, &loaded.dockerfile), &platform),
        target: request.target.clone(),
        all_stages,
        ignore: main.as_ref().and_then(|m| m.ignore()),
        base_image: Some(lookup),
        options: options(request)?,
    };
    let report = lint(&loaded.dockerfile, &context);
    let mut warnings = loaded.remarks.clone();
    let violation = report.fails_build().then(|| violation(&report.diagnostics));
    warnings.extend(report.diagnostics);
    warnings.sort_by_key(|w| w.span.start);
    // Options of checks that can't be understood.
    let errors = warnings.extract_if(.., |w| w.is_error()).collect();
    Ok(Checked { warnings, violation, errors })
}

fn base(config: &ImageConfig) -> BaseImage {
    let has_shell = config.config.shell.as_ref().is_some_and(|s| !s.is_empty());
    BaseImage { env: config.config.env.clone(), has_shell }
}

fn local_image(engine: &Engine, request: &BuildRequest, name: &str) -> Option<ImageConfig> {
    let platform = request.platforms.first().cloned().unwrap_or_else(Platform::host);
    let name = name.parse::<Reference>().ok()?.with_default_tag();
    Some(engine.find_image_here(&name, &platform).ok()??.config)
}
