//! The bytes of one file: cloned, or copied inside the kernel, or through a buffer; holes stay holes.

use std::cell::RefCell;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::stat::Stat;

/// Below this size, reading and writing is at least as fast as `copy_file_range`.
const SMALL: u64 = 128 << 10;
const BUFFER: usize = 256 << 10;

thread_local! {
    static BUF: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What the file systems involved cannot do, found out once.
#[derive(Debug, Default)]
pub(crate) struct Ways {
    no_clone: AtomicBool,
    no_range: AtomicBool,
}

/// Copies `stat.size` bytes. `false`: the source ended before that.
pub(crate) fn copy_bytes(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    stat: &Stat,
    ways: &Ways,
) -> rustix::io::Result<bool> {
    if stat.size == 0 {
        return Ok(true);
    }
    if !ways.no_clone.load(Ordering::Relaxed) {
        match rustix::fs::ioctl_ficlone(to, from) {
            Ok(()) => return Ok(true),
            // Only what says "never here" ends the attempts; a file with other flags may just not be cloneable.
            Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::NOTTY | Errno::NOSYS) => {
                ways.no_clone.store(true, Ordering::Relaxed);
            }
            Err(_) => {}
        }
    }
    if stat.is_sparse() {
        return copy_sparse(from, to, stat.size, ways);
    }
    if stat.size <= SMALL {
        return through_buffer(from, to, stat.size);
    }
    rustix::fs::fallocate(to, rustix::fs::FallocateFlags::KEEP_SIZE, 0, stat.size).or_else(only_full_disk)?;
    in_kernel(from, to, stat.size, ways)
}

/// Preallocation is only a help, but a full disk is better told at once.
fn only_full_disk(e: Errno) -> rustix::io::Result<()> {
    if e == Errno::NOSPC || e == Errno::DQUOT { Err(e) } else { Ok(()) }
}

/// From and to the descriptors' positions.
fn in_kernel(from: BorrowedFd<'_>, to: BorrowedFd<'_>, mut left: u64, ways: &Ways) -> rustix::io::Result<bool> {
    while left > 0 {
        if ways.no_range.load(Ordering::Relaxed) {
            return through_buffer(from, to, left);
        }
        match rustix::fs::copy_file_range(from, None, to, None, usize::try_from(left).unwrap_or(usize::MAX)) {
            Ok(0) => return through_buffer(from, to, left), // some file systems say 0 though there is more
            Ok(n) => left -= n as u64,
            Err(Errno::INTR) => {}
            Err(Errno::NOSYS | Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::PERM | Errno::BADF) => {
                ways.no_range.store(true, Ordering::Relaxed);
            }
            Err(e) => return Err(e),
        }
    }
    Ok(true)
}

fn through_buffer(from: BorrowedFd<'_>, to: BorrowedFd<'_>, mut left: u64) -> rustix::io::Result<bool> {
    BUF.with_borrow_mut(|buf| {
        if buf.is_empty() {
            buf.resize(BUFFER, 0);
        }
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
            match rustix::io::read(from, &mut buf[..want]) {
                Ok(0) => return Ok(false),
                Ok(n) => {
                    write_all(to, &buf[..n])?;
                    left -= n as u64;
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    })
}

fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(0) => return Err(Errno::IO),
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn copy_sparse(from: BorrowedFd<'_>, to: BorrowedFd<'_>, size: u64, ways: &Ways) -> rustix::io::Result<bool> {
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break, // only a hole is left
            Err(Errno::INVAL) => return plain(from, to, size),
            Err(e) => return Err(e),
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(start))?.min(size);
        if end <= start {
            break;
        }
        rustix::fs::seek(from, SeekFrom::Start(start))?;
        rustix::fs::seek(to, SeekFrom::Start(start))?;
        if !in_kernel(from, to, end - start, ways)? {
            return Ok(false);
        }
        at = end;
    }
    rustix::fs::ftruncate(to, size)?;
    Ok(true)
}

/// Where holes cannot be asked for.
fn plain(from: BorrowedFd<'_>, to: BorrowedFd<'_>, size: u64) -> rustix::io::Result<bool> {
    rustix::fs::seek(from, SeekFrom::Start(0))?;
    rustix::fs::seek(to, SeekFrom::Start(0))?;
    through_buffer(from.as_fd(), to.as_fd(), size)
}
