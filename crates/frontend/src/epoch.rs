//! `SOURCE_DATE_EPOCH`: a number, `context`, the name of a context, or a stage that only adds one remote source.

use kiln_dockerfile::{Add, InstructionKind, Stage};
use kiln_graph::{GitUrl, HttpSource, ResolveMode, SourceOp, is_git_url, is_http_url};

use crate::args::Globals;
use crate::context::context_source;
use crate::plan::Contexts;
use crate::request::{LowerError, LowerRequest, MetaResolver};

const NAME: &str = "SOURCE_DATE_EPOCH";

/// The clamp for timestamps, if there is one.
pub fn resolve(
    request: &LowerRequest,
    globals: &Globals,
    contexts: &Contexts,
    resolver: &dyn MetaResolver,
) -> Result<Option<i64>, LowerError> {
    let argument = request.build_args.get(NAME).map(String::as_str).or_else(|| globals.env.get(NAME));
    let value = argument.map_or("", str::trim);
    if value.is_empty() {
        return Ok(request.source_date_epoch);
    }
    if let Ok(seconds) = value.parse::<i64>() {
        return Ok(Some(seconds));
    }
    let Some(source) = source(request, globals, contexts, value)? else { return Ok(None) };
    let failed = |e| LowerError::request(format!("{NAME}={value}: {e}"));
    resolver.epoch(&source).map_err(failed)
}

fn source(
    request: &LowerRequest,
    globals: &Globals,
    contexts: &Contexts,
    value: &str,
) -> Result<Option<SourceOp>, LowerError> {
    if value == "context" {
        return Ok(request.main_context.clone());
    }
    if let Some((name, spec)) = contexts.find(value, None) {
        return context_source(name, spec, ResolveMode::Default)
            .map_err(|e| LowerError::request(format!("--build-context {name}={spec}: {e}")));
    }
    match request.dockerfile.find_stage(value).filter(|s| s.name.is_some()) {
        Some(stage) => stage_source(request, globals, stage).map(Some),
        None => {
            let error = LowerError::request(format!("invalid {NAME}: {value}"));
            Err(error.with_help(Some("use seconds since 1970, context, or the name of a context or stage".to_owned())))
        }
    }
}

fn stage_source(request: &LowerRequest, globals: &Globals, stage: &Stage) -> Result<SourceOp, LowerError> {
    let refuse = |why: &str| LowerError::at(stage.span, format!("{NAME} stage must {why}"));
    if stage.base.value != "scratch" {
        return Err(refuse("use FROM scratch"));
    }
    let mut globals = globals.clone();
    let mut found = None;
    for instruction in &stage.instructions {
        match &instruction.kind {
            InstructionKind::Arg(arg) => {
                for declared in &arg.args {
                    let name = &declared.name.value;
                    let value = match (request.build_args.get(name), &declared.default) {
                        (Some(value), _) => value.clone(),
                        (None, None) => continue,
                        (None, Some(default)) => globals.expand(request.dockerfile, default)?.0,
                    };
                    globals.env.set(name, &value);
                }
            }
            InstructionKind::Add(add) if found.is_none() => found = Some(add_source(request, &globals, add)?),
            InstructionKind::Add(_) => return Err(refuse("contain exactly one remote ADD")),
            _ => return Err(refuse(&format!("only contain ARG and ADD, not {}", instruction.name()))),
        }
    }
    found.ok_or_else(|| refuse("contain exactly one remote ADD"))
}

fn add_source(request: &LowerRequest, globals: &Globals, add: &Add) -> Result<SourceOp, LowerError> {
    let place = add.dest.span;
    let expand = |word| globals.expand(request.dockerfile, word).map(|e| e.0);
    let [source] = &add.sources[..] else {
        return Err(LowerError::at(place, format!("{NAME} stage must contain exactly one remote ADD source")));
    };
    let url = expand(source)?;
    let checksum = add.checksum.as_ref().map(expand).transpose()?;
    if is_git_url(&url) || add.keep_git_dir.is_some() && url.contains("://") {
        let mut git = GitUrl::parse(&url).map_err(|e| LowerError::at(source.span, e.to_string()))?;
        git.checksum = checksum.or(git.checksum);
        return Ok(SourceOp::Git(git.source()));
    }
    if !is_http_url(&url) {
        let message = format!("{NAME} stage source must be a single HTTP(S) or Git ADD");
        return Err(LowerError::at(source.span, message));
    }
    let checksum = checksum.map(|c| c.parse()).transpose();
    let checksum = checksum.map_err(|e: kiln_oci::DigestError| LowerError::at(source.span, e.to_string()))?;
    Ok(SourceOp::Http(HttpSource {
        filename: Some(crate::copy::url_filename(&url)),
        url,
        checksum,
        ..HttpSource::default()
    }))
}
