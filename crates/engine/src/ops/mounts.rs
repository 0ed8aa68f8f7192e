//! The mounts of a RUN step, except its root.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use kiln_executor::MountSource;
use kiln_graph::{CacheSharing, ExecOp, Mount, MountKind};
use kiln_rootfs::{FileKind, Root};
use kiln_store::{CacheMount, LayerDraft, MountOpts, Sharing};

use crate::build::Job;
use crate::error::{Error, Result};
use crate::steps::Step;
use crate::value::Value;

/// Mounts that are ready, and what must live as long as they are used.
#[derive(Default)]
pub struct Mounts {
    /// For the executor.
    pub list: Vec<kiln_executor::Mount>,
    /// Variables that come with them: secrets, `SSH_AUTH_SOCK`.
    pub env: Vec<OsString>,
    /// Held until the process ended.
    _caches: Vec<CacheMount>,
    /// Writes that are thrown away.
    _scratch: Vec<LayerDraft>,
    _agents: Vec<crate::ssh::AgentSocket>,
    /// Detached mounts: with its last descriptor such a mount is gone, whatever was opened in it.
    _views: Vec<Root>,
}

impl Mounts {
    /// Prepares everything that the op asks for.
    pub fn prepare(job: &Job, op: &ExecOp, inputs: &[Value], step: &Step) -> Result<Self> {
        let mut mounts = Self::default();
        for mount in op.mounts.iter().filter(|m| m.dest != "/") {
            let input = mount.input.and_then(|i| inputs.get(i));
            match &mount.kind {
                MountKind::Bind => mounts.bind(job, mount, input)?,
                MountKind::Tmpfs { size } => {
                    let size = (*size > 0).then_some(*size);
                    mounts.add(mount, MountSource::Tmpfs { size, mode: 0o1777 }, false);
                }
                MountKind::Cache { .. } => mounts.cache(job, mount, input, step)?,
                MountKind::Secret { .. } => mounts.secret(job, mount)?,
                MountKind::Ssh { .. } => mounts.ssh(job, mount)?,
            }
        }
        for secret in &op.secret_env {
            match job.secrets.get(&secret.id)? {
                Some(value) => {
                    let mut pair = OsString::from(format!("{}=", secret.name));
                    pair.push(OsString::from_vec(value));
                    mounts.env.push(pair);
                }
                None if secret.optional => {}
                None => return Err(missing_secret(&secret.id)),
            }
        }
        Ok(mounts)
    }

    /// With a single id nobody can become the user that apt downloads as, and apt looks whether it did.
    pub fn for_single_id(&mut self, root: &Root) -> Result<()> {
        let directory = Path::new("/etc/apt/apt.conf.d");
        if root.try_stat(directory, false)?.is_none_or(|s| s.kind != FileKind::Dir) {
            return Ok(());
        }
        let memory = Root::from_fd(memory_file_system()?);
        memory.write_file(Path::new("/apt.conf"), b"APT::Sandbox::User \"root\";\n", 0o644, None)?;
        let fd = memory.open_path(Path::new("/apt.conf"), false)?;
        let target = directory.join("99kiln-single-id");
        self.list.push(kiln_executor::Mount { source: MountSource::Fd(fd), target, readonly: true });
        self._views.push(memory);
        Ok(())
    }

    fn add(&mut self, mount: &Mount, source: MountSource, readonly: bool) {
        let target = PathBuf::from(&mount.dest);
        self.list.push(kiln_executor::Mount { source, target, readonly: readonly || mount.readonly });
    }

    /// CVE-2025-4953: what is written to a bind mount never reaches the context or the stage that it shows.
    fn bind(&mut self, job: &Job, mount: &Mount, input: Option<&Value>) -> Result<()> {
        let view = match input {
            Some(value) => job.readable(value)?,
            None => job.engine.views.empty()?,
        };
        if mount.readonly {
            let fd = view.open_path(Path::new(selector(mount)), true)?;
            self._views.push(view);
            self.add(mount, MountSource::Fd(fd), true);
            return Ok(());
        }
        let draft = job.engine.store.layers().draft()?;
        let value = input.map(Value::snapshot).unwrap_or_default();
        let writable = match input {
            Some(Value::Context(name)) => job.writable_context(name, draft.fs(), draft.work())?,
            _ => job.engine.views.writable(&value, draft.fs(), draft.work())?,
        };
        let fd = writable.open_path(Path::new(selector(mount)), true)?;
        self._scratch.push(draft);
        self._views.push(writable);
        self.add(mount, MountSource::Fd(fd), false);
        Ok(())
    }

