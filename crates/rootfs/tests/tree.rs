//! Scanned trees: what their digests depend on, and when the stat cache may be believed.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};

use common::{Case, chmod, mode, select, set_mtime, tree};
use kiln_rootfs::{ContextTree, FileKind, Ignore, Root, Selector, Source, Stack, TreeDigest, manifest, tree_digest};
use proptest::prelude::*;

fn scan(dir: &Path) -> ContextTree {
    ContextTree::scan(&Root::open(dir).unwrap(), None, None).unwrap()
}

fn digest(dir: &Path, source: &str) -> TreeDigest {
    scan(dir).digest(&select(&[source])).unwrap()
}

#[test]
fn what_a_digest_depends_on() {
    let c = Case::new();
    let src = c.src();
    tree(&src, &["d/a=A", "d/sub/b=B", "d/l->a", "other=O"]);
    let first = digest(&src, "d");
    set_mtime(&src.join("d/a"), 1, 1);
    tree(&src, &["other=changed", "more=M"]);
    assert_eq!(digest(&src, "d"), first, "times and what is beside do not count");
    let mut seen = vec![first];
    let mut changed = |what: &str| {
        let now = digest(&src, "d");
        assert!(!seen.contains(&now), "{what} must count");
        seen.push(now);
    };
    tree(&src, &["d/a=AA"]);
    changed("content");
    chmod(&src.join("d/a"), mode(&src.join("d/a")) ^ 0o100);
    changed("mode");
    std::fs::rename(src.join("d/a"), src.join("d/c")).unwrap();
    changed("a name");
    std::fs::rename(src.join("d/sub/b"), src.join("d/b")).unwrap();
    changed("where a file is");
    std::fs::remove_file(src.join("d/l")).unwrap();
    changed("a link");
    tree(&src, &["d/l->b"]);
    changed("a target");
    std::fs::remove_dir(src.join("d/sub")).unwrap();
    changed("an empty directory");
}

#[test]
fn the_place_of_a_source_does_not_count_but_a_files_name_does() {
    let c = Case::new();
    tree(&c.src(), &["one/d/a=A", "two/e/a=A", "one/f=F", "two/f=F", "two/g=F", "l->one/d", "lf->one/f"]);
    assert_eq!(digest(&c.src(), "one/d"), digest(&c.src(), "two/e"));
    assert_eq!(digest(&c.src(), "one/d"), digest(&c.src(), "l"), "links are followed");
    assert_eq!(digest(&c.src(), "one/f"), digest(&c.src(), "two/f"));
    assert_ne!(digest(&c.src(), "one/f"), digest(&c.src(), "two/g"));
    assert_ne!(digest(&c.src(), "one/f"), digest(&c.src(), "lf"), "the name in the target differs");
    let no_follow = Selector { no_follow: true, ..select(&["lf"]) };
    assert_ne!(scan(&c.src()).digest(&no_follow).unwrap(), digest(&c.src(), "lf"));
}

#[test]
fn a_context_and_a_container_give_the_same_digest() {
    let c = Case::new();
    tree(&c.src(), &["d/a=A", "d/sub/b=B", "d/l->a", "x1=1", "x2=2"]);
    let stack = c.source();
    let me = common::is_root("files of root");
    for source in ["d", "d/sub/b", "x?", "/", "d/*"] {
        let from_stack = tree_digest(Source::Stack(&stack), &select(&[source])).unwrap();
        if me {
            assert_eq!(from_stack, digest(&c.src(), source), "{source}");
        }
        let names =
            |s: Source<'_>| manifest(s, &select(&[source])).unwrap().into_iter().map(|e| e.path).collect::<Vec<_>>();
        assert_eq!(names(Source::Stack(&stack)), names(Source::Tree(&scan(&c.src()))), "{source}");
    }
}

#[test]
fn matches_are_what_a_source_stands_for() {
    let c = Case::new();
    tree(&c.src(), &["d/a=A", "x2=2", "x1=1", "dangling->nowhere"]);
    let stack = c.source();
    let context = scan(&c.src());
    for source in [Source::Stack(&stack), Source::Tree(&context)] {
        let all = kiln_rootfs::matches(source, &select(&["x?", "d", "d/*"])).unwrap();
        assert_eq!(all, ["x1", "x2", "d", "d/a"].map(PathBuf::from));
        assert!(kiln_rootfs::matches(source, &select(&["dangling"])).unwrap_err().is_not_found());
        assert!(kiln_rootfs::matches(source, &select(&["y*"])).unwrap_err().is_not_found());
    }
}

