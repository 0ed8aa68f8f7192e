//! Which stages count, what they are based on, and what names mean.
#![allow(clippy::unwrap_used)]

mod support;

use kiln_frontend::{LowerRequest, outline, targets};
use kiln_graph::SourceOp;
use support::*;

#[test]
fn only_what_the_target_needs_is_resolved() {
    let text = "FROM missing AS unused\nRUN x\nFROM base AS a\nFROM alpine:3 AS b\nCOPY --from=a /x /\nFROM missing";
    let images = Images::default();
    let lowered = try_lower_with(&images, text, |r| r.target = Some("B".to_owned())).unwrap();
    assert_eq!(
        images.asked(),
        [
            "[internal] load metadata for docker.io/library/alpine:3 for linux/amd64",
            "[internal] load metadata for docker.io/library/base:latest for linux/amd64",
        ]
    );
    assert_eq!(lowered.images[0].stage, "b");
}

#[test]
fn each_image_is_asked_for_once() {
    let text = "FROM base AS a\nFROM base AS b\nCOPY --from=a /x /\nFROM b\nCOPY --from=base /y /\nCOPY --from=docker.io/library/base /z /";
    let images = Images::default();
    try_lower_with(&images, text, |_| {}).unwrap();
    assert_eq!(images.asked().len(), 1);
}

#[test]
fn targets_by_name_and_index() {
    let text = "FROM base AS one\nENV N=1\nFROM base\nENV N=2\nFROM base AS three\nENV N=3";
    let built = |target: &str| {
        let lowered = try_lower(text, |r| r.target = Some(target.to_owned())).unwrap();
        lowered.images[0].config.config.env[1].clone()
    };
    assert_eq!([built("ONE"), built("1"), built("three"), built("")], ["N=1", "N=2", "N=3", "N=3"]);
    assert_eq!(
        error_with(text, |r| r.target = Some("tree".to_owned())),
        "target stage \"tree\" could not be found (did you mean three?)"
    );
    assert_eq!(
        error_with(text, |r| r.target = Some("release".to_owned())),
        "target stage \"release\" could not be found (the stages are one, three)"
    );
    assert!(error_with(text, |r| r.target = Some("3".to_owned())).starts_with("target stage \"3\" could not be found"));
}

#[test]
fn stages_by_index_and_in_any_case() {
    let text = "FROM base AS Build\nRUN x\nFROM scratch\nCOPY --from=0 /a /\nCOPY --from=BUILD /b /";
    let out = dump(&lowered(text));
    assert_eq!(out.lines().skip(2).collect::<Vec<_>>(), ["2 copy #1:/a -> scratch:/", "3 copy #1:/b -> #2:/"]);
    let chained = lowered("FROM base AS Build\nENV A=1\nFROM build\nRUN x");
    assert!(chained.images[0].config.config.env.contains(&"A=1".to_owned()));
}

#[test]
fn a_name_used_twice_means_the_one_before() {
    let text = "FROM base AS a\nENV N=1\nFROM a AS a\nENV M=2\nFROM a\nENV O=3";
    assert_eq!(image(text).config.config.env, ["PATH=/bin", "N=1", "M=2", "O=3"]);
}

