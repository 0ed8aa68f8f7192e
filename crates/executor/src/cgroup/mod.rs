//! Control groups: limits for memory, CPU and processes, and the kernel's count of out-of-memory kills.
//!
//! A group is made only for a container that has limits. Each is one directory `kiln-<namespace>-<pid>-<start>-<n>` per
//! hierarchy below a directory that we may write to; it is removed with the container, and what a killed kiln left is
//! removed by the next one, which recognises it by the process that is gone.
//!
//! Invariant: what cannot be enforced is never silently dropped, but named in `NotEnforced`.

mod detect;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use kiln_process::Stat;

use self::detect::{CONTROLLERS, Controller, Machine, Place, words};
use crate::error::{Error, Result};
use crate::executor::NotEnforced;
use crate::request::{FdList, Request};
use crate::spec::Limits;

/// Where control groups are made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum CgroupMode {
    /// Below kiln's own group, or the nearest one above in which that is possible.
    #[default]
    Auto,
    /// Nowhere: limits are reported as not enforced.
    Off,
}

/// True where containers get a view of their own group mounted (no v1 hierarchies).
pub(crate) fn unified_only() -> bool {
    static UNIFIED: OnceLock<bool> = OnceLock::new();
    *UNIFIED.get_or_init(|| Machine::read().unified_only())
}

/// What this machine offers.
pub struct Cgroups {
    places: BTreeMap<Controller, Place>,
}

impl Cgroups {
    pub fn detect(mode: &CgroupMode) -> Cgroups {
        let none = |reason: &str| CONTROLLERS.map(|c| (c, Place::None(reason.to_owned()))).into();
        if *mode == CgroupMode::Off {
            return Cgroups { places: none("control groups are switched off") };
        }
        let machine = Machine::read();
        let mut places: BTreeMap<Controller, Place> = none("no control groups are mounted");
        let v2 = machine.own_v2();
        for controller in CONTROLLERS {
            let place = match (machine.own_v1(controller.name()), &v2) {
                (Some(own), _) => writable_v1(&own),
                (None, Some((own, top))) => writable_v2(own, top, controller),
                (None, None) => continue,
            };
            places.insert(controller, place);
        }
        let cgroups = Cgroups { places };
        cgroups.sweep();
        cgroups
    }

    /// Why a controller cannot be used, if so.
    pub(crate) fn missing(&self) -> Vec<(&'static str, String)> {
        let reason = |(controller, place): (&Controller, &Place)| match place {
            Place::None(reason) => Some((controller.name(), reason.clone())),
            _ => None,
        };
        self.places.iter().filter_map(reason).collect()
    }

    fn place(&self, controller: Controller) -> &Place {
        static NONE: Place = Place::None(String::new());
        self.places.get(&controller).unwrap_or(&NONE)
    }

    /// A new group with these limits.
    pub fn create(&self, limits: &Limits) -> Result<Group> {
        let name = format!("{}-{}", owner_prefix(), next_number());
        let mut group = Group { dirs: BTreeMap::new(), v2: None, memory: None, not_enforced: Vec::new() };
        for (controller, limit, settings) in settings(limits) {
            let dir = match self.place(controller) {
                Place::None(reason) => {
                    group.not_enforced.push(NotEnforced { limit, reason: reason.clone() });
                    continue;
                }
                Place::V1(base) => group.dir(base, &name, false)?,
                Place::V2(base) => group.dir(base, &name, true)?,
            };
            let v2 = matches!(self.place(controller), Place::V2(_));
            if controller == Controller::Memory {
                group.memory = Some((dir.clone(), v2));
            }
            if let Err(reason) = apply(&dir, &settings, v2) {
                group.not_enforced.push(NotEnforced { limit, reason });
            }
        }
        group.fill_v1_cpusets();
        Ok(group)
    }

    /// Removes groups of kilns that are gone.
    fn sweep(&self) {
        let bases: BTreeSet<&Path> = self
            .places
            .values()
            .filter_map(|place| match place {
                Place::V1(base) | Place::V2(base) => Some(base.as_path()),
                Place::None(_) => None,
            })
            .collect();
        for base in bases {
            for entry in fs::read_dir(base).into_iter().flatten().flatten() {
                let name = entry.file_name();
                if name.to_str().is_some_and(owner_is_gone) {
                    // Refused by the kernel while anything runs in it.
                    let _ = fs::remove_dir(entry.path());
                }
            }
        }
    }
}

/// Our own group's directory, or the nearest above it where a group can be made.
fn writable_v1(own: &Path) -> Place {
    if probe(own).is_ok() {
        return Place::V1(own.to_owned());
    }
    Place::None(format!("{} is not writable", own.display()))
}

