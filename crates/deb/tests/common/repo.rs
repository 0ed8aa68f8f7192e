//! A synthetic archive: packages, indexes, a signed release.
use std::collections::BTreeMap;
use std::io::Write;

use kiln_oci::Digest;

use super::keys::Key;
use super::server::Server;

/// How the members of a package are compressed.
#[derive(Clone, Copy, PartialEq)]
pub enum Packing {
    Gzip,
    Xz,
    Zstd,
    None,
}

/// One entry of `data.tar`.
#[derive(Clone)]
pub struct Item {
    pub path: String,
    pub kind: tar_kind::Kind,
    pub mode: u32,
    pub content: Vec<u8>,
    pub link: String,
}

pub mod tar_kind {
    #[derive(Clone, Copy, PartialEq)]
    pub enum Kind {
        File,
        Dir,
        Symlink,
        HardLink,
        CharDevice,
    }
}
use tar_kind::Kind;

/// A package to be made.
#[derive(Clone)]
pub struct Pkg {
    pub name: String,
    pub version: String,
    pub arch: String,
    pub fields: Vec<(String, String)>,
    pub items: Vec<Item>,
    /// Files of control.tar besides `control`: name, content, executable.
    pub scripts: Vec<(String, String, bool)>,
    pub packing: Packing,
    /// Replaces the whole file.
    pub raw: Option<Vec<u8>>,
}

pub fn pkg(name: &str, version: &str) -> Pkg {
    let copyright = format!("usr/share/doc/{name}/copyright");
    Pkg {
        name: name.into(),
        version: version.into(),
        arch: "amd64".into(),
        fields: Vec::new(),
        items: Vec::new(),
        scripts: Vec::new(),
        packing: Packing::Xz,
        raw: None,
    }
    .file(&copyright, b"free\n")
}

impl Pkg {
    pub fn field(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.into(), value.into()));
        self
    }

    pub fn depends(self, value: &str) -> Self {
        self.field("Depends", value)
    }

    fn item(mut self, path: &str, kind: Kind, mode: u32, content: &[u8], link: &str) -> Self {
        // Packages have the directories above a file as entries of their own.
        let mut above = String::new();
        for part in path.split('/').rev().skip(1).collect::<Vec<_>>().into_iter().rev() {
            above = if above.is_empty() { part.into() } else { format!("{above}/{part}") };
            let known = self.items.iter().any(|i| i.path == above);
            if !known && !path.contains("..") && !path.starts_with('/') {
                self.items.push(Item {
                    path: above.clone(),
                    kind: Kind::Dir,
                    mode: 0o755,
                    content: Vec::new(),
                    link: String::new(),
                });
            }
        }
        self.items.push(Item { path: path.into(), kind, mode, content: content.into(), link: link.into() });
        self
    }

    pub fn file(self, path: &str, content: &[u8]) -> Self {
        self.item(path, Kind::File, 0o644, content, "")
    }

    pub fn program(self, path: &str, content: &[u8]) -> Self {
        self.item(path, Kind::File, 0o755, content, "")
    }

    pub fn dir(self, path: &str, mode: u32) -> Self {
        self.item(path, Kind::Dir, mode, b"", "")
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.item(path, Kind::Symlink, 0o777, b"", target)
    }

    pub fn hardlink(self, path: &str, target: &str) -> Self {
        self.item(path, Kind::HardLink, 0o644, b"", target)
    }

    pub fn device(self, path: &str) -> Self {
        self.item(path, Kind::CharDevice, 0o666, b"", "")
    }

    pub fn script(mut self, name: &str, content: &str) -> Self {
        self.scripts.push((name.into(), content.into(), true));
        self
    }

    pub fn control_file(mut self, name: &str, content: &str) -> Self {
        self.scripts.push((name.into(), content.into(), false));
        self
    }

    pub fn packing(mut self, packing: Packing) -> Self {
        self.packing = packing;
        self
    }

    pub fn arch(mut self, arch: &str) -> Self {
        self.arch = arch.into();
        self
    }

    fn control(&self) -> String {
        let mut out = format!(
            "Package: {}\nVersion: {}\nArchitecture: {}\nMaintainer: T <t@example.com>\n",
            self.name, self.version, self.arch
        );
        for (name, value) in &self.fields {
            out += &format!("{name}: {value}\n");
        }
        out + "Description: test\n A test.\n"
    }

    pub fn deb(&self) -> Vec<u8> {
        if let Some(raw) = &self.raw {
            return raw.clone();
        }
        let mut control = vec![Item {
            path: "control".into(),
            kind: Kind::File,
            mode: 0o644,
            content: self.control().into(),
            link: String::new(),
        }];
        for (name, content, executable) in &self.scripts {
            let mode = if *executable { 0o755 } else { 0o644 };
            control.push(Item {
                path: name.clone(),
                kind: Kind::File,
                mode,
                content: content.clone().into(),
                link: String::new(),
            });
        }
        let (suffix, pack) = packer(self.packing);
        ar(&[
            ("debian-binary".into(), b"2.0\n".to_vec()),
            (format!("control.tar{suffix}"), pack(&tar(&control))),
            (format!("data.tar{suffix}"), pack(&tar(&self.items))),
        ])
    }
}

/// Compresses a whole member.
type Pack = fn(&[u8]) -> Vec<u8>;

