//! Fetching with the `git` program.
//!
//! One bare repository for each remote lives in the cache directory, under a lock, so that a second fetch transfers
//! only what is new. A checkout gets its files from there.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use kiln_graph::{GitSource, is_reference, redact_url};
use kiln_oci::Digest;
use rustix::fs::MemfdFlags;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// There is no git.
    #[error("git is needed for {remote} and was not found: install git")]
    NotInstalled {
        /// The remote, without credentials.
        remote: String,
    },
    /// git failed.
    #[error("git {what} of {remote} failed: {message}")]
    Failed {
        /// `fetch`, `checkout`, ….
        what: &'static str,
        /// The remote, without credentials.
        remote: String,
        /// What it said, without credentials.
        message: String,
    },
    /// The remote does not have the ref.
    #[error("{remote} has no branch, tag or commit {reference:?}")]
    NoSuchRef {
        /// The remote, without credentials.
        remote: String,
        /// The ref.
        reference: String,
    },
    /// The ref leads to another commit than it must.
    #[error("{remote}: expected commit {expected}, but the ref leads to {found}")]
    Checksum {
        /// The remote, without credentials.
        remote: String,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// The directory is not in the checkout, or leads out of it.
    #[error("{remote} has no directory {subdir:?}")]
    NoSubdir {
        /// The remote, without credentials.
        remote: String,
        /// The directory.
        subdir: String,
    },
    /// A file could not be written or read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

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
    let decoded = |text: &str| percent_decode(text);
    Some((decoded(user), decoded(password)))
}

