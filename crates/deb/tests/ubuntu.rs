//! Bases from an archive like Ubuntu's: zstd packages, `main` and `universe`, one archive for updates and security, a merged
//! `/usr` that base-files brings, and a keyring of its own.
#![allow(clippy::unwrap_used)]

mod common;

use common::repo::{Packing, Pkg, Suite, pkg, suite};
use common::{World, names, ownership};
use kiln_deb::{BuildOptions, Spec};

fn zst(name: &str, version: &str) -> Pkg {
    pkg(name, version).packing(Packing::Zstd)
}

/// As in noble: the package itself has the links, and files of others are below `usr`.
fn base_files() -> Pkg {
    let links = ["bin", "lib", "sbin"].into_iter().fold(zst("base-files", "13ubuntu10"), |package, name| {
        package.symlink(name, &format!("usr/{name}")).dir(&format!("usr/{name}"), 0o755)
    });
    links
        .field("Essential", "yes")
        .file("usr/lib/os-release", b"ID=ubuntu\nVERSION_ID=\"24.04\"\n")
        .symlink("etc/os-release", "../usr/lib/os-release")
}

fn noble(name: &str, main: Vec<Pkg>, universe: Vec<Pkg>) -> Suite {
    let mut suite = suite(name, main);
    suite.components.insert("universe".into(), universe);
    suite.dir = "ubuntu".into();
    suite.suffixes = vec![".gz", ".xz"];
    suite.head = suite.head.replace("Debian", "Ubuntu").replace("12.0", "24.04");
    suite.head += &format!("Suite: {name}\nCodename: noble\n");
    suite
}

fn archive() -> World {
    let tool = |version, text| zst("tool", version).depends("libc6").program("usr/bin/tool", text);
    let libc = || zst("libc6", "2.39").file("usr/lib/x86_64-linux-gnu/libc.so.6", b"c");
    // Of before the merge: must end below usr as well.
    let old = zst("extra", "1").depends("tool").program("bin/extra", b"e").packing(Packing::Gzip);
    let keyring = zst("ubuntu-keyring", "1").field("Priority", "important");
    let apt = zst("apt", "2.7").depends("ubuntu-keyring").field("Priority", "important");
    let dash = zst("dash", "0.5").field("Essential", "yes").program("usr/bin/dash", b"sh");
    let backport = noble("noble-backports", vec![tool("9~bpo", b"backport")], vec![]);
    World::with(&[
        noble("noble", vec![base_files(), libc(), tool("1", b"one"), keyring, apt, dash], vec![old]),
        noble("noble-updates", vec![tool("1ubuntu0.1", b"update")], vec![]),
        noble("noble-security", vec![tool("1ubuntu0.2", b"security")], vec![]),
        backport,
    ])
}

/// Ubuntu's own configuration: one file, two entries, the keyring by its path.
fn machine(world: &World) {
    let put = |path: &str, content: &[u8]| {
        let path = world.path("machine").join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    };
    put("usr/share/keyrings/ubuntu-archive-keyring.gpg", &world.key.binary());
    let entry = |suites: &str| {
        format!(
            "Types: deb\nURIs: {}/ubuntu/\nSuites: {suites}\nComponents: main restricted universe multiverse\n\
             Signed-By: /usr/share/keyrings/ubuntu-archive-keyring.gpg\n\n",
            world.server.url
        )
    };
    let text = entry("noble noble-updates noble-backports") + &entry("noble-security");
    put("etc/apt/sources.list.d/ubuntu.sources", text.as_bytes());
    put("etc/apt/sources.list", b"# Ubuntu sources have moved to /etc/apt/sources.list.d/ubuntu.sources\n");
}

#[test]
fn a_machine_with_ubuntu_needs_no_options() {
    let world = archive();
    machine(&world);
    let resolve = |text: &str| kiln_deb::resolve(&Spec::parse(text).unwrap(), &world.context()).unwrap();
    let resolution = resolve("deb://noble?packages=extra");
    assert_eq!(names(&resolution), ["base-files", "extra", "libc6", "tool"]);
    assert_eq!(resolution.package("tool").unwrap().version, "1ubuntu0.2", "security, not a backport");
    assert_eq!(
        (resolution.distribution.origin.as_str(), resolution.distribution.codename.as_str()),
        ("Ubuntu", "noble")
    );
    let (root, built) = world.build(&resolution).unwrap();
    let read = |path: &str| std::fs::read(root.join(path)).unwrap();
    assert_eq!(read("usr/bin/tool"), b"security");
    assert_eq!(read("usr/bin/extra"), b"e", "merged");
    assert_eq!(std::fs::read_link(root.join("bin")).unwrap().to_str(), Some("usr/bin"));
    assert_eq!(read("etc/os-release"), b"ID=ubuntu\nVERSION_ID=\"24.04\"\n");
    assert!(read("var/lib/dpkg/status.d/tool").starts_with(b"Package: tool\n"));
    assert!(!root.join("usr/bin/dash").exists(), "no shell");
    assert_eq!(built.config.history[0].created_by.as_deref(), Some("deb://noble?packages=extra&arch=amd64"));
}

#[test]
fn a_minbase_keeps_ubuntus_own_sources() {
    let world = archive();
    machine(&world);
    let resolution = kiln_deb::resolve(&Spec::suite("noble"), &world.context()).unwrap();
    assert_eq!(names(&resolution), ["apt", "base-files", "dash", "ubuntu-keyring"]);
    let recorder = common::Recorder { steps: Default::default(), fail: false };
    let root = world.path("root");
    std::fs::create_dir(&root).unwrap();
    let options = BuildOptions { ownership: ownership(), configure: Some(&recorder) };
    kiln_deb::build(&resolution, &root, &world.context(), &options).unwrap();
    let sources = std::fs::read_to_string(root.join("etc/apt/sources.list.d/ubuntu.sources")).unwrap();
    for suite in ["noble", "noble-updates", "noble-security"] {
        let stanza = format!("URIs: {}/ubuntu\nSuites: {suite}\nComponents: main ", world.server.url);
        assert!(sources.contains(&stanza), "{sources}");
    }
    assert!(sources.contains("Signed-By: /etc/apt/keyrings/ubuntu-archive-keyring.gpg\n"), "{sources}");
}

#[test]
fn another_machine_names_mirror_and_components() {
    let world = archive();
    let mirror = format!("mirror={}/ubuntu&keyring={}", world.server.url, world.path("keys.gpg").display());
    let resolve = |more: &str| {
        let spec = Spec::parse(&format!("deb://noble?{mirror}&{more}")).unwrap();
        kiln_deb::resolve(&spec, &world.context())
    };
    assert!(resolve("packages=extra").unwrap_err().to_string().contains("no package extra"));
    let both = resolve("packages=extra&components=main,universe").unwrap();
    assert_eq!(both.package("tool").unwrap().version, "1ubuntu0.2");
    let plain = resolve("packages=tool&suites=noble").unwrap();
    assert_eq!(plain.package("tool").unwrap().version, "1");
    assert_eq!(std::fs::read(world.build(&plain).unwrap().0.join("usr/bin/tool")).unwrap(), b"one");
    let wrong = resolve("packages=tool&components=univers").unwrap_err().to_string();
    assert!(wrong.contains("no component univers") && wrong.contains("universe"), "{wrong}");
}
