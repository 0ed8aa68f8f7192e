//! A reader that runs ahead in its own thread, so that decompression overlaps what is done with its result.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

const CHUNK: usize = 256 * 1024;
const CHUNKS_AHEAD: usize = 4;

/// Reads `inner` from a thread of its own, at most five chunks of 256 KiB ahead. Dropping it ends the thread as soon as
/// its current read returns.
pub struct ReadAhead {
    chunks: Receiver<io::Result<Vec<u8>>>,
    spare: SyncSender<Vec<u8>>,
    current: Vec<u8>,
    position: usize,
    done: bool,
}

impl ReadAhead {
    /// Starts reading.
    pub fn new<R: Read + Send + 'static>(inner: R) -> io::Result<Self> {
        let (sender, chunks) = sync_channel(CHUNKS_AHEAD);
        let (spare, spares) = sync_channel(CHUNKS_AHEAD);
        thread::Builder::new().name("read-ahead".into()).spawn(move || fill(inner, &sender, &spares))?;
        Ok(Self { chunks, spare, current: Vec::new(), position: 0, done: false })
    }

    /// Makes `current` hold something unread, or finds that there is nothing more.
    fn advance(&mut self) -> io::Result<()> {
        while !self.done && self.position == self.current.len() {
            let used = std::mem::take(&mut self.current);
            let _ = self.spare.try_send(used);
            self.position = 0;
            match self.chunks.recv() {
                Ok(Ok(chunk)) if chunk.is_empty() => self.done = true,
                Ok(Ok(chunk)) => self.current = chunk,
                Ok(Err(error)) => {
                    self.done = true;
                    return Err(error);
                }
                Err(_) => {
                    self.done = true;
                    return Err(io::Error::other("the thread that reads ahead has died"));
                }
            }
        }
        Ok(())
    }
}

impl Read for ReadAhead {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.advance()?;
        let ready = &self.current[self.position..];
        let count = ready.len().min(buf.len());
        buf[..count].copy_from_slice(&ready[..count]);
        self.position += count;
        Ok(count)
    }
}

/// Sends chunks until the end (an empty chunk), an error, or until nobody listens.
fn fill(mut inner: impl Read, sender: &SyncSender<io::Result<Vec<u8>>>, spares: &Receiver<Vec<u8>>) {
    loop {
        let mut chunk = spares.try_recv().unwrap_or_default();
        chunk.resize(CHUNK, 0);
        let (length, failure) = fill_chunk(&mut inner, &mut chunk);
        chunk.truncate(length);
        if length > 0 && sender.send(Ok(chunk)).is_err() {
            return;
        }
        if let Some(error) = failure {
            let _ = sender.send(Err(error));
            return;
        }
        if length < CHUNK {
            let _ = sender.send(Ok(Vec::new()));
            return;
        }
    }
}

/// Reads until `chunk` is full, the stream ends or fails; what was read before a failure still counts.
fn fill_chunk(inner: &mut impl Read, chunk: &mut [u8]) -> (usize, Option<io::Error>) {
    let mut length = 0;
    while length < chunk.len() {
        match inner.read(&mut chunk[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (length, Some(error)),
        }
    }
    (length, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_bytes_then_the_error() {
        struct Fails(u64);
        impl Read for Fails {
            fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
                if self.0 == 0 {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "torn"));
                }
                let count = buf.len().min(1000).min(self.0 as usize);
                buf[..count].fill(7);
                self.0 -= count as u64;
                Ok(count)
            }
        }
        let mut out = Vec::new();
        let error = ReadAhead::new(Fails(700_000)).expect("thread").read_to_end(&mut out).expect_err("torn");
        assert_eq!((out.len(), error.kind()), (700_000, io::ErrorKind::UnexpectedEof));
        // An early drop must not hang.
        let mut first = [0; 10];
        ReadAhead::new(io::repeat(1)).expect("thread").read_exact(&mut first).expect("bytes");
    }

    #[test]
    fn exact_multiple_of_a_chunk() {
        let data = vec![3u8; CHUNK * 2];
        let mut out = Vec::new();
        ReadAhead::new(io::Cursor::new(data.clone())).expect("thread").read_to_end(&mut out).expect("bytes");
        assert!(out == data);
    }
}
