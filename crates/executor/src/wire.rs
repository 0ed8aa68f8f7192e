//! How the executor and its helper talk: SOCK_SEQPACKET packets with descriptors, and a length-prefixed
//! encoding for what is in them.
//!
//! Invariants: a request's body travels in a memfd, so its size has no limit but memory; a packet carries at
//! most [`MAX_FDS`] descriptors; every received descriptor is close-on-exec; decoding never panics, whatever the bytes.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::sys::check;

/// The kernel's limit for one SCM_RIGHTS message.
pub const MAX_FDS: usize = 253;
/// Largest packet; answers are cut to fit.
pub const MAX_PACKET: usize = 64 * 1024;

/// Writes values one after another.
#[derive(Default)]
pub struct Encoder {
    /// What was written.
    pub buf: Vec<u8>,
}

impl Encoder {
    pub fn u8(&mut self, v: u8) -> &mut Self {
        self.buf.push(v);
        self
    }
    pub fn bool(&mut self, v: bool) -> &mut Self {
        self.u8(v.into())
    }
    pub fn u32(&mut self, v: u32) -> &mut Self {
        self.buf.extend_from_slice(&v.to_le_bytes());
        self
    }
    pub fn i32(&mut self, v: i32) -> &mut Self {
        self.u32(v as u32)
    }
    pub fn u64(&mut self, v: u64) -> &mut Self {
        self.buf.extend_from_slice(&v.to_le_bytes());
        self
    }
    pub fn bytes(&mut self, v: &[u8]) -> &mut Self {
        self.u64(v.len() as u64);
        self.buf.extend_from_slice(v);
        self
    }
    pub fn str(&mut self, v: &str) -> &mut Self {
        self.bytes(v.as_bytes())
    }
    pub fn path(&mut self, v: &Path) -> &mut Self {
        self.bytes(v.as_os_str().as_bytes())
    }
    pub fn os_list(&mut self, v: &[OsString]) -> &mut Self {
        self.u64(v.len() as u64);
        for item in v {
            self.bytes(item.as_bytes());
        }
        self
    }
    /// A value that may be absent.
    pub fn option<T>(&mut self, v: Option<T>, f: impl FnOnce(&mut Self, T) -> &mut Self) -> &mut Self {
        self.bool(v.is_some());
        if let Some(v) = v {
            f(self, v);
        }
        self
    }
}

/// The bytes do not have the form they should.
#[derive(Debug)]
pub struct Malformed;

impl From<Malformed> for io::Error {
    fn from(_: Malformed) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, "malformed message between kiln and its helper")
    }
}

/// Reads what [`Encoder`] wrote.
pub struct Decoder<'a>(pub &'a [u8]);

impl<'a> Decoder<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self.0.split_at_checked(n).ok_or(Malformed)?;
        self.0 = tail;
        Ok(head)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| Malformed)
    }
    pub fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }
    pub fn bool(&mut self) -> Result<bool, Malformed> {
        Ok(self.u8()? != 0)
    }
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    pub fn i32(&mut self) -> Result<i32, Malformed> {
        Ok(self.u32()? as i32)
    }
    pub fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    pub fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let n = usize::try_from(self.u64()?).map_err(|_| Malformed)?;
        self.take(n)
    }
    pub fn string(&mut self) -> Result<String, Malformed> {
        Ok(String::from_utf8_lossy(self.bytes()?).into_owned())
    }
    pub fn os(&mut self) -> Result<OsString, Malformed> {
        Ok(OsString::from_vec(self.bytes()?.to_vec()))
    }
    pub fn path(&mut self) -> Result<PathBuf, Malformed> {
        Ok(PathBuf::from(self.os()?))
    }
    /// A list; the count is checked against what can be left in the message before anything is reserved.
    pub fn list<T>(&mut self, mut f: impl FnMut(&mut Self) -> Result<T, Malformed>) -> Result<Vec<T>, Malformed> {
        let n = usize::try_from(self.u64()?).map_err(|_| Malformed)?;
        if n > self.0.len() {
            return Err(Malformed);
        }
        (0..n).map(|_| f(self)).collect()
    }
    pub fn option<T>(&mut self, f: impl FnOnce(&mut Self) -> Result<T, Malformed>) -> Result<Option<T>, Malformed> {
        if self.bool()? { f(self).map(Some) } else { Ok(None) }
    }
}

