//! The same without root: with subordinate ids, and with a single id.
//!
//! The test process (root) starts this binary again as another user; the part before `main` then plays a role, while
//! there is one thread, as kiln's own `main` does.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use common::*;
use kiln_executor::rootless::{self, Identity};
use kiln_executor::{CancelToken, Executor, Limits, Network, ProcessSpec, Stdio, User};

const NOBODY: u32 = 65534;

#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = {
    extern "C" fn start() {
        kiln_executor::helper_main_if_requested();
        if let Ok(role) = std::env::var("KILN_TEST_ROLE") {
            let result = std::panic::catch_unwind(|| play(&role));
            std::process::exit(i32::from(result.is_err()));
        }
    }
    start
};

fn play(role: &str) {
    let identity = rootless::enter().unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(rootless::enter().unwrap(), identity, "idempotent");
    println!("identity {identity:?}");
    let root = std::env::var("KILN_TEST_ROOT").unwrap();
    let root = Path::new(&root);
    let executor = Executor::new(Default::default()).unwrap();
    match role {
        "view" => view(&executor, root),
        "apt" => apt(&executor, root),
        "owners" => owners(&executor, root),
        "overlay" => overlay(&executor, root),
        "preflight" => {
            for f in kiln_executor::preflight() {
                println!("{:?} {}: {} ({:?})", f.level, f.what, f.detail, f.remedy);
            }
        }
        other => panic!("role {other}"),
    }
}

fn inherit(mut spec: ProcessSpec) -> ProcessSpec {
    let dup = |fd: i32| -> std::os::fd::OwnedFd {
        // SAFETY: the standard descriptors are open for the whole life of the process.
        unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) }.try_clone_to_owned().unwrap()
    };
    (spec.stdout, spec.stderr) = (Stdio::Fd(dup(1)), Stdio::Fd(dup(2)));
    spec
}

fn go(executor: &Executor, spec: ProcessSpec) -> kiln_executor::Exit {
    executor.run(inherit(spec), |_| {}, &CancelToken::new()).unwrap_or_else(|e| panic!("{e}"))
}

fn view(executor: &Executor, root: &Path) {
    let text = "id; echo pid $$; touch /made; stat -c %u:%g /made; ls /sys/class >/dev/null; echo x > /dev/null; \
                mkdir /sys/kernel/x 2>/dev/null && echo WRITTEN; echo 1 2>/dev/null >/proc/sysrq-trigger && echo WRITTEN; \
                stat -c %t:%T /dev/null /proc/interrupts; grep Cap /proc/self/status; ls /sys/fs/cgroup | wc -l; \
                ls -d /dev/pts/ptmx /dev/mqueue; cat /etc/hosts; grep Seccomp: /proc/self/status; rm /made";
    for network in [Network::Host, Network::None] {
        let mut s = script(root, text);
        s.network = network;
        s.hosts = b"127.0.0.1 localhost\n".to_vec();
        let exit = go(executor, s);
        assert!(exit.success(), "{exit:?}");
    }
    assert!(!root.join("proc").exists());
    let mut s = script(root, "tty");
    s.terminal = Some(Default::default());
    let mut terminal = None;
    let exit = executor.run(s, |started| terminal = started.terminal, &CancelToken::new()).unwrap();
    assert!(terminal.is_some());
    assert!(exit.success());
    let mut s = script(root, "true");
    s.limits = Limits { memory: Some(1 << 28), ..Limits::default() };
    let mut missing = Vec::new();
    executor
        .run(inherit(s), |started| missing = started.not_enforced, &CancelToken::new())
        .unwrap_or_else(|e| panic!("{e}"));
    println!("not enforced: {missing:?}");
}

