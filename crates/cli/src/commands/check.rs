//! `kiln build --check` and `--call`: evaluating a Dockerfile without building it.

use std::process::ExitCode;
use std::sync::Arc;

use kiln_engine::build::{Checked, check as run_checks, load, outline};
use kiln_engine::dockerfile::{Diagnostic, Source};
use kiln_engine::events::NoEvents;
use kiln_engine::frontend::{Outline, Target, targets};
use kiln_engine::request::BuildRequest;
use kiln_engine::{Engine, Error, Steps};

use super::call_json;
use crate::error::{CliError, code};
use crate::{excerpt, output};

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
    let loaded = match load(engine, request, &Steps::new(Arc::new(NoEvents))) {
        Err(Error::Dockerfile { file, diagnostics }) if method.json && matches!(method.kind, Kind::Check) => {
            let (errors, warnings): (Vec<_>, _) = diagnostics.into_iter().partition(Diagnostic::is_error);
            let checked = Checked { warnings, errors, ..Checked::default() };
            output::print(&json(&call_json::checked(&checked, &file)))?;
            return Ok(ExitCode::FAILURE);
        }
        loaded => loaded?,
    };
    let source = &loaded.dockerfile.source;
    let text = match method.kind {
        Kind::Check => return check(&run_checks(engine, request, &loaded)?, source, method.json),
        Kind::Targets => {
            let all = targets(&loaded.dockerfile);
            if method.json { json(&call_json::targets(&all, source)) } else { targets_text(&all) }
        }
        Kind::Outline => {
            let outline = outline(engine, request, &loaded)?;
            if method.json { json(&call_json::outline(&outline, source)) } else { outline_text(&outline) }
        }
    };
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn json(document: &serde_json::Value) -> String {
    format!("{document:#}\n")
}

/// What was found is the result; what a build would be refused for is an error.
fn check(checked: &Checked, source: &Source, as_json: bool) -> Result<ExitCode, CliError> {
    match as_json {
        true => output::print(&json(&call_json::checked(checked, source)))?,
        false => output::print(&check_text(checked, source))?,
    }
    if !checked.errors.is_empty() {
        if as_json {
            return Ok(ExitCode::FAILURE);
        }
        return Err(Error::Dockerfile { file: source.clone(), diagnostics: checked.errors.clone() }.into());
    }
    if checked.violation.is_some() && !as_json {
        return Err(CliError::of_checks(source.name()));
    }
    Ok(if checked.warnings.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(code::CHECK) })
}

fn check_text(checked: &Checked, source: &Source) -> String {
    let what = match checked.warnings.len() {
        _ if !checked.errors.is_empty() => String::new(),
        0 => "Check complete, no warnings found.\n".to_owned(),
        1 => "Check complete, 1 warning has been found!\n".to_owned(),
        n => format!("Check complete, {n} warnings have been found!\n"),
    };
    excerpt::report(source, &checked.warnings) + &what
}

fn targets_text(list: &[Target]) -> String {
    let mut text = format!("{:<24} DESCRIPTION\n", "TARGET");
    for target in list {
        let name = if target.name.is_empty() { "(unnamed)" } else { &target.name };
        let name = if target.default { format!("{name} (default)") } else { name.to_owned() };
        row(&mut text, &format!("{name:<24} {}", target.description.as_deref().unwrap_or("")));
    }
    text
}

fn outline_text(outline: &Outline) -> String {
    let mut text = format!("TARGET:      {}\n", if outline.name.is_empty() { "(default)" } else { &outline.name });
    if let Some(description) = &outline.description {
        text += &format!("DESCRIPTION: {description}\n");
    }
    if !outline.args.is_empty() {
        text += &format!("\n{:<24} {:<24} DESCRIPTION\n", "BUILD ARG", "VALUE");
    }
    for arg in &outline.args {
        let (value, about) = (arg.value.as_deref().unwrap_or(""), arg.description.as_deref().unwrap_or(""));
        row(&mut text, &format!("{:<24} {value:<24} {about}", arg.name));
    }
    for (head, mounts) in [("SECRET", &outline.secrets), ("SSH", &outline.ssh)] {
        if !mounts.is_empty() {
            text += &format!("\n{head:<24} REQUIRED\n");
        }
        for mount in mounts {
            row(&mut text, &format!("{:<24} {}", mount.id, if mount.required { "true" } else { "" }));
        }
    }
    text
}

fn row(text: &mut String, line: &str) {
    text.push_str(line.trim_end());
    text.push('\n');
}
