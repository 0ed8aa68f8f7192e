//! Requests to one endpoint: scheme, authorisation, error mapping, retries.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use kiln_oci::Reference;
use ureq::http::Method;
use ureq::http::header::{HeaderMap, HeaderName};

use crate::auth::scope::Scopes;
use crate::auth::{Authenticator, Target, Wire};
use crate::client::ClientOptions;
use crate::error::{ConnectionFault, Error, RegistryCode, parse_codes};
use crate::event::Event;
use crate::hosts::{EndpointSpec, HostSettings, HostsConfig};
use crate::http::{Payload, Request, Response, Transport};
use crate::retry::{Budget, RetryPolicy, parse_retry_after};
use crate::url::Url;

/// What all clones of a client share.
pub(crate) struct Inner {
    pub options: ClientOptions,
    pub transport: Transport,
    pub auth: Authenticator,
    /// The host table with what the configuration files say, or the file that can't be used.
    hosts: OnceLock<Result<HostsConfig, (PathBuf, String)>>,
    /// Whether a host that may be either speaks TLS; the inner lock is held while it is found out.
    schemes: Mutex<HashMap<String, Arc<Mutex<Option<bool>>>>>,
    /// Registries that this process was told to use without verification.
    insecure: Mutex<HashSet<String>>,
    /// Mirrors that sent wrong content: not asked again.
    bad_mirrors: Mutex<HashSet<String>>,
}

/// One endpoint, ready for requests.
#[derive(Clone)]
pub(crate) struct Session {
    pub inner: Arc<Inner>,
    pub spec: EndpointSpec,
    pub base: Url,
}

/// One request to an endpoint.
pub(crate) struct Call<'a> {
    pub method: Method,
    pub url: Url,
    pub headers: Vec<(HeaderName, String)>,
    pub payload: Payload<'a>,
    pub scopes: &'a Scopes,
    pub commit: bool,
    /// Redirects are followed, if it is a request without a body.
    pub follow: bool,
}

impl<'a> Call<'a> {
    pub fn new(method: Method, url: Url, scopes: &'a Scopes) -> Self {
        Self { method, url, headers: Vec::new(), payload: Payload::None, scopes, commit: false, follow: true }
    }

