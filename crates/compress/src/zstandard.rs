//! The zstd encoder: libzstd's own multi-threaded mode with everything fixed that could depend on the machine.
//!
//! With at least one worker libzstd cuts the input into jobs of a fixed size, and its output is the same for any number
//! of workers. Without workers (`nbWorkers = 0`) it would be another, so one thread means one worker.

use std::io::{self, Write};

use zstd::stream::raw::CParameter;
use zstd::stream::write::Encoder;

/// Input bytes of a job. libzstd would take four windows, which is up to half a gigabyte for each thread.
const JOB: u32 = 4 << 20;
/// The largest window, 8 MiB: what every decoder must support (RFC 8878), and what keeps levels 20 to 22 affordable.
const MAX_WINDOW_LOG: u32 = 23;
/// Each worker takes 12 MB, and more than these are not fed: what they get is read, searched and hashed by one thread.
const MAX_WORKERS: usize = 4;

pub(crate) struct ZstdEncoder<W: Write>(Encoder<'static, W>);

impl<W: Write> ZstdEncoder<W> {
    pub(crate) fn new(inner: W, level: i32, threads: usize) -> io::Result<Self> {
        // To libzstd 0 means its default; to those who pass it, "as little as possible".
        let mut encoder = Encoder::new(inner, level.max(1))?;
        encoder.include_checksum(true)?;
        encoder.set_parameter(CParameter::NbWorkers(threads.clamp(1, MAX_WORKERS) as u32))?;
        encoder.set_parameter(CParameter::JobSize(JOB))?;
        if level > 19 {
            encoder.set_parameter(CParameter::WindowLog(MAX_WINDOW_LOG))?;
        }
        Ok(Self(encoder))
    }

    pub(crate) fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.write(buf)
    }

    pub(crate) fn finish(self) -> io::Result<W> {
        self.0.finish()
    }
}
