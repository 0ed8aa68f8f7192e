//! Blobs: `content/blobs/<algorithm>/<hex>`.
//!
//! A blob is written to a draft, hashed on the way, synced and renamed, so that one that has its name is whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_oci::{Descriptor, Digest, Hasher};
use rustix::fs::FlockOperation;

use crate::error::{Context, Error, Result};
use crate::lock::{self, flock};
use crate::session::{Pin, Session};
use crate::store::Store;

/// The blobs of a store.
#[derive(Debug, Clone, Copy)]
pub struct Content<'a>(pub(crate) &'a Store);

/// Where a blob is, below the root of an OCI layout.
pub(crate) fn blob_path(layout: &Path, digest: &Digest) -> PathBuf {
    layout.join("blobs").join(digest.algorithm()).join(digest.hex())
}

impl Content<'_> {
    /// Whether the blob is here. Pinned from then on, under a lease.
    pub fn has(&self, digest: &Digest) -> Result<bool> {
        Ok(self.size(digest)?.is_some())
    }

    /// The size of a blob, if it is here. Pinned from then on, under a lease.
    pub fn size(&self, digest: &Digest) -> Result<Option<u64>> {
        let Some(session) = self.0.inner().leased_session() else { return self.look(digest) };
        self.size_pinned(digest, &session)
    }

    fn look(&self, digest: &Digest) -> Result<Option<u64>> {
        let path = self.path(digest);
        match fs::metadata(&path) {
            Ok(m) => Ok(Some(m.len())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("stat", &path, e)),
        }
    }

    fn size_pinned(&self, digest: &Digest, session: &Session) -> Result<Option<u64>> {
        session.pinning(|pin| {
            let size = self.look(digest)?;
            if size.is_some() {
                pin(&Pin::Blob(*digest));
            }
            Ok(size)
        })
    }

    /// Opens a blob.
    pub fn open(&self, digest: &Digest) -> Result<File> {
        let path = self.path(digest);
        File::open(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::BlobMissing(Box::new(*digest)),
            _ => Error::io("open", &path, e),
        })
    }

    /// Reads a whole blob of at most `max` bytes, and verifies its digest.
    pub fn read_small(&self, digest: &Digest, max: usize) -> Result<Vec<u8>> {
        let path = self.path(digest);
        let file = self.open(digest)?;
        let size = file.metadata().ctx("stat", &path)?.len();
        let too_large = || Error::BlobTooLarge { digest: Box::new(*digest), size, max: max as u64 };
        if size > max as u64 {
            return Err(too_large());
        }
        let mut bytes = Vec::with_capacity(size as usize);
        file.take((max as u64).saturating_add(1)).read_to_end(&mut bytes).ctx("read", &path)?;
        if bytes.len() > max {
            return Err(too_large());
        }
        let mut hasher = digest.hasher();
        hasher.update(&bytes);
        self.expect(digest, hasher.finish())?;
        Ok(bytes)
    }

    /// Whether the blob is here, and not shorter or longer than it should be: then it is damaged, and is removed.
    pub fn holds(&self, blob: &Descriptor) -> Result<bool> {
        match self.size(&blob.digest)? {
            None => Ok(false),
            Some(size) if size == blob.size => Ok(true),
            // Or the descriptor is wrong.
            Some(_) => match self.check(&blob.digest) {
                Err(Error::BlobDamaged { .. }) => Ok(false),
                other => other.map(|()| true),
            },
        }
    }

    /// Reads a blob whole and removes it if it is damaged, which is the error then.
    pub fn check(&self, digest: &Digest) -> Result<()> {
        let mut hasher = digest.hasher();
        io::copy(&mut self.open(digest)?, &mut hasher).ctx("read", self.path(digest))?;
        self.expect(digest, hasher.finish())
    }

    /// Compares with what a blob was found to be; a damaged one is removed.
    pub(crate) fn expect(&self, digest: &Digest, actual: Digest) -> Result<()> {
        if *digest == actual {
            return Ok(());
        }
        self.remove(digest)?;
        Err(Error::BlobDamaged { digest: Box::new(*digest), actual: Box::new(actual) })
    }

    /// The path of a blob, which may not be here.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        blob_path(&self.0.root().join("content"), digest)
    }

    /// Begins a blob.
    pub fn writer(&self) -> Result<BlobWriter> {
        let session = self.0.inner().session()?;
        let path = session.draft();
        let file = OpenOptions::new().create_new(true).read(true).write(true).mode(0o644).open(&path);
        let file = file.ctx("create", &path)?;
        Ok(BlobWriter {
            file,
            path,
            store: self.0.clone(),
            session,
            hasher: Hasher::new(),
            size: 0,
            keep: false,
            done: false,
        })
    }

    /// Goes on with a blob whose earlier download was cut off. Returns how many bytes are already here and need not be written
    /// again; the writer continues after them. If another process is writing it, begins from nothing beside it.
    pub fn writer_resume(&self, digest: &Digest) -> Result<(BlobWriter, u64)> {
        let session = self.0.inner().session()?;
        let path = self.0.root().join("tmp").join(format!("partial.{}.{}", digest.algorithm(), digest.hex()));
        let open = OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o644).open(&path);
        let mut file = open.ctx("create", &path)?;
        if !flock(&file, FlockOperation::NonBlockingLockExclusive, &path)? || !lock::is_named(&file, &path)? {
            return Ok((self.writer_for(digest)?, 0));
        }
        let mut hasher = digest.hasher();
        let size = io::copy(&mut file, &mut hasher).ctx("read", &path)?;
        file.seek(SeekFrom::End(0)).ctx("seek", &path)?;
        let writer = BlobWriter { file, path, store: self.0.clone(), session, hasher, size, keep: true, done: false };
        Ok((writer, size))
    }

    /// Begins a blob whose digest is known, so that it is hashed with the right algorithm.
    pub fn writer_for(&self, digest: &Digest) -> Result<BlobWriter> {
        let mut writer = self.writer()?;
        writer.hasher = digest.hasher();
        Ok(writer)
    }

    /// Stores bytes that are in memory; does nothing if they are already here.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        let session = self.0.inner().session()?;
        if self.size_pinned(&digest, &session)? == Some(bytes.len() as u64)
            && fs::read(self.path(&digest)).is_ok_and(|here| here == bytes)
        {
            return Ok(digest);
        }
        let mut writer = self.writer()?;
        writer.write_all(bytes).ctx("write", self.path(&digest))?;
        Ok(writer.commit(Some(&digest))?.0)
    }

    /// Removes a blob that nobody should use any more. Returns whether it was here.
    pub fn remove(&self, digest: &Digest) -> Result<bool> {
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(Error::io("remove", &path, e)),
        }
    }

    /// Makes the names of the blobs written so far survive a loss of power.
    pub(crate) fn sync_names(&self) -> Result<()> {
        let blobs = self.0.root().join("content/blobs");
        let sync = |dir: &Path| File::open(dir).and_then(|d| d.sync_all()).ctx("sync", dir);
        for algorithm in fs::read_dir(&blobs).ctx("list", &blobs)? {
            sync(&algorithm.ctx("list", &blobs)?.path())?;
        }
        // A directory that is new, as that of sha512 was once.
        if blobs.join("sha512").exists() { sync(&blobs) } else { Ok(()) }
    }
}

