//! Who the process is and what it may do: groups, ids, capabilities, system call filter.
//!
//! The order is what makes it work without `no_new_privs`, which Docker and BuildKit do not set either (`sudo` in a RUN
//! step must work): bounding set, ids, filter (needs CAP_SYS_ADMIN, so capabilities are kept over the change of ids),
//! and at last the capabilities.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use crate::error::StartError;
use crate::helper::report;
use crate::request::{Request, Target};
use crate::seccomp::{self, Pretend};
use crate::spec::Security;
use crate::sys::{self, check};
use crate::{pretend, wire};

/// Docker's default set: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, NET_RAW,
/// SYS_CHROOT, MKNOD, AUDIT_WRITE, SETFCAP.
pub(crate) const DOCKER_CAPABILITIES: u64 = 1
    | 1 << 1
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 7
    | 1 << 8
    | 1 << 10
    | 1 << 13
    | 1 << 18
    | 1 << 27
    | 1 << 29
    | 1 << 31;

const LAST_POSSIBLE_CAPABILITY: u64 = 63;

/// Applies the request's identity. After this the process has no more rights than its program will have.
pub fn apply(request: &Request, status: &OwnedFd) -> Result<(), StartError> {
    apply_with(request, Some(status))
}

/// The same for kiln's own init process, which makes no call that would have to be pretended.
pub fn apply_quietly(request: &Request) -> Result<(), StartError> {
    apply_with(request, None)
}

fn apply_with(request: &Request, status: Option<&OwnedFd>) -> Result<(), StartError> {
    let sandbox = request.security == Security::Sandbox;
    let capabilities = if sandbox { DOCKER_CAPABILITIES } else { u64::MAX };
    if request.pretend && request.user.uid != 0 {
        appear_as(request).map_err(StartError::setup("appear as another user"))?;
    }
    drop_bounding(capabilities).map_err(StartError::setup("drop capabilities"))?;
    sys::prctl(libc::PR_SET_KEEPCAPS, 1, 0).map_err(StartError::setup("keep capabilities"))?;
    set_ids(request)?;
    let held = permitted().map_err(StartError::setup("read capabilities"))?;
    set_capabilities(held).map_err(StartError::setup("keep capabilities"))?;
    if !sandbox {
        // The filter of the sandbox forbids the calls for keys; without it the keys of kiln's user must be out of reach.
        const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
        // SAFETY: a null name makes an anonymous keyring. A kernel without keys, or a used up quota, is no obstacle.
        let _ =
            unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) };
    }
    if sandbox && seccomp::SUPPORTED {
        filter(request, capabilities, status).map_err(StartError::setup("install the system call filter"))?;
    }
    // Only root has capabilities, and nothing is inheritable (CVE-2022-27651).
    let kept = if request.user.uid == 0 { held & capabilities } else { 0 };
    set_capabilities(kept).map_err(StartError::setup("set capabilities"))?;
    // Looking into this process from others of the same user is allowed again only by exec; the death signal was
    // cleared by the change of ids.
    sys::prctl(libc::PR_SET_DUMPABLE, 0, 0).map_err(StartError::setup("protect the process"))?;
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0).map_err(StartError::setup("tie it to kiln")).map(drop)
}

/// Where only the id 0 is mapped, another user is 0 under another name: in a user namespace of its own the process has
/// the ids that were asked for, and no right that comes with being root. To the files it makes that is no difference.
fn appear_as(request: &Request) -> io::Result<()> {
    let new = matches!(request.target, Target::New(_));
    // In a container that runs, others could look into this process while it writes its maps.
    if new && rename_user(request.user.uid, request.user.gid).is_ok() {
        return Ok(());
    }
    // The user stays 0; exec must not give it capabilities for that.
    const NOROOT_LOCKED: u64 = 1 | 1 << 1;
    sys::prctl(libc::PR_SET_SECUREBITS, NOROOT_LOCKED, 0).map(drop)
}

