//! Answers system calls that a process makes with user or group ids which do not exist for it.
//!
//! Without subordinate ids kiln's user namespace knows one id, 0. Package managers nevertheless give files to other users
//! (`chown`) and drop privileges (`setuid`, `setgroups`); the kernel would refuse and the build would end. As
//! fakeroot does, such calls are answered with success and have no effect. The filter passes only calls that name an id
//! other than 0, so nothing that the kernel could do is taken from it. What was pretended is counted and reported:
//! the files stay owned by 0.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use crate::seccomp;
use crate::sys;
use crate::wire::{Decoder, Encoder, Malformed};

/// What a process was told had worked although it could not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pretended {
    /// Changes of a file's owner or group.
    pub chown: u64,
    /// Changes of the process's own users and groups.
    pub identity: u64,
    /// The process was to run as another user than 0, and ran as 0 without capabilities.
    pub user: bool,
}

impl Pretended {
    /// Nothing was pretended.
    pub fn is_empty(&self) -> bool {
        *self == Pretended::default()
    }

    pub(crate) fn encode(self, e: &mut Encoder) {
        e.u64(self.chown).u64(self.identity).bool(self.user);
    }

    pub(crate) fn decode(d: &mut Decoder<'_>) -> Result<Pretended, Malformed> {
        Ok(Pretended { chown: d.u64()?, identity: d.u64()?, user: d.bool()? })
    }
}

/// The helper's end of one container's filter.
pub(crate) struct Pretender {
    /// Gone once no process can make a call any more; the counts stay.
    listener: Option<OwnedFd>,
    counts: Pretended,
}

impl Pretender {
    pub(crate) fn new(listener: OwnedFd) -> Pretender {
        Pretender { listener: Some(listener), counts: Pretended::default() }
    }

    /// What to wait on.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().map(AsFd::as_fd)
    }

    pub(crate) fn counts(&self) -> Pretended {
        self.counts
    }

    /// Answers the calls that wait.
    pub(crate) fn serve(&mut self) {
        // A chown of a large tree comes as thousands of calls; other containers get their turn in between.
        for _ in 0..64 {
            let Some(listener) = self.listener.as_ref().map(AsRawFd::as_raw_fd) else { return };
            let mut fd = [sys::poll_in(listener)];
            match sys::poll(&mut fd, Some(0)) {
                Ok(1) if fd[0].revents & libc::POLLIN != 0 => self.answer(listener),
                Ok(1) => self.listener = None,
                _ => return,
            }
        }
    }

    fn answer(&mut self, listener: RawFd) {
        // SAFETY: plain data, valid as zeroes; the kernel demands zeroes.
        let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the structure has the size that the request number encodes.
        let ret = unsafe { libc::ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_RECV as _, &raw mut call) };
        if ret < 0 {
            return; // the caller died meanwhile
        }
        if seccomp::changes_file_owner(call.data.arch, call.data.nr as u32) {
            self.counts.chown += 1;
        } else {
            self.counts.identity += 1;
        }
        let mut reply = libc::seccomp_notif_resp { id: call.id, val: 0, error: 0, flags: 0 };
        // SAFETY: as above. A failure means that the caller died meanwhile.
        let _ = unsafe { libc::ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_SEND as _, &raw mut reply) };
    }
}

/// Whether a listener can be made at all is only known by trying; this names the error that says no.
pub(crate) fn cannot_listen(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EINVAL))
}
