//! One HTTP exchange: agents, timeouts, redirects, error mapping. Knows nothing of registries and credentials.
//!
//! Invariants:
//! - `Authorization` goes to the origin (scheme, host, port) of the request it was made for; a redirect elsewhere
//!   drops it (CVE-2020-15157);
//! - every wait for the network is bounded: connect, each read, each write, and response headers as a whole;
//! - TLS configuration is built at the first https request to a host.

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use ureq::http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use ureq::http::{self, Method};
use ureq::{Agent, Body, SendBody};

use crate::error::{ConnectionFault, Error, printable};
use crate::hosts::HostSettings;
use crate::proxy::ProxyConfig;
use crate::secret::Secret;
use crate::url::Url;

/// Limits on waiting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// For a connection with its TLS handshake.
    pub connect: Duration,
    /// For the answer to a request that changes nothing, and between two reads or writes of a transfer.
    pub stall: Duration,
    /// For the answer after an upload: the registry may be copying the blob to its storage.
    pub commit: Duration,
    /// A download that gets fewer bytes per second than this over [`stall`](Self::stall) counts as stalled.
    pub min_rate: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(20),
            stall: Duration::from_secs(30),
            commit: Duration::from_secs(600),
            min_rate: 1024,
        }
    }
}

/// What is sent.
pub(crate) enum Payload<'a> {
    None,
    Bytes(&'a [u8]),
    /// Length, if known.
    Stream(&'a mut dyn Read, Option<u64>),
}

pub(crate) struct Request<'a> {
    pub method: Method,
    pub url: Url,
    pub headers: Vec<(HeaderName, String)>,
    pub authorization: Option<Secret>,
    pub payload: Payload<'a>,
    /// The answer may take long (end of an upload).
    pub commit: bool,
}

impl Request<'_> {
    pub fn new(method: Method, url: Url) -> Self {
        Self { method, url, headers: Vec::new(), authorization: None, payload: Payload::None, commit: false }
    }
}

/// An answer; the body is still on the wire.
pub(crate) struct Response {
    pub status: u16,
    pub headers: HeaderMap,
    /// Where it came from, after redirects.
    pub url: Url,
    body: Body,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub fn host(&self) -> String {
        self.url.host_port()
    }

    pub fn into_reader(self) -> impl Read + Send + 'static {
        self.body.into_with_config().limit(u64::MAX).reader()
    }

    /// The whole body, if it is not longer than `limit` and comes within `time`.
    pub fn bytes(self, limit: usize, time: Duration) -> Result<Vec<u8>, Error> {
        let host = self.host();
        let (mut reader, start) = (self.into_reader(), Instant::now());
        let (mut out, mut buf) = (Vec::new(), vec![0; 16 * 1024]);
        loop {
            match reader.read(&mut buf).map_err(|e| io_error(&host, &e))? {
                0 => return Ok(out),
                n if out.len() + n > limit => {
                    let reason = format!("an answer of more than {limit} bytes");
                    return Err(Error::Protocol { host, reason });
                }
                n => out.extend_from_slice(&buf[..n]),
            }
            if start.elapsed() > time {
                return Err(Error::Stalled { host, received: out.len() as u64, seconds: time.as_secs() });
            }
        }
    }

    /// What an error answer has to say: bounded, and no reason to fail again.
    pub fn error_body(self) -> Vec<u8> {
        self.bytes(64 * 1024, Duration::from_secs(5)).unwrap_or_default()
    }

    /// Reads the rest of a short body, so that the connection can be used again.
    pub fn discard(self) {
        let _ = self.error_body();
    }
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct AgentKey {
    /// Host and settings, for https.
    tls: Option<(String, SettingsKey)>,
    proxied: bool,
    commit: bool,
}

/// The settings that make a TLS configuration differ.
#[derive(Clone, PartialEq, Eq, Hash)]
struct SettingsKey(bool, bool, Vec<PathBuf>, Option<(PathBuf, PathBuf)>);

/// Keeps connections.
pub(crate) struct Transport {
    agents: Mutex<HashMap<AgentKey, Agent>>,
    proxies: ProxyConfig,
    user_agent: String,
    pub timeouts: Timeouts,
    certs_dirs: OnceLock<Vec<PathBuf>>,
}

