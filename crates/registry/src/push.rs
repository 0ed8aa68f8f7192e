//! Uploads: blobs of known length, mounts, manifests.
//!
//! A blob of known length goes up in one PUT ("monolithic"): every registry takes that, and most take nothing else
//! well (GHCR refuses chunks over 4 MiB, ECR loses all but the first). Only what is left of a broken upload is
//! sent as a range, after the registry has said how far it came.

use std::io::{self, Read};

use kiln_oci::{Descriptor, Digest, Reference};
use serde::Deserialize;
use ureq::http::Method;
use ureq::http::header::{CONTENT_RANGE, CONTENT_TYPE};

use crate::auth::scope::Scopes;
use crate::client::Client;
use crate::error::Error;
use crate::http::{Payload, Response};
use crate::session::{Call, Session};
use crate::url::{Url, encode};

/// Content to upload, which can be read again from any offset.
pub trait BlobSource: Sync {
    /// A reader from byte `offset` to the end.
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + '_>>;
}

impl<F> BlobSource for F
where
    F: Fn(u64) -> io::Result<Box<dyn Read>> + Sync,
{
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + '_>> {
        self(offset)
    }
}

impl BlobSource for [u8] {
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + '_>> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.len());
        Ok(Box::new(&self[start..]))
    }
}

impl BlobSource for Vec<u8> {
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + '_>> {
        self.as_slice().open(offset)
    }
}

/// A file, read from its path.
impl BlobSource for std::path::PathBuf {
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + '_>> {
        use std::io::Seek;
        let mut file = std::fs::File::open(self)?;
        file.seek(io::SeekFrom::Start(offset))?;
        Ok(Box::new(file))
    }
}

/// How a blob came to be in the repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pushed {
    /// It was there.
    Exists,
    /// The registry took it from another of its repositories.
    Mounted(String),
    /// It was uploaded; so many bytes were sent, repeated ones included.
    Uploaded(u64),
}

/// How often an upload begins anew because the registry lost it.
const MAX_RESTARTS: u32 = 3;

/// Mounts that are tried before an upload.
const MAX_MOUNTS: usize = 3;

impl Client {
    /// Whether the repository has a blob.
    pub fn has_blob(&self, image: &Reference, digest: &Digest) -> Result<bool, Error> {
        self.inner.origin(image)?.head_blob(digest, "pull")
    }

    /// Puts a blob into a repository, with as little traffic as possible: nothing if it is there, a mount if one of
    /// `mount_from` (other repositories of the same registry) has it, else an upload.
    pub fn push_blob(
        &self,
        image: &Reference,
        blob: &Descriptor,
        source: &dyn BlobSource,
        mount_from: &[Reference],
    ) -> Result<Pushed, Error> {
        let session = self.inner.origin(image)?;
        if session.head_blob(&blob.digest, "pull,push")? {
            return Ok(Pushed::Exists);
        }
        let mut opened = None;
        let here = |r: &&Reference| r.registry() == image.registry() && r.repository() != image.repository();
        for from in mount_from.iter().filter(here).take(MAX_MOUNTS) {
            match session.mount(&blob.digest, from.repository())? {
                Mount::Done => return Ok(Pushed::Mounted(from.repository().to_owned())),
                Mount::Upload(location) => {
                    if let Some(unused) = opened.replace(location) {
                        session.abandon(&unused);
                    }
                }
                Mount::Refused => {}
            }
        }
        Upload { session: &session, blob, source, sent: 0 }.run(opened).map(Pushed::Uploaded)
    }

    /// Puts a manifest or index into the repository, as these bytes, under the reference's tag, or its digest where
    /// it has no tag. If the manifest refers to a subject and the registry keeps no list of referrers, the list
    /// under the subject's fallback tag is kept up to date.
    pub fn push_manifest(&self, image: &Reference, media_type: &str, bytes: &[u8]) -> Result<Descriptor, Error> {
        let session = self.inner.origin(image)?;
        let descriptor = match image.digest() {
            Some(digest) => {
                let mut hasher = digest.hasher();
                hasher.update(bytes);
                Descriptor::new(media_type, hasher.finish(), bytes.len() as u64)
            }
            None => Descriptor::of(media_type, bytes),
        };
        if let Some(expected) = image.digest().filter(|d| **d != descriptor.digest) {
            let (host, actual) = (session.spec.registry.clone(), Box::new(descriptor.digest));
            return Err(Error::DigestMismatch { host, expected: *expected, actual, retry_elsewhere: false });
        }
        let target = match (image.tag(), image.digest()) {
            (Some(tag), _) => tag.to_owned(),
            (None, Some(digest)) => digest.to_string(),
            (None, None) => "latest".to_owned(),
        };
        let knows_subject = session.put_manifest(&target, &descriptor, bytes)?;
        if let (false, Some(subject)) = (knows_subject, subject_of(bytes)) {
            session.add_referrer(image, &subject, &descriptor, bytes)?;
        }
        Ok(descriptor)
    }

