//! The agent against OpenSSH's own tools: keys that `ssh-keygen` made, and signatures that it verifies.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use kiln_sshagent::{Agent, Key, KeyError, KeyFile, serve};

fn has_tools() -> bool {
    let found = ["ssh-keygen", "ssh-add"].iter().all(|t| Path::new("/usr/bin").join(t).exists());
    if !found {
        eprintln!("SKIPPED: openssh-client is not installed (scripts/test installs it)");
    }
    found
}

fn keygen(path: &Path, args: &[&str]) {
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-C", "a comment", "-f"]).arg(path).args(args);
    if !args.contains(&"-N") {
        command.args(["-N", ""]);
    }
    assert!(command.status().unwrap().success());
}

fn open(path: &Path) -> Key {
    match KeyFile::read(path).unwrap() {
        KeyFile::Open(key) => key,
        KeyFile::Locked(_) => panic!("{} is encrypted", path.display()),
    }
}

/// `ssh-add` as client: lists the keys, and has each sign something that it then verifies.
fn check_with_ssh_add(dir: &Path, keys: Vec<Key>) {
    let paths: Vec<_> = keys.iter().map(|k| k.path().to_owned()).collect();
    let socket = dir.join("agent");
    let listener = UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || {
        let agent = Agent::new(keys);
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let mut writer = client.try_clone().unwrap();
            let _ = serve(&agent, &mut client, &mut writer);
        }
    });
    let ssh_add = |args: &[&str]| Command::new("ssh-add").args(args).env("SSH_AUTH_SOCK", &socket).output().unwrap();
    let listed = String::from_utf8(ssh_add(&["-l"]).stdout).unwrap();
    assert_eq!(listed.lines().count(), paths.len(), "{listed}");
    for path in paths {
        let public = path.with_extension("pub");
        let tested = ssh_add(&["-T", public.to_str().unwrap()]);
        assert!(tested.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&tested.stderr));
        // And a signature over a file, which uses the other hash of RSA.
        let mut signing = Command::new("ssh-keygen")
            .args(["-Y", "sign", "-n", "file", "-f"])
            .arg(&public)
            .env("SSH_AUTH_SOCK", &socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        signing.stdin.take().unwrap().write_all(b"text").unwrap();
        let mut signature = String::new();
        signing.stdout.take().unwrap().read_to_string(&mut signature).unwrap();
        assert!(signing.wait().unwrap().success() && signature.starts_with("-----BEGIN SSH SIGNATURE"), "{signature}");
        let file = dir.join("signature");
        std::fs::write(&file, signature).unwrap();
        let mut verify = Command::new("ssh-keygen")
            .args(["-Y", "check-novalidate", "-n", "file", "-s"])
            .arg(&file)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        verify.stdin.take().unwrap().write_all(b"text").unwrap();
        assert!(verify.wait().unwrap().success(), "{}", path.display());
    }
    for args in [&["-D"][..], &["-x"]] {
        assert!(!ssh_add(args).status.success(), "{args:?} is refused");
    }
}

#[test]
fn openssh_accepts_the_signatures_of_every_kind_of_key() {
    if !has_tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let kinds: [(&str, &[&str]); 6] = [
        ("ed25519", &["-t", "ed25519"]),
        ("p256", &["-t", "ecdsa", "-b", "256"]),
        ("p384", &["-t", "ecdsa", "-b", "384"]),
        ("p521", &["-t", "ecdsa", "-b", "521"]),
        ("rsa", &["-t", "rsa", "-b", "2048"]),
        ("pkcs1", &["-t", "rsa", "-b", "2048", "-m", "PEM"]),
    ];
    let keys = kinds.iter().map(|(name, args)| {
        let path = dir.path().join(name);
        keygen(&path, args);
        open(&path)
    });
    let keys = keys.collect();
    check_with_ssh_add(dir.path(), keys);
}

#[test]
fn an_encrypted_key_needs_its_passphrase() {
    if !has_tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    keygen(&path, &["-t", "ed25519", "-N", "open sesame"]);
    let KeyFile::Locked(locked) = KeyFile::read(&path).unwrap() else { panic!("not encrypted") };
    assert!(matches!(locked.unlock("wrong"), Err(KeyError::Passphrase { .. })));
    let key = locked.unlock("open sesame").unwrap();
    assert!(key.secret_values().len() == 2 && !format!("{key:?}").contains("PRIVATE"));
    check_with_ssh_add(dir.path(), vec![key]);
}

#[test]
fn what_is_not_a_usable_key_is_explained() {
    if !has_tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    let error = |path: &Path| KeyFile::read(path).err().unwrap().to_string();
    keygen(&path, &["-t", "ecdsa", "-m", "PEM"]);
    assert!(
        error(&path)
            .ends_with("EC keys in PEM are not supported; `ssh-keygen -p -f FILE` writes it in OpenSSH's format")
    );
    assert!(error(&path.with_extension("pub")).contains("it is the public key"));
    std::fs::remove_file(&path).unwrap();
    keygen(&path, &["-t", "rsa", "-b", "2048", "-m", "PEM", "-N", "open sesame"]);
    assert!(error(&path).contains("encrypted PEM keys are not supported"));
    assert!(error(Path::new("/nonexistent")).contains("can't read the ssh key /nonexistent"));
    assert!(error(dir.path()).contains("directory"));
    std::fs::write(&path, "hello").unwrap();
    assert!(error(&path).contains("does not begin with"));
}
