//! Cache mounts that travel.
//!
//! A mount is a tar, cut into pieces where its content says (see `chunks`). Each piece is a zstd blob, and a list names them in
//! order. A mount that changed a little has most pieces in common with what was exported before, and those are neither
//! compressed nor sent again. A mount is restored when it is opened for the first time on a machine; if anything goes wrong
//! then, it is empty, as any cache mount may be.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use kiln_compress::Encoder;
use kiln_graph::{MountKind, Op};
use kiln_oci::media::Compression;
use kiln_oci::{Descriptor, Digest};
use kiln_rootfs::Root;
use kiln_rootfs::apply::{ExtractOptions, extract};
use kiln_rootfs::diff::DiffOptions;
use kiln_rootfs::export::tar_tree;
use kiln_store::{MountInfo, MountOpts};
use serde::{Deserialize, Serialize};

use super::chunks::{self, Chunker};
use super::{Backend, CacheTo, Loaded, MountSelection, read_verified};
use crate::build::Job;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::layers::Remote;
use crate::leaks::LeakSearch;
use crate::size::human_size;
use crate::steps::Step;
use crate::transfer::in_parallel_by;

/// Media type of the list of a mount's pieces.
const INDEX_TYPE: &str = "application/vnd.kiln.cachemount.v1+json";
/// Media type of a piece.
const CHUNK_TYPE: &str = "application/vnd.kiln.cachemount.chunk.v1+zstd";
/// Largest list that is read: one of 200 GB.
const MAX_INDEX: u64 = 64 << 20;
/// Pieces that are fetched at once.
const FETCH: usize = 8;
/// The end of a piece that is searched again with the next one; no secret is found in parts.
const OVERLAP: usize = 16 << 10;

/// A cache mount of an exported cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountEntry {
    /// Its id.
    pub id: String,
    /// Bytes of the tar.
    pub size: u64,
    /// The list of its pieces.
    pub index: Descriptor,
}

/// The list of a mount's pieces.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct MountIndex {
    chunks: Vec<Chunk>,
}

/// A piece.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Chunk {
    /// Of its bytes.
    digest: Digest,
    /// So many.
    size: u64,
    /// Compressed.
    blob: Digest,
    #[serde(rename = "blobSize")]
    blob_size: u64,
}

impl Chunk {
    fn descriptor(&self) -> Descriptor {
        Descriptor::new(CHUNK_TYPE, self.blob, self.blob_size)
    }
}

/// What is at the destination already.
#[derive(Default)]
struct Before {
    entries: Vec<(MountEntry, MountIndex)>,
    /// Pieces by the digest of their bytes.
    chunks: HashMap<Digest, Chunk>,
    /// Blobs that are known to be there.
    blobs: HashSet<Digest>,
}

/// Exports the mounts that were asked for; returns them, and the blobs that they need.
pub(super) fn export(
    job: &Job,
    to: &CacheTo,
    backend: &dyn Backend,
    step: &Step,
) -> Result<(Vec<MountEntry>, Vec<Descriptor>)> {
    let ids = match &to.mounts {
        MountSelection::None => return Ok((Vec::new(), Vec::new())),
        MountSelection::All => used_by(job),
        MountSelection::Ids(ids) => ids.iter().cloned().collect(),
    };
    // Nothing there, or something that can't be read: all is new.
    let before = before(backend).unwrap_or_default();
    let mut known = job.engine.store.cache_mounts().list()?;
    known.retain(|m| m.instance == 0 && ids.contains(&m.id));
    known.sort_by_key(|m| std::cmp::Reverse(m.used));
    let mut room = to.mounts_max.unwrap_or(u64::MAX);
    let (mut entries, mut blobs) = (Vec::new(), Vec::new());
    let mut add = |entry: MountEntry, index: &MountIndex| {
        blobs.push(entry.index.clone());
        blobs.extend(index.chunks.iter().map(Chunk::descriptor));
        entries.push(entry);
    };
    for mount in &known {
        let size = job.engine.store.cache_mounts().size(mount)?;
        if size > room {
            let (id, size, room) = (&mount.id, human_size(size), human_size(room));
            job.steps.warn(format!("the cache mount {id} ({size}) is left out: mounts-max-size leaves {room}"));
            continue;
        }
        match one(job, mount, backend, &before, step) {
            Ok((entry, index)) => {
                room -= size;
                add(entry, &index);
            }
            Err(Error::Cancelled) => return Err(Error::Cancelled),
            Err(error) => job.steps.warn(format!("the cache mount {} is left out: {error}", mount.id)),
        }
    }
    for id in ids.iter().filter(|id| !known.iter().any(|m| m.id == **id)) {
        // Every step that uses it was cached, so it was never opened here: what is there stays there.
        match before.entries.iter().find(|(e, _)| e.id == *id && e.size <= room) {
            Some((entry, index)) => {
                room -= entry.size;
                add(entry.clone(), index);
            }
            None if matches!(to.mounts, MountSelection::Ids(_)) => {
                job.steps.warn(format!("there is no cache mount {id}: `kiln cache ls` lists them"));
            }
            None => {}
        }
    }
    let mut seen = HashSet::new();
    blobs.retain(|b| seen.insert(b.digest));
    Ok((entries, blobs))
}

