//! What graph a Dockerfile becomes.
#![allow(clippy::unwrap_used)]

mod support;

use kiln_graph::{HostIp, InputUse, Limits, NetworkMode, Op, SecurityMode, SourceOp, Ulimit};
use support::*;

fn graph(text: &str) -> String {
    dump(&lowered(text))
}

#[track_caller]
fn check(text: &str, expected: &[&str]) {
    let actual = graph(text);
    assert_eq!(actual.lines().collect::<Vec<_>>(), expected, "{text}\n{actual}");
}

const BASE: &str = "0 docker-image://docker.io/library/base@… @linux/amd64";

#[test]
fn two_stages() {
    let text = "FROM base AS build\nWORKDIR /src\nCOPY . .\nRUN make\nFROM scratch\nCOPY --from=build /src/app /app\nCMD [\"/app\"]";
    check(
        text,
        &[
            BASE,
            "1 mkdir #0:/src 755 -p",
            "2 local://context",
            "3 copy #2:/ -> #1:/src/",
            "4 run [\"/bin/sh\", \"-c\", \"make\"] [/=#3] cwd=/src @linux/amd64",
            "5 copy #4:/src/app -> scratch:/app",
        ],
    );
    let lowered = lowered(text);
    assert_eq!(
        names(&lowered),
        [
            "[build 1/4] FROM docker.io/library/base:latest@…",
            "[build 2/4] WORKDIR /src",
            "[internal] load build context",
            "[build 3/4] COPY . .",
            "[build 4/4] RUN make",
            "[stage-1 1/1] COPY --from=build /src/app /app",
        ]
    );
    let copy = &lowered.graph.vertices()[5];
    let location = copy.meta.location.as_ref().unwrap();
    assert_eq!((&*location.file, location.start_line, location.end_line), ("Dockerfile", 6, 6));
    assert_eq!(copy.meta.stage.as_deref(), Some("stage-1"));
    assert!(
        matches!(copy.input_uses()[..], [InputUse::Content(_)]),
        "another build of /src/app that is equal changes nothing"
    );
}

#[test]
fn one_stage_has_no_name() {
    assert_eq!(names(&lowered("FROM base\nRUN x\nRUN y"))[1..], ["[2/3] RUN x", "[3/3] RUN y"]);
    assert_eq!(names(&lowered("FROM base AS named\nRUN x"))[1..], ["[2/2] RUN x"]);
}

#[test]
fn names_show_values_but_no_secrets() {
    let shown = |text: &str| names(&lowered(&format!("FROM base\nENV A=1 KEY=2\n{text}"))).pop().unwrap();
    assert_eq!(shown("RUN echo $A \"${A}\" $B"), "[2/2] RUN echo 1 \"1\" $B");
    assert_eq!(shown("run   x"), "[2/2] RUN   x");
    assert_eq!(shown("COPY \"$A\" /b"), "[2/2] COPY 1 /b");
    assert_eq!(
        shown("RUN --mount=type=secret,id=k,env=KEY echo $KEY"),
        "[2/2] RUN --mount=type=secret,id=k,env=KEY echo ****"
    );
    assert_eq!(shown("RUN <<EOF\necho a\necho b\nEOF"), "[2/2] RUN <<EOF (echo a...)");
    assert_eq!(shown("RUN a \\\n  b"), "[2/2] RUN a   b");
}

