//! What instructions leave in the config and in the history.
#![allow(clippy::unwrap_used)]

mod support;

use kiln_oci::ImageConfig;
use support::*;

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Each Dockerfile, its history entries (`-` without a layer), and what must be in the config.
#[test]
fn every_instruction_as_buildkit_writes_it() {
    let table: &[(&str, &[&str], serde_json::Value)] = &[
        ("ENV A=b", &["- ENV A=b"], serde_json::json!({"Env": ["PATH=/bin", "A=b"]})),
        ("ENV A=1 B=\"x y\"", &["- ENV A=1 B=x y"], serde_json::json!({"Env": ["PATH=/bin", "A=1", "B=x y"]})),
        ("ENV A some text", &["- ENV A=some text"], serde_json::json!({"Env": ["PATH=/bin", "A=some text"]})),
        (
            "ENV A=1\nENV A=2 B=$A",
            &["- ENV A=1", "- ENV A=2 B=1"],
            serde_json::json!({"Env": ["PATH=/bin", "A=2", "B=1"]}),
        ),
        ("ENV PATH=$PATH:/x", &["- ENV PATH=/bin:/x"], serde_json::json!({"Env": ["PATH=/bin:/x"]})),
        ("LABEL a=1 b='$x'", &["- LABEL a=1 b=$x"], serde_json::json!({"Labels": {"a": "1", "b": "$x"}})),
        (
            "CMD echo \"hi\"",
            &["- CMD [\"/bin/sh\" \"-c\" \"echo \\\"hi\\\"\"]"],
            serde_json::json!({"Cmd": ["/bin/sh", "-c", "echo \"hi\""], "ArgsEscaped": true}),
        ),
        ("CMD [\"a\",\"b c\"]", &["- CMD [\"a\" \"b c\"]"], serde_json::json!({"Cmd": ["a", "b c"]})),
        ("CMD []", &["- CMD []"], serde_json::json!({"Cmd": null})),
        ("ENTRYPOINT [\"/x\"]", &["- ENTRYPOINT [\"/x\"]"], serde_json::json!({"Entrypoint": ["/x"], "Cmd": null})),
        (
            "CMD [\"own\"]\nENTRYPOINT [\"/x\"]",
            &["- CMD [\"own\"]", "- ENTRYPOINT [\"/x\"]"],
            serde_json::json!({"Entrypoint": ["/x"], "Cmd": ["own"]}),
        ),
        (
            "SHELL [\"/bin/bash\",\"-euc\"]\nENTRYPOINT run it",
            &["- SHELL [/bin/bash -euc]", "- ENTRYPOINT [\"/bin/bash\" \"-euc\" \"run it\"]"],
            serde_json::json!({"Shell": ["/bin/bash", "-euc"], "Entrypoint": ["/bin/bash", "-euc", "run it"]}),
        ),
        (
            "HEALTHCHECK --interval=5m --timeout=3s --retries=3 CMD curl -f x || exit 1",
            &["- HEALTHCHECK &{[\"CMD-SHELL\" \"curl -f x || exit 1\"] \"5m0s\" \"3s\" \"0s\" \"0s\" '\\x03'}"],
            serde_json::json!({"Healthcheck": {"Test": ["CMD-SHELL", "curl -f x || exit 1"], "Interval": 300_000_000_000_i64, "Timeout": 3_000_000_000_i64, "Retries": 3}}),
        ),
        (
            "HEALTHCHECK CMD [\"/x\"]",
            &["- HEALTHCHECK &{[\"CMD\" \"/x\"] \"0s\" \"0s\" \"0s\" \"0s\" '\\x00'}"],
            serde_json::json!({"Healthcheck": {"Test": ["CMD", "/x"]}}),
        ),
        (
            "HEALTHCHECK NONE",
            &["- HEALTHCHECK &{[\"NONE\"] \"0s\" \"0s\" \"0s\" \"0s\" '\\x00'}"],
            serde_json::json!({"Healthcheck": {"Test": ["NONE"]}}),
        ),
        (
            "ARG P=8080\nEXPOSE $P 53/UDP 9000-9001",
            &["- ARG P=8080", "- EXPOSE [8080/tcp 53/udp 9000/tcp 9001/tcp]"],
            serde_json::json!({"ExposedPorts": {"8080/tcp": {}, "53/udp": {}, "9000/tcp": {}, "9001/tcp": {}}}),
        ),
        ("USER app:adm", &["- USER app:adm"], serde_json::json!({"User": "app:adm"})),
        ("VOLUME /a [\"b\"]", &["- VOLUME [/a [b]]"], serde_json::json!({})),
        ("VOLUME [\"/a\",\"/b\"]", &["- VOLUME [/a /b]"], serde_json::json!({"Volumes": {"/a": {}, "/b": {}}})),
        ("STOPSIGNAL SIGRTMIN+3", &["- STOPSIGNAL SIGRTMIN+3"], serde_json::json!({"StopSignal": "SIGRTMIN+3"})),
        (
            "WORKDIR /app\nWORKDIR sub/../x/",
            &["WORKDIR /app", "WORKDIR /app/x"],
            serde_json::json!({"WorkingDir": "/app/x"}),
        ),
        ("WORKDIR /", &["- WORKDIR /"], serde_json::json!({"WorkingDir": "/"})),
        ("WORKDIR /app/./", &["WORKDIR /app/./"], serde_json::json!({"WorkingDir": "/app/./"})),
        ("ONBUILD RUN x", &[], serde_json::json!({"OnBuild": ["RUN x"]})),
        ("ARG A=1 B\nARG C", &["- ARG A=1 B", "- ARG C"], serde_json::json!({"Env": ["PATH=/bin"]})),
        ("RUN make", &["RUN /bin/sh -c make # buildkit"], serde_json::json!({})),
        ("RUN [\"a\",\"b c\"]", &["RUN a b c # buildkit"], serde_json::json!({})),
        (
            "ARG A=1\nARG B\nENV A=2\nRUN x",
            &["- ARG A=1", "- ARG B", "- ENV A=2", "RUN |2 A=2 B= /bin/sh -c x # buildkit"],
            serde_json::json!({}),
        ),
        ("RUN <<EOF\na\nb\nEOF", &["RUN /bin/sh -c a\nb\n # buildkit"], serde_json::json!({})),
        ("RUN cat <<EOF >x\nhi\nEOF", &["RUN /bin/sh -c cat <<EOF >x\nhi\nEOF # buildkit"], serde_json::json!({})),
        ("COPY a b /dest/", &["COPY a b /dest/ # buildkit"], serde_json::json!({})),
        (
            "ARG D=x\nCOPY --chown=1:2 --chmod=755 $D ./",
            &["- ARG D=x", "COPY --chown=1:2 --chmod=755 x ./ # buildkit"],
            serde_json::json!({}),
        ),
        ("COPY --link --parents a/b /x", &["COPY --parents a/b /x # buildkit"], serde_json::json!({})),
        ("COPY <<EOF /x\nhi\nEOF", &["COPY <<EOF /x # buildkit"], serde_json::json!({})),
        (
            "ADD --checksum=sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 http://h/f /",
            &["ADD http://h/f / # buildkit"],
            serde_json::json!({}),
        ),
    ];
    for (text, entries, config) in table {
        let image = image(&format!("FROM base\n{text}"));
        assert_eq!(history(&image), *entries, "{text}");
        let actual = config_json(&image);
        for (key, value) in config.as_object().unwrap() {
            let actual = actual.get(key).unwrap_or(&serde_json::Value::Null);
            assert_eq!(actual, value, "{key} of {text}");
        }
    }
}

