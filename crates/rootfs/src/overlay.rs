//! Overlay mounts by file descriptor: made with the new mount API, never attached, gone when the descriptor is closed.
//!
//! Invariants:
//! - redirects, metadata-only copies and indexes are off, so that an upper directory is complete by itself;
//! - layers are handed over as descriptors where the kernel takes them, else as `/proc/self/fd/N` strings, so that neither
//!   long paths nor renames matter; kernels before 6.7 take neither ([`legacy`]);
//! - what the kernel says about a refusal ends up in the error.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use crate::error::{Context as _, Result, RootfsError};

mod legacy;

/// `nofollow` rather than `off`: with `userxattr` the kernel takes nothing else.
const OPTIONS: [(&str, &str); 3] = [("redirect_dir", "nofollow"), ("metacopy", "off"), ("index", "off")];

/// `OVL_MAX_STACK` of the kernel.
pub const MAX_LOWERS: usize = 500;

/// What to mount.
#[derive(Debug, Clone, Copy)]
pub struct OverlaySpec<'a> {
    /// Read-only layers, lowest first; at least one.
    pub lowers: &'a [&'a Path],
    /// The writable layer and its work directory (on the same file system, empty). `None`: read-only.
    pub upper: Option<(&'a Path, &'a Path)>,
    /// The upper is thrown away if the machine crashes: no syncs.
    pub volatile: bool,
}

/// Whether this process is in a user namespace other than the initial one: the initial one maps all ids to themselves.
pub fn in_user_namespace() -> bool {
    static INSIDE: OnceLock<bool> = OnceLock::new();
    *INSIDE.get_or_init(|| {
        let Ok(map) = std::fs::read_to_string("/proc/self/uid_map") else { return false };
        map.split_whitespace().ne(["0", "0", "4294967295"])
    })
}

/// The attribute that makes a directory of a layer hide what is below it, in the name space used here.
pub fn opaque_attribute() -> &'static str {
    let privileged = rustix::process::geteuid().is_root() && !in_user_namespace();
    if privileged { "trusted.overlay.opaque" } else { "user.overlay.opaque" }
}

/// The running kernel's version and patch level.
pub fn kernel() -> (u32, u32) {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Mounts, and returns the detached mount: a directory descriptor to use as a root, or to attach with `move_mount`.
pub fn mount(spec: &OverlaySpec<'_>) -> Result<OwnedFd> {
    if spec.lowers.len() > MAX_LOWERS {
        return Err(RootfsError::TooManyLayers { count: spec.lowers.len(), limit: MAX_LOWERS });
    }
    let made = if kernel() < (6, 7) { mount_legacy(spec) } else { mount_modern(spec) };
    made.map_err(|e| spec.upper.and_then(|(upper, _)| unfit(upper)).unwrap_or(e))
}

fn mount_legacy(spec: &OverlaySpec<'_>) -> Result<OwnedFd> {
    legacy::mount(spec).map_err(|e| fail(spec, None, "mount", e))
}

fn mount_modern(spec: &OverlaySpec<'_>) -> Result<OwnedFd> {
    let fs =
        rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| fail(spec, None, "fsopen", e))?;
    configure(&fs, spec)?;
    rustix::mount::fsconfig_create(&fs).map_err(|e| fail(spec, Some(&fs), "mount", e))?;
    rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        .map_err(|e| fail(spec, Some(&fs), "fsmount", e))
}

fn fail(spec: &OverlaySpec<'_>, fs: Option<&OwnedFd>, what: &str, e: Errno) -> RootfsError {
    RootfsError::Overlay { layers: spec.lowers.len(), message: message(fs, what, e) }
}

/// Why a directory cannot be the writable layer, if it is for its file system: the root of most containers is an overlay,
/// which cannot be written through another one.
fn unfit(upper: &Path) -> Option<RootfsError> {
    const KINDS: [(u64, &str); 6] = [
        (0x794c_7630, "overlay"),
        (0x6969, "nfs"),
        (0x6573_5546, "fuse"),
        (0xff53_4d42, "cifs"),
        (0x4d44, "vfat"),
        (0x0102_1997, "9p"),
    ];
    let magic = rustix::fs::statfs(upper).ok()?.f_type as u64;
    let (_, kind) = KINDS.into_iter().find(|(m, _)| *m == magic)?;
    Some(RootfsError::UnfitFileSystem { path: upper.to_owned(), kind })
}

fn configure(fs: &OwnedFd, spec: &OverlaySpec<'_>) -> Result<()> {
    let fail = |what: &str, e: Errno| fail(spec, Some(fs), what, e);
    rustix::mount::fsconfig_set_string(fs, "source", "kiln").map_err(|e| fail("source", e))?;
    for (option, value) in OPTIONS {
        match rustix::mount::fsconfig_set_string(fs, option, value) {
            Ok(()) | Err(Errno::INVAL) => {} // unknown to this kernel: then it is off
            Err(e) => return Err(fail(option, e)),
        }
    }
    if in_user_namespace() {
        rustix::mount::fsconfig_set_flag(fs, "userxattr").map_err(|e| fail("userxattr", e))?;
    }
    // The kernel wants the uppermost layer first. Descriptors must live until the mount exists only.
    let mut held = Vec::with_capacity(spec.lowers.len());
    for path in spec.lowers.iter().rev() {
        let dir = open_layer(path)?;
        set_layer(fs, "lowerdir+", dir.as_fd()).map_err(|e| fail(&path.display().to_string(), e))?;
        held.push(dir);
    }
    if let Some((upper, work)) = spec.upper {
        for (key, path) in [("upperdir", upper), ("workdir", work)] {
            let dir = open_layer(path)?;
            set_layer(fs, key, dir.as_fd()).map_err(|e| fail(&path.display().to_string(), e))?;
            held.push(dir);
        }
        if spec.volatile {
            match rustix::mount::fsconfig_set_flag(fs, "volatile") {
                Ok(()) | Err(Errno::INVAL) => {}
                Err(e) => return Err(fail("volatile", e)),
            }
        }
    }
    Ok(())
}

