//! Attacks that other builders fell for, tried on the binary; each test has the identifier of the advisory in its name.
//! Others are tested where the defence is: `grep -rniE 'cve|ghsa' crates`.
#![allow(clippy::unwrap_used)]

mod support;

use std::os::unix::fs::symlink;
use std::path::PathBuf;

use support::*;

/// A sandbox with a directory of the host that nothing in a build may see or change: it holds `marker` and the empty `b/c`.
fn set_up(rest: &str) -> Option<(Sandbox, PathBuf)> {
    let s = Sandbox::new(&format!("{BASE}{rest}"))?;
    let host = s.path("host");
    std::fs::create_dir_all(host.join("b/c")).unwrap();
    std::fs::write(host.join("marker"), "of the host\n").unwrap();
    std::fs::write(s.ctx().join("Dockerfile"), text(s.path("ctx/Dockerfile")).replace("HOST", host.to_str().unwrap()))
        .unwrap();
    Some((s, host))
}

#[track_caller]
fn untouched(host: &std::path::Path) {
    assert_eq!(names(host), ["b", "marker"]);
    assert_eq!(names(host.join("b")), ["c"]);
    assert_eq!(text(host.join("marker")), "of the host\n");
}

#[test]
fn cve_2024_21626_a_working_directory_in_proc_leads_nowhere() {
    for dir in ["/proc/self/fd/3", "/proc/self/fd/7", "/proc/self/fd/8", "/proc/self/cwd", "/proc/1/root"] {
        let Some((s, host)) = set_up(&format!(
            "WORKDIR {dir}\nRUN up=..; for i in 1 2 3 4 5 6 7 8 9; do up=$up/..; ! cat $up/HOST/marker || exit 9; done\n"
        )) else {
            return;
        };
        let run = s.build(&[]);
        assert!(run.code <= 1 && !run.stderr.contains("exit code: 9"), "{dir}: {}", run.stderr);
        untouched(&host);
    }
    // Nothing of ours is open in a container.
    let Some((s, _)) = set_up("RUN ls /proc/self/fd | wc -l > /count && ls -l /proc/self/fd\n") else { return };
    let out = s.export(&[]);
    assert!(text(out.join("count")).trim().parse::<u32>().unwrap() <= 4, "0, 1, 2 and the listing itself");
}

#[test]
fn cve_2024_23651_a_cache_mounts_source_is_not_followed_out() {
    let Some((s, host)) = set_up(
        "RUN --mount=type=cache,id=c,target=/c ln -s HOST /c/sub && ln -s ../../../../../../../..HOST /c/up\n\
         RUN --mount=type=cache,id=c,source=sub,target=/x cat /x/marker\n",
    ) else {
        return;
    };
    s.build(&[]).fails(1);
    s.file("Dockerfile", text(s.path("ctx/Dockerfile")).replace("source=sub", "source=up"));
    s.build(&[]).fails(1);
    // A directory of the cache is as good a source as ever, also through a link that stays inside.
    s.file(
        "Dockerfile",
        format!("{BASE}RUN --mount=type=cache,id=d,target=/c mkdir /c/in && echo fine > /c/in/f && ln -s in /c/link\nRUN --mount=type=cache,id=d,source=link,target=/x cp /x/f /f\n"),
    );
    assert_eq!(text(s.export(&[]).join("f")), "fine\n");
    untouched(&host);
}

#[test]
fn cve_2024_23652_cleaning_up_mount_points_does_not_follow_links() {
    let Some((s, host)) = set_up(
        "RUN --mount=type=tmpfs,target=/a/b/c mkdir /moved && mv /a/b /moved/ 2>/dev/null; umount /a/b/c 2>/dev/null; mv /a /old; ln -s HOST /a; true\n",
    ) else {
        return;
    };
    s.build(&["-o", "out"]);
    assert!(s.path("out/a").is_symlink(), "the step did what the attack needs");
    untouched(&host);
}

#[test]
fn cve_2024_45310_mount_points_are_not_made_outside() {
    let Some((s, host)) = set_up(
        "RUN ln -s HOST /link && ln -s ../../../../../../..HOST /up\n\
         RUN --mount=type=tmpfs,target=/link/new --mount=type=cache,target=/up/new2 touch /link/new/f /up/new2/f\n",
    ) else {
        return;
    };
    s.build(&[]);
    untouched(&host);
}

