//! `kiln build --check` and `--call`: evaluating a Dockerfile without building it.

use std::process::ExitCode;
use std::sync::Arc;

use kiln_engine::Engine;
use kiln_engine::Steps;
use kiln_engine::build::{Checked, Loaded, check as run_checks, load, outline};
use kiln_engine::events::NoEvents;
use kiln_engine::frontend::{Outline, OutlineMount, Target, targets};
use kiln_engine::request::BuildRequest;

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
    match method.kind {
        Kind::Check => check(&loaded, &run_checks(engine, request, &loaded)?, method.json),
        Kind::Targets => {
            show_targets(&targets(&loaded.dockerfile), method.json);
            Ok(ExitCode::SUCCESS)
        }
        Kind::Outline => {
            show_outline(&outline(engine, request, &loaded)?, method.json);
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn check(loaded: &Loaded, checked: &Checked, json: bool) -> Result<ExitCode, CliError> {
    let source = &loaded.dockerfile.source;
    if json {
        let all: Vec<_> = checked.warnings.iter().map(|w| json_warning(w, source)).collect();
        println!("{}", serde_json::json!({ "warnings": all }));
    } else if checked.warnings.is_empty() {
        println!("Check complete, no warnings found.");
    } else {
        excerpt::show(source, &checked.warnings);
        let plural = if checked.warnings.len() == 1 { " has" } else { "s have" };
        println!("Check complete, {} warning{plural} been found!", checked.warnings.len());
    }
    Ok(if checked.warnings.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(code::CHECK) })
}

fn json_warning(
    w: &kiln_engine::dockerfile::Diagnostic,
    source: &kiln_engine::dockerfile::Source,
) -> serde_json::Value {
    let at = w.line_col(source);
    serde_json::json!({
        "ruleName": w.rule.map(|r| r.name()),
        "description": w.rule.map(|r| r.description()),
        "url": w.url,
        "detail": w.message,
        "location": { "file": source.name(), "line": at.line, "column": at.column },
    })
}

fn show_targets(list: &[Target], json: bool) {
    if json {
        let all: Vec<_> = list
            .iter()
            .map(|t| serde_json::json!({ "name": t.name, "description": t.description, "base": t.base, "default": t.default }))
            .collect();
        println!("{}", serde_json::json!({ "targets": all }));
        return;
    }
    println!("{:<24} DESCRIPTION", "TARGET");
    for target in list {
        let name = if target.name.is_empty() { "(unnamed)" } else { &target.name };
        let name = if target.default { format!("{name} (default)") } else { name.to_owned() };
        println!("{name:<24} {}", target.description.as_deref().unwrap_or(""));
    }
}

fn show_outline(outline: &Outline, json: bool) {
    if json {
        let args: Vec<_> = outline
            .args
            .iter()
            .map(|a| serde_json::json!({ "name": a.name, "value": a.value, "description": a.description }))
            .collect();
        println!(
            "{}",
            serde_json::json!({
                "name": outline.name,
                "description": outline.description,
                "args": args,
                "secrets": mounts_json(&outline.secrets),
                "ssh": mounts_json(&outline.ssh),
            })
        );
        return;
    }
    println!("TARGET:      {}", if outline.name.is_empty() { "(default)" } else { &outline.name });
    if let Some(description) = &outline.description {
        println!("DESCRIPTION: {description}");
    }
    if !outline.args.is_empty() {
        println!("\n{:<24} {:<24} DESCRIPTION", "BUILD ARG", "VALUE");
    }
    for arg in &outline.args {
        println!(
            "{:<24} {:<24} {}",
            arg.name,
            arg.value.as_deref().unwrap_or(""),
            arg.description.as_deref().unwrap_or("")
        );
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

fn mounts_json(mounts: &[OutlineMount]) -> Vec<serde_json::Value> {
    mounts.iter().map(|m| serde_json::json!({ "name": m.id, "required": m.required })).collect()
}