    pub fn header(mut self, name: HeaderName, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// More 401 answers to one request than sources of credentials anybody has.
const MAX_CHALLENGES: usize = 8;

impl Inner {
    pub fn new(options: ClientOptions) -> Self {
        let transport = Transport::new(options.proxies.clone(), &options.user_agent, options.timeouts.clone());
        let auth = Authenticator::new(options.keychain.clone(), options.events.clone());
        let (hosts, schemes) = (OnceLock::new(), Mutex::default());
        Self { options, transport, auth, hosts, schemes, insecure: Mutex::default(), bad_mirrors: Mutex::default() }
    }

    /// The host table. The first call reads the configuration files.
    pub fn hosts(&self) -> Result<&HostsConfig, Error> {
        let loaded = self.hosts.get_or_init(|| {
            let options = &self.options;
            let (config, warnings) = match options.config.load(&options.hosts) {
                Ok(loaded) => loaded,
                Err(Error::Config { path, reason }) => return Err((path, reason)),
                Err(other) => return Err((PathBuf::from("configuration"), other.to_string())),
            };
            for warning in warnings {
                options.events.send(Event::ConfigIgnored { path: warning.path, reason: warning.reason });
            }
            self.transport.set_certs_dirs(config.certs_dirs.clone());
            Ok(config)
        });
        match loaded {
            Ok(hosts) => Ok(hosts),
            Err((path, reason)) => Err(Error::Config { path: path.clone(), reason: reason.clone() }),
        }
    }

    /// Settings of a host that is not an endpoint: token servers, redirect targets, foreign layers.
    pub fn settings_of(&self, url: &Url) -> HostSettings {
        self.hosts().and_then(|h| h.host_endpoint(&url.host_port())).map(|spec| spec.settings).unwrap_or_default()
    }

    pub fn allow_insecure(&self, registry: &str) {
        self.insecure.lock().unwrap_or_else(|e| e.into_inner()).insert(registry.to_owned());
    }

    pub fn session(self: &Arc<Self>, mut spec: EndpointSpec) -> Result<Session, Error> {
        spec.settings.insecure |= self.insecure.lock().unwrap_or_else(|e| e.into_inner()).contains(&spec.registry);
        let https = self.speaks_tls(&spec)?;
        let malformed = || Error::Protocol { host: spec.host.clone(), reason: "not a host name".into() };
        let base = Url::new(https, &spec.host, "/v2/").ok_or_else(malformed)?;
        Ok(Session { inner: self.clone(), spec, base })
    }

    /// The registry itself, for everything but pulls.
    pub fn origin(self: &Arc<Self>, image: &Reference) -> Result<Session, Error> {
        self.session(self.hosts()?.origin_endpoint(image)?)
    }

    /// Whether to connect with TLS. Asks the host if it is one that may be used either way.
    fn speaks_tls(&self, spec: &EndpointSpec) -> Result<bool, Error> {
        if spec.settings.http || !spec.settings.insecure {
            return Ok(!spec.settings.http);
        }
        let slot = {
            let mut schemes = self.schemes.lock().unwrap_or_else(|e| e.into_inner());
            schemes.entry(spec.host.clone()).or_default().clone()
        };
        let mut slot = slot.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(known) = *slot {
            return Ok(known);
        }
        let malformed = || Error::Protocol { host: spec.host.clone(), reason: "not a host name".into() };
        let http = Url::new(false, &spec.host, "/v2/").ok_or_else(malformed)?;
        let https = Url { https: true, ..http.clone() };
        // a loopback registry rarely has TLS; asking with http first needs no CA certificates on this machine
        let certs = crate::tls::has_host_files(&spec.host, &spec.settings, self.transport.certs_dirs());
        let found = match http.is_loopback() && !certs {
            true => match self.probe(&http, spec) {
                Ok(answer) => !answer,
                Err(e) if may_be_other_scheme(&e) => self.probe(&https, spec).map_err(|_| e)?,
                Err(e) => return Err(e),
            },
            false => match self.probe(&https, spec) {
                Ok(answer) => answer,
                // With a host that does not speak TLS, what happened without it is the reason.
                Err(Error::Tls { .. }) => !self.probe(&http, spec)?,
                Err(e) if may_be_other_scheme(&e) => !self.probe(&http, spec).map_err(|_| e)?,
                Err(e) => return Err(e),
            },
        };
        *slot = Some(found);
        Ok(found)
    }

    /// Whether the host answers with this scheme. A TLS server's complaint about plain http is no.
    fn probe(&self, url: &Url, spec: &EndpointSpec) -> Result<bool, Error> {
        let response = self.transport.send(Request::new(Method::GET, url.clone()), &spec.settings)?;
        let refused = response.status == 400 && !url.https;
        let body = response.error_body();
        Ok(!(refused && String::from_utf8_lossy(&body).to_uppercase().contains("HTTPS")))
    }

    /// Runs `f` on each host that has the image, mirrors first, until one succeeds.
    pub fn on_endpoints<T>(
        self: &Arc<Self>,
        image: &Reference,
        mut f: impl FnMut(&Session) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut last = None;
        for spec in self.hosts()?.pull_endpoints(image)? {
            if spec.mirror && self.is_bad(&spec.host) {
                continue;
            }
            let (mirror, host) = (spec.mirror, spec.host.clone());
            match self.session(spec).and_then(|s| f(&s)) {
                Err(Error::Cancelled) => return Err(Error::Cancelled),
                Err(e) if mirror => {
                    self.mirror_failed(&host, image, &e);
                    last = Some(e);
                }
                other => return other,
            }
        }
        Err(last.unwrap_or(Error::Cancelled))
    }

    /// Tells about a failed mirror, and avoids one that sends wrong content.
    pub fn mirror_failed(&self, mirror: &str, image: &Reference, error: &Error) {
        if matches!(error, Error::DigestMismatch { .. } | Error::SizeMismatch { .. } | Error::Manifest { .. }) {
            self.bad_mirrors.lock().unwrap_or_else(|e| e.into_inner()).insert(mirror.to_owned());
        }
        if !error.is_not_found() {
            self.options.events.send(Event::MirrorFailed {
                mirror: mirror.to_owned(),
                registry: image.registry().to_owned(),
                reason: error.to_string(),
            });
        }
    }

    pub fn is_bad(&self, mirror: &str) -> bool {
        self.bad_mirrors.lock().unwrap_or_else(|e| e.into_inner()).contains(mirror)
    }
}

fn may_be_other_scheme(error: &Error) -> bool {
    matches!(
        error,
        Error::Tls { .. }
            | Error::Protocol { .. }
            | Error::Connection { fault: ConnectionFault::Broken | ConnectionFault::Refused, .. }
    )
}

impl Session {
    /// `/v2/<repository>/<rest>` on this endpoint, with `?ns=` for a mirror that wants it.
    pub fn url(&self, rest: &str) -> Url {
        let url = Url { path: format!("/v2/{}/{rest}", self.spec.repository), ..self.base.clone() };
        match &self.spec.ns {
            Some(ns) => url.with_query("ns", ns),
            None => url,
        }
    }

    /// Scopes for this endpoint's repository.
    pub fn scopes(&self, actions: &str) -> Scopes {
        Scopes::repository(&self.spec.repository, actions)
    }

    /// `registry/repository`, as messages name it.
    pub fn name(&self) -> String {
        format!("{}/{}", self.spec.registry, self.spec.repository)
    }

    /// Sends a request, answering challenges. A body from a reader can be sent only once: then a 401 is returned
    /// after new credentials are in place, for the caller to start again.
    pub fn call(&self, mut call: Call<'_>) -> Result<Response, Error> {
        self.inner.options.cancel.check()?;
        // an upload location on another host is that host's business: it gets no credentials
        let ours = call.url.same_origin(&self.base);
        let target = Target {
            base: &self.base,
            registry: &self.spec.registry,
            repository: &self.spec.repository,
            scopes: call.scopes,
        };
        let settings_of = |url: &Url| self.inner.settings_of(url);
        let wire = Wire { transport: &self.inner.transport, settings_of: &settings_of };
        let auth = &self.inner.auth;
        let mut used = if ours { auth.in_advance(&target, &wire)? } else { None };
        for _ in 0..MAX_CHALLENGES {
            let replay = match &call.payload {
                Payload::None => Some(Payload::None),
                Payload::Bytes(bytes) => Some(Payload::Bytes(bytes)),
                Payload::Stream(..) => None,
            };
            let once = replay.is_none();
            let request = Request {
                method: call.method.clone(),
                url: call.url.clone(),
                headers: call.headers.clone(),
                authorization: used.as_ref().map(|u| u.header.clone()),
                payload: replay.unwrap_or_else(|| std::mem::replace(&mut call.payload, Payload::None)),
                commit: call.commit,
            };
            let follow = call.follow && matches!(call.method, Method::GET | Method::HEAD);
            let settings = if ours { self.spec.settings.clone() } else { self.inner.settings_of(&call.url) };
            let response = match follow {
                true => self.inner.transport.get(request, &settings, &settings_of)?,
                false => self.inner.transport.send(request, &settings)?,
            };
            if response.status != 401 || !response.url.same_origin(&self.base) {
                return Ok(response);
            }
            match auth.challenged(&target, &response.headers, used.as_ref(), &wire) {
                Ok(next) => used = next,
                Err(Error::Unauthorized { registry, what, reason, .. }) => {
                    let codes = parse_codes(&response.error_body());
                    return Err(Error::Unauthorized { registry, what, reason, codes });
                }
                Err(e) => return Err(e),
            }
            if once {
                return Ok(response);
            }
            response.discard();
        }
        Err(Error::Protocol { host: self.base.host_port(), reason: "it asks for log-in again and again".into() })
    }

    /// [`call`](Self::call), and anything but the given statuses is an error.
    pub fn expect(&self, call: Call<'_>, what: &str, good: &[u16]) -> Result<Response, Error> {
        let shown = format!("{} {}", call.method, call.url);
        let response = self.call(call)?;
        match good.contains(&response.status) {
            true => Ok(response),
            false => Err(self.failure(response, what, &shown)),
        }
    }

    /// [`expect`](Self::expect) with retries; `make` makes the request anew each time, `finish` reads the answer.
    pub fn retried<'a, T>(
        &self,
        what: &str,
        good: &[u16],
        make: impl Fn() -> Call<'a>,
        finish: impl Fn(Response) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let policy = self.policy();
        let mut budget = self.budget(&policy, what);
        loop {
            match self.expect(make(), what, good).and_then(&finish) {
                Ok(value) => return Ok(value),
                Err(e) => budget.failed(e)?,
            }
        }
    }

    /// A mirror gets fewer attempts: there is another place to ask.
    pub fn policy(&self) -> RetryPolicy {
        let mut policy = self.inner.options.retry.clone();
        if self.spec.mirror {
            policy.attempts = policy.attempts.min(2);
            policy.max_retry_after = policy.max_retry_after.min(Duration::from_secs(5));
        }
        policy
    }

    pub fn budget<'a>(&'a self, policy: &'a RetryPolicy, what: &'a str) -> Budget<'a> {
        let options = &self.inner.options;
        Budget::new(policy, &options.cancel, &options.events, (&self.spec.registry, what))
    }

    /// What an unwelcome answer means.
    pub fn failure(&self, response: Response, what: &str, request: &str) -> Error {
        let (status, registry) = (response.status, self.spec.registry.clone());
        let retry_after = retry_after(&response.headers);
        let codes = parse_codes(&response.error_body());
        let has = |names: &[&str]| codes.iter().any(|c: &RegistryCode| names.contains(&c.code.as_str()));
        let what = what.to_owned();
        match status {
            _ if has(&["MANIFEST_UNKNOWN", "NAME_UNKNOWN", "BLOB_UNKNOWN"]) => {
                Error::NotFound { what: format!("{what} in {}", self.name()), codes }
            }
            429 => Error::RateLimited { registry, retry_after, codes },
            _ if has(&["TOOMANYREQUESTS"]) => Error::RateLimited { registry, retry_after, codes },
            401 => {
                let reason = "it does not accept what was sent to log in".into();
                Error::Unauthorized { registry, what, reason, codes }
            }
            403 => Error::Denied { registry, what: format!("{what} in {}", self.name()), codes },
            404 => Error::NotFound { what: format!("{what} in {}", self.name()), codes },
            _ => Error::Status { registry, request: request.to_owned(), status, retry_after, codes },
        }
    }
}

/// The `Retry-After` header.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    parse_retry_after(headers.get("retry-after")?.to_str().ok()?, SystemTime::now())
}
