//! The command line of a build that failed, to be pasted: with a shell where it failed.

use std::ffi::OsString;
use std::io::IsTerminal;

use kiln_engine::dockerfile::is_secret_name;

/// Groups of commands that have a `build`.
const GROUPS: [&str; 3] = ["buildx", "builder", "image"];

/// What opens a shell where the step failed. The command itself only where somebody can paste it.
pub fn with_shell() -> String {
    let terminal = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    let words = terminal.then(|| command(std::env::args_os())).flatten();
    words.map_or_else(
        || "the same command with --on-error=shell opens a shell where it failed".to_owned(),
        |words| format!("for a shell where it failed:\n  {words}"),
    )
}

/// The command with `--on-error=shell`; nothing if a shell does not take it, or if it has what should not be on a screen.
fn command(arguments: impl Iterator<Item = OsString>) -> Option<String> {
    let mut words = arguments.map(|w| w.into_string().ok()).collect::<Option<Vec<_>>>()?;
    let mut at = 1;
    while words.get(at)? == "--root"
        || words.get(at)?.starts_with("--root=")
        || GROUPS.contains(&words.get(at)?.as_str())
    {
        at += if words.get(at)? == "--root" { 2 } else { 1 };
    }
    if !["build", "b"].contains(&words.get(at)?.as_str()) || words.iter().any(|w| w == "-" || is_secret(w)) {
        return None;
    }
    words.insert(at + 1, "--on-error=shell".to_owned());
    Some(words.iter().map(|w| quoted(w)).collect::<Vec<_>>().join(" "))
}

/// Whether it gives a build arg that is named like a credential a value.
fn is_secret(word: &str) -> bool {
    let text = word.strip_prefix("--build-arg=").unwrap_or(word);
    text.split_once('=').is_some_and(|(name, _)| is_secret_name(name))
}

/// As a shell's word.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &[&str]) -> Option<String> {
        command(words.iter().map(OsString::from))
    }

    #[test]
    fn it_can_be_pasted() {
        let shell = |text: &str| Some(text.to_owned());
        assert_eq!(of(&["kiln", "build", "."]), shell("kiln build --on-error=shell ."));
        assert_eq!(
            of(&["./kiln", "--root", "/a b", "buildx", "b", "--build-arg", "A=it's $1", "."]),
            shell(r"./kiln --root '/a b' buildx b --on-error=shell --build-arg 'A=it'\''s $1' .")
        );
        assert_eq!(of(&["kiln", "build", "-f", "-", "."]), None);
        assert_eq!(of(&["kiln", "build", "--build-arg", "NPM_TOKEN=x", "."]), None);
        assert_eq!(of(&["kiln", "build", "--build-arg=NPM_TOKEN=x", "."]), None);
        assert_eq!(of(&["kiln", "base", "bookworm"]), None);
        assert_eq!(of(&["kiln"]), None);
    }
}
