//! `kiln ps`, the same as `kiln container ls`.

use std::process::ExitCode;

use clap::Args;
use kiln_engine::Error;
use kiln_engine::container::{Container, Status, list};
use kiln_engine::oci::{Reference, Timestamp};

use super::filters::LabelFilter;
use super::parse::key_value;
use crate::environment::Environment;
use crate::error::CliError;
use crate::listing::{self, Format, Listing, Row, ago};
use crate::output;

/// List containers
///
/// Fields for --format: .ID .Image .Command .CreatedAt .RunningFor .Ports .State .Status .Names .Labels .Mounts .Networks
/// and {{.Label "NAME"}}
///
/// Examples:
///   kiln ps
///   kiln ps -a --filter status=exited --filter label=stage=test
///   kiln ps --format '{{.Names}}: {{.Status}}'
///   kiln rm $(kiln ps -aq --filter ancestor=app)
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct PsArgs {
    /// Also those that do not run
    #[arg(short, long)]
    all: bool,
    /// Only what fits: id=, name= (a part, or ^NAME$), status=created|running|exited, exited=CODE, label=NAME[=VALUE], ancestor=IMAGE
    #[arg(short, long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<String>,
    /// table, json, or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// The last N, whether they run or not
    #[arg(short = 'n', long, value_name = "N")]
    last: Option<usize>,
    /// The last one, whether it runs or not
    #[arg(short, long)]
    latest: bool,
    /// Do not shorten IDs and commands
    #[arg(long)]
    no_trunc: bool,
    /// Print IDs only
    #[arg(short, long)]
    quiet: bool,
}

