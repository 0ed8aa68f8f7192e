//! A `Packages` index in a compact form that is read from disk and used as it is, without parsing.
//!
//! Layout (little endian): magic, record count, provides count, length of the strings; then the records, sorted by name
//! and then newest version first; then the provides entries, sorted by name; then the strings; then a CRC-32 of all
//! before it. A file with another magic, length or CRC is made again, so that neither a crash nor an older kiln matters.
//! Every offset is checked when it is used.

use std::cmp::Ordering;

use crate::deb822::Paragraphs;
use crate::error::{Error, Result};
use crate::relation::{self, Op};
use crate::{spec, version};

const MAGIC: &[u8; 8] = b"KILNDEB2";
const HEADER: usize = 8 + 4 + 4 + 8;
const SPANS: usize = 12;
const RECORD: usize = SPANS * 8 + 32 + 8 + 8 + 4 + 4;
const PROVIDE: usize = 8 + 8 + 4 + 4;
/// No archive has more than a tenth of this.
const MAX_PACKAGES: usize = 2_000_000;

const ESSENTIAL: u32 = 1;
const REQUIRED: u32 = 2;

/// The fields that are kept as text, in the order of a record.
const FIELDS: [&[u8]; SPANS] = [
    b"Package",
    b"Version",
    b"Architecture",
    b"Source",
    b"Pre-Depends",
    b"Depends",
    b"Provides",
    b"Conflicts",
    b"Breaks",
    b"Replaces",
    b"Filename",
    b"Priority",
];

/// One index in memory.
pub struct Index {
    bytes: Vec<u8>,
    records: usize,
    provides: usize,
}

/// One package of an index. All text is borrowed from it.
#[derive(Clone, Copy)]
pub struct Package<'a> {
    index: &'a Index,
    record: &'a [u8],
}

impl<'a> Package<'a> {
    fn text(&self, field: usize) -> &'a str {
        let at = |i: usize| u32_at(self.record, i) as usize;
        self.index.string(at(field * 8), at(field * 8 + 4))
    }

    /// Its name.
    pub fn name(&self) -> &'a str {
        self.text(0)
    }

    /// Its version.
    pub fn version(&self) -> &'a str {
        self.text(1)
    }

    /// Its architecture, or `all`.
    pub fn arch(&self) -> &'a str {
        self.text(2)
    }

    /// The source package it was built from.
    pub fn source(&self) -> &'a str {
        match self.text(3).split([' ', '(']).next().unwrap_or_default() {
            "" => self.name(),
            source => source,
        }
    }

    /// The clauses of `Pre-Depends` and `Depends`, with the field's name.
    pub fn depends(&self) -> impl Iterator<Item = (&'static str, &'a str)> + use<'a> {
        let pre = relation::clauses(self.text(4)).map(|clause| ("pre-depends on", clause));
        pre.chain(relation::clauses(self.text(5)).map(|clause| ("depends on", clause)))
    }

    /// The clauses of `Conflicts` and `Breaks`, with the field's verb.
    pub fn conflicts(&self) -> impl Iterator<Item = (&'static str, &'a str)> + use<'a> {
        let conflicts = relation::clauses(self.text(7)).map(|clause| ("conflicts with", clause));
        conflicts.chain(relation::clauses(self.text(8)).map(|clause| ("breaks", clause)))
    }

    /// What it provides: a name, and a version if it has one.
    pub fn provides(&self) -> impl Iterator<Item = (&'a str, Option<&'a str>)> + use<'a> {
        provided(self.text(6))
    }

    /// `Filename`: the path below the archive's address.
    pub fn filename(&self) -> &'a str {
        self.text(10)
    }

    /// `Priority`.
    pub fn priority(&self) -> &'a str {
        self.text(11)
    }

    /// SHA-256 of the `.deb`.
    pub fn sha256(&self) -> [u8; 32] {
        let at = SPANS * 8;
        self.record.get(at..at + 32).and_then(|bytes| bytes.try_into().ok()).unwrap_or_default()
    }

    /// Size of the `.deb`.
    pub fn size(&self) -> u64 {
        u64_at(self.record, SPANS * 8 + 32)
    }

    /// Space it takes, in bytes, as its maintainer's tools measured it.
    pub fn installed_size(&self) -> u64 {
        u64_at(self.record, SPANS * 8 + 40)
    }

    fn flags(&self) -> u32 {
        u32_at(self.record, SPANS * 8 + 48)
    }

    /// `Essential: yes`.
    pub fn is_essential(&self) -> bool {
        self.flags() & ESSENTIAL != 0
    }

    /// `Priority: required`.
    pub fn is_required(&self) -> bool {
        self.flags() & REQUIRED != 0
    }
}

