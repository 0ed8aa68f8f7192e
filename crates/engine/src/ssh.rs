//! ssh agents for steps: a socket that leads to the user's agent, or to one of our own with keys from files.
//!
//! The step sees a socket of ours, with the owner and mode that it asked for, not the user's. It can list keys and sign with
//! them, nothing else, and a key never leaves the agent.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kiln_store::{Scratch, Store};

use crate::error::{Error, Result};
use crate::request::SshSource;

/// A socket for one step; gone when dropped.
pub struct AgentSocket {
    directory: Scratch,
    /// The same, open: an address has at most 107 bytes, and a store may be anywhere.
    open: File,
    ended: Arc<AtomicBool>,
}

impl AgentSocket {
    /// Opens a socket that leads to `source`, for us or for another owner.
    pub fn open(store: &Store, source: &SshSource, owner: Option<(u32, u32, u32)>) -> Result<Self> {
        let source = source.clone();
        if let SshSource::Socket(path) = &source {
            UnixStream::connect(path).map_err(|e| Error::io("connect to the ssh agent", path, e))?;
        }
        let directory = store.scratch()?;
        let open = File::open(directory.path()).map_err(|e| Error::io("open", directory.path(), e))?;
        let path = address(&open);
        let listener = UnixListener::bind(&path).map_err(|e| Error::io("create the socket", &path, e))?;
        let (uid, gid, mode) = owner.map_or((None, None, 0o600), |(uid, gid, mode)| (Some(uid), Some(gid), mode));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))
            .map_err(|e| Error::io("chmod", &path, e))?;
        std::os::unix::fs::chown(&path, uid, gid).map_err(|e| Error::io("chown", &path, e))?;
        let ended = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&ended);
        std::thread::Builder::new()
            .name("ssh-agent".into())
            .spawn(move || serve(&listener, &source, &stop))
            .map_err(|e| Error::io("start a thread for", "the ssh agent", e))?;
        Ok(Self { directory, open, ended })
    }

    /// The directory that holds `agent.sock`.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The socket's address, for this process and those that it starts.
    pub fn path(&self) -> PathBuf {
        address(&self.open)
    }
}

impl Drop for AgentSocket {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Wakes the thread that waits for a connection.
        let _ = UnixStream::connect(self.path());
    }
}

fn address(directory: &File) -> PathBuf {
    PathBuf::from(format!("/proc/{}/fd/{}/agent.sock", std::process::id(), directory.as_raw_fd()))
}

fn serve(listener: &UnixListener, source: &SshSource, stop: &AtomicBool) {
    for client in listener.incoming() {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let Ok(client) = client else { continue };
        let source = source.clone();
        let _ = std::thread::Builder::new().name("ssh-agent".into()).spawn(move || answer(client, &source));
    }
}

/// Serves one client. What goes wrong ends its connection, which it reports in its own words.
fn answer(client: UnixStream, source: &SshSource) {
    let Ok(mut from) = client.try_clone() else { return };
    let mut to = client;
    let _ = match source {
        SshSource::Keys(agent) => kiln_sshagent::serve(agent, &mut from, &mut to),
        SshSource::Socket(path) => {
            UnixStream::connect(path).and_then(|mut agent| kiln_sshagent::forward(&mut from, &mut to, &mut agent))
        }
    };
}
