//! Answers system calls that a process makes with user or group ids which do not exist for it.
//!
//! Without subordinate ids kiln's user namespace knows one id, 0. Package managers nevertheless give files to other users
//! (`chown`) and drop privileges (`setuid`, `setgroups`); the kernel would refuse and the build would end. As
//! fakeroot does, such calls are answered with success. The owner of a regular file or directory is written down at the file
//! (see `owner`), so that the layer has it; a process that asks sees the files as root's. Changes of a process's own
//! ids have no effect. The filter passes only calls that the kernel could not do. All is counted and reported.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use crate::owner::{self, Chown};
use crate::seccomp;
use crate::sys;
use crate::wire::{Decoder, Encoder, Malformed};

/// What a process was told had worked although it could not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pretended {
    /// Changes of a file's owner or group that had no effect: of links, devices and the like, or where the file
    /// system takes no `user.*` attributes.
    pub chown: u64,
    /// Changes of a file's owner or group that were recorded in `user.kiln.stat`.
    pub recorded: u64,
    /// Changes of the process's own users and groups.
    pub identity: u64,
    /// The process was to run as another user than 0: it ran as that user in a user namespace of its own, but the files
    /// that it made are root's (see `kiln_rootfs::claim`).
    pub user: bool,
}

impl Pretended {
    /// Nothing was pretended.
    pub fn is_empty(&self) -> bool {
        *self == Pretended::default()
    }

    pub(crate) fn encode(self, e: &mut Encoder) {
        e.u64(self.chown).u64(self.recorded).u64(self.identity).bool(self.user);
    }

    pub(crate) fn decode(d: &mut Decoder<'_>) -> Result<Pretended, Malformed> {
        Ok(Pretended { chown: d.u64()?, recorded: d.u64()?, identity: d.u64()?, user: d.bool()? })
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
        let name = seccomp::name_of(call.data.arch, call.data.nr as u32).unwrap_or_default();
        let chown = Chown::from_call(name, call.data.args).map(|chown| chown.carry_out(call.pid as i32));
        let mut reply = libc::seccomp_notif_resp { id: call.id, val: 0, error: 0, flags: 0 };
        match chown {
            None => self.counts.identity += 1,
            Some(owner::Answer::Recorded) => self.counts.recorded += 1,
            Some(owner::Answer::Pretend) => self.counts.chown += 1,
            Some(owner::Answer::Error(errno)) => reply.error = -errno,
            Some(owner::Answer::Kernel) => reply.flags = CONTINUE,
        }
        // SAFETY: as above. A failure means that the caller died meanwhile.
        let _ = unsafe { libc::ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_SEND as _, &raw mut reply) };
    }
}

/// `SECCOMP_USER_NOTIF_FLAG_CONTINUE`.
const CONTINUE: u32 = 1;

/// Whether a listener can be made at all is only known by trying; this names the error that says no.
pub(crate) fn cannot_listen(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EINVAL))
}
