//! An ordered set of variables.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

/// `NAME=value` pairs: a new value replaces the old one at its place. Copies share the pairs until one of them changes: each of
/// a thousand stages starts with the variables of its base.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Env {
    shared: Arc<Pairs>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Pairs {
    list: Vec<(String, String)>,
    index: HashMap<String, usize>,
    /// Made when it is asked for first: ten thousand steps in a row have the same.
    entries: OnceLock<Arc<[String]>>,
}

impl Env {
    /// The variables of an image config; an entry without `=` is an empty variable.
    pub fn parse<'a>(entries: impl IntoIterator<Item = &'a String>) -> Self {
        let mut env = Self::default();
        for entry in entries {
            let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
            env.set(name, value);
        }
        env
    }

    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.shared.index.get(name).map(|&i| self.shared.list[i].1.as_str())
    }

    /// Sets a variable.
    pub fn set(&mut self, name: &str, value: &str) {
        if self.get(name) == Some(value) {
            return;
        }
        let pairs = Arc::make_mut(&mut self.shared);
        pairs.entries = OnceLock::new();
        match pairs.index.get(name) {
            Some(&i) => pairs.list[i].1 = value.to_owned(),
            None => {
                pairs.index.insert(name.to_owned(), pairs.list.len());
                pairs.list.push((name.to_owned(), value.to_owned()));
            }
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.shared.list.len()
    }

    /// All pairs in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.shared.list.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    /// `NAME=value` for each, in order.
    pub fn entries(&self) -> Arc<[String]> {
        let make = || self.iter().map(|(k, v)| format!("{k}={v}")).collect();
        Arc::clone(self.shared.entries.get_or_init(make))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_value_stays_at_the_old_place() {
        let mut env = Env::parse(&["A=1".to_owned(), "B=2=3".to_owned(), "C".to_owned(), "A=4".to_owned()]);
        env.set("B", "");
        env.set("D", "5");
        assert_eq!(*env.entries(), ["A=4", "B=", "C=", "D=5"]);
        assert!(Arc::ptr_eq(&env.entries(), &env.clone().entries()));
        assert_eq!((env.get("A"), env.get("E"), env.len()), (Some("4"), None, 4));
        let mut copy = env.clone();
        copy.set("A", "4");
        assert!(Arc::ptr_eq(&copy.shared, &env.shared));
        copy.set("A", "5");
        assert_eq!((copy.get("A"), env.get("A")), (Some("5"), Some("4")));
        assert_eq!((&*copy.entries()[0], &*env.entries()[0]), ("A=5", "A=4"));
    }
}
