//! A directory of its own for each test: a build context with a static busybox, a store, a home.
//!
//! The binary runs with an empty environment but for what is set here, so that nothing of the developer's shows through.
#![allow(dead_code, reason = "each test binary uses its part of it")]

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;

/// The first stage of most tests: busybox under all its names.
pub const BASE: &str =
    "FROM scratch AS base\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n";

/// Where Debian's `busybox-static` puts it.
pub const BUSYBOX: &str = "/bin/busybox";

/// One test's surroundings.
pub struct Sandbox {
    dir: TempDir,
    env: Vec<(String, String)>,
}

/// What a run of the binary did.
pub struct Run {
    /// Exit code; 128 and the signal's number if a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error: progress and messages.
    pub stderr: String,
}

impl Run {
    /// The exit code must be 0.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{}\n{}", self.stdout, self.stderr);
        self
    }

    /// The exit code must be this, and nothing may have panicked.
    #[track_caller]
    pub fn fails(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{}\n{}", self.stdout, self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }

    /// Standard error must hold each of these.
    #[track_caller]
    pub fn says(self, parts: &[&str]) -> Self {
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is missing in:\n{}", self.stderr);
        }
        self
    }

    /// Neither output may hold this.
    #[track_caller]
    pub fn hides(self, part: &str) -> Self {
        assert!(
            !self.stderr.contains(part) && !self.stdout.contains(part),
            "{part:?} is in:\n{}{}",
            self.stdout,
            self.stderr
        );
        self
    }

    /// How the plain progress says that the step whose name holds `name` ended: `CACHED`, `DONE`, `ERROR`, …
    #[track_caller]
    pub fn step(&self, name: &str) -> &str {
        let line = self.stderr.lines().find(|l| l.starts_with('#') && l.contains(name));
        let line = line.unwrap_or_else(|| panic!("no step {name:?} in:\n{}", self.stderr));
        let number = line.split(' ').next().expect("a word");
        let words = self.stderr.lines().filter_map(|l| l.strip_prefix(number)?.strip_prefix(' ')?.split(' ').next());
        let ends = ["CACHED", "DONE", "ERROR:", "CANCELED"];
        words.into_iter().find(|w| ends.contains(w)).unwrap_or("unfinished").trim_end_matches(':')
    }

    /// The steps of stages that ran, which are those that were not cached.
    pub fn executed(&self) -> Vec<String> {
        let named = self.stderr.lines().filter_map(|l| {
            let name = l.strip_prefix('#')?.split_once(' ')?.1;
            let place = name.strip_prefix('[')?.split(']').next()?;
            (place.contains('/')).then(|| name.to_owned())
        });
        let mut all: Vec<String> = named.filter(|n| self.step(n) == "DONE").collect();
        all.sort();
        all.dedup();
        all
    }
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        use std::os::unix::process::ExitStatusExt;
        Self {
            code: output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0)),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Sandbox {
    /// A context with busybox and this Dockerfile. `None`, with a loud word, where containers can't be started.
    pub fn new(dockerfile: &str) -> Option<Self> {
        let sandbox = Self::bare(dockerfile);
        can_run_containers().then_some(sandbox)
    }

    /// The same without the question, for what starts no container.
    pub fn bare(dockerfile: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("kiln-e2e.").tempdir().expect("a directory");
        let sandbox = Self { dir, env: Vec::new() };
        for name in ["ctx", "home"] {
            std::fs::create_dir(sandbox.path(name)).expect("a directory");
        }
        if Path::new(BUSYBOX).exists() {
            std::fs::copy(BUSYBOX, sandbox.path("ctx/busybox")).expect("busybox is copied");
        }
        sandbox.file("Dockerfile", dockerfile);
        sandbox
    }

    /// A path in the sandbox.
    pub fn path(&self, rel: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(rel)
    }

    /// The context.
    pub fn ctx(&self) -> PathBuf {
        self.path("ctx")
    }

    /// Sets a variable for the runs that follow.
    pub fn env(&mut self, name: &str, value: &str) {
        self.env.push((name.to_owned(), value.to_owned()));
    }

    /// Writes a file of the context.
    pub fn file(&self, rel: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.ctx().join(rel);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
        std::fs::write(&path, text).expect("a file");
        path
    }

    /// Writes a file of the context with a mode.
    pub fn file_mode(&self, rel: &str, text: &str, mode: u32) {
        let path = self.file(rel, text);
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("a mode");
    }

    /// `kiln`, not yet started.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
        command.args(args).env_clear().current_dir(self.dir.path()).stdin(Stdio::null());
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("HOME", self.path("home")).env("KILN_ROOT", self.path("store"));
        command.envs(self.env.iter().map(|(k, v)| (k, v)));
        command
    }

    /// A copy of the program in the sandbox: the original may be where only root may look. `cp` makes it, because a file can't be
    /// started as long as any process has it open for writing, and a child of another test's thread would inherit that from here.
    pub fn own_kiln(&self) -> PathBuf {
        let kiln = self.path("kiln");
        if !kiln.exists() {
            let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_kiln")).arg(&kiln).status();
            assert!(copied.is_ok_and(|s| s.success()), "the program is copied");
        }
        kiln
    }

    /// `kiln` as a user without privileges and subordinate ids, to whom the sandbox belongs from now on. Needs root.
    pub fn command_of_nobody<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        use std::os::unix::process::CommandExt;
        const NOBODY: u32 = 65534;
        let chowned = Command::new("chown").args(["-R", "65534:65534"]).arg(self.dir.path()).status();
        assert!(chowned.is_ok_and(|s| s.success()));
        let kiln = self.own_kiln();
        let template = self.command(args);
        let mut command = Command::new(&kiln);
        command.args(template.get_args()).env_clear().current_dir(self.dir.path()).stdin(Stdio::null());
        command.envs(template.get_envs().filter_map(|(k, v)| Some((k, v?))));
        command.uid(NOBODY).gid(NOBODY);
        command
    }

    /// `kiln ARGS`.
    pub fn kiln(&self, args: &[&str]) -> Run {
        self.command(args).output().expect("kiln starts").into()
    }

    /// `kiln build ARGS ctx`.
    pub fn build(&self, args: &[&str]) -> Run {
        let all: Vec<&str> = ["build", "--progress=plain"].iter().chain(args).copied().chain(["ctx"]).collect();
        self.kiln(&all)
    }

    /// Builds into the directory `out` and returns it.
    #[track_caller]
    pub fn export(&self, args: &[&str]) -> PathBuf {
        let all: Vec<&str> = args.iter().copied().chain(["-o", "type=local,dest=out,mode=delete"]).collect();
        self.build(&all).ok();
        self.path("out")
    }

    /// The image's config, through an OCI layout.
    #[track_caller]
    pub fn config(&self, args: &[&str]) -> serde_json::Value {
        let layout = self.path("layout");
        let _ = std::fs::remove_dir_all(&layout);
        let all: Vec<&str> = args.iter().copied().chain(["-o", "type=oci,dest=layout,tar=false"]).collect();
        self.build(&all).ok();
        image_config(&layout)
    }
}

