//! ssh in builds, with a real sshd: `git clone` in RUN, the context and ADD from git; with key files and with an agent.
#![allow(clippy::unwrap_used)]

#[path = "support/sshd.rs"]
mod sshd;
mod support;

use std::path::PathBuf;

use sshd::{RealAgent, Sshd, copy_tools, keygen};
use support::*;

/// A sandbox, an sshd and a key that it lets in.
fn set_up(kind: &[&str]) -> Option<(Sandbox, Sshd, PathBuf)> {
    let s = Sandbox::new("")?;
    if !has_tool("ssh-keygen") {
        return None;
    }
    let key = s.path("key");
    keygen(&key, kind);
    let sshd = Sshd::start(&s, &[&key])?;
    Some((s, sshd, key))
}

/// A stage with git and ssh that clones, and a result with one file of what it cloned.
fn cloning(s: &Sandbox, sshd: &Sshd, before: &str) {
    copy_tools(s);
    s.file("known_hosts", &sshd.known_hosts);
    s.file("passwd", "root:x:0:0::/root:/bin/sh\n");
    let url = sshd.url();
    s.file(
        "Dockerfile",
        format!(
            "{BASE}COPY tools/ /\nCOPY passwd /etc/passwd\nCOPY known_hosts /root/.ssh/known_hosts\n\
             RUN --mount=type=ssh {before}git clone -q {url} /src\nFROM scratch\nCOPY --from=base /src/file /file\n"
        ),
    );
}

#[test]
fn git_clone_in_run_with_key_files() {
    for kind in [&["-t", "ed25519"][..], &["-t", "ecdsa", "-b", "521"], &["-t", "rsa", "-b", "2048"]] {
        let Some((s, sshd, key)) = set_up(kind) else { return };
        cloning(&s, &sshd, "");
        let other = s.path("other");
        keygen(&other, &["-t", "ed25519"]);
        let both = format!("default={},{}", other.display(), key.display());
        let run = s.build(&["--ssh", &both, "-o", "out"]);
        let private = text(&key);
        run.ok().hides(private.lines().nth(2).unwrap());
        assert_eq!(text(s.path("out/file")), "from git\n", "{kind:?}");
        // Nothing of the key is left in the store.
        let middle = private.lines().nth(3).unwrap();
        assert_eq!(files_with(&s.path("store"), middle.as_bytes()), Vec::<PathBuf>::new());
        s.build(&["--no-cache", "--ssh", &format!("default={}", other.display())])
            .fails(1)
            .says(&["Permission denied"]);
    }
}

#[test]
fn git_clone_in_run_with_the_users_agent_which_a_step_cannot_change() {
    let Some((s, sshd, key)) = set_up(&["-t", "ed25519"]) else { return };
    let agent = RealAgent::start(&s, &key);
    cloning(&s, &sshd, "");
    let socket = format!("default={}", agent.socket.display());
    s.build(&["--ssh", &socket, "-o", "out"]).ok();
    assert_eq!(text(s.path("out/file")), "from git\n");
    // A step that asks the agent to forget all keys (message 19) is refused (answer 5).
    let dockerfile = text(s.path("ctx/Dockerfile"));
    let evil = "printf '\\000\\000\\000\\001\\023' | nc local:$SSH_AUTH_SOCK > /answer; ";
    s.file("Dockerfile", dockerfile.replace("git clone", &format!("{evil}git clone")));
    s.build(&["--ssh", &socket, "-o", "out"]).ok();
    assert!(agent.keys().contains("ED25519"), "the key is still in the agent");
}