fn writable_v2(own: &Path, top: &Path, controller: Controller) -> Place {
    if !words(&top.join("cgroup.controllers")).iter().any(|c| c == controller.name()) {
        return Place::None(format!("the kernel offers no {} controller in {}", controller.name(), top.display()));
    }
    let mut base = own;
    loop {
        if probe(base).is_ok() && delegate(base, controller) {
            return Place::V2(base.to_owned());
        }
        match base.parent() {
            Some(parent) if base != top && parent.starts_with(top) => base = parent,
            _ => {
                let (name, own) = (controller.name(), own.display());
                return Place::None(format!("the {name} controller is not delegated to {own}"));
            }
        }
    }
}

/// Makes the controller available to groups below `base`. Fails where processes are in `base` itself.
fn delegate(base: &Path, controller: Controller) -> bool {
    let file = base.join("cgroup.subtree_control");
    words(&file).iter().any(|c| c == controller.name()) || fs::write(&file, format!("+{}", controller.name())).is_ok()
}

fn probe(base: &Path) -> io::Result<()> {
    let dir = base.join(format!("{}-{}", owner_prefix(), next_number()));
    fs::create_dir(&dir)?;
    fs::remove_dir(&dir)
}

fn next_number() -> u64 {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    NUMBER.fetch_add(1, Ordering::Relaxed)
}

/// `kiln-<pid namespace>-<pid>-<start time>`: what tells whether the owner still lives.
fn owner_prefix() -> String {
    let pid = std::process::id().cast_signed();
    format!("kiln-{}-{pid}-{}", pid_namespace(), Stat::of(pid).map_or(0, |stat| stat.start))
}

fn pid_namespace() -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata("/proc/self/ns/pid").map_or(0, |m| m.ino())
}

fn owner_is_gone(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("kiln-") else { return false };
    let numbers: Option<Vec<u64>> = rest.split('-').map(|part| part.parse().ok()).collect();
    let Some([namespace, pid, start, _]) = numbers.as_deref().and_then(|n| n.first_chunk::<4>()) else { return false };
    *namespace == pid_namespace()
        && i32::try_from(*pid).is_ok_and(|pid| Stat::of(pid).is_none_or(|stat| stat.start != *start))
}

/// A file of a group and what to write there; the v1 and v2 forms.
struct Setting {
    v1: Vec<(&'static str, String)>,
    v2: Vec<(&'static str, String)>,
}

type Wanted = (Controller, &'static str, Setting);

fn settings(limits: &Limits) -> Vec<Wanted> {
    let mut wanted = Vec::new();
    if let Some(bytes) = limits.memory {
        let bytes = bytes.to_string();
        let setting = Setting { v1: vec![("memory.limit_in_bytes", bytes.clone())], v2: vec![("memory.max", bytes)] };
        wanted.push((Controller::Memory, "memory", setting));
    }
    if let Some(total) = limits.memory_swap {
        let swap = if total < 0 {
            "max".to_owned()
        } else {
            (total as u64).saturating_sub(limits.memory.unwrap_or(0)).to_string()
        };
        let setting = Setting {
            v1: vec![("memory.memsw.limit_in_bytes", total.to_string())],
            v2: vec![("memory.swap.max", swap)],
        };
        wanted.push((Controller::Memory, "memory-swap", setting));
    }
    if let Some(quota) = limits.cpu_quota {
        let period = limits.cpu_period.unwrap_or(100_000);
        let setting = Setting {
            v1: vec![("cpu.cfs_period_us", period.to_string()), ("cpu.cfs_quota_us", quota.to_string())],
            v2: vec![("cpu.max", format!("{quota} {period}"))],
        };
        wanted.push((Controller::Cpu, "cpus", setting));
    }
    if let Some(shares) = limits.cpu_shares {
        // The conversion of the OCI runtimes: 2..=262144 to 1..=10000.
        let weight = 1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142;
        let setting =
            Setting { v1: vec![("cpu.shares", shares.to_string())], v2: vec![("cpu.weight", weight.to_string())] };
        wanted.push((Controller::Cpu, "cpu-shares", setting));
    }
    for (value, limit, file) in
        [(&limits.cpuset_cpus, "cpuset-cpus", "cpuset.cpus"), (&limits.cpuset_mems, "cpuset-mems", "cpuset.mems")]
    {
        if let Some(value) = value {
            let setting = Setting { v1: vec![(file, value.clone())], v2: vec![(file, value.clone())] };
            wanted.push((Controller::Cpuset, limit, setting));
        }
    }
    if let Some(pids) = limits.pids {
        let setting = Setting { v1: vec![("pids.max", pids.to_string())], v2: vec![("pids.max", pids.to_string())] };
        wanted.push((Controller::Pids, "pids-limit", setting));
    }
    wanted
}

fn apply(dir: &Path, setting: &Setting, v2: bool) -> Result<(), String> {
    for (file, value) in if v2 { &setting.v2 } else { &setting.v1 } {
        let path = dir.join(file);
        fs::write(&path, value).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => format!("the kernel has no {file}"),
            _ => format!("cannot write {value} to {}: {e}", path.display()),
        })?;
    }
    Ok(())
}

/// One container's group in each hierarchy that it needs.
pub struct Group {
    /// Directory to whether it is of the unified hierarchy.
    dirs: BTreeMap<PathBuf, bool>,
    v2: Option<PathBuf>,
    memory: Option<(PathBuf, bool)>,
    not_enforced: Vec<NotEnforced>,
}

impl Group {
    fn dir(&mut self, base: &Path, name: &str, v2: bool) -> Result<PathBuf> {
        let dir = base.join(name);
        if !self.dirs.contains_key(&dir) {
            fs::create_dir(&dir).map_err(|source| Error::Cgroup { action: "create", path: dir.clone(), source })?;
            self.dirs.insert(dir.clone(), v2);
            if v2 {
                self.v2 = Some(dir.clone());
            }
        }
        Ok(dir)
    }

