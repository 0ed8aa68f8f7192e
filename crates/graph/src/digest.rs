//! What identifies an op and a vertex. Version [`VERSION`]; change it with every change of meaning below.
//!
//! | digest | made of |
//! |---|---|
//! | [`OpDigest`] | version, platform (os, architecture, variant, os version; absent where the op does not depend on it), kind of op, the op's fields below; never the inputs |
//! | [`VertexDigest`] | version, op digest, for each input in order: its vertex digest and output index |
//!
//! | op | fields |
//! |---|---|
//! | local | name, include, exclude, follow paths (not: shared key) |
//! | image | reference with tag and digest (not: resolve mode) |
//! | oci layout | path, tag, digest |
//! | http | URL, checksum, file name, mode, uid, gid (not: secret for the header) |
//! | git | remote, reference, subdir, checksum, keep `.git`, skip submodules (not: secrets, known hosts, agent) |
//! | deb | the specification |
//! | exec | args, env, cwd, user, hostname, mounts, secret variables (names and ids, not values), network, security, hosts, ulimits, shm size, devices, valid exit codes (not: resources, proxy) |
//! | mount | dest, input index, selector, readonly, output index, kind with its fields (not: a secret's value), content cache |
//! | file | for each action: input, output, kind, all its fields |
//! | merge | nothing more |
//! | diff | index of lower, index of upper |
//! | build | builder, inputs, definition, attributes |
//!
//! [`VertexMeta`](crate::VertexMeta) is in none of them.

use std::fmt;

use kiln_oci::{Digest, Hasher, Platform};

use crate::{
    ActionInput, BuildOp, CacheSharing, ContentCache, CopyAction, ExecOp, FileAction, FileActionKind, Mode, Mount,
    MountKind, NetworkMode, Op, Owner, SecurityMode, SourceOp, UserRef,
};

/// Version of everything in this module.
pub const VERSION: &str = "kiln.vertex.v1";

/// Identifies what a vertex does, without what it does it to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpDigest(pub Digest);

/// Identifies a vertex by its definition, inputs included: equal work in flight is merged by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VertexDigest(pub Digest);

impl fmt::Display for VertexDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl OpDigest {
    /// The digest of `op` on `platform`.
    pub fn of(op: &Op, platform: Option<&Platform>) -> Self {
        let mut f = Fields::new("op");
        f.option(platform, |f, p| {
            f.text(&p.os).text(&p.architecture).maybe(p.variant.as_deref()).maybe(p.os_version.as_deref());
        });
        write_op(&mut f, op);
        Self(f.0.finish())
    }
}

impl VertexDigest {
    /// The digest of a vertex with `op` and these inputs.
    pub fn of(op: &OpDigest, inputs: impl ExactSizeIterator<Item = (VertexDigest, u32)>) -> Self {
        let mut f = Fields::new("vertex");
        f.bytes(op.0.bytes()).number(inputs.len() as u64);
        for (digest, output) in inputs {
            f.bytes(digest.0.bytes()).number(output.into());
        }
        Self(f.0.finish())
    }
}

/// Writes typed fields to a hasher. Every field is length-prefixed, and every list is preceded by its length.
struct Fields(Hasher);

impl Fields {
    fn new(what: &str) -> Self {
        let mut hasher = Hasher::new();
        hasher.field(VERSION).field(what);
        Self(hasher)
    }

    fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.0.field(value);
        self
    }

    fn text(&mut self, value: &str) -> &mut Self {
        self.bytes(value.as_bytes())
    }

    fn number(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn signed(&mut self, value: i64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn flag(&mut self, value: bool) -> &mut Self {
        self.bytes(&[u8::from(value)])
    }

    /// An absent value is another field than an empty one.
    fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) -> &mut Self {
        self.flag(value.is_some());
        if let Some(value) = value {
            write(self, value);
        }
        self
    }

    fn maybe(&mut self, value: Option<&str>) -> &mut Self {
        self.option(value, |f, v| {
            f.text(v);
        })
    }

    fn maybe_number(&mut self, value: Option<u64>) -> &mut Self {
        self.option(value, |f, v| {
            f.number(v);
        })
    }

    fn maybe_signed(&mut self, value: Option<i64>) -> &mut Self {
        self.option(value, |f, v| {
            f.signed(v);
        })
    }

    fn index(&mut self, value: Option<usize>) -> &mut Self {
        self.maybe_number(value.map(|v| v as u64))
    }

    fn list<T>(&mut self, values: &[T], write: impl Fn(&mut Self, &T)) -> &mut Self {
        self.number(values.len() as u64);
        values.iter().for_each(|v| write(self, v));
        self
    }

    fn texts(&mut self, values: &[String]) -> &mut Self {
        self.list(values, |f, v| {
            f.text(v);
        })
    }
}

fn write_op(f: &mut Fields, op: &Op) {
    match op {
        Op::Source(source) => write_source(f.text("source"), source),
        Op::Exec(exec) => write_exec(f.text("exec"), exec),
        Op::File(file) => {
            f.text("file").list(&file.actions, write_action);
        }
        Op::Merge(_) => {
            f.text("merge");
        }
        Op::Diff(diff) => {
            f.text("diff").index(diff.lower).index(diff.upper);
        }
        Op::Build(build) => write_build(f.text("build"), build),
    }
}

fn write_source(f: &mut Fields, source: &SourceOp) {
    match source {
        SourceOp::Local(s) => {
            f.text("local").text(&s.name).texts(&s.include).texts(&s.exclude).texts(&s.follow_paths);
        }
        SourceOp::Image(s) => {
            f.text("image").text(&s.reference.to_string());
        }
        SourceOp::OciLayout(s) => {
            f.text("oci-layout").text(&s.path).maybe(s.tag.as_deref());
            f.maybe(s.digest.map(|d| d.to_string()).as_deref());
        }
        SourceOp::Http(s) => {
            f.text("http").text(&s.url).maybe(s.checksum.map(|d| d.to_string()).as_deref());
            f.maybe(s.filename.as_deref());
            f.maybe_number(s.mode.map(u64::from)).maybe_number(s.uid.map(u64::from)).maybe_number(s.gid.map(u64::from));
        }
        SourceOp::Git(s) => {
            f.text("git").text(&s.remote).maybe(s.reference.as_deref()).maybe(s.subdir.as_deref());
            f.maybe(s.checksum.as_deref()).flag(s.keep_git_dir).flag(s.skip_submodules);
        }
        SourceOp::Deb(spec) => {
            f.text("deb").text(spec);
        }
    }
}

fn write_exec(f: &mut Fields, exec: &ExecOp) {
    f.texts(&exec.args).texts(&exec.env).text(&exec.cwd).text(&exec.user).maybe(exec.hostname.as_deref());
    f.list(&exec.mounts, write_mount);
    f.list(&exec.secret_env, |f, s| {
        f.text(&s.id).text(&s.name).flag(s.optional);
    });
    f.text(match exec.network {
        NetworkMode::Default => "default",
        NetworkMode::Host => "host",
        NetworkMode::None => "none",
    });
    f.text(match exec.security {
        SecurityMode::Sandbox => "sandbox",
        SecurityMode::Insecure => "insecure",
    });
    f.list(&exec.extra_hosts, |f, h| {
        f.text(&h.host).text(&h.ip);
    });
    f.list(&exec.limits.ulimits, |f, u| {
        f.text(&u.name).signed(u.soft).signed(u.hard);
    });
    f.maybe_number(exec.limits.shm_size);
    f.list(&exec.devices, |f, d| {
        f.text(&d.name).flag(d.optional);
    });
    f.list(&exec.valid_exit_codes, |f, c| {
        f.signed(i64::from(*c));
    });
}

