//! Where results go: archives, directories, standard output, files with digests. Other tools read them back.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::Command;

use support::*;

const DOCKERFILE: &str = "FROM scratch\nCOPY busybox /bin/busybox\nCOPY f /f\nENV A=b\nLABEL l=1\nEXPOSE 80\nENTRYPOINT [\"/bin/busybox\"]\nCMD [\"cat\", \"/f\"]\n";

fn sandbox() -> Sandbox {
    let s = Sandbox::bare(DOCKERFILE);
    s.file("f", "text of f\n");
    s
}

#[test]
fn oci_archives_are_read_by_skopeo() {
    let s = sandbox();
    if !has_tool("skopeo") {
        return;
    }
    for (spec, source) in [
        ("type=oci,dest=o.tar", "oci-archive:o.tar"),
        ("type=oci,dest=dir,tar=false", "oci:dir"),
        ("type=oci,dest=z.tar,compression=zstd,compression-level=3,force-compression=true", "oci-archive:z.tar"),
        ("type=oci,dest=u.tar,compression=uncompressed", "oci-archive:u.tar"),
        ("type=docker,dest=d.tar", "docker-archive:d.tar"),
    ] {
        s.build(&["-t", "me/app:1", "-o", spec]).ok();
        let copy = format!("dir:copy-{}", source.replace([':', '.'], "-"));
        let skopeo = |args: &[&str]| {
            let out =
                Command::new("skopeo").args(args).current_dir(s.path("")).env("HOME", s.path("home")).output().unwrap();
            assert!(out.status.success(), "{spec}: {}", String::from_utf8_lossy(&out.stderr));
            String::from_utf8_lossy(&out.stdout).into_owned()
        };
        // Copying checks every digest.
        skopeo(&["copy", "--insecure-policy", source, &copy]);
        let config: serde_json::Value = serde_json::from_str(&skopeo(&["inspect", "--config", source])).unwrap();
        assert_eq!(config["config"]["Cmd"], serde_json::json!(["cat", "/f"]), "{spec}");
        assert_eq!(config["config"]["Labels"]["l"], "1");
        assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), 2);
    }
}

#[test]
fn layers_are_compressed_as_asked() {
    let s = sandbox();
    for (options, media) in [
        ("", "tar+gzip"),
        (",compression=zstd,force-compression=true", "tar+zstd"),
        (",compression=uncompressed,force-compression=true", "v1.tar"),
    ] {
        let layout = s.path("l");
        let _ = std::fs::remove_dir_all(&layout);
        s.build(&["-o", &format!("type=oci,dest=l,tar=false{options}")]).ok();
        let manifest = image_manifest(&layout);
        for layer in manifest["layers"].as_array().unwrap() {
            assert!(layer["mediaType"].as_str().unwrap().ends_with(media), "{options}: {layer}");
        }
    }
}

#[test]
fn trees_are_written_as_tar_and_directory() {
    let s = sandbox();
    s.build(&["-o", "plain"]).ok();
    assert_eq!(names(s.path("plain")), ["bin", "f"]);
    s.build(&["-o", "type=tar,dest=t.tar"]).ok();
    let list = Command::new("tar").arg("-tf").arg(s.path("t.tar")).output().unwrap();
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    assert!(list.lines().any(|l| l.trim_start_matches("./") == "bin/busybox"), "{list}");
    // `-` is a tar on standard output, whose progress goes to standard error.
    let out = s.command(["build", "-o", "-", "ctx"]).output().unwrap();
    assert!(out.status.success() && out.stdout.windows(5).any(|w| w == b"ustar"));
    let out = s.command(["build", "-o", "type=oci,dest=-", "ctx"]).output().unwrap();
    assert!(out.status.success() && out.stdout.windows(10).any(|w| w == b"oci-layout"));
}

#[test]
fn files_have_the_modes_that_the_umask_gives_them() {
    use std::os::unix::fs::PermissionsExt;
    let s = sandbox();
    for (umask, mode) in [("077", 0o600), ("022", 0o644)] {
        let args = ["build", "-o", "type=oci,dest=o.tar", "--cache-to", "type=local,dest=cache", "ctx"];
        let kiln = s.command(args);
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", &format!("umask {umask}; exec \"$0\" \"$@\"")]).arg(kiln.get_program()).args(kiln.get_args());
        shell.env_clear().envs(kiln.get_envs().filter_map(|(k, v)| Some((k, v?)))).current_dir(s.path(""));
        Run::from(shell.output().unwrap()).ok();
        for file in ["o.tar", "cache/index.json"] {
            assert_eq!(s.path(file).metadata().unwrap().permissions().mode() & 0o777, mode, "{file} with {umask}");
            std::fs::remove_file(s.path(file)).unwrap();
        }
    }
}

