//! What layers and archives become on disk.

#![allow(clippy::unwrap_used)]

mod tarkit;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use kiln_rootfs::apply::{Applied, ApplyOptions, ExtractOptions, Limits, apply, copy_up_parents, extract};
use kiln_rootfs::{Owner, Root, RootfsError, overlay};
use tarkit::*;

fn layer(items: &[Item], root: &Root) -> Applied {
    apply(&archive(items)[..], root, &ApplyOptions::default()).unwrap()
}

fn lines(path: &Path) -> Vec<String> {
    tree(path).into_iter().map(|(path, line)| format!("{} {line}", path.display())).collect()
}

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn all_kinds_with_their_metadata() {
    let (tmp, root) = fresh();
    let report = layer(
        &[
            dir("d/").mode(0o1777).mtime(1_000),
            file("d/f", "content").mode(0o4755).pax("mtime", "12.000000005").pax("SCHILY.xattr.user.note", b"a\0b"),
            hardlink("d/g", "d/f"),
            symlink("d/s", "../../outside").mtime(7),
            item(b'6', "d/pipe").mode(0o600),
            item(0, "v7dir/").mode(0o700),
        ],
        &root,
    );
    assert_eq!((report.entries, report.files, report.bytes), (6, 1, 7));
    let p = tmp.path();
    let meta = |name: &str| std::fs::symlink_metadata(p.join(name)).unwrap();
    assert_eq!(
        (meta("d").mode(), meta("d").mtime()),
        (0o041_777, 1_000),
        "a directory keeps its time though filled later"
    );
    assert_eq!((meta("d/f").mode(), meta("d/f").mtime(), meta("d/f").mtime_nsec()), (0o104_755, 12, 5));
    assert_eq!(meta("d/f").ino(), meta("d/g").ino());
    assert_eq!(std::fs::read_link(p.join("d/s")).unwrap(), Path::new("../../outside"));
    assert_eq!(meta("d/s").mtime(), 7);
    assert_eq!(meta("d/pipe").mode(), 0o010_600);
    assert_eq!(meta("v7dir").mode(), 0o040_700);
    assert_eq!(xattrs(&p.join("d/f"))["user.note"], b"a\0b");
}

#[test]
fn owners_devices_and_capabilities() {
    if skip_unless(is_root(), "needs root") {
        return;
    }
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let (tmp, root) = fresh();
    layer(
        &[
            file("cap", "x").owner(1000, 1001).mode(0o6711).pax("SCHILY.xattr.security.capability", capability),
            Item { rdev: (1, 3), ..item(b'3', "null").owner(5, 6).mode(0o666) },
            Item { rdev: (7, 0), ..item(b'4', "loop").mode(0o660) },
            symlink("link", "cap").owner(3, 4),
            file("big", "").pax("uid", "4294967294").pax("gid", "3000000"),
        ],
        &root,
    );
    let meta = |name: &str| std::fs::symlink_metadata(tmp.path().join(name)).unwrap();
    assert_eq!((meta("cap").uid(), meta("cap").gid(), meta("cap").mode() & 0o7777), (1000, 1001, 0o6711));
    assert_eq!(xattrs(&tmp.path().join("cap"))["security.capability"], capability, "survives the chown");
    assert_eq!(
        (meta("null").rdev(), meta("null").uid(), meta("null").mode()),
        (rustix::fs::makedev(1, 3), 5, 0o020_666)
    );
    assert_eq!(meta("loop").mode(), 0o060_660);
    assert_eq!((meta("link").uid(), meta("link").gid()), (3, 4));
    assert_eq!((meta("big").uid(), meta("big").gid()), (4_294_967_294, 3_000_000));
}

