//! `kiln debug`, and the shell that `kiln build --on-error=shell` opens.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use kiln_engine::debug::{OnFailure, ShowShell};
use kiln_engine::executor::Terminal;
use kiln_engine::run::{Attach, DebugTools};

use super::run::{RunArgs, start};
use crate::environment::Environment;
use crate::error::CliError;
use crate::foreground::{Foreground, terminal_size};
use crate::progress::Display;

/// Where distributions put a static busybox.
const BUSYBOX: [&str; 3] = ["/bin/busybox", "/usr/bin/busybox", "/usr/local/bin/busybox"];

/// Open a shell in an image, also in one that has no shell
///
/// The image's user, environment, working directory and files are as its command would see them; what is written is thrown
/// away. Tools come from a static busybox of this machine (package busybox-static), which is mounted at /.kiln-tools and
/// comes last in PATH, so the image is not changed. With COMMAND, that is run in place of a shell, the tools within reach.
///
/// For a build that fails, use `kiln build --on-error=shell`.
///
/// Examples:
///   kiln debug app
///   kiln debug -u 0 app
///   kiln debug app ls -l /etc/ssl
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct DebugArgs {
    #[command(flatten)]
    tools: ToolsArgs,
    /// User in place of the image's
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// Image: a name, or the beginning of an ID
    #[arg(add = super::complete::images())]
    image: String,
    /// Command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Where a shell comes from if there is none.
#[derive(Debug, Args)]
pub struct ToolsArgs {
    /// A static busybox for shells where there is none
    #[arg(long, value_name = "FILE", env = "KILN_TOOLS", value_hint = clap::ValueHint::FilePath)]
    tools: Option<PathBuf>,
}

impl ToolsArgs {
    fn busybox(&self) -> Option<PathBuf> {
        let found = || BUSYBOX.into_iter().map(Path::new).find(|p| p.is_file()).map(Path::to_owned);
        self.tools.clone().or_else(found)
    }
}

/// Opens the shell.
pub fn run(args: &DebugArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    let mut run = RunArgs::simple(&args.image, &args.command, args.user.clone());
    run.container.tty = std::io::stdin().is_terminal();
    start(&run, Some(DebugTools { busybox: args.tools.busybox() }), environment)
}

/// A shell for steps that fail, in the user's terminal.
pub fn on_failure(tools: &ToolsArgs, foreground: Arc<Foreground>, display: Arc<Display>) -> OnFailure {
    OnFailure { tools: tools.busybox(), show: Arc::new(Shown { foreground, display }) }
}

struct Shown {
    foreground: Arc<Foreground>,
    display: Arc<Display>,
}

impl ShowShell for Shown {
    fn show(
        &self,
        step: &str,
        run: &mut dyn FnMut(Terminal, &dyn Attach) -> Result<(), kiln_engine::Error>,
    ) -> Result<(), kiln_engine::Error> {
        self.display.pause(|| {
            eprintln!("\n{step} failed. This shell has its files as the step left them; leave it with `exit`.");
            let ended = run(terminal_size(), &*self.foreground);
            self.foreground.detach();
            ended
        })
    }
}
