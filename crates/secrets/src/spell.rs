//! Notations in which a writer chooses how it spells a character: percent-encoding and JSON.
//!
//! Encoders agree on how letters and digits are written and on little else: Python leaves `/` as it is, browsers `!`, forms
//! write `+` for a space, and Go escapes `<` in JSON. So a secret is a row of units, each with all its spellings.

/// The spellings of one character.
pub(crate) type Unit = Vec<Vec<u8>>;

/// What no encoder escapes.
fn is_literal(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

/// Percent-encoding, of whatever set of characters; `+` for a space.
pub(crate) fn url(value: &[u8]) -> Vec<Unit> {
    let unit = |b: &u8| match *b {
        b if is_literal(b) => vec![vec![b]],
        b => {
            let mut unit = vec![format!("%{b:02X}").into_bytes(), format!("%{b:02x}").into_bytes(), vec![b]];
            unit.extend((b == b' ').then(|| b"+".to_vec()));
            unit.dedup();
            unit
        }
    };
    value.iter().map(unit).collect()
}

/// Strings of JSON. What is no UTF-8 is taken for Latin-1.
pub(crate) fn json(value: &[u8]) -> Vec<Unit> {
    let mut units = Vec::with_capacity(value.len());
    for chunk in value.utf8_chunks() {
        units.extend(chunk.valid().chars().map(json_unit));
        units.extend(chunk.invalid().iter().map(|b| [vec![vec![*b]], escaped(char::from(*b))].concat()));
    }
    units
}

fn json_unit(c: char) -> Unit {
    let short = |letter: u8| vec![vec![b'\\', letter]];
    let itself = || vec![c.to_string().into_bytes()];
    let mut unit = match c {
        '"' | '\\' => short(c as u8),
        '/' => [itself(), short(b'/')].concat(),
        '\n' => short(b'n'),
        '\r' => short(b'r'),
        '\t' => short(b't'),
        '\u{8}' => short(b'b'),
        '\u{c}' => short(b'f'),
        '\0'..'\x20' => Vec::new(),
        _ => itself(),
    };
    if !(c == ' ' || c.is_ascii() && is_literal(c as u8)) {
        unit.extend(escaped(c));
    }
    unit
}

/// `\u` and four digits, twice beyond the first 65536 characters, small or large.
fn escaped(c: char) -> Unit {
    let mut units = [0; 2];
    let units = c.encode_utf16(&mut units);
    let small: String = units.iter().map(|u| format!("\\u{u:04x}")).collect();
    let large: String = units.iter().map(|u| format!("\\u{u:04X}")).collect();
    let mut both = vec![small.into_bytes(), large.into_bytes()];
    both.dedup();
    both
}

/// Whole texts as most encoders write them: with one spelling for everything, or another for what is not ASCII, for slashes or
/// for spaces.
pub(crate) fn usual(units: &[Unit]) -> Vec<Vec<u8>> {
    type Apart = fn(&[u8]) -> bool;
    let apart: [Apart; 4] =
        [|_| false, |s| !s.is_ascii() || s.starts_with(b"%") && s > b"%7", |s| s == b"/" || s == b"\\/", |s| s == b"+"];
    let mut texts = Vec::new();
    for (first, second) in (0..4).flat_map(|a| (0..4).map(move |b| (a, b))) {
        for apart in apart {
            let pick = |unit: &Unit| {
                let nth = if unit.iter().any(|s| apart(s)) { second } else { first };
                unit.get(nth.min(unit.len() - 1)).cloned().unwrap_or_default()
            };
            texts.push(units.iter().flat_map(pick).collect());
        }
    }
    texts.sort_unstable();
    texts.dedup();
    texts
}

/// The place behind `units`, spelled in any way from `at` on.
pub(crate) fn forwards(haystack: &[u8], at: usize, units: &[Unit]) -> Option<usize> {
    let step = |at: usize, s: &Vec<u8>| haystack.get(at..)?.starts_with(s).then(|| at + s.len());
    units.iter().try_fold(vec![at], |places, unit| advance(&places, unit, step))?.first().copied()
}

/// The place where `units`, spelled in any way, begin if they end at `at`.
pub(crate) fn backwards(haystack: &[u8], at: usize, units: &[Unit]) -> Option<usize> {
    let step = |at: usize, s: &Vec<u8>| haystack.get(..at)?.ends_with(s).then(|| at - s.len());
    units.iter().rev().try_fold(vec![at], |places, unit| advance(&places, unit, step))?.first().copied()
}

/// All places that one more unit can lead to: `/` may be the end of `\/`.
fn advance(places: &[usize], unit: &Unit, step: impl Fn(usize, &Vec<u8>) -> Option<usize>) -> Option<Vec<usize>> {
    let step = &step;
    let mut next: Vec<usize> = places.iter().flat_map(|at| unit.iter().filter_map(move |s| step(*at, s))).collect();
    next.sort_unstable();
    next.dedup();
    (!next.is_empty()).then_some(next)
}

/// The beginnings, `length` bytes long, of all ways to spell `units`; `None` if one of them is shorter.
pub(crate) fn beginnings(units: &[Unit], length: usize) -> Option<Vec<Vec<u8>>> {
    let mut done = Vec::new();
    let mut open = vec![Vec::new()];
    let mut units = units.iter();
    while !open.is_empty() {
        let unit = units.next()?;
        let longer: Vec<Vec<u8>> = open.iter().flat_map(|o| unit.iter().map(move |s| [&o[..], s].concat())).collect();
        open = Vec::new();
        for mut text in longer {
            if text.len() < length {
                open.push(text);
            } else {
                text.truncate(length);
                done.push(text);
            }
        }
    }
    done.sort_unstable();
    done.dedup();
    Some(done)
}
