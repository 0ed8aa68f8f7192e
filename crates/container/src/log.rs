//! What a container wrote: a JSON object a line, as docker's `json-file` has it.
//!
//! The newest lines are in `log`. Where its size is limited, it becomes `log.1` when it is full, that `log.2`, and so on.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
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

/// How much of a log is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Bytes of a file, more or less a line. `None` is no limit.
    pub size: Option<u64>,
    /// Files, at least one.
    pub files: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { size: None, files: 1 }
    }
}

/// Lines are cut at this length, as docker does.
const LONGEST: u64 = 16 << 10;

/// A log that is written.
#[derive(Debug)]
pub struct LogWriter {
    path: PathBuf,
    limits: Limits,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    file: File,
    size: u64,
}

impl Current {
    fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        let size = file.metadata()?.len();
        Ok(Self { file, size })
    }
}

impl LogWriter {
    /// Goes on with a log.
    pub fn open(path: &Path, limits: Limits) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), limits, current: Mutex::new(Current::open(path)?) })
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
                let _ = self.write(&text);
            }
            line.clear();
        }
    }

    fn write(&self, text: &[u8]) -> io::Result<()> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let size = current.size + text.len() as u64;
        if current.size > 0 && self.limits.size.is_some_and(|most| size > most) {
            self.rotate()?;
            *current = Current::open(&self.path)?;
        }
        current.file.write_all(text)?;
        current.size += text.len() as u64;
        Ok(())
    }

    fn rotate(&self) -> io::Result<()> {
        let oldest = self.limits.files.max(1) - 1;
        if oldest == 0 {
            return fs::remove_file(&self.path);
        }
        for number in (0..oldest).rev() {
            match fs::rename(numbered(&self.path, number), numbered(&self.path, number + 1)) {
                Err(e) if number > 0 && e.kind() == io::ErrorKind::NotFound => {}
                renamed => renamed?,
            }
        }
        Ok(())
    }
}

/// `log`, `log.1`, ….
fn numbered(path: &Path, number: u32) -> PathBuf {
    if number == 0 {
        return path.to_owned();
    }
    let mut name = OsString::from(path);
    name.push(format!(".{number}"));
    name.into()
}

/// A log that is read, from the oldest line that is there.
#[derive(Debug)]
pub struct LogReader {
    path: PathBuf,
    from: BufReader<File>,
    /// The beginning of a line whose end is not written yet.
    begun: Vec<u8>,
}

impl LogReader {
    /// From its beginning; `None` if nothing was logged.
    pub fn open(path: &Path) -> io::Result<Option<Self>> {
        let oldest = older(path)?.last().copied().unwrap_or(0);
        match File::open(numbered(path, oldest)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            file => {
                file.map(|file| Some(Self { path: path.to_owned(), from: BufReader::new(file), begun: Vec::new() }))
            }
        }
    }

    /// The next entry; `None` at the end, where there may be more later. Lines that a crash has torn are left out.
    pub fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        loop {
            if !self.next_line()? {
                let Some(newer) = self.newer()? else { return Ok(None) };
                // Something may have been written just before the file was put aside.
                if !self.next_line()? {
                    self.from = BufReader::new(newer);
                    self.begun.clear();
                    continue;
                }
            }
            let line = std::mem::take(&mut self.begun);
            if let Ok(entry) = serde_json::from_slice(&line) {
                return Ok(Some(entry));
            }
        }
    }

    /// Reads to the end of a line. False if that is not there yet.
    fn next_line(&mut self) -> io::Result<bool> {
        Ok(self.from.read_until(b'\n', &mut self.begun)? > 0 && self.begun.ends_with(b"\n"))
    }

    /// The file after this one, if this one was put aside.
    fn newer(&self) -> io::Result<Option<File>> {
        let own = identity(&self.from.get_ref().metadata()?);
        let is_own = |number| fs::metadata(numbered(&self.path, number)).is_ok_and(|meta| identity(&meta) == own);
        while !is_own(0) {
            let numbers = older(&self.path)?;
            let here = numbers.iter().copied().find(|number| is_own(*number));
            // If it is gone already, the oldest that is there comes next.
            let next = here.map_or_else(|| numbers.last().copied().unwrap_or(0), |number| number - 1);
            match File::open(numbered(&self.path, next)) {
                // They may have moved on in between.
                Ok(file) if here.is_none_or(is_own) => return Ok(Some(file)),
                Ok(_) => {}
                // The next one is not begun yet.
                Err(e) if next == 0 && e.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(None)
    }
}

fn identity(meta: &fs::Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}

/// The numbers of the files that were put aside, the newest first.
fn older(path: &Path) -> io::Result<Vec<u32>> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str())) else {
        return Ok(Vec::new());
    };
    let number = |entry: io::Result<fs::DirEntry>| {
        let file = entry.ok()?.file_name();
        file.to_str()?.strip_prefix(name)?.strip_prefix('.')?.parse().ok()
    };
    let entries = match fs::read_dir(dir) {
        // The container was removed.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut numbers: Vec<u32> = entries.filter_map(number).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rest(reader: &mut LogReader) -> String {
        std::iter::from_fn(|| reader.next_entry().unwrap()).map(|entry| entry.log).collect()
    }

    #[test]
    fn what_was_written_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        assert!(LogReader::open(&path).unwrap().is_none());
        let log = LogWriter::open(&path, Limits::default()).unwrap();
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

    #[test]
    fn a_full_log_is_put_aside_and_readers_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        // A line takes about 75 bytes.
        let limits = Limits { size: Some(200), files: 3 };
        let log = LogWriter::open(&path, limits).unwrap();
        log.follow(&b"0\n"[..], "stdout");
        let mut follower = LogReader::open(&path).unwrap().unwrap();
        assert_eq!(rest(&mut follower), "0\n");
        log.follow(&b"1\n2\n3\n"[..], "stdout");
        assert_eq!(rest(&mut follower), "1\n2\n3\n", "through two changes of the file");
        log.follow(&b"4\n5\n6\n7\n"[..], "stdout");
        drop(log);
        let log = LogWriter::open(&path, limits).unwrap();
        log.follow(&b"8\n"[..], "stdout");
        assert_eq!(rest(&mut LogReader::open(&path).unwrap().unwrap()), "4\n5\n6\n7\n8\n");
        assert_eq!(rest(&mut follower), "4\n5\n6\n7\n8\n", "its own file is gone");
        assert_eq!(older(&path).unwrap(), [1, 2]);
        let one = dir.path().join("one");
        LogWriter::open(&one, Limits { size: Some(1), files: 1 }).unwrap().follow(&b"1\n2\n"[..], "stdout");
        assert_eq!(rest(&mut LogReader::open(&one).unwrap().unwrap()), "2\n");
    }
}
