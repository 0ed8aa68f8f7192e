//! `kiln logs`, of containers and builds.

use std::process::ExitCode;

use clap::Args;
use kiln_engine::container::find;
use kiln_engine::store::{BuildRecord, BuildStatus};

use super::container_logs::{Shown, show};
use super::containers::named;
use super::filters::point_in_time;
use crate::environment::Environment;
use crate::error::CliError;
use crate::listing::{self, Format, Listing, Row};

/// Show what a container in the background wrote, or the whole output of a build
///
/// Without NAME, the last build's. Logs are never clipped; secrets of a build are hidden in its log.
///
/// Fields for --format: .ID .CreatedAt .Created .Duration .Status .Error .Context .Target .Names .Platforms
///
/// Examples:
///   kiln logs -f web
///   kiln logs --tail 100 --since 10m -t web
///   kiln logs
///   kiln logs --list
///   kiln logs 2965073fc430
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct LogsArgs {
    /// A container's name or ID, or a build's ID; the beginning of an ID will do
    #[arg(add = super::complete::logs())]
    name: Option<String>,
    /// Of a container: go on until it has ended
    #[arg(short, long, requires = "name")]
    follow: bool,
    /// Of a container: only the last N lines, or all
    #[arg(short = 'n', long, value_name = "N", requires = "name", allow_hyphen_values = true)]
    tail: Option<String>,
    /// Of a container: show when each line was written
    #[arg(short, long, requires = "name")]
    timestamps: bool,
    /// Of a container: only what was written since a time, or a duration ago
    #[arg(long, value_name = "TIME", requires = "name")]
    since: Option<String>,
    /// Of a container: only what was written until a time, or a duration ago
    #[arg(long, value_name = "TIME", requires = "name")]
    until: Option<String>,
    /// List the builds whose logs are kept
    #[arg(long, conflicts_with = "name")]
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

/// `kiln container logs`.
pub fn run_of_containers(args: &LogsArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    let name = args.name.as_deref().ok_or_else(|| CliError::usage("which container?"))?;
    show(&mut named(environment, name)?, &shown(args)?)
}

/// Prints the log, or the list.
pub fn run(args: &LogsArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    let of_container =
        args.follow || args.timestamps || args.tail.is_some() || args.since.is_some() || args.until.is_some();
    if let Some(name) = &args.name {
        match find(environment.root(), name) {
            Err(kiln_engine::container::Error::Missing(_)) if !of_container => {}
            found => return show(&mut found.map_err(kiln_engine::Error::from)?, &shown(args)?),
        }
    }
    of_builds(args, environment)
}

fn shown(args: &LogsArgs) -> Result<Shown, CliError> {
    let bad = |n: &str| CliError::usage(format!("--tail {n}: expected a number, or all"));
    // Docker: a negative number is all.
    let number = |n: &str| n.parse::<i64>().map(|n| usize::try_from(n).ok()).map_err(|_| bad(n));
    let tail = match args.tail.as_deref() {
        None | Some("all") => None,
        Some(n) => number(n)?,
    };
    let time = |flag: &str, text: &Option<String>| text.as_deref().map(|text| point_in_time(flag, text)).transpose();
    Ok(Shown {
        follow: args.follow,
        tail,
        timestamps: args.timestamps,
        since: time("--since", &args.since)?,
        until: time("--until", &args.until)?,
    })
}

fn of_builds(args: &LogsArgs, environment: &Environment) -> Result<ExitCode, CliError> {
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
    let id = match (&args.name, all.first()) {
        // The reference in --metadata-file is `builder/node/id`, as buildx writes it.
        (Some(id), _) => match builds.get(id.rsplit('/').next().unwrap_or(id)) {
            Err(kiln_engine::store::Error::BuildMissing(_)) => {
                return Err(CliError::failed(format!("there is no container and no build {id}")));
            }
            build => build.map_err(kiln_engine::Error::from)?.id,
        },
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
