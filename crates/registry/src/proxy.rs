//! Which proxy a request takes, from values that the caller read (`HTTP_PROXY`, `HTTPS_PROXY`, `NO_PROXY`).
//!
//! The rules of `NO_PROXY` are those of Go's `httpproxy`, which docker and podman users know: names match themselves
//! and their subdomains, `.name` subdomains only, addresses and networks match addresses; an optional `:port`.
//! Loopback is never proxied.

use std::net::IpAddr;

use crate::hosts::{in_network, parse_network};
use crate::secret::Secret;
use crate::url::Url;

/// Proxy settings.
#[derive(Debug, Clone, Default)]
pub struct ProxyConfig {
    http: Option<Secret>,
    https: Option<Secret>,
    exceptions: Vec<Exception>,
}

#[derive(Debug, Clone)]
enum Exception {
    All,
    Network(IpAddr, u8, Option<u16>),
    Domain { name: String, itself: bool, port: Option<u16> },
}

impl ProxyConfig {
    /// Takes the values of the environment variables; empty ones count as absent.
    pub fn new(http: Option<&str>, https: Option<&str>, no_proxy: Option<&str>) -> Self {
        let url = |value: Option<&str>| value.map(str::trim).filter(|v| !v.is_empty()).map(normalise);
        let exceptions = no_proxy.unwrap_or("").split([',', ' ']).filter_map(parse_exception).collect();
        Self { http: url(http), https: url(https), exceptions }
    }

    /// The proxy for a URL.
    pub(crate) fn select(&self, url: &Url) -> Option<&Secret> {
        let proxy = if url.https { self.https.as_ref() } else { self.http.as_ref() }?;
        let direct = url.is_loopback() || self.exceptions.iter().any(|e| e.covers(url));
        (!direct).then_some(proxy)
    }

    /// `host:port` of the proxy for a URL, for messages.
    pub(crate) fn shown(&self, url: &Url) -> Option<String> {
        let rest = self.select(url)?.expose().split_once("://")?.1;
        let authority = rest.split(['/', '?', '#']).next()?;
        Some(authority.rsplit_once('@').map_or(authority, |(_, host)| host).to_owned())
    }
}

fn normalise(value: &str) -> Secret {
    Secret::new(if value.contains("://") { value.to_owned() } else { format!("http://{value}") })
}

fn parse_exception(entry: &str) -> Option<Exception> {
    let entry = entry.trim().to_ascii_lowercase();
    if entry.is_empty() {
        return None;
    }
    if entry == "*" {
        return Some(Exception::All);
    }
    if let Some((net, len)) = parse_network(entry.trim_start_matches('[').trim_end_matches(']')) {
        return Some(Exception::Network(net, len, None));
    }
    let (name, port) = match entry.rsplit_once(':').map(|(n, p)| (n, p.parse::<u16>())) {
        Some((name, Ok(port))) => (name.to_owned(), Some(port)),
        _ => (entry, None),
    };
    if let Some((net, len)) = parse_network(name.trim_start_matches('[').trim_end_matches(']')) {
        return Some(Exception::Network(net, len, port));
    }
    let bare = name.strip_prefix('*').unwrap_or(&name);
    match bare.strip_prefix('.') {
        Some(domain) => Some(Exception::Domain { name: domain.to_owned(), itself: false, port }),
        None => Some(Exception::Domain { name: bare.to_owned(), itself: true, port }),
    }
}

impl Exception {
    fn covers(&self, url: &Url) -> bool {
        let port_fits =
            |port: &Option<u16>| port.is_none_or(|p| p == url.port.unwrap_or(if url.https { 443 } else { 80 }));
        let host = url.host.trim_start_matches('[').trim_end_matches(']');
        match self {
            Self::All => true,
            Self::Network(net, len, port) => port_fits(port) && host.parse().is_ok_and(|ip| in_network(ip, *net, *len)),
            Self::Domain { name, itself, port } => {
                let sub = host.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.'));
                port_fits(port) && (sub || (*itself && host == name))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_follow_go() {
        let config = ProxyConfig::new(
            Some("p.example:3128"),
            Some("http://me:pw@p.example:3128"),
            Some("a.example,.b.example, 10.0.0.0/8,c.example:8443,::1"),
        );
        let proxied = |u: &str| config.select(&Url::parse(u).unwrap()).is_some();
        for direct in [
            "https://a.example/",
            "https://x.a.example/",
            "https://x.b.example/",
            "http://10.2.3.4:5000/",
            "https://c.example:8443/",
            "http://localhost:5000/",
            "http://127.0.0.1/",
        ] {
            assert!(!proxied(direct), "{direct}");
        }
        for yes in ["https://b.example/", "https://xa.example/", "https://c.example/", "http://11.0.0.1/"] {
            assert!(proxied(yes), "{yes}");
        }
        assert!(!format!("{config:?}").contains("pw"));
        let shown = config.shown(&Url::parse("https://b.example/").unwrap());
        assert_eq!(shown.as_deref(), Some("p.example:3128"));
        assert!(ProxyConfig::new(None, Some(""), None).select(&Url::parse("https://x/").unwrap()).is_none());
    }
}
