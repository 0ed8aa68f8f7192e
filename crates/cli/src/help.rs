//! The long help texts, as wide as the terminal.
//!
//! They are written as doc comments with examples in them, which must keep their lines; so clap is told to keep all lines, and
//! those of paragraphs are joined here.

use clap::Command;
use clap::error::{ContextKind, ContextValue};

/// The same with paragraphs that flow.
pub fn flowing(command: Command) -> Command {
    let text = command.get_long_about().map(|t| joined(&t.to_string()));
    let command = match text {
        Some(text) => command.long_about(text),
        None => command,
    };
    command.mut_subcommands(flowing)
}

/// What to type instead of a command that docker has and kiln has not.
const INSTEAD: [(&[&str], &str); 3] = [
    (
        &[
            "ps",
            "exec",
            "create",
            "start",
            "stop",
            "kill",
            "rm",
            "cp",
            "attach",
            "wait",
            "commit",
            "export",
            "container",
        ],
        "containers that outlive their command are not there yet: `kiln run` runs one in the foreground, `kiln debug` opens a shell in \
         an image, `kiln build --output type=local` takes files out of one",
    ),
    (&["version"], "it is `kiln --version`"),
    (&["info"], "`kiln system df` shows the store"),
];

/// Says, before clap's own words, what an unknown command of docker's is here.
pub fn explain(error: &clap::Error) {
    let Some(ContextValue::String(name)) = error.get(ContextKind::InvalidSubcommand) else { return };
    if let Some((_, instead)) = INSTEAD.iter().find(|(names, _)| names.contains(&name.as_str())) {
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
