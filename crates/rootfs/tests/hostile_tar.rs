//! Archives made to break out, to smuggle or to exhaust. Each must end in a typed error or in something harmless inside
//! the root; what lies next to the root is compared before and after.

#![allow(clippy::unwrap_used)]

mod tarkit;

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use kiln_rootfs::apply::{Applied, ApplyOptions, ExtractOptions, Limits, apply, extract};
use kiln_rootfs::{Result, Root, RootfsError};
use proptest::prelude::*;
use tarkit::*;

/// A root with a neighbour that nobody may touch.
struct Arena {
    tmp: tempfile::TempDir,
    root: Root,
    before: Vec<String>,
}

impl Arena {
    fn new() -> Self {
        let tmp = tempfile::tempdir().unwrap();
        let p = tmp.path();
        for dir in ["root", "outside/dir"] {
            std::fs::create_dir_all(p.join(dir)).unwrap();
        }
        std::fs::write(p.join("outside/secret"), "secret").unwrap();
        let root = open(&p.join("root"));
        let before = Self::neighbours(p);
        Self { tmp, root, before }
    }

    /// Metadata with link counts, so that hard links from inside show.
    fn neighbours(p: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(p).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        let mut out: Vec<String> = names.iter().map(|n| format!("{}", n.display())).collect();
        for (path, line) in tree(&p.join("outside")) {
            let meta = std::fs::symlink_metadata(p.join("outside").join(&path)).unwrap();
            out.push(format!("{} {line} {} {:?}", path.display(), meta.nlink(), meta.ctime_nsec()));
        }
        out
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.tmp.path().join("root").join(name)
    }

    fn outside(&self) -> String {
        self.tmp.path().join("outside").to_str().unwrap().to_owned()
    }

    fn apply_bytes(&self, bytes: &[u8]) -> Result<Applied> {
        let done = apply(bytes, &self.root, &ApplyOptions::default());
        self.check();
        done
    }

    fn apply(&self, items: &[Item]) -> Result<Applied> {
        self.apply_bytes(&archive(items))
    }

    fn extract(&self, items: &[Item]) -> Result<Applied> {
        let done = extract(&archive(items)[..], &self.root, &ExtractOptions::default());
        self.check();
        done
    }

    fn check(&self) {
        assert_eq!(Self::neighbours(self.tmp.path()), self.before);
    }

    fn names(&self) -> Vec<String> {
        tree(&self.path("")).into_keys().map(|p| p.to_string_lossy().into_owned()).collect()
    }
}

fn rejected(done: Result<Applied>) -> String {
    match done {
        Err(error @ RootfsError::Archive { .. }) => error.to_string(),
        other => panic!("expected an archive error, got {other:?}"),
    }
}

#[test]
fn cve_2025_62518_pax_size_wins_over_the_header() {
    let smuggled = archive(&[file("smuggled", "evil")]);
    for header_size in [0, 512, smuggled.len() as u64 + 7] {
        let arena = Arena::new();
        let outer = Item { data: smuggled.clone(), ..item(b'0', "outer") };
        let outer = outer.pax("size", smuggled.len().to_string()).size(header_size);
        arena.apply(&[outer, file("after", "")]).unwrap();
        assert_eq!(arena.names(), ["after", "outer"]);
        assert_eq!(std::fs::read(arena.path("outer")).unwrap(), smuggled);
    }
}

#[test]
fn cve_2026_33055_pax_size_zero_hides_nothing() {
    let arena = Arena::new();
    // A reader that believes the header takes "shown" for data of "empty".
    arena.apply(&[file("empty", "").pax("size", "0").size(512), file("shown", "")]).unwrap();
    assert_eq!(arena.names(), ["empty", "shown"]);
}

#[test]
fn cve_2026_33056_a_directory_entry_does_not_chmod_through_a_link() {
    for extracting in [false, true] {
        if !extracting && skip_unless(is_root(), "directories that hide something below need root") {
            continue;
        }
        let arena = Arena::new();
        let items = [symlink("x", &format!("{}/dir", arena.outside())), dir("x/").mode(0o777), file("x/f", "inside")];
        if extracting { arena.extract(&items) } else { arena.apply(&items) }.unwrap();
        assert!(std::fs::symlink_metadata(arena.path("x")).unwrap().is_dir());
        assert_eq!(arena.names(), ["x", "x/f"]);
    }
}

