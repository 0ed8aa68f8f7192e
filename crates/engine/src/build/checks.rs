//! The build checks, with what only the engine knows: arguments, platforms, base images, the ignore file.

use std::collections::BTreeSet;

use kiln_dockerfile::{BaseImage, CheckOptions, Diagnostic, Dockerfile, InstructionKind, LintContext, lint, nearest};
use kiln_frontend::{Lowered, platform_args};
use kiln_oci::{ImageConfig, Platform, Reference};

use super::load::Loaded;
use super::lower_request;
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
    /// `# check=error=true` makes them errors.
    pub violation: bool,
}

/// Checks all stages, or those that the target needs. Of base images only those that are here are known.
pub fn check(engine: &Engine, request: &BuildRequest, loaded: &Loaded) -> Result<Checked> {
    let lookup = |name: &str| local_image(engine, request, name).map(|config| base(&config));
    run(request, loaded, &lookup, request.target.is_none())
}

/// Checks what is about to be built, when its base images are known, and sends what was found; fails if that is an error.
pub(super) fn report(request: &BuildRequest, loaded: &Loaded, lowered: &Lowered, steps: &Steps) -> Result<()> {
    let checked = run(request, loaded, &|name| lowered.base_configs.get(name).map(base), false)?;
    let mut all = checked.warnings;
    all.extend(lowered.warnings.iter().cloned());
    if checked.violation {
        return Err(Error::Dockerfile { file: loaded.dockerfile.source.clone(), diagnostics: all });
    }
    for warning in all {
        steps.sink().event(Event::Lint { diagnostic: Box::new(warning), file: loaded.dockerfile.source.clone() });
    }
    for warning in unused(request, &loaded.dockerfile, lowered) {
        steps.warn(warning);
    }
    Ok(())
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
    const PROXIES: [&str; 5] = ["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"];
    let platform = name.strip_prefix("TARGET").or_else(|| name.strip_prefix("BUILD"));
    name == "SOURCE_DATE_EPOCH"
        || name.starts_with("BUILDKIT_")
        || PROXIES.iter().any(|p| p.eq_ignore_ascii_case(name))
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
    let options = match request.build_args.get("BUILDKIT_DOCKERFILE_CHECK") {
        Some(text) => Some(CheckOptions::parse(text).map_err(|e| {
            Error::request_with_hint(
                format!("build arg BUILDKIT_DOCKERFILE_CHECK: {e}"),
                "for example skip=all;error=true",
            )
        })?),
        None => None,
    };
    let context = LintContext {
        build_args: request.build_args.clone(),
        platform_args: platform_args(&lower_request(request, &loaded.dockerfile), &platform),
        target: request.target.clone(),
        all_stages,
        ignore: main.as_ref().and_then(|m| m.ignore()),
        base_image: Some(lookup),
        options,
    };
    let report = lint(&loaded.dockerfile, &context);
    let violation = report.fails_build();
    let mut warnings = loaded.remarks.clone();
    warnings.extend(report.diagnostics);
    warnings.sort_by_key(|w| w.span.start);
    Ok(Checked { warnings, violation })
}

fn base(config: &ImageConfig) -> BaseImage {
    let has_shell = config.config.shell.as_ref().is_some_and(|s| !s.is_empty());
    BaseImage { env: config.config.env.clone(), has_shell }
}

fn local_image(engine: &Engine, request: &BuildRequest, name: &str) -> Option<ImageConfig> {
    let platform = request.platforms.first().cloned().unwrap_or_else(Platform::host);
    let name = name.parse::<Reference>().ok()?.with_default_tag();
    let image = engine.store.images().resolve(&name).ok()??;
    Some(engine.known(&image.target, &platform, None).ok()?.config)
}
