//! Manifests: by tag or digest, verified.

use std::time::Duration;

use kiln_oci::{Descriptor, Digest, ManifestError, ManifestKind, Reference, media, parse_manifest};
use ureq::http::Method;
use ureq::http::header::ACCEPT;

use crate::client::Client;
use crate::error::Error;
use crate::http::Response;
use crate::session::{Call, Session};

/// A manifest or index as a registry has it.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// Media type, digest and size of `bytes`.
    pub descriptor: Descriptor,
    /// The bytes as received.
    pub bytes: Vec<u8>,
    /// The same, parsed.
    pub kind: ManifestKind,
}

/// `kiln_oci` refuses larger ones; one byte more shows that there is more.
const MAX_MANIFEST: usize = 4 << 20;
const MANIFEST_TIME: Duration = Duration::from_secs(120);

impl Client {
    /// Fetches what a reference names: by digest if it has one, else by tag (`latest` where there is none).
    ///
    /// The bytes are verified against the digest, and their type against the registry's declaration.
    pub fn resolve(&self, image: &Reference) -> Result<Resolved, Error> {
        self.inner.on_endpoints(image, |session| fetch_manifest(session, image))
    }

    /// Fetches a manifest that a descriptor points to, in the repository of `image`; its size is verified too.
    pub fn manifest(&self, image: &Reference, descriptor: &Descriptor) -> Result<Resolved, Error> {
        let resolved = self.resolve(&image.with_digest(descriptor.digest))?;
        match resolved.bytes.len() as u64 == descriptor.size {
            true => Ok(resolved),
            false => Err(Error::SizeMismatch {
                host: image.registry().to_owned(),
                digest: Box::new(descriptor.digest),
                expected: descriptor.size,
                actual: resolved.bytes.len().to_string(),
            }),
        }
    }

    /// The descriptor that a reference has now, without fetching it; `None` if it does not exist.
    ///
    /// It is what the registry says: good to see whether something changed, not to trust content with. Registries
    /// do not count it as a pull.
    pub fn head(&self, image: &Reference) -> Result<Option<Descriptor>, Error> {
        let result = self.inner.on_endpoints(image, |session| match head_manifest(session, image)? {
            Some(descriptor) => Ok(descriptor),
            // the answer lacks the header: get it
            None => fetch_manifest(session, image).map(|r| r.descriptor),
        });
        match result {
            Ok(descriptor) => Ok(Some(descriptor)),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }
}

fn manifest_path(image: &Reference) -> String {
    let tag = || image.tag_or_latest().unwrap_or("latest").to_owned();
    format!("manifests/{}", image.digest().map_or_else(tag, ToString::to_string))
}

fn shown(image: &Reference) -> String {
    match (image.digest(), image.tag_or_latest()) {
        (Some(digest), _) => format!("manifest {digest}"),
        (None, tag) => format!("tag {:?}", tag.unwrap_or("latest")),
    }
}

fn head_manifest(session: &Session, image: &Reference) -> Result<Option<Descriptor>, Error> {
    let (scopes, url, what) = (session.scopes("pull"), session.url(&manifest_path(image)), shown(image));
    session.retried(
        &what,
        &[200],
        || Call::new(Method::HEAD, url.clone(), &scopes).header(ACCEPT, media::ACCEPT_MANIFESTS.join(", ")),
        |response| {
            let digest = response.header("docker-content-digest").and_then(|d| d.parse::<Digest>().ok());
            let size = response.header("content-length").and_then(|l| l.parse::<u64>().ok());
            let media_type = content_type(&response).filter(|t| media::is_index(t) || media::is_manifest(t));
            let parts = digest.zip(size).zip(media_type);
            Ok(parts.map(|((digest, size), media_type)| Descriptor::new(&media_type, digest, size)))
        },
    )
}

pub(crate) fn fetch_manifest(session: &Session, image: &Reference) -> Result<Resolved, Error> {
    let (scopes, url, what) = (session.scopes("pull"), session.url(&manifest_path(image)), shown(image));
    session.retried(
        &what,
        &[200],
        || Call::new(Method::GET, url.clone(), &scopes).header(ACCEPT, media::ACCEPT_MANIFESTS.join(", ")),
        |response| read_manifest(session, image, response),
    )
}

/// The media type without its parameters.
pub(crate) fn content_type(response: &Response) -> Option<String> {
    let value = response.header("content-type")?;
    Some(value.split(';').next().unwrap_or("").trim().to_ascii_lowercase())
}

fn read_manifest(session: &Session, image: &Reference, response: Response) -> Result<Resolved, Error> {
    let host = response.host();
    let declared = content_type(&response);
    let header = response.header("docker-content-digest").and_then(|d| d.parse::<Digest>().ok());
    let announced = response.header("content-length").and_then(|l| l.parse::<usize>().ok());
    let manifest_error = |source| Error::Manifest { what: format!("{image} from {host}"), source };
    if let Some(length) = announced.filter(|l| *l > MAX_MANIFEST) {
        return Err(manifest_error(ManifestError::TooLarge(length)));
    }
    let bytes = response.bytes(MAX_MANIFEST, MANIFEST_TIME)?;
    // the digest asked for is what counts; the registry's own word is checked where there is none
    let expected = image.digest().copied().or(header);
    let digest = match &expected {
        Some(expected) => {
            let mut hasher = expected.hasher();
            hasher.update(&bytes);
            hasher.finish()
        }
        None => Digest::of(&bytes),
    };
    if let Some(expected) = expected.filter(|e| *e != digest) {
        let retry_elsewhere = session.spec.mirror;
        return Err(Error::DigestMismatch { host, expected, actual: Box::new(digest), retry_elsewhere });
    }
    let kind = parse_manifest(&bytes, declared.as_deref()).map_err(manifest_error)?;
    let own = match &kind {
        ManifestKind::Manifest(m) => m.media_type.as_str(),
        ManifestKind::Index(i) => i.media_type.as_str(),
    };
    let known = |t: &String| media::is_index(t) || media::is_manifest(t);
    let media_type = match (own, declared.filter(known), &kind) {
        ("", Some(declared), _) => declared,
        ("", None, ManifestKind::Manifest(_)) => media::OCI_MANIFEST.to_owned(),
        ("", None, ManifestKind::Index(_)) => media::OCI_INDEX.to_owned(),
        (own, ..) => own.to_owned(),
    };
    Ok(Resolved { descriptor: Descriptor::new(&media_type, digest, bytes.len() as u64), bytes, kind })
}