    /// In v1 a group with an empty cpuset accepts no process: what was not set is taken from above.
    fn fill_v1_cpusets(&self) {
        for dir in self.dirs.iter().filter(|(_, v2)| !**v2).map(|(dir, _)| dir) {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let own = dir.join(file);
                if own.exists() && words(&own).is_empty() {
                    let above = dir.parent().map(|p| words(&p.join(file)).concat()).unwrap_or_default();
                    let _ = fs::write(own, above);
                }
            }
        }
    }

    /// How another process gets into this group.
    pub fn entrances(&self) -> Entrances {
        Entrances(self.dirs.iter().map(|(dir, v2)| (dir.clone(), *v2)).collect())
    }

    /// How many processes of the group the kernel killed for lack of memory.
    pub fn oom_kills(&self) -> u64 {
        let Some((dir, v2)) = &self.memory else { return 0 };
        let file = if *v2 { "memory.events" } else { "memory.oom_control" };
        let words = words(&dir.join(file));
        let mut pairs = words.chunks_exact(2);
        pairs.find(|pair| pair[0] == "oom_kill").and_then(|pair| pair[1].parse().ok()).unwrap_or(0)
    }

    /// Limits that are not in force.
    pub fn not_enforced(&self) -> &[NotEnforced] {
        &self.not_enforced
    }
}

/// The directories of a group, and whether each is of the unified hierarchy.
#[derive(Debug, Clone, Default)]
pub struct Entrances(Vec<(PathBuf, bool)>);

impl Entrances {
    /// Makes the request's process start in this group.
    pub fn add_to(&self, request: &mut Request, fds: &mut FdList) -> Result<()> {
        use std::os::unix::fs::OpenOptionsExt as _;
        for (dir, v2) in &self.0 {
            let (path, flags) = if *v2 { (dir.clone(), libc::O_DIRECTORY) } else { (dir.join("cgroup.procs"), 0) };
            let opened = fs::OpenOptions::new().read(*v2).write(!*v2).custom_flags(flags).open(&path);
            let file = opened.map_err(|source| Error::Cgroup { action: "open", path, source })?;
            let index = fds.push(OwnedFd::from(file));
            if *v2 { request.cgroup2 = Some(index) } else { request.cgroup1.push(index) }
        }
        Ok(())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for dir in self.dirs.keys() {
            // The last process may be a zombie for a moment; what stays is swept by the next kiln.
            for _ in 0..50 {
                match fs::remove_dir(dir) {
                    Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                        std::thread::sleep(std::time::Duration::from_millis(1));
                    }
                    _ => break,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_dead_owners_are_swept() {
        let own = format!("{}-7", owner_prefix());
        assert!(!owner_is_gone(&own));
        let pid = std::process::id();
        let (namespace, start) = (pid_namespace(), Stat::of(pid.cast_signed()).expect("own stat").start);
        assert!(owner_is_gone(&format!("kiln-{namespace}-{pid}-{}-7", start + 1)), "reused pid");
        assert!(!owner_is_gone(&format!("kiln-{}-{pid}-{}-7", namespace + 1, start + 1)), "other namespace");
        for other in ["kiln-", "kiln-1-2-3", "kiln-x-y-z-1", "system.slice", "docker-1-2-3-4"] {
            assert!(!owner_is_gone(other), "{other}");
        }
    }

    #[test]
    fn settings_follow_docker() {
        let mut limits =
            Limits { memory: Some(100), memory_swap: Some(150), cpu_shares: Some(1024), ..Limits::default() };
        limits.set_cpus(1.5);
        let all = settings(&limits);
        let v2 = |name: &str| all.iter().find(|(_, limit, _)| *limit == name).map(|(_, _, s)| s.v2[0].1.clone());
        assert_eq!(v2("memory").as_deref(), Some("100"));
        assert_eq!(v2("memory-swap").as_deref(), Some("50"));
        assert_eq!(v2("cpus").as_deref(), Some("150000 100000"));
        assert_eq!(v2("cpu-shares").as_deref(), Some("39"));
    }
}