#[test]
fn contexts_and_add_from_git_over_ssh() {
    let Some((mut s, sshd, key)) = set_up(&["-t", "ed25519"]) else { return };
    let ssh = format!("default={}", key.display());
    let url = sshd.url();
    let build = |s: &Sandbox, context: &str, args: &[&str]| {
        let all: Vec<&str> = [&["build", "--progress=plain", "-o", "out"], args, &[context]].concat();
        s.kiln(&all)
    };
    // The server is not known: it is refused, whatever the key.
    build(&s, &url, &["--ssh", &ssh]).fails(1).says(&["Host key verification failed", "known_hosts"]);
    std::fs::create_dir(s.path("home/.ssh")).unwrap();
    std::fs::write(s.path("home/.ssh/known_hosts"), &sshd.known_hosts).unwrap();
    build(&s, &url, &["--ssh", &ssh]).ok();
    assert_eq!(text(s.path("out/file")), "from git\n");
    build(&s, &format!("{url}#main:sub"), &["--ssh", &ssh]).ok();
    assert!(s.path("out/d").exists());
    build(&s, &url, &[]).fails(1).says(&["Permission denied"]);
    s.file("Dockerfile", format!("FROM scratch\nADD {url}#main:sub /added/\nCOPY --from=named file /named\n"));
    build(&s, "ctx", &["--ssh", &ssh, "--build-context", &format!("named={url}")]).ok();
    assert!(s.path("out/added/Dockerfile").exists() && s.path("out/named").exists());
    // And with an agent that the environment names.
    let agent = RealAgent::start(&s, &key);
    s.env("SSH_AUTH_SOCK", agent.socket.to_str().unwrap());
    s.env("KILN_ROOT", s.path("store2").to_str().unwrap());
    build(&s, &url, &["--ssh", "default"]).ok();
}

#[test]
fn cve_2022_39253_submodules_are_not_local_and_cve_2024_32002_run_no_hooks() {
    let Some((s, sshd, key)) = set_up(&["-t", "ed25519"]) else { return };
    std::fs::create_dir_all(s.path("home/.ssh")).unwrap();
    std::fs::write(s.path("home/.ssh/known_hosts"), &sshd.known_hosts).unwrap();
    let ssh = format!("default={}", key.display());
    let build = |reference: &str| {
        s.kiln(&["build", "--progress=plain", "-o", "out", "--ssh", &ssh, &format!("{}#{reference}", sshd.url())])
    };
    // Another repository of the server: an honest submodule.
    sshd.branch("honest", &sshd.url());
    build("honest").ok();
    assert_eq!(text(s.path("out/file")), "from git\n");
    // The same repository by its path is the host's file system.
    let path = sshd.url().split_once("127.0.0.1").unwrap().1.split_once('/').unwrap().1.to_owned();
    sshd.branch("local", &format!("/{path}"));
    build("local").fails(1).says(&["not allowed"]);
    sshd.branch("file", &format!("file:///{path}"));
    build("file").fails(1).says(&["not allowed"]);
    sshd.branch("ext", &format!("ext::sh -c touch% {}", s.path("pwned").display()));
    build("ext").fails(1);
    assert!(!s.path("pwned").exists());
    // Without submodules all of them can be used.
    let url = format!("{}?ref=local&submodules=false", sshd.url());
    s.kiln(&["build", "-o", "out", "--ssh", &ssh, &url]).ok();
}

/// A submodule whose path ends with a carriage return, which git loses between reading and writing its configuration: it is
/// then checked out through a link into the hooks of its own repository.
#[test]
fn cve_2025_48384_a_carriage_return_in_a_submodules_path_runs_no_hook() {
    let Some((s, sshd, key)) = set_up(&["-t", "ed25519"]) else { return };
    std::fs::create_dir_all(s.path("home/.ssh")).unwrap();
    std::fs::write(s.path("home/.ssh/known_hosts"), &sshd.known_hosts).unwrap();
    let pwned = s.path("pwned");
    let hook = format!("#!/bin/sh\ntouch {}\n", pwned.display());
    std::fs::write(s.path("hook"), &hook).unwrap();
    let copy = format!("install -m 755 {} post-checkout && git add post-checkout", s.path("hook").display());
    sshd.scripted_branch("hook", &copy);
    let modules = format!("[submodule \"m\"]\n\tpath = \"m\r\"\n\turl = \"{}\"\n\tbranch = hook\n", sshd.url());
    std::fs::write(s.path("modules"), modules).unwrap();
    let script = format!(
        "cp {} .gitmodules; ln -s .git/modules/m/hooks m; git add .gitmodules m\n\
         git update-index --add --cacheinfo \"160000,$(git rev-parse hook),$(printf 'm\\r')\"",
        s.path("modules").display()
    );
    sshd.scripted_branch("evil", &script);
    let ssh = format!("default={}", key.display());
    let url = format!("{}#evil", sshd.url());
    let run = s.kiln(&["build", "--progress=plain", "-o", "out", "--ssh", &ssh, &url]);
    assert!(!pwned.exists(), "{}", run.stderr);
    // What was checked out has the hook as a file at most.
    for found in files_with(&s.path("store"), hook.as_bytes()) {
        assert!(!found.to_string_lossy().contains("/hooks/"), "{}", found.display());
    }
}