/// The ids that the build's steps use.
fn used_by(job: &Job) -> BTreeSet<String> {
    let needed = job.graph.vertices().iter().enumerate().filter(|(i, _)| job.plan.is_needed(*i));
    let mounts =
        needed.filter_map(|(_, v)| if let Op::Exec(exec) = &v.op { Some(&exec.mounts) } else { None }).flatten();
    mounts.filter_map(|m| if let MountKind::Cache { id, .. } = &m.kind { Some(id.clone()) } else { None }).collect()
}

fn before(backend: &dyn Backend) -> Result<Before> {
    let Loaded::Cache(config, blobs) = backend.load()? else { return Ok(Before::default()) };
    let mut before = Before { blobs: blobs.into_keys().collect(), ..Before::default() };
    for entry in config.mounts {
        let index = read_index(backend.open(&entry.index)?, &entry)?;
        before.chunks.extend(index.chunks.iter().map(|c| (c.digest, c.clone())));
        before.entries.push((entry, index));
    }
    Ok(before)
}

fn read_index(reader: impl Read, entry: &MountEntry) -> Result<MountIndex> {
    let bytes = read_verified(reader, &entry.index, MAX_INDEX)?;
    let index: MountIndex = serde_json::from_slice(&bytes)
        .map_err(|e| Error::request(format!("the list of the cache mount {} is not valid: {e}", entry.id)))?;
    let limit = chunks::MAX as u64;
    if index.chunks.iter().any(|c| c.size > limit || c.blob_size > limit + (1 << 20)) {
        return Err(Error::request(format!("the cache mount {} has a piece that is too large", entry.id)));
    }
    Ok(index)
}

/// A mount that is being exported.
struct Export<'a> {
    backend: &'a dyn Backend,
    before: &'a Before,
    done: Mutex<Vec<(usize, Chunk)>>,
    failed: AtomicBool,
}

fn one(
    job: &Job,
    mount: &MountInfo,
    backend: &dyn Backend,
    before: &Before,
    step: &Step,
) -> Result<(MountEntry, MountIndex)> {
    let export = Export { backend, before, done: Mutex::default(), failed: AtomicBool::new(false) };
    let search = job.leak_search();
    let workers = backend.parallel().min(job.engine.threads.max(2));
    let size = std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel::<(usize, Vec<u8>)>(workers);
        // Owned by those who take pieces: when all of them gave up, giving one is an error rather than a wait.
        let (export, receiver) = (&export, Arc::new(Mutex::new(receiver)));
        let worker = |_| {
            let receiver = Arc::clone(&receiver);
            scope.spawn(move || export.work(&receiver))
        };
        let workers: Vec<_> = (0..workers).map(worker).collect();
        drop(receiver);
        let mut cut = Cut { search: search.as_ref(), tail: Vec::new(), next: 0, size: 0, id: &mount.id };
        let written = job.engine.write_mount(&mount.id, &mut |chunk| {
            if job.cancel.is_cancelled() || export.failed.load(Ordering::Relaxed) {
                return Err(io::Error::other(Error::Cancelled));
            }
            let (number, chunk) = cut.next(chunk)?;
            sender.send((number, chunk)).map_err(|_| io::Error::other("the cache does not take it"))
        });
        drop(sender);
        // Why nobody takes pieces any more says more than that.
        let sent: Result<()> = workers.into_iter().try_for_each(|w| w.join().unwrap_or(Err(Error::Cancelled)));
        sent.and(written).map(|()| cut.size)
    })?;
    let mut chunks = export.done.into_inner().unwrap_or_else(PoisonError::into_inner);
    chunks.sort_by_key(|(number, _)| *number);
    let index = MountIndex { chunks: chunks.into_iter().map(|(_, c)| c).collect() };
    let bytes = serde_json::to_vec(&index).map_err(|e| Error::request(e.to_string()))?;
    let descriptor = Descriptor::of(INDEX_TYPE, &bytes);
    backend.put(&descriptor, &bytes)?;
    step.progress(&format!("cache mount {}", mount.id), size, Some(size), true);
    Ok((MountEntry { id: mount.id.clone(), size, index: descriptor }, index))
}

