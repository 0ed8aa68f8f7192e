//! Downloads: a blob as a reader that survives broken connections and does not trust what it gets.
//!
//! Invariants:
//! - never more bytes than the descriptor's size (or the caller's cap) are returned or kept; memory is one buffer;
//! - the end (`Ok(0)`) is reported only after length and digest were verified;
//! - a broken or stalled connection is replaced by one that goes on at the same byte; attempts are bounded, and only
//!   real progress gives new ones;
//! - foreign URLs are asked without any credential (CVE-2020-15157).

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_oci::{Descriptor, Digest, Hasher, Reference};
use ureq::http::Method;
use ureq::http::header::RANGE;

use crate::auth::scope::Scopes;
use crate::client::Client;
use crate::error::Error;
use crate::event::Event;
use crate::hosts::EndpointSpec;
use crate::http::{Request, Response, io_error};
use crate::retry::{Budget, RetryPolicy};
use crate::session::{Call, Inner, Session};
use crate::url::Url;

/// Bytes after a failure that count as progress, so that a connection that dies again and again is given up.
const PROGRESS: u64 = 256 * 1024;

impl Client {
    /// Opens a blob for reading from byte `offset`. With an offset of 0 the digest is verified at the end; with
    /// another one only the length is, unless [`BlobReader::with_prefix`] tells what came before.
    ///
    /// `image` says where: its tag and digest do not matter.
    pub fn blob(&self, image: &Reference, blob: &Descriptor, offset: u64) -> Result<BlobReader, Error> {
        let want = Want { digest: blob.digest, size: Some(blob.size), cap: blob.size };
        self.open(image, want, offset, &blob.urls)
    }

    /// Opens a blob whose size is not known; more than `cap` bytes are an error.
    pub fn blob_of_unknown_size(&self, image: &Reference, digest: &Digest, cap: u64) -> Result<BlobReader, Error> {
        self.open(image, Want { digest: *digest, size: None, cap }, 0, &[])
    }

    /// A small blob as a whole: a config. Its size is refused if larger than `cap`.
    pub fn small_blob(&self, image: &Reference, blob: &Descriptor, cap: u64) -> Result<Vec<u8>, Error> {
        if blob.size > cap {
            return Err(Error::SizeMismatch {
                host: image.registry().to_owned(),
                digest: Box::new(blob.digest),
                expected: blob.size,
                actual: format!("no more than the {cap} allowed here"),
            });
        }
        // the spec lets a descriptor carry small content itself
        if let Some(data) = embedded(blob) {
            return Ok(data);
        }
        let read = || -> Result<Vec<u8>, Error> {
            let mut bytes = Vec::new();
            let mut reader = self.blob(image, blob, 0)?;
            reader.read_to_end(&mut bytes).map_err(|e| match Error::from_io(e) {
                Ok(ours) => ours,
                Err(io) => io_error(image.registry(), &io),
            })?;
            Ok(bytes)
        };
        match read() {
            Err(e) if e.may_retry_elsewhere() => read(),
            other => other,
        }
    }

    fn open(&self, image: &Reference, want: Want, offset: u64, urls: &[String]) -> Result<BlobReader, Error> {
        if offset > want.cap {
            let (digest, actual) = (Box::new(want.digest), format!("no byte {offset}, where reading is to start,"));
            return Err(Error::SizeMismatch { host: image.registry().to_owned(), digest, expected: want.cap, actual });
        }
        let inner = self.inner.clone();
        let mut places: VecDeque<_> = inner
            .hosts()?
            .pull_endpoints(image)?
            .into_iter()
            .filter(|spec| !(spec.mirror && inner.is_bad(&spec.host)))
            .map(Place::Endpoint)
            .collect();
        // a registry may have a copy of a foreign layer, so it is asked first
        places.extend(urls.iter().filter_map(|u| Url::parse(u)).take(4).map(Place::Foreign));
        let hasher = (offset == 0).then(|| want.digest.hasher());
        let policy = inner.options.retry.clone();
        let mut reader = BlobReader {
            inner,
            image: image.clone(),
            want,
            places,
            current: None,
            offset,
            hasher,
            policy,
            failures: 0,
            failed_at: None,
            pace: Pace::default(),
            host: String::new(),
            mirrors: BTreeSet::new(),
            state: State::Reading,
        };
        // errors that the first request shows (not found, no access) belong to this call, not to the first read
        if reader.offset < reader.want.cap || reader.want.size != Some(reader.offset) {
            reader.connect()?;
        }
        Ok(reader)
    }
}

