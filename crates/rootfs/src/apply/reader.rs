//! A strict reader of tar streams that agrees with Go's `archive/tar` on where entries begin.
//!
//! Two readers that disagree on the length of an entry see different files in one layer (CVE-2025-62518), so the rules
//! are explicit: a PAX `size` wins over the header and is applied to the entry it belongs to only; links, devices,
//! FIFOs and directories have no data whatever their size field says; extended headers have the length of their own
//! header block. What is neither known nor harmless is an error.

use std::ffi::OsString;
use std::io::{ErrorKind, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::header::{self, BLOCK, Block, Dialect, RawHeader};
use super::records::{self, Records};
use super::sparse::{self, InDataMap, PaxForm, SparseMap};
use crate::error::{Result, RootfsError};
use crate::stat::Time;

/// Longest extended header or GNU long name, as in Go.
const MAX_EXTENDED: u64 = 1 << 20;
/// More than the block size that any program pads archives to.
const MAX_PADDING: u64 = 64 << 20;
const BUFFER: usize = 256 * 1024;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// Another name for a file of the same archive.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A directory.
    Dir,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
}

/// One entry, extended headers merged in.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What it is.
    pub kind: EntryKind,
    /// The name as it is in the archive: not checked, not cleaned.
    pub path: Vec<u8>,
    /// The target of a link.
    pub link: Vec<u8>,
    /// Permission bits (`07777`).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length of the file, holes included.
    pub size: u64,
    /// Last modification.
    pub mtime: Time,
    /// Device number.
    pub rdev: (u32, u32),
    /// Extended attributes in the order in which to set them.
    pub xattrs: Vec<(OsString, Vec<u8>)>,
    /// Where the data go, if the file has holes.
    pub sparse: Option<SparseMap>,
}

impl Entry {
    /// The name for messages.
    pub fn display(&self) -> PathBuf {
        PathBuf::from(OsString::from_vec(self.path.clone()))
    }
}

/// Reads entries one after the other; what is not read of an entry's data is skipped.
pub struct TarReader<R> {
    inner: R,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes taken from the buffer since the beginning of the stream.
    offset: u64,
    /// Data of the current entry that nobody has read yet, and the padding after it.
    data_left: u64,
    padding: u64,
}

impl<R: Read> TarReader<R> {
    /// A reader from the beginning of an uncompressed archive.
    pub fn new(inner: R) -> Self {
        Self { inner, buffer: vec![0; BUFFER], start: 0, end: 0, offset: 0, data_left: 0, padding: 0 }
    }

