//! Files by HTTP.

use std::io::{self, Read};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use kiln_oci::{Digest, Hasher, Timestamp};

use crate::redact_url;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The server said no.
    #[error("{url}: the server answered {status}")]
    Status {
        /// The URL, without credentials.
        url: String,
        /// HTTP status.
        status: u16,
    },
    /// The server could not be reached, or the connection broke.
    #[error("{url}: {message}")]
    Transport {
        /// The URL, without credentials.
        url: String,
        /// What happened.
        message: String,
    },
    /// The content is not what it must be.
    #[error("{url}: the content is not the expected one: checksum {found}, expected {expected}")]
    Checksum {
        /// The URL, without credentials.
        url: String,
        /// What was expected.
        expected: Box<Digest>,
        /// What came.
        found: Box<Digest>,
    },
    /// More came than is allowed.
    #[error("{url}: larger than the limit of {limit} bytes")]
    TooLarge {
        /// The URL, without credentials.
        url: String,
        /// The limit.
        limit: u64,
    },
    /// The sink failed.
    #[error("{url}: can't store the content: {source}")]
    Write {
        /// The URL, without credentials.
        url: String,
        /// What the system said.
        source: io::Error,
    },
}

/// How to ask.
#[derive(Debug, Clone, Default)]
pub struct HttpOptions {
    /// `Authorization` header.
    pub authorization: Option<String>,
    /// What the content must hash to.
    pub checksum: Option<Digest>,
    /// Entity tag of what is here already.
    pub etag: Option<String>,
    /// Most bytes to accept.
    pub limit: Option<u64>,
}

/// What was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpFile {
    /// Digest of the content.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// File name, from the answer or the URL.
    pub filename: String,
    /// `Last-Modified`.
    pub modified: Option<Timestamp>,
    /// `ETag`.
    pub etag: Option<String>,
}

/// How long nothing may come, or be taken, of what is on its way.
const STALL: Duration = Duration::from_secs(60);

/// A client; made cheaply, the TLS roots are read on first use.
pub struct HttpClient {
    agent: OnceLock<ureq::Agent>,
    stall: Duration,
}

impl Default for HttpClient {
    fn default() -> Self {
        Self { agent: OnceLock::new(), stall: STALL }
    }
}

impl HttpClient {
    /// A client.
    pub fn new() -> Self {
        Self::default()
    }

    fn agent(&self) -> &ureq::Agent {
        self.agent.get_or_init(|| {
            // Fails only if a provider is installed already, which is as good.
            let _ = rustls::crypto::ring::default_provider().install_default();
            let tls = ureq::tls::TlsConfig::builder()
                .root_certs(ureq::tls::RootCerts::PlatformVerifier)
                .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .build();
            ureq::Agent::config_builder()
                .tls_config(tls)
                .http_status_as_error(false)
                .timeout_connect(Some(Duration::from_secs(20)))
                .timeout_recv_response(Some(self.stall))
                .timeout_per_read(Some(self.stall))
                .timeout_per_write(Some(self.stall))
                .redirect_auth_headers(ureq::config::RedirectAuthHeaders::Never)
                .user_agent(concat!("kiln/", env!("CARGO_PKG_VERSION")))
                .build()
                .new_agent()
        })
    }

    /// Downloads into `sink`. `None` if the server says that nothing changed since `etag`.
    pub fn get(
        &self,
        url: &str,
        options: &HttpOptions,
        sink: &mut dyn io::Write,
    ) -> Result<Option<HttpFile>, HttpError> {
        let shown = redact_url(url);
        let transport = |message: String| HttpError::Transport { url: shown.clone(), message };
        let mut request = self.agent().get(url);
        if let Some(value) = &options.authorization {
            request = request.header("Authorization", value);
        }
        if let Some(etag) = &options.etag {
            request = request.header("If-None-Match", etag);
        }
        let response = request.call().map_err(|e| transport(e.to_string()))?;
        match response.status().as_u16() {
            304 => return Ok(None),
            200 => {}
            status => return Err(HttpError::Status { url: shown, status }),
        }
        let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let (etag, disposition, modified) = (header("etag"), header("content-disposition"), header("last-modified"));
        let filename = disposition.and_then(|d| disposition_name(&d)).unwrap_or_else(|| url_name(url));
        let limit = options.limit.unwrap_or(u64::MAX);
        let expected = options.checksum.as_ref();
        let mut hasher = expected.map_or_else(Hasher::new, Digest::hasher);
        let mut body = response.into_body().into_with_config().limit(u64::MAX).reader();
        let mut size = 0;
        let mut buffer = vec![0; 128 << 10];
        loop {
            let n = body.read(&mut buffer).map_err(|e| transport(e.to_string()))?;
            if n == 0 {
                break;
            }
            size += n as u64;
            if size > limit {
                return Err(HttpError::TooLarge { url: shown, limit });
            }
            hasher.update(&buffer[..n]);
            sink.write_all(&buffer[..n]).map_err(|source| HttpError::Write { url: shown.clone(), source })?;
        }
        let digest = hasher.finish();
        if let Some(expected) = expected.filter(|e| **e != digest) {
            return Err(HttpError::Checksum { url: shown, expected: Box::new(*expected), found: Box::new(digest) });
        }
        Ok(Some(HttpFile { digest, size, filename, modified: modified.as_deref().and_then(http_date), etag }))
    }
}

