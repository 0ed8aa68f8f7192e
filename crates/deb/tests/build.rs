//! Building bases from a synthetic archive: what they contain, that they are the same each time, and what bad packages
//! and mirrors give.
#![allow(clippy::unwrap_used)]
mod common;

use std::path::PathBuf;
use std::sync::Mutex;

use common::repo::{Packing, Pkg, Suite, ar, pkg, suite, tar};
use common::server::Fault;
use common::{Recorder, World, base_files, ownership, tree};
use kiln_deb::{BuildOptions, Error, Spec};

fn web() -> Vec<Pkg> {
    vec![
        base_files(),
        pkg("awk", "1").program("usr/bin/awk", b"x"),
        pkg("dpkg", "1").field("Essential", "yes").program("usr/bin/dpkg", b"x"),
        pkg("perl-base", "5").field("Essential", "yes").field("Source", "perl").program("usr/bin/perl", b"x"),
        pkg("perl", "5").depends("perl-base (= 5), dpkg (>= 1)").file("usr/share/perl/x.pm", b"1;"),
        pkg("debconf", "1").program("usr/bin/debconf", b"x"),
        pkg("libweb", "1").file("lib/x86_64-linux-gnu/libweb.so.1", b"elf").symlink("lib64/ld.so", "/lib/x86_64-linux-gnu/ld.so"),
        pkg("web", "2")
            .depends("libweb, debconf (>= 0.5) | debconf-2.0")
            .program("usr/bin/web-2", b"program")
            .hardlink("usr/bin/web-too", "./usr/bin/web-2")
            .program("bin/tool", b"tool")
            .file("usr/share/man/man1/web.1.gz", b"man")
            .file("usr/share/doc/web/README", b"readme")
            .file("etc/init.d/web", b"init")
            .script("postinst", "#!/bin/sh\nset -e\nupdate-alternatives --install /usr/bin/web web /usr/bin/web-2 50 \\\n  --slave /usr/bin/weber weber /usr/bin/gone\n")
            .control_file("md5sums", "d41d8cd98f00b204e9800998ecf8427e  usr/bin/web-2\n"),
        pkg("ca-certificates", "2026").depends("openssl, debconf").arch("all")
            .file("usr/share/ca-certificates/mozilla/B.crt", b"-----B-----")
            .file("usr/share/ca-certificates/mozilla/A.crt", b"-----A-----\n"),
        pkg("openssl", "3"),
    ]
}

fn world(packages: Vec<Pkg>) -> World {
    World::with(&[suite("bookworm", packages)])
}

