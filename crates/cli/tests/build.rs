//! `kiln build` with real containers: stages, names, arguments, heredocs, errors.
#![allow(clippy::unwrap_used)]

mod support;

use support::*;

fn with_base(rest: &str) -> String {
    format!("{BASE}{rest}")
}

#[test]
fn only_the_last_stage_reaches_the_image() {
    let dockerfile = with_base(
        "FROM base AS build\nENV LEFT=behind\nLABEL left=behind\nRUN mkdir /work && echo made > /work/out && echo junk > /junk\n\
         FROM scratch\nCOPY --from=build /work/out /out\nLABEL kept=yes\nCMD [\"/out\"]\n",
    );
    let Some(s) = Sandbox::new(&dockerfile) else { return };
    let out = s.export(&[]);
    assert_eq!(names(&out), ["out"]);
    assert_eq!(text(out.join("out")), "made\n");
    let config = s.config(&[]);
    let whole = config.to_string();
    assert!(!whole.contains("behind") && !whole.contains("junk"), "{whole}");
    assert_eq!(config["config"]["Labels"]["kept"], "yes");
    assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), 1);
    let history = config["history"].as_array().unwrap();
    assert_eq!(history.len(), 3, "{history:?}");
    assert_eq!(history.iter().filter(|h| h["empty_layer"] != true).count(), 1);
}

#[test]
fn a_stage_that_the_target_does_not_need_is_never_run() {
    let dockerfile = with_base(
        "FROM base AS broken\nRUN exit 9\nFROM no-such-image.invalid/x AS unreachable\nFROM base AS good\nRUN echo 1 > /one\n\
         FROM base AS last\nCOPY --from=broken / /x\n",
    );
    let Some(s) = Sandbox::new(&dockerfile) else { return };
    let run = s.build(&["--target", "good"]).ok();
    assert!(!run.stderr.contains("exit 9") && !run.stderr.contains("no-such-image"), "{}", run.stderr);
    s.build(&[]).fails(1).says(&["exit code: 9"]);
}

#[test]
fn targets_have_names_in_any_case_and_numbers() {
    let dockerfile = with_base("FROM base AS One\nRUN echo 1 > /one\nFROM base AS two\nRUN echo 2 > /two\n");
    let Some(s) = Sandbox::new(&dockerfile) else { return };
    for target in ["One", "one", "ONE", "1"] {
        let out = s.export(&["--target", target]);
        assert!(out.join("one").exists() && !out.join("two").exists(), "{target}");
    }
    assert!(s.export(&[]).join("two").exists());
    s.build(&["--target", "tow"]).fails(1).says(&["tow", "two"]);
    s.build(&["--target", "7"]).fails(1);
}

#[test]
fn copy_takes_from_stages_numbers_images_and_contexts() {
    let Some(s) = Sandbox::new("FROM scratch\nCOPY busybox /tool\n") else { return };
    s.build(&["-t", "tools:1"]).ok();
    std::fs::create_dir(s.path("extra")).unwrap();
    std::fs::write(s.path("extra/note"), "from a context").unwrap();
    s.file("local", "from the main one");
    s.file(
        "Dockerfile",
        with_base(
            "FROM base AS a\nRUN echo stage > /f\nFROM scratch\nCOPY --from=a /f /stage\nCOPY --from=1 /f /number\n\
             COPY --from=tools:1 /tool /image\nCOPY --from=extra note /context\nCOPY --from=img /tool /image-context\nCOPY local /\n",
        ),
    );
    let out = s.export(&["--build-context", "extra=extra", "--build-context", "img=docker-image://tools:1"]);
    assert_eq!(names(&out), ["context", "image", "image-context", "local", "number", "stage"]);
    assert_eq!(text(out.join("number")), "stage\n");
    assert_eq!(text(out.join("context")), "from a context");
    let busybox = std::fs::read(BUSYBOX).unwrap();
    assert!(
        std::fs::read(out.join("image")).unwrap() == busybox
            && std::fs::read(out.join("image-context")).unwrap() == busybox
    );
}

#[test]
fn a_named_context_stands_in_for_a_base() {
    let Some(s) = Sandbox::new(&with_base("RUN echo real > /which\n")) else { return };
    s.build(&["-t", "real"]).ok();
    s.build(&["-o", "type=oci,dest=layout-of-real,tar=false"]).ok();
    s.file("Dockerfile", "FROM example.invalid/base:1 AS b\nRUN cat /which > /seen\n");
    for context in ["docker-image://real", "oci-layout://layout-of-real"] {
        let out = s.export(&["--build-context", &format!("example.invalid/base:1={context}")]);
        assert_eq!(text(out.join("seen")), "real\n", "{context}");
    }
}