pub(crate) fn verify(expected: &Digest, actual: Digest) -> Result<()> {
    if *expected == actual {
        return Ok(());
    }
    Err(Error::DigestMismatch { expected: Box::new(*expected), actual: Box::new(actual) })
}

/// A blob that is being written. Dropped without [`commit`](Self::commit) it leaves nothing, except when it was begun with
/// [`Content::writer_resume`]: then what was written is kept for the next try.
pub struct BlobWriter {
    file: File,
    path: PathBuf,
    store: Store,
    session: Arc<Session>,
    hasher: Hasher,
    size: u64,
    keep: bool,
    done: bool,
}

impl std::fmt::Debug for BlobWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobWriter").field("path", &self.path).field("size", &self.size).finish_non_exhaustive()
    }
}

impl BlobWriter {
    /// The draft.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A second handle, to read what was written so far.
    pub fn reopen(&self) -> Result<File> {
        File::open(&self.path).ctx("open", &self.path)
    }

    /// The digest of what was written so far.
    pub fn digest(&self) -> Digest {
        self.hasher.clone().finish()
    }

    /// Bytes so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Ends the blob. If `expected` is given and is not what was written, nothing is stored.
    pub fn commit(mut self, expected: Option<&Digest>) -> Result<(Digest, u64)> {
        let digest = std::mem::take(&mut self.hasher).finish();
        if let Some(expected) = expected {
            // Wrong bytes are not worth resuming.
            verify(expected, digest).inspect_err(|_| self.keep = false)?;
        }
        self.file.sync_data().ctx("write", &self.path)?;
        let target = self.store.content().path(&digest);
        if digest.algorithm() != "sha256"
            && let Some(dir) = target.parent()
        {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).ctx("create", dir)?;
        }
        self.session.pin(&[Pin::Blob(digest)])?;
        fs::rename(&self.path, &target).ctx("rename", &target)?;
        self.done = true;
        Ok((digest, self.size))
    }

    /// Drops what was written, also if it could have been resumed.
    pub fn discard(mut self) {
        self.keep = false;
    }
}

impl Write for BlobWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.file.write(buf)?;
        self.hasher.update(&buf[..n]);
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        let resumable = self.keep && self.size > 0;
        if !self.done && !resumable {
            _ = fs::remove_file(&self.path);
        }
    }
}
