//! Uploads of a stream whose length and digest are not known yet: compress while uploading.
//!
//! The writer's bytes go into a bounded window of memory; a worker thread sends them. By default everything goes in
//! one PATCH without length (docker's way, which all registries know), else in chunks with `Content-Range`, each
//! acknowledged before its bytes are dropped. After a break the registry is asked how far it came; what it lacks is
//! sent again out of the window, or, where the window has moved on, the upload ends with
//! [`Error::UploadInterrupted`] and the caller pushes the finished blob with [`Client::push_blob`].

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use kiln_oci::{Digest, Reference};
use ureq::http::Method;
use ureq::http::header::{CONTENT_RANGE, CONTENT_TYPE};

use crate::auth::scope::Scopes;
use crate::client::Client;
use crate::error::{ConnectionFault, Error};
use crate::http::{Payload, Response};
use crate::push::{MAX_RESTARTS, received, with_digest};
use crate::session::{Call, Session};
use crate::url::Url;

/// How a stream is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UploadMode {
    /// One request for everything.
    #[default]
    Stream,
    /// Requests of so many bytes each; a registry can ask for larger ones, or refuse them and get smaller ones.
    Chunked(usize),
}

/// Sent bytes that are kept for sending again, in stream mode.
const KEEP: usize = 8 << 20;
/// Bytes that the writer may be ahead.
const AHEAD: usize = 4 << 20;
const CHUNK_RANGE: (usize, usize) = (64 << 10, 32 << 20);

impl Client {
    /// Starts an upload into a repository.
    pub fn upload(&self, image: &Reference, mode: UploadMode) -> Result<BlobUpload, Error> {
        let session = self.inner.origin(image)?;
        let scopes = session.scopes("pull,push");
        let (location, minimum) = session.start_upload(&scopes)?;
        let chunk = match mode {
            UploadMode::Stream => None,
            UploadMode::Chunked(size) => {
                let minimum = usize::try_from(minimum).unwrap_or(usize::MAX);
                Some(size.max(minimum).clamp(CHUNK_RANGE.0, CHUNK_RANGE.1))
            }
        };
        let (keep, ahead) = chunk.map_or((KEEP, AHEAD), |chunk| (0, chunk * 2));
        let window = Arc::new(Window { state: Mutex::default(), changed: Condvar::new(), keep, ahead });
        let worker = Worker { session, scopes, window: window.clone(), location, offset: 0 };
        let spawned = std::thread::Builder::new().name("upload".into()).spawn(move || worker.run(chunk));
        let thread = spawned.map_err(|source| Error::Source { digest: "a new layer".into(), source })?;
        Ok(BlobUpload { window, worker: Some(thread), written: 0 })
    }
}

/// An upload in progress. Dropped without [`finish`](Self::finish), it is abandoned.
pub struct BlobUpload {
    window: Arc<Window>,
    worker: Option<JoinHandle<Result<(), Error>>>,
    written: u64,
}

impl std::fmt::Debug for BlobUpload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobUpload").field("written", &self.written).finish()
    }
}

impl BlobUpload {
    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Waits until everything is sent, and commits it under its digest, which the registry checks.
    pub fn finish(mut self, digest: &Digest) -> Result<u64, Error> {
        {
            let mut state = self.window.lock();
            state.end = End::Commit(*digest);
        }
        self.window.changed.notify_all();
        self.join()?;
        Ok(self.written)
    }

    fn join(&mut self) -> Result<(), Error> {
        match self.worker.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            // the worker does not panic; if it did, nothing was committed
            Some(Err(_)) | None => Err(Error::Cancelled),
        }
    }
}

