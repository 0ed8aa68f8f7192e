//! How a build proves who it is to git remotes, the same for the context, for `ADD` and for named contexts.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use kiln_graph::redact_url;
use kiln_secrets::{Origin, Secret};
use kiln_source::{GitAuth, GitFetcher, url_credentials};

use crate::engine::Engine;
use crate::error::Result;
use crate::request::{BuildRequest, SshSource};
use crate::secrets::Secrets;
use crate::ssh::AgentSocket;

/// A build's tokens and ssh agent for git.
pub struct GitAccess {
    engine: Arc<Engine>,
    secrets: Arc<Secrets>,
    ssh: Option<SshSource>,
    /// Opened with the first remote that needs it.
    agent: Mutex<Option<AgentSocket>>,
    /// Credentials of URLs that were used.
    used: Mutex<Vec<Secret>>,
}

impl GitAccess {
    /// What the request gives.
    pub fn new(engine: &Arc<Engine>, request: &BuildRequest) -> Self {
        Self {
            engine: Arc::clone(engine),
            secrets: Arc::new(Secrets::new(request.secrets.clone())),
            ssh: request.ssh.get("default").cloned(),
            agent: Mutex::default(),
            used: Mutex::default(),
        }
    }

    /// The values of `--secret`, read once for the whole build.
    pub fn secrets(&self) -> &Arc<Secrets> {
        &self.secrets
    }

    /// Fetches repositories.
    pub fn fetcher(&self) -> Result<GitFetcher> {
        Ok(GitFetcher::new(&self.engine.store.sources_dir("git")?))
    }

    /// `GIT_AUTH_TOKEN[.host[:port]]` and `GIT_AUTH_HEADER[.host[:port]]` as BuildKit has them, else what the URL says; and the ssh agent.
    pub fn auth(&self, remote: &str) -> Result<GitAuth> {
        let redacted = redact_url(remote);
        let host = redacted.split_once("://").map_or("", |(_, r)| r.split('/').next().unwrap_or(""));
        let secret = |name: &str| -> Result<Option<String>> {
            let without_port = host.split(':').next().unwrap_or(host);
            for id in [format!("{name}.{host}"), format!("{name}.{without_port}"), name.to_owned()] {
                if let Some(value) = self.secrets.get(&id)? {
                    return Ok(Some(String::from_utf8_lossy(&value).trim().to_owned()));
                }
            }
            Ok(None)
        };
        self.note(remote);
        let mut auth = match (secret("GIT_AUTH_HEADER")?, secret("GIT_AUTH_TOKEN")?) {
            (Some(header), _) => GitAuth { header: Some(header), ..GitAuth::default() },
            (None, Some(token)) => GitAuth::from_token(&token),
            (None, None) => GitAuth::from_url(remote),
        };
        if !remote.starts_with("http") {
            auth.ssh_socket = self.socket()?;
        }
        auth.known_hosts.clone_from(&self.engine.known_hosts);
        Ok(auth)
    }

    /// Remembers that a URL with credentials in it was used: they must not be in the result.
    pub fn note(&self, url: &str) {
        if let Some((user, password)) = url_credentials(url) {
            // A token is written in either place; a plain user name next to a password is none.
            let token = if password.is_empty() { user } else { password };
            let name = format!("the token of {}", redact_url(url));
            let secret = Secret::new(name, Origin::Token, token);
            let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
            if !used.contains(&secret) {
                used.push(secret);
            }
        }
    }

    /// Credentials of URLs that were used.
    pub fn used(&self) -> Vec<Secret> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn socket(&self) -> Result<Option<PathBuf>> {
        let keys = match &self.ssh {
            None => return Ok(None),
            Some(SshSource::Socket(path)) => return Ok(Some(path.clone())),
            Some(keys @ SshSource::Keys(_)) => keys,
        };
        let mut agent = self.agent.lock().unwrap_or_else(PoisonError::into_inner);
        if agent.is_none() {
            *agent = Some(AgentSocket::open(&self.engine.store, keys, None)?);
        }
        Ok(agent.as_ref().map(AgentSocket::path))
    }
}
