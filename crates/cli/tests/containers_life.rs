//! How containers end, and what several kilns that want something of one do to it; their logs; platforms.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::{self, File};
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::*;

/// A sandbox with an image `box` that has a shell.
fn with_image(rest: &str) -> Option<Sandbox> {
    let s = Sandbox::new(&format!("{BASE}FROM base\nCMD [\"sh\"]\n{rest}"))?;
    s.build(&["-t", "box"]).ok();
    Some(s)
}

const DEAF: &str = "trap '' TERM; echo ready; while :; do sleep 0.05; done";

fn in_background(s: &Sandbox, name: &str, options: &[&str], script: &str) -> String {
    let id = s.kiln(&[&["run", "-d", "--name", name], options, &["box", "sh", "-c", script]].concat()).ok().stdout;
    id.trim_end().to_owned()
}

fn has_said(s: &Sandbox, name: &str, text: &str) {
    wait_until("it has written", || s.kiln(&["logs", name]).ok().stdout.contains(text));
}

#[test]
fn an_end_is_told_as_it_was() {
    let Some(s) = with_image("") else { return };
    // Between the end of a command and its record nobody may see a container that was killed.
    for n in 0..8 {
        let id = in_background(&s, &format!("short{n}"), &[], "exit 4");
        assert_eq!(s.kiln(&["wait", &id]).ok().stdout, "4\n");
    }
    for n in 0..4 {
        in_background(&s, &format!("listed{n}"), &[], "exit 4");
        let listed = s.kiln(&["ps", "-a", "--format", "{{.Names}} {{.Status}}"]).ok().stdout;
        assert!(!listed.contains("137"), "{listed}");
    }
    let many = s.kiln(&["wait", "short0", "nobody", "short1"]).fails(1).says(&["No such container: nobody"]);
    assert_eq!(many.stdout, "4\n4\n");
    assert_eq!(s.kiln(&["ps", "-aq", "--filter", "name=^short1$"]).ok().stdout.lines().count(), 1);
    assert_eq!(s.kiln(&["container", "prune", "-f", "--filter", "label=none"]).ok().stdout.lines().count(), 1);
    s.kiln(&["container", "prune", "-f", "--filter", "until=0s"]).ok();
    assert_eq!(s.kiln(&["ps", "-aq"]).ok().stdout, "");
}

#[test]
fn several_are_stopped_in_the_time_of_one_and_by_any_signal() {
    let Some(s) = with_image("STOPSIGNAL SIGRTMIN+3\n") else { return };
    in_background(&s, "deaf1", &["--stop-signal", "TERM"], DEAF);
    in_background(&s, "deaf2", &["--stop-signal", "TERM"], DEAF);
    in_background(&s, "real", &[], "trap 'exit 9' 37; echo ready; while :; do sleep 0.05; done");
    for name in ["deaf1", "deaf2", "real"] {
        has_said(&s, name, "ready");
    }
    let start = Instant::now();
    s.kiln(&["stop", "-t", "1", "deaf1", "real", "deaf2"]).ok();
    let taken = start.elapsed();
    assert!(taken >= Duration::from_secs(1) && taken < Duration::from_millis(1900), "{taken:?}");
    assert_eq!(s.kiln(&["wait", "deaf1", "real", "deaf2"]).ok().stdout, "137\n9\n137\n");
    s.kiln(&["start", "real"]).ok();
    wait_until("it is ready again", || s.kiln(&["logs", "real"]).ok().stdout.matches("ready").count() == 2);
    s.kiln(&["kill", "-s", "SIGRTMIN+3", "real"]).ok();
    assert_eq!(s.kiln(&["wait", "real"]).ok().stdout, "9\n");
    s.kiln(&["create", "--rm", "--name", "fleeting", "box"]).ok();
    s.kiln(&["restart", "fleeting"]).fails(1).says(&["cannot restart container fleeting", "--rm"]);
    s.kiln(&["kill", "-s", "RTMIN+16", "real"]).fails(2).says(&["invalid signal: RTMIN+16"]);
}

