//! File-system pieces: atomic writes, and walks that remove or measure a tree that nobody trusts.
//!
//! The walks hold one directory descriptor at a time, whatever the depth: they go up through `..` and check that they arrive
//! where they came from. They never follow a symbolic link.

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

/// What removing a tree gave back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    /// Allocated bytes that are free now: those of files of which this was the last link.
    pub bytes: u64,
    /// Files and directories.
    pub entries: u64,
}

/// What a walk found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Measured {
    /// Allocated bytes; a file with several links counts once for each visit.
    pub disk: u64,
    /// Files and directories below the root.
    pub entries: u64,
    /// Order-independent summary of paths, kinds, modes, owners, sizes and times.
    pub check: u64,
}

/// `n` random bytes, as hex.
pub fn random_hex(n: usize) -> io::Result<String> {
    let mut bytes = vec![0; n];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// Names this boot of the kernel; empty where the kernel does not tell.
pub fn boot_id() -> &'static str {
    static BOOT: OnceLock<String> = OnceLock::new();
    BOOT.get_or_init(|| {
        fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|s| s.trim().to_owned()).unwrap_or_default()
    })
}

/// Milliseconds since the Unix epoch.
pub(crate) fn now_ms() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64)
}

/// Replaces `target` by `bytes` through the draft `draft`, synced.
pub(crate) fn replace_file(draft: &Path, target: &Path, bytes: &[u8]) -> io::Result<()> {
    let write = || {
        let mut file = File::create(draft)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        fs::rename(draft, target)
    };
    write().inspect_err(|_| _ = fs::remove_file(draft))
}

/// Allocated bytes of a file.
fn allocated(st: &Stat) -> u64 {
    (st.st_blocks as u64).saturating_mul(512)
}

const DIR_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Removes `path`, whatever it is. Not being there is success.
pub(crate) fn remove_path(path: &Path) -> io::Result<Removed> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let parent = match rustix::fs::open(parent, DIR_FLAGS, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(Removed::default()),
        other => other?,
    };
    let name = CString::new(std::os::unix::ffi::OsStrExt::as_bytes(name))?;
    remove_at(parent.as_fd(), &name)
}

/// Removes `name` in `parent`, whatever it is: any depth, any modes. Not being there is success.
pub(crate) fn remove_at(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<Removed> {
    let mut removed = Removed::default();
    let Some(root) = unlink_or_open(parent, name, &mut removed)? else { return Ok(removed) };
    let mut walk = Walk::new(root)?;
    loop {
        if !walk.scanned {
            for (child, kind) in walk.list()? {
                // Some file systems do not tell the kind; then it may turn out to be a directory.
                let dir =
                    kind == FileType::Directory || unlink_or_open(walk.fd.as_fd(), &child, &mut removed)?.is_some();
                if dir {
                    walk.here.pending.push(child);
                }
            }
            walk.scanned = true;
        }
        if let Some(child) = walk.here.pending.pop() {
            if let Some(fd) = unlink_or_open(walk.fd.as_fd(), &child, &mut removed)? {
                walk.down(child, fd)?;
            }
            continue;
        }
        let disk = walk.here.disk;
        let Some(name) = walk.up()? else { break };
        rmdir(walk.fd.as_fd(), &name, disk, &mut removed)?;
    }
    rmdir(parent, name, walk.here.disk, &mut removed)?;
    Ok(removed)
}

fn rmdir(parent: BorrowedFd<'_>, name: &CStr, disk: u64, removed: &mut Removed) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) => {
            removed.entries += 1;
            removed.bytes += disk;
            Ok(())
        }
        Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Unlinks a non-directory, or opens a directory and makes it usable for its owner.
fn unlink_or_open(parent: BorrowedFd<'_>, name: &CStr, removed: &mut Removed) -> io::Result<Option<OwnedFd>> {
    let st = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(None),
        other => other?,
    };
    if FileType::from_raw_mode(st.st_mode) != FileType::Directory {
        match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
        removed.entries += 1;
        if st.st_nlink == 1 {
            removed.bytes += allocated(&st);
        }
        return Ok(None);
    }
    if st.st_mode & 0o700 != 0o700 {
        // Root does not need it, and a foreign owner forbids it: then what follows says why.
        _ = rustix::fs::chmodat(parent, name, Mode::from_raw_mode(0o700), AtFlags::empty());
    }
    Ok(Some(rustix::fs::openat(parent, name, DIR_FLAGS, Mode::empty())?))
}

