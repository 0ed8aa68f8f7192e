//! The long help texts, as wide as the terminal.
//!
//! They are written as doc comments with examples in them, which must keep their lines; so clap is told to keep all lines, and
//! those of paragraphs are joined here.

use std::ffi::OsString;

use clap::Command;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use kiln_engine::dockerfile::nearest;

/// The same with paragraphs that flow.
fn flowing(command: Command) -> Command {
    let text = command.get_long_about().map(|t| joined(&t.to_string()));
    let command = match text {
        Some(text) => command.long_about(text),
        None => command,
    };
    command.mut_subcommands(flowing)
}

/// What to type instead of a command that docker has and kiln has not.
const INSTEAD: [(&[&str], &str); 4] = [
    (
        &["attach"],
        "`kiln logs -f CONTAINER` shows what it writes, `kiln exec -it CONTAINER sh` opens a shell in a container that runs",
    ),
    (&["commit"], "an image comes from a Dockerfile; `kiln export` and `kiln import` make one of a container's files"),
    (
        &["pause", "unpause", "top", "stats", "update", "rename", "port"],
        "`kiln ps` lists containers, `kiln inspect` shows all of one",
    ),
    (&["info"], "`kiln system df` shows the store"),
];

/// The arguments as clap reads them. Docker's switches also take a value, which scripts make use of: `--pull=$PULL`.
pub fn arguments(command: fn() -> Command, mut words: Vec<OsString>) -> Result<clap::ArgMatches, clap::Error> {
    let mut parser = command();
    loop {
        match parser.try_get_matches_from_mut(&words) {
            Err(e) if without_boolean(&e, &mut words) => {}
            // Help texts are only made ready for who asks for them.
            Err(e) if e.kind() == ErrorKind::DisplayHelp => return flowing(command()).try_get_matches_from_mut(&words),
            Err(mut e) => {
                suggest(&parser, &mut e);
                return Err(e);
            }
            matches => return matches,
        }
    }
}

/// Leaves of clap's suggestions what helps: commands that are listed, and not `-- --flag`, which would be the context.
fn suggest(command: &Command, error: &mut clap::Error) {
    let nearest = match error.get(ContextKind::InvalidSubcommand) {
        Some(ContextValue::String(name)) => {
            let listed = command.get_subcommands().filter(|c| !c.is_hide_set()).map(Command::get_name);
            nearest(name, listed).filter(|_| instead(name).is_none()).map(str::to_owned)
        }
        _ if error.kind() == ErrorKind::UnknownArgument => {
            error.remove(ContextKind::Suggested);
            return;
        }
        _ => return,
    };
    match nearest {
        Some(name) => error.insert(ContextKind::SuggestedSubcommand, ContextValue::String(name)),
        None => error.remove(ContextKind::SuggestedSubcommand),
    };
}

fn instead(command: &str) -> Option<&'static str> {
    INSTEAD.iter().find(|(names, _)| names.contains(&command)).map(|(_, instead)| *instead)
}

/// If a switch has got the value `true` or `false`: takes the value away, or the switch.
fn without_boolean(error: &clap::Error, words: &mut Vec<OsString>) -> bool {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let (Some(flag), Some(value)) = (text(ContextKind::InvalidArg), text(ContextKind::InvalidValue)) else {
        return false;
    };
    let wanted = matches!(value, "true" | "1");
    if error.kind() != ErrorKind::TooManyValues || !(wanted || matches!(value, "false" | "0")) {
        return false;
    }
    let Some(at) = words.iter().position(|w| *w == *format!("{flag}={value}")) else { return false };
    match wanted {
        true => words[at] = flag.into(),
        false => drop(words.remove(at)),
    }
    true
}

/// Flags of `docker run` about networks of their own, restarts and limits.
const OF_DOCKER_RUN: [&str; 13] = [
    "--restart",
    "--privileged",
    "--cap-add",
    "--cap-drop",
    "--security-opt",
    "--memory",
    "-m",
    "--cpus",
    "--mount",
    "--tmpfs",
    "--add-host",
    "--device",
    "--gpus",
];

/// Says what an unknown command of docker's is here.
pub fn explain(error: &clap::Error) {
    if let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg)
        && error.kind() == ErrorKind::UnknownArgument
        && OF_DOCKER_RUN.contains(&flag.as_str())
    {
        eprintln!("hint: docker has {flag}, kiln has not: what `kiln run` has is in `kiln run --help`");
    }
    let Some(ContextValue::String(name)) = error.get(ContextKind::InvalidSubcommand) else { return };
    if let Some(instead) = instead(name) {
        eprintln!("hint: {instead}");
    }
}

fn joined(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut before = "";
    for line in text.lines() {
        let is_flowing = |line: &str| !line.is_empty() && ![" ", "- ", "* "].iter().any(|p| line.starts_with(p));
        let follows = is_flowing(before) && is_flowing(line);
        if !out.is_empty() {
            out.push(if follows { ' ' } else { '\n' });
        }
        out.push_str(line);
        before = line;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paragraphs_are_joined_and_examples_are_not() {
        let text = "Frees space\n\nWhat was not\nused goes.\nExamples:\n  kiln a\n  kiln b\n\n- one\n- two";
        let expected = "Frees space\n\nWhat was not used goes. Examples:\n  kiln a\n  kiln b\n\n- one\n- two";
        assert_eq!(joined(text), expected);
    }
}