/// Numbers pieces, after it has looked for secrets in them.
struct Cut<'a> {
    search: Option<&'a LeakSearch>,
    tail: Vec<u8>,
    next: usize,
    size: u64,
    id: &'a str,
}

impl Cut<'_> {
    fn next(&mut self, chunk: Vec<u8>) -> io::Result<(usize, Vec<u8>)> {
        if let Some(search) = self.search {
            let mut text = std::mem::take(&mut self.tail);
            text.extend_from_slice(&chunk);
            search.value(&format!("the cache mount {}", self.id), &text);
            if let Some(leak) = search.finish().iter().find(|l| l.is_secret()) {
                return Err(io::Error::other(leak.describe()));
            }
            self.tail = text.split_off(text.len().saturating_sub(OVERLAP));
        }
        self.size += chunk.len() as u64;
        self.next += 1;
        Ok((self.next - 1, chunk))
    }
}

impl Export<'_> {
    fn work(&self, chunks: &Mutex<Receiver<(usize, Vec<u8>)>>) -> Result<()> {
        loop {
            let next = chunks.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok((number, bytes)) = next else { return Ok(()) };
            let chunk = self.send(bytes).inspect_err(|_| self.failed.store(true, Ordering::Relaxed))?;
            self.done.lock().unwrap_or_else(PoisonError::into_inner).push((number, chunk));
        }
    }

    /// Makes sure that the piece is at the destination.
    fn send(&self, bytes: Vec<u8>) -> Result<Chunk> {
        let digest = Digest::of(&bytes);
        if let Some(known) = self.before.chunks.get(&digest)
            && self.before.blobs.contains(&known.blob)
        {
            return Ok(known.clone());
        }
        let compressed = compress(&bytes)?;
        let descriptor = Descriptor::of(CHUNK_TYPE, &compressed);
        self.backend.put(&descriptor, &compressed)?;
        let (blob, blob_size) = (descriptor.digest, descriptor.size);
        Ok(Chunk { digest, size: bytes.len() as u64, blob, blob_size })
    }
}

fn compress(bytes: &[u8]) -> Result<Vec<u8>> {
    let failed = |e: io::Error| Error::io("compress", "a piece of a cache mount", e);
    let mut encoder =
        Encoder::new(Vec::new(), Compression::Zstd, None, 1).map_err(|e| Error::request(e.to_string()))?;
    encoder.write_all(bytes).map_err(failed)?;
    encoder.finish().map_err(failed)
}

impl Engine {
    /// The pieces of a mount's tar. It can't be removed meanwhile.
    fn write_mount(&self, id: &str, emit: &mut dyn FnMut(Vec<u8>) -> io::Result<()>) -> Result<()> {
        let mut chunker = Chunker::new(emit);
        self.export_mount(id, &mut chunker)?;
        chunker.finish().map_err(|e| Error::io("write", "a cache mount", e))
    }

    /// Writes the files of a cache mount as a tar.
    pub fn export_mount(&self, id: &str, out: &mut dyn Write) -> Result<()> {
        if !self.store.cache_mounts().list()?.iter().any(|m| m.id == id) {
            return Err(no_mount(id));
        }
        let mount = self.store.cache_mounts().open(id, &MountOpts::default())?;
        let root = Root::open(mount.path())?.with_ownership(self.ownership);
        tar_tree(&root, out, &mut DiffOptions { subsecond_times: true, ..DiffOptions::default() })?;
        Ok(())
    }

