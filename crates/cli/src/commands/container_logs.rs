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
    /// Nor what is newer.
    pub until: Option<Timestamp>,
}

/// How often a log is looked at for more.
const INTERVAL: Duration = Duration::from_millis(50);

/// Shows what the container wrote, on standard output and error.
pub fn show(container: &mut Container, shown: &Shown) -> Result<ExitCode, CliError> {
    let path = container.log_path();
    let failed = |e: io::Error| CliError::from(Error::io("read", &path, e));
    let Some(mut reader) = LogReader::open(&path).map_err(failed)? else {
        let name = &container.config.name;
        if container.config.unlogged {
            eprintln!("the container {name} was made with --log-driver none: what it writes is not kept");
        } else if container.state.started.is_some() {
            eprintln!("the container {name} ran in the foreground: what it wrote was shown there");
        }
        return Ok(ExitCode::SUCCESS);
    };
    let mut open = match shown.tail {
        Some(most) => shown.print_last(&mut reader, most),
        None => shown.print_all(&mut reader),
    }
    .map_err(failed)?;
    while shown.follow && open {
        // Asked before the log is read: what was written before the end is read after it.
        let runs = container.is_watched() && container.reload().is_ok();
        open = shown.print_all(&mut reader).map_err(failed)?;
        if !runs {
            break;
        }
        std::thread::sleep(INTERVAL);
    }
    Ok(ExitCode::SUCCESS)
}

impl Shown {
    /// What is there now. False if nobody wants more.
    fn print_all(&self, reader: &mut LogReader) -> io::Result<bool> {
        while let Some(entry) = reader.next_entry()? {
            if !self.print(&entry) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The last lines of what is there now.
    fn print_last(&self, reader: &mut LogReader, most: usize) -> io::Result<bool> {
        let mut last = VecDeque::new();
        while let Some(entry) = reader.next_entry()? {
            last.push_back(entry);
            if last.len() > most {
                last.pop_front();
            }
        }
        Ok(last.iter().all(|entry| self.print(entry)))
    }

    /// False if nobody wants more.
    fn print(&self, entry: &LogEntry) -> bool {
        if self.since.is_some_and(|since| entry.time < since) {
            return true;
        }
        if self.until.is_some_and(|until| entry.time > until) {
            return false;
        }
        let text = match self.timestamps {
            true => format!("{:.9} {}", entry.time, entry.log),
            false => entry.log.clone(),
        };
        let printed = match entry.stream.as_str() {
            "stderr" => io::stderr().write_all(text.as_bytes()),
            _ => io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()),
        };
        printed.is_ok()
    }
}
