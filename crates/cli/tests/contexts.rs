//! Contexts: directories, streams, git, http, and named ones of each kind.
#![allow(clippy::unwrap_used)]

mod support;
#[path = "support/web.rs"]
mod web;

use std::fs::File;
use std::process::{Command, Stdio};

use support::*;
use web::{WEB_TOKEN, Web};

const ALL: &str = "FROM scratch\nCOPY . /all\n";

/// The files that a build copied, and what it said.
fn built(s: &Sandbox, context: &str, args: &[&str]) -> Result<Vec<String>, Run> {
    let _ = std::fs::remove_dir_all(s.path("out"));
    let run = s.kiln(&[&["build", "--progress=plain", "-o", "out"], args, &[context]].concat());
    if run.code == 0 { Ok(names(s.path("out/all"))) } else { Err(run) }
}

/// A tar of a context in each compression that there is a tool for.
fn archives(s: &Sandbox) -> Vec<String> {
    s.file("Dockerfile", ALL);
    s.file("sub/Other", ALL);
    let tar = Command::new("tar").args(["-C", "ctx", "-cf", "ctx.tar", "."]).current_dir(s.path("")).status().unwrap();
    assert!(tar.success());
    let mut all = vec!["ctx.tar".to_owned()];
    for (tool, suffix) in [("gzip", "gz"), ("bzip2", "bz2"), ("xz", "xz"), ("zstd", "zst")] {
        if has_tool(tool) {
            let packed = format!("ctx.tar.{suffix}");
            let out = File::create(s.path(&packed)).unwrap();
            let done = Command::new(tool).arg("-c").arg(s.path("ctx.tar")).stdout(out).status().unwrap();
            assert!(done.success());
            all.push(packed);
        }
    }
    all
}

#[test]
fn archives_and_dockerfiles_on_standard_input() {
    let s = Sandbox::bare("");
    let piped = |file: &str, args: &[&str]| -> Run {
        let input = File::open(s.path(file)).unwrap();
        let args = [&["build", "-o", "out"], args].concat();
        s.command(args).stdin(Stdio::from(input)).output().unwrap().into()
    };
    for archive in archives(&s) {
        let _ = std::fs::remove_dir_all(s.path("out"));
        piped(&archive, &["-"]).ok();
        assert_eq!(names(s.path("out/all")), ["Dockerfile", "busybox", "sub"], "{archive}");
        piped(&archive, &["-f", "sub/Other", "-"]).ok();
    }
    s.file("only", "FROM scratch\nLABEL a=b\n");
    piped("ctx/only", &["-"]).ok();
    s.file("copies", "FROM scratch\nCOPY busybox /\n");
    piped("ctx/copies", &["-"]).fails(1);
    piped("ctx/copies", &["-f", "-", "ctx"]).ok();
    piped("ctx/copies", &["-f", "-", "-"]).fails(2).says(&["both"]);
    let whole = std::fs::read(s.path("ctx.tar")).unwrap();
    std::fs::write(s.path("half.tar"), &whole[..whole.len() / 2]).unwrap();
    piped("half.tar", &["-"]).fails(1).says(&["ends in the middle"]);
    std::fs::write(s.path("other.tar.lz4"), b"\x04\x22\x4d\x18\x64\x40\xa7\0\0\0").unwrap();
    piped("other.tar.lz4", &["-"]).fails(1).says(&["lz4", "zstd"]);
}

#[test]
fn archives_and_dockerfiles_over_http() {
    let s = Sandbox::bare("");
    std::fs::create_dir(s.path("files")).unwrap();
    let web = Web::start(&s.path(""));
    for archive in archives(&s) {
        std::fs::rename(s.path(&archive), s.path("files").join(&archive)).unwrap();
        let found = built(&s, &web.url(&format!("files/{archive}")), &[]).unwrap_or_else(|r| panic!("{}", r.stderr));
        assert_eq!(found, ["Dockerfile", "busybox", "sub"], "{archive}");
    }
    std::fs::write(s.path("files/df"), format!("FROM scratch\nADD {} /all/\n", web.url("files/ctx.tar"))).unwrap();
    assert_eq!(built(&s, &web.url("files/df"), &[]).ok().unwrap(), ["ctx.tar"]);
    built(&s, &web.url("files/none"), &[]).err().unwrap().fails(1).says(&["404"]);
    // A line that asks for it is shown.
    s.file("Dockerfile", format!("FROM scratch\nADD {} /\n", web.url("files/none")));
    s.build(&[]).fails(1).says(&["Dockerfile:2", "404"]);
}

