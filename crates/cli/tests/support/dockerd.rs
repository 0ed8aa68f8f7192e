//! A docker daemon of a test's own, with all its state in the test's directory.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a daemon may need to start.
const START: Duration = Duration::from_secs(60);

/// A running daemon; it ends with this.
pub struct Dockerd {
    child: Child,
    socket: PathBuf,
}

impl Dockerd {
    /// `None`, with a loud word, where docker is not installed or can't run.
    pub fn start(dir: &Path) -> Option<Self> {
        if !crate::support::has_tool("dockerd") || !crate::support::has_tool("docker") {
            return None;
        }
        if !crate::support::is_root() {
            eprintln!("SKIPPED: dockerd needs root");
            return None;
        }
        let at = |name: &str| dir.join(name).into_os_string();
        let log = std::fs::File::create(dir.join("dockerd.log")).expect("a log");
        let socket = dir.join("docker.sock");
        let mut command = Command::new("dockerd");
        command.arg("--data-root").arg(at("docker-data")).arg("--exec-root").arg(at("docker-exec"));
        command.arg("--pidfile").arg(at("docker.pid")).arg("--config-file").arg(at("docker.json"));
        command.args(["--storage-driver=vfs", "--iptables=false", "--ip6tables=false", "--bridge=none"]);
        command.arg("--host").arg(format!("unix://{}", socket.display()));
        std::fs::write(dir.join("docker.json"), "{}").expect("an empty configuration");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut daemon = Self { child: command.spawn().expect("dockerd starts"), socket };
        let begin = Instant::now();
        while begin.elapsed() < START && matches!(daemon.child.try_wait(), Ok(None)) {
            if daemon.command(&["version"]).output().is_ok_and(|o| o.status.success()) {
                return Some(daemon);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let log = std::fs::read_to_string(dir.join("dockerd.log")).unwrap_or_default();
        eprintln!("SKIPPED: dockerd can't run here:\n{log}");
        None
    }

    /// `docker ARGS`, not yet started.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.env("DOCKER_HOST", format!("unix://{}", self.socket.display())).args(args).stdin(Stdio::null());
        command
    }

    /// What `docker ARGS` prints; it must succeed.
    #[track_caller]
    pub fn docker(&self, args: &[&str]) -> String {
        let output = self.command(args).output().expect("docker starts");
        assert!(output.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        // Not SIGKILL: it ends its containerd and unmounts what it mounted.
        // SAFETY: the process is our child and was not waited for.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGTERM) };
        let _ = self.child.wait();
    }
}
