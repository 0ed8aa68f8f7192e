//! A run or exec as the helper gets it: all values decided, all paths canonical, descriptors as indices.
//!
//! Invariant: what is here was checked by the executor; the helper trusts it, the process in the container never sees it.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;

use crate::spec::{Network, Security, Terminal, Ulimit, User};
use crate::wire::{Decoder, Encoder, Malformed};

/// Index of a descriptor in the request's list.
pub type FdIndex = u32;

/// Everything the helper needs to start one process.
#[derive(Debug, Default, PartialEq)]
pub struct Request {
    pub args: Vec<OsString>,
    pub env: Vec<OsString>,
    pub cwd: PathBuf,
    pub user: User,
    pub security: Security,
    pub ulimits: Vec<Ulimit>,
    /// (rows, columns)
    pub terminal: Option<(u16, u16)>,
    /// `None` is /dev/null; with a terminal all three are ignored.
    pub stdio: [Option<FdIndex>; 3],
    /// Directory of a v2 group to be born in.
    pub cgroup2: Option<FdIndex>,
    /// Open `cgroup.procs` files of v1 groups.
    pub cgroup1: Vec<FdIndex>,
    /// Only one id is mapped: calls that name others are answered with success.
    pub pretend: bool,
    /// Not in the first user namespace: no device nodes, sysfs of the host's network.
    pub userns: bool,
    pub target: Target,
}

/// A new container or one that runs.
#[derive(Debug, PartialEq)]
pub enum Target {
    New(Container),
    /// Descriptor of a process in it.
    Existing(FdIndex),
}

impl Default for Target {
    fn default() -> Self {
        Target::New(Container::default())
    }
}

/// The part of a request that only a new container has.
#[derive(Debug, Default, PartialEq)]
pub struct Container {
    pub root: FdIndex,
    /// In the order in which they are mounted.
    pub mounts: Vec<MountRequest>,
    pub hostname: String,
    pub network: Network,
    pub shm_size: u64,
    pub oom_score_adj: Option<i32>,
    pub init: bool,
    pub readonly: bool,
    /// Nobody waits for the disk.
    pub volatile: bool,
    /// Mount a view of the process's own control group.
    pub cgroup_view: bool,
}

/// One mount besides /proc, /dev and /sys.
#[derive(Debug, PartialEq)]
pub struct MountRequest {
    pub target: PathBuf,
    pub readonly: bool,
    pub source: RequestSource,
}

#[derive(Debug, PartialEq)]
pub enum RequestSource {
    /// A detached mount; `dir` says what kind of mount point it needs.
    Mount {
        fd: FdIndex,
        dir: bool,
    },
    Tmpfs {
        size: Option<u64>,
        mode: u32,
    },
    /// A small file made for this container.
    Content(Vec<u8>),
}

impl Request {
    pub fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::default();
        e.os_list(&self.args).os_list(&self.env).path(&self.cwd);
        e.u32(self.user.uid).u32(self.user.gid).u64(self.user.groups.len() as u64);
        for group in &self.user.groups {
            e.u32(*group);
        }
        e.bool(self.security == Security::Insecure).u64(self.ulimits.len() as u64);
        for limit in &self.ulimits {
            e.u32(limit.resource).u64(limit.soft).u64(limit.hard);
        }
        e.option(self.terminal, |e, (rows, columns)| e.u32(rows.into()).u32(columns.into()));
        for fd in self.stdio {
            e.option(fd, |e, fd| e.u32(fd));
        }
        e.option(self.cgroup2, |e, fd| e.u32(fd)).u64(self.cgroup1.len() as u64);
        for fd in &self.cgroup1 {
            e.u32(*fd);
        }
        e.bool(self.pretend).bool(self.userns);
        match &self.target {
            Target::New(container) => container.encode(e.u8(0)),
            Target::Existing(fd) => {
                e.u8(1).u32(*fd);
            }
        }
        e.buf
    }

    pub fn decode(bytes: &[u8]) -> Result<Request, Malformed> {
        let d = &mut Decoder(bytes);
        let request = Request {
            args: d.list(Decoder::os)?,
            env: d.list(Decoder::os)?,
            cwd: d.path()?,
            user: User { uid: d.u32()?, gid: d.u32()?, groups: d.list(Decoder::u32)? },
            security: if d.bool()? { Security::Insecure } else { Security::Sandbox },
            ulimits: d.list(|d| Ok(Ulimit { resource: d.u32()?, soft: d.u64()?, hard: d.u64()? }))?,
            terminal: d.option(|d| Ok((d.u32()? as u16, d.u32()? as u16)))?,
            stdio: [d.option(Decoder::u32)?, d.option(Decoder::u32)?, d.option(Decoder::u32)?],
            cgroup2: d.option(Decoder::u32)?,
            cgroup1: d.list(Decoder::u32)?,
            pretend: d.bool()?,
            userns: d.bool()?,
            target: match d.u8()? {
                0 => Target::New(Container::decode(d)?),
                1 => Target::Existing(d.u32()?),
                _ => return Err(Malformed),
            },
        };
        if d.0.is_empty() { Ok(request) } else { Err(Malformed) }
    }
}

