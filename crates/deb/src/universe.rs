//! All packages of all suites of a base, searched by name or by what they provide.

use std::collections::BTreeSet;

use crate::archive::Archive;
use crate::index::{Index, Package, newest_first};
use crate::relation::Relation;
use crate::suggest;

/// A package in the universe: which index, which record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id {
    pub index: u32,
    pub position: u32,
}

/// The packages that can be chosen from.
pub struct Universe<'a> {
    indexes: Vec<(&'a Index, usize)>,
    /// Where they come from, for messages.
    pub suites: String,
}

impl<'a> Universe<'a> {
    pub fn new(archive: &'a Archive) -> Self {
        let names: Vec<&str> = archive.suites.iter().map(|s| s.repository.suite.as_str()).collect();
        let of_suite =
            |(number, suite): (usize, &'a crate::archive::Suite)| suite.indexes.iter().map(move |i| (i, number));
        Self { indexes: archive.suites.iter().enumerate().flat_map(of_suite).collect(), suites: names.join(", ") }
    }

    #[cfg(test)]
    pub fn of(indexes: &'a [Index]) -> Self {
        Self { indexes: indexes.iter().map(|i| (i, 0)).collect(), suites: "test".into() }
    }

    pub fn get(&self, id: Id) -> Option<Package<'a>> {
        self.indexes.get(id.index as usize)?.0.get(id.position as usize)
    }

    /// The number of the suite that a package is from.
    pub fn suite(&self, id: Id) -> usize {
        self.indexes.get(id.index as usize).map_or(0, |(_, suite)| *suite)
    }

    /// The packages of that name, newest first; of equal versions the one of the first suite.
    pub fn named(&self, name: &str) -> Vec<(Id, Package<'a>)> {
        let mut found = Vec::new();
        for (number, (index, _)) in self.indexes.iter().enumerate() {
            for position in index.named(name) {
                let id = Id { index: number as u32, position: position as u32 };
                found.extend(index.get(position).map(|package| (id, package)));
            }
        }
        found.sort_by(|a, b| newest_first(&a.1, &b.1));
        found
    }

    /// The packages that satisfy one alternative of a clause, best first: real ones, then providers (essential and
    /// required ones before others, then by name, newest first).
    pub fn satisfying(&self, relation: &Relation<'_>) -> Vec<Id> {
        let mut ids: Vec<Id> = self
            .named(relation.name)
            .into_iter()
            .filter(|(_, p)| relation.accepts(Some(p.version())) && relation.accepts_arch(p.arch()))
            .map(|(id, _)| id)
            .collect();
        let mut providers: Vec<(Id, Package<'a>)> = Vec::new();
        for (number, (index, _)) in self.indexes.iter().enumerate() {
            for (position, version) in index.providing(relation.name) {
                let id = Id { index: number as u32, position: position as u32 };
                if relation.accepts(version) {
                    providers.extend(index.get(position).map(|package| (id, package)));
                }
            }
        }
        providers.sort_by(|(_, a), (_, b)| {
            let rank = |p: &Package<'_>| (!p.is_essential(), rank(p.priority()));
            rank(a).cmp(&rank(b)).then_with(|| a.name().cmp(b.name())).then_with(|| newest_first(a, b))
        });
        for (id, _) in providers {
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        ids
    }

    /// The names of the packages with a mark, in the newest version of each.
    pub fn marked(&self, mark: impl Fn(&Package<'_>) -> bool) -> Vec<&'a str> {
        let mut names = BTreeSet::new();
        for (index, _) in &self.indexes {
            names.extend(index.iter().filter(|p| mark(p)).map(|p| p.name()));
        }
        names.retain(|name| self.named(name).first().is_some_and(|(_, p)| mark(p)));
        names.into_iter().collect()
    }

    /// Whether the newest package of that name is essential and comes from another source package.
    pub fn is_essential_elsewhere(&self, name: &str, source: &str) -> bool {
        let mut newest: Option<Package<'a>> = None;
        for (index, _) in &self.indexes {
            for package in index.named(name).filter_map(|position| index.get(position)).take(1) {
                if newest.is_none_or(|have| newest_first(&package, &have).is_lt()) {
                    newest = Some(package);
                }
            }
        }
        newest.is_some_and(|p| p.is_essential() && p.source() != source)
    }

    /// Known names near one that is not; for a virtual package those that provide it.
    pub fn nearest(&self, name: &str) -> Vec<String> {
        let providers: BTreeSet<&str> = self
            .indexes
            .iter()
            .flat_map(|(i, _)| i.providing(name).filter_map(|(p, _)| i.get(p)).map(|p| p.name()))
            .collect();
        if !providers.is_empty() {
            return providers.into_iter().take(8).map(str::to_owned).collect();
        }
        suggest::nearest(name, self.indexes.iter().flat_map(|(i, _)| i.iter()).map(|p| p.name()), 5)
    }
}

fn rank(priority: &str) -> u8 {
    match priority {
        "required" => 0,
        "important" => 1,
        "standard" => 2,
        "optional" => 3,
        _ => 4,
    }
}