#[test]
fn entries_in_any_order_and_the_last_one_wins() {
    if skip_unless(is_root(), "directories that hide something below need root") {
        return;
    }
    let (tmp, root) = fresh();
    layer(
        &[
            file("a/b/c", "first"),
            dir("a/b/").mode(0o700).mtime(5),
            dir("a/").mode(0o711).mtime(6),
            file("a/b/c", "second").mode(0o600),
            file("was-dir/x", ""),
            file("was-dir", "now a file"),
            file("was-file", "x"),
            dir("was-file"),
            file("was-file/y", "y"),
            symlink("was-link", "a"),
            dir("was-link"),
            file("was-link/z", "z"),
            file("was-link2", "1"),
            symlink("was-link2", "elsewhere"),
            symlink("f", "a/b/c"),
            file("f", "the link is replaced, not followed"),
        ],
        &root,
    );
    let p = tmp.path();
    let meta = |name: &str| std::fs::symlink_metadata(p.join(name)).unwrap();
    assert_eq!(read(p.join("a/b/c")), "second");
    assert_eq!((meta("a/b").mode() & 0o777, meta("a/b").mtime()), (0o700, 5));
    assert_eq!((meta("a").mode() & 0o777, meta("a").mtime()), (0o711, 6));
    assert_eq!(read(p.join("was-dir")), "now a file");
    assert_eq!(read(p.join("was-file/y")), "y");
    assert!(meta("was-link").is_dir() && !p.join("a/z").exists());
    assert!(meta("was-link2").is_symlink());
    assert!(meta("f").is_file());
}

#[test]
fn whiteouts_are_devices_and_opaque_is_an_attribute() {
    if skip_unless(is_root(), "needs root") {
        return;
    }
    let (tmp, root) = fresh();
    let report = layer(
        &[
            file("gone/.wh.file", ""),
            file(".wh.top", ""),
            dir("d/"),
            file("d/.wh..wh..opq", ""),
            file("d/new", ""),
            file("implied/.wh..wh..opq", ""),
            file(".wh..wh.plnk/1", "aufs"),
            file("d/.wh..wh.aufs", "aufs"),
        ],
        &root,
    );
    assert_eq!(report.whiteouts, 4);
    assert!(!report.opaque_root);
    let p = tmp.path();
    for name in ["gone/file", "top"] {
        let meta = std::fs::symlink_metadata(p.join(name)).unwrap();
        assert_eq!((meta.mode() & 0o170_000, meta.rdev()), (0o020_000, 0), "{name}");
    }
    let opaque = overlay::opaque_attribute();
    assert_eq!(xattrs(&p.join("d"))[opaque], b"y");
    assert_eq!(xattrs(&p.join("implied"))[opaque], b"y");
    assert!(!xattrs(&p.join("gone")).contains_key(opaque));
    let names: Vec<_> = tree(p).into_keys().collect();
    assert_eq!(names, ["d", "d/new", "gone", "gone/file", "implied", "top"].map(Path::new));
}

#[test]
fn a_whiteout_hides_nothing_of_its_own_layer() {
    if skip_unless(is_root(), "needs root") {
        return;
    }
    let opaque = overlay::opaque_attribute();
    for before in [true, false] {
        let (tmp, root) = fresh();
        let mut items = vec![dir("d/"), file("d/x", "x"), file("f", "f"), symlink("s", "d"), file("implied/x", "x")];
        let whiteouts = ["d", "f", "s", "implied"].map(|name| file(&format!(".wh.{name}"), ""));
        let at = if before { 0 } else { items.len() };
        items.splice(at..at, whiteouts);
        layer(&items, &root);
        let p = tmp.path();
        assert_eq!(
            (read(p.join("d/x")), read(p.join("f")), read(p.join("implied/x"))),
            ("x".into(), "f".into(), "x".into())
        );
        assert_eq!(std::fs::read_link(p.join("s")).unwrap(), Path::new("d"));
        assert_eq!(xattrs(&p.join("d"))[opaque], b"y", "the lower d is hidden, before: {before}");
        assert_eq!(xattrs(&p.join("implied"))[opaque], b"y");
    }
    let (_tmp, root) = fresh();
    assert!(layer(&[file(".wh..wh..opq", "")], &root).opaque_root);
}

