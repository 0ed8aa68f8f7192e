//! Containers as a build uses them: what a process sees, gets and may do.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use common::*;
use kiln_executor::{
    Limits, Mount, MountSource, Network, ProcessSpec, Security, Started, Stdio, Terminal, Ulimit, User,
};

kiln_executor::helper_in_tests!();

#[test]
fn a_program_runs_and_its_exit_is_known() {
    if skip("a container") {
        return;
    }
    let root = busybox_root();
    assert_eq!(sh(root.path(), "echo hello; pwd; id -u; echo $$"), "hello\n/\n0\n1\n");
    assert_eq!(run(script(root.path(), "exit 7")).exit.code, Some(7));
    let killed = run(script(root.path(), "set +e; sh -c 'kill -9 $$'; echo $?")).ok();
    assert!(killed.ends_with("137\n"), "{killed}");
    // PATH is the container's.
    let mut spec = spec(root.path(), &["tool"]);
    fs::create_dir(root.path().join("opt")).unwrap();
    symlink("/bin/echo", root.path().join("opt/tool")).unwrap();
    spec.env = vec!["PATH=/nowhere:/opt".into()];
    // busybox does not know the applet "tool": what counts is that it was found and executed.
    assert_eq!(run(spec).exit.code, Some(127));
}

#[test]
fn the_view_is_dockers_and_leaves_no_trace() {
    if skip("a container") {
        return;
    }
    let root = busybox_root();
    let before = snapshot(root.path());
    let mut s = script(
        root.path(),
        "cat /etc/hosts /etc/hostname /etc/resolv.conf; hostname; ls -1 /dev | tr '\\n' ' '; echo; \
         for d in null zero full random urandom tty; do stat -c '%n %a %t:%T' /dev/$d; done; \
         for l in ptmx fd stdin; do readlink /dev/$l; done; stat -f -c %T /dev/shm; df -k /dev/shm | tail -n1 | tr -s ' ' | head -c 30; echo; \
         ls -d /dev/mqueue /dev/pts; echo x > /dev/null; test $(head -c 5 /dev/zero | wc -c) = 5; touch /dev/shm/a; \
         ls /proc/self/ns >/dev/null; ls /proc | grep -c '^[0-9]'",
    );
    s.hosts = b"127.0.0.1 localhost\n".to_vec();
    s.resolv_conf = b"nameserver 10.1.1.1\n".to_vec();
    s.hostname = "builder".to_owned();
    s.limits.shm_size = Some(1 << 20);
    let ran = run(s);
    let stubs = ran.exit.stubs_removed.clone();
    let out = ran.ok();
    for expected in [
        "127.0.0.1 localhost\nbuilder\nnameserver 10.1.1.1\nbuilder\n",
        "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero",
        "/dev/null 666 1:3",
        "/dev/urandom 666 1:9",
        "/dev/tty 666 5:0",
        "pts/ptmx\n/proc/self/fd\n/proc/self/fd/0\ntmpfs\n",
        "1024",
    ] {
        assert!(out.contains(expected), "{expected:?} not in\n{out}");
    }
    for stub in ["/proc", "/sys", "/dev", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"] {
        assert!(stubs.iter().any(|s| s == Path::new(stub)), "{stub} not in {stubs:?}");
    }
    assert_eq!(snapshot(root.path()), before, "the root is as it was, times included");
}

/// Every path with kind, size and modification time.
fn snapshot(root: &Path) -> Vec<(String, u32, u64, i64, i64)> {
    fn walk(dir: &Path, out: &mut Vec<(String, u32, u64, i64, i64)>) {
        let m = fs::symlink_metadata(dir).unwrap();
        out.push((dir.display().to_string(), m.mode(), m.size(), m.mtime(), m.mtime_nsec()));
        if m.is_dir() {
            fs::read_dir(dir).unwrap().for_each(|entry| walk(&entry.unwrap().path(), out));
        }
    }
    let mut out = Vec::new();
    walk(root, &mut out);
    out.sort();
    out
}