#[test]
fn a_distroless_base() {
    let world = world(web());
    let (root, built) = world.build_spec("bookworm?packages=web,ca-certificates");
    let read = |path: &str| String::from_utf8(std::fs::read(root.join(path)).unwrap()).unwrap();
    let link = |path: &str| std::fs::read_link(root.join(path)).unwrap().display().to_string();
    let absent = |path: &str| assert!(root.join(path).symlink_metadata().is_err(), "{path}");
    // usr-merge
    assert_eq!(
        (link("bin"), link("lib"), link("sbin"), link("lib64")),
        ("usr/bin".into(), "usr/lib".into(), "usr/sbin".into(), "usr/lib64".into())
    );
    absent("lib32");
    assert_eq!((read("usr/bin/tool"), read("usr/lib/x86_64-linux-gnu/libweb.so.1")), ("tool".into(), "elf".into()));
    assert_eq!(read("usr/bin/web-too"), "program");
    // what a script would have made
    assert_eq!(
        (link("usr/bin/web"), link("etc/alternatives/web")),
        ("/etc/alternatives/web".into(), "/usr/bin/web-2".into())
    );
    assert_eq!(read("etc/ssl/certs/ca-certificates.crt"), "-----A-----\n-----B-----\n");
    assert_eq!(link("usr/lib/ssl/cert.pem"), "/etc/ssl/certs/ca-certificates.crt");
    assert_eq!((link("var/run"), link("var/lock")), ("/run".into(), "/run/lock".into()));
    assert!(built.config.config.env.contains(&"SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt".to_owned()));
    for path in [
        "usr/bin/weber",
        "usr/bin/dpkg",
        "usr/bin/awk",
        "usr/bin/debconf",
        "usr/share/man",
        "usr/share/doc/web/README",
        "etc/init.d",
        "etc/motd",
        "usr/share/ca-certificates",
        "var/lib/dpkg/status",
        "bin/sh",
    ] {
        absent(path);
    }
    // what every system has
    assert!(read("etc/passwd").contains("root:x:0:0:root:/root:/sbin/nologin\n"));
    assert!(read("etc/passwd").contains("nonroot:x:65532:65532:nonroot:/home/nonroot:"));
    assert!(read("etc/group").contains("nonroot:x:65532:"));
    assert!(read("etc/nsswitch.conf").contains("hosts: files dns"));
    assert!(read("etc/os-release").contains("ID=debian"));
    // what scanners read
    assert!(read("var/lib/dpkg/status.d/web").starts_with("Package: web\nVersion: 2\n"));
    assert!(read("var/lib/dpkg/status.d/web.md5sums").contains("usr/bin/web-2"));
    assert_eq!(read("usr/share/doc/libweb/copyright"), "free\n");
    let tree = tree(&root);
    assert!(
        tree["tmp"].starts_with("dir 1777")
            && tree["root"].starts_with("dir 700")
            && tree["home/nonroot"].starts_with("dir 700"),
        "{tree:#?}"
    );
    // the packages are younger than the release: all times are its date
    assert!(tree.iter().all(|(path, what)| what.ends_with(" 1790812800") || panic!("{path} {what}")));
    let config = &built.config.config;
    assert_eq!((config.working_dir.as_str(), config.user.as_str(), &config.cmd), ("/", "", &None));
    assert!(config.labels.is_empty());
    let text = serde_json::to_string(&built.config).unwrap();
    assert!(!text.contains("127.0.0.1") && !text.contains("keys.gpg"), "{text}");
}

#[test]
fn essential_packages_only_for_a_reason() {
    let world = world(web());
    let resolution = world.resolve("bookworm?packages=perl,web").unwrap();
    assert_eq!(common::names(&resolution), ["base-files", "ca-certificates", "libweb", "perl", "perl-base", "web"]);
    assert_eq!(
        resolution.skipped,
        [
            ("base-files".to_owned(), "awk".to_owned()),
            ("ca-certificates".to_owned(), "debconf".to_owned()),
            ("ca-certificates".to_owned(), "openssl".to_owned()),
            ("perl".to_owned(), "dpkg (>= 1)".to_owned()),
            ("web".to_owned(), "debconf (>= 0.5) | debconf-2.0".to_owned()),
        ]
    );
    let asked = world.resolve("bookworm?packages=perl,dpkg").unwrap();
    assert!(asked.package("dpkg").is_some() && asked.package("debconf").is_none());
}

#[test]
fn a_shell_on_request() {
    let mut packages = web();
    packages.push(pkg("busybox-static", "1").program("bin/busybox", b"box"));
    let world = world(packages);
    let (root, built) = world.build_spec("bookworm?packages=web&debug=true");
    assert_eq!(std::fs::read_link(root.join("busybox/sh")).unwrap(), PathBuf::from("busybox"));
    assert_eq!(std::fs::read(root.join("bin/busybox")).unwrap(), b"box");
    let config = &built.config.config;
    assert!(config.env[0].ends_with(":/busybox") && config.cmd.as_deref() == Some(&["/busybox/sh".to_owned()]));
    let (plain, _) = world.build_spec("bookworm?packages=web");
    assert!(!plain.join("busybox").exists() && !plain.join("bin/busybox").exists());
}

#[test]
fn documentation_on_request() {
    let world = world(web());
    let (root, _) = world.build_spec("bookworm?packages=web&docs=true");
    assert!(root.join("usr/share/man/man1/web.1.gz").exists() && root.join("usr/share/doc/web/README").exists());
}

