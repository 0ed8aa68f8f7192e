//! HTTP and `file:` transfers. Nothing here knows what it fetches; everything is capped.
//!
//! Invariants: a length that a server announces is never believed; transient failures are tried again with a growing
//! pause; a package that broke off is continued where it stopped, and the bytes on disk are hashed again, not trusted.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::Path;
use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;

use kiln_oci::Hasher;
use ureq::Agent;

use crate::aptconf::AptConf;
use crate::context::{Context, Event, redact};
use crate::error::{Error, Result};
use crate::files;

/// Pauses before the second and later tries, in units of [`Context::retry_pause`].
const PAUSES: [u32; 4] = [1, 4, 10, 20];

/// What a conditional request is compared with.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Validators {
    pub etag: Option<String>,
    pub last_modified: Option<String>,
}

/// The answer to a request for a small file.
#[derive(Debug)]
pub enum Answer {
    Body(Vec<u8>, Validators),
    NotModified,
    NotFound,
}

/// A signed name of some bytes.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    pub sha256: &'a [u8; 32],
    pub size: u64,
}

/// Makes requests.
pub struct Fetcher<'a> {
    context: &'a Context<'a>,
    conf: AptConf,
    /// One agent (with its connections) per proxy, and for https or not.
    agents: Mutex<BTreeMap<(String, bool), Agent>>,
}