#[test]
fn cve_2024_1753_a_bind_mounts_source_is_not_followed_out() {
    for link in ["HOST", "/", "../../../../../../../..HOST"] {
        let Some((s, host)) = set_up(&format!(
            "FROM base AS evil\nRUN ln -s {link} /link\nFROM base\n\
             RUN --mount=type=bind,from=evil,source=/link,target=/x,rw ! cat /x/marker /xHOST/marker && ! test -e /x/etc/shadow\n"
        )) else {
            return;
        };
        let run = s.build(&[]);
        assert!(run.code <= 1 && !run.stderr.contains("of the host"), "{link}: {}", run.stderr);
        untouched(&host);
    }
}

#[test]
fn cve_2024_9407_propagation_is_not_an_option_of_mounts() {
    for option in ["bind-propagation=shared", "propagation=rshared", "bind-nonrecursive", "relabel=shared"] {
        let s = Sandbox::bare(&format!("FROM scratch\nRUN --mount=type=bind,{option},target=/x true\n"));
        s.build(&[]).fails(1).says(&["Dockerfile:2"]);
    }
}

#[test]
fn cve_2024_9675_cache_ids_and_sources_are_not_paths() {
    let Some((s, host)) = set_up("") else { return };
    let up = "../".repeat(12);
    let host_path = host.to_str().unwrap().to_owned();
    for mount in [
        format!("id={up}{host_path},target=/x"),
        format!("id={host_path},target=/x"),
        format!("id=x,source={up}{host_path},target=/x"),
    ] {
        s.file("Dockerfile", format!("{BASE}RUN --mount=type=cache,{mount} ! test -e /x/marker && touch /x/new\n"));
        s.build(&[]);
        untouched(&host);
    }
}

#[test]
fn cve_2025_4953_writes_to_bind_mounts_do_not_reach_the_context() {
    let Some((s, _)) = set_up(
        "RUN --mount=type=bind,target=/src,rw echo new > /src/new && echo changed > /src/file && rm /src/gone && mkdir /src/dir/x && chmod 0 /src/dir\n",
    ) else {
        return;
    };
    s.file("file", "old\n");
    s.file("gone", "");
    s.file("dir/f", "");
    let before = names(s.ctx());
    s.build(&[]).ok();
    assert_eq!(names(s.ctx()), before);
    assert_eq!((text(s.path("ctx/file")).as_str(), names(s.path("ctx/dir"))), ("old\n", vec!["f".to_owned()]));
}

#[test]
fn podman_28749_ignore_files_and_dockerfiles_are_not_links_out_of_the_context() {
    let Some((s, host)) = set_up("") else { return };
    s.file("Dockerfile", "FROM scratch\nCOPY . /\n");
    s.file("kept", "");
    s.file("dropped", "");
    std::fs::write(host.join("b/ignore"), "kept\n").unwrap();
    for name in [".dockerignore", "Dockerfile.dockerignore"] {
        symlink(host.join("b/ignore"), s.ctx().join(name)).unwrap();
        let run = s.build(&["-o", "out"]);
        assert!(run.code != 0 || s.path("out/kept").exists(), "{name} outside was read");
        std::fs::remove_file(s.ctx().join(name)).unwrap();
        let _ = std::fs::remove_dir_all(s.path("out"));
        // A link to a file of the context is read.
        s.file("rules/ignore", "dropped\n");
        symlink("rules/ignore", s.ctx().join(name)).unwrap();
        s.build(&["-o", "out"]).ok();
        assert!(s.path("out/kept").exists() && !s.path("out/dropped").exists(), "{name}");
        std::fs::remove_file(s.ctx().join(name)).unwrap();
        let _ = std::fs::remove_dir_all(s.path("out"));
    }
    std::fs::remove_file(s.path("ctx/Dockerfile")).unwrap();
    std::fs::write(host.join("b/Dockerfile"), "FROM scratch\nLABEL outside=1\n").unwrap();
    symlink(host.join("b/Dockerfile"), s.path("ctx/Dockerfile")).unwrap();
    s.build(&[]).fails(1);
}

