//! The forms in which a secret's bytes may be written.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

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
        }
    }
}

/// A form in which a secret may be written.
pub(crate) struct Form {
    pub encoding: Encoding,
    pub text: Vec<u8>,
    /// Lines may be broken anywhere in it.
    pub wraps: bool,
}

/// Of a longer text its middle is looked for.
const LONGEST: usize = 4096;
/// The same for text that may be wrapped: two line breaks at most fall into it.
pub(crate) const LONGEST_WRAPPED: usize = 84;
/// Parts of one secret that are looked for.
const MOST_PARTS: usize = 8;
/// Every unencrypted OpenSSH key starts with this: it proves nothing.
const OPENSSH_PREFIX: &[u8] = b"b3BlbnNzaC1rZXktdjE";

/// All forms of `value` that prove a leak. What is in `public` as well proves nothing.
pub(crate) fn forms(value: &[u8], public: &[u8]) -> Vec<Form> {
    let mut forms = Vec::new();
    let mut add = |encoding, text: &[u8], wraps: bool| {
        let text = middle(text, if wraps { LONGEST_WRAPPED } else { LONGEST }).to_vec();
        forms.push(Form { encoding, text, wraps });
    };
    add(Encoding::Plain, value, false);
    spread(&random_runs(value), MOST_PARTS).for_each(|part| add(Encoding::Part, part, false));
    for text in base64_forms(value) {
        add(Encoding::Base64, &text, true);
    }
    add(Encoding::Hex, &hex(value, b"0123456789abcdef"), true);
    add(Encoding::Hex, &hex(value, b"0123456789ABCDEF"), true);
    add(Encoding::Url, &percent(value, b"0123456789ABCDEF"), false);
    add(Encoding::Url, &percent(value, b"0123456789abcdef"), false);
    add(Encoding::Json, &json(value), false);
    let public: Vec<Vec<u8>> = if public.is_empty() { Vec::new() } else { base64_forms(public).collect() };
    // The characters at both ends depend on what stands beside the public part.
    let inner = |text: &[u8]| text.get(2..text.len() - 2).unwrap_or_default().to_vec();
    let is_public =
        |text: &[u8]| text.len() > 16 && public.iter().any(|p| memchr::memmem::find(p, &inner(text)).is_some());
    // A form that equals the plain one is the plain one; a very short one would match by chance.
    let mut seen = std::collections::BTreeSet::new();
    forms.retain(|f| f.text.len() >= crate::SHORTEST && !is_public(&f.text) && seen.insert(f.text.clone()));
    forms
}

/// What is hidden in logs: the same, every line of it, and all of the wrapped forms rather than their middle.
pub(crate) fn hidden(value: &[u8]) -> Vec<Vec<u8>> {
    /// Lines that are worth hiding.
    const LINE: usize = 8;
    /// Pieces of wrapped forms, one of which is whole wherever a line is broken.
    const PIECE: usize = 28;
    let mut texts: Vec<Vec<u8>> = forms(value, &[]).into_iter().map(|f| f.text).collect();
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

fn middle(text: &[u8], longest: usize) -> &[u8] {
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