#[test]
fn kernel_paths_are_masked_and_read_only() {
    if skip("a container") {
        return;
    }
    let root = busybox_root();
    let text = "cd /proc; for f in acpi asound interrupts kcore keys latency_stats sched_debug scsi timer_list timer_stats; do \
                if test -d $f; then echo \"$f $(ls $f | wc -l)\"; elif test -e $f; then echo \"$f $(stat -c %t:%T $f)\"; fi; done; \
                set +e; for f in sys/kernel/hostname sysrq-trigger; do echo 0 2>/dev/null > /proc/$f && echo WRITTEN $f; done; \
                mkdir /sys/x 2>/dev/null && echo WRITTEN; echo 1 2>/dev/null > /sys/kernel/mm/ksm/run && echo WRITTEN; \
                ls /sys/firmware 2>/dev/null | wc -l; mount -o remount,rw /proc/sys 2>&1; true";
    let out = sh(root.path(), text);
    assert!(!out.contains("WRITTEN"), "{out}");
    for line in out.lines().take_while(|l| l.contains(' ') && !l.contains("mount:")) {
        assert!(line.ends_with(" 0") || line.ends_with(" 1:3"), "{line}");
    }
    assert!(out.contains("interrupts 1:3") && out.contains("permission denied"), "{out}");
    // Without the sandbox they are there and writable.
    let mut open = script(
        root.path(),
        "stat -c %F /proc/interrupts; test -w /proc/sys/kernel/hostname; grep Seccomp: /proc/self/status",
    );
    open.security = Security::Insecure;
    let out = run(open).ok();
    assert!(out.contains("regular") && out.contains("Seccomp:\t0"), "{out}");
}

#[test]
fn capabilities_and_filter_are_dockers() {
    if skip("a container") {
        return;
    }
    let root = busybox_root();
    let status = |uid: u32| {
        let mut s = script(root.path(), "grep -E '^(Cap|Seccomp:|NoNewPrivs|Groups)' /proc/self/status; umask");
        s.user = User { uid, gid: uid, groups: vec![7, 9] };
        run(s).ok()
    };
    if kiln_executor::rootless::current() == Some(kiln_executor::rootless::Identity::Root) {
        let out = status(0);
        for line in [
            "CapInh:\t0000000000000000",
            "CapPrm:\t00000000a80425fb",
            "CapEff:\t00000000a80425fb",
            "CapBnd:\t00000000a80425fb",
            "CapAmb:\t0000000000000000",
            "Seccomp:\t2",
            "NoNewPrivs:\t0",
            "Groups:\t7 9",
            "0022",
        ] {
            assert!(out.contains(line), "{line} not in\n{out}");
        }
        let out = status(1000);
        for line in
            ["CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapBnd:\t00000000a80425fb", "Groups:\t7 9 \n"]
        {
            assert!(out.contains(line), "{line} not in\n{out}");
        }
    }
    let out =
        sh(root.path(), "set +e; unshare -U true; echo $?; unshare -m true; echo $?; mount -t tmpfs x /tmp; echo $?");
    assert_eq!(out.matches("not permitted").count() + out.matches("denied").count(), 3, "{out}");
}

#[test]
fn nothing_of_kiln_is_open_inside() {
    if skip("a container") {
        return;
    }
    let root = busybox_root();
    // A descriptor without close-on-exec in kiln itself must not get in either.
    let leak = fs::File::open("/etc").unwrap();
    // SAFETY: clears a flag of a descriptor that is open.
    unsafe { libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(&leak), libc::F_SETFD, 0) };
    let out = run(spec(root.path(), &["/bin/ls", "-1", "/proc/self/fd"])).ok();
    // 3 is ls's own.
    assert_eq!(out, "0\n1\n2\n3\n");
    assert_eq!(
        sh(
            root.path(),
            "cat /proc/1/comm; grep -cE '^[0-9]+ [0-9]+ [0-9:]+ [^ ]+ / ' /proc/self/mountinfo; cat /proc/self/oom_score_adj"
        ),
        "sh\n1\n0\n"
    );
    let out = run(spec(root.path(), &["/bin/grep", "Sig", "/proc/self/status"])).ok();
    assert!(out.contains("SigIgn:\t0000000000000000") && out.contains("SigBlk:\t0000000000000000"), "{out}");
}

