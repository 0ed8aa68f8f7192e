//! `COPY` as Docker does it: where things go, and what becomes of what is there.

#![allow(clippy::unwrap_used)]

mod common;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use common::{Case, chmod, is_root, listing, mode, mtime, select, set_mtime, tree};
use kiln_rootfs::copy::{CopyRequest, Mtime, copy};
use kiln_rootfs::{
    ContextTree, FileKind, Ignore, Owner, Ownership, Root, RootfsError, Selector, Source, Stack, Target, xattr,
};

#[test]
fn where_files_go() {
    for (source, dest, expected) in [
        ("f", "/x", &["x = F"][..]),
        ("f", "/x/", &["x/", "x/f = F"]),
        ("f", "/a/b/x", &["a/", "a/b/", "a/b/x = F"]),
        ("f", "x/.", &["x/", "x/f = F"]),
        ("f", "/", &["f = F"]),
        ("f", ".", &["f = F"]),
        ("/f", "g", &["g = F"]),
        ("../../f", "g", &["g = F"]),
        ("d", "/x", &["x/", "x/g = G", "x/l -> g", "x/sub/", "x/sub/h = H"]),
        ("d/", "/x/", &["x/", "x/g = G", "x/l -> g", "x/sub/", "x/sub/h = H"]),
        ("d/.", "/x", &["x/", "x/g = G", "x/l -> g", "x/sub/", "x/sub/h = H"]),
        ("d/sub", "/", &["h = H"]),
        ("d/sub/../g", "x", &["x = G"]),
        ("lf", "/x/", &["x/", "x/lf = F"]),
        ("ld", "/x/", &["x/", "x/h = H"]),
        ("ld/h", "/x", &["x = H"]),
        ("abs", "/x", &["x = G"]),
        ("d/l", "/x", &["x = G"]),
        ("[d]/*/h", "/x/", &["x/", "x/h = H"]),
        ("d/s*", "/x/", &["x/", "x/h = H"]),
        ("d/?", "/x/", &["x/", "x/g = G", "x/l = G"]),
        ("*f", "/x/", &["x/", "x/f = F", "x/lf = F"]),
        ("ld/*", "/x/", &["x/", "x/h = H"]),
        ("\\f", "/x", &["x = F"]),
        ("q\\*", "/x", &["x = Q"]),
    ] {
        let c = Case::new();
        tree(&c.src(), &["f=F", "q*=Q", "d/g=G", "d/sub/h=H", "d/l->g", "lf->f", "ld->d/sub", "abs->/d/g"]);
        c.copy(source, dest).unwrap_or_else(|e| panic!("{source} {dest}: {e}"));
        assert_eq!(c.listing(), expected, "{source} {dest}");
    }
}

#[test]
fn missing_sources_are_named() {
    let c = Case::new();
    tree(&c.src(), &["f=F", "dangling->nowhere", "loop->loop", "out->../../../../etc/hostname-that-is-not"]);
    for missing in ["nope", "f/x", "*.txt", "dangling", "no/where/at/all", "out"] {
        let err = c.copy(missing, "/x").unwrap_err();
        let text = err.to_string();
        assert!(text.contains(missing), "{missing}: {text}");
    }
    assert!(matches!(c.copy("nope", "/x"), Err(RootfsError::NotFound { .. })));
    assert!(matches!(c.copy("[", "/x"), Err(RootfsError::Pattern { .. })));
    let empty = Selector { allow_empty: true, ..select(&["*.txt"]) };
    let request = CopyRequest { select: empty, dest: "/x/".into(), ..CopyRequest::default() };
    assert_eq!(c.copy_with(&request).unwrap().files, 0);
}

