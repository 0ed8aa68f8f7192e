//! `kiln logs`.

use std::process::ExitCode;

use clap::Args;

use crate::environment::Environment;
use crate::error::CliError;

/// Show the whole output of a build
///
/// Without BUILD, the last build's. `kiln logs --list` shows the builds that are kept.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// The build's ID, or its beginning
    build: Option<String>,
    /// List the builds
    #[arg(long)]
    list: bool,
}

/// Prints the log.
pub fn run(args: &LogsArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    let engine = environment.engine()?;
    let builds = engine.store.builds();
    let all = builds.list().map_err(kiln_engine::Error::from)?;
    if args.list {
        println!("{:<14} {:<22} {:<10} CONTEXT", "BUILD", "STARTED", "STATUS");
        for build in all {
            println!(
                "{:<14} {:<22} {:<10} {}",
                build.id,
                build.started.to_string(),
                format!("{:?}", build.status).to_lowercase(),
                build.info.context
            );
        }
        return Ok(ExitCode::SUCCESS);
    }
    let id = match (&args.build, all.first()) {
        (Some(id), _) => builds.get(id).map_err(kiln_engine::Error::from)?.id,
        (None, Some(last)) => last.id.clone(),
        (None, None) => return Err(CliError::failed("there was no build yet")),
    };
    let mut log = builds.open_log(&id).map_err(kiln_engine::Error::from)?;
    std::io::copy(&mut log, &mut std::io::stdout())
        .map_err(|e| CliError::failed(format!("can't print the log: {e}")))?;
    Ok(ExitCode::SUCCESS)
}
