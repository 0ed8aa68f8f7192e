//! Working without root: a user namespace of our own in which we are root.
//!
//! [`enter`] is called first in `main`, while there is one thread: the process itself moves into new user and mount
//! namespaces and goes on; nothing is executed again. Ids come, in this order, from `newuidmap`/`newgidmap` with
//! /etc/subuid and /etc/subgid; from our own range where we are root without CAP_SYS_ADMIN (inside an unprivileged
//! container); or it is the single id 0.
//!
//! Invariants: it is idempotent (whoever is root with CAP_SYS_ADMIN stays what it is); after an error the process must end,
//! as it may be in a half-made namespace.

use std::fs;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::sys::{self, check};

/// With which ids we work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// All ids: real root.
    Root,
    /// A user namespace with a range of ids.
    Subids,
    /// A user namespace with the id 0 only: files of other owners cannot be made; see `Exit::pretended`.
    SingleId,
}

/// Why no user namespace could be entered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RootlessError {
    /// `kernel.unprivileged_userns_clone` is 0.
    #[error(
        "this kernel does not let users make user namespaces (kernel.unprivileged_userns_clone is 0); as root run: \
         sysctl -w kernel.unprivileged_userns_clone=1"
    )]
    SwitchedOff,
    /// `user.max_user_namespaces` is 0 or used up.
    #[error(
        "no more user namespaces are allowed (user.max_user_namespaces is {limit}); as root run: \
         sysctl -w user.max_user_namespaces=28633"
    )]
    Limit {
        /// The limit.
        limit: String,
    },
    /// Ubuntu's restriction by AppArmor.
    #[error(
        "AppArmor does not let this program use user namespaces (kernel.apparmor_restrict_unprivileged_userns is 1); as root \
         install an AppArmor profile for kiln that allows `userns,`, or run: \
         sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
    )]
    AppArmor,
    /// Something around us, usually a seccomp profile of a container, forbids it.
    #[error(
        "user namespaces are forbidden here ({source}); if this is a container, start it with a seccomp profile that allows \
         unshare and mount (docker: --security-opt seccomp=unconfined --security-opt apparmor=unconfined; Kubernetes: \
         seccompProfile type Unconfined), or with CAP_SYS_ADMIN"
    )]
    Forbidden {
        /// The kernel's answer.
        source: io::Error,
    },
    /// The process had threads already.
    #[error("internal error: the user namespace must be entered before any thread is started")]
    Threads,
    /// Another failure.
    #[error("cannot {action} for working without root: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> RootlessError {
    move |source| RootlessError::Io { action, source }
}

/// Becomes root in a user namespace, unless we are root with CAP_SYS_ADMIN already.
pub fn enter() -> Result<Identity, RootlessError> {
    if let Some(identity) = current() {
        return Ok(identity);
    }
    // SAFETY: these have no failure and take nothing.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    let maps = Maps::find(uid);
    let helper = MapHelper::fork(&maps)?;
    sys::unshare(libc::CLONE_NEWUSER).map_err(why_not)?;
    let failure = helper.write_maps()?;
    let single = failure.is_some();
    if let Some(said) = failure {
        _ = FAILURE.set(said);
        write_single(uid, gid)?;
    }
    become_root(single)?;
    sys::unshare(libc::CLONE_NEWNS).map_err(why_not)?;
    // The first thing that a restricted namespace refuses.
    sys::make_mounts_private().map_err(why_not)?;
    Ok(if single { Identity::SingleId } else { Identity::Subids })
}

/// Becomes root of the user namespace that another process of ours is in, to enter what runs there; without one, as
/// [`enter`].
pub fn join(pid: i32) -> Result<Identity, RootlessError> {
    let step = || failed("enter the container's user namespace");
    let theirs = fs::File::open(format!("/proc/{pid}/ns/user")).map_err(step())?;
    let number = |file: &fs::File| file.metadata().map(|m| m.ino());
    let own = fs::File::open("/proc/self/ns/user").and_then(|file| number(&file)).map_err(step())?;
    if number(&theirs).map_err(step())? == own {
        return enter();
    }
    // SAFETY: no memory is passed.
    check(unsafe { libc::setns(theirs.as_raw_fd(), libc::CLONE_NEWUSER) }.into()).map_err(step())?;
    become_root(IdMap::read(Path::new("/proc/self/uid_map")).count() == 1)?;
    sys::unshare(libc::CLONE_NEWNS).map_err(why_not)?;
    sys::make_mounts_private().map_err(why_not)?;
    current().ok_or_else(|| step()(io::ErrorKind::PermissionDenied.into()))
}

