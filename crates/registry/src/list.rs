//! Lists: tags, repositories, referrers.

use std::time::Duration;

use kiln_oci::{Descriptor, Digest, Index, ManifestKind, Reference, media, parse_manifest};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use ureq::http::Method;
use ureq::http::header::ACCEPT;

use crate::auth::scope::Scopes;
use crate::client::Client;
use crate::error::Error;
use crate::http::Response;
use crate::session::{Call, Session};
use crate::url::Url;

const MAX_PAGE: usize = 8 << 20;
const MAX_PAGES: usize = 1000;
const PAGE_TIME: Duration = Duration::from_secs(60);

#[derive(Deserialize)]
struct Tags {
    // `null` is what some registries say for none
    tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Catalog {
    repositories: Option<Vec<String>>,
}

impl Client {
    /// All tags of a repository, in the registry's order.
    pub fn tags(&self, image: &Reference) -> Result<Vec<String>, Error> {
        let session = self.inner.origin(image)?;
        let scopes = session.scopes("pull");
        let url = session.url("tags/list").with_query("n", "1000");
        let pages: Vec<Tags> = session.pages(url, &scopes, "the list of tags")?;
        Ok(pages.into_iter().flat_map(|p| p.tags.unwrap_or_default()).collect())
    }

    /// All repositories of a registry, where it tells.
    pub fn catalog(&self, registry: &str) -> Result<Vec<String>, Error> {
        let session = self.host(registry)?;
        let scopes = Scopes::default().and("registry:catalog:*");
        let url = Url { path: "/v2/_catalog?n=1000".into(), ..session.base.clone() };
        let pages: Vec<Catalog> = session.pages(url, &scopes, "the list of repositories")?;
        Ok(pages.into_iter().flat_map(|p| p.repositories.unwrap_or_default()).collect())
    }

    /// The manifests that refer to `subject`, of one artifact type or of all; from the registry's list or, where it
    /// has none, from the index under the fallback tag (distribution spec, "Listing Referrers").
    pub fn referrers(
        &self,
        image: &Reference,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, Error> {
        let session = self.inner.origin(image)?;
        let scopes = session.scopes("pull");
        let mut url = session.url(&format!("referrers/{subject}"));
        if let Some(wanted) = artifact_type {
            url = url.with_query("artifactType", wanted);
        }
        let mut all = match session.pages::<Index>(url, &scopes, "the list of referrers") {
            Ok(pages) => pages.into_iter().flat_map(|page| page.manifests).collect(),
            Err(e) if e.is_not_found() || matches!(e, Error::Status { status: 400..=499, .. }) => {
                session.fallback_index(image, subject)?.map(|index| index.manifests).unwrap_or_default()
            }
            Err(e) => return Err(e),
        };
        // a registry need not filter
        let type_of = |d: &Descriptor| d.extra.get("artifactType").and_then(|t| t.as_str().map(str::to_owned));
        all.retain(|d| artifact_type.is_none_or(|wanted| type_of(d).as_deref() == Some(wanted)));
        Ok(all)
    }
}

fn fallback_tag(subject: &Digest) -> String {
    format!("{}-{}", subject.algorithm(), subject.hex())
}

impl Session {
    /// Follows `Link: <…>; rel="next"`.
    fn pages<T: DeserializeOwned>(&self, first: Url, scopes: &Scopes, what: &str) -> Result<Vec<T>, Error> {
        let (mut pages, mut next) = (Vec::new(), Some(first));
        let mut seen = std::collections::HashSet::new();
        while let Some(url) = next.take() {
            if !seen.insert(url.full()) || pages.len() >= MAX_PAGES {
                let reason = format!("{what} does not end");
                return Err(Error::Protocol { host: self.spec.host.clone(), reason });
            }
            let make = || {
                Call::new(Method::GET, url.clone(), scopes)
                    .header(ACCEPT, format!("application/json, {}", media::OCI_INDEX))
            };
            let (page, link) = self.retried(what, &[200], make, |response| {
                let (link, host) = (next_link(&response), response.host());
                let bytes = response.bytes(MAX_PAGE, PAGE_TIME)?;
                let malformed = |e| Error::Protocol { host, reason: format!("{what} is not the JSON expected: {e}") };
                Ok((serde_json::from_slice(&bytes).map_err(malformed)?, link))
            })?;
            pages.push(page);
            // another host's page would be a way to be sent anywhere
            next = link.filter(|l| l.same_origin(&self.base));
        }
        Ok(pages)
    }

    fn fallback_index(&self, image: &Reference, subject: &Digest) -> Result<Option<Index>, Error> {
        let malformed =
            |e: kiln_oci::ReferenceError| Error::Protocol { host: self.spec.host.clone(), reason: e.to_string() };
        let tagged = image.with_tag(&fallback_tag(subject)).map_err(malformed)?;
        match crate::pull::fetch_manifest(self, &tagged) {
            Ok(resolved) => match resolved.kind {
                ManifestKind::Index(index) => Ok(Some(index)),
                ManifestKind::Manifest(_) => Ok(None),
            },
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Adds a manifest to the index under its subject's fallback tag.
    pub(crate) fn add_referrer(
        &self,
        image: &Reference,
        subject: &Descriptor,
        referrer: &Descriptor,
        bytes: &[u8],
    ) -> Result<(), Error> {
        let mut index = self.fallback_index(image, &subject.digest)?.unwrap_or_else(|| Index {
            schema_version: 2,
            media_type: media::OCI_INDEX.to_owned(),
            manifests: Vec::new(),
            annotations: Default::default(),
            extra: Default::default(),
        });
        if index.manifests.iter().any(|d| d.digest == referrer.digest) {
            return Ok(());
        }
        let mut entry = referrer.clone();
        if let Ok(ManifestKind::Manifest(manifest)) = parse_manifest(bytes, None) {
            let config_type = manifest.config.media_type.clone();
            let artifact_type = manifest.extra.get("artifactType").cloned().unwrap_or_else(|| config_type.into());
            entry.extra.insert("artifactType".into(), artifact_type);
            entry.annotations = manifest.annotations;
        }
        index.manifests.push(entry);
        let malformed = |e: serde_json::Error| Error::Protocol { host: self.spec.host.clone(), reason: e.to_string() };
        let bytes = serde_json::to_vec(&index).map_err(malformed)?;
        let descriptor = Descriptor::of(media::OCI_INDEX, &bytes);
        self.put_manifest(&fallback_tag(&subject.digest), &descriptor, &bytes).map(drop)
    }
}

fn next_link(response: &Response) -> Option<Url> {
    response.headers.get_all("link").iter().filter_map(|v| v.to_str().ok()).find_map(|value| {
        let (target, params) = value.trim().strip_prefix('<')?.split_once('>')?;
        let is_next = params.split(';').any(|p| {
            let p = p.trim();
            p.eq_ignore_ascii_case("rel=next") || p.eq_ignore_ascii_case("rel=\"next\"")
        });
        if is_next { response.url.join(target) } else { None }
    })
}
