//! `kiln container prune`.

use std::process::ExitCode;

use clap::Args;
use kiln_engine::Error;
use kiln_engine::container::{Container, Status, list};
use kiln_engine::oci::Timestamp;

use super::confirm::confirm;
use super::filters::{LabelFilter, point_in_time};
use super::parse::key_value;
use crate::environment::Environment;
use crate::error::CliError;
use crate::output;
use crate::progress::human_size;

/// Remove all containers that do not run
///
/// Examples:
///   kiln container prune
///   kiln container prune --force --filter until=24h
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct ContainerPruneArgs {
    /// Only what fits: until=TIME (made before), label=NAME[=VALUE], label!=NAME[=VALUE]
    #[arg(long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

/// Removes them.
pub fn run(args: &ContainerPruneArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    let filters = args.filters.iter().map(|text| Filter::parse(text)).collect::<Result<Vec<_>, _>>()?;
    let store = environment.store()?;
    store.use_reserve();
    if !args.force && !confirm("This will remove all stopped containers.")? {
        return Ok(ExitCode::SUCCESS);
    }
    let (mut ids, mut bytes) = (String::new(), 0);
    for container in list(store.root()).map_err(Error::from)? {
        if container.status() == Status::Running || !filters.iter().all(|f| f.accepts(&container)) {
            continue;
        }
        // One that is being started or copied from is in use.
        let Some(_lock) = store.containers().try_lock(container.id()).map_err(Error::from)? else { continue };
        bytes += store.containers().remove(container.id()).map_err(Error::from)?.bytes;
        ids.push_str(&format!("{}\n", container.id()));
    }
    if !ids.is_empty() {
        ids = format!("Deleted Containers:\n{ids}\n");
    }
    output::print(&format!("{ids}Total reclaimed space: {}\n", human_size(bytes)))?;
    Ok(ExitCode::SUCCESS)
}

/// What a container has to fit.
enum Filter {
    Until(Timestamp),
    Label(LabelFilter),
    NotLabel(LabelFilter),
}

impl Filter {
    fn parse(text: &str) -> Result<Self, CliError> {
        let (key, value) = key_value("--filter", text)?;
        match key.as_str() {
            "until" => Ok(Self::Until(point_in_time("--filter until", &value)?)),
            "label" => Ok(Self::Label(LabelFilter::parse(&value))),
            "label!" => Ok(Self::NotLabel(LabelFilter::parse(&value))),
            _ => Err(CliError::usage(format!("--filter {text}: the filters are until and label"))),
        }
    }

    fn accepts(&self, container: &Container) -> bool {
        match self {
            Self::Until(at) => container.config.created.is_some_and(|created| created < *at),
            Self::Label(label) => label.accepts(&container.config.labels),
            Self::NotLabel(label) => !label.accepts(&container.config.labels),
        }
    }
}