const MAX_REDIRECTS: usize = 5;
/// Bodies from this size on ask with `Expect: 100-continue` before they are sent. A server that refuses a shorter one
/// reads it nevertheless (Go's, up to this size), else it may close the connection before its answer is seen.
const EXPECT_FROM: u64 = 256 * 1024;

impl Transport {
    pub fn new(proxies: ProxyConfig, user_agent: &str, timeouts: Timeouts) -> Self {
        // a header value: printable ASCII only
        let user_agent = user_agent.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').collect();
        Self { agents: Mutex::default(), proxies, user_agent, timeouts, certs_dirs: OnceLock::new() }
    }

    /// Where certificates of hosts are; told once, before the first request.
    pub fn set_certs_dirs(&self, dirs: Vec<PathBuf>) {
        let _ = self.certs_dirs.set(dirs);
    }

    pub fn certs_dirs(&self) -> &[PathBuf] {
        self.certs_dirs.get().map_or(&[], Vec::as_slice)
    }

    /// Sends one request. A redirect is an answer like any other.
    pub fn send(&self, request: Request<'_>, settings: &HostSettings) -> Result<Response, Error> {
        let host = request.url.host_port();
        let agent = self.agent(&request.url, settings, request.commit)?;
        let url = request.url.clone();
        let mut builder = http::Request::builder().method(request.method).uri(url.full());
        for (name, value) in &request.headers {
            builder = builder.header(name, value);
        }
        if let Some(authorization) = &request.authorization {
            let mut value = HeaderValue::from_str(authorization.expose()).map_err(|_| Error::Protocol {
                host: host.clone(),
                reason: "its token can't be sent as a header".into(),
            })?;
            value.set_sensitive(true);
            builder = builder.header(AUTHORIZATION, value);
        }
        let bad_request = |e: http::Error| Error::Protocol { host: host.clone(), reason: e.to_string() };
        let result = match request.payload {
            Payload::None => agent.run(builder.body(()).map_err(bad_request)?),
            Payload::Bytes(bytes) => agent.run(builder.body(bytes).map_err(bad_request)?),
            Payload::Stream(reader, length) => {
                if let Some(length) = length {
                    builder = builder.header(http::header::CONTENT_LENGTH, length);
                }
                if length.is_none_or(|l| l >= EXPECT_FROM) {
                    builder = builder.header(http::header::EXPECT, "100-continue");
                }
                agent.run(builder.body(SendBody::from_reader(reader)).map_err(bad_request)?)
            }
        };
        let response = result.map_err(|e| {
            // a refused connection or an unknown name is the proxy's then
            let by = self.proxies.shown(&url).map(|p| format!(" through the proxy {p}")).unwrap_or_default();
            ureq_error(&format!("{host}{by}"), e)
        })?;
        let (parts, body) = response.into_parts();
        Ok(Response { status: parts.status.as_u16(), headers: parts.headers, url, body })
    }

    /// Sends a request without body and follows redirects. `settings_of` gives the settings of other hosts.
    pub fn get(
        &self,
        mut request: Request<'_>,
        settings: &HostSettings,
        settings_of: &dyn Fn(&Url) -> HostSettings,
    ) -> Result<Response, Error> {
        let mut settings = settings.clone();
        for _ in 0..=MAX_REDIRECTS {
            let next = Request {
                method: request.method.clone(),
                url: request.url.clone(),
                headers: request.headers.clone(),
                authorization: request.authorization.clone(),
                payload: Payload::None,
                commit: false,
            };
            let response = self.send(next, &settings)?;
            let location = match response.status {
                301 | 302 | 303 | 307 | 308 => response.header("location"),
                _ => return Ok(response),
            };
            let Some(target) = location.and_then(|l| request.url.join(l)) else {
                return Err(Error::Protocol {
                    host: response.host(),
                    reason: "a redirect without a usable URL".into(),
                });
            };
            if !target.same_origin(&request.url) {
                request.authorization = None;
                settings = settings_of(&target);
            }
            request.url = target;
            response.discard();
        }
        Err(Error::Protocol { host: request.url.host_port(), reason: "too many redirects".into() })
    }