#[test]
fn ghsa_3pv8_6f4r_ffg2_pax_size_is_not_for_the_long_name_header() {
    let arena = Arena::new();
    let long = format!("{}\0", "n".repeat(150));
    let long_header = Item { data: long.into_bytes(), ..item(b'L', "././@LongLink") }.pax("size", "5");
    arena.apply(&[long_header, file("short", "12345").size(0), file("after", "")]).unwrap();
    assert_eq!(arena.names(), ["after".to_owned(), "n".repeat(150)]);
    assert_eq!(std::fs::read(arena.path(&"n".repeat(150))).unwrap(), b"12345");
}

#[test]
fn cve_2021_29136_the_root_cannot_become_a_link() {
    for name in [".", "./", "/", "", "a/..", "..", "./."] {
        for kind in [b'0', b'1', b'2', b'6'] {
            let arena = Arena::new();
            let root = Item { link: arena.outside().into_bytes(), ..item(kind, name) };
            rejected(arena.apply(&[root.clone(), file("secret", "overwritten")]));
            rejected(arena.extract(&[root, file("secret", "overwritten")]));
            assert!(arena.names().is_empty());
        }
    }
}

#[test]
fn cve_2026_28406_dot_dot_stays_inside() {
    for name in ["../outside/secret", "a/../../outside/secret", "/../outside/secret", "./../outside/secret"] {
        let arena = Arena::new();
        assert!(rejected(arena.extract(&[file(name, "evil")])).contains("leads out"), "{name}");
        assert!(arena.names().is_empty());
        // Layers are confined, as in containerd.
        arena.apply(&[file(name, "evil")]).unwrap();
        assert_eq!(std::fs::read(arena.path("outside/secret")).unwrap(), b"evil");
        // The same by way of an extended header, or of a GNU long name.
        let arena = Arena::new();
        rejected(arena.extract(&[file("x", "evil").pax("path", name)]));
        rejected(arena.extract(&[Item { data: name.as_bytes().to_vec(), ..item(b'L', "L") }, file("x", "evil")]));
    }
}

/// Over-strict fixes broke ordinary archives (osscontainertools/kaniko#828).
#[test]
fn kaniko_828_links_that_point_up_are_ordinary() {
    let arena = Arena::new();
    let items = [file("usr/lib/x.so.1", "lib"), symlink("usr/bin/x", "../lib/x.so.1"), symlink("abs", "/../../etc")];
    arena.extract(&items).unwrap();
    assert_eq!(std::fs::read(arena.path("usr/bin/x")).unwrap(), b"lib");
    arena.extract(&[file("usr/bin/../lib/y", "inside")]).unwrap();
    assert_eq!(std::fs::read(arena.path("usr/lib/y")).unwrap(), b"inside");
}

#[test]
fn cve_2020_10696_writing_through_a_link() {
    let arena = Arena::new();
    let outside = arena.outside();
    let up = "../outside";
    for (link, target) in [("abs", outside.as_str()), ("rel", up), ("root", "/")] {
        let items = [
            symlink(link, target),
            file(&format!("{link}/secret"), "evil"),
            dir(&format!("{link}/dir")).mode(0o777),
            symlink("s", &format!("{target}/secret")),
            file("s", "evil"),
        ];
        arena.apply(&items).unwrap();
        arena.extract(&items).unwrap();
        assert!(std::fs::symlink_metadata(arena.path("s")).unwrap().is_file());
    }
    assert_eq!(std::fs::read(arena.path("outside/secret")).unwrap(), b"evil");
}

#[test]
fn hard_links_out_of_the_root() {
    let arena = Arena::new();
    let outside = arena.outside();
    let secret = format!("{outside}/secret");
    let cases: [&[Item]; 8] = [
        &[hardlink("x", &secret)],
        &[hardlink("x", "../outside/secret")],
        &[symlink("d", &outside), hardlink("x", "d/secret")],
        &[symlink("d", "../outside"), hardlink("x", "d/secret")],
        &[symlink("d", "/"), hardlink("x", "d/etc/passwd")],
        &[hardlink("x", "")],
        &[hardlink("x", "/")],
        &[dir("d"), hardlink("x", "d")],
    ];
    for items in cases {
        arena.root.remove_all(Path::new("")).unwrap();
        rejected(arena.apply(items));
        rejected(arena.extract(items));
        assert!(!arena.names().contains(&"x".to_owned()));
    }
}