#[test]
fn an_encrypted_key_without_a_terminal_says_what_to_do() {
    let Some(s) = Sandbox::new(&format!("{BASE}RUN --mount=type=ssh true\n")) else { return };
    if !has_tool("ssh-keygen") || !has_tool("setsid") {
        return;
    }
    keygen(&s.path("key"), &["-t", "ed25519", "-N", "open sesame"]);
    let kiln = s.command(["build", "--ssh", "default=key", "ctx"]);
    // Without a controlling terminal, which the developer's shell has.
    let mut command = std::process::Command::new("setsid");
    command.arg("-w").arg(kiln.get_program()).args(kiln.get_args()).current_dir(s.path(""));
    command.env_clear().envs(kiln.get_envs().filter_map(|(k, v)| Some((k, v?))));
    let run: Run = command.stdin(std::process::Stdio::null()).output().unwrap().into();
    run.fails(1).says(&["the ssh key key is encrypted", "ssh-add key", "--ssh default"]);
    s.build(&["--ssh", "default=key.pub"]).fails(1).says(&["it is the public key"]);
    s.build(&["--ssh", "default=nowhere"]).fails(1).says(&["can't read the ssh key nowhere"]);
}

#[test]
fn an_encrypted_key_asks_on_the_terminal_and_shows_nothing() {
    use std::io::{Read, Write};
    let Some(s) = Sandbox::new(&format!("{BASE}RUN --mount=type=ssh test -S $SSH_AUTH_SOCK\n")) else { return };
    if !has_tool("ssh-keygen") || !has_tool("script") {
        return;
    }
    keygen(&s.path("key"), &["-t", "ed25519", "-N", "open sesame"]);
    let kiln = s.command(["build", "--progress=plain", "--ssh", "default=key", "ctx"]);
    let mut command = std::process::Command::new("script");
    let program = kiln.get_program().to_str().unwrap().to_owned();
    command.args(["-qec", &format!("{program} build --progress=plain --ssh default=key ctx"), "/dev/null"]);
    command.current_dir(s.path("")).env_clear().envs(kiln.get_envs().filter_map(|(k, v)| Some((k, v?))));
    let pipe = std::process::Stdio::piped;
    let mut child = command.stdin(pipe()).stdout(pipe()).spawn().unwrap();
    let (mut typed, mut shown) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let (mut screen, mut buffer, mut answers) = (String::new(), [0; 4096], ["wrong", "open sesame"].into_iter());
    while let Ok(n) = shown.read(&mut buffer)
        && n > 0
    {
        let more = String::from_utf8_lossy(&buffer[..n]).into_owned();
        screen.push_str(&more);
        if more.contains("Enter passphrase for key: ") {
            typed.write_all(format!("{}\n", answers.next().expect("two questions")).as_bytes()).unwrap();
        }
    }
    assert!(child.wait().unwrap().success(), "{screen}");
    assert!(screen.contains("Wrong passphrase.") && !screen.contains("sesame"), "{screen}");
}

#[test]
fn a_private_key_of_ssh_in_the_result_fails_the_build() {
    let Some(s) = Sandbox::new("FROM scratch\nCOPY key /home/u/.ssh/id\n") else { return };
    if !has_tool("ssh-keygen") {
        return;
    }
    for kind in ["ed25519", "ecdsa"] {
        let key = s.path("ctx/key");
        let _ = std::fs::remove_file(&key);
        let _ = std::fs::remove_file(key.with_extension("pub"));
        keygen(&key, &["-t", kind]);
        let ssh = "default=ctx/key";
        s.build(&["--ssh", ssh]).fails(4).says(&["/home/u/.ssh/id", "Dockerfile:2", "--mount=type=ssh"]);
        // The same key in another format is the same key.
        let convert = ["-q", "-p", "-N", "", "-m", "PEM", "-f"];
        let other = s.path("ctx/other");
        std::fs::copy(&key, &other).unwrap();
        assert!(std::process::Command::new("ssh-keygen").args(convert).arg(&other).output().unwrap().status.success());
        if kind == "ecdsa" {
            s.file("Dockerfile", "FROM scratch\nCOPY other /other\n");
            s.build(&["--ssh", ssh]).fails(4).says(&["/other"]);
            s.file("Dockerfile", "FROM scratch\nCOPY key.pub /public\n");
            s.build(&["--ssh", ssh]).ok();
            s.file("Dockerfile", "FROM scratch\nCOPY key /home/u/.ssh/id\n");
        }
    }
}