impl Index {
    /// Takes a file's bytes, if they are a whole index of this format.
    pub fn from_bytes(bytes: Vec<u8>) -> Option<Self> {
        let (body, crc) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
        if body.get(..8)? != MAGIC || crc != crc32fast::hash(body).to_le_bytes() {
            return None;
        }
        let records = u32_at(body, 8) as usize;
        let provides = u32_at(body, 12) as usize;
        let strings = usize::try_from(u64_at(body, 16)).ok()?;
        let length = records.checked_mul(RECORD)?.checked_add(provides.checked_mul(PROVIDE)?)?.checked_add(strings)?;
        (body.len() == HEADER.checked_add(length)?).then_some(())?;
        Some(Self { bytes, records, provides })
    }

    /// The bytes for a file.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The package at a position.
    pub fn get(&self, position: usize) -> Option<Package<'_>> {
        if position >= self.records {
            return None;
        }
        let start = HEADER + position * RECORD;
        Some(Package { index: self, record: self.bytes.get(start..start + RECORD)? })
    }

    /// All packages.
    pub fn iter(&self) -> impl Iterator<Item = Package<'_>> {
        (0..self.records).filter_map(|i| self.get(i))
    }

    /// The positions of the packages of that name, newest first.
    pub fn named<'a>(&'a self, name: &str) -> impl Iterator<Item = usize> + use<'a> {
        let name_at = |i: usize| self.get(i).map_or("", |p| p.name());
        let first = partition(self.records, |i| name_at(i) < name);
        let same = (first..self.records).take_while(|i| name_at(*i) == name).count();
        first..first + same
    }

    /// The positions of the packages that provide a name, and the provided version.
    pub fn providing<'a>(&'a self, name: &str) -> impl Iterator<Item = (usize, Option<&'a str>)> + use<'a> {
        let first = partition(self.provides, |i| self.provide(i).0 < name);
        let same = (first..self.provides).take_while(|i| self.provide(*i).0 == name).count();
        (first..first + same)
            .map(|i| self.provide(i))
            .map(|(_, version, package)| (package, Some(version).filter(|v| !v.is_empty())))
    }

    fn provide(&self, i: usize) -> (&str, &str, usize) {
        let start = HEADER + self.records * RECORD + i * PROVIDE;
        let entry = self.bytes.get(start..start + PROVIDE).unwrap_or(&[0; PROVIDE]);
        let at = |i: usize| u32_at(entry, i) as usize;
        (self.string(at(0), at(4)), self.string(at(8), at(12)), at(16))
    }

    fn string(&self, offset: usize, length: usize) -> &str {
        let start = HEADER + self.records * RECORD + self.provides * PROVIDE + offset;
        self.bytes.get(start..start + length).and_then(|b| std::str::from_utf8(b).ok()).unwrap_or_default()
    }

    /// Builds an index from a `Packages` text; packages of another architecture are left out.
    pub fn parse(what: &str, text: &[u8], arch: &str) -> Result<Self> {
        if text.len() > u32::MAX as usize {
            return Err(Error::TooBig { what: what.to_owned(), limit: u64::from(u32::MAX) });
        }
        let mut builder = Builder { text, entries: Vec::new() };
        for paragraph in Paragraphs::new(text) {
            let entry = builder.entry(&paragraph, arch).map_err(|reason| {
                let name = paragraph.get("Package").unwrap_or("a package without a name");
                let reason = format!("{name} (line {}): {reason}", paragraph.line());
                Error::Malformed { what: what.to_owned(), reason }
            })?;
            builder.entries.extend(entry);
            if builder.entries.len() > MAX_PACKAGES {
                return Err(Error::TooBig { what: what.to_owned(), limit: MAX_PACKAGES as u64 });
            }
        }
        Ok(builder.finish())
    }
}

/// The first position in `0..count` where `before` no longer holds.
fn partition(count: usize, before: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if before(middle) { low = middle + 1 } else { high = middle }
    }
    low
}

