//! What a container wrote: a JSON object a line, as docker's `json-file` has it.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use kiln_oci::Timestamp;
use serde::{Deserialize, Serialize};

/// A line, or a part of a long one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Entry {
    /// The text, with its line end.
    pub log: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// When it was read.
    pub time: Timestamp,
}

/// Lines are cut at this length, as docker does.
const LONGEST: u64 = 16 << 10;

/// A log that is written.
#[derive(Debug)]
pub struct LogWriter(Mutex<File>);

impl LogWriter {
    /// Goes on with a log.
    pub fn open(path: &Path) -> io::Result<Self> {
        OpenOptions::new().append(true).create(true).open(path).map(|file| Self(Mutex::new(file)))
    }

    /// Writes all that comes, to its end. Who writes too much for the disk is not stopped: the rest is lost.
    pub fn follow(&self, from: impl Read, stream: &str) {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        // A terminal whose other side is closed reads as an error.
        while matches!((&mut from).take(LONGEST).read_until(b'\n', &mut line), Ok(1..)) {
            let log = String::from_utf8_lossy(&line).into_owned();
            let entry = Entry { log, stream: stream.to_owned(), time: Timestamp::now() };
            if let Ok(mut text) = serde_json::to_vec(&entry) {
                text.push(b'\n');
                let _ = self.0.lock().unwrap_or_else(PoisonError::into_inner).write_all(&text);
            }
            line.clear();
        }
    }
}

/// A log that is read.
#[derive(Debug)]
pub struct LogReader {
    from: BufReader<File>,
    /// The beginning of a line whose end is not written yet.
    begun: Vec<u8>,
}

impl LogReader {
    /// From its beginning; `None` if nothing was logged.
    pub fn open(path: &Path) -> io::Result<Option<Self>> {
        match File::open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            file => file.map(|file| Some(Self { from: BufReader::new(file), begun: Vec::new() })),
        }
    }

    /// The next entry; `None` at the end, where there may be more later. Lines that a crash has torn are left out.
    pub fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        loop {
            if self.from.read_until(b'\n', &mut self.begun)? == 0 || !self.begun.ends_with(b"\n") {
                return Ok(None);
            }
            let line = std::mem::take(&mut self.begun);
            if let Ok(entry) = serde_json::from_slice(&line) {
                return Ok(Some(entry));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        assert!(LogReader::open(&path).unwrap().is_none());
        let log = LogWriter::open(&path).unwrap();
        log.follow(&b"one\ntwo"[..], "stdout");
        let mut reader = LogReader::open(&path).unwrap().unwrap();
        let mut next = || reader.next_entry().unwrap().map(|e| (e.log, e.stream));
        assert_eq!(next(), Some(("one\n".into(), "stdout".into())));
        assert_eq!(next(), Some(("two".into(), "stdout".into())));
        assert_eq!(next(), None);
        log.follow(&[b'x'; 20_000][..], "stderr");
        assert_eq!(next().map(|(log, _)| log.len()), Some(16 << 10));
        assert_eq!(next().map(|(log, _)| log.len()), Some(20_000 - (16 << 10)));
    }
}
