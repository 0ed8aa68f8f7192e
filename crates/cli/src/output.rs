//! Results on standard output. Who reads it may stop early (`kiln images | head`): that is no error.

use std::io::{ErrorKind, Write};

use crate::error::CliError;

/// Writes text as it is.
pub fn print(text: &str) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => {
            Err(CliError::failed(format!("can't write to standard output: {e}")))
        }
        _ => Ok(()),
    }
}
