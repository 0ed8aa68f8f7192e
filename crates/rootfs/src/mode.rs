//! Mode changes as `--chmod` takes them: octal, or symbolic as in chmod(1).

use std::str::FromStr;

use crate::error::RootfsError;

/// A change of permission bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModeChange {
    /// These bits, whatever was there (`0755`).
    Octal(u32),
    /// Clauses, applied in order (`u+rwX,go=`).
    Symbolic(Vec<Clause>),
}

/// `[ugoa]*` with one or more actions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clause {
    /// Which of owner, group and others: a mask of `0o700`, `0o070`, `0o007`.
    who: u32,
    op: Op,
    perms: Perms,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Add,
    Remove,
    Set,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Perms {
    /// `rwxXst`
    Bits { rwx: u32, conditional_x: bool, setid: bool, sticky: bool },
    /// The bits that owner, group or others have (shift 6, 3 or 0).
    CopyOf(u32),
}

impl ModeChange {
    /// The permission bits (`07777`) that result for a file that has `mode`.
    pub fn apply(&self, mode: u32, is_dir: bool) -> u32 {
        match self {
            Self::Octal(bits) => bits & 0o7777,
            Self::Symbolic(clauses) => clauses.iter().fold(mode & 0o7777, |m, c| c.apply(m, is_dir)),
        }
    }
}

impl Clause {
    fn apply(&self, mode: u32, is_dir: bool) -> u32 {
        let triple = match &self.perms {
            Perms::Bits { rwx, conditional_x, .. } => rwx | u32::from(*conditional_x && (is_dir || mode & 0o111 != 0)),
            Perms::CopyOf(shift) => mode >> shift & 7,
        };
        let mut bits = (triple * 0o111) & self.who;
        let mut special_mask = 0;
        if let Perms::Bits { setid, sticky, .. } = self.perms {
            // s means setuid for u and setgid for g; t belongs to no one in particular
            let setids = (self.who & 0o700) << 3 & 0o4000 | (self.who & 0o070) << 5 & 0o2000;
            special_mask = setids | if self.who & 0o007 != 0 { 0o1000 } else { 0 };
            bits |= if setid { setids } else { 0 } | if sticky { 0o1000 } else { 0 };
        }
        match self.op {
            Op::Add => mode | bits,
            Op::Remove => mode & !bits,
            // as GNU chmod: = does not take setuid and setgid away from directories
            Op::Set if is_dir => mode & !(self.who | special_mask & 0o1000) | bits,
            Op::Set => mode & !(self.who | special_mask) | bits,
        }
    }
}

impl FromStr for ModeChange {
    type Err = RootfsError;

    fn from_str(s: &str) -> Result<Self, RootfsError> {
        let invalid = |reason: &str| RootfsError::Invalid {
            what: "mode",
            value: s.chars().take(100).collect(),
            reason: reason.to_owned(),
        };
        if s.bytes().next().is_some_and(|b| b.is_ascii_digit()) {
            let octal = u32::from_str_radix(s, 8).ok().filter(|m| *m <= 0o7777);
            return octal.map(Self::Octal).ok_or_else(|| invalid("expected an octal number between 0 and 07777"));
        }
        let mut clauses = Vec::new();
        for part in s.split(',') {
            parse_clause(part, &mut clauses)
                .ok_or_else(|| invalid("expected an octal number, or clauses such as u+rwX,go-w"))?;
        }
        Ok(Self::Symbolic(clauses))
    }
}

fn parse_clause(part: &str, out: &mut Vec<Clause>) -> Option<()> {
    let ops_at = part.find(['+', '-', '='])?;
    let (who, mut rest) = part.split_at(ops_at);
    let mut mask = 0;
    for c in who.chars() {
        mask |= match c {
            'u' => 0o700,
            'g' => 0o070,
            'o' => 0o007,
            'a' => 0o777,
            _ => return None,
        };
    }
    if who.is_empty() {
        mask = 0o777;
    }
    while let Some(op) = rest.chars().next() {
        let op = match op {
            '+' => Op::Add,
            '-' => Op::Remove,
            '=' => Op::Set,
            _ => return None,
        };
        let end = rest[1..].find(['+', '-', '=']).map_or(rest.len(), |i| i + 1);
        out.push(Clause { who: mask, op, perms: parse_perms(&rest[1..end])? });
        rest = &rest[end..];
    }
    Some(())
}

fn parse_perms(s: &str) -> Option<Perms> {
    match s {
        "u" => return Some(Perms::CopyOf(6)),
        "g" => return Some(Perms::CopyOf(3)),
        "o" => return Some(Perms::CopyOf(0)),
        _ => {}
    }
    let (mut rwx, mut conditional_x, mut setid, mut sticky) = (0, false, false, false);
    for c in s.chars() {
        match c {
            'r' => rwx |= 4,
            'w' => rwx |= 2,
            'x' => rwx |= 1,
            'X' => conditional_x = true,
            's' => setid = true,
            't' => sticky = true,
            _ => return None,
        }
    }
    Some(Perms::Bits { rwx, conditional_x, setid, sticky })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn change(spec: &str, mode: u32, dir: bool) -> u32 {
        spec.parse::<ModeChange>().unwrap().apply(mode, dir)
    }

    #[test]
    fn octal_and_symbolic() {
        assert_eq!(change("0755", 0o644, false), 0o755);
        assert_eq!(change("4711", 0, false), 0o4711);
        assert_eq!(change("u+x", 0o644, false), 0o744);
        assert_eq!(change("+x", 0o644, false), 0o755);
        assert_eq!(change("go-rwx", 0o777, false), 0o700);
        assert_eq!(change("u=rwX,go=rX", 0o600, false), 0o644);
        assert_eq!(change("u=rwX,go=rX", 0o700, false), 0o755);
        assert_eq!(change("u=rwX,go=rX", 0o600, true), 0o755);
        assert_eq!(change("g=u", 0o750, false), 0o770);
        assert_eq!(change("u+s,g+s,+t", 0o755, false), 0o7755);
        assert_eq!(change("a-st", 0o7755, false), 0o755);
        assert_eq!(change("u=rw+x-w", 0, false), 0o500);
        assert_eq!(change("go=", 0o777, false), 0o700);
        assert_eq!(change("u=r", 0o4755, false), 0o455);
        assert_eq!(change("g=r", 0o2775, true), 0o2745);
    }

    #[test]
    fn rejects() {
        for bad in ["", "8", "10000", "0o755", "u", "u+q", "z+x", "u+x,", "+x,,+r", "755x", "u+ug"] {
            assert!(bad.parse::<ModeChange>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn never_leaves_the_permission_bits(spec in "[ugoa]{0,3}[-+=][rwxXst]{0,6}(,[ugoa]{0,3}[-+=][rwxugo]{0,1}){0,2}", mode: u32, dir: bool) {
            if let Ok(change) = spec.parse::<ModeChange>() {
                prop_assert_eq!(change.apply(mode, dir) & !0o7777, 0);
            }
        }
    }
}