#[test]
fn triggers_run_in_the_stage_that_is_based_on_them() {
    let Some(s) = Sandbox::new(&with_base(
        "ONBUILD COPY app /app\nONBUILD RUN cat /app > /seen && echo $WHO >> /seen\nONBUILD ARG WHO=x\n",
    )) else {
        return;
    };
    s.build(&["-t", "onbuild-base"]).ok();
    s.file("app", "hello\n");
    s.file("Dockerfile", "FROM onbuild-base\nRUN test -f /seen\n");
    assert_eq!(text(s.export(&[]).join("seen")), "hello\n\n");
    let config = s.config(&[]);
    assert!(config["config"]["OnBuild"].as_array().is_none_or(Vec::is_empty), "triggers are used up: {config}");
}

#[test]
fn args_and_variables_end_where_they_should() {
    let dockerfile = with_base(
        "ARG HERE=base\nENV KEPT=${HERE}-env\nFROM base AS child\nRUN echo \"$HERE|$KEPT\" > /a\n\
         ARG HERE=child\nARG FROM_ENV\nRUN echo \"$HERE|$FROM_ENV|$OUTER\" > /b\nENV HERE=shadow\nRUN echo $HERE > /c\n\
         ARG OUTER\nRUN echo $OUTER > /d\nARG TARGETARCH\nRUN echo $TARGETARCH > /e\nENV X=abc.tar.gz\nCOPY busybox /${X%%.*}/${X#*.}/${NOPE:-default}\n",
    );
    let Some(mut s) = Sandbox::new(&format!("ARG OUTER=outer\n{dockerfile}")) else { return };
    s.env("FROM_ENV", "of-the-client");
    let out = s.export(&["--build-arg", "FROM_ENV", "--build-arg", "HERE=given"]);
    assert_eq!(text(out.join("a")), "given|given-env\n", "a stage inherits the args of the one it is based on");
    assert_eq!(text(out.join("b")), "given|of-the-client|\n");
    assert_eq!(text(out.join("c")), "shadow\n");
    assert_eq!(text(out.join("d")), "outer\n");
    let arch = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    assert_eq!(text(out.join("e")), format!("{arch}\n"));
    assert!(out.join("abc/tar.gz/default").exists());
    let env = s.config(&[])["config"]["Env"].to_string();
    assert!(env.contains("KEPT=base-env") && env.contains("HERE=shadow") && !env.contains("OUTER"), "{env}");
}

#[test]
fn proxies_are_seen_by_steps_but_are_in_no_key_and_no_history() {
    let Some(s) = Sandbox::new(&with_base("RUN echo $HTTP_PROXY > /p\n")) else { return };
    let out = s.export(&["--build-arg", "HTTP_PROXY=http://u:secretword@proxy.invalid"]);
    assert_eq!(text(out.join("p")), "http://u:secretword@proxy.invalid\n");
    let again = s.build(&["--build-arg", "HTTP_PROXY=http://other.invalid"]).ok();
    assert_eq!(again.executed(), [""; 0], "{}", again.stderr);
    let config = s.config(&["--build-arg", "HTTP_PROXY=http://u:secretword@proxy.invalid"]);
    assert!(!config.to_string().contains("secretword"), "{config}");
}

#[test]
fn heredocs_are_scripts_and_files() {
    let dockerfile = with_base(
        "ARG NAME=world\nRUN <<EOF\nset -e\necho one > /one\ncat /one > /two\nEOF\n\
         RUN <<\"END\" sh -s arg\necho \"$1 $NAME\" > /three\nEND\n\
         RUN <<EOF\n#!/bin/awk -f\nBEGIN { print \"awk\" > \"/four\" }\nEOF\n\
         COPY <<a <<\"b\" <<-c /files/\nhello $NAME\na\nhello $NAME\nb\n\ttabs\n\tc\nCOPY <<EOF /single\nx\nEOF\n",
    );
    let Some(s) = Sandbox::new(&dockerfile) else { return };
    let out = s.export(&[]);
    assert_eq!(text(out.join("two")), "one\n");
    assert_eq!(text(out.join("three")), "arg world\n");
    assert_eq!(text(out.join("four")), "awk\n");
    assert_eq!(text(out.join("files/a")), "hello world\n");
    assert_eq!(text(out.join("files/b")), "hello $NAME\n");
    assert_eq!(text(out.join("files/c")), "tabs\n");
    assert_eq!(text(out.join("single")), "x\n");
}

