//! Fetching with the `git` program.
//!
//! One bare repository for each remote lives in the cache directory, under a lock, so that a second fetch transfers
//! only what is new. A checkout gets its files from there.

mod command;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use kiln_graph::{GitSource, is_reference, redact_url};
use kiln_oci::Digest;

use command::{Git, redact_password};
pub use command::{GitAuth, url_credentials};

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
            keep_name(url, commit, auth, dest);
            // The clone must stand alone: no path of the cache may stay in it. One thread, so that the pack is the same each
            // time; an index without times for the same reason.
            in_dest().args(["repack", "-a", "-d", "--quiet", "--threads=1"]).output("repack")?;
            in_dest().args(["read-tree", "HEAD"]).output("read-tree")?;
            _ = fs::remove_file(git_dir.join("FETCH_HEAD"));
            return fs::remove_file(&alternates).map_err(|e| io_error(&alternates, e));
        }
        fs::remove_dir_all(&git_dir).map_err(|e| io_error(&git_dir, e))?;
        if dest.join(".gitmodules").symlink_metadata().is_ok() {
            remove_git_links(dest).map_err(|e| io_error(dest, e))?;
        }
        Ok(())
    }
}

/// Gives the commit the name by which it was asked for, which `git describe` needs: a branch, or a tag with its message.
fn keep_name(url: &GitSource, commit: &str, auth: &GitAuth, dest: &Path) {
    let Some(wanted) = url.reference.as_deref().filter(|r| !is_commit(r)) else { return };
    let names = match wanted.strip_prefix("refs/") {
        Some(name) => vec![name.to_owned()],
        None => vec![format!("heads/{wanted}"), format!("tags/{wanted}"), wanted.to_owned()],
    };
    for name in names {
        // Not every server can send a part of the history.
        for depth in [&["--depth=1"][..], &[]] {
            let mut fetch = Git::new(url, auth, dest);
            fetch.args(["fetch", "--quiet", "--no-tags"]).args(depth.iter().copied()).args(["--"]);
            if !fetch.arg(redact_password(&url.remote)).arg(format!("+refs/{name}:refs/{name}")).quiet_ok() {
                continue;
            }
            // It may lead elsewhere by now.
            let found = Git::new(url, auth, dest)
                .args(["rev-parse"])
                .arg(format!("refs/{name}^{{commit}}"))
                .output("rev-parse");
            if found.is_ok_and(|f| f.trim() != commit) {
                _ = Git::new(url, auth, dest)
                    .args(["update-ref", "-d"])
                    .arg(format!("refs/{name}"))
                    .output("update-ref");
            }
            return;
        }
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
}
