//! What this machine offers for building and running, and what is missing: for `kiln info`.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::cgroup::{CgroupMode, Cgroups};
use crate::rootless::{self, Identity, map_tools, subordinate, sysctl, user_name};
use crate::seccomp;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Works as it should.
    Good,
    /// Works with less.
    Limited,
    /// Does not work.
    Missing,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What, in one or two words; stable.
    pub what: &'static str,
    /// How bad.
    pub level: Level,
    /// What was found.
    pub detail: String,
    /// What a person can do about it.
    pub remedy: Option<String>,
}

fn finding(what: &'static str, level: Level, detail: impl Into<String>) -> Finding {
    Finding { what, level, detail: detail.into(), remedy: None }
}

impl Finding {
    fn with(mut self, remedy: impl Into<String>) -> Finding {
        self.remedy = Some(remedy.into());
        self
    }
}

/// Looks at everything that containers need. Changes nothing.
pub fn preflight() -> Vec<Finding> {
    let mut findings = vec![kernel()];
    match rootless::current() {
        Some(Identity::Root) => findings.push(finding("privileges", Level::Good, "root")),
        Some(Identity::Subids) => {
            findings.push(finding("privileges", Level::Good, "a user namespace with a range of ids"));
        }
        Some(Identity::SingleId) => findings.push(single_id()),
        None => {
            findings.push(user_namespaces());
            findings.push(subordinate_ids());
        }
    }
    findings.push(filter());
    findings.push(proc());
    findings.extend(cgroups());
    findings
}

fn kernel() -> Finding {
    let detail = format!("Linux {}", rustix::system::uname().release().to_string_lossy());
    if kiln_rootfs::overlay::kernel() >= (5, 12) {
        finding("kernel", Level::Good, detail)
    } else {
        finding("kernel", Level::Missing, detail)
            .with("kiln needs Linux 5.12 or later (mount_setattr, clone3, openat2)")
    }
}

fn single_id() -> Finding {
    let detail = "a user namespace with one id: files of other owners cannot be made, and tools that try are told that \
                  they succeeded";
    finding("privileges", Level::Limited, detail)
        .with("see subordinate ids: install uidmap, fill /etc/subuid and /etc/subgid")
}

fn user_namespaces() -> Finding {
    let off = |name: &str, value: &str| sysctl(name).is_some_and(|v| v == value);
    let missing = |detail: &str, remedy: &str| finding("user namespaces", Level::Missing, detail).with(remedy);
    if !Path::new("/proc/self/ns/user").exists() {
        return missing("the kernel has none", "use a kernel with CONFIG_USER_NS, or run kiln as root");
    }
    if off("kernel/unprivileged_userns_clone", "0") {
        return missing(
            "kernel.unprivileged_userns_clone is 0",
            "as root: sysctl -w kernel.unprivileged_userns_clone=1",
        );
    }
    if off("user/max_user_namespaces", "0") {
        return missing("user.max_user_namespaces is 0", "as root: sysctl -w user.max_user_namespaces=28633");
    }
    if off("kernel/apparmor_restrict_unprivileged_userns", "1") {
        return finding("user namespaces", Level::Limited, "kernel.apparmor_restrict_unprivileged_userns is 1").with(
            "as root: install an AppArmor profile for kiln with `userns,`, or \
             sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        );
    }
    finding("user namespaces", Level::Good, "allowed")
}

fn subordinate_ids() -> Finding {
    // SAFETY: no failure, takes nothing.
    subordinate_ids_of(unsafe { libc::geteuid() })
}

/// What the user `uid` has, outside of a user namespace.
pub(crate) fn subordinate_ids_of(uid: u32) -> Finding {
    let name = user_name(uid);
    let who = name.clone().unwrap_or_else(|| uid.to_string());
    let limited = |detail: String, remedy: String| finding("subordinate ids", Level::Limited, detail).with(remedy);
    let Some((newuidmap, newgidmap)) = map_tools() else {
        return limited(
            "newuidmap and newgidmap are not installed".to_owned(),
            "install the package uidmap (or shadow-utils)".to_owned(),
        );
    };
    for file in ["/etc/subuid", "/etc/subgid"] {
        let ranges = subordinate(&fs::read_to_string(file).unwrap_or_default(), name.as_deref(), uid);
        if ranges.is_empty() {
            let remedy = format!("as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {who}");
            return limited(format!("{file} has no line for {who}"), remedy);
        }
    }
    for tool in [newuidmap, newgidmap] {
        // Not whose it is: in a user namespace root's files are nobody's.
        let privileged = fs::metadata(&tool).is_ok_and(|m| m.mode() & 0o4000 != 0)
            || rustix::fs::getxattr(&tool, "security.capability", &mut [0u8; 64]).is_ok();
        if !privileged {
            let tool = tool.display();
            return limited(
                format!("{tool} is neither set-uid root nor has capabilities"),
                format!("as root: chmod u+s {tool}"),
            );
        }
    }
    finding("subordinate ids", Level::Good, format!("{who} has ranges in /etc/subuid and /etc/subgid"))
}

fn filter() -> Finding {
    if !seccomp::SUPPORTED {
        return finding("system call filter", Level::Limited, "kiln has none for this machine");
    }
    if Path::new("/proc/sys/kernel/seccomp/actions_avail").exists() {
        finding("system call filter", Level::Good, "seccomp")
    } else {
        finding("system call filter", Level::Missing, "the kernel has no seccomp filters")
            .with("use a kernel with CONFIG_SECCOMP_FILTER")
    }
}

/// A container's own /proc can be mounted from a user namespace only where ours is fully visible.
fn proc() -> Finding {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let hidden =
        mounts.lines().filter(|line| line.split(' ').nth(4).is_some_and(|at| at.starts_with("/proc/"))).count();
    if hidden == 0 || rootless::current() == Some(Identity::Root) {
        return finding("/proc", Level::Good, "a container gets its own");
    }
    finding("/proc", Level::Limited, "parts of /proc are hidden here: containers see this machine's processes in it")
        .with("docker: --security-opt systempaths=unconfined; Kubernetes: procMount: Unmasked")
}

fn cgroups() -> Vec<Finding> {
    let missing = Cgroups::detect(&CgroupMode::Auto).missing();
    if missing.is_empty() {
        return vec![finding("control groups", Level::Good, "memory, cpu, cpuset and pids can be limited")];
    }
    let explain = |(controller, reason): (&str, String)| {
        finding("control groups", Level::Limited, format!("{controller} cannot be limited: {reason}"))
            .with("run kiln as root, or in a delegated group: systemd-run --user --scope -p Delegate=yes kiln ...")
    };
    missing.into_iter().map(explain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_of_this_machine_has_words() {
        let findings = preflight();
        for what in ["kernel", "system call filter", "/proc", "control groups"] {
            assert!(findings.iter().any(|f| f.what == what), "{what} missing in {findings:?}");
        }
        for f in &findings {
            assert!(!f.detail.is_empty());
            assert!(f.level != Level::Missing || f.remedy.is_some(), "{f:?}");
        }
    }
}