#[test]
fn working_directories_stay_inside() {
    if skip("a container") {
        return;
    }
    let root = busybox_root();
    symlink("/proc/self/fd/7", root.path().join("escape")).unwrap();
    symlink("../../../..", root.path().join("up")).unwrap();
    fs::create_dir(root.path().join("locked")).unwrap();
    fs::set_permissions(root.path().join("locked"), fs::Permissions::from_mode(0o700)).unwrap();
    for cwd in ["/proc/self/fd/3", "/proc/self/fd/7", "/escape", "/proc/self/cwd", "/missing", "/etc/passwd"] {
        let mut s = spec(root.path(), &["/bin/pwd"]);
        s.cwd = cwd.into();
        let error = try_run(s).map(|r| r.out).expect_err(cwd).to_string();
        assert!(error.contains("working directory") && error.contains(cwd), "{error}");
    }
    for (cwd, expected) in [("/up", "/\n"), ("/tmp/../etc", "/etc\n"), ("/up/etc", "/etc\n")] {
        let mut s = spec(root.path(), &["/bin/pwd"]);
        s.cwd = cwd.into();
        assert_eq!(run(s).ok(), expected);
    }
    let mut s = spec(root.path(), &["/bin/pwd"]);
    s.cwd = "/locked".into();
    s.user = User { uid: 65534, gid: 65534, groups: vec![] };
    assert_eq!(run(s).ok(), "/locked\n");
}

