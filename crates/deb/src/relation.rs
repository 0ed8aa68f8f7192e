//! Relations between packages: `Depends`, `Provides`, `Conflicts` and their like (Debian policy 7.1).

use std::cmp::Ordering;
use std::fmt;

use crate::version;

/// How a version must compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// `<<`
    Less,
    /// `<=` (and the obsolete `<`)
    LessEqual,
    /// `=`
    Equal,
    /// `>=` (and the obsolete `>`)
    GreaterEqual,
    /// `>>`
    Greater,
}

impl Op {
    fn accepts(self, order: Ordering) -> bool {
        match self {
            Op::Less => order == Ordering::Less,
            Op::LessEqual => order != Ordering::Greater,
            Op::Equal => order == Ordering::Equal,
            Op::GreaterEqual => order != Ordering::Less,
            Op::Greater => order == Ordering::Greater,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Op::Less => "<<",
            Op::LessEqual => "<=",
            Op::Equal => "=",
            Op::GreaterEqual => ">=",
            Op::Greater => ">>",
        }
    }
}

/// One alternative of a relation: `name:arch (op version)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relation<'a> {
    /// The package or virtual package.
    pub name: &'a str,
    /// `any`, `native` or an architecture.
    pub arch: Option<&'a str>,
    /// The version that is demanded.
    pub version: Option<(Op, &'a str)>,
}

impl<'a> Relation<'a> {
    /// Parses one alternative; None when it is empty or malformed. Architecture and profile restrictions (`[…]`, `<…>`)
    /// belong to source packages and are cut off.
    pub fn parse(text: &'a str) -> Option<Self> {
        let text = text.split(['[', '<']).next().filter(|t| t.contains(')') || !text.contains('(')).unwrap_or(text);
        let (name, version) = match text.split_once('(') {
            Some((name, rest)) => (name.trim(), Some(parse_version(rest.split_once(')')?.0.trim())?)),
            None => (text.trim(), None),
        };
        let (name, arch) = match name.split_once(':') {
            Some((name, arch)) => (name, Some(arch)),
            None => (name, None),
        };
        let good = !name.is_empty() && name.bytes().all(|c| c.is_ascii_alphanumeric() || b"+-.".contains(&c));
        good.then_some(Self { name, arch, version })
    }

    /// Whether a package of that version is accepted. `None` is a virtual package without a version, which satisfies
    /// only unversioned relations.
    pub fn accepts(&self, version: Option<&str>) -> bool {
        match (self.version, version) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some((op, wanted)), Some(version)) => op.accepts(version::compare(version, wanted)),
        }
    }

    /// Whether the architecture qualifier allows a package of `arch`, on a single-architecture base.
    pub fn accepts_arch(&self, arch: &str) -> bool {
        match self.arch {
            None | Some("any" | "native" | "all") => true,
            Some(wanted) => wanted == arch,
        }
    }
}

impl fmt::Display for Relation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        if let Some(arch) = self.arch {
            write!(f, ":{arch}")?;
        }
        if let Some((op, version)) = self.version {
            write!(f, " ({} {version})", op.as_str())?;
        }
        Ok(())
    }
}

fn parse_version(text: &str) -> Option<(Op, &str)> {
    // Longer operators first: `<` is a prefix of `<<` and `<=`.
    let operators = [
        ("<<", Op::Less),
        ("<=", Op::LessEqual),
        (">=", Op::GreaterEqual),
        (">>", Op::Greater),
        ("<", Op::LessEqual),
        (">", Op::GreaterEqual),
        ("=", Op::Equal),
    ];
    operators.into_iter().find_map(|(sign, op)| Some((op, text.strip_prefix(sign)?.trim()))).filter(|v| !v.1.is_empty())
}

/// The comma-separated clauses of a field.
pub fn clauses(field: &str) -> impl Iterator<Item = &str> {
    field.split(',').map(str::trim).filter(|clause| !clause.is_empty())
}

/// The alternatives of a clause; malformed ones are left out.
pub fn alternatives(clause: &str) -> impl Iterator<Item = Relation<'_>> {
    // `<` and `>` of a version never hold a `|`, so that splitting first is safe.
    clause.split('|').filter_map(Relation::parse)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_archives_write() {
        let r = |s| Relation::parse(s).map(|r| r.to_string());
        assert_eq!(r("libc6 (>= 2.36)").as_deref(), Some("libc6 (>= 2.36)"));
        assert_eq!(r("perl:any").as_deref(), Some("perl:any"));
        assert_eq!(r(" a(<<1) ").as_deref(), Some("a (<< 1)"));
        assert_eq!(r("a (< 1)").as_deref(), Some("a (<= 1)"));
        assert_eq!(r("a (= 1) [amd64] <!nocheck>").as_deref(), Some("a (= 1)"));
        assert_eq!(r("a [!amd64]").as_deref(), Some("a"));
        for bad in ["", "a b", "a (>= 1", "a (1)", "a (>=)", "../x"] {
            assert_eq!(r(bad), None, "{bad}");
        }
        let all: Vec<_> = clauses("a, b | c (>= 1),, d").map(|c| alternatives(c).count()).collect();
        assert_eq!(all, [1, 2, 1]);
    }

    #[test]
    fn versions_and_virtual_packages() {
        let r = Relation::parse("a (>= 2)").unwrap();
        assert!(r.accepts(Some("2-1")) && !r.accepts(Some("1")) && !r.accepts(None));
        assert!(Relation::parse("a").unwrap().accepts(None));
        assert!(Relation::parse("a (<< 2)").unwrap().accepts(Some("2~rc1")));
        assert!(Relation::parse("a:amd64").unwrap().accepts_arch("amd64"));
        assert!(!Relation::parse("a:i386").unwrap().accepts_arch("amd64"));
    }
}
