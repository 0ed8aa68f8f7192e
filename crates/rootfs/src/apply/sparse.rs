//! Sparse files: the old GNU form, and PAX 0.0, 0.1 and 1.0.

use super::header::{BLOCK, Block, number};
use super::records::SparseRecords;

/// As in Go; a map of this many pieces takes 16 MiB.
pub(super) const MAX_PIECES: usize = 1 << 20;

/// Where data lie in a file: sorted, without overlap, inside the size.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SparseMap {
    /// Offset and length of each piece.
    pub pieces: Vec<(u64, u64)>,
}

impl SparseMap {
    /// Checks a map against the file's size and the number of bytes that the archive stores.
    pub(super) fn check(pieces: Vec<(u64, u64)>, size: u64, stored: u64) -> Result<Self, &'static str> {
        let mut end = 0_u64;
        let mut total = 0_u64;
        for &(offset, length) in &pieces {
            if offset < end {
                return Err("the sparse map overlaps itself");
            }
            end = offset.checked_add(length).ok_or("the sparse map overflows")?;
            total += length; // at most `end`
        }
        if end > size {
            return Err("the sparse map goes beyond the file");
        }
        if total != stored {
            return Err("the sparse map does not match the stored data");
        }
        Ok(Self { pieces })
    }
}

/// Offsets and lengths by turns.
pub(super) fn pairs(numbers: &[u64]) -> Result<Vec<(u64, u64)>, &'static str> {
    if !numbers.len().is_multiple_of(2) || numbers.len() / 2 > MAX_PIECES {
        return Err("the sparse map is malformed");
    }
    Ok(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

/// The part of an old GNU map in the header (`header`) or in an extension block: pieces, and whether more follow.
pub(super) fn old_gnu(block: &Block, header: bool, pieces: &mut Vec<(u64, u64)>) -> Result<bool, &'static str> {
    let (start, count) = if header { (386, 4) } else { (0, 21) };
    for index in 0..count {
        let at = start + index * 24;
        if block[at] == 0 {
            break;
        }
        let offset = number(&block[at..at + 12]).and_then(|n| u64::try_from(n).ok());
        let length = number(&block[at + 12..at + 24]).and_then(|n| u64::try_from(n).ok());
        let (Some(offset), Some(length)) = (offset, length) else { return Err("the sparse map is malformed") };
        pieces.push((offset, length));
    }
    if pieces.len() > MAX_PIECES {
        return Err("the sparse map is too long");
    }
    Ok(block[start + count * 24] != 0)
}

/// The real size in an old GNU header.
pub(super) fn old_gnu_size(block: &Block) -> Option<u64> {
    number(&block[483..495]).and_then(|n| u64::try_from(n).ok())
}

/// Which PAX form the records announce.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PaxForm {
    None,
    /// The map is in the records.
    InRecords,
    /// The map precedes the data.
    InData,
}

pub(super) fn pax_form(records: &SparseRecords) -> Result<PaxForm, &'static str> {
    match (records.major, records.minor) {
        (Some(1), Some(0)) => Ok(PaxForm::InData),
        (Some(0), Some(0 | 1)) => Ok(PaxForm::InRecords),
        (None, None) if records.has_map => Ok(PaxForm::InRecords),
        (None, None) => Ok(PaxForm::None),
        _ => Err("an unknown version of the sparse format"),
    }
}

/// Reads the map of the 1.0 form, which is decimal numbers, one a line, padded to a whole block.
#[derive(Default)]
pub(super) struct InDataMap {
    numbers: Vec<u64>,
    current: Option<u64>,
    wanted: Option<usize>,
}

impl InDataMap {
    /// Takes one block; true when the map is complete.
    pub fn feed(&mut self, block: &[u8; BLOCK]) -> Result<bool, &'static str> {
        const BAD: &str = "the sparse map is malformed";
        for &byte in block {
            if self.complete() {
                return Ok(true);
            }
            match byte {
                b'0'..=b'9' => {
                    let digit = u64::from(byte - b'0');
                    let value = self.current.unwrap_or(0).checked_mul(10).and_then(|v| v.checked_add(digit));
                    self.current = Some(value.ok_or(BAD)?);
                }
                b'\n' => self.line()?,
                _ => return Err(BAD),
            }
        }
        Ok(self.complete())
    }

    fn line(&mut self) -> Result<(), &'static str> {
        let value = self.current.take().ok_or("the sparse map is malformed")?;
        match self.wanted {
            Some(_) => self.numbers.push(value),
            None => {
                let count = usize::try_from(value).ok().filter(|count| *count <= MAX_PIECES);
                self.wanted = Some(2 * count.ok_or("the sparse map is too long")?);
            }
        }
        Ok(())
    }

    fn complete(&self) -> bool {
        self.wanted == Some(self.numbers.len())
    }

    pub fn pieces(self) -> Result<Vec<(u64, u64)>, &'static str> {
        pairs(&self.numbers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_maps() {
        let check = |pieces: &[(u64, u64)], size, stored| SparseMap::check(pieces.to_vec(), size, stored).is_ok();
        assert!(check(&[(0, 1), (5, 5)], 10, 6));
        assert!(check(&[], 1 << 50, 0));
        assert!(check(&[(10, 0)], 10, 0));
        assert!(!check(&[(0, 5), (4, 1)], 10, 6));
        assert!(!check(&[(u64::MAX, 2)], u64::MAX, 2));
        assert!(!check(&[(0, 11)], 10, 11));
        assert!(!check(&[(0, 5)], 10, 6));
    }

    #[test]
    fn map_in_data() {
        let block = |text: &str| {
            let mut block = [0; BLOCK];
            block[..text.len()].copy_from_slice(text.as_bytes());
            block
        };
        let mut map = InDataMap::default();
        assert!(map.feed(&block("2\n0\n512\n4096\n10\n")).expect("map"));
        assert_eq!(map.pieces().expect("pieces"), [(0, 512), (4096, 10)]);
        assert!(InDataMap::default().feed(&block("99999999\n")).is_err());
        assert!(InDataMap::default().feed(&block("-1\n")).is_err());
        assert!(InDataMap::default().feed(&block("\n")).is_err());
        assert!(InDataMap::default().feed(&block("1\n99999999999999999999999\n1\n")).is_err());
    }
}