fn write_mount(f: &mut Fields, mount: &Mount) {
    f.text(&mount.dest).index(mount.input).text(&mount.selector).flag(mount.readonly);
    f.maybe_number(mount.output.map(u64::from));
    f.text(match mount.content_cache {
        ContentCache::Default => "default",
        ContentCache::On => "on",
        ContentCache::Off => "off",
    });
    match &mount.kind {
        MountKind::Bind => {
            f.text("bind");
        }
        MountKind::Cache { id, sharing, mode, uid, gid } => {
            f.text("cache").text(id).text(match sharing {
                CacheSharing::Shared => "shared",
                CacheSharing::Private => "private",
                CacheSharing::Locked => "locked",
            });
            f.maybe_number(mode.map(u64::from)).maybe_number(uid.map(u64::from)).maybe_number(gid.map(u64::from));
        }
        MountKind::Tmpfs { size } => {
            f.text("tmpfs").number(*size);
        }
        MountKind::Secret { id, uid, gid, mode, optional } => {
            f.text("secret").text(id).number((*uid).into()).number((*gid).into()).number((*mode).into());
            f.flag(*optional);
        }
        MountKind::Ssh { id, uid, gid, mode, optional } => {
            f.text("ssh").text(id).number((*uid).into()).number((*gid).into()).number((*mode).into());
            f.flag(*optional);
        }
    }
}

fn write_action(f: &mut Fields, action: &FileAction) {
    write_input(f, action.input);
    f.maybe_number(action.output.map(u64::from));
    match &action.kind {
        FileActionKind::Copy(a) => write_copy(f.text("copy"), a),
        FileActionKind::Mkfile(a) => {
            f.text("mkfile").text(&a.path).number(a.mode.into()).bytes(&a.data);
            f.option(a.owner.as_ref(), write_owner).maybe_signed(a.timestamp);
        }
        FileActionKind::Mkdir(a) => {
            f.text("mkdir").text(&a.path).number(a.mode.into()).flag(a.make_parents);
            f.option(a.owner.as_ref(), write_owner).maybe_signed(a.timestamp);
        }
        FileActionKind::Rm(a) => {
            f.text("rm").text(&a.path).flag(a.allow_not_found).flag(a.allow_wildcard);
        }
        FileActionKind::Symlink(a) => {
            f.text("symlink").text(&a.target).text(&a.path);
            f.option(a.owner.as_ref(), write_owner).maybe_signed(a.timestamp);
        }
    }
}

fn write_copy(f: &mut Fields, copy: &CopyAction) {
    write_input(f, copy.from);
    f.text(&copy.src).text(&copy.dest).option(copy.owner.as_ref(), write_owner);
    f.option(copy.mode.as_ref(), |f, mode| {
        match mode {
            Mode::Octal(n) => f.text("octal").number((*n).into()),
            Mode::Symbolic(s) => f.text("symbolic").text(s),
        };
    });
    f.flag(copy.follow_symlink).flag(copy.dir_contents_only).flag(copy.attempt_unpack).flag(copy.create_dest_path);
    f.flag(copy.allow_wildcard).flag(copy.allow_empty_wildcard).flag(copy.parents).flag(copy.always_replace);
    f.texts(&copy.include_patterns).texts(&copy.exclude_patterns).texts(&copy.required_paths);
    f.maybe_signed(copy.timestamp);
}

fn write_input(f: &mut Fields, input: ActionInput) {
    match input {
        ActionInput::Scratch => f.text("scratch"),
        ActionInput::Input(n) => f.text("input").number(n as u64),
        ActionInput::Action(n) => f.text("action").number(n as u64),
    };
}

fn write_owner(f: &mut Fields, owner: &Owner) {
    for who in [&owner.user, &owner.group] {
        f.option(who.as_ref(), |f, who| match who {
            UserRef::Id(id) => {
                f.text("id").number((*id).into());
            }
            UserRef::Name { name, input } => write_input(f.text("name").text(name), *input),
        });
    }
}

fn write_build(f: &mut Fields, build: &BuildOp) {
    f.index(build.builder).number(build.inputs.len() as u64);
    for (name, input) in &build.inputs {
        f.text(name).number(*input as u64);
    }
    f.option(build.definition.as_ref(), |f, d| {
        f.bytes(d);
    });
    f.number(build.attrs.len() as u64);
    for (name, value) in &build.attrs {
        f.text(name).text(value);
    }
}
