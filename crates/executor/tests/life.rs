//! How containers end: by themselves, cancelled, with kiln, with the helper; many at once; under limits.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::process::{Command, Stdio as ProcessStdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::*;
use kiln_executor::{CancelToken, Error, ExecSpec, Executor, Limits, Security, StartError, Stdio, User};
use kiln_process::Stat;

kiln_executor::helper_in_tests!();

/// Waits until a process is gone; reading a pidfd's readiness would need it to be our child.
#[track_caller]
fn gone_within(pid: i32, limit: Duration) {
    let start = Instant::now();
    while Stat::of(pid).is_some_and(|stat| !stat.has_ended()) {
        assert!(start.elapsed() < limit, "process {pid} still lives");
        std::thread::yield_now();
    }
}

#[test]
fn cancelling_kills_everything_at_once() {
    if skip("a container") {
        return;
    }
    let root = busybox_root();
    for (init, text) in [
        (false, "trap '' TERM INT HUP; (trap '' TERM; sleep 1000) & sleep 1000"),
        (true, "trap '' TERM; sleep 1000 & wait"),
    ] {
        let token = CancelToken::new();
        let (send, started) = mpsc::channel();
        let mut s = script(root.path(), text);
        s.init = init;
        let other = token.clone();
        let canceller = std::thread::spawn(move || {
            let pid: i32 = started.recv().unwrap();
            let at = Instant::now();
            other.cancel();
            (pid, at)
        });
        let result = EXECUTOR.run(s, |started| send.send(started.pid).unwrap(), &token);
        let (pid, at) = canceller.join().unwrap();
        assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
        assert!(at.elapsed() < Duration::from_secs(1), "{:?}", at.elapsed());
        gone_within(pid, Duration::from_millis(100));
    }
    let token = CancelToken::new();
    token.cancel();
    assert!(matches!(EXECUTOR.run(spec(root.path(), &["/bin/true"]), |_| {}, &token), Err(Error::Cancelled)));
    assert!(!root.path().join("proc").exists());
}

#[test]
fn many_at_once() {
    if skip("a container") {
        return;
    }
    let root = busybox_root();
    // Mount points that all need: made once here, as a build's steps have different roots.
    for dir in ["proc", "sys", "dev"] {
        fs::create_dir(root.path().join(dir)).unwrap();
    }
    fs::write(root.path().join("etc/hostname"), "").unwrap();
    let root = root.path();
    let start = Instant::now();
    std::thread::scope(|scope| {
        for i in 0..40 {
            scope.spawn(move || {
                let ran = run(script(root, &format!("sleep 0.3; exit {i}")));
                assert_eq!(ran.exit.code, Some(i));
            });
        }
    });
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn cve_2019_5736_a_helper_is_not_written_to_and_is_replaced_when_it_dies() {
    if skip("a container") {
        return;
    }
    let root = busybox_root();
    let executor = Executor::new(Default::default()).unwrap();
    let mut inside = 0;
    let result = executor.run(
        script(root.path(), "sleep 1000"),
        |started| {
            inside = started.pid;
            let status = fs::read_to_string(format!("/proc/{inside}/status")).unwrap();
            let helper = status.lines().find_map(|l| l.strip_prefix("PPid:")).unwrap().trim().to_owned();
            // CVE-2019-5736: whoever gets at the helper's program cannot write to it.
            let exe = rustix::fs::statvfs(format!("/proc/{helper}/exe")).unwrap();
            assert!(exe.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY), "the helper's binary is read-only");
            assert!(Command::new("kill").args(["-9", &helper]).status().unwrap().success());
        },
        &CancelToken::new(),
    );
    assert!(matches!(result, Err(Error::HelperDied)), "{result:?}");
    gone_within(inside, Duration::from_secs(1));
    assert!(executor.run(spec(root.path(), &["/bin/true"]), |_| {}, &CancelToken::new()).unwrap().success());
}