#[test]
fn what_is_no_file_is_written_to_and_links_stay() {
    let s = sandbox();
    let fifo = s.path("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let from = fifo.clone();
    let reader = std::thread::spawn(move || std::fs::read(from).unwrap());
    s.build(&["-o", "type=tar,dest=fifo"]).ok();
    assert!(reader.join().unwrap().windows(5).any(|w| w == b"ustar"));
    assert!(std::os::unix::fs::FileTypeExt::is_fifo(&fifo.symlink_metadata().unwrap().file_type()));
    std::os::unix::fs::symlink("t.tar", s.path("link")).unwrap();
    std::fs::write(s.path("t.tar"), "old").unwrap();
    s.build(&["-o", "type=tar,dest=link"]).ok();
    assert!(s.path("link").is_symlink() && s.path("t.tar").metadata().unwrap().len() > 1000);
}

#[test]
fn the_delete_mode_mirrors_the_copy_mode_adds() {
    let s = sandbox();
    std::fs::create_dir_all(s.path("d/old")).unwrap();
    s.build(&["-o", "type=local,dest=d"]).ok();
    assert_eq!(names(s.path("d")), ["bin", "f", "old"]);
    s.build(&["-o", "type=local,dest=d,mode=delete"]).ok();
    assert_eq!(names(s.path("d")), ["bin", "f"]);
}

#[test]
fn several_results_of_one_build() {
    let s = sandbox();
    s.build(&[
        "-t",
        "a:1",
        "-t",
        "b",
        "-o",
        "type=image",
        "-o",
        "out",
        "-o",
        "type=oci,dest=o.tar",
        "-o",
        "type=cacheonly",
    ])
    .ok();
    assert!(s.path("out/f").exists() && s.path("o.tar").exists());
    let images = s.kiln(&["images"]).ok().stdout;
    let has = |name: &str, tag: &str| images.lines().any(|l| l.split_whitespace().take(2).eq([name, tag]));
    assert!(has("a", "1") && has("b", "latest"), "{images}");
}

#[test]
fn quiet_prints_one_line_whatever_is_made() {
    let s = sandbox();
    for output in ["type=local,dest=out", "type=tar,dest=o.tar", "type=cacheonly"] {
        assert_eq!(s.kiln(&["build", "-q", "-o", output, "ctx"]).ok().stdout, "\n", "as docker, of {output}");
    }
}

#[test]
fn ids_and_metadata_are_written_to_files() {
    let s = sandbox();
    let quiet = s
        .kiln(&[
            "build",
            "-q",
            "--iidfile",
            "iid",
            "--metadata-file",
            "meta.json",
            "-t",
            "app",
            "--label",
            "x=y",
            "--annotation",
            "k=v",
            "ctx",
        ])
        .ok();
    assert_eq!(quiet.stdout.trim(), text(s.path("iid")));
    assert!(quiet.stderr.is_empty(), "{}", quiet.stderr);
    let meta: serde_json::Value = serde_json::from_str(&text(s.path("meta.json"))).unwrap();
    assert_eq!(meta["containerimage.config.digest"], quiet.stdout.trim());
    assert_eq!(meta["image.name"], "docker.io/library/app:latest");
    assert_eq!(meta["containerimage.descriptor"]["platform"]["os"], "linux");
    assert!(meta["containerimage.digest"].as_str().unwrap().starts_with("sha256:"));
    s.build(&["--label", "x=y", "--annotation", "k=v", "-o", "type=oci,dest=l,tar=false"]).ok();
    assert_eq!(image_config(&s.path("l"))["config"]["Labels"]["x"], "y");
    assert_eq!(image_manifest(&s.path("l"))["annotations"]["k"], "v");
}

#[test]
fn history_has_dockers_entries() {
    let s = sandbox();
    s.build(&["-t", "app"]).ok();
    let history = s.kiln(&["history", "app"]).ok().stdout;
    for line in [
        "COPY busybox /bin/busybox # buildkit",
        "ENV A=b",
        "EXPOSE",
        "ENTRYPOINT [\"/bin/busybox\"]",
        "CMD [\"cat\" \"/f\"]",
    ] {
        assert!(history.contains(line), "{line} is not in\n{history}");
    }
}

#[test]
fn several_platforms_give_an_index() {
    let s = Sandbox::bare(
        "FROM --platform=$BUILDPLATFORM scratch AS x\nCOPY f /f\nFROM scratch\nARG TARGETARCH\nCOPY --from=x /f /$TARGETARCH\n",
    );
    s.file("f", "");
    s.build(&["--platform", "linux/amd64,linux/arm64", "-o", "type=oci,dest=l,tar=false"]).ok();
    let index = text(s.path("l/index.json"));
    let top: serde_json::Value = serde_json::from_str(&index).unwrap();
    let digest = top["manifests"][0]["digest"].as_str().unwrap().replace(':', "/");
    let inner: serde_json::Value = serde_json::from_str(&text(s.path("l/blobs").join(digest))).unwrap();
    let platforms: Vec<&str> = inner["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["platform"]["architecture"].as_str().unwrap())
        .collect();
    assert_eq!(platforms, ["amd64", "arm64"]);
}

#[test]
fn wrong_outputs_are_refused_before_anything_runs() {
    let s = sandbox();
    s.build(&["-o", "type=nope,dest=x"]).fails(2).says(&["nope"]);
    s.build(&["-o", "type=local"]).fails(2).says(&["dest"]);
    s.build(&["--squash"]).fails(2).says(&["--squash"]);
}

#[test]
fn what_was_built_runs() {
    let Some(s) = Sandbox::new(DOCKERFILE) else { return };
    s.file("f", "text of f\n");
    s.build(&["-t", "app"]).ok();
    assert_eq!(s.kiln(&["run", "--rm", "app"]).ok().stdout, "text of f\n");
    assert_eq!(s.kiln(&["run", "app", "sh", "-c", "exit 7"]).code, 7);
    assert_eq!(
        s.kiln(&[
            "run",
            "-e",
            "A=c",
            "-w",
            "/bin",
            "-u",
            "12:34",
            "app",
            "sh",
            "-c",
            "echo $A $(busybox pwd) $(busybox id -u)"
        ])
        .ok()
        .stdout,
        "c /bin 12\n"
    );
    assert_eq!(s.kiln(&["run", "--entrypoint", "/nope", "app"]).code, 127);
    assert_eq!(s.kiln(&["run", "--entrypoint", "/f", "app"]).code, 126);
    assert_eq!(s.kiln(&["run", "no-such-image.invalid/x"]).code, 125);
}