    /// Makes a cache mount of a tar of any compression. [`Error::Request`] if there is one of that id.
    pub fn import_mount(&self, id: &str, archive: Box<dyn Read + Send>) -> Result<()> {
        if self.store.cache_mounts().list()?.iter().any(|m| m.id == id) {
            return Err(Error::request_with_hint(
                format!("there is a cache mount {id:?} already"),
                format!("remove it first: kiln cache rm {id}"),
            ));
        }
        let (_, plain) = kiln_compress::decoder(archive).map_err(|e| Error::io("read", "the archive", e))?;
        let mut plain = Some(plain);
        let mut failure = None;
        let mut fill = |dir: &Path| -> io::Result<()> {
            let root = Root::open(dir).map_err(io::Error::other)?.with_ownership(self.ownership);
            let Some(plain) = plain.take() else { return Ok(()) };
            let done = extract(plain, &root, &ExtractOptions::default());
            done.map(|_| ()).map_err(|e| io::Error::other(failure.insert(e).to_string()))
        };
        let opened = self.store.cache_mounts().open_with(id, &MountOpts::default(), &mut fill, &mut || {});
        match (opened, failure) {
            (_, Some(error)) => Err(error.into()),
            (opened, None) => Ok(opened.map(|_| ())?),
        }
    }
}

/// That there is no such mount.
pub fn no_mount(id: &str) -> Error {
    Error::request_with_hint(format!("there is no cache mount {id:?}"), "kiln cache ls lists them")
}

impl Job {
    /// Fills a new cache mount with what an imported cache has for it. Returns whether one had something.
    pub fn restore_mount(&self, id: &str, to: &Root, step: &Step) -> bool {
        let caches = self.imports.all(self);
        let found = caches.iter().find_map(|c| Some((c, c.remote.as_ref()?, c.mounts.iter().find(|m| m.id == id)?)));
        let Some((cache, remote, entry)) = found else { return false };
        match self.restore(remote, entry, to, step) {
            Ok(()) => true,
            Err(error) => {
                self.steps.warn(format!("the cache mount {id} of {} is not used: {error}", cache.source));
                let _ = to.remove_all(Path::new("/"));
                false
            }
        }
    }

    fn restore(&self, remote: &Remote, entry: &MountEntry, to: &Root, step: &Step) -> Result<()> {
        let index = read_index(self.engine.open_remote(remote, &entry.index)?, entry)?;
        let item = format!("restoring cache mount {}", entry.id);
        let (sender, receiver) = sync_channel::<io::Result<Vec<u8>>>(FETCH);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut done = 0;
                for batch in index.chunks.chunks(FETCH) {
                    for piece in self.fetch_pieces(remote, batch) {
                        done += piece.as_ref().map_or(0, |p| p.len() as u64);
                        // Who reads gave up.
                        if sender.send(piece).is_err() {
                            return;
                        }
                    }
                    step.progress(&item, done, Some(entry.size), done == entry.size);
                }
            });
            extract(Pieces { receiver, current: io::Cursor::default() }, to, &ExtractOptions::default())?;
            Ok(())
        })
    }

    fn fetch_pieces(&self, remote: &Remote, batch: &[Chunk]) -> Vec<io::Result<Vec<u8>>> {
        let slots: Vec<Mutex<Option<io::Result<Vec<u8>>>>> = batch.iter().map(|_| Mutex::default()).collect();
        let numbers: Vec<usize> = (0..batch.len()).collect();
        let _ = in_parallel_by(FETCH, &numbers, |n| {
            let piece = self.fetch_piece(remote, &batch[*n]).map_err(io::Error::other);
            *slots[*n].lock().unwrap_or_else(PoisonError::into_inner) = Some(piece);
            Ok(())
        });
        let taken = slots.into_iter().map(|s| s.into_inner().unwrap_or_else(PoisonError::into_inner));
        taken.map(|s| s.unwrap_or_else(|| Err(io::Error::other("interrupted")))).collect()
    }

    fn fetch_piece(&self, remote: &Remote, chunk: &Chunk) -> Result<Vec<u8>> {
        let blob = chunk.descriptor();
        let compressed = read_verified(self.engine.open_remote(remote, &blob)?, &blob, blob.size)?;
        let failed = |e: io::Error| Error::io("decompress", "a piece of a cache mount", e);
        let (_, plain) = kiln_compress::decoder(Box::new(io::Cursor::new(compressed))).map_err(failed)?;
        read_verified(plain, &Descriptor::new(CHUNK_TYPE, chunk.digest, chunk.size), chunk.size)
    }
}

/// Pieces as one stream.
struct Pieces {
    receiver: Receiver<io::Result<Vec<u8>>>,
    current: io::Cursor<Vec<u8>>,
}

impl Read for Pieces {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let n = self.current.read(buf)?;
            if n > 0 || buf.is_empty() {
                return Ok(n);
            }
            let Ok(next) = self.receiver.recv() else { return Ok(0) };
            self.current = io::Cursor::new(next?);
        }
    }
}