#[test]
fn the_same_bytes_whatever_the_threads() {
    let world = world(web());
    let resolution = world.resolve("bookworm?packages=web,ca-certificates,perl").unwrap();
    let mut trees = Vec::new();
    for workers in [1, 2, 7] {
        let mut context = world.context();
        context.workers = workers;
        let dest = world.path(&format!("root{workers}"));
        std::fs::create_dir(&dest).unwrap();
        let options = BuildOptions { ownership: ownership(), ..BuildOptions::default() };
        kiln_deb::build(&resolution, &dest, &context, &options).unwrap();
        trees.push(tree(&dest));
    }
    assert_eq!(trees[0], trees[1]);
    assert_eq!(trees[0], trees[2]);
    assert_ne!(world.resolve("bookworm?packages=web").unwrap().digest, resolution.digest);
    assert_ne!(
        world.resolve("bookworm?packages=web,ca-certificates,perl&docs=true").unwrap().digest,
        resolution.digest
    );
}

#[test]
fn locks_give_the_same_base_from_another_mirror() {
    let world = world(web());
    let first = world.resolve("bookworm?packages=web").unwrap();
    let text = first.lock_text();
    assert!(!text.contains("127.0.0.1") && text.contains("Package: libweb\n"), "{text}");
    let (root, _) = world.build(&first).unwrap();
    // The archive moves on, but still has the old files.
    suite("bookworm", vec![base_files(), pkg("web", "3")]).publish(&world.server, &world.key);
    assert_eq!(world.resolve("bookworm?packages=web").unwrap().package("web").unwrap().version, "3");
    let mut context = world.context();
    context.lock = Some(text.clone());
    let locked = kiln_deb::resolve(&world.spec("bookworm?packages=web"), &context).unwrap();
    assert_eq!((locked.digest, &locked.packages), (first.digest, &first.packages));
    assert_eq!(locked.lock_text(), text);
    assert_eq!(locked.why("libweb"), first.why("libweb"));
    std::fs::remove_dir_all(world.path("cache/debs")).unwrap();
    let (again, _) = world.build(&locked).unwrap();
    assert_eq!(tree(&root), tree(&again));
    let fails = |lock: &str, spec: &str| {
        context.clone().lock = None;
        let mut context = context.clone();
        context.lock = Some(lock.to_owned());
        kiln_deb::resolve(&world.spec(spec), &context).unwrap_err().to_string()
    };
    assert!(fails(&text, "bookworm?packages=web,perl").contains("lock again"));
    assert!(
        fails(&text, "bookworm?packages=web&arch=arm64").contains("nothing for architecture arm64, only for amd64")
    );
    assert!(fails("hello\n", "bookworm?packages=web").contains("does not start with"));
    assert!(fails(&text.replace("Filename: pool", "Filename: ../pool"), "bookworm?packages=web").contains("Filename"));
    assert!(
        fails(&text.replace("Kiln-Base-Lock: 1", "Kiln-Base-Lock: 9"), "bookworm?packages=web").contains("format 9")
    );
    let other = text.replace("Architecture: amd64", "Architecture: arm64");
    let both = first.update_lock(&other).unwrap();
    assert_eq!(both.matches("Kiln-Base-Lock").count(), 2);
    assert_eq!(first.update_lock(&both).unwrap(), both);
}

#[test]
fn packages_that_share_files() {
    let replaced = world(vec![
        pkg("old", "1").file("usr/share/x", b"old").file("usr/share/y", b"old"),
        pkg("new", "1").field("Replaces", "old (<< 2)").file("usr/share/x", b"new"),
        pkg("rude", "1").file("usr/share/x", b"rude"),
    ]);
    let (root, _) = replaced.build_spec("bookworm?packages=old,new");
    assert_eq!(std::fs::read(root.join("usr/share/x")).unwrap(), b"new");
    assert_eq!(std::fs::read(root.join("usr/share/y")).unwrap(), b"old");
    let error = replaced.build_error("bookworm?packages=old,rude");
    assert!(matches!(&error, Error::FileConflict { path, .. } if path == "/usr/share/x"), "{error}");
}