/// oras-go < 2.6.2 resolved the target against the process's working directory.
#[test]
fn oras_2_6_2_hard_link_targets_are_not_relative_to_the_working_directory() {
    let arena = Arena::new();
    assert!(Path::new("Cargo.toml").exists(), "tests run in the crate's directory");
    rejected(arena.apply(&[hardlink("x", "Cargo.toml")]));
}

#[test]
fn a_hard_link_to_a_link_does_not_open_a_way_out() {
    let arena = Arena::new();
    let secret = format!("{}/secret", arena.outside());
    arena
        .apply(&[symlink("s", &secret), hardlink("h", "s"), file("h", "evil").mode(0o777), file("s", "evil")])
        .unwrap();
    assert_eq!(std::fs::read(arena.path("h")).unwrap(), b"evil");
    // A link to itself, to nothing yet, and to what it replaces.
    rejected(arena.apply(&[hardlink("later", "not-yet"), file("not-yet", "")]));
    arena.apply(&[file("self", "kept"), hardlink("self", "self")]).unwrap();
    assert_eq!(std::fs::read(arena.path("self")).unwrap(), b"kept");
    assert!(arena.apply(&[file("a/b", ""), hardlink("a", "a/b")]).is_err());
}

#[test]
fn nothing_waits_on_a_fifo_or_opens_a_device() {
    let arena = Arena::new();
    let items = [item(b'6', "p"), file("p", "a file by now"), item(b'6', "q"), symlink("l", "q"), file("l", "x")];
    arena.apply(&items).unwrap();
    assert_eq!(std::fs::read(arena.path("p")).unwrap(), b"a file by now");
    rejected(arena.apply(&[item(b'6', "pipe"), file("pipe/x", "")]));
}

#[test]
fn link_loops_end() {
    let arena = Arena::new();
    let loops = [symlink("a", "b"), symlink("b", "a"), file("a/x", "")];
    assert!(arena.apply(&loops).is_err());
    let mut growing = vec![symlink("l0", "x")];
    growing.extend((1..60).map(|i| symlink(&format!("l{i}"), &format!("l{}/l{}", i - 1, i - 1))));
    growing.push(file("l59/f", ""));
    let _ = arena.apply(&growing);
    rejected(arena.apply(&[symlink("e", "")]));
}

#[test]
fn reserved_attributes_cannot_be_forged() {
    let arena = Arena::new();
    let names = [
        "trusted.overlay.redirect",
        "trusted.overlay.metacopy",
        "trusted.overlay.opaque",
        "user.overlay.opaque",
        "user.overlay.whiteout",
        "user.kiln.stat",
        "security.selinux",
        "security.ima",
        "trusted.x",
        "system.posix_acl_access",
        "",
    ];
    let mut entries = vec![file("f", ""), dir("d"), symlink("s", "f"), item(b'6', "p")];
    for entry in &mut entries {
        for name in names {
            *entry = entry.clone().pax(&format!("SCHILY.xattr.{name}"), "0:0:104755");
        }
    }
    let report = arena.apply(&entries).unwrap();
    assert_eq!(report.dropped_xattrs, (names.len() * entries.len()) as u64);
    for name in arena.names() {
        assert!(xattrs(&arena.path(&name)).is_empty(), "{name}");
    }
}

#[test]
fn whiteouts_cannot_leave_their_directory() {
    for name in [".wh.", ".wh..", ".wh...", "a/.wh...", "a/.wh.", ".wh.x/y"] {
        let arena = Arena::new();
        rejected(arena.apply(&[dir("a"), file(name, "")]));
    }
    if skip_unless(is_root(), "whiteouts need root") {
        return;
    }
    let arena = Arena::new();
    let outside = arena.outside();
    arena.apply(&[symlink("d", &outside), file("d/.wh.secret", ""), file("d/.wh..wh..opq", "")]).unwrap();
    arena.apply(&[symlink("e", "../outside"), file("e/.wh.secret", ""), file("../outside/.wh.dir", "")]).unwrap();
    rejected(arena.apply(&[file(".wh.w", ""), hardlink("x", "w")]));
}

