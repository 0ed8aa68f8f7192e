//! Flags of `kiln build` as people and scripts write them: wrong values are told before anything is built.
#![allow(clippy::unwrap_used)]

mod support;

use support::*;

/// Arguments, and what the message must say beside naming the flag.
const WRONG: [(&[&str], &str); 47] = [
    (&["--ulimit", "foo"], "expected NAME=SOFT[:HARD]"),
    (&["--ulimit", "foo=1"], "use core, cpu"),
    (&["--ulimit", "nofile=10:5"], "above the hard one"),
    (&["--shm-size", "x"], "expected a size such as"),
    (&["--shm-size", "-1"], "expected a size such as"),
    (&["--memory", "-1"], "expected a size such as"),
    (&["--memory", "1"], "at least 6m"),
    (&["--memory-swap", "1g"], "give --memory"),
    (&["--memory=1g", "--memory-swap", "1m"], "less than --memory"),
    (&["--cpus", "inf"], "expected a number such as 1.5"),
    (&["--cpus=1", "--cpu-quota=5000"], "excludes --cpu-quota"),
    (&["--cpu-shares", "many"], "expected a number from 0"),
    (&["--cpu-period", "1"], "from 1000 to"),
    (&["--cpuset-cpus", "a-b"], "such as 0-3,7"),
    (&["--resource", "pids=3"], "use memory=, memory-swap="),
    (&["--resource", "cpu-shares=-5"], "expected a number from 0"),
    (&["--add-host", "a"], "expected HOST:IP"),
    (&["--add-host", "a:b"], "not an IP address"),
    (&["--add-host", "a b:1.2.3.4"], "HOST:IP"),
    (&["--platform", "linux/foo/bar"], "not an architecture"),
    (&["--platform", "linux/amd46"], "did you mean amd64?"),
    (&["--platform", "linux/amd64/v9"], "v1, v2, v3, v4"),
    (&["--platform", ""], "expected os/arch"),
    (&["--build-arg", "=x"], "expected NAME=VALUE"),
    (&["--label", "=x"], "expected NAME=VALUE"),
    (&["--annotation", "foo:a=b"], "not index, manifest"),
    (&["--annotation", "manifest[linux/amd64:a=b"], "not closed"),
    (&["--network", "bridge"], "use default, none or host"),
    (&["--allow", "device"], "use network.host or security.insecure"),
    (&["--build-context", "a"], "expected NAME=VALUE"),
    (&["--build-context", "a=nowhere"], "there is no such directory"),
    (&["--build-context", "a=docker-image://"], "expected [registry/]name"),
    (&["--secret", "foo"], "type=file|env, id=, src= and env="),
    (&["--secret", "id=NOT_THERE"], "neither a variable nor a file"),
    (&["--ssh", ""], "expected default, ID"),
    (&["--tag", "Upper"], "lower-case"),
    (&["--jobs", "0"], "expected a number from 1"),
    (&["--call", "run"], "use build, check, outline or targets"),
    (&["--iidfile", "no/where"], "there is no directory no"),
    (&["--metadata-file", "ctx"], "it is a directory"),
    (&["--output", ""], "the value is empty"),
    (&["--output", "type=oci,dest=ctx"], "give the name of a file"),
    (&["--output", "type=local,dest=-"], "can't go to standard output"),
    (&["--output", "type=oci,dest=x,compression=estargz"], "use gzip, zstd or uncompressed"),
    (&["--output", "type=oci,dest=x,compression-level=12"], "expected 0 to 9"),
    (&["--output", "type=tar,dest=x", "--platform=linux/amd64,linux/arm64"], "takes one platform"),
    (&["--quiet", "--output", "-"], "prints the image ID"),
];

#[test]
fn wrong_values_name_the_flag_and_what_was_expected_before_the_build() {
    let s = Sandbox::bare("FROM scratch\nCOPY f /f\n");
    s.file("f", "f");
    for (args, says) in WRONG {
        let flag = args[0].split('=').next().unwrap();
        s.build(args).fails(2).says(&[flag, says]);
    }
    let builds = s.kiln(&["logs", "--list"]).ok().stdout;
    assert_eq!(builds.lines().count(), 1, "a build was begun:\n{builds}");
}