/// What apt, dpkg and adduser do with ids.
fn apt(executor: &Executor, root: &Path) {
    let text = "touch /f /g /h; mkdir -p /d/e; ln -sf ../f /d/l; chown 42:43 /f; chown -R 100:101 /d; chgrp 8 /f; chown -h 5 /d/l; \
                cd /d; chown 77 e/../../g l; chown 5:5 /h; chown 0:0 /h; chown 1 /missing 2>/dev/null && echo WRONG; \
                chown 1 /bin/missing 2>&1 | grep -c 'No such file'; stat -c %u:%g /f; su nobody -s /bin/sh -c 'id -u'";
    let exit = go(executor, script(root, text));
    assert!(exit.success(), "{exit:?}");
    println!("pretended {:?}", exit.pretended);
    let owner = |path: &str| {
        let mut value = [0; 64];
        let n = rustix::fs::getxattr(root.join(path), "user.kiln.stat", &mut value).unwrap_or(0);
        String::from_utf8_lossy(&value[..n]).into_owned()
    };
    // busybox gives the owner that it saw (root) with a new group, and the other way round; coreutils gives "keep".
    for (path, expected) in
        [("f", "77:0:100644"), ("d", "100:101:40755"), ("d/e", "100:101:40755"), ("g", "77:0:100644"), ("h", "")]
    {
        assert_eq!(owner(path), expected, "{path}");
    }
    let mut s = script(
        root,
        "echo as $(id -u):$(id -g); grep -E 'CapEff|CapBnd' /proc/self/status; touch /tmp/mine; chown 1000:1000 /tmp/mine; rm /tmp/mine",
    );
    s.user = User { uid: 1000, gid: 1000, groups: vec![1000] };
    let exit = go(executor, s);
    println!("user {:?}", exit.pretended);
    assert!(exit.success());
    let start = std::time::Instant::now();
    let text = "mkdir /many; cd /many; for i in $(seq 2000); do : > f$i; done; chown -R 33:33 /many; rm -r /many";
    let exit = go(executor, script(root, text));
    assert!(exit.success() && exit.pretended.recorded == 2001, "{exit:?}");
    eprintln!("2001 pretended chowns with their files in {:?}", start.elapsed());
}

fn owners(executor: &Executor, root: &Path) {
    let text = "touch /f; chown 42:43 /f; stat -c %u:%g /f; su nobody -s /bin/sh -c 'id -u; id -G'; rm /f";
    let exit = go(executor, script(root, text));
    assert!(exit.success() && exit.pretended.is_empty(), "{exit:?}");
    let mut s = script(root, "id -u; id -G");
    s.user = User { uid: 1000, gid: 1001, groups: vec![4, 5] };
    assert!(go(executor, s).success());
    let mut s = script(root, "true");
    s.user = User { uid: 3_000_000, gid: 0, groups: vec![] };
    let error = executor.run(s, |_| {}, &CancelToken::new()).unwrap_err().to_string();
    println!("{error}");
}

fn overlay(executor: &Executor, root: &Path) {
    let top = root.parent().unwrap();
    let (upper, work) = (top.join("upper"), top.join("work"));
    fs::create_dir(&upper).unwrap();
    fs::create_dir(&work).unwrap();
    let spec = kiln_rootfs::overlay::OverlaySpec { lowers: &[root], upper: Some((&upper, &work)), volatile: true };
    let mount = kiln_rootfs::overlay::mount(&spec).unwrap_or_else(|e| panic!("{e}"));
    let exit = go(executor, ProcessSpec::new(mount, ["/bin/sh", "-ec", "rm /etc/group; echo made > /new; cat /new"]));
    assert!(exit.success());
    let mut names: Vec<_> = fs::read_dir(&upper).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    println!("upper {names:?}");
}

struct Played {
    out: String,
    success: bool,
}

/// Plays a role as nobody; with `subids`, nobody has subordinate ids in a private view of /etc.
fn as_nobody(role: &str, subids: bool) -> Played {
    as_nobody_with(role, subids, false)
}

/// With `hidden`, a part of /proc is covered, as inside of a Docker container.
fn as_nobody_with(role: &str, subids: bool, hidden: bool) -> Played {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    fill(&root);
    give(dir.path());
    let (subid, path) = (dir.path().join("subid"), dir.path().join("path"));
    fs::write(&subid, if subids { "nobody:100000:65536\n" } else { "" }).unwrap();
    fs::create_dir(&path).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .env_clear()
        .env("KILN_TEST_ROLE", role)
        .env("KILN_TEST_ROOT", &root)
        .env("PATH", "/usr/bin:/bin")
        .current_dir("/")
        .stderr(std::process::Stdio::inherit());
    let subid = std::ffi::CString::new(subid.as_os_str().as_encoded_bytes()).unwrap();
    // SAFETY: only system calls between fork and exec; the strings were made before.
    unsafe {
        command.pre_exec(move || {
            let check = |ret: i32| if ret < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) };
            let none = std::ptr::null();
            check(libc::unshare(libc::CLONE_NEWNS))?;
            check(libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, none.cast()))?;
            for file in [c"/etc/subuid", c"/etc/subgid"] {
                check(libc::mount(subid.as_ptr(), file.as_ptr(), none, libc::MS_BIND, none.cast()))?;
            }
            if hidden {
                check(libc::mount(
                    c"/dev/null".as_ptr(),
                    c"/proc/interrupts".as_ptr(),
                    none,
                    libc::MS_BIND,
                    none.cast(),
                ))?;
                check(libc::mount(c"x".as_ptr(), c"/proc/fs".as_ptr(), c"tmpfs".as_ptr(), 0, none.cast()))?;
            }
            check(libc::setgroups(0, std::ptr::null()))?;
            check(libc::setresgid(NOBODY, NOBODY, NOBODY))?;
            check(libc::setresuid(NOBODY, NOBODY, NOBODY))
        });
    }
    let output = command.output().unwrap();
    Played { out: String::from_utf8_lossy(&output.stdout).into_owned(), success: output.status.success() }
}

