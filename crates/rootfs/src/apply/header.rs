//! One 512-byte tar header block: formats, numbers, checksum. Reads what Go's `archive/tar` reads, as Docker does.

/// Size of a block.
pub(crate) const BLOCK: usize = 512;

/// A header block.
pub(super) type Block = [u8; BLOCK];

/// What the magic says. The prefix field exists in two of them only, device numbers in all but the oldest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    V7,
    Ustar,
    Star,
    Gnu,
}

/// The fields of a block before extended headers are merged in.
#[derive(Debug)]
pub(super) struct RawHeader {
    pub type_flag: u8,
    pub name: Vec<u8>,
    pub link: Vec<u8>,
    pub mode: i64,
    pub uid: i64,
    pub gid: i64,
    pub size: i64,
    pub mtime: i64,
    pub rdev: (i64, i64),
    pub dialect: Dialect,
}

/// The text before the first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    &field[..end]
}

/// Octal digits between spaces and NULs, or base 256 (two's complement) when the first bit is set.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => base256(field),
        _ => octal(field),
    }
}

fn octal(field: &[u8]) -> Option<i64> {
    let padding = |b: &u8| *b == b' ' || *b == 0;
    let start = field.iter().position(|b| !padding(b)).unwrap_or(field.len());
    let end = field.iter().rposition(|b| !padding(b)).map_or(start, |last| last + 1);
    text(&field[start..end]).iter().try_fold(0_i64, |value, digit| {
        let digit = digit.checked_sub(b'0').filter(|d| *d < 8)?;
        value.checked_mul(8)?.checked_add(i64::from(digit))
    })
}

fn base256(field: &[u8]) -> Option<i64> {
    let invert = if field[0] & 0x40 == 0 { 0 } else { 0xff };
    let mut value: i64 = 0;
    for (index, byte) in field.iter().enumerate() {
        let mut byte = byte ^ invert;
        if index == 0 {
            byte &= 0x7f;
        }
        value = value.checked_mul(256)?.checked_add(i64::from(byte))?;
    }
    Some(if invert == 0 { value } else { !value })
}

pub(super) fn is_zero(block: &Block) -> bool {
    block.iter().all(|b| *b == 0)
}

/// The sum of all bytes with the checksum field as spaces; some old writers summed signed bytes.
fn checksum_matches(block: &Block) -> bool {
    let Some(stored) = octal(&block[148..156]) else { return false };
    let (mut unsigned, mut signed) = (0_i64, 0_i64);
    for (index, &byte) in block.iter().enumerate() {
        let byte = if (148..156).contains(&index) { b' ' } else { byte };
        unsigned += i64::from(byte);
        signed += i64::from(byte as i8);
    }
    stored == unsigned || stored == signed
}

fn dialect(block: &Block) -> Dialect {
    match (&block[257..263], &block[263..265], &block[508..512]) {
        (b"ustar\0", _, b"tar\0") => Dialect::Star,
        (b"ustar\0", ..) => Dialect::Ustar,
        (b"ustar ", b" \0", _) => Dialect::Gnu,
        _ => Dialect::V7,
    }
}

/// Reads the fields, or says what is wrong with them.
pub(super) fn parse(block: &Block) -> Result<RawHeader, &'static str> {
    if !checksum_matches(block) {
        return Err("the header's checksum does not match");
    }
    let field = |range: std::ops::Range<usize>, what: &'static str| number(&block[range]).ok_or(what);
    let dialect = dialect(block);
    let type_flag = block[156];
    let rdev = if dialect != Dialect::V7 && matches!(type_flag, b'3' | b'4') {
        (field(329..337, "the device number is malformed")?, field(337..345, "the device number is malformed")?)
    } else {
        (0, 0)
    };
    Ok(RawHeader {
        type_flag,
        name: joined_name(block, dialect),
        link: text(&block[157..257]).to_vec(),
        mode: field(100..108, "the mode is malformed")?,
        uid: field(108..116, "the owner is malformed")?,
        gid: field(116..124, "the group is malformed")?,
        size: field(124..136, "the size is malformed")?,
        mtime: field(136..148, "the time is malformed")?,
        rdev,
        dialect,
    })
}

fn joined_name(block: &Block, dialect: Dialect) -> Vec<u8> {
    let name = text(&block[..100]);
    let prefix = match dialect {
        Dialect::Ustar => text(&block[345..500]),
        Dialect::Star => text(&block[345..476]),
        Dialect::V7 | Dialect::Gnu => &[],
    };
    if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b" 644 \0\0\0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(number(b"        "), Some(0));
        assert_eq!(number(b"00009\0\0\0"), None);
        assert_eq!(number(b"-1\0\0\0\0\0\0"), None);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 5]), Some(5));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(number(&[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), Some(i64::MAX));
        assert_eq!(number(&[0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(number(&[0xbf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), None);
    }
}