fn percent_decode(text: &str) -> String {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|d| std::str::from_utf8(d).ok());
        match digits.filter(|_| first == b'%').and_then(|d| u8::from_str_radix(d, 16).ok()) {
            Some(byte) => (out.push(byte), rest = &after[2..]),
            None => (out.push(first), rest = after),
        };
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn basic(user: &str, password: &str) -> String {
    format!("basic {}", base64(format!("{user}:{password}").as_bytes()))
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// Fetches into one cache directory.
pub struct GitFetcher {
    cache: PathBuf,
}

/// A tree on disk.
#[derive(Debug)]
pub struct Checkout {
    /// The commit.
    pub commit: String,
    /// Its directory, `subdir` applied.
    pub dir: PathBuf,
}

impl GitFetcher {
    /// With repositories kept below `cache`.
    pub fn new(cache: &Path) -> Self {
        Self { cache: cache.to_owned() }
    }

    /// The commit that a URL means now. Asks the remote unless the URL names a whole commit.
    pub fn resolve(&self, url: &GitSource, auth: &GitAuth) -> Result<String, GitError> {
        let wanted = url.reference.as_deref().unwrap_or("HEAD");
        let commit = match is_commit(wanted) {
            true => wanted.to_owned(),
            false => self.ask_remote(url, wanted, auth)?,
        };
        match &url.checksum {
            Some(sum) if !commit.starts_with(&sum.to_ascii_lowercase()) => {
                Err(GitError::Checksum { remote: redact_url(&url.remote), expected: sum.clone(), found: commit })
            }
            _ => Ok(commit),
        }
    }

    fn ask_remote(&self, url: &GitSource, wanted: &str, auth: &GitAuth) -> Result<String, GitError> {
        fs::create_dir_all(&self.cache).map_err(|e| io_error(&self.cache, e))?;
        let mut git = Git::new(url, auth, &self.cache);
        git.args(["ls-remote", "--"]).arg(redact_password(&url.remote));
        let listed = git.output("ls-remote")?;
        let refs: Vec<(&str, &str)> = listed.lines().filter_map(|l| l.split_once('\t')).collect();
        let find = |name: &str| refs.iter().find(|(_, n)| *n == name).map(|(c, _)| (*c).to_owned());
        // An annotated tag is peeled to the commit it names.
        let candidates = [
            format!("refs/heads/{wanted}"),
            format!("refs/tags/{wanted}^{{}}"),
            format!("refs/tags/{wanted}"),
            format!("refs/{wanted}^{{}}"),
            format!("refs/{wanted}"),
            format!("{wanted}^{{}}"),
            wanted.to_owned(),
        ];
        candidates
            .iter()
            .find_map(|name| find(name))
            .ok_or_else(|| GitError::NoSuchRef { remote: redact_url(&url.remote), reference: wanted.to_owned() })
    }

    /// Puts the files of `commit` into the new directory `dest`.
    pub fn checkout(&self, url: &GitSource, commit: &str, auth: &GitAuth, dest: &Path) -> Result<Checkout, GitError> {
        if !is_reference(commit) {
            return Err(GitError::NoSuchRef { remote: redact_url(&url.remote), reference: commit.to_owned() });
        }
        let repo = self.cache.join(Digest::of(url.remote.as_bytes()).hex());
        fs::create_dir_all(&repo).map_err(|e| io_error(&repo, e))?;
        let lock = File::create(self.cache.join(format!("{}.lock", Digest::of(url.remote.as_bytes()).hex())))
            .map_err(|e| io_error(&repo, e))?;
        lock.lock().map_err(|e| io_error(&repo, e))?;
        self.fetch(url, commit, auth, &repo)?;
        fs::create_dir_all(dest).map_err(|e| io_error(dest, e))?;
        self.populate(url, commit, auth, (&repo, dest))?;
        drop(lock);
        let dir = subdirectory(url, dest)?;
        Ok(Checkout { commit: commit.to_owned(), dir })
    }

    fn fetch(&self, url: &GitSource, commit: &str, auth: &GitAuth, repo: &Path) -> Result<(), GitError> {
        // What git makes last: without it an earlier `init` was killed, and git would not know the repository.
        if !repo.join("objects/info").exists() {
            Git::new(url, auth, repo).args(["init", "--quiet", "--bare", "."]).output("init")?;
        }
        remove_locks(repo)?;
        let known = Git::new(url, auth, repo).args(["cat-file", "-e"]).arg(format!("{commit}^{{commit}}")).quiet_ok();
        if known {
            return Ok(());
        }
        let shallow = Git::new(url, auth, repo)
            .args(["fetch", "--quiet", "--no-tags", "--depth=1", "--"])
            .arg(redact_password(&url.remote))
            .arg(commit)
            .output("fetch");
        if shallow.is_ok() {
            return Ok(());
        }
        // Some servers do not hand out a commit by its name: take all refs, then look for it.
        Git::new(url, auth, repo)
            .args(["fetch", "--quiet", "--tags", "--force", "--"])
            .arg(redact_password(&url.remote))
            .arg("+refs/heads/*:refs/remotes/origin/*")
            .output("fetch")?;
        let found = Git::new(url, auth, repo).args(["cat-file", "-e"]).arg(format!("{commit}^{{commit}}")).quiet_ok();
        if found { Ok(()) } else { shallow.map(|_| ()) }
    }

    /// A clone of the cached repository whose files are checked out. Its `origin` is the remote without credentials.
    fn populate(
        &self,
        url: &GitSource,
        commit: &str,
        auth: &GitAuth,
        (repo, dest): (&Path, &Path),
    ) -> Result<(), GitError> {
        let in_dest = || Git::new(url, auth, dest);
        in_dest().args(["init", "--quiet", "."]).output("init")?;
        let alternates = dest.join(".git/objects/info/alternates");
        let objects = repo.join("objects");
        fs::write(&alternates, [objects.as_os_str().as_encoded_bytes(), b"\n"].concat())
            .map_err(|e| io_error(&alternates, e))?;
        if repo.join("shallow").exists() {
            let shallow = dest.join(".git/shallow");
            fs::copy(repo.join("shallow"), &shallow).map_err(|e| io_error(&shallow, e))?;
        }
        in_dest().args(["remote", "add", "origin"]).arg(redact_url(&url.remote)).output("remote")?;
        in_dest().args(["checkout", "--quiet", "--force", "--detach"]).arg(commit).output("checkout")?;
        if !url.skip_submodules && dest.join(".gitmodules").symlink_metadata().is_ok_and(|m| m.is_file()) {
            in_dest()
                .args(["submodule", "--quiet", "update", "--init", "--recursive", "--depth=1"])
                .output("submodule")?;
        }
        let git_dir = dest.join(".git");
        if url.keep_git_dir {
            // The clone must stand alone: no path of the cache may stay in it.
            in_dest().args(["repack", "-a", "-d", "--quiet"]).output("repack")?;
            return fs::remove_file(&alternates).map_err(|e| io_error(&alternates, e));
        }
        fs::remove_dir_all(&git_dir).map_err(|e| io_error(&git_dir, e))?;
        if dest.join(".gitmodules").symlink_metadata().is_ok() {
            remove_git_links(dest).map_err(|e| io_error(dest, e))?;
        }
        Ok(())
    }
}

/// Removes git's own locks. Nobody else uses the repository while we have ours, so they are of a git that was killed.
fn remove_locks(repo: &Path) -> Result<(), GitError> {
    for entry in fs::read_dir(repo).map_err(|e| io_error(repo, e))? {
        let path = entry.map_err(|e| io_error(repo, e))?.path();
        if path.extension().is_some_and(|e| e == "lock") {
            fs::remove_file(&path).map_err(|e| io_error(&path, e))?;
        }
    }
    Ok(())
}

/// Removes the files `.git` of submodules, which lead to a repository that is not there any more.
fn remove_git_links(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            remove_git_links(&entry.path())?;
        } else if kind.is_file() && entry.file_name() == ".git" {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// CVE-2026-33748: the directory must be inside the checkout, links included.
fn subdirectory(url: &GitSource, dest: &Path) -> Result<PathBuf, GitError> {
    let Some(subdir) = url.subdir.as_deref().map(|s| s.trim_matches('/')).filter(|s| !s.is_empty()) else {
        return Ok(dest.to_owned());
    };
    let missing = || GitError::NoSubdir { remote: redact_url(&url.remote), subdir: subdir.to_owned() };
    let base = dest.canonicalize().map_err(|e| io_error(dest, e))?;
    let dir = dest.join(subdir).canonicalize().map_err(|_| missing())?;
    if dir.starts_with(&base) && dir.is_dir() { Ok(dir) } else { Err(missing()) }
}

fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase())
}