#[test]
fn numbers_out_of_range() {
    let base256 = |at: usize, width: usize, first: u8| {
        let mut block = file("f", "").header();
        block[at..at + width].fill(0xff);
        block[at] = first;
        seal(block).to_vec()
    };
    for (at, width, first) in
        [(124, 12, 0xff), (124, 12, 0x80), (108, 8, 0xff), (108, 8, 0x80), (116, 8, 0x80), (136, 12, 0x80)]
    {
        let arena = Arena::new();
        rejected(arena.apply_bytes(&base256(at, width, first)));
    }
    for (key, value) in [
        ("uid", "4294967295"),
        ("uid", "99999999999999999999999"),
        ("gid", "-1"),
        ("size", "-1"),
        ("size", "9223372036854775807"),
        ("path", "a\0b"),
        ("linkpath", "a\0b"),
        ("mtime", "x"),
        ("GNU.sparse.major", "9"),
    ] {
        let arena = Arena::new();
        rejected(arena.apply(&[file("f", "").pax(key, value)]));
    }
    let arena = Arena::new();
    rejected(arena.apply(&[Item { rdev: (0o1_000_000, 0), ..item(b'3', "dev") }]));
    for mtime in ["9223372036854775807", "-9223372036854775808", "-1.5"] {
        arena.apply(&[file("f", "").pax("mtime", mtime), dir("d").pax("mtime", mtime)]).unwrap();
    }
}

#[test]
fn claims_cost_nothing() {
    let arena = Arena::new();
    let huge = |kind: u8| Item { ..item(kind, "x") }.size(0o77_777_777_777);
    for kind in [b'x', b'L', b'K'] {
        assert!(rejected(arena.apply(&[huge(kind)])).contains("1 MiB"));
    }
    for kind in [b'g', b'0'] {
        let error = arena.apply(&[huge(kind)]).unwrap_err();
        assert_eq!(error.io_kind(), Some(ErrorKind::UnexpectedEof));
    }
    // Links, directories and devices have no data, whatever they claim.
    let items = [dir("d").size(4096), symlink("s", "d").size(99_999), item(b'6', "p").size(512), file("last", "x")];
    arena.apply(&items).unwrap();
    assert_eq!(std::fs::read(arena.path("last")).unwrap(), b"x");
}

#[test]
fn sparse_maps_that_lie() {
    let sparse = |map: &str, data: &str| {
        let mut block = map.as_bytes().to_vec();
        block.resize(512, 0);
        block.extend(data.as_bytes());
        let entry = Item { data: block, ..item(b'0', "f") };
        entry.pax("GNU.sparse.major", "1").pax("GNU.sparse.minor", "0").pax("GNU.sparse.realsize", "1000")
    };
    let arena = Arena::new();
    arena.apply(&[sparse("1\n10\n3\n", "abc")]).unwrap();
    assert_eq!(std::fs::metadata(arena.path("f")).unwrap().len(), 1000);
    for (map, data) in [
        ("1\n10\n4\n", "abc"),
        ("1\n10\n2\n", "abc"),
        ("2\n10\n1\n5\n2\n", "abc"),
        ("1\n999\n3\n", "abc"),
        ("1\n18446744073709551615\n3\n", "abc"),
        ("99999999\n", "abc"),
        ("x", ""),
    ] {
        rejected(arena.apply(&[sparse(map, data)]));
    }
    let inside = file("f", "abc").pax("GNU.sparse.map", "0,1,5").pax("GNU.sparse.size", "10");
    rejected(arena.apply(&[inside]));
    rejected(arena.apply(&[file("f", "").pax("GNU.sparse.map", "")]));
    rejected(arena.apply(&[item(b'S', "old style in a ustar header")]));
    // The name of the record is confined like any other.
    rejected(arena.extract(&[sparse("1\n10\n3\n", "abc").pax("GNU.sparse.name", "../outside/secret")]));
    // A hole of exbibytes is refused by the limit before the file system sees it.
    let huge = file("f", "").pax("GNU.sparse.map", "").pax("GNU.sparse.size", "9000000000000000000");
    assert!(matches!(arena.apply(&[huge]), Err(RootfsError::Limit { .. })));
}

