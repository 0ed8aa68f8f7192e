//! Deflate blocks that can be joined: libdeflate compresses a piece of input at once, better and faster than a streaming
//! library, but always ends the stream with it. This module finds the last block of such a piece, takes its "final" mark
//! away and pads to a byte boundary, so that another piece can follow.
//!
//! To find the last block, the Huffman codes have to be followed (nothing else tells where a block ends), but nothing has
//! to be decompressed: that is twenty times faster than the compression itself.

use std::io;

/// The empty stored block after its three header bits.
const SYNC: [u8; 4] = [0, 0, 0xff, 0xff];

/// Takes the mark of the final block away and ends the piece at a byte boundary, as a sync flush does.
pub(crate) fn make_joinable(piece: &mut Vec<u8>) -> io::Result<()> {
    let (last_block, end) =
        find_end(piece).ok_or_else(|| io::Error::other("the compressor made a malformed stream"))?;
    piece[last_block / 8] &= !(1 << (last_block % 8));
    // The stored block's header is three zero bits, and its length starts at a byte boundary. The padding is zero already.
    if end.next_multiple_of(8) - end < 3 {
        piece.push(0);
    }
    piece.extend_from_slice(&SYNC);
    Ok(())
}

/// The bit positions of the final block's header and of the end of the stream, which must be in the last byte.
fn find_end(piece: &[u8]) -> Option<(usize, usize)> {
    let mut bits = Bits { bytes: piece, next: 0, buffer: 0, count: 0, taken: 0 };
    let mut codes = Codes::new();
    loop {
        let start = bits.taken;
        let is_final = bits.take(1)? == 1;
        match bits.take(2)? {
            0 => bits.skip_stored()?,
            1 => {
                codes.set_fixed()?;
                codes.follow(&mut bits)?;
            }
            2 => {
                codes.read_dynamic(&mut bits)?;
                codes.follow(&mut bits)?;
            }
            _ => return None,
        }
        if is_final {
            return (bits.taken.div_ceil(8) == piece.len()).then_some((start, bits.taken));
        }
    }
}

/// Reads bits, least significant first. Beyond the end there are zeros; what is read there is found out at the end of a
/// block.
struct Bits<'a> {
    bytes: &'a [u8],
    next: usize,
    buffer: u64,
    count: usize,
    taken: usize,
}

impl Bits<'_> {
    /// Makes at least 56 bits available.
    fn refill(&mut self) {
        if let Some(eight) = self.bytes.get(self.next..self.next + 8).and_then(|b| <[u8; 8]>::try_from(b).ok()) {
            self.buffer |= u64::from_le_bytes(eight) << self.count;
            let bytes = (63 - self.count) / 8;
            self.next += bytes;
            self.count += bytes * 8;
            return;
        }
        while self.count < 56 {
            let byte = self.bytes.get(self.next).copied().unwrap_or(0);
            self.next += 1;
            self.buffer |= u64::from(byte) << self.count;
            self.count += 8;
        }
    }

    fn peek(&self, count: usize) -> usize {
        (self.buffer & ((1 << count) - 1)) as usize
    }

    /// At most what the last refill made available.
    fn drop(&mut self, count: usize) {
        self.buffer >>= count;
        self.count -= count;
        self.taken += count;
    }

    fn take(&mut self, count: usize) -> Option<usize> {
        self.refill();
        let value = self.peek(count);
        self.drop(count);
        self.inside().then_some(value)
    }

    fn inside(&self) -> bool {
        self.taken <= self.bytes.len() * 8
    }

    fn skip_stored(&mut self) -> Option<()> {
        self.take(self.taken.next_multiple_of(8) - self.taken)?;
        let length = self.take(16)?;
        if self.take(16)? != length ^ 0xffff {
            return None;
        }
        let at = self.taken / 8 + length;
        *self = Self { bytes: self.bytes, next: at, buffer: 0, count: 0, taken: at * 8 };
        self.inside().then_some(())
    }
}

const MAX_CODE: usize = 15;
/// An entry for a bit pattern that is no code.
const NONE: u16 = u16::MAX;
/// Entry flags, above the number of bits to take.
const MATCH: u16 = 0x100;
const END: u16 = 0x200;

/// For each pattern of `width` bits, how many bits the code at its beginning takes with its extra bits, and what it is.
struct Table {
    entries: Vec<u16>,
    width: usize,
}

impl Table {
    fn new() -> Self {
        Self { entries: Vec::new(), width: 0 }
    }

    /// From the lengths of the codes; `meaning` gives the extra bits and flags of a symbol.
    fn fill(&mut self, lengths: &[u8], meaning: impl Fn(usize) -> u16) -> Option<()> {
        let mut next = [0_usize; MAX_CODE + 2];
        for &length in lengths.iter().filter(|length| **length > 0) {
            next[usize::from(length) + 1] += 1;
        }
        self.width = (1..=MAX_CODE).rev().find(|length| next[length + 1] > 0).unwrap_or(1);
        // The first code of each length: of canonical codes, shorter ones come first.
        for length in 1..=MAX_CODE {
            next[length + 1] = (next[length] + next[length + 1]) << 1;
        }
        self.entries.clear();
        self.entries.resize(1 << self.width, NONE);
        for (symbol, &length) in lengths.iter().enumerate().filter(|(_, length)| **length > 0) {
            let length = usize::from(length);
            let code = next[length];
            next[length] += 1;
            if code >> length != 0 {
                return None;
            }
            let first = code.reverse_bits() >> (usize::BITS as usize - length);
            let entry = length as u16 + meaning(symbol);
            for pattern in (first..1 << self.width).step_by(1 << length) {
                self.entries[pattern] = entry;
            }
        }
        Some(())
    }