#[test]
fn programs_that_cannot_run_say_why() {
    if skip("a container") {
        return;
    }
    let root = busybox_root();
    let file = |name: &str, content: &[u8], mode: u32| {
        let path = root.path().join("bin").join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    file("noexec", b"#!/bin/sh\n", 0o644);
    file("script", b"#!/usr/bin/python3\n", 0o755);
    file("dos", b"#!/bin/sh\r\n", 0o755);
    file("empty", b"", 0o755);
    file("text", b"echo hi\n", 0o755);
    file("arm", &elf(183, None), 0o755);
    file(
        "glibc",
        &elf(if cfg!(target_arch = "x86_64") { 62 } else { 183 }, Some("/lib64/ld-linux-x86-64.so.2")),
        0o755,
    );
    symlink("/nowhere", root.path().join("bin/dangling")).unwrap();
    let foreign = if cfg!(target_arch = "x86_64") { "linux/arm64" } else { "linux/amd64" };
    if !cfg!(target_arch = "x86_64") {
        file("arm", &elf(62, None), 0o755);
    }
    for (program, code, words) in [
        ("nosuchcommand", 127, "command not found (searched "),
        ("/bin/nosuch", 127, "/bin/nosuch: command not found"),
        ("noexec", 126, "its mode is 0644"),
        ("script", 126, "its interpreter /usr/bin/python3 does not exist"),
        ("dos", 126, "Windows line endings"),
        ("empty", 126, "it is empty"),
        ("text", 126, "neither an ELF file nor a script"),
        ("arm", 126, foreign),
        (
            "glibc",
            126,
            "its dynamic loader /lib64/ld-linux-x86-64.so.2 does not exist in the container (it was linked against glibc",
        ),
        ("dangling", 126, "it is a link to /nowhere"),
        ("/bin", 126, "it is a directory"),
    ] {
        let error = try_run(spec(root.path(), &[program])).map(|r| r.exit).expect_err(program);
        assert_eq!(error.exit_code(), Some(code), "{program}: {error}");
        assert!(error.to_string().contains(words), "{program}: {error}");
    }
}

/// A minimal ELF file for a machine, with a loader.
fn elf(machine: u16, loader: Option<&str>) -> Vec<u8> {
    let mut e = vec![0u8; 0x1000];
    e[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\x00");
    e[16] = 2;
    e[18..20].copy_from_slice(&machine.to_le_bytes());
    e[20] = 1;
    e[24..32].copy_from_slice(&0x40_0078u64.to_le_bytes());
    e[32..40].copy_from_slice(&64u64.to_le_bytes());
    e[52..54].copy_from_slice(&64u16.to_le_bytes());
    e[54..56].copy_from_slice(&56u16.to_le_bytes());
    e[56..58].copy_from_slice(&1u16.to_le_bytes());
    let name = loader.unwrap_or("/x");
    e[64..68].copy_from_slice(&3u32.to_le_bytes());
    e[72..80].copy_from_slice(&0x200u64.to_le_bytes());
    e[96..104].copy_from_slice(&(name.len() as u64 + 1).to_le_bytes());
    e[0x200..0x200 + name.len()].copy_from_slice(name.as_bytes());
    e
}

fn bind(source: &Path, target: &str, readonly: bool) -> Mount {
    Mount { source: MountSource::Fd(open(source)), target: target.into(), readonly }
}

#[test]
fn mounts_appear_where_asked_and_vanish() {
    if skip("a container") {
        return;
    }
    let root = busybox_root();
    let cache = tempfile::tempdir().unwrap();
    fs::write(cache.path().join("kept"), "old").unwrap();
    let file = cache.path().join("kept");
    symlink("/var/lib/real", root.path().join("link")).unwrap();
    fs::create_dir_all(root.path().join("var/lib")).unwrap();
    let before = snapshot(root.path());
    let mut s = script(
        root.path(),
        "cat /run/secrets/one; echo; echo new > /cache/made; echo x 2>/dev/null > /ro/made && exit 9; test -f /ro/kept; \
         echo t > /scratch/deep/er/file; stat -c %a /scratch/deep/er; test -f /var/lib/real/kept; test -f /dev/extra/kept; \
         test -f /cache/nested/kept; df -k /small | tail -n1 | tr -s ' '",
    );
    let tmpfs = |target: &str, size| Mount {
        source: MountSource::Tmpfs { size, mode: 0o1777 },
        target: target.into(),
        readonly: false,
    };
    s.mounts = vec![
        bind(cache.path(), "/cache/nested", true),
        bind(cache.path(), "/cache", false),
        bind(cache.path(), "/ro", true),
        bind(&file, "/run/secrets/one", true),
        bind(cache.path(), "/link", false),
        bind(cache.path(), "/dev/extra", false),
        tmpfs("/scratch/deep/er", None),
        tmpfs("/small", Some(1 << 20)),
    ];
    let ran = run(s);
    let out = ran.ok();
    assert!(out.starts_with("old\n1777\n") && out.contains(" 1024 "), "{out}");
    assert_eq!(snapshot(root.path()), before);
    assert_eq!(fs::read_to_string(cache.path().join("made")).unwrap(), "new\n");
}

#[test]
fn hostile_mount_targets_are_refused_or_confined() {
    if skip("a container") {
        return;
    }
    let outside = tempfile::tempdir().unwrap();
    let root = busybox_root();
    let elsewhere = busybox_root();
    for name in ["proc", "sys", "dev"] {
        let root = busybox_root();
        symlink(outside.path(), root.path().join(name)).unwrap();
        let error = try_run(spec(root.path(), &["/bin/true"])).map(|r| r.exit).expect_err(name);
        assert!(error.to_string().contains(&format!("/{name}")), "{error}");
    }
    // An absolute link is the root's own path, also for what is created.
    symlink(outside.path(), root.path().join("out")).unwrap();
    symlink("/../../../../../../tmp/inside", root.path().join("etc/resolv.conf")).unwrap();
    let mut s = script(root.path(), "cat /etc/resolv.conf; ls /out/new/");
    s.resolv_conf = b"nameserver 1.1.1.1\n".to_vec();
    s.mounts = vec![bind(elsewhere.path(), "/out/new", true)];
    let out = run(s).ok();
    assert!(out.starts_with("nameserver 1.1.1.1\n") && out.contains("bin"), "{out}");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0, "nothing was made outside");
    assert!(!root.path().join("tmp/inside").exists());
    for target in ["/", "/..", "relative", "/tmp/../.."] {
        let mut s = spec(root.path(), &["/bin/true"]);
        s.mounts = vec![bind(elsewhere.path(), target, true)];
        assert!(try_run(s).is_err(), "{target}");
    }
    // A directory on a file, a file on a directory.
    for (source, target) in [(elsewhere.path().to_owned(), "/etc/passwd"), (root.path().join("etc/passwd"), "/tmp")] {
        let mut s = spec(root.path(), &["/bin/true"]);
        s.mounts = vec![bind(&source, target, true)];
        let error = try_run(s).map(|r| r.exit).expect_err(target).to_string();
        assert!(error.contains(target), "{error}");
    }
}

/// CVE-2024-23652: the container replaces mount points by links to the outside; the clean-up must not follow them.
#[test]
fn clean_up_touches_only_what_it_made() {
    if skip("a container") {
        return;
    }
    let outside = tempfile::tempdir().unwrap();
    fs::create_dir(outside.path().join("empty")).unwrap();
    fs::write(outside.path().join("file"), "").unwrap();
    let root = busybox_root();
    let source = tempfile::tempdir().unwrap();
    let empty = source.path().join("empty-file");
    fs::write(&empty, "").unwrap();
    let mut s =
        script(root.path(), "mkdir /keep; echo x > /a/here; mv /x /moved; ln -s $OUT /x; mv /y /z; ln -s $OUT /y");
    s.env.push(format!("OUT={}", outside.path().display()).into());
    s.mounts =
        vec![bind(source.path(), "/a/b", false), bind(&empty, "/x/file", true), bind(source.path(), "/y/empty", true)];
    run(s).ok();
    assert!(outside.path().join("empty").exists() && outside.path().join("file").exists());
    assert!(root.path().join("keep").exists());
    assert_eq!(fs::read_to_string(root.path().join("a/here")).unwrap(), "x\n", "what the container wrote stays");
    for gone in ["a/b", "moved/file", "z/empty"] {
        assert!(!root.path().join(gone).exists(), "{gone}");
    }
    assert!(root.path().join("moved").exists() && root.path().join("x").is_symlink());
}

#[test]
fn read_only_roots_and_overlays() {
    if skip("a container") {
        return;
    }
    let lower = busybox_root();
    let mut s = script(lower.path(), "echo x 2>/dev/null > /made && exit 9; echo y > /tmp/t; cat /tmp/t");
    s.readonly = true;
    s.mounts =
        vec![Mount { source: MountSource::Tmpfs { size: None, mode: 0o1777 }, target: "/tmp".into(), readonly: false }];
    let before = snapshot(lower.path());
    assert_eq!(run(s).ok(), "y\n");
    assert_eq!(snapshot(lower.path()), before);
    let mut s = script(lower.path(), "mkdir /x 2>&1; echo /proc/*/root | head -c 12");
    s.readonly = true;
    let out = run(s).out;
    assert!(out.contains("Read-only"), "{out}");
    let top = tempfile::tempdir().unwrap();
    let (upper, work) = (top.path().join("upper"), top.path().join("work"));
    fs::create_dir(&upper).unwrap();
    fs::create_dir(&work).unwrap();
    let overlay =
        kiln_rootfs::overlay::OverlaySpec { lowers: &[lower.path()], upper: Some((&upper, &work)), volatile: true };
    let mount = kiln_rootfs::overlay::mount(&overlay).unwrap();
    let mut s = ProcessSpec::new(mount, ["/bin/sh", "-ec", "mkdir /made; rm /etc/group; echo z > /made/file"]);
    s.hosts = b"127.0.0.1 localhost\n".to_vec();
    run(s).ok();
    let names = |dir: &Path| {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&upper), ["etc", "made"], "no stub in the layer");
    assert_eq!(names(&upper.join("etc")), ["group"], "only the whiteout");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(upper.to_str().unwrap()), "it is mounted nowhere outside: {mounts}");
}