fn provided(field: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    relation::clauses(field).filter_map(|clause| {
        let relation = relation::Relation::parse(clause)?;
        match relation.version {
            None => Some((relation.name, None)),
            Some((Op::Equal, version)) => Some((relation.name, Some(version))),
            Some(_) => None,
        }
    })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

struct Entry<'a> {
    fields: [&'a str; SPANS],
    sha256: [u8; 32],
    size: u64,
    installed: u64,
    flags: u32,
}

struct Builder<'a> {
    text: &'a [u8],
    entries: Vec<Entry<'a>>,
}

impl<'a> Builder<'a> {
    fn entry(&self, paragraph: &crate::deb822::Paragraph<'a>, arch: &str) -> Result<Option<Entry<'a>>, String> {
        let mut entry = Entry { fields: [""; SPANS], sha256: [0; 32], size: u64::MAX, installed: 0, flags: 0 };
        let mut hashed = false;
        for field in paragraph.fields() {
            let (name, value) = field.map_err(|error| error.to_string())?;
            // The first letter decides most cases; the others are few.
            let slot = FIELDS.iter().position(|known| known[0] == name[0] && *known == name);
            let text = || std::str::from_utf8(value).map_err(|_| "a field is not UTF-8".to_owned());
            if let Some(slot) = slot {
                entry.fields[slot] = text()?;
                continue;
            }
            match name {
                b"SHA256" => {
                    let hash = crate::files::unhex(text()?).ok_or("SHA256 is not 64 hex digits")?;
                    (entry.sha256, hashed) = (hash, true);
                }
                b"Size" => entry.size = text()?.parse().map_err(|_| "Size is not a number")?,
                b"Installed-Size" => entry.installed = text()?.parse::<u64>().unwrap_or(0).saturating_mul(1024),
                b"Essential" if value == b"yes" => entry.flags |= ESSENTIAL,
                _ => {}
            }
        }
        let [name, version, found, ..] = entry.fields;
        if found != arch && found != "all" {
            return Ok(None);
        }
        if !spec::is_package_name(name) || !version::is_valid(version) {
            return Err(format!("{name:?} {version:?} is not a name and version"));
        }
        if !hashed || entry.size == u64::MAX {
            return Err("it has no SHA256 or no Size".into());
        }
        if !is_path(entry.fields[10]) {
            return Err(format!("Filename {:?} is not a path in the archive", entry.fields[10]));
        }
        if entry.fields[11] == "required" {
            entry.flags |= REQUIRED;
        }
        Ok(Some(entry))
    }

    fn finish(mut self) -> Index {
        self.entries
            .sort_by(|a, b| a.fields[0].cmp(b.fields[0]).then_with(|| version::compare(b.fields[1], a.fields[1])));
        let mut provides: Vec<(&str, &str, u32)> = Vec::new();
        for (position, entry) in self.entries.iter().enumerate() {
            let of_entry = provided(entry.fields[6]);
            provides.extend(of_entry.map(|(name, version)| (name, version.unwrap_or(""), position as u32)));
        }
        provides.sort_unstable();
        let mut strings = Strings { text: self.text, bytes: Vec::with_capacity(self.text.len() / 3) };
        let mut body = Vec::with_capacity(self.entries.len() * RECORD + provides.len() * PROVIDE);
        for entry in &self.entries {
            for field in entry.fields {
                strings.put(field, &mut body);
            }
            body.extend_from_slice(&entry.sha256);
            body.extend_from_slice(&entry.size.to_le_bytes());
            body.extend_from_slice(&entry.installed.to_le_bytes());
            body.extend_from_slice(&entry.flags.to_le_bytes());
            body.extend_from_slice(&[0; 4]);
        }
        for (name, version, position) in &provides {
            strings.put(name, &mut body);
            strings.put(version, &mut body);
            body.extend_from_slice(&position.to_le_bytes());
            body.extend_from_slice(&[0; 4]);
        }
        let mut bytes = Vec::with_capacity(HEADER + body.len() + strings.bytes.len() + 4);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&(self.entries.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&(provides.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&(strings.bytes.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&body);
        bytes.extend_from_slice(&strings.bytes);
        let crc = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        Index { bytes, records: self.entries.len(), provides: provides.len() }
    }
}

struct Strings<'a> {
    text: &'a [u8],
    bytes: Vec<u8>,
}

impl Strings<'_> {
    /// Appends a string and writes its span. What is put never exceeds the text twice over, which fits 32 bits for any
    /// real archive; beyond that the span is empty and the package unusable, not wrong.
    fn put(&mut self, text: &str, out: &mut Vec<u8>) {
        debug_assert!(text.len() <= self.text.len());
        let (offset, length) = match u32::try_from(self.bytes.len()) {
            Ok(offset) => {
                self.bytes.extend_from_slice(text.as_bytes());
                (offset, text.len() as u32)
            }
            Err(_) => (0, 0),
        };
        out.extend_from_slice(&offset.to_le_bytes());
        out.extend_from_slice(&length.to_le_bytes());
    }
}

/// A path that stays below the archive's address when appended to it.
pub(crate) fn is_path(path: &str) -> bool {
    let plain = path.bytes().all(|c| c.is_ascii_graphic() && !b"?#%\\".contains(&c));
    plain && !path.is_empty() && path.len() < 1024 && path.split('/').all(|part| !part.is_empty() && part != "..")
}

/// Orders packages of one name over several indexes: newest first.
pub fn newest_first(a: &Package<'_>, b: &Package<'_>) -> Ordering {
    version::compare(b.version(), a.version())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paragraph(name: &str, version: &str, rest: &str) -> String {
        format!(
            "Package: {name}\nVersion: {version}\nArchitecture: amd64\n{rest}Filename: pool/{name}.deb\nSize: 3\nSHA256: {}\nDescription: x\n y\n\n",
            "ab".repeat(32)
        )
    }

    #[test]
    fn finds_names_versions_and_provides() {
        let text = paragraph("bb", "1.2", "Provides: v (= 3), w\nEssential: yes\nPriority: required\n")
            + &paragraph("aa", "1", "Source: src (1.0)\nInstalled-Size: 2\nDepends: x, y | z\nPre-Depends: p\n")
            + &paragraph("bb", "1.10", "")
            + &paragraph("other", "1", "").replace("amd64", "arm64");
        let parsed = Index::parse("t", text.as_bytes(), "amd64").unwrap();
        let index = Index::from_bytes(parsed.as_bytes().to_vec()).unwrap();
        assert_eq!(index.records, 3);
        let versions: Vec<_> = index.named("bb").map(|i| index.get(i).unwrap().version()).collect();
        assert_eq!(versions, ["1.10", "1.2"]);
        assert_eq!(index.named("a").count() + index.named("zz").count(), 0);
        assert_eq!(
            index.providing("v").map(|(i, v)| (index.get(i).unwrap().version(), v)).collect::<Vec<_>>(),
            [("1.2", Some("3"))]
        );
        assert_eq!(index.providing("w").next().unwrap().1, None);
        let aa = index.get(0).unwrap();
        assert_eq!((aa.source(), aa.installed_size(), aa.size(), aa.sha256()), ("src", 2048, 3, [0xab; 32]));
        assert_eq!(aa.depends().map(|d| d.1).collect::<Vec<_>>(), ["p", "x", "y | z"]);
        let old = index.get(2).unwrap();
        assert!(old.is_essential() && old.is_required() && !aa.is_essential());
    }

    #[test]
    fn bad_packages_are_named() {
        let fails = |text: String| Index::parse("t", text.as_bytes(), "amd64").err().unwrap().to_string();
        assert!(fails(paragraph("aa", "1", "").replace("pool/", "../")).contains("aa (line 1): Filename"));
        assert!(fails(paragraph("aa", "1/2", "")).contains("not a name and version"));
        assert!(fails(paragraph("aa", "1", "").replace("SHA256", "SHA1")).contains("no SHA256"));
        assert!(fails(paragraph("aa", "1", "").replace("Size: 3", "Size: -3")).contains("not a number"));
        assert!(fails(paragraph("aa", "1", "nonsense\n")).contains("line 4"));
    }

    #[test]
    fn a_damaged_file_is_no_index() {
        let good = Index::parse("t", paragraph("aa", "1", "").as_bytes(), "amd64").unwrap().bytes;
        for length in 0..good.len() {
            assert!(Index::from_bytes(good[..length].to_vec()).is_none());
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(Index::from_bytes(bad).is_none(), "{at}");
        }
        assert!(Index::from_bytes(good).is_some());
    }

    #[test]
    fn paths_stay_below_the_archive() {
        assert!(is_path("pool/main/libc++/a_1.2+b~c_all.deb") && is_path("./a.deb"));
        for bad in ["", "/a", "a//b", "a/../b", "..", "a b", "a%2e%2e", "a?b", "a\nb"] {
            assert!(!is_path(bad), "{bad:?}");
        }
    }
}
