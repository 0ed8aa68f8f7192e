//! What kiln takes from its surroundings: the only place that reads the environment for all commands.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_engine::cache::Credentials;
use kiln_engine::executor::{CancelToken, rootless};
use kiln_engine::registry::{Client, ClientOptions, HostsConfig, Keychain, ProxyConfig};
use kiln_engine::rootfs::Ownership;
use kiln_engine::store::Store;
use kiln_engine::{Engine, EngineOptions};

use crate::error::CliError;

/// Where the store is, and who we are.
pub struct Environment {
    root: PathBuf,
    home: PathBuf,
}

impl Environment {
    /// `--root`, else `KILN_ROOT`, else the place for the user's kind.
    pub fn new(root: Option<PathBuf>) -> Self {
        let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from);
        let root = root.unwrap_or_else(|| default_root(&home));
        let root = std::path::absolute(&root).unwrap_or(root);
        Self { root, home }
    }

    /// The engine, for commands that read and write layers: who is not root enters a user namespace first.
    pub fn engine(&self) -> Result<Arc<Engine>, CliError> {
        let identity = rootless::enter().map_err(|e| CliError::failed(e.to_string()))?;
        let ownership = match identity {
            rootless::Identity::SingleId => Ownership::Recorded,
            rootless::Identity::Root | rootless::Identity::Subids => Ownership::Native,
        };
        let options = EngineOptions {
            root: self.root.clone(),
            ownership,
            registry: self.client(),
            apt_root: PathBuf::from("/"),
            known_hosts: Some(self.home.join(".ssh/known_hosts")).filter(|p| p.exists()),
            s3: s3_credentials(),
        };
        Ok(Engine::open(options)?)
    }

    /// The store alone, for commands that need nothing else. Nothing that is looked up is held against collection.
    pub fn store(&self) -> Result<Store, CliError> {
        rootless::enter().map_err(|e| CliError::failed(e.to_string()))?;
        Ok(Store::open(&self.root).map_err(kiln_engine::Error::from)?)
    }

    /// The registry client with the user's configuration.
    fn client(&self) -> Client {
        Client::new(ClientOptions {
            hosts: self.hosts(),
            keychain: self.keychain(),
            proxies: proxies(),
            user_agent: concat!("kiln/", env!("CARGO_PKG_VERSION")).to_owned(),
            ..ClientOptions::default()
        })
    }

    fn docker_config(&self) -> PathBuf {
        std::env::var_os("DOCKER_CONFIG").map_or_else(|| self.home.join(".docker"), PathBuf::from)
    }

    fn keychain(&self) -> Keychain {
        let _ = self.docker_config();
        Keychain::default()
    }

    fn hosts(&self) -> HostsConfig {
        HostsConfig::default()
    }
}

fn proxies() -> ProxyConfig {
    ProxyConfig::default()
}

/// The access key for buckets, from the variables that all of Amazon's tools read.
fn s3_credentials() -> Option<Credentials> {
    let variable = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    let (id, secret) = (variable("AWS_ACCESS_KEY_ID")?, variable("AWS_SECRET_ACCESS_KEY")?);
    Some(Credentials { id, secret, session: variable("AWS_SESSION_TOKEN") })
}

fn default_root(home: &Path) -> PathBuf {
    if let Some(root) = std::env::var_os("KILN_ROOT").filter(|r| !r.is_empty()) {
        return PathBuf::from(root);
    }
    if rustix::process::geteuid().is_root() && rootless::current().is_none() {
        return PathBuf::from("/var/lib/kiln");
    }
    let data = std::env::var_os("XDG_DATA_HOME").filter(|d| !d.is_empty());
    data.map_or_else(|| home.join(".local/share"), PathBuf::from).join("kiln")
}

/// A token that Ctrl-C and SIGTERM cancel. A second Ctrl-C ends the process at once.
pub fn cancel_on_signal() -> CancelToken {
    let token = CancelToken::new();
    let theirs = token.clone();
    // Signals are blocked before any thread starts, and one thread waits for them.
    let set = signals(&[libc::SIGINT, libc::SIGTERM]);
    // SAFETY: `set` is a valid signal set and the old one is not asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
    let _ = std::thread::Builder::new().name("signals".into()).spawn(move || {
        let mut before = false;
        loop {
            let mut signal = 0;
            // SAFETY: both pointers are valid for the call.
            if unsafe { libc::sigwait(&set, &mut signal) } != 0 {
                return;
            }
            if std::mem::replace(&mut before, true) {
                std::process::exit(i32::from(crate::error::code::INTERRUPTED));
            }
            theirs.cancel();
        }
    });
    token
}

fn signals(list: &[i32]) -> libc::sigset_t {
    // SAFETY: an all-zero sigset_t is a valid argument for sigemptyset, which initialises it.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is valid for both calls.
    unsafe {
        libc::sigemptyset(&mut set);
        for signal in list {
            libc::sigaddset(&mut set, *signal);
        }
    }
    set
}
