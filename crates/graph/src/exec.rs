//! The op that runs a process.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Runs a process over mounts. The mount with the destination `/` is its root; what is written there (and to every
/// other mount with an output) is the op's result.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecOp {
    /// The program and its arguments.
    pub args: Vec<String>,
    /// `NAME=value`, in order; steps with the same variables share them.
    pub env: Arc<[String]>,
    /// Working directory, absolute.
    pub cwd: String,
    /// `user[:group]`, names or numbers, looked up in the root; empty for 0.
    pub user: String,
    /// Host name in the container; `buildkitsandbox` where absent.
    pub hostname: Option<String>,
    /// File systems that it sees.
    pub mounts: Vec<Mount>,
    /// Variables whose values are secrets.
    pub secret_env: Vec<SecretEnv>,
    /// What of the network it sees.
    pub network: NetworkMode,
    /// How confined it is.
    pub security: SecurityMode,
    /// More lines for `/etc/hosts`.
    pub extra_hosts: Vec<HostIp>,
    /// Limits of single processes.
    pub limits: Limits,
    /// Limits of all of them together. Not part of the digest.
    pub resources: Resources,
    /// Proxy settings. Not part of the digest.
    pub proxy: ProxyEnv,
    /// Devices it is given.
    pub devices: Vec<Device>,
    /// Exit codes that mean success; only 0 where empty.
    pub valid_exit_codes: Vec<i32>,
}

/// A file system at a place in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where, absolute.
    pub dest: String,
    /// Index of the vertex's input that is mounted; absent for an empty one.
    pub input: Option<usize>,
    /// The path in the input that is mounted; empty for all of it.
    pub selector: String,
    /// Whether writing is forbidden.
    pub readonly: bool,
    /// Index of the op's output that it becomes; absent if what is written is thrown away.
    pub output: Option<u32>,
    /// What kind of mount.
    pub kind: MountKind,
    /// Whether the input counts by its content rather than by how it was made.
    pub content_cache: ContentCache,
}

impl Mount {
    /// The root file system: writable, and the op's output 0.
    pub fn root(input: Option<usize>) -> Self {
        Self {
            dest: "/".to_owned(),
            input,
            selector: String::new(),
            readonly: false,
            output: Some(0),
            kind: MountKind::Bind,
            content_cache: ContentCache::Default,
        }
    }

    /// A mount of `kind` at `dest` with no input and no output.
    pub fn new(dest: impl Into<String>, kind: MountKind) -> Self {
        Self { dest: dest.into(), output: None, kind, ..Self::root(None) }
    }
}

/// The kinds of mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountKind {
    /// The input itself.
    Bind,
    /// A directory that survives the build. Its first content is the input's.
    Cache {
        /// Which one, namespace included.
        id: String,
        /// What happens when two steps want it at once.
        sharing: CacheSharing,
        /// Permissions of the directory when it is made (0755).
        mode: Option<u32>,
        /// Its owner when it is made (0).
        uid: Option<u32>,
        /// Its group when it is made (0).
        gid: Option<u32>,
    },
    /// A memory file system.
    Tmpfs {
        /// Bytes it can hold; 0 for the kernel's default.
        size: u64,
    },
    /// A file with a secret's value.
    Secret {
        /// Which secret.
        id: String,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// Permissions.
        mode: u32,
        /// Whether the build may do without it.
        optional: bool,
    },
    /// A socket that leads to an ssh agent.
    Ssh {
        /// Which agent.
        id: String,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// Permissions.
        mode: u32,
        /// Whether the build may do without it.
        optional: bool,
    },
}

/// What happens when two steps want a cache mount at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum CacheSharing {
    /// Both have it.
    #[default]
    Shared,
    /// The second gets one of its own.
    Private,
    /// The second waits.
    Locked,
}

/// Whether a mount's input counts by content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum ContentCache {
    /// If nothing written to it is kept.
    #[default]
    Default,
    /// Yes.
    On,
    /// No.
    Off,
}

/// A variable whose value is a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretEnv {
    /// Which secret.
    pub id: String,
    /// The variable.
    pub name: String,
    /// Whether the build may do without it.
    pub optional: bool,
}

/// What of the network a process sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum NetworkMode {
    /// The builder's default.
    #[default]
    Default,
    /// The host's.
    Host,
    /// Loopback only.
    None,
}

/// How confined a process is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum SecurityMode {
    /// As containers are.
    #[default]
    Sandbox,
    /// Hardly.
    Insecure,
}

/// A line for `/etc/hosts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostIp {
    /// Name.
    pub host: String,
    /// Address, or `host-gateway`.
    pub ip: String,
}

/// Limits that a process can observe, and so are part of the digest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// `setrlimit` values.
    pub ulimits: Vec<Ulimit>,
    /// Size of `/dev/shm` in bytes; the default (64 MiB) where absent.
    pub shm_size: Option<u64>,
}

/// A `setrlimit` value; -1 is unlimited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ulimit {
    /// `nofile`, `nproc`, ….
    pub name: String,
    /// Soft limit.
    pub soft: i64,
    /// Hard limit.
    pub hard: i64,
}

/// Limits of a control group. They decide how fast a step is and whether it survives, not what it makes: more memory
/// for the next build must not run every step again, so they are not part of the digest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// Bytes.
    pub memory: Option<u64>,
    /// Bytes of memory and swap; -1 is unlimited.
    pub memory_swap: Option<i64>,
    /// Relative weight.
    pub cpu_shares: Option<u64>,
    /// Microseconds.
    pub cpu_period: Option<u64>,
    /// Microseconds of each period.
    pub cpu_quota: Option<i64>,
    /// CPUs it may run on.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes it may use.
    pub cpuset_mems: Option<String>,
    /// Number of processes.
    pub pids: Option<u64>,
}

/// Proxy settings, as variables in lower and upper case. They say how this machine reaches the network and nothing of
/// what is built: never in a digest, a history entry or a config.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxyEnv(pub BTreeMap<String, String>);

/// A device that a process is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// `vendor/class=name` or `class` as in the container device interface.
    pub name: String,
    /// Whether the build may do without it.
    pub optional: bool,
}
