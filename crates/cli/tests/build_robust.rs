//! Many at once, interrupted, killed, without root.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::*;

/// Starts a build and returns once its output holds `mark`.
fn until(s: &Sandbox, mark: &str) -> (Child, std::thread::JoinHandle<String>) {
    let mut child = s.command(["build", "--progress=plain", "ctx"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    let mut seen = String::new();
    while !seen.contains(mark) {
        assert!(lines.read_line(&mut seen).unwrap() > 0, "{seen}");
    }
    let rest = std::thread::spawn(move || {
        for line in lines.lines().map_while(Result::ok) {
            seen.push_str(&line);
            seen.push('\n');
        }
        seen
    });
    (child, rest)
}

#[test]
fn sleeping_stages_run_in_parallel() {
    let stages: String = (0..12).map(|i| format!("FROM base AS s{i}\nRUN sleep 1 && echo {i} > /r{i}\n")).collect();
    let copies: String = (0..12).map(|i| format!("COPY --from=s{i} /r{i} /\n")).collect();
    let Some(s) = Sandbox::new(&format!("{BASE}{stages}FROM scratch\n{copies}")) else { return };
    s.build(&["--target", "base"]).ok();
    let start = Instant::now();
    let out = s.export(&[]);
    let elapsed = start.elapsed();
    assert_eq!(names(out).len(), 12);
    assert!(elapsed < Duration::from_secs(4), "{elapsed:?}");
}

/// A thread for each step that could run was a thread for each stage of a Dockerfile, whoever wrote it.
#[test]
fn many_stages_do_not_take_a_thread_each() {
    let stages: String = (0..180).map(|i| format!("FROM base AS s{i}\nRUN true\n")).collect();
    let copies: String = (0..180).map(|i| format!("COPY --from=s{i} /bin/busybox /{i}\n")).collect();
    let Some(s) = Sandbox::new(&format!("{BASE}{stages}FROM scratch\n{copies}")) else { return };
    let args = ["build", "--jobs=1", "--progress=quiet", "-o", "type=cacheonly", "ctx"];
    let mut child = s.command(args).stdout(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0;
    while child.try_wait().unwrap().is_none() {
        let threads = std::fs::read_to_string(&status).unwrap_or_default();
        let threads = threads.lines().find_map(|l| l.strip_prefix("Threads:")?.trim().parse().ok());
        most = most.max(threads.unwrap_or(0));
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(child.wait().unwrap().success());
    assert!((1..160).contains(&most), "{most} threads");
}

#[test]
fn builds_at_once_run_each_step_once() {
    let Some(s) = Sandbox::new(&format!(
        "{BASE}FROM base AS a\nRUN sleep 0.2 && echo a\nFROM base AS b\nCOPY --from=a /bin/busybox /x\nRUN sleep 0.2\n"
    )) else {
        return;
    };
    let children: Vec<Child> = (0..6)
        .map(|_| {
            s.command(["build", "--progress=plain", "-t", "same", "ctx"])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let runs: Vec<Run> = children.into_iter().map(|c| Run::from(c.wait_with_output().unwrap()).ok()).collect();
    for step in ["COPY busybox", "RUN [\"/bin/busybox\"", "RUN sleep 0.2 && echo a", "COPY --from=a", "RUN sleep 0.2"] {
        let ran = runs.iter().filter(|r| r.stderr.contains(step) && r.step(step) == "DONE").count();
        assert!(ran <= 1, "{step} ran {ran} times");
    }
    let executed: usize = runs.iter().map(|r| r.executed().len()).sum();
    assert_eq!(executed, 5);
    assert_eq!(s.build(&[]).ok().executed(), [""; 0]);
}

#[test]
fn an_interrupt_ends_all_processes_at_once() {
    let Some(s) = Sandbox::new(&format!("{BASE}RUN trap '' INT TERM; echo started; sleep 76543.21\n")) else { return };
    let (mut child, rest) = until(&s, " started");
    wait_until("the step sleeps", || process_with("76543.21"));
    let start = Instant::now();
    // SAFETY: the process is our child and has not been waited for.
    assert_eq!(unsafe { libc::kill(i32::try_from(child.id()).unwrap(), libc::SIGINT) }, 0);
    let status = child.wait().unwrap();
    let elapsed = start.elapsed();
    let output = rest.join().unwrap();
    assert_eq!(status.code(), Some(130), "{output}");
    assert!(elapsed < Duration::from_secs(2), "{elapsed:?}");
    assert!(!process_with("76543.21"), "the step still runs");
    assert_eq!(names(s.path("store/tmp")), [""; 0], "nothing is left in tmp");
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(s.path("store").to_str().unwrap()), "{mounts}");
}

#[test]
fn a_killed_build_is_forgotten_silently() {
    let Some(s) =
        Sandbox::new(&format!("{BASE}RUN echo first > /first\nRUN echo started; test -e /skip || sleep 65432.1\n"))
    else {
        return;
    };
    for _ in 0..2 {
        let (mut child, rest) = until(&s, " started");
        child.kill().unwrap();
        child.wait().unwrap();
        rest.join().unwrap();
        wait_until("the step ends with its build", || !process_with("65432.1"));
    }
    s.file("Dockerfile", format!("{BASE}RUN echo first > /first\nRUN echo second > /second\n"));
    let run = s.build(&["-o", "out"]).ok();
    assert!(!run.stderr.to_lowercase().contains("warn") && !run.stderr.contains("error"), "{}", run.stderr);
    assert_eq!(run.step("RUN echo first"), "CACHED", "what was done before the kill is kept");
    assert_eq!(names(s.path("out")), ["bin", "first", "second"]);
    s.build(&["-o", "out"]).ok();
    assert_eq!(names(s.path("store/tmp")), [""; 0]);
    assert_eq!(names(s.path("store/leases")), [""; 0]);
}

#[test]
fn one_failure_ends_what_runs_beside_it() {
    let Some(s) = Sandbox::new(&format!(
        "{BASE}FROM base AS slow\nRUN sleep 54321.9\nFROM base AS bad\nRUN sleep 0.3; exit 5\nFROM scratch\nCOPY --from=slow /x /\nCOPY --from=bad /x /\n"
    )) else {
        return;
    };
    let start = Instant::now();
    s.build(&[]).fails(1).says(&["exit code: 5"]);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert!(!process_with("54321.9"));
}

#[test]
fn a_user_without_privileges_builds_and_runs() {
    if !is_root() {
        return; // all the other tests are this test then
    }
    let dockerfile = format!(
        "{BASE}RUN id -u > /uid && mkdir -p /d && chmod 700 /d\nCOPY --chown=12:13 f /f\nRUN test -s /f && touch /owned\n\
         RUN mkdir -p /etc/apt/apt.conf.d\nRUN cat /etc/apt/apt.conf.d/* > /apt-asked\n"
    );
    let Some(mut s) = Sandbox::new(&dockerfile) else { return };
    s.file("f", "f");
    let uid = 54321;
    // The sandbox and the binary must be within reach of that user.
    std::fs::set_permissions(s.path(""), std::fs::Permissions::from_mode(0o755)).unwrap();
    let binary = s.own_kiln();
    for dir in ["home", "ustore", "uout"] {
        std::fs::create_dir_all(s.path(dir)).unwrap();
        std::os::unix::fs::chown(s.path(dir), Some(uid), Some(uid)).unwrap();
    }
    s.env("KILN_ROOT", s.path("ustore").to_str().unwrap());
    let user = |program: &std::ffi::OsStr, args: &[&str]| -> Run {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new(program);
        command.args(args).env_clear().current_dir(s.path("")).stdin(Stdio::null());
        command.env("PATH", "/usr/bin:/bin").env("HOME", s.path("home")).env("KILN_ROOT", s.path("ustore"));
        command.uid(uid).gid(uid).output().unwrap().into()
    };
    if user("unshare".as_ref(), &["-Urm", "true"]).code != 0 {
        eprintln!("SKIPPED: this kernel lets users make no user namespaces");
        return;
    }
    user(binary.as_os_str(), &["build", "--progress=plain", "-t", "mine", "ctx"]).ok();
    let again = user(binary.as_os_str(), &["build", "--progress=plain", "-t", "mine", "ctx"]).ok();
    assert_eq!(again.executed(), [""; 0], "{}", again.stderr);
    let shown = user(binary.as_os_str(), &["run", "mine", "cat", "/uid", "/f"]).ok();
    assert_eq!(shown.stdout, "0\nf");
    user(binary.as_os_str(), &["build", "--progress=plain", "-o", "uout/tree", "ctx"]).ok();
    assert_eq!(text(s.path("uout/tree/f")), "f");
    // apt is told not to become another user, and the image does not know of it.
    assert_eq!(text(s.path("uout/tree/apt-asked")), "APT::Sandbox::User \"root\";\n");
    assert_eq!(names(s.path("uout/tree/etc/apt/apt.conf.d")), [""; 0]);
}

#[test]
fn the_digest_does_not_depend_on_who_builds() {
    if !is_root() {
        return;
    }
    let Some(mut s) = Sandbox::new(&format!(
        "{BASE}COPY --chown=12:13 f /f\nRUN mkdir /d && chmod 1770 /d && echo x > /d/x\n\
         RUN mkdir /e && echo y > /e/y && chown -R 12:13 /e /d/x && chmod 750 /e && chmod 4755 /e/y && chmod 600 /d/x && chmod 2755 /d\n"
    )) else {
        return;
    };
    s.file("f", "f");
    s.env("SOURCE_DATE_EPOCH", "1600000000");
    s.build(&["-o", "type=oci,dest=root.tar,rewrite-timestamp=true"]).ok();
    let uid = 54322;
    std::fs::set_permissions(s.path(""), std::fs::Permissions::from_mode(0o755)).unwrap();
    s.own_kiln();
    std::fs::create_dir(s.path("mine")).unwrap();
    std::os::unix::fs::chown(s.path("mine"), Some(uid), Some(uid)).unwrap();
    use std::os::unix::process::CommandExt;
    let run = |program: &str, args: &[&str]| -> Run {
        let mut command = Command::new(program);
        command.args(args).env_clear().current_dir(s.path("")).stdin(Stdio::null()).env("PATH", "/usr/bin:/bin");
        command
            .env("HOME", s.path("mine"))
            .env("KILN_ROOT", s.path("mine/store"))
            .env("SOURCE_DATE_EPOCH", "1600000000");
        command.uid(uid).gid(uid).output().unwrap().into()
    };
    if run("unshare", &["-Urm", "true"]).code != 0 {
        eprintln!("SKIPPED: this kernel lets users make no user namespaces");
        return;
    }
    run(
        s.path("kiln").to_str().unwrap(),
        &["build", "--progress=plain", "-o", "type=oci,dest=mine/user.tar,rewrite-timestamp=true", "ctx"],
    )
    .ok();
    assert!(
        std::fs::read(s.path("root.tar")).unwrap() == std::fs::read(s.path("mine/user.tar")).unwrap(),
        "the archives differ"
    );
}

#[test]
fn a_store_of_a_newer_version_is_left_alone() {
    let s = Sandbox::bare("FROM scratch\nCOPY busybox /b\n");
    s.build(&[]).ok();
    let db = s.path("store/kiln.db");
    // The version is a 4-byte big-endian number at offset 60 of an SQLite file.
    let mut bytes = std::fs::read(&db).unwrap();
    for extra in ["store/kiln.db-wal", "store/kiln.db-shm"] {
        let _ = std::fs::remove_file(s.path(extra));
    }
    bytes[60..64].copy_from_slice(&9999u32.to_be_bytes());
    std::fs::write(&db, &bytes).unwrap();
    let run = s.build(&[]).fails(1);
    assert!(run.stderr.contains("newer"), "{}", run.stderr);
    assert!(std::fs::read(&db).unwrap() == bytes);
}

#[test]
fn a_full_disk_is_one_clear_error() {
    if !is_root() {
        return;
    }
    let Some(mut s) = Sandbox::new(&format!("{BASE}RUN dd if=/dev/zero of=/big bs=1M count=64\n")) else { return };
    s.file("big/Dockerfile", "FROM scratch\nCOPY noise /\n");
    s.file("big/noise", vec![7; 30 << 20]);
    s.file("small/Dockerfile", format!("{BASE}RUN dd if=/dev/zero of=/some bs=1M count=5\n"));
    std::fs::copy(BUSYBOX, s.ctx().join("small/busybox")).unwrap();
    // A small file system of its own, in a mount namespace of its own, that goes with the script.
    let small = s.path("small");
    std::fs::create_dir(&small).unwrap();
    s.env("KILN_ROOT", small.join("store").to_str().unwrap());
    let script = r#"
        mount -t tmpfs -o size=24m x $SMALL || exit 77
        step() { echo "== $1"; shift; "$@"; echo "code $?"; }
        exec 2>&1
        step run $KILN build --progress=plain ctx
        step copy $KILN build --progress=plain ctx/big
        step ok $KILN build --progress=plain -t ok ctx/small
        head -c 30000000 /dev/zero > $SMALL/fill
        step build $KILN build --progress=plain --no-cache ctx/small
        step output $KILN build --progress=plain -o type=oci,dest=$SMALL/o.tar ctx/small
        step save $KILN save -o $SMALL/o.tar ok
        step images $KILN images
        step prune $KILN prune -af
        rm $SMALL/fill
        step again $KILN build --progress=plain ctx/small
        ls -A $SMALL $SMALL/store/tmp
    "#;
    let template = s.command([""; 0]);
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", script]).current_dir(s.path("")).env_clear();
    command.envs(template.get_envs().filter_map(|(k, v)| Some((k, v?))));
    command.env("SMALL", &small).env("KILN", env!("CARGO_BIN_EXE_kiln"));
    let output = command.stderr(Stdio::null()).output().unwrap();
    if output.status.code() == Some(77) || output.stdout.is_empty() {
        eprintln!("SKIPPED: no mount namespace");
        return;
    }
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let part = |name: &str| said.split("== ").find(|p| p.starts_with(&format!("{name}\n"))).unwrap_or_default();
    for name in ["run", "copy", "build", "output", "save"] {
        let part = part(name);
        assert!(part.contains("code 1\n") && part.to_lowercase().contains("no space left"), "{name}: {said}");
        assert!(part.contains("hint: ") && part.matches("error: ").count() <= 2, "{name}: {said}");
    }
    for name in ["ok", "images", "prune", "again"] {
        assert!(part(name).contains("code 0\n"), "{name}: {said}");
    }
    let store = format!("{}/store/tmp:\n", small.display());
    assert!(said.ends_with(&store) && !said.contains("o.tar\n"), "{said}");
}

/// An overlay file system like the root of most containers; unmounted at the end.
struct OverlayDirectory(std::path::PathBuf);

impl OverlayDirectory {
    fn new(s: &Sandbox) -> Self {
        let [lower, upper, work, at] = ["lower", "upper", "work", "overlay"].map(|name| s.path(name));
        for directory in [&lower, &upper, &work, &at] {
            std::fs::create_dir(directory).unwrap();
        }
        let options = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
        let mut mount = Command::new("mount");
        assert!(mount.args(["-t", "overlay", "overlay", "-o", &options]).arg(&at).status().unwrap().success());
        Self(at)
    }
}

impl Drop for OverlayDirectory {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_store_on_the_root_of_a_container_says_where_else_to_put_it() {
    let Some(s) = Sandbox::new(&format!("{BASE}FROM base\nRUN echo hi\n")) else { return };
    if !is_root() {
        eprintln!("SKIPPED: only root can mount an overlay here");
        return;
    }
    let overlay = OverlayDirectory::new(&s);
    let root = overlay.0.join("store");
    let output = s.command(["--root", root.to_str().unwrap(), "build", "ctx"]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    for part in ["file system of type overlay", "Dockerfile:", "KILN_ROOT", "$CI_PROJECT_DIR"] {
        assert!(stderr.contains(part), "{part:?} is missing in:\n{stderr}");
    }
}

#[test]
fn what_a_step_does_not_need_may_be_unreadable() {
    let s = Sandbox::bare("FROM scratch\nCOPY busybox /b\n");
    if !is_root() {
        return;
    }
    use std::os::unix::process::CommandExt;
    std::fs::create_dir(s.ctx().join("closed")).unwrap();
    s.file("closed/f", "f");
    s.file("secret", "x");
    for path in ["closed", "secret"] {
        std::fs::set_permissions(s.ctx().join(path), std::fs::Permissions::from_mode(0o000)).unwrap();
    }
    std::fs::set_permissions(s.path(""), std::fs::Permissions::from_mode(0o755)).unwrap();
    let binary = s.own_kiln();
    std::fs::create_dir(s.path("mine")).unwrap();
    std::os::unix::fs::chown(s.path("mine"), Some(54323), Some(54323)).unwrap();
    let build = || -> Run {
        let mut command = Command::new(&binary);
        command.args(["build", "--progress=plain", "ctx"]).env_clear().current_dir(s.path("")).stdin(Stdio::null());
        command.env("PATH", "/usr/bin:/bin").env("HOME", s.path("mine")).env("KILN_ROOT", s.path("mine/store"));
        command.uid(54323).gid(54323).output().unwrap().into()
    };
    build().ok();
    for (copy, path) in [(".", "closed"), ("closed", "closed"), ("closed/f", "closed"), ("secret", "secret")] {
        s.file("Dockerfile", format!("FROM scratch\nCOPY {copy} /c\n"));
        build().fails(1).says(&["Dockerfile:2", path, "Permission denied", ".dockerignore"]);
    }
    s.file(".dockerignore", "closed\nsecret\n");
    s.file("Dockerfile", "FROM scratch\nCOPY . /c\n");
    build().ok();
}

#[test]
fn what_an_image_cannot_hold_is_named() {
    let s = Sandbox::bare("FROM scratch\nCOPY . /c\n");
    let _socket = std::os::unix::net::UnixListener::bind(s.ctx().join("sock")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", s.ctx().join("out")).unwrap();
    s.build(&[]).ok();
    s.file("Dockerfile", "FROM scratch\nCOPY sock /c\n");
    s.build(&[]).fails(1).says(&["Dockerfile:2", "sock", "socket"]);
    s.file("Dockerfile", "FROM scratch\nCOPY out /c\n");
    s.build(&[]).fails(1).says(&["out is a symbolic link to /etc/passwd", "not in the context"]);
}

#[test]
fn long_instructions_and_large_values_end_in_a_short_error() {
    let s = Sandbox::bare("");
    s.file("Dockerfile", format!("FROM scratch\nENV A=x\n{}", "ENV A=$A$A\n".repeat(60)));
    s.build(&[]).fails(1).says(&["Dockerfile:", "longer by more than 1024 KiB"]);
    let huge = "x".repeat(2 << 20);
    s.file("Dockerfile", format!("FROM scratch\nCOPY nothing{huge} /c\n"));
    let run = s.build(&[]).fails(1);
    assert!(run.stderr.len() < 20_000, "{} bytes", run.stderr.len());
    let many: String = (0..20_000).map(|i| format!("ENV V{i}=v\n")).collect();
    s.file("Dockerfile", format!("FROM scratch\n{many}COPY busybox /b\n"));
    let start = Instant::now();
    s.build(&[]).ok();
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
}
