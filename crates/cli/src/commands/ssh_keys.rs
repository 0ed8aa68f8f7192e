//! `--ssh ID=KEYFILE`: reads private keys, and asks for their passphrases.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;

use kiln_engine::sshagent::{Key, KeyError, KeyFile, LockedKey};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use crate::error::CliError;

/// As often as ssh asks.
const TRIES: u32 = 3;

/// Reads the keys, in their order.
pub fn read(paths: &[PathBuf]) -> Result<Vec<Key>, CliError> {
    let failed = |e: KeyError| CliError::failed(e.to_string());
    let one = |path: &PathBuf| match KeyFile::read(path).map_err(failed)? {
        KeyFile::Open(key) => Ok(key),
        KeyFile::Locked(locked) => ask(&locked),
    };
    paths.iter().map(one).collect()
}

fn ask(locked: &LockedKey) -> Result<Key, CliError> {
    let path = locked.path().display();
    let Ok(mut terminal) = File::options().read(true).write(true).open("/dev/tty") else {
        return Err(CliError::failed(format!("the ssh key {path} is encrypted, and there is no terminal to ask"))
            .with_hint(format!("load it into an agent (ssh-add {path}) and give --ssh default")));
    };
    let broken = |e: std::io::Error| CliError::failed(format!("can't ask for the passphrase of {path}: {e}"));
    for _ in 0..TRIES {
        let passphrase = without_echo(&mut terminal, &format!("Enter passphrase for {path}: ")).map_err(broken)?;
        writeln!(terminal).map_err(broken)?;
        match locked.unlock(&passphrase) {
            Err(KeyError::Passphrase { .. }) => writeln!(terminal, "Wrong passphrase.").map_err(broken)?,
            other => return other.map_err(|e| CliError::failed(e.to_string())),
        }
    }
    Err(CliError::failed(format!("no passphrase opens the ssh key {path}")))
}

/// A line of the terminal that it does not show. It asks when it hears: what was typed before is thrown away.
fn without_echo(terminal: &mut File, prompt: &str) -> std::io::Result<String> {
    let before = tcgetattr(&*terminal)?;
    let mut quiet = before.clone();
    quiet.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&*terminal, OptionalActions::Flush, &quiet)?;
    let mut line = String::new();
    let asked = terminal.write_all(prompt.as_bytes());
    let read = asked.and_then(|()| BufReader::new(&*terminal).read_line(&mut line));
    tcsetattr(&*terminal, OptionalActions::Now, &before)?;
    if read? == 0 {
        return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof));
    }
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}
