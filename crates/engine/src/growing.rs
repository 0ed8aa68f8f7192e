//! Layers' blobs while they are written: a reader can begin before the end.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kiln_oci::Digest;
use kiln_store::BlobWriter;

use crate::error::Result;

/// How soon a reader that waits sees that nobody wants it to go on.
const LOOK_UP: Duration = Duration::from_millis(100);

/// The blobs that are being written, or are about to be, by what names a layer in a format.
#[derive(Default)]
pub(crate) struct Growing(Mutex<HashMap<String, Arc<Growth>>>);

impl Growing {
    /// The blob of this name.
    pub fn of(&self, key: &str) -> Arc<Growth> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(all.entry(key.to_owned()).or_default())
    }

    /// Nothing is written for this name any more.
    pub fn over(&self, key: &str) {
        let growth = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
        if let Some(growth) = growth {
            growth.end(None);
        }
    }
}

/// One blob.
#[derive(Default)]
pub(crate) struct Growth {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    file: Option<Arc<File>>,
    written: u64,
    /// Without a digest, the blob was not finished, or was made by somebody else.
    end: Option<Option<Digest>>,
}

impl Growth {
    /// Shows what is written to a blob from now on.
    pub fn watch(self: Arc<Self>, blob: BlobWriter) -> Result<Watched> {
        let file = Arc::new(blob.reopen()?);
        self.change(|state| state.file = Some(file));
        Ok(Watched { blob, end: Ending(self) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.notify_all();
        result
    }

    fn end(&self, digest: Option<Digest>) {
        self.change(|state| _ = state.end.get_or_insert(digest));
    }

    /// Waits until `ready` has an answer. `None` if `stop` says so before.
    fn wait<T>(&self, stop: &dyn Fn() -> bool, ready: impl Fn(&State) -> Option<T>) -> Option<T> {
        let mut state = self.lock();
        loop {
            if stop() {
                return None;
            }
            if let Some(answer) = ready(&state) {
                return Some(answer);
            }
            state = self.changed.wait_timeout(state, LOOK_UP).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the blob is begun. `false` if it never is.
    pub fn begins(&self, stop: &dyn Fn() -> bool) -> bool {
        let begun = |s: &State| (s.file.is_some() || s.end.is_some()).then(|| s.file.is_some());
        self.wait(stop, begun).unwrap_or(false)
    }

    /// Digest and length, once all is written.
    pub fn finished(&self) -> Option<(Digest, u64)> {
        let state = self.lock();
        Some((state.end??, state.written))
    }

    /// Reads at `position`, after waiting for something to be there. Nothing is the end.
    pub fn read_at(&self, buf: &mut [u8], position: u64, stop: &dyn Fn() -> bool) -> io::Result<usize> {
        let more = |state: &State| match (&state.file, state.end) {
            (Some(file), _) if state.written > position => Some(Ok(Some((file.clone(), state.written - position)))),
            (_, Some(Some(_))) => Some(Ok(None)),
            (_, Some(None)) => Some(Err(io::Error::other("the layer was not finished"))),
            _ => None,
        };
        match self.wait(stop, more) {
            None => Err(io::Error::other("nobody wants it any more")),
            Some(Err(e)) => Err(e),
            Some(Ok(None)) => Ok(0),
            Some(Ok(Some((file, left)))) => {
                let most = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                file.read_at(&mut buf[..most], position)
            }
        }
    }
}

/// A blob that is written for its readers, too.
pub(crate) struct Watched {
    blob: BlobWriter,
    end: Ending,
}

impl Watched {
    /// Ends the blob.
    pub fn commit(self) -> Result<(Digest, u64)> {
        // Readers need not wait for the disk.
        self.end.0.end(Some(self.blob.digest()));
        Ok(self.blob.commit(None)?)
    }
}

impl Write for Watched {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.blob.write(buf)?;
        self.end.0.change(|state| state.written += n as u64);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// However it ends, readers learn of it.
struct Ending(Arc<Growth>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.end(None);
    }
}
