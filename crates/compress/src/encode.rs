//! The encoder that callers see.

use std::io::{self, Write};
use std::num::NonZero;

use kiln_oci::media::Compression;

use crate::error::Error;
use crate::gzip::GzipEncoder;
use crate::zstandard::ZstdEncoder;

/// The lowest and the highest level of a format.
pub fn level_range(compression: Compression) -> (i32, i32) {
    match compression {
        Compression::Uncompressed => (0, 0),
        Compression::Gzip => (0, 9),
        Compression::Zstd => (0, 22),
    }
}

/// The level that is used when none is given.
pub fn default_level(compression: Compression) -> i32 {
    match compression {
        Compression::Uncompressed => 0,
        Compression::Gzip => 6,
        Compression::Zstd => 3,
    }
}

/// The level to use: `level` if the format has it, the default if there is none. A level for an uncompressed stream is
/// ignored, as Docker does.
pub fn check_level(compression: Compression, level: Option<i32>) -> Result<i32, Error> {
    let (min, max) = level_range(compression);
    match level {
        None => Ok(default_level(compression)),
        Some(_) if compression == Compression::Uncompressed => Ok(0),
        Some(level) if (min..=max).contains(&level) => Ok(level),
        Some(level) => Err(Error::Level { compression, level, min, max }),
    }
}

/// Compresses what is written to it and writes the result to `W`, from the thread that calls.
///
/// The compression itself runs in threads of its own, so that it overlaps what the caller does between writes. A
/// stream is complete after [`Encoder::finish`] only.
pub struct Encoder<W: Write>(Inner<W>);

enum Inner<W: Write> {
    Plain(W),
    Gzip(GzipEncoder<W>),
    Zstd(ZstdEncoder<W>),
}

impl<W: Write> Encoder<W> {
    /// An encoder with up to `threads` threads; 0 means one for each core. The bytes do not depend on it.
    pub fn new(inner: W, compression: Compression, level: Option<i32>, threads: usize) -> Result<Self, Error> {
        let level = check_level(compression, level)?;
        let threads = match threads {
            0 => std::thread::available_parallelism().map_or(1, NonZero::get),
            some => some,
        };
        let failed = |source| Error::Start { compression, source };
        Ok(Self(match compression {
            Compression::Uncompressed => Inner::Plain(inner),
            Compression::Gzip => Inner::Gzip(GzipEncoder::new(inner, level, threads).map_err(failed)?),
            Compression::Zstd => Inner::Zstd(ZstdEncoder::new(inner, level, threads).map_err(failed)?),
        }))
    }

    /// Writes all that is left and gives the inner writer back (not flushed).
    pub fn finish(self) -> io::Result<W> {
        match self.0 {
            Inner::Plain(inner) => Ok(inner),
            Inner::Gzip(encoder) => encoder.finish(),
            Inner::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Inner::Plain(inner) => inner.write(buf),
            Inner::Gzip(encoder) => encoder.write(buf),
            Inner::Zstd(encoder) => encoder.write(buf),
        }
    }

    /// Does not force pending blocks out: where blocks end must not depend on who flushes when.
    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Inner::Plain(inner) => inner.flush(),
            Inner::Gzip(_) | Inner::Zstd(_) => Ok(()),
        }
    }
}
