//! What kiln takes from its surroundings: the only place that reads the environment for all commands.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_engine::budget::Budget;
use kiln_engine::cache::Credentials;
use kiln_engine::container::{Container, Status};
use kiln_engine::executor::{CancelToken, OnCancel, rootless};
use kiln_engine::registry::{self, Client, ClientOptions, ConfigPaths, ConfigSource, Keychain, ProxyConfig};
use kiln_engine::rootfs::Ownership;
use kiln_engine::store::Store;
use kiln_engine::{Engine, EngineOptions};

use crate::commands::budget;
use crate::error::CliError;
use crate::notices::Notices;

/// Where the store is, and who we are.
pub struct Environment {
    root: PathBuf,
    home: PathBuf,
    notices: Arc<Notices>,
}

impl Environment {
    /// `--root`, else `KILN_ROOT`, else the place for the user's kind.
    pub fn new(root: Option<PathBuf>) -> Self {
        let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from);
        let root = root.unwrap_or_else(|| default_root(&home));
        let root = std::path::absolute(&root).unwrap_or(root);
        Self { root, home, notices: Arc::default() }
    }

    /// The store's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The engine, for commands that read and write layers: who is not root enters a user namespace first.
    pub fn engine(&self) -> Result<Arc<Engine>, CliError> {
        self.engine_as(rootless::enter().map_err(|e| CliError::failed(e.to_string()))?)
    }

    /// The engine in the user namespace of a container that runs, to get at that; of one that does not, any will do.
    pub fn engine_beside(&self, container: &Container) -> Result<Arc<Engine>, CliError> {
        match &container.state.monitor {
            Some(monitor) if container.status() == Status::Running => {
                self.engine_as(rootless::join(monitor.pid).map_err(|e| CliError::failed(e.to_string()))?)
            }
            _ => self.engine(),
        }
    }

    fn engine_as(&self, identity: rootless::Identity) -> Result<Arc<Engine>, CliError> {
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

    /// The store if there is one already.
    pub fn existing_store(&self) -> Option<Store> {
        self.root.join("content").exists().then(|| self.store().ok())?
    }

    /// How much of the disk builds leave.
    pub fn budget(&self) -> Result<Budget, CliError> {
        budget::for_builds(config_paths(&self.home).kiln.as_deref(), &self.root)
    }

    /// The registry client with the user's configuration. Nothing of that is read before a registry is contacted.
    pub fn client(&self) -> Client {
        let (home, notices) = (self.home.clone(), Arc::clone(&self.notices));
        let keychain = Keychain::new(Some(&self.docker_config()), self.podman_files());
        Client::new(ClientOptions {
            config: ConfigSource::new(move || config_paths(&home)),
            keychain,
            proxies: proxies(),
            events: registry::EventSink::new(move |event| notices.take(&event)),
            ..ClientOptions::default()
        })
    }

    /// Where the client's warnings go.
    pub fn notices(&self) -> &Notices {
        &self.notices
    }

    fn docker_config(&self) -> PathBuf {
        variable("DOCKER_CONFIG").map_or_else(|| self.home.join(".docker"), PathBuf::from)
    }

    /// podman's files, in its order.
    fn podman_files(&self) -> Vec<PathBuf> {
        let runtime = variable("XDG_RUNTIME_DIR").map(PathBuf::from);
        let auth_file = variable("REGISTRY_AUTH_FILE").map(PathBuf::from);
        let mut files = Keychain::podman_files(auth_file.as_deref(), runtime.as_deref(), Some(&self.home));
        if runtime.is_none() {
            let users = PathBuf::from(format!("/run/containers/{}/auth.json", outer_uid()));
            let before_home = files.len().saturating_sub(1);
            files.insert(before_home, users);
        }
        files
    }
}

/// A variable that is set to something.
fn variable(name: &str) -> Option<std::ffi::OsString> {
    std::env::var_os(name).filter(|v| !v.is_empty())
}

