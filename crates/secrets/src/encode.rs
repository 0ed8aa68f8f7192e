//! The forms in which a secret's bytes may be written.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

use crate::spell::{self, Unit};

/// How a found secret was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Encoding {
    /// As it is.
    Plain,
    /// RFC 4648, either alphabet.
    Base64,
    /// Two digits a byte.
    Hex,
    /// Percent-encoding (RFC 3986).
    Url,
    /// A JSON string (RFC 8259).
    Json,
    /// Two bytes a character.
    Utf16,
    /// A part of it that is a secret alone: a line of a private key, the token in a configuration file.
    Part,
}

impl Encoding {
    /// For messages: `in plain`, `base64-encoded`.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Plain => "in plain",
            Self::Part => "in part (a line or token of it)",
            Self::Base64 => "base64-encoded",
            Self::Hex => "hex-encoded",
            Self::Url => "url-encoded",
            Self::Json => "JSON-escaped",
            Self::Utf16 => "as UTF-16",
        }
    }
}

/// A form in which a secret may be written.
pub(crate) struct Form {
    pub encoding: Encoding,
    pub text: Text,
}

/// What stands in a file.
pub(crate) enum Text {
    /// These bytes.
    Exact(Vec<u8>),
    /// These bytes, in which lines may be broken anywhere.
    Wrapped(Vec<u8>),
    /// Of each unit one of its spellings, but not these bytes.
    Spelled(Vec<Unit>, Vec<u8>),
}

impl Text {
    /// How it may be written.
    fn written(self) -> Vec<Vec<u8>> {
        match self {
            Self::Exact(text) | Self::Wrapped(text) => vec![text],
            Self::Spelled(units, _) => spell::usual(&units),
        }
    }
}

/// Of a longer text its middle is looked for.
const LONGEST: usize = 4096;
/// The same for text that may be wrapped: two line breaks at most fall into it.
pub(crate) const LONGEST_WRAPPED: usize = 84;
/// The same for text of which each byte may become six.
const LONGEST_SPELLED: usize = 1024;
/// Parts of one secret that are looked for.
const MOST_PARTS: usize = 8;
/// Every unencrypted OpenSSH key starts with this: it proves nothing.
const OPENSSH_PREFIX: &[u8] = b"b3BlbnNzaC1rZXktdjE";

/// All forms of `value` that prove a leak. What is in `public` as well proves nothing.
pub(crate) fn forms(value: &[u8], public: &[u8]) -> Vec<Form> {
    let mut exact = vec![(Encoding::Plain, value.to_vec())];
    exact.extend(other_line_ends(value).into_iter().map(|text| (Encoding::Plain, text)));
    exact.extend(spread(&random_runs(value), MOST_PARTS).map(|part| (Encoding::Part, part.to_vec())));
    exact.extend(utf16(value).map(|text| (Encoding::Utf16, text)));
    let mut wrapped: Vec<_> = base64_forms(value).map(|text| (Encoding::Base64, text)).collect();
    wrapped.push((Encoding::Hex, hex(value, b"0123456789abcdef")));
    wrapped.push((Encoding::Hex, hex(value, b"0123456789ABCDEF")));
    let public: Vec<Vec<u8>> = if public.is_empty() { Vec::new() } else { base64_forms(public).collect() };
    // The characters at both ends depend on what stands beside the public part.
    let inner = |text: &[u8]| text.get(2..text.len() - 2).unwrap_or_default().to_vec();
    let is_public =
        |text: &[u8]| text.len() > 16 && public.iter().any(|p| memchr::memmem::find(p, &inner(text)).is_some());
    // A form that equals the plain one is the plain one; a very short one would match by chance.
    let mut seen = std::collections::BTreeSet::new();
    let mut telling = |text: &[u8]| text.len() >= crate::SHORTEST && !is_public(text) && seen.insert(text.to_vec());
    let mut forms = Vec::new();
    for (encoding, text) in exact {
        let text = middle(&text, LONGEST).to_vec();
        if telling(&text) {
            forms.push(Form { encoding, text: Text::Exact(text) });
        }
    }
    for (encoding, text) in wrapped {
        let text = middle(&text, LONGEST_WRAPPED).to_vec();
        if telling(&text) {
            forms.push(Form { encoding, text: Text::Wrapped(text) });
        }
    }
    let (value, cut) = (middle(value, LONGEST_SPELLED), if value.len() > LONGEST_SPELLED { 4 } else { 0 });
    for (encoding, units) in [(Encoding::Url, spell::url(value)), (Encoding::Json, spell::json(value))] {
        // A character that was cut in two is no unit.
        let units = &units[cut..units.len() - cut];
        if units.iter().any(|unit| unit.len() > 1 || unit.first().is_some_and(|s| s.len() > 1)) {
            forms.push(Form {
                encoding,
                text: Text::Spelled(units.to_vec(), value.get(cut..value.len() - cut).unwrap_or_default().to_vec()),
            });
        }
    }
    forms
}