#[test]
fn several_files_need_a_directory() {
    let c = Case::new();
    tree(&c.src(), &["a=A", "b=B"]);
    assert!(matches!(c.copy("?", "/x"), Err(RootfsError::DestinationNotDirectory { .. })));
    tree(&c.low(), &["dir/"]);
    c.copy("?", "/dir").unwrap();
    assert_eq!(c.listing(), ["dir/", "dir/a = A", "dir/b = B"]);
}

#[test]
fn links_in_the_destination_are_followed_inside_the_target() {
    let c = Case::new();
    tree(&c.src(), &["f=F", "d/g=G"]);
    tree(
        &c.low(),
        &["real/", "abs->/real", "rel->real", "up->../../../real", "file=old", "tofile->file", "dangling->/new/place"],
    );
    for dest in ["/abs/", "/rel/x1", "/up/x2", "/abs"] {
        c.copy("f", dest).unwrap();
    }
    assert_eq!(c.listing(), ["real/", "real/f = F", "real/x1 = F", "real/x2 = F"]);
    c.copy("f", "/tofile").unwrap();
    assert!(c.listing().contains(&"file = F".to_owned()));
    c.copy("d", "/dangling").unwrap();
    assert!(c.listing().contains(&"new/place/g = G".to_owned()));
    assert!(!c.listing().iter().any(|l| l.contains("->")), "{:?}", c.listing());
}

#[test]
fn links_in_the_tree_are_replaced_not_followed() {
    let c = Case::new();
    tree(&c.src(), &["d/f=new", "e/sub/x=X"]);
    tree(&c.low(), &["app/f->/etc/target", "etc/target=keep", "app/sub->/etc"]);
    c.copy("d", "/app").unwrap();
    assert_eq!(c.listing(), ["app/", "app/f = new"]);
    // a directory does not replace a link to one, as in BuildKit
    let err = c.copy("e", "/app").unwrap_err();
    assert!(matches!(err, RootfsError::CannotReplace { existing: FileKind::Symlink, new: FileKind::Dir, .. }), "{err}");
}

#[test]
fn files_and_directories_do_not_replace_each_other() {
    for upper in [false, true] {
        let c = Case::new();
        tree(&c.src(), &["d/x=X", "e/x/y=Y", "f=F"]);
        let there = if upper { c.up() } else { c.low() };
        tree(&there, &["a/x/", "b/x=old"]);
        assert!(matches!(c.copy("d", "/a"), Err(RootfsError::CannotReplace { new: FileKind::File, .. })));
        assert!(matches!(c.copy("e", "/b"), Err(RootfsError::CannotReplace { new: FileKind::Dir, .. })));
        assert!(matches!(c.copy("e", "/b/x"), Err(RootfsError::CannotReplace { new: FileKind::Dir, .. })));
        c.copy("f", "/b/x").unwrap();
        assert!(c.listing().contains(&"b/x = F".to_owned()));
        assert!(c.copy("f", "/b/x/y").is_err(), "a file is no parent");
    }
}

#[test]
fn metadata_of_what_is_copied_and_of_what_was_there() {
    let c = Case::new();
    tree(&c.src(), &["d/f=F", "d/sub/g=G"]);
    for (p, m) in [("d", 0o701), ("d/f", 0o640), ("d/sub", 0o1750)] {
        chmod(&c.src().join(p), m);
    }
    set_mtime(&c.src().join("d/f"), 1_000_000, 123_456_789);
    set_mtime(&c.src().join("d/sub"), 2_000_000, 0);
    set_mtime(&c.src().join("d"), 3_000_000, 5);
    tree(&c.low(), &["have/sub/old=old"]);
    chmod(&c.low().join("have"), 0o711);
    chmod(&c.low().join("have/sub"), 0o700);
    set_mtime(&c.low().join("have/sub"), 5, 0);
    set_mtime(&c.low().join("have"), 4, 4);
    set_mtime(&c.low(), 6, 6);
    c.target().adopt_root().unwrap();
    c.copy("d", "/have").unwrap();
    let up = c.up();
    assert_eq!((mode(&up.join("have")), mtime(&up.join("have"))), (0o711, (4, 4)), "the destination keeps its own");
    assert_eq!(mtime(&up), (6, 6), "so does the root");
    assert_eq!((mode(&up.join("have/f")), mtime(&up.join("have/f"))), (0o640, (1_000_000, 123_456_789)));
    assert_eq!(
        (mode(&up.join("have/sub")), mtime(&up.join("have/sub"))),
        (0o1750, (2_000_000, 0)),
        "those below do not"
    );
    c.copy("d", "/made/here").unwrap();
    assert_eq!(mode(&up.join("made")), 0o755);
    assert_eq!((mode(&up.join("made/here")), mtime(&up.join("made/here"))), (0o755, (3_000_000, 5)), "as BuildKit");
}

