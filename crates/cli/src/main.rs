//! The `kiln` binary: arguments, the environment, messages. One file for each command.

mod commands;
mod environment;
mod error;
mod excerpt;
mod foreground;
mod help;
mod listing;
mod notices;
mod output;
mod progress;
mod template;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

fn main() -> ExitCode {
    // Before anything else exists in this process: it may be the container helper, or its first process.
    kiln_engine::executor::helper_main_if_requested();
    let matches = help::flowing(commands::Cli::command()).try_get_matches();
    let cli = match matches.and_then(|m| commands::Cli::from_arg_matches(&m)) {
        Ok(cli) => cli,
        Err(e) => {
            help::explain(&e);
            e.exit()
        }
    };
    match commands::run(cli) {
        Ok(code) => code,
        Err(e) => {
            e.show();
            ExitCode::from(e.code())
        }
    }
}
