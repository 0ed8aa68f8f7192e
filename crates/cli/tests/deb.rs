//! `deb://` bases as a user sees them, over a synthetic archive: messages, the command, locks, the same bytes everywhere.
#![allow(clippy::unwrap_used)]

#[path = "../../deb/tests/common/mod.rs"]
mod common;
mod support;

use common::repo::{Packing, Pkg, pkg, suite};
use common::server::Fault;
use common::{World, base_files};
use support::*;

/// The archive that most tests use.
fn packages() -> Vec<Pkg> {
    vec![
        base_files(),
        pkg("libapp1", "1.0").file("usr/lib/libapp.so.1", b"library"),
        pkg("app", "2.0")
            .depends("libapp1 (>= 1.0)")
            .program("usr/bin/app", b"program")
            .symlink("usr/bin/app-link", "app")
            .hardlink("usr/bin/app-too", "./usr/bin/app")
            .packing(Packing::Zstd),
        pkg("other", "1").field("Conflicts", "app"),
        pkg("broken", "1").depends("app (>= 3)"),
        pkg("evil", "1").file("../../../../tmp/kiln-evil", b"x"),
    ]
}

/// An archive that is as old as the clock of any machine that runs this.
fn world() -> World {
    let mut bookworm = suite("bookworm", packages());
    bookworm.head = bookworm.head.replace("Thu, 01 Oct 2026", "Thu, 01 Jan 2026");
    assert!(bookworm.head.contains("Jan 2026"));
    World::with(&[bookworm])
}

/// The base `bookworm?…` of the archive.
fn base(world: &World, options: &str) -> String {
    let keys = world.path("keys.gpg");
    format!("deb://bookworm?{options}&mirror={}/debian&keyring={}&suites=bookworm", world.server.url, keys.display())
}

fn build(s: &Sandbox, base: &str) -> Run {
    s.file("Dockerfile", format!("FROM {base}\nLABEL a=b\n"));
    s.build(&["-t", "made"])
}

/// Nothing may be left of a build that failed: no image, no layer, no package that was not verified.
#[track_caller]
fn nothing_is_left(s: &Sandbox) {
    assert_eq!(s.kiln(&["images", "-q"]).ok().stdout, "");
    for dir in ["layers", "tmp", "sources/deb/debs", "sources/deb/partial"] {
        let path = s.path("store").join(dir);
        let left = if path.exists() { names(&path) } else { Vec::new() };
        let left: Vec<&String> = left.iter().filter(|n| !n.starts_with('.')).collect();
        assert!(left.is_empty() || dir.ends_with("debs"), "{dir}: {left:?}");
    }
}

#[test]
fn what_is_wrong_with_a_request() {
    let world = world();
    let s = Sandbox::bare("");
    let fails = |options: &str, says: &[&str]| {
        let run = build(&s, &base(&world, options)).fails(1).says(says);
        assert!(run.stderr.contains("Dockerfile:1"), "{}", run.stderr);
    };
    fails("packages=ap", &["no package ap in bookworm", "did you mean app?"]);
    fails("packages=app%3D9", &["no version 9", "there is 2.0"]);
    fails("packages=app&components=universe", &["no component universe", "main"]);
    fails("packages=app&arch=arm64", &["arch=\"arm64\"", "linux/amd64"]);
    fails("package=app", &["unknown option \"package\"", "did you mean packages?"]);
    fails("packages=app&variant=distrolss", &["did you mean distroless?"]);
    fails("packages=broken", &["can't be installed together", "broken is asked for", "app (>= 3)", "2.0"]);
    fails("packages=app,other", &["can't be installed together", "other 1", "conflicts with app"]);
    let other = base(&world, "packages=app").replace("bookworm", "bookwork");
    build(&s, &other).fails(1).says(&["has no suite bookwork"]);
    nothing_is_left(&s);
}

#[test]
fn archives_that_can_not_be_trusted() {
    let world = world();
    let s = Sandbox::bare("");
    let app = base(&world, "packages=app");
    world.trust(&common::keys::Key::good().binary());
    build(&s, &app).fails(1).says(&["the signature of", "InRelease is not good"]);
    world.trust(b"no key at all");
    build(&s, &app).fails(1).says(&["keyring", "keys.gpg"]);
    world.trust(&world.key.binary());
    let mut stale = suite("bookworm", packages());
    stale.head = stale.head.replace("01 Oct 2026", "01 Jan 2026") + "Valid-Until: Mon, 05 Jan 2026 00:00:00 UTC\n";
    stale.publish(&world.server, &world.key);
    match machine_ignores_valid_until() {
        true => eprintln!("SKIPPED: this machine's apt is told not to check Valid-Until"),
        false => drop(build(&s, &app).fails(1).says(&["expired on 2026-01-05"])),
    }
    nothing_is_left(&s);
}