#[test]
fn times_can_be_set_or_clamped() {
    let c = Case::new();
    tree(&c.src(), &["d/old=o", "d/new=n", "d/l->new", "d/sub/"]);
    for (p, t) in [("d/old", 10), ("d/new", 1000), ("d/l", 1000), ("d/sub", 1000), ("d", 1000)] {
        set_mtime(&c.src().join(p), t, 0);
    }
    let request =
        |dest: &str, mtime| CopyRequest { select: select(&["d"]), dest: dest.into(), mtime, ..CopyRequest::default() };
    c.copy_with(&request("/p/clamp/", Mtime::Clamp((500, 0)))).unwrap();
    c.copy_with(&request("/p/set/", Mtime::Set((7, 7)))).unwrap();
    let at = |p: &str| mtime(&c.up().join(p));
    assert_eq!(at("p/clamp/old"), (10, 0));
    for p in ["p/clamp/new", "p/clamp/l", "p/clamp/sub", "p/clamp", "p"] {
        assert_eq!(at(p), (500, 0), "{p}");
    }
    for p in ["p/set/old", "p/set/new", "p/set/l", "p/set/sub", "p/set"] {
        assert_eq!(at(p), (7, 7), "{p}");
    }
}

#[test]
fn chmod_applies_to_all_but_links_and_as_a_number_to_what_is_made() {
    let c = Case::new();
    tree(&c.src(), &["d/f=F", "d/sub/g=G", "d/l->f"]);
    chmod(&c.src().join("d/f"), 0o600);
    for (change, f, sub, made) in [
        ("0444", 0o444, 0o444, 0o444),
        ("u=rwX,go=rX", 0o644, 0o755, 0o755),
        ("700", 0o700, 0o700, 0o700),
        ("4755", 0o4755, 0o4755, 0o755),
        ("2777", 0o2777, 0o2777, 0o755),
        ("a-w", 0o400, 0o555, 0o755),
    ] {
        let dest = format!("/{change}/to/");
        let mode_change = Some(change.parse().unwrap());
        c.copy_with(&CopyRequest {
            select: select(&["d"]),
            dest: (&dest).into(),
            mode: mode_change,
            ..CopyRequest::default()
        })
        .unwrap();
        let parent = c.up().join(change);
        let up = parent.join("to");
        assert_eq!((mode(&up.join("f")), mode(&up.join("sub"))), (f, sub), "{change}");
        assert_eq!((mode(&parent), mode(&up)), (made, made), "{change}: as BuildKit");
        assert_eq!(mode(&up.join("l")), 0o777);
    }
}

