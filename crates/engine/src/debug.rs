//! A shell in a root that may have none.
//!
//! The tools are a static busybox of the user's: it is mounted at [`TOOLS`] from a memory file system for the time of the
//! shell, so the root is not changed, and its applets come last in `PATH`, so what the image has is used first.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_executor::{Mount, MountSource, Terminal};
use kiln_rootfs::{FileKind, Root};

use crate::error::{Error, Result};
use crate::ops::memory_file_system;
use crate::run::Attach;

/// Where the tools are in the container.
pub const TOOLS: &str = "/.kiln-tools";

/// Shells, in the order in which a person wants them.
const SHELLS: [&str; 4] = ["/bin/bash", "/usr/bin/bash", "/bin/sh", "/usr/bin/sh"];

/// What a build does when a step fails: opens a shell where it failed.
#[derive(Clone)]
pub struct OnFailure {
    /// A static busybox.
    pub tools: Option<PathBuf>,
    /// Shows it to the user.
    pub show: Arc<dyn ShowShell>,
}

/// Connects a shell with the user.
pub trait ShowShell: Send + Sync {
    /// Calls `run` with the size of the user's terminal and what the shell is to be attached to. `step` is what failed.
    fn show(&self, step: &str, run: &mut dyn FnMut(Terminal, &dyn Attach) -> Result<()>) -> Result<()>;
}

/// How a shell is started.
pub struct Shell {
    /// Program and arguments.
    pub args: Vec<OsString>,
    /// The tools.
    pub mounts: Vec<Mount>,
    /// Held until the shell ended: a detached mount is gone with its last descriptor.
    _memory: Option<Root>,
}

impl Shell {
    /// A shell for a root, or `command` instead; `tools` is a static busybox.
    pub fn new(root: &Root, tools: Option<&Path>, command: &[String]) -> Result<Self> {
        let mut own = None;
        for shell in SHELLS {
            let stat = root.try_stat(Path::new(shell), true)?;
            if own.is_none() && stat.is_some_and(|s| s.kind == FileKind::File) {
                own = Some(shell);
            }
        }
        let Some(tools) = tools else {
            let shell = own.ok_or_else(|| {
                Error::request_with_hint(
                    "the image has no shell, and no tools to bring one were found",
                    "install the package busybox-static, or name a static busybox with --tools",
                )
            })?;
            let args = if command.is_empty() { vec![shell.into()] } else { command.iter().map(Into::into).collect() };
            return Ok(Self { args, mounts: Vec::new(), _memory: None });
        };
        let memory = memory(tools)?;
        let fd = memory.open_path(Path::new("/"), true)?;
        let mount = Mount { source: MountSource::Fd(fd), target: PathBuf::from(TOOLS), readonly: false };
        let busybox = format!("{TOOLS}/busybox");
        let shell = own.map_or_else(|| format!("{busybox} sh"), str::to_owned);
        let run = if command.is_empty() { format!("exec {shell}") } else { "exec \"$@\"".to_owned() };
        let script = format!("{busybox} --install -s {TOOLS}; PATH=$PATH:{TOOLS}; export PATH; {run}");
        let mut args: Vec<OsString> = [busybox.as_str(), "sh", "-c", &script, "sh"].map(OsString::from).to_vec();
        args.extend(command.iter().map(OsString::from));
        Ok(Self { args, mounts: vec![mount], _memory: Some(memory) })
    }
}

/// A memory file system with the tools. Every user of the container may add the applets' links.
fn memory(tools: &Path) -> Result<Root> {
    let busybox = std::fs::read(tools).map_err(|e| Error::io("read", tools, e))?;
    let memory = Root::from_fd(memory_file_system()?);
    memory.write_file(Path::new("/busybox"), &busybox, 0o755, None)?;
    let open = rustix::fs::Mode::from_raw_mode(0o1777);
    rustix::fs::chmodat(&memory, ".", open, rustix::fs::AtFlags::empty())
        .map_err(|e| Error::io("open up", TOOLS, e.into()))?;
    Ok(memory)
}
