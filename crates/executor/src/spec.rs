//! What to run: plain values and descriptors, no images, caches or names of other kiln parts.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// One process in its own namespaces over a root file system.
#[derive(Debug)]
pub struct ProcessSpec {
    /// A detached mount (`fsmount`, `open_tree`) or any directory descriptor; a directory is bound, not copied.
    pub root: OwnedFd,
    /// Program and arguments. A program without a slash is searched in `PATH` of `env`, inside the container.
    pub args: Vec<OsString>,
    /// `NAME=value`, exactly what the process gets.
    pub env: Vec<OsString>,
    /// Working directory inside the root; must exist.
    pub cwd: PathBuf,
    /// Who the process is.
    pub user: User,
    /// Mounts besides the standard ones; parents are mounted before children whatever the order here.
    pub mounts: Vec<Mount>,
    /// Name of the machine as seen inside.
    pub hostname: String,
    /// Content of `/etc/hosts`; empty leaves the image's own file.
    pub hosts: Vec<u8>,
    /// Content of `/etc/resolv.conf`; empty leaves the image's own file.
    pub resolv_conf: Vec<u8>,
    /// Whether hosts, hostname and resolv.conf may be written (as `docker run` allows, builds do not). What is
    /// written is lost with the container in either case.
    pub writable_etc: bool,
    /// Network seen by the process.
    pub network: Network,
    /// How much is forbidden.
    pub security: Security,
    /// Resource limits.
    pub limits: Limits,
    /// Standard input.
    pub stdin: Stdio,
    /// Standard output.
    pub stdout: Stdio,
    /// Standard error.
    pub stderr: Stdio,
    /// Gives the process a terminal of its own instead of the three above.
    pub terminal: Option<Terminal>,
    /// Runs a small reaper as process 1 and the program as its child.
    pub init: bool,
    /// The root itself is read-only (mounts keep their own mode).
    pub readonly: bool,
    /// Calls that wait until something is on the disk (`fsync` and its kin) do nothing and succeed: for a root that is
    /// thrown away unless the process ends well. Without effect with [`Security::Insecure`].
    pub volatile: bool,
}

impl ProcessSpec {
    /// A process over `root` with everything else at its default: uid 0, `/`, host network, sandboxed, no output.
    pub fn new(root: OwnedFd, args: impl IntoIterator<Item = impl Into<OsString>>) -> ProcessSpec {
        ProcessSpec {
            root,
            args: args.into_iter().map(Into::into).collect(),
            env: vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()],
            cwd: PathBuf::from("/"),
            user: User::default(),
            mounts: Vec::new(),
            hostname: "localhost".to_owned(),
            hosts: Vec::new(),
            resolv_conf: Vec::new(),
            writable_etc: false,
            network: Network::Host,
            security: Security::Sandbox,
            limits: Limits::default(),
            stdin: Stdio::Null,
            stdout: Stdio::Null,
            stderr: Stdio::Null,
            terminal: None,
            init: false,
            readonly: false,
            volatile: false,
        }
    }
}

/// Numeric identity of a process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups, exactly: nothing is inherited.
    pub groups: Vec<u32>,
}

/// One of the three standard streams.
#[derive(Debug, Default)]
pub enum Stdio {
    /// `/dev/null`.
    #[default]
    Null,
    /// This descriptor; may be the same open file as another stream's.
    Fd(OwnedFd),
}

/// A terminal's first size.
#[derive(Debug, Clone, Copy)]
pub struct Terminal {
    /// Lines.
    pub rows: u16,
    /// Characters per line.
    pub columns: u16,
}

impl Default for Terminal {
    fn default() -> Self {
        Terminal { rows: 24, columns: 80 }
    }
}

/// Something mounted over a path of the root.
#[derive(Debug)]
pub struct Mount {
    /// What.
    pub source: MountSource,
    /// Where; symlinks are resolved inside the root. Created when missing, and removed after the run again.
    pub target: PathBuf,
    /// Nothing can be written through it, at any depth.
    pub readonly: bool,
}

/// Where a mount's content comes from.
#[derive(Debug)]
pub enum MountSource {
    /// A directory or file, bound with what is mounted below it where the kernel demands that.
    Fd(OwnedFd),
    /// An empty file system in memory.
    Tmpfs {
        /// Bytes; `None` is the kernel's default, half of the memory.
        size: Option<u64>,
        /// Permissions of its top directory, octal; Docker's are 1777.
        mode: u32,
    },
    /// A detached mount (for example of an overlay), consumed.
    OverlayFd(OwnedFd),
}

