//! A small process 1: starts the program as its child, passes signals on, reaps what is orphaned.
//!
//! It has the same identity, filter and (lack of) capabilities as the program, holds no descriptor but the two it talks
//! to the helper with, and cannot be looked into (not dumpable).

use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};

use super::identity;
use crate::error::StartError;
use crate::helper::report;
use crate::request::Request;
use crate::sys::{self, Forked};
use crate::wire::{self, Encoder};

/// Splits in two: returns in the process that goes on to be the program; the caller's process becomes the reaper.
pub fn split(request: &Request, status: &OwnedFd) -> Result<(), StartError> {
    let step = || StartError::setup("start the init process");
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| step()(e.into()))?;
    // SAFETY: one thread.
    match unsafe { sys::clone3(0, None) }.map_err(step())? {
        Forked::Child => {
            drop(read);
            // Stays open until exec closes it: the reaper's sign that the program runs.
            let _ = write.into_raw_fd();
            Ok(())
        }
        Forked::Parent { pid, .. } => {
            drop(write);
            reap(request, status, read, pid)
        }
    }
}

fn reap(request: &Request, status: &OwnedFd, started: OwnedFd, program: i32) -> ! {
    // Blocked from before anything can arrive; taken one by one below.
    // SAFETY: plain data, filled by sigfillset.
    let all = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut());
        all
    };
    if identity::apply_quietly(request).is_err() {
        // SAFETY: leaves at once; the kernel kills the program with its init.
        unsafe { libc::_exit(127) }
    }
    keep_only(status, &started);
    let mut byte = [0u8; 1];
    // Blocks until the program was executed or failed to; signals stay pending meanwhile.
    // SAFETY: descriptor 4 is the pipe, see keep_only; the buffer has one byte.
    while unsafe { libc::read(4, byte.as_mut_ptr().cast(), 1) } < 0 {}
    tell(&[report::STARTED]);
    loop {
        let mut signal = 0;
        // SAFETY: both pointers are valid.
        unsafe { libc::sigwait(&raw const all, &raw mut signal) };
        if signal == libc::SIGCHLD {
            reap_all(program);
        } else {
            // SAFETY: no memory is passed.
            unsafe { libc::kill(program, signal) };
        }
    }
}

/// Reaps every dead child; ends with the program.
fn reap_all(program: i32) {
    loop {
        let mut status = 0;
        // SAFETY: `status` is valid for writing.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::__WALL) };
        if pid <= 0 {
            return;
        }
        if pid == program {
            let (kind, value) =
                if libc::WIFEXITED(status) { (0, libc::WEXITSTATUS(status)) } else { (1, libc::WTERMSIG(status)) };
            let mut e = Encoder::default();
            e.u8(report::ENDED).u8(kind).i32(value);
            tell(&e.buf);
            // SAFETY: leaves at once; the kernel kills what is left in the namespace.
            unsafe { libc::_exit(if kind == 0 { value } else { 128 + value }) }
        }
    }
}

/// The status socket becomes 3, the pipe 4, everything else is closed; the program has its own copies.
fn keep_only(status: &OwnedFd, started: &OwnedFd) {
    // SAFETY: from here on this process uses descriptors by number only and never returns to code that owns any.
    unsafe {
        let status = libc::fcntl(status.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 200);
        let started = libc::fcntl(started.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 200);
        libc::dup2(status, 3);
        libc::dup2(started, 4);
        libc::syscall(libc::SYS_close_range, 5, u32::MAX, 0);
        libc::syscall(libc::SYS_close_range, 0, 2, 0);
    }
}

fn tell(message: &[u8]) {
    // SAFETY: descriptor 3 is the status socket, see keep_only.
    let status = unsafe { std::os::fd::BorrowedFd::borrow_raw(3) };
    let _ = wire::send(status, message, &[]);
}
