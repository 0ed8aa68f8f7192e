//! One run of git: its environment, its settings, and how it is told who we are.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use kiln_graph::{GitSource, percent_decode, redact_url};
use rustix::fs::MemfdFlags;

use super::{GitError, io_error};

/// How to prove who we are. It reaches git through a descriptor: never its command line or environment, which others can
/// see, and never a file on disk.
#[derive(Clone, Default)]
pub struct GitAuth {
    /// Value of an `Authorization` header for HTTP. It is sent to the remote's own host only, not to those of submodules.
    pub header: Option<String>,
    /// Socket of an ssh agent.
    pub ssh_socket: Option<PathBuf>,
    /// `known_hosts` file for ssh remotes; unknown hosts are refused.
    pub known_hosts: Option<PathBuf>,
}

impl GitAuth {
    /// For a token, the header that git hosts understand.
    pub fn from_token(token: &str) -> Self {
        Self { header: Some(basic("x-access-token", token)), ..Self::default() }
    }

    /// For a URL with a user name and password in it, the header that says the same. ssh has no use for a password.
    pub fn from_url(remote: &str) -> Self {
        let header = url_credentials(remote).map(|(user, password)| basic(&user, &password));
        Self { header, ..Self::default() }
    }
}

/// User name and password of an HTTP URL.
pub fn url_credentials(remote: &str) -> Option<(String, String)> {
    let (scheme, rest) = remote.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let (userinfo, _) = authority.rsplit_once('@').filter(|_| scheme.starts_with("http"))?;
    let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
    Some((percent_decode(user), percent_decode(password)))
}

fn basic(user: &str, password: &str) -> String {
    format!("basic {}", base64(format!("{user}:{password}").as_bytes()))
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// One run of git in a clean environment.
pub(super) struct Git {
    command: Command,
    remote: String,
    secrets: Vec<String>,
    /// Why it can't be run after all.
    broken: Option<io::Error>,
}

/// What helps when git says this.
const HINTS: [(&str, &str); 4] = [
    (
        "Host key verification failed",
        "its key must be in ~/.ssh/known_hosts: connect once with ssh, or use ssh-keyscan",
    ),
    ("could not read Username", "if the repository is private, give a token: --secret id=GIT_AUTH_TOKEN,src=FILE"),
    ("Authentication failed", "the token was refused: see --secret id=GIT_AUTH_TOKEN[.HOST]"),
    ("Permission denied (publickey", "no key of the agent was taken: see --ssh default=SOCKET|KEYFILE"),
];

/// What git may see of our environment.
const PASSED_ON: [&str; 11] = [
    "PATH",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "GIT_SSL_CAINFO",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "TMPDIR",
];

/// Settings that nothing can override: no hooks, no local protocols, no waiting for ever.
const SETTINGS: [(&str, &str); 10] = [
    // A server may think for minutes before it sends anything, not for ever.
    ("http.lowSpeedLimit", "1"),
    ("http.lowSpeedTime", "600"),
    ("core.hooksPath", "/dev/null"),
    ("core.logAllRefUpdates", "false"),
    ("core.fsmonitor", "false"),
    ("protocol.file.allow", "never"),
    ("protocol.ext.allow", "never"),
    ("advice.detachedHead", "false"),
    ("safe.directory", "*"),
    ("gc.auto", "0"),
];

impl Git {
    pub(super) fn new(url: &GitSource, auth: &GitAuth, dir: &Path) -> Self {
        let mut command = Command::new("git");
        command.current_dir(dir).stdin(Stdio::null()).env_clear();
        for name in PASSED_ON {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.envs([
            ("HOME", "/nonexistent"),
            ("LC_ALL", "C"),
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_ALLOW_PROTOCOL", "http:https:git:ssh"),
            ("GIT_NO_LAZY_FETCH", "1"),
            ("GIT_LFS_SKIP_SMUDGE", "1"),
            ("GIT_TEMPLATE_DIR", ""),
        ]);
        command.env("GIT_CONFIG_COUNT", SETTINGS.len().to_string());
        for (i, (key, value)) in SETTINGS.into_iter().enumerate() {
            command.env(format!("GIT_CONFIG_KEY_{i}"), key).env(format!("GIT_CONFIG_VALUE_{i}"), value);
        }
        command.env("GIT_SSH_COMMAND", ssh_command(auth));
        if let Some(socket) = &auth.ssh_socket {
            command.env("SSH_AUTH_SOCK", socket);
        }
        let mut git = Self { command, remote: redact_url(&url.remote), secrets: Vec::new(), broken: None };
        let header = auth.header.clone().or_else(|| GitAuth::from_url(&url.remote).header);
        if let Some(header) = header {
            git.broken = git.authorize(&url.remote, &header).err();
            git.secrets.extend(header.split(' ').next_back().map(str::to_owned));
        }
        let (user, password) = url_credentials(&url.remote).unwrap_or_default();
        git.secrets.extend([user, password].into_iter().filter(|s| s.len() > 3));
        git
    }

    /// Hands the header over in a configuration that is in memory only and that git's processes inherit.
    fn authorize(&mut self, remote: &str, header: &str) -> io::Result<()> {
        let Some((scheme, rest)) = remote.split_once("://").filter(|(scheme, _)| scheme.starts_with("http")) else {
            return Ok(());
        };
        if header.chars().any(char::is_control) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the authorization header has a line break in it"));
        }
        let authority = rest.split('/').next().unwrap_or_default();
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let quoted = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
        let text = format!(
            "[http \"{}://{}/\"]\n\textraHeader = \"Authorization: {}\"\n",
            quoted(scheme),
            quoted(host),
            quoted(header)
        );
        let memory = rustix::fs::memfd_create("git-config", MemfdFlags::CLOEXEC)?;
        File::from(memory.try_clone()?).write_all(text.as_bytes())?;
        self.command.env("GIT_CONFIG_GLOBAL", format!("/proc/self/fd/{}", memory.as_raw_fd()));
        // SAFETY: between fork and exec only fcntl is called, which is allowed there.
        unsafe {
            self.command.pre_exec(move || Ok(rustix::io::fcntl_setfd(&memory, rustix::io::FdFlags::empty())?));
        }
        Ok(())
    }

    pub(super) fn args<'a>(&mut self, args: impl IntoIterator<Item = &'a str>) -> &mut Self {
        self.command.args(args);
        self
    }

    pub(super) fn arg(&mut self, arg: impl AsRef<OsStr>) -> &mut Self {
        self.command.arg(arg);
        self
    }

    fn run(&mut self) -> Result<Output, GitError> {
        if let Some(error) = self.broken.take() {
            return Err(io_error(Path::new("git"), error));
        }
        self.command.output().map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => GitError::NotInstalled { remote: self.remote.clone() },
            _ => io_error(Path::new("git"), e),
        })
    }

    pub(super) fn quiet_ok(&mut self) -> bool {
        self.run().is_ok_and(|o| o.status.success())
    }

    pub(super) fn output(&mut self, what: &'static str) -> Result<String, GitError> {
        let output = self.run()?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let mut message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        for secret in &self.secrets {
            message = message.replace(secret, "***");
        }
        for (sign, hint) in HINTS {
            if message.contains(sign) {
                message.push('\n');
                message.push_str(hint);
            }
        }
        Err(GitError::Failed { what, remote: self.remote.clone(), message })
    }
}