/// Measures the tree at `path`; `None` if it has more than `max` entries.
pub(crate) fn measure(path: &Path, max: u64) -> io::Result<Option<Measured>> {
    let mut total = Measured::default();
    let whole = visit(path, &mut |st, path_hash| {
        total.entries += 1;
        total.disk += allocated(st);
        total.check = total.check.wrapping_add(summary(st, path_hash));
        total.entries <= max
    })?;
    Ok(whole.then_some(total))
}

/// Calls `each` for every entry below `path`, until it returns false. Returns whether it went to the end.
pub(crate) fn visit(path: &Path, each: &mut dyn FnMut(&Stat, u64) -> bool) -> io::Result<bool> {
    let mut walk = Walk::new(rustix::fs::openat(CWD, path, DIR_FLAGS, Mode::empty())?)?;
    loop {
        if !walk.scanned {
            for (child, _) in walk.list()? {
                let st = rustix::fs::statat(walk.fd.as_fd(), &child, AtFlags::SYMLINK_NOFOLLOW)?;
                if !each(&st, mix(walk.here.hash, child.to_bytes())) {
                    return Ok(false);
                }
                if FileType::from_raw_mode(st.st_mode) == FileType::Directory {
                    walk.here.pending.push(child);
                }
            }
            walk.scanned = true;
        }
        if let Some(child) = walk.here.pending.pop() {
            let fd = rustix::fs::openat(walk.fd.as_fd(), &child, DIR_FLAGS, Mode::empty())?;
            walk.down(child, fd)?;
        } else if walk.up()?.is_none() {
            return Ok(true);
        }
    }
}