fn machine_ignores_valid_until() -> bool {
    let list = std::fs::read_dir("/etc/apt/apt.conf.d").into_iter().flatten().flatten();
    let mut texts = list.map(|e| std::fs::read_to_string(e.path()).unwrap_or_default());
    texts.any(|t| t.contains("Check-Valid-Until \"false\""))
}

#[test]
fn mirrors_that_lie_or_die() {
    let world = world();
    let s = Sandbox::bare("");
    let app = base(&world, "packages=app");
    let path = world.server.path("app_2.0_amd64.deb");
    let good = world.server.state.lock().unwrap().files[&path].clone();
    for (fault, said) in [
        (Fault::Status(404), "not found"),
        (Fault::Endless, "were signed"),
        (Fault::Cut { after: 100, times: 99 }, "tries)"),
    ] {
        world.server.set_fault(&path, fault);
        build(&s, &app).fails(1).says(&[&path, said]);
        world.server.clear_faults();
    }
    world.server.edit("app_2.0_amd64.deb", |bytes| *bytes.last_mut().unwrap() ^= 1);
    build(&s, &app).fails(1).says(&["sha256", "was signed"]);
    assert_eq!(s.kiln(&["images", "-q"]).ok().stdout, "");
    // What was wrong is not kept: with a good mirror the same build passes.
    world.server.state.lock().unwrap().files.insert(path, good);
    build(&s, &app).ok();
}

#[test]
fn the_environment_names_the_proxy() {
    let world = world();
    let mut s = Sandbox::bare("");
    s.env("http_proxy", &world.server.url);
    let app = base(&world, "packages=app").replace(&world.server.url, "http://archive.invalid");
    build(&s, &app).ok();
    let asked = world.server.state.lock().unwrap().proxied.clone();
    assert!(!asked.is_empty() && asked.iter().all(|(host, _)| host == "archive.invalid"), "{asked:?}");
}

#[test]
fn a_hostile_package() {
    let world = world();
    let s = Sandbox::bare("");
    build(&s, &base(&world, "packages=evil")).fails(1).says(&["evil_1_amd64", "leads out of the image"]);
    assert!(!std::path::Path::new("/tmp/kiln-evil").exists());
    nothing_is_left(&s);
}

#[test]
fn the_command_makes_and_explains_a_base() {
    let world = world();
    let s = Sandbox::bare("");
    let app = base(&world, "packages=app");
    let printed = s.kiln(&["base", "-q", "--print", &app]).ok().stdout;
    assert!(printed.starts_with("PACKAGE") && printed.contains("app") && printed.contains("for app"), "{printed}");
    assert!(printed.contains("3 packages of Debian 12.0 bookworm for amd64, distroless: "), "{printed}");
    let json: serde_json::Value =
        serde_json::from_str(&s.kiln(&["base", "-q", "--print", "--format=json", &app]).ok().stdout).unwrap();
    let names: Vec<&str> = json["packages"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["app", "base-files", "libapp1"]);
    assert_eq!(json["packages"][2]["reason"]["by"], "app");
    let rows = s.kiln(&["base", "-q", "--print", "--format={{.Name}}={{.Version}}", &app]).ok().stdout;
    assert_eq!(rows, "app=2.0\nbase-files=12\nlibapp1=1.0\n");
    let why = s.kiln(&["base", "-q", "--why", "libapp1", &app]).ok().stdout;
    assert_eq!(why, "app 2.0 is asked for\n└ app 2.0 depends on libapp1 (>= 1.0)\n");
    s.kiln(&["base", "-q", "--why", "libap1", &app]).fails(1).says(&["libap1 is not in the base", "libapp1"]);
    s.kiln(&["base", "-q", "--why", "awk", &app]).fails(1).says(&["base-files depends on awk", "maintainer scripts"]);
    assert_eq!(s.kiln(&["images", "-q"]).ok().stdout, "", "nothing was made so far");
    // Errors are about what was asked, not about the Dockerfile that nobody wrote.
    let run =
        s.kiln(&["base", &base(&world, ""), "ap", "-t", "x"]).fails(1).says(&["error: no package ap in bookworm"]);
    assert!(!run.stderr.contains("Dockerfile"), "{}", run.stderr);
    s.kiln(&["base", &base(&world, ""), "app", "-t", "base:1", "-o", "type=image", "-o", "out"]).ok();
    assert_eq!(text(s.path("out/usr/bin/app-too")), "program");
    assert!(s.kiln(&["images"]).ok().stdout.contains("base"));
    let again = |more: &[&str]| s.kiln(&[&["base", "--progress=plain", &app], more].concat()).ok().stderr;
    assert!(again(&[]).contains("CACHED") && !again(&["--no-cache"]).contains("CACHED"));
    // The architecture is that of the base, whatever machine this is.
    let foreign = base(&world, "packages=app&arch=riscv64");
    s.kiln(&["base", &foreign]).fails(1).says(&["no packages for architecture riscv64: it has"]);
    // The same base in a build is there already.
    s.file("Dockerfile", "FROM alpine AS base\nFROM base\nCOPY --from=alpine /usr/bin/app /copy\n");
    let context = format!("alpine={app}");
    let run = s.build(&["--build-context", &context, "-o", "out2"]).ok();
    assert_eq!(run.step("context alpine"), "CACHED", "{}", run.stderr);
    assert_eq!(text(s.path("out2/copy")), "program");
}