impl Container {
    fn encode(&self, e: &mut Encoder) {
        e.u32(self.root).u64(self.mounts.len() as u64);
        for mount in &self.mounts {
            e.path(&mount.target).bool(mount.readonly);
            match &mount.source {
                RequestSource::Mount { fd, dir } => e.u8(0).u32(*fd).bool(*dir),
                RequestSource::Tmpfs { size, mode } => e.u8(1).option(*size, |e, v| e.u64(v)).u32(*mode),
                RequestSource::Content(bytes) => e.u8(2).bytes(bytes),
            };
        }
        e.str(&self.hostname).bool(self.network == Network::None).u64(self.shm_size);
        e.option(self.oom_score_adj, |e, v| e.i32(v));
        e.bool(self.init).bool(self.readonly).bool(self.volatile).bool(self.cgroup_view);
    }

    fn decode(d: &mut Decoder<'_>) -> Result<Container, Malformed> {
        Ok(Container {
            root: d.u32()?,
            mounts: d.list(|d| {
                Ok(MountRequest {
                    target: d.path()?,
                    readonly: d.bool()?,
                    source: match d.u8()? {
                        0 => RequestSource::Mount { fd: d.u32()?, dir: d.bool()? },
                        1 => RequestSource::Tmpfs { size: d.option(Decoder::u64)?, mode: d.u32()? },
                        2 => RequestSource::Content(d.bytes()?.to_vec()),
                        _ => return Err(Malformed),
                    },
                })
            })?,
            hostname: d.string()?,
            network: if d.bool()? { Network::None } else { Network::Host },
            shm_size: d.u64()?,
            oom_score_adj: d.option(Decoder::i32)?,
            init: d.bool()?,
            readonly: d.bool()?,
            volatile: d.bool()?,
            cgroup_view: d.bool()?,
        })
    }
}

/// Descriptors on their way to the helper.
#[derive(Debug, Default)]
pub struct FdList(Vec<OwnedFd>);

impl FdList {
    pub fn push(&mut self, fd: OwnedFd) -> FdIndex {
        self.0.push(fd);
        self.0.len() as FdIndex - 1
    }
    pub fn raw(&self) -> Vec<RawFd> {
        self.0.iter().map(AsRawFd::as_raw_fd).collect()
    }
}

/// Descriptors as the helper received them.
pub struct FdTable(pub Vec<OwnedFd>);

impl FdTable {
    pub fn get(&self, index: FdIndex) -> Result<BorrowedFd<'_>, Malformed> {
        self.0.get(index as usize).map(AsFd::as_fd).ok_or(Malformed)
    }
}

impl From<Terminal> for (u16, u16) {
    fn from(t: Terminal) -> Self {
        (t.rows, t.columns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Request {
        Request {
            args: vec!["sh".into(), "-c".into()],
            env: vec!["A=b".into()],
            cwd: "/w".into(),
            user: User { uid: 1, gid: 2, groups: vec![3, 4] },
            security: Security::Insecure,
            ulimits: vec![Ulimit { resource: 7, soft: 1, hard: u64::MAX }],
            terminal: Some((24, 80)),
            stdio: [None, Some(1), Some(2)],
            cgroup2: Some(5),
            cgroup1: vec![6, 7],
            pretend: true,
            userns: true,
            target: Target::New(Container {
                root: 9,
                mounts: vec![
                    MountRequest {
                        target: "/a".into(),
                        readonly: true,
                        source: RequestSource::Mount { fd: 3, dir: true },
                    },
                    MountRequest {
                        target: "/b".into(),
                        readonly: false,
                        source: RequestSource::Tmpfs { size: Some(1), mode: 0o1777 },
                    },
                    MountRequest { target: "/c".into(), readonly: false, source: RequestSource::Content(vec![0, 255]) },
                ],
                hostname: "h".into(),
                network: Network::None,
                shm_size: 64,
                oom_score_adj: Some(-5),
                init: true,
                readonly: true,
                volatile: true,
                cgroup_view: true,
            }),
        }
    }

    #[test]
    fn requests_survive_the_wire_and_truncation_is_an_error() {
        for request in [full(), Request { target: Target::Existing(4), ..Request::default() }] {
            let bytes = request.encode();
            assert_eq!(Request::decode(&bytes).expect("decodes"), request);
            for cut in 0..bytes.len() {
                assert!(Request::decode(&bytes[..cut]).is_err());
            }
        }
    }
}
