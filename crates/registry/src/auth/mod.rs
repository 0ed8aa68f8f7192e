//! Answers challenges: which `Authorization` to send to a registry, and what to do when it is refused.
//!
//! Order of events for a host: the first request goes out bare; its 401 tells scheme, token server and scopes; from
//! then on requests are authorised in advance, and a 401 means that a token has expired (one fresh token) or that a
//! credential is not good (the next source of credentials, at last none, with a warning that names the source).
//!
//! Invariants:
//! - a credential goes to its registry, or to the token server that the registry names, and over TLS only, unless the
//!   registry itself is used without TLS;
//! - one token request at a time per (token server, service, scopes, credential).

pub(crate) mod challenge;
mod credentials;
pub(crate) mod scope;
pub(crate) mod token;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use ureq::http::HeaderMap;
use ureq::http::header::WWW_AUTHENTICATE;

use crate::error::Error;
use crate::event::EventSink;
use crate::hosts::HostSettings;
use crate::http::Transport;
use crate::keychain::{Found, Keychain};
use crate::secret::{Credential, Secret};
use crate::url::Url;
use challenge::Challenge;
use credentials::Credentials;
use scope::Scopes;
use token::{Token, TokenFailure, TokenRequest, basic};

/// Whom a request is for.
pub(crate) struct Target<'a> {
    /// The registry's URL; its origin is what challenges are remembered for.
    pub base: &'a Url,
    /// Registry and repository as credentials are looked up.
    pub registry: &'a str,
    pub repository: &'a str,
    pub scopes: &'a Scopes,
}

/// An authorisation that was made for one request, and how.
#[derive(Clone)]
pub(crate) struct Authorization {
    pub header: Secret,
    origin: Option<String>,
    kind: Kind,
}

