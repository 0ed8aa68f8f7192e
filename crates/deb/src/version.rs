//! Debian package versions: the ordering of Debian policy 5.6.12, exactly as `dpkg --compare-versions` has it.

use std::cmp::Ordering;

/// Compares two version strings `[epoch:]upstream[-revision]`.
pub fn compare(a: &str, b: &str) -> Ordering {
    if a == b {
        return Ordering::Equal;
    }
    let (a_epoch, a_upstream, a_revision) = split(a);
    let (b_epoch, b_upstream, b_revision) = split(b);
    a_epoch
        .cmp(&b_epoch)
        .then_with(|| compare_part(a_upstream.as_bytes(), b_upstream.as_bytes()))
        .then_with(|| compare_part(a_revision.as_bytes(), b_revision.as_bytes()))
}

/// Epoch, upstream version and revision. An absent revision compares equal to `0`, as in dpkg.
fn split(version: &str) -> (u64, &str, &str) {
    let (epoch, rest) = match version.split_once(':') {
        Some((epoch, rest)) => (epoch.parse().unwrap_or(0), rest),
        None => (0, version),
    };
    let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, ""));
    (epoch, upstream, revision)
}

/// The weight of a character in a non-digit part: `~` before the end, the end before letters, letters before the rest.
fn weight(c: Option<&u8>) -> i32 {
    match c {
        None => 0,
        Some(b'~') => -1,
        Some(c) if c.is_ascii_digit() => 0,
        Some(c) if c.is_ascii_alphabetic() => i32::from(*c),
        Some(c) => i32::from(*c) + 256,
    }
}

fn is_digit(c: Option<&u8>) -> bool {
    c.is_some_and(u8::is_ascii_digit)
}

/// dpkg's `verrevcmp`.
fn compare_part(mut a: &[u8], mut b: &[u8]) -> Ordering {
    while !a.is_empty() || !b.is_empty() {
        while (!a.is_empty() && !is_digit(a.first())) || (!b.is_empty() && !is_digit(b.first())) {
            let order = weight(a.first()).cmp(&weight(b.first()));
            if order != Ordering::Equal {
                return order;
            }
            a = a.get(1..).unwrap_or_default();
            b = b.get(1..).unwrap_or_default();
        }
        let a_number = take_number(&mut a);
        let b_number = take_number(&mut b);
        let order = a_number.len().cmp(&b_number.len()).then_with(|| a_number.cmp(b_number));
        if order != Ordering::Equal {
            return order;
        }
    }
    Ordering::Equal
}

/// Takes the leading digits, without leading zeros.
fn take_number<'a>(s: &mut &'a [u8]) -> &'a [u8] {
    let end = s.iter().position(|c| !c.is_ascii_digit()).unwrap_or(s.len());
    let (number, rest) = s.split_at(end);
    *s = rest;
    let zeros = number.iter().take_while(|c| **c == b'0').count();
    &number[zeros..]
}

/// Whether `version` can be a Debian version at all (it goes into file names and shell-free control files).
pub fn is_valid(version: &str) -> bool {
    !version.is_empty()
        && version.len() <= 256
        && version.bytes().all(|c| c.is_ascii_alphanumeric() || b".+-~:_".contains(&c))
        && version.bytes().any(|c| c.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_as_dpkg_does() {
        // Each line is strictly ascending; checked against `dpkg --compare-versions`.
        let ascending: &[&[&str]] = &[
            &["1.0~rc1", "1.0", "1.0-1", "1.0-1+b1", "1.0-1.1", "1.0a", "1.0+dfsg-1", "1.1", "1.10", "2"],
            &["1~~", "1~~a", "1~", "1", "1a", "1+", "1."],
            &["2.36-9+deb12u1", "2.36-9+deb12u9", "2.36-9+deb12u10", "2.37-1", "1:0.1", "2:0"],
            &["0~", "0", "0-0.1"],
            &["7.88.1-10~bpo11+1", "7.88.1-10", "7.88.1-10+deb12u4"],
        ];
        for line in ascending {
            for (i, a) in line.iter().enumerate() {
                for (j, b) in line.iter().enumerate() {
                    assert_eq!(compare(a, b), i.cmp(&j), "{a} against {b}");
                }
            }
        }
    }

    #[test]
    fn equal_spellings() {
        for (a, b) in
            [("1.0", "1.00"), ("0:1.0", "1.0"), ("1.0-0", "1.0"), ("1.01", "1.1"), ("a0b", "a00b"), ("1.", "1.0")]
        {
            assert_eq!(compare(a, b), Ordering::Equal, "{a} {b}");
        }
    }

    #[test]
    fn validity() {
        assert!(is_valid("1:2.3-4+deb12u1~x"));
        for bad in ["", "1/2", "1 2", "..", "1\n2", "a;b"] {
            assert!(!is_valid(bad), "{bad:?}");
        }
    }
}
