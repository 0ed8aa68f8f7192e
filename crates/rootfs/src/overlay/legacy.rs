//! Overlay mounts for kernels before 6.7, whose new mount API takes all lower directories in one string of 255 bytes.
//!
//! `mount(2)` takes a page of options, but attaches what it mounts. So a thread of its own gets a mount namespace of its own, takes
//! a detached copy of the mount and ends, and the namespace with it: nothing is attached anywhere, whatever happens meanwhile.

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::io::{Errno, Result};
use rustix::mount::{MountFlags, MountPropagationFlags, OpenTreeFlags};
use rustix::thread::UnshareFlags;

use super::{OPTIONS, OverlaySpec, in_user_namespace, open_directory};

/// Mounts, and returns the detached mount.
pub fn mount(spec: &OverlaySpec<'_>) -> Result<OwnedFd> {
    std::thread::scope(|scope| scope.spawn(|| mount_apart(spec)).join()).unwrap_or(Err(Errno::IO))
}

fn mount_apart(spec: &OverlaySpec<'_>) -> Result<OwnedFd> {
    // SAFETY: the table of descriptors stays shared with the other threads.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS)? };
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let place = spec.lowers.first().ok_or(Errno::INVAL)?;
    let place = std::path::absolute(place).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    // The kernel takes only directories that were found in the namespace in which it mounts.
    let mut lowers = spec.lowers.iter().rev().map(|p| open_directory(p)).collect::<Result<Vec<_>>>()?;
    let mut data = format!("lowerdir={}", numbers(&lowers));
    if let Some((upper, work)) = spec.upper {
        let dirs = [open_directory(upper)?, open_directory(work)?];
        data += &format!(",upperdir={},workdir={}", dirs[0].as_raw_fd(), dirs[1].as_raw_fd());
        lowers.extend(dirs);
    }
    OPTIONS.iter().for_each(|(option, value)| data += &format!(",{option}={value}"));
    if in_user_namespace() {
        data += ",userxattr";
    }
    if spec.volatile && spec.upper.is_some() {
        data += ",volatile";
    }
    // Names of a few bytes, so that 500 of them fit into a page. The working directory is this thread's own by now.
    rustix::process::chdir("/proc/self/fd")?;
    let data = CString::new(data).map_err(|_| Errno::INVAL)?;
    rustix::mount::mount("kiln", &place, "overlay", MountFlags::empty(), Some(data.as_c_str()))?;
    detached(&place)
}

fn numbers(dirs: &[OwnedFd]) -> String {
    dirs.iter().map(|fd| fd.as_raw_fd().to_string()).collect::<Vec<_>>().join(":")
}

fn detached(place: &Path) -> Result<OwnedFd> {
    rustix::mount::open_tree(CWD, place, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
}
