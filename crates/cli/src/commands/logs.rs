//! `kiln logs`.

use std::process::ExitCode;

use clap::Args;
use kiln_engine::store::{BuildRecord, BuildStatus};

use crate::environment::Environment;
use crate::error::CliError;
use crate::listing::{self, Format, Listing, Row};

/// Show the whole output of a build
///
/// Without BUILD, the last build's. Logs are never clipped; secrets of the build are hidden in them.
///
/// Fields for --format: .ID .CreatedAt .Created .Duration .Status .Error .Context .Target .Names .Platforms
///
/// Examples:
///   kiln logs
///   kiln logs --list
///   kiln logs 2965073fc430
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct LogsArgs {
    /// The build's ID, or its beginning
    build: Option<String>,
    /// List the builds whose logs are kept
    #[arg(long, conflicts_with = "build")]
    list: bool,
    /// With --list: table, json, or a Go template
    #[arg(long, value_name = "FORMAT", requires = "list")]
    format: Option<String>,
}

const HEADS: [(&str, &str); 10] = [
    ("ID", "BUILD ID"),
    ("Created", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("Duration", "DURATION"),
    ("Status", "STATUS"),
    ("Error", "ERROR"),
    ("Context", "CONTEXT"),
    ("Target", "TARGET"),
    ("Names", "NAMES"),
    ("Platforms", "PLATFORMS"),
];

/// Prints the log, or the list.
pub fn run(args: &LogsArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    let format = Format::parse(args.format.as_deref())?;
    let engine = environment.engine()?;
    let builds = engine.store.builds();
    let all = builds.list().map_err(kiln_engine::Error::from)?;
    if args.list {
        let rows: Vec<Row> = all.iter().map(row).collect();
        let shown = ["ID", "Created", "Duration", "Status", "Names", "Context"];
        Listing { heads: &HEADS, shown: &shown, rows: &rows }.print(&format)?;
        return Ok(ExitCode::SUCCESS);
    }
    let id = match (&args.build, all.first()) {
        // The reference in --metadata-file is `builder/node/id`, as buildx writes it.
        (Some(id), _) => builds.get(id.rsplit('/').next().unwrap_or(id)).map_err(kiln_engine::Error::from)?.id,
        (None, Some(last)) => last.id.clone(),
        (None, None) => return Err(CliError::failed("there was no build yet")),
    };
    let mut log = builds.open_log(&id).map_err(kiln_engine::Error::from)?;
    std::io::copy(&mut log, &mut std::io::stdout())
        .map_err(|e| CliError::failed(format!("can't print the log: {e}")))?;
    Ok(ExitCode::SUCCESS)
}

fn row(build: &BuildRecord) -> Row {
    let (status, error) = match &build.status {
        BuildStatus::Running => ("running", ""),
        BuildStatus::Succeeded => ("succeeded", ""),
        BuildStatus::Failed(error) => ("failed", error.as_str()),
        BuildStatus::Canceled => ("canceled", ""),
        BuildStatus::Interrupted => ("interrupted", ""),
    };
    let duration = build.finished.map(|end| format!("{:.1}s", build.started.duration_until(end).as_secs_f32()));
    listing::row([
        ("ID", build.id.clone()),
        ("Created", listing::ago(build.started)),
        ("CreatedAt", listing::go_time(build.started)),
        ("Duration", duration.unwrap_or_default()),
        ("Status", status.to_owned()),
        ("Error", error.to_owned()),
        ("Context", build.info.context.clone()),
        ("Target", build.info.target.clone().unwrap_or_default()),
        ("Names", build.info.names.join(", ")),
        ("Platforms", build.info.platforms.join(", ")),
    ])
}
