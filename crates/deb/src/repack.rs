//! A filter between a package's `data.tar` and the extractor: leaves files out, moves them below merged directories,
//! and takes notes. Directories are never passed on: several packages share them, so that they are made beforehand and
//! get their metadata at the very end.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read};

use kiln_rootfs::apply::{Entry, EntryKind, TarReader};
use md5::{Digest as _, Md5};

/// What was seen of one path of a package.
#[derive(Debug, Clone)]
pub struct Seen {
    /// As the package has it, without `./` in front.
    pub path: String,
    /// Where it goes; the same unless a directory above is merged with another.
    pub placed: String,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub mtime: (i64, u32),
    /// Target of a symbolic link.
    pub target: String,
    /// Whether it is in the image.
    pub kept: bool,
}

/// What to do with the paths of all packages.
#[derive(Default, Clone)]
pub struct Plan {
    /// Directories that are links to others: everything below `key` goes below `value`.
    pub merged: BTreeMap<String, String>,
    /// Paths of a package that another one replaces: (package, placed path).
    pub suppressed: std::collections::BTreeSet<(String, String)>,
}

impl Plan {
    /// Where a path goes.
    pub fn place(&self, path: &str) -> String {
        let mut placed = path.to_owned();
        // Each round resolves one link; chains are short and cycles must end.
        for _ in 0..8 {
            let found =
                prefixes(&placed).find_map(|prefix| self.merged.get(prefix).map(|to| (prefix.len(), to.clone())));
            match found {
                Some((length, to)) => placed = format!("{to}{}", &placed[length..]),
                None => break,
            }
        }
        placed
    }

    /// Where an entry itself goes, and whether it is left out because a link stands there: a directory that another
    /// package makes a link, or one of the links at the top, which kiln makes.
    fn place_entry(&self, path: &str, kind: EntryKind) -> (String, bool) {
        let Some((dir, name)) = path.rsplit_once('/') else {
            return (self.place(path), self.merged.contains_key(path));
        };
        let own = format!("{}/{name}", self.place(dir));
        if !self.merged.contains_key(&own) {
            return (own, false);
        }
        if kind == EntryKind::Symlink { (own, false) } else { (self.place(&own), true) }
    }
}

/// The leading directories of a path, shortest first, and the path itself last.
fn prefixes(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at]).chain(std::iter::once(path))
}

/// A `data.tar` stream on its way.
pub struct Repack<'a, R> {
    tar: TarReader<R>,
    plan: &'a Plan,
    package: &'a str,
    keep: &'a (dyn Fn(&str) -> bool + Sync),
    /// Is told of the directory that a file goes to, before it does.
    prepare: &'a (dyn Fn(&str) -> Result<(), String> + Sync),
    /// Header bytes and padding that are still to be read.
    pending: Vec<u8>,
    position: usize,
    left: u64,
    padding: usize,
    done: bool,
    /// Files to hash, by their path in the package; filled in on the way.
    md5: HashMap<String, Option<String>>,
    hashing: Option<(String, Md5)>,
    seen: Vec<Seen>,
}

impl<'a, R: Read> Repack<'a, R> {
    pub fn new(
        data: R,
        package: &'a str,
        plan: &'a Plan,
        keep: &'a (dyn Fn(&str) -> bool + Sync),
        prepare: &'a (dyn Fn(&str) -> Result<(), String> + Sync),
    ) -> Self {
        Self {
            tar: TarReader::new(data),
            plan,
            package,
            keep,
            prepare,
            pending: Vec::new(),
            position: 0,
            left: 0,
            padding: 0,
            done: false,
            md5: HashMap::new(),
            hashing: None,
            seen: Vec::new(),
        }
    }

    /// Asks for the MD5 sums of some files (dpkg wants those of configuration files).
    pub fn hash(&mut self, paths: impl Iterator<Item = String>) {
        self.md5 = paths.map(|path| (path, None)).collect();
    }

    /// What was seen, and the sums that were asked for.
    pub fn into_notes(self) -> (Vec<Seen>, HashMap<String, Option<String>>) {
        (self.seen, self.md5)
    }

    /// Moves on to the next entry that is passed on; fills `pending` with its header.
    fn advance(&mut self) -> Result<(), String> {
        while let Some(mut entry) = self.tar.next_entry().map_err(|error| error.to_string())? {
            let path = clean(&entry.path)?;
            if path.is_empty() {
                match entry.kind {
                    EntryKind::Dir => continue,
                    _ => return Err("its top is not a directory".into()),
                }
            }
            self.check(&entry, &path)?;
            let (placed, hidden) = self.plan.place_entry(&path, entry.kind);
            let kept = (self.keep)(&path)
                && !hidden
                && !self.plan.suppressed.contains(&(self.package.to_owned(), placed.clone()));
            let link = match entry.kind {
                EntryKind::HardLink => self.plan.place(&clean(&entry.link)?),
                _ => String::from_utf8_lossy(&entry.link).into_owned(),
            };
            self.seen.push(Seen {
                path: path.clone(),
                placed: placed.clone(),
                kind: entry.kind,
                mode: entry.mode,
                uid: entry.uid,
                gid: entry.gid,
                mtime: entry.mtime,
                target: link.clone(),
                kept,
            });
            if !kept || entry.kind == EntryKind::Dir {
                continue;
            }
            (self.prepare)(placed.rsplit_once('/').map_or("", |(dir, _)| dir))?;
            if self.md5.contains_key(&path) {
                self.hashing = Some((path, Md5::new()));
            }
            if entry.kind == EntryKind::HardLink {
                entry.link = link.into_bytes();
            }
            entry.path = placed.into_bytes();
            self.left = if entry.kind == EntryKind::File { entry.size } else { 0 };
            self.padding = padding(self.left);
            self.pending = header(&entry);
            self.position = 0;
            return Ok(());
        }
        self.tar.drain().map_err(|error| error.to_string())?;
        self.done = true;
        (self.pending, self.position) = (vec![0; 1024], 0);
        Ok(())
    }

