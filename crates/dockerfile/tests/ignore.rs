//! Ignore files against the behaviour that moby/patternmatcher's own tests describe, and against a slow but literal model of it.

#![allow(clippy::unwrap_used)]

use kiln_dockerfile::{IgnoreFile, IgnoreMatcher, PatternSet};
use proptest::prelude::*;

fn ignored(patterns: &[&str], path: &str) -> bool {
    IgnoreMatcher::from_patterns(patterns).unwrap().matches(path).ignored
}

#[test]
fn single_patterns() {
    let matching = [
        ("**", "file"),
        ("**/", "file"),
        ("**", "dir/file"),
        ("**/**", "dir/file"),
        ("dir/**", "dir/file"),
        ("dir/**", "dir/dir2/file"),
        ("**/dir", "dir"),
        ("**/dir", "dir/file"),
        ("**/dir2/*", "dir/dir2/file"),
        ("**/dir2/**", "dir/dir2/dir3/file"),
        ("**file", "file"),
        ("**file", "dir/file"),
        ("**/file", "dir/dir/file"),
        ("**file", "dir/xfile"),
        ("**/file*", "dir/dir/file.txt"),
        ("**/file*txt", "dir/dir/file.txt"),
        ("**/file*.txt*", "dir/dir/file.txt"),
        ("**/**/*.txt", "dir/dir/file.txt"),
        ("**/*.txt", "file.txt"),
        ("**/**/*.txt", "file.txt"),
        ("a**/*.txt", "a/file.txt"),
        ("a**/*.txt", "a/dir/dir/file.txt"),
        ("a/*.txt", "a/file.txt"),
        ("a/*.txt**", "a/file.txt"),
        ("a[b-d]e", "ace"),
        ("a[^b-d]e", "aze"),
        (".*", ".foo"),
        ("abc.def", "abc.def"),
        ("abc?def", "abcZdef"),
        ("**/foo/bar", "foo/bar"),
        ("**/foo/bar", "dir/dir2/foo/bar"),
        ("abc/**", "abc/def/ghi"),
        ("**/.foo", ".foo"),
        ("a(b)c/def", "a(b)c/def"),
        ("a.|)$(}+{bc", "a.|)$(}+{bc"),
        ("dist/*.whl", "dist/p.py-2.4.0rc3.dev36+g08acad9-py3-none-any.whl"),
        ("a\\\\", "a\\"),
        ("a\\*b", "a*b"),
        ("*", "abc"),
        ("a*", "ab/c"),
        ("a*b*c*d*e*/f", "axbxcxdxexxx/f"),
        ("a?b", "a☺b"),
        ("[a-ζ]*", "α"),
        ("docs", "docs/a/b"),
        ("docs/", "docs/a"),
        ("/docs", "docs"),
        ("./docs//x/../y", "docs/y"),
        ("a**b", "ax/b"),
        ("dir**", "dirx/y"),
        ("a/**/b/**/c", "a/x/b/y/z/c/d"),
        ("  spaced  ", "spaced"),
        ("[^a]", "b/c"),
    ];
    for (pattern, path) in matching {
        assert!(ignored(&[pattern], path), "{pattern} should match {path}");
    }
    let others = [
        ("**/**/*.txt2", "dir/dir/file.txt"),
        ("a/*.txt", "a/dir/file.txt"),
        ("a[b-d]e", "ae"),
        ("a[b-d]e", "aae"),
        (".*", "foo"),
        ("abc.def", "abcdef"),
        ("abc.def", "abcZdef"),
        ("abc?def", "abcdef"),
        ("abc/**", "abc"),
        ("**/.foo", "bar.foo"),
        ("a(b)c/def", "a(b)c/xyz"),
        ("a*/b", "a/c/b"),
        ("a?b", "a/b"),
        ("a*b", "a/b"),
        ("ab[^c]", "abc"),
        ("docs", "docs2"),
        ("x/docs", "docs"),
        ("**/file*", "xfile"),
        ("a**b", "axb"),
        ("*.log", "a/b.log"),
        ("**", "."),
        ("*", "."),
        ("a/../..", "b"),
    ];
    for (pattern, path) in others {
        assert!(!ignored(&[pattern], path), "{pattern} should not match {path}");
    }
}

