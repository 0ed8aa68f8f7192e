//! A deterministic tar writer: plain ustar headers where they suffice, PAX extended headers where not.
//!
//! The bytes follow from the entries alone. As Go's `archive/tar` in its PAX mode writes them (so that Docker's and
//! containerd's layers look the same): records only for what does not fit, sorted by key, raw bytes in names; no user
//! or group names; no access or change times; two zero blocks at the end.

use std::io::{self, Write};

use crate::stat::Time;
use crate::xattr::Xattrs;

const BLOCK: usize = 512;
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
const BUFFER: usize = 64 * 1024;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TarKind<'a> {
    /// A regular file of this size; its data follow.
    File(u64),
    /// Another name for an entry before it.
    HardLink(&'a [u8]),
    /// A symbolic link.
    Symlink(&'a [u8]),
    /// A directory.
    Dir,
    /// A character device.
    CharDevice(u32, u32),
    /// A block device.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
}

/// The metadata of one entry.
#[derive(Debug, Clone, Copy)]
pub struct TarEntry<'a> {
    /// Relative to the archive's root, without slash at the beginning or end.
    pub path: &'a [u8],
    /// What it is.
    pub kind: TarKind<'a>,
    /// Permission bits (`07777`).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification.
    pub mtime: Time,
    /// Extended attributes.
    pub xattrs: Option<&'a Xattrs>,
}

/// Writes entries in the order in which they come.
pub struct TarWriter<W: Write> {
    out: io::BufWriter<W>,
    /// Data that the current file still owes.
    owed: u64,
    padding: usize,
    written: u64,
}

impl<W: Write> TarWriter<W> {
    /// Starts an archive.
    pub fn new(out: W) -> Self {
        Self { out: io::BufWriter::with_capacity(BUFFER, out), owed: 0, padding: 0, written: 0 }
    }

    /// Writes an entry's headers. The data of a file must follow, by [`Self::data`] and [`Self::zeros`].
    pub fn entry(&mut self, entry: &TarEntry<'_>) -> io::Result<()> {
        self.end_entry()?;
        let mut path = entry.path.to_vec();
        if entry.kind == TarKind::Dir {
            path.push(b'/');
        }
        let (header, records) = encode(entry, &path)?;
        if !records.is_empty() {
            self.put(&extended_header(&path, records.len() as u64))?;
            self.put(&records)?;
            self.put(&ZEROS[..padding(records.len() as u64)])?;
        }
        self.put(&header)?;
        if let TarKind::File(size) = entry.kind {
            self.owed = size;
            self.padding = padding(size);
        }
        Ok(())
    }

    /// Data of the current file.
    pub fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.owed = self
            .owed
            .checked_sub(bytes.len() as u64)
            .ok_or_else(|| invalid("a file is longer than its header says"))?;
        self.put(bytes)
    }

    /// As many zeros of data.
    pub fn zeros(&mut self, mut count: u64) -> io::Result<()> {
        while count > 0 {
            let now = usize::try_from(count).unwrap_or(usize::MAX).min(ZEROS.len());
            self.data(&ZEROS[..now])?;
            count -= now as u64;
        }
        Ok(())
    }

    /// Writes the end of the archive. Gives the inner writer back, and the length of the archive.
    pub fn finish(mut self) -> io::Result<(W, u64)> {
        self.end_entry()?;
        self.put(&ZEROS[..2 * BLOCK])?;
        let inner = self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok((inner, self.written))
    }

    fn end_entry(&mut self) -> io::Result<()> {
        if self.owed != 0 {
            return Err(invalid("a file is shorter than its header says"));
        }
        let padding = std::mem::take(&mut self.padding);
        self.put(&ZEROS[..padding])
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.out.write_all(bytes)
    }
}

