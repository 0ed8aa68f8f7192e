//! `COPY` and `ADD`: what lands where, and what the layer holds.
#![allow(clippy::unwrap_used)]

mod support;

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;

use support::*;

/// A result of these COPY lines alone; no container runs.
fn copied(lines: &str, prepare: impl Fn(&Sandbox)) -> (Sandbox, std::path::PathBuf) {
    let s = Sandbox::bare(&format!("FROM scratch\n{lines}"));
    prepare(&s);
    let out = s.export(&[]);
    (s, out)
}

#[test]
fn files_directories_wildcards_and_slashes() {
    let (_s, out) = copied(
        "COPY a /file\nCOPY a /dir/\nCOPY d /contents\nCOPY d/ /contents2/\nCOPY *.txt a /many/\nCOPY d/?.x /one/\nCOPY [\"with space\", \"/quoted/\"]\n\
         WORKDIR /w\nCOPY a rel\nCOPY . .\nCOPY ../a /up\n",
        |s| {
            for f in ["a", "1.txt", "2.txt", "d/f.x", "d/sub/g", "with space"] {
                s.file(f, f);
            }
            std::fs::remove_file(s.ctx().join("busybox")).unwrap_or_default();
        },
    );
    assert_eq!(text(out.join("file")), "a");
    assert_eq!(names(out.join("dir")), ["a"]);
    assert_eq!(names(out.join("contents")), ["f.x", "sub"]);
    assert_eq!(names(out.join("contents2/sub")), ["g"]);
    assert_eq!(names(out.join("many")), ["1.txt", "2.txt", "a"]);
    assert_eq!(names(out.join("one")), ["f.x"]);
    assert_eq!(names(out.join("quoted")), ["with space"]);
    assert_eq!(names(out.join("w")), ["1.txt", "2.txt", "Dockerfile", "a", "d", "rel", "with space"]);
    assert_eq!(text(out.join("up")), "a", "a parent of the context is the context");
}

#[test]
fn links_in_sources_are_copied_as_links_and_in_destinations_are_followed() {
    let Some(s) = Sandbox::new(&format!(
        "{BASE}RUN mkdir /real && ln -s /real /link && ln -s ../../.. /escape\nCOPY tree /t\nCOPY f /link/f\nCOPY f /escape/confined\nCOPY tree/to-f /direct\n"
    )) else {
        return;
    };
    s.file("f", "text");
    s.file("tree/f", "in the tree");
    symlink("f", s.ctx().join("tree/to-f")).unwrap();
    symlink("/etc/hostname", s.ctx().join("tree/out")).unwrap();
    let out = s.export(&[]);
    assert_eq!(std::fs::read_link(out.join("t/to-f")).unwrap().to_str(), Some("f"));
    assert_eq!(std::fs::read_link(out.join("t/out")).unwrap().to_str(), Some("/etc/hostname"));
    assert_eq!(text(out.join("real/f")), "text");
    assert_eq!(text(out.join("confined")), "text");
    assert_eq!(text(out.join("direct")), "in the tree", "a link named as the source is followed");
}

#[test]
fn links_do_not_lead_out_of_the_context() {
    let s = Sandbox::bare("FROM scratch\nCOPY passwd /p\n");
    std::fs::write(s.path("outside"), "not in the context").unwrap();
    symlink("../outside", s.ctx().join("passwd")).unwrap();
    let run = s.build(&["-o", "out"]).fails(1);
    assert!(run.stderr.contains("passwd") && !s.path("out/p").exists(), "{}", run.stderr);
    symlink(s.path("outside"), s.ctx().join("abs")).unwrap();
    s.file("Dockerfile", "FROM scratch\nCOPY abs /p\n");
    s.build(&["-o", "out"]).fails(1);
}

