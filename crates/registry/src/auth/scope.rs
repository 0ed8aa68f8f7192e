//! Token scopes: `repository:name:pull,push`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A set of scopes, in one canonical form: actions of one resource are merged, everything is sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Scopes(BTreeMap<String, BTreeSet<String>>);

impl Scopes {
    pub fn repository(name: &str, actions: &str) -> Self {
        Self::default().and(&format!("repository:{name}:{actions}"))
    }

    /// Adds one scope in text form; what is not a scope is kept out.
    pub fn and(mut self, scope: &str) -> Self {
        if let Some((resource, actions)) = scope.rsplit_once(':')
            && resource.contains(':')
        {
            let set = self.0.entry(resource.to_owned()).or_default();
            set.extend(actions.split(',').filter(|a| !a.is_empty()).map(str::to_owned));
        }
        self
    }

    /// With the scopes of a challenge, separated by spaces.
    pub fn merged(self, challenge: &str) -> Self {
        challenge.split(' ').filter(|s| !s.is_empty()).take(20).fold(self, |all, scope| all.and(scope))
    }

    /// Number of repositories and other things that the scopes are about.
    pub fn resources(&self) -> usize {
        self.0.len()
    }

    pub fn texts(&self) -> Vec<String> {
        self.0.iter().map(|(r, a)| format!("{r}:{}", a.iter().cloned().collect::<Vec<_>>().join(","))).collect()
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.texts().join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_scopes_are_equal_however_they_are_written() {
        let a = Scopes::repository("a", "push,pull").and("repository:b:pull");
        let b = Scopes::repository("b", "pull").merged("repository:a:pull repository:a:push");
        assert_eq!(a, b);
        assert_eq!(a.to_string(), "repository:a:pull,push repository:b:pull");
        assert_eq!(Scopes::default().merged("nonsense  x").texts(), Vec::<String>::new());
        assert_eq!(Scopes::default().and("registry:catalog:*").to_string(), "registry:catalog:*");
    }
}