fn invalid(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

fn padding(size: u64) -> usize {
    (BLOCK - (size % BLOCK as u64) as usize) % BLOCK
}

/// One header block under construction.
struct Header([u8; BLOCK]);

impl Header {
    fn new(type_flag: u8) -> Self {
        let mut header = Self([0; BLOCK]);
        header.0[156] = type_flag;
        header.0[257..265].copy_from_slice(b"ustar\x0000");
        header
    }

    fn text(&mut self, at: usize, width: usize, text: &[u8]) {
        let length = text.len().min(width);
        self.0[at..at + length].copy_from_slice(&text[..length]);
    }

    /// Zero-padded octal with a NUL; false (and zero) if it does not fit.
    fn octal(&mut self, at: usize, width: usize, value: u64) -> bool {
        let fits = value >> (3 * (width - 1)) == 0;
        let mut value = if fits { value } else { 0 };
        for digit in self.0[at..at + width - 1].iter_mut().rev() {
            *digit = b'0' + (value & 7) as u8;
            value >>= 3;
        }
        fits
    }

    fn finish(mut self) -> [u8; BLOCK] {
        self.0[148..156].fill(b' ');
        let sum: u64 = self.0.iter().map(|b| u64::from(*b)).sum();
        self.octal(148, 7, sum);
        self.0
    }
}

/// PAX records, sorted because they are added in the order of their keys or sorted at the end.
#[derive(Default)]
struct RecordList(Vec<(Vec<u8>, Vec<u8>)>);

impl RecordList {
    fn add(&mut self, key: &[u8], value: impl Into<Vec<u8>>) {
        self.0.push((key.to_vec(), value.into()));
    }

    fn encode(mut self) -> Vec<u8> {
        self.0.sort();
        let mut out = Vec::new();
        for (key, value) in self.0 {
            // The length counts its own digits.
            let rest = key.len() + value.len() + 3;
            let mut length = rest + digits(rest);
            length = rest + digits(length);
            out.extend_from_slice(length.to_string().as_bytes());
            out.push(b' ');
            out.extend_from_slice(&key);
            out.push(b'=');
            out.extend_from_slice(&value);
            out.push(b'\n');
        }
        out
    }
}

fn digits(number: usize) -> usize {
    number.checked_ilog10().unwrap_or(0) as usize + 1
}

/// The header block of an entry, and the records that must precede it.
fn encode(entry: &TarEntry<'_>, path: &[u8]) -> io::Result<([u8; BLOCK], Vec<u8>)> {
    let (type_flag, link, size, rdev) = match entry.kind {
        TarKind::File(size) => (b'0', &b""[..], size, None),
        TarKind::HardLink(target) => (b'1', target, 0, None),
        TarKind::Symlink(target) => (b'2', target, 0, None),
        TarKind::CharDevice(major, minor) => (b'3', &b""[..], 0, Some((major, minor))),
        TarKind::BlockDevice(major, minor) => (b'4', &b""[..], 0, Some((major, minor))),
        TarKind::Dir => (b'5', &b""[..], 0, None),
        TarKind::Fifo => (b'6', &b""[..], 0, None),
    };
    let mut header = Header::new(type_flag);
    let mut records = RecordList::default();
    for (key, at, text) in [(&b"path"[..], 0, path), (b"linkpath", 157, link)] {
        if text.contains(&0) {
            return Err(invalid("a name has a NUL byte"));
        }
        if text.len() > 100 || !text.is_ascii() {
            records.add(key, text);
        }
        header.text(at, 100, &ascii(text));
    }
    header.octal(100, 8, u64::from(entry.mode & 0o7777));
    for (key, at, width, value) in
        [(&b"uid"[..], 108, 8, u64::from(entry.uid)), (b"gid", 116, 8, u64::from(entry.gid)), (b"size", 124, 12, size)]
    {
        if !header.octal(at, width, value) {
            records.add(key, value.to_string());
        }
    }
    let (seconds, nanos) = entry.mtime;
    let fits = u64::try_from(seconds).is_ok_and(|seconds| header.octal(136, 12, seconds));
    if !fits {
        header.octal(136, 12, 0);
    }
    if !fits || nanos != 0 {
        records.add(b"mtime", format_time(entry.mtime));
    }
    let (major, minor) = rdev.unwrap_or((0, 0));
    if !header.octal(329, 8, major.into()) || !header.octal(337, 8, minor.into()) {
        return Err(invalid("a device number is too large for tar"));
    }
    for (name, value) in entry.xattrs.into_iter().flatten() {
        let name = name.as_encoded_bytes();
        if name.contains(&b'=') {
            return Err(invalid("the name of an extended attribute has an equals sign"));
        }
        records.add(&[b"SCHILY.xattr.", name].concat(), value.as_slice());
    }
    Ok((header.finish(), records.encode()))
}

/// What precedes an entry with records. Like Go: all fields zero but the name, which is for readers that do not know PAX.
fn extended_header(path: &[u8], size: u64) -> [u8; BLOCK] {
    let path = path.strip_suffix(b"/").unwrap_or(path);
    let split = path.iter().rposition(|b| *b == b'/').map_or(0, |slash| slash + 1);
    let name = ascii(&[&path[..split], b"PaxHeaders.0/", &path[split..]].concat());
    let mut header = Header::new(b'x');
    let name = &name[..name.len().min(100)];
    header.text(0, 100, name.strip_suffix(b"/").unwrap_or(name));
    for (at, width) in [(100, 8), (108, 8), (116, 8), (136, 12)] {
        header.octal(at, width, 0);
    }
    header.octal(124, 12, size);
    header.finish()
}

fn ascii(text: &[u8]) -> Vec<u8> {
    text.iter().copied().filter(u8::is_ascii).collect()
}

/// Decimal seconds, without zeros at the end of the fraction. A negative time counts back from zero.
fn format_time((seconds, nanos): Time) -> String {
    if nanos == 0 {
        return seconds.to_string();
    }
    let (sign, whole, nanos) = if seconds < 0 {
        ("-", (seconds + 1).unsigned_abs(), 1_000_000_000 - nanos)
    } else {
        ("", seconds.unsigned_abs(), nanos)
    };
    format!("{sign}{whole}.{nanos:09}").trim_end_matches('0').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_lengths_count_themselves() {
        for (length, total) in
            [(85, "92"), (90, "97"), (92, "99"), (93, "101"), (94, "102"), (991, "999"), (992, "1001")]
        {
            let mut records = RecordList::default();
            records.add(b"path", vec![b'a'; length - 2]);
            let out = records.encode();
            assert!(out.starts_with(format!("{total} path=a").as_bytes()), "{length}: {}", out[..12].escape_ascii());
            assert_eq!(out.len().to_string(), total);
        }
    }

    #[test]
    fn times() {
        assert_eq!(format_time((5, 0)), "5");
        assert_eq!(format_time((5, 120_000_000)), "5.12");
        assert_eq!(format_time((-1, 500_000_000)), "-0.5");
        assert_eq!(format_time((-2, 750_000_000)), "-1.25");
        assert_eq!(format_time((-3, 0)), "-3");
    }

    #[test]
    fn sizes_are_enforced() {
        let entry = |kind| TarEntry { path: b"f", kind, mode: 0o644, uid: 0, gid: 0, mtime: (0, 0), xattrs: None };
        let mut tar = TarWriter::new(Vec::new());
        tar.entry(&entry(TarKind::File(3))).expect("header");
        assert!(tar.data(b"four").is_err());
        let mut tar = TarWriter::new(Vec::new());
        tar.entry(&entry(TarKind::File(3))).expect("header");
        tar.data(b"12").expect("data");
        assert!(tar.finish().is_err());
    }
}