#[test]
fn an_author_is_kept() {
    let image = image("FROM base\nMAINTAINER A. Person <a@b>");
    assert_eq!(image.config.author, "A. Person <a@b>");
    assert_eq!(history(&image), ["- MAINTAINER A. Person <a@b>"]);
}

#[test]
fn the_history_of_the_base_comes_first_and_keeps_its_times() {
    let image = image("FROM base\nENV A=1");
    assert_eq!(image.inherited_history, 1);
    assert_eq!(image.config.history.len(), 2);
    assert_eq!(image.config.history[0].created_by.as_deref(), Some("base layer"));
    assert!(image.config.history[0].created.is_some());
    assert_eq!(image.config.created, None, "the engine decides");
    assert!(image.config.rootfs.diff_ids.is_empty());
    let base = image.base.unwrap();
    assert_eq!((base.name.as_str(), base.config.rootfs.diff_ids.len()), ("base", 1));
}

#[test]
fn scratch_has_a_path_and_a_directory() {
    let image = image("FROM scratch\nCMD [\"/x\"]");
    assert!(image.root.is_none() && image.base.is_none());
    assert_eq!(image.config.config.env, [PATH]);
    assert_eq!(image.config.config.working_dir, "/");
    assert_eq!((image.config.os.as_str(), image.config.architecture.as_str()), ("linux", "amd64"));
}

