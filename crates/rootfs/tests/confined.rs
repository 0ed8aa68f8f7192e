//! Attacks on path resolution, each beside the legitimate use that must keep working.

#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Case, listing, select, tree};
use kiln_rootfs::copy::{CopyRequest, copy};
use kiln_rootfs::fileops::{self, Make};
use kiln_rootfs::{ContextTree, Ignore, Owner, Root, RootfsError, Source, Target, tree_digest};
use proptest::prelude::*;

const MAKE: Make = Make { mode: 0o644, owner: Owner { uid: 0, gid: 0 }, mtime: None };

/// A root beside something that must not be reached.
fn with_outside() -> (Case, PathBuf) {
    let c = Case::new();
    let outside = c.tmp.path().join("outside");
    tree(&outside, &["secret=SECRET", "dir/inner=INNER"]);
    (c, outside)
}

/// As the user who runs the tests may not be root.
fn make() -> Make {
    let owner = Owner { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
    Make { owner, ..MAKE }
}

#[test]
fn links_out_of_a_source_lead_nowhere() {
    let (c, outside) = with_outside();
    let src = c.src();
    tree(&src, &["outside/secret=mine", "ok->/outside/secret"]);
    let out = outside.to_str().unwrap();
    let magic = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&std::fs::File::open(&outside).unwrap()));
    for (name, target) in [
        ("absolute", format!("{out}/secret")),
        ("relative", "../outside/secret".to_owned()),
        ("many", format!("{}{out}/secret", "../".repeat(30))),
        ("directory", out.to_owned()),
        ("magic", magic),
        ("procroot", "/proc/self/root/etc/passwd".to_owned()),
        ("cwd", "/proc/self/cwd".to_owned()),
    ] {
        symlink(&target, src.join(name)).unwrap();
        match c.copy(name, &format!("/{name}/")) {
            // what the link means inside the root
            Ok(_) => assert!(!listing(&c.up()).iter().any(|l| l.contains("SECRET")), "{name}"),
            Err(e) => assert!(e.is_not_found(), "{name}: {e}"),
        }
        assert!(c.copy(&format!("{name}/dir/*"), "/x/").is_err(), "{name}");
    }
    c.copy("ok", "/fine").unwrap();
    c.copy("relative", "/kaniko828").unwrap();
    assert_eq!(std::fs::read_to_string(c.up().join("fine")).unwrap(), "mine", "an absolute link is fine inside");
    assert_eq!(std::fs::read_to_string(c.up().join("kaniko828")).unwrap(), "mine", "so is one with too many ..");
    assert!(!listing(&c.up()).iter().any(|l| l.contains("SECRET")));
}

#[test]
fn links_out_of_a_target_are_resolved_inside() {
    let (c, outside) = with_outside();
    tree(&c.src(), &["f=F", "d/secret=overwritten", "d/dir/inner=overwritten"]);
    for there in [c.low(), c.up()] {
        let _ = symlink(&outside, there.join("abs"));
        let _ = symlink("../../outside", there.join("rel"));
        let _ = symlink(outside.join("secret"), there.join("file"));
    }
    for dest in ["/abs/f", "/rel/f", "/file", "/../outside/f", "/abs/../../outside/f", "abs/"] {
        c.copy("f", dest).unwrap();
    }
    c.copy("d", "/abs").unwrap();
    c.copy("d", "/rel/").unwrap();
    assert_eq!(listing(&outside), ["dir/", "dir/inner = INNER", "secret = SECRET"]);
    let t = c.target();
    fileops::mkfile(&t, Path::new("/file"), &b"x"[..], &make()).unwrap();
    fileops::mkdir(&t, Path::new("/abs/made/deep"), &Make { mode: 0o755, ..make() }, true).unwrap();
    fileops::symlink(&t, Path::new("x"), Path::new("/rel/link"), &make()).unwrap();
    fileops::rm(&t, Path::new("/abs/secret"), false, true).unwrap();
    fileops::rm(&t, Path::new("/rel/dir"), false, true).unwrap();
    fileops::rm(&t, Path::new("/abs"), false, true).unwrap();
    assert_eq!(listing(&outside), ["dir/", "dir/inner = INNER", "secret = SECRET"]);
}