#[test]
fn the_last_match_wins() {
    assert!(!ignored(&["**", "!util/docker/web"], "util/docker/web/foo"));
    assert!(ignored(&["**", "!util/docker/web", "util/docker/web/foo"], "util/docker/web/foo"));
    assert!(ignored(&["!fileutils.go", "*.go"], "fileutils.go"));
    assert!(!ignored(&["*.go", "!fileutils.go"], "fileutils.go"));
    assert!(!ignored(&["docs/*", "!docs/README.md"], "docs/README.md"));
    assert!(!ignored(&["docs", "!docs/README.md"], "docs/README.md"));
}

#[test]
fn file_format() {
    let text = b"\xef\xbb\xbf# comment\r\n\r\n *.log \r\n  # not a comment\n! /keep.log\n!\n[z-a]\n[\n/\n\\#x\n";
    let file = IgnoreFile::parse(text, ".dockerignore");
    let patterns: Vec<_> = file.patterns.iter().map(|p| (p.line, p.display())).collect();
    let expected = [(3, "*.log"), (4, "# not a comment"), (5, "!keep.log"), (9, "/"), (10, "\\#x")];
    assert_eq!(patterns, expected.map(|(l, p)| (l, p.to_string())));
    let errors: Vec<_> = file.diagnostics.iter().map(|d| d.one_line(&file.source)).collect();
    assert_eq!(
        errors,
        [
            ".dockerignore:6:1: error: illegal exclusion pattern: \"!\" (write the pattern to re-include after the !)",
            ".dockerignore:7:1: error: syntax error in pattern \"[z-a]\"",
            ".dockerignore:8:1: error: syntax error in pattern \"[\"",
        ]
    );
    assert_eq!(IgnoreMatcher::new(&file).unwrap_err(), file.diagnostics);
    let matcher = IgnoreMatcher::new(&IgnoreFile::parse(&text[..54], ".dockerignore")).unwrap();
    let verdict = matcher.matches("a.log");
    assert_eq!((verdict.ignored, verdict.rule.unwrap().line), (true, 3));
    assert_eq!(matcher.describe(verdict.rule.unwrap()), "line 3 of .dockerignore: *.log");
    let verdict = matcher.matches("keep.log");
    assert_eq!((verdict.ignored, verdict.rule.unwrap().line), (false, 5));
    assert_eq!(matcher.matches("main.c").rule, None);
    assert!(ignored(&["\\#x"], "#x"));
    let set = PatternSet::new(&["a/*", "!a/b"]).unwrap();
    assert!(set.matches("a/c") && !set.matches("a/b") && set.can_skip_dir("a/c") && !set.can_skip_dir("a"));
    assert!(matcher.matches(b"\xff.log").ignored);
    assert!(IgnoreMatcher::from_patterns(&["!"]).is_err() && IgnoreMatcher::from_patterns(&["[Local-Only]/"]).is_err());
}

#[test]
fn whole_directories_are_skipped_when_nothing_in_them_can_return() {
    let skip = |patterns: &[&str], dir: &str| IgnoreMatcher::from_patterns(patterns).unwrap().can_skip_dir(dir);
    assert!(skip(&["node_modules"], "node_modules"));
    assert!(skip(&["**/node_modules", "!src"], "a/node_modules"));
    assert!(!skip(&["a"], "b"));
    assert!(!skip(&["docs", "!docs/README.md"], "docs"));
    assert!(skip(&["docs", "!docs/README.md"], "docs/img"));
    assert!(skip(&["!docs/README.md", "docs"], "docs"));
    assert!(!skip(&["*", "!src/**"], "src"));
    assert!(skip(&["*", "!src/**"], "tests"));
    assert!(!skip(&["*", "!a/*/c"], "a"));
    assert!(!skip(&["*", "!a/*/c"], "a/b"));
    assert!(skip(&["*", "!a/*/c"], "a/b/x"));
    assert!(!skip(&["*", "!**/x"], "a"));
    assert!(!skip(&["*", "!a/**/x*"], "a/b"));
    assert!(skip(&["*", "!a/**/x*"], "b"));
    assert!(!skip(&["*", "!a"], "a"));
    assert!(!skip(&["*"], "."));
}

/// The rules of patternmatcher, written as slowly as they read.
mod model {
    pub fn ignored(patterns: &[String], path: &str) -> bool {
        let parts: Vec<&str> = path.split('/').collect();
        let mut matched = false;
        for pattern in patterns {
            let (negated, body) = pattern.strip_prefix('!').map_or((false, pattern.as_str()), |b| (true, b));
            if negated != matched {
                continue;
            }
            if (1..=parts.len()).any(|n| one(body, &parts[..n].join("/"))) {
                matched = !negated;
            }
        }
        matched
    }