#[test]
fn an_image_without_layers_is_scratch_and_without_path_gets_one() {
    let lowered = lowered("FROM empty\nCOPY a /");
    assert_eq!(dump(&lowered), "0 local://context\n1 copy #0:/a -> scratch:/\n");
    assert_eq!(lowered.images[0].config.config.env, [PATH]);
}

#[test]
fn stages_inherit_config_and_history_but_not_triggers() {
    let text = "FROM base AS a\nENV A=1\nUSER app\nWORKDIR /w\nCMD [\"own\"]\nLABEL l=1\nSHELL [\"/s\"]\nARG X=9\nONBUILD ENV T=1\n\
                FROM a AS b\nRUN echo $X\nFROM b\nENTRYPOINT [\"/e\"]";
    let image = image(text);
    let config = &image.config.config;
    assert_eq!(config.env, ["PATH=/bin", "A=1", "T=1"]);
    assert_eq!((config.user.as_str(), config.working_dir.as_str()), ("app", "/w"));
    assert_eq!(config.cmd, None, "an ENTRYPOINT forgets a CMD that another stage set");
    assert_eq!(config.shell, Some(vec!["/s".to_owned()]));
    assert!(config.on_build.is_empty());
    assert_eq!(
        history(&image)[6..],
        ["- ARG X=9", "- ENV T=1", "RUN |1 X=9 /s echo $X # buildkit", "- ENTRYPOINT [\"/e\"]"]
    );
}

#[test]
fn labels_of_the_command_line_win() {
    let images = try_lower("FROM base\nLABEL a=1 b=2", |r| r.labels = map(&[("b", "3"), ("c", "4")])).unwrap().images;
    let labels: Vec<String> = images[0].config.config.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(labels, ["a=1", "b=3", "c=4"]);
}

#[test]
fn scoping_of_args() {
    let run = |text: &str, args: &[(&str, &str)]| {
        let lowered = try_lower(text, |r| r.build_args = map(args)).unwrap();
        exec(&lowered).env.iter().filter(|e| !e.starts_with("PATH=")).cloned().collect::<Vec<_>>()
    };
    // Global args are not seen in a stage until it declares them.
    assert_eq!(run("ARG V=1\nFROM base\nRUN x", &[]), [""; 0]);
    assert_eq!(run("ARG V=1\nFROM base\nARG V\nRUN x", &[]), ["V=1"]);
    assert_eq!(run("ARG V=1\nFROM base\nARG V=2\nRUN x", &[]), ["V=2"]);
    assert_eq!(run("ARG V=1\nFROM base\nARG V=2\nRUN x", &[("V", "3")]), ["V=3"]);
    assert_eq!(run("FROM base\nARG V\nRUN x", &[]), [""; 0]);
    assert_eq!(run("FROM base\nRUN x", &[("V", "3")]), [""; 0]);
    assert_eq!(run("ARG A=1\nARG B=${A}2\nFROM base\nARG B\nRUN x", &[("A", "9")]), ["B=92"]);
    assert_eq!(run("FROM base\nARG A=1\nARG B=${A:+$A-x}\nRUN x", &[]), ["A=1", "B=1-x"]);
    // ENV and ARG are one set of variables; the later wins, at the place of the first.
    assert_eq!(run("FROM base\nENV A=1\nARG B=2\nARG A=3\nRUN x", &[]), ["A=3", "B=2"]);
    assert_eq!(run("FROM base\nARG BUILDKIT_SBOM_SCAN_STAGE=true\nRUN x", &[]), [""; 0]);
}