#[test]
fn users_working_directories_and_shells() {
    let dockerfile = with_base(
        "RUN adduser -D -u 1234 app 2>/dev/null || { mkdir -p /etc; echo app:x:1234:1234::/home/app:/bin/sh > /etc/passwd; echo app:x:1234: > /etc/group; }\n\
         RUN mkdir -m 1777 -p /tmp\nWORKDIR /a\nWORKDIR b\nRUN pwd > /pwd\nUSER app\nRUN id -u > /tmp/uid; grep Groups: /proc/self/status > /tmp/groups\nENV HOME=\nRUN echo $HOME > /tmp/home\n\
         USER 77:88\nRUN id -u > /tmp/uid2 && id -g > /tmp/gid2\nUSER 0\nCOPY --chown=app:app busybox /owned\nRUN stat -c %u:%g /owned > /owner\n\
         SHELL [\"/bin/sh\", \"-e\", \"-c\"]\nRUN false || echo went on > /sh; echo $0 >> /sh\nRUN [\"/bin/echo\", \"$HOME\"]\n",
    );
    let Some(s) = Sandbox::new(&dockerfile) else { return };
    let out = s.export(&[]);
    let line = |p: &str| text(out.join(p)).trim().to_owned();
    assert_eq!(line("pwd"), "/a/b");
    assert_eq!(line("tmp/uid"), "1234");
    assert_eq!(line("tmp/groups").split_whitespace().last(), Some("1234"), "the own group is among the groups");
    assert_eq!(line("tmp/home"), "/home/app", "an empty HOME is none");
    assert_eq!((line("tmp/uid2"), line("tmp/gid2")), ("77".into(), "88".into()));
    assert_eq!(line("owner"), "1234:1234");
    assert!(text(out.join("sh")).starts_with("went on"));
    s.file("Dockerfile", with_base("USER nosuchuser\nRUN true\n"));
    s.build(&[]).fails(1).says(&["nosuchuser", "Dockerfile:5"]);
}

#[test]
fn what_the_container_sees_is_not_in_the_layer() {
    let dockerfile = with_base(
        "RUN test -c /dev/null && test -d /proc/self && test -d /sys && test -s /etc/hosts && test -f /etc/resolv.conf && hostname > /name\n\
         RUN touch /sys/x 2>/dev/null && exit 1; echo > /proc/sys/kernel/hostname 2>/dev/null && exit 1; mount -t tmpfs x /mnt 2>/dev/null && exit 1; true\n",
    );
    let Some(s) = Sandbox::new(&dockerfile) else { return };
    let out = s.export(&[]);
    assert_eq!(names(&out), ["bin", "name"], "no stub of a mount point stays");
    assert_eq!(text(out.join("name")), "buildkitsandbox\n");
}

#[test]
fn a_failure_shows_the_lines_the_output_and_the_code() {
    let dockerfile =
        with_base("RUN true\nRUN echo some words; \\\n    echo on stderr >&2; \\\n    exit 42\nRUN true\n");
    let Some(s) = Sandbox::new(&dockerfile) else { return };
    let run = s.build(&[]).fails(1).says(&[
        "Dockerfile:5",
        ">>> RUN echo some words",
        "exit code: 42",
        "some words",
        "on stderr",
    ]);
    assert!(run.stderr.contains(">>>     exit 42"), "all lines of the instruction are marked:\n{}", run.stderr);
    // With progress off the output is in the message itself.
    let quiet = s.kiln(&["build", "-q", "ctx"]).fails(1).says(&["exit code: 42", "> some words", "> on stderr"]);
    assert!(quiet.stdout.is_empty());
    s.kiln(&["logs"]).ok();
    let listed = s.kiln(&["logs", "--list", "--format", "{{.Status}} {{.Context}}: {{.Error}}"]).ok().stdout;
    assert!(listed.starts_with("failed ctx: ") && listed.contains("exit code: "), "{listed}");
    assert!(s.kiln(&["logs", "--list"]).ok().stdout.starts_with("BUILD ID "));
}

#[test]
fn all_syntax_errors_are_told_in_one_run() {
    let s = Sandbox::bare("FROM scratch\nCOYP a b\nRUN --mout=type=cache true\nENV\nCOPY --from=nope\nEXPOSE\n");
    let run = s.build(&[]).fails(1).says(&[
        "COYP",
        "COPY",
        "--mout",
        "--mount",
        "Dockerfile:2",
        "Dockerfile:3",
        "Dockerfile:4",
    ]);
    assert!(run.stderr.contains("errors"), "{}", run.stderr);
}

#[test]
fn missing_things_are_named_with_the_nearest_name() {
    let Some(s) = Sandbox::new("FROM scratch AS builder\nCOPY busybox /x\nFROM scratch\nCOPY --from=bulider /x /x\n")
    else {
        return;
    };
    s.build(&[]).fails(1).says(&["bulider", "builder"]);
    s.file("Dockerfile", "FROM scratch\nCOPY bussybox /x\n");
    s.build(&[]).fails(1).says(&["bussybox", "busybox", "Dockerfile:2"]);
    s.file("Dockerfile", "FROM scratch AS a\nCOPY --from=b / /\nFROM scratch AS b\nCOPY --from=a / /\n");
    s.build(&[]).fails(1).says(&["b"]);
    s.kiln(&["build", "nowhere"]).fails(1).says(&["nowhere"]);
    s.kiln(&["build", "-f", "Dokcerfile", "ctx"]).fails(1).says(&["Dokcerfile"]);
    s.kiln(&["build", "--no-such-flag", "ctx"]).fails(2);
}

