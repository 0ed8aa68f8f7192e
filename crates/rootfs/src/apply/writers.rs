//! Writes small files from threads of their own.
//!
//! Names are made by one thread, in the order of the archive; what is handed over is an open file with its content and
//! metadata. So nothing that the threads do can be seen by, or depend on, what comes later in the archive: a file that
//! is replaced meanwhile is written all the same, to an inode without a name.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use super::node;
use super::reader::{Entry, TarReader};
use crate::error::{Context as _, Result, RootfsError};
use crate::stat::Ownership;

/// Larger files are written where they are read: they need no second processor to fill their time.
const SMALL: u64 = 256 * 1024;
/// A batch is full when it has this many bytes or files: the price of a wake-up is shared, memory and descriptors are not
/// piled up.
const BATCH_BYTES: usize = 512 * 1024;
const BATCH_FILES: usize = 32;
/// Batches that wait, for all threads together.
const WAITING: usize = 4;
const MAX_THREADS: usize = 3;

struct Job {
    file: File,
    entry: Entry,
    start: usize,
    end: usize,
}

/// Files whose content lies one after the other in `data`.
#[derive(Default)]
struct Batch {
    jobs: Vec<Job>,
    data: Vec<u8>,
}

/// Hands files to threads, which are started with the first full batch: a small layer is written without any.
pub(super) struct Writers {
    ownership: Ownership,
    batch: Batch,
    threads: Vec<JoinHandle<Result<u64>>>,
    queue: Option<SyncSender<Batch>>,
    limit: usize,
}

impl Writers {
    pub fn new(ownership: Ownership) -> Self {
        Self {
            ownership,
            batch: Batch::default(),
            threads: Vec::new(),
            queue: None,
            limit: (crate::processors() - 1).min(MAX_THREADS),
        }
    }

    /// Gives `file` its content and metadata, now or later. Returns the number of attributes that were dropped now.
    pub fn write<R: Read>(&mut self, file: File, entry: &Entry, tar: &mut TarReader<R>) -> Result<u64> {
        if self.limit == 0 || entry.size > SMALL || entry.sparse.is_some() {
            return node::fill(file, entry, tar, self.ownership);
        }
        let start = self.batch.data.len();
        loop {
            let piece = tar.data()?;
            if piece.is_empty() {
                break;
            }
            self.batch.data.extend_from_slice(piece);
        }
        let end = self.batch.data.len();
        self.batch.jobs.push(Job { file, entry: entry.clone(), start, end });
        if end >= BATCH_BYTES || self.batch.jobs.len() >= BATCH_FILES {
            self.hand_over()?;
        }
        Ok(0)
    }

    fn hand_over(&mut self) -> Result<()> {
        let batch = std::mem::take(&mut self.batch);
        if self.queue.is_none() {
            self.queue = Some(self.start()?);
        }
        // The threads stop listening after a failure only.
        if self.queue.as_ref().is_none_or(|queue| queue.send(batch).is_err()) {
            self.join()?;
            return Err(RootfsError::io(
                "write",
                "the files of the archive",
                std::io::Error::other("a thread has died"),
            ));
        }
        Ok(())
    }

    fn start(&mut self) -> Result<SyncSender<Batch>> {
        let (queue, batches) = sync_channel(WAITING);
        let batches = Arc::new(Mutex::new(batches));
        for _ in 0..self.limit {
            let (batches, ownership) = (batches.clone(), self.ownership);
            let started = thread::Builder::new().name("unpack".into()).spawn(move || work(&batches, ownership));
            self.threads.push(started.at("start a thread for", "unpacking")?);
        }
        Ok(queue)
    }

    /// Waits for all files. Returns the number of attributes that were dropped since they were handed over.
    pub fn finish(mut self) -> Result<u64> {
        let last = write_all(&std::mem::take(&mut self.batch), self.ownership);
        Ok(self.join()? + last?)
    }

    /// Ends the threads; the first failure of any of them.
    fn join(&mut self) -> Result<u64> {
        self.queue = None;
        let mut dropped = Ok(0);
        for thread in self.threads.drain(..) {
            let done = thread.join().unwrap_or_else(|_| {
                let died = std::io::Error::other("a thread has died");
                Err(RootfsError::io("write", "the files of the archive", died))
            });
            dropped = match (dropped, done) {
                (Ok(before), Ok(more)) => Ok(before + more),
                (Err(first), _) | (Ok(_), Err(first)) => Err(first),
            };
        }
        dropped
    }
}

impl Drop for Writers {
    /// Nothing is written any more once the caller knows that unpacking failed.
    fn drop(&mut self) {
        let _ = self.join(); // a failure came first, and is on its way
    }
}

/// Ends at the first failure. When all threads have ended so, nobody can hand anything over any more.
fn work(batches: &Mutex<Receiver<Batch>>, ownership: Ownership) -> Result<u64> {
    let mut dropped = 0;
    loop {
        let next = batches.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(batch) = next else { return Ok(dropped) };
        dropped += write_all(&batch, ownership)?;
    }
}

fn write_all(batch: &Batch, ownership: Ownership) -> Result<u64> {
    let mut dropped = 0;
    for Job { file, entry, start, end } in &batch.jobs {
        let mut content = file;
        content.write_all(&batch.data[*start..*end]).at("write", entry.display())?;
        dropped += node::set_file_metadata(file, entry, ownership)?;
    }
    Ok(dropped)
}
