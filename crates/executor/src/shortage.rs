//! Why there are fewer ids than images expect.

use std::path::Path;

use crate::preflight::{Finding, Level, subordinate_ids_of};
use crate::rootless::{self, IdMap, Identity};

/// Ids that distributions give a user, and that images use: up to `nobody`, 65534.
const USUAL: u64 = 65_536;

/// Fewer ids than images expect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    /// How many there are.
    pub ids: u64,
    /// Why.
    pub detail: String,
    /// What a person can do about it.
    pub remedy: Option<String>,
}

/// Tells whether the process works with fewer ids than usual, and why. To be asked after [`rootless::enter`].
pub fn shortage() -> Option<Shortage> {
    let map = IdMap::read(Path::new("/proc/self/uid_map"));
    let ids = map.count();
    if ids >= USUAL {
        return None;
    }
    let made_here = rootless::mapping_failure();
    let (detail, remedy) = match (rootless::current(), map.outer(), made_here) {
        (Some(Identity::SingleId), Some(uid @ 1..), Some(said)) => reason(subordinate_ids_of(uid), said),
        (Some(Identity::SingleId), Some(0), Some(_)) => (
            "root may not map its own ids here".to_owned(),
            Some("start the container that kiln is in with CAP_SETUID and CAP_SETGID".to_owned()),
        ),
        (Some(Identity::SingleId), ..) => ("kiln was started in a user namespace with one id".to_owned(), None),
        _ => (
            format!("/etc/subuid gives {} ids only", ids.saturating_sub(1)),
            Some("a range of 65536 is usual".to_owned()),
        ),
    };
    Some(Shortage { ids, detail, remedy })
}

/// What can be seen to be wrong, else what the tool said.
fn reason(seen: Finding, said: &str) -> (String, Option<String>) {
    if seen.level != Level::Good {
        return (seen.detail, seen.remedy);
    }
    let said = said.lines().next().unwrap_or("newuidmap failed").trim();
    let remedy = "the ranges in /etc/subuid and /etc/subgid must lie within those of this machine or container";
    (said.to_owned(), Some(remedy.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tool_is_quoted_where_nothing_is_seen_to_be_wrong() {
        let good = Finding { what: "", level: Level::Good, detail: String::new(), remedy: None };
        let (detail, remedy) = reason(good.clone(), "newuidmap: uid range [1-65537) -> [1-65537) not allowed\nmore\n");
        assert!(detail.ends_with("not allowed") && remedy.is_some());
        let bad = Finding { level: Level::Limited, detail: "not installed".into(), ..good };
        assert_eq!(reason(bad, "x"), ("not installed".to_owned(), None));
    }
}