fn rename_user(uid: u32, gid: u32) -> io::Result<()> {
    sys::unshare(libc::CLONE_NEWUSER)?;
    sys::prctl(libc::PR_SET_DUMPABLE, 1, 0)?;
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/gid_map", format!("{gid} 0 1\n"))?;
    std::fs::write("/proc/self/uid_map", format!("{uid} 0 1\n"))?;
    sys::prctl(libc::PR_SET_DUMPABLE, 0, 0).map(drop)
}

fn drop_bounding(keep: u64) -> io::Result<()> {
    sys::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0)?;
    for capability in 0..=LAST_POSSIBLE_CAPABILITY {
        if keep & (1 << capability) == 0 {
            match sys::prctl(libc::PR_CAPBSET_DROP, capability, 0) {
                // Beyond the kernel's last one.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
                done => done?,
            };
        }
    }
    Ok(())
}

fn set_ids(request: &Request) -> Result<(), StartError> {
    let user = &request.user;
    if request.pretend {
        // One id is mapped: ours.
        return Ok(());
    }
    let failed = |call: &str| {
        let call = call.to_owned();
        move |error: io::Error| StartError::Identity {
            uid: user.uid,
            gid: user.gid,
            what: match error.raw_os_error() {
                Some(libc::EINVAL) if request.userns => {
                    "the id is outside of the subordinate ids of this account (see /etc/subuid and /etc/subgid)".into()
                }
                _ => format!("{call}: {error}"),
            },
        }
    };
    // The system calls themselves: one thread, and exactly these groups (CVE-2022-36109).
    // SAFETY: the list is valid for its length.
    check(unsafe { libc::syscall(libc::SYS_setgroups, user.groups.len(), user.groups.as_ptr()) })
        .map_err(failed("setgroups"))?;
    // SAFETY: no memory is passed.
    check(unsafe { libc::syscall(libc::SYS_setresgid, user.gid, user.gid, user.gid) }).map_err(failed("setresgid"))?;
    // SAFETY: no memory is passed.
    check(unsafe { libc::syscall(libc::SYS_setresuid, user.uid, user.uid, user.uid) }).map_err(failed("setresuid"))?;
    Ok(())
}

fn filter(request: &Request, capabilities: u64, status: Option<&OwnedFd>) -> io::Result<()> {
    if matches!(&request.target, Target::New(container) if container.volatile) {
        seccomp::install(&seccomp::volatile(), false)?;
    }
    // Another user than root may not change owners anywhere: there is nothing to pretend.
    let Some(status) = status.filter(|_| request.pretend && request.user.uid == 0) else {
        return seccomp::install(seccomp::cached(capabilities, Pretend::Off), false).map(drop);
    };
    match seccomp::install(seccomp::cached(capabilities, Pretend::Notify), true) {
        Ok(Some(listener)) => wire::send(status.as_fd(), &[report::LISTENER], &[listener.as_raw_fd()]),
        Ok(None) => Ok(()),
        Err(error) if pretend::cannot_listen(&error) => {
            seccomp::install(seccomp::cached(capabilities, Pretend::Silent), false).map(drop)
        }
        Err(error) => Err(error),
    }
}

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// One half (32 capabilities) of the three sets.
#[repr(C)]
#[derive(Default, Clone, Copy)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const VERSION_3: u32 = 0x2008_0522;

fn permitted() -> io::Result<u64> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: version 3 reads and writes two halves.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) })?;
    Ok(u64::from(data[0].permitted) | u64::from(data[1].permitted) << 32)
}

/// Permitted and effective become `set`, inheritable nothing.
fn set_capabilities(set: u64) -> io::Result<()> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let half = |bits: u32| Data { effective: bits, permitted: bits, inheritable: 0 };
    let data = [half(set as u32), half((set >> 32) as u32)];
    // SAFETY: version 3 reads two halves.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) }).map(drop)
}

/// Builds the filter before the fork, so that all containers of a helper share the work.
pub fn prepare(request: &Request) {
    if request.security == Security::Sandbox {
        let pretend = if request.pretend && request.user.uid == 0 { Pretend::Notify } else { Pretend::Off };
        seccomp::cached(DOCKER_CAPABILITIES, pretend);
    }
}
