//! A pseudo terminal out of the container's own devpts.
//!
//! The other side is taken from the kernel with TIOCGPTPEER and mounted on /dev/console by descriptor: no path that a
//! container could have prepared is followed (CVE-2025-52565).

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::mounts::{attach, copy_of, create_file, open_at, open_exactly};
use crate::error::StartError;
use crate::sys::check;

const DEVPTS_MAGIC: u64 = 0x1cd1;

/// Both sides of a terminal.
pub struct Pair {
    /// For whoever shows it.
    pub master: OwnedFd,
    /// For the process.
    pub slave: OwnedFd,
}

/// Opens a terminal of `(rows, columns)` for a user; with `console` also as /dev/console.
pub fn open(size: (u16, u16), uid: u32, console: bool) -> Result<Pair, StartError> {
    let pair = pair(size).map_err(StartError::setup("open a terminal"))?;
    if uid != 0 {
        // SAFETY: no memory is passed. Best effort: the id may not be mapped.
        let _ = unsafe { libc::fchown(pair.slave.as_raw_fd(), uid, u32::MAX) };
    }
    if console {
        // A container that brought its own /dev, or has a console there already, keeps it.
        let _ = mount_console(&pair.slave);
    }
    Ok(pair)
}

fn pair((rows, columns): (u16, u16)) -> io::Result<Pair> {
    let resolve = ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK;
    let master = open_at(CWD, Path::new("/dev/pts/ptmx"), flags, resolve)?;
    let stat = rustix::fs::fstat(&master)?;
    let magic = rustix::fs::fstatfs(&master)?.f_type as u64;
    if magic != DEVPTS_MAGIC || stat.st_rdev != rustix::fs::makedev(5, 2) {
        return Err(Errno::NOTTY.into());
    }
    rustix::fs::fcntl_setfl(&master, OFlags::empty())?;
    let unlock: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads an int.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK as _, &raw const unlock) }.into())?;
    let peer_flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes open flags as its argument.
    let slave = check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER as _, peer_flags) }.into())?;
    // SAFETY: fresh descriptor.
    let slave = unsafe { OwnedFd::from_raw_fd(slave as i32) };
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads a winsize.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ as _, &raw const size) }.into())?;
    Ok(Pair { master, slave })
}

fn mount_console(slave: &OwnedFd) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dev = rustix::fs::open("/dev", flags, Mode::empty())?;
    create_file(dev.as_fd(), "console", 0o600)?;
    let target = open_exactly(dev.as_fd(), "console")?;
    attach(copy_of(slave.as_fd(), false)?.as_fd(), target.as_fd())
}

/// Makes it the controlling terminal of this session.
pub fn make_controlling(slave: &OwnedFd) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes an integer.
    check(unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY as _, 0) }.into()).map(drop)
}
