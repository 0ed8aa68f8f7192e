//! The gzip encoder: blocks compressed in parallel into one ordinary member, as pigz does.
//!
//! Each block of [`BLOCK`] bytes is deflated on its own, with the last 32 KiB of the block before as dictionary, and
//! ends at a byte boundary (sync flush); so blocks can be joined, and the result depends on the input and the level
//! only. The header has no time, no name and the "unknown" operating system.
//!
//! The caller's thread collects input, hands full blocks to the workers and writes finished ones in order. Workers are
//! started with the first full block: a small layer costs no thread.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use flate2::{Compress, Compression, FlushCompress, Status};

/// Input bytes of a block.
const BLOCK: usize = 512 * 1024;
/// How far back deflate can refer.
const DICTIONARY: usize = 32 * 1024;
/// Blocks on their way for each worker: one in work and one waiting, so that a worker never starves.
const BLOCKS_PER_WORKER: usize = 2;

/// One block of input. The buffer starts with the dictionary, which is `dictionary` bytes long.
struct Job {
    buffer: Vec<u8>,
    dictionary: usize,
    reply: SyncSender<io::Result<Done>>,
}

/// A compressed block, what the trailer needs to know of its input, and the job's buffer for the next one.
struct Done {
    compressed: Vec<u8>,
    crc: crc32fast::Hasher,
    length: u32,
    buffer: Vec<u8>,
}

pub(crate) struct GzipEncoder<W: Write> {
    inner: W,
    level: u32,
    threads: usize,
    /// The dictionary, then what was written since the last block.
    buffer: Vec<u8>,
    dictionary: usize,
    crc: crc32fast::Hasher,
    length: u32,
    workers: Option<Workers>,
    pending: VecDeque<Receiver<io::Result<Done>>>,
    spare: Vec<Vec<u8>>,
}

impl<W: Write> GzipEncoder<W> {
    pub(crate) fn new(mut inner: W, level: i32, threads: usize) -> io::Result<Self> {
        // The "extra flags" byte as Go and zlib set it.
        let extra = match level {
            9 => 2,
            1 => 4,
            _ => 0,
        };
        inner.write_all(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, extra, 255])?;
        Ok(Self {
            inner,
            level: level.unsigned_abs(),
            threads: threads.max(1),
            buffer: Vec::new(),
            dictionary: 0,
            crc: crc32fast::Hasher::new(),
            length: 0,
            workers: None,
            pending: VecDeque::new(),
            spare: Vec::new(),
        })
    }

    pub(crate) fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let mut rest = buf;
        while !rest.is_empty() {
            let room = BLOCK - (self.buffer.len() - self.dictionary);
            let (now, later) = rest.split_at(room.min(rest.len()));
            self.buffer.extend_from_slice(now);
            rest = later;
            if now.len() == room {
                self.dispatch()?;
            }
        }
        Ok(buf.len())
    }

    pub(crate) fn finish(mut self) -> io::Result<W> {
        let buffer = std::mem::take(&mut self.buffer);
        let last = compress(buffer, self.dictionary, self.level, true)?;
        while let Some(block) = self.pending.pop_front() {
            self.emit(receive(&block)?)?;
        }
        self.emit(last)?;
        self.inner.write_all(&self.crc.clone().finalize().to_le_bytes())?;
        self.inner.write_all(&self.length.to_le_bytes())?;
        Ok(self.inner)
    }

    /// Hands the full buffer to a worker and starts the next one with its tail as dictionary.
    fn dispatch(&mut self) -> io::Result<()> {
        while self.pending.len() >= self.threads * BLOCKS_PER_WORKER {
            if let Some(block) = self.pending.pop_front() {
                self.emit(receive(&block)?)?;
            }
        }
        let mut next = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(DICTIONARY + BLOCK));
        next.clear();
        next.extend_from_slice(&self.buffer[self.buffer.len() - DICTIONARY..]);
        let buffer = std::mem::replace(&mut self.buffer, next);
        let dictionary = std::mem::replace(&mut self.dictionary, DICTIONARY);
        let (reply, block) = sync_channel(1);
        let workers = match &mut self.workers {
            Some(workers) => workers,
            none => none.insert(Workers::start(self.threads, self.level)?),
        };
        workers.submit(Job { buffer, dictionary, reply })?;
        self.pending.push_back(block);
        self.emit_finished()
    }

    /// Writes the blocks that are ready, without waiting.
    fn emit_finished(&mut self) -> io::Result<()> {
        while let Some(block) = self.pending.front() {
            let done = match block.try_recv() {
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => Err(worker_died()),
                Ok(done) => done,
            }?;
            self.pending.pop_front();
            self.emit(done)?;
        }
        Ok(())
    }

    fn emit(&mut self, done: Done) -> io::Result<()> {
        self.inner.write_all(&done.compressed)?;
        self.length = self.length.wrapping_add(done.length);
        self.crc.combine(&done.crc);
        self.spare.push(done.buffer);
        Ok(())
    }
}

fn receive(block: &Receiver<io::Result<Done>>) -> io::Result<Done> {
    block.recv().map_err(|_| worker_died())?
}

fn worker_died() -> io::Error {
    io::Error::other("a compression thread has died")
}

/// The threads that compress. They end when this is dropped.
struct Workers {
    jobs: Sender<Job>,
}

impl Workers {
    fn start(threads: usize, level: u32) -> io::Result<Self> {
        let (jobs, queue) = channel();
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..threads {
            let queue = Arc::clone(&queue);
            thread::Builder::new().name("gzip".into()).spawn(move || work(&queue, level))?;
        }
        Ok(Self { jobs })
    }

    fn submit(&self, job: Job) -> io::Result<()> {
        self.jobs.send(job).map_err(|_| worker_died())
    }
}

fn work(queue: &Mutex<Receiver<Job>>, level: u32) {
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = next else { return };
        // Nobody listens when the encoder was dropped in the middle.
        let _ = job.reply.send(compress(job.buffer, job.dictionary, level, false));
    }
}

/// Deflates what follows the dictionary in `buffer`.
///
/// With a fresh state for each block: zlib-rs hashes a byte or two beyond a preset dictionary, which after a reset are
/// remains of the block before, so that the result would depend on which thread had which block.
fn compress(buffer: Vec<u8>, dictionary: usize, level: u32, last: bool) -> io::Result<Done> {
    let mut deflate = Compress::new(Compression::new(level), false);
    let (before, input) = buffer.split_at(dictionary);
    if !before.is_empty() {
        deflate.set_dictionary(before).map_err(io::Error::other)?;
    }
    let mut crc = crc32fast::Hasher::new();
    crc.update(input);
    let compressed = deflate_all(&mut deflate, input, last)?;
    // Blocks are far below 4 GiB, and the trailer counts modulo 4 GiB anyway.
    let length = input.len() as u32;
    Ok(Done { compressed, crc, length, buffer })
}

fn deflate_all(deflate: &mut Compress, input: &[u8], last: bool) -> io::Result<Vec<u8>> {
    let flush = if last { FlushCompress::Finish } else { FlushCompress::Sync };
    let mut out = Vec::with_capacity(input.len() / 2 + 1024);
    loop {
        let consumed = deflate.total_in() as usize;
        let status = deflate.compress_vec(&input[consumed..], &mut out, flush).map_err(io::Error::other)?;
        let complete = match status {
            Status::StreamEnd => true,
            // A sync flush is complete when there was room left in the output.
            _ => !last && deflate.total_in() as usize == input.len() && out.len() < out.capacity(),
        };
        if complete {
            return Ok(out);
        }
        out.reserve(out.capacity().max(1024));
    }
}
