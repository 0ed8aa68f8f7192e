//! Errors as the user sees them: what happened, where, what to do, and the exit code.

use std::io::IsTerminal;
use std::sync::Arc;

use kiln_engine::error::{Cause, EMULATOR, StepError};
use kiln_engine::executor::{Error as ExecutorError, StartError};
use kiln_engine::leaks::Leak;
use kiln_engine::rootfs::RootfsError;
use kiln_engine::{Engine, Error, Finding, human_size, place_of};

use crate::excerpt;

/// Characters of a line of a message.
const MOST_COLUMNS: usize = 4000;
/// More leaks than this are only counted.
const MOST_LEAKS: usize = 10;

/// Exit codes; documented in `kiln help`.
pub mod code {
    /// The operation failed.
    pub const FAILED: u8 = 1;
    /// The command line is wrong.
    pub const USAGE: u8 = 2;
    /// A build check failed.
    pub const CHECK: u8 = 3;
    /// A secret was found.
    pub const LEAK: u8 = 4;
    /// `kiln run`: the container could not be started.
    pub const RUN_FAILED: u8 = 125;
    /// Interrupted by the user.
    pub const INTERRUPTED: u8 = 130;
}

/// An error on its way to the user.
#[derive(Debug)]
pub struct CliError {
    message: String,
    hint: Option<String>,
    code: u8,
}

impl CliError {
    /// The command line is wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, code: code::USAGE }
    }

    /// Something failed.
    pub fn failed(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, code: code::FAILED }
    }

    /// Adds advice.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Sets the exit code.
    pub fn with_code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// Of a build. `output_shown`: the screen ends with the output of the step that failed. `shell`: what opens one there.
    pub fn of_build(error: Error, output_shown: bool, shell: fn() -> String) -> Self {
        match error {
            Error::Step(step) => step_error(*step, output_shown, Some(shell)),
            other => other.into(),
        }
    }

    /// Warnings that are errors in this Dockerfile.
    pub fn of_checks(file: &str) -> Self {
        Self::failed(format!("{file}: build checks failed"))
            .with_hint("`# check=error=true` in the Dockerfile makes them errors; `# check=skip=RULE` skips one")
            .with_code(code::CHECK)
    }

    /// Of a transfer into the store. Where there was no room for it, gives back what it took, and says how much that is.
    pub fn of_transfer(error: Error, engine: Arc<Engine>, what: &str) -> Self {
        if !error.is_disk_full() || matches!(error, Error::Io { .. }) {
            return error.into();
        }
        let store = engine.store.clone();
        // It holds what it made against collection.
        drop(engine);
        _ = store.collect();
        let free = store.free_space().map_or_else(|_| "what".to_owned(), |free| format!("the {}", human_size(free)));
        let place = store.root().display();
        Self::failed(format!("no space left for {what} in {place}: it needs more than {free} that is free there"))
            .with_hint(format!("{MAKE_ROOM}; --root or KILN_ROOT put the store elsewhere"))
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        self.code
    }

    /// Writes it to standard error.
    pub fn show(&self) {
        if self.message.is_empty() {
            return;
        }
        let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let head = if colour { "\x1b[1;31merror\x1b[0m" } else { "error" };
        let lines: Vec<_> = self.message.split('\n').map(|line| excerpt::clipped(line, MOST_COLUMNS)).collect();
        eprintln!("{head}: {}", lines.join("\n"));
        if let Some(hint) = &self.hint {
            eprintln!("hint: {hint}");
        }
    }
}

impl From<Error> for CliError {
    fn from(error: Error) -> Self {
        match error {
            Error::Dockerfile { file: source, diagnostics } => {
                excerpt::show(&source, &diagnostics);
                match diagnostics.iter().filter(|d| d.is_error()).count() {
                    // It says all.
                    1 => Self::failed(""),
                    0 => Self::of_checks(source.name()),
                    errors => Self::failed(format!("{}: {errors} errors", source.name())),
                }
            }
            Error::Step(step) => step_error(*step, false, None),
            Error::Leaks(leaks) => {
                let list = leak_list(&leaks);
                Self::failed(format!("the result was not written: it holds secrets{list}"))
                    .with_hint("--leaks=warn writes it all the same")
                    .with_code(code::LEAK)
            }
            Error::Programs(found) => {
                let line = |f: &Finding| format!("\n  {}\n    {}", f.describe(), f.remedy());
                let list: String = found.iter().map(line).collect();
                Self::failed(format!("the result was not written: programs in it can't start{list}"))
                    .with_hint("--check-programs=warn writes it all the same")
            }
            Error::Cancelled | Error::Registry(kiln_engine::registry::Error::Cancelled) => {
                Self::failed("interrupted").with_code(code::INTERRUPTED)
            }
            Error::Request { message, hint } => Self { message, hint, code: code::FAILED },
            other => {
                let hint = hint(&other);
                Self { message: chain(&other), hint, code: code::FAILED }
            }
        }
    }
}

