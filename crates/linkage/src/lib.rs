//! Whether the programs of an image find what they need to start: their loader, their libraries in the versions that
//! they were linked with, the interpreter of a script, the command itself.
//!
//! "No such file or directory" for a file that is there is what people get who copy a program from a stage with glibc into
//! `scratch`, Alpine or distroless. The answer is in the image's files, so it can be had before the image is used.
//!
//! Invariants: nothing is run; nothing outside the root is read; a file that is not understood is no problem, because a
//! check that cries wolf is switched off.

mod command;
mod elf;
mod problem;
mod search;

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};

use kiln_rootfs::{FileKind, Root};

pub use elf::Facts;
pub use problem::{Finding, Problem};
pub use search::Libc;

use search::{Defaults, run_paths};

/// What an image starts, and how.
#[derive(Debug, Clone, Default)]
pub struct Start {
    /// Entrypoint and command, as one list.
    pub args: Vec<String>,
    /// `KEY=value`.
    pub env: Vec<String>,
    /// Working directory; empty for `/`.
    pub working_dir: String,
    /// Architecture of the image, as OCI names it.
    pub architecture: String,
}

/// Checks the programs of one image.
pub struct Checker<'a> {
    root: &'a Root,
    start: &'a Start,
    defaults: Defaults,
    /// What was read of files, by their path without links.
    known: HashMap<PathBuf, Option<Facts>>,
    findings: Vec<Finding>,
}

impl<'a> Checker<'a> {
    /// Of an image's merged file system.
    pub fn new(root: &'a Root, start: &'a Start) -> Self {
        let defaults = Defaults::new(root, &start.env, &start.architecture);
        Self { root, start, defaults, known: HashMap::new(), findings: Vec::new() }
    }

    /// What was found, in the order of the paths.
    pub fn finish(mut self) -> Vec<Finding> {
        self.findings.sort();
        self.findings.dedup();
        self.findings
    }

    /// Checks one executable. Programs for other processors are left alone: packages carry them for others to choose from.
    pub fn program(&mut self, path: &Path) {
        let Some((real, facts)) = self.facts(path) else { return };
        if facts.executable && facts.architecture == Some(self.start.architecture.as_str()) {
            self.linked(path, &real, &facts);
        }
    }

    fn report(&mut self, path: &Path, problem: Problem) {
        self.findings.push(Finding { path: path.to_string_lossy().into_owned(), problem });
    }

    /// The facts of an ELF file, and its path without links.
    fn facts(&mut self, path: &Path) -> Option<(PathBuf, Facts)> {
        let real = Path::new("/").join(self.root.resolve(path).ok()?);
        if let Some(known) = self.known.get(&real) {
            return known.clone().map(|facts| (real, facts));
        }
        let facts = self.root.open_file(&real).ok().and_then(elf::read);
        self.known.insert(real.clone(), facts.clone());
        facts.map(|facts| (real, facts))
    }

    /// Follows what a program needs, breadth first, as its loader does.
    fn linked(&mut self, shown: &Path, real: &Path, program: &Facts) {
        let Some(loader) = &program.loader else { return };
        let libc = Libc::of_loader(loader);
        if !self.is_file(Path::new(loader)) {
            let has = self.other_libc(libc);
            self.report(shown, Problem::MissingLoader { loader: loader.clone(), libc, image_has: has });
            return;
        }
        let mut loaded: HashMap<String, Option<PathBuf>> = HashMap::new();
        let mut queue = VecDeque::from([(real.to_owned(), program.clone(), Vec::new())]);
        let mut seen = HashSet::from([real.to_owned()]);
        while let Some((path, facts, inherited)) = queue.pop_front() {
            let directories = self.defaults.directories(&facts, &path, &inherited, libc);
            let mut given = run_paths(&facts, &path, libc);
            given.extend(inherited);
            for name in &facts.needed {
                if loaded.contains_key(name) {
                    continue;
                }
                let found = self.find(name, &directories, program.architecture);
                // musl's loader is its C library, whatever name a program knows it by.
                let builtin = libc == Libc::Musl && name.starts_with("libc.");
                match &found {
                    Some((at, theirs)) if seen.insert(at.clone()) => {
                        queue.push_back((at.clone(), theirs.clone(), given.clone()));
                    }
                    None if !builtin => {
                        let needed_by = (path != real).then(|| path.to_string_lossy().into_owned());
                        self.report(shown, Problem::MissingLibrary { name: name.clone(), needed_by });
                    }
                    _ => {}
                }
                loaded.insert(name.clone(), found.map(|(at, _)| at));
            }
        }
        self.versions(shown, program, &loaded);
    }

    /// Whether the libraries have the versions that the program was linked with.
    fn versions(&mut self, shown: &Path, program: &Facts, loaded: &HashMap<String, Option<PathBuf>>) {
        for (library, wanted) in &program.versions {
            let Some(Some(at)) = loaded.get(library) else { continue };
            let Some((_, facts)) = self.facts(&at.clone()) else { continue };
            // A library without versions satisfies all of them.
            if facts.defines.is_empty() {
                continue;
            }
            let missing = wanted.iter().filter(|v| !facts.defines.contains(*v));
            if let Some(version) = missing.max_by_key(|v| numbers(v)) {
                let (library, version) = (library.clone(), version.clone());
                self.report(shown, Problem::MissingVersion { library, version });
            }
        }
    }

    /// The first library of this name that is for the same processor.
    fn find(&mut self, name: &str, directories: &[PathBuf], architecture: Option<&str>) -> Option<(PathBuf, Facts)> {
        if name.contains('/') {
            return self.facts(Path::new(name));
        }
        directories.iter().find_map(|d| self.facts(&d.join(name)).filter(|(_, f)| f.architecture == architecture))
    }

    fn is_file(&self, path: &Path) -> bool {
        self.root.try_stat(path, true).ok().flatten().is_some_and(|s| s.kind == FileKind::File)
    }

    /// Which C library the image has, if it is another than the program wants.
    fn other_libc(&self, wanted: Libc) -> Option<Libc> {
        let has = |directory: &str, prefix: &str| {
            let entries = self.root.read_dir(Path::new(directory)).unwrap_or_default();
            entries.iter().any(|e| e.name.to_string_lossy().starts_with(prefix))
        };
        match wanted {
            Libc::Glibc if has("/lib", "ld-musl-") => Some(Libc::Musl),
            Libc::Musl if has("/lib64", "ld-linux") || has("/lib", "ld-linux") => Some(Libc::Glibc),
            _ => None,
        }
    }
}

/// The numbers in a version's name, so that `GLIBC_2.10` is newer than `GLIBC_2.9`.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect()
}
