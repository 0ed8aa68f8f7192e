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

/// A file system of the build over /proc or a part of it, with files and links where a runtime would write: labels, maps of
/// ids, `sysrq-trigger`.
#[test]
fn cve_2025_52881_nothing_is_written_to_a_proc_that_is_not_the_kernels() {
    let fill = "RUN --mount=type=cache,id=p,target=/c mkdir -p /c/self/attr /c/thread-self/attr /c/1 && \
                for f in self/attr/exec self/attr/apparmor/exec self/uid_map self/gid_map self/setgroups self/oom_score_adj; do \
                mkdir -p /c/${f%/*} && ln -s HOST/marker /c/$f; done && cp -r /c/self/. /c/1 && \
                ln -s HOST/marker /c/sysrq-trigger && ln -s HOST /c/sys\n";
    let Some((s, host)) = set_up(fill) else { return };
    s.build(&[]).ok();
    for (mount, test) in [
        ("type=cache,id=p,target=/proc", "test -L /proc/self/attr/exec"),
        ("type=cache,id=p,source=self,target=/proc/self/attr", "true"),
        ("type=cache,id=p,source=self,target=/proc/1", "test -L /proc/1/attr/exec"),
        ("type=tmpfs,target=/proc", "test -z \"$(ls /proc)\""),
        ("type=tmpfs,target=/proc/sys", "! echo x > /proc/sysrq-trigger"),
        ("type=tmpfs,target=/proc/self", "! echo core > /proc/sys/kernel/core_pattern"),
    ] {
        s.file("Dockerfile", format!("{BASE}RUN --mount={mount} {test}\n"));
        s.build(&[]).ok();
        untouched(&host);
    }
    // The links are still links: nothing was written in their place either.
    s.file(
        "Dockerfile",
        format!("{BASE}RUN --mount=type=cache,id=p,target=/c test \"$(find /c -type l | wc -l)\" = 14\n"),
    );
    s.build(&[]).ok();
}

#[test]
fn cve_2021_21285_malformed_manifests_and_configs_end_in_an_error() {
    let s = Sandbox::bare("FROM scratch\nCOPY busybox /\n");
    s.build(&["-o", "type=oci,dest=layout,tar=false"]).ok();
    s.file("Dockerfile", "FROM base\nCOPY Dockerfile /\n");
    let blob = |digest: &str| s.path("layout/blobs/sha256").join(digest.trim_start_matches("sha256:"));
    let index: serde_json::Value = serde_json::from_str(&text(s.path("layout/index.json"))).unwrap();
    let manifest: serde_json::Value =
        serde_json::from_str(&text(blob(index["manifests"][0]["digest"].as_str().unwrap()))).unwrap();
    let config = text(blob(manifest["config"]["digest"].as_str().unwrap()));
    let put = |bytes: &str| {
        let digest = kiln_engine::oci::Descriptor::of("", bytes.as_bytes()).digest.to_string();
        std::fs::write(blob(&digest), bytes).unwrap();
        serde_json::json!({"digest": digest, "size": bytes.len()})
    };
    let layer = &manifest["layers"][0];
    let diff_id = serde_json::from_str::<serde_json::Value>(&config).unwrap()["rootfs"]["diff_ids"][0].clone();
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let mut manifests =
        vec![String::new(), "null".into(), "[]".into(), "{}".into(), "{\"schemaVersion\":2}".into(), deep];
    for (field, value) in
        [("config", "null"), ("layers", "null"), ("layers", "[null]"), ("layers", "[{}]"), ("config", "{}")]
    {
        let mut bad = manifest.clone();
        bad[field] = serde_json::from_str(value).unwrap();
        manifests.push(bad.to_string());
    }
    for (field, value) in
        [("size", "-1"), ("size", "1e30"), ("digest", "\"sha256:\""), ("digest", "\"../../../etc/passwd\"")]
    {
        let mut bad = manifest.clone();
        bad["layers"][0][field] = serde_json::from_str(value).unwrap();
        manifests.push(bad.to_string());
    }
    for bad in [
        "null".to_owned(),
        "{}".into(),
        config.replace(diff_id.as_str().unwrap(), "sha256:0"),
        config.replace("\"diff_ids\":[", "\"diff_ids\":null,\"x\":["),
        config.replace("\"diff_ids\":[", &format!("\"diff_ids\":[{diff_id},")),
        config.replace("\"history\":[", "\"history\":[null,"),
    ] {
        let mut descriptor = put(&bad);
        descriptor["mediaType"] = manifest["config"]["mediaType"].clone();
        let mut whole = manifest.clone();
        whole["config"] = descriptor;
        whole["layers"] = serde_json::json!([layer]);
        manifests.push(whole.to_string());
    }
    for bad in manifests {
        let shown: String = bad.chars().take(300).collect();
        let mut index = index.clone();
        let descriptor = put(&bad);
        index["manifests"][0]["digest"] = descriptor["digest"].clone();
        index["manifests"][0]["size"] = descriptor["size"].clone();
        std::fs::write(s.path("layout/index.json"), index.to_string()).unwrap();
        let run = s.build(&["--build-context", "base=oci-layout://layout"]);
        assert_eq!(run.code, 1, "{shown}: {}", run.stderr);
        assert!(!run.stderr.contains("panicked"), "{shown}: {}", run.stderr);
        let run = s.kiln(&["check-leaks", "layout"]);
        assert!(run.code == 1 || run.code == 0, "{shown}: {}", run.stderr);
    }
}
