//! The `kiln` binary: arguments, the environment, messages. One file for each command.

mod commands;
mod environment;
mod error;
mod excerpt;
mod foreground;
mod listing;
mod notices;
mod output;
mod progress;
mod template;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // Before anything else exists in this process: it may be the container helper, or its first process.
    kiln_engine::executor::helper_main_if_requested();
    let cli = match commands::Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => e.exit(),
    };
    match commands::run(cli) {
        Ok(code) => code,
        Err(e) => {
            e.show();
            ExitCode::from(e.code())
        }
    }
}
