//! Archives byte by byte, trees as text, and other tools, for the tests of layers. Shares no code with what it tests.
#![allow(dead_code)] // each test binary uses its part

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use kiln_rootfs::{Ownership, Root};

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Says why a test does not run. Use: `if skip_unless(is_root(), "needs root") { return }`.
pub fn skip_unless(condition: bool, why: &str) -> bool {
    if !condition {
        eprintln!("skipped: {why}");
    }
    !condition
}

/// One header to be.
#[derive(Clone, Debug)]
pub struct Item {
    pub name: Vec<u8>,
    pub kind: u8,
    pub link: Vec<u8>,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: u64,
    pub rdev: (u32, u32),
    pub data: Vec<u8>,
    /// What the header claims, if not the data's length.
    pub size: Option<u64>,
    /// PAX records to put before it.
    pub pax: Vec<(String, Vec<u8>)>,
}

pub fn item(kind: u8, name: &str) -> Item {
    Item {
        name: name.as_bytes().to_vec(),
        kind,
        link: Vec::new(),
        mode: if kind == b'5' { 0o755 } else { 0o644 },
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        mtime: 1_700_000_000,
        rdev: (0, 0),
        data: Vec::new(),
        size: None,
        pax: Vec::new(),
    }
}

pub fn file(name: &str, data: &str) -> Item {
    Item { data: data.as_bytes().to_vec(), ..item(b'0', name) }
}

pub fn dir(name: &str) -> Item {
    item(b'5', name)
}

pub fn symlink(name: &str, target: &str) -> Item {
    Item { link: target.as_bytes().to_vec(), mode: 0o777, ..item(b'2', name) }
}

pub fn hardlink(name: &str, target: &str) -> Item {
    Item { link: target.as_bytes().to_vec(), ..item(b'1', name) }
}

impl Item {
    pub fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }
    pub fn mtime(self, mtime: u64) -> Self {
        Self { mtime, ..self }
    }
    pub fn owner(self, uid: u32, gid: u32) -> Self {
        Self { uid, gid, ..self }
    }
    pub fn pax(mut self, key: &str, value: impl AsRef<[u8]>) -> Self {
        self.pax.push((key.to_owned(), value.as_ref().to_vec()));
        self
    }
    pub fn size(self, size: u64) -> Self {
        Self { size: Some(size), ..self }
    }

    /// Header and data, padded; preceded by its PAX header.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if !self.pax.is_empty() {
            let records = self.pax.iter().flat_map(|(k, v)| record(k, v)).collect();
            out.extend(Self { data: records, pax: Vec::new(), size: None, ..item(b'x', "PaxHeaders/x") }.bytes());
        }
        out.extend(self.header());
        out.extend(&self.data);
        out.resize(out.len().next_multiple_of(512), 0);
        out
    }

    pub fn header(&self) -> [u8; 512] {
        let mut block = [0_u8; 512];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.name[..self.name.len().min(100)]);
        put(100, format!("{:07o}\0", self.mode).as_bytes());
        put(108, format!("{:07o}\0", self.uid).as_bytes());
        put(116, format!("{:07o}\0", self.gid).as_bytes());
        put(124, format!("{:011o}\0", self.size.unwrap_or(self.data.len() as u64)).as_bytes());
        put(136, format!("{:011o}\0", self.mtime).as_bytes());
        put(156, &[self.kind]);
        put(157, &self.link[..self.link.len().min(100)]);
        put(257, b"ustar\x0000");
        put(329, format!("{:07o}\0", self.rdev.0).as_bytes());
        put(337, format!("{:07o}\0", self.rdev.1).as_bytes());
        seal(block)
    }
}

/// Sets the checksum.
pub fn seal(mut block: [u8; 512]) -> [u8; 512] {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

pub fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut total = rest + 1;
    while total != rest + total.to_string().len() {
        total += 1;
    }
    [total.to_string().as_bytes(), b" ", key.as_bytes(), b"=", value, b"\n"].concat()
}

pub fn archive(items: &[Item]) -> Vec<u8> {
    let mut out: Vec<u8> = items.iter().flat_map(Item::bytes).collect();
    out.resize(out.len() + 1024, 0);
    out
}

/// One line for each name in the tree: all that a layer is to carry, inode numbers as groups.
pub fn tree(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut out = BTreeMap::new();
    let mut links: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(below) = todo.pop() {
        let mut names: Vec<_> = std::fs::read_dir(root.join(&below)).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        for name in names {
            let path = below.join(name);
            let full = root.join(&path);
            let meta = std::fs::symlink_metadata(&full).unwrap();
            let kind = meta.file_type();
            let mut line = format!("{:o} {}:{} {}", meta.mode(), meta.uid(), meta.gid(), meta.mtime());
            if kind.is_file() {
                let content = std::fs::read(&full).unwrap();
                line += &format!(" {} {:08x}", content.len(), crc32fast::hash(&content));
            } else if kind.is_symlink() {
                line += &format!(" -> {}", std::fs::read_link(&full).unwrap().as_os_str().as_bytes().escape_ascii());
            } else if kind.is_char_device() || kind.is_block_device() {
                line += &format!(" dev {}:{}", rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
            } else if kind.is_dir() {
                todo.push(path.clone());
            }
            if !kind.is_dir() && meta.nlink() > 1 && !(kind.is_char_device() && meta.rdev() == 0) {
                let first = links.entry((meta.dev(), meta.ino())).or_insert_with(|| path.clone());
                if *first != path {
                    line += &format!(" same as {}", first.display());
                }
            }
            for (name, value) in xattrs(&full) {
                line += &format!(" {name}={}", value.escape_ascii());
            }
            out.insert(path, line);
        }
    }
    out
}

pub fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut list = vec![0; 65536];
    let Ok(length) = rustix::fs::llistxattr(path, &mut list) else { return BTreeMap::new() };
    let names = list[..length].split(|b| *b == 0).filter(|n| !n.is_empty());
    names
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .filter(|name| !name.starts_with("security.selinux") && !name.ends_with(".overlay.origin"))
        .filter(|name| is_root() || name != "user.kiln.stat")
        .filter(|name| !name.ends_with(".overlay.impure") && !name.ends_with(".overlay.uuid"))
        .map(|name| {
            let mut value = vec![0; 65536];
            let length = rustix::fs::lgetxattr(path, name.as_str(), &mut value).unwrap();
            value.truncate(length);
            (name, value)
        })
        .collect()
}

/// Opens a root; owners that an ordinary user cannot give are recorded.
pub fn open(path: &Path) -> Root {
    let ownership = if is_root() { Ownership::Native } else { Ownership::Recorded };
    Root::open(path).unwrap().with_ownership(ownership)
}

/// A new directory, opened as a root.
pub fn fresh() -> (tempfile::TempDir, Root) {
    let tmp = tempfile::tempdir().unwrap();
    let root = open(tmp.path());
    (tmp, root)
}

/// The output of a command, or `None` if it is not installed.
pub fn run(command: &mut Command) -> Option<Output> {
    match command.output() {
        Ok(output) => Some(output),
        Err(_) => {
            eprintln!("skipped: {} is not installed", command.get_program().display());
            None
        }
    }
}

pub fn non_utf8(name: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(name))
}