#[test]
fn implied_directories_look_like_those_below() {
    let (lower_tmp, lower) = fresh();
    layer(
        &[dir("usr/").mode(0o750).mtime(11), dir("usr/lib/").mode(0o2711).mtime(12).pax("SCHILY.xattr.user.k", "v")],
        &lower,
    );
    let upper = [file("usr/lib/x/y", "").mtime(99)];
    for later in [false, true] {
        let (tmp, root) = fresh();
        let options = ApplyOptions { lower: (!later).then_some(&lower), ..Default::default() };
        let report = apply(&archive(&upper)[..], &root, &options).unwrap();
        assert_eq!(report.implicit, ["usr", "usr/lib", "usr/lib/x"].map(Path::new));
        if later {
            copy_up_parents(&root, &lower, &report.implicit).unwrap();
        }
        for name in ["usr", "usr/lib"] {
            let line = |p: &Path| tree(p)[Path::new(name)].clone();
            assert_eq!(line(tmp.path()), line(lower_tmp.path()), "{name}");
        }
        let made = std::fs::metadata(tmp.path().join("usr/lib/x")).unwrap();
        assert_eq!((made.mode() & 0o7777, made.mtime()), (0o755, 99), "as old as what needed it");
    }
}

#[test]
fn links_on_the_way_are_followed_inside_the_root() {
    let (tmp, root) = fresh();
    let outside = tmp.path().join("../outside-of-this-root");
    layer(
        &[
            dir("usr/bin/"),
            symlink("bin", "usr/bin"),
            file("bin/sh", "shell"),
            symlink("abs", "/etc/x"),
            file("abs/passwd", "inside"),
            symlink("up", "../../../../../../../../../../../up-there"),
            file("up/f", "confined"),
        ],
        &root,
    );
    let p = tmp.path();
    assert_eq!(read(p.join("usr/bin/sh")), "shell");
    assert_eq!(read(p.join("etc/x/passwd")), "inside");
    assert_eq!(read(p.join("up-there/f")), "confined");
    assert!(std::fs::symlink_metadata(p.join("bin")).unwrap().is_symlink());
    assert!(!outside.exists());
}

#[test]
fn extracting_over_a_tree() {
    let (tmp, root) = fresh();
    let p = tmp.path();
    std::fs::create_dir_all(p.join("etc/keep")).unwrap();
    std::fs::write(p.join("etc/old"), "old").unwrap();
    std::os::unix::fs::symlink("etc", p.join("alias")).unwrap();
    let items = [
        dir("./").mode(0o711).mtime(77),
        dir("etc/").mode(0o700),
        file("etc/old", "new"),
        file("alias/through", "1"),
        file(".wh.literal", "just a name"),
        file("deep/er/file", "x").mtime(500),
    ];
    let report =
        extract(&archive(&items)[..], &root, &ExtractOptions { clamp_mtime: Some(400), ..Default::default() }).unwrap();
    assert_eq!(report.whiteouts, 0);
    assert_eq!((read(p.join("etc/old")), read(p.join("etc/through"))), ("new".into(), "1".into()));
    assert_eq!(read(p.join(".wh.literal")), "just a name");
    assert!(p.join("etc/keep").is_dir());
    let meta = |name: &str| std::fs::metadata(p.join(name)).unwrap();
    assert_eq!((meta("").mode() & 0o777, meta("").mtime()), (0o711, 77));
    assert_eq!((meta("deep/er/file").mtime(), meta("deep/er").mtime()), (400, 400));
}

#[test]
fn extracting_for_another_owner() {
    if skip_unless(is_root(), "needs root") {
        return;
    }
    let (tmp, root) = fresh();
    let owner = Some(Owner { uid: 12, gid: 34 });
    let items = [file("a/b", "").owner(1, 1), symlink("s", "t").owner(2, 2)];
    extract(&archive(&items)[..], &root, &ExtractOptions { owner, ..Default::default() }).unwrap();
    for line in lines(tmp.path()) {
        assert!(line.contains(" 12:34 "), "{line}");
    }
}