static FAILURE: OnceLock<String> = OnceLock::new();

/// What was said when this process got no range of ids.
pub(crate) fn mapping_failure() -> Option<&'static str> {
    FAILURE.get().map(String::as_str)
}

/// What we are, if that is enough to make containers.
pub fn current() -> Option<Identity> {
    // SAFETY: no failure, takes nothing.
    if unsafe { libc::geteuid() } != 0 || !has_sys_admin() {
        return None;
    }
    let map = IdMap::read(Path::new("/proc/self/uid_map"));
    Some(match (map.is_everything(), map.count()) {
        (true, _) => Identity::Root,
        (false, 1) => Identity::SingleId,
        (false, _) => Identity::Subids,
    })
}

fn has_sys_admin() -> bool {
    const CAP_SYS_ADMIN: u32 = 21;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|caps| caps & (1 << CAP_SYS_ADMIN) != 0)
}

/// What containers must know about the ids of this process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ids {
    /// Not the first user namespace.
    pub userns: bool,
    /// Only one id is mapped.
    pub single: bool,
}

pub(crate) fn ids() -> Ids {
    static IDS: OnceLock<Ids> = OnceLock::new();
    *IDS.get_or_init(|| {
        let map = IdMap::read(Path::new("/proc/self/uid_map"));
        Ids { userns: !map.is_everything(), single: map.count() == 1 }
    })
}

/// Lines of a uid_map: (first id inside, first id outside, how many).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct IdMap(Vec<(u64, u64, u64)>);

impl IdMap {
    pub(crate) fn read(path: &Path) -> IdMap {
        IdMap::parse(&fs::read_to_string(path).unwrap_or_default())
    }

    fn parse(text: &str) -> IdMap {
        let line = |line: &str| {
            let numbers: Vec<u64> = line.split_whitespace().map_while(|n| n.parse().ok()).collect();
            match numbers[..] {
                [inside, outside, count] => Some((inside, outside, count)),
                _ => None,
            }
        };
        IdMap(text.lines().filter_map(line).collect())
    }

    /// Who is our root.
    pub(crate) fn outer(&self) -> Option<u32> {
        self.0.iter().find(|(inside, ..)| *inside == 0).and_then(|(_, outside, _)| u32::try_from(*outside).ok())
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.iter().map(|(_, _, n)| n).sum()
    }

    fn is_everything(&self) -> bool {
        matches!(self.0[..], [(0, 0, n)] if n >= u64::from(u32::MAX))
    }
}

/// How ids can be mapped.
struct Maps {
    uid: Vec<(u64, u64, u64)>,
    gid: Vec<(u64, u64, u64)>,
    tools: Option<(PathBuf, PathBuf)>,
}

impl Maps {
    fn find(uid: u32) -> Maps {
        if uid == 0 {
            // Root without CAP_SYS_ADMIN: what we have is passed on as it is, if CAP_SETUID and CAP_SETGID allow it.
            let same = |path: &str| IdMap::read(Path::new(path)).0.iter().map(|(id, _, n)| (*id, *id, *n)).collect();
            return Maps { uid: same("/proc/self/uid_map"), gid: same("/proc/self/gid_map"), tools: None };
        }
        // SAFETY: no failure, takes nothing.
        let gid = unsafe { libc::getegid() };
        let name = user_name(uid);
        let own = |path: &str, own: u32| {
            let mut map = vec![(0, u64::from(own), 1)];
            let mut next = 1;
            for (first, count) in subordinate(&fs::read_to_string(path).unwrap_or_default(), name.as_deref(), uid) {
                map.push((next, first, count));
                next += count;
            }
            map
        };
        Maps { uid: own("/etc/subuid", uid), gid: own("/etc/subgid", gid), tools: map_tools() }
    }

    fn has_ranges(&self) -> bool {
        self.uid.len() > 1 && self.gid.len() > 1 && self.tools.is_some()
    }
}

