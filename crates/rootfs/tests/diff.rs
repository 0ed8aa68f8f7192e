//! What layers are written, and that they mean the same when applied.

#![allow(clippy::unwrap_used)]

mod tarkit;

use std::ffi::OsStr;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use kiln_rootfs::apply::{ApplyOptions, apply};
use kiln_rootfs::diff::{ContentObserver, DiffOptions, DiffStats, diff};
use kiln_rootfs::export::tar_tree;
use kiln_rootfs::overlay::{self, OverlaySpec};
use kiln_rootfs::{Root, RootfsError};
use proptest::prelude::*;
use tarkit::*;

fn layer(upper: &Root, lower: Option<&Root>) -> Vec<u8> {
    layer_stats(upper, lower).0
}

fn layer_stats(upper: &Root, lower: Option<&Root>) -> (Vec<u8>, DiffStats) {
    let mut out = Vec::new();
    let stats = diff(upper, lower, &mut out, &mut DiffOptions::default()).unwrap();
    assert_eq!(stats.archive_bytes, out.len() as u64);
    (out, stats)
}

/// Names in an archive, by Python's reader if there is one, else by GNU tar's.
fn names(tar: &[u8]) -> Vec<String> {
    let mut reader = tar::Archive::new(tar);
    reader.entries().unwrap().map(|entry| String::from_utf8_lossy(&entry.unwrap().path_bytes()).into_owned()).collect()
}

fn set_time(path: &Path, seconds: i64, nanos: i64) {
    let at = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanos };
    let times = rustix::fs::Timestamps { last_access: at, last_modification: at };
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// All times in a tree to whole seconds, since that is what layers carry.
fn whole_seconds(root: &Path) {
    for path in tree(root).keys().rev() {
        let path = root.join(path);
        set_time(&path, std::fs::symlink_metadata(&path).unwrap().mtime(), 0);
    }
}