#[test]
fn chown_applies_to_all_and_to_parents() {
    if !is_root("chown") {
        return;
    }
    let c = Case::new();
    tree(&c.src(), &["d/f=F", "d/l->f", "d/suid=S"]);
    chmod(&c.src().join("d/suid"), 0o4755);
    let owner = Some(Owner { uid: 1234, gid: 5678 });
    c.copy_with(&CopyRequest { select: select(&["d"]), dest: "/p/x".into(), owner, ..CopyRequest::default() }).unwrap();
    for p in ["p", "p/x", "p/x/f", "p/x/l", "p/x/suid"] {
        let m = c.up().join(p).symlink_metadata().unwrap();
        assert_eq!((m.uid(), m.gid()), (1234, 5678), "{p}");
    }
    assert_eq!(mode(&c.up().join("p/x/suid")), 0o4755, "chown would take the bit away");
    // without --chown: owners of a stage are kept, parents are root's
    for p in ["d", "d/f"] {
        std::os::unix::fs::lchown(c.src().join(p), Some(42), Some(43)).unwrap();
    }
    c.copy("d", "/q/y").unwrap();
    let uid = |p: &str| c.up().join(p).symlink_metadata().unwrap().uid();
    assert_eq!((uid("q"), uid("q/y"), uid("q/y/f"), uid("q/y/l")), (0, 0, 42, 0));
    // a context's owners read as root's
    let context = ContextTree::scan(&Root::open(&c.src()).unwrap(), None, None).unwrap();
    let request = CopyRequest { select: select(&["d"]), dest: "/ctx".into(), ..CopyRequest::default() };
    copy(&request, Source::Tree(&context), &c.target()).unwrap();
    assert_eq!(uid("ctx/f"), 0);
}

#[test]
fn filters_leave_out_and_bring_parents_along() {
    let c = Case::new();
    tree(&c.src(), &["a/b/keep.c=1", "a/b/no.o=2", "a/no.txt=3", "x/y/z=4", "top.c=5"]);
    let only_c = |p: &Path, is_dir: bool| match (is_dir, p.extension() == Some(OsStr::new("c"))) {
        (true, _) => Ignore::SkipButDescend,
        (false, true) => Ignore::Keep,
        (false, false) => Ignore::Skip,
    };
    chmod(&c.src().join("a"), 0o750);
    let selector = || Selector { filter: Some(&only_c), ..select(&["/"]) };
    c.copy_with(&CopyRequest { select: selector(), dest: "/out".into(), ..CopyRequest::default() }).unwrap();
    let expected = ["out/", "out/a/", "out/a/b/", "out/a/b/keep.c = 1", "out/top.c = 5"];
    assert_eq!(c.listing(), expected);
    assert_eq!(mode(&c.up().join("out/a")), 0o750, "a parent that comes along has its own metadata");
    let tree = ContextTree::scan(&Root::open(&c.src()).unwrap(), None, None).unwrap();
    let other = Case::new();
    let request = CopyRequest { select: selector(), dest: "/out".into(), ..CopyRequest::default() };
    copy(&request, Source::Tree(&tree), &other.target()).unwrap();
    assert_eq!(other.listing(), expected, "the same from a scanned context");
    // --exclude also leaves out a file that was named itself, as documented
    let no_o = |p: &Path, _: bool| if p.extension() == Some(OsStr::new("o")) { Ignore::Skip } else { Ignore::Keep };
    let select = Selector { filter: Some(&no_o), ..select(&["a/b/*"]) };
    c.copy_with(&CopyRequest { select, dest: "/ex/".into(), ..CopyRequest::default() }).unwrap();
    assert_eq!(listing(&c.up().join("ex")), ["keep.c = 1"]);
}