    /// How many bytes of the archive were consumed.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next entry, or `None` at the end of the archive.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        let mut records = None;
        let (mut long_name, mut long_link) = (None, None);
        loop {
            let Some((block, raw)) = self.next_header()? else { return Ok(None) };
            let name = OsString::from_vec(raw.name.clone());
            let bad = |reason: &str| archive(Path::new(&name), reason);
            match raw.type_flag {
                b'x' => {
                    let data = self.read_extended(&raw)?;
                    records = Some(records::parse(&data).map_err(bad)?);
                }
                // Global records and volume labels say nothing about files; Docker ignores them as well.
                b'g' | b'V' => self.set_data(&raw, raw.size).map_err(bad)?,
                b'L' => long_name = Some(until_nul(self.read_extended(&raw)?)),
                b'K' => long_link = Some(until_nul(self.read_extended(&raw)?)),
                _ => {
                    let mut raw = raw;
                    let mut records: Records = records.unwrap_or_default();
                    raw.name = long_name.or(records.path.take()).unwrap_or(raw.name);
                    raw.link = long_link.or(records.link.take()).unwrap_or(raw.link);
                    return self.entry(&block, raw, records).map(Some);
                }
            }
        }
    }

    /// The next piece of the current entry's data as it is stored, without holes; empty at its end.
    pub fn data(&mut self) -> Result<&[u8]> {
        self.data_up_to(u64::MAX)
    }

    /// As [`Self::data`], at most `limit` bytes.
    pub fn data_up_to(&mut self, limit: u64) -> Result<&[u8]> {
        let limit = limit.min(self.data_left);
        if limit == 0 {
            return Ok(&[]);
        }
        if self.start == self.end && !self.fill()? {
            return Err(truncated());
        }
        let count = usize::try_from(limit).unwrap_or(usize::MAX).min(self.end - self.start);
        let from = self.start;
        self.start += count;
        self.offset += count as u64;
        self.data_left -= count as u64;
        Ok(&self.buffer[from..from + count])
    }

    /// Reads what follows the archive to the end, so that checksums of an outer stream are checked. It may be padding, but
    /// not the terabytes that a few compressed bytes can become.
    pub fn drain(&mut self) -> Result<()> {
        let begin = self.offset;
        loop {
            self.offset += (self.end - self.start) as u64;
            self.start = self.end;
            if self.offset - begin > MAX_PADDING {
                return Err(RootfsError::Limit { what: "bytes after the end of the archive", limit: MAX_PADDING });
            }
            if !self.fill()? {
                return Ok(());
            }
        }
    }

    fn entry(&mut self, block: &Block, raw: RawHeader, records: Records) -> Result<Entry> {
        let display = PathBuf::from(OsString::from_vec(raw.name.clone()));
        let bad = |reason: &str| archive(&display, reason);
        let kind = kind(raw.type_flag, &raw.name).ok_or_else(|| bad(&unknown_type(raw.type_flag)))?;
        let stored = if kind == EntryKind::File { records.size.unwrap_or(raw.size) } else { 0 };
        self.set_data(&raw, stored).map_err(bad)?;
        let id = |number: i64| u32::try_from(number).ok().filter(|id| *id != u32::MAX);
        let mut entry = Entry {
            kind,
            link: raw.link,
            mode: (raw.mode & 0o7777) as u32,
            uid: id(records.uid.unwrap_or(raw.uid)).ok_or_else(|| bad("the owner is out of range"))?,
            gid: id(records.gid.unwrap_or(raw.gid)).ok_or_else(|| bad("the group is out of range"))?,
            size: self.data_left,
            mtime: records.mtime.unwrap_or((raw.mtime, 0)),
            rdev: device(raw.rdev).ok_or_else(|| bad("the device number is out of range"))?,
            xattrs: records.xattrs,
            sparse: None,
            path: raw.name,
        };
        if kind == EntryKind::File {
            self.sparse(block, raw.dialect, records.sparse, &mut entry)?;
        }
        Ok(entry)
    }

    fn sparse(
        &mut self,
        block: &Block,
        dialect: Dialect,
        records: records::SparseRecords,
        entry: &mut Entry,
    ) -> Result<()> {
        let display = entry.display();
        let bad = |reason: &str| archive(&display, reason);
        let (pieces, size) = if block[156] == b'S' {
            if dialect != Dialect::Gnu {
                return Err(bad("a sparse file without a GNU header"));
            }
            (self.old_gnu_map(block, &display)?, sparse::old_gnu_size(block))
        } else {
            let pieces = match sparse::pax_form(&records).map_err(bad)? {
                PaxForm::None => return Ok(()),
                PaxForm::InRecords => sparse::pairs(&records.map).map_err(bad)?,
                PaxForm::InData => self.map_in_data(&display)?,
            };
            if let Some(name) = records.name {
                entry.path = name;
            }
            (pieces, records.real_size.and_then(|n| u64::try_from(n).ok()))
        };
        let size = size.ok_or_else(|| bad("a sparse file without a size"))?;
        entry.size = size;
        entry.sparse = Some(SparseMap::check(pieces, size, self.data_left).map_err(bad)?);
        Ok(())
    }

    /// The extension blocks are not part of the size.
    fn old_gnu_map(&mut self, block: &Block, display: &Path) -> Result<Vec<(u64, u64)>> {
        let mut pieces = Vec::new();
        let mut more = sparse::old_gnu(block, true, &mut pieces).map_err(|e| archive(display, e))?;
        while more {
            let mut extension = [0; BLOCK];
            self.read_exact(&mut extension)?;
            more = sparse::old_gnu(&extension, false, &mut pieces).map_err(|e| archive(display, e))?;
        }
        Ok(pieces)
    }

    /// The map is part of the size, in whole blocks.
    fn map_in_data(&mut self, display: &Path) -> Result<Vec<(u64, u64)>> {
        let mut map = InDataMap::default();
        loop {
            if self.data_left < BLOCK as u64 {
                return Err(archive(display, "the sparse map is incomplete"));
            }
            let mut block = [0; BLOCK];
            self.read_exact(&mut block)?;
            self.data_left -= BLOCK as u64;
            if map.feed(&block).map_err(|e| archive(display, e))? {
                return map.pieces().map_err(|e| archive(display, e));
            }
        }
    }

    /// Skips to the next header block and parses it. Two zero blocks, or the end of the stream, end the archive.
    fn next_header(&mut self) -> Result<Option<(Block, RawHeader)>> {
        self.skip(self.data_left + self.padding)?;
        (self.data_left, self.padding) = (0, 0);
        let at = self.offset;
        let mut block = [0; BLOCK];
        if !self.read_block(&mut block)? {
            return Ok(None);
        }
        if header::is_zero(&block) {
            if self.read_block(&mut block)? && !header::is_zero(&block) {
                return Err(archive_at(at, "a single zero block in the middle of the archive"));
            }
            return Ok(None);
        }
        match header::parse(&block) {
            Ok(raw) => Ok(Some((block, raw))),
            Err(reason) => Err(archive_at(at, reason)),
        }
    }

    fn set_data(&mut self, raw: &RawHeader, size: i64) -> std::result::Result<(), &'static str> {
        let size = u64::try_from(size).map_err(|_| "the size is negative")?;
        // No stream is longer; and sums of offsets cannot overflow.
        if size > 1 << 62 || raw.size < 0 {
            return Err("the size is out of range");
        }
        self.data_left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        Ok(())
    }

    /// The data of an extended header or a long name.
    fn read_extended(&mut self, raw: &RawHeader) -> Result<Vec<u8>> {
        let display = PathBuf::from(OsString::from_vec(raw.name.clone()));
        self.set_data(raw, raw.size).map_err(|e| archive(&display, e))?;
        if self.data_left > MAX_EXTENDED {
            return Err(archive(&display, "an extended header is larger than 1 MiB"));
        }
        let mut data = Vec::with_capacity(self.data_left as usize);
        loop {
            let piece = self.data()?;
            if piece.is_empty() {
                return Ok(data);
            }
            data.extend_from_slice(piece);
        }
    }

    /// False at the end of the stream, an error inside a block.
    fn read_block(&mut self, block: &mut Block) -> Result<bool> {
        if self.start == self.end && !self.fill()? {
            return Ok(false);
        }
        self.read_exact(block).map(|()| true)
    }

    fn read_exact(&mut self, out: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < out.len() {
            if self.start == self.end && !self.fill()? {
                return Err(truncated());
            }
            let count = (self.end - self.start).min(out.len() - done);
            out[done..done + count].copy_from_slice(&self.buffer[self.start..self.start + count]);
            self.start += count;
            self.offset += count as u64;
            done += count;
        }
        Ok(())
    }

    fn skip(&mut self, mut count: u64) -> Result<()> {
        while count > 0 {
            if self.start == self.end && !self.fill()? {
                return Err(truncated());
            }
            let now = usize::try_from(count).unwrap_or(usize::MAX).min(self.end - self.start);
            self.start += now;
            self.offset += now as u64;
            count -= now as u64;
        }
        Ok(())
    }

    /// Reads more into an empty buffer; false at the end.
    fn fill(&mut self) -> Result<bool> {
        loop {
            match self.inner.read(&mut self.buffer) {
                Ok(count) => {
                    (self.start, self.end) = (0, count);
                    return Ok(count > 0);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(RootfsError::io("read", "the archive", e)),
            }
        }
    }
}