#[test]
fn flags_that_are_not_there_are_refused_with_a_reason() {
    let s = Sandbox::bare("FROM scratch\nCOPY f /f\n");
    for (args, says) in [
        (&["--squash"][..], "FROM scratch, COPY --from"),
        (&["--sbom=true"], "attestations"),
        (&["--attest", "type=sbom"], "attestations"),
        (&["--policy", "filename=p.rego"], "source policies"),
        (&["--invoke", "sh"], "--on-error=shell"),
        (&["--cgroup-parent", "x"], "start kiln itself"),
        (&["--output", "type=local,dest=o,attestation-prefix=x"], "not supported for type=local"),
        (&["--output", "type=image,oci-artifact=true"], "attestations"),
    ] {
        let flag = args[0].split('=').next().unwrap();
        s.build(args).fails(2).says(&[flag, says]);
    }
    s.build(&["--no-chache"]).fails(2).says(&["--no-cache"]).hides("-- --");
    s.kiln(&["buidl"]).fails(2).says(&["'build'"]).hides("builder");
}

#[test]
fn switches_take_values_and_may_be_repeated_as_scripts_do() {
    let s = Sandbox::bare("FROM scratch\nCOPY f /f\nLABEL a=b\n");
    s.file("f", "f");
    s.build(&["--pull=false", "--no-cache=true", "--load=true", "--no-cache", "--target=a", "--target="]).ok();
    s.build(&["--quiet=true", "--force-rm=true", "--rm=false"]).ok().says(&["--force-rm changes nothing"]);
    s.build(&["--no-cache=maybe"]).fails(2).says(&["maybe"]);
    s.build(&["--print=targets"]).ok();
}

#[test]
fn files_about_the_result_have_what_buildx_writes() {
    let s = Sandbox::bare("FROM scratch\nCOPY f /f\n");
    s.file("f", "f");
    s.build(&["-t", "a:1", "-t", "b", "--metadata-file", "m.json", "--iidfile", "iid"]).ok();
    let metadata: serde_json::Value = serde_json::from_str(&text(s.path("m.json"))).unwrap();
    assert_eq!(metadata["image.name"], "docker.io/library/a:1,docker.io/library/b:latest");
    assert_eq!(metadata["containerimage.config.digest"], text(s.path("iid")));
    assert_eq!(metadata["containerimage.descriptor"]["digest"], metadata["containerimage.digest"]);
    let build = metadata["buildx.build.ref"].as_str().unwrap();
    assert_eq!(build.split('/').count(), 3);
    s.kiln(&["logs", build]).ok();
    // A build that fails leaves no file of an earlier one.
    std::fs::remove_file(s.ctx().join("f")).unwrap();
    s.build(&["--iidfile", "iid"]).fails(1);
    assert!(!s.path("iid").exists());
    // As docker, which would leave nothing to find either.
    s.build(&["--iidfile", "iid", "-o", "out"]).fails(2).says(&["--iidfile", "no image"]);
}

#[test]
fn attributes_of_an_output_name_and_annotate_the_image() {
    let s = Sandbox::bare("FROM scratch\nCOPY f /f\n");
    s.file("f", "f");
    let attributes = "annotation.org.example.a=1,annotation-index.b=2,annotation-manifest-descriptor[linux/amd64].c=3";
    s.build(&["--platform=linux/amd64", "-o", &format!("type=oci,dest=l,tar=false,{attributes}")]).ok();
    let layout: serde_json::Value = serde_json::from_str(&text(s.path("l/index.json"))).unwrap();
    assert!(
        s.path("l/index.json").metadata().unwrap().modified().unwrap()
            > s.path("ctx/f").metadata().unwrap().modified().unwrap()
    );
    let blob = |d: &serde_json::Value| -> serde_json::Value {
        let digest = d["digest"].as_str().unwrap().replace(':', "/");
        serde_json::from_str(&text(s.path("l/blobs").join(digest))).unwrap()
    };
    let index = blob(&layout["manifests"][0]);
    assert_eq!(index["annotations"]["b"], "2");
    assert_eq!(index["manifests"][0]["annotations"]["c"], "3");
    assert_eq!(blob(&index["manifests"][0])["annotations"]["org.example.a"], "1");
    s.build(&["-o", "type=oci,dest=x,annotation.a=1", "-o", "type=image"]).fails(2).says(&["use --annotation"]);

    s.build(&["-o", "type=image,dangling-name-prefix=example.com/none"]).ok();
    let listed = s.kiln(&["images", "--digests", "--format", "{{.Repository}} {{.Tag}} {{.Digest}}"]).ok().stdout;
    assert!(listed.lines().any(|l| l.starts_with("example.com/none <none> sha256:")), "{listed}");
}

#[test]
fn an_outline_has_args_secrets_and_ssh_agents() {
    let s = Sandbox::bare(
        "# app is what runs\nFROM scratch AS app\nARG V=1\nRUN --mount=type=secret,id=npm,required x\nRUN --mount=type=ssh y\n",
    );
    s.build(&["--call=outline", "--build-arg=V=2"]).ok();
    let json = s.build(&["--call=outline,format=json", "--build-arg=V=2"]).ok().stdout;
    let outline: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(outline["args"][0]["value"], "2");
    assert_eq!((&outline["secrets"][0]["name"], &outline["secrets"][0]["required"]), (&"npm".into(), &true.into()));
    assert_eq!(outline["ssh"][0]["name"], "default");
    let text = s.build(&["--call=outline"]).ok().stdout;
    assert!(text.contains("DESCRIPTION: is what runs") && text.contains("SECRET"), "{text}");
}