#[test]
fn global_headers_change_nothing() {
    let arena = Arena::new();
    let records = [record("path", b"../outside/secret"), record("size", b"0"), record("linkpath", b"/")].concat();
    arena.apply(&[Item { data: records, ..item(b'g', "g") }, file("f", "content")]).unwrap();
    assert_eq!(std::fs::read(arena.path("f")).unwrap(), b"content");
}

#[test]
fn unknown_types_and_broken_headers() {
    let arena = Arena::new();
    for kind in [b'M', b'D', b'A', b'8', b'?', 0xff] {
        rejected(arena.apply(&[item(kind, "x")]));
    }
    let mut block = file("f", "").header();
    block[0] ^= 1;
    rejected(arena.apply_bytes(&block));
    let torn = [file("a", "").bytes(), vec![0; 512], file("b", "").bytes()].concat();
    rejected(arena.apply_bytes(&torn));
    rejected(arena.apply_bytes(&[b'x'; 512]));
}

#[test]
fn truncated_everywhere() {
    let whole = archive(&[
        dir("d"),
        file("d/f", &"x".repeat(1500)).pax("SCHILY.xattr.user.a", "b"),
        Item { data: vec![b'n'; 200], ..item(b'L', "L") },
        file("x", "y"),
    ]);
    for length in (0..whole.len()).step_by(61) {
        let arena = Arena::new();
        if let Err(error) = arena.apply_bytes(&whole[..length]) {
            assert_eq!(error.io_kind(), Some(ErrorKind::UnexpectedEof), "{length}: {error}");
        }
    }
}

/// Archives with many links between few names: any order of them stays inside.
fn any_item() -> impl Strategy<Value = Item> {
    let name = || {
        let part =
            prop::sample::select(vec!["a", "b", "c", "..", ".", "outside", "secret", ".wh.a", ".wh..wh..opq", "dir"]);
        (any::<bool>(), prop::collection::vec(part, 0..4))
            .prop_map(|(absolute, parts)| format!("{}{}", if absolute { "/" } else { "" }, parts.join("/")))
    };
    let kind = prop::sample::select(vec![b'0', b'0', b'1', b'1', b'2', b'2', b'2', b'5', b'5', b'6']);
    (name(), kind, name(), prop::sample::select(vec![0o777, if is_root() { 0o000 } else { 0o700 }, 0o4755])).prop_map(
        |(name, kind, link, mode)| Item {
            link: link.into_bytes(),
            data: if kind == b'0' { b"data".to_vec() } else { Vec::new() },
            mode,
            ..item(kind, &name)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_entries_stay_inside(items in prop::collection::vec(any_item(), 1..12), extracting: bool) {
        let arena = Arena::new();
        // One by one, so that an error does not end the test early.
        for part in items.chunks(4) {
            let _ = if extracting { arena.extract(part) } else { arena.apply(part) };
        }
        arena.root.remove_all(Path::new("")).unwrap();
    }

    #[test]
    fn flipped_bytes_never_panic(items in prop::collection::vec(any_item(), 1..6), flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8), repair: bool) {
        let arena = Arena::new();
        let mut bytes = archive(&[&items[..], &[file("p", "xyz").pax("path", "q").pax("mtime", "1.5")]].concat());
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
            // Otherwise hardly anything would come past the checksum.
            if repair {
                let start = at / 512 * 512;
                let block: [u8; 512] = bytes[start..start + 512].try_into().unwrap();
                if block[0] != 0 {
                    bytes[start..start + 512].copy_from_slice(&seal(block));
                }
            }
        }
        let _ = arena.apply_bytes(&bytes);
    }
}

/// A few hundred kilobytes of names would be gigabytes of directories.
#[test]
fn deep_paths_do_not_fill_the_memory() {
    let arena = Arena::new();
    let deep: Vec<_> = (0..20).map(|n| file("f", "").pax("path", format!("{n}/{}f", "d/".repeat(300)))).collect();
    let limits = Limits { directories: 256 << 10, ..Limits::default() };
    let applied =
        |items: &[Item]| apply(&archive(items)[..], &arena.root, &ApplyOptions { limits, ..Default::default() });
    assert!(applied(&deep[..1]).is_ok());
    let error = applied(&deep).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(error.contains("memory for the directories"), "{error}");
    arena.root.remove_all(Path::new("/")).unwrap();
}