fn kind(type_flag: u8, name: &[u8]) -> Option<EntryKind> {
    Some(match type_flag {
        0 if name.ends_with(b"/") => EntryKind::Dir,
        0 | b'0' | b'7' | b'S' => EntryKind::File,
        b'1' => EntryKind::HardLink,
        b'2' => EntryKind::Symlink,
        b'3' => EntryKind::CharDevice,
        b'4' => EntryKind::BlockDevice,
        b'5' => EntryKind::Dir,
        b'6' => EntryKind::Fifo,
        _ => return None,
    })
}

fn unknown_type(type_flag: u8) -> String {
    format!("entries of type '{}' are not supported", (type_flag as char).escape_default())
}

/// Linux has 12 bits for the major and 20 for the minor number.
fn device((major, minor): (i64, i64)) -> Option<(u32, u32)> {
    let major = u32::try_from(major).ok().filter(|n| *n < 1 << 12)?;
    let minor = u32::try_from(minor).ok().filter(|n| *n < 1 << 20)?;
    Some((major, minor))
}

fn until_nul(mut name: Vec<u8>) -> Vec<u8> {
    name.truncate(header::text(&name).len());
    name
}

pub(super) fn archive(entry: &Path, reason: &str) -> RootfsError {
    RootfsError::Archive { entry: entry.to_owned(), reason: reason.to_owned() }
}

fn archive_at(offset: u64, reason: &str) -> RootfsError {
    archive(Path::new(&format!("at byte {offset}")), reason)
}

fn truncated() -> RootfsError {
    let source = std::io::Error::new(ErrorKind::UnexpectedEof, "it ends in the middle of an entry");
    RootfsError::io("read", "the archive", source)
}