#[test]
fn copy_in_all_its_forms() {
    let copy = |text: &str| {
        let out = graph(&format!("FROM base\nENV D=/d\nWORKDIR /w\n{text}"));
        out.lines().last().unwrap().split_once(' ').unwrap().1.to_owned()
    };
    assert_eq!(copy("COPY a b"), "copy #2:/a -> #1:/w/b");
    assert_eq!(copy("COPY a $D/"), "copy #2:/a -> #1:/d/");
    assert_eq!(copy("COPY a ."), "copy #2:/a -> #1:/w/");
    assert_eq!(copy("COPY a /x/."), "copy #2:/a -> #1:/x/");
    assert_eq!(copy("COPY ../a /"), "copy #2:/a -> #1:/");
    assert_eq!(copy("COPY a b /x/"), "copy #2:/a -> #1:/x/; copy #2:/b -> action0:/x/");
    assert_eq!(copy("COPY --chown=app a /"), "copy #2:/a -> #1:/ owner=app@#1:-");
    assert_eq!(copy("COPY --chown=7 --chmod=u+x a /"), "copy #2:/a -> #1:/ owner=7:7 mode=u+x");
    assert_eq!(copy("COPY --exclude=*.md --exclude=t a /"), "copy #2:/a -> #1:/ exclude=[\"*.md\", \"t\"]");
    assert_eq!(copy("COPY --parents x/*/y /"), "copy #2:/ -> #1:/ include=[\"x/*/y\"] parents");
    assert_eq!(copy("COPY --parents x/y /"), "copy #2:/ -> #1:/ include=[\"x/y\"] require=[\"/x/y\"] parents");
    assert_eq!(copy("COPY --parents x/./y/z /"), "copy #2:/x -> #1:/ include=[\"y/z\"] require=[\"/x/y/z\"] parents");
    assert_eq!(copy("ADD a /"), "copy #2:/a -> #1:/ unpack");
    assert_eq!(copy("ADD --unpack=false a /"), "copy #2:/a -> #1:/");
    assert_eq!(copy("COPY --from=base /a /b"), "copy #0:/a -> #1:/b", "the image is there already");
}

#[test]
fn inline_files() {
    check(
        "FROM base\nENV A=1\nCOPY <<x <<\"y\" /d/\n$A \"q\"\nx\n$A\ny",
        &[
            BASE,
            "1 mkfile scratch:/x 644 \"1 \\\"q\\\"\\n\"",
            "2 mkfile scratch:/y 644 \"$A\\n\"",
            "3 copy #1:/x -> #0:/d/; copy #2:/y -> action0:/d/",
        ],
    );
    assert_eq!(names(&lowered("FROM base\nCOPY <<x /\nx"))[1], "[internal] preparing inline document");
}

#[test]
fn linked_copies_do_not_depend_on_what_is_below() {
    check(
        "FROM base\nRUN x\nCOPY --link a /",
        &[
            BASE,
            "1 run [\"/bin/sh\", \"-c\", \"x\"] [/=#0] @linux/amd64",
            "2 local://context",
            "3 copy #2:/a -> scratch:/",
            "4 merge #1 #3",
        ],
    );
    let lowered = lowered("FROM base\nCOPY --link a /");
    assert_eq!(names(&lowered)[2..], ["[2/2] COPY --link a /", "[2/2] LINK COPY --link a /"]);
    let groups: Vec<_> = lowered.graph.vertices()[2..].iter().map(|v| v.meta.progress_group.clone().unwrap()).collect();
    assert_eq!(groups[0].id, groups[1].id);
    assert_eq!((groups[0].weak, groups[1].weak), (true, false));
    // On nothing there is nothing to merge with.
    check("FROM scratch\nCOPY --link a /", &["0 local://context", "1 copy #0:/a -> scratch:/"]);
    // A name needs the user database, but only that.
    check(
        "FROM base\nCOPY --link --chown=app a /",
        &[BASE, "1 local://context", "2 copy #1:/a -> scratch:/ owner=app@#0:-", "3 merge #0 #2"],
    );
    let named = support::lowered("FROM base\nCOPY --link --chown=app a /");
    let InputUse::Content(selectors) = &named.graph.vertices()[2].input_uses()[0] else { panic!("by key") };
    assert_eq!(selectors.iter().map(|s| s.path.as_str()).collect::<Vec<_>>(), ["/etc/passwd", "/etc/group"]);
}

#[test]
fn remote_sources() {
    check(
        "FROM scratch\nADD https://h/a/x.tgz?v=1 /d/",
        &["0 https://h/a/x.tgz?v=1", "1 copy #0:/x.tgz -> scratch:/d/"],
    );
    check(
        "FROM scratch\nADD --unpack=true --chmod=600 https://h/ /d/",
        &["0 https://h/", "1 copy #0:/__unnamed__ -> scratch:/d/ mode=600 unpack"],
    );
    check("FROM scratch\nADD https://h/r.git#v1:dir /d", &["0 https://h/r.git#v1:dir", "1 copy #0:/ -> scratch:/d"]);
    let git = lowered("FROM scratch\nADD --keep-git-dir=true --checksum=abcdef1 https://h/r?submodules=false /d");
    let Op::Source(SourceOp::Git(git)) = &git.graph.vertices()[0].op else { panic!("not git") };
    assert!(git.keep_git_dir && git.skip_submodules);
    assert_eq!((git.remote.as_str(), git.checksum.as_deref()), ("https://h/r", Some("abcdef1")));
}