#[test]
fn the_dockerfile_may_come_from_anywhere() {
    use std::io::Write;
    let s = Sandbox::bare("FROM nothing\n");
    std::fs::write(s.path("else.Dockerfile"), "FROM scratch\nCOPY a /outside\n").unwrap();
    s.file("a", "x");
    s.build(&["-f", "else.Dockerfile", "-o", "out1"]).ok();
    assert_eq!(names(s.path("out1")), ["outside"]);
    let mut child = s
        .command(["build", "-f", "-", "-o", "out2", "ctx"])
        .stdin(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all("\u{feff}from scratch\r\ncopy a /stdin\r\n".as_bytes()).unwrap();
    Run::from(child.wait_with_output().unwrap()).ok();
    assert_eq!(names(s.path("out2")), ["stdin"]);
}

#[test]
fn checks_and_lists_build_nothing() {
    let s = Sandbox::bare("ARG V=1\nFROM scratch as Base\nARG W=2\nMAINTAINER me\nCOPY a /\nFROM Base AS second\n");
    let run = s.build(&["--check"]).fails(3);
    let told = format!("{}{}", run.stdout, run.stderr);
    for rule in ["StageNameCasing", "FromAsCasing", "MaintainerDeprecated"] {
        assert!(told.contains(rule), "{rule} in {told}");
    }
    let targets = s.build(&["--call=targets"]).ok().stdout;
    assert!(targets.contains("second") && targets.to_lowercase().contains("base"), "{targets}");
    let outline = s.build(&["--call=outline"]).ok().stdout;
    assert!(outline.contains('V') || outline.contains('W'), "{outline}");
}

#[test]
fn hostile_dockerfiles_end_in_one_error() {
    let s = Sandbox::bare("");
    s.build(&[]).fails(1).says(&["FROM"]);
    s.file("Dockerfile", [0xff, 0, 0xfe, 0x80].repeat(100_000));
    s.build(&[]).fails(1);
    s.file("Dockerfile", format!("FROM scratch\n{}", "# a comment of some length\n".repeat(400_000)));
    s.build(&[]).ok();
    s.file("Dockerfile", format!("FROM scratch\n{}", "LABEL a=b\n".repeat(20_000)));
    s.build(&[]).ok();
    std::fs::remove_file(s.ctx().join("Dockerfile")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(s.ctx().join("Dockerfile")).status().unwrap().success());
    s.build(&[]).fails(1).says(&["Dockerfile"]);
    std::fs::remove_file(s.ctx().join("Dockerfile")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", s.ctx().join("Dockerfile")).unwrap();
    s.build(&[]).fails(1).hides("root:");
}

#[test]
fn stages_that_need_each_other_are_named() {
    let s = Sandbox::bare("FROM scratch AS one\nCOPY --from=two / /\nFROM scratch AS two\nCOPY --from=one / /\n");
    s.build(&[]).fails(1).says(&["two", "Dockerfile:"]);
    s.file("Dockerfile", "FROM scratch\nRUN --security=insecure true\n");
    s.build(&[]).fails(1).says(&["--allow security.insecure"]);
    s.file("Dockerfile", "# syntax=example.com/other/frontend\nFROM scratch\n");
    s.build(&[]).fails(1).says(&["example.com/other/frontend", "docker/dockerfile"]);
}

#[test]
fn a_step_that_takes_too_much_memory_is_named_as_such() {
    if !is_root() {
        return;
    }
    let Some(s) = Sandbox::new(&with_base("RUN tail /dev/zero\n")) else { return };
    let run = s.build(&["--memory", "40m"]);
    if run.stderr.contains("cgroup") || run.stderr.contains("control group") {
        eprintln!("SKIPPED: no memory controller: {}", run.stderr);
        return;
    }
    run.fails(1).says(&["memory", "Dockerfile:4"]);
}

#[test]
fn what_docker_has_and_kiln_has_not_is_said() {
    let s = Sandbox::bare("FROM scratch\nCOPY Dockerfile /\n");
    s.kiln(&["attach"]).fails(2).says(&["kiln exec", "unrecognized subcommand 'attach'"]);
    s.build(&["--cgroup-parent", "x"]).fails(2).says(&["--cgroup-parent is not supported"]);
    s.build(&["-D"]).ok().says(&["--debug changes nothing", "kiln logs"]);
    s.kiln(&["buildx", "build", "-q", "ctx"]).ok();
}