/// Not a test by itself: the kiln that `killed_kilns_leave_nothing` kills.
#[test]
#[ignore = "started by another test"]
fn role_runs_until_killed() {
    let root = std::env::var("KILN_TEST_ROOT").unwrap();
    let mut s = script(root.as_ref(), "trap '' TERM HUP INT; sleep 1000 & sleep 1000");
    s.limits = Limits { pids: Some(50), ..Limits::default() };
    let say = |started: kiln_executor::Started| {
        println!("started {}", started.pid);
        std::io::stdout().flush().unwrap();
    };
    let _ = EXECUTOR.run(s, say, &CancelToken::new());
}

fn kiln_groups() -> Vec<String> {
    let mut found = Vec::new();
    for controller in ["/sys/fs/cgroup", "/sys/fs/cgroup/pids", "/sys/fs/cgroup/memory"] {
        let mut dirs = vec![std::path::PathBuf::from(controller)];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    if entry.file_name().to_string_lossy().starts_with("kiln-") {
                        found.push(path.display().to_string());
                    } else {
                        dirs.push(path);
                    }
                }
            }
        }
    }
    found
}

#[test]
fn killed_kilns_leave_nothing() {
    if skip("a container") {
        return;
    }
    let root = busybox_root();
    let mut kiln = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "role_runs_until_killed", "--ignored", "--nocapture"])
        .env("KILN_TEST_ROOT", root.path())
        .stdout(ProcessStdio::piped())
        .stderr(ProcessStdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(kiln.stdout.take().unwrap()).lines();
    let pid: i32 = loop {
        let line = lines.next().expect("the container starts").unwrap();
        if let Some((_, pid)) = line.split_once("started ") {
            break pid.trim().parse().unwrap();
        }
    };
    let tag = format!("-{}-", kiln.id());
    let (status, mounts) =
        (fs::read_to_string(format!("/proc/{pid}/status")), fs::read_to_string("/proc/self/mountinfo"));
    assert!(status.is_ok());
    let at = Instant::now();
    kiln.kill().unwrap();
    gone_within(pid, Duration::from_secs(1));
    assert!(at.elapsed() < Duration::from_secs(1));
    kiln.wait().unwrap();
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), mounts.unwrap());
    // The next executor that makes a group removes those of the dead.
    let executor = Executor::new(Default::default()).unwrap();
    let mut s = spec(root.path(), &["/bin/true"]);
    s.limits.pids = Some(10);
    executor.run(s, |_| {}, &CancelToken::new()).unwrap();
    let left: Vec<_> = kiln_groups().into_iter().filter(|g| g.contains(&tag)).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn limits_hold_or_are_reported() {
    if skip("a container") {
        return;
    }
    let root = busybox_root();
    let mut s = script(root.path(), "(for i in 1 2 3 4 5 6 7 8 9; do sleep 0.2 & done) 2>&1 | grep -c . ; true");
    s.limits.pids = Some(5);
    let ran = run(s);
    if ran.not_enforced.is_empty() {
        assert!(ran.out.contains("fork") || ran.out.trim() != "0", "{}", ran.out);
    } else {
        assert_eq!(ran.not_enforced[0].limit, "pids-limit");
    }
    let mut s = script(root.path(), "x=; while true; do x=\"$x$x$(head -c 100000 /dev/zero | tr '\\0' x)\"; done");
    s.limits.memory = Some(32 << 20);
    s.limits.memory_swap = Some(32 << 20);
    let ran = run_limited(s);
    if ran.not_enforced.iter().all(|n| n.limit != "memory") {
        assert!(ran.exit.oom_killed && !ran.exit.success(), "{:?}", ran.exit);
    }
    let mut s = spec(root.path(), &["/bin/true"]);
    s.limits = Limits { cpuset_cpus: Some("0".into()), cpu_shares: Some(512), ..Limits::default() };
    s.limits.set_cpus(0.5);
    assert!(run(s).exit.success());
    let off =
        Executor::new(kiln_executor::ExecutorOptions { cgroup: kiln_executor::CgroupMode::Off, ..Default::default() });
    let mut s = spec(root.path(), &["/bin/true"]);
    s.limits.memory = Some(1 << 30);
    let mut missing = Vec::new();
    let exit = off.unwrap().run(s, |started| missing = started.not_enforced, &CancelToken::new()).unwrap();
    assert!(exit.success() && missing.len() == 1 && missing[0].limit == "memory", "{exit:?} {missing:?}");
    let own = format!("-{}-", std::process::id());
    assert!(kiln_groups().iter().all(|g| !g.contains(&own)), "groups are removed");
}

