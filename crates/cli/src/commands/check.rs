//! `kiln build --check` and `--call`: evaluating a Dockerfile without building it.

use std::process::ExitCode;
use std::sync::Arc;

use kiln_engine::Engine;
use kiln_engine::Steps;
use kiln_engine::build::{Checked, check as run_checks, load, outline};
use kiln_engine::dockerfile::Source;
use kiln_engine::events::NoEvents;
use kiln_engine::frontend::{Outline, OutlineMount, Target, targets};
use kiln_engine::request::BuildRequest;

use super::call_json;
use crate::error::{CliError, code};
use crate::excerpt;

/// What to evaluate.
pub struct Method {
    kind: Kind,
    json: bool,
}

enum Kind {
    Check,
    Targets,
    Outline,
}

impl Method {
    /// The value of `--call`; `None` for `build`.
    pub fn parse(text: &str) -> Result<Option<Self>, CliError> {
        let (name, options) = text.split_once(',').unwrap_or((text, ""));
        let json = match options {
            "" | "format=text" => false,
            "format=json" => true,
            other => return Err(CliError::usage(format!("--call {name},{other}: expected format=json"))),
        };
        let kind = match name {
            "build" => return Ok(None),
            "check" | "lint" => Kind::Check,
            "targets" => Kind::Targets,
            "outline" => Kind::Outline,
            other => return Err(CliError::usage(format!("--call {other}: use build, check, outline or targets"))),
        };
        Ok(Some(Self { kind, json }))
    }
}

/// Evaluates and prints.
pub fn run(engine: &Arc<Engine>, request: &BuildRequest, method: &Method) -> Result<ExitCode, CliError> {
    let loaded = load(engine, request, &Steps::new(Arc::new(NoEvents)))?;
    let source = &loaded.dockerfile.source;
    let print = |value: serde_json::Value| println!("{value}");
    match method.kind {
        Kind::Check => {
            let checked = run_checks(engine, request, &loaded)?;
            if method.json {
                print(call_json::checked(&checked, source));
            } else {
                show_checked(&checked, source);
            }
            return Ok(match (&checked.error, checked.warnings.is_empty()) {
                (Some(_), _) => ExitCode::FAILURE,
                (None, false) => ExitCode::from(code::CHECK),
                (None, true) => ExitCode::SUCCESS,
            });
        }
        Kind::Targets => {
            let all = targets(&loaded.dockerfile);
            if method.json { print(call_json::targets(&all, source)) } else { show_targets(&all) }
        }
        Kind::Outline => {
            let outline = outline(engine, request, &loaded)?;
            if method.json { print(call_json::outline(&outline, source)) } else { show_outline(&outline) }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show_checked(checked: &Checked, source: &Source) {
    excerpt::show(source, &checked.warnings);
    if let Some(error) = &checked.error {
        return excerpt::show(source, std::slice::from_ref(&**error));
    }
    let what = match checked.warnings.len() {
        0 => "no warnings found.".to_owned(),
        1 => "1 warning has been found!".to_owned(),
        n => format!("{n} warnings have been found!"),
    };
    println!("Check complete, {what}");
}

fn show_targets(list: &[Target]) {
    println!("{:<24} DESCRIPTION", "TARGET");
    for target in list {
        let name = if target.name.is_empty() { "(unnamed)" } else { &target.name };
        let name = if target.default { format!("{name} (default)") } else { name.to_owned() };
        println!("{}", format!("{name:<24} {}", target.description.as_deref().unwrap_or("")).trim_end());
    }
}

fn show_outline(outline: &Outline) {
    println!("TARGET:      {}", if outline.name.is_empty() { "(default)" } else { &outline.name });
    if let Some(description) = &outline.description {
        println!("DESCRIPTION: {description}");
    }
    if !outline.args.is_empty() {
        println!("\n{:<24} {:<24} DESCRIPTION", "BUILD ARG", "VALUE");
    }
    for arg in &outline.args {
        let (value, description) = (arg.value.as_deref().unwrap_or(""), arg.description.as_deref().unwrap_or(""));
        println!("{}", format!("{:<24} {value:<24} {description}", arg.name).trim_end());
    }
    show_mounts("SECRET", &outline.secrets);
    show_mounts("SSH", &outline.ssh);
}

fn show_mounts(head: &str, mounts: &[OutlineMount]) {
    if !mounts.is_empty() {
        println!("\n{head:<24} REQUIRED");
    }
    for mount in mounts {
        println!("{}", format!("{:<24} {}", mount.id, if mount.required { "true" } else { "" }).trim_end());
    }
}
