//! [`StatCache`]: content digests of files that have not changed, as git's index keeps them.
//!
//! The file: magic, version, CRC-32 of the rest; then per directory its path, the number of entries, and the entries sorted
//! by name, each with the metadata that must be equal and the digest. It is replaced atomically, and a damaged or foreign one
//! counts as empty.
//!
//! Invariant: an entry is only written if the file had been left alone for longer than the granularity of its file system's
//! clock when it was read (git's "racily clean" rule); otherwise a later change could go unnoticed.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Context as _, Result};
use crate::stat::{FileKind, Stat};
use crate::tree::ContextTree;

const MAGIC: &[u8; 8] = b"kilnstat";
const VERSION: u32 = 1;
const HEADER: usize = 16;
/// Metadata of an entry: dev, ino, size, two times, mode.
const META: usize = 8 + 8 + 8 + 12 + 12 + 4;
const DIGEST: usize = 32;
/// No context has an index as large as this; a file that claims to be one is not read.
const MAX_FILE: u64 = 1 << 30;

/// Where each directory's entries begin, and how many there are.
type Dirs = HashMap<Box<[u8]>, (usize, usize)>;

/// Digests known from an earlier scan of the same directory.
#[derive(Debug, Default)]
pub struct StatCache {
    path: PathBuf,
    data: Vec<u8>,
    dirs: Dirs,
    entries: u64,
}

/// The entries of one directory, to be asked for in the order of names.
pub(crate) struct CachedDir<'a> {
    rest: &'a [u8],
    left: usize,
}

impl StatCache {
    /// Reads the cache at `path`. A missing, damaged or foreign file is an empty cache.
    pub fn load(path: &Path) -> Self {
        let empty = || Self { path: path.to_owned(), ..Self::default() };
        let usable = |m: std::fs::Metadata| m.is_file() && m.len() <= MAX_FILE;
        if !std::fs::metadata(path).is_ok_and(usable) {
            return empty();
        }
        let Ok(data) = std::fs::read(path) else { return empty() };
        match index(&data) {
            Some((dirs, entries)) => Self { path: path.to_owned(), data, dirs, entries },
            None => empty(),
        }
    }

    /// Number of files known.
    pub fn len(&self) -> u64 {
        self.entries
    }

    /// Nothing is known.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    pub(crate) fn dir(&self, path: &Path) -> Option<CachedDir<'_>> {
        let (at, left) = *self.dirs.get(path.as_os_str().as_bytes())?;
        Some(CachedDir { rest: &self.data[at..], left })
    }

    /// Writes the digests that `tree` has, if they are not just those that were loaded. Says whether it wrote.
    pub fn save_if_changed(&self, tree: &ContextTree) -> Result<bool> {
        let unchanged = tree.cache_hits.load(Ordering::Relaxed) == self.entries;
        if unchanged && !tree.computed.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let data = encode(tree);
        if data == self.data {
            return Ok(false);
        }
        replace(&self.path, &data)?;
        Ok(true)
    }
}

impl CachedDir<'_> {
    /// The digest of `name`, if its metadata are those recorded. Names must be asked for in ascending order.
    pub fn lookup(&mut self, name: &OsStr, stat: &Stat) -> Option<[u8; DIGEST]> {
        while self.left > 0 {
            let entry = parse_entry(self.rest)?;
            match entry.name.cmp(name.as_bytes()) {
                std::cmp::Ordering::Greater => return None,
                order => {
                    self.rest = &self.rest[entry.len..];
                    self.left -= 1;
                    if order.is_eq() {
                        let digest: [u8; DIGEST] = entry.digest.try_into().ok()?;
                        return (entry.meta == meta(stat)).then_some(digest);
                    }
                }
            }
        }
        None
    }
}

struct RawEntry<'a> {
    name: &'a [u8],
    meta: &'a [u8],
    digest: &'a [u8],
    len: usize,
}

fn parse_entry(data: &[u8]) -> Option<RawEntry<'_>> {
    let name_len = usize::from(u16::from_le_bytes(data.get(..2)?.try_into().ok()?));
    let len = 2 + name_len + META + DIGEST;
    let body = data.get(2..len)?;
    let (name, rest) = body.split_at(name_len);
    let (meta, digest) = rest.split_at(META);
    Some(RawEntry { name, meta, digest, len })
}

/// Checks the whole file and finds the directories.
fn index(data: &[u8]) -> Option<(Dirs, u64)> {
    let u32_at = |at: usize| Some(u32::from_le_bytes(data.get(at..at + 4)?.try_into().ok()?));
    if data.get(..8)? != MAGIC || u32_at(8)? != VERSION || u32_at(12)? != crc32fast::hash(data.get(HEADER..)?) {
        return None;
    }
    let mut dirs = HashMap::new();
    let mut total = 0;
    let mut at = HEADER;
    while at < data.len() {
        let path_len = u32_at(at)? as usize;
        let path = data.get(at + 4..at.checked_add(4)?.checked_add(path_len)?)?;
        at += 4 + path_len;
        let count = u32_at(at)? as usize;
        at += 4;
        dirs.insert(path.into(), (at, count));
        for _ in 0..count {
            at += parse_entry(data.get(at..)?)?.len;
        }
        total += count as u64;
    }
    Some((dirs, total))
}

fn meta(stat: &Stat) -> [u8; META] {
    let mut out = [0; META];
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        out[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    put(&stat.dev.to_le_bytes());
    put(&stat.ino.to_le_bytes());
    put(&stat.size.to_le_bytes());
    for (s, ns) in [stat.mtime, stat.ctime] {
        put(&s.to_le_bytes());
        put(&ns.to_le_bytes());
    }
    put(&stat.mode.to_le_bytes());
    out
}

fn encode(tree: &ContextTree) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + tree.len() * 128);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    for dir in &tree.dirs {
        let known: Vec<_> = dir
            .entries
            .iter()
            .filter(|e| e.stat.kind == FileKind::File && tree.is_settled(&e.stat))
            .filter_map(|e| e.digest.get().map(|d| (e, d)))
            .collect();
        let (Ok(path_len), Ok(count)) = (u32::try_from(dir.path.as_os_str().len()), u32::try_from(known.len())) else {
            continue;
        };
        if known.is_empty() {
            continue;
        }
        out.extend_from_slice(&path_len.to_le_bytes());
        out.extend_from_slice(dir.path.as_os_str().as_bytes());
        out.extend_from_slice(&count.to_le_bytes());
        for (entry, digest) in known {
            // names are at most 255 bytes on every file system; longer ones cannot come from readdir
            out.extend_from_slice(&(entry.name.len() as u16).to_le_bytes());
            out.extend_from_slice(entry.name.as_bytes());
            out.extend_from_slice(&meta(&entry.stat));
            out.extend_from_slice(digest);
        }
    }
    let crc = crc32fast::hash(&out[HEADER..]);
    out[12..HEADER].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Writes beside the file and renames: a reader sees the old one or the new one.
fn replace(path: &Path, data: &[u8]) -> Result<()> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let mut tmp = path.as_os_str().to_owned();
    tmp.push(format!(".{}.{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
    let tmp = PathBuf::from(tmp);
    let written = (|| {
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&tmp)?;
        file.write_all(data)?;
        std::fs::rename(&tmp, path)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&tmp); // the first error is the one to tell
    }
    written.at("write", path)
}

#[cfg(test)]
mod tests;
