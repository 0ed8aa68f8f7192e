//! skopeo, podman and umoci read what kiln pushes, and kiln what they push.

use std::process::Command;

use super::support::{has_tool, is_root, text};
use super::{World, hello};

fn run(world: &World, program: &str, args: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(args).current_dir(world.sandbox.path("")).env("HOME", world.sandbox.path("home"));
    let output = command.output().expect("it starts");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {args:?}: {out}{err}");
    out.into_owned()
}

#[test]
fn skopeo_and_umoci_read_what_kiln_pushes() {
    if !has_tool("skopeo") || !has_tool("umoci") || !is_root() {
        return;
    }
    let Some(world) = World::new() else { return };
    let source = format!("docker://{}", world.push("team/app:1"));
    run(&world, "skopeo", &["copy", "--src-tls-verify=false", &source, "oci:layout:1"]);
    run(&world, "umoci", &["unpack", "--image", "layout:1", "bundle"]);
    assert_eq!(text(world.sandbox.path("bundle/rootfs/dir/text")), hello());
}

#[test]
fn podman_runs_what_kiln_pushes() {
    if !has_tool("podman") || !is_root() {
        return;
    }
    let Some(world) = World::new() else { return };
    let name = world.push("team/app:1");
    let (root, runroot) = (world.sandbox.path("podman"), world.sandbox.path("podman-run"));
    let store = ["--root", root.to_str().expect("UTF-8"), "--runroot", runroot.to_str().expect("UTF-8")];
    let storage = ["--storage-driver", "vfs"];
    let pull = [&store[..], &storage[..], &["pull", "-q", "--tls-verify=false", &name]].concat();
    run(&world, "podman", &pull);
    let inspect = [&store[..], &storage[..], &["image", "inspect", "--format", "{{.Config.Env}}", &name]].concat();
    assert!(run(&world, "podman", &inspect).contains("MADE=here"));
}

#[test]
fn kiln_reads_what_skopeo_pushes_in_every_format() {
    if !has_tool("skopeo") {
        return;
    }
    let Some(world) = World::new() else { return };
    let source = format!("docker://{}", world.push("team/app:1"));
    run(&world, "skopeo", &["copy", "--src-tls-verify=false", "--dest-decompress", &source, "dir:plain"]);
    for (name, options) in [
        ("docker", &["--format", "v2s2"][..]),
        ("zstd", &["--format", "oci", "--dest-compress-format", "zstd", "--dest-compress"][..]),
    ] {
        let target = world.name(&format!("by-skopeo/{name}:1"));
        let dest = format!("docker://{target}");
        let args = [&["copy", "--dest-tls-verify=false"], options, &["dir:plain", &dest]].concat();
        run(&world, "skopeo", &args);
        let shown = world.sandbox.kiln(&["manifest", "inspect", "--summary", &target]).ok().stdout;
        assert!(shown.contains(name), "{shown}");
        world.elsewhere(&["pull", "-q", &target]).ok();
        assert_eq!(world.text_of(&target), hello(), "{name}");
    }
}