impl<'a> Fetcher<'a> {
    pub fn new(context: &'a Context<'a>) -> Self {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| {
            // Fails only if the process has chosen one already, which is as good.
            let _ = rustls::crypto::ring::default_provider().install_default();
        });
        Self { context, conf: AptConf::load(context.host()), agents: Mutex::default() }
    }

    pub fn conf(&self) -> &AptConf {
        &self.conf
    }

    fn agent(&self, url: &str) -> Result<Agent> {
        let proxy = self.proxy(url).unwrap_or_default();
        let key = (proxy.clone(), url.starts_with("https:"));
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(agent) = agents.get(&key) {
            return Ok(agent.clone());
        }
        let parse = |address: &str| {
            ureq::Proxy::new(address).map_err(|error| Error::Network {
                url: redact(address),
                reason: format!("it can't be used as a proxy: {error}"),
            })
        };
        let used = if proxy.is_empty() { None } else { Some(parse(&proxy)?) };
        let agent = match used {
            Some(proxy) if !key.1 && kiln_httpproxy::takes_requests(&proxy) => {
                kiln_httpproxy::agent(self.config(None), &proxy)
            }
            used => self.config(used).into(),
        };
        agents.insert(key, agent.clone());
        Ok(agent)
    }

    /// What the caller demands, what apt is told, what the environment says, in this order. An empty text is for none.
    fn proxy(&self, url: &str) -> Option<String> {
        let environment = || self.context.environment_proxy.and_then(|proxy| proxy(url));
        self.context.proxy.clone().or_else(|| self.conf.proxy(url)).or_else(environment)
    }

    fn config(&self, proxy: Option<ureq::Proxy>) -> ureq::config::Config {
        let tls = ureq::tls::TlsConfig::builder().root_certs(ureq::tls::RootCerts::PlatformVerifier).build();
        Agent::config_builder()
            .http_status_as_error(false)
            .proxy(proxy)
            .tls_config(tls)
            .user_agent(concat!("kiln/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .max_idle_connections_per_host(self.context.downloads.max(1))
            .build()
    }

    /// Fetches a whole file of at most `limit` bytes.
    pub fn get(&self, url: &str, limit: u64, known: &Validators) -> Result<Answer> {
        if self.context.refresh == crate::Refresh::Offline {
            return Err(Error::Offline(redact(url)));
        }
        if let Some(path) = url.strip_prefix("file://") {
            return match Path::new(path).exists() {
                true => Ok(Answer::Body(files::read_limited(Path::new(path), limit)?, Validators::default())),
                false => Ok(Answer::NotFound),
            };
        }
        self.retrying(url, || self.get_once(url, limit, known))
    }

    fn get_once(&self, url: &str, limit: u64, known: &Validators) -> Result<Answer, Failure> {
        let mut request = self.agent(url).map_err(Failure::Final)?.get(url);
        if let Some(etag) = &known.etag {
            request = request.header("If-None-Match", etag);
        }
        if let Some(date) = &known.last_modified {
            request = request.header("If-Modified-Since", date);
        }
        let response = request.call().map_err(|error| network(url, &error))?;
        match response.status().as_u16() {
            200 => {}
            304 => return Ok(Answer::NotModified),
            404 | 410 => return Ok(Answer::NotFound),
            status => return Err(status_failure(url, status)),
        }
        let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let validators = Validators { etag: header("etag"), last_modified: header("last-modified") };
        let mut body = Vec::new();
        let mut reader = response.into_body().into_reader().take(limit + 1);
        loop {
            self.context.check().map_err(Failure::Final)?;
            let got = reader.by_ref().take(1 << 20).read_to_end(&mut body).map_err(|error| broken(url, &error))?;
            if got == 0 {
                break;
            }
        }
        if body.len() as u64 > limit {
            return Err(Failure::Final(Error::TooBig { what: redact(url), limit }));
        }
        Ok(Answer::Body(body, validators))
    }

    /// Downloads into `target`, unless it is there already. Other processes that want the same file wait for this one.
    pub fn download(&self, url: &str, expected: Expected<'_>, target: &Path) -> Result<()> {
        let have = |bytes: u64| self.context.send(Event::Received { bytes });
        if target.exists() {
            have(expected.size);
            return Ok(());
        }
        if self.context.refresh == crate::Refresh::Offline {
            return Err(Error::Offline(redact(url)));
        }
        let partial = self.context.dir("partial")?.join(files::hex(expected.sha256));
        let mut file = self.lock(&partial)?;
        if target.exists() {
            // Whoever held the lock has finished it.
            let _ = std::fs::remove_file(&partial);
            have(expected.size);
            return Ok(());
        }
        let done = match url.strip_prefix("file://") {
            Some(path) => self.copy_local(Path::new(path), url, expected, &mut file),
            None => {
                have(file.metadata().map_err(Error::io(&partial))?.len());
                self.retrying(url, || self.download_once(url, expected, &mut file))
            }
        };
        match done {
            Ok(()) => std::fs::rename(&partial, target).map_err(Error::io(target)),
            // Bytes that are wrong must not be continued by the next try; bytes that are missing should.
            Err(error) => {
                if !matches!(error, Error::Network { .. } | Error::Cancelled) {
                    let _ = std::fs::remove_file(&partial);
                }
                Err(error)
            }
        }
    }

    /// Opens the partial file under an exclusive lock.
    fn lock(&self, path: &Path) -> Result<File> {
        use std::os::unix::fs::MetadataExt;
        loop {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
            let file = file.map_err(Error::io(path))?;
            match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    self.context.check()?;
                    std::thread::sleep(Duration::from_millis(30));
                    continue;
                }
                Err(error) => return Err(Error::io(path)(error.into())),
            }
            // The one before us may have renamed or removed the file that we hold.
            let held = file.metadata().map_err(Error::io(path))?;
            if std::fs::metadata(path).is_ok_and(|now| now.ino() == held.ino() && now.dev() == held.dev()) {
                return Ok(file);
            }
            if let Some(dir) = path.parent() {
                std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
            }
        }
    }

    fn copy_local(&self, path: &Path, url: &str, expected: Expected<'_>, file: &mut File) -> Result<()> {
        let source = File::open(path).map_err(Error::io(path))?;
        file.set_len(0).map_err(Error::io(path))?;
        let (mut hasher, mut have) = (Hasher::new(), 0);
        self.copy(source, url, expected, (file, &mut hasher, &mut have)).map_err(Failure::into_error)?;
        finish(url, expected, hasher, have)
    }

    fn download_once(&self, url: &str, expected: Expected<'_>, file: &mut File) -> Result<(), Failure> {
        let local = |error| Failure::Final(Error::Io { path: self.context.cache.join("partial"), source: error });
        let (mut hasher, mut have) = rehash(file, expected.size).map_err(local)?;
        let mut kept = have;
        if have < expected.size || expected.size == 0 {
            let mut request = self.agent(url).map_err(Failure::Final)?.get(url);
            if have > 0 {
                request = request.header("Range", format!("bytes={have}-"));
            }
            let response = request.call().map_err(|error| network(url, &error))?;
            let resumed = response.headers().get("content-range").and_then(|v| v.to_str().ok());
            let resumed = resumed.is_some_and(|range| range.trim().starts_with(&format!("bytes {have}-")));
            match response.status().as_u16() {
                206 if have > 0 && resumed => {}
                200 | 206 | 416 if have > 0 => {
                    // The server starts over, or has something else: so do we.
                    file.set_len(0).and_then(|()| file.rewind()).map_err(local)?;
                    (hasher, have, kept) = (Hasher::new(), 0, 0);
                    if response.status() != 200 {
                        return Err(Failure::Again(Error::Http {
                            url: redact(url),
                            status: response.status().as_u16(),
                        }));
                    }
                }
                200 => {}
                status => return Err(status_failure(url, status)),
            }
            // Its own word that it has less will not change by trying again; a longer one is measured, not believed.
            let all = response.body().content_length().map(|length| have + length);
            if let Some(actual) = all.filter(|all| *all < expected.size) {
                let (url, expected) = (redact(url), expected.size);
                return Err(Failure::Final(Error::Size { url, expected, actual, more: false }));
            }
            self.copy(response.into_body().into_reader(), url, expected, (file, &mut hasher, &mut have))?;
        }
        if have < expected.size {
            let reason = format!("the transfer ended after {have} of {} bytes", expected.size);
            return Err(Failure::Again(Error::Network { url: redact(url), reason }));
        }
        match finish(url, expected, hasher, have) {
            // What an earlier try left may be what is wrong, after a crash for instance.
            Err(error) if kept > 0 => {
                file.set_len(0).map_err(local)?;
                Err(Failure::Again(error))
            }
            finished => finished.map_err(Failure::Final),
        }
    }

    /// Copies until the end, but not more than one byte above the signed size.
    fn copy(
        &self,
        mut source: impl Read,
        url: &str,
        expected: Expected<'_>,
        (file, hasher, have): (&mut File, &mut Hasher, &mut u64),
    ) -> Result<(), Failure> {
        let mut buffer = vec![0; 128 << 10];
        loop {
            self.context.check().map_err(Failure::Final)?;
            let got = match source.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(broken(url, &error)),
            };
            if *have + got as u64 > expected.size {
                let (url, actual) = (redact(url), *have + got as u64);
                return Err(Failure::Final(Error::Size { url, expected: expected.size, actual, more: true }));
            }
            file.write_all(&buffer[..got]).map_err(|error| Failure::Final(Error::io(&self.context.cache)(error)))?;
            hasher.update(&buffer[..got]);
            *have += got as u64;
            self.context.send(Event::Received { bytes: got as u64 });
        }
    }

    fn retrying<T>(&self, url: &str, mut attempt: impl FnMut() -> Result<T, Failure>) -> Result<T> {
        let mut pauses = PAUSES.iter();
        loop {
            self.context.check()?;
            match attempt() {
                Ok(value) => return Ok(value),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Again(error)) => match pauses.next() {
                    Some(pause) => std::thread::sleep(self.context.retry_pause * *pause),
                    None => return Err(give_up(url, error)),
                },
            }
        }
    }
}