#[test]
fn manifests_name_what_changed() {
    let c = Case::new();
    tree(&c.src(), &["app/src/a.py=A", "app/src/b.py=B", "app/l->src"]);
    let before = scan(&c.src()).manifest(&select(&["app"])).unwrap();
    let paths: Vec<_> = before.iter().map(|e| e.path.to_str().unwrap()).collect();
    assert_eq!(paths, ["app", "app/l", "app/src", "app/src/a.py", "app/src/b.py"]);
    chmod(&c.src().join("app/src/a.py"), 0o600);
    tree(&c.src(), &["app/src/b.py=BB"]);
    let after = scan(&c.src()).manifest(&select(&["app"])).unwrap();
    let changed: Vec<_> =
        before.iter().zip(&after).filter(|(a, b)| a != b).map(|(a, b)| (b.path.clone(), a.mode != b.mode)).collect();
    assert_eq!(changed, [(PathBuf::from("app/src/a.py"), true), (PathBuf::from("app/src/b.py"), false)]);
    assert_eq!(after[1].kind, FileKind::Symlink);
}

#[test]
fn filters_keep_parents_of_what_is_kept() {
    let c = Case::new();
    tree(&c.src(), &["node_modules/x/y=1", "src/a=A", "src/empty/", "only/deep/keep=K", "only/other/no=N"]);
    let filter = |p: &Path, is_dir: bool| {
        let s = p.to_str().unwrap();
        match s {
            _ if s.starts_with("node_modules") => Ignore::Skip,
            "only/deep/keep" => Ignore::Keep,
            _ if s.starts_with("only") => {
                if is_dir {
                    Ignore::SkipButDescend
                } else {
                    Ignore::Skip
                }
            }
            _ => Ignore::Keep,
        }
    };
    let context = ContextTree::scan(&Root::open(&c.src()).unwrap(), Some(&filter), None).unwrap();
    let paths: Vec<_> = context.entries().into_iter().map(|(p, _)| p.to_str().unwrap().to_owned()).collect();
    assert_eq!(paths, ["only", "only/deep", "only/deep/keep", "src", "src/a", "src/empty"]);
    assert_eq!((context.len(), context.size()), (6, 2));
}

#[test]
fn a_directory_that_goes_while_its_tree_is_scanned_was_never_there() {
    let c = Case::new();
    tree(&c.src(), &["a/f=A", "gone/sub/f=G", "zero=Z"]);
    let src = c.src();
    let filter = |p: &Path, _| {
        // Asked about it: its parent was read.
        if p == Path::new("gone") {
            std::fs::remove_dir_all(src.join("gone")).unwrap();
        }
        Ignore::Keep
    };
    let context = ContextTree::scan(&Root::open(&c.src()).unwrap(), Some(&filter), None).unwrap();
    let paths: Vec<_> = context.entries().into_iter().map(|(p, _)| p.to_str().unwrap().to_owned()).collect();
    assert_eq!(paths, ["a", "a/f", "zero"]);
    assert_eq!(context.len(), 3);
}

#[test]
fn unreadable_files_are_named() {
    if rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: root can read everything");
        return;
    }
    let c = Case::new();
    tree(&c.src(), &["d/closed=x"]);
    chmod(&c.src().join("d/closed"), 0);
    let err = scan(&c.src()).digest(&select(&["d"])).unwrap_err();
    assert!(err.to_string().contains("d/closed"), "{err}");
    assert!(c.copy("d", "/x").unwrap_err().to_string().contains("d/closed"));
}

#[test]
fn a_path_of_a_container_is_scanned_with_its_owners() {
    let c = Case::new();
    tree(&c.src(), &["usr/bin/tool=T", "bin->usr/bin"]);
    let scanned = ContextTree::scan_layers(&Stack::from(Root::open(&c.src()).unwrap()), Path::new("/bin")).unwrap();
    assert_eq!(scanned.entries().len(), 1);
    assert!(scanned.stat(Path::new("tool"), false).unwrap().is_some());
    assert!(ContextTree::scan_layers(&c.source(), Path::new("/nope")).unwrap_err().is_not_found());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Two trees have the same digest exactly if they are the same.
    #[test]
    fn digests_tell_trees_apart(
        a in prop::collection::btree_map("[ab](/[ab]){0,2}", "[xy]{0,2}", 0..6),
        b in prop::collection::btree_map("[ab](/[ab]){0,2}", "[xy]{0,2}", 0..6),
    ) {
        let c = Case::new();
        let build = |root: &Path, spec: &std::collections::BTreeMap<String, String>| {
            for (path, content) in spec {
                let path = root.join(path);
                // a file and a directory of the same name cannot both be
                if std::fs::create_dir_all(path.parent().unwrap()).is_ok() {
                    let _ = std::fs::write(path, content);
                }
            }
        };
        build(&c.src(), &a);
        build(&c.low(), &b);
        let same = common::listing(&c.src()) == common::listing(&c.low());
        prop_assert_eq!(digest(&c.src(), "/") == digest(&c.low(), "/"), same);
    }
}