fn embedded(blob: &Descriptor) -> Option<Vec<u8>> {
    use base64::Engine;
    let text = blob.extra.get("data")?.as_str()?;
    let data = base64::engine::general_purpose::STANDARD.decode(text).ok()?;
    let mut hasher = blob.digest.hasher();
    hasher.update(&data);
    (data.len() as u64 == blob.size && hasher.finish() == blob.digest).then_some(data)
}

#[derive(Clone, Copy)]
struct Want {
    digest: Digest,
    size: Option<u64>,
    cap: u64,
}

enum Place {
    Endpoint(EndpointSpec),
    Foreign(Url),
}

enum State {
    Reading,
    Verified,
    Failed,
}

/// A blob on its way. Errors are [`Error`]s inside [`io::Error`]s: see [`Error::from_io`].
pub struct BlobReader {
    inner: Arc<Inner>,
    image: Reference,
    want: Want,
    /// Places to ask, the current one first.
    places: VecDeque<Place>,
    current: Option<Box<dyn Read + Send>>,
    offset: u64,
    hasher: Option<Hasher>,
    policy: RetryPolicy,
    failures: u32,
    /// Where the last failure was.
    failed_at: Option<u64>,
    pace: Pace,
    host: String,
    /// Mirrors that bytes came from.
    mirrors: BTreeSet<String>,
    state: State,
}

impl std::fmt::Debug for BlobReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobReader").field("digest", &self.want.digest).field("offset", &self.offset).finish()
    }
}

/// How fast bytes come, counting only the time spent waiting for them.
#[derive(Default)]
struct Pace {
    waited: Duration,
    bytes: u64,
}

impl BlobReader {
    /// For a download that goes on: the hash state of the bytes before the offset, so that the whole is verified.
    pub fn with_prefix(mut self, hasher: Hasher) -> Self {
        self.hasher = Some(hasher);
        self
    }

    /// Leaves the digest to the caller, who hashes the bytes anyhow. The length is still verified.
    pub fn without_digest_check(mut self) -> Self {
        self.hasher = None;
        self
    }

    /// The position in the blob.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The host that the bytes come from now.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Makes a connection at the current offset, at the first place that gives one.
    fn connect(&mut self) -> Result<(), Error> {
        loop {
            let Some(place) = self.places.front() else {
                let what = format!("blob {} in {}", self.want.digest, self.image.name());
                return Err(Error::NotFound { what, codes: Vec::new() });
            };
            let (mirror, last) = match place {
                Place::Endpoint(spec) => (spec.mirror.then(|| spec.host.clone()), self.places.len() == 1),
                Place::Foreign(_) => (None, self.places.len() == 1),
            };
            let result = self.request().and_then(|response| self.accept(response));
            match result {
                Ok(()) => return Ok(()),
                Err(Error::Cancelled) => return Err(Error::Cancelled),
                Err(e) => {
                    if let Some(mirror) = mirror {
                        self.inner.mirror_failed(&mirror, &self.image, &e);
                    }
                    if last {
                        return Err(e);
                    }
                    self.places.pop_front();
                }
            }
        }
    }

    /// One request, with retries.
    fn request(&self) -> Result<Response, Error> {
        let range = (self.offset > 0).then(|| format!("bytes={}-", self.offset));
        let what = format!("blob {}", self.want.digest);
        match self.places.front() {
            Some(Place::Endpoint(spec)) => {
                let session = self.inner.session(spec.clone())?;
                let (scopes, url) = (session.scopes("pull"), session.url(&format!("blobs/{}", self.want.digest)));
                let make = || blob_call(&url, &scopes, range.as_deref());
                session.retried(&what, &[200, 206], make, Ok)
            }
            Some(Place::Foreign(url)) => self.request_foreign(url, range, &what),
            None => Err(Error::NotFound { what, codes: Vec::new() }),
        }
    }

    fn request_foreign(&self, url: &Url, range: Option<String>, what: &str) -> Result<Response, Error> {
        let options = &self.inner.options;
        let host = url.host_port();
        let mut budget = Budget::new(&self.policy, &options.cancel, &options.events, (&host, what));
        let settings_of = |url: &Url| self.inner.settings_of(url);
        loop {
            options.cancel.check()?;
            let mut request = Request::new(Method::GET, url.clone());
            request.headers.extend(range.clone().map(|r| (RANGE, r)));
            let error = match self.inner.transport.get(request, &settings_of(url), &settings_of) {
                Ok(response) if matches!(response.status, 200 | 206) => return Ok(response),
                Ok(response) => Error::Status {
                    registry: host.clone(),
                    request: format!("GET {url}"),
                    status: response.status,
                    retry_after: crate::session::retry_after(&response.headers),
                    codes: Vec::new(),
                },
                Err(e) => e,
            };
            budget.failed(error)?;
        }
    }

