//! Enters a container that runs: `setns` by pidfd, then a second fork to be in its process namespace.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::error::StartError;
use crate::helper::report;
use crate::request::{FdTable, Request, Target};
use crate::sys::{self, Forked, check};
use crate::wire::{self, Encoder};

const ALWAYS: i32 = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;

/// Returns in the process inside; the one that was started tells the helper about it and ends.
pub fn enter(request: &Request, fds: &FdTable, status: &OwnedFd) -> Result<(), StartError> {
    let step = || StartError::setup("enter the container");
    let Target::Existing(index) = request.target else { return Ok(()) };
    let container = fds.get(index).map_err(|e| step()(e.into()))?;
    set_namespaces(container).map_err(step())?;
    // A child of the helper, not of this process, so that the helper can wait for it.
    // SAFETY: one thread.
    match unsafe { sys::clone3(libc::CLONE_PARENT as u64, None) }.map_err(step())? {
        Forked::Child => Ok(()),
        Forked::Parent { pid, pidfd } => {
            let mut e = Encoder::default();
            e.u8(report::JOINED).i32(pid);
            let told = wire::send(status.as_fd(), &e.buf, &[pidfd.as_raw_fd()]);
            if told.is_err() {
                let _ = sys::pidfd_signal(pidfd.as_fd(), libc::SIGKILL);
            }
            // SAFETY: leaves at once.
            unsafe { libc::_exit(0) }
        }
    }
}

/// The network and control group namespaces may be the machine's own, which a user namespace cannot enter and is in
/// already.
fn set_namespaces(container: BorrowedFd<'_>) -> std::io::Result<()> {
    let optional = [libc::CLONE_NEWNET | libc::CLONE_NEWCGROUP, libc::CLONE_NEWCGROUP, libc::CLONE_NEWNET, 0];
    let mut last = Ok(());
    for flags in optional {
        // SAFETY: no memory is passed.
        last = check(unsafe { libc::setns(container.as_raw_fd(), ALWAYS | flags) }.into()).map(drop);
        match &last {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
            _ => return last,
        }
    }
    last
}
