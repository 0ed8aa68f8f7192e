//! Extended attributes of names in a directory, and `user.kiln.stat`.
//!
//! `*xattr` system calls cannot work on `O_PATH` descriptors, and opening a device or FIFO to ask for its attributes is
//! not acceptable; names are therefore reached as `/proc/self/fd/<dir>/<name>`, which is still relative to the directory
//! that was opened, and the last component is never followed.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::fs::XattrFlags;
use rustix::io::{Errno, Result};

/// Carries owner, mode and device number where the inode cannot: `uid:gid:mode[:major:minor]`, mode octal with type bits.
pub const KILN_STAT: &str = "user.kiln.stat";
/// File capabilities.
pub const CAPABILITY: &str = "security.capability";

/// More than the kernel stores for one attribute.
const MAX_VALUE: usize = 64 << 10;

/// Attributes by name, sorted.
pub type Xattrs = BTreeMap<OsString, Vec<u8>>;

/// Attributes that overlayfs or kiln keep for themselves; they never belong to a layer's content.
pub fn is_internal(name: &OsStr) -> bool {
    let n = name.as_bytes();
    n.starts_with(b"trusted.overlay.") || n.starts_with(b"user.overlay.") || n.starts_with(b"user.kiln.")
}

/// Attributes that are part of a file: capabilities and the user's own. Labels of security modules, ACLs and trusted
/// attributes depend on the host.
pub fn is_content(name: &OsStr) -> bool {
    let n = name.as_bytes();
    (n == CAPABILITY.as_bytes() || n.starts_with(b"user.")) && !is_internal(name)
}

/// An operation's path: through `/proc`, without following `name`. An empty name means the descriptor's own file.
struct At {
    path: CString,
    own: bool,
}

impl At {
    fn new(dir: BorrowedFd<'_>, name: &OsStr) -> Result<Self> {
        let mut path = Vec::with_capacity(24 + name.len());
        let _ = write!(path, "/proc/self/fd/{}", dir.as_raw_fd()); // a Vec takes everything
        if !name.is_empty() {
            path.push(b'/');
            path.extend_from_slice(name.as_bytes());
        }
        Ok(Self { path: CString::new(path).map_err(|_| Errno::INVAL)?, own: name.is_empty() })
    }

    fn list(&self, buf: &mut [u8]) -> Result<usize> {
        if self.own { rustix::fs::listxattr(&self.path, buf) } else { rustix::fs::llistxattr(&self.path, buf) }
    }

    fn get(&self, attr: &OsStr, buf: &mut [u8]) -> Result<usize> {
        if self.own {
            rustix::fs::getxattr(&self.path, attr, buf)
        } else {
            rustix::fs::lgetxattr(&self.path, attr, buf)
        }
    }
}

/// No attributes here, as opposed to a failure to read them.
fn absent(e: Errno) -> bool {
    e == Errno::NODATA || e == Errno::OPNOTSUPP
}

