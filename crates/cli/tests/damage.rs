//! Parts of images that are damaged or missing: in the store, in a layout, from a registry. Nothing damaged goes on; what can be
//! had again is, and else one error says what is damaged and what to do.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};

use kiln_registry::testing::{DockerRegistry, Fault, FaultProxy, RegistryOptions};
use support::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Harm {
    Flipped,
    CutOff,
    Removed,
}
use Harm::{CutOff, Flipped, Removed};

fn harm(path: &Path, how: Harm) {
    let mut bytes = std::fs::read(path).unwrap();
    let half = bytes.len() / 2;
    match how {
        Flipped => bytes[half] ^= 0x41,
        CutOff => bytes.truncate(half),
        Removed => return std::fs::remove_file(path).unwrap(),
    }
    std::fs::write(path, bytes).unwrap();
}

/// The manifest, the config and the first layer of the only image of a layout.
fn parts(layout: &Path) -> [PathBuf; 3] {
    let index: serde_json::Value = serde_json::from_str(&text(layout.join("index.json"))).unwrap();
    let blob = |d: &serde_json::Value| layout.join("blobs/sha256").join(&d["digest"].as_str().unwrap()[7..]);
    let manifest = blob(&index["manifests"][0]);
    let parsed: serde_json::Value = serde_json::from_str(&text(&manifest)).unwrap();
    [manifest, blob(&parsed["config"]), blob(&parsed["layers"][0])]
}

/// The unpacked layers, of which the one with busybox is the largest.
fn unpacked_busybox(s: &Sandbox) -> PathBuf {
    let layers = names(s.path("store/layers")).into_iter().map(|n| s.path("store/layers").join(n));
    layers.into_iter().find(|l| l.join("fs/bin/busybox").is_file()).unwrap()
}