    fn check(&self, entry: &Entry, path: &str) -> Result<(), String> {
        if self.seen.len() >= 2_000_000 {
            return Err("it has too many files".into());
        }
        match entry.kind {
            EntryKind::CharDevice | EntryKind::BlockDevice => Err(format!("{path} is a device")),
            _ if entry.sparse.is_some() => Err(format!("{path} is stored as a sparse file")),
            _ => Ok(()),
        }
    }

    fn end_of_file(&mut self) {
        if let Some((path, hasher)) = self.hashing.take() {
            self.md5.insert(path, Some(crate::files::hex(&hasher.finalize())));
        }
        (self.pending, self.position) = (vec![0; self.padding], 0);
        self.padding = 0;
    }
}

impl<R: Read> Read for Repack<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.position < self.pending.len() {
                let count = buffer.len().min(self.pending.len() - self.position);
                buffer[..count].copy_from_slice(&self.pending[self.position..self.position + count]);
                self.position += count;
                return Ok(count);
            }
            if self.left > 0 {
                let piece = self.tar.data_up_to(buffer.len() as u64).map_err(io::Error::other)?;
                if piece.is_empty() {
                    return Err(io::Error::other("the archive ends in the middle of a file"));
                }
                buffer[..piece.len()].copy_from_slice(piece);
                if let Some((_, hasher)) = &mut self.hashing {
                    hasher.update(piece);
                }
                self.left -= piece.len() as u64;
                return Ok(piece.len());
            }
            if self.done {
                return Ok(0);
            }
            self.end_of_file();
            if self.position == self.pending.len() {
                self.advance().map_err(io::Error::other)?;
            }
        }
    }
}

/// A path of a package: relative, without `.`; one that leads out, or is not UTF-8, is an error.
fn clean(raw: &[u8]) -> Result<String, String> {
    let text = std::str::from_utf8(raw).map_err(|_| format!("{:?} is not UTF-8", String::from_utf8_lossy(raw)))?;
    let mut parts = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => return Err(format!("{text:?} leads out of the image")),
            part if part.contains(['\0', '\n']) => return Err(format!("{text:?} has a control character")),
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

fn padding(size: u64) -> usize {
    ((512 - size % 512) % 512) as usize
}

/// A ustar header, with GNU long name entries in front where needed.
pub fn header(entry: &Entry) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    if entry.path.len() > 100 {
        long(b'L', &entry.path, &mut out);
    }
    if entry.link.len() > 100 {
        long(b'K', &entry.link, &mut out);
    }
    let flag = match entry.kind {
        EntryKind::File => b'0',
        EntryKind::HardLink => b'1',
        EntryKind::Symlink => b'2',
        EntryKind::CharDevice => b'3',
        EntryKind::BlockDevice => b'4',
        EntryKind::Dir => b'5',
        EntryKind::Fifo => b'6',
    };
    let size = if entry.kind == EntryKind::File { entry.size } else { 0 };
    let numbers = [u64::from(entry.mode), entry.uid.into(), entry.gid.into(), size, entry.mtime.0.max(0) as u64];
    block(flag, &entry.path, &entry.link, numbers, &mut out);
    out
}

fn long(flag: u8, text: &[u8], out: &mut Vec<u8>) {
    let size = text.len() as u64 + 1;
    block(flag, b"././@LongLink", b"", [0o644, 0, 0, size, 0], out);
    out.extend_from_slice(text);
    out.resize(out.len() + 1 + padding(size), 0);
}

fn block(flag: u8, path: &[u8], link: &[u8], numbers: [u64; 5], out: &mut Vec<u8>) {
    let mut block = [0_u8; 512];
    let text = |block: &mut [u8; 512], at: usize, text: &[u8]| {
        let length = text.len().min(100);
        block[at..at + length].copy_from_slice(&text[..length]);
    };
    text(&mut block, 0, path);
    text(&mut block, 157, link);
    let fields = [(100, 8), (108, 8), (116, 8), (124, 12), (136, 12)];
    for ((at, width), value) in fields.into_iter().zip(numbers) {
        number(&mut block[at..at + width], value);
    }
    block[156] = flag;
    block[257..265].copy_from_slice(b"ustar  \0");
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|b| u64::from(*b)).sum();
    number(&mut block[148..155], sum);
    out.extend_from_slice(&block);
}

/// Octal, or base 256 when it does not fit.
fn number(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    if value < 1 << (3 * digits.min(20)) {
        field[..digits].copy_from_slice(format!("{value:0digits$o}").as_bytes());
        field[digits] = 0;
        return;
    }
    field.fill(0);
    let bytes = value.to_be_bytes();
    let start = field.len().saturating_sub(8);
    let count = field.len() - start;
    field[start..].copy_from_slice(&bytes[8 - count..]);
    field[0] |= 0x80;
}
