//! `kiln build`: running it and showing the result.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use kiln_engine::build::{self, BuildResult};
use kiln_engine::events::{Event, EventSink};
use kiln_engine::request::{BuildRequest, Output};

use super::build::{BuildArgs, OnError};
use super::build_request::request;
use super::{again, check, debug};
use crate::environment::{Environment, cancel_on_signal, protect_memory};
use crate::error::CliError;
use crate::foreground::Foreground;
use crate::progress::{Display, Mode};

/// Builds.
pub fn run(args: &BuildArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    let notes = args.legacy.check().map_err(CliError::usage)?;
    let method = check::Method::parse(if args.check { "check" } else { &args.call })?;
    let request = request(args)?;
    for (flag, path) in [("--iidfile", &args.iidfile), ("--metadata-file", &args.metadata_file)] {
        check_place(flag, path.as_deref())?;
    }
    let image = |o: &Output| matches!(o, Output::Image(_) | Output::Archive(_));
    if args.iidfile.is_some() && !request.outputs.is_empty() && !request.outputs.iter().any(image) {
        return Err(CliError::usage("--iidfile: these outputs make no image, so there is no ID to write"));
    }
    if let Some(method) = method {
        return check::run(&environment.engine()?, &request, &method);
    }
    build(args, request, environment, notes)
}

/// Builds what was requested; of the arguments only those about what is shown and written count.
pub fn build(
    args: &BuildArgs,
    request: BuildRequest,
    environment: &Environment,
    notes: Vec<String>,
) -> Result<ExitCode, CliError> {
    if !(request.secrets.is_empty() && request.ssh.is_empty()) {
        protect_memory();
    }
    let shell = args.on_error == OnError::Shell;
    let foreground = if shell { Some(Arc::new(Foreground::new(true, true)?)) } else { None };
    let engine = environment.engine()?;
    engine.keep_to(environment.budget()?);
    let cancel = foreground.as_ref().map_or_else(cancel_on_signal, |f| f.cancel().clone());
    let mode = if args.quiet { Mode::Quiet } else { args.progress };
    let display = Display::start(mode, args.explain_cache);
    environment.notices().attach(Arc::clone(&display) as Arc<dyn EventSink>);
    for note in notes {
        display.event(Event::Warning(note));
    }
    let mut request = request;
    request.on_failure = foreground.map(|f| debug::on_failure(&args.tools, f, Arc::clone(&display)));
    let lints = Arc::new(Lints::new(Arc::clone(&display)));
    let outcome = build::build(&engine, request, Arc::clone(&lints) as Arc<dyn EventSink>, &cancel);
    let output_shown = if outcome.is_ok() { display.finish() } else { display.finish_failed() };
    let result = outcome.map_err(|e| CliError::of_build(e, output_shown, again::with_shell))?;
    if !matches!(mode, Mode::Quiet | Mode::Rawjson) {
        lints.show();
    }
    finish(args, &result)
}

/// That a file can't be written should not be found out after an hour's build. What is there from another build goes, as
/// somebody may read it after a build that failed.
fn check_place(flag: &str, path: Option<&Path>) -> Result<(), CliError> {
    let Some(path) = path else { return Ok(()) };
    let bad = |why: String| Err(CliError::usage(format!("{flag} {}: {why}", path.display())));
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if path.is_dir() {
        return bad("it is a directory".to_owned());
    }
    if !directory.is_dir() {
        return bad(format!("there is no directory {}", directory.display()));
    }
    match path.is_file().then(|| std::fs::remove_file(path)) {
        Some(Err(e)) => bad(e.to_string()),
        _ => Ok(()),
    }
}

fn finish(args: &BuildArgs, result: &BuildResult) -> Result<ExitCode, CliError> {
    let write = |path: &std::path::Path, text: String| {
        std::fs::write(path, text).map_err(|e| CliError::failed(format!("can't write {}: {e}", path.display())))
    };
    if let (Some(path), Some(id)) = (&args.iidfile, result.image_id()) {
        write(path, id.to_string())?;
    }
    if let Some(path) = &args.metadata_file {
        let json = serde_json::to_string_pretty(&metadata(result)).map_err(|e| CliError::failed(e.to_string()))?;
        write(path, json)?;
    }
    if args.quiet {
        // An empty line where no image is made, as docker prints.
        crate::output::print(&format!("{}\n", result.image_id().map(|id| id.to_string()).unwrap_or_default()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The keys that buildx writes.
fn metadata(result: &BuildResult) -> serde_json::Value {
    let mut all = serde_json::Map::new();
    all.insert("buildx.build.ref".into(), format!("kiln/kiln/{}", result.id).into());
    if let Some(exported) = result.exported.first() {
        all.insert("containerimage.digest".into(), exported.target.digest.to_string().into());
        let mut descriptor = exported.target.clone();
        if let [image] = exported.images.as_slice() {
            descriptor.platform = Some(image.platform.clone());
            all.insert("containerimage.config.digest".into(), image.config.digest.to_string().into());
        }
        all.insert("containerimage.descriptor".into(), serde_json::to_value(&descriptor).unwrap_or_default());
        if !exported.names.is_empty() {
            let names: Vec<String> = exported.names.iter().map(ToString::to_string).collect();
            all.insert("image.name".into(), names.join(",").into());
        }
    }
    serde_json::Value::Object(all)
}

/// Keeps warnings about the Dockerfile until the build ended, as they would scroll away.
struct Lints {
    display: Arc<Display>,
    kept: std::sync::Mutex<Vec<String>>,
}

impl Lints {
    fn new(display: Arc<Display>) -> Self {
        Self { display, kept: std::sync::Mutex::default() }
    }

    fn show(&self) {
        let kept = self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !kept.is_empty() {
            eprintln!(
                "\n{} warning{} found (`kiln build --check` explains):",
                kept.len(),
                if kept.len() == 1 { "" } else { "s" }
            );
            for lint in kept.iter() {
                eprintln!(" - {lint}");
            }
        }
    }
}

impl EventSink for Lints {
    fn event(&self, event: Event) {
        if let Event::Lint { diagnostic, file } = &event {
            let rule = diagnostic.rule.map(|r| format!("{}: ", r.name())).unwrap_or_default();
            let line = format!("{rule}{} (line {})", diagnostic.message, diagnostic.line_col(file).line);
            self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(line);
        }
        self.display.event(event);
    }
}
