//! Plain http through a proxy, as apt does it: the proxy is asked for the whole address (`GET http://host/path`).
//!
//! The HTTP client only knows tunnels (`CONNECT`), which caches of packages have no use for and most proxies refuse for
//! port 80. So the connection is made to the proxy, and the first line of each request is completed while it is sent.

use ureq::Agent;
use ureq::Proxy;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, TcpConnector, Transport};

/// An agent whose requests, all of them for `http://` addresses, go to the proxy.
pub fn agent(config: Config, proxy: &Proxy) -> Agent {
    let login = proxy.username().map(|user| {
        let text = format!("{user}:{}", proxy.password().unwrap_or_default());
        format!("Proxy-Authorization: Basic {}\r\n", base64(text.as_bytes()))
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

#[derive(Debug)]
struct Forward {
    /// A header line, or nothing.
    login: String,
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
        let start = format!("GET http://{host}");
        Ok(chained.map(|inner| Forwarded { inner, start, login: self.login.clone() }))
    }
}

#[derive(Debug)]
struct Forwarded<T> {
    inner: T,
    /// What replaces the `GET ` of a request.
    start: String,
    login: String,
}

impl<T: Transport> Transport for Forwarded<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        let output = self.inner.buffers().output();
        let request = output[..amount].to_vec();
        let (Some(rest), Some(end)) = (request.strip_prefix(b"GET "), memchr::memchr(b'\n', &request)) else {
            return self.inner.transmit_output(amount, timeout);
        };
        let (line, headers) = rest.split_at(end + 1 - b"GET ".len());
        let complete = [self.start.as_bytes(), line, self.login.as_bytes(), headers].concat();
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
        self.inner.is_open()
    }
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for group in bytes.chunks(3) {
        let number = group.iter().fold(0, |n, b| n << 8 | u32::from(*b)) << (8 * (3 - group.len()));
        for place in 0..4 {
            let letter = LETTERS[(number >> (18 - 6 * place)) as usize & 63];
            out.push(if place > group.len() { '=' } else { char::from(letter) });
        }
    }
    out
}