#[test]
fn platform_args_and_target_stage() {
    let text =
        "FROM base AS Final\nARG TARGETPLATFORM TARGETARCH TARGETVARIANT BUILDPLATFORM TARGETSTAGE BUILDOS\nRUN x";
    let lowered = try_lower(text, |r| {
        r.platforms = vec!["linux/arm/v7".parse().unwrap()];
        r.target = Some("final".to_owned());
        r.build_args = map(&[("BUILDOS", "plan9")]);
    });
    let env = exec(&lowered.unwrap()).env[1..].to_vec();
    let stage = |text: &str| exec(&try_lower(text, |_| {}).unwrap()).env[1..].to_vec();
    assert_eq!(stage("FROM base AS One\nARG TARGETSTAGE\nRUN x"), ["TARGETSTAGE=one"], "the last one's name");
    assert_eq!(stage("FROM base AS one\nFROM base\nARG TARGETSTAGE\nRUN x"), ["TARGETSTAGE=default"]);
    let expected = [
        "TARGETPLATFORM=linux/arm/v7",
        "TARGETARCH=arm",
        "TARGETVARIANT=v7",
        "BUILDPLATFORM=linux/amd64",
        "TARGETSTAGE=final",
        "BUILDOS=plan9",
    ];
    assert_eq!(env, expected);
}

#[test]
fn proxy_args_reach_the_step_and_nothing_else() {
    let lowered = try_lower("FROM base\nRUN x", |r| {
        r.proxy = map(&[("https_proxy", "http://p:1"), ("no_proxy", "a")]);
        r.build_args = map(&[("HTTPS_PROXY", "http://q:2")]);
    });
    let lowered = lowered.unwrap();
    let proxy = &exec(&lowered).proxy.0;
    let shown: Vec<String> = proxy.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(shown, ["HTTPS_PROXY=http://q:2", "NO_PROXY=a", "https_proxy=http://q:2", "no_proxy=a"]);
    assert_eq!(*exec(&lowered).env, ["PATH=/bin"]);
    assert_eq!(history(&lowered.images[0]), ["RUN /bin/sh -c x # buildkit"]);
    let plain = support::lowered("FROM base\nRUN x");
    let root = |l: &kiln_frontend::Lowered| l.graph[l.images[0].root.unwrap().vertex].digest();
    assert_eq!(root(&plain), root(&lowered), "a proxy is no part of a key");
}

#[test]
fn a_declared_proxy_arg_is_an_arg() {
    let lowered = try_lower("FROM base\nARG http_proxy\nRUN x", |r| r.build_args = map(&[("http_proxy", "p")]));
    let lowered = lowered.unwrap();
    assert_eq!(*exec(&lowered).env, ["PATH=/bin", "http_proxy=p"]);
    assert_eq!(history(&lowered.images[0])[1], "RUN |1 http_proxy=p /bin/sh -c x # buildkit");
}

#[test]
fn unknown_fields_of_a_base_config_survive() {
    let images = Images::default().with("odd", r#"{"Odd":7,"StopTimeout":3,"Healthcheck":{"Test":["NONE"]}}"#);
    let lowered = try_lower_with(&images, "FROM odd\nENV A=1", |_| {}).unwrap();
    let config = config_json(&lowered.images[0]);
    assert_eq!((&config["Odd"], &config["StopTimeout"]), (&7.into(), &3.into()));
    assert_eq!(config["Healthcheck"]["Test"][0], "NONE");
    let known: &ImageConfig = &lowered.base_configs["odd"];
    assert_eq!(known.config.extra["Odd"], 7);
}
