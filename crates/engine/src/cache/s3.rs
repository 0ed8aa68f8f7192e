//! Caches in buckets, as BuildKit lays them out: `manifests/NAME` is the cache config, `blobs/DIGEST` are the layers.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::Read;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use kiln_oci::{Descriptor, Digest, Timestamp};
use kiln_registry::BlobSource;
use serde::{Deserialize, Serialize};
use ureq::http::{Request, Response};
use ureq::{Agent, Body, SendBody};

use super::config::MAX_CONFIG;
use super::sign::{ToSign, encode, sign};
use super::{Backend, Loaded, Location, Publish, parse_config};
use crate::error::{Error, Result};
use crate::layers::Remote;

/// How often a request is sent that fails in a way that may pass.
const TRIES: u32 = 4;
/// How long nothing may come, or be taken, of what is on its way.
const STALL: Duration = Duration::from_secs(60);

/// A place in a bucket. Recorded with layers: credentials are not part of that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// The region.
    pub region: String,
    /// The bucket.
    pub bucket: String,
    /// Name of the cache; several when exporting, with `;` between them.
    pub name: String,
    /// Another server than Amazon's.
    pub endpoint: Option<String>,
    /// The bucket is part of the path rather than of the host.
    pub path_style: bool,
    /// What keys of blobs begin with.
    pub blobs: String,
    /// What keys of manifests begin with.
    pub manifests: String,
    /// Who asks.
    #[serde(skip)]
    pub credentials: Option<Credentials>,
    /// Uploads at once.
    #[serde(skip)]
    pub parallel: usize,
}

/// An access key.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Its id.
    pub id: String,
    /// The secret.
    pub secret: String,
    /// The token of a session.
    pub session: Option<String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Access keys by bucket, for layers that are fetched later than their cache was read.
#[derive(Debug, Default)]
pub struct Keys {
    known: Mutex<BTreeMap<String, Credentials>>,
    /// Those of the environment.
    pub default: Option<Credentials>,
}

impl Keys {
    /// With the key of the environment.
    pub fn new(default: Option<Credentials>) -> Self {
        Self { known: Mutex::default(), default }
    }

    fn of(&self, bucket: &Bucket) -> Option<Credentials> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let place = bucket.base();
        if let Some(given) = &bucket.credentials {
            known.insert(place, given.clone());
            return Some(given.clone());
        }
        known.get(&place).cloned().or_else(|| self.default.clone())
    }
}

impl Bucket {
    /// The URL of the bucket, without a slash at the end.
    fn base(&self) -> String {
        let endpoint = self.endpoint.clone().unwrap_or_else(|| format!("https://s3.{}.amazonaws.com", self.region));
        let (scheme, host) = endpoint.split_once("://").unwrap_or(("https", &endpoint));
        let host = host.trim_end_matches('/');
        match self.path_style {
            true => format!("{scheme}://{host}/{}", self.bucket),
            false => format!("{scheme}://{}.{host}", self.bucket),
        }
    }
}

/// A bucket as a place for caches.
pub(super) struct S3 {
    bucket: Bucket,
    credentials: Option<Credentials>,
    agent: &'static Agent,
}

impl S3 {
    /// With the best key that is known.
    pub fn new(bucket: &Bucket, keys: &Keys) -> Self {
        Self { bucket: bucket.clone(), credentials: keys.of(bucket), agent: agent() }
    }

    fn blob_key(&self, digest: &Digest) -> String {
        format!("{}{digest}", self.bucket.blobs)
    }

