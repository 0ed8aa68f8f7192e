//! Where credentials come from: docker's `config.json`, podman's `auth.json`, credential helpers, values given.
//!
//! Invariants:
//! - files are read when a registry asks for a log-in, not before; a helper runs once per process and server;
//! - a source that can't be used is an event and otherwise absent: an image that needs no log-in still comes;
//! - a credential is known together with the place it came from, so that a message can name it.

mod file;
mod helper;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

pub(crate) use file::AuthFile;

use crate::error::Error;
use crate::event::Event;
use crate::secret::Credential;

/// The key of Docker Hub in files and helpers.
pub const HUB_KEY: &str = "https://index.docker.io/v1/";

/// (helper, server) and what it answered.
type HelperAnswers = BTreeMap<(String, String), Option<Credential>>;

/// Looks up and stores credentials. Clones share what helpers answered.
#[derive(Debug, Clone, Default)]
pub struct Keychain {
    /// The file that `login` writes: docker's `config.json`.
    primary: Option<PathBuf>,
    /// Files that are read besides, in order.
    others: Vec<PathBuf>,
    /// Credentials given by the caller: (registry, credential, origin).
    given: Vec<(String, Credential, String)>,
    /// Directories searched for `docker-credential-*` before `PATH`.
    helper_dirs: Vec<PathBuf>,
    answers: Arc<Mutex<HelperAnswers>>,
}

/// A credential and where it came from.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub credential: Credential,
    pub origin: String,
}

/// Where [`Keychain::store`] put a credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredIn {
    /// A file, where it is only base64-encoded.
    File(PathBuf),
    /// A helper, by its short name.
    Helper(String),
}

impl Keychain {
    /// Nothing but what is added.
    pub fn empty() -> Self {
        Self::default()
    }

    /// The files as docker and podman find them: `docker_config` is the directory `DOCKER_CONFIG` or `~/.docker`;
    /// `auth_files` are podman's, the most important first.
    pub fn new(docker_config: Option<&Path>, auth_files: Vec<PathBuf>) -> Self {
        let primary = docker_config.map(|dir| dir.join("config.json"));
        Self { primary, others: auth_files, ..Self::default() }
    }

    /// podman's usual files: `REGISTRY_AUTH_FILE`, `$XDG_RUNTIME_DIR/containers/auth.json` (in `/run/containers/UID`
    /// where that is unset), `~/.config/containers/auth.json`.
    pub fn podman_files(auth_file: Option<&Path>, runtime_dir: Option<&Path>, home: Option<&Path>) -> Vec<PathBuf> {
        let mut files: Vec<_> = auth_file.map(Path::to_owned).into_iter().collect();
        files.extend(runtime_dir.map(|d| d.join("containers/auth.json")));
        files.extend(home.map(|d| d.join(".config/containers/auth.json")));
        files
    }

    /// Adds a credential that wins over all files; `origin` is what messages call it.
    pub fn add(&mut self, registry: &str, credential: Credential, origin: &str) {
        self.given.push((normalise_key(registry), credential, origin.to_owned()));
    }

    /// Searches these directories for helpers before `PATH`.
    pub fn set_helper_dirs(&mut self, dirs: Vec<PathBuf>) {
        self.helper_dirs = dirs;
    }

    /// The first credential for a repository whose origin is not in `rejected`.
    pub(crate) fn find(
        &self,
        registry: &str,
        repository: &str,
        rejected: &BTreeSet<String>,
        events: &mut dyn FnMut(Event),
    ) -> Option<Found> {
        let keys = lookup_keys(registry, repository);
        let usable = |origin: &String| !rejected.contains(origin);
        for key in &keys {
            let given = self.given.iter().find(|(r, _, origin)| r == key && usable(origin));
            if let Some((_, credential, origin)) = given {
                return Some(Found { credential: credential.clone(), origin: origin.clone() });
            }
        }
        for path in self.primary.iter().chain(&self.others) {
            let file = match AuthFile::load(path) {
                Ok(Some(file)) => file,
                Ok(None) => continue,
                Err(e) => {
                    events(Event::CredentialSource { reason: e.to_string() });
                    continue;
                }
            };
            if let Some(found) = self.find_in(&file, path, &keys, events).into_iter().find(|f| usable(&f.origin)) {
                return Some(found);
            }
        }
        None
    }

