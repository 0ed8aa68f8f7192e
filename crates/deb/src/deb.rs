//! The container of a `.deb`: an `ar` archive of `debian-binary`, `control.tar.*` and `data.tar.*` (deb(5)).

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use kiln_compress::{Format, LimitReader, decoder_for};
use kiln_oci::Hasher;
use kiln_rootfs::apply::{EntryKind, TarReader};

use crate::error::{Error, Result};
use crate::files;

/// Largest `control.tar`, uncompressed. The largest real ones have lists of some thousand files.
const MAX_CONTROL: u64 = 64 << 20;

/// A verified package file.
pub struct Deb {
    file: File,
    control: Member,
    data: Member,
    size: u64,
}

#[derive(Clone, Copy)]
struct Member {
    offset: u64,
    size: u64,
    format: Format,
}

/// A file of `control.tar`.
pub struct ControlFile {
    /// Its name, without directories.
    pub name: String,
    /// Its bytes.
    pub content: Vec<u8>,
    /// Whether it may be executed.
    pub executable: bool,
}

impl Deb {
    /// Opens a package after checking its size and hash.
    pub fn open(path: &Path, package: &str, sha256: &[u8; 32], size: u64) -> Result<Self> {
        let mut file = Self::verify(path, sha256, size)?;
        let bad = |reason: &str| Error::Package { package: package.to_owned(), reason: reason.to_owned() };
        let members = members(&mut file, size).map_err(|reason| bad(&reason))?;
        let find = |stem: &str| {
            let mut named = members.iter().filter_map(|(name, offset, size)| {
                let format = match name.strip_prefix(stem)? {
                    "" => Format::Plain,
                    ".gz" => Format::Gzip,
                    ".xz" => Format::Xz,
                    ".zst" => Format::Zstd,
                    ".bz2" => Format::Bzip2,
                    _ => return None,
                };
                Some(Member { offset: *offset, size: *size, format })
            });
            named.next().ok_or_else(|| bad(&format!("it has no {stem} that can be read")))
        };
        let (control, data) = (find("control.tar")?, find("data.tar")?);
        Ok(Self { file, control, data, size })
    }

    /// Opens a file that must have this size and hash.
    pub fn verify(path: &Path, sha256: &[u8; 32], size: u64) -> Result<File> {
        let mut file = File::open(path).map_err(Error::io(path))?;
        let actual = file.metadata().map_err(Error::io(path))?.len();
        let shown = || path.display().to_string();
        if actual != size {
            return Err(Error::Size { url: shown(), expected: size, actual, more: false });
        }
        let mut hasher = Hasher::new();
        std::io::copy(&mut file, &mut hasher).map_err(Error::io(path))?;
        let hash = hasher.finish();
        match hash.bytes() == sha256 {
            true => Ok(file),
            false => Err(Error::Hash { url: shown(), expected: files::hex(sha256), actual: hash.hex() }),
        }
    }

    fn stream(&self, member: Member, limit: u64) -> std::io::Result<LimitReader<Box<dyn Read + Send>>> {
        // Both members are read through one description: never at the same time.
        let mut file = self.file.try_clone()?;
        file.seek(SeekFrom::Start(member.offset))?;
        let compressed = BufReader::with_capacity(256 << 10, file.take(member.size));
        Ok(LimitReader::new(decoder_for(member.format, Box::new(compressed))?, limit))
    }

    /// The uncompressed `data.tar`. Its size is bounded by that of the package: real ones expand 5 to 30 times.
    pub fn data(&self) -> std::io::Result<impl Read + use<>> {
        self.stream(self.data, self.size.saturating_mul(1000).saturating_add(256 << 20))
    }

    /// The files of `control.tar`.
    pub fn control(&self, package: &str) -> Result<Vec<ControlFile>> {
        let bad =
            |reason: String| Error::Package { package: package.to_owned(), reason: format!("control.tar: {reason}") };
        let mut tar = TarReader::new(self.stream(self.control, MAX_CONTROL).map_err(|e| bad(e.to_string()))?);
        let mut files: Vec<ControlFile> = Vec::new();
        while let Some(entry) = tar.next_entry().map_err(|e| bad(e.to_string()))? {
            if entry.kind != EntryKind::File || entry.sparse.is_some() {
                continue;
            }
            let name = String::from_utf8_lossy(&entry.path).trim_start_matches("./").to_owned();
            let plain = !name.is_empty() && name.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.+".contains(&c));
            if !plain || name.starts_with('.') {
                return Err(bad(format!("it has a file named {name:?}")));
            }
            let mut content = Vec::new();
            loop {
                let piece = tar.data().map_err(|e| bad(e.to_string()))?;
                if piece.is_empty() {
                    break;
                }
                content.extend_from_slice(piece);
            }
            files.push(ControlFile { name, content, executable: entry.mode & 0o100 != 0 });
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        if !files.iter().any(|f| f.name == "control") {
            return Err(bad("it has no control file".into()));
        }
        Ok(files)
    }
}

/// Name, offset and size of each member of the archive.
fn members(file: &mut File, length: u64) -> std::result::Result<Vec<(String, u64, u64)>, String> {
    let io = |error: std::io::Error| error.to_string();
    file.rewind().map_err(io)?;
    let mut magic = [0; 8];
    file.read_exact(&mut magic).map_err(|_| "it is too short for a package".to_owned())?;
    if &magic != b"!<arch>\n" {
        return Err("it is not an ar archive".into());
    }
    let mut members = Vec::new();
    let mut offset = 8;
    while offset + 60 <= length {
        file.seek(SeekFrom::Start(offset)).map_err(io)?;
        let mut header = [0; 60];
        file.read_exact(&mut header).map_err(io)?;
        if &header[58..] != b"`\n" {
            return Err("a header of the ar archive is malformed".into());
        }
        let text = |range: std::ops::Range<usize>| String::from_utf8_lossy(&header[range]).trim_end().to_owned();
        let name = text(0..16).trim_end_matches('/').to_owned();
        let size: u64 = text(48..58).parse().map_err(|_| format!("member {name:?} has no size"))?;
        let start = offset + 60;
        let end = start.checked_add(size).filter(|end| *end <= length);
        let end = end.ok_or_else(|| format!("member {name:?} is longer than the package"))?;
        members.push((name, start, size));
        if members.len() > 16 {
            return Err("it has too many members".into());
        }
        offset = end + (size & 1);
    }
    match members.first() {
        Some((name, ..)) if name == "debian-binary" => Ok(members),
        _ => Err("it does not start with debian-binary".into()),
    }
}