fn awkward(p: &Path) {
    std::fs::create_dir_all(p.join("a/b")).unwrap();
    std::fs::write(p.join("a/b/file"), vec![b'x'; 70_000]).unwrap();
    std::fs::hard_link(p.join("a/b/file"), p.join("a/again")).unwrap();
    std::fs::write(p.join("a-b"), "sorts between a and a/b in other orders").unwrap();
    std::fs::write(p.join("empty"), "").unwrap();
    std::fs::write(p.join(non_utf8(b"caf\xe9 \n\xff")), "bytes").unwrap();
    std::fs::write(p.join("snow ☃"), "utf-8").unwrap();
    std::fs::write(p.join("x".repeat(255)), "long").unwrap();
    std::fs::write(p.join("e".repeat(100)), "just fits").unwrap();
    std::fs::write(p.join("o".repeat(101)), "just does not").unwrap();
    symlink("t".repeat(300), p.join("longlink")).unwrap();
    symlink(OsStr::from_bytes(b"\xff\xfe"), p.join("rawlink")).unwrap();
    let deep = p.join(format!("{0}/{0}/{0}", "d".repeat(99)));
    std::fs::create_dir_all(&deep).unwrap();
    std::fs::write(deep.join("1"), "deep").unwrap();
    std::fs::hard_link(deep.join("1"), deep.join("2")).unwrap();
    std::fs::set_permissions(p.join("a-b"), PermissionsExt::from_mode(0o6755)).unwrap();
    std::fs::set_permissions(p.join("a"), PermissionsExt::from_mode(0o1777)).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, p.join("pipe"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
        .unwrap();
    rustix::fs::setxattr(p.join("a-b"), "user.k", b"v\0\n=", rustix::fs::XattrFlags::empty()).unwrap();
    rustix::fs::setxattr(p.join("a"), "user.dir", b"", rustix::fs::XattrFlags::empty()).unwrap();
    set_time(&p.join("empty"), -5, 0);
    set_time(&p.join("a/again"), 9_000_000_000, 0);
    if is_root() {
        let device = |name, kind, rdev| {
            rustix::fs::mknodat(rustix::fs::CWD, p.join(name), kind, rustix::fs::Mode::RUSR, rdev).unwrap();
        };
        device("char", rustix::fs::FileType::CharacterDevice, rustix::fs::makedev(4095, 1_048_575));
        device("block", rustix::fs::FileType::BlockDevice, rustix::fs::makedev(8, 1));
        std::os::unix::fs::lchown(p.join("rawlink"), Some(3_000_000), Some(4_294_967_294)).unwrap();
    }
    whole_seconds(p);
}

#[test]
fn a_tree_survives_the_archive() {
    let (source_dir, source) = fresh();
    awkward(source_dir.path());
    let bytes = layer(&source, None);
    let mut tree_bytes = Vec::new();
    tar_tree(&source, &mut tree_bytes, &mut DiffOptions::default()).unwrap();
    assert!(bytes == tree_bytes, "without whiteouts both are the same");
    let (target_dir, target) = fresh();
    apply(&bytes[..], &target, &ApplyOptions::default()).unwrap();
    assert_eq!(tree(target_dir.path()), tree(source_dir.path()));
    assert!(layer(&target, None) == bytes, "and its archive is the same again");
}

#[test]
fn gnu_tar_and_python_read_it() {
    let (source_dir, source) = fresh();
    awkward(source_dir.path());
    let (target_dir, _) = fresh();
    let archive = source_dir.path().with_extension("tar");
    std::fs::write(&archive, layer(&source, None)).unwrap();
    let mut tar = Command::new("tar");
    tar.args(["--xattrs", "--xattrs-include=*", "-p", "-C"]).arg(target_dir.path()).arg("-xf").arg(&archive);
    if let Some(output) = run(&mut tar) {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(complaints.lines().all(|line| line.contains("time stamp")), "{complaints}");
        assert_eq!(tree(target_dir.path()), tree(source_dir.path()));
    }
    let script = "import sys,tarfile,os\n\
        for m in tarfile.open(sys.argv[1], errors='surrogateescape'): sys.stdout.buffer.write(os.fsencode(m.name) + b'\\0')";
    if let Some(output) = run(Command::new("python3").args(["-c", script]).arg(&archive)) {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut found: Vec<_> = output
            .stdout
            .split(|b| *b == 0)
            .filter(|n| !n.is_empty())
            .map(|n| PathBuf::from(OsStr::from_bytes(n)))
            .collect();
        found.sort();
        assert_eq!(found, tree(source_dir.path()).into_keys().collect::<Vec<_>>());
    }
    std::fs::remove_file(&archive).unwrap();
}

#[test]
fn order_and_headers_are_fixed() {
    let (dir, root) = fresh();
    for name in ["b", "a/z", "a.b", "a/b/c", "a/b.c"] {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "").unwrap();
    }
    let bytes = layer(&root, None);
    assert_eq!(names(&bytes), ["a/", "a/b/", "a/b/c", "a/b.c", "a/z", "a.b", "b"]);
    assert_eq!(bytes.len(), 7 * 512 + 1024, "no extended headers where none are needed");
    for header in bytes.chunks(512).take(7) {
        assert_eq!(header[257..265], *b"ustar\x0000");
        assert!(header[265..329].iter().all(|b| *b == 0), "no user names");
    }
}