    /// A file's helper, its entries, its store: docker's order.
    fn find_in(&self, file: &AuthFile, path: &Path, keys: &[String], events: &mut dyn FnMut(Event)) -> Vec<Found> {
        let mut found = Vec::new();
        let server = |key: &str| if key == "docker.io" { HUB_KEY.to_owned() } else { key.to_owned() };
        for (key, helper) in file.helpers_for(keys) {
            let credential = self.ask(helper, &server(key), events);
            let origin = format!("docker-credential-{helper} (named in {})", path.display());
            found.extend(credential.map(|credential| Found { credential, origin }));
        }
        for key in keys {
            let origin = path.display().to_string();
            found.extend(file.entry(key).map(|credential| Found { credential, origin }));
        }
        found
    }

    fn ask(&self, helper: &str, server: &str, events: &mut dyn FnMut(Event)) -> Option<Credential> {
        let key = (helper.to_owned(), server.to_owned());
        // held while the helper runs: parallel transfers ask once
        let mut answers = self.answers.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(answer) = answers.get(&key) {
            return answer.clone();
        }
        let answer = helper::get(&self.helper_dirs, helper, server).unwrap_or_else(|e| {
            events(Event::CredentialSource { reason: e.to_string() });
            None
        });
        answers.insert(key, answer.clone());
        answer
    }

    fn primary(&self) -> Result<&Path, Error> {
        self.primary.as_deref().ok_or_else(|| Error::Config {
            path: PathBuf::from("config.json"),
            reason: "there is no place for credentials: neither DOCKER_CONFIG nor HOME is set".into(),
        })
    }

    /// Keeps a credential: in the helper that the file names for this registry, or in the file.
    pub fn store(&self, registry: &str, credential: &Credential) -> Result<StoredIn, Error> {
        let path = self.primary()?;
        let file = AuthFile::load(path)?.unwrap_or_default();
        let key = normalise_key(registry);
        let server = if key == "docker.io" { HUB_KEY } else { &key };
        if let Some(helper) = file.helper_for_storing(&key).map(str::to_owned) {
            helper::store(&self.helper_dirs, &helper, server, credential)?;
            self.forget(&helper, server);
            return Ok(StoredIn::Helper(helper));
        }
        AuthFile::update(path, |file| {
            file.set_entry(server, credential);
            true
        })?;
        Ok(StoredIn::File(path.to_owned()))
    }

    /// Removes a credential from the file and from its helper. `false` if there was none.
    pub fn erase(&self, registry: &str) -> Result<bool, Error> {
        let path = self.primary()?;
        let Some(file) = AuthFile::load(path)? else { return Ok(false) };
        let key = normalise_key(registry);
        let server = if key == "docker.io" { HUB_KEY } else { &key };
        let mut erased = false;
        if let Some(helper) = file.helper_for_storing(&key) {
            erased |= helper::get(&self.helper_dirs, helper, server)?.is_some();
            helper::erase(&self.helper_dirs, helper, server)?;
            self.forget(helper, server);
        }
        erased |= AuthFile::update(path, |file| file.remove_entry(&key))?;
        Ok(erased)
    }

    fn forget(&self, helper: &str, server: &str) {
        let mut answers = self.answers.lock().unwrap_or_else(|e| e.into_inner());
        answers.remove(&(helper.to_owned(), server.to_owned()));
    }
}

/// A key of a file or a registry as the user writes it, as `host[:port][/namespace]`, the hub as `docker.io`.
pub(crate) fn normalise_key(key: &str) -> String {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest).trim_end_matches('/');
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let path = match path {
        "v1" | "v2" | "" => "",
        other => other,
    };
    match (host, path) {
        ("index.docker.io" | "registry-1.docker.io" | "docker.io", "") => "docker.io".to_owned(),
        ("index.docker.io" | "registry-1.docker.io", path) => format!("docker.io/{path}"),
        (host, "") => host.to_owned(),
        (host, path) => format!("{host}/{path}"),
    }
}

/// `ghcr.io/org/app`, `ghcr.io/org`, `ghcr.io`: podman's namespaced keys, the most specific first.
fn lookup_keys(registry: &str, repository: &str) -> Vec<String> {
    let mut keys = Vec::new();
    let mut path = repository;
    while !path.is_empty() {
        keys.push(format!("{registry}/{path}"));
        path = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    }
    keys.push(registry.to_owned());
    keys
}

#[cfg(test)]
mod tests;
