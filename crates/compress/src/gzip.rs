//! The gzip encoder: blocks compressed in parallel into one ordinary member, as pigz does.
//!
//! Each block of [`BLOCK`] bytes is deflated on its own by libdeflate, which needs all of it at once and in return is
//! faster and compresses better than any streaming library, even without matches into the block before. [`blocks`] makes
//! the results joinable. So the bytes depend on the input and the level only. The header has no time, no name and the
//! "unknown" operating system.
//!
//! Blocks that hardly get smaller (archives, pictures, what is encrypted) are not tried hard.
//!
//! The caller's thread collects input, hands full blocks to the workers and writes finished ones in order. Workers are
//! started with the first full block: a small layer costs no thread.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use libdeflater::{CompressionLvl, Compressor};

use crate::blocks;

/// Input bytes of a block.
const BLOCK: usize = 1024 * 1024;
/// More threads only take memory: what they get is read, searched and hashed by one.
const MAX_WORKERS: usize = 8;
/// Blocks on their way for each worker: one in work and one waiting, so that a worker never starves.
const BLOCKS_PER_WORKER: usize = 2;

/// How a block is looked at before it is compressed: so many pieces of this length.
const SAMPLES: usize = 4;
const SAMPLE: usize = 16 * 1024;
/// From so many bits for each byte on there is nothing to gain but repetitions: what was compressed or encrypted has 7.95.
const INCOMPRESSIBLE: f64 = 7.9;

/// The compressors of one thread.
struct Levels {
    wanted: Compressor,
    /// For what does not get smaller: it still finds long repetitions, five times faster.
    fast: Compressor,
}

impl Levels {
    fn new(level: CompressionLvl) -> Self {
        let lowest = CompressionLvl::new(i32::from(level).min(1)).unwrap_or(level);
        Self { wanted: Compressor::new(level), fast: Compressor::new(lowest) }
    }

    /// Which one is used depends on the block alone.
    fn of(&mut self, block: &[u8]) -> &mut Compressor {
        if is_incompressible(block) { &mut self.fast } else { &mut self.wanted }
    }
}

/// By how often each byte value is there.
fn is_incompressible(block: &[u8]) -> bool {
    if block.len() < SAMPLES * SAMPLE {
        return false;
    }
    let mut counts = [0_u32; 256];
    for sample in 0..SAMPLES {
        let start = (block.len() - SAMPLE) / (SAMPLES - 1) * sample;
        block[start..start + SAMPLE].iter().for_each(|byte| counts[usize::from(*byte)] += 1);
    }
    let total = (SAMPLES * SAMPLE) as f64;
    let shares = counts.iter().filter(|count| **count > 0).map(|count| f64::from(*count) / total);
    shares.map(|share| -share * share.log2()).sum::<f64>() >= INCOMPRESSIBLE
}

/// One block of input.
struct Job {
    input: Vec<u8>,
    reply: SyncSender<io::Result<Done>>,
}

/// A compressed block, what the trailer needs to know of its input, and the job's buffer for the next one.
struct Done {
    compressed: Vec<u8>,
    crc: crc32fast::Hasher,
    input: Vec<u8>,
}

pub(crate) struct GzipEncoder<W: Write> {
    inner: W,
    level: CompressionLvl,
    threads: usize,
    /// What was written since the last block.
    buffer: Vec<u8>,
    crc: crc32fast::Hasher,
    length: u32,
    workers: Option<Workers>,
    pending: VecDeque<Receiver<io::Result<Done>>>,
    spare: Vec<Vec<u8>>,
}

impl<W: Write> GzipEncoder<W> {
    pub(crate) fn new(mut inner: W, level: i32, threads: usize) -> io::Result<Self> {
        let level = CompressionLvl::new(level).map_err(|_| io::Error::other("no such level"))?;
        // The "extra flags" byte as Go and zlib set it.
        let extra = match i32::from(level) {
            9 => 2,
            1 => 4,
            _ => 0,
        };
        inner.write_all(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, extra, 255])?;
        Ok(Self {
            inner,
            level,
            threads: threads.clamp(1, MAX_WORKERS),
            buffer: Vec::new(),
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
            let room = BLOCK - self.buffer.len();
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
        let last = compress(&mut Levels::new(self.level), buffer, true)?;
        while let Some(block) = self.pending.pop_front() {
            self.emit(receive(&block)?)?;
        }
        self.emit(last)?;
        self.inner.write_all(&self.crc.clone().finalize().to_le_bytes())?;
        self.inner.write_all(&self.length.to_le_bytes())?;
        Ok(self.inner)
    }

    /// Hands the full buffer to a worker.
    fn dispatch(&mut self) -> io::Result<()> {
        while self.pending.len() >= self.threads * BLOCKS_PER_WORKER {
            if let Some(block) = self.pending.pop_front() {
                self.emit(receive(&block)?)?;
            }
        }
        let next = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(BLOCK));
        let input = std::mem::replace(&mut self.buffer, next);
        let (reply, block) = sync_channel(1);
        let workers = match &mut self.workers {
            Some(workers) => workers,
            none => none.insert(Workers::start(self.threads, self.level)?),
        };
        workers.submit(Job { input, reply })?;
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

    fn emit(&mut self, mut done: Done) -> io::Result<()> {
        self.inner.write_all(&done.compressed)?;
        // The trailer counts modulo 4 GiB.
        self.length = self.length.wrapping_add(done.input.len() as u32);
        self.crc.combine(&done.crc);
        done.input.clear();
        self.spare.push(done.input);
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
    fn start(threads: usize, level: CompressionLvl) -> io::Result<Self> {
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

fn work(queue: &Mutex<Receiver<Job>>, level: CompressionLvl) {
    let mut levels = Levels::new(level);
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = next else { return };
        // Nobody listens when the encoder was dropped in the middle.
        let _ = job.reply.send(compress(&mut levels, job.input, false));
    }
}

/// Deflates one block; all but the last can be followed by another.
fn compress(levels: &mut Levels, input: Vec<u8>, last: bool) -> io::Result<Done> {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&input);
    let compressor = levels.of(&input);
    let mut compressed = vec![0; compressor.deflate_compress_bound(input.len())];
    let length = compressor.deflate_compress(&input, &mut compressed).map_err(io::Error::other)?;
    compressed.truncate(length);
    // It waits for the blocks before it.
    compressed.shrink_to(length + 8);
    if !last {
        blocks::make_joinable(&mut compressed)?;
    }
    Ok(Done { compressed, crc, input })
}
