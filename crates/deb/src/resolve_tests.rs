use super::*;
use crate::index::Index;

/// `name version; Field: value; …` per line.
fn index(lines: &str) -> Index {
    let mut text = String::new();
    for line in lines.lines().map(str::trim).filter(|l| !l.is_empty()) {
        let mut parts = line.split(';').map(str::trim);
        let (name, version) = parts.next().unwrap().split_once(' ').unwrap();
        text += &format!(
            "Package: {name}\nVersion: {version}\nArchitecture: amd64\nFilename: {name}\nSize: 1\nSHA256: {}\n",
            "00".repeat(32)
        );
        parts.for_each(|field| text += &format!("{field}\n"));
        text += "\n";
    }
    Index::parse("test", text.as_bytes(), "amd64").unwrap()
}

fn solve(lines: &str, goals: &[&str]) -> Result<Vec<String>> {
    let indexes = [index(lines)];
    let universe = Universe::of(&indexes);
    let goals: Vec<Goal<'_>> = goals.iter().map(|g| Goal { clause: g, reason: Reason::Requested }).collect();
    let solution = resolve(&universe, &goals, None)?;
    let show = |(name, (id, _)): (&String, &(Id, Reason))| format!("{name}={}", universe.get(*id).unwrap().version());
    Ok(solution.chosen.iter().map(show).collect())
}

#[test]
fn closure_with_alternatives_versions_and_provides() {
    let got = solve(
        "app 1; Depends: lib (>= 2), mta | exim, awk
         lib 3; Pre-Depends: base
         lib 1
         base 1
         exim 4
         gawk 5; Provides: awk
         mawk 1; Provides: awk; Priority: required",
        &["app"],
    );
    assert_eq!(got.unwrap(), ["app=1", "base=1", "exim=4", "lib=3", "mawk=1"]);
}

#[test]
fn versioned_provides_and_cycles() {
    let lines = "a 1; Depends: v (>= 2)\np 1; Provides: v (= 1)\nq 1; Provides: v (= 2); Depends: a\nr 1; Provides: v";
    assert_eq!(solve(lines, &["a"]).unwrap(), ["a=1", "q=1"]);
}

#[test]
fn what_is_chosen_already_satisfies() {
    let lines = "a 1; Depends: x | y\nb 1\nx 1\ny 1";
    assert_eq!(solve(lines, &["y", "a"]).unwrap(), ["a=1", "y=1"]);
}

#[test]
fn backtracks_over_conflicts() {
    // x is tried first for a, but z, which comes later, breaks it.
    let lines = "a 1; Depends: x | y\nx 1\ny 1\nc 1; Depends: z\nz 1; Breaks: x (<< 2)";
    assert_eq!(solve(lines, &["a", "c"]).unwrap(), ["a=1", "c=1", "y=1", "z=1"]);
    // The newest lib is no good for old; the older one serves both.
    let lines = "new 1; Depends: lib\nold 1; Depends: lib (<< 2)\nlib 2\nlib 1";
    assert_eq!(solve(lines, &["new", "old"]).unwrap(), ["lib=1", "new=1", "old=1"]);
}

#[test]
fn conflicting_with_what_one_provides_means_the_others() {
    let lines = "mta1 1; Provides: mta; Conflicts: mta\nmta2 1; Provides: mta; Conflicts: mta";
    assert_eq!(solve(lines, &["mta1"]).unwrap(), ["mta1=1"]);
    let error = solve(lines, &["mta1", "mta2"]).unwrap_err().to_string();
    assert!(error.contains("mta1 conflicts with mta, which is mta2 1"), "{error}");
}

#[test]
fn many_irrelevant_choices_do_not_explode() {
    // 40 choices of 3, then a dead end that only the first one caused.
    let mut lines = String::from("app 1; Depends: first | second");
    for i in 0..40 {
        lines += &format!(", c{i}a | c{i}b | c{i}c");
    }
    lines += ", last\nfirst 1\nsecond 1\nlast 1; Conflicts: first\n";
    for i in 0..40 {
        lines += &format!("c{i}a 1\nc{i}b 1\nc{i}c 1\n");
    }
    let got = solve(&lines, &["app"]).unwrap();
    assert!(got.contains(&"second=1".to_owned()) && got.contains(&"c39a=1".to_owned()));
}

#[test]
fn the_chain_of_reasons_is_told() {
    let lines = "app 2; Depends: mid\nmid 1; Depends: libfoo (>= 5) | nothere\nlibfoo 4";
    let Error::Unsatisfiable(error) = solve(lines, &["app"]).unwrap_err() else { panic!() };
    assert_eq!(error.chain, ["app is asked for", "app 2 depends on mid", "mid 1 depends on libfoo (>= 5) | nothere"]);
    assert_eq!(error.reasons, ["libfoo is there only in version 4", "there is no package nothere"]);
}

#[test]
fn a_conflict_tells_both_sides() {
    let lines = "a 1; Depends: x\nb 1; Depends: y\nx 1\ny 1; Conflicts: x";
    let Error::Unsatisfiable(error) = solve(lines, &["a", "b"]).unwrap_err() else { panic!() };
    assert_eq!(error.chain, ["b is asked for", "b 1 depends on y"]);
    assert_eq!(error.reasons, ["y 1 conflicts with x (a is asked for; a 1 depends on x)"]);
}

#[test]
fn skipping_and_reasons() {
    let indexes = [index("a 1; Depends: debconf, lib\ndebconf 1\nlib 1")];
    let universe = Universe::of(&indexes);
    let goals = [Goal { clause: "a", reason: Reason::Requested }];
    let skip = |_: &Package<'_>, clause: &str| crate::relation::alternatives(clause).any(|r| r.name == "debconf");
    let solution = resolve(&universe, &goals, Some(&skip)).unwrap();
    assert_eq!(solution.skipped, [("a".to_owned(), "debconf".to_owned())]);
    let (_, reason) = &solution.chosen["lib"];
    assert_eq!(*reason, Reason::Needed { by: "a".into(), clause: "depends on lib".into() });
    assert!(!solution.chosen.contains_key("debconf"));
}