impl Write for BlobUpload {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let mut state = self.window.lock();
        loop {
            if state.stopped {
                drop(state);
                return Err(self.join().err().unwrap_or(Error::Cancelled).into_io());
            }
            let room = self.window.ahead.saturating_sub(state.unread());
            if room > 0 {
                let n = room.min(buf.len());
                state.bytes.extend(&buf[..n]);
                self.written += n as u64;
                drop(state);
                self.window.changed.notify_all();
                return Ok(n);
            }
            state = self.window.wait(state);
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for BlobUpload {
    fn drop(&mut self) {
        if self.worker.is_some() {
            self.window.lock().end = End::Abandon;
            self.window.changed.notify_all();
            let _ = self.join();
        }
    }
}

/// The bytes between what may be forgotten and what was written.
struct Window {
    state: Mutex<State>,
    changed: Condvar,
    keep: usize,
    ahead: usize,
}

#[derive(Default)]
struct State {
    bytes: VecDeque<u8>,
    /// Offset of the first byte kept.
    start: u64,
    /// Offset up to which bytes were sent (stream) or acknowledged (chunks).
    done: u64,
    end: End,
    /// The worker has ended.
    stopped: bool,
}

#[derive(Default, Clone, Copy)]
enum End {
    #[default]
    Open,
    Commit(Digest),
    Abandon,
}

impl State {
    fn written(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    fn unread(&self) -> usize {
        usize::try_from(self.written() - self.done.min(self.written())).unwrap_or(usize::MAX)
    }

    fn advance(&mut self, done: u64, keep: usize) {
        self.done = self.done.max(done);
        let forget = self.done.saturating_sub(self.start).saturating_sub(keep as u64);
        let forget = usize::try_from(forget).unwrap_or(usize::MAX).min(self.bytes.len());
        self.bytes.drain(..forget);
        self.start += forget as u64;
    }
}

impl Window {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(|e| e.into_inner())
    }
}

/// A request body out of the window.
struct Body<'a> {
    window: &'a Window,
    position: u64,
    /// Where the chunk ends; without, bytes count as done when they are read.
    limit: Option<u64>,
    lost: bool,
}

impl Read for Body<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut state = self.window.lock();
        loop {
            if matches!(state.end, End::Abandon) {
                return Err(io::Error::other("abandoned"));
            }
            if self.position < state.start {
                self.lost = true;
                return Err(io::Error::other("these bytes are gone"));
            }
            let until = self.limit.map_or(state.written(), |l| l.min(state.written()));
            let left = usize::try_from(until.saturating_sub(self.position)).unwrap_or(usize::MAX);
            if left > 0 && !buf.is_empty() {
                let from = usize::try_from(self.position - state.start).unwrap_or(usize::MAX);
                let n = copy_out(&state.bytes, from, buf, left);
                self.position += n as u64;
                if self.limit.is_none() {
                    state.advance(self.position, self.window.keep);
                    drop(state);
                    self.window.changed.notify_all();
                }
                return Ok(n);
            }
            if self.limit.is_some() || buf.is_empty() || matches!(state.end, End::Commit(_)) {
                return Ok(0);
            }
            state = self.window.wait(state);
        }
    }
}

fn copy_out(bytes: &VecDeque<u8>, from: usize, out: &mut [u8], max: usize) -> usize {
    let (a, b) = bytes.as_slices();
    let part = if from < a.len() { &a[from..] } else { &b[from - a.len()..] };
    let n = part.len().min(out.len()).min(max);
    out[..n].copy_from_slice(&part[..n]);
    n
}

struct Worker {
    session: Session,
    scopes: Scopes,
    window: Arc<Window>,
    location: Url,
    /// What the registry has.
    offset: u64,
}

struct Stopped(Arc<Window>);

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.lock().stopped = true;
        self.0.changed.notify_all();
    }
}

/// How one request went.
enum Step {
    /// All bytes are sent.
    Complete,
    More,
}

impl Worker {
    fn run(mut self, chunk: Option<usize>) -> Result<(), Error> {
        // however this ends, the writer must not wait for it any more
        let _stopped = Stopped(self.window.clone());
        let result = self.send_all(chunk).and_then(|()| self.commit());
        if result.is_err() {
            self.session.abandon(&self.location);
        }
        result
    }

    fn send_all(&mut self, mut chunk: Option<usize>) -> Result<(), Error> {
        let policy = self.session.policy();
        let session = self.session.clone();
        let (mut budget, mut restarts) = (session.budget(&policy, "upload of a new layer"), 0);
        loop {
            let step = match chunk {
                None => self.send_stream(),
                Some(size) => self.send_chunk(size),
            };
            let error = match step {
                Ok(Step::Complete) => return Ok(()),
                Ok(Step::More) => {
                    budget.progress();
                    continue;
                }
                Err(e) => e,
            };
            if matches!(self.window.lock().end, End::Abandon) {
                return Err(Error::Cancelled);
            }
            let before = self.offset;
            let reason = error.to_string();
            let refused = match error {
                Error::Status { status: 413 | 416, .. } => Some(error),
                // the registry was still busy with a broken request when it was asked for the state
                lost if lost.is_lost_upload() && restarts < MAX_RESTARTS => {
                    restarts += 1;
                    None
                }
                other => budget.failed(other).map(|()| None)?,
            };
            self.resync(reason)?;
            match (refused, chunk) {
                _ if self.offset > before => budget.progress(),
                // the registry takes smaller chunks only (GHCR: 4 MiB), or is not in its senses
                (Some(_), Some(size)) if size > CHUNK_RANGE.0 => chunk = Some(size / 2),
                (Some(error), _) => return Err(error),
                (None, _) => {}
            }
        }
    }