#[test]
fn unusual_names_and_depths() {
    let c = Case::new();
    let odd = c.src().join("d").join(OsStr::from_bytes(b"caf\xe9 \n\xff"));
    std::fs::create_dir_all(&odd).unwrap();
    std::fs::write(odd.join("x".repeat(255)), "long").unwrap();
    // deeper than PATH_MAX and than the number of descriptors
    let mut dir =
        rustix::fs::open(c.src().join("d"), rustix::fs::OFlags::DIRECTORY, rustix::fs::Mode::empty()).unwrap();
    let depth = 1100;
    for _ in 0..depth {
        rustix::fs::mkdirat(&dir, "deeper", 0o755.into()).unwrap();
        dir = rustix::fs::openat(&dir, "deeper", rustix::fs::OFlags::DIRECTORY, rustix::fs::Mode::empty()).unwrap();
    }
    drop(rustix::fs::openat(&dir, "bottom", rustix::fs::OFlags::CREATE, 0o600.into()).unwrap());
    let report = c.copy("d", "/x").unwrap();
    assert_eq!((report.dirs, report.files), (depth + 1, 2));
    assert_eq!(std::fs::read(c.up().join("x").join(odd.file_name().unwrap()).join("x".repeat(255))).unwrap(), b"long");
    let before = kiln_rootfs::tree_digest(Source::Stack(&c.source()), &select(&["d"])).unwrap();
    let after = kiln_rootfs::tree_digest(Source::Stack(&Root::open(&c.up()).unwrap().into()), &select(&["x"])).unwrap();
    assert_eq!(before, after);
    Root::open(&c.up()).unwrap().remove_all(Path::new("x")).unwrap();
    Root::open(&c.src()).unwrap().remove_all(Path::new("d")).unwrap();
    assert!(c.listing().is_empty());
}

#[test]
fn special_files() {
    let c = Case::new();
    tree(&c.src(), &["d/f=F"]);
    let fifo = c.src().join("d/fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o640.into(), 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(c.src().join("d/sock")).unwrap();
    let root = is_root("making devices");
    if root {
        let device = rustix::fs::makedev(1, 3);
        let char_device = rustix::fs::FileType::CharacterDevice;
        rustix::fs::mknodat(rustix::fs::CWD, c.src().join("d/null"), char_device, 0o666.into(), device).unwrap();
        // a whiteout in a source is nothing, and must not become one in the target
        rustix::fs::mknodat(rustix::fs::CWD, c.src().join("d/zero"), char_device, 0o666.into(), 0).unwrap();
    }
    let report = c.copy("d", "/x").unwrap();
    assert_eq!(report.skipped, 1, "a socket");
    let kind = |p: &str| Root::open(&c.up()).unwrap().stat(Path::new(p), false).map(|s| (s.kind, s.rdev, s.mode));
    assert_eq!(kind("x/fifo").unwrap(), (FileKind::Fifo, (0, 0), mode(&fifo)));
    if root {
        assert_eq!(kind("x/null").unwrap().1, (1, 3));
    }
    assert!(kind("x/sock").unwrap_err().is_not_found() && kind("x/zero").unwrap_err().is_not_found());
}

#[test]
fn hard_links_within_the_tree_are_kept() {
    let c = Case::new();
    tree(&c.src(), &["d/a=A", "d/sub/", "d/other=O"]);
    for l in ["d/b", "d/sub/c"] {
        std::fs::hard_link(c.src().join("d/a"), c.src().join(l)).unwrap();
    }
    std::fs::hard_link(c.src().join("d/other"), c.src().join("outside")).unwrap();
    set_mtime(&c.src().join("d/sub"), 9, 9);
    c.copy("d", "/x").unwrap();
    let ino = |p: &str| c.up().join(p).metadata().unwrap().ino();
    assert!(ino("x/a") == ino("x/b") && ino("x/a") == ino("x/sub/c") && ino("x/a") != ino("x/other"));
    assert_eq!(c.up().join("x/other").metadata().unwrap().nlink(), 1);
    assert_eq!(mtime(&c.up().join("x/sub")), (9, 9));
}

#[test]
fn layers_merge_as_in_an_overlay() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root, also of a user namespace, can make these");
        return;
    }
    let c = Case::new();
    let [one, two, three] = ["1", "2", "3"].map(|n| c.tmp.path().join(n));
    tree(&one, &["app/a=a1", "app/b=b1", "app/sub/x=x1", "gone/y=y", "app/opq/hidden=h", "kind/z=z"]);
    tree(&two, &["app/b=b2", "app/new=n2", "app/opq/shown=s", "kind=file"]);
    tree(&three, &["app/sub/y=y3"]);
    let whiteout = |p: &Path| {
        let t = rustix::fs::FileType::CharacterDevice;
        rustix::fs::mknodat(rustix::fs::CWD, p, t, rustix::fs::Mode::empty(), 0).unwrap();
    };
    whiteout(&two.join("gone"));
    whiteout(&three.join("app/a"));
    rustix::fs::lsetxattr(
        two.join("app/opq"),
        kiln_rootfs::overlay::opaque_attribute(),
        b"y",
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    let layers = [&one, &two, &three].map(|p| Root::open(p).unwrap());
    let stack = Stack::new(&layers);
    let request = CopyRequest { select: select(&["/"]), dest: "/".into(), ..CopyRequest::default() };
    copy(&request, Source::Stack(&stack), &c.target()).unwrap();
    let expected = [
        "app/",
        "app/b = b2",
        "app/new = n2",
        "app/opq/",
        "app/opq/shown = s",
        "app/sub/",
        "app/sub/x = x1",
        "app/sub/y = y3",
        "kind = file",
    ];
    assert_eq!(c.listing(), expected);
    // and the kernel agrees
    let lowers: Vec<&Path> = vec![&one, &two, &three];
    let spec = kiln_rootfs::overlay::OverlaySpec { lowers: &lowers, upper: None, volatile: false };
    if let Ok(fd) = kiln_rootfs::overlay::mount(&spec) {
        let merged = Stack::from(Root::from_fd(fd));
        let digest = |s: &Stack| kiln_rootfs::tree_digest(Source::Stack(s), &select(&["/"])).unwrap();
        assert_eq!(digest(&stack), digest(&merged));
        assert_eq!(kiln_rootfs::manifest(Source::Stack(&stack), &select(&["app"])).unwrap().len(), 8);
    }
}