#[test]
fn a_directory_of_one_is_a_link_of_another() {
    let world = world(vec![
        pkg("alink", "1").dir("usr/share/real", 0o755).symlink("usr/share/alias", "real"),
        pkg("files", "1").file("usr/share/alias/one", b"1").file("usr/share/alias/deep/two", b"2"),
        pkg("zfiles", "1").file("usr/share/real/three", b"3"),
    ]);
    for _ in 0..3 {
        let (root, _) = world.build_spec("bookworm?packages=alink,files,zfiles");
        assert_eq!(std::fs::read_link(root.join("usr/share/alias")).unwrap(), PathBuf::from("real"));
        for path in ["one", "deep/two", "three"] {
            assert!(root.join("usr/share/real").join(path).exists(), "{path}");
        }
    }
}

fn hostile(package: Pkg) -> String {
    let world = world(vec![package, pkg("good", "1")]);
    let outside = world.path("outside");
    std::fs::write(&outside, b"untouched").unwrap();
    let error = world.build_error("bookworm?packages=evil");
    assert_eq!(std::fs::read(&outside).unwrap(), b"untouched");
    let names: Vec<_> = std::fs::read_dir(world.dir.path())
        .unwrap()
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    assert!(
        names.iter().all(|n| ["cache", "keys.gpg", "outside"].contains(&n.as_str()) || n.starts_with("root")),
        "{names:?}"
    );
    assert!(matches!(error, Error::Package { .. }), "{error:?}");
    error.to_string()
}

#[test]
fn hostile_packages() {
    let contains = |package: Pkg, text: &str| {
        let error = hostile(package);
        assert!(error.contains("evil") && error.contains(text), "{error}");
    };
    contains(pkg("evil", "1").file("../outside", b"x"), "leads out of the image");
    contains(pkg("evil", "1").file("usr/../../outside", b"x"), "leads out of the image");
    contains(pkg("evil", "1").hardlink("usr/x", "../../outside"), "leads out of the image");
    contains(pkg("evil", "1").hardlink("usr/x", "usr/nothing"), "not in the archive");
    contains(pkg("evil", "1").device("dev/mem"), "is a device");
    contains(pkg("evil", "1").symlink("", "/tmp"), "its top is not a directory");
    let raw = |bytes: Vec<u8>| Pkg { raw: Some(bytes), ..pkg("evil", "1") };
    contains(raw(b"PK\x03\x04 not a package".to_vec()), "not an ar archive");
    contains(raw(b"x".to_vec()), "too short");
    contains(raw(ar(&[("debian-binary".into(), b"2.0\n".to_vec())])), "no control.tar");
    let with = |control: Vec<u8>, data: Vec<u8>| {
        raw(ar(&[
            ("debian-binary".into(), b"2.0\n".to_vec()),
            ("control.tar".into(), control),
            ("data.tar".into(), data),
        ]))
    };
    contains(with(tar(&[]), tar(&[])), "no control file");
    let other = pkg("other", "1").deb();
    contains(raw(other), "has Package: \"other\"");
    let mut lies = ar(&[("debian-binary".into(), b"2.0\n".to_vec()), ("control.tar".into(), tar(&[]))]);
    let at = lies.windows(11).position(|w| w == b"control.tar").unwrap() + 48;
    lies[at..at + 10].copy_from_slice(b"9999999999");
    contains(raw(lies), "longer than the package");
    let mut cut = pkg("evil", "1").file("usr/big", &vec![7; 100_000]).packing(Packing::None).deb();
    cut.truncate(cut.len() - 60_000);
    let end = cut.len();
    let data = cut.windows(8).position(|w| w == b"data.tar").unwrap();
    let size = end - data - 60;
    cut[data + 48..data + 58].copy_from_slice(format!("{size:<10}").as_bytes());
    contains(raw(cut), "evil_1_amd64");
}

#[test]
fn links_do_not_lead_out() {
    let world = World::new();
    let outside = world.path("outside");
    std::fs::create_dir(&outside).unwrap();
    let target = outside.display().to_string();
    suite(
        "bookworm",
        vec![
            pkg("evil", "1").symlink("usr/out", &target).file("usr/out/file", b"x"),
            pkg("friend", "1").file("usr/out/other", b"x"),
        ],
    )
    .publish(&world.server, &world.key);
    // Whether it is refused or stays inside: nothing appears outside.
    let _ = world.build(&world.resolve("bookworm?packages=evil,friend").unwrap());
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
}

