//! `kiln login`.

use std::io::{BufRead, IsTerminal, Read, Write};
use std::process::ExitCode;

use clap::Args;
use kiln_engine::Error;
use kiln_engine::registry::{self, Credential, StoredIn};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use crate::environment::Environment;
use crate::error::CliError;

/// Log in to a registry
///
/// The password is checked with the registry, then kept where docker keeps it: with the credential helper that
/// ~/.docker/config.json names (credHelpers, credsStore), else in that file.
///
///   kiln login ghcr.io
///   echo "$TOKEN" | kiln login -u me --password-stdin registry.example.com
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct LoginArgs {
    /// Registry; Docker Hub if absent
    #[arg(default_value = "docker.io", hide_default_value = true)]
    server: String,
    /// User name
    #[arg(short, long)]
    username: Option<String>,
    /// Password or token; other users of this machine can see it: prefer --password-stdin
    #[arg(short, long, conflicts_with = "password_stdin")]
    password: Option<String>,
    /// Read the password from standard input
    #[arg(long, requires = "username")]
    password_stdin: bool,
    /// Verify the registry's certificate; false also allows plain http
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    tls_verify: bool,
}

/// Longest password that is read.
const MAX_PASSWORD: u64 = 64 << 10;

/// Logs in.
pub fn run(args: &LoginArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    let (username, password) = credential(args)?;
    let client = environment.client();
    if !args.tls_verify {
        client.allow_insecure(args.server.split('/').next().unwrap_or_default());
    }
    let done = client.login(&args.server, &Credential::basic(username, password)).map_err(|e| match e {
        registry::Error::Unauthorized { registry, reason, .. } => {
            CliError::failed(format!("log-in to {registry} failed: {reason}"))
        }
        other => Error::from(other).into(),
    })?;
    match done.stored {
        StoredIn::File(path) => eprintln!(
            "WARNING: the {} is stored in {} without encryption; a credential helper (credsStore in that file) would \
             encrypt it",
            if done.identity_token { "token" } else { "password" },
            path.display()
        ),
        StoredIn::Helper(_) => {}
    }
    println!("Login Succeeded");
    Ok(ExitCode::SUCCESS)
}

fn credential(args: &LoginArgs) -> Result<(String, String), CliError> {
    if args.password_stdin {
        let mut password = String::new();
        let read = std::io::stdin().take(MAX_PASSWORD).read_to_string(&mut password);
        read.map_err(|e| CliError::failed(format!("can't read the password from standard input: {e}")))?;
        // a line end comes from `echo` and the like, and is no part of a password
        let password = password.trim_end_matches(['\r', '\n']).to_owned();
        return complete(args.username.clone().unwrap_or_default(), password);
    }
    if args.password.is_some() {
        eprintln!("WARNING: --password shows the password to other users of this machine: use --password-stdin");
    }
    let terminal = std::io::stdin().is_terminal();
    if !terminal && (args.username.is_none() || args.password.is_none()) {
        return Err(CliError::failed("a user name and password can be asked for on a terminal only")
            .with_hint("echo \"$PASSWORD\" | kiln login -u USER --password-stdin REGISTRY"));
    }
    let username = match &args.username {
        Some(username) => username.clone(),
        None => ask("Username: ", true)?,
    };
    let password = match &args.password {
        Some(password) => password.clone(),
        None => ask("Password: ", false)?,
    };
    complete(username, password)
}

fn complete(username: String, password: String) -> Result<(String, String), CliError> {
    match (username.is_empty(), password.is_empty()) {
        (false, false) => Ok((username, password)),
        (true, _) => Err(CliError::usage("the user name is empty")),
        (_, true) => Err(CliError::usage("the password is empty")),
    }
}

/// Asks on the terminal. Without echo, what the user types is not shown.
fn ask(question: &str, echo: bool) -> Result<String, CliError> {
    let failed = |e: std::io::Error| CliError::failed(format!("can't read from the terminal: {e}"));
    let mut err = std::io::stderr();
    let _ = err.write_all(question.as_bytes()).and_then(|()| err.flush());
    let stdin = std::io::stdin();
    let before = tcgetattr(&stdin).map_err(|e| failed(e.into()))?;
    if !echo {
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&stdin, OptionalActions::Now, &silent).map_err(|e| failed(e.into()))?;
    }
    let mut line = String::new();
    let read = stdin.lock().take(MAX_PASSWORD).read_line(&mut line);
    if !echo {
        let _ = tcsetattr(&stdin, OptionalActions::Now, &before);
        eprintln!();
    }
    read.map_err(failed)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}