    /// Checks an answer's headers against what is wanted, and positions its body at the current offset.
    fn accept(&mut self, response: Response) -> Result<(), Error> {
        self.host = response.host();
        let start = match response.status {
            206 => range_start(&response).ok_or_else(|| self.protocol("a partial answer without a usable range"))?,
            // the range was ignored: skip what we have
            _ => 0,
        };
        if start > self.offset {
            return Err(self.protocol("it sends another range than the one asked for"));
        }
        let announced = response.header("content-length").and_then(|l| l.parse::<u64>().ok());
        if let Some(total) = announced.map(|length| start.saturating_add(length)) {
            let wrong = match self.want.size {
                Some(size) => total != size,
                None => total > self.want.cap,
            };
            if wrong {
                return Err(self.wrong_size(total.to_string()));
            }
        }
        let mut reader = response.into_reader();
        let mut skip = self.offset - start;
        let mut buf = vec![0; 64 * 1024];
        while skip > 0 {
            let max = buf.len().min(usize::try_from(skip).unwrap_or(usize::MAX));
            match reader.read(&mut buf[..max]).map_err(|e| io_error(&self.host, &e))? {
                0 => return Err(self.wrong_size(format!("fewer than {}", self.offset))),
                n => skip -= n as u64,
            }
        }
        self.pace = Pace::default();
        self.current = Some(Box::new(reader));
        if let Some(Place::Endpoint(spec)) = self.places.front().filter(|p| matches!(p, Place::Endpoint(s) if s.mirror))
        {
            self.mirrors.insert(spec.host.clone());
        }
        Ok(())
    }

    fn protocol(&self, reason: &str) -> Error {
        Error::Protocol { host: self.host.clone(), reason: reason.into() }
    }

    fn wrong_size(&self, actual: String) -> Error {
        let expected = self.want.size.unwrap_or(self.want.cap);
        Error::SizeMismatch { host: self.host.clone(), digest: Box::new(self.want.digest), expected, actual }
    }

    /// A connection broke: wait, and make another, here or at the next place.
    fn recover(&mut self, error: Error) -> Result<(), Error> {
        self.current = None;
        if self.failed_at.is_none_or(|at| self.offset - at >= PROGRESS) {
            self.failures = 0;
        }
        self.failed_at = Some(self.offset);
        let (inner, what) = (self.inner.clone(), format!("blob {}", self.want.digest));
        let options = &inner.options;
        options.events.send(Event::Resumed {
            host: self.host.clone(),
            what: what.clone(),
            offset: self.offset,
            reason: error.to_string(),
        });
        let registry = self.image.registry().to_owned();
        let mut budget = Budget::new(&self.policy, &options.cancel, &options.events, (&registry, &what));
        budget.spend(self.failures);
        self.failures += 1;
        match budget.failed(error) {
            Ok(()) => {}
            Err(Error::Cancelled) => return Err(Error::Cancelled),
            // this place has failed too often
            Err(e) if self.places.len() > 1 => {
                if let Some(Place::Endpoint(spec)) = self.places.front()
                    && spec.mirror
                {
                    self.inner.mirror_failed(&spec.host, &self.image, &e);
                }
                self.places.pop_front();
                self.failures = 0;
            }
            Err(e) => return Err(e),
        }
        self.connect()
    }

    fn read_some(&mut self, buf: &mut [u8]) -> Result<usize, Error> {
        loop {
            self.inner.options.cancel.check()?;
            if self.want.size == Some(self.offset) || (self.want.size.is_none() && self.offset == self.want.cap) {
                return self.at_end();
            }
            let left = self.want.cap.saturating_sub(self.offset);
            let max = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let Some(current) = &mut self.current else {
                self.connect()?;
                continue;
            };
            let started = Instant::now();
            let result = current.read(&mut buf[..max]);
            let error = match result {
                Ok(0) if self.want.size.is_none() => return self.verify(),
                Ok(0) => io_error(&self.host, &io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    self.offset += n as u64;
                    if let Some(hasher) = &mut self.hasher {
                        hasher.update(&buf[..n]);
                    }
                    // these bytes are good; a connection that is too slow is dropped before the next read
                    if let Some(slow) = self.too_slow(started.elapsed(), n) {
                        self.recover(slow)?;
                    }
                    return Ok(n);
                }
                Err(e) => io_error(&self.host, &e),
            };
            self.recover(error)?;
        }
    }