#[test]
fn a_lock_file_keeps_the_packages() {
    let world = world();
    let s = Sandbox::bare("");
    let app = base(&world, "packages=app");
    let print = |more: &[&str]| {
        let args = ["base", "-q", "--print", "--format={{.Name}}={{.Version}}", "--pull", &app];
        s.kiln(&args.iter().copied().chain(more.iter().copied()).collect::<Vec<_>>()).ok().stdout
    };
    let first = print(&["--lock", "app.lock"]);
    let lock = text(s.path("app.lock"));
    let mut newer = packages();
    newer.push(pkg("app", "2.1").depends("libapp1"));
    let mut bookworm = suite("bookworm", newer);
    bookworm.head = bookworm.head.replace("Thu, 01 Oct 2026", "Fri, 02 Jan 2026");
    bookworm.publish(&world.server, &world.key);
    assert!(print(&[]).contains("app=2.1"));
    assert_eq!(print(&["--lock", "app.lock"]), first);
    assert_eq!(text(s.path("app.lock")), lock);
    assert!(print(&["--lock", "app.lock", "--update-lock"]).contains("app=2.1"));
    assert_ne!(text(s.path("app.lock")), lock);
    s.kiln(&["base", "--lock", "app.lock", &base(&world, "packages=libapp1")]).fails(1).says(&["lock again"]);
    s.kiln(&["base", "--update-lock", &app]).fails(2).says(&["--lock FILE"]);
}

#[test]
fn lock_files_of_a_dockerfile_stay_in_its_context() {
    let world = world();
    let s = Sandbox::bare("");
    let (one, two) = (base(&world, "packages=app&lock=deb.lock"), base(&world, "packages=libapp1&lock=deb.lock"));
    s.file("Dockerfile", format!("FROM {one} AS one\nFROM {two}\nCOPY --from=one /usr/bin/app /app\n"));
    s.build(&[]).ok();
    let lock = text(s.path("ctx/deb.lock"));
    assert_eq!(lock.matches("Kiln-Base-Lock").count(), 2, "both bases share it: {lock}");
    s.build(&[]).ok();
    assert_eq!(text(s.path("ctx/deb.lock")), lock);
    let outside = s.path("outside.lock");
    for name in ["../outside.lock", outside.to_str().unwrap()] {
        build(&s, &base(&world, &format!("packages=app&lock={name}")))
            .fails(1)
            .says(&["not a path in the build context"]);
    }
    std::os::unix::fs::symlink("../outside.lock", s.path("ctx/link.lock")).unwrap();
    build(&s, &base(&world, "packages=app&lock=link.lock"));
    std::os::unix::fs::symlink("..", s.path("ctx/up")).unwrap();
    build(&s, &base(&world, "packages=app&lock=up/outside.lock"));
    assert!(!outside.exists());
    // Who builds may name any file.
    let context = format!("b={}", base(&world, &format!("packages=app&lock={}", outside.display())));
    s.file("Dockerfile", "FROM b\n");
    s.build(&["--build-context", &context]).ok();
    assert!(outside.exists());
}

#[test]
fn the_same_bytes_in_every_store() {
    let world = world();
    let app = base(&world, "packages=app");
    let digest = |s: &Sandbox, kiln: &mut std::process::Command| {
        Run::from(kiln.args(["base", "-q", "-o", "type=oci,dest=base.tar", &app]).output().unwrap()).ok();
        std::fs::read(s.path("base.tar")).unwrap()
    };
    let s = Sandbox::bare("");
    let first = digest(&s, &mut s.command([""; 0]));
    let t = Sandbox::bare("");
    assert!(first == digest(&t, &mut t.command([""; 0])), "two stores");
    if !is_root() {
        return;
    }
    // Somebody without privileges and without subordinate ids.
    let u = Sandbox::bare("");
    std::os::unix::fs::chown(world.dir.path(), Some(65534), Some(65534)).unwrap();
    let mut command = u.command_of_nobody([""; 0]);
    assert!(first == digest(&u, &mut command), "rootless");
}