    fn one(pattern: &str, path: &str) -> bool {
        let wild = |s: &str| s.contains(['*', '?']);
        if let Some(suffix) = pattern.strip_prefix("**")
            && !wild(suffix)
        {
            return path.ends_with(suffix) || suffix.strip_prefix('/') == Some(path);
        }
        regex(pattern.as_bytes(), path.as_bytes())
    }

    fn regex(p: &[u8], t: &[u8]) -> bool {
        match p {
            [] => t.is_empty(),
            [b'*', b'*', rest @ ..] => {
                let rest = rest.strip_prefix(b"/").unwrap_or(rest);
                if rest.is_empty() {
                    return true;
                }
                regex(rest, t) || (0..t.len()).any(|i| t[i] == b'/' && regex(rest, &t[i + 1..]))
            }
            [b'*', rest @ ..] => {
                let free = t.iter().position(|b| *b == b'/').unwrap_or(t.len());
                (0..=free).any(|i| regex(rest, &t[i..]))
            }
            [b'?', rest @ ..] => t.first().is_some_and(|b| *b != b'/') && regex(rest, &t[1..]),
            [c, rest @ ..] => t.first() == Some(c) && regex(rest, &t[1..]),
        }
    }
}

fn a_path() -> impl Strategy<Value = String> {
    proptest::collection::vec("[ab]{1,3}", 1..5).prop_map(|parts| parts.join("/"))
}

fn a_pattern() -> impl Strategy<Value = String> {
    let part = prop_oneof![3 => "[ab]{1,2}", 2 => Just("*".to_string()), 2 => Just("**".to_string()), 1 => "[ab*?]{1,3}", 1 => "\\*\\*[ab]"];
    (any::<bool>(), proptest::collection::vec(part, 1..5))
        .prop_map(|(negated, parts)| format!("{}{}", if negated { "!" } else { "" }, parts.join("/")))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_model(patterns in proptest::collection::vec(a_pattern(), 1..5), path in a_path()) {
        let matcher = IgnoreMatcher::from_patterns(&patterns).unwrap();
        prop_assert_eq!(matcher.matches(&path).ignored, model::ignored(&patterns, &path), "{:?} {}", patterns, path);
    }

    #[test]
    fn nothing_below_a_skipped_directory_is_kept(
        patterns in proptest::collection::vec(a_pattern(), 1..5), dir in a_path(), rest in a_path(),
    ) {
        let matcher = IgnoreMatcher::from_patterns(&patterns).unwrap();
        if matcher.can_skip_dir(&dir) {
            let path = format!("{dir}/{rest}");
            prop_assert!(matcher.matches(&path).ignored, "{:?} {}", patterns, path);
        }
    }

    #[test]
    fn never_panics(file in proptest::collection::vec(any::<u8>(), 0..200), path in proptest::collection::vec(any::<u8>(), 0..40)) {
        if let Ok(matcher) = IgnoreMatcher::new(&IgnoreFile::parse(&file, "x")) {
            let _ = matcher.matches(&path);
            let _ = matcher.can_skip_dir(&path);
        }
        let _ = kiln_dockerfile::path_match(&file, &path);
    }
}

/// Not a benchmark, a guard: quadratic behaviour would take minutes.
#[test]
fn hostile_patterns_are_not_slow() {
    let pattern = format!("{}b", "*a".repeat(200));
    let deep = format!("{}b", "**/a".repeat(200));
    let matcher = IgnoreMatcher::from_patterns(&[pattern, deep]).unwrap();
    assert!(!matcher.matches("a".repeat(2000)).ignored);
    assert!(!matcher.matches("a/".repeat(300)).ignored);
}

#[test]
#[ignore = "a measurement, to be run with --release"]
fn speed() {
    let patterns = [
        ".git",
        "**/node_modules",
        "*.log",
        "**/*.pyc",
        "docs/**/*.md",
        "!docs/README.md",
        "build/",
        "**/.DS_Store",
        "dist/*",
        "src/*/generated",
        "**/test_*.py",
        "tmp/**",
    ];
    let matcher = IgnoreMatcher::from_patterns(&patterns).unwrap();
    let paths: Vec<String> =
        (0..50_000).map(|i| format!("src/module{}/package{}/file_number_{i}.rs", i % 50, i % 7)).collect();
    let best = (0..20).map(|_| {
        let start = std::time::Instant::now();
        assert!(!paths.iter().any(|p| matcher.matches(p.as_bytes()).ignored));
        start.elapsed()
    });
    println!("50,000 paths, 12 patterns: {:?}", best.min());
}