/// Whether trying again can help.
enum Failure {
    Again(Error),
    Final(Error),
}

impl Failure {
    fn into_error(self) -> Error {
        match self {
            Failure::Again(error) | Failure::Final(error) => error,
        }
    }
}

fn give_up(url: &str, error: Error) -> Error {
    match error {
        Error::Network { reason, .. } => {
            let reason = format!("{reason} ({} tries)", PAUSES.len() + 1);
            Error::Network { url: redact(url), reason }
        }
        other => other,
    }
}

fn status_failure(url: &str, status: u16) -> Failure {
    let error = Error::Http { url: redact(url), status };
    if matches!(status, 408 | 425 | 429 | 500..=599) { Failure::Again(error) } else { Failure::Final(error) }
}

fn network(url: &str, error: &ureq::Error) -> Failure {
    let failure = Error::Network { url: redact(url), reason: error.to_string() };
    match error {
        ureq::Error::BadUri(_) | ureq::Error::InvalidProxyUrl | ureq::Error::TooManyRedirects => {
            Failure::Final(failure)
        }
        ureq::Error::Tls(_) | ureq::Error::Rustls(_) | ureq::Error::HostNotFound => Failure::Final(failure),
        _ => Failure::Again(failure),
    }
}

fn broken(url: &str, error: &io::Error) -> Failure {
    Failure::Again(Error::Network { url: redact(url), reason: format!("the transfer broke off: {error}") })
}

/// Hashes what an earlier try left; starts over if that is more than there can be.
fn rehash(file: &mut File, size: u64) -> io::Result<(Hasher, u64)> {
    let (mut hasher, mut have) = (Hasher::new(), 0);
    if file.metadata()?.len() > size {
        file.set_len(0)?;
    }
    file.rewind()?;
    let mut buffer = vec![0; 128 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((hasher, have)),
            got => {
                hasher.update(&buffer[..got]);
                have += got as u64;
            }
        }
    }
}

fn finish(url: &str, expected: Expected<'_>, hasher: Hasher, have: u64) -> Result<()> {
    if have != expected.size {
        return Err(Error::Size { url: redact(url), expected: expected.size, actual: have, more: false });
    }
    let actual = hasher.finish();
    match actual.bytes() == expected.sha256 {
        true => Ok(()),
        false => Err(Error::Hash { url: redact(url), expected: files::hex(expected.sha256), actual: actual.hex() }),
    }
}

/// Checks bytes in memory against what was signed.
pub fn verify_bytes(url: &str, bytes: &[u8], expected: Expected<'_>) -> Result<()> {
    let mut hasher = Hasher::new();
    hasher.update(bytes);
    finish(url, expected, hasher, bytes.len() as u64)
}