const HEADS: [(&str, &str); 12] = [
    ("ID", "CONTAINER ID"),
    ("Image", "IMAGE"),
    ("Command", "COMMAND"),
    ("RunningFor", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("Status", "STATUS"),
    ("State", "STATE"),
    ("Ports", "PORTS"),
    ("Names", "NAMES"),
    ("Labels", "LABELS"),
    ("Mounts", "MOUNTS"),
    ("Networks", "NETWORKS"),
];

/// Prints the list.
pub fn run(args: &PsArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    let format = Format::parse(args.format.as_deref())?;
    let filters = args.filters.iter().map(|text| Filter::parse(text)).collect::<Result<Vec<_>, _>>()?;
    let store = environment.store()?;
    let mut containers = list(store.root()).map_err(Error::from)?;
    for container in &mut containers {
        // One that is being removed may be gone by now.
        let _ = container.settle(&store);
    }
    let last = if args.latest { Some(1) } else { args.last };
    let any_state = args.all || last.is_some() || filters.iter().any(|f| matches!(f.key, Key::Status | Key::Exited));
    containers.retain(|c| (any_state || c.status() == Status::Running) && fits(c, &filters));
    containers.truncate(last.unwrap_or(usize::MAX));
    if args.quiet && args.format.is_none() {
        let id = |c: &Container| format!("{}\n", if args.no_trunc { c.id() } else { c.short_id() });
        output::print(&containers.iter().map(id).collect::<String>())?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Row> = containers.iter().map(|c| row(c, args.no_trunc)).collect();
    let shown = ["ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names"];
    Listing { heads: &HEADS, shown: &shown, rows: &rows }.print(&format)?;
    Ok(ExitCode::SUCCESS)
}

fn row(container: &Container, whole: bool) -> Row {
    let config = &container.config;
    let command = container.argv().join(" ");
    let short = |text: &str| match text.char_indices().nth(20) {
        Some(_) if !whole => text.chars().take(19).chain(['…']).collect(),
        _ => text.to_owned(),
    };
    let labels: Vec<String> = config.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mounts: Vec<String> = config.binds.iter().map(|b| b.source.display().to_string()).collect();
    listing::row([
        ("ID", if whole { container.id() } else { container.short_id() }.to_owned()),
        ("Image", config.image.clone()),
        ("Command", format!("\"{}\"", short(&command))),
        ("RunningFor", config.created.map_or_else(String::new, ago)),
        ("CreatedAt", config.created.map_or_else(String::new, listing::go_time)),
        ("Status", status(container)),
        ("State", container.status().name().to_owned()),
        ("Ports", ports(container)),
        ("Names", config.name.clone()),
        ("Labels", labels.join(",")),
        ("Mounts", mounts.join(",")),
        ("Networks", if config.host_network { "host" } else { "none" }.to_owned()),
    ])
}

/// `Up 2 minutes`, `Exited (0) 3 seconds ago`.
fn status(container: &Container) -> String {
    let state = &container.state;
    match container.status() {
        Status::Created => "Created".to_owned(),
        Status::Running => {
            let since = state.started.map_or(0, |at| at.seconds_until(Timestamp::now()));
            format!("Up {}", listing::age(since))
        }
        Status::Exited => {
            let when = state.finished.map_or_else(String::new, |at| format!(" {}", ago(at)));
            format!("Exited ({}){when}", container.exit_code())
        }
    }
}

fn ports(container: &Container) -> String {
    if container.status() != Status::Running {
        return String::new();
    }
    let shown: Vec<String> = container.config.ports.iter().map(|p| format!("0.0.0.0:{p}->{p}/tcp")).collect();
    shown.join(", ")
}

/// Whether a part of a name, or its beginning or end with `^` and `$`, is as wanted: that much of docker's expressions.
fn is_named(name: &str, wanted: &str) -> bool {
    let (wanted, from_start) = wanted.strip_prefix('^').map_or((wanted, false), |rest| (rest, true));
    let (wanted, to_end) = wanted.strip_suffix('$').map_or((wanted, false), |rest| (rest, true));
    let wanted = wanted.strip_prefix("/?").or(wanted.strip_prefix('/')).unwrap_or(wanted);
    match (from_start, to_end) {
        (true, true) => name == wanted,
        (true, false) => name.starts_with(wanted),
        (false, true) => name.ends_with(wanted),
        (false, false) => name.contains(wanted),
    }
}

/// What a container has to fit.
struct Filter {
    key: Key,
    value: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Id,
    Name,
    Status,
    Exited,
    Label,
    Ancestor,
}

/// Docker's rule: of one key, one has to fit, of labels all.
fn fits(container: &Container, filters: &[Filter]) -> bool {
    filters.iter().all(|filter| {
        let same = filters.iter().filter(|f| f.key == filter.key);
        if filter.key == Key::Label {
            filter.accepts(container)
        } else {
            same.into_iter().any(|f| f.accepts(container))
        }
    })
}

impl Filter {
    fn parse(text: &str) -> Result<Self, CliError> {
        let (key, value) = key_value("--filter", text)?;
        let bad = |what: &str| CliError::usage(format!("--filter {text}: {what}"));
        let key = match key.as_str() {
            "id" => Key::Id,
            "name" => Key::Name,
            "status" => Key::Status,
            "exited" => Key::Exited,
            "label" => Key::Label,
            "ancestor" => Key::Ancestor,
            _ => return Err(bad("the filters are id, name, status, exited, label, ancestor")),
        };
        // Docker's other states are never reached.
        const STATES: [&str; 7] = ["created", "running", "exited", "paused", "restarting", "removing", "dead"];
        if key == Key::Status && !STATES.contains(&value.as_str()) {
            return Err(bad("the states are created, running, exited"));
        }
        if key == Key::Exited && value.parse::<i32>().is_err() {
            return Err(bad("expected an exit code"));
        }
        Ok(Self { key, value })
    }

    fn accepts(&self, container: &Container) -> bool {
        let (config, value) = (&container.config, self.value.as_str());
        match self.key {
            Key::Id => container.id().starts_with(value),
            Key::Name => is_named(&config.name, value),
            Key::Status => container.status().name() == value,
            Key::Exited => container.status() == Status::Exited && value.parse() == Ok(container.exit_code()),
            Key::Label => LabelFilter::parse(value).accepts(&config.labels),
            Key::Ancestor => {
                let full = |text: &str| text.parse::<Reference>().ok().map(Reference::with_default_tag);
                let id = config.image_id.trim_start_matches("sha256:");
                let wanted = value.trim_start_matches("sha256:");
                (wanted.len() >= 4 && id.starts_with(wanted))
                    || full(value).is_some_and(|n| full(&config.image) == Some(n))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::is_named;

    #[test]
    fn names_fit_as_dockers_expressions_say() {
        for yes in ["web", "eb", "^web$", "^/web$", "^/?web$", "^w", "b$", "/web", ""] {
            assert!(is_named("web", yes), "{yes}");
        }
        for no in ["webb", "^eb", "we$", "^/b$"] {
            assert!(!is_named("web", no), "{no}");
        }
    }
}