/// The manifest and config of the only image of a layout.
pub fn image_config(layout: &Path) -> serde_json::Value {
    let manifest = image_manifest(layout);
    blob(layout, manifest["config"]["digest"].as_str().expect("a digest"))
}

/// The manifest of the only image of a layout.
pub fn image_manifest(layout: &Path) -> serde_json::Value {
    let index: serde_json::Value = read_json(&layout.join("index.json"));
    assert_eq!(index["manifests"].as_array().map(Vec::len), Some(1), "{index}");
    blob(layout, index["manifests"][0]["digest"].as_str().expect("a digest"))
}

fn blob(layout: &Path, digest: &str) -> serde_json::Value {
    read_json(&layout.join("blobs").join(digest.replace(':', "/")))
}

fn read_json(path: &Path) -> serde_json::Value {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&bytes).expect("JSON")
}

/// The text of a file of a result.
#[track_caller]
pub fn text(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The names in a directory, sorted.
#[track_caller]
pub fn names(path: impl AsRef<Path>) -> Vec<String> {
    let path = path.as_ref();
    let list = std::fs::read_dir(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut all: Vec<String> = list.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    all.sort();
    all
}

/// Whether a program is installed; says so if not.
pub fn has_tool(name: &str) -> bool {
    let found = ["/usr/bin", "/usr/sbin", "/bin", "/usr/local/bin"].iter().any(|d| Path::new(d).join(name).exists());
    if !found {
        eprintln!("SKIPPED: {name} is not installed (scripts/test installs it)");
    }
    found
}

/// Whether we are root.
pub fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions.
    unsafe { libc::geteuid() == 0 }
}

/// Root can always; others need busybox and a kernel that lets them make user namespaces.
fn can_run_containers() -> bool {
    static CAN: OnceLock<bool> = OnceLock::new();
    *CAN.get_or_init(|| {
        if !Path::new(BUSYBOX).exists() {
            eprintln!("SKIPPED: no {BUSYBOX} (scripts/test installs busybox-static)");
            return false;
        }
        if is_root() {
            return true;
        }
        let run = Sandbox::bare(BASE).build(&[]);
        if run.code != 0 {
            eprintln!("SKIPPED: containers can't be started here:\n{}", run.stderr);
        }
        run.code == 0
    })
}

/// Files below a directory that hold these bytes, in their content or name.
pub fn files_with(dir: &Path, bytes: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let kind = entry.file_type().expect("a type");
            if kind.is_dir() {
                pending.push(entry.path());
            }
            let has = |text: &[u8]| text.windows(bytes.len()).any(|w| w == bytes);
            let content = if kind.is_file() { std::fs::read(entry.path()).unwrap_or_default() } else { Vec::new() };
            if has(&content) || has(entry.file_name().as_encoded_bytes()) {
                found.push(entry.path());
            }
        }
    }
    found
}

/// Whether a process anywhere has this word among its arguments.
pub fn process_with(word: &str) -> bool {
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    processes
        .filter_map(|p| std::fs::read(p.path().join("cmdline")).ok())
        .any(|c| String::from_utf8_lossy(&c).split('\0').any(|a| a == word))
}

/// Polls until something is so.
#[track_caller]
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !done() {
        assert!(start.elapsed() < std::time::Duration::from_secs(20), "{what}");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}