#[test]
fn triggers_of_a_base_image_run_first() {
    let images = Images::default()
        .with("trig", r#"{"Env":["PATH=/p"],"OnBuild":["ENV T=1","COPY --from=tools /t /t","RUN --mount=from=alpine:3,target=/m use"]}"#);
    let text = "FROM base AS tools\nRUN tools\nFROM trig AS app\nRUN app";
    let lowered = try_lower_with(&images, text, |_| {}).unwrap();
    assert_eq!(
        names(&lowered),
        [
            "FROM docker.io/library/alpine:3@…",
            "[tools 1/2] FROM docker.io/library/base:latest@…",
            "[tools 2/2] RUN tools",
            "[app 1/4] FROM docker.io/library/trig:latest@…",
            "[app 2/4] ONBUILD COPY --from=tools /t /t",
            "[app 3/4] ONBUILD RUN --mount=from=alpine:3,target=/m use",
            "[app 4/4] RUN app",
        ]
    );
    let image = &lowered.images[0];
    assert!(image.config.config.on_build.is_empty());
    assert_eq!(history(image)[0], "- ENV T=1");
    let trigger = &lowered.graph.vertices()[4].meta;
    assert_eq!(trigger.location.as_ref().unwrap().start_line, 3, "the FROM that brought it");
    assert_eq!(images.asked().len(), 3);

    let off = try_lower_with(&images, text, |r| r.build_args = map(&[("BUILDKIT_DISABLE_ONBUILD", "1")])).unwrap();
    assert_eq!(names(&off).len(), 2);
    assert!(off.images[0].config.config.on_build.is_empty());
}

#[test]
fn triggers_of_a_stage_reach_its_children_only() {
    let text = "FROM base AS a\nONBUILD RUN t\nFROM a AS b\nFROM b\nRUN z";
    let out = names(&lowered(text));
    assert_eq!(out[1..], ["[b 1/1] ONBUILD RUN t", "[stage-2 1/1] RUN z"]);
}

#[test]
fn broken_triggers_are_told_at_the_from() {
    let images = Images::default().with("trig", r#"{"OnBuild":["RNU x"]}"#);
    let failed = try_lower_with(&images, "FROM trig", |_| {}).unwrap_err();
    let diagnostic = failed.diagnostic().unwrap();
    assert!(diagnostic.message.starts_with("the base image has a broken ONBUILD trigger \"RNU x\""), "{failed}");
    assert_eq!(diagnostic.span.start, 0);
}

#[test]
fn named_contexts_replace_stages_and_images() {
    let text = "FROM base AS build\nRUN never\nFROM alpine:3\nCOPY --from=build /a /\nCOPY --from=conf /c /\nCOPY --from=registry.io/x /d /";
    let lowered = try_lower(text, |r| {
        r.named_contexts = map(&[
            ("build", "docker-image://base"),
            ("docker.io/library/alpine:3", "oci-layout:///layout:v1"),
            ("conf", "../conf"),
            ("registry.io/x:latest", "https://h/r.git#main"),
        ]);
    });
    let lowered = lowered.unwrap();
    let out = dump(&lowered);
    assert_eq!(
        out.lines().collect::<Vec<_>>(),
        [
            "0 docker-image://docker.io/library/base@… @linux/amd64",
            "1 local://conf",
            "2 https://h/r.git#main",
            "3 oci-layout:///layout:v1 @linux/amd64",
            "4 copy #0:/a -> #3:/",
            "5 copy #1:/c -> #4:/",
            "6 copy #2:/d -> #5:/",
        ]
    );
    assert_eq!(
        names(&lowered)[..4],
        [
            "[context build] docker.io/library/base:latest@…",
            "[context conf] load from client",
            "[context registry.io/x:latest] https://h/r.git#main",
            "[context docker.io/library/alpine:3] OCI load from client",
        ]
    );
    assert_eq!(
        lowered.images[0].config.config.env,
        ["FROM=pkg", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
    );
}

#[test]
fn a_context_can_be_a_base() {
    let lowered = try_lower("FROM base\nRUN x", |r| r.named_contexts = map(&[("base", "./rootfs")])).unwrap();
    assert_eq!(dump(&lowered).lines().next(), Some("0 local://base"));
    assert!(lowered.images[0].base.is_none());
    let scratch =
        try_lower("FROM base\nCOPY a /", |r| r.named_contexts = map(&[("base", "docker-image://scratch")])).unwrap();
    assert_eq!(dump(&scratch).lines().last(), Some("1 copy #0:/a -> scratch:/"));
    // These names are not for sale.
    let plain =
        try_lower("FROM scratch\nCOPY a /", |r| r.named_contexts = map(&[("scratch", "docker-image://base")])).unwrap();
    assert_eq!(dump(&plain).lines().count(), 2);
    let failed = error_with("FROM base", |r| r.named_contexts = map(&[("base", "ftp://x")]));
    assert!(failed.starts_with("--build-context base=ftp://x: unsupported context"), "{failed}");
}

#[test]
fn bases_from_packages() {
    let lowered = lowered(
        "ARG S=bookworm\nFROM deb://$S?packages=nodejs,ca-certificates AS b\nFROM b\nCOPY --from=deb://sid /x /",
    );
    let out = dump(&lowered);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(
        lines,
        [
            "0 deb://sid @linux/amd64",
            "1 deb://bookworm?packages=nodejs,ca-certificates @linux/amd64",
            "2 copy #0:/x -> #1:/",
        ]
    );
    assert!(lowered.images[0].config.config.env.contains(&"FROM=pkg".to_owned()));
    assert_eq!(lowered.images[0].base.as_ref().unwrap().name, "deb://bookworm?packages=nodejs,ca-certificates");
}

#[test]
fn another_main_context() {
    let git = || kiln_graph::GitSource { remote: "https://h/r.git".into(), ..Default::default() };
    let lowered =
        try_lower("FROM scratch\nCOPY a /\nCOPY b /", |r| r.main_context = Some(SourceOp::Git(git()))).unwrap();
    assert_eq!(names(&lowered)[0], "[internal] load git source https://h/r.git");
    assert_eq!(dump(&lowered).lines().count(), 3);
}

#[test]
fn a_base_for_another_platform_is_noticed() {
    let lowered = lowered("FROM arm-only\nRUN x");
    assert_eq!(lowered.warnings.len(), 1);
    assert_eq!(
        lowered.warnings[0].message,
        "Base image arm-only was pulled with platform \"linux/arm64\", expected \"linux/amd64\" for current build"
    );
    assert!(support::lowered("# check=skip=InvalidBaseImagePlatform\nFROM arm-only\nRUN x").warnings.is_empty());
}

#[test]
fn timestamps_are_clamped_on_request() {
    let text = "FROM base\nWORKDIR /w\nCOPY a /";
    let times = |args: &[(&str, &str)]| {
        let lowered = try_lower(text, |r| r.build_args = map(args)).unwrap();
        (lowered.source_date_epoch, dump(&lowered).matches(" time=5").count())
    };
    assert_eq!(times(&[]), (None, 0));
    assert_eq!(times(&[("SOURCE_DATE_EPOCH", "5")]), (Some(5), 2));
    let flag = try_lower(text, |r| r.source_date_epoch = Some(5)).unwrap();
    assert_eq!(flag.source_date_epoch, Some(5));
    let global = lowered("ARG SOURCE_DATE_EPOCH=5\nFROM base\nARG SOURCE_DATE_EPOCH\nRUN x");
    assert_eq!(exec(&global).env[1], "SOURCE_DATE_EPOCH=5");
}

#[test]
fn timestamps_of_a_context_or_stage() {
    let epoch = |text: &str, value: &str| {
        let lowered = try_lower(text, |r| {
            r.build_args = map(&[("SOURCE_DATE_EPOCH", value)]);
            let git = kiln_graph::GitSource { remote: "https://h/r.git".into(), ..Default::default() };
            r.main_context = Some(SourceOp::Git(git));
        });
        lowered.unwrap().source_date_epoch
    };
    assert_eq!(epoch("FROM base", "context"), Some(1_700_000_000));
    let lowered = try_lower("FROM base\nARG SOURCE_DATE_EPOCH\nRUN x", |r| {
        r.build_args = map(&[("SOURCE_DATE_EPOCH", "context")]);
        r.main_context =
            Some(SourceOp::Git(kiln_graph::GitSource { remote: "https://h/r.git".into(), ..Default::default() }));
    });
    assert_eq!(exec(&lowered.unwrap()).env[1], "SOURCE_DATE_EPOCH=1700000000");
    let stage = "ARG V=1\nFROM scratch AS src\nARG V\nADD https://h/x-$V.tgz /\nFROM base";
    assert_eq!(epoch(stage, "src"), Some(1_600_000_000));
    let failed = error_with("FROM base AS a\nRUN x\nFROM a", |r| r.build_args = map(&[("SOURCE_DATE_EPOCH", "a")]));
    assert_eq!(failed, "Dockerfile:1:1: error: SOURCE_DATE_EPOCH stage must use FROM scratch");
    let failed = error_with("FROM base", |r| r.build_args = map(&[("SOURCE_DATE_EPOCH", "soon")]));
    assert!(failed.starts_with("invalid SOURCE_DATE_EPOCH: soon"));
}

#[test]
fn targets_for_people() {
    let file = dockerfile("# build makes it\nFROM --platform=$BUILDPLATFORM base AS build\nFROM scratch");
    let all = targets(&file);
    assert_eq!(
        (all[0].name.as_str(), all[0].description.as_deref(), all[0].default),
        ("build", Some("makes it"), false)
    );
    assert_eq!((all[0].base.as_str(), all[0].platform.as_deref()), ("base", Some("$BUILDPLATFORM")));
    assert_eq!((all[1].name.as_str(), all[1].default), ("", true));
}

#[test]
fn what_a_target_can_be_given() {
    let text = "ARG UNUSED=1\nARG V=3\n# IMAGE what to build on\nARG IMAGE=alpine:$V\nFROM $IMAGE AS app\n# LEVEL how much\nARG LEVEL=2\n\
        ARG UNUSED_TOO TARGETARCH LATER\nARG LATER=5\nRUN --mount=type=secret,id=tok,required --mount=type=ssh x\nFROM base\nARG OTHER";
    let file = dockerfile(text);
    let mut request = LowerRequest::new(&file, amd64());
    request.target = Some("app".to_owned());
    request.build_args = map(&[("LEVEL", "9")]);
    let outline = outline(&request, &Images::default()).unwrap();
    assert_eq!(outline.name, "app");
    let args: Vec<_> =
        outline.args.iter().map(|a| (a.name.as_str(), a.value.as_deref(), a.description.as_deref())).collect();
    assert_eq!(
        args,
        [
            ("V", Some("3"), None),
            ("IMAGE", Some("alpine:3"), Some("what to build on")),
            ("LEVEL", Some("9"), Some("how much")),
            ("UNUSED_TOO", None, None),
            ("LATER", Some("5"), None),
        ]
    );
    assert_eq!((outline.secrets[0].id.as_str(), outline.secrets[0].required), ("tok", true));
    assert_eq!((outline.ssh[0].id.as_str(), outline.ssh[0].required), ("default", false));
}