/// `newuidmap` and `newgidmap`, from PATH or where distributions put them.
pub(crate) fn map_tools() -> Option<(PathBuf, PathBuf)> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> =
        std::env::split_paths(&path).chain(["/usr/bin", "/bin", "/usr/local/bin"].map(PathBuf::from)).collect();
    let find = |name: &str| dirs.iter().map(|dir| dir.join(name)).find(|file| file.is_absolute() && file.is_file());
    Some((find("newuidmap")?, find("newgidmap")?))
}

/// Ranges of an account in a file of `name-or-uid:first:count` lines.
pub(crate) fn subordinate(text: &str, name: Option<&str>, uid: u32) -> Vec<(u64, u64)> {
    let range = |line: &str| {
        let mut parts = line.trim().split(':');
        let owner = parts.next()?;
        if Some(owner) != name && owner.parse() != Ok(uid) {
            return None;
        }
        let (first, count) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        (count > 0).then_some((first, count))
    };
    text.lines().filter_map(range).collect()
}

pub(crate) fn user_name(uid: u32) -> Option<String> {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

/// A child that stays in the old user namespace and from there maps ids for the new one.
struct MapHelper {
    pid: libc::pid_t,
    go: OwnedFd,
    /// What its tools say against it.
    said: fs::File,
}

impl MapHelper {
    fn fork(maps: &Maps) -> Result<MapHelper, RootlessError> {
        let pipe = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
        let (wait, go) = pipe.map_err(|e| failed("make a pipe")(e.into()))?;
        let said = rustix::fs::memfd_create("newuidmap", rustix::fs::MemfdFlags::CLOEXEC);
        let said = fs::File::from(said.map_err(|e| failed("make a file in memory")(e.into()))?);
        // SAFETY: `enter` demands a single-threaded process, so the child may run any code.
        let pid = check(unsafe { libc::fork() }.into()).map_err(failed("start a process"))? as libc::pid_t;
        if pid != 0 {
            return Ok(MapHelper { pid, go, said });
        }
        drop(go);
        let mut byte = [0u8; 1];
        // Without the go (the parent failed) there is nothing to do.
        let went = matches!(rustix::io::read(&wait, &mut byte), Ok(1));
        // SAFETY: no failure, takes nothing.
        let parent = unsafe { libc::getppid() };
        let done = went && map(parent, maps, &said);
        // SAFETY: leaves at once, without the exit handlers of the process that this is a copy of.
        unsafe { libc::_exit(i32::from(!done)) }
    }

    /// Maps a range of ids. If that can't be done: what was said, if anything was.
    fn write_maps(mut self) -> Result<Option<String>, RootlessError> {
        let sent = rustix::io::write(&self.go, b"g");
        drop(self.go);
        let mut status = 0;
        loop {
            // SAFETY: `status` is valid for writing.
            match check(unsafe { libc::waitpid(self.pid, &raw mut status, 0) }.into()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed("wait for the mapping of ids")(error)),
                Ok(_) => break,
            }
        }
        if sent.is_ok() && libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0 {
            return Ok(None);
        }
        let mut said = Vec::new();
        // Only words are lost.
        _ = self.said.rewind().and_then(|()| self.said.read_to_end(&mut said));
        Ok(Some(String::from_utf8_lossy(&said).into_owned()))
    }
}

fn map(pid: libc::pid_t, maps: &Maps, said: &fs::File) -> bool {
    let lines = |map: &[(u64, u64, u64)]| -> String {
        map.iter().map(|(inside, outside, count)| format!("{inside} {outside} {count}\n")).collect()
    };
    // SAFETY: no failure, takes nothing.
    if unsafe { libc::geteuid() } == 0 {
        let write = |file: &str, map: &[(u64, u64, u64)]| fs::write(format!("/proc/{pid}/{file}"), lines(map));
        return maps.uid.len() + maps.gid.len() > 1
            && maps.uid.iter().map(|m| m.2).sum::<u64>() > 1
            && write("gid_map", &maps.gid).is_ok()
            && write("uid_map", &maps.uid).is_ok();
    }
    let Some((newuidmap, newgidmap)) = maps.tools.as_ref().filter(|_| maps.has_ranges()) else { return false };
    let run = |tool: &Path, map: &[(u64, u64, u64)]| {
        let numbers = map.iter().flat_map(|(inside, outside, count)| [inside, outside, count]).map(u64::to_string);
        Command::new(tool)
            .arg(pid.to_string())
            .args(numbers)
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(said.try_clone().map_or_else(|_| std::process::Stdio::null(), Into::into))
            .status()
            .is_ok_and(|status| status.success())
    };
    // Groups first: if only one of the two works the other map is still unwritten, or it does not matter.
    run(newgidmap, &maps.gid) && run(newuidmap, &maps.uid)
}

