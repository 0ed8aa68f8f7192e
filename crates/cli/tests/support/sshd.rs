//! A real sshd on loopback that serves one git repository, and a base image with the machine's own git and ssh.
#![allow(dead_code, reason = "each test binary uses its part of it")]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::{Sandbox, has_tool, is_root};

/// One sshd; a process for each connection, as from inetd, so that the port is ours from the beginning.
pub struct Sshd {
    port: u16,
    /// Line for `known_hosts`.
    pub known_hosts: String,
    dir: PathBuf,
}

/// Runs a program that must succeed.
#[track_caller]
fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().expect("it starts");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A key of `ssh-keygen`.
pub fn keygen(path: &Path, args: &[&str]) {
    let passphrase: &[&str] = if args.contains(&"-N") { &[] } else { &["-N", ""] };
    run(Command::new("ssh-keygen").args(["-q", "-C", "test", "-f"]).arg(path).args(passphrase).args(args));
}

impl Sshd {
    /// Lets in who has one of these keys. `None`, loudly, where sshd, git or root are missing.
    pub fn start(s: &Sandbox, keys: &[&Path]) -> Option<Self> {
        if !["sshd", "ssh", "git", "ssh-agent"].iter().all(|t| has_tool(t)) {
            return None;
        }
        if !is_root() {
            eprintln!("SKIPPED: sshd is started by root only");
            return None;
        }
        // Where sshd parks its unprivileged half; the service would make it.
        std::fs::create_dir_all("/run/sshd").expect("a directory");
        let dir = s.path("sshd");
        std::fs::create_dir(&dir).expect("a directory");
        keygen(&dir.join("host"), &["-t", "ed25519"]);
        let public = |key: &Path| std::fs::read_to_string(key.with_extension("pub")).expect("a public key");
        let allowed: String = keys.iter().map(|k| public(k)).collect();
        std::fs::write(dir.join("authorized"), allowed).expect("a file");
        let config = format!(
            "HostKey {0}/host\nAuthorizedKeysFile {0}/authorized\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\nPidFile none\n",
            dir.display()
        );
        std::fs::write(dir.join("config"), config).expect("a file");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let host_key = public(&dir.join("host"));
        let known_hosts = format!("[127.0.0.1]:{port} {host_key}");
        let config = dir.join("config");
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(input) = client.try_clone() else { continue };
                let output = std::os::fd::OwnedFd::from(client);
                let child = Command::new("/usr/sbin/sshd")
                    .args(["-i", "-f"])
                    .arg(&config)
                    .stdin(std::os::fd::OwnedFd::from(input))
                    .stdout(output)
                    .stderr(Stdio::null())
                    .spawn();
                if let Ok(mut child) = child {
                    std::thread::spawn(move || child.wait());
                }
            }
        });
        let sshd = Self { port, known_hosts, dir };
        sshd.repository();
        Some(sshd)
    }

    fn git(&self, args: &[&str]) {
        let mut command = Command::new("git");
        command.args(["-c", "user.name=n", "-c", "user.email=e", "-c", "init.defaultBranch=main"]).args(args);
        run(command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", "/nonexistent").current_dir(&self.dir));
    }

    fn repository(&self) {
        let work = self.dir.join("work");
        self.git(&["init", "-q", "work"]);
        std::fs::create_dir(work.join("sub")).expect("a directory");
        std::fs::write(work.join("file"), "from git\n").expect("a file");
        std::fs::write(work.join("sub/Dockerfile"), "FROM scratch\nCOPY Dockerfile /d\n").expect("a file");
        std::fs::write(work.join("Dockerfile"), "FROM scratch\nCOPY file /file\n").expect("a file");
        self.git(&["-C", "work", "add", "."]);
        self.git(&["-C", "work", "commit", "-q", "-m", "first"]);
        self.git(&["clone", "-q", "--bare", "work", "repo.git"]);
    }

    /// Adds a branch with a submodule that is at `url`.
    pub fn branch(&self, name: &str, url: &str) {
        self.git(&["-C", "work", "checkout", "-q", "-B", name, "main"]);
        let modules = format!("[submodule \"m\"]\n\tpath = m\n\turl = \"{url}\"\n");
        std::fs::write(self.dir.join("work/.gitmodules"), modules).expect("a file");
        self.git(&["-C", "work", "add", ".gitmodules"]);
        let head = Command::new("git").args(["-C", "work", "rev-parse", "main"]).current_dir(&self.dir).output();
        let head = String::from_utf8(head.expect("git").stdout).expect("a commit");
        self.git(&["-C", "work", "update-index", "--add", "--cacheinfo", &format!("160000,{},m", head.trim())]);
        self.git(&["-C", "work", "commit", "-q", "-m", name]);
        self.git(&["-C", "work", "push", "-q", "-f", "../repo.git", name]);
    }

    /// Adds a branch on which a shell script changed the files or the index.
    pub fn scripted_branch(&self, name: &str, script: &str) {
        self.git(&["-C", "work", "checkout", "-q", "-f", "-B", name, "main"]);
        let done = Command::new("sh").args(["-ec", script]).current_dir(self.dir.join("work")).status().expect("sh");
        assert!(done.success(), "{script}");
        self.git(&["-C", "work", "commit", "-q", "-m", name]);
        self.git(&["-C", "work", "push", "-q", "-f", "../repo.git", name]);
    }

    /// The repository's URL.
    pub fn url(&self) -> String {
        format!("ssh://root@127.0.0.1:{}{}/repo.git", self.port, self.dir.display())
    }
}

/// Puts git and ssh of this machine with their libraries into the context's directory `tools`.
pub fn copy_tools(s: &Sandbox) {
    let mut files: Vec<PathBuf> = vec!["/usr/bin/git".into(), "/usr/bin/ssh".into()];
    for program in ["/usr/bin/git", "/usr/bin/ssh"] {
        let listed = Command::new("ldd").arg(program).output().expect("ldd");
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        files.extend(listed.split_whitespace().filter(|w| w.starts_with('/')).map(PathBuf::from));
    }
    files.sort();
    files.dedup();
    for file in files {
        let to = s.path("ctx/tools").join(file.strip_prefix("/").expect("absolute"));
        std::fs::create_dir_all(to.parent().expect("a parent")).expect("directories");
        std::fs::copy(&file, &to).expect("it is copied");
    }
}

/// An ssh agent with a key in it; ended when dropped.
pub struct RealAgent {
    child: std::process::Child,
    /// Its socket.
    pub socket: PathBuf,
}

impl RealAgent {
    /// Starts `ssh-agent`.
    pub fn start(s: &Sandbox, key: &Path) -> Self {
        let socket = s.path("agent.sock");
        let mut child =
            Command::new("ssh-agent").arg("-D").arg("-a").arg(&socket).stdout(Stdio::null()).spawn().expect("an agent");
        while !socket.exists() {
            assert!(child.try_wait().expect("a state").is_none(), "the agent ended");
            std::thread::yield_now();
        }
        run(Command::new("ssh-add").arg("-q").arg(key).env("SSH_AUTH_SOCK", &socket));
        Self { child, socket }
    }

    /// What it lists.
    pub fn keys(&self) -> String {
        let output = Command::new("ssh-add").arg("-l").env("SSH_AUTH_SOCK", &self.socket).output().expect("ssh-add");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for RealAgent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
