use std::path::{Path, PathBuf};

use super::StatCache;
use crate::error::RootfsError;
use crate::root::Root;
use crate::select::Selector;
use crate::tree::ContextTree;

struct Case {
    tmp: tempfile::TempDir,
}

impl Case {
    fn new(files: &[(&str, &str)]) -> Self {
        let case = Self { tmp: tempfile::tempdir().unwrap() };
        for (path, content) in files {
            case.write(path, content);
        }
        case
    }

    fn write(&self, path: &str, content: &str) {
        let path = self.tmp.path().join("src").join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    fn cache(&self) -> PathBuf {
        self.tmp.path().join("cache")
    }

    /// Scans, as if `later` seconds had gone by since the files were written.
    fn scan(&self, cache: &StatCache, later: i64) -> ContextTree {
        let root = Root::open(&self.tmp.path().join("src")).unwrap();
        let mut tree = ContextTree::scan(&root, None, Some(cache)).unwrap();
        tree.started.0 += later;
        tree
    }

    /// What was known before, the digest, and whether the cache was written.
    fn run(&self, source: &str) -> (u64, crate::TreeDigest, bool) {
        let cache = StatCache::load(&self.cache());
        let tree = self.scan(&cache, 10);
        let digest = tree.digest(&select(source)).unwrap();
        (cache.len(), digest, cache.save_if_changed(&tree).unwrap())
    }
}

fn select(source: &str) -> Selector<'static> {
    Selector { sources: vec![source.into()], ..Selector::default() }
}

#[test]
fn it_saves_reading_and_notices_changes() {
    let c = Case::new(&[("a", "A"), ("d/b", "B"), ("d/c", "C"), ("unused", "U")]);
    let (known, first, wrote) = c.run("d");
    assert_eq!((known, wrote), (0, true));
    assert_eq!(c.run("d"), (2, first, false), "only the selected files were read, and nothing is written again");
    let cache = StatCache::load(&c.cache());
    let tree = c.scan(&cache, 10);
    let known = tree.dirs.iter().flat_map(|d| &d.entries).filter(|e| e.digest.get().is_some()).count();
    assert_eq!(known, 2, "these need no reading");
    assert_eq!(c.run("a").0, 2);
    assert_eq!(c.run("/").0, 3, "what was known stays known");
    c.write("d/b", "X"); // the same size
    let (_, changed, wrote) = c.run("d");
    assert!(changed != first && wrote);
    std::fs::remove_file(c.tmp.path().join("src/d/c")).unwrap();
    assert!(c.run("d").2, "what is gone is forgotten");
    assert_eq!(c.run("d").0, 3);
}

#[test]
fn racily_clean_files_are_not_kept() {
    let c = Case::new(&[("fresh", "F")]);
    let cache = StatCache::load(&c.cache());
    let tree = c.scan(&cache, 0);
    tree.digest(&select("/")).unwrap();
    cache.save_if_changed(&tree).unwrap();
    assert_eq!(StatCache::load(&c.cache()).len(), 0, "it may change again within the same tick of the clock");
    // whole seconds: the file system may not store more, so the margin is larger
    let mut stat = tree.dirs[0].entries[0].stat;
    stat.ctime = (tree.started.0 - 1, 0);
    stat.mtime = stat.ctime;
    assert!(!tree.is_settled(&stat));
    stat.ctime.1 = 1;
    assert!(tree.is_settled(&stat));
    stat.ctime = (tree.started.0 - 3, 0);
    stat.mtime = stat.ctime;
    assert!(tree.is_settled(&stat));
    stat.mtime = (i64::MAX, 999_999_999);
    assert!(!tree.is_settled(&stat), "a time far in the future");
}

#[test]
fn a_damaged_one_counts_as_empty() {
    let c = Case::new(&[("a", "A"), ("d/b", "B")]);
    let (_, digest, _) = c.run("/");
    let path = c.cache();
    let good = std::fs::read(&path).unwrap();
    assert_eq!(StatCache::load(&path).len(), 2);
    for i in 0..good.len() {
        let mut bad = good.clone();
        bad[i] ^= 0x41;
        std::fs::write(&path, &bad).unwrap();
        assert_eq!(StatCache::load(&path).len(), 0, "byte {i}");
        std::fs::write(&path, &good[..i]).unwrap();
        assert_eq!(StatCache::load(&path).len(), 0, "length {i}");
    }
    assert_eq!(c.run("/"), (0, digest, true));
    assert_eq!(std::fs::read(&path).unwrap(), good, "the same content gives the same file");
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    let cache = StatCache::load(&path);
    assert!(cache.is_empty());
    let tree = c.scan(&cache, 10);
    tree.digest(&select("/")).unwrap();
    assert!(matches!(cache.save_if_changed(&tree), Err(RootfsError::Io { .. })));
    let left: Vec<_> = std::fs::read_dir(c.tmp.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "no temporary file stays: {left:?}");
}

/// A file that lies about its own structure, with a correct checksum.
#[test]
fn counts_and_lengths_are_checked() {
    let c = Case::new(&[]);
    for (path_len, count) in [(u32::MAX, 1), (0, u32::MAX), (4, 0), (0, 1)] {
        let mut data = b"kilnstat".to_vec();
        data.extend(1_u32.to_le_bytes());
        let mut body = path_len.to_le_bytes().to_vec();
        body.extend(count.to_le_bytes());
        body.extend([0xff; 2]);
        data.extend(crc32fast::hash(&body).to_le_bytes());
        data.extend(body);
        std::fs::write(c.cache(), &data).unwrap();
        assert!(StatCache::load(&c.cache()).is_empty());
        assert!(StatCache::load(&c.cache()).dir(Path::new("")).is_none());
    }
}