    /// Deletes a manifest: by digest, or whatever the tag names now.
    pub fn delete_manifest(&self, image: &Reference) -> Result<(), Error> {
        let session = self.inner.origin(image)?;
        let digest = match image.digest() {
            Some(digest) => *digest,
            None => {
                let missing = || Error::NotFound { what: image.to_string(), codes: Vec::new() };
                self.head(image)?.ok_or_else(missing)?.digest
            }
        };
        let (scopes, url) = (session.scopes("pull,push,delete"), session.url(&format!("manifests/{digest}")));
        let make = || Call::new(Method::DELETE, url.clone(), &scopes);
        session.retried(&format!("manifest {digest}"), &[200, 202], make, |response| {
            response.discard();
            Ok(())
        })
    }
}

#[derive(Deserialize)]
struct WithSubject {
    subject: Option<Descriptor>,
}

fn subject_of(manifest: &[u8]) -> Option<Descriptor> {
    serde_json::from_slice::<WithSubject>(manifest).ok()?.subject
}

enum Mount {
    Done,
    /// The registry could not mount, and opened an upload instead.
    Upload(Url),
    Refused,
}

impl Session {
    /// `true` if the registry keeps the list of referrers itself.
    pub(crate) fn put_manifest(&self, target: &str, descriptor: &Descriptor, bytes: &[u8]) -> Result<bool, Error> {
        let (scopes, url) = (self.scopes("pull,push"), self.url(&format!("manifests/{target}")));
        let make = || {
            let mut call = Call::new(Method::PUT, url.clone(), &scopes).header(CONTENT_TYPE, &*descriptor.media_type);
            call.payload = Payload::Bytes(bytes);
            call.commit = true;
            call
        };
        self.retried(&format!("manifest {target}"), &[200, 201, 202], make, |response| {
            let knows = response.header("oci-subject").is_some();
            let said = response.header("docker-content-digest").and_then(|d| d.parse::<Digest>().ok());
            let host = response.host();
            response.discard();
            match said.filter(|d| d.algorithm() == descriptor.digest.algorithm() && *d != descriptor.digest) {
                Some(actual) => {
                    let (expected, actual) = (descriptor.digest, Box::new(actual));
                    Err(Error::DigestMismatch { host, expected, actual, retry_elsewhere: false })
                }
                None => Ok(knows),
            }
        })
    }

    /// Asks the registry to take a blob from another repository. That it can't is not an error.
    fn mount(&self, digest: &Digest, from: &str) -> Result<Mount, Error> {
        // the token must allow reading there too
        let scopes = self.scopes("pull,push").and(&format!("repository:{from}:pull"));
        let url = self.url("blobs/uploads/").with_query("mount", &digest.to_string()).with_query("from", from);
        let mut call = Call::new(Method::POST, url, &scopes);
        call.payload = Payload::Bytes(&[]);
        let response = match self.call(call) {
            Ok(response) => response,
            Err(Error::Cancelled) => return Err(Error::Cancelled),
            // a token server may refuse the other repository as a whole
            Err(_) => return Ok(Mount::Refused),
        };
        let mounted = match response.status {
            201 => Mount::Done,
            202 => self.location(&response).map_or(Mount::Refused, Mount::Upload),
            _ => Mount::Refused,
        };
        response.discard();
        Ok(mounted)
    }

    /// Starts an upload.
    fn start_upload(&self, scopes: &Scopes) -> Result<Url, Error> {
        let url = self.url("blobs/uploads/");
        let make = || {
            let mut call = Call::new(Method::POST, url.clone(), scopes);
            call.payload = Payload::Bytes(&[]);
            call
        };
        self.retried("an upload", &[202], make, |response| self.opened(response))
    }

    /// Where an upload that was just started goes on.
    pub(crate) fn opened(&self, response: Response) -> Result<Url, Error> {
        let missing =
            || Error::Protocol { host: self.spec.host.clone(), reason: "an upload without a location".into() };
        let location = self.location(&response).ok_or_else(missing);
        response.discard();
        location
    }

    pub(crate) fn location(&self, response: &Response) -> Option<Url> {
        response.url.join(response.header("location")?)
    }

