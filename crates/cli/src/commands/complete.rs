//! What shells offer at the tab key besides commands, options and files: images, containers and builds of the store, stages and
//! arguments of the Dockerfile that the line is about.
//!
//! The line is not finished, so it can't be parsed: what is asked for is read from the words as they are. Nothing here fails or prints;
//! what can't be read offers nothing.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap_complete::engine::{ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter};

use kiln_engine::container::{Container, Status, list};

use crate::environment::Environment;

/// Larger files are not looked through at the tab key.
const MOST_BYTES: u64 = 1 << 20;

/// Completes names of images.
pub fn images() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| candidates(current, image_names()))
}

/// Completes names of images, and of files.
pub fn images_and_files() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        let mut all = candidates(current, image_names());
        all.extend(PathCompleter::any().complete(current));
        all
    })
}

/// Completes names of containers.
pub fn containers() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| candidates(current, container_names(|_| true)))
}

/// Completes names of containers that run.
pub fn running_containers() -> ArgValueCompleter {
    let runs = |container: &Container| container.status() == Status::Running;
    ArgValueCompleter::new(move |current: &OsStr| candidates(current, container_names(runs)))
}

/// Completes names of containers that do not run.
pub fn idle_containers() -> ArgValueCompleter {
    let is_idle = |container: &Container| container.status() != Status::Running;
    ArgValueCompleter::new(move |current: &OsStr| candidates(current, container_names(is_idle)))
}

/// Completes names of containers, which `:` and a path follow, and files.
pub fn containers_and_files() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        let places = container_names(|_| true).into_iter().map(|name| format!("{name}:"));
        let mut all = candidates(current, places);
        all.extend(PathCompleter::any().complete(current));
        all
    })
}

/// Completes names of images and containers.
pub fn images_and_containers() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        candidates(current, image_names().into_iter().chain(container_names(|_| true)))
    })
}

/// Completes what has a log: names of containers and ids of builds.
pub fn logs() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        candidates(current, container_names(|_| true).into_iter().chain(build_ids()))
    })
}

/// Completes names of stages.
pub fn stages() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| candidates(current, stage_names(&dockerfile())))
}

/// Completes names of build arguments.
pub fn build_args() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| candidates(current, arg_names(&dockerfile())))
}

fn candidates(current: &OsStr, names: impl IntoIterator<Item = String>) -> Vec<CompletionCandidate> {
    let current = current.to_string_lossy();
    names.into_iter().filter(|n| n.starts_with(&*current)).map(CompletionCandidate::new).collect()
}

fn environment() -> Environment {
    Environment::new(value_of(&words(), &["--root"]).map(PathBuf::from))
}

fn container_names(wanted: impl Fn(&Container) -> bool) -> Vec<String> {
    let all = list(environment().root()).unwrap_or_default();
    all.into_iter().filter(wanted).map(|container| container.config.name).collect()
}

/// Of the newest builds: who wants an older one knows its id.
fn build_ids() -> Vec<String> {
    const MOST: usize = 20;
    let listed = environment().existing_store().and_then(|store| store.builds().list().ok());
    listed.into_iter().flatten().take(MOST).map(|build| build.id).collect()
}

fn image_names() -> Vec<String> {
    let listed = environment().existing_store().and_then(|store| store.images().list().ok());
    listed.into_iter().flatten().filter_map(|image| image.name.map(|name| name.familiar())).collect()
}

/// The line so far, without the program.
fn words() -> Vec<OsString> {
    let words = std::env::args_os().skip_while(|w| w != "--");
    words.skip(2).collect()
}

/// The value of an option, in one word with it or in the next one.
fn value_of(words: &[OsString], names: &[&str]) -> Option<OsString> {
    let next = |(index, word): (usize, &OsString)| {
        let word = word.to_str()?;
        let value = |name: &&str| word.strip_prefix(*name)?.strip_prefix('=').map(OsString::from);
        names.iter().find_map(value).or_else(|| names.contains(&word).then(|| words.get(index + 1).cloned())?)
    };
    words.iter().enumerate().find_map(next)
}

/// The text of the Dockerfile: the one that is named, or that of the first directory that has one.
fn dockerfile() -> String {
    let words = words();
    let named = value_of(&words, &["--file", "-f"]).map(PathBuf::from);
    let beside = words.iter().map(|w| Path::new(w).join("Dockerfile")).filter(|p| p.parent().is_some_and(Path::is_dir));
    let here = [PathBuf::from("Dockerfile")];
    let file = named.into_iter().chain(beside).chain(here).find(|p| p.is_file());
    let small = |p: &PathBuf| std::fs::metadata(p).is_ok_and(|m| m.len() <= MOST_BYTES);
    file.filter(small).and_then(|p| std::fs::read_to_string(p).ok()).unwrap_or_default()
}

fn stage_names(dockerfile: &str) -> Vec<String> {
    let name = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [from, .., as_word, name] if from.eq_ignore_ascii_case("FROM") && as_word.eq_ignore_ascii_case("AS") => {
                Some(name.to_owned())
            }
            _ => None,
        }
    };
    dockerfile.lines().filter_map(name).collect()
}

/// With the `=` that comes next.
fn arg_names(dockerfile: &str) -> BTreeSet<String> {
    let names = |line: &str| {
        let mut words = line.split_whitespace();
        let is_arg = words.next().is_some_and(|w| w.eq_ignore_ascii_case("ARG"));
        let name = |word: &str| format!("{}=", word.split('=').next().unwrap_or(word));
        words.take(if is_arg { 1 } else { 0 }).map(name).collect::<Vec<_>>()
    };
    dockerfile.lines().flat_map(names).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_and_arguments_are_found_in_any_case() {
        let text = "ARG V=1\nFROM a AS one\nARG W\narg V\nfrom one as two\nFROM three\nRUN AS four\n";
        assert_eq!(stage_names(text), ["one", "two"]);
        assert_eq!(arg_names(text).into_iter().collect::<Vec<_>>(), ["V=", "W="]);
    }

    #[test]
    fn values_are_found_in_both_forms() {
        let words = ["build", "-f", "a", "--root=b"].map(OsString::from);
        assert_eq!(value_of(&words, &["--file", "-f"]), Some("a".into()));
        assert_eq!(value_of(&words, &["--root"]), Some("b".into()));
        assert_eq!(value_of(&words, &["--roo"]), None);
        assert_eq!(value_of(&words[..2], &["-f"]), None);
    }
}
