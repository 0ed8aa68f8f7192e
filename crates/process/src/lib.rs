//! What the kernel tells of a process by its number.
//!
//! A number alone may be another process's tomorrow: number and time of start together name one process of a boot.

use std::fs;

/// Of `/proc/<pid>/stat`, what we have a use for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// `R` runs, `S` sleeps, `D` waits for a disk, `Z` ended and was not waited for, ….
    pub state: char,
    /// When it began, in ticks since the boot.
    pub start: u64,
}

impl Stat {
    /// What a process does; `None` if there is no such process.
    pub fn of(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Whether it ended, and is only not waited for yet.
    pub fn has_ended(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }

    fn parse(line: &str) -> Option<Self> {
        // The name may contain anything; what counts begins after its closing parenthesis.
        let mut fields = line.rsplit_once(')')?.1.split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        Some(Self { state, start: fields.nth(18)?.parse().ok()? })
    }
}

/// The children of a process's first thread. Empty if there is no such process.
pub fn children(pid: i32) -> Vec<i32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_ascii_whitespace().filter_map(|child| child.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_confuse() {
        let rest = "S 1 2 2 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 8192 1 18446744073709551615";
        for name in ["sh", "a b", ") R 1", "(x) Z"] {
            let line = format!("42 ({name}) {rest}\n");
            assert_eq!(Stat::parse(&line), Some(Stat { state: 'S', start: 4711 }), "{name}");
        }
        assert_eq!(Stat::parse("42 (sh) S 1"), None);
    }

    #[test]
    fn this_process_lives_and_has_no_number_that_cannot_be() {
        let own = Stat::of(std::process::id().cast_signed()).unwrap();
        assert!(!own.has_ended() && own.start > 0);
        assert_eq!(Stat::of(-1), None);
        assert!(children(-1).is_empty());
    }
}