#[test]
fn mounts_of_run() {
    let text = "FROM base AS other\nFROM base\nENV T=cache ID=npm\nWORKDIR /w\n\
        RUN --mount=target=/src,source=sub --mount=type=bind,from=other,source=/o,target=o,rw \
        --mount=type=$T,target=/c,id=$ID,sharing=locked,uid=5,mode=0700 --mount=type=cache,target=.cache,from=other,source=x \
        --mount=type=tmpfs,target=/t,size=1m --mount=type=secret,id=s,required,uid=3 --mount=type=secret,id=e,env=TOKEN \
        --mount=type=ssh --mount=type=ssh,id=two,required,mode=0666 x";
    let lowered = lowered(text);
    let exec = exec(&lowered);
    let out = dump(&lowered);
    let line = out.lines().last().unwrap();
    let mounts = line.split_once("] [").unwrap().1.split_once("] cwd").unwrap().0;
    let mounts: Vec<&str> = mounts.split(" /").collect();
    assert_eq!(
        mounts,
        [
            "/=#1",
            "c=cache:npm,Locked,mode=700,uid=5",
            "run/buildkit/ssh_agent.0=ssh:default,0:0,600,optional=true",
            "run/buildkit/ssh_agent.1=ssh:two,0:0,666,optional=false",
            "run/secrets/s=secret:s,3:0,400,optional=false",
            "src=#2/sub ro",
            "t=tmpfs:1048576",
            "w/.cache=cache:/w/.cache,Shared#0/x",
            "w/o=#0/o discard",
        ]
    );
    assert_eq!(exec.secret_env.len(), 1);
    assert_eq!((exec.secret_env[0].name.as_str(), exec.secret_env[0].optional), ("TOKEN", true));
    assert_eq!(exec.env.last().unwrap(), "SSH_AUTH_SOCK=/run/buildkit/ssh_agent.0");
    assert!(!exec.env.iter().any(|e| e.starts_with("TOKEN")));
}

#[test]
fn cache_mounts_can_be_set_apart() {
    let lowered = try_lower("FROM base\nRUN --mount=type=cache,target=/c x", |r| {
        r.build_args = map(&[("BUILDKIT_CACHE_MOUNT_NS", "ci")]);
    });
    assert!(dump(&lowered.unwrap()).contains("/c=cache:ci//c,Shared"));
}

#[test]
fn scripts_with_an_interpreter_are_files() {
    check(
        "FROM base\nRUN <<EOF\n#!/usr/bin/env python\nprint(1)\nEOF",
        &[
            BASE,
            "1 mkfile scratch:/EOF 755 \"#!/usr/bin/env python\\nprint(1)\\n\"",
            "2 run [\"/bin/sh\", \"-c\", \"/dev/pipes/EOF\"] [/=#0 /dev/pipes=#1 ro] @linux/amd64",
        ],
    );
}

#[test]
fn what_a_step_is_given() {
    let text = "FROM base\nUSER app\nRUN --network=none --security=insecure --device=gpu,required x";
    let lowered = try_lower(text, |r| {
        r.network = NetworkMode::Host;
        r.extra_hosts = vec![HostIp { host: "h".into(), ip: "1.2.3.4".into() }];
        r.limits = Limits { ulimits: vec![Ulimit { name: "nofile".into(), soft: 1, hard: 2 }], shm_size: Some(9) };
        r.resources.memory = Some(7);
        r.build_args = map(&[("BUILDKIT_SANDBOX_HOSTNAME", "box")]);
    });
    let lowered = lowered.unwrap();
    let exec = exec(&lowered);
    assert_eq!((exec.network, exec.security), (NetworkMode::None, SecurityMode::Insecure));
    assert_eq!((exec.user.as_str(), exec.cwd.as_str(), exec.hostname.as_deref()), ("app", "/", Some("box")));
    assert_eq!((exec.extra_hosts.len(), exec.limits.shm_size, exec.resources.memory), (1, Some(9), Some(7)));
    assert_eq!((exec.devices[0].name.as_str(), exec.devices[0].optional), ("gpu", false));
    let other = try_lower("FROM base\nRUN x", |r| r.network = NetworkMode::Host).unwrap();
    assert_eq!(support::exec(&other).network, NetworkMode::Host);
    let none = try_lower("FROM base\nRUN --network=default x", |r| r.network = NetworkMode::None).unwrap();
    assert_eq!(support::exec(&none).network, NetworkMode::None, "the build's default");
}

