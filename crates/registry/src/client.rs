//! The client's entrance: options, and the operations that need no transfer.

use std::sync::Arc;

use ureq::http::Method;

use crate::auth::scope::Scopes;
use crate::error::Error;
use crate::event::EventSink;
use crate::hosts::{ConfigSource, HostsConfig};
use crate::http::Timeouts;
use crate::keychain::Keychain;
use crate::proxy::ProxyConfig;
use crate::retry::{Cancel, RetryPolicy};
use crate::secret::Secret;
use crate::session::{Call, Inner, Session};

/// Everything a client is made of. `Default` is a client without credentials, mirrors and proxies.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Host table; its rules win over those of `config`.
    pub hosts: HostsConfig,
    /// Files with more of the host table, read when a registry is first contacted.
    pub config: ConfigSource,
    /// Credentials.
    pub keychain: Keychain,
    /// Proxies.
    pub proxies: ProxyConfig,
    /// `User-Agent`.
    pub user_agent: String,
    /// Where events go.
    pub events: EventSink,
    /// Bounds for trying again.
    pub retry: RetryPolicy,
    /// Limits on waiting.
    pub timeouts: Timeouts,
    /// Ends waits and transfers early.
    pub cancel: Cancel,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            hosts: HostsConfig::default(),
            config: ConfigSource::default(),
            keychain: Keychain::empty(),
            proxies: ProxyConfig::default(),
            user_agent: concat!("kiln/", env!("CARGO_PKG_VERSION")).to_owned(),
            events: EventSink::default(),
            retry: RetryPolicy::default(),
            timeouts: Timeouts::default(),
            cancel: Cancel::default(),
        }
    }
}

/// A distribution client. Cheap to make and to clone; clones share connections, tokens and what is known of hosts.
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("options", &self.inner.options).finish()
    }
}

impl Client {
    /// Makes a client. Nothing is read and nothing connects before the first request.
    pub fn new(options: ClientOptions) -> Self {
        Self { inner: Arc::new(Inner::new(options)) }
    }

    /// The switch that ends this client's waits and transfers.
    pub fn canceller(&self) -> Cancel {
        self.inner.options.cancel.clone()
    }

    /// The proxy that requests to an address go through, for transfers that are not this client's.
    pub fn proxy_for(&self, url: &str) -> Option<String> {
        let url = crate::url::Url::parse(url)?;
        self.inner.options.proxies.select(&url).map(|proxy| proxy.expose().to_owned())
    }

    /// Uses a registry without verifying its certificate, or with plain http if it has no TLS, from now on.
    pub fn allow_insecure(&self, registry: &str) {
        self.inner.allow_insecure(registry);
    }

    /// Asks a registry whether it is one, with the credentials there are.
    pub fn ping(&self, registry: &str) -> Result<(), Error> {
        let session = self.host(registry)?;
        let scopes = Scopes::default();
        session.retried(
            "its API",
            &[200],
            || Call::new(Method::GET, session.base.clone(), &scopes),
            |response| {
                response.discard();
                Ok(())
            },
        )
    }

    /// The passwords and tokens of the user's that were used so far, by registry.
    pub fn used_credentials(&self) -> Vec<(String, Secret)> {
        self.inner.auth.used()
    }

    pub(crate) fn host(&self, registry: &str) -> Result<Session, Error> {
        self.inner.session(self.inner.hosts()?.host_endpoint(registry)?)
    }
}