    fn too_slow(&mut self, waited: Duration, bytes: usize) -> Option<Error> {
        let timeouts = &self.inner.transport.timeouts;
        self.pace.waited += waited;
        self.pace.bytes += bytes as u64;
        if self.pace.waited < timeouts.stall {
            return None;
        }
        let pace = std::mem::take(&mut self.pace);
        let needed = (pace.waited.as_secs_f64() * timeouts.min_rate as f64) as u64;
        let finished = self.want.size == Some(self.offset);
        (pace.bytes < needed && !finished).then(|| Error::Stalled {
            host: self.host.clone(),
            received: pace.bytes,
            seconds: pace.waited.as_secs(),
        })
    }

    /// All bytes are here: there must not be more.
    fn at_end(&mut self) -> Result<usize, Error> {
        if let Some(current) = &mut self.current {
            let mut probe = [0; 1];
            match current.read(&mut probe) {
                Ok(0) | Err(_) => {}
                Ok(_) => return Err(self.wrong_size(format!("more than {}", self.offset))),
            }
        }
        self.verify()
    }

    /// What it means that the bytes have this digest, which is not the one asked for: the error, after the mirrors that
    /// sent them are marked as bad. For callers of [`without_digest_check`](Self::without_digest_check).
    pub fn mismatch(&self, actual: Digest) -> Error {
        let (host, expected, retry_elsewhere) = (self.host.clone(), self.want.digest, !self.mirrors.is_empty());
        let error = Error::DigestMismatch { host, expected, actual: Box::new(actual), retry_elsewhere };
        // a resumed download may have parts from several: any of them may be the one that lied
        for mirror in &self.mirrors {
            self.inner.mirror_failed(mirror, &self.image, &error);
        }
        error
    }

    fn verify(&mut self) -> Result<usize, Error> {
        self.current = None;
        if let Some(actual) = self.hasher.take().map(Hasher::finish)
            && actual != self.want.digest
        {
            return Err(self.mismatch(actual));
        }
        self.state = State::Verified;
        Ok(0)
    }
}

impl Read for BlobReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.state {
            State::Verified => return Ok(0),
            State::Failed => return Err(io::Error::other("the download has failed before")),
            State::Reading if buf.is_empty() => return Ok(0),
            State::Reading => {}
        }
        self.read_some(buf).map_err(|e| {
            self.state = State::Failed;
            self.current = None;
            e.into_io()
        })
    }
}

fn blob_call<'a>(url: &Url, scopes: &'a Scopes, range: Option<&str>) -> Call<'a> {
    let call = Call::new(Method::GET, url.clone(), scopes);
    match range {
        Some(range) => call.header(RANGE, range),
        None => call,
    }
}

/// `Content-Range: bytes 100-199/200`
fn range_start(response: &Response) -> Option<u64> {
    let range = response.header("content-range")?.strip_prefix("bytes ")?;
    range.split('-').next()?.trim().parse().ok()
}

/// A convenience for callers that hold a [`Session`].
impl Session {
    /// Whether a blob exists here. A redirect to another host says that it does, and where: it is not followed, as what is
    /// behind it may have been signed for GET alone.
    pub(crate) fn head_blob(&self, digest: &Digest, actions: &str) -> Result<bool, Error> {
        match self.head_blob_once(digest, actions, false)? {
            Some(answer) => Ok(answer),
            None => Ok(self.head_blob_once(digest, actions, true)?.unwrap_or(true)),
        }
    }

    /// `None` for a redirect within the registry that was not followed.
    fn head_blob_once(&self, digest: &Digest, actions: &str, follow: bool) -> Result<Option<bool>, Error> {
        let (scopes, url) = (self.scopes(actions), self.url(&format!("blobs/{digest}")));
        let answer = self.retried(
            &format!("blob {digest}"),
            &[200, 301, 302, 303, 307, 308],
            || Call { follow, ..Call::new(Method::HEAD, url.clone(), &scopes) },
            |response| Ok((response.status == 200, self.location(&response))),
        );
        match answer {
            Ok((false, Some(target))) if target.host == self.base.host => Ok(None),
            Ok(_) => Ok(Some(true)),
            Err(e) if e.is_not_found() => Ok(Some(false)),
            Err(e) => Err(e),
        }
    }
}