/// A repository with a branch, tags, a directory and a submodule.
fn repository(s: &Sandbox) -> Option<Web> {
    if !has_tool("git") {
        return None;
    }
    std::fs::create_dir(s.path("git")).unwrap();
    let web = Web::start(&s.path(""));
    for repository in ["r", "m"] {
        web.git(&format!("init -q {repository}"));
    }
    std::fs::write(s.path("m/of-module"), "m").unwrap();
    web.git("-C m add .");
    web.git("-C m commit -q -m m");
    web.git("clone -q --bare m git/m.git");
    let work = s.path("r");
    std::fs::create_dir(work.join("sub")).unwrap();
    for (file, content) in [("Dockerfile", ALL), ("sub/Dockerfile", ALL), ("sub/of-sub", "s"), ("of-main", "1")] {
        std::fs::write(work.join(file), content).unwrap();
    }
    std::os::unix::fs::symlink("sub", work.join("inside")).unwrap();
    std::os::unix::fs::symlink("/etc", work.join("outside")).unwrap();
    web.git("-C r add .");
    web.git("-C r commit -q -m 1");
    web.git("-C r tag v1");
    web.git("-C r tag -a v2 -m annotated");
    web.git("-C r checkout -q -b dev");
    std::fs::write(work.join("of-dev"), "d").unwrap();
    web.git("-C r add .");
    web.git("-C r commit -q -m dev");
    web.git("-C r checkout -q main");
    web.git("-C r submodule --quiet add ../m mod");
    web.git("-C r config -f .gitmodules submodule.mod.url ../m.git");
    web.git("-C r add .");
    web.git("-C r commit -q -m module");
    web.git("clone -q --bare r git/r.git");
    Some(web)
}

#[test]
fn a_git_that_was_killed_leaves_no_repository_unusable() {
    let s = Sandbox::bare(ALL);
    let Some(web) = repository(&s) else { return };
    let (url, bare) = (web.url("git/m.git"), s.path("git/m.git"));
    let git = s.path("store/sources/git");
    let cached = || std::fs::read_dir(&git).unwrap().map(|e| e.unwrap().path()).find(|p| p.is_dir()).unwrap();
    let builds_a_new_commit = |what: &str| {
        std::fs::write(s.path("m/Dockerfile"), ALL).unwrap();
        std::fs::write(s.path("m/state"), what).unwrap();
        web.git("-C m add .");
        web.git("-C m commit -q -m again");
        web.git(&format!("-C m push -q {} HEAD:main", bare.display()));
        let files = built(&s, &url, &[]).unwrap_or_else(|run| panic!("{what}: {}", run.stderr));
        assert!(files.contains(&"state".to_owned()), "{what}: {files:?}");
    };
    builds_a_new_commit("new");
    std::fs::write(cached().join("shallow.lock"), "").unwrap();
    builds_a_new_commit("killed while it fetched");
    std::fs::remove_dir_all(cached().join("objects")).unwrap();
    builds_a_new_commit("killed while it began");
}