#[test]
fn networks() {
    if skip("a container") {
        return;
    }
    let root = busybox_root();
    let mut s = script(root.path(), "ip -o addr | grep -v lo: ; ip -o addr | grep -c 127.0.0.1");
    s.network = Network::None;
    assert_eq!(run(s).ok().lines().last(), Some("1"));
    let mut s = script(root.path(), "ip -o link | wc -l; ip -o link show lo");
    s.network = Network::None;
    let out = run(s).ok();
    assert!(out.contains("UP"), "{out}");
    let own = fs::read_link("/proc/self/ns/net").unwrap().display().to_string();
    assert_eq!(sh(root.path(), "readlink /proc/self/ns/net").trim(), own);
}

#[test]
fn large_requests_many_mounts_and_odd_bytes() {
    if skip("a container") {
        return;
    }
    let root = busybox_root();
    let mut s = script(root.path(), "echo ${#A1} ${#A40}; echo \"$ODD\"");
    for i in 0..=40 {
        s.env.push(format!("A{i}={}", "x".repeat(40_000)).into());
    }
    s.env.push(std::os::unix::ffi::OsStringExt::from_vec(b"ODD=\xff\xfe".to_vec()));
    let tree = tempfile::tempdir().unwrap();
    s.mounts = (0..200).map(|i| bind(tree.path(), &format!("/m/{i}"), true)).collect();
    let ran = run(s);
    assert!(ran.exit.success() && ran.out.starts_with("40000 40000\n"), "{}", ran.out);
    let mut s = spec(root.path(), &["/bin/true"]);
    s.mounts = (0..300).map(|i| bind(tree.path(), &format!("/m/{i}"), true)).collect();
    let error = try_run(s).map(|r| r.exit).expect_err("too many").to_string();
    assert!(error.contains("too many"), "{error}");
    assert!(!root.path().join("m").exists());
    let mut s = spec(root.path(), &["/bin/true"]);
    s.env.push("A=\0".into());
    assert!(try_run(s).is_err());
    assert!(try_run(spec(root.path(), &[])).is_err());
}