/// A text of several lines with the line ends of another system, or on one line, as a shell writes `echo $SECRET`.
fn other_line_ends(value: &[u8]) -> Vec<Vec<u8>> {
    let lines: Vec<&[u8]> = value.split(|b| *b == b'\n').map(|l| l.strip_suffix(b"\r").unwrap_or(l)).collect();
    if lines.len() == 1 || value.contains(&0) {
        return Vec::new();
    }
    [&b"\n"[..], b"\r\n", b" "].into_iter().map(|end| lines.join(end)).collect()
}

/// As .NET's programs and Windows' shells write text.
fn utf16(value: &[u8]) -> Option<Vec<u8>> {
    Some(std::str::from_utf8(value).ok()?.encode_utf16().flat_map(u16::to_le_bytes).collect())
}

/// What is hidden in logs: the same, every line of it, and all of the wrapped forms rather than their middle.
pub(crate) fn hidden(value: &[u8]) -> Vec<Vec<u8>> {
    /// Lines that are worth hiding.
    const LINE: usize = 8;
    /// Pieces of wrapped forms, one of which is whole wherever a line is broken.
    const PIECE: usize = 28;
    let mut texts: Vec<Vec<u8>> = forms(value, &[]).into_iter().flat_map(|f| f.text.written()).collect();
    let lines = value.split(|b| *b == b'\n').map(<[u8]>::trim_ascii);
    let telling = |l: &&[u8]| l.len() >= LINE && !l.starts_with(b"-----") && !l.starts_with(OPENSSH_PREFIX);
    texts.extend(lines.filter(telling).map(<[u8]>::to_vec));
    texts.push(value.to_vec());
    if value.len() <= LONGEST * 4 {
        let wrapped = base64_forms(value).chain([hex(value, b"0123456789abcdef")]);
        texts.extend(wrapped.flat_map(|t| t.chunks(PIECE).map(<[u8]>::to_vec).collect::<Vec<_>>()));
    }
    // The end of a wrapped form may be so short that it would be everywhere.
    texts.retain(|t| t.len() >= LINE.min(value.len()));
    texts.sort_unstable();
    texts.dedup();
    texts
}

fn middle<T>(text: &[T], longest: usize) -> &[T] {
    let from = text.len().saturating_sub(longest) / 2;
    &text[from..text.len().min(from + longest)]
}

/// At most `most` of them, not all from one end.
fn spread<'a>(all: &'a [&'a [u8]], most: usize) -> impl Iterator<Item = &'a [u8]> {
    let step = all.len().div_ceil(most).max(1);
    all.iter().step_by(step).copied()
}

/// Stretches of a value that nobody writes by chance: keys, tokens, passwords that a program made.
fn random_runs(value: &[u8]) -> Vec<&[u8]> {
    let in_run = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'_' | b'-');
    let random = |run: &&[u8]| {
        let count = |test: fn(&u8) -> bool| run.iter().filter(|b| test(b)).count();
        let (digits, upper, lower) =
            (count(u8::is_ascii_digit), count(u8::is_ascii_uppercase), count(u8::is_ascii_lowercase));
        let mixed = run.len() >= 20 && digits >= 2 && upper >= 2 && lower >= 2;
        let hexadecimal = run.len() >= 32 && digits >= 6 && upper + lower >= 2;
        (mixed || hexadecimal) && !run.starts_with(OPENSSH_PREFIX) && run.len() < value.len()
    };
    value.split(|b| !in_run(b)).filter(random).collect()
}

fn base64_forms(value: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    [false, true].into_iter().flat_map(move |url| (0..3).map(move |shift| base64_inner(value, shift, url)))
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