#[test]
fn owners_and_modes_are_set() {
    if !is_root() {
        eprintln!("SKIPPED: owners of an exported tree need root");
        return;
    }
    let Some(s) = Sandbox::new(&format!(
        "{BASE}RUN echo app:x:501:20::/:/bin/sh > /etc/passwd && echo staff:x:50: > /etc/group\n\
         COPY --chown=app f /name\nCOPY --chown=app:staff f /group\nCOPY --chown=7:8 --chmod=4750 f /numbers\nCOPY --chmod=u+x,go-r f /symbolic\n\
         COPY --chown=9 d /d\nCOPY f /plain\nADD --chmod=600 f /added\n"
    )) else {
        return;
    };
    s.file_mode("f", "x", 0o644);
    s.file("d/e", "x");
    let out = s.export(&[]);
    let stat = |p: &str| {
        let m = std::fs::metadata(out.join(p)).unwrap();
        (m.uid(), m.gid(), m.permissions().mode() & 0o7777)
    };
    assert_eq!(stat("name"), (501, 20, 0o644));
    assert_eq!(stat("group"), (501, 50, 0o644));
    assert_eq!(stat("numbers"), (7, 8, 0o4750));
    assert_eq!(stat("symbolic"), (0, 0, 0o700));
    assert_eq!((stat("d").0, stat("d/e").0, stat("d/e").1), (9, 9, 9));
    assert_eq!(stat("plain"), (0, 0, 0o644));
    assert_eq!(stat("added").2, 0o600);
    s.file("Dockerfile", format!("{BASE}COPY --chown=ghost f /x\n"));
    s.build(&[]).fails(1).says(&["ghost", "Dockerfile:4"]);
}

#[test]
fn parents_exclude_and_link() {
    let (_s, out) = copied(
        "COPY --parents src/a/x src/b/*.c /p/\nCOPY --parents src/./a/x /pivot/\nCOPY --exclude=*.o --exclude=b src /e/\nCOPY --link src/a /linked/\n",
        |s| {
            for f in ["src/a/x", "src/a/y.o", "src/b/1.c", "src/b/2.h", "src/top.o"] {
                s.file(f, f);
            }
        },
    );
    assert!(out.join("p/src/a/x").exists() && out.join("p/src/b/1.c").exists() && !out.join("p/src/b/2.h").exists());
    assert!(out.join("pivot/a/x").exists() && !out.join("pivot/src").exists());
    assert_eq!(
        (names(out.join("e")), names(out.join("linked"))),
        (vec!["a".to_owned()], vec!["x".to_owned(), "y.o".to_owned()])
    );
}

#[test]
fn ignore_files_have_dockers_rules() {
    let files = [
        "a.md",
        "README.md",
        "src/x.rs",
        "src/x.log",
        "src/deep/y.log",
        "target/z",
        "keep/target",
        "tmp1",
        "secret/key",
    ];
    let (_s, out) = copied("COPY . /\n", |s| {
        for f in files {
            s.file(f, f);
        }
        s.file(".dockerignore", "# comment\n*.md\n!README.md\n**/*.log\n/target\ntmp?\nsecret\n!secret/none\nbusybox\nDockerfile\n.dockerignore\n");
    });
    assert_eq!(names(&out), ["README.md", "keep", "src"]);
    assert_eq!(names(out.join("src")), ["deep", "x.rs"]);
    // The one named after the Dockerfile wins; an ignored file is named as such.
    let s = Sandbox::bare("FROM scratch\nCOPY a /\n");
    s.file("a", "");
    s.file(".dockerignore", "a\n");
    s.build(&[]).fails(1).says(&["a", "ignore"]);
    s.file("Dockerfile.dockerignore", "b\n");
    s.build(&[]).ok();
}

#[test]
fn archives_are_unpacked_by_add_only() {
    let s =
        Sandbox::bare("FROM scratch\nADD a.tar.gz b.tar.xz /u/\nCOPY a.tar.gz /c/\nADD --unpack=false a.tar.gz /n/\n");
    for (name, flag) in [("a.tar.gz", "-z"), ("b.tar.xz", "-J")] {
        s.file(&format!("in-{name}"), "inside");
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(s.ctx()).args(["-c", flag, "-f"]).arg(s.ctx().join(name)).arg(format!("in-{name}"));
        assert!(tar.status().unwrap().success());
    }
    let out = s.export(&[]);
    assert_eq!(names(out.join("u")), ["in-a.tar.gz", "in-b.tar.xz"]);
    assert_eq!(
        (names(out.join("c")), names(out.join("n"))),
        (vec!["a.tar.gz".to_owned()], vec!["a.tar.gz".to_owned()])
    );
}

