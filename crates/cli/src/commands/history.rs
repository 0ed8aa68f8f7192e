//! `kiln history`.

use std::process::ExitCode;

use clap::Args;

use super::table;
use crate::environment::Environment;
use crate::error::CliError;
use crate::progress::human_size;

/// Show the steps that made an image, and the size of each
#[derive(Debug, Args)]
pub struct HistoryArgs {
    /// Image: a name, or the beginning of an ID
    image: String,
    /// Do not shorten commands and IDs
    #[arg(long)]
    no_trunc: bool,
    /// Print IDs only
    #[arg(short, long)]
    quiet: bool,
}

/// Columns of a shortened command, as docker has it.
const COMMAND: usize = 45;

/// Prints the table, newest step first.
pub fn run(args: &HistoryArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    let engine = environment.engine()?;
    let image = engine.image_by_name_or_id(&args.image)?;
    let id = image.manifest.config.digest;
    let id = if args.no_trunc { id.to_string() } else { id.short() };
    let mut sizes = engine.layer_sizes(&image.manifest, &image.config)?.into_iter();
    let mut rows = Vec::new();
    for entry in &image.config.history {
        let size = if entry.empty_layer == Some(true) { 0 } else { sizes.next().unwrap_or(0) };
        let command = entry.created_by.clone().unwrap_or_default().replace(['\n', '\t'], " ");
        let command = match args.no_trunc || command.chars().count() <= COMMAND {
            true => command,
            false => command.chars().take(COMMAND - 1).chain(['…']).collect(),
        };
        rows.push(vec![
            "<missing>".to_owned(),
            entry.created.map_or_else(|| "N/A".to_owned(), table::ago),
            command,
            human_size(size),
            entry.comment.clone().unwrap_or_default(),
        ]);
    }
    rows.reverse();
    if let Some(newest) = rows.first_mut() {
        newest[0].clone_from(&id);
    }
    if args.quiet {
        rows.iter().for_each(|r| println!("{}", r[0]));
        return Ok(ExitCode::SUCCESS);
    }
    table::print(&["IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT"], &rows);
    Ok(ExitCode::SUCCESS)
}
