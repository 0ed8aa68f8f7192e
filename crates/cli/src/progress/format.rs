//! Small formats that the displays share.

use std::time::Duration;

/// Bytes as docker shows them: powers of 1000, three significant digits (`6.47MB`).
pub fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = match value {
        _ if unit == 0 => 0,
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{}", UNITS[unit])
}

/// `1.2s`, as BuildKit writes durations.
pub fn seconds(elapsed: Duration) -> String {
    format!("{:.1}s", elapsed.as_secs_f64())
}

/// Output of a process made safe to show on one line of a terminal: no control characters but tab.
pub fn printable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => skip_escape(&mut chars),
            '\t' => out.push_str("    "),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

/// Skips the rest of an escape sequence (ECMA-48: CSI ends with a byte from `@` to `~`).
fn skip_escape(chars: &mut std::str::Chars<'_>) {
    match chars.next() {
        Some('[') => {
            chars.find(|c| ('@'..='~').contains(c));
        }
        Some(']') => {
            chars.find(|c| *c == '\u{7}' || *c == '\\');
        }
        _ => {}
    }
}

/// The part of a line that the user should see after carriage returns redrew it.
pub fn after_carriage_return(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    line.rsplit(|b| *b == b'\r').next().unwrap_or(line)
}

/// Columns that a terminal needs for `text`.
pub fn columns(text: &str) -> usize {
    unicode_width::UnicodeWidthStr::width(text)
}

/// Cuts `text` to `width` columns.
pub fn cut(text: &str, width: usize) -> String {
    if columns(text) <= width {
        return text.to_owned();
    }
    let (mut out, mut used) = (String::new(), 1);
    for c in text.chars() {
        used += unicode_width::UnicodeWidthChar::width(c).unwrap_or(0);
        if used > width {
            break;
        }
        out.push(c);
    }
    if width > 0 {
        out.push('…');
    }
    out
}

/// How far a transfer is: `1.2MB / 3MB`; nothing for what has no size.
pub fn amount(current: u64, total: Option<u64>) -> String {
    match total {
        Some(total) => format!("{} / {}", human_size(current), human_size(total)),
        None if current > 0 => human_size(current),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_dockers() {
        for (bytes, shown) in [
            (0, "0B"),
            (999, "999B"),
            (6_470_000, "6.47MB"),
            (295_000_000, "295MB"),
            (1_000, "1kB"),
            (2_910_000, "2.91MB"),
        ] {
            assert_eq!(human_size(bytes), shown);
        }
    }

    #[test]
    fn lines_are_cut_by_columns() {
        assert_eq!(cut("abcdef", 6), "abcdef");
        assert_eq!(cut("abcdef", 5), "abcd…");
        assert_eq!(cut("日本語", 6), "日本語");
        assert_eq!(cut("日本語", 5), "日本…");
        assert_eq!(cut("日本語", 4), "日…");
        assert_eq!(cut("abc", 0), "");
    }

    #[test]
    fn terminal_escapes_do_not_reach_the_terminal() {
        assert_eq!(printable(b"\x1b[31mred\x1b[0m \x07bell\x1b]0;title\x07 end"), "red bell end");
        assert_eq!(after_carriage_return(b"10%\r20%\r"), b"20%");
    }
}