/// `0 <uid> 1`, which everybody may do for himself once setgroups is given up.
fn write_single(uid: u32, gid: u32) -> Result<(), RootlessError> {
    let write = |file: &str, content: String| fs::write(Path::new("/proc/self").join(file), content);
    if IdMap::read(Path::new("/proc/self/gid_map")).0.is_empty() {
        write("setgroups", "deny".to_owned()).map_err(why_not)?;
        write("gid_map", format!("0 {gid} 1\n")).map_err(why_not)?;
    }
    write("uid_map", format!("0 {uid} 1\n")).map_err(why_not)
}

fn become_root(single: bool) -> Result<(), RootlessError> {
    let step = || failed("become root of the user namespace");
    if !single {
        // Groups of the old namespace are nobody's here.
        // SAFETY: an empty list.
        check(unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<u32>()) }).map_err(step())?;
    }
    // SAFETY: no memory is passed.
    check(unsafe { libc::syscall(libc::SYS_setresgid, 0, 0, 0) }).map_err(step())?;
    // SAFETY: no memory is passed.
    check(unsafe { libc::syscall(libc::SYS_setresuid, 0, 0, 0) }).map_err(step())?;
    // The change of ids made /proc/self belong to the outer root; our own helper has to use it.
    sys::prctl(libc::PR_SET_DUMPABLE, 1, 0).map_err(step()).map(drop)
}

/// Which switch of the machine an error comes from.
fn why_not(source: io::Error) -> RootlessError {
    let is = |name: &str, value: &str| sysctl(name).is_some_and(|v| v == value);
    match source.raw_os_error() {
        Some(libc::EINVAL) if threads() > 1 => RootlessError::Threads,
        Some(libc::ENOSPC) => RootlessError::Limit { limit: sysctl("user/max_user_namespaces").unwrap_or_default() },
        Some(libc::EPERM) if is("kernel/unprivileged_userns_clone", "0") => RootlessError::SwitchedOff,
        Some(libc::EPERM | libc::EACCES) if is("kernel/apparmor_restrict_unprivileged_userns", "1") => {
            RootlessError::AppArmor
        }
        Some(libc::EPERM) if is("user/max_user_namespaces", "0") => RootlessError::Limit { limit: "0".to_owned() },
        Some(libc::EPERM | libc::EACCES | libc::ENOSYS | libc::EINVAL) => RootlessError::Forbidden { source },
        _ => RootlessError::Io { action: "enter a user namespace", source },
    }
}

fn threads() -> usize {
    fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}

pub(crate) fn sysctl(name: &str) -> Option<String> {
    fs::read_to_string(Path::new("/proc/sys").join(name)).ok().map(|v| v.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_classified() {
        assert!(IdMap::parse("         0          0 4294967295\n").is_everything());
        let single = IdMap::parse("0 1000 1\n");
        assert!(!single.is_everything());
        assert_eq!(single.count(), 1);
        assert_eq!(IdMap::parse("0 1000 1\n1 100000 65536\n").count(), 65537);
        assert_eq!(IdMap::parse("garbage\n").count(), 0);
    }

    #[test]
    fn subordinate_ids_by_name_or_number() {
        let text = "alice:100000:65536\n1000:300000:10\nbob:1:2\nalice:bad:1\nalice:5:0\n";
        assert_eq!(subordinate(text, Some("alice"), 1000), [(100_000, 65_536), (300_000, 10)]);
        assert_eq!(subordinate(text, None, 7), []);
    }

    #[test]
    fn errors_say_what_to_do() {
        let text = RootlessError::Limit { limit: "0".into() }.to_string();
        assert!(text.contains("user.max_user_namespaces") && text.contains("sysctl -w"), "{text}");
        assert!(matches!(why_not(io::Error::from_raw_os_error(libc::ENOSPC)), RootlessError::Limit { .. }));
    }
}