#[test]
fn git_urls_in_every_form() {
    let s = Sandbox::bare("");
    let Some(web) = repository(&s) else { return };
    let url = web.url("git/r.git");
    let (dev, v1) = (web.git("-C r rev-parse dev"), web.git("-C r rev-parse v1"));
    let main = &[".gitmodules", "Dockerfile", "inside", "mod", "of-main", "outside", "sub"][..];
    let (tagged, on_dev) = (
        &["Dockerfile", "inside", "of-main", "outside", "sub"][..],
        &["Dockerfile", "inside", "of-dev", "of-main", "outside", "sub"][..],
    );
    let sub = &["Dockerfile", "of-sub"][..];
    for (rest, files) in [
        ("", main),
        ("#main", main),
        ("#dev", on_dev),
        ("#refs/heads/dev", on_dev),
        ("#heads/dev", on_dev),
        ("#tags/v1", tagged),
        ("#v1", tagged),
        ("#v2", tagged),
        (&format!("#{v1}"), tagged),
        ("#:sub", sub),
        ("#dev:sub", sub),
        ("#:inside", sub),
        ("?branch=dev", on_dev),
        ("?tag=v2", tagged),
        ("?ref=dev&subdir=sub", sub),
        (&format!("?branch=dev&checksum={dev}"), on_dev),
        (&format!("?branch=dev&commit={}", &dev[..12]), on_dev),
        ("?submodules=false", main),
    ] {
        let found = built(&s, &format!("{url}{rest}"), &[]).unwrap_or_else(|r| panic!("{rest}: {}", r.stderr));
        assert_eq!(found, files, "{rest}");
        if files == main {
            let of_module = names(s.path("out/all/mod"));
            assert_eq!(of_module, if rest.contains("=false") { vec![] } else { vec!["of-module"] }, "{rest}");
        }
    }
    let keep = "BUILDKIT_CONTEXT_KEEP_GIT_DIR=1";
    let kept = built(&s, &format!("{url}?ref=dev"), &["--build-arg", keep]).ok().unwrap();
    assert_eq!(kept[0], ".git");
    assert_eq!(built(&s, &format!("{url}?ref=dev&keep-git-dir=0"), &["--build-arg", keep]).ok().unwrap(), on_dev);
    let kept = built(&s, &format!("{url}?ref=dev&keep-git-dir=true"), &[]).ok().unwrap();
    assert_eq!(kept[0], ".git");
    assert!(!s.path("out/all/.git/hooks").exists() && !s.path("out/all/.git/logs").exists());
    assert_eq!(web.git("-C out/all rev-parse HEAD refs/heads/dev"), format!("{dev}\n{dev}"));
    assert_eq!(web.git("-C out/all status --short"), "");
    built(&s, &format!("{url}?keep-git-dir=true#v2"), &[]).ok().unwrap();
    assert_eq!(web.git("-C out/all describe --tags"), "v2");
    for (rest, says) in [
        ("?branch=none", "refs/heads/none"),
        ("?bogus=1", "bogus"),
        (&format!("?branch=dev&checksum={v1}"), "expected commit"),
        ("#v1:none", "no directory \"none\""),
        ("?tag=v1&branch=dev", "conflict"),
    ] {
        built(&s, &format!("{url}{rest}"), &[]).err().unwrap().fails(1).says(&[says]);
    }
}

#[test]
fn cve_2026_33748_cve_2019_13139_ghsa_hw3h_2gp9_cxpv_subdirectories_and_references_stay_inside() {
    let s = Sandbox::bare("");
    let Some(web) = repository(&s) else { return };
    let url = web.url("git/r.git");
    for bad in ["#v1:../..", "#v1:outside", "?subdir=outside/ssh", "#--upload-pack=x", "?ref=-x", "?branch=--output=x"]
    {
        let run = built(&s, &format!("{url}{bad}"), &[]).err().unwrap_or_else(|| panic!("{bad} was taken"));
        run.fails(1);
        s.file("Dockerfile", format!("FROM scratch\nADD {url}{bad} /all\n"));
        s.build(&[]).fails(1).says(&["Dockerfile:2"]);
    }
    // The link to the host's /etc is a link, and its target is not read.
    built(&s, &format!("{url}#v1"), &[]).ok().unwrap();
    assert_eq!(std::fs::read_link(s.path("out/all/outside")).unwrap().to_str(), Some("/etc"));
    // GHSA-hw3h-2gp9-cxpv: a bundle is no repository.
    std::fs::create_dir(s.path("files")).unwrap();
    web.git("-C r bundle create -q ../files/b.git main");
    for bad in ["file:///etc", "ext::sh -c true", &web.url("files/b.git"), &s.path("files/b.git").display().to_string()]
    {
        s.kiln(&["build", bad]).fails(1);
    }
}

