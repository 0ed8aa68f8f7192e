//! Whiteouts and opaque directories, in their two forms: the names that OCI layers use, and what overlayfs wants.
//!
//! Only the opaque attribute of the name space in use is believed: a privileged step may set any `user.*` attribute on
//! its files, among them the one that means "opaque" to unprivileged mounts.

use std::ffi::OsStr;
use std::os::fd::AsFd;

use rustix::fs::{FileType, Mode};
use rustix::io::{Errno, Result};

use crate::overlay::opaque_attribute;
use crate::stat::{Ownership, Stat};
use crate::xattr;

/// `.wh.NAME` in a layer hides NAME of the layers below.
pub const PREFIX: &[u8] = b".wh.";
/// In a directory of a layer: nothing of it comes from the layers below.
pub const OPAQUE: &[u8] = b".wh..wh..opq";
/// Names with this prefix are AUFS's own (the opaque marker excepted).
pub const META_PREFIX: &[u8] = b".wh..wh.";

/// Hides `name` of the layers below `dir`.
pub(crate) fn make(dir: impl AsFd, name: &OsStr) -> Result<()> {
    rustix::fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0)
}

/// Whether `name` in `dir` is a whiteout.
pub(crate) fn is_at(dir: impl AsFd, name: &OsStr) -> Result<bool> {
    match Stat::at(dir, name, Ownership::Native) {
        Ok(stat) => Ok(stat.is_whiteout()),
        Err(Errno::NOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Marks a directory (of `dir` itself, if `name` is empty) as opaque.
pub(crate) fn set_opaque(dir: impl AsFd, name: &OsStr) -> Result<()> {
    xattr::set_at(dir, name, OsStr::new(opaque_attribute()), b"y")
}

/// Whether a directory (`dir` itself, if `name` is empty) is opaque.
pub(crate) fn is_opaque(dir: impl AsFd, name: &OsStr) -> Result<bool> {
    Ok(xattr::get_at(dir, name, OsStr::new(opaque_attribute()))?.as_deref() == Some(b"y"))
}

/// Whether the root of a layer hides all that is below it. Overlayfs does not look at a root's mark: who mounts layers
/// leaves those below out.
pub fn is_opaque_root(layer: &crate::root::Root) -> crate::error::Result<bool> {
    is_opaque(layer.as_fd(), OsStr::new("")).map_err(|e| crate::error::RootfsError::io("read attributes of", "/", e))
}