/// Two connected packet sockets, both close-on-exec.
pub fn socketpair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds: [RawFd; 2] = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: the array has room for the two descriptors.
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) }.into())?;
    // SAFETY: both are fresh.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}

/// Room for the control message, aligned as cmsghdr wants.
type Control = [u64; (MAX_FDS * size_of::<RawFd>() + 64) / 8];

/// Sends one packet with descriptors.
pub fn send(socket: BorrowedFd<'_>, data: &[u8], fds: &[RawFd]) -> io::Result<()> {
    if fds.len() > MAX_FDS {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one request"));
    }
    let mut iov = libc::iovec { iov_base: data.as_ptr() as *mut _, iov_len: data.len() };
    let mut control: Control = [0; _];
    // SAFETY: msghdr is plain data, valid as zeroes.
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    msg.msg_iov = &raw mut iov;
    msg.msg_iovlen = 1;
    if !fds.is_empty() {
        let len = size_of_val(fds) as u32;
        msg.msg_control = control.as_mut_ptr().cast();
        // SAFETY: `control` is large enough for MAX_FDS descriptors and aligned; CMSG_* compute inside it.
        unsafe {
            msg.msg_controllen = libc::CMSG_SPACE(len) as _;
            let head = libc::CMSG_FIRSTHDR(&raw const msg);
            (*head).cmsg_level = libc::SOL_SOCKET;
            (*head).cmsg_type = libc::SCM_RIGHTS;
            (*head).cmsg_len = libc::CMSG_LEN(len) as _;
            std::ptr::copy_nonoverlapping(fds.as_ptr().cast::<u8>(), libc::CMSG_DATA(head), len as usize);
        }
    }
    loop {
        // SAFETY: every pointer in `msg` is valid for the call.
        let ret = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const msg, libc::MSG_NOSIGNAL) };
        match check(ret as libc::c_long) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// One received packet.
pub struct Packet {
    pub data: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

/// Receives one packet; `None` at end of file.
pub fn recv(socket: BorrowedFd<'_>, wait: bool) -> io::Result<Option<Packet>> {
    let mut data: Vec<u8> = Vec::with_capacity(MAX_PACKET);
    let mut iov = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.capacity() };
    let mut control: Control = [0; _];
    // SAFETY: msghdr is plain data, valid as zeroes.
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    msg.msg_iov = &raw mut iov;
    msg.msg_iovlen = 1;
    msg.msg_control = control.as_mut_ptr().cast();
    msg.msg_controllen = size_of_val(&control) as _;
    let flags = libc::MSG_CMSG_CLOEXEC | if wait { 0 } else { libc::MSG_DONTWAIT };
    let n = loop {
        // SAFETY: every pointer in `msg` is valid for the call.
        match check(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut msg, flags) } as libc::c_long) {
            Ok(n) => break n as usize,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The peer died with unread data in its queue: an end of file like the other.
            Err(error) if error.raw_os_error() == Some(libc::ECONNRESET) => return Ok(None),
            Err(error) => return Err(error),
        }
    };
    let fds = received_fds(&msg);
    if msg.msg_flags & (libc::MSG_CTRUNC | libc::MSG_TRUNC) != 0 {
        return Err(Malformed.into());
    }
    if n == 0 && fds.is_empty() {
        return Ok(None);
    }
    // SAFETY: the kernel wrote the first `n` bytes.
    unsafe { data.set_len(n) };
    data.shrink_to_fit();
    Ok(Some(Packet { data, fds }))
}

fn received_fds(msg: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: recvmsg filled the control buffer; CMSG_* stay inside msg_controllen.
    unsafe {
        let mut head = libc::CMSG_FIRSTHDR(msg);
        while !head.is_null() {
            if (*head).cmsg_level == libc::SOL_SOCKET && (*head).cmsg_type == libc::SCM_RIGHTS {
                let bytes = (*head).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(head).cast::<RawFd>();
                for i in 0..bytes / size_of::<RawFd>() {
                    fds.push(OwnedFd::from_raw_fd(data.add(i).read_unaligned()));
                }
            }
            head = libc::CMSG_NXTHDR(msg, head);
        }
    }
    fds
}