/// Without a working limit the script would fill the machine: a limit of the process helps then.
fn run_limited(mut spec: kiln_executor::ProcessSpec) -> Ran {
    let resource = kiln_executor::Ulimit::resource("data").unwrap();
    spec.limits.ulimits.push(kiln_executor::Ulimit { resource, soft: 1 << 30, hard: 1 << 30 });
    run(spec)
}

#[test]
fn streams_end_with_the_container() {
    if skip("a container") {
        return;
    }
    let root = busybox_root();
    let (mut out, end) = std::io::pipe().unwrap();
    let mut s = script(root.path(), "sleep 1000 & echo done");
    s.stdout = Stdio::Fd(end.into());
    let mut text = String::new();
    // Read to the end while `run` is in progress: kiln itself must not hold the other end.
    let exit = EXECUTOR.run(s, |_| assert!(out.read_to_string(&mut text).is_ok()), &CancelToken::new()).unwrap();
    assert!(exit.success());
    assert_eq!(text, "done\n");
}

#[test]
fn another_process_enters_a_container() {
    if skip("a container") {
        return;
    }
    let root = busybox_root();
    let (read, write) = std::io::pipe().unwrap();
    let mut s = script(root.path(), "mkdir /tmp/mine; cat; exit 4");
    s.hostname = "inner".into();
    s.limits.pids = Some(100);
    s.stdin = Stdio::Fd(read.into());
    let (send, receive) = mpsc::channel();
    let runner =
        std::thread::spawn(move || EXECUTOR.run(s, |started| send.send(started).unwrap(), &CancelToken::new()));
    let started = receive.recv().unwrap();
    let exec = |args: &[&str], user: u32| {
        let (mut out, end) = std::io::pipe().unwrap();
        let spec = ExecSpec {
            args: args.iter().map(Into::into).collect(),
            env: vec!["PATH=/bin".into()],
            cwd: "/etc".into(),
            user: User { uid: user, gid: user, groups: vec![3] },
            security: Security::Sandbox,
            ulimits: vec![],
            stdin: Stdio::Null,
            stdout: Stdio::Fd(end.try_clone().unwrap().into()),
            stderr: Stdio::Fd(end.into()),
            terminal: None,
        };
        let exit = EXECUTOR.exec(&started, spec, |_| {}, &CancelToken::new());
        let mut text = String::new();
        out.read_to_string(&mut text).unwrap();
        (exit, text)
    };
    let (exit, text) = exec(
        &[
            "sh",
            "-c",
            "hostname; pwd; id -G; ls -1 /proc/self/fd | wc -l; grep -E 'CapEff|CapPrm|Seccomp:' /proc/self/status; exit 6",
        ],
        0,
    );
    assert_eq!(exit.unwrap().code, Some(6), "{text}");
    assert!(text.starts_with("inner\n/etc\n0 3\n4\n") && text.contains("Seccomp:\t2"), "{text}");
    assert_eq!(text.matches("00000000a80425fb").count(), 2, "{text}");
    let (_, groups) = exec(&["cat", "/proc/self/cgroup", "/proc/1/cgroup"], 0);
    let kiln: Vec<&str> = groups.lines().filter(|l| l.contains("/kiln-")).collect();
    assert!(kiln.is_empty() || kiln.len() == 2 && kiln[0] == kiln[1], "the same group: {groups}");
    let (exit, text) = exec(&["id", "-u"], 65534);
    assert!(exit.unwrap().success());
    assert_eq!(text, "65534\n");
    let (exit, _) = exec(&["nonexistent"], 0);
    assert!(matches!(exit, Err(Error::Start(StartError::NotFound { .. }))), "{exit:?}");
    let (exit, _) = exec(&["sh", "-c", "kill -9 $$"], 0);
    assert_eq!(exit.unwrap().signal, Some(9));
    drop(write);
    assert_eq!(runner.join().unwrap().unwrap().code, Some(4));
    // Its container is gone.
    let (exit, _) = exec(&["true"], 0);
    assert!(exit.is_err(), "{exit:?}");
    let _ = started.pidfd.as_fd();
}