/// The remote as git is given it: a password would be in the process list. ssh needs the user.
pub(super) fn redact_password(remote: &str) -> String {
    let Some((scheme, rest)) = remote.split_once("://").filter(|(scheme, _)| *scheme == "ssh") else {
        return redact_url(remote);
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    match user.split(':').next().unwrap_or_default() {
        "" => format!("{scheme}://{host}{path}"),
        user => format!("{scheme}://{user}@{host}{path}"),
    }
}

/// ssh without the user's configuration and keys: it offers what the agent has, and it talks to hosts that the machine's or
/// the given file knows.
fn ssh_command(auth: &GitAuth) -> String {
    let known_hosts = match &auth.known_hosts {
        Some(path) => path.to_string_lossy().replace('\'', "'\\''"),
        None => "/dev/null".to_owned(),
    };
    format!(
        "ssh -F /dev/null -o IdentityFile=none -o BatchMode=yes -o ConnectTimeout=20 -o ServerAliveInterval=30 \
         -o StrictHostKeyChecking=yes -o UserKnownHostsFile='{known_hosts}'"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_of_urls_are_not_arguments() {
        assert_eq!(redact_password("https://u:secret@h/a.git"), "https://h/a.git");
        assert_eq!(redact_password("ssh://git:secret@h:22/a.git"), "ssh://git@h:22/a.git");
        assert_eq!(redact_password("git@h:a.git"), "git@h:a.git");
        assert_eq!(url_credentials("https://u:a%40b@h/x"), Some(("u".into(), "a@b".into())));
        assert_eq!(url_credentials("https://h/x@y"), None);
    }
}