fn copy(from: &Path, to: &Path) {
    _ = std::fs::remove_dir_all(to);
    assert!(std::process::Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

#[test]
fn a_damaged_part_of_an_image_of_the_store_goes_nowhere_and_is_made_again() {
    let Some(s) = Sandbox::new(&format!("{BASE}RUN echo hello > /hello\n")) else { return };
    s.build(&["-t", "b:1"]).ok();
    s.file("on/Dockerfile", "FROM b:1\nRUN cat /hello\n");
    copy(&s.path("store"), &s.path("good"));
    for part in 0..3 {
        for how in [Flipped, CutOff, Removed] {
            copy(&s.path("good"), &s.path("store"));
            let path = &parts(&s.path("store/content"))[part];
            harm(path, how);
            let saved = s.kiln(&["save", "-o", "b.tar", "b:1"]).fails(1).says(&["b:1", "damaged", "hint: build"]);
            assert_eq!(saved.stderr.matches("error:").count(), 1, "{part} {how:?}: {}", saved.stderr);
            assert!(!s.path("b.tar").exists(), "{part} {how:?}");
            if part < 2 {
                s.kiln(&["build", "ctx/on"]).fails(1).says(&["damaged"]);
                s.kiln(&["run", "b:1", "cat", "/hello"]).fails(125).says(&["damaged", "hint: build"]);
            } else {
                assert_eq!(s.kiln(&["run", "b:1", "cat", "/hello"]).ok().stdout, "hello\n");
            }
            s.kiln(&["images"]).ok();
            let again = s.build(&["-t", "b:1"]).ok();
            assert_eq!(again.executed(), [""; 0], "{part} {how:?}: {}", again.stderr);
            s.kiln(&["save", "-o", "b.tar", "b:1"]).ok();
            std::fs::remove_file(s.path("b.tar")).unwrap();
            s.kiln(&["build", "--no-cache", "ctx/on"]).ok();
        }
    }
}

#[test]
fn a_layer_that_is_not_unpacked_any_more_is_unpacked_or_made_again() {
    let Some(s) = Sandbox::new(&format!("{BASE}RUN echo hello > /hello\n")) else { return };
    s.build(&["-t", "b:1"]).ok();
    s.file("on/Dockerfile", "FROM b:1\nRUN cat /hello\n");
    s.file("more", format!("{BASE}RUN echo hello > /hello\nRUN cat /hello\n"));
    copy(&s.path("store"), &s.path("good"));
    for (sub, blob) in [("", None), ("fs", None), ("", Some(Flipped)), ("fs", Some(Removed))] {
        let reset = || {
            copy(&s.path("good"), &s.path("store"));
            std::fs::remove_dir_all(unpacked_busybox(&s).join(sub)).unwrap();
            blob.iter().for_each(|how| harm(&parts(&s.path("store/content"))[2], *how));
        };
        // What this Dockerfile made is made again without a word.
        reset();
        let more = s.build(&["-f", "ctx/more"]).ok();
        assert!(!more.stderr.to_lowercase().contains("warn"), "{}", more.stderr);
        for command in [&["run", "b:1", "cat", "/hello"][..], &["build", "--no-cache", "ctx/on"]] {
            reset();
            let run = s.kiln(command);
            if blob.is_none() {
                run.ok();
                continue;
            }
            let run = run.fails(if command[0] == "run" { 125 } else { 1 }).says(&["b:1", "damaged", "hint: build"]);
            assert_eq!(run.stderr.matches("error:").count(), 1, "{}", run.stderr);
            s.build(&["-t", "b:1"]).ok();
            s.kiln(command).ok();
        }
    }
}

#[test]
fn a_damaged_layout_is_no_base_and_is_not_loaded() {
    let Some(s) = Sandbox::new(BASE) else { return };
    s.build(&["-o", "type=oci,tar=false,dest=lay"]).ok();
    s.file("on/Dockerfile", "FROM b\nRUN true\n");
    for part in 0..3 {
        for how in [Flipped, CutOff, Removed] {
            copy(&s.path("lay"), &s.path("bad"));
            let path = &parts(&s.path("bad"))[part];
            let hex = path.file_name().unwrap().to_str().unwrap();
            harm(path, how);
            assert!(
                std::process::Command::new("tar")
                    .args(["-cf", "bad.tar", "-C", "bad", "."])
                    .current_dir(s.path(""))
                    .status()
                    .unwrap()
                    .success()
            );
            for name in ["bad", "bad.tar"] {
                _ = std::fs::remove_dir_all(s.path("store"));
                let word = if how == Removed { "lacks" } else { "damaged" };
                s.kiln(&["load", "-i", name]).fails(1).says(&[hex, word]);
                assert_eq!(s.kiln(&["images", "-qa"]).ok().stdout, "");
                let context = format!("b=oci-layout://{}", s.path(name).display());
                s.kiln(&["build", "--build-context", &context, "ctx/on"]).fails(1).says(&[hex, word]);
            }
        }
    }
}

#[test]
fn a_registry_with_wrong_bytes_is_named_and_nothing_of_it_stays() {
    let Some(registry) = DockerRegistry::start(&RegistryOptions::default()) else { return };
    let proxy = FaultProxy::start(&registry.host());
    let Some(s) = Sandbox::new(BASE) else { return };
    let image = format!("{}/team/b:1", proxy.host());
    s.build(&["-t", &image, "--push"]).ok();
    s.file("on/Dockerfile", format!("FROM {image}\nRUN true\n"));
    s.kiln(&["save", "-o", "b.tar", &image]).ok();
    std::fs::create_dir(s.path("lay")).unwrap();
    let tar = ["-xf", "b.tar", "-C", "lay"];
    assert!(std::process::Command::new("tar").args(tar).current_dir(s.path("")).status().unwrap().success());
    let all = parts(&s.path("lay"));
    for part in &all {
        let hex = part.file_name().unwrap().to_str().unwrap().to_owned();
        let place = if *part == all[0] { "/manifests/" } else { &hex };
        proxy.fault("GET", place, 100, Fault::Flip(40));
        std::fs::remove_dir_all(s.path("store")).unwrap();
        for (command, code) in [(&["pull", &image][..], 1), (&["run", &image, "true"], 125), (&["build", "ctx/on"], 1)]
        {
            s.kiln(command).fails(code).says(&["error:", "sha256:", &proxy.host()]);
        }
        assert_eq!(s.kiln(&["images", "-qa"]).ok().stdout, "");
        proxy.clear();
        s.kiln(&["build", "ctx/on"]).ok();
        s.kiln(&["pull", &image]).ok();
        harm(&s.path("store/content/blobs/sha256").join(&hex), CutOff);
        if *part != all[2] {
            s.kiln(&["save", "-o", "b.tar", &image]).fails(1).says(&["damaged", "pull"]);
            s.kiln(&["pull", &image]).ok();
        }
        // A layer is fetched again at once, as the registry has it.
        s.kiln(&["save", "-o", "b.tar", &image]).ok();
    }
}
