//! A blob on its way from a registry into the store, readable while it comes.
//!
//! One pass: each chunk is hashed, written and handed on. A download that was cut off in an earlier run goes on where it
//! was. Invariants:
//! - a blob gets its name in the store only when its length and digest are right;
//! - memory is bounded by the reader's buffer.

use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

use kiln_oci::{Descriptor, Reference};
use kiln_registry::{BlobReader, Client};
use kiln_store::{BlobWriter, Store};

use crate::cache::{self, Location};
use crate::error::{Error, Result};
use crate::layers::Remote;
use crate::steps::Reporter;

/// What is read at once where nobody else decides.
const CHUNK: usize = 256 << 10;

/// Where blobs come from: registries, and imported caches elsewhere.
#[derive(Clone)]
pub struct Origins {
    /// For registries.
    pub client: Arc<Client>,
    /// For buckets.
    pub keys: Arc<cache::Keys>,
}

impl Origins {
    fn open(&self, remote: &Remote, blob: &Descriptor, offset: u64) -> Result<Stream> {
        match &remote.cache {
            Some(location) if *location != Location::Registry => {
                cache::open(location, &self.keys, blob).map(Stream::Elsewhere)
            }
            _ => {
                let invalid =
                    |e: kiln_oci::ReferenceError| Error::request(format!("a layer's origin is not valid: {e}"));
                let name: Reference = remote.reference.parse().map_err(invalid)?;
                Ok(Stream::Registry(Box::new(self.client.blob(&name, blob, offset)?.without_digest_check())))
            }
        }
    }
}

enum Stream {
    Registry(Box<BlobReader>),
    Elsewhere(Box<dyn Read + Send>),
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Registry(reader) => reader.read(buf),
            Self::Elsewhere(reader) => reader.read(buf),
        }
    }
}

/// A download. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Download(Arc<Mutex<State>>);

struct State {
    reader: Stream,
    /// What an earlier run left, to be read first.
    prefix: Option<io::Take<File>>,
    writer: Option<BlobWriter>,
    blob: Descriptor,
    resumed: bool,
    read: u64,
    reporter: Reporter,
    failure: Option<Error>,
}

impl Download {
    /// Begins. Errors that the first answer shows belong to this call.
    pub fn start(
        store: &Store,
        origins: &Origins,
        remote: &Remote,
        blob: &Descriptor,
        reporter: Reporter,
    ) -> Result<Self> {
        let resumable = remote.cache.as_ref().is_none_or(|location| *location == Location::Registry);
        let (mut writer, mut offset) = match resumable {
            true => store.content().writer_resume(&blob.digest)?,
            false => (store.content().writer_for(&blob.digest)?, 0),
        };
        if offset > blob.size {
            // Left over from something else: not a beginning of this blob.
            writer.discard();
            (writer, offset) = (store.content().writer_for(&blob.digest)?, 0);
        }
        let reader = origins.open(remote, blob, offset)?;
        let prefix = if offset > 0 { Some(writer.reopen()?.take(offset)) } else { None };
        let state = State {
            reader,
            prefix,
            writer: Some(writer),
            blob: blob.clone(),
            resumed: offset > 0,
            read: 0,
            reporter,
            failure: None,
        };
        Ok(Self(Arc::new(Mutex::new(state))))
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether it goes on from what an earlier run left.
    pub fn resumed(&self) -> bool {
        self.with(|s| s.resumed)
    }

    /// Reads what is left and puts the blob into the store, if it is the right one.
    pub fn finish(&self) -> Result<()> {
        let mut buffer = vec![0; CHUNK];
        loop {
            match self.with(|s| s.read(&mut buffer)) {
                Ok(0) => break,
                Ok(_) => {}
                Err(e) => return Err(self.failure(Error::io("write", "a blob", e))),
            }
        }
        self.with(State::commit)
    }

    /// The reason why reading failed: the network's, if it was that; that the blob is another one, if it is; else `error`,
    /// which is what the blob's reader says.
    pub fn failure(&self, error: Error) -> Error {
        if let Some(failure) = self.with(|s| s.failure.take()) {
            return failure;
        }
        if error.is_disk_full() {
            self.with(State::discard);
            return error;
        }
        match self.finish_damaged() {
            Some(better) => better,
            None => error,
        }
    }

    /// Reads a blob whose content made no sense to its end, to see whether it is the right one at all.
    fn finish_damaged(&self) -> Option<Error> {
        if self.with(|s| s.writer.is_none()) {
            return None;
        }
        let mut buffer = vec![0; CHUNK];
        loop {
            match self.with(|s| s.read(&mut buffer)) {
                Ok(0) => return self.with(State::commit).err(),
                Ok(_) => {}
                Err(_) => return self.with(|s| s.failure.take()),
            }
        }
    }
}

impl State {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = match &mut self.prefix {
            Some(prefix) => prefix.read(buf)?,
            None => 0,
        };
        if n > 0 {
            self.read += n as u64;
            return Ok(n);
        }
        self.prefix = None;
        let n = self.reader.read(buf).map_err(|e| self.remember(e))?;
        if let Some(writer) = &mut self.writer {
            writer.write_all(&buf[..n]).map_err(|e| self.remember_full(e))?;
        }
        self.read += n as u64;
        self.reporter.progress(self.read, self.blob.size);
        Ok(n)
    }

    /// Keeps a registry's error for the caller; decoders on the way would make a text of it.
    fn remember(&mut self, error: io::Error) -> io::Error {
        match kiln_registry::Error::from_io(error) {
            Ok(error) => {
                let text = error.to_string();
                self.failure = Some(error.into());
                io::Error::other(text)
            }
            Err(error) => error,
        }
    }

    /// The same of a full disk.
    fn remember_full(&mut self, error: io::Error) -> io::Error {
        if Error::is_full(&error)
            && let Some(writer) = &self.writer
        {
            let path = writer.path().to_path_buf();
            self.failure = Some(kiln_store::Error::DiskFull { action: "write", path }.into());
            self.discard();
        }
        error
    }

    /// What could have been gone on with later would keep a full disk full.
    fn discard(&mut self) {
        if let Some(writer) = self.writer.take() {
            writer.discard();
        }
    }

    fn commit(&mut self) -> Result<()> {
        let Some(writer) = self.writer.take() else { return Ok(()) };
        match writer.commit(Some(&self.blob.digest)) {
            Ok(_) => Ok(()),
            Err(kiln_store::Error::DigestMismatch { expected, actual }) => match &self.reader {
                Stream::Registry(reader) => Err(reader.mismatch(*actual).into()),
                Stream::Elsewhere(_) => Err(kiln_store::Error::DigestMismatch { expected, actual }.into()),
            },
            Err(e) => Err(e.into()),
        }
    }
}

impl Read for Download {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.with(|s| s.read(buf))
    }
}

/// Whether a second try is worth it: the first may have used wrong bytes of an earlier run, or asked a mirror that is
/// now known to be bad.
pub(crate) fn worth_another(error: &Error, resumed: bool) -> bool {
    match error {
        Error::Registry(e) if e.may_retry_elsewhere() => true,
        Error::Registry(kiln_registry::Error::DigestMismatch { .. }) => resumed,
        _ => false,
    }
}