#[test]
fn what_a_whiteout_hid_stays_hidden() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root, also of a user namespace, can make these");
        return;
    }
    let c = Case::new();
    tree(&c.low(), &["d/old=old", "f=f"]);
    let target = c.target();
    kiln_rootfs::fileops::rm(&target, Path::new("/d"), false, false).unwrap();
    kiln_rootfs::fileops::rm(&target, Path::new("/f"), false, false).unwrap();
    assert_eq!(c.listing(), ["d whiteout", "f whiteout"]);
    tree(&c.src(), &["d/new=new", "f=again"]);
    c.copy("d", "/d").unwrap();
    c.copy("f", "/f").unwrap();
    assert_eq!(c.listing(), ["d/", "d/new = new", "f = again"]);
    assert!(target.view().stat(Path::new("/d/old"), false).unwrap().is_none());
}

/// A privileged step may set it on its files; to the overlay that the next step sees it means nothing.
#[test]
fn the_mark_of_unprivileged_overlays_hides_nothing_from_root() {
    if !is_root("the name space of trusted attributes") {
        return;
    }
    let c = Case::new();
    tree(c.tmp.path(), &["below/d/old=O", "src/d/new=N"]);
    let mark = |n: &str| rustix::fs::lsetxattr(c.src().join("d"), n, b"y", rustix::fs::XattrFlags::empty());
    if mark("user.overlay.opaque").is_err() {
        eprintln!("SKIPPED: no attributes on this file system");
        return;
    }
    let stack = Stack::new(&[c.root(&c.tmp.path().join("below")), c.root(&c.src())]);
    let copied = |dest: &str| {
        let request = CopyRequest { select: select(&["d"]), dest: dest.into(), ..CopyRequest::default() };
        copy(&request, Source::Stack(&stack), &Target::scratch(c.root(&c.up()))).unwrap();
        listing(&c.up().join(dest))
    };
    assert_eq!(copied("x"), ["new = N", "old = O"]);
    assert!(stack.stat(Path::new("/d/old"), false).unwrap().is_some());
    mark("trusted.overlay.opaque").unwrap();
    assert_eq!(copied("y"), ["new = N"]);
    assert!(stack.stat(Path::new("/d/old"), false).unwrap().is_none());
}

