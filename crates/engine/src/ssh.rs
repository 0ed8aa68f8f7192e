//! ssh agents for steps: a socket that leads to the user's agent.
//!
//! The step sees a socket of ours, with the owner and mode that it asked for, not the user's; what it says is passed on
//! byte by byte, so a key never leaves the agent.

use std::io;
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
    ended: Arc<AtomicBool>,
}

impl AgentSocket {
    /// Opens a socket that leads to `source`.
    pub fn open(store: &Store, source: &SshSource, (uid, gid, mode): (u32, u32, u32)) -> Result<Self> {
        let target = match source {
            SshSource::Socket(path) => path.clone(),
            SshSource::Keys(_) => {
                return Err(Error::request_with_hint(
                    "--ssh with key files is not supported yet",
                    "load the key into an agent: ssh-add KEYFILE, then --ssh default",
                ));
            }
        };
        UnixStream::connect(&target).map_err(|e| Error::io("connect to the ssh agent", &target, e))?;
        let directory = store.scratch()?;
        let path = directory.path().join("agent.sock");
        let listener = UnixListener::bind(&path).map_err(|e| Error::io("create the socket", &path, e))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))
            .map_err(|e| Error::io("chmod", &path, e))?;
        std::os::unix::fs::chown(&path, Some(uid), Some(gid)).map_err(|e| Error::io("chown", &path, e))?;
        let ended = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&ended);
        std::thread::Builder::new()
            .name("ssh-agent".into())
            .spawn(move || serve(&listener, &target, &stop))
            .map_err(|e| Error::io("start a thread for", "the ssh agent", e))?;
        Ok(Self { directory, ended })
    }

    /// The directory that holds `agent.sock`.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    fn path(&self) -> PathBuf {
        self.directory().join("agent.sock")
    }
}

impl Drop for AgentSocket {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Wakes the thread that waits for a connection.
        let _ = UnixStream::connect(self.path());
    }
}

fn serve(listener: &UnixListener, target: &Path, stop: &AtomicBool) {
    for client in listener.incoming() {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let (Ok(client), Ok(agent)) = (client, UnixStream::connect(target)) else { continue };
        let _ = std::thread::Builder::new().name("ssh-agent".into()).spawn(move || relay(client, agent));
    }
}

fn relay(client: UnixStream, agent: UnixStream) {
    let (Ok(mut client_in), Ok(mut agent_in)) = (client.try_clone(), agent.try_clone()) else { return };
    let (mut client_out, mut agent_out) = (client, agent);
    let up = std::thread::spawn(move || {
        let _ = io::copy(&mut client_in, &mut agent_out);
        let _ = agent_out.shutdown(std::net::Shutdown::Write);
    });
    let _ = io::copy(&mut agent_in, &mut client_out);
    let _ = client_out.shutdown(std::net::Shutdown::Both);
    let _ = up.join();
}