fn io_error(path: &Path, source: io::Error) -> GitError {
    GitError::Io { path: path.to_owned(), source }
}

/// One run of git in a clean environment.
struct Git {
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
const SETTINGS: [(&str, &str); 9] = [
    // A server may think for minutes before it sends anything, not for ever.
    ("http.lowSpeedLimit", "1"),
    ("http.lowSpeedTime", "600"),
    ("core.hooksPath", "/dev/null"),
    ("core.fsmonitor", "false"),
    ("protocol.file.allow", "never"),
    ("protocol.ext.allow", "never"),
    ("advice.detachedHead", "false"),
    ("safe.directory", "*"),
    ("gc.auto", "0"),
];

impl Git {
    fn new(url: &GitSource, auth: &GitAuth, dir: &Path) -> Self {
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

    fn args<'a>(&mut self, args: impl IntoIterator<Item = &'a str>) -> &mut Self {
        self.command.args(args);
        self
    }

    fn arg(&mut self, arg: impl AsRef<OsStr>) -> &mut Self {
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

    fn quiet_ok(&mut self) -> bool {
        self.run().is_ok_and(|o| o.status.success())
    }

    fn output(&mut self, what: &'static str) -> Result<String, GitError> {
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
fn redact_password(remote: &str) -> String {
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
    fn a_whole_commit_needs_no_remote() {
        let dir = tempfile::tempdir().unwrap();
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let url = kiln_graph::GitUrl::parse(&format!("https://host.invalid/a.git#{commit}")).unwrap().source();
        assert_eq!(GitFetcher::new(dir.path()).resolve(&url, &GitAuth::default()).unwrap(), commit);
        let other = GitSource { checksum: Some("fffffff".into()), ..url };
        assert!(matches!(
            GitFetcher::new(dir.path()).resolve(&other, &GitAuth::default()),
            Err(GitError::Checksum { .. })
        ));
    }

    #[test]
    fn cve_2026_33748_subdir_through_a_link_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("tree/ok")).unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("tree/evil")).unwrap();
        let url =
            |s: &str| GitSource { remote: "https://h/a.git".into(), subdir: Some(s.into()), ..GitSource::default() };
        assert!(subdirectory(&url("ok"), &dir.path().join("tree")).is_ok());
        assert!(subdirectory(&url("evil"), &dir.path().join("tree")).is_err());
    }

    #[test]
    fn passwords_of_urls_are_not_arguments() {
        assert_eq!(redact_password("https://u:secret@h/a.git"), "https://h/a.git");
        assert_eq!(redact_password("ssh://git:secret@h:22/a.git"), "ssh://git@h:22/a.git");
        assert_eq!(redact_password("git@h:a.git"), "git@h:a.git");
        assert_eq!(url_credentials("https://u:a%40b@h/x"), Some(("u".into(), "a@b".into())));
        assert_eq!(url_credentials("https://h/x@y"), None);
    }
}
