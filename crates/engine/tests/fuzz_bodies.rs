//! The fuzz targets' bodies over their corpus and over inputs made from it, the same ones every time.
//!
//! `cargo fuzz run` looks for new inputs with a nightly compiler; this runs everywhere. With `KILN_FUZZ_SECONDS=N` each body
//! gets other inputs every time, for so long (`.ci/run` does it); a failure shows the input.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../../../fuzz/bodies/dockerfile.rs"]
mod dockerfile;
#[path = "../../../fuzz/bodies/dockerignore.rs"]
mod dockerignore;
#[path = "../../../fuzz/bodies/git_url.rs"]
mod git_url;
#[path = "../../../fuzz/bodies/manifest.rs"]
mod manifest;
#[path = "../../../fuzz/bodies/reference.rs"]
mod reference;
#[path = "../../../fuzz/bodies/tar_apply.rs"]
mod tar_apply;

use std::time::{Duration, Instant};

/// Inputs for each target, unless the environment says otherwise.
const ROUNDS: u32 = 3000;
/// On a slow machine fewer are run.
const LONGEST: Duration = Duration::from_secs(5);
/// Inputs do not grow without end.
const LARGEST: usize = 16 << 10;

/// A small generator of numbers (xorshift): the same numbers everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below.max(1) as u64) as usize
    }

    /// Changes the input in one place.
    fn mutate(&mut self, input: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        let at = self.next(input.len() + 1);
        let end = (at + 1 + self.next(16)).min(input.len());
        let odd: [&[u8]; 10] = [b"..", b"-", b"\0", b"$", b"${", b"/", b"\n", b"\xff", b"%2e", b"9999999999999999999"];
        match self.next(6) {
            0 if at < input.len() => input[at] ^= 1 << self.next(8),
            1 if at < input.len() => input[at] = self.next(256) as u8,
            2 if at < end => drop(input.drain(at..end)),
            3 if at < end => {
                let piece = input[at..end].to_vec();
                let to = self.next(input.len() + 1);
                input.splice(to..to, piece);
            }
            4 => {
                let token = odd[self.next(odd.len())];
                input.splice(at..at, token.iter().copied());
            }
            _ => {
                let other = &corpus[self.next(corpus.len())];
                let from = self.next(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
        }
        input.truncate(LARGEST);
    }
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let dir = format!("{}/../../fuzz/corpus/{name}", env!("CARGO_MANIFEST_DIR"));
    let mut paths: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 3, "the corpus of {name} is committed");
    paths.iter().map(|p| std::fs::read(p).unwrap()).collect()
}

fn replay(name: &str, body: fn(&[u8])) {
    let seconds = std::env::var("KILN_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok());
    let (rounds, longest) = seconds.map_or((ROUNDS, LONGEST), |s| (u32::MAX, Duration::from_secs(s)));
    let corpus = corpus(name);
    let since = Instant::now();
    let run = |input: &[u8]| {
        let outcome = std::panic::catch_unwind(|| body(input));
        assert!(outcome.is_ok(), "{name} fails for \"{}\"", input.escape_ascii());
    };
    corpus.iter().for_each(|input| run(input));
    let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |t| t.as_nanos() as u64);
    let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ seconds.map_or(0, |_| now));
    let mut done = 0;
    while done < rounds && since.elapsed() < longest {
        let mut input = corpus[random.next(corpus.len())].clone();
        for _ in 0..=random.next(4) {
            random.mutate(&mut input, &corpus);
        }
        run(&input);
        done += 1;
    }
    eprintln!("{name}: {done} inputs in {:.1} s", since.elapsed().as_secs_f32());
}

#[test]
fn dockerfiles() {
    replay("dockerfile", dockerfile::run);
}

#[test]
fn ignore_files() {
    replay("dockerignore", dockerignore::run);
}

#[test]
fn archives() {
    replay("tar_apply", tar_apply::run);
}

#[test]
fn image_names() {
    replay("reference", reference::run);
}

#[test]
fn manifests() {
    replay("manifest", manifest::run);
}

#[test]
fn git_urls() {
    replay("git_url", git_url::run);
}
