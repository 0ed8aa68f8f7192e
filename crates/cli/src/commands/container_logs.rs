//! What `kiln logs` shows of a container.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use kiln_engine::Error;
use kiln_engine::container::{Container, LogEntry, LogReader};
use kiln_engine::oci::Timestamp;

use crate::error::CliError;

/// What to show.
pub struct Shown {
    /// Go on until the container has ended.
    pub follow: bool,
    /// So many lines at most, of those that are there.
    pub tail: Option<usize>,
    /// With times.
    pub timestamps: bool,
    /// Not what is older.
    pub since: Option<Timestamp>,
}

/// How often a log is looked at for more.
const INTERVAL: Duration = Duration::from_millis(50);

/// Shows what the container wrote, on standard output and error.
pub fn show(container: &mut Container, shown: &Shown) -> Result<ExitCode, CliError> {
    let path = container.log_path();
    let failed = |e: io::Error| CliError::from(Error::io("read", &path, e));
    let Some(mut reader) = LogReader::open(&path).map_err(failed)? else {
        if container.state.started.is_some() {
            eprintln!("the container {} ran in the foreground: what it wrote was shown there", container.config.name);
        }
        return Ok(ExitCode::SUCCESS);
    };
    let mut last = VecDeque::new();
    while let Some(entry) = reader.next_entry().map_err(failed)? {
        last.push_back(entry);
        if shown.tail.is_some_and(|most| last.len() > most) {
            last.pop_front();
        }
    }
    let mut open = last.iter().all(|entry| shown.print(entry));
    while shown.follow && open {
        // Asked before the log is read: what was written before the end is read after it.
        let runs = container.is_watched();
        while let Some(entry) = reader.next_entry().map_err(failed)? {
            open &= shown.print(&entry);
        }
        if !runs {
            break;
        }
        std::thread::sleep(INTERVAL);
        if container.reload().is_err() {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl Shown {
    /// False if nobody reads any more.
    fn print(&self, entry: &LogEntry) -> bool {
        if self.since.is_some_and(|since| entry.time < since) {
            return true;
        }
        let text = match self.timestamps {
            true => format!("{} {}", entry.time, entry.log),
            false => entry.log.clone(),
        };
        let printed = match entry.stream.as_str() {
            "stderr" => io::stderr().write_all(text.as_bytes()),
            _ => io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()),
        };
        printed.is_ok()
    }
}
