//! The agent protocol's frames and fields (draft-miller-ssh-agent).

use std::io::{self, Read, Write};

/// Largest message; OpenSSH's limit.
const LARGEST: u32 = 256 << 10;

/// One message, without its length; `None` at the end of the stream.
pub fn read_message(from: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let length = u32::from_be_bytes(length);
    if length == 0 || length > LARGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "an agent message of an impossible length"));
    }
    let mut message = vec![0; length as usize];
    from.read_exact(&mut message)?;
    Ok(Some(message))
}

/// Writes a message with its length.
pub fn write_message(to: &mut impl Write, message: &[u8]) -> io::Result<()> {
    let mut frame = Vec::with_capacity(message.len() + 4);
    put_string(&mut frame, message);
    to.write_all(&frame)?;
    to.flush()
}

/// Appends a length and the bytes.
pub fn put_string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// Appends a number that is not negative, without needless zeros.
pub fn put_mpint(out: &mut Vec<u8>, number: &[u8]) {
    let zeros = number.iter().take_while(|b| **b == 0).count();
    let mut digits = number[zeros..].to_vec();
    if digits.first().is_some_and(|b| *b >= 0x80) {
        digits.insert(0, 0);
    }
    put_string(out, &digits);
}

/// Takes a length and as many bytes off the front.
pub fn take_string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, after) = rest.split_first_chunk::<4>()?;
    let length = u32::from_be_bytes(*length) as usize;
    if length > after.len() {
        return None;
    }
    let (bytes, after) = after.split_at(length);
    *rest = after;
    Some(bytes)
}

/// Takes a number off the front.
pub fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    let (number, after) = rest.split_first_chunk::<4>()?;
    *rest = after;
    Some(u32::from_be_bytes(*number))
}
