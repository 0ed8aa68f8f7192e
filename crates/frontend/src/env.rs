//! An ordered set of variables.

use std::collections::HashMap;

/// `NAME=value` pairs: a new value replaces the old one at its place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Env {
    pairs: Vec<(String, String)>,
    index: HashMap<String, usize>,
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
        self.index.get(name).map(|&i| self.pairs[i].1.as_str())
    }

    /// Sets a variable.
    pub fn set(&mut self, name: &str, value: &str) {
        match self.index.get(name) {
            Some(&i) => self.pairs[i].1 = value.to_owned(),
            None => {
                self.index.insert(name.to_owned(), self.pairs.len());
                self.pairs.push((name.to_owned(), value.to_owned()));
            }
        }
    }

    /// All pairs in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    /// `NAME=value` for each, in order.
    pub fn entries(&self) -> Vec<String> {
        self.iter().map(|(k, v)| format!("{k}={v}")).collect()
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
        assert_eq!(env.entries(), ["A=4", "B=", "C=", "D=5"]);
        assert_eq!((env.get("A"), env.get("E")), (Some("4"), None));
    }
}