fn give(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            give(&path);
        }
        std::os::unix::fs::lchown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    chown(dir, Some(NOBODY), Some(NOBODY)).unwrap();
}

/// Needs real root to become somebody else, and files of /etc to cover.
fn cannot_play() -> bool {
    let root = rootless::current() == Some(Identity::Root);
    let files = ["/etc/subuid", "/etc/subgid"].iter().all(|f| Path::new(f).exists());
    if !root || !files {
        eprintln!("SKIPPED: playing another user needs root, /etc/subuid and /etc/subgid");
    }
    !root || !files
}

fn has_id_tools() -> bool {
    let there = ["newuidmap", "newgidmap"].iter().all(|tool| {
        fs::metadata(Path::new("/usr/bin").join(tool)).is_ok_and(|m| m.uid() == 0 && m.mode() & 0o4000 != 0)
    });
    if !there {
        eprintln!("SKIPPED: newuidmap and newgidmap are not installed");
    }
    there
}

#[track_caller]
fn expect(played: &Played, words: &[&str]) {
    assert!(played.success, "{}", played.out);
    for word in words {
        assert!(played.out.contains(word), "{word:?} not in\n{}", played.out);
    }
}

#[test]
fn a_single_id_sees_the_same_container() {
    if cannot_play() {
        return;
    }
    let played = as_nobody("view", false);
    expect(&played, &["identity SingleId", "uid=0(root) gid=0(root)", "pid 1\n", "0:0\n", "1:3\n1:3\n", "Seccomp:\t2"]);
    expect(
        &played,
        &[
            "CapEff:\t00000000a80425fb\nCapBnd:\t00000000a80425fb\nCapAmb:\t0000000000000000\n0\n",
            "127.0.0.1 localhost",
        ],
    );
    assert!(!played.out.contains("WRITTEN"), "{}", played.out);
}

#[test]
fn where_proc_is_partly_hidden_that_view_is_used() {
    if cannot_play() {
        return;
    }
    let played = as_nobody_with("view", false, true);
    expect(&played, &["identity SingleId", "uid=0(root) gid=0(root)", "1:3\n1:3\n", "Seccomp:\t2"]);
    assert!(!played.out.contains("WRITTEN"), "{}", played.out);
    let played = as_nobody_with("preflight", false, true);
    expect(&played, &["Limited /proc: parts of /proc are hidden"]);
}

#[test]
fn with_a_single_id_changes_of_owner_are_pretended() {
    if cannot_play() {
        return;
    }
    let played = as_nobody("apt", false);
    expect(
        &played,
        &[
            "identity SingleId",
            "0:0\n",
            "user: true",
            "as 1000:1000\nCapEff:\t0000000000000000\nCapBnd:\t00000000a80425fb",
        ],
    );
    let counted = played.out.lines().find(|l| l.starts_with("pretended")).unwrap();
    assert!(!played.out.contains("WRONG") && counted.contains("chown: 2, recorded: 8, identity: "), "{counted}");
}

#[test]
fn subordinate_ids_give_real_owners() {
    if cannot_play() || !has_id_tools() {
        return;
    }
    expect(&as_nobody("view", true), &["identity Subids", "uid=0(root) gid=0(root)", "pid 1\n", "Seccomp:\t2"]);
    let played = as_nobody("owners", true);
    expect(&played, &["identity Subids", "42:43\n65534\n", "1000\n1001 4 5\n", "subordinate ids of this account"]);
}

#[test]
fn overlays_work_without_root() {
    if cannot_play() {
        return;
    }
    expect(&as_nobody("overlay", false), &["made\n", "upper [\"etc\", \"new\"]"]);
}

#[test]
fn preflight_tells_what_is_missing() {
    if cannot_play() {
        return;
    }
    expect(&as_nobody("preflight", false), &["Limited privileges: ", "one id"]);
}
