//! Which control group hierarchies there are and where in them we may make groups.

use std::fs;
use std::path::{Path, PathBuf};

/// Controllers that kiln uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Controller {
    Memory,
    Cpu,
    Cpuset,
    Pids,
}

pub const CONTROLLERS: [Controller; 4] = [Controller::Memory, Controller::Cpu, Controller::Cpuset, Controller::Pids];

impl Controller {
    pub fn name(self) -> &'static str {
        match self {
            Controller::Memory => "memory",
            Controller::Cpu => "cpu",
            Controller::Cpuset => "cpuset",
            Controller::Pids => "pids",
        }
    }
}

/// Where a controller's groups are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A directory of a v1 hierarchy.
    V1(PathBuf),
    /// A directory of the unified hierarchy.
    V2(PathBuf),
    /// Nowhere, and why.
    None(String),
}

/// One mount of a cgroup file system.
#[derive(Debug, Clone, PartialEq, Eq)]
struct CgroupMount {
    /// Directory of the hierarchy that is mounted.
    root: String,
    at: PathBuf,
    /// v1 controllers; `None` for the unified hierarchy.
    controllers: Option<Vec<String>>,
}

/// What the kernel says about this process.
#[derive(Debug, Default)]
pub struct Machine {
    mounts: Vec<CgroupMount>,
    /// (v1 controllers or empty for v2, path)
    own: Vec<(Vec<String>, String)>,
}

impl Machine {
    pub fn read() -> Machine {
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        Machine::parse(&text("/proc/self/mountinfo"), &text("/proc/self/cgroup"))
    }

    pub fn parse(mountinfo: &str, cgroup: &str) -> Machine {
        Machine {
            mounts: mountinfo.lines().filter_map(parse_mount).collect(),
            own: cgroup.lines().filter_map(parse_own).collect(),
        }
    }

    /// The unified hierarchy is the only one.
    pub fn unified_only(&self) -> bool {
        !self.mounts.is_empty() && self.mounts.iter().all(|m| m.controllers.is_none())
    }

    /// The directory of our own group in the hierarchy of a v1 controller.
    pub fn own_v1(&self, controller: &str) -> Option<PathBuf> {
        let has = |list: &[String]| list.iter().any(|c| c == controller);
        let mount = self.mounts.iter().find(|m| m.controllers.as_deref().is_some_and(has))?;
        let own = self.own.iter().find(|(controllers, _)| has(controllers))?;
        Some(own_dir(mount, &own.1))
    }

    /// The directory of our own group in the unified hierarchy, and that hierarchy's mount point.
    pub fn own_v2(&self) -> Option<(PathBuf, PathBuf)> {
        let mount = self.mounts.iter().find(|m| m.controllers.is_none())?;
        let own = self.own.iter().find(|(controllers, _)| controllers.is_empty())?;
        Some((own_dir(mount, &own.1), mount.at.clone()))
    }
}

/// The path in /proc/self/cgroup is from the hierarchy's (or our namespace's) top; the mount may show a part of it.
fn own_dir(mount: &CgroupMount, own: &str) -> PathBuf {
    let below = own.strip_prefix(mount.root.trim_end_matches('/')).unwrap_or(own);
    let dir = mount.at.join(below.trim_start_matches('/'));
    if dir.is_dir() { dir } else { mount.at.clone() }
}

fn parse_mount(line: &str) -> Option<CgroupMount> {
    let (left, right) = line.split_once(" - ")?;
    let left: Vec<&str> = left.split(' ').collect();
    let mut right = right.split(' ');
    let (kind, options) = (right.next()?, right.nth(1).unwrap_or(""));
    let (root, at) = (left.get(3)?.to_string(), PathBuf::from(unescape(left.get(4)?)));
    match kind {
        "cgroup2" => Some(CgroupMount { root, at, controllers: None }),
        "cgroup" => {
            let controllers = options.split(',').map(str::to_owned).collect();
            Some(CgroupMount { root, at, controllers: Some(controllers) })
        }
        _ => None,
    }
}

fn unescape(path: &str) -> String {
    path.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
}

fn parse_own(line: &str) -> Option<(Vec<String>, String)> {
    let mut parts = line.splitn(3, ':');
    let controllers = parts.nth(1)?;
    let controllers =
        if controllers.is_empty() { Vec::new() } else { controllers.split(',').map(str::to_owned).collect() };
    Some((controllers, parts.next()?.to_owned()))
}

/// Words of a small kernel file.
pub fn words(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
40 39 0:30 / /nonexistent/cg/memory rw,relatime - cgroup cgroup rw,memory
41 39 0:31 / /nonexistent/cg/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
42 39 0:32 / /nonexistent/cg/unified rw,relatime - cgroup2 cgroup2 rw
43 39 0:33 / /tmp rw - tmpfs tmpfs rw";

    #[test]
    fn hybrid_and_unified_machines_are_told_apart() {
        let hybrid = Machine::parse(HYBRID, "4:memory:/a/b\n1:cpu,cpuacct:/\n0::/\n");
        assert!(!hybrid.unified_only());
        assert_eq!(hybrid.own_v1("memory"), Some(PathBuf::from("/nonexistent/cg/memory")));
        assert_eq!(hybrid.own_v1("cpu"), Some(PathBuf::from("/nonexistent/cg/cpu,cpuacct")));
        assert_eq!(hybrid.own_v1("pids"), None);
        let unified = Machine::parse("42 39 0:32 /x /sys/fs/cgroup rw - cgroup2 cgroup2 rw", "0::/x/y\n");
        assert!(unified.unified_only());
        assert_eq!(unified.own_v2().map(|(_, top)| top), Some(PathBuf::from("/sys/fs/cgroup")));
        assert!(!Machine::parse("", "").unified_only());
    }
}