    /// One request, with a body that can be read again. Answers that may be better later are asked for again.
    fn send(&self, method: &str, key: &str, body: Option<(&Descriptor, &dyn BlobSource)>) -> Result<Response<Body>> {
        let mut last = None;
        for attempt in 0..TRIES {
            if attempt > 0 {
                std::thread::sleep(Duration::from_millis(100 << attempt));
            }
            match self.send_once(method, key, body) {
                Ok(answer) if !matches!(answer.status().as_u16(), 429 | 500..) => return Ok(answer),
                Ok(answer) => last = Some(self.refused(method, key, answer)),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or(Error::Cancelled))
    }

    fn send_once(
        &self,
        method: &str,
        key: &str,
        body: Option<(&Descriptor, &dyn BlobSource)>,
    ) -> Result<Response<Body>> {
        let url = format!("{}/{}", self.bucket.base(), encode(key));
        let failed = |what: String| Error::request(format!("{method} {url}: {what}"));
        let mut request = Request::builder().method(method).uri(&url);
        let hash = body.map_or_else(|| Digest::of(b""), |(blob, _)| blob.digest);
        let hash = if hash.algorithm() == "sha256" { hash.hex() } else { "UNSIGNED-PAYLOAD".to_owned() };
        if let Some(credentials) = &self.credentials {
            let rest = url.split_once("://").map_or("", |(_, rest)| rest);
            let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
            let to_sign = ToSign {
                method,
                host,
                path: &format!("/{path}"),
                headers: &[],
                body: &hash,
                region: &self.bucket.region,
                at: Timestamp::now(),
            };
            for (name, value) in sign(&to_sign, credentials).into_iter().filter(|(n, _)| n != "host") {
                request = request.header(name, value);
            }
        }
        let answer = match body {
            None => self.agent.run(request.body(()).map_err(|e| failed(e.to_string()))?),
            Some((blob, source)) => {
                let mut reader = source.open(0).map_err(|e| failed(e.to_string()))?;
                let request = request.header("content-length", blob.size.to_string());
                self.agent.run(request.body(SendBody::from_reader(&mut reader)).map_err(|e| failed(e.to_string()))?)
            }
        };
        answer.map_err(|e| failed(e.to_string()))
    }

    fn refused(&self, method: &str, key: &str, answer: Response<Body>) -> Error {
        let status = answer.status().as_u16();
        let mut text = String::new();
        let _ = answer.into_body().into_reader().take(4096).read_to_string(&mut text);
        let code =
            text.split_once("<Code>").and_then(|(_, t)| t.split_once("</Code>")).map(|(code, _)| format!(" {code}"));
        let base = self.bucket.base();
        Error::request(format!("{method} {base}/{key}: the server answered {status}{}", code.unwrap_or_default()))
    }

    fn get(&self, key: &str) -> Result<Box<dyn Read + Send>> {
        let answer = self.send("GET", key, None)?;
        if answer.status().as_u16() != 200 {
            return Err(self.refused("GET", key, answer));
        }
        Ok(Box::new(answer.into_body().into_reader()))
    }

    fn upload(&self, key: &str, blob: &Descriptor, source: &dyn BlobSource) -> Result<()> {
        let answer = self.send("PUT", key, Some((blob, source)))?;
        if !answer.status().is_success() {
            return Err(self.refused("PUT", key, answer));
        }
        Ok(())
    }
}

/// One pool of connections for all buckets.
fn agent() -> &'static Agent {
    static AGENT: OnceLock<Agent> = OnceLock::new();
    AGENT.get_or_init(|| {
        // Fails only if a provider is installed already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let tls = ureq::tls::TlsConfig::builder()
            .root_certs(ureq::tls::RootCerts::PlatformVerifier)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            // A signature is for one host: whoever redirects would get what it is not for.
            .max_redirects(0)
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(STALL))
            .timeout_per_read(Some(STALL))
            .timeout_per_write(Some(STALL))
            .user_agent(concat!("kiln/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent()
    })
}

impl Backend for S3 {
    fn name(&self) -> String {
        format!("s3://{}/{}{}", self.bucket.bucket, self.bucket.manifests, self.bucket.name)
    }

    fn load(&self) -> Result<Loaded> {
        let name = self.bucket.name.split(';').next().unwrap_or_default();
        let mut bytes = Vec::new();
        let reader = self.get(&format!("{}{name}", self.bucket.manifests))?;
        let read = reader.take(MAX_CONFIG + 1).read_to_end(&mut bytes);
        read.map_err(|e| Error::request(format!("{}: {e}", self.name())))?;
        if bytes.len() as u64 > MAX_CONFIG {
            return Err(Error::request(format!("the cache config has more than {MAX_CONFIG} bytes")));
        }
        let config = parse_config(&bytes)?;
        let noted = |l: &super::config::CacheLayer| {
            let annotations = l.annotations.as_ref().filter(|_| !l.base)?;
            Some((l.blob, Descriptor::new(&annotations.media_type, l.blob, annotations.size)))
        };
        let blobs: HashMap<Digest, Descriptor> = config.layers.iter().filter_map(noted).collect();
        Ok(Loaded::Cache(config, blobs))
    }

    fn remote(&self) -> Remote {
        Remote { reference: String::new(), cache: Some(Location::S3(Box::new(self.bucket.clone()))) }
    }

    fn put(&self, blob: &Descriptor, source: &dyn BlobSource) -> Result<u64> {
        let key = self.blob_key(&blob.digest);
        let head = self.send("HEAD", &key, None)?;
        match head.status().as_u16() {
            200 => return Ok(0),
            // Who may not list is told 403 for what is not there.
            403 | 404 => {}
            _ => return Err(self.refused("HEAD", &key, head)),
        }
        self.upload(&key, blob, source)?;
        Ok(blob.size)
    }

    fn open(&self, blob: &Descriptor) -> Result<Box<dyn Read + Send>> {
        Ok(Box::new(self.get(&self.blob_key(&blob.digest))?.take(blob.size.saturating_add(1))))
    }

    fn publish(&self, cache: &Publish<'_>) -> Result<()> {
        let config = Descriptor::of("application/json", cache.config);
        for name in self.bucket.name.split(';').filter(|n| !n.is_empty()) {
            self.upload(&format!("{}{name}", self.bucket.manifests), &config, &cache.config.to_vec())?;
        }
        Ok(())
    }

    fn parallel(&self) -> usize {
        self.bucket.parallel.clamp(1, 64)
    }
}
