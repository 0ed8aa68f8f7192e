//! What is read from a terminal: the answer before something is removed, a Dockerfile.

use std::io::{IsTerminal, Read, Write};

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

/// Standard input. On a terminal nothing else shows that the build waits for `what`.
pub fn stdin(what: &str) -> Box<dyn Read + Send> {
    if std::io::stdin().is_terminal() {
        eprintln!("reading {what} from the terminal; Ctrl-D ends it");
    }
    Box::new(std::io::stdin())
}