    fn agent(&self, url: &Url, settings: &HostSettings, commit: bool) -> Result<Agent, Error> {
        let proxy = self.proxies.select(url);
        let tls = url.https.then(|| {
            let s = settings;
            (url.host_port(), SettingsKey(s.skip_verify, s.insecure, s.ca.clone(), s.client_cert.clone()))
        });
        let key = AgentKey { tls, proxied: proxy.is_some(), commit };
        let mut agents = self.agents.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(agent) = agents.get(&key) {
            return Ok(agent.clone());
        }
        let proxy = proxy.map(parse_proxy).transpose()?;
        let forwarding = proxy.clone().filter(|p| !url.https && kiln_httpproxy::takes_requests(p));
        let answer = if commit { self.timeouts.commit } else { self.timeouts.stall };
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(proxy.filter(|_| forwarding.is_none()))
            .user_agent(&*self.user_agent)
            .accept_encoding("")
            .timeout_connect(Some(self.timeouts.connect))
            .timeout_per_read(Some(answer))
            .timeout_per_write(Some(self.timeouts.stall))
            .timeout_recv_response(Some(answer * 2))
            .max_idle_connections(64)
            .max_idle_connections_per_host(16);
        if url.https {
            config = config.tls_config(crate::tls::config_for(&url.host_port(), settings, self.certs_dirs())?);
        }
        let agent = match &forwarding {
            Some(proxy) => kiln_httpproxy::agent(config.build(), proxy),
            None => config.build().new_agent(),
        };
        agents.insert(key, agent.clone());
        Ok(agent)
    }
}

fn parse_proxy(url: &Secret) -> Result<ureq::Proxy, Error> {
    ureq::Proxy::new(url.expose()).map_err(|_| Error::Connection {
        host: Url::parse(url.expose()).map_or_else(|| "the proxy".to_owned(), |u| u.host_port()),
        reason: "the proxy setting is not a proxy URL that kiln supports (http://, https:// or socks5://)".into(),
        fault: ConnectionFault::NoSuchHost,
    })
}

/// An error while a body is read.
pub(crate) fn io_error(host: &str, error: &io::Error) -> Error {
    let host = host.to_owned();
    if let Some(inner) = error.get_ref() {
        if let Some(tls) = inner.downcast_ref::<rustls::Error>() {
            return tls_error(host, tls);
        }
        if let Some(ureq) = inner.downcast_ref::<ureq::Error>() {
            return match ureq {
                ureq::Error::Timeout(_) => broken(host, "nothing came for too long".into()),
                other => broken(host, printable(&other.to_string(), 300)),
            };
        }
    }
    let lookup = error.to_string();
    if lookup.contains("Name or service not known") || lookup.contains("No address associated with hostname") {
        let reason = "there is no host of this name".into();
        return Error::Connection { host, reason, fault: ConnectionFault::NoSuchHost };
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            Error::Connection { host, reason: "connection refused".into(), fault: ConnectionFault::Refused }
        }
        io::ErrorKind::UnexpectedEof => broken(host, "the connection was closed early".into()),
        _ => broken(host, printable(&lookup, 300)),
    }
}

fn broken(host: String, reason: String) -> Error {
    Error::Connection { host, reason, fault: ConnectionFault::Broken }
}

fn tls_error(host: String, error: &rustls::Error) -> Error {
    match error {
        rustls::Error::InvalidMessage(_) => Error::Tls { host, reason: "the host does not speak TLS".into() },
        other => Error::Tls { host, reason: other.to_string() },
    }
}

fn ureq_error(host: &str, error: ureq::Error) -> Error {
    let owned = host.to_owned();
    match error {
        ureq::Error::Io(e) => io_error(host, &e),
        ureq::Error::Rustls(e) => tls_error(owned, &e),
        ureq::Error::Tls(reason) => Error::Tls { host: owned, reason: reason.into() },
        ureq::Error::HostNotFound => Error::Connection {
            host: owned,
            reason: "there is no host of this name".into(),
            fault: ConnectionFault::NoSuchHost,
        },
        ureq::Error::Timeout(ureq::Timeout::Connect) => broken(owned, "timed out while connecting".into()),
        ureq::Error::Timeout(ureq::Timeout::PerWrite | ureq::Timeout::SendBody) => {
            broken(owned, "the host stopped taking data".into())
        }
        ureq::Error::Timeout(_) => broken(owned, "timed out while waiting for an answer".into()),
        ureq::Error::ConnectionFailed => broken(owned, "connection failed".into()),
        ureq::Error::ConnectProxyFailed(reason) => broken(owned, format!("proxy: {}", printable(&reason, 200))),
        other => Error::Protocol { host: owned, reason: printable(&other.to_string(), 300) },
    }
}
