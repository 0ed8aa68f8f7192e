//! The few URL operations the protocol needs: origins, `Location` resolution, queries.

use std::fmt;

/// An absolute http or https URL without user information and fragment.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Url {
    pub https: bool,
    /// Lower-case; IPv6 with brackets.
    pub host: String,
    pub port: Option<u16>,
    /// Starts with `/`; with the query.
    pub path: String,
}

impl Url {
    /// Parses an absolute URL. User information is dropped: a credential comes from the keychain only.
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let https = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let rest = rest.split('#').next().unwrap_or("");
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let (host, port) = split_port(authority)?;
        let path = match path.starts_with('/') {
            true => path.to_owned(),
            false => format!("/{path}"),
        };
        let ok = path.bytes().all(|b| b.is_ascii_graphic());
        ok.then(|| Self { https, host: host.to_ascii_lowercase(), port, path })
    }

    pub fn new(https: bool, host_port: &str, path: impl Into<String>) -> Option<Self> {
        let (host, port) = split_port(host_port)?;
        Some(Self { https, host: host.to_ascii_lowercase(), port, path: path.into() })
    }

    fn effective_port(&self) -> u16 {
        self.port.unwrap_or(if self.https { 443 } else { 80 })
    }

    /// Scheme, host and port are equal: credentials for one may go to the other.
    pub fn same_origin(&self, other: &Self) -> bool {
        self.https == other.https && self.host == other.host && self.effective_port() == other.effective_port()
    }

    /// `host` or `host:port`, as written.
    pub fn host_port(&self) -> String {
        match self.port {
            Some(port) => format!("{}:{port}", self.host),
            None => self.host.clone(),
        }
    }

    /// Resolves a `Location` header. A registry behind a TLS-terminating proxy often names itself with `http:`:
    /// the same host keeps https, so that neither content nor credentials leave TLS.
    pub fn join(&self, location: &str) -> Option<Self> {
        if let Some(rest) = location.strip_prefix("//") {
            return Self::parse(&format!("{}://{rest}", if self.https { "https" } else { "http" }));
        }
        if location.starts_with('/') {
            return Self::parse(&format!("{}{location}", self.origin()));
        }
        if location.contains("://") {
            let mut url = Self::parse(location)?;
            let downgraded = self.https && !url.https && self.host == url.host;
            if downgraded && (url.port.is_none_or(|p| p == 80) || url.port == self.port) {
                (url.https, url.port) = (true, self.port);
            }
            return Some(url);
        }
        let base = self.path.split('?').next().unwrap_or("/");
        let dir = base.rsplit_once('/').map_or("", |(dir, _)| dir);
        Self::parse(&format!("{}{dir}/{location}", self.origin()))
    }

    fn origin(&self) -> String {
        format!("{}://{}", if self.https { "https" } else { "http" }, self.host_port())
    }

    /// The same URL with another query parameter; the value is percent-encoded.
    pub fn with_query(mut self, key: &str, value: &str) -> Self {
        self.path.push(if self.path.contains('?') { '&' } else { '?' });
        self.path.push_str(&format!("{key}={}", encode(value)));
        self
    }

    /// Everything, for the request only.
    pub fn full(&self) -> String {
        format!("{}{}", self.origin(), self.path)
    }

    /// The host is the local machine by address or by its reserved name.
    pub fn is_loopback(&self) -> bool {
        is_loopback(&self.host)
    }
}

/// Shown without the query, where signed links carry their signatures.
impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin(), self.path.split('?').next().unwrap_or(""))
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// `host[:port]`, IPv6 in brackets.
pub(crate) fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port.parse().ok()?)),
        _ => (authority, None),
    };
    let plain = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let ok = match plain {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_')),
    };
    ok.then_some((host, port))
}

/// 127.0.0.0/8, ::1 and `localhost`; `host` without port.
pub(crate) fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.eq_ignore_ascii_case("localhost") || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Percent-encoding of a query value.
pub(crate) fn encode(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for b in value.bytes() {
        match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(b as char),
            _ => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(s: &str) -> Url {
        Url::parse(s).unwrap()
    }

    #[test]
    fn locations_resolve_and_keep_tls() {
        let base = url("https://reg.example:5000/v2/a/blobs/uploads/");
        assert_eq!(base.join("/v2/x?y=1").unwrap().full(), "https://reg.example:5000/v2/x?y=1");
        assert_eq!(base.join("abc").unwrap().full(), "https://reg.example:5000/v2/a/blobs/uploads/abc");
        assert_eq!(base.join("http://reg.example/v2/x").unwrap().full(), "https://reg.example:5000/v2/x");
        assert_eq!(base.join("https://cdn.example/x").unwrap().full(), "https://cdn.example/x");
        assert!(base.join("http://reg.example:8080/x").is_some_and(|u| !u.https));
        assert!(base.join("ftp://reg.example/x").is_none());
    }

    #[test]
    fn user_information_and_queries_are_not_shown() {
        let u = url("https://user:pw@h.example/p?sig=secret#f");
        assert_eq!(u.to_string(), "https://h.example/p");
        assert!(!u.full().contains("pw"));
        assert_eq!(format!("{u:?}"), "https://h.example/p");
    }

    #[test]
    fn origins() {
        assert!(url("https://a.example/x").same_origin(&url("https://A.example:443/y")));
        assert!(!url("https://a.example/").same_origin(&url("http://a.example/")));
        assert!(!url("https://a.example/").same_origin(&url("https://a.example:444/")));
        assert!(!url("https://a.example/").same_origin(&url("https://b.a.example/")));
    }

    #[test]
    fn loopback_is_by_address_or_reserved_name_only() {
        for yes in ["127.0.0.1", "127.9.9.9", "[::1]", "localhost", "LOCALHOST"] {
            assert!(is_loopback(yes), "{yes}");
        }
        for no in ["127.0.0.1.example.com", "localhost.example.com", "10.0.0.1", "[::2]"] {
            assert!(!is_loopback(no), "{no}");
        }
    }

    #[test]
    fn malformed_urls_are_refused() {
        for bad in ["", "http://", "http://a b/", "http://h/\r\nX: y", "http://[zz]/", "http://h:99999/", "h/p"] {
            assert!(Url::parse(bad).is_none(), "{bad:?}");
        }
    }
}