#[test]
fn those_who_want_the_same_at_once_all_get_it() {
    let Some(s) = with_image("") else { return };
    let sleeping = "exec sleep 1000";
    in_background(&s, "web", &[], sleeping);
    for _ in 0..3 {
        s.kiln(&["stop", "-t", "0", "web"]).ok();
        let quiet = |args: &[&str]| s.command(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let starts: Vec<Child> = (0..4).map(|_| quiet(&["start", "web"])).collect();
        for child in starts {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        assert_eq!(s.kiln(&["ps", "-q", "--filter", "name=web"]).ok().stdout.lines().count(), 1);
    }
    // Whoever removes it by force wins over those who start it.
    let mut starting = s.command(["restart", "-t", "0", "web"]).stderr(Stdio::null()).spawn().unwrap();
    let removed = s.kiln(&["rm", "-f", "web"]);
    starting.wait().unwrap();
    removed.ok();
    assert_eq!(s.kiln(&["ps", "-aq"]).ok().stdout, "");
    assert!(!process_with(s.path("store").to_str().unwrap()), "a kiln watches what is gone");
}

#[test]
fn what_keeps_a_kiln_waiting_does_not_keep_it_from_ending() {
    let Some(s) = with_image("") else { return };
    let id = s.kiln(&["create", "--name", "web", "box", "true"]).ok().stdout;
    // Somebody copies from it, for long.
    let name = kiln_oci::Digest::of(format!("container {}", id.trim_end()).as_bytes()).hex()[..40].to_owned();
    let lock = File::create(s.path("store/locks").join(name)).unwrap();
    lock.lock().unwrap();
    let mut child = s.command(["start", "-a", "web"]).stderr(Stdio::piped()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let blocks_interrupts = || {
        let status = fs::read_to_string(&status).unwrap_or_default();
        let blocked = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigBlk:\t")?, 16).ok());
        blocked.is_some_and(|set| set & 0b10 != 0)
    };
    wait_until("it takes signals", blocks_interrupts);
    let start = Instant::now();
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(start.elapsed() < Duration::from_millis(1500), "{:?}", start.elapsed());
    drop(lock);
    s.kiln(&["start", "-a", "web"]).ok();
}

#[test]
fn what_cannot_begin_leaves_nothing() {
    let Some(s) = with_image("") else { return };
    let mut run = s.command(["run", "-it", "--name", "x", "box", "true"]);
    let run: Run = run.stdin(Stdio::null()).output().unwrap().into();
    run.fails(1).says(&["not a terminal", "--tty"]);
    assert_eq!(s.kiln(&["ps", "-aq"]).ok().stdout, "");
    // One record that a crash has spoiled is in nobody's way.
    let broken = s.kiln(&["create", "box", "true"]).ok().stdout;
    let whole = s.kiln(&["create", "--read-only", "--name", "whole", "box", "true"]).ok().stdout;
    fs::write(s.path("store/containers").join(broken.trim_end()).join("config.json"), "{").unwrap();
    assert_eq!(s.kiln(&["ps", "-aq", "--no-trunc"]).ok().stdout, whole);
    s.kiln(&["start", broken.trim_end()]).fails(1).says(&["config.json is damaged", "deleting its directory"]);
    s.file("f", "");
    s.kiln(&["cp", "ctx/f", "whole:/f"]).fails(1).says(&["--read-only"]);
    s.kiln(&["export", "-o", "no/such/place", "whole"]).fails(1);
    s.kiln(&["export", "-o", "out.tar", "whole"]).ok();
    assert!(names(s.path("")).iter().any(|name| name == "out.tar"));
}

#[test]
fn logs_are_kept_as_was_asked_for() {
    let Some(s) = with_image("") else { return };
    let limits = ["--log-opt", "max-size=300", "--log-opt", "max-file=2"];
    let id = in_background(&s, "small", &limits, "for n in 1 2 3 4 5 6 7 8 9; do echo line $n; done; read forever");
    let dir = s.path("store/containers").join(&id);
    has_said(&s, "small", "line 9");
    assert!(names(&dir).iter().filter(|name| name.starts_with("log")).eq(["log", "log.1"]), "{:?}", names(&dir));
    let logged = s.kiln(&["logs", "small"]).ok().stdout;
    assert!(!logged.contains("line 1") && logged.ends_with("line 7\nline 8\nline 9\n"), "{logged}");
    let config = s.kiln(&["inspect", "-f", "{{json .HostConfig.LogConfig}}", "small"]).ok().stdout;
    assert_eq!(config, "{\"Config\":{\"max-file\":\"2\",\"max-size\":\"300\"},\"Type\":\"json-file\"}\n");
    s.kiln(&["wait", "small"]).ok();
    in_background(&s, "silent", &["--log-driver", "none"], "echo x; yes | head -c 100000");
    assert_eq!(s.kiln(&["wait", "silent"]).ok().stdout, "0\n");
    assert_eq!(s.kiln(&["logs", "silent"]).ok().says(&["--log-driver none"]).stdout, "");
    for (options, says) in [
        (["--log-opt", "max-file=2"], "max-size"),
        (["--log-opt", "max-size=many"], "expected a size"),
        (["--log-opt", "tag=x"], "max-size and max-file"),
        (["--log-driver", "syslog"], "syslog"),
    ] {
        s.kiln(&[&["run"], &options[..], &["box"]].concat()).fails(2).says(&[says]);
    }
    // What is shown of it.
    in_background(&s, "web", &[], "echo one; echo two; echo three");
    s.kiln(&["wait", "web"]).ok();
    let logs = |args: &[&str]| s.kiln(&[&["logs"], args, &["web"]].concat()).ok().stdout;
    assert_eq!(logs(&["-n", "2"]), "two\nthree\n");
    assert_eq!(logs(&["--tail", "-1"]), "one\ntwo\nthree\n");
    assert_eq!(logs(&["--tail=0"]), "");
    assert_eq!(logs(&["--until", "2020-01-01"]), "");
    assert_eq!(logs(&["--until", "0s", "--since", "1h", "-f"]), "one\ntwo\nthree\n");
    let stamped = logs(&["-t", "-n", "1"]);
    let (time, text) = stamped.split_once(' ').unwrap();
    assert_eq!((time.len(), text), ("2026-01-02T03:04:05.123456789Z".len(), "three\n"), "{stamped}");
    // Followed to its end, though it is removed then.
    let script = "echo ready; read line";
    s.kiln(&["run", "-d", "-i", "--rm", "--name", "going", "box", "sh", "-c", script]).ok();
    let mut follower = s.command(["logs", "-f", "going"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut begun = [0; 6];
    follower.stdout.as_mut().unwrap().read_exact(&mut begun).unwrap();
    s.kiln(&["exec", "going", "sh", "-c", "echo last > /proc/1/fd/1"]).ok();
    s.kiln(&["stop", "-t", "0", "going"]).ok();
    assert_eq!(String::from_utf8(follower.wait_with_output().unwrap().stdout).unwrap(), "last\n");
}

#[test]
fn one_of_an_images_platforms_is_chosen() {
    let Some(s) = with_image("") else { return };
    let two = "FROM scratch\nARG TARGETARCH\nCOPY busybox /$TARGETARCH\nCMD [\"/none\"]\n";
    s.file("Dockerfile", two);
    s.build(&["-t", "two", "--platform", "linux/amd64,linux/arm64"]).ok();
    let (own, other) = match std::env::consts::ARCH {
        "aarch64" => ("arm64", "amd64"),
        _ => ("amd64", "arm64"),
    };
    let files = |args: &[&str]| {
        let id = s.kiln(&[&["create"], args, &["two"]].concat()).ok().hides("warning").stdout;
        let out = s.command(["export", id.trim_end()]).output().unwrap();
        let mut archive = tar::Archive::new(&out.stdout[..]);
        let all = archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string());
        all.collect::<Vec<_>>()
    };
    assert_eq!(files(&[]), [own]);
    assert_eq!(files(&["--platform", &format!("linux/{other}")]), [other]);
    assert_eq!(files(&["--platform", &format!("linux/{other}"), "--pull", "never"]), [other]);
    // An image for one platform is not another one's.
    let run = s.kiln(&["run", "--pull", "never", "--platform", "linux/s390x", "box"]);
    run.fails(125).says(&[&format!("box is an image for linux/{own}, not for linux/s390x"), "--platform"]);
    let index = s.kiln(&["run", "--platform", "linux/s390x", "two"]).fails(125);
    index.says(&["two has no image for linux/s390x: here it has linux/", "could not be pulled"]);
    s.kiln(&["run", "--platform", "linux/amd65", "box"]).fails(2).says(&["did you mean amd64?"]);
    // A program for another machine, which is told.
    let mut elf = vec![0u8; 64];
    elf[..20].copy_from_slice(b"\x7fELF\x02\x02\x01\0\0\0\0\0\0\0\0\0\0\x02\0\x16");
    s.file("program", &elf);
    s.file("Dockerfile", "FROM scratch\nCOPY --chmod=755 program /program\nCMD [\"/program\"]\n");
    s.build(&["-t", "foreign", "--platform", "linux/s390x", "--check-programs=off"]).ok();
    let run = s.kiln(&["run", "--rm", "foreign"]);
    let warned = "warning: the image is for linux/s390x, this machine is linux/";
    run.says(&[warned, "/program: "]);
    let run = s.kiln(&["run", "--rm", "--platform", "linux/s390x", "foreign"]);
    if run.stderr.contains("no emulator") {
        run.fails(126).hides("warning").says(&["built for linux/s390x", "qemu-user-static"]).hides("BUILDPLATFORM");
    }
}