#[test]
fn attributes_and_capabilities_are_kept() {
    if !is_root("owners that are not recorded") {
        return;
    }
    let c = Case::new();
    tree(&c.src(), &["d/f=F", "d/sub/"]);
    let set =
        |p: &str, n: &str, v: &[u8]| rustix::fs::lsetxattr(c.src().join(p), n, v, rustix::fs::XattrFlags::empty());
    if set("d/f", "user.test", b"value").is_err() {
        eprintln!("SKIPPED: no attributes on this file system");
        return;
    }
    set("d/sub", "user.dir", b"dir").unwrap();
    set("d/f", "user.kiln.stat", b"0:0:104755").unwrap();
    set("d/f", "user.overlay.opaque", b"y").unwrap();
    let capability = *b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let capable = set("d/f", "security.capability", &capability).is_ok();
    let before = kiln_rootfs::tree_digest(Source::Stack(&c.source()), &select(&["d"])).unwrap();
    let owner = is_root("chown").then_some(Owner { uid: 7, gid: 7 });
    c.copy_with(&CopyRequest { select: select(&["d"]), dest: "/x".into(), owner, ..CopyRequest::default() }).unwrap();
    let root = Root::open(&c.up()).unwrap();
    let attrs = root.xattrs(Path::new("x/f"), |_| true).unwrap();
    assert_eq!(attrs.get(OsStr::new("user.test")).unwrap(), b"value");
    assert!(!attrs.contains_key(OsStr::new(xattr::KILN_STAT)), "a forged owner must not enter a layer");
    assert!(!attrs.contains_key(OsStr::new("user.overlay.opaque")));
    assert_eq!(root.xattrs(Path::new("x/sub"), |_| true).unwrap().get(OsStr::new("user.dir")).unwrap(), b"dir");
    assert_eq!(mode(&c.up().join("x/f")) & 0o4000, 0);
    if capable && owner.is_some() {
        assert_eq!(attrs.get(OsStr::new(xattr::CAPABILITY)).unwrap(), &capability, "after chown");
    }
    set("d/f", "user.test", b"other").unwrap();
    assert_ne!(before, kiln_rootfs::tree_digest(Source::Stack(&c.source()), &select(&["d"])).unwrap());
}

#[test]
fn sparse_files_stay_sparse() {
    let c = Case::new();
    let file = std::fs::File::create(c.src().join("sparse")).unwrap();
    file.set_len(64 << 20).unwrap();
    std::os::unix::fs::FileExt::write_at(&file, b"middle", 32 << 20).unwrap();
    drop(file);
    c.copy("sparse", "/x").unwrap();
    let (a, b) = (c.src().join("sparse"), c.up().join("x"));
    assert_eq!(b.metadata().unwrap().len(), 64 << 20);
    assert!(b.metadata().unwrap().blocks() <= a.metadata().unwrap().blocks().max(16), "holes are kept");
    let mut middle = [0; 6];
    std::os::unix::fs::FileExt::read_exact_at(&std::fs::File::open(&b).unwrap(), &mut middle, 32 << 20).unwrap();
    assert_eq!(&middle, b"middle");
}

#[test]
fn large_files_and_large_directories() {
    let c = Case::new();
    let content: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(c.src().join("large"), &content).unwrap();
    c.copy("large", "/large").unwrap();
    assert!(std::fs::read(c.up().join("large")).unwrap() == content);
    std::fs::create_dir(c.src().join("wide")).unwrap();
    for i in 0..1500 {
        std::fs::write(c.src().join(format!("wide/{i}")), i.to_string()).unwrap();
    }
    set_mtime(&c.src().join("wide"), 77, 0);
    assert_eq!(c.copy("/", "/all").unwrap().files, 1501);
    assert_eq!(mtime(&c.up().join("all/wide")), (77, 0));
    assert_eq!(std::fs::read_to_string(c.up().join("all/wide/1499")).unwrap(), "1499");
}