/// What was found and what to do about it; the same advice once.
fn leak_list(leaks: &[Leak]) -> String {
    let mut list = String::new();
    for (index, leak) in leaks.iter().enumerate().take(MOST_LEAKS) {
        list.push_str(&format!("\n  {}", leak.describe()));
        let next = leaks.get(index + 1).filter(|_| index + 1 < MOST_LEAKS);
        if next.is_none_or(|n| n.remedy() != leak.remedy()) {
            list.push_str(&format!("\n    {}", leak.remedy()));
        }
    }
    if leaks.len() > MOST_LEAKS {
        list.push_str(&format!("\n  … and {} more", leaks.len() - MOST_LEAKS));
    }
    list
}

/// The excerpt, the end of the output if that is not on the screen already, and one line that repeats neither.
fn step_error(step: StepError, output_shown: bool, shell: Option<fn() -> String>) -> CliError {
    let mut name = step.name.as_str();
    let mut place = String::new();
    if let (Some(source), Some(location)) = (&step.source_text, &step.location) {
        excerpt::lines(source, location);
        // The instruction's text is in the excerpt.
        name = place_of(name).or_else(|| name.split(' ').next()).unwrap_or(name);
        place = format!(" ({}:{})", location.file, location.start_line);
    }
    if !output_shown {
        excerpt::tail(&step.output);
    }
    match step.cause {
        Cause::Other(cause) => {
            let nested = CliError::from(*cause);
            let hint = nested.hint.map(|hint| match hint == EMULATOR {
                true => format!("{hint}; {CROSS_COMPILE}"),
                false => hint,
            });
            CliError { message: format!("{name}{place}: {}", nested.message), hint, ..nested }
        }
        cause => {
            let is_full = step.output.iter().any(|line| line.contains("No space left on device"));
            let shell = shell.map(|text| format!("; {}", text())).unwrap_or_default();
            CliError::failed(format!("{name}{place} {cause}")).with_hint(match is_full {
                true => format!("if the disk of kiln's store is full: {MAKE_ROOM}"),
                false => format!("`kiln logs` shows the whole output{shell}"),
            })
        }
    }
}

/// The error with its causes, each said once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = cause.source();
    }
    text
}

/// What a build can do without an emulator.
const CROSS_COMPILE: &str =
    "or run it in a stage `FROM --platform=$BUILDPLATFORM` that makes files for $TARGETARCH, and COPY them";
/// What to do about a full disk.
const MAKE_ROOM: &str = "`kiln system df` shows what uses the space, `kiln prune` frees it";

fn hint(error: &Error) -> Option<String> {
    match error {
        // A file of the user's own, such as an archive.
        Error::Io { .. } if error.is_disk_full() => Some("make room there, or choose another place".to_owned()),
        _ if error.is_disk_full() => Some(MAKE_ROOM.to_owned()),
        Error::Store(
            kiln_engine::store::Error::BlobDamaged { .. }
            | kiln_engine::store::Error::BlobMissing(_)
            | kiln_engine::store::Error::LayerMissing(_),
        ) => Some(kiln_engine::error::REMAKE.to_owned()),
        Error::LostLayer { cause, .. } => hint(cause),
        Error::Rootfs(RootfsError::UnfitFileSystem { .. }) => Some(
            "choose another directory for the store with --root or KILN_ROOT: in GitLab CI one below $CI_PROJECT_DIR, in \
             Kubernetes an emptyDir volume, in docker a volume"
                .to_owned(),
        ),
        Error::Registry(e) => e.hint(),
        Error::Executor(ExecutorError::Start(StartError::WrongArchitecture { .. })) => Some(EMULATOR.to_owned()),
        Error::Rootfs(RootfsError::Changed { .. }) => {
            Some("something writes to the context during the build; name it in .dockerignore, or build again".to_owned())
        }
        Error::Rootfs(RootfsError::Io { source, .. }) if source.kind() == std::io::ErrorKind::PermissionDenied => {
            Some("make it readable; if the image does not need it, name it in .dockerignore".to_owned())
        }
        _ => None,
    }
}
