//! Processes by identity: a number alone may be another process's tomorrow.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use kiln_process::Stat;
use kiln_store::boot_id;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

/// A process of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// When it began, in ticks since the boot.
    pub start: u64,
    /// The boot.
    pub boot: String,
}

impl Process {
    /// A process that lives. Whoever is not its parent can't be sure that the number is still its own: see
    /// [`Process::behind`].
    fn of(pid: i32) -> Option<Self> {
        let stat = Stat::of(pid).filter(|stat| !stat.has_ended())?;
        Some(Self { pid, start: stat.start, boot: boot_id().to_owned() })
    }

    /// The process behind a descriptor, by its number; `None` if it has ended.
    pub fn behind(pidfd: impl AsFd, pid: i32) -> Option<Self> {
        let process = Self::of(pid)?;
        // It had the number for as long as it lived: if it lives now, it is the one that was looked at.
        let ended = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&Timespec::default()));
        (ended == Ok(0)).then_some(process)
    }

    /// This process.
    pub fn own() -> Option<Self> {
        Self::of(std::process::id().cast_signed())
    }

    /// Sends it a signal; false if it is gone.
    pub fn signal(&self, signal: i32) -> io::Result<bool> {
        let Some(fd) = self.open()? else { return Ok(false) };
        let none = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: a null siginfo is allowed. (rustix knows no real-time signals.)
        let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd.as_raw_fd(), signal, none, 0) };
        match io::Error::last_os_error() {
            _ if sent == 0 => Ok(true),
            error if error.raw_os_error() == Some(libc::ESRCH) => Ok(false),
            error => Err(error),
        }
    }

    /// Waits until it is gone, at most for this long; whether it is.
    pub fn wait(&self, limit: Option<Duration>) -> io::Result<bool> {
        let Some(fd) = self.open()? else { return Ok(true) };
        let limit = limit.map(|l| Timespec { tv_sec: l.as_secs() as i64, tv_nsec: l.subsec_nanos().into() });
        loop {
            match poll(&mut [PollFd::new(&fd, PollFlags::IN)], limit.as_ref()) {
                Err(Errno::INTR) => {}
                ready => return Ok(ready? > 0),
            }
        }
    }

    /// A descriptor of this very process.
    fn open(&self) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(None) };
        let fd = match pidfd_open(pid, PidfdFlags::empty()) {
            Err(Errno::SRCH) => return Ok(None),
            fd => fd?,
        };
        Ok(self.lives().then_some(fd))
    }

    /// Whether it lives. One that ended and was not waited for does not.
    pub fn lives(&self) -> bool {
        boot_id() == self.boot && Stat::of(self.pid).is_some_and(|stat| stat.start == self.start && !stat.has_ended())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_process_lives() {
        let own = Process::own().unwrap();
        assert!(own.lives());
        assert!(!Process { start: own.start + 1, ..own.clone() }.lives(), "another one with its number");
        assert!(!Process { boot: "other".into(), ..own }.lives());
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = child.id().cast_signed();
        let pidfd = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap();
        let process = Process::behind(&pidfd, pid).unwrap();
        assert!(process.lives());
        // The second real-time signal that programs may use, which ends those that do not handle it.
        assert!(process.signal(35).unwrap());
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()), Some(35));
        assert!(!process.lives() && !process.signal(35).unwrap());
        assert_eq!(Process::behind(&pidfd, pid), None);
    }
}
