//! The question before something is removed.

use std::io::{IsTerminal, Write};

use crate::error::CliError;

/// Asks, and reads the answer from standard input. No terminal and no answer is an error: a script should say what it wants.
pub fn confirm(warning: &str) -> Result<bool, CliError> {
    eprint!("WARNING! {warning}\nAre you sure you want to continue? [y/N] ");
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    let read = std::io::stdin().read_line(&mut answer);
    let read = read.map_err(|e| CliError::failed(format!("can't read the answer: {e}")))?;
    if read == 0 {
        eprintln!();
        if !std::io::stdin().is_terminal() {
            return Err(CliError::usage("nobody answered").with_hint("--force does not ask"));
        }
    }
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
