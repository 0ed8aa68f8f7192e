//! An ignore file and a path, separated by a zero byte: no panic, and what is said about directories agrees with what is said about paths.

use kiln_dockerfile::{IgnoreFile, IgnoreMatcher, path_match};

/// One input.
pub fn run(data: &[u8]) {
    let (file, path) = match data.iter().position(|b| *b == 0) {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (data, b"a/b".as_slice()),
    };
    let _ = path_match(file, path);
    let Ok(matcher) = IgnoreMatcher::new(&IgnoreFile::parse(file, ".dockerignore")) else { return };
    let verdict = matcher.matches(path);
    if verdict.ignored {
        // What is below something ignored is ignored too, unless a later pattern brings it back.
        let below = [path, b"/x".as_slice()].concat();
        assert!(matcher.matches(&below).ignored || matcher.has_negations());
    }
    if matcher.can_skip_dir(path) {
        for child in ["x", "y/z", ".hidden"] {
            let below = [path, b"/".as_slice(), child.as_bytes()].concat();
            assert!(matcher.matches(&below).ignored);
        }
    }
}
