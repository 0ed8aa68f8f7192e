//! Dependency resolution: which packages make a request whole.
//!
//! The search goes through the clauses in the order in which they come up (breadth first from the request) and takes
//! the first alternative that does not clash with what is chosen. At a dead end it goes back to the last choice that
//! had a part in it (conflict-directed backjumping): every chosen package knows the choices it follows from. The result
//! depends on the request and the indexes only.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::error::{Error, Result, Unsatisfiable};
use crate::index::Package;
use crate::relation::{Relation, alternatives};
use crate::universe::{Id, Universe};

/// How many dead ends are explored before the search gives up.
const MAX_DEAD_ENDS: usize = 20_000;

/// Why a package is in a base.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It was named.
    Requested,
    /// Every base of this variant has it.
    Base,
    /// `Essential: yes`.
    Essential,
    /// `Priority: required`.
    Required,
    /// Another package needs it.
    Needed {
        /// The package.
        by: String,
        /// The clause, with its field: `depends on libc6 (>= 2.36)`.
        clause: String,
    },
}

/// Something that must be in the result.
#[derive(Debug, Clone)]
pub struct Goal<'a> {
    pub clause: &'a str,
    pub reason: Reason,
}

/// Decides that a clause need not be met: gets the depending package and the clause.
pub type Skip<'s> = &'s dyn Fn(&Package<'_>, &str) -> bool;

/// The outcome.
pub struct Solution {
    /// The packages by name.
    pub chosen: BTreeMap<String, (Id, Reason)>,
    /// Clauses that were not followed: (package, clause).
    pub skipped: Vec<(String, String)>,
}

/// Finds a set of packages that meets all goals.
pub fn resolve<'a>(universe: &Universe<'a>, goals: &[Goal<'a>], skip: Option<Skip<'_>>) -> Result<Solution> {
    let mut search = Search {
        universe,
        skip,
        goals,
        queue: goals
            .iter()
            .enumerate()
            .map(|(i, g)| Clause { owner: Owner::Goal(i), verb: "is asked for", text: g.clause })
            .collect(),
        position: 0,
        chosen: HashMap::new(),
        trail: Vec::new(),
        provided: HashMap::new(),
        forbidden: HashMap::new(),
        decisions: Vec::new(),
        skipped: Vec::new(),
        failure: None,
        dead_ends: 0,
    };
    search.run()?;
    Ok(search.solution())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner<'a> {
    Goal(usize),
    Package(&'a str),
}

#[derive(Clone, Copy)]
struct Clause<'a> {
    owner: Owner<'a>,
    verb: &'static str,
    text: &'a str,
}

struct Chosen<'a> {
    id: Id,
    package: Package<'a>,
    clause: Clause<'a>,
    /// The decisions without which it would not be chosen.
    culprits: BTreeSet<usize>,
}

struct Decision {
    /// Position of the clause in the queue.
    position: usize,
    candidates: Vec<Id>,
    next: usize,
    trail: usize,
    queue: usize,
    skipped: usize,
    /// Earlier decisions that had a part in the dead ends below this one.
    conflict: BTreeSet<usize>,
}

struct Search<'a, 's> {
    universe: &'s Universe<'a>,
    skip: Option<Skip<'s>>,
    goals: &'s [Goal<'a>],
    queue: Vec<Clause<'a>>,
    position: usize,
    chosen: HashMap<&'a str, Chosen<'a>>,
    trail: Vec<&'a str>,
    provided: HashMap<&'a str, Vec<(&'a str, Option<&'a str>)>>,
    forbidden: HashMap<&'a str, Vec<(&'a str, &'static str, Relation<'a>)>>,
    decisions: Vec<Decision>,
    skipped: Vec<(&'a str, &'a str)>,
    failure: Option<Unsatisfiable>,
    dead_ends: usize,
}