/// GHSA-32pv-7hq5-qhwq: removing through a link removed what it pointed to.
#[test]
fn ghsa_32pv_7hq5_qhwq_removing_a_link_leaves_its_target() {
    let (c, outside) = with_outside();
    symlink(&outside, c.up().join("l")).unwrap();
    tree(&c.up(), &["d/x=1", "in->d"]);
    let root = Root::open(&c.up()).unwrap();
    root.remove_all(Path::new("l")).unwrap();
    root.remove_all(Path::new("in")).unwrap();
    root.remove_all(Path::new("../outside")).unwrap();
    assert_eq!(listing(&c.up()), ["d/", "d/x = 1"]);
    assert_eq!(listing(&outside).len(), 3);
    let t = c.target();
    for bad in ["/", ".", "..", "/d/.."] {
        assert!(fileops::rm(&t, Path::new(bad), false, true).is_err() || !listing(&c.up()).is_empty(), "{bad}");
    }
    assert_eq!(fileops::rm(&t, Path::new("d/*"), true, false).unwrap(), [Path::new("d/x")]);
}

#[test]
fn every_root_method_stays_inside() {
    let (c, outside) = with_outside();
    let up = c.up();
    symlink(&outside, up.join("out")).unwrap();
    symlink("../outside", up.join("rel")).unwrap();
    tree(&up, &["in/f=F", "link->/in"]);
    let root = Root::open(&up).unwrap();
    for escape in ["out/secret", "rel/secret", "../outside/secret", "/../outside/secret", "in/../../outside/secret"] {
        let p = Path::new(escape);
        assert!(root.open_file(p).is_err() && root.stat(p, true).is_err() && root.open_dir(p).is_err(), "{escape}");
        assert_eq!(root.read_small(p, 100).unwrap(), None, "{escape}");
        assert!(root.write_file(p, b"x", 0o600, None).is_err(), "{escape}");
        assert!(!root.exists(p).unwrap());
    }
    root.create_dir_all(Path::new("out/a/b"), 0o755, None).unwrap();
    assert!(!outside.join("a").exists());
    assert_eq!(root.read_small(Path::new("link/f"), 10).unwrap().unwrap(), b"F");
    assert_eq!(root.resolve(Path::new("link/../link/new/../x")).unwrap(), Path::new("in/x"));
    assert!(matches!(
        root.create_dir_all(Path::new("in/f/x"), 0o755, None),
        Err(RootfsError::Io { .. } | RootfsError::CannotReplace { .. })
    ));
    assert!(matches!(root.read_small(Path::new("in"), 10), Err(RootfsError::NotRegular { .. })));
    assert!(matches!(root.read_small(Path::new("in/f"), 0), Err(RootfsError::TooLarge { .. })));
    assert!(matches!(root.parent(Path::new("in/..")), Err(RootfsError::BadPath { .. })));
    assert!(matches!(root.open_dir(Path::new("a\0b")), Err(RootfsError::Io { .. })));
}

/// CVE-2024-21626: a working directory under `/proc/self/fd` is a way out where the descriptor of a host directory leaked.
#[test]
fn cve_2024_21626_magic_links_are_not_followed() {
    let (c, outside) = with_outside();
    let leaked = std::fs::File::open(&outside).unwrap();
    let root = Root::open(Path::new("/")).unwrap();
    let through = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&leaked));
    assert!(root.open_dir(Path::new(&through)).is_err());
    assert!(root.open_file(&Path::new(&through).join("secret")).is_err());
    assert!(root.open_dir(Path::new("/proc/self/cwd")).is_err());
    // a link to a directory of proc that is no magic one
    assert!(root.open_dir(Path::new("/proc/self")).is_ok());
    drop(c);
}

/// CVE-2024-23651, CVE-2021-30465, GO-2024-2521 in shape: a directory is swapped for a link while it is used.
#[test]
fn go_2024_2521_a_directory_swapped_for_a_link_while_copying_never_leads_out() {
    let (c, outside) = with_outside();
    tree(&outside, &["sub/file=SECRET"]);
    tree(&c.src(), &["d/sub/file=public", "d/deep/er/file=public"]);
    let (swap, stop) = (c.src().join("d/sub"), AtomicBool::new(false));
    let aside = c.src().join("aside");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                std::fs::rename(&swap, &aside).unwrap();
                symlink(outside.join("sub"), &swap).unwrap();
                std::fs::remove_file(&swap).unwrap();
                std::fs::rename(&aside, &swap).unwrap();
            }
        });
        let root = Root::open(&c.src()).unwrap();
        let (mut copied, mut failed) = (0, 0);
        for round in 0..300 {
            let up = c.tmp.path().join(format!("up{round}"));
            std::fs::create_dir(&up).unwrap();
            let target = Target::scratch(Root::open(&up).unwrap());
            let request = CopyRequest { select: select(&["d"]), dest: "/x".into(), ..CopyRequest::default() };
            let stack = root.clone().into();
            let done = if round % 2 == 0 {
                copy(&request, Source::Stack(&stack), &target)
            } else {
                ContextTree::scan(&root, None, None).and_then(|t| copy(&request, Source::Tree(&t), &target))
            };
            match done {
                Ok(_) => copied += 1,
                Err(_) => failed += 1,
            }
            for line in listing(&up) {
                assert!(!line.contains("SECRET"), "{line}");
            }
            for path in ["d/sub/file", "d/sub"] {
                if let Ok(Some(content)) = root.read_small(Path::new(path), 100) {
                    assert_eq!(content, b"public");
                }
            }
            std::fs::remove_dir_all(&up).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        eprintln!("{copied} copies went through, {failed} met the swap");
    });
}