#[test]
fn the_epoch_may_be_that_of_a_context_or_stage() {
    let s = Sandbox::bare("FROM scratch\nCOPY f /f\n");
    s.file("f", "f");
    s.build(&["--build-arg", "SOURCE_DATE_EPOCH=context"]).ok().says(&["this context has no time"]);
    s.build(&["--build-arg", "SOURCE_DATE_EPOCH="]).ok();
    s.build(&["--build-arg", "SOURCE_DATE_EPOCH=foo"]).fails(1).says(&["SOURCE_DATE_EPOCH", "seconds since 1970"]);
}

#[test]
fn shells_complete_images_stages_and_arguments() {
    let s = Sandbox::bare("ARG VERSION=1\nFROM scratch AS first\nCOPY f /\nFROM scratch AS final\nCOPY f /\n");
    s.file("f", "x");
    s.build(&["-t", "localhost:5000/team/web:1.2", "-t", "webapp:dev"]).ok();
    for name in ["one", "two"] {
        s.kiln(&["create", "--name", name, "webapp:dev", "x"]).ok();
    }
    let build = s.kiln(&["logs", "--list", "--format", "{{.ID}}"]).ok().stdout;
    let of_build = format!("kiln|logs|{}", &build[..6]);
    // The words as bash cuts them, with the cursor at the end; what it puts in place of the last one.
    let lines = [
        ("kiln|bu", "build"),
        ("kiln|build|ctx|--target|f", "first final"),
        ("kiln|build|ctx|--target|=|fir", "first"),
        ("kiln|build|ctx|--build-arg|V", "VERSION="),
        ("kiln|run|web", "webapp:dev"),
        ("kiln|rmi|webapp|:|d", "dev"),
        ("kiln|push|localhost|:|5000/t", "5000/team/web:1.2"),
        ("kiln|--root|nowhere|push|w", ""),
        // Nobody who has not begun an option wants all of them.
        ("kiln|rm|", "two one"),
        ("kiln|cp|tw", "two:"),
        ("kiln|start|o", "one"),
        ("kiln|exec|", "EXEC"),
        ("kiln|inspect|t", "two"),
        ("kiln|run|", "webapp:dev localhost:5000/team/web:1.2"),
        ("kiln|rm|--f", "--force"),
        (&of_build, build.trim_end()),
    ];
    let mut script = String::from("compopt() { :; }\nsource <(kiln completions bash)\n");
    for (words, _) in &lines {
        let line = words.replace("|:|", ":").replace("|=|", "=").replace('|', " ");
        script += &format!(
            "IFS='|' COMP_WORDS=({}); COMP_LINE='{line}' COMP_POINT=${{#COMP_LINE}} COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _kiln; unset IFS; echo \"${{COMPREPLY[*]}}\"\n",
            words.split('|').map(|w| format!("'{w}'")).collect::<Vec<_>>().join(" ")
        );
    }
    let path = format!("{}:{}", s.path("bin").display(), std::env::var("PATH").unwrap());
    std::fs::create_dir(s.path("bin")).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_kiln"), s.path("bin/kiln")).unwrap();
    let shell = |name: &str, script: &str| {
        let mut command = std::process::Command::new(name);
        command.args(["-c", script]).current_dir(s.path("")).env("PATH", &path).env("KILN_ROOT", s.path("store"));
        let output = command.output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{name}");
        String::from_utf8(output.stdout).unwrap()
    };
    let answers = shell("bash", &script);
    for ((words, expected), answer) in lines.iter().zip(answers.lines()) {
        match *expected {
            // Where there is nothing else, options are.
            "EXEC" => assert!(answer.contains("--interactive"), "{words}: {answer}"),
            expected => assert_eq!(answer, expected, "{words}"),
        }
    }
    assert_eq!(answers.lines().count(), lines.len());
    assert!(!s.path("nowhere").exists(), "a store was made");
    if has_tool("fish") {
        let answer = shell("fish", "kiln completions fish | source; complete -C 'kiln run webapp:d'");
        assert_eq!(answer, "webapp:dev\n");
    }
    if has_tool("zsh") {
        let ask = "autoload -U compinit; compinit -D; source <(kiln completions zsh); echo $+functions[_clap_dynamic_completer_kiln]";
        assert_eq!(shell("zsh", ask), "1\n");
    }
}