/// FNV-1a with a final mix: not against an adversary, against a disk that lost power.
fn mix(seed: u64, bytes: &[u8]) -> u64 {
    let mut h = seed ^ 0xcbf2_9ce4_8422_2325;
    for b in bytes {
        h = (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    (h ^ (h >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

fn summary(st: &Stat, path_hash: u64) -> u64 {
    let file = FileType::from_raw_mode(st.st_mode) == FileType::RegularFile;
    let fields = [
        u64::from(st.st_mode),
        u64::from(st.st_uid),
        u64::from(st.st_gid),
        if file { st.st_size as u64 } else { 0 },
        st.st_rdev,
        st.st_mtime as u64,
    ];
    fields.iter().fold(path_hash, |h, f| mix(h, &f.to_le_bytes()))
}

/// A depth-first walk that holds one descriptor.
struct Walk {
    fd: OwnedFd,
    here: Frame,
    /// The directories from the root to the parent of `here`.
    above: Vec<Frame>,
    /// Whether the entries of `here` were listed.
    scanned: bool,
}

struct Frame {
    identity: (u64, u64),
    name: CString,
    hash: u64,
    /// Allocated bytes of the directory itself.
    disk: u64,
    /// Subdirectories that are still to be visited.
    pending: Vec<CString>,
}

impl Frame {
    fn new(fd: &OwnedFd, name: CString, hash: u64) -> io::Result<Self> {
        let st = rustix::fs::fstat(fd)?;
        Ok(Self { identity: (st.st_dev, st.st_ino), name, hash, disk: allocated(&st), pending: Vec::new() })
    }
}

impl Walk {
    fn new(root: OwnedFd) -> io::Result<Self> {
        let here = Frame::new(&root, CString::default(), 0)?;
        Ok(Self { fd: root, here, above: Vec::new(), scanned: false })
    }

    fn list(&self) -> io::Result<Vec<(CString, FileType)>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.fd)? {
            let entry = entry?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push((entry.file_name().to_owned(), entry.file_type()));
            }
        }
        Ok(names)
    }

    fn down(&mut self, name: CString, fd: OwnedFd) -> io::Result<()> {
        let hash = mix(self.here.hash, name.to_bytes());
        let frame = Frame::new(&fd, name, hash)?;
        self.fd = fd;
        self.above.push(std::mem::replace(&mut self.here, frame));
        self.scanned = false;
        Ok(())
    }

    /// Goes to the parent and returns the name of the directory that was left; `None` at the root.
    fn up(&mut self) -> io::Result<Option<CString>> {
        let Some(parent) = self.above.pop() else { return Ok(None) };
        let fd = rustix::fs::openat(&self.fd, c"..", DIR_FLAGS, Mode::empty())?;
        let st = rustix::fs::fstat(&fd)?;
        if (st.st_dev, st.st_ino) != parent.identity {
            return Err(io::Error::other("the tree was moved while it was walked"));
        }
        self.fd = fd;
        self.scanned = true;
        Ok(Some(std::mem::replace(&mut self.here, parent).name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn removes_what_is_deep_and_forbidden() {
        let tmp = tempfile::tempdir().unwrap();
        let victim = tmp.path().join("victim");
        fs::create_dir(&victim).unwrap();
        let mut fd = rustix::fs::open(&victim, DIR_FLAGS, Mode::empty()).unwrap();
        for _ in 0..1300 {
            rustix::fs::mkdirat(&fd, c"a-rather-long-name", Mode::from_raw_mode(0o755)).unwrap();
            fd = rustix::fs::openat(&fd, c"a-rather-long-name", DIR_FLAGS, Mode::empty()).unwrap();
        }
        fs::create_dir(victim.join("closed")).unwrap();
        fs::write(victim.join("closed/f"), [1; 5000]).unwrap();
        fs::set_permissions(victim.join("closed"), fs::Permissions::from_mode(0o000)).unwrap();
        fs::write(tmp.path().join("kept"), "x").unwrap();
        std::os::unix::fs::symlink(tmp.path(), victim.join("out")).unwrap();
        let removed = remove_path(&victim).unwrap();
        assert_eq!(removed.entries, 1300 + 4);
        assert!(removed.bytes >= 8192, "{removed:?}");
        assert!(!victim.exists() && tmp.path().join("kept").exists());
        assert_eq!(remove_path(&victim).unwrap(), Removed::default());
    }

    #[test]
    fn a_file_with_another_link_frees_nothing() {
        let tmp = tempfile::tempdir().unwrap();
        fs::create_dir(tmp.path().join("d")).unwrap();
        fs::write(tmp.path().join("d/f"), vec![1; 100_000]).unwrap();
        fs::hard_link(tmp.path().join("d/f"), tmp.path().join("g")).unwrap();
        let removed = remove_path(&tmp.path().join("d")).unwrap();
        assert!(removed.entries == 2 && removed.bytes < 100_000, "{removed:?}");
    }

    #[test]
    fn the_summary_sees_a_shortened_file() {
        let tmp = tempfile::tempdir().unwrap();
        fs::create_dir_all(tmp.path().join("a/b")).unwrap();
        fs::write(tmp.path().join("a/b/f"), "content").unwrap();
        let before = measure(tmp.path(), 100).unwrap().unwrap();
        assert_eq!(before, measure(tmp.path(), 100).unwrap().unwrap());
        assert_eq!(measure(tmp.path(), 2).unwrap(), None);
        let file = fs::OpenOptions::new().write(true).open(tmp.path().join("a/b/f")).unwrap();
        let mtime = file.metadata().unwrap().modified().unwrap();
        file.set_len(0).unwrap();
        file.set_modified(mtime).unwrap();
        assert_ne!(before.check, measure(tmp.path(), 100).unwrap().unwrap().check);
    }
}