/// Network of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Network {
    /// The network of kiln itself.
    #[default]
    Host,
    /// A new one with nothing but loopback.
    None,
}

/// How much of the machine a process may touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Security {
    /// Docker's default: 14 capabilities, system call filter, masked and read-only kernel paths. As with Docker
    /// and BuildKit `no_new_privs` is *not* set: `sudo` and set-id programs work inside.
    #[default]
    Sandbox,
    /// `--security=insecure`: every capability kiln has, no filter, nothing masked, `/sys` and `/proc/sys` writable.
    Insecure,
}

/// Limits; what the machine cannot enforce is named in [`Started::not_enforced`](crate::Started::not_enforced).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Bytes of memory plus swap (Docker's meaning), -1 for no limit of swap.
    pub memory_swap: Option<i64>,
    /// Microseconds of CPU time per period.
    pub cpu_quota: Option<u64>,
    /// Length of the period in microseconds; 100,000 where absent.
    pub cpu_period: Option<u64>,
    /// Relative weight, Docker's scale around 1024.
    pub cpu_shares: Option<u64>,
    /// CPUs as `0-2,5`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes as `0-1`.
    pub cpuset_mems: Option<String>,
    /// Number of processes and threads.
    pub pids: Option<u64>,
    /// Per-process limits (setrlimit).
    pub ulimits: Vec<Ulimit>,
    /// Bytes of `/dev/shm`; 64 MiB where absent.
    pub shm_size: Option<u64>,
    /// Value for `/proc/self/oom_score_adj`; inherited where absent.
    pub oom_score_adj: Option<i32>,
}

impl Limits {
    /// `--cpus 1.5` as quota and period.
    pub fn set_cpus(&mut self, cpus: f64) {
        let period = self.cpu_period.unwrap_or(100_000);
        self.cpu_period = Some(period);
        self.cpu_quota = Some(((cpus * period as f64).round() as u64).max(1000));
    }

    /// True where a control group is needed.
    pub(crate) fn needs_cgroup(&self) -> bool {
        self.memory.is_some()
            || self.memory_swap.is_some()
            || self.cpu_quota.is_some()
            || self.cpu_shares.is_some()
            || self.cpuset_cpus.is_some()
            || self.cpuset_mems.is_some()
            || self.pids.is_some()
    }
}

/// One `--ulimit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ulimit {
    /// Resource number of setrlimit(2); see [`Ulimit::resource`].
    pub resource: u32,
    /// Soft limit, `u64::MAX` for none.
    pub soft: u64,
    /// Hard limit, `u64::MAX` for none.
    pub hard: u64,
}

impl Ulimit {
    /// Resource number for Docker's names (`nofile`, `nproc`, `core`, ...).
    pub fn resource(name: &str) -> Option<u32> {
        let n = match name {
            "core" => libc::RLIMIT_CORE,
            "cpu" => libc::RLIMIT_CPU,
            "data" => libc::RLIMIT_DATA,
            "fsize" => libc::RLIMIT_FSIZE,
            "locks" => libc::RLIMIT_LOCKS,
            "memlock" => libc::RLIMIT_MEMLOCK,
            "msgqueue" => libc::RLIMIT_MSGQUEUE,
            "nice" => libc::RLIMIT_NICE,
            "nofile" => libc::RLIMIT_NOFILE,
            "nproc" => libc::RLIMIT_NPROC,
            "rss" => libc::RLIMIT_RSS,
            "rtprio" => libc::RLIMIT_RTPRIO,
            "rttime" => libc::RLIMIT_RTTIME,
            "sigpending" => libc::RLIMIT_SIGPENDING,
            "stack" => libc::RLIMIT_STACK,
            _ => return None,
        };
        Some(n)
    }
}

/// Another process in a container that runs already (`docker exec`).
#[derive(Debug)]
pub struct ExecSpec {
    /// Program and arguments.
    pub args: Vec<OsString>,
    /// `NAME=value`, exactly.
    pub env: Vec<OsString>,
    /// Working directory inside the container.
    pub cwd: PathBuf,
    /// Who the process is.
    pub user: User,
    /// How much is forbidden.
    pub security: Security,
    /// Per-process limits.
    pub ulimits: Vec<Ulimit>,
    /// Standard input.
    pub stdin: Stdio,
    /// Standard output.
    pub stdout: Stdio,
    /// Standard error.
    pub stderr: Stdio,
    /// Gives the process a terminal of its own instead of the three above.
    pub terminal: Option<Terminal>,
}
