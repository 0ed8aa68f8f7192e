//! Trees for tests.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use kiln_rootfs::copy::{CopyReport, CopyRequest, copy};
use kiln_rootfs::{Ownership, Result, Root, Selector, Source, Stack, Target};

/// Two directories: a source and a target.
pub struct Case {
    pub tmp: tempfile::TempDir,
}

#[allow(dead_code)]
impl Case {
    pub fn new() -> Self {
        let tmp = tempfile::tempdir().unwrap();
        for d in ["src", "up", "low"] {
            std::fs::create_dir(tmp.path().join(d)).unwrap();
        }
        Self { tmp }
    }

    pub fn src(&self) -> PathBuf {
        self.tmp.path().join("src")
    }

    pub fn up(&self) -> PathBuf {
        self.tmp.path().join("up")
    }

    pub fn low(&self) -> PathBuf {
        self.tmp.path().join("low")
    }

    /// Who is not root cannot give files away, and has owners recorded.
    pub fn root(&self, path: &Path) -> Root {
        let root = rustix::process::geteuid().is_root() && !kiln_rootfs::overlay::in_user_namespace();
        let ownership = if root { Ownership::Native } else { Ownership::Recorded };
        Root::open(path).unwrap().with_ownership(ownership)
    }

    pub fn source(&self) -> Stack {
        self.root(&self.src()).into()
    }

    pub fn target(&self) -> Target {
        Target::over(self.root(&self.up()), self.root(&self.low()).into())
    }

    pub fn copy(&self, source: &str, dest: &str) -> Result<CopyReport> {
        self.copy_with(&CopyRequest { select: select(&[source]), dest: dest.into(), ..CopyRequest::default() })
    }

    pub fn copy_with(&self, request: &CopyRequest<'_>) -> Result<CopyReport> {
        copy(request, Source::Stack(&self.source()), &self.target())
    }

    /// What the upper holds, one line per entry: `path`, `path/`, `path -> target`, `path = content`.
    pub fn listing(&self) -> Vec<String> {
        listing(&self.up())
    }
}

pub fn select(sources: &[&str]) -> Selector<'static> {
    let sources = sources.iter().map(PathBuf::from).collect();
    Selector { sources, wildcard: true, allow_empty: false, ..Selector::default() }
}

/// Makes files: `a/` directories, `a->b` links, `a=content` files.
pub fn tree(root: &Path, specs: &[&str]) {
    for spec in specs {
        if let Some((path, target)) = spec.split_once("->") {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::os::unix::fs::symlink(target, path).unwrap();
        } else if let Some(dir) = spec.strip_suffix('/') {
            std::fs::create_dir_all(root.join(dir)).unwrap();
        } else {
            let (path, content) = spec.split_once('=').unwrap_or((spec, ""));
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
    }
}

pub fn listing(root: &Path) -> Vec<String> {
    let mut all = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
            let meta = path.symlink_metadata().unwrap();
            if meta.is_symlink() {
                all.push(format!("{name} -> {}", std::fs::read_link(&path).unwrap().display()));
            } else if meta.is_dir() {
                all.push(format!("{name}/"));
                todo.push(path);
            } else if meta.is_file() {
                all.push(format!("{name} = {}", String::from_utf8_lossy(&std::fs::read(&path).unwrap())));
            } else if meta.rdev() == 0 {
                all.push(format!("{name} whiteout"));
            } else {
                all.push(format!("{name} special"));
            }
        }
    }
    all.sort();
    all
}

#[allow(dead_code)]
pub fn mode(path: &Path) -> u32 {
    path.symlink_metadata().unwrap().permissions().mode() & 0o7777
}

#[allow(dead_code)]
pub fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[allow(dead_code)]
pub fn set_mtime(path: &Path, secs: i64, nanos: i64) {
    let times = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        last_modification: rustix::fs::Timespec { tv_sec: secs, tv_nsec: nanos },
    };
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

#[allow(dead_code)]
pub fn mtime(path: &Path) -> (i64, i64) {
    let m = path.symlink_metadata().unwrap();
    (m.mtime(), m.mtime_nsec())
}

/// Some things only root may do; a test that needs them says so and passes otherwise.
#[allow(dead_code)]
pub fn is_root(what: &str) -> bool {
    let root = rustix::process::geteuid().is_root() && !kiln_rootfs::overlay::in_user_namespace();
    if !root {
        eprintln!("SKIPPED: {what} needs root");
    }
    root
}
