//! Which compression a stream has, told by its first bytes as Docker does.

use kiln_oci::media::Compression;

/// How many leading bytes [`detect`] looks at, at most.
pub const MAGIC_LEN: usize = 10;

/// The format of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// None of the others: the bytes are what they are.
    Plain,
    /// RFC 1952, one or more members.
    Gzip,
    /// bzip2, one or more streams.
    Bzip2,
    /// xz, one or more streams.
    Xz,
    /// RFC 8878, one or more frames, skippable ones included.
    Zstd,
}

impl Format {
    /// The name used in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "uncompressed",
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
        }
    }

    /// The layer compression that this is, for the formats that layers may have.
    pub fn layer_compression(self) -> Option<Compression> {
        match self {
            Self::Plain => Some(Compression::Uncompressed),
            Self::Gzip => Some(Compression::Gzip),
            Self::Zstd => Some(Compression::Zstd),
            Self::Bzip2 | Self::Xz => None,
        }
    }
}

impl From<Compression> for Format {
    fn from(compression: Compression) -> Self {
        match compression {
            Compression::Uncompressed => Self::Plain,
            Compression::Gzip => Self::Gzip,
            Compression::Zstd => Self::Zstd,
        }
    }
}

/// The format of a stream that starts with `head`. With fewer than [`MAGIC_LEN`] bytes of a longer stream the answer
/// may be [`Format::Plain`] for something that is not.
pub fn detect(head: &[u8]) -> Format {
    if head.starts_with(&[0x1f, 0x8b, 0x08]) {
        Format::Gzip
    } else if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || is_skippable_frame(head) {
        Format::Zstd
    } else if head.starts_with(&[0xfd, b'7', b'z', b'X', b'Z', 0x00]) {
        Format::Xz
    } else if is_bzip2(head) {
        Format::Bzip2
    } else {
        Format::Plain
    }
}

/// A zstd stream may start with skippable frames (zstd:chunked and parallel compressors write them).
fn is_skippable_frame(head: &[u8]) -> bool {
    matches!(head, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

/// The file magic alone is plain text ("BZh9" may start a file name in a tar), so the block magic is asked for too.
fn is_bzip2(head: &[u8]) -> bool {
    const BLOCK: [u8; 6] = [0x31, 0x41, 0x59, 0x26, 0x53, 0x59];
    const END: [u8; 6] = [0x17, 0x72, 0x45, 0x38, 0x50, 0x90];
    match head {
        [b'B', b'Z', b'h', b'1'..=b'9', rest @ ..] => rest.starts_with(&BLOCK) || rest.starts_with(&END),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_looks_like_bzip2_is_plain() {
        assert_eq!(detect(b"BZh9 is a file name"), Format::Plain);
        assert_eq!(detect(b"BZh91AY&SY\0\0"), Format::Bzip2);
        assert_eq!(detect(b""), Format::Plain);
        assert_eq!(detect(&[0x1f, 0x8b]), Format::Plain);
        assert_eq!(detect(&[0x5e, 0x2a, 0x4d, 0x18, 0, 0]), Format::Zstd);
    }
}
