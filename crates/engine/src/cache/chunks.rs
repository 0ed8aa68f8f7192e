//! A stream in pieces that stay the same where the stream does.
//!
//! Where a piece ends is told by the bytes before its end (a gear hash over the last 64), so an insertion changes the pieces
//! it touches and none of those after.

use std::io::{self, Write};

/// No piece but the last is smaller.
const MIN: usize = 256 << 10;
/// None is larger.
pub const MAX: usize = 4 << 20;
/// One position in 2^20 ends a piece: pieces have 1.25 MiB on average.
const BITS: u32 = 20;

/// The random numbers of the hash: splitmix64. They are part of the format: others would make other pieces.
const GEAR: [u64; 256] = {
    let mut table = [0; 256];
    let mut state: u64 = 0x6b69_6c6e;
    let mut i = 0;
    while i < 256 {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        table[i] = z ^ (z >> 31);
        i += 1;
    }
    table
};

/// Takes a stream and gives its pieces to a function.
pub struct Chunker<F: FnMut(Vec<u8>) -> io::Result<()>> {
    emit: F,
    pending: Vec<u8>,
    /// So many bytes of `pending` were looked at.
    seen: usize,
    hash: u64,
}

impl<F: FnMut(Vec<u8>) -> io::Result<()>> Chunker<F> {
    /// Nothing was written yet.
    pub fn new(emit: F) -> Self {
        Self { emit, pending: Vec::new(), seen: 0, hash: 0 }
    }

    /// Gives out the last piece.
    pub fn finish(mut self) -> io::Result<()> {
        if self.pending.is_empty() { Ok(()) } else { (self.emit)(self.pending) }
    }

    /// The end of the first piece, if it is here.
    fn boundary(&mut self) -> Option<usize> {
        // What is before the smallest end has no influence beyond the hash's 64 bytes.
        let mut at = self.seen.max(MIN - 64);
        let end = self.pending.len().min(MAX);
        while at < end {
            self.hash = (self.hash << 1).wrapping_add(GEAR[usize::from(self.pending[at])]);
            at += 1;
            if at >= MIN && self.hash >> (64 - BITS) == 0 {
                return Some(at);
            }
        }
        self.seen = at.min(self.pending.len());
        (self.pending.len() >= MAX).then_some(MAX)
    }
}

impl<F: FnMut(Vec<u8>) -> io::Result<()>> Write for Chunker<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(bytes);
        while self.pending.len() >= MIN {
            let Some(end) = self.boundary() else { break };
            let rest = self.pending.split_off(end);
            (self.seen, self.hash) = (0, 0);
            (self.emit)(std::mem::replace(&mut self.pending, rest))?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(len: usize) -> Vec<u8> {
        let mut state = 7_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as u8
        };
        (0..len).map(|_| next()).collect()
    }

    fn chunks(bytes: &[u8], step: usize) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        let mut chunker = Chunker::new(|c| {
            all.push(c);
            Ok(())
        });
        bytes.chunks(step).for_each(|part| chunker.write_all(part).unwrap());
        chunker.finish().unwrap();
        all
    }

    #[test]
    fn pieces_depend_on_the_bytes_alone() {
        let bytes = random(9 << 20);
        let whole = chunks(&bytes, bytes.len());
        assert_eq!(whole, chunks(&bytes, 1000));
        assert_eq!(whole.concat(), bytes);
        assert!(whole.iter().all(|c| c.len() <= MAX));
        assert!(whole[..whole.len() - 1].iter().all(|c| c.len() >= MIN));
        assert!((4..20).contains(&whole.len()), "{}", whole.len());
    }

    #[test]
    fn an_insertion_changes_the_pieces_around_it() {
        let bytes = random(12 << 20);
        let mut changed = bytes.clone();
        changed.splice(5_000_000..5_000_000, [1, 2, 3]);
        let (before, after) = (chunks(&bytes, 4096), chunks(&changed, 4096));
        let new = after.iter().filter(|c| !before.contains(c)).count();
        assert!(new <= 3, "{new} of {}", after.len());
        assert!(chunks(&vec![0; 20 << 20], 65536).iter().all(|c| c.len() <= MAX));
    }
}