fn packer(packing: Packing) -> (&'static str, Pack) {
    match packing {
        Packing::None => ("", |b| b.to_vec()),
        Packing::Gzip => (".gz", gzip),
        Packing::Xz => (".xz", xz),
        Packing::Zstd => (".zst", |b| {
            let mut encoder =
                kiln_compress::Encoder::new(Vec::new(), kiln_oci::media::Compression::Zstd, None, 1).unwrap();
            encoder.write_all(b).unwrap();
            encoder.finish().unwrap()
        }),
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(0)).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn ar(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut out = b"!<arch>\n".to_vec();
    for (name, content) in members {
        out.extend(format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100644, content.len()).bytes());
        out.extend(content);
        if content.len() % 2 == 1 {
            out.push(b'\n');
        }
    }
    out
}

pub fn tar(items: &[Item]) -> Vec<u8> {
    let mut out = Vec::new();
    for item in items {
        let mut block = [0_u8; 512];
        let dot = if item.path.starts_with('/') || item.path.contains("..") {
            item.path.clone()
        } else {
            format!("./{}", item.path)
        };
        let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
        assert!(dot.len() <= 100 && item.link.len() <= 100);
        put(0, dot.as_bytes());
        put(100, format!("{:07o}\0", item.mode).as_bytes());
        put(108, b"0000000\0");
        put(116, b"0000000\0");
        put(124, format!("{:011o}\0", item.content.len()).as_bytes());
        put(136, format!("{:011o}\0", super::NOW + 5_000_000).as_bytes());
        put(157, item.link.as_bytes());
        put(257, b"ustar  \0");
        block[156] = match item.kind {
            Kind::File => b'0',
            Kind::HardLink => b'1',
            Kind::Symlink => b'2',
            Kind::CharDevice => b'3',
            Kind::Dir => b'5',
        };
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        out.extend(block);
        out.extend(&item.content);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

/// One suite.
#[derive(Clone)]
pub struct Suite {
    pub name: String,
    pub components: BTreeMap<String, Vec<Pkg>>,
    pub head: String,
    /// Directory of the archive on the server.
    pub dir: String,
    /// Spellings of Packages that are on the mirror and in Release.
    pub suffixes: Vec<&'static str>,
    pub by_hash: bool,
    pub inline: bool,
}

pub fn suite(name: &str, packages: Vec<Pkg>) -> Suite {
    Suite {
        name: name.into(),
        components: BTreeMap::from([("main".into(), packages)]),
        head: "Origin: Debian\nLabel: Debian\nVersion: 12.0\nDate: Thu, 01 Oct 2026 00:00:00 UTC\n".into(),
        dir: "debian".into(),
        suffixes: vec![".gz", ".xz"],
        by_hash: true,
        inline: true,
    }
}

impl Suite {
    pub fn publish(&self, server: &Server, key: &Key) {
        self.publish_with(server, |release| {
            vec![(
                if self.inline { "InRelease" } else { "Release" }.into(),
                if self.inline { key.sign_inline(release).into_bytes() } else { release.into() },
            )]
        });
        if !self.inline {
            let path = format!("/{}/dists/{}/Release", self.dir, self.name);
            let release = server.state.lock().unwrap().files[&path].clone();
            server.state.lock().unwrap().files.insert(format!("{path}.gpg"), key.sign_detached(&release).into_bytes());
        }
    }

    pub fn publish_with(&self, server: &Server, sign: impl FnOnce(&str) -> Vec<(String, Vec<u8>)>) {
        let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let base = format!("/{}/dists/{}", self.dir, self.name);
        let mut sums = String::new();
        for (component, packages) in &self.components {
            let mut text = String::new();
            for package in packages {
                let deb = package.deb();
                let filename = format!(
                    "pool/{component}/{}_{}_{}.deb",
                    package.name,
                    package.version.replace(':', "%3a").replace('%', "_"),
                    package.arch
                );
                let control = package.control();
                let (head, tail) = control.split_once("Description:").unwrap();
                text += &format!(
                    "{head}Filename: {filename}\nSize: {}\nSHA256: {}\nDescription:{tail}\n",
                    deb.len(),
                    Digest::of(&deb).hex()
                );
                files.insert(format!("/{}/{filename}", self.dir), deb);
            }
            let dir = format!("{component}/binary-amd64");
            let mut all = vec![(String::new(), text.clone().into_bytes())];
            for suffix in &self.suffixes {
                let bytes = if *suffix == ".gz" { gzip(text.as_bytes()) } else { xz(text.as_bytes()) };
                all.push(((*suffix).into(), bytes));
            }
            for (suffix, bytes) in all {
                let hash = Digest::of(&bytes).hex();
                sums += &format!(" {hash} {} {dir}/Packages{suffix}\n", bytes.len());
                // Debian names the plain file in its Release but does not have it on its mirrors.
                if suffix.is_empty() && !self.suffixes.is_empty() {
                    continue;
                }
                if self.by_hash {
                    files.insert(format!("{base}/{dir}/by-hash/SHA256/{hash}"), bytes.clone());
                }
                files.insert(format!("{base}/{dir}/Packages{suffix}"), bytes);
            }
        }
        let components: Vec<&str> = self.components.keys().map(String::as_str).collect();
        let by_hash = if self.by_hash { "Acquire-By-Hash: yes\n" } else { "" };
        let release = format!(
            "{}Suite: {}\nCodename: {}\n{by_hash}Architectures: amd64 arm64\nComponents: {}\nSHA256:\n{sums}",
            self.head,
            self.name,
            self.name,
            components.join(" ")
        );
        for (name, bytes) in sign(&release) {
            files.insert(format!("{base}/{name}"), bytes);
        }
        server.state.lock().unwrap().files.extend(files);
    }
}