/// The value of an attribute of `name` in `dir` (of `dir`'s own file, if empty); a symbolic link is not followed.
pub fn get_at(dir: impl AsFd, name: &OsStr, attr: &OsStr) -> Result<Option<Vec<u8>>> {
    let at = At::new(dir.as_fd(), name)?;
    let mut small = [0; 256];
    match at.get(attr, &mut small) {
        Ok(n) => return Ok(Some(small[..n].to_vec())),
        Err(Errno::RANGE) => {}
        Err(e) if absent(e) => return Ok(None),
        Err(e) => return Err(e),
    }
    let mut large = vec![0; MAX_VALUE];
    match at.get(attr, &mut large) {
        Ok(n) => {
            large.truncate(n);
            Ok(Some(large))
        }
        Err(e) if absent(e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// All attributes' names.
pub fn list_at(dir: impl AsFd, name: &OsStr) -> Result<Vec<OsString>> {
    let at = At::new(dir.as_fd(), name)?;
    list_with(|buf| at.list(buf))
}

/// All attributes' names, of a file that is open for reading or writing.
pub fn list(fd: impl AsFd) -> Result<Vec<OsString>> {
    list_with(|buf| rustix::fs::flistxattr(fd.as_fd(), buf))
}

fn list_with(call: impl Fn(&mut [u8]) -> Result<usize>) -> Result<Vec<OsString>> {
    let mut small = [0; 512];
    match call(&mut small) {
        Ok(n) => return Ok(split(&small[..n])),
        Err(Errno::RANGE) => {}
        Err(e) if absent(e) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    }
    let mut large = vec![0; MAX_VALUE];
    match call(&mut large) {
        Ok(n) => Ok(split(&large[..n])),
        Err(e) if absent(e) => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

fn split(list: &[u8]) -> Vec<OsString> {
    list.split(|b| *b == 0).filter(|n| !n.is_empty()).map(|n| OsString::from_vec(n.to_vec())).collect()
}

/// The attributes for which `keep` holds, with values.
pub fn read_at(dir: impl AsFd, name: &OsStr, keep: impl Fn(&OsStr) -> bool) -> Result<Xattrs> {
    let dir = dir.as_fd();
    let mut all = Xattrs::new();
    for attr in list_at(dir, name)? {
        if keep(&attr)
            && let Some(value) = get_at(dir, name, &attr)?
        {
            all.insert(attr, value);
        }
    }
    Ok(all)
}

/// Sets an attribute of `name` in `dir` (of `dir`'s own file, if empty).
pub fn set_at(dir: impl AsFd, name: &OsStr, attr: &OsStr, value: &[u8]) -> Result<()> {
    let at = At::new(dir.as_fd(), name)?;
    if at.own {
        rustix::fs::setxattr(&at.path, attr, value, XattrFlags::empty())
    } else {
        rustix::fs::lsetxattr(&at.path, attr, value, XattrFlags::empty())
    }
}

/// Removes an attribute; its absence is fine.
pub fn remove_at(dir: impl AsFd, name: &OsStr, attr: &OsStr) -> Result<()> {
    let at = At::new(dir.as_fd(), name)?;
    let done = if at.own { rustix::fs::removexattr(&at.path, attr) } else { rustix::fs::lremovexattr(&at.path, attr) };
    match done {
        Err(e) if absent(e) => Ok(()),
        other => other,
    }
}

/// The content of [`KILN_STAT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recorded {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// `st_mode`, with type bits.
    pub mode: u32,
    /// Device number, of devices.
    pub rdev: Option<(u32, u32)>,
}

impl Recorded {
    /// Parses; anything malformed is `None`, and then the inode's own metadata stand.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok()?;
        let mut parts = text.split(':');
        let uid = parts.next()?.parse().ok()?;
        let gid = parts.next()?.parse().ok()?;
        let mode = u32::from_str_radix(parts.next()?, 8).ok().filter(|m| m & !0o177_777 == 0)?;
        let rdev = match (parts.next(), parts.next(), parts.next()) {
            (None, ..) => None,
            (Some(major), Some(minor), None) => Some((major.parse().ok()?, minor.parse().ok()?)),
            _ => return None,
        };
        Some(Self { uid, gid, mode, rdev })
    }

    /// The attribute's value.
    pub fn format(&self) -> String {
        let Self { uid, gid, mode, rdev } = self;
        match rdev {
            None => format!("{uid}:{gid}:{mode:o}"),
            Some((major, minor)) => format!("{uid}:{gid}:{mode:o}:{major}:{minor}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_round_trip() {
        for r in [
            Recorded { uid: 0, gid: 5, mode: 0o100_644, rdev: None },
            Recorded { uid: 4_294_967_294, gid: 1, mode: 0o020_666, rdev: Some((1, 3)) },
        ] {
            assert_eq!(Recorded::parse(r.format().as_bytes()), Some(r));
        }
        for bad in ["", "0", "0:0", "0:0:9", "0:0:644:1", "0:0:644:1:3:4", "-1:0:644", "0:0:7777777"] {
            assert_eq!(Recorded::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn what_belongs_to_content() {
        let content = |n: &str| is_content(OsStr::new(n));
        assert!(content("user.mime") && content("security.capability"));
        assert!(!content("user.kiln.stat") && !content("trusted.overlay.opaque") && !content("user.overlay.opaque"));
        assert!(!content("security.selinux") && !content("system.posix_acl_access") && !content("trusted.md5"));
    }
}
