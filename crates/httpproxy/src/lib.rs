//! Plain http through a proxy, as apt and curl do it: the proxy is asked for the whole address (`GET http://host/path`).
//!
//! The HTTP client only knows tunnels (`CONNECT`), which caches have no use for and most proxies refuse for ports other
//! than 443. So the connection is made to the proxy, and the head of each request is completed while it is sent.
//!
//! Invariant: only heads are changed. After a request with a body the connection is not used again, so that no body is
//! taken for a head.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, TcpConnector, Transport};
use ureq::{Agent, Proxy, ProxyProtocol};

/// Whether a proxy is one that takes plain requests.
pub fn takes_requests(proxy: &Proxy) -> bool {
    proxy.protocol() == ProxyProtocol::Http
}

/// An agent whose requests, all of them for `http://` addresses, go to the proxy. `config` names none.
pub fn agent(config: Config, proxy: &Proxy) -> Agent {
    let login = proxy.username().map(|user| {
        let text = format!("{user}:{}", proxy.password().unwrap_or_default());
        format!("Proxy-Authorization: Basic {}\r\n", STANDARD.encode(text))
    });
    let forward = Forward { login: login.unwrap_or_default() };
    Agent::with_parts(config, TcpConnector::default().chain(forward), ToProxy(proxy.uri().clone()))
}

/// Every name leads to the proxy; the names of hosts are its business.
#[derive(Debug)]
struct ToProxy(Uri);

impl Resolver for ToProxy {
    fn resolve(&self, _: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        DefaultResolver::default().resolve(&self.0, config, timeout)
    }
}

struct Forward {
    /// A header line, or nothing.
    login: String,
}

impl std::fmt::Debug for Forward {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Forward")
    }
}

impl<T: Transport> Connector<T> for Forward {
    type Out = Forwarded<T>;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<T>,
    ) -> Result<Option<Forwarded<T>>, ureq::Error> {
        if details.needs_tls() {
            // A redirect; the line that is sent would be readable for everybody.
            return Err(ureq::Error::BadUri(format!("{} is not plain http", details.uri)));
        }
        let host = details.uri.authority().map_or("", |a| a.as_str());
        let host = host.rsplit('@').next().unwrap_or_default();
        let origin = format!("http://{host}");
        Ok(chained.map(|inner| Forwarded { inner, origin, login: self.login.clone(), in_body: false }))
    }
}

struct Forwarded<T> {
    inner: T,
    /// What precedes the path of a request.
    origin: String,
    login: String,
    /// What is sent from now on is a request's body.
    in_body: bool,
}

impl<T> std::fmt::Debug for Forwarded<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Forwarded").field("origin", &self.origin).finish_non_exhaustive()
    }
}

impl<T: Transport> Transport for Forwarded<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        if self.in_body || amount == 0 {
            return self.inner.transmit_output(amount, timeout);
        }
        let output = self.inner.buffers().output();
        let sent = output[..amount].to_vec();
        let incomplete = || ureq::Error::LargeResponseHeader(amount, output.len());
        let end = sent.windows(4).position(|w| w == b"\r\n\r\n").ok_or_else(incomplete)?;
        self.in_body = has_body(&sent[..end]);
        let method = sent.iter().position(|b| *b == b' ').map_or(0, |space| space + 1);
        let line = sent.iter().position(|b| *b == b'\n').map_or(0, |newline| newline + 1);
        let (origin, login) = (self.origin.as_bytes(), self.login.as_bytes());
        let complete = [&sent[..method], origin, &sent[method..line], login, &sent[line..]].concat();
        let Some(place) = output.get_mut(..complete.len()) else {
            return Err(ureq::Error::LargeResponseHeader(complete.len(), output.len()));
        };
        place.copy_from_slice(&complete);
        self.inner.transmit_output(complete.len(), timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.inner.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        !self.in_body && self.inner.is_open()
    }
}

/// Whether a request's head announces a body.
fn has_body(head: &[u8]) -> bool {
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    head.split("\r\n").skip(1).filter_map(|line| line.split_once(':')).any(|(name, value)| match name.trim() {
        "content-length" => value.trim() != "0",
        "transfer-encoding" => true,
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_announced() {
        assert!(!has_body(b"GET /x HTTP/1.1\r\nhost: a"));
        assert!(!has_body(b"POST /x HTTP/1.1\r\nContent-Length: 0\r\nhost: a"));
        assert!(has_body(b"PUT /x HTTP/1.1\r\nContent-Length: 7\r\nhost: a"));
        assert!(has_body(b"PATCH /x HTTP/1.1\r\nhost: a\r\nTransfer-Encoding: chunked"));
    }
}
