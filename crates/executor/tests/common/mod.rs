//! Roots made of a static busybox, and short ways to run something in them.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::LazyLock;

use kiln_executor::{CancelToken, Error, Executor, Exit, NotEnforced, ProcessSpec, Stdio};
use tempfile::TempDir;

pub static EXECUTOR: LazyLock<Executor> = LazyLock::new(|| Executor::new(Default::default()).expect("executor"));

const APPLETS: &[&str] = &[
    "sh", "true", "false", "cat", "id", "ls", "stat", "mount", "umount", "sleep", "echo", "test", "grep", "mkdir",
    "rm", "ln", "chown", "chmod", "env", "hostname", "ip", "kill", "touch", "pwd", "readlink", "su", "dd", "tty",
    "stty", "ps", "mknod", "df", "head", "wc", "unshare", "chroot", "ulimit", "mv", "find", "tr", "sort", "printf",
    "seq", "yes",
];

/// True (and says so) when a test that needs root cannot run.
pub fn skip(what: &str) -> bool {
    let root = kiln_executor::rootless::current().is_some();
    if !root {
        eprintln!("SKIPPED: {what} needs root");
    }
    !root
}

/// A root with busybox in /bin.
pub fn busybox_root() -> TempDir {
    let dir = tempfile::tempdir().expect("temporary directory");
    fill(dir.path());
    dir
}

pub fn fill(dir: &Path) {
    for sub in ["bin", "etc", "tmp", "root", "usr"] {
        fs::create_dir_all(dir.join(sub)).expect("mkdir");
    }
    fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
    fs::set_permissions(dir.join("tmp"), std::os::unix::fs::PermissionsExt::from_mode(0o1777)).expect("chmod");
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().find(|p| Path::new(p).exists()).expect("busybox-static");
    // Not by this process: a child of another test's thread would have it open for writing, and then it can't be started.
    let copied = std::process::Command::new("cp").arg(busybox).arg(dir.join("bin/busybox")).status();
    assert!(copied.is_ok_and(|s| s.success()), "busybox is copied");
    for applet in APPLETS {
        symlink("busybox", dir.join("bin").join(applet)).expect("symlink");
    }
    fs::write(dir.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n").expect("passwd");
    fs::write(dir.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n").expect("group");
}

pub fn open(path: impl AsRef<Path>) -> OwnedFd {
    File::open(path).expect("open").into()
}

/// A spec over a directory.
pub fn spec(root: &Path, args: &[&str]) -> ProcessSpec {
    ProcessSpec::new(open(root), args.iter().copied())
}

/// A spec for a shell script.
pub fn script(root: &Path, script: &str) -> ProcessSpec {
    spec(root, &["/bin/sh", "-ec", script])
}

pub struct Ran {
    pub exit: Exit,
    pub not_enforced: Vec<NotEnforced>,
    pub out: String,
}

impl Ran {
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.exit.success(), "{:?}\n{}", self.exit, self.out);
        self.out
    }
}

/// Runs to the end with both output streams in one file.
pub fn try_run(mut spec: ProcessSpec) -> Result<Ran, Error> {
    let out = tempfile::tempfile().expect("temporary file");
    if spec.terminal.is_none() {
        spec.stdout = Stdio::Fd(out.try_clone().expect("dup").into());
        spec.stderr = Stdio::Fd(out.try_clone().expect("dup").into());
    }
    let mut not_enforced = Vec::new();
    let exit = EXECUTOR.run(spec, |started| not_enforced = started.not_enforced, &CancelToken::new())?;
    let mut text = Vec::new();
    let mut out = out;
    std::io::Seek::rewind(&mut out).expect("seek");
    out.read_to_end(&mut text).expect("read output");
    Ok(Ran { exit, not_enforced, out: String::from_utf8_lossy(&text).into_owned() })
}

#[track_caller]
pub fn run(spec: ProcessSpec) -> Ran {
    match try_run(spec) {
        Ok(ran) => ran,
        Err(error) => panic!("{error}"),
    }
}

/// Runs a script that must succeed; gives its output.
#[track_caller]
pub fn sh(root: &Path, text: &str) -> String {
    run(script(root, text)).ok()
}
