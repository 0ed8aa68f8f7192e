//! The gzip encoder: blocks compressed in parallel into one ordinary member, as pigz does.
//!
//! Each block of [`BLOCK`] bytes is deflated on its own by libdeflate, which needs all of it at once and in return is
//! faster and compresses better than any streaming library, even without matches into the block before. [`blocks`] makes
//! the results joinable. So the bytes depend on the input and the level only. The header has no time, no name and the
//! "unknown" operating system.
//!
//! Blocks that hardly get smaller (archives, pictures, what is encrypted) are not tried hard, or stored as they are.
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
/// How much more often than in noise two bytes may be the same, in percent, where there is little to gain but repetitions.
const INCOMPRESSIBLE: u64 = 14;
/// The same for noise itself, in each piece of [`PIECE`] bytes: 5 % of text in one would give more.
const NOISE: u64 = 3;
const PIECE: usize = 64 * 1024;

/// The compressors of one thread.
struct Levels {
    wanted: Compressor,
    /// For what hardly gets smaller: it still finds repetitions, five times faster.
    fast: Compressor,
    /// For what does not get smaller at all.
    none: Compressor,
    /// Where they write to.
    out: Vec<u8>,
}

impl Levels {
    fn new(level: CompressionLvl) -> Self {
        let at_most = |most: i32| CompressionLvl::new(i32::from(level).min(most)).unwrap_or(level);
        let [wanted, fast, none] = [level, at_most(1), at_most(0)].map(Compressor::new);
        Self { wanted, fast, none, out: Vec::new() }
    }

    /// A whole stream, with a little room behind it. How hard it is tried depends on the block alone.
    fn deflate(&mut self, block: &[u8]) -> io::Result<Vec<u8>> {
        let bound = self.wanted.deflate_compress_bound(block.len());
        if self.out.len() < bound {
            self.out.resize(bound, 0);
        }
        let compressor = if !is_incompressible(block) {
            &mut self.wanted
        } else if is_noise(block) && !self.repeats(&block[..SAMPLE])? {
            &mut self.none
        } else {
            &mut self.fast
        };
        let length = compressor.deflate_compress(block, &mut self.out).map_err(io::Error::other)?;
        let mut compressed = Vec::with_capacity(length + 8);
        compressed.extend_from_slice(&self.out[..length]);
        Ok(compressed)
    }

    /// Whether there is something to gain in a piece though its bytes are as frequent as in noise.
    fn repeats(&mut self, piece: &[u8]) -> io::Result<bool> {
        let length = self.fast.deflate_compress(piece, &mut self.out).map_err(io::Error::other)?;
        Ok(length < piece.len() - piece.len() / 64)
    }
}

/// By how often each byte value is in a few places.
fn is_incompressible(block: &[u8]) -> bool {
    if block.len() < SAMPLES * SAMPLE {
        return false;
    }
    let start = |sample| (block.len() - SAMPLE) / (SAMPLES - 1) * sample;
    unevenness((0..SAMPLES).map(|sample| &block[start(sample)..][..SAMPLE])) <= INCOMPRESSIBLE
}

/// By how often each byte value is everywhere.
fn is_noise(block: &[u8]) -> bool {
    block.chunks_exact(PIECE).all(|piece| unevenness([piece].into_iter()) <= NOISE)
}

/// How much more often, in percent, two bytes of the pieces are the same than if all values were as frequent. Integers only:
/// what is written must not depend on a machine's arithmetic.
fn unevenness<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> u64 {
    // Several tables: an addition need not wait for the last one to the same place.
    let mut counts = [[0_u64; 256]; 4];
    let mut total = 0;
    for four in pieces.flat_map(|piece| piece.chunks_exact(4)) {
        counts.iter_mut().zip(four).for_each(|(table, byte)| table[usize::from(*byte)] += 1);
        total += 4;
    }
    let count = |value: usize| counts.iter().map(|table| table[value]).sum::<u64>();
    let same: u64 = (0..256).map(|value| count(value).pow(2)).sum();
    (same * 256 * 100 / (total * total)).saturating_sub(100)
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
    let mut compressed = levels.deflate(&input)?;
    if !last {
        blocks::make_joinable(&mut compressed)?;
    }
    Ok(Done { compressed, crc, input })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a block at level 6, in percent.
    fn size(block: &[u8]) -> usize {
        let level = CompressionLvl::new(6).expect("level");
        Levels::new(level).deflate(block).expect("deflate").len() * 100 / block.len()
    }

    #[test]
    fn noise_is_stored_but_not_what_is_hidden_in_it() {
        let mut state = 1_u64;
        let mut noise = |length: usize| -> Vec<u8> {
            let next = |_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            };
            (0..length).map(next).collect()
        };
        let plain = noise(BLOCK);
        assert!(is_incompressible(&plain) && is_noise(&plain));
        assert_eq!(size(&plain), 100);
        assert_eq!(size(&noise(8192).repeat(BLOCK / 8192)), 1, "repetitions");
        let mut text = plain;
        text[400_000..500_000].copy_from_slice(&b"a line of text\n".repeat(7000)[..100_000]);
        assert!(is_incompressible(&text), "it is not where samples are taken");
        assert!(size(&text) <= 91, "text between the samples");
    }
}
