//! The `kiln` binary: arguments, the environment, messages. One file for each command.

/// The standard library's panics where nobody reads any more: `kiln build . 2>&1 | head`.
macro_rules! eprintln {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

/// The same for standard output.
macro_rules! println {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

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
    if commands::completions::answer() {
        return ExitCode::SUCCESS;
    }
    let matches = help::arguments(commands::Cli::command, std::env::args_os().collect());
    let cli = match matches.and_then(|m| commands::Cli::from_arg_matches(&m)) {
        Ok(cli) => cli,
        Err(e) => {
            // Whoever reads help through a pipe may stop early.
            let _ = e.print();
            help::explain(&e);
            return ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(error::code::USAGE));
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