/// The other direction: the target's directory is swapped while files are written into it.
#[test]
fn a_target_swapped_for_a_link_while_copying_never_leads_out() {
    let (c, outside) = with_outside();
    let specs: Vec<String> = (0..50).map(|i| format!("d/sub/f{i}=F")).collect();
    tree(&c.src(), &specs.iter().map(String::as_str).collect::<Vec<_>>());
    tree(&c.up(), &["x/sub/"]);
    let before = listing(&outside);
    let (swap, aside, stop) = (c.up().join("x"), c.up().join("aside"), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                if std::fs::rename(&swap, &aside).is_ok() {
                    let _ = symlink(&outside, &swap);
                    let _ = std::fs::remove_file(&swap);
                    let _ = std::fs::rename(&aside, &swap);
                }
            }
        });
        for _ in 0..200 {
            let _ = c.copy("d", "/x"); // it may fail; it may not write elsewhere
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(listing(&outside), before);
}

#[test]
fn a_context_does_not_see_what_its_filter_leaves_out() {
    let c = Case::new();
    tree(&c.src(), &["keep=K", ".env=SECRET", "l->.env", "dir/.env=SECRET", "dl->dir"]);
    let filter =
        |p: &Path, _: bool| if p.file_name().is_some_and(|n| n == ".env") { Ignore::Skip } else { Ignore::Keep };
    let context = ContextTree::scan(&Root::open(&c.src()).unwrap(), Some(&filter), None).unwrap();
    for path in [".env", "l", "dir/.env", "dl/.env", ".en?", "dl/.*"] {
        let request = CopyRequest { select: select(&[path]), dest: "/x".into(), ..CopyRequest::default() };
        let err = copy(&request, Source::Tree(&context), &c.target()).unwrap_err();
        assert!(err.is_not_found(), "{path}: {err}");
    }
    let request = CopyRequest { select: select(&["/"]), dest: "/x".into(), ..CopyRequest::default() };
    copy(&request, Source::Tree(&context), &c.target()).unwrap();
    assert!(!listing(&c.up()).iter().any(|l| l.contains("SECRET")));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever links there are, and whatever is asked for: nothing outside is read or written.
    #[test]
    fn random_links_and_paths_stay_inside(
        links in prop::collection::vec(("[abc](/[abc]){0,1}", "(/|\\.\\./|\\.\\./\\.\\./){0,1}([abc]|\\.\\.|outside|src|up)(/([abc]|\\.\\.|outside|secret)){0,2}"), 0..6),
        source in "(/|\\.\\./){0,2}([abc*]|\\.\\.|outside)(/([abc*?]|\\.\\.|secret|outside)){0,2}",
        dest in "(/|\\.\\./){0,2}([abc]|\\.\\.|outside)(/([abc]|\\.\\.|secret|outside)){0,2}/{0,1}",
    ) {
        let (c, outside) = with_outside();
        tree(&c.src(), &["a/b=1", "b/c=2", "c/a/b=3"]);
        for (at, target) in &links {
            for root in [c.src(), c.up(), c.low()] {
                let at = root.join(at);
                if let Ok(parent) = at.parent().unwrap().canonicalize() && parent.starts_with(&root) {
                    let _ = symlink(target, at);
                }
            }
        }
        let before = listing(&outside);
        let _ = c.copy(&source, &dest);
        let _ = tree_digest(Source::Stack(&c.source()), &select(&[&source]));
        let _ = fileops::mkdir(&c.target(), Path::new(&dest), &Make { mode: 0o755, ..make() }, true);
        let _ = fileops::rm(&c.target(), Path::new(&dest), true, true);
        prop_assert_eq!(listing(&outside), before);
        prop_assert!(!listing(&c.up()).iter().any(|l| l.contains("SECRET") || l.contains("INNER")));
    }
}