#[test]
fn add_from_git_and_private_repositories() {
    let s = Sandbox::bare("");
    let Some(web) = repository(&s) else { return };
    let (url, private) = (web.url("git/r.git"), web.url("private/r.git"));
    let v1 = web.git("-C r rev-parse v1");
    s.file(
        "Dockerfile",
        format!(
            "FROM scratch\nADD {url} /all/a\nADD {url}#v1:sub /all/b\nADD {url}?branch=dev&subdir=sub /all/c\n\
             ADD --keep-git-dir=true {url}#v1 /all/d\nADD --checksum={v1} {url}#v1 /all/e\n"
        ),
    );
    assert_eq!(built(&s, "ctx", &[]).ok().unwrap(), ["a", "b", "c", "d", "e"]);
    assert_eq!(names(s.path("out/all/a/mod")), ["of-module"]);
    assert_eq!(names(s.path("out/all/b")), names(s.path("out/all/c")));
    assert!(s.path("out/all/d/.git").exists() && !s.path("out/all/e/.git").exists());
    s.file("Dockerfile", format!("FROM scratch\nADD --checksum={} {url}#v1 /\n", "0".repeat(40)));
    built(&s, "ctx", &[]).err().unwrap().fails(1).says(&["Dockerfile:2", "expected commit"]);

    std::fs::write(s.path("token"), WEB_TOKEN).unwrap();
    std::fs::write(s.path("wrong"), "t0ken-abc-DEF-7654321").unwrap();
    let add = format!("FROM scratch\nADD {private}#v1 /all\n");
    s.file("Dockerfile", &add);
    let host = format!("GIT_AUTH_TOKEN.{}", web.host());
    for (context, id) in [("ctx", "GIT_AUTH_TOKEN"), (&*private, "GIT_AUTH_TOKEN.127.0.0.1"), (&*private, &host)] {
        built(&s, context, &[]).err().unwrap().fails(1).says(&["--secret id=GIT_AUTH_TOKEN"]);
        let secret = |file: &str| format!("id={id},src={file}");
        built(&s, context, &["--secret", &secret("token")]).unwrap_or_else(|r| panic!("{}", r.stderr));
        let refused = built(&s, context, &["--no-cache", "--secret", &secret("wrong")]).err().unwrap();
        refused.fails(1).hides("t0ken-abc");
    }
    std::fs::write(s.path("header"), "basic eC1hY2Nlc3MtdG9rZW46dDBrZW4tYWJjLURFRi0xMjM0NTY3").unwrap();
    built(&s, &private, &["--secret", "id=GIT_AUTH_HEADER,src=header"]).ok().unwrap();
    assert_eq!(files_with(&s.path("store"), WEB_TOKEN.as_bytes()), Vec::<std::path::PathBuf>::new());
}

#[test]
fn named_contexts_of_every_kind() {
    let s = Sandbox::bare("");
    let Some(web) = repository(&s) else { return };
    s.file("Dockerfile", "FROM scratch\nCOPY mine /of-image\n");
    s.file("mine", "m");
    s.build(&["-t", "local/image:1"]).ok();
    s.build(&["-t", "local/image:1", "-o", "type=oci,dest=layout,tar=false,name=x:9"]).ok();
    s.build(&["-t", "local/image:1", "-o", "type=docker,dest=d.tar"]).ok();
    std::fs::create_dir_all(s.path("dir")).unwrap();
    std::fs::write(s.path("dir/of-dir"), "d").unwrap();
    std::fs::write(s.path("dir/ignored"), "i").unwrap();
    std::fs::write(s.path("dir/.dockerignore"), "ignored\n").unwrap();
    std::fs::create_dir(s.path("files")).unwrap();
    std::fs::write(s.path("files/f"), "f").unwrap();
    let digest: serde_json::Value = serde_json::from_str(&text(s.path("layout/index.json"))).unwrap();
    let digest = digest["manifests"][0]["digest"].as_str().unwrap().to_owned();
    for (value, files) in [
        ("dir".to_owned(), &[".dockerignore", "of-dir"][..]),
        ("local://dir".to_owned(), &[".dockerignore", "of-dir"]),
        (s.path("dir").display().to_string(), &[".dockerignore", "of-dir"]),
        ("docker-image://local/image:1".to_owned(), &["of-image"]),
        ("oci-layout://layout".to_owned(), &["of-image"]),
        ("oci-layout://layout:9".to_owned(), &["of-image"]),
        (format!("oci-layout://layout@{digest}"), &["of-image"]),
        ("docker-archive://d.tar".to_owned(), &["of-image"]),
        (web.url("git/r.git#v1:sub"), &["Dockerfile", "of-sub"]),
        // As in BuildKit: a file, not what is in it.
        (web.url("files/f"), &["context"]),
    ] {
        let named = format!("named={value}");
        for dockerfile in
            ["FROM named AS n\nFROM scratch\nCOPY --from=n / /all\n", "FROM scratch\nCOPY --from=named / /all\n"]
        {
            s.file("Dockerfile", dockerfile);
            let found =
                built(&s, "ctx", &["--build-context", &named]).unwrap_or_else(|r| panic!("{value}: {}", r.stderr));
            assert_eq!(found, files, "{value}");
        }
    }
    for (value, says) in
        [("none", "named=none"), ("oci-layout://layout:8", "\"8\""), ("ftp://x", "unsupported context")]
    {
        let run = built(&s, "ctx", &["--build-context", &format!("named={value}")]).err().unwrap();
        assert!(run.code != 0);
        run.says(&[says]);
    }
}
