//! What the tests share: keys, a synthetic archive, a server, a machine without apt.
#![allow(dead_code, clippy::unwrap_used)]

pub mod keys;
pub mod repo;
pub mod server;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use keys::Key;
use kiln_deb::{BuildOptions, Built, Configure, Context, Error, Outcome, Refresh, Resolution, Result, Spec, Step};
use repo::{Suite, pkg};
use server::Server;

/// The time of all tests: 2 November 2026.
pub const NOW: i64 = 1_793_577_600;

/// An archive on a server, a key file, a cache, and a machine with an empty apt configuration.
pub struct World {
    pub server: Server,
    pub dir: tempfile::TempDir,
    pub key: Key,
}

impl World {
    pub fn new() -> Self {
        let world = Self { server: Server::start(), dir: tempfile::tempdir().unwrap(), key: Key::good() };
        world.trust(&world.key.binary());
        world
    }

    pub fn with(suites: &[Suite]) -> Self {
        let world = Self::new();
        suites.iter().for_each(|s| s.publish(&world.server, &world.key));
        world
    }

    pub fn trust(&self, keys: &[u8]) {
        std::fs::write(self.path("keys.gpg"), keys).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn context(&self) -> Context<'static> {
        let mut context = Context::new(self.path("cache"));
        context.host = self.path("machine");
        context.now = NOW;
        context.proxy = Some(String::new());
        context.retry_pause = Duration::from_millis(1);
        context.default_arch = "amd64".into();
        context.refresh = Refresh::Always;
        context
    }

    /// The spec `deb://SUITE?…` with this world's mirror and keys.
    pub fn spec(&self, text: &str) -> Spec {
        let sign = if text.contains('?') { '&' } else { '?' };
        let text =
            format!("deb://{text}{sign}mirror={}/debian&keyring={}", self.server.url, self.path("keys.gpg").display());
        Spec::parse(&text).unwrap()
    }

    pub fn resolve(&self, text: &str) -> Result<Resolution> {
        kiln_deb::resolve(&self.spec(text), &self.context())
    }

    pub fn fails(&self, text: &str) -> String {
        match self.resolve(text) {
            Ok(resolution) => panic!("{text} resolved to {:?}", names(&resolution)),
            Err(error) => error.to_string(),
        }
    }

    /// Builds into a new directory.
    pub fn build(&self, resolution: &Resolution) -> Result<(PathBuf, Built)> {
        let dest = tempfile::Builder::new().prefix("root").tempdir_in(self.dir.path()).unwrap().keep();
        let options = BuildOptions { ownership: ownership(), ..BuildOptions::default() };
        let built = kiln_deb::build(resolution, &dest, &self.context(), &options)?;
        Ok((dest, built))
    }

    pub fn build_spec(&self, text: &str) -> (PathBuf, Built) {
        let resolution = self.resolve(text).unwrap();
        self.build(&resolution).unwrap()
    }

    pub fn build_error(&self, text: &str) -> Error {
        let resolution = self.resolve(text).unwrap();
        match self.build(&resolution) {
            Ok(_) => panic!("{text} was built"),
            Err(error) => error,
        }
    }

    /// The cached packages.
    pub fn cached(&self) -> usize {
        std::fs::read_dir(self.path("cache/debs")).map_or(0, |d| d.count())
    }

    /// Files in the cache that are neither packages, indexes nor releases.
    pub fn debris(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(self.path("cache/partial")).into_iter().flatten().flatten() {
            found.push(entry.path());
        }
        for dir in ["debs", "index", "release"] {
            for entry in std::fs::read_dir(self.path("cache").join(dir)).into_iter().flatten().flatten() {
                if entry.file_name().to_string_lossy().starts_with('.') {
                    found.push(entry.path());
                }
            }
        }
        found
    }
}

/// Unprivileged runs of the tests record owners instead of setting them.
pub fn ownership() -> kiln_rootfs::Ownership {
    if rustix::process::geteuid().is_root() { kiln_rootfs::Ownership::Native } else { kiln_rootfs::Ownership::Recorded }
}

pub fn names(resolution: &Resolution) -> Vec<&str> {
    resolution.packages.iter().map(|p| p.name.as_str()).collect()
}

/// base-files as far as it matters.
pub fn base_files() -> repo::Pkg {
    pkg("base-files", "12")
        .field("Essential", "yes")
        .field("Pre-Depends", "awk")
        .file("usr/lib/os-release", b"ID=debian\nVERSION_ID=\"12\"\n")
        .symlink("etc/os-release", "../usr/lib/os-release")
        .file("etc/debian_version", b"12.0\n")
        .file("etc/motd", b"welcome\n")
        .dir("tmp", 0o1777)
        .dir("root", 0o700)
        .symlink("var/run", "/run")
        .dir("var/lock", 0o1777)
        .dir("bin", 0o755)
        .dir("lib", 0o755)
}

/// Everything below a directory: path to a description of it, without following anything.
pub fn tree(root: &Path) -> BTreeMap<String, String> {
    use std::os::unix::fs::MetadataExt;
    let mut out = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).unwrap().flatten() {
            let (path, meta) = (entry.path(), entry.metadata().unwrap());
            let what = if meta.is_dir() {
                todo.push(path.clone());
                format!("dir {:o}", meta.mode() & 0o7777)
            } else if meta.is_symlink() {
                format!("-> {}", std::fs::read_link(&path).unwrap().display())
            } else {
                format!("{:o} {}", meta.mode() & 0o7777, kiln_oci::Digest::of(&std::fs::read(&path).unwrap()).short())
            };
            let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
            out.insert(name, format!("{what} {}", meta.mtime()));
        }
    }
    out
}

/// Records what is to be run, and says how it went.
pub struct Recorder {
    pub steps: Mutex<Vec<Step<'static>>>,
    pub fail: bool,
}

impl Configure for Recorder {
    fn run(&self, _root: &Path, step: &Step<'_>) -> std::result::Result<Outcome, String> {
        let step = Step { name: "", argv: step.argv.clone(), env: step.env.clone() };
        self.steps.lock().unwrap().push(step);
        let status = if self.fail { "exit code 1" } else { "exit code 0" };
        Ok(Outcome { success: !self.fail, status: status.into(), output: "dpkg: error processing package x\n".into() })
    }
}
