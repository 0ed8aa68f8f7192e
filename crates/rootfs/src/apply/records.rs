//! PAX extended header records.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use crate::stat::Time;

/// What the records of one extended header say, where they say something.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<i64>,
    pub uid: Option<i64>,
    pub gid: Option<i64>,
    pub mtime: Option<Time>,
    pub xattrs: Vec<(OsString, Vec<u8>)>,
    pub sparse: SparseRecords,
}

/// The `GNU.sparse.*` records.
#[derive(Debug, Default)]
pub(super) struct SparseRecords {
    pub major: Option<i64>,
    pub minor: Option<i64>,
    pub name: Option<Vec<u8>>,
    pub real_size: Option<i64>,
    /// Offsets and lengths by turns, from `GNU.sparse.map` or its older form in single records.
    pub map: Vec<u64>,
    /// There was one of the records that announce a map, even if it is empty.
    pub has_map: bool,
}

const SCHILY_XATTR: &[u8] = b"SCHILY.xattr.";
const LIBARCHIVE_XATTR: &[u8] = b"LIBARCHIVE.xattr.";

/// Parses `<length> <key>=<value>\n` records; the length counts the whole record.
pub(super) fn parse(mut data: &[u8]) -> Result<Records, &'static str> {
    let mut records = Records::default();
    while !data.is_empty() {
        let (key, value, rest) = split_record(data).ok_or("an extended header record is malformed")?;
        records.set(key, value)?;
        data = rest;
    }
    Ok(records)
}

fn split_record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = data.iter().take(20).position(|&b| b == b' ')?;
    let length = usize::try_from(decimal(&data[..space])?).ok()?;
    // Shortest: the digits, the space, a key, "=" and the newline.
    if length < space + 3 || length > data.len() || data[length - 1] != b'\n' {
        return None;
    }
    let record = &data[space + 1..length - 1];
    let equals = record.iter().position(|&b| b == b'=')?;
    let (key, value) = (&record[..equals], &record[equals + 1..]);
    if key.is_empty() || key.contains(&0) {
        return None;
    }
    Some((key, value, &data[length..]))
}

fn decimal(digits: &[u8]) -> Option<i64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn count(value: &[u8]) -> Result<i64, &'static str> {
    decimal(value).ok_or("a number in the extended header is malformed")
}

impl Records {
    /// An empty value takes a record back.
    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        let some = !value.is_empty();
        match key {
            b"path" => self.path = some.then(|| name(value)).transpose()?,
            b"linkpath" => self.link = some.then(|| name(value)).transpose()?,
            b"size" => self.size = some.then(|| count(value)).transpose()?,
            b"uid" => self.uid = some.then(|| count(value)).transpose()?,
            b"gid" => self.gid = some.then(|| count(value)).transpose()?,
            b"mtime" => {
                self.mtime =
                    some.then(|| time(value).ok_or("a time in the extended header is malformed")).transpose()?;
            }
            _ if key.starts_with(b"GNU.sparse.") => self.sparse.set(&key[11..], value)?,
            _ => {
                if let Some(attr) = key.strip_prefix(SCHILY_XATTR) {
                    self.xattrs.push((OsString::from_vec(attr.to_vec()), value.to_vec()));
                } else if let Some(attr) = key.strip_prefix(LIBARCHIVE_XATTR) {
                    self.libarchive(attr, value)?;
                }
            }
        }
        Ok(())
    }

    /// libarchive writes attributes twice, its own form being base64 with a percent-encoded name; the other one wins.
    fn libarchive(&mut self, attr: &[u8], value: &[u8]) -> Result<(), &'static str> {
        let attr = OsString::from_vec(percent_decode(attr));
        if !self.xattrs.iter().any(|(known, _)| *known == attr) {
            let value = base64(value).ok_or("an attribute in the extended header is malformed")?;
            self.xattrs.insert(0, (attr, value)); // a later SCHILY record of the same name is set after it
        }
        Ok(())
    }
}

impl SparseRecords {
    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        match key {
            b"major" => self.major = Some(count(value)?),
            b"minor" => self.minor = Some(count(value)?),
            b"name" => self.name = Some(name(value)?),
            b"realsize" | b"size" => self.real_size = Some(count(value)?),
            b"numblocks" => self.has_map = true,
            b"offset" | b"numbytes" => {
                self.has_map = true;
                self.map.push(count(value)?.unsigned_abs());
            }
            b"map" => {
                self.has_map = true;
                self.map.clear();
                for part in value.split(|&b| b == b',').filter(|part| !part.is_empty()) {
                    self.map.push(count(part)?.unsigned_abs());
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn name(value: &[u8]) -> Result<Vec<u8>, &'static str> {
    if value.contains(&0) {
        return Err("a name in the extended header has a NUL byte");
    }
    Ok(value.to_vec())
}

/// `[-]seconds[.fraction]`; digits beyond nanoseconds are dropped.
fn time(value: &[u8]) -> Option<Time> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let nanos: u32 = digits.parse().ok()?;
    match (whole.starts_with('-'), nanos) {
        (true, 1..) => Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos)),
        _ => Some((seconds, nanos)),
    }
}

fn percent_decode(text: &[u8]) -> Vec<u8> {
    let digit = |b: Option<&u8>| b.and_then(|b| (*b as char).to_digit(16));
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        match (text[at], digit(text.get(at + 1)), digit(text.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, ..) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

/// Standard alphabet, padding optional.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0_u32, 0);
    for &byte in text.iter().take_while(|b| **b != b'=') {
        let six = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(six)) & 0xffff;
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_and_their_lengths() {
        let records = parse(b"12 path=a/b\n22 mtime=1234.5678901\n17 linkpath=\xff\xfe/x\n").expect("records");
        assert_eq!(records.path.as_deref(), Some(&b"a/b"[..]));
        assert_eq!(records.mtime, Some((1234, 567_890_100)));
        assert_eq!(records.link.as_deref(), Some(&b"\xff\xfe/x"[..]));
        for bad in [
            &b"99 path=a\n"[..],
            b"8 path=a\n",
            b"3 \n",
            b"0 path=a\n",
            b"-1 path=a\n",
            b"11 path=a\n",
            b"99999999999999999999 a=b\n",
            b"12 path=a\0b\n",
            b"7 =ab\n\n",
            b"9 uid=-5\n",
            b"12 size=1e9\n",
        ] {
            assert!(parse(bad).is_err(), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn times_before_the_epoch() {
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"-0.5"), Some((-1, 500_000_000)));
        assert_eq!(time(b"7"), Some((7, 0)));
        assert_eq!(time(b"7.1234567899"), Some((7, 123_456_789)));
        assert_eq!(time(b"1.-5"), None);
        assert_eq!(time(b""), None);
    }

    #[test]
    fn libarchive_attributes() {
        let records = parse(b"36 LIBARCHIVE.xattr.user.a%20b=aGk=\n").expect("records");
        assert_eq!(records.xattrs, [(OsString::from("user.a b"), b"hi".to_vec())]);
    }
}