    /// Asks how far the registry came.
    fn resync(&mut self, reason: String) -> Result<(), Error> {
        let registry = self.session.spec.registry.clone();
        let interrupted = |at| Error::UploadInterrupted { registry, at, reason };
        let status = self.session.upload_status(&self.location, &self.scopes)?;
        let (start, written) = {
            let state = self.window.lock();
            (state.start, state.written())
        };
        let (location, came) = match status {
            Some((location, came)) if (start..=written).contains(&came) => (location, came),
            // docker-registry 2 forgets an upload whose last request broke: from the start, if all is still here
            _ if start == 0 => {
                self.session.abandon(&self.location);
                (self.session.start_upload(&self.scopes)?.0, 0)
            }
            other => return Err(interrupted(other.map_or(0, |(_, came)| came))),
        };
        (self.location, self.offset) = (location, came);
        // a part of a chunk may have been taken: the writer may go on by as much
        self.window.lock().advance(came, self.window.keep);
        self.window.changed.notify_all();
        Ok(())
    }

    /// One request that ends when the writer does.
    fn send_stream(&mut self) -> Result<Step, Error> {
        let window = self.window.clone();
        let mut body = Body { window: &window, position: self.offset, limit: None, lost: false };
        let response = self.patch(Payload::Stream(&mut body, None), None)?;
        let sent = body.position;
        let came = self.taken(response)?.unwrap_or(sent);
        match came == sent {
            true => {
                self.offset = sent;
                Ok(Step::Complete)
            }
            false => Err(self.broken("the registry has not taken everything")),
        }
    }

    /// One chunk, when there is enough for it.
    fn send_chunk(&mut self, size: usize) -> Result<Step, Error> {
        let window = self.window.clone();
        let end = {
            let mut state = window.lock();
            loop {
                match state.end {
                    End::Abandon => return Err(Error::Cancelled),
                    End::Commit(_) if state.written() == self.offset => return Ok(Step::Complete),
                    End::Open if state.written() - self.offset < size as u64 => state = window.wait(state),
                    _ => break (self.offset + size as u64).min(state.written()),
                }
            }
        };
        let mut body = Body { window: &window, position: self.offset, limit: Some(end), lost: false };
        let range = format!("{}-{}", self.offset, end - 1);
        let response = self.patch(Payload::Stream(&mut body, Some(end - self.offset)), Some(range))?;
        let came = self.taken(response)?.unwrap_or(end);
        if came <= self.offset || came > end {
            let reason = format!("it reports {came} bytes of an upload after {end} were sent");
            return Err(Error::Protocol { host: self.session.spec.host.clone(), reason });
        }
        self.offset = came;
        window.lock().advance(came, 0);
        window.changed.notify_all();
        Ok(Step::More)
    }

    fn patch<'a>(&'a self, payload: Payload<'a>, range: Option<String>) -> Result<Response, Error> {
        let mut headers = vec![(CONTENT_TYPE, "application/octet-stream".to_owned())];
        headers.extend(range.map(|r| (CONTENT_RANGE, r)));
        let (method, url, scopes) = (Method::PATCH, self.location.clone(), &self.scopes);
        self.session.call(Call { method, url, headers, payload, scopes, commit: true })
    }

    /// Takes over the next location; gives the number of bytes the registry says it has, if it says so.
    fn taken(&mut self, response: Response) -> Result<Option<u64>, Error> {
        match response.status {
            200 | 201 | 202 | 204 => {
                if let Some(next) = self.session.location(&response) {
                    self.location = next;
                }
                let came = response.header("range").is_some().then(|| received(&response));
                response.discard();
                Ok(came)
            }
            // credentials were renewed: start again from what the registry has
            401 => Err(self.broken("log-in expired during an upload")),
            _ => {
                let shown = format!("PATCH {}", self.location);
                Err(self.session.failure(response, "upload of a new layer", &shown))
            }
        }
    }

    fn broken(&self, reason: &str) -> Error {
        let host = self.session.spec.host.clone();
        Error::Connection { host, reason: reason.into(), fault: ConnectionFault::Broken }
    }

    fn commit(&mut self) -> Result<(), Error> {
        let End::Commit(digest) = self.window.lock().end else { return Err(Error::Cancelled) };
        let url = with_digest(&self.location, &digest);
        let make = || {
            let mut call = Call::new(Method::PUT, url.clone(), &self.scopes);
            call.payload = Payload::Bytes(&[]);
            call.commit = true;
            call
        };
        let what = format!("upload of {digest}");
        let result = self.session.retried(&what, &[200, 201, 202, 204], make, |response| {
            response.discard();
            Ok(())
        });
        match result {
            // the answer to an earlier attempt may have been lost
            Err(e) if e.is_not_found() && self.session.head_blob(&digest, "pull,push")?.is_some() => Ok(()),
            other => other,
        }
    }
}