/// The user's id outside of our own user namespace.
fn outer_uid() -> u32 {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let mut fields = map.split_whitespace();
    match (fields.next(), fields.next().and_then(|o| o.parse().ok())) {
        (Some("0"), Some(outer)) => outer,
        _ => rustix::process::geteuid().as_raw(),
    }
}

/// kiln's own file is `KILN_CONFIG`, `~/.config/kiln/kiln.toml` or `/etc/kiln/kiln.toml`; docker's and podman's are where
/// those look for them.
fn config_paths(home: &Path) -> ConfigPaths {
    let user = variable("XDG_CONFIG_HOME").map_or_else(|| home.join(".config"), PathBuf::from).join("kiln");
    let system = PathBuf::from("/etc/kiln");
    let mut paths = ConfigPaths::standard(Some(home), Some(&user));
    paths.certs_dirs.insert(1, system.join("certs.d"));
    if !user.join("kiln.toml").exists() {
        paths.kiln = Some(system.join("kiln.toml"));
    }
    if let Some(own) = variable("KILN_CONFIG") {
        paths.kiln = Some(PathBuf::from(own));
    }
    if let Some(conf) = variable("CONTAINERS_REGISTRIES_CONF") {
        paths.registries_conf = vec![PathBuf::from(conf)];
    }
    paths
}

/// `HTTP_PROXY` and the like, in either case; the lower one wins, as it does for curl and Go.
fn proxies() -> ProxyConfig {
    let get = |name: &str| std::env::var(name.to_lowercase()).or_else(|_| std::env::var(name)).ok();
    let all = get("ALL_PROXY");
    let (http, https) = (get("HTTP_PROXY").or_else(|| all.clone()), get("HTTPS_PROXY").or(all));
    ProxyConfig::new(http.as_deref(), https.as_deref(), get("NO_PROXY").as_deref())
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

/// What is being computed, and a connection to a host that says nothing, can't be interrupted. After this time the process
/// ends all the same; the store is made for that.
const PATIENCE: std::time::Duration = std::time::Duration::from_millis(900);

/// Leaves all memory out of core dumps of this process and of the steps that it starts: a crash must not write the secrets in
/// there to the disk. Limits would not do, as the kernel ignores them where a program takes the dumps.
pub fn protect_memory() {
    // Without this file the kernel makes no core dumps at all.
    let _ = std::fs::write("/proc/self/coredump_filter", "0");
}

/// A token that Ctrl-C and SIGTERM cancel. The process ends soon after the first, and at once with the second.
pub fn cancel_on_signal() -> CancelToken {
    let token = CancelToken::new();
    let theirs = token.clone();
    let mut before = false;
    watch_signals(&[libc::SIGINT, libc::SIGTERM], move |_| {
        if std::mem::replace(&mut before, true) {
            std::process::exit(i32::from(crate::error::code::INTERRUPTED));
        }
        theirs.cancel();
        end_soon();
    });
    token
}

/// Ends the process after a moment, whatever it still does.
pub fn end_soon() {
    let _ = std::thread::Builder::new().spawn(|| {
        std::thread::sleep(PATIENCE);
        eprintln!("error: interrupted");
        std::process::exit(i32::from(crate::error::code::INTERRUPTED));
    });
}

/// Calls `then` for each of the signals, in a thread of its own. To be called before other threads are started: the signals
/// are blocked in all of them.
pub fn watch_signals(list: &[i32], mut then: impl FnMut(i32) + Send + 'static) {
    let set = signals(list);
    // SAFETY: `set` is a valid signal set and the old one is not asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
    let _ = std::thread::Builder::new().name("signals".into()).spawn(move || {
        let mut signal = 0;
        // SAFETY: both pointers are valid for the call.
        while unsafe { libc::sigwait(&set, &mut signal) } == 0 {
            then(signal);
        }
    });
}

/// Stops transfers on Ctrl-C. What is half done is gone on with at the next try.
pub fn stop_on_signal(transfers: registry::Cancel) -> OnCancel {
    cancel_on_signal().on_cancel(move || transfers.cancel())
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