#[test]
fn resource_limits_of_the_process() {
    if skip("a container") {
        return;
    }
    let root = busybox_root();
    let mut s = script(root.path(), "ulimit -n; ulimit -c; cat /proc/self/oom_score_adj");
    let nofile = Ulimit::resource("nofile").unwrap();
    s.limits = Limits {
        ulimits: vec![
            Ulimit { resource: nofile, soft: 100, hard: 200 },
            Ulimit { resource: Ulimit::resource("core").unwrap(), soft: 0, hard: 0 },
        ],
        oom_score_adj: Some(500),
        ..Limits::default()
    };
    assert_eq!(run(s).ok(), "100\n0\n500\n");
}

fn read_terminal(terminal: OwnedFd) -> String {
    let mut text = Vec::new();
    // The end of a terminal is EIO.
    let _ = fs::File::from(terminal).read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn a_terminal_of_its_own() {
    if skip("a container") {
        return;
    }
    let root = busybox_root();
    let mut s = script(
        root.path(),
        "tty; stty size; test -t 0 && test -t 1 && test -t 2 && echo terminal; test -c /dev/console; \
                                     echo hi > /dev/tty; ps -o tty,comm | tail -n1; ls /dev/pts; stat -c %u:%a /dev/pts/0",
    );
    s.terminal = Some(Terminal { rows: 33, columns: 111 });
    s.user = User { uid: 65534, gid: 65534, groups: vec![] };
    let (send, receive) = std::sync::mpsc::channel();
    let started = |started: Started| drop(send.send(started.terminal.expect("a terminal")));
    let reader = std::thread::spawn(move || read_terminal(receive.recv().expect("started")));
    let exit = EXECUTOR.run(s, started, &Default::default()).unwrap();
    let out = reader.join().unwrap();
    assert!(exit.success(), "{out}");
    for words in ["/dev/pts/0\r\n", "33 111\r\n", "terminal\r\n", "hi\r\n", "65534:620"] {
        assert!(out.contains(words), "{words:?} not in {out:?}");
    }
}

#[test]
fn input_is_passed_on_and_pipes_belong_to_the_user() {
    if skip("a container") {
        return;
    }
    let root = busybox_root();
    let (read, write) = std::io::pipe().unwrap();
    let (out_read, out_write) = std::io::pipe().unwrap();
    let mut s = script(root.path(), "cat; echo more > /dev/stdout; echo err > /dev/stderr");
    s.user = User { uid: 65534, gid: 65534, groups: vec![] };
    s.stdin = Stdio::Fd(read.into());
    s.stderr = Stdio::Fd(out_write.try_clone().unwrap().into());
    s.stdout = Stdio::Fd(out_write.into());
    let writer = std::thread::spawn(move || std::io::Write::write_all(&mut { write }, b"given\n").unwrap());
    let exit = EXECUTOR.run(s, |_| {}, &Default::default()).unwrap();
    writer.join().unwrap();
    let mut text = String::new();
    { out_read }.read_to_string(&mut text).unwrap();
    assert_eq!(text, "given\nmore\nerr\n");
    assert!(exit.success());
}

#[test]
fn an_init_process_reaps_and_forwards() {
    if skip("a container") {
        return;
    }
    let root = busybox_root();
    let mut s = script(
        root.path(),
        "echo $$; (sleep 0.01 & ) ; sleep 0.1; ps -o pid,stat,comm; set +e; sh -c 'exit 3'; exit 5",
    );
    s.init = true;
    let ran = run(s);
    assert!(ran.out.starts_with("2\n") && !ran.out.contains(" Z "), "{}", ran.out);
    assert_eq!(ran.exit.code, Some(5));
    let mut s = script(root.path(), "kill -9 $$");
    s.init = true;
    assert_eq!(run(s).exit.signal, Some(9));
    let mut s = spec(root.path(), &["/nonexistent"]);
    s.init = true;
    assert_eq!(try_run(s).map(|r| r.exit).expect_err("missing").exit_code(), Some(127));
    let mut s = script(root.path(), "trap 'exit 42' TERM; echo ready; while true; do sleep 0.02; done");
    s.init = true;
    let exit = EXECUTOR.run(s, |started| started.signal(15).unwrap(), &Default::default()).unwrap();
    assert!(exit.code == Some(42) || exit.signal == Some(15), "{exit:?}");
    let mut s = script(root.path(), "grep Cap /proc/1/status; readlink /proc/1/exe; ls /proc/1/fd | wc -l");
    s.init = true;
    let out = run(s).out;
    assert!(out.contains("CapEff:\t00000000a80425fb") || out.contains("CapEff:\t0000000000000000"), "{out}");
}