#[test]
fn removed_files_are_whiteouts_and_stay_removed() {
    let Some(s) = Sandbox::new(&format!(
        "{BASE}RUN mkdir -p /d/sub && touch /d/1 /d/2 /d/sub/3 /f\nRUN rm /f /d/1 && rm -r /d/sub && mkdir /d/sub && touch /d/sub/new\nRUN rm /d/2 && touch /f\n"
    )) else {
        return;
    };
    let out = s.export(&[]);
    assert_eq!(names(out.join("d")), ["sub"]);
    assert_eq!(names(out.join("d/sub")), ["new"]);
    assert!(out.join("f").exists());
    // Other tools see the same tree in the layers.
    if !has_tool("umoci") || !has_tool("skopeo") || !is_root() {
        return;
    }
    s.build(&["-o", "type=oci,dest=layout,tar=false"]).ok();
    let run = |command: &mut Command| {
        let out = command.current_dir(s.path("")).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    };
    run(Command::new("skopeo").args(["copy", "--insecure-policy", "oci:layout", "oci:named:latest"]));
    run(Command::new("umoci").args(["unpack", "--image", "named:latest", "bundle"]));
    let root = s.path("bundle/rootfs");
    assert_eq!((names(root.join("d")), names(root.join("d/sub"))), (vec!["sub".to_owned()], vec!["new".to_owned()]));
    assert!(names(&root) == names(&out), "{:?} {:?}", names(&root), names(&out));
}

#[test]
fn strange_files_are_copied_or_refused_clearly() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let s = Sandbox::bare("FROM scratch\nCOPY d /d\n");
    s.file("d/sparse", "");
    std::fs::File::options().write(true).open(s.ctx().join("d/sparse")).unwrap().set_len(200 << 20).unwrap();
    std::fs::write(s.ctx().join("d").join(OsStr::from_bytes(b"latin\xe9")), "x").unwrap();
    s.file(&format!("d/{}", "n".repeat(250)), "x");
    s.file(&format!("d/{}", "deep/".repeat(60) + "f"), "x");
    std::fs::hard_link(s.ctx().join("d/sparse"), s.ctx().join("d/second")).unwrap();
    let out = s.export(&[]);
    let sparse = std::fs::metadata(out.join("d/sparse")).unwrap();
    assert_eq!(sparse.len(), 200 << 20);
    assert!(sparse.blocks() * 512 < 10 << 20, "holes stay holes");
    assert!(
        out.join("d").join(OsStr::from_bytes(b"latin\xe9")).exists()
            && out.join("d").join("deep/".repeat(60)).join("f").exists()
    );
    // A FIFO must not hang, a socket is no file of an image.
    assert!(Command::new("mkfifo").arg(s.ctx().join("d/pipe")).status().unwrap().success());
    let _socket = std::os::unix::net::UnixListener::bind(s.ctx().join("d/socket")).unwrap();
    let run = s.build(&["-o", "type=oci,dest=x.tar"]);
    assert!(run.code == 0 || (run.code == 1 && run.stderr.contains("socket")), "{}", run.stderr);
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let s = Sandbox::bare("FROM scratch\nCOPY d /d\n");
    s.file_mode("d/closed", "x", 0);
    if is_root() {
        s.build(&["-o", "out"]).ok();
    } else {
        s.build(&["-o", "out"]).fails(1).says(&["closed"]);
    }
}

/// gzip, bzip2 and xz refuse files with several names.
#[test]
fn processes_see_copied_files_with_one_link() {
    let count = "RUN test $(stat -c %h /to/f) = 1";
    let Some(s) = Sandbox::new(&format!(
        "{BASE}RUN mkdir /made && echo x > /made/f\nFROM base AS other\nCOPY --from=base /made /to\n{count}\n\
         FROM base\nCOPY data /to\n{count}\nCOPY --from=other /to /too\n"
    )) else {
        return;
    };
    for round in ["one", "two"] {
        s.file("data/f", "same");
        s.file("data/changes", round);
        s.build(&["--target=other"]).ok();
        s.build(&[]).ok();
    }
}