fn big() -> Suite {
    suite(
        "bookworm",
        vec![
            pkg("big", "1")
                .file("usr/big", &(0..300_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>())
                .packing(Packing::None),
        ],
    )
}

#[test]
fn transfers_that_break_off_go_on_where_they_stopped() {
    let world = World::with(&[big()]);
    let path = world.server.path(".deb");
    world.server.set_fault(&path, Fault::Cut { after: 300_000, times: 3 });
    world.build_spec("bookworm?packages=big&suites=bookworm");
    let log: Vec<String> = world.server.take_log().into_iter().filter(|l| l.contains(".deb")).collect();
    assert_eq!(log, [format!("GET {path}"), format!("206 {path}"), format!("206 {path}"), format!("206 {path}")]);
    assert_eq!((world.cached(), world.debris()), (1, Vec::new()));
    // Servers without ranges start over.
    std::fs::remove_dir_all(world.path("cache/debs")).unwrap();
    world.server.state.lock().unwrap().no_ranges = true;
    world.server.set_fault(&path, Fault::Cut { after: 300_000, times: 2 });
    world.build_spec("bookworm?packages=big&suites=bookworm");
}

#[test]
fn a_mirror_that_keeps_dying() {
    let world = World::with(&[big()]);
    let path = world.server.path(".deb");
    world.server.set_fault(&path, Fault::Cut { after: 1000, times: 100 });
    let error = world.build_error("bookworm?packages=big");
    assert!(matches!(&error, Error::Network { reason, .. } if reason.contains("5 tries")), "{error}");
    assert_eq!(world.cached(), 0);
    // The next try goes on with what there is.
    world.server.clear_faults();
    world.server.take_log();
    let resolution = world.resolve("bookworm?packages=big&suites=bookworm").unwrap();
    assert_eq!(received(&world, &resolution), resolution.download_size(), "what was there counts as well");
    assert!(world.server.take_log().contains(&format!("206 {path}")));
    assert_eq!((world.cached(), world.debris()), (1, Vec::new()));
}

#[test]
fn packages_that_are_not_the_signed_ones() {
    let world = World::with(&[big()]);
    let path = world.server.path(".deb");
    let resolution = world.resolve("bookworm?packages=big").unwrap();
    let fails = || {
        let error = world.build(&resolution).unwrap_err();
        assert_eq!((world.cached(), world.debris()), (0, Vec::new()), "{error}");
        error
    };
    world.server.edit(".deb", |bytes| bytes[500_000] ^= 1);
    assert!(matches!(fails(), Error::Hash { .. }));
    world.server.edit(".deb", |bytes| bytes.push(0));
    assert!(matches!(fails(), Error::Size { more: true, .. }));
    world.server.set_fault(&path, Fault::Endless);
    assert!(matches!(fails(), Error::Size { more: true, .. }));
    world.server.set_fault(&path, Fault::Status(404));
    assert!(matches!(fails(), Error::Http { status: 404, .. }));
    world.server.set_fault(&path, Fault::Status(500));
    assert!(matches!(fails(), Error::Http { status: 500, .. }));
}

#[test]
fn a_claimed_length_is_not_believed() {
    let world = World::with(&[big()]);
    let path = world.server.path(".deb");
    world.server.set_fault(&path, Fault::Length(usize::MAX / 4));
    // All bytes come, and are the signed ones; that more were announced does not matter.
    world.build_spec("bookworm?packages=big");
    std::fs::remove_dir_all(world.path("cache/debs")).unwrap();
    world.server.set_fault(&path, Fault::Length(10));
    let error = world.build_error("bookworm?packages=big");
    assert!(matches!(error, Error::Size { actual: 10, .. }), "{error}");
    assert_eq!((world.cached(), world.debris()), (0, Vec::new()));
}

#[test]
fn a_damaged_part_of_a_package_is_fetched_again() {
    let world = World::with(&[big()]);
    let resolution = world.resolve("bookworm?packages=big").unwrap();
    let package = resolution.package("big").unwrap();
    let name: String = package.sha256.iter().map(|byte| format!("{byte:02x}")).collect();
    std::fs::create_dir_all(world.path("cache/partial")).unwrap();
    for length in [1000, package.size as usize] {
        std::fs::write(world.path("cache/partial").join(&name), vec![0; length]).unwrap();
        world.build_spec("bookworm?packages=big");
        assert_eq!((world.cached(), world.debris()), (1, Vec::new()));
        std::fs::remove_dir_all(world.path("cache/debs")).unwrap();
    }
}

#[test]
fn a_damaged_package_in_the_cache_is_fetched_again() {
    let world = World::with(&[big()]);
    world.build_spec("bookworm?packages=big");
    let path = std::fs::read_dir(world.path("cache/debs")).unwrap().next().unwrap().unwrap().path();
    let good = std::fs::read(&path).unwrap();
    std::fs::write(&path, &good[..good.len() / 2]).unwrap();
    world.build_spec("bookworm?packages=big");
    let mut flipped = good.clone();
    flipped[600_000] ^= 1;
    std::fs::write(&path, &flipped).unwrap();
    world.build_spec("bookworm?packages=big");
    assert_eq!(std::fs::read(&path).unwrap(), good);
}

#[test]
fn many_builds_at_once_download_once() {
    let world = World::with(&[big()]);
    let resolution = world.resolve("bookworm?packages=big").unwrap();
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| assert_eq!(received(&world, &resolution), resolution.download_size()));
        }
    });
    let downloads = world.server.take_log().into_iter().filter(|l| l.ends_with(".deb")).count();
    assert_eq!((downloads, world.cached(), world.debris()), (1, 1, Vec::new()));
}