/// `filename=` of a `Content-Disposition` header, if it is a plain name.
fn disposition_name(header: &str) -> Option<String> {
    let value = header.split(';').find_map(|p| p.trim().strip_prefix("filename="))?;
    plain_name(value.trim_matches('"'))
}

/// The last part of the URL's path; `download` if there is none.
fn url_name(url: &str) -> String {
    let path = url.split(['?', '#']).next().unwrap_or(url);
    let path = path.split_once("://").map_or(path, |(_, rest)| rest);
    let name = path.split_once('/').and_then(|(_, p)| p.trim_end_matches('/').rsplit('/').next());
    name.and_then(plain_name).unwrap_or_else(|| "download".to_owned())
}

fn plain_name(name: &str) -> Option<String> {
    let bad = name.is_empty() || matches!(name, "." | "..") || name.contains('/') || name.chars().any(char::is_control);
    (!bad).then(|| name.to_owned())
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, the preferred form).
fn http_date(text: &str) -> Option<Timestamp> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut parts = text.split_ascii_whitespace().skip(1);
    let day: u32 = parts.next()?.parse().ok()?;
    let month = parts.next()?;
    let month = MONTHS.iter().position(|m| *m == month)? + 1;
    let year: u32 = parts.next()?.parse().ok()?;
    let time = parts.next()?;
    format!("{year:04}-{month:02}-{day:02}T{time}Z").parse().ok()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;

    use super::*;

    /// Answers one request with `answer` and returns the request.
    fn serve(answer: Vec<u8>) -> (String, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/dir/file.txt?x=1", listener.local_addr().unwrap());
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = vec![0; 4096];
            let n = stream.read(&mut request).unwrap();
            stream.write_all(&answer).unwrap();
            String::from_utf8_lossy(&request[..n]).into_owned()
        });
        (url, thread)
    }

    #[test]
    fn a_server_that_falls_silent_is_given_up() {
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/f", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe").unwrap();
            held.recv().unwrap_err();
        });
        let client = HttpClient { stall: Duration::from_millis(50), ..HttpClient::new() };
        let error = client.get(&url, &HttpOptions::default(), &mut Vec::new()).unwrap_err();
        assert!(matches!(error, HttpError::Transport { .. }), "{error}");
        drop(hold);
        server.join().unwrap();
    }

    #[test]
    fn a_file_its_name_and_its_date() {
        let (url, _thread) = serve(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nLast-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\nETag: \"a\"\r\n\r\nhello".to_vec());
        let mut out = Vec::new();
        let file = HttpClient::new().get(&url, &HttpOptions::default(), &mut out).unwrap().unwrap();
        assert_eq!(out, b"hello");
        assert_eq!(file.filename, "file.txt");
        assert_eq!(file.modified.unwrap().seconds(), 784_111_777);
        assert_eq!(file.digest, Digest::of(b"hello"));
    }

    #[test]
    fn wrong_content_and_endless_content_are_refused() {
        let (url, _thread) = serve(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhellO".to_vec());
        let options = HttpOptions { checksum: Some(Digest::of(b"hello")), ..HttpOptions::default() };
        let got = HttpClient::new().get(&url, &options, &mut Vec::new());
        assert!(matches!(got, Err(HttpError::Checksum { .. })), "{got:?}");
        let (url, _thread) = serve(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello".to_vec());
        let options = HttpOptions { limit: Some(3), ..HttpOptions::default() };
        assert!(matches!(HttpClient::new().get(&url, &options, &mut Vec::new()), Err(HttpError::TooLarge { .. })));
        let (url, _thread) = serve(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello".to_vec());
        assert!(HttpClient::new().get(&url, &HttpOptions::default(), &mut Vec::new()).is_err(), "cut short");
    }

    #[test]
    fn names_from_servers_cannot_leave_a_directory() {
        assert_eq!(disposition_name("attachment; filename=\"../../etc/passwd\""), None);
        assert_eq!(disposition_name("attachment; filename=a.tar"), Some("a.tar".into()));
        assert_eq!(url_name("http://h/.."), "download");
        assert_eq!(url_name("http://h"), "download");
    }
}