impl<'a> Search<'a, '_> {
    fn run(&mut self) -> Result<()> {
        while let Some(clause) = self.queue.get(self.position).copied() {
            if self.is_satisfied(clause.text) || self.is_skipped(clause) {
                self.position += 1;
                continue;
            }
            let (candidates, blockers) = self.candidates(clause);
            let mut culprits = self.owner_culprits(clause.owner);
            for blocker in &blockers {
                culprits.extend(self.culprits(blocker.name));
            }
            match candidates.as_slice() {
                [] => {
                    self.explain(clause, blockers);
                    self.backtrack(culprits)?;
                }
                [only] => {
                    self.choose(*only, clause, culprits);
                    self.position += 1;
                }
                [first, ..] => {
                    let first = *first;
                    self.decisions.push(Decision {
                        position: self.position,
                        next: 1,
                        trail: self.trail.len(),
                        queue: self.queue.len(),
                        skipped: self.skipped.len(),
                        conflict: culprits,
                        candidates,
                    });
                    self.choose(first, clause, BTreeSet::from([self.decisions.len() - 1]));
                    self.position += 1;
                }
            }
        }
        Ok(())
    }

    /// Whether something that is chosen meets the clause.
    fn is_satisfied(&self, clause: &'a str) -> bool {
        alternatives(clause).any(|relation| {
            let real = self.chosen.get(relation.name);
            real.is_some_and(|c| relation.accepts(Some(c.package.version())) && relation.accepts_arch(c.package.arch()))
                || self.provided.get(relation.name).is_some_and(|all| all.iter().any(|(_, v)| relation.accepts(*v)))
        })
    }

    fn is_skipped(&mut self, clause: Clause<'a>) -> bool {
        let (Some(skip), Owner::Package(name)) = (self.skip, clause.owner) else { return false };
        let skipped = self.chosen.get(name).is_some_and(|owner| skip(&owner.package, clause.text));
        if skipped {
            self.skipped.push((name, clause.text));
        }
        skipped
    }

    /// The candidates for a clause that clash with nothing, and what stands against the others.
    fn candidates(&self, clause: Clause<'a>) -> (Vec<Id>, Vec<Blocker<'a>>) {
        let (mut free, mut blockers): (Vec<Id>, Vec<Blocker<'a>>) = (Vec::new(), Vec::new());
        for relation in alternatives(clause.text) {
            for id in self.universe.satisfying(&relation) {
                let Some(package) = self.universe.get(id) else { continue };
                if free.contains(&id) {
                    continue;
                }
                match self.blocker(&package) {
                    None => free.push(id),
                    Some(blocker) => blockers.push(blocker),
                }
            }
        }
        (free, blockers)
    }

    /// The chosen package that a candidate can't be installed with.
    fn blocker(&self, candidate: &Package<'a>) -> Option<Blocker<'a>> {
        let name = candidate.name();
        let blocked = |by: &'a str, reason: String| Some(Blocker { name: by, reason });
        if let Some(have) = self.chosen.get(name) {
            let reason = format!("{name} {} can't be taken beside {}", candidate.version(), have.package.version());
            return blocked(name, reason);
        }
        let own = std::iter::once((name, Some(candidate.version()))).chain(candidate.provides());
        for (provided, version) in own {
            for (by, verb, relation) in self.forbidden.get(provided).into_iter().flatten() {
                if relation.accepts(version) {
                    return blocked(by, format!("{by} {verb} {relation}, which is {name} {}", candidate.version()));
                }
            }
        }
        for (verb, clause) in candidate.conflicts() {
            for relation in alternatives(clause) {
                if let Some(have) = self.chosen.get(relation.name)
                    && relation.accepts(Some(have.package.version()))
                {
                    return blocked(relation.name, format!("{name} {} {verb} {relation}", candidate.version()));
                }
                for (by, version) in self.provided.get(relation.name).into_iter().flatten() {
                    if relation.accepts(*version) && *by != name {
                        return blocked(
                            by,
                            format!("{name} {} {verb} {relation}, which {by} provides", candidate.version()),
                        );
                    }
                }
            }
        }
        None
    }

    fn choose(&mut self, id: Id, clause: Clause<'a>, culprits: BTreeSet<usize>) {
        let Some(package) = self.universe.get(id) else { return };
        let name = package.name();
        for (provided, version) in package.provides() {
            self.provided.entry(provided).or_default().push((name, version));
        }
        for (verb, text) in package.conflicts() {
            for relation in alternatives(text) {
                // A package that provides what it conflicts with means all others (policy 7.6.2).
                if relation.name != name {
                    self.forbidden.entry(relation.name).or_default().push((name, verb, relation));
                }
            }
        }
        let needs = package.depends().map(|(verb, text)| Clause { owner: Owner::Package(name), verb, text });
        self.queue.extend(needs);
        self.trail.push(name);
        self.chosen.insert(name, Chosen { id, package, clause, culprits });
    }

    /// Undoes choices down to a length of the trail.
    fn undo(&mut self, trail: usize) {
        for name in self.trail.split_off(trail.min(self.trail.len())) {
            let Some(gone) = self.chosen.remove(name) else { continue };
            for (provided, _) in gone.package.provides() {
                if let Some(all) = self.provided.get_mut(provided) {
                    all.retain(|(by, _)| *by != name);
                }
            }
            for relation in gone.package.conflicts().flat_map(|(_, text)| alternatives(text)) {
                if let Some(all) = self.forbidden.get_mut(relation.name) {
                    all.retain(|(by, ..)| *by != name);
                }
            }
        }
    }

    /// Goes back to the last decision in `conflict` that has another candidate.
    fn backtrack(&mut self, mut conflict: BTreeSet<usize>) -> Result<()> {
        self.dead_ends += 1;
        while let Some(level) = conflict.pop_last() {
            self.decisions.truncate(level + 1);
            let Some(mut decision) = self.decisions.pop() else { continue };
            self.undo(decision.trail);
            self.queue.truncate(decision.queue);
            self.skipped.truncate(decision.skipped);
            self.position = decision.position;
            decision.conflict.extend(conflict.iter().copied());
            match decision.candidates.get(decision.next).copied().filter(|_| self.dead_ends < MAX_DEAD_ENDS) {
                Some(id) => {
                    let clause = self.queue[decision.position];
                    decision.next += 1;
                    self.decisions.push(decision);
                    self.choose(id, clause, BTreeSet::from([level]));
                    self.position += 1;
                    return Ok(());
                }
                None => conflict = decision.conflict,
            }
        }
        let nothing = Unsatisfiable { chain: Vec::new(), reasons: Vec::new() };
        Err(Error::Unsatisfiable(self.failure.take().unwrap_or(nothing)))
    }

    fn culprits(&self, name: &str) -> BTreeSet<usize> {
        self.chosen.get(name).map(|c| c.culprits.clone()).unwrap_or_default()
    }

    fn owner_culprits(&self, owner: Owner<'a>) -> BTreeSet<usize> {
        match owner {
            Owner::Goal(_) => BTreeSet::new(),
            Owner::Package(name) => self.culprits(name),
        }
    }

    /// Keeps the first dead end's story: it is about what the request would most naturally have given.
    fn explain(&mut self, clause: Clause<'a>, blockers: Vec<Blocker<'a>>) {
        if self.failure.is_some() {
            return;
        }
        let mut reasons = Vec::new();
        for relation in alternatives(clause.text) {
            if self.universe.satisfying(&relation).is_empty() {
                reasons.push(self.nothing_satisfies(&relation));
            }
        }
        for blocker in blockers {
            let path = self.chain(self.chosen.get(blocker.name).map(|c| c.clause));
            let because = if path.is_empty() { String::new() } else { format!(" ({})", path.join("; ")) };
            let reason = format!("{}{because}", blocker.reason);
            if !reasons.contains(&reason) {
                reasons.push(reason);
            }
        }
        self.failure = Some(Unsatisfiable { chain: self.chain(Some(clause)), reasons });
    }

    fn nothing_satisfies(&self, relation: &Relation<'a>) -> String {
        let available = self.universe.named(relation.name);
        match available.as_slice() {
            [] => {
                let near = self.universe.nearest(relation.name);
                format!("there is no package {}{}", relation.name, crate::suggest::hint(&near))
            }
            some => {
                let versions: Vec<&str> = some.iter().map(|(_, p)| p.version()).collect();
                format!("{} is there only in version {}", relation.name, versions.join(", "))
            }
        }
    }

    /// `a is asked for`, `a 1 depends on b`, … down to a clause.
    fn chain(&self, clause: Option<Clause<'a>>) -> Vec<String> {
        let mut lines = Vec::new();
        let mut next = clause;
        while let Some(clause) = next.filter(|_| lines.len() < 50) {
            match clause.owner {
                Owner::Goal(number) => {
                    let why = match self.goals.get(number).map(|g| &g.reason) {
                        Some(Reason::Essential) => "is essential",
                        Some(Reason::Required) => "is required",
                        Some(Reason::Base) => "belongs to every such base",
                        _ => "is asked for",
                    };
                    lines.push(format!("{} {why}", clause.text));
                    next = None;
                }
                Owner::Package(name) => {
                    let owner = self.chosen.get(name);
                    let version = owner.map_or("", |c| c.package.version());
                    lines.push(format!("{name} {version} {} {}", clause.verb, clause.text));
                    next = owner.map(|c| c.clause);
                }
            }
        }
        lines.reverse();
        lines
    }

    fn solution(self) -> Solution {
        let reason = |clause: Clause<'a>| match clause.owner {
            Owner::Goal(number) => self.goals.get(number).map_or(Reason::Requested, |g| g.reason.clone()),
            Owner::Package(by) => {
                Reason::Needed { by: by.to_owned(), clause: format!("{} {}", clause.verb, clause.text) }
            }
        };
        let chosen = self.chosen.iter().map(|(name, c)| ((*name).to_owned(), (c.id, reason(c.clause)))).collect();
        let skipped = self.skipped.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        Solution { chosen, skipped }
    }
}

struct Blocker<'a> {
    name: &'a str,
    reason: String,
}

#[cfg(test)]
#[path = "resolve_tests.rs"]
mod tests;