#[test]
fn cve_2026_44517_and_podup_721_links_of_a_context_stay_inside() {
    let Some((s, host)) = set_up("") else { return };
    s.file("dir/real", "real\n");
    symlink(&host, s.path("ctx/out")).unwrap();
    symlink(format!("{}{}", "../".repeat(12), host.display()), s.path("ctx/up")).unwrap();
    symlink("../dir", s.path("ctx/dir/parent")).unwrap();
    for path in ["out/marker", "up/marker", "out", "up"] {
        s.file("Dockerfile", format!("FROM scratch\nCOPY {path} /copied\n"));
        s.build(&["-o", "out1"]);
        assert!(files_with(&s.path("out1"), b"of the host").is_empty(), "{path}");
        let mut tar = std::process::Command::new("tar");
        tar.args(["-C", "ctx", "-cf", "ctx.tar", "."]).current_dir(s.path(""));
        assert!(tar.status().unwrap().success());
        let stdin = std::fs::File::open(s.path("ctx.tar")).unwrap();
        let run = s.command(["build", "-o", "out2", "-"]).stdin(stdin).output().unwrap();
        assert!(files_with(&s.path("out2"), b"of the host").is_empty(), "{path}: {run:?}");
    }
    // kaniko#828: links with `..` that stay inside are followed, and links are copied as links.
    s.file("Dockerfile", "FROM scratch\nCOPY dir/parent/real /real\nCOPY dir /dir/\nCOPY ou* /links/\n");
    s.build(&["-o", "out3"]);
    s.file("Dockerfile", "FROM scratch\nCOPY dir/parent/real /real\nCOPY dir /dir/\n");
    let out = s.export(&[]);
    assert_eq!(text(out.join("real")), "real\n");
    assert!(out.join("dir/parent").is_symlink());
    untouched(&host);
}

#[test]
fn cve_2021_3602_the_hosts_environment_stays_outside() {
    let Some((mut s, _)) =
        set_up("RUN env > /env; cat /proc/1/environ >> /env; tr '\\0' '\\n' < /proc/self/environ >> /env\n")
    else {
        return;
    };
    s.env("SECRET_OF_THE_HOST", "hunter22");
    let env = text(s.export(&[]).join("env"));
    assert!(env.contains("PATH=") && !env.contains("hunter22") && !env.contains("SECRET_OF"), "{env}");
}

#[test]
fn cve_2022_27651_nothing_is_inheritable_and_cve_2022_36109_groups_are_few() {
    let Some((s, _)) =
        set_up("RUN cp /proc/self/status /status\nUSER 7:8\nRUN grep -E 'Cap|Groups' /proc/self/status\n")
    else {
        return;
    };
    let status = text(s.export(&[]).join("status"));
    let line = |name: &str| status.lines().find(|l| l.starts_with(name)).unwrap().to_owned();
    assert_eq!(line("CapInh:").split_whitespace().last(), Some("0000000000000000"));
    assert!(line("Groups:").split_whitespace().count() <= 2, "{}", line("Groups:"));
    let effective = u64::from_str_radix(line("CapEff:").split_whitespace().last().unwrap(), 16).unwrap();
    assert_eq!(effective & (1 << 21 | 1 << 16 | 1 << 19), 0, "no SYS_ADMIN, SYS_MODULE, SYS_PTRACE");
}

#[test]
fn cve_2025_31133_masks_do_not_depend_on_the_images_dev() {
    let Some((s, _)) = set_up("") else { return };
    // The image's /dev/null is a link to what the mask is to hide.
    std::fs::create_dir(s.path("ctx/dev")).unwrap();
    symlink("/proc/sys/kernel/core_pattern", s.path("ctx/dev/null")).unwrap();
    s.file(
        "Dockerfile",
        format!("{BASE}COPY dev /dev\nRUN test -c /dev/null && test ! -s /proc/kcore && ! echo x > /proc/sysrq-trigger && ! echo x > /proc/sys/kernel/core_pattern\n"),
    );
    s.build(&[]).ok();
}

#[test]
fn cve_2023_27561_proc_that_is_a_link_is_not_mounted_through() {
    let Some((s, host)) = set_up("") else { return };
    symlink(host.join("b/c"), s.path("ctx/proc")).unwrap();
    s.file(
        "Dockerfile",
        format!("{BASE}COPY pro[c] /\nRUN test ! -e /proc/kcore || test ! -s /proc/kcore; ls -ld /proc\n"),
    );
    s.build(&[]);
    untouched(&host);
}