/// Fetches the packages and tells how many bytes were announced, whoever downloaded them: all of them, or none if nothing
/// was said to be missing.
fn received(world: &World, resolution: &kiln_deb::Resolution) -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    let sum = AtomicU64::new(0);
    let events = |event: kiln_deb::Event<'_>| {
        if let kiln_deb::Event::Received { bytes } = event {
            sum.fetch_add(bytes, Ordering::Relaxed);
        }
    };
    let context = kiln_deb::Context { events: Some(&events), ..world.context() };
    kiln_deb::fetch(resolution, &context).unwrap();
    let sum = sum.load(Ordering::Relaxed);
    if sum == 0 { resolution.download_size() } else { sum }
}

#[test]
fn stopping() {
    let world = World::with(&[big()]);
    let resolution = world.resolve("bookworm?packages=big").unwrap();
    let flag = std::sync::atomic::AtomicBool::new(true);
    let mut context = world.context();
    context.cancelled = Some(&flag);
    assert!(matches!(kiln_deb::fetch(&resolution, &context), Err(Error::Cancelled)));
    assert_eq!(world.cached(), 0);
}

fn system() -> Vec<Pkg> {
    vec![
        base_files().field("Priority", "required"),
        pkg("awk", "1").program("usr/bin/awk", b"x"),
        pkg("base-passwd", "1")
            .field("Essential", "yes")
            .program("usr/sbin/update-passwd", b"x")
            .script("preinst", "#!/bin/sh\ncat > /etc/passwd\n")
            .script("postinst", "#!/bin/sh\n"),
        pkg("libc6", "2")
            .field("Multi-Arch", "same")
            .field("Priority", "optional")
            .control_file("triggers", "activate-noawait ldconfig\n")
            .file("lib/libc.so.6", b"c"),
        pkg("libc-bin", "2")
            .field("Essential", "yes")
            .depends("libc6")
            .control_file("triggers", "# x\ninterest-await ldconfig\ninterest-noawait /usr/share/x\n")
            .script("postinst", "#!/bin/sh\n"),
        pkg("apt", "2")
            .script("preinst", "#!/bin/sh\nset -e\n# x\ndpkg-maintscript-helper rm_conffile /etc/x 1 -- \"$@\"\n")
            .file("etc/apt/apt.conf.d/01x", b"conf")
            .control_file("conffiles", "/etc/apt/apt.conf.d/01x\n/etc/apt/gone\n"),
        pkg("usr-is-merged", "1"),
        pkg("important", "1").field("Priority", "required"),
        pkg("other", "1"),
    ]
}

