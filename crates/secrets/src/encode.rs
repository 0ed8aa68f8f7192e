//! The forms in which a secret's bytes may be written.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// How a found secret was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Encoding {
    /// As it is.
    Plain,
    /// One line of a secret of several lines, such as the body of a private key.
    Line,
    /// RFC 4648, either alphabet.
    Base64,
    /// Two digits a byte.
    Hex,
    /// Percent-encoding (RFC 3986).
    Url,
    /// A JSON string (RFC 8259).
    Json,
}

impl Encoding {
    /// For messages: `in plain`, `base64-encoded`.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Plain => "in plain",
            Self::Line => "in part (a whole line of it)",
            Self::Base64 => "base64-encoded",
            Self::Hex => "hex-encoded",
            Self::Url => "url-encoded",
            Self::Json => "JSON-escaped",
        }
    }
}

/// Wrapped base64 has a line break every 64 or 76 characters, so pieces of this length are whole somewhere.
const PIECE: usize = 28;
/// Pieces that are searched for; a line break falls into one of them at most.
const PIECES: usize = 3;
/// Lines of a multi-line secret that are long enough to be a secret themselves.
const LONG_LINE: usize = 32;
/// Every unencrypted OpenSSH key starts with this: it proves nothing.
const OPENSSH_PREFIX: &[u8] = b"b3BlbnNzaC1rZXktdjE";

/// All forms of `value`, each with its encoding.
pub(crate) fn forms(value: &[u8]) -> Vec<(Encoding, Vec<u8>)> {
    let mut forms = vec![(Encoding::Plain, value.to_vec())];
    forms.extend(long_lines(value).map(|line| (Encoding::Line, line.to_vec())));
    for url_alphabet in [false, true] {
        for shift in 0..3 {
            let text = base64_inner(value, shift, url_alphabet);
            match text.len() > PIECE * PIECES {
                true => {
                    let pieces = text.chunks_exact(PIECE).take(PIECES);
                    forms.extend(pieces.map(|p| (Encoding::Base64, p.to_vec())));
                }
                false => forms.push((Encoding::Base64, text)),
            }
        }
    }
    forms.push((Encoding::Hex, hex(value, b"0123456789abcdef")));
    forms.push((Encoding::Hex, hex(value, b"0123456789ABCDEF")));
    forms.push((Encoding::Url, percent(value, b"0123456789ABCDEF")));
    forms.push((Encoding::Url, percent(value, b"0123456789abcdef")));
    forms.push((Encoding::Json, json(value)));
    // A form that equals the plain one is the plain one; a very short one would match by chance.
    let mut seen = std::collections::BTreeSet::new();
    forms.retain(|(_, bytes)| bytes.len() >= crate::SHORTEST && seen.insert(bytes.clone()));
    forms
}

fn long_lines(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let several = value.contains(&b'\n');
    value.split(|b| *b == b'\n').map(<[u8]>::trim_ascii).filter(move |line| {
        several && line.len() >= LONG_LINE && !line.starts_with(b"-----") && !line.starts_with(OPENSSH_PREFIX)
    })
}

/// The characters of base64 that depend on `value` alone when `shift` other bytes come before it.
fn base64_inner(value: &[u8], shift: usize, url_alphabet: bool) -> Vec<u8> {
    let mut padded = vec![0; shift];
    padded.extend_from_slice(value);
    let text = if url_alphabet { URL_SAFE_NO_PAD.encode(&padded) } else { STANDARD_NO_PAD.encode(&padded) };
    // `shift` bytes reach into this many characters; bits of what follows reach into the last one.
    let skip = (shift * 8).div_ceil(6);
    let whole = padded.len() * 8 / 6;
    text.as_bytes().get(skip..whole).unwrap_or_default().to_vec()
}

fn hex(value: &[u8], digits: &[u8; 16]) -> Vec<u8> {
    value.iter().flat_map(|b| [digits[usize::from(b >> 4)], digits[usize::from(b & 15)]]).collect()
}

fn percent(value: &[u8], digits: &[u8; 16]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len() * 3);
    for &b in value {
        match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(b),
            _ => out.extend([b'%', digits[usize::from(b >> 4)], digits[usize::from(b & 15)]]),
        }
    }
    out
}

fn json(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len() + 8);
    for &b in value {
        match b {
            b'"' => out.extend(b"\\\""),
            b'\\' => out.extend(b"\\\\"),
            b'\n' => out.extend(b"\\n"),
            b'\r' => out.extend(b"\\r"),
            b'\t' => out.extend(b"\\t"),
            0..0x20 => out.extend(format!("\\u{b:04x}").bytes()),
            _ => out.push(b),
        }
    }
    out
}
