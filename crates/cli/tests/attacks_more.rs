//! More attacks: those that need a race, another image, a terminal or a second export. See `attacks.rs`.
#![allow(clippy::unwrap_used)]

mod support;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use support::*;

/// A sandbox with a directory of the host that nothing in a build may see or change.
fn set_up(rest: &str) -> Option<(Sandbox, PathBuf)> {
    let s = Sandbox::new(&format!("{BASE}{rest}"))?;
    let host = s.path("host");
    std::fs::create_dir_all(host.join("b/c")).unwrap();
    std::fs::write(host.join("marker"), "of the host\n").unwrap();
    s.file("Dockerfile", text(s.path("ctx/Dockerfile")).replace("HOST", host.to_str().unwrap()));
    Some((s, host))
}

#[track_caller]
fn untouched(host: &Path) {
    assert_eq!(names(host), ["b", "marker"]);
    assert_eq!(names(host.join("b")), ["c"]);
    assert_eq!(names(host.join("b/c")), Vec::<String>::new());
    assert_eq!(text(host.join("marker")), "of the host\n");
}

/// One build swaps a directory of a cache mount for a link to the host while others mount it, or mount something in it.
#[test]
fn cve_2024_23651_cve_2024_11218_cve_2021_30465_a_directory_swapped_while_it_is_mounted() {
    let Some((s, host)) = set_up(
        "FROM base AS attacker\n\
         RUN --mount=type=cache,id=race,target=/c mkdir -p /cHOST/b/c /c/real/b/c; echo ready; \
         while true; do ln -sfn HOST /c/l1; mv -T /c/l1 /c/sub; rm /c/sub; mkdir /c/sub; rm -rf /c/sub; ln -sfn real /c/l2; mv -T /c/l2 /c/sub; rm /c/sub; done\n\
         FROM base AS victim\nARG N\n\
         RUN --mount=type=cache,id=race,source=sub,target=/x ! test -e /x/marker || exit 9; touch /x/new$N || true\n\
         FROM base AS target\nARG N\n\
         RUN --mount=type=cache,id=race,target=/c --mount=type=tmpfs,target=/c/sub/b/c/d$N ! test -e /c/sub/marker || exit 9\n",
    ) else {
        return;
    };
    s.build(&["--target", "base"]).ok();
    let mut attacker = s.command(["build", "--progress=plain", "--target", "attacker", "ctx"]);
    let mut attacker = attacker.stderr(Stdio::piped()).spawn().unwrap();
    let mut said = std::io::BufRead::lines(std::io::BufReader::new(attacker.stderr.take().unwrap()));
    assert!(said.any(|l| l.unwrap().ends_with("ready")));
    let mut mounted = 0;
    for n in 0..12 {
        let target = if n % 2 == 0 { "victim" } else { "target" };
        let run = s.build(&["--target", target, "--build-arg", &format!("N={n}"), "-o", "type=cacheonly"]);
        assert!(!run.stderr.contains("exit code: 9"), "{}", run.stderr);
        mounted += u32::from(run.code == 0);
        untouched(&host);
    }
    attacker.kill().unwrap();
    attacker.wait().unwrap();
    untouched(&host);
    eprintln!("{mounted} of 12 got their mount");
}

#[test]
fn cve_2018_15664_cve_2019_18466_go_2024_2913_exports_do_not_follow_links_of_the_destination() {
    let s = Sandbox::bare("FROM scratch\nCOPY files /\n");
    let host = s.path("host");
    std::fs::create_dir_all(host.join("b/c")).unwrap();
    std::fs::write(host.join("marker"), "of the host\n").unwrap();
    s.file("files/dir/new", "evil");
    s.file("files/marker", "evil");
    for (name, to) in [("dir", host.join("b/c")), ("marker", host.join("marker")), ("dir", host.clone())] {
        let out = s.path("out");
        let _ = std::fs::remove_dir_all(&out);
        std::fs::create_dir(&out).unwrap();
        symlink(to, out.join(name)).unwrap();
        s.build(&["-o", "out"]);
        untouched(&host);
        // What the user names may be a link.
        std::fs::remove_file(out.join(name)).unwrap();
        let _ = symlink("out", s.path("named"));
        s.build(&["-o", "named"]).ok();
        assert_eq!(text(out.join("dir/new")), "evil");
    }
}

#[test]
fn kaniko_586_587_cve_2026_28406_images_do_not_reach_the_builders_files() {
    let Some((s, host)) = set_up("") else { return };
    let host_path = host.to_str().unwrap().to_owned();
    std::fs::write(s.path("x"), "evil").unwrap();
    symlink(&host, s.path("link")).unwrap();
    let tar = |args: &[&str]| {
        assert!(
            Command::new("tar")
                .arg("-P")
                .args(args)
                .current_dir(s.path(""))
                .stderr(Stdio::null())
                .status()
                .unwrap()
                .success()
        );
    };
    // A name that leads out is refused, an absolute one and one through a link stay inside of the image.
    tar(&["--transform", &format!("s,^x,{}{host_path}/new,", "../".repeat(12)), "-cf", "up.tar", "x"]);
    s.kiln(&["import", "up.tar", "up:1"]).fails(1).says(&["leads out"]);
    tar(&["--transform", &format!("s,^x,{host_path}/new,"), "-cf", "evil.tar", "x"]);
    s.kiln(&["import", "evil.tar", "evil:1"]).ok();
    tar(&["-cf", "through.tar", "link"]);
    tar(&["--transform", "s,^x,link/new,", "-rf", "through.tar", "x"]);
    s.kiln(&["import", "through.tar", "through:1"]);
    untouched(&host);
    s.file("Dockerfile", "FROM evil:1\nONBUILD COPY --from=evil:1 / /copied/\nONBUILD ADD . /context/\n");
    s.build(&["-t", "trap"]).ok();
    s.file("Dockerfile", "FROM trap\nCOPY --from=evil:1 / /again/\n");
    let out = s.export(&[]);
    assert!(out.join(format!("copied{host_path}/new")).exists() && out.join(format!("again{host_path}/new")).exists());
    untouched(&host);
    s.file("Dockerfile", "FROM through:1\nCOPY --from=through:1 / /\nCOPY Dockerfile /link/new2\n");
    s.build(&[]);
    untouched(&host);
}