#[test]
fn times_are_whole_seconds_and_clamped() {
    let (dir, root) = fresh();
    let write = |name: &str, seconds, nanos| {
        std::fs::write(dir.path().join(name), "").unwrap();
        set_time(&dir.path().join(name), seconds, nanos);
    };
    write("early", 1_000, 999_999_999);
    write("late", 2_000_000_000, 1);
    let times = |options: &mut DiffOptions<'_>| {
        let mut out = Vec::new();
        diff(&root, None, &mut out, options).unwrap();
        let (target_dir, target) = fresh();
        apply(&out[..], &target, &ApplyOptions::default()).unwrap();
        ["early", "late"].map(|name| {
            let meta = std::fs::metadata(target_dir.path().join(name)).unwrap();
            (meta.mtime(), meta.mtime_nsec())
        })
    };
    assert_eq!(times(&mut DiffOptions::default()), [(1_000, 0), (2_000_000_000, 0)]);
    let clamped = [(1_000, 0), (5_000, 0)];
    assert_eq!(times(&mut DiffOptions { rewrite_timestamp: Some(5_000), ..Default::default() }), clamped);
    let exact = [(1_000, 999_999_999), (2_000_000_000, 1)];
    assert_eq!(times(&mut DiffOptions { subsecond_times: true, ..Default::default() }), exact);
}

#[test]
fn holes_do_not_change_the_bytes() {
    let size = 9 << 20;
    let pieces = [(0_u64, 5000_usize), (3 << 20, 70_000), ((9 << 20) - 10, 10)];
    let mut archives = Vec::new();
    for holes in [true, false] {
        let (dir, root) = fresh();
        let file = std::fs::File::create(dir.path().join("f")).unwrap();
        if holes {
            file.set_len(size).unwrap();
        } else {
            file.write_all_at(&vec![0; size as usize], 0).unwrap();
        }
        for (at, length) in pieces {
            file.write_all_at(&vec![b'x'; length], at).unwrap();
        }
        assert_eq!(file.metadata().unwrap().blocks() * 512 < size, holes);
        set_time(&dir.path().join("f"), 5, 0);
        archives.push(layer(&root, None));
    }
    assert!(archives[0] == archives[1]);
}

/// Counts instead of storing.
struct Count(u64);

