//! A disk that is full before an image is on it.

use std::process::{Command, Stdio};

use super::support::is_root;
use super::{World, noise};

/// A small file system of its own, in a mount namespace of its own, that goes with the script.
const SCRIPT: &str = r#"
    mount -t tmpfs -o size=12m x $SMALL || exit 77
    step() { echo "== $1"; shift; "$@"; echo "code $?"; }
    left() { df --output=used $SMALL | tail -1; ls -A $SMALL/store/tmp $SMALL/store/leases $SMALL/store/layers; }
    exec 2>&1
    $KILN images > /dev/null
    step pull $KILN pull $BIG
    step quiet $KILN pull -q -a ${BIG%:*}
    step load $KILN load -i big.tar
    step stdin sh -c 'gzip -c big.tar | $KILN load -q'
    step import $KILN import root.tar x
    step images $KILN images -q
    step left left
    head -c 20000000 /dev/zero > $SMALL/fill 2> /dev/null
    step none $KILN pull $LITTLE
    rm $SMALL/fill
    step little $KILN pull -q $LITTLE
    step same $KILN load -i little.tar
    step base $KILN build --progress=plain -f ctx/Again ctx
"#;

#[test]
fn what_has_no_room_is_one_clear_error_and_leaves_nothing() {
    let Some(mut world) = World::new() else { return };
    if !is_root() {
        eprintln!("SKIPPED: only root can mount a small file system");
        return;
    }
    let little = world.push("little:1");
    world.sandbox.file("noise", noise(14 << 20));
    let big = world.push("big:1");
    world.sandbox.kiln(&["save", "-o", "big.tar", &big]).ok();
    world.sandbox.kiln(&["save", "-o", "little.tar", &little]).ok();
    let mut tar = Command::new("tar");
    tar.args(["-C", "ctx", "-cf", "root.tar", "noise"]).current_dir(world.sandbox.path(""));
    assert!(tar.status().expect("tar").success());
    world.sandbox.file("Again", format!("FROM {big}\nCOPY text /text\n"));
    let small = world.sandbox.path("small");
    std::fs::create_dir(&small).expect("a directory");
    world.sandbox.env("KILN_ROOT", small.join("store").to_str().expect("a path"));
    let template = world.sandbox.command([""; 0]);
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", SCRIPT]).current_dir(world.sandbox.path("")).env_clear();
    command.envs(template.get_envs().filter_map(|(k, v)| Some((k, v?))));
    command.env("SMALL", &small).env("KILN", env!("CARGO_BIN_EXE_kiln")).env("BIG", &big).env("LITTLE", &little);
    let output = command.stderr(Stdio::null()).output().expect("unshare");
    if output.status.code() == Some(77) || output.stdout.is_empty() {
        eprintln!("SKIPPED: no mount namespace");
        return;
    }
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let part = |name: &str| said.split("== ").find(|p| p.starts_with(&format!("{name}\n"))).unwrap_or_default();
    for (name, what) in
        [("pull", "big:1"), ("quiet", "/big "), ("load", "big.tar"), ("stdin", "the archive"), ("import", "root.tar")]
    {
        let part = part(name);
        assert!(
            part.contains("code 1\n") && part.contains("error: no space left for ") && part.contains(what),
            "{said}"
        );
        assert!(part.contains(small.to_str().expect("a path")) && part.contains("MB that is free there\n"), "{said}");
        assert!(part.contains("hint: `kiln system df`") && part.matches("error: ").count() == 1, "{said}");
    }
    let base = part("base");
    assert!(base.contains("no space left to ") && base.contains("hint: "), "{said}");
    let none = part("none");
    assert!(none.contains("code 1\n") && none.contains("no space left") && none.contains("hint: "), "{said}");
    assert!(
        part("images") == "images\ncode 0\n" && part("little").contains("code 0") && part("same").contains("code 0"),
        "{said}"
    );
    // The directories are empty, and the database is small.
    let mut left = part("left").lines().skip(1);
    let used: u64 = left.next().and_then(|l| l.trim().parse().ok()).expect("a number");
    let files = left.filter(|l| !l.is_empty() && !l.ends_with(':') && *l != "code 0").count();
    assert!(used < 1500 && files == 0, "{said}");
}