#[test]
fn a_directory_belongs_to_the_user() {
    check(
        "FROM base\nUSER app\nWORKDIR /a\nUSER 5\nWORKDIR b",
        &[BASE, "1 mkdir #0:/a 755 owner=app@#0:- -p", "2 mkdir #1:/a/b 755 owner=5:5 -p"],
    );
}

#[test]
fn only_some_stages_ignore_the_cache() {
    let text = "FROM base AS a\nRUN a\nFROM base AS b\nRUN b\nFROM a\nCOPY --from=b /x /";
    let marked = |filter: &[&str], all: bool| {
        let lowered = try_lower(text, |r| {
            r.no_cache = all;
            r.no_cache_filter = filter.iter().map(|f| (*f).to_owned()).collect();
        });
        dump(&lowered.unwrap()).lines().filter(|l| l.ends_with(" !")).count()
    };
    assert_eq!(marked(&[], false), 0);
    assert_eq!(marked(&["B"], false), 1);
    assert_eq!(marked(&["0", "2"], false), 2);
    assert_eq!(marked(&[], true), 3);
}

#[test]
fn platforms_share_what_does_not_depend_on_them() {
    let text = "FROM --platform=$BUILDPLATFORM base AS build\nARG TARGETARCH\nRUN go build\nFROM base\nCOPY --link conf /\nCOPY --from=build /x /";
    let lowered =
        try_lower(text, |r| r.platforms = vec!["linux/amd64".parse().unwrap(), "linux/arm64".parse().unwrap()]);
    let lowered = lowered.unwrap();
    assert_eq!(
        names(&lowered),
        [
            "[linux/amd64 build 1/2] FROM docker.io/library/base:latest@…",
            "[linux/amd64 build 2/2] RUN go build",
            "[internal] load build context",
            "[linux/amd64 stage-1 2/3] COPY --link conf /",
            "[linux/amd64 stage-1 2/3] LINK COPY --link conf /",
            "[linux/amd64 stage-1 3/3] COPY --from=build /x /",
            "[linux/amd64->arm64 build 2/2] RUN go build",
            "[linux/arm64 stage-1 1/3] FROM docker.io/library/base:latest@…",
            "[linux/arm64 stage-1 2/3] LINK COPY --link conf /",
            "[linux/arm64 stage-1 3/3] COPY --from=build /x /",
        ]
    );
    let platforms: Vec<String> =
        lowered.images.iter().map(|i| format!("{} {}", i.platform, i.config.platform())).collect();
    assert_eq!(platforms, ["linux/amd64 linux/amd64", "linux/arm64 linux/arm64"]);
    assert!(lowered.warnings.is_empty());
}

#[test]
fn the_result_has_the_target_platform_even_if_its_stage_has_not() {
    let text = "FROM --platform=$BUILDPLATFORM base\nRUN x";
    let lowered = try_lower(text, |r| r.platforms = vec!["linux/arm64".parse().unwrap()]).unwrap();
    assert_eq!(lowered.images[0].config.architecture, "arm64");
    assert_eq!(lowered.graph.vertices()[1].platform.as_ref().unwrap().to_string(), "linux/amd64");
}

#[test]
fn equal_requests_give_equal_graphs() {
    let text = "FROM base AS a\nRUN --mount=type=cache,target=/c x\nFROM base\nCOPY --from=a . .\nCOPY --link . /x";
    assert_eq!(graph(text), graph(text));
    let digest = |l: &kiln_frontend::Lowered| l.graph[l.images[0].root.unwrap().vertex].digest();
    assert_eq!(digest(&lowered(text)), digest(&lowered(&format!("# a comment\n{text}"))));
}
