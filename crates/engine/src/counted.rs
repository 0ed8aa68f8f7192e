//! Streams that tell a step how far they are.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::events::{Event, EventSink, StepId};
use crate::steps::Step;

/// Time between two events.
const PAUSE: Duration = Duration::from_millis(100);

/// A reader or writer whose bytes are counted.
pub struct Counted<T> {
    inner: T,
    sink: Arc<dyn EventSink>,
    id: StepId,
    item: Arc<str>,
    done: u64,
    total: Option<u64>,
    told: Instant,
    /// Whether it took long enough to be told of at all.
    slow: bool,
}

impl<T> Counted<T> {
    /// Counts under the name `item`.
    pub fn new(inner: T, step: &Step, item: &str, total: Option<u64>) -> Self {
        let sink = Arc::clone(step.sink());
        Self { inner, sink, id: step.id(), item: item.into(), done: 0, total, told: Instant::now(), slow: false }
    }

    fn add(&mut self, bytes: usize) {
        self.done += bytes as u64;
        if self.told.elapsed() >= PAUSE {
            (self.told, self.slow) = (Instant::now(), true);
            self.tell(false);
        }
    }

    fn tell(&self, done: bool) {
        let total = if done { Some(self.done) } else { self.total };
        self.sink.event(Event::Progress { id: self.id, item: Arc::clone(&self.item), current: self.done, total, done });
    }
}

impl<T> Drop for Counted<T> {
    fn drop(&mut self) {
        if self.slow {
            self.tell(true);
        }
    }
}

impl<T: Read> Read for Counted<T> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.add(n);
        Ok(n)
    }
}

impl<T: Write> Write for Counted<T> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.add(n);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