#[test]
fn the_directory_that_is_unpacked_into_keeps_its_metadata_if_asked() {
    let (tmp, root) = fresh();
    let mode = || std::fs::metadata(tmp.path()).unwrap().mode() & 0o7777;
    std::fs::set_permissions(tmp.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let items = [dir("./").mode(0o711), file("./f", "x")];
    extract(&archive(&items)[..], &root, &ExtractOptions { keep_top: true, ..Default::default() }).unwrap();
    assert_eq!(mode(), 0o755, "ADD");
    extract(&archive(&items)[..], &root, &ExtractOptions::default()).unwrap();
    assert_eq!(mode(), 0o711, "import");
}

#[test]
fn limits_are_typed() {
    let limits = |entries, bytes, path| ApplyOptions {
        limits: Limits { entries, bytes, path, ..Limits::default() },
        ..Default::default()
    };
    let items = archive(&[file("aaa", "12345"), file("bbb", "12345")]);
    for (options, fine) in
        [(limits(2, 10, 3), true), (limits(1, 10, 3), false), (limits(2, 9, 3), false), (limits(2, 10, 2), false)]
    {
        let (_tmp, root) = fresh();
        match apply(&items[..], &root, &options) {
            Ok(_) => assert!(fine),
            Err(error) => assert!(!fine && matches!(error, RootfsError::Limit { .. }), "{error}"),
        }
    }
}

#[test]
fn what_follows_the_archive_is_read_but_ignored() {
    let (tmp, root) = fresh();
    let mut data = archive(&[file("a", "a")]);
    data.extend(archive(&[file("b", "b")]));
    let report = layer_bytes(&data, &root).unwrap();
    assert_eq!(report.archive_bytes, data.len() as u64);
    assert_eq!(lines(tmp.path()).len(), 1);
    // Docker accepts an archive without its end, and an empty stream.
    let (tmp, root) = fresh();
    layer_bytes(&file("a", "a").bytes(), &root).unwrap();
    assert_eq!(lines(tmp.path()).len(), 1);
    layer_bytes(b"", &fresh().1).unwrap();
}

fn layer_bytes(data: &[u8], root: &Root) -> kiln_rootfs::Result<Applied> {
    apply(data, root, &ApplyOptions::default())
}

/// A tree with everything that the formats have trouble with, made without our code.
fn awkward_tree(p: &Path, long: bool) {
    std::fs::create_dir_all(p.join("dir/sub")).unwrap();
    std::fs::write(p.join("dir/file"), "hello").unwrap();
    std::fs::write(p.join("empty"), "").unwrap();
    std::fs::hard_link(p.join("dir/file"), p.join("dir/sub/again")).unwrap();
    std::os::unix::fs::symlink("dir/file", p.join("link")).unwrap();
    if long {
        std::fs::write(p.join("n".repeat(200)), "long").unwrap();
        std::os::unix::fs::symlink("t".repeat(300), p.join("longlink")).unwrap();
        let deep = p.join(format!("{0}/{0}/{0}", "d".repeat(90)));
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::write(deep.join("f"), "deep").unwrap();
        std::fs::hard_link(deep.join("f"), deep.join("g")).unwrap();
        std::fs::write(p.join(non_utf8(b"caf\xe9 \xff\n name")), "bytes").unwrap();
        std::fs::write(p.join("snow ☃"), "utf-8").unwrap();
    }
}

#[test]
fn every_format_of_gnu_tar() {
    let (source, _) = fresh();
    awkward_tree(source.path(), true);
    let (short, _) = fresh();
    awkward_tree(short.path(), false);
    for format in ["gnu", "oldgnu", "pax", "ustar", "v7"] {
        let from = if matches!(format, "ustar" | "v7") { short.path() } else { source.path() };
        let mut tar = Command::new("tar");
        tar.args(["--format", format, "-C"]).arg(from).args(["-cf", "-", "."]);
        let Some(output) = run(&mut tar) else { return };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let (tmp, root) = fresh();
        layer_bytes(&output.stdout, &root).unwrap();
        assert_eq!(tree(tmp.path()), tree(from), "{format}");
    }
}

#[test]
fn every_sparse_format_of_gnu_tar() {
    use std::os::unix::fs::FileExt;
    let (source, _) = fresh();
    for (name, pieces, size) in [
        ("middle", vec![(1 << 20, 5000_usize)], 4 << 20),
        ("many", (0..60).map(|i| (i * 300_000 + 8192, 100)).collect(), 60 * 300_000),
        ("all-hole", vec![], 3 << 20),
        ("end", vec![((5 << 20) - 1, 1)], 5 << 20),
    ] {
        let file = std::fs::File::create(source.path().join(name)).unwrap();
        for (at, length) in pieces {
            file.write_all_at(&vec![b'x'; length], at).unwrap();
        }
        file.set_len(size).unwrap();
    }
    for args in [
        ["--format=gnu", "--sparse"],
        ["--format=pax", "--sparse-version=0.0"],
        ["--format=pax", "--sparse-version=0.1"],
        ["--format=pax", "--sparse-version=1.0"],
    ] {
        let mut tar = Command::new("tar");
        tar.args(args).arg("-S").arg("-C").arg(source.path()).args(["-cf", "-", "."]);
        let Some(output) = run(&mut tar) else { return };
        assert!(output.status.success() && output.stdout.len() < 2 << 20, "{args:?}");
        let (tmp, root) = fresh();
        layer_bytes(&output.stdout, &root).unwrap();
        assert_eq!(tree(tmp.path()), tree(source.path()), "{args:?}");
        let blocks = std::fs::metadata(tmp.path().join("all-hole")).unwrap().blocks();
        assert!(blocks < 64, "holes stay holes: {blocks}");
    }
}

#[test]
fn names_longer_than_path_max() {
    let part = "p".repeat(200);
    let path = vec![part.as_str(); 40].join("/");
    let (_tmp, root) = fresh();
    layer(&[file("x", "deep").pax("path", &path), hardlink("y", "z").pax("linkpath", &path)], &root);
    assert_eq!(root.read_small(Path::new("y"), 100).unwrap().unwrap(), b"deep");
    assert_eq!(root.read_small(Path::new(&path), 100).unwrap().unwrap(), b"deep");
    root.remove_all(Path::new("")).unwrap();
}

/// Runs itself in a user namespace with a single id.
#[test]
fn recorded_owners_in_a_user_namespace() {
    const INSIDE: &str = "KILN_TEST_INSIDE_USERNS";
    if std::env::var_os(INSIDE).is_none() {
        let mut again = Command::new("unshare");
        again.args(["-U", "--map-root-user"]).arg(std::env::current_exe().unwrap());
        again.args(["--exact", "recorded_owners_in_a_user_namespace", "--nocapture"]).env(INSIDE, "1");
        let Some(output) = run(&mut again) else { return };
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        if skip_unless(!text.contains("unshare failed"), "user namespaces are not allowed") {
            return;
        }
        assert!(output.status.success(), "{}\n{text}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    let (tmp, root) = fresh();
    let root = root.with_ownership(kiln_rootfs::Ownership::Recorded);
    let items = [
        dir("d/").owner(1000, 1000).mode(0o750),
        file("d/f", "x").owner(1000, 50).mode(0o4755),
        file("mine", "x"),
        Item { rdev: (1, 3), ..item(b'3', "null").mode(0o666) },
        symlink("s", "t").owner(1000, 1000),
        file(".wh.gone", ""),
        file("o/.wh..wh..opq", ""),
    ];
    layer(&items, &root);
    let stat = |name: &str| root.stat(Path::new(name), false).unwrap();
    assert_eq!((stat("d").uid, stat("d").mode), (1000, 0o750));
    assert_eq!((stat("d/f").uid, stat("d/f").gid, stat("d/f").mode), (1000, 50, 0o4755));
    assert_eq!((stat("null").kind, stat("null").rdev), (kiln_rootfs::FileKind::CharDevice, (1, 3)));
    assert!(stat("gone").is_whiteout());
    assert_eq!(xattrs(&tmp.path().join("o"))["user.overlay.opaque"], b"y");
    assert!(!xattrs(&tmp.path().join("mine")).contains_key("user.kiln.stat"));
    // A layer written from it has the owners and the device again, and no trace of the records.
    let mut out = Vec::new();
    kiln_rootfs::diff::diff(&root, None, &mut out, &mut Default::default()).unwrap();
    let list = kiln_list(&out);
    assert_eq!(
        list,
        [
            "d/ 5 750 1000:1000",
            "d/f 0 4755 1000:50",
            "mine 0 644 0:0",
            "null 3 666 0:0",
            "o/ 5 755 0:0",
            "o/.wh..wh..opq 0 0 0:0",
            "s 2 777 0:0",
            ".wh.gone 0 0 0:0",
        ]
        .iter()
        .map(ToString::to_string)
        .collect::<std::collections::BTreeSet<_>>()
    );
    assert!(!out.windows(9).any(|w| w == b"user.kiln"));
}

fn kiln_list(tar: &[u8]) -> std::collections::BTreeSet<String> {
    let text = |field: &[u8]| String::from_utf8_lossy(field.split(|b| *b == 0).next().unwrap()).into_owned();
    let octal = |field: &[u8]| u64::from_str_radix(text(field).trim(), 8).unwrap();
    let mut out = std::collections::BTreeSet::new();
    let mut at = 0;
    while tar[at] != 0 {
        let h = &tar[at..at + 512];
        out.insert(format!(
            "{} {} {:o} {}:{}",
            text(&h[..100]),
            h[156] as char,
            octal(&h[100..108]),
            octal(&h[108..116]),
            octal(&h[116..124])
        ));
        at += 512 + (octal(&h[124..136]) as usize).next_multiple_of(512);
    }
    out
}

/// Enough files for the writer threads, with names that are replaced and linked before the threads get to them.
#[test]
fn many_small_files() {
    let (tmp, root) = fresh();
    let mut items = Vec::new();
    for i in 0..500 {
        items.push(dir(&format!("d{}", i % 7)).mtime(3));
        items.push(
            file(&format!("d{}/f{i}", i % 7), &"x".repeat(i * 20)).mode(0o600 | (i as u32 & 0o77)).mtime(i as u64),
        );
        items.push(file("again", &format!("version {i}")));
        items.push(hardlink(&format!("link{i}"), &format!("d{}/f{i}", i % 7)));
    }
    items.push(file("big", &"y".repeat(3_000_000)));
    let report = layer(&items, &root);
    assert_eq!(report.files, 1001);
    let p = tmp.path();
    assert_eq!(read(p.join("again")), "version 499");
    assert_eq!(read(p.join("big")).len(), 3_000_000);
    for i in 0..500 {
        let meta = std::fs::metadata(p.join(format!("link{i}"))).unwrap();
        assert_eq!((meta.len(), meta.nlink(), meta.mtime()), (i as u64 * 20, 2, i as i64));
        assert_eq!(meta.mode() & 0o777, 0o600 | (i as u32 & 0o77));
    }
    assert_eq!(std::fs::metadata(p.join("d3")).unwrap().mtime(), 3);
}

#[test]
fn a_failure_of_a_writer_thread_is_told() {
    let value = vec![b'v'; 65_537];
    let mut items: Vec<_> = (0..200).map(|i| file(&format!("f{i}"), "x")).collect();
    items[20] = file("bad", "x").pax("SCHILY.xattr.user.k", &value);
    let (_tmp, root) = fresh();
    let error = layer_bytes(&archive(&items), &root).unwrap_err();
    assert!(error.to_string().contains("bad") && error.to_string().contains("user.k"), "{error}");
}
