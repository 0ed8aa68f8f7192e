//! Build checks with what only a build knows, and warnings about arguments that do nothing.
#![allow(clippy::unwrap_used)]

mod support;

use support::*;

#[test]
fn variables_of_base_images_are_known() {
    let Some(s) = Sandbox::new("FROM scratch\nCOPY busybox /b\nENV FROM_BASE=1\n") else { return };
    s.build(&["-t", "base-image"]).ok();
    s.file("Dockerfile", "FROM base-image\nENV A=$FROM_BASE B=$NOWHERE C=$TARGETARCH\nARG TARGETARCH\n");
    s.build(&[]).ok().says(&["UndefinedVar: Usage of undefined variable '$NOWHERE'"]).hides("'$FROM_BASE'");
    let checked = s.build(&["--check"]);
    assert_eq!(checked.code, 3);
    let all = checked.stdout + &checked.stderr;
    assert!(all.contains("$NOWHERE") && !all.contains("'$FROM_BASE'"), "{all}");
}

#[test]
fn a_check_looks_at_all_stages_and_a_build_at_those_it_needs() {
    let s = Sandbox::bare("FROM scratch AS unused\nWORKDIR relative\nFROM scratch\nCOPY busybox /b\n");
    s.build(&["--check"]).fails(3).says(&["WorkdirRelativePath"]);
    s.build(&["--check", "--target", "1"]).ok();
    s.build(&["-o", "type=cacheonly"]).ok().hides("WorkdirRelativePath");
}

#[test]
fn options_of_checks_come_from_the_file_or_a_build_arg() {
    let s = Sandbox::bare("# check=error=true\nFROM scratch\nCOPY busybox /b\nWORKDIR relative\n");
    s.build(&["-o", "type=cacheonly"]).fails(3).says(&["WorkdirRelativePath", "Dockerfile:4"]);
    let skip = "BUILDKIT_DOCKERFILE_CHECK=skip=WorkdirRelativePath";
    s.build(&["-o", "type=cacheonly", "--build-arg", skip]).ok();
    s.build(&["--check", "--build-arg", skip]).ok();
    s.build(&["-o", "type=cacheonly", "--build-arg", "BUILDKIT_DOCKERFILE_CHECK=skip"]).fails(1).says(&["skip=all"]);
}

#[test]
fn what_does_nothing_is_told() {
    let s = Sandbox::bare("ARG GLOBAL\nFROM scratch AS one\nARG VERSION\nCOPY busybox /b\n");
    let args = ["VERSON=1", "GLOBAL=1", "VERSION=2", "http_proxy=x", "TARGETARCH=amd64", "BUILDKIT_INLINE_CACHE=0"];
    let mut all = vec!["-o", "type=cacheonly", "--no-cache-filter", "two,ONE,0"];
    all.extend(args.iter().flat_map(|a| ["--build-arg", *a]));
    let run = s.build(&all).ok();
    let told: Vec<&str> = run.stderr.lines().filter(|l| l.starts_with("WARNING")).collect();
    assert_eq!(
        told,
        [
            "WARNING: build arg VERSON is not used: no ARG asks for it; did you mean VERSION?",
            "WARNING: --no-cache-filter two: there is no such stage",
        ]
    );
}