fn open_layer(path: &Path) -> Result<OwnedFd> {
    open_directory(path).at("open layer", path)
}

fn open_directory(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Descriptors since Linux 6.13; before, a string of at most 255 bytes, which `/proc/self/fd/N` is.
fn set_layer(fs: &OwnedFd, key: &str, dir: BorrowedFd<'_>) -> rustix::io::Result<()> {
    match rustix::mount::fsconfig_set_fd(fs, key, dir) {
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::BADF) => {
            rustix::mount::fsconfig_set_string(fs, key, format!("/proc/self/fd/{}", dir.as_raw_fd()))
        }
        done => done,
    }
}

/// The kernel's own words, of which there may be several lines; then the error number's.
fn message(fs: Option<&OwnedFd>, what: &str, e: Errno) -> String {
    let mut all = format!("{what}: {e}");
    let mut buf = [0; 1024];
    for _ in 0..16 {
        let Some(Ok(n)) = fs.map(|fs| rustix::io::read(fs, &mut buf)) else { break };
        let line = String::from_utf8_lossy(&buf[..n]);
        // "e overlay: text": level and origin first
        let line = line.trim_end().split_once(' ').map_or("", |(_, text)| text).to_owned();
        if !line.is_empty() && !all.contains(&line) {
            all.push_str("; ");
            all.push_str(&line);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::Root;

    fn usable() -> bool {
        let tmp = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| tmp.path().join(name));
        [&a, &b].into_iter().for_each(|dir| std::fs::create_dir(dir).unwrap());
        let mounted = mount(&OverlaySpec { lowers: &[&a, &b], upper: None, volatile: false });
        mounted.inspect_err(|why| eprintln!("SKIPPED: no overlay mounts here: {why}")).is_ok()
    }

    type Way = fn(&OverlaySpec<'_>) -> Result<OwnedFd>;

    /// What kernels before 6.7 need works on later ones as well.
    const WAYS: [Way; 2] = [mount, mount_legacy];

    #[test]
    fn upper_hides_lower_and_writes_go_up() {
        if !usable() {
            return;
        }
        for mount in WAYS {
            let tmp = tempfile::tempdir().unwrap();
            let dir = |n: &str| {
                let d = tmp.path().join(n);
                std::fs::create_dir(&d).unwrap();
                d
            };
            let (a, b, up, work) = (dir("a"), dir("b"), dir("up"), dir("work"));
            std::fs::write(a.join("f"), "a").unwrap();
            std::fs::write(a.join("only-a"), "a").unwrap();
            std::fs::write(b.join("f"), "b").unwrap();
            let fd = mount(&OverlaySpec { lowers: &[&a, &b], upper: Some((&up, &work)), volatile: true }).unwrap();
            let root = Root::from_fd(fd);
            assert_eq!(root.read_small(Path::new("f"), 10).unwrap().unwrap(), b"b");
            assert_eq!(root.read_small(Path::new("/only-a"), 10).unwrap().unwrap(), b"a");
            root.write_file(Path::new("new"), b"n", 0o644, None).unwrap();
            assert_eq!(std::fs::read(up.join("new")).unwrap(), b"n");
            let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
            assert!(!mounts.contains(tmp.path().to_str().unwrap()), "the mount must not be attached");
        }
    }

    #[test]
    fn long_paths_and_many_layers() {
        if !usable() {
            return;
        }
        let tmp = tempfile::tempdir().unwrap();
        let mut deep = tmp.path().to_owned();
        for _ in 0..3 {
            deep.push("x".repeat(200));
        }
        let layers: Vec<_> = (0..MAX_LOWERS).map(|i| deep.join(format!("l{i}"))).collect();
        for (i, l) in layers.iter().enumerate() {
            std::fs::create_dir_all(l).unwrap();
            std::fs::write(l.join("top"), i.to_string()).unwrap();
        }
        let refs: Vec<&Path> = layers.iter().map(|p| p.as_path()).collect();
        for mount in WAYS {
            let root = Root::from_fd(mount(&OverlaySpec { lowers: &refs, upper: None, volatile: false }).unwrap());
            assert_eq!(root.read_small(Path::new("top"), 10).unwrap().unwrap(), b"499");
        }
        let many = vec![refs[0]; 501];
        let err = mount(&OverlaySpec { lowers: &many, upper: None, volatile: false }).unwrap_err();
        assert!(matches!(err, RootfsError::TooManyLayers { count: 501, limit: 500 }));
    }

    #[test]
    fn the_kernels_words_are_in_the_error() {
        if !usable() {
            return;
        }
        let err = mount(&OverlaySpec { lowers: &[Path::new("/proc")], upper: None, volatile: false });
        let message = err.unwrap_err().to_string();
        assert!(message.contains("not supported") || message.contains("Invalid argument"), "{message}");
        assert!(message.starts_with("cannot mount an overlay of 1 layers: "), "{message}");
        eprintln!("{message}");
    }
}
