//! Uploads of a blob that is still being made, whose length and digest are not known yet: compress while uploading.
//!
//! Everything goes in one PATCH without length, docker's way, which all registries know; the PUT that ends the upload
//! says the digest. Nothing is tried again here: whoever has the whole blob by then uses [`Client::push_blob`], which
//! resumes, waits and tells why something does not work.

use std::io::{self, Read};

use kiln_oci::{Digest, Reference};
use ureq::http::Method;
use ureq::http::header::CONTENT_TYPE;

use crate::auth::scope::Scopes;
use crate::client::Client;
use crate::error::Error;
use crate::http::Payload;
use crate::push::{received, with_digest};
use crate::session::{Call, Session};
use crate::url::Url;

impl Client {
    /// Uploads what `body` gives until its end, and commits it under the digest that is known then; the registry checks
    /// it. Returns the number of bytes. An error of `body` or of the registry, and no digest, leave nothing behind.
    pub fn push_stream(
        &self,
        image: &Reference,
        body: &mut dyn Read,
        digest: &mut dyn FnMut() -> Option<Digest>,
    ) -> Result<u64, Error> {
        let session = self.inner.origin(image)?;
        let scopes = session.scopes("pull,push");
        let mut location = session.open_upload(&scopes)?;
        let sent = session.send_stream(&mut location, body, &scopes).and_then(|sent| {
            session.commit(&location, &digest().ok_or(Error::Cancelled)?, &scopes)?;
            Ok(sent)
        });
        sent.inspect_err(|_| session.abandon(&location))
    }
}

/// A body of which the bytes are counted.
struct Counted<'a> {
    inner: &'a mut dyn Read,
    sent: u64,
}

impl Read for Counted<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.sent += n as u64;
        Ok(n)
    }
}

impl Session {
    fn open_upload(&self, scopes: &Scopes) -> Result<Url, Error> {
        let mut call = Call::new(Method::POST, self.url("blobs/uploads/"), scopes);
        call.payload = Payload::Bytes(&[]);
        self.expect(call, "an upload", &[202]).and_then(|response| self.opened(response))
    }

    /// Sends everything; `location` is where the upload goes on then.
    fn send_stream(&self, location: &mut Url, body: &mut dyn Read, scopes: &Scopes) -> Result<u64, Error> {
        let mut body = Counted { inner: body, sent: 0 };
        let mut call = Call::new(Method::PATCH, location.clone(), scopes);
        call = call.header(CONTENT_TYPE, "application/octet-stream");
        call.payload = Payload::Stream(&mut body, None);
        call.commit = true;
        let response = self.expect(call, "upload of a new layer", &[200, 201, 202, 204])?;
        if let Some(next) = self.location(&response) {
            *location = next;
        }
        let came = response.header("range").is_some().then(|| received(&response));
        response.discard();
        match came.filter(|came| *came != body.sent) {
            // of one byte the range is 0-0, as of none
            Some(came) if body.sent > 1 => {
                let reason = format!("it reports {came} bytes of an upload after {} were sent", body.sent);
                Err(Error::Protocol { host: self.spec.host.clone(), reason })
            }
            _ => Ok(body.sent),
        }
    }

    fn commit(&self, location: &Url, digest: &Digest, scopes: &Scopes) -> Result<(), Error> {
        let mut call = Call::new(Method::PUT, with_digest(location, digest), scopes);
        call.payload = Payload::Bytes(&[]);
        call.commit = true;
        let response = self.expect(call, &format!("upload of {digest}"), &[200, 201, 202, 204])?;
        response.discard();
        Ok(())
    }
}