    fn cache(&mut self, job: &Job, mount: &Mount, input: Option<&Value>, step: &Step) -> Result<()> {
        let MountKind::Cache { id, sharing, mode, uid, gid } = &mount.kind else { return Ok(()) };
        let options = MountOpts {
            sharing: match sharing {
                CacheSharing::Shared => Sharing::Shared,
                CacheSharing::Private => Sharing::Private,
                CacheSharing::Locked => Sharing::Locked,
            },
            mode: mode.unwrap_or(0o755),
            uid: uid.unwrap_or(0),
            gid: gid.unwrap_or(0),
        };
        let from = input.map(|value| job.readable(value)).transpose()?;
        let mut fill = |dir: &Path| -> std::io::Result<()> {
            let to = Root::open(dir).map_err(std::io::Error::other)?.with_ownership(job.engine.ownership);
            if job.restore_mount(id, &to, step) {
                return Ok(());
            }
            let Some(from) = &from else { return Ok(()) };
            job.copy_tree(from, Path::new(selector(mount)), &to).map_err(std::io::Error::other)
        };
        let mut on_wait = || step.progress(&format!("waiting for the cache mount {id}"), 0, None, false);
        let cache = job.engine.store.cache_mounts().open_with(id, &options, &mut fill, &mut on_wait)?;
        let root = Root::open(cache.path())?.with_ownership(job.engine.ownership);
        let sub = if input.is_none() { selector(mount) } else { "/" };
        if sub != "/" && !root.exists(Path::new(sub))? {
            root.create_dir_all(Path::new(sub), 0o755, None)?;
        }
        // CVE-2024-23651: opened once, inside the cache's directory; what is mounted is what was opened.
        let fd = root.open_path(Path::new(sub), true)?;
        self._caches.push(cache);
        self.add(mount, MountSource::Fd(fd), false);
        Ok(())
    }

    /// The value is in a memory file system that nobody else can see, and that is gone with its last descriptor.
    fn secret(&mut self, job: &Job, mount: &Mount) -> Result<()> {
        let MountKind::Secret { id, uid, gid, mode, optional } = &mount.kind else { return Ok(()) };
        let Some(value) = job.secrets.get(id)? else {
            return if *optional { Ok(()) } else { Err(missing_secret(id)) };
        };
        let memory = Root::from_fd(memory_file_system()?);
        let owner = kiln_rootfs::Owner { uid: *uid, gid: *gid };
        memory.write_file(Path::new("/secret"), &value, *mode, Some(owner))?;
        let fd = memory.open_path(Path::new("/secret"), false)?;
        self._views.push(memory);
        self.add(mount, MountSource::Fd(fd), true);
        Ok(())
    }

    fn ssh(&mut self, job: &Job, mount: &Mount) -> Result<()> {
        let MountKind::Ssh { id, uid, gid, mode, optional } = &mount.kind else { return Ok(()) };
        let Some(agent) = job.ssh_agent(id, (*uid, *gid, *mode))? else {
            return match optional {
                true => Ok(()),
                false => Err(Error::request_with_hint(
                    format!("the step needs the ssh agent {id:?}, which was not given"),
                    format!("add --ssh {id}"),
                )),
            };
        };
        let dir = Root::open(agent.directory())?;
        self.add(mount, MountSource::Fd(dir.open_path(Path::new("/agent.sock"), false)?), false);
        if !self.env.iter().any(|e| e.to_string_lossy().starts_with("SSH_AUTH_SOCK=")) {
            self.env.push(format!("SSH_AUTH_SOCK={}", mount.dest).into());
        }
        self._agents.push(agent);
        Ok(())
    }
}

fn selector(mount: &Mount) -> &str {
    if mount.selector.is_empty() { "/" } else { &mount.selector }
}

fn missing_secret(id: &str) -> Error {
    Error::request_with_hint(
        format!("the step needs the secret {id:?}, which was not given"),
        format!("add --secret id={id},src=FILE or --secret id={id},env=VARIABLE"),
    )
}

/// A tmpfs that is mounted nowhere.
pub fn memory_file_system() -> Result<OwnedFd> {
    use rustix::mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount,
        fsopen,
    };
    let made = (|| {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, "mode", "0700")?;
        // Secrets do not reach the disk by way of swap, either. Linux 6.4 and later know this, for root.
        let _ = fsconfig_set_flag(&context, "noswap");
        fsconfig_create(&context)?;
        let flags = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)
    })();
    made.map_err(|e| Error::io("mount", "a memory file system", e.into()))
}