    fn look(&self, bits: &Bits<'_>) -> u16 {
        self.entries.get(bits.peek(self.width)).copied().unwrap_or(NONE)
    }
}

/// The codes of a block.
struct Codes {
    literals: Table,
    distances: Table,
}

impl Codes {
    fn new() -> Self {
        Self { literals: Table::new(), distances: Table::new() }
    }

    fn set(&mut self, literals: &[u8], distances: &[u8]) -> Option<()> {
        self.literals.fill(literals, |symbol| match symbol {
            0..=255 => 0,
            256 => END,
            257..=264 | 285 => MATCH,
            _ => MATCH + (symbol as u16 - 261) / 4,
        })?;
        self.distances.fill(distances, |symbol| (symbol as u16 / 2).saturating_sub(1))
    }

    fn set_fixed(&mut self) -> Option<()> {
        let mut literals = [8; 288];
        literals[144..256].fill(9);
        literals[256..280].fill(7);
        self.set(&literals, &[5; 30])
    }

    fn read_dynamic(&mut self, bits: &mut Bits<'_>) -> Option<()> {
        const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
        let literals = bits.take(5)? + 257;
        let distances = bits.take(5)? + 1;
        let mut lengths = [0; 19];
        for &symbol in &ORDER[..bits.take(4)? + 4] {
            lengths[symbol] = bits.take(3)? as u8;
        }
        let mut table = Table::new();
        // The symbol itself is wanted here: it goes where the flags are.
        table.fill(&lengths, |symbol| (symbol as u16) << 8)?;
        let mut all = Vec::with_capacity(literals + distances);
        while all.len() < literals + distances {
            bits.refill();
            let entry = table.look(bits);
            if entry == NONE {
                return None;
            }
            bits.drop(usize::from(entry & 0xff));
            let (value, times) = match entry >> 8 {
                16 => (*all.last()?, bits.take(2)? + 3),
                17 => (0, bits.take(3)? + 3),
                18 => (0, bits.take(7)? + 11),
                length => (length as u8, 1),
            };
            all.extend(std::iter::repeat_n(value, times));
        }
        if all.len() != literals + distances {
            return None;
        }
        self.set(&all[..literals], &all[literals..])
    }

    /// Goes to the end of the block.
    fn follow(&self, bits: &mut Bits<'_>) -> Option<()> {
        loop {
            // Enough for a length with its extra bits and a distance with its own: 15 + 5 + 15 + 13.
            bits.refill();
            let entry = self.literals.look(bits);
            if entry == NONE {
                return None;
            }
            bits.drop(usize::from(entry & 0xff));
            if entry & MATCH != 0 {
                let distance = self.distances.look(bits);
                if distance == NONE {
                    return None;
                }
                bits.drop(usize::from(distance));
            } else if entry & END != 0 {
                return bits.inside().then_some(());
            }
            if !bits.inside() {
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Read;

    fn deflate(data: &[u8], level: i32) -> Vec<u8> {
        let level = libdeflater::CompressionLvl::new(level).expect("level");
        let mut compressor = libdeflater::Compressor::new(level);
        let mut out = vec![0; compressor.deflate_compress_bound(data.len())];
        let length = compressor.deflate_compress(data, &mut out).expect("deflate");
        out.truncate(length);
        out
    }

    /// By another library.
    fn inflate(data: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        flate2::read::DeflateDecoder::new(data).read_to_end(&mut out)?;
        Ok(out)
    }

    fn check(data: &[u8], level: i32) {
        let mut joined = Vec::new();
        for piece in data.chunks(data.len().div_ceil(3).max(1)) {
            let mut piece = deflate(piece, level);
            make_joinable(&mut piece).expect("joinable");
            joined.extend(piece);
        }
        joined.extend([3, 0]);
        assert!(inflate(&joined).expect("inflate") == data, "{} bytes at level {level}", data.len());
    }

    #[test]
    fn all_kinds_of_blocks() {
        let noise: Vec<u8> = (0..200_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let words: Vec<u8> = b"the quick brown fox ".repeat(5000);
        let single = vec![7; 100_000];
        for data in [&b""[..], b"a", b"ab", b"abcabcabcabc", &noise, &words, &single, &[&noise[..], &words].concat()] {
            for level in [0, 1, 3, 6, 9, 12] {
                check(data, level);
            }
        }
    }

    #[test]
    fn malformed_streams_are_refused() {
        let good = deflate(&b"hello hello hello".repeat(100), 6);
        for cut in 0..good.len() {
            assert!(find_end(&good[..cut]).is_none(), "{cut}");
        }
        assert!(find_end(&[&good[..], &[0]].concat()).is_none());
        assert!(find_end(&[0xff; 40]).is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn any_data(parts in prop::collection::vec((any::<u8>(), 1_usize..3000, any::<bool>()), 0..30), level in 0..13) {
            let mut data = Vec::new();
            for (byte, length, run) in parts {
                data.extend((0..length).map(|i| if run { byte } else { byte.wrapping_mul(((i * i) >> 3) as u8) }));
            }
            check(&data, level);
        }

        #[test]
        fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = find_end(&noise);
        }
    }
}
