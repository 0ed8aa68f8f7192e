//! Signals by the names that image configs and users give them, in Linux's numbers.

/// Names without `SIG`, real-time ones left out.
pub const NAMES: [(&str, i32); 34] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
];
/// The C library keeps the first two of the kernel's real-time signals for itself.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// The number of a signal that is given as a number, or by its name in any case, with or without `SIG`.
pub fn number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number).or_else(|| real_time(name))
}

/// `RTMIN`, `RTMIN+1` to `RTMIN+15`, `RTMAX-14` to `RTMAX-1`, `RTMAX`.
fn real_time(name: &str) -> Option<i32> {
    let offset = |text: &str, sign: char, most: i32| match text.strip_prefix(sign) {
        Some(digits) if digits.starts_with(|c: char| c.is_ascii_digit()) => {
            digits.parse().ok().filter(|n| (1..=most).contains(n))
        }
        Some(_) => None,
        None => text.is_empty().then_some(0),
    };
    match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => offset(rest, '+', 15).map(|n| RTMIN + n),
        (_, Some(rest)) => offset(rest, '-', 14).map(|n| RTMAX - n),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_name_and_number() {
        for (text, expected) in [
            ("SIGTERM", 15),
            ("term", 15),
            ("9", 9),
            ("64", 64),
            ("SIGRTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("rtmax-14", 50),
            ("RTMAX", 64),
            ("sigquit", 3),
        ] {
            assert_eq!(number(text), Some(expected), "{text}");
        }
        for no in ["", "0", "-9", "65", "SIGFOO", "RTMIN+16", "RTMIN+", "RTMIN3", "RTMAX+1", "SIG", "RTMAX-+1", "EMT"] {
            assert_eq!(number(no), None, "{no}");
        }
    }
}