#[derive(Clone)]
enum Kind {
    Basic,
    /// A bearer credential, sent as it is.
    Given,
    Token {
        key: TokenKey,
        fresh: bool,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct TokenKey {
    realm: String,
    service: Option<String>,
    scopes: String,
    origin: Option<String>,
}

#[derive(Clone)]
enum Method {
    Basic,
    Bearer { realm: Url, service: Option<String> },
}

#[derive(Default)]
struct HostState {
    method: Option<Method>,
    /// Scopes that the host asked for in addition to ours: proxies of registries name repositories differently.
    learned: BTreeMap<Scopes, Scopes>,
}

/// What is known about hosts and tokens. Shared by all requests of a client.
pub(crate) struct Authenticator {
    credentials: Credentials,
    hosts: Mutex<HashMap<String, HostState>>,
    tokens: Mutex<HashMap<TokenKey, Arc<Mutex<Option<Token>>>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// How to reach token servers.
pub(crate) struct Wire<'a> {
    pub transport: &'a Transport,
    pub settings_of: &'a dyn Fn(&Url) -> HostSettings,
}

impl Authenticator {
    pub fn new(keychain: Keychain, events: EventSink) -> Self {
        let (hosts, tokens) = Default::default();
        Self { credentials: Credentials::new(keychain, events), hosts, tokens }
    }

    /// The keychain that credentials come from.
    pub fn keychain(&self) -> &Keychain {
        &self.credentials.keychain
    }

    /// The credentials that were used, by registry.
    pub fn used(&self) -> Vec<(String, Secret)> {
        self.credentials.used()
    }

    /// The authorisation to send in advance; none while the host has not asked for one.
    pub fn in_advance(&self, target: &Target<'_>, wire: &Wire<'_>) -> Result<Option<Authorization>, Error> {
        let (method, scopes) = {
            let hosts = lock(&self.hosts);
            let Some(state) = hosts.get(&host_key(target.base)) else { return Ok(None) };
            let Some(method) = state.method.clone() else { return Ok(None) };
            (method, state.learned.get(target.scopes).cloned())
        };
        self.authorize(target, &method, scopes.as_ref().unwrap_or(target.scopes), wire)
    }

    /// After a 401: what to send instead. `Err` if nothing is left to try.
    pub fn challenged(
        &self,
        target: &Target<'_>,
        headers: &HeaderMap,
        used: Option<&Authorization>,
        wire: &Wire<'_>,
    ) -> Result<Option<Authorization>, Error> {
        let (method, scopes) = self.learn(target, headers)?;
        match used.map(|u| &u.kind) {
            // a new token is not good enough, unless the host only now says which scopes it wants
            Some(Kind::Token { fresh: true, key }) if key.scopes == scopes.to_string() => {
                let who = used.and_then(|u| u.origin.as_deref());
                return Err(self.refused(target, who));
            }
            Some(Kind::Token { key, .. }) => self.invalidate(key, used),
            Some(Kind::Basic | Kind::Given) => {
                let origin = used.and_then(|u| u.origin.clone()).unwrap_or_default();
                self.credentials.reject(target, &origin, "401 Unauthorized");
            }
            None => {}
        }
        let next = self.authorize(target, &method, &scopes, wire)?;
        match (&next, used) {
            // without a credential for Basic, the bare request had its answer already
            (None, None) => Err(self.refused(target, None)),
            _ => Ok(next),
        }
    }

    /// Remembers what the host asks for.
    fn learn(&self, target: &Target<'_>, headers: &HeaderMap) -> Result<(Method, Scopes), Error> {
        let values = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|v| v.to_str().ok());
        let challenges = challenge::parse(values);
        let bearer = challenges.iter().find(|c| c.scheme == "bearer" && c.param("realm").is_some());
        let (method, scopes) = match bearer {
            Some(c) => self.bearer_method(target, c)?,
            None if challenges.iter().any(|c| c.scheme == "basic") => (Method::Basic, target.scopes.clone()),
            None => {
                let known = lock(&self.hosts).get(&host_key(target.base)).and_then(|s| s.method.clone());
                match known {
                    // a 401 in mid-push often comes without a challenge
                    Some(method) => (method, target.scopes.clone()),
                    None => {
                        return Err(unauthorized(
                            target,
                            "it asks for a kind of log-in that kiln does not know".into(),
                        ));
                    }
                }
            }
        };
        let mut hosts = lock(&self.hosts);
        let state = hosts.entry(host_key(target.base)).or_default();
        state.method = Some(method.clone());
        if scopes != *target.scopes {
            state.learned.insert(target.scopes.clone(), scopes.clone());
        }
        Ok((method, scopes))
    }

    fn bearer_method(&self, target: &Target<'_>, challenge: &Challenge) -> Result<(Method, Scopes), Error> {
        let realm = challenge.param("realm").unwrap_or_default();
        let protocol = |reason: &str| Error::Protocol { host: target.base.host_port(), reason: reason.into() };
        let realm = target.base.join(realm).ok_or_else(|| protocol("its token server is not a usable URL"))?;
        if target.base.https && !realm.https && !realm.is_loopback() {
            return Err(protocol("its token server is not https, so no credentials are sent there"));
        }
        let scopes = target.scopes.clone().merged(challenge.param("scope").unwrap_or_default());
        Ok((Method::Bearer { realm, service: challenge.param("service").map(str::to_owned) }, scopes))
    }

    /// Makes an authorisation with the first credential that has not been refused, at last with none.
    fn authorize(
        &self,
        target: &Target<'_>,
        method: &Method,
        scopes: &Scopes,
        wire: &Wire<'_>,
    ) -> Result<Option<Authorization>, Error> {
        loop {
            let found = self.credentials.find(target);
            let (realm, service) = match method {
                Method::Basic => return Ok(found.and_then(basic_authorization)),
                Method::Bearer { realm, service } => (realm, service.as_deref()),
            };
            if let Some(Found { credential: Credential::Bearer(token), origin }) = &found {
                let header = Secret::new(format!("Bearer {}", token.expose()));
                return Ok(Some(Authorization { header, origin: Some(origin.clone()), kind: Kind::Given }));
            }
            let origin = found.as_ref().map(|f| f.origin.clone());
            let key = TokenKey {
                realm: realm.full(),
                service: service.map(str::to_owned),
                scopes: scopes.to_string(),
                origin: origin.clone(),
            };
            let credential = found.as_ref().map(|f| &f.credential);
            let request = TokenRequest { realm, service, scopes, credential, offline: false };
            match self.token(&key, &request, wire) {
                Ok((token, fresh)) => {
                    let header = Secret::new(format!("Bearer {}", token.value.expose()));
                    return Ok(Some(Authorization { header, origin, kind: Kind::Token { key, fresh } }));
                }
                Err(TokenFailure::Error(e)) => return Err(e),
                Err(TokenFailure::Rejected(reason)) => match origin {
                    Some(origin) => self.credentials.reject(target, &origin, &reason),
                    None => return Err(self.refused(target, None)),
                },
                Err(TokenFailure::Denied(reason)) => match origin {
                    // a token for a mount, which is optional
                    _ if scopes.resources() > 1 => return Err(unauthorized(target, reason)),
                    Some(origin) => self.credentials.deny(target, &origin, &reason),
                    None => return Err(self.refused(target, None)),
                },
            }
        }
    }

    /// A cached token, or a new one; the flag says that it is new.
    fn token(
        &self,
        key: &TokenKey,
        request: &TokenRequest<'_>,
        wire: &Wire<'_>,
    ) -> Result<(Token, bool), TokenFailure> {
        let slot = lock(&self.tokens).entry(key.clone()).or_default().clone();
        let mut slot = lock(&slot);
        if let Some(token) = slot.as_ref().filter(|t| t.expires > Instant::now()) {
            return Ok((token.clone(), false));
        }
        let token = request.fetch(wire.transport, wire.settings_of)?;
        *slot = Some(token.clone());
        Ok((token, true))
    }

    fn invalidate(&self, key: &TokenKey, used: Option<&Authorization>) {
        let Some(slot) = lock(&self.tokens).get(key).cloned() else { return };
        let mut slot = lock(&slot);
        // another thread may have replaced it already
        let same =
            |t: &Token| used.is_some_and(|u| u.header.expose().strip_prefix("Bearer ") == Some(t.value.expose()));
        if slot.as_ref().is_some_and(same) {
            *slot = None;
        }
    }

    /// Forgets refusals and tokens (after a log-in).
    pub fn reset(&self) {
        self.credentials.reset();
        lock(&self.tokens).clear();
    }

    fn refused(&self, target: &Target<'_>, who: Option<&str>) -> Error {
        let rejected: Vec<_> = self.credentials.refused(target).into_iter().collect();
        unauthorized(
            target,
            match (who, rejected.is_empty()) {
                (Some(who), _) => format!("the credentials from {who} do not give access"),
                (None, false) => {
                    format!("the credentials from {} were rejected, and it needs some", rejected.join(", "))
                }
                (None, true) => "it needs credentials, and there are none for it".to_owned(),
            },
        )
    }
}

fn basic_authorization(found: Found) -> Option<Authorization> {
    let header = basic(&found.credential)?;
    Some(Authorization { header, origin: Some(found.origin), kind: Kind::Basic })
}

fn host_key(base: &Url) -> String {
    format!("{}{}", if base.https { "https://" } else { "http://" }, base.host_port())
}

fn unauthorized(target: &Target<'_>, reason: String) -> Error {
    let what = if target.repository.is_empty() { "its API".to_owned() } else { target.repository.to_owned() };
    Error::Unauthorized { registry: target.registry.to_owned(), what, reason, codes: Vec::new() }
}
