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
    let found = s.build(&["--check"]).fails(3).stdout;
    assert!(found.contains("WorkdirRelativePath") && found.contains("Dockerfile:2:9"), "{found}");
    s.build(&["--check", "--target", "1"]).ok();
    let json = s.build(&["--call=check,format=json"]).fails(3).stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["warnings"][0]["ruleName"], "WorkdirRelativePath");
    assert_eq!(json["warnings"][0]["location"]["ranges"][0]["start"]["line"], 2, "as docker writes it");
    s.file("Dockerfile", "FROM scratch\nCPOY a b\n");
    let json = s.build(&["--call=check,format=json"]).fails(1).stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(json["buildError"]["message"].as_str().unwrap().contains("CPOY"), "{json}");
    assert_eq!(json["buildError"]["location"]["ranges"][0]["start"]["line"], 2);
    s.file("Dockerfile", "FROM scratch AS unused\nWORKDIR relative\nFROM scratch\nCOPY busybox /b\n");
    s.build(&["-o", "type=cacheonly"]).ok().hides("WorkdirRelativePath");
}

#[test]
fn options_of_checks_come_from_the_file_or_a_build_arg() {
    let s = Sandbox::bare("# check=error=true\nFROM scratch\nCOPY busybox /b\nWORKDIR relative\n");
    s.build(&["-o", "type=cacheonly"]).fails(3).says(&["WorkdirRelativePath", "Dockerfile:4"]);
    s.build(&["--check"]).fails(3).says(&["build checks failed", "# check=error=true"]);
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

#[test]
fn a_check_tells_what_a_build_would_refuse() {
    for (dockerfile, place, says) in [
        ("FROM scratch AS a\nCOPY --from=b / /\nFROM a AS b\n", "Dockerfile:3:", "a -> b -> a"),
        ("FROM scratch\nCOPY --from=3 / /\n", "Dockerfile:2:13", "invalid stage index 3"),
        ("FROM scratch\nSTOPSIGNAL SIGTREM\n", "Dockerfile:2:12", "did you mean SIGTERM?"),
        ("FROM scratch AS base\nARG V\nENV A=${V:?needed}\n", "Dockerfile:3:7", "V: needed"),
        ("ARG TAG\nFROM $TAG\n", "Dockerfile:2:6", "should not be blank"),
    ] {
        let s = Sandbox::bare(dockerfile);
        let told = s.build(&["--check"]).fails(1).says(&[place, says]);
        assert!(!told.stdout.contains("no warnings"), "{}", told.stdout);
        let json = s.build(&["--call=check,format=json"]).fails(1).stdout;
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert!(json["buildError"]["location"]["line"].is_u64(), "{json}");
    }
    // All words that can't be expanded, in one run, and also when something is built.
    let s = Sandbox::bare(
        "FROM scratch\nENV A=${ B=${}\nFROM scratch\nLABEL c=${d=e} f=\"g\nCOPY <<E /x\none\n  ${two\nE\n",
    );
    for args in [&["--check"][..], &[]] {
        let places = ["Dockerfile:2:7", "Dockerfile:2:12", "Dockerfile:4:9", "Dockerfile:4:18", "Dockerfile:7:3"];
        s.build(args).fails(1).says(&places).says(&["expected one of - + ?", "5 errors"]);
    }
    s.file("Dockerfile", "# check=nonsense\nFROM scratch\n");
    s.build(&["--check"]).fails(1).says(&["Dockerfile:1:9", "invalid check option"]);
    let s = Sandbox::bare("FROM scratch AS builder\nCOPY f /\n");
    s.build(&["--check", "--target=bulider"])
        .fails(1)
        .says(&["\"bulider\" could not be found", "did you mean builder?"]);
    // Whether this base would do is not known without asking for it.
    s.file("Dockerfile", "FROM localhost:1/x\nSTOPSIGNAL nonsense\n");
    s.build(&["--check"]).ok();
}

#[test]
fn calls_in_json_have_the_members_of_docker() {
    let s = Sandbox::bare("ARG V=1\n# base is below\nFROM scratch AS base\nENV a b\nARG V\nFROM base\nWORKDIR x\n");
    let call = |method: &str, code| -> serde_json::Value {
        serde_json::from_str(&s.build(&[&format!("--call={method},format=json")]).fails(code).stdout).unwrap()
    };
    let check = call("check", 3);
    let first = &check["warnings"][0];
    assert_eq!(first["ruleName"], "LegacyKeyValueFormat");
    assert_eq!(first["url"], "https://docs.docker.com/go/dockerfile/rule/legacy-key-value-format/");
    assert!(first["description"].is_string() && first["detail"].is_string(), "{first}");
    let range = serde_json::json!({ "start": { "line": 4, "character": 0 }, "end": { "line": 4, "character": 7 } });
    assert_eq!(first["location"]["ranges"], serde_json::json!([range]));
    assert_eq!(check["sources"][0]["filename"], "Dockerfile");
    assert!(check["sources"][0]["data"].as_str().unwrap().starts_with("QVJHIFY9MQo"));
    let targets = call("targets", 0);
    assert_eq!(targets["targets"][0]["name"], "base");
    assert_eq!(targets["targets"][0]["description"], "is below");
    assert_eq!(targets["targets"][1]["default"], true);
    assert_eq!(targets["targets"][1]["base"], "base");
    assert_eq!(targets["targets"][1]["location"]["ranges"][0]["start"]["line"], 6);
    assert!(targets["targets"][1].get("name").is_none() && targets["sources"][0].is_string());
    let outline = call("outline", 0);
    assert_eq!(outline["args"][0]["name"], "V");
    assert_eq!(outline["args"][0]["location"]["ranges"][0]["start"]["line"], 1);
}

#[test]
fn ignore_files_that_cannot_be_used_are_shown_with_the_place() {
    let s = Sandbox::bare("FROM scratch\nCOPY busybox /b\n");
    s.file(".dockerignore", "*.log\n!\nsrc/[z-a]\n");
    s.build(&[]).fails(1).says(&[".dockerignore:2:1", "illegal exclusion pattern", ".dockerignore:3:1", "2 errors"]);
    s.file("Dockerfile.dockerignore", "busybox\n");
    s.build(&[]).fails(1).says(&["excluded by line 1 of Dockerfile.dockerignore: busybox"]);
    std::fs::remove_file(s.ctx().join("Dockerfile.dockerignore")).unwrap();
    std::fs::create_dir(s.ctx().join("Dockerfile.dockerignore")).unwrap();
    s.build(&[]).fails(1).says(&["Dockerfile.dockerignore"]);
}

#[test]
fn another_language_is_named_and_not_taken_for_this_one() {
    let s = Sandbox::bare("# syntax=example.com/mopy:1\napiVersion: v1\npython: 3\n");
    let told = s.build(&[]).fails(1).says(&["Dockerfile:1:10", "example.com/mopy:1"]);
    assert!(!told.stderr.contains("unknown instruction"), "{}", told.stderr);
    s.file("Dockerfile", "{\"syntax\": \"example.com/json\", \"stages\": []}\n");
    s.build(&[]).fails(1).says(&["example.com/json"]).hides("unknown instruction");
    s.file("Dockerfile", "# syntax=docker/dockerfile:1.7-labs\nFROM scratch\nCOPY busybox /b\n");
    s.build(&["-o", "type=cacheonly"]).ok();
}