fn minbase(fail: bool) -> (World, Result<PathBuf, Error>, Recorder) {
    let world = world(system());
    let recorder = Recorder { steps: Mutex::default(), fail };
    let dest = world.path("root");
    std::fs::create_dir(&dest).unwrap();
    let resolution = world.resolve("bookworm").unwrap();
    assert_eq!(
        common::names(&resolution),
        ["apt", "awk", "base-files", "base-passwd", "important", "libc-bin", "libc6", "usr-is-merged"]
    );
    let options = BuildOptions { ownership: ownership(), configure: Some(&recorder) };
    let built = kiln_deb::build(&resolution, &dest, &world.context(), &options);
    (world, built.map(|_| dest), recorder)
}

#[test]
fn a_minbase_is_left_to_dpkg() {
    let (world, root, recorder) = minbase(false);
    let root = root.unwrap();
    let read = |path: &str| String::from_utf8(std::fs::read(root.join(path)).unwrap()).unwrap();
    let status = read("var/lib/dpkg/status");
    assert!(status.contains("Package: libc-bin\nStatus: install ok unpacked\nVersion: 2\n"), "{status}");
    assert!(status.contains("Package: libc6\nStatus: install ok installed\n"), "{status}");
    assert!(
        status.contains("Conffiles:\n /etc/apt/apt.conf.d/01x 8d25a3e8e64e9b05b6abf36ce6d3e4a2\n\n")
            || status.contains("Conffiles:\n /etc/apt/apt.conf.d/01x "),
        "{status}"
    );
    assert!(!status.contains("/etc/apt/gone"));
    assert!(
        read("var/lib/dpkg/info/libc6:amd64.list").contains("/lib/libc.so.6\n"),
        "as the package has it, not as it is merged"
    );
    assert_eq!(read("var/lib/dpkg/info/format"), "1\n");
    assert_eq!(read("var/lib/dpkg/triggers/ldconfig"), "libc-bin\n");
    assert_eq!(read("var/lib/dpkg/triggers/File"), "/usr/share/x libc-bin/noawait\n");
    assert!(!root.join("usr/sbin/policy-rc.d").exists());
    let sources = read("etc/apt/sources.list.d/debian.sources");
    assert_eq!(
        sources,
        format!(
            "Types: deb\nURIs: {}/debian\nSuites: bookworm\nComponents: main\nSigned-By: /etc/apt/keyrings/keys.gpg\n",
            world.server.url
        )
    );
    assert_eq!(std::fs::read(root.join("etc/apt/keyrings/keys.gpg")).unwrap(), world.key.binary());
    let steps = recorder.steps.into_inner().unwrap();
    let script = &steps[0].argv[2];
    assert!(
        script.contains("/var/lib/dpkg/info/base-passwd.preinst install") && !script.contains("apt.preinst"),
        "{script}"
    );
    assert!(script.ends_with("exec dpkg --configure --pending --force-unsafe-io --force-confold --no-pager\n"));
    assert!(steps[0].env.contains(&("SOURCE_DATE_EPOCH".into(), "1790812800".into())));
}

#[test]
fn a_script_that_fails_is_shown() {
    let (_world, error, _) = minbase(true);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("exit code 1") && error.contains("error processing package x"), "{error}");
    let world = world(system());
    assert!(matches!(world.build(&world.resolve("bookworm").unwrap()), Err(Error::NoRunner)));
}

#[test]
fn file_mirrors() {
    let world = world(web());
    let mirror = world.path("mirror");
    for (path, bytes) in &world.server.state.lock().unwrap().files {
        let path = mirror.join(path.trim_start_matches('/'));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    let text = format!(
        "deb://bookworm?packages=web&mirror=file://{}/debian&keyring={}",
        mirror.display(),
        world.path("keys.gpg").display()
    );
    let resolution = kiln_deb::resolve(&Spec::parse(&text).unwrap(), &world.context()).unwrap();
    let (root, _) = world.build(&resolution).unwrap();
    assert!(root.join("usr/bin/web-2").exists());
    assert_eq!(world.server.take_log(), Vec::<String>::new());
}