#[test]
fn a_file_that_changed_after_the_scan_is_an_error_that_names_it() {
    let c = Case::new();
    tree(&c.src(), &["d/stable=1", "d/victim=2"]);
    let root = Root::open(&c.src()).unwrap();
    let request = |dest: &str| CopyRequest { select: select(&["d"]), dest: dest.into(), ..CopyRequest::default() };
    let changes: [&dyn Fn(&Path); 4] = [
        &|v| std::fs::write(v, "other").unwrap(),
        &|v| std::fs::remove_file(v).unwrap(),
        &|v| {
            std::fs::remove_file(v).unwrap();
            std::os::unix::fs::symlink("/etc/passwd", v).unwrap();
        },
        &|v| {
            std::fs::remove_file(v).unwrap();
            rustix::fs::mknodat(rustix::fs::CWD, v, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        },
    ];
    for (i, change) in changes.iter().enumerate() {
        let victim = c.src().join("d/victim");
        let _ = std::fs::remove_file(&victim);
        std::fs::write(&victim, "2").unwrap();
        let context = ContextTree::scan(&root, None, None).unwrap();
        change(&victim);
        let err = copy(&request(&format!("/x{i}")), Source::Tree(&context), &c.target()).unwrap_err();
        assert!(matches!(err, RootfsError::Changed { .. }), "{i}: {err}");
        assert!(err.to_string().contains("d/victim"), "{err}");
        let err = context.digest(&select(&["d"])).unwrap_err();
        assert!(err.to_string().contains("d/victim"), "{i}: {err}");
    }
}

#[test]
fn owners_are_recorded_where_they_cannot_be_set() {
    let c = Case::new();
    tree(&c.src(), &["d/f=F", "d/sub/g=G"]);
    let recorded = |p: &Path| Root::open(p).unwrap().with_ownership(Ownership::Recorded);
    // What a layer written with a single id looks like, whoever runs this test.
    let mark = |p: &str, v: &str| {
        rustix::fs::lsetxattr(c.src().join(p), xattr::KILN_STAT, v.as_bytes(), rustix::fs::XattrFlags::empty())
    };
    if mark("d/f", "0:33:100640").is_err() {
        eprintln!("SKIPPED: no attributes on this file system");
        return;
    }
    mark("d/sub", "33:33:40750").unwrap();
    // The mode is set as well: the record's is only that of the time of the chown.
    for (path, mode) in [("d/f", 0o640), ("d/sub", 0o750)] {
        rustix::fs::chmod(c.src().join(path), mode.into()).unwrap();
    }
    let source = Stack::from(recorded(&c.src()));
    assert_eq!(source.stat(Path::new("d/f"), false).unwrap().map(|s| (s.uid, s.gid, s.mode)), Some((0, 33, 0o640)));
    let target = Target::scratch(recorded(&c.up()));
    let request = CopyRequest { select: select(&["d"]), dest: "/x".into(), ..CopyRequest::default() };
    copy(&request, Source::Stack(&source), &target).unwrap();
    let copied = target.view();
    assert_eq!(copied.stat(Path::new("x/f"), false).unwrap().map(|s| (s.uid, s.gid, s.mode)), Some((0, 33, 0o640)));
    assert_eq!(copied.stat(Path::new("x/sub"), false).unwrap().map(|s| (s.uid, s.mode)), Some((33, 0o750)));
    let digest = |s: &Stack, p: &str| kiln_rootfs::tree_digest(Source::Stack(s), &select(&[p])).unwrap();
    assert_eq!(digest(&source, "d/sub"), digest(&copied, "x/sub"));
}
