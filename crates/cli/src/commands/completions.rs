//! `kiln completions`, and what its scripts ask for.

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::{Args, Command, CommandFactory};
use clap_complete::env::{CompleteEnv, Elvish, EnvCompleter, Fish, Powershell, Shells, Zsh};

use crate::error::CliError;

/// Print a completion script for a shell
///
/// Commands, options and files are completed, and the images, containers, builds, stages and build arguments that there are.
///
/// bash, in ~/.bashrc:                    source <(kiln completions bash)
/// zsh, in ~/.zshrc, after compinit:      source <(kiln completions zsh)
/// fish, in ~/.config/fish/config.fish:   kiln completions fish | source
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct CompletionsArgs {
    /// The shell
    shell: clap_complete::Shell,
}

/// The variable that makes `kiln` answer a shell; its value is the shell.
const ASKED: &str = "KILN_COMPLETE";
const SHELLS: Shells<'static> = Shells(&[&Bash, &Elvish, &Fish, &Powershell, &Zsh]);

/// Prints the script.
pub fn run(args: &CompletionsArgs) -> Result<ExitCode, CliError> {
    let name = args.shell.to_string();
    let shell = SHELLS.completer(&name).ok_or_else(|| CliError::usage(format!("no completions for {name}")))?;
    // Whoever reads it through a pipe may stop early.
    _ = shell.write_registration(ASKED, "kiln", "kiln", "kiln", &mut std::io::stdout());
    Ok(ExitCode::SUCCESS)
}

/// Answers a shell that asks how a line goes on. False if nobody asks, which is found out at no cost.
pub fn answer() -> bool {
    if std::env::var_os(ASKED).is_none() {
        return false;
    }
    let asked = CompleteEnv::with_factory(command).var(ASKED).shells(SHELLS);
    let directory = std::env::current_dir().ok();
    // What it has to say against a line is nothing to show between the words of one.
    asked.try_complete(std::env::args_os(), directory.as_deref()).unwrap_or(true)
}

/// Whoever has not begun to write an option wants none: the library offers all of them beside the images or containers.
fn command() -> Command {
    let mut command = super::Cli::command();
    command.build();
    let mut words = std::env::args_os().skip_while(|word| word != "--").skip(1);
    let index = std::env::var("_CLAP_COMPLETE_INDEX").ok().and_then(|index| index.parse().ok());
    let current = match index {
        Some(index) => words.nth(index),
        None => words.last(),
    };
    match current.is_none_or(|word| word.is_empty()) {
        true => without_options(command),
        false => command,
    }
}

/// What is hidden is offered only where nothing else is.
fn without_options(command: Command) -> Command {
    let command = command.mut_args(|arg| if arg.is_positional() { arg } else { arg.hide(true) });
    let names: Vec<String> = command.get_subcommands().map(|c| c.get_name().to_owned()).collect();
    names.into_iter().fold(command, |command, name| command.mut_subcommand(name, without_options))
}

/// The library's script for bash takes words as bash cuts them: at the colons of image names, too.
struct Bash;

const BASH: &str = r#"_kiln() {
    local rest=${COMP_LINE:0:COMP_POINT} words=() word i IFS=$'\n'
    for ((i = 0; i <= COMP_CWORD; i++)); do
        # What bash cut at `:` or `=` belongs together.
        if [[ $i -eq 0 || $rest == [[:space:]]* ]]; then words+=(""); fi
        rest=${rest#"${rest%%[![:space:]]*}"}
        word=${COMP_WORDS[i]}
        if ((i == COMP_CWORD)); then word=$rest; fi
        words[${#words[@]} - 1]+=$word
        rest=${rest#"$word"}
    done
    local last=${words[${#words[@]} - 1]} cut=""
    if [[ $last == *[:=]* ]]; then cut=${last%"${last##*[:=]}"}; fi
    COMPREPLY=($(KILN_COMPLETE=bash _CLAP_IFS="$IFS" _CLAP_COMPLETE_INDEX=$((${#words[@]} - 1)) \
        kiln -- "${words[@]}" 2>/dev/null))
    COMPREPLY=("${COMPREPLY[@]#"$cut"}")
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[/=:] ]]; then compopt -o nospace; fi
}
complete -o bashdefault -o nosort -F _kiln kiln 2>/dev/null || complete -o bashdefault -F _kiln kiln
"#;

impl EnvCompleter for Bash {
    fn name(&self) -> &'static str {
        "bash"
    }

    fn is(&self, name: &str) -> bool {
        name == "bash"
    }

    fn write_registration(&self, _: &str, _: &str, _: &str, _: &str, out: &mut dyn Write) -> std::io::Result<()> {
        out.write_all(BASH.as_bytes())
    }

    fn write_complete(
        &self,
        command: &mut clap::Command,
        words: Vec<OsString>,
        directory: Option<&Path>,
        out: &mut dyn Write,
    ) -> std::io::Result<()> {
        clap_complete::env::Bash.write_complete(command, words, directory, out)
    }
}
