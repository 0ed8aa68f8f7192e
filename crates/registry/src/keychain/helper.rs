//! The credential helper protocol: `docker-credential-NAME get|store|erase`, the server on standard input.

use std::io::{ErrorKind, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, printable};
use crate::secret::{Credential, Secret};

/// Cloud helpers talk to their servers; one that asks a person on a hidden terminal must not hang for ever.
const TIME_LIMIT: Duration = Duration::from_secs(60);
const MAX_OUTPUT: u64 = 1 << 20;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(rename = "ServerURL", default)]
    server_url: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

/// `None` if the helper has no credential for this server.
pub(super) fn get(dirs: &[PathBuf], helper: &str, server: &str) -> Result<Option<Credential>, Error> {
    let output = match run(dirs, helper, "get", server.as_bytes()) {
        Ok(output) => output,
        Err(Failure::Said(message)) if is_not_found(&message) => return Ok(None),
        Err(failure) => return Err(failure.error(helper)),
    };
    // the message of a parse error would quote the secret
    let malformed =
        |_| Error::Helper { helper: helper.to_owned(), reason: "its answer is not the JSON expected".into() };
    let answer: Answer = serde_json::from_slice(&output).map_err(malformed)?;
    Ok(match (answer.username.as_str(), answer.secret.is_empty()) {
        (_, true) => None,
        ("<token>", _) => Some(Credential::IdentityToken(Secret::new(answer.secret))),
        ("", _) => None,
        _ => Some(Credential::basic(answer.username, answer.secret)),
    })
}

pub(super) fn store(dirs: &[PathBuf], helper: &str, server: &str, credential: &Credential) -> Result<(), Error> {
    let (username, secret) = match credential {
        Credential::Basic { username, password } => (username.clone(), password.expose()),
        Credential::IdentityToken(token) => ("<token>".to_owned(), token.expose()),
        Credential::Bearer(_) => {
            return Err(Error::Helper { helper: helper.to_owned(), reason: "helpers can't keep bearer tokens".into() });
        }
    };
    let answer = Answer { server_url: server.to_owned(), username, secret: secret.to_owned() };
    let input =
        serde_json::to_vec(&answer).map_err(|e| Error::Helper { helper: helper.to_owned(), reason: e.to_string() })?;
    run(dirs, helper, "store", &input).map(drop).map_err(|f| f.error(helper))
}

pub(super) fn erase(dirs: &[PathBuf], helper: &str, server: &str) -> Result<(), Error> {
    match run(dirs, helper, "erase", server.as_bytes()) {
        Err(Failure::Said(message)) if is_not_found(&message) => Ok(()),
        other => other.map(drop).map_err(|f| f.error(helper)),
    }
}

enum Failure {
    /// It ended with an error and this message.
    Said(String),
    Other(String),
}

impl Failure {
    fn error(self, helper: &str) -> Error {
        let (Self::Said(reason) | Self::Other(reason)) = self;
        Error::Helper { helper: helper.to_owned(), reason }
    }
}

/// docker's helpers say "credentials not found in native keychain", others only similar things.
fn is_not_found(message: &str) -> bool {
    let message = message.to_lowercase();
    message.contains("credentials not found")
        || message.contains("no credentials server url")
        || message.contains("no credentials found")
}

fn run(dirs: &[PathBuf], helper: &str, action: &str, input: &[u8]) -> Result<Vec<u8>, Failure> {
    let name_ok = !helper.is_empty() && helper.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if !name_ok {
        return Err(Failure::Other("not a helper's name".into()));
    }
    let program = format!("docker-credential-{helper}");
    let path = dirs.iter().map(|d| d.join(&program)).find(|p| p.is_file()).unwrap_or_else(|| PathBuf::from(&program));
    let mut child = Command::new(path)
        .arg(action)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| match e.kind() {
            ErrorKind::NotFound => Failure::Other("it is not installed (not in PATH)".into()),
            _ => Failure::Other(format!("it can't be started: {e}")),
        })?;
    if let Some(mut stdin) = child.stdin.take() {
        // a helper that does not read its input is still asked for its answer
        let _ = stdin.write_all(input).and_then(|()| stdin.write_all(b"\n"));
    }
    let output = read_output(&mut child);
    if output.is_none() {
        let _ = child.kill();
    }
    let status = child.wait().map_err(|e| Failure::Other(e.to_string()))?;
    let output = output.ok_or_else(|| Failure::Other(format!("no answer in {} s", TIME_LIMIT.as_secs())))?;
    match status.success() {
        true => Ok(output),
        false => Err(Failure::Said(printable(String::from_utf8_lossy(&output).trim(), 300))),
    }
}

/// Reads to the end, within the time limit.
fn read_output(child: &mut Child) -> Option<Vec<u8>> {
    let stdout = child.stdout.take()?;
    let (tx, rx) = mpsc::channel();
    std::thread::spawn(move || {
        let mut output = Vec::new();
        let _ = stdout.take(MAX_OUTPUT).read_to_end(&mut output);
        let _ = tx.send(output);
    });
    rx.recv_timeout(TIME_LIMIT).ok()
}
