//! Small formats that the displays share.

use std::time::Duration;

pub use kiln_engine::human_size;

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

/// The part of a line that the user should see after carriage returns redrew it. What only erases the line is not it: the next
/// part is on its way.
pub fn after_carriage_return(line: &[u8]) -> &[u8] {
    let parts = || line.rsplit(|b| *b == b'\r');
    parts().find(|part| !printable(part).trim().is_empty()).unwrap_or_else(|| parts().next().unwrap_or(line))
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
        assert_eq!(after_carriage_return(b"10%\r20%\r\x1b[K"), b"20%");
        assert_eq!(after_carriage_return(b"\r\r"), b"");
    }
}