impl std::io::Write for Count {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.0 += buf.len() as u64;
        Ok(buf.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn more_than_eight_gigabytes() {
    let (dir, root) = fresh();
    let size = (8 << 30) + 1;
    let file = std::fs::File::create(dir.path().join("big")).unwrap();
    file.set_len(size).unwrap();
    file.write_all_at(b"end", size - 3).unwrap();
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    let feeder = std::thread::spawn(move || {
        let mut out = std::io::BufWriter::with_capacity(1 << 20, &mut writer);
        diff(&root, None, &mut out, &mut DiffOptions::default()).unwrap()
    });
    // Only the beginning: 8 GiB would take seconds.
    let mut head = vec![0; 2048];
    std::io::Read::read_exact(&mut reader, &mut head).unwrap();
    drop(reader);
    assert!(feeder.join().is_err(), "the pipe is closed");
    let text = String::from_utf8_lossy(&head[512..600]);
    assert!(text.starts_with(&format!("19 size={size}\n")), "{text}");
    assert_eq!(&head[1024..1027], b"big");
}

#[test]
fn names_that_mean_whiteouts_are_refused_in_layers_only() {
    let (dir, root) = fresh();
    std::fs::write(dir.path().join(".wh.x"), "").unwrap();
    let error = diff(&root, None, &mut Count(0), &mut DiffOptions::default()).unwrap_err();
    assert!(matches!(error, RootfsError::BadPath { .. }), "{error}");
    let mut out = Vec::new();
    tar_tree(&root, &mut out, &mut DiffOptions::default()).unwrap();
    assert_eq!(names(&out), [".wh.x"]);
}

#[test]
fn the_observer_sees_everything() {
    #[derive(Default)]
    struct Seen(String, bool);
    impl ContentObserver for Seen {
        fn entry(&mut self, path: &[u8]) {
            self.0 += &format!("[{}]", String::from_utf8_lossy(path));
        }
        fn data(&mut self, bytes: &[u8]) {
            self.0 += &String::from_utf8_lossy(bytes);
        }
        fn finish(&mut self) {
            self.1 = true;
        }
    }
    let (dir, root) = fresh();
    std::fs::write(dir.path().join("f"), "content").unwrap();
    std::fs::hard_link(dir.path().join("f"), dir.path().join("g")).unwrap();
    symlink("target", dir.path().join("s")).unwrap();
    rustix::fs::setxattr(dir.path().join("f"), "user.k", b"value", rustix::fs::XattrFlags::empty()).unwrap();
    let mut seen = Seen::default();
    let mut options = DiffOptions { observer: Some(&mut seen), ..Default::default() };
    diff(&root, None, &mut Count(0), &mut options).unwrap();
    assert_eq!(seen.0, "[f]value[f]content[g][s]target");
    assert!(seen.1);
}

#[test]
fn sockets_are_left_out() {
    let (dir, root) = fresh();
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    assert_eq!(layer_stats(&root, None).1.entries, 0);
}

#[test]
fn a_tree_deeper_than_descriptors_and_paths() {
    let (_dir, root) = fresh();
    let path = vec!["dddd"; 1100].join("/");
    apply(&archive(&[file("x", "bottom").pax("path", format!("{path}/f"))])[..], &root, &ApplyOptions::default())
        .unwrap();
    let (lower_dir, lower) = fresh();
    apply(&archive(&[file("x", "").pax("path", format!("{path}/other"))])[..], &lower, &ApplyOptions::default())
        .unwrap();
    let (bytes, stats) = layer_stats(&root, Some(&lower));
    assert_eq!((stats.entries, stats.files), (1101, 1));
    let (_again_dir, again) = fresh();
    apply(&bytes[..], &again, &ApplyOptions::default()).unwrap();
    assert!(layer(&again, None) == bytes);
    for root in [root, lower, again] {
        root.remove_all(Path::new("")).unwrap();
    }
    drop(lower_dir);
}

/// A mounted overlay: `lower` below, an upper directory above.
struct Stack {
    dir: tempfile::TempDir,
    merged: Root,
}

impl Stack {
    fn new(lower: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let [upper, work] = ["upper", "work"].map(|name| dir.path().join(name));
        std::fs::create_dir(&upper).unwrap();
        std::fs::create_dir(&work).unwrap();
        let spec = OverlaySpec { lowers: &[lower], upper: Some((&upper, &work)), volatile: false };
        Self { merged: Root::from_fd(overlay::mount(&spec).unwrap()), dir }
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/.", std::os::fd::AsFd::as_fd(&self.merged).as_raw_fd()))
    }

    fn upper(&self) -> Root {
        Root::open(&self.dir.path().join("upper")).unwrap()
    }
}

fn can_mount() -> bool {
    let tmp = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| tmp.path().join(name));
    [&a, &b].into_iter().for_each(|dir| std::fs::create_dir(dir).unwrap());
    overlay::mount(&OverlaySpec { lowers: &[&a, &b], upper: None, volatile: false }).is_ok()
}

fn merged_tree(lower: &Path, upper: &Path) -> std::collections::BTreeMap<PathBuf, String> {
    let spec = OverlaySpec { lowers: &[lower, upper], upper: None, volatile: false };
    let mount = overlay::mount(&spec).unwrap();
    let path = PathBuf::from(format!("/proc/self/fd/{}/.", mount.as_raw_fd()));
    tree(&path)
}

/// What a step did on a real overlay, written as a layer, applied elsewhere: the same files are to be seen.
#[test]
fn changes_on_a_real_overlay() {
    if skip_unless(is_root() && can_mount(), "needs overlay mounts") {
        return;
    }
    let (lower_dir, lower) = fresh();
    let l = lower_dir.path();
    for name in
        ["etc/a", "etc/b", "usr/lib/x", "usr/lib/y", "opaque/old", "opaque/sub/older", "untouched/f", "swap/f", "tmp/t"]
    {
        std::fs::create_dir_all(l.join(name).parent().unwrap()).unwrap();
        std::fs::write(l.join(name), name).unwrap();
    }
    std::fs::hard_link(l.join("etc/a"), l.join("etc/a-link")).unwrap();
    symlink("usr/lib", l.join("lib")).unwrap();
    whole_seconds(l);

    let stack = Stack::new(l);
    let p = stack.path();
    std::fs::remove_file(p.join("etc/b")).unwrap();
    std::fs::remove_file(p.join("usr/lib/y")).unwrap();
    std::fs::write(p.join("etc/a"), "changed").unwrap();
    std::fs::remove_dir_all(p.join("opaque")).unwrap();
    std::fs::create_dir_all(p.join("opaque/sub")).unwrap();
    std::fs::write(p.join("opaque/new"), "new").unwrap();
    std::fs::write(p.join("tmp/gone"), "").unwrap();
    std::fs::remove_file(p.join("tmp/gone")).unwrap();
    std::fs::set_permissions(p.join("usr/lib/x"), PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::remove_dir_all(p.join("swap")).unwrap();
    std::fs::write(p.join("swap"), "a file now").unwrap();
    std::fs::remove_file(p.join("lib")).unwrap();
    std::fs::create_dir(p.join("lib")).unwrap();
    std::fs::write(p.join("lib/z"), "z").unwrap();
    std::fs::hard_link(p.join("lib/z"), p.join("lib/zz")).unwrap();
    // Copied up, but nothing changed in the end.
    let untouched = p.join("untouched/f");
    std::fs::set_permissions(&untouched, PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::set_permissions(&untouched, PermissionsExt::from_mode(0o644)).unwrap();
    whole_seconds(&p);
    let expected = tree(&p);

    let upper = stack.upper();
    let (bytes, stats) = layer_stats(&upper, Some(&lower));
    assert_eq!(
        names(&bytes),
        [
            "etc/",
            "etc/a",
            "etc/.wh.b",
            "lib/",
            "lib/z",
            "lib/zz",
            "opaque/",
            "opaque/.wh..wh..opq",
            "opaque/new",
            "opaque/sub/",
            "swap",
            "usr/",
            "usr/lib/",
            "usr/lib/x",
            "usr/lib/.wh.y",
        ]
    );
    assert_eq!(stats.whiteouts, 3);

    let (applied_dir, applied) = fresh();
    apply(&bytes[..], &applied, &ApplyOptions { lower: Some(&lower), ..Default::default() }).unwrap();
    let mut found = merged_tree(l, applied_dir.path());
    // An untouched directory's time is not part of a layer.
    found.insert("tmp".into(), expected[Path::new("tmp")].clone());
    assert_eq!(found, expected);
    assert!(layer(&applied, Some(&lower)) == bytes);
}

#[test]
fn nothing_changed_is_an_empty_layer() {
    if skip_unless(is_root() && can_mount(), "needs overlay mounts") {
        return;
    }
    let (lower_dir, lower) = fresh();
    std::fs::create_dir_all(lower_dir.path().join("a/b")).unwrap();
    std::fs::write(lower_dir.path().join("a/b/c"), "").unwrap();
    let stack = Stack::new(lower_dir.path());
    std::fs::write(stack.path().join("a/b/new"), "").unwrap();
    std::fs::remove_file(stack.path().join("a/b/new")).unwrap();
    assert!(stack.dir.path().join("upper/a/b").is_dir(), "copied up");
    assert_eq!(layer_stats(&stack.upper(), Some(&lower)).1.entries, 0);
}

#[test]
fn links_to_other_layers_do_not_matter() {
    if skip_unless(is_root() && can_mount(), "needs overlay mounts") {
        return;
    }
    let (lower_dir, lower) = fresh();
    for name in ["same", "linked"] {
        std::fs::write(lower_dir.path().join(name), name).unwrap();
    }
    let stack = Stack::new(lower_dir.path());
    for name in ["same", "linked"] {
        let path = stack.path().join(name);
        let mode = std::fs::metadata(&path).unwrap().permissions();
        std::fs::set_permissions(&path, mode).unwrap();
    }
    std::fs::hard_link(stack.path().join("linked"), stack.path().join("new")).unwrap();
    let upper = stack.upper();
    let bytes = layer(&upper, Some(&lower));
    assert_eq!(names(&bytes), ["linked", "new"], "both ends of a link, but not what is the same");
    std::fs::hard_link(stack.dir.path().join("upper/same"), stack.dir.path().join("another-layer")).unwrap();
    assert!(layer(&upper, Some(&lower)) == bytes);
}

/// Small random trees; the kind of a name differs between layers.
#[derive(Debug, Clone)]
enum Node {
    File(u8, u16),
    Link(u8),
    Dir(Vec<(u8, Node)>),
}

fn node() -> impl Strategy<Value = Node> {
    let leaf =
        prop_oneof![(any::<u8>(), 0_u16..3000).prop_map(|(b, n)| Node::File(b, n)), any::<u8>().prop_map(Node::Link)];
    leaf.prop_recursive(3, 20, 5, |inner| prop::collection::vec((0_u8..4, inner), 0..5).prop_map(Node::Dir))
}

fn build(at: &Path, node: &Node) {
    match node {
        Node::File(byte, length) => std::fs::write(at, vec![*byte; usize::from(*length)]).unwrap(),
        Node::Link(byte) => symlink(format!("target{byte}"), at).unwrap(),
        Node::Dir(children) => {
            std::fs::create_dir_all(at).unwrap();
            for (name, child) in children {
                let path = at.join(format!("n{name}"));
                if std::fs::symlink_metadata(&path).is_err() {
                    build(&path, child);
                }
            }
        }
    }
}

/// Makes the tree at `at` look like `node`, in place, as a build step would.
fn become_(at: &Path, node: &Node) {
    match std::fs::symlink_metadata(at) {
        Ok(meta) if meta.is_dir() && matches!(node, Node::Dir(_)) => {
            let Node::Dir(children) = node else { return };
            for entry in std::fs::read_dir(at).unwrap() {
                let entry = entry.unwrap();
                if !children.iter().any(|(name, _)| entry.file_name() == *format!("n{name}")) {
                    remove(&entry.path());
                }
            }
            let mut done = Vec::new();
            for (name, child) in children {
                if !done.contains(name) {
                    become_(&at.join(format!("n{name}")), child);
                    done.push(*name);
                }
            }
        }
        Ok(_) => {
            remove(at);
            build(at, node);
        }
        Err(_) => build(at, node),
    }
}

fn remove(path: &Path) {
    if std::fs::symlink_metadata(path).unwrap().is_dir() {
        std::fs::remove_dir_all(path).unwrap();
    } else {
        std::fs::remove_file(path).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_change_on_an_overlay_is_in_its_layer(before in prop::collection::vec((0_u8..4, node()), 0..5), after in prop::collection::vec((0_u8..4, node()), 0..5)) {
        if skip_unless(is_root() && can_mount(), "needs overlay mounts") {
            return Ok(());
        }
        let (lower_dir, lower) = fresh();
        build(lower_dir.path(), &Node::Dir(before));
        whole_seconds(lower_dir.path());
        let stack = Stack::new(lower_dir.path());
        become_(&stack.path(), &Node::Dir(after));
        whole_seconds(&stack.path());
        let strip = |tree: std::collections::BTreeMap<PathBuf, String>| -> Vec<String> {
            // Times of directories are left out where nothing else in them changed.
            tree.into_iter().map(|(path, line)| {
                let line = if line.starts_with('4') { line.split(' ').take(2).collect::<Vec<_>>().join(" ") } else { line };
                format!("{} {line}", path.display())
            }).collect()
        };
        let bytes = layer(&stack.upper(), Some(&lower));
        let (applied_dir, applied) = fresh();
        apply(&bytes[..], &applied, &ApplyOptions { lower: Some(&lower), ..Default::default() }).unwrap();
        prop_assert_eq!(strip(merged_tree(lower_dir.path(), applied_dir.path())), strip(tree(&stack.path())));
        prop_assert!(layer(&applied, Some(&lower)) == bytes);
    }
}