#[test]
fn cve_2023_25809_control_groups_are_read_only() {
    let Some((s, _)) = set_up("RUN ! mkdir /sys/fs/cgroup/evil && ! touch /sys/kernel/evil\n") else { return };
    s.build(&[]).ok();
}

#[test]
fn cve_2024_23653_privileges_are_granted_by_the_caller_only() {
    let s = Sandbox::bare("FROM scratch\nRUN --security=insecure [\"/x\"]\n");
    s.build(&[]).fails(1).says(&["security.insecure", "--allow"]);
    s.file("Dockerfile", "FROM scratch\nRUN --network=host [\"/x\"]\n");
    s.build(&[]).fails(1).says(&["network.host", "--allow"]);
    // The flag grants it by itself, as in docker: what is missing now is the program.
    s.build(&["--network=host"]).fails(1).says(&["/x"]).hides("--allow");
}

#[test]
fn cve_2024_24557_what_is_in_the_config_is_not_taken_from_another_build() {
    let Some((s, _)) = set_up("") else { return };
    let config = |dockerfile: &str| {
        s.file("Dockerfile", dockerfile);
        s.config(&["-t", "poisoned"])["config"].clone()
    };
    let first = config("FROM scratch\nCOPY busybox /\nHEALTHCHECK CMD a\nONBUILD RUN a\n");
    let second = config("FROM scratch\nCOPY busybox /\nHEALTHCHECK CMD b\nONBUILD RUN b\n");
    assert_eq!(first["Healthcheck"]["Test"][1], "a");
    assert_eq!((&second["Healthcheck"]["Test"][1], &second["OnBuild"][0]), (&"b".into(), &"RUN b".into()));
    // An image of the same name and config does not answer for a step over scratch.
    s.file("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    let out = s.export(&[]);
    assert_eq!(names(out), ["Dockerfile"]);
}

#[test]
fn cve_2019_13139_refs_are_not_options() {
    let s = Sandbox::bare("FROM scratch\nADD https://127.0.0.1:1/r.git#--upload-pack=touch /x\n");
    s.build(&[]).fails(1).says(&["Dockerfile:2", "not a git reference"]);
    for url in ["https://127.0.0.1:1/r.git#-x", "ssh://-oProxyCommand=touch${IFS}pwned/r.git", "git@-oProxyCommand:x"] {
        s.kiln(&["build", url]).fails(1);
    }
    assert_eq!(names(s.path("")), ["ctx", "home", "store"]);
}

#[test]
fn cve_2020_10696_archives_do_not_write_through_links() {
    let Some((s, host)) = set_up("") else { return };
    std::fs::create_dir(s.path("t")).unwrap();
    symlink(&host, s.path("t/link")).unwrap();
    let tar = |args: &[&str]| {
        assert!(std::process::Command::new("tar").args(args).current_dir(s.path("")).status().unwrap().success());
    };
    tar(&["-C", "t", "-cf", "ctx/evil.tar", "link"]);
    std::fs::remove_file(s.path("t/link")).unwrap();
    std::fs::create_dir(s.path("t/link")).unwrap();
    std::fs::write(s.path("t/link/marker"), "evil\n").unwrap();
    tar(&["-C", "t", "-rf", "ctx/evil.tar", "link/marker"]);
    s.file("Dockerfile", format!("{BASE}ADD evil.tar /\n"));
    s.build(&["-o", "out"]);
    // As a context, too.
    std::fs::copy(s.path("ctx/evil.tar"), s.path("evil.tar")).unwrap();
    let stdin = std::fs::File::open(s.path("evil.tar")).unwrap();
    s.command(["build", "-"]).stdin(stdin).output().unwrap();
    untouched(&host);
}

#[test]
fn ghsa_72x6_4j93_7w86_a_huge_group_file_is_refused_quickly() {
    let Some((s, _)) = set_up("") else { return };
    std::fs::create_dir(s.path("ctx/etc")).unwrap();
    let file = std::fs::File::create(s.path("ctx/etc/group")).unwrap();
    file.set_len(1 << 30).unwrap();
    s.file("Dockerfile", format!("{BASE}COPY etc /etc\nUSER someone\nRUN true\n"));
    s.build(&[]).fails(1);
}