#[test]
fn cve_2024_9676_users_and_groups_that_are_links_or_pipes() {
    let Some((s, host)) = set_up("") else { return };
    std::fs::write(host.join("marker"), "someone:x:7:8::/:/bin/sh\n").unwrap();
    let etc = |make: &str| {
        let make = make.replace("HOST", host.to_str().unwrap());
        s.file(
            "Dockerfile",
            format!("{BASE}RUN mkdir -p /etc /usr/etc && {make}\nUSER someone\nRUN id -u > /tmp/id || true\n"),
        );
        s.build(&[])
    };
    for evil in [
        "ln -s HOST/marker /etc/passwd",
        "ln -s ../../../../../../../../..HOST/marker /etc/passwd",
        "mkfifo /etc/passwd",
        "ln -s /dev/zero /etc/passwd",
        "ln -s /proc/1/environ /etc/passwd",
    ] {
        let run = etc(evil).fails(1);
        assert!(run.stderr.contains("someone"), "{evil}: {}", run.stderr);
    }
    // A link that stays inside is as good as a file (kaniko#828).
    let line = "echo someone:x:7:8::/:/bin/sh > /usr/etc/passwd; mkdir -m 777 /tmp";
    etc(&format!("ln -s ../usr/etc/passwd /etc/passwd; {line}")).ok();
    etc(&format!("ln -s /usr/etc/passwd /etc/passwd; {line}")).ok();
}

#[test]
fn cve_2025_52565_a_terminal_does_not_follow_the_images_dev() {
    let Some((s, host)) = set_up("") else { return };
    if !has_tool("script") {
        return;
    }
    s.file("Dockerfile", format!(
        "{BASE}RUN echo 1\nCOPY dev /dev\nCMD [\"/bin/sh\", \"-c\", \"test -c /dev/console && test -c /dev/ptmx && test -t 0 && echo fine\"]\n"
    ));
    std::fs::create_dir(s.path("ctx/dev")).unwrap();
    for (name, to) in [("console", host.join("marker")), ("pts", host.join("b/c")), ("ptmx", host.join("marker"))] {
        symlink(to, s.path("ctx/dev").join(name)).unwrap();
    }
    s.build(&["-t", "evil"]).ok();
    let kiln = s.command(["run", "-t", "-i", "evil"]);
    let words: Vec<String> =
        std::iter::once(kiln.get_program()).chain(kiln.get_args()).map(|w| w.to_string_lossy().into_owned()).collect();
    let mut script = Command::new("script");
    script.args(["-qec", &words.join(" "), "/dev/null"]).env_clear().stdin(Stdio::null());
    script.envs(kiln.get_envs().filter_map(|(k, v)| Some((k, v?)))).current_dir(s.path(""));
    let output = script.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("fine"), "{said} {}", String::from_utf8_lossy(&output.stderr));
    untouched(&host);
}

#[test]
fn cve_2023_25153_oversized_files_of_layouts_and_archives_are_refused() {
    let s = Sandbox::bare("FROM scratch\nCOPY busybox /\n");
    s.build(&["-o", "type=oci,dest=layout,tar=false"]).ok();
    s.file("Dockerfile", "FROM base\n");
    for (file, content) in [
        ("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#.to_owned()),
        ("index.json", text(s.path("layout/index.json"))),
    ] {
        let large = std::fs::File::options().write(true).open(s.path("layout").join(file)).unwrap();
        large.set_len(4 << 30).unwrap();
        s.build(&["--build-context", "base=oci-layout://layout"]).fails(1);
        s.kiln(&["check-leaks", "layout"]).fails(1);
        std::fs::write(s.path("layout").join(file), content).unwrap();
    }
    s.build(&["--build-context", "base=oci-layout://layout"]).ok();
}

#[test]
fn cve_2026_33747_ghsa_7236_3392_c5c6_ghsa_qx3x_mv6r_52p6_other_frontends_are_not_run() {
    let s = Sandbox::bare("# syntax=evil.example.com/frontend:1\nFROM scratch\nCOPY busybox /\n");
    s.build(&[]).fails(1).says(&["evil.example.com/frontend", "not supported"]);
    s.file("Dockerfile", "FROM scratch\nCOPY busybox /\n");
    s.build(&["--build-arg", "BUILDKIT_SYNTAX=evil.example.com/frontend"]).fails(1).says(&["not supported"]);
    s.build(&["--build-arg", "BUILDKIT_SYNTAX=docker/dockerfile:1"]).ok();
}