    /// How far an upload came, and where it goes on; `None` if the registry does not know it any more.
    fn upload_status(&self, location: &Url, scopes: &Scopes) -> Result<Option<(Url, u64)>, Error> {
        let call = Call::new(Method::GET, location.clone(), scopes);
        let result = self.expect(call, "the state of an upload", &[200, 202, 204]).map(|response| {
            let next = self.location(&response).unwrap_or_else(|| location.clone());
            let offset = received(&response);
            response.discard();
            (next, offset)
        });
        match result {
            Ok((next, offset)) => Ok(Some((next, offset))),
            Err(Error::NotFound { .. } | Error::Status { status: 400..=499, .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Gives up an upload, so that the registry need not keep it. Not worth an error.
    pub(crate) fn abandon(&self, location: &Url) {
        let scopes = self.scopes("pull,push");
        if let Ok(response) = self.call(Call::new(Method::DELETE, location.clone(), &scopes)) {
            response.discard();
        }
    }
}

/// `Range: 0-99` means 100 bytes; `0-0` is what some registries say for nothing.
pub(crate) fn received(response: &Response) -> u64 {
    let end = response
        .header("range")
        .and_then(|r| r.trim().trim_start_matches("bytes=").rsplit_once('-')?.1.parse::<u64>().ok());
    match end {
        Some(0) | None => 0,
        Some(end) => end + 1,
    }
}

/// `location?digest=…`
pub(crate) fn with_digest(location: &Url, digest: &Digest) -> Url {
    let mut url = location.clone();
    url.path.push(if url.path.contains('?') { '&' } else { '?' });
    url.path.push_str(&format!("digest={}", encode(&digest.to_string())));
    url
}

/// A monolithic upload.
struct Upload<'a> {
    session: &'a Session,
    blob: &'a Descriptor,
    source: &'a dyn BlobSource,
    sent: u64,
}

impl Upload<'_> {
    fn run(mut self, opened: Option<Url>) -> Result<u64, Error> {
        let scopes = self.session.scopes("pull,push");
        let (policy, what) = (self.session.policy(), format!("upload of {}", self.blob.digest));
        let mut budget = self.session.budget(&policy, &what).patient();
        let (mut location, mut offset) = (opened, 0);
        let (mut best, mut restarts) = (0, 0);
        loop {
            let at = match location.take() {
                Some(at) => at,
                None => {
                    offset = 0;
                    self.session.start_upload(&scopes)?
                }
            };
            let error = match self.put(&at, offset, &scopes) {
                Ok(()) => return Ok(self.sent),
                Err(e) => e,
            };
            // what the registry kept of a resumed upload may not be what was sent: again from the start
            let invalid = error.codes().iter().any(|c| matches!(&*c.code, "DIGEST_INVALID" | "SIZE_INVALID"));
            let unusable = invalid || matches!(error, Error::Status { status: 416, .. });
            if ((unusable && offset > 0) || error.is_lost_upload()) && restarts < MAX_RESTARTS {
                restarts += 1;
                self.session.abandon(&at);
                continue;
            }
            if let Err(e) = budget.failed(error) {
                self.session.abandon(&at);
                return Err(e);
            }
            let status = loop {
                match self.session.upload_status(&at, &scopes) {
                    Err(e) if e.is_transient() => budget.failed(e)?,
                    other => break other?,
                }
            };
            match status {
                Some((next, came)) if came <= self.blob.size => {
                    (location, offset) = (Some(next), came);
                    if came > best {
                        best = came;
                        budget.progress();
                    }
                }
                Some(_) => self.session.abandon(&at),
                // committed, and only the answer was lost
                None if self.session.head_blob(&self.blob.digest, "pull,push")? => return Ok(self.sent),
                None => {}
            }
        }
    }

    /// Sends all from `offset` on and commits.
    fn put(&mut self, location: &Url, offset: u64, scopes: &Scopes) -> Result<(), Error> {
        let (digest, size) = (self.blob.digest, self.blob.size);
        let local = |source| Error::Source { digest: digest.to_string(), source };
        let reader = self.source.open(offset).map_err(local)?;
        let mut body = Body { reader, left: size - offset, failed: None };
        let url = with_digest(location, &digest);
        let shown = format!("PUT {url}");
        let mut call = Call::new(Method::PUT, url, scopes).header(CONTENT_TYPE, "application/octet-stream");
        if offset > 0 && offset < size {
            call = call.header(CONTENT_RANGE, format!("{offset}-{}", size - 1));
        }
        call.payload = Payload::Stream(&mut body, Some(size - offset));
        call.commit = true;
        let result = self.session.call(call);
        self.sent += size - offset - body.left;
        if let Some(source) = body.failed.take() {
            return Err(local(source));
        }
        let response = result?;
        match response.status {
            200 | 201 | 202 | 204 => {
                response.discard();
                Ok(())
            }
            // credentials were renewed: the same again
            401 => {
                let reason = "log-in expired during an upload".into();
                Err(Error::Connection {
                    host: self.session.spec.host.clone(),
                    reason,
                    fault: crate::error::ConnectionFault::Broken,
                })
            }
            _ => Err(self.session.failure(response, &format!("upload of {digest}"), &shown)),
        }
    }
}

/// Exactly as many bytes as announced, or an error that is remembered as a local one.
struct Body<'a> {
    reader: Box<dyn Read + 'a>,
    left: u64,
    failed: Option<io::Error>,
}

impl Read for Body<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 || buf.is_empty() {
            return Ok(0);
        }
        let max = buf.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let result = match self.reader.read(&mut buf[..max]) {
            Ok(0) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it is shorter than its descriptor says")),
            other => other,
        };
        match result {
            Ok(n) => {
                self.left -= n as u64;
                Ok(n)
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Err(e),
            Err(e) => {
                let shown = io::Error::new(e.kind(), "reading the source failed");
                self.failed = Some(e);
                Err(shown)
            }
        }
    }
}
