//! Processes by identity: a number alone may be another process's tomorrow.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use kiln_store::boot_id;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
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
    /// A process that lives.
    pub fn of(pid: i32) -> Option<Self> {
        Some(Self { pid, start: start_time(pid)?, boot: boot_id().to_owned() })
    }

    /// This process.
    pub fn own() -> Option<Self> {
        Self::of(std::process::id().cast_signed())
    }

    /// Sends it a signal; false if it is gone.
    pub fn signal(&self, signal: i32) -> io::Result<bool> {
        let Some(fd) = self.open()? else { return Ok(false) };
        let signal = Signal::from_named_raw(signal).ok_or(io::ErrorKind::InvalidInput)?;
        match pidfd_send_signal(&fd, signal) {
            Err(Errno::SRCH) => Ok(false),
            sent => Ok(sent.map(|()| true)?),
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
        start_time(self.pid) == Some(self.start) && boot_id() == self.boot
    }
}

/// From `/proc/<pid>/stat`; `None` if there is no such process, or a zombie.
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may contain anything; what counts begins after its closing parenthesis.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
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
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let process = Process::of(child.id().cast_signed());
        child.wait().unwrap();
        assert!(process.is_none_or(|p| !p.lives()));
    }
}
