//! Texts as Go's `fmt` writes them: history entries are compared by tools, byte for byte.

use std::fmt::Write;

use kiln_dockerfile::format_duration;
use kiln_oci::Health;

/// `%q` of a string.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    text.chars().for_each(|c| push_escaped(&mut out, c, '"'));
    out.push('"');
    out
}

/// `%q` of a list: `["a" "b"]`.
pub fn quote_list(list: &[String]) -> String {
    let all: Vec<String> = list.iter().map(|t| quote(t)).collect();
    format!("[{}]", all.join(" "))
}

/// `%v` of a list: `[a b]`.
pub fn plain_list(list: &[String]) -> String {
    format!("[{}]", list.join(" "))
}

/// `%q` of a pointer to Docker's health check struct: `&{["CMD" "x"] "30s" "0s" "0s" "0s" '\x03'}`.
pub fn quote_health(health: &Health) -> String {
    let durations = [health.interval, health.timeout, health.start_period, health.start_interval];
    let durations: Vec<String> = durations.iter().map(|d| quote(&format_duration(*d))).collect();
    let retries = u32::try_from(health.retries).ok().and_then(char::from_u32).unwrap_or('\u{fffd}');
    let mut number = String::from("'");
    push_escaped(&mut number, retries, '\'');
    number.push('\'');
    format!("&{{{} {} {number}}}", quote_list(&health.test), durations.join(" "))
}

fn push_escaped(out: &mut String, c: char, quote: char) {
    let short = match c {
        '\u{7}' => Some('a'),
        '\u{8}' => Some('b'),
        '\u{c}' => Some('f'),
        '\n' => Some('n'),
        '\r' => Some('r'),
        '\t' => Some('t'),
        '\u{b}' => Some('v'),
        _ => None,
    };
    match (short, c) {
        (Some(letter), _) => out.extend(['\\', letter]),
        (None, '\\') => out.push_str("\\\\"),
        (None, c) if c == quote => out.extend(['\\', c]),
        (None, c) if is_printable(c) => out.push(c),
        (None, c) if (c as u32) < 0x80 => drop(write!(out, "\\x{:02x}", c as u32)),
        (None, c) if (c as u32) < 0x10000 => drop(write!(out, "\\u{:04x}", c as u32)),
        (None, c) => drop(write!(out, "\\U{:08x}", c as u32)),
    }
}

/// Go's `strconv.IsPrint`, near enough: no controls, no separators but the space, no private use, no format characters.
fn is_printable(c: char) -> bool {
    !c.is_control()
        && (c == ' ' || !c.is_whitespace())
        && !matches!(c as u32, 0xad | 0x200b..=0x200f | 0x2028..=0x202e | 0x2060..=0x206f | 0xe000..=0xf8ff | 0xfeff | 0xfff0..=0xfffb | 0xe0000..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_go_writes_it() {
        assert_eq!(quote("a\"b\\c\n\t\u{1}é\u{feff}'"), "\"a\\\"b\\\\c\\n\\t\\x01é\\ufeff'\"");
        assert_eq!(
            quote_list(&["/bin/sh".into(), "-c".into(), "echo \"hi\"".into()]),
            r#"["/bin/sh" "-c" "echo \"hi\""]"#
        );
        assert_eq!(plain_list(&["/a".into(), "/b".into()]), "[/a /b]");
        assert_eq!(quote_list(&[]), "[]");
        let mut health =
            Health { test: vec!["CMD".into(), "x".into()], interval: 30_000_000_000, retries: 3, ..Health::default() };
        assert_eq!(quote_health(&health), r#"&{["CMD" "x"] "30s" "0s" "0s" "0s" '\x03'}"#);
        health.retries = 39;
        assert!(quote_health(&health).ends_with(r"'\''}"));
        health.retries = 65;
        assert!(quote_health(&health).ends_with(r"'A'}"));
    }
}
