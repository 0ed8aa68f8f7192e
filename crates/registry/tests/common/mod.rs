//! What the tests share: a registry with a fault proxy, clients that do not wait, images.
#![allow(dead_code)]

use std::io::Read;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kiln_oci::{Descriptor, Reference, media};
use kiln_registry::testing::{DockerRegistry, FaultProxy, RegistryOptions};
use kiln_registry::{Client, ClientOptions, Error, EventSink, RetryPolicy, Timeouts};

/// Events as text, in order.
#[derive(Clone, Default)]
pub struct Events(Arc<Mutex<Vec<String>>>);

impl Events {
    pub fn sink(&self) -> EventSink {
        let all = self.0.clone();
        EventSink::new(move |e| all.lock().unwrap().push(e.to_string()))
    }

    pub fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    pub fn contain(&self, part: &str) -> bool {
        self.all().iter().any(|e| e.contains(part))
    }
}

/// Options of a client that retries without waiting.
pub fn options(events: &Events) -> ClientOptions {
    ClientOptions {
        events: events.sink(),
        retry: RetryPolicy { base: Duration::from_millis(1), ..RetryPolicy::default() },
        timeouts: Timeouts { stall: Duration::from_secs(5), ..Timeouts::default() },
        ..ClientOptions::default()
    }
}

pub fn client() -> Client {
    Client::new(options(&Events::default()))
}

/// A registry behind a fault proxy, and a client that talks to the proxy.
pub struct Setup {
    pub registry: DockerRegistry,
    pub proxy: FaultProxy,
    pub client: Client,
    pub events: Events,
}

impl Setup {
    pub fn new() -> Option<Self> {
        let registry = DockerRegistry::start(&RegistryOptions::default())?;
        let proxy = FaultProxy::start(&registry.host());
        let events = Events::default();
        let client = Client::new(options(&events));
        Some(Self { registry, proxy, client, events })
    }

    /// A name in the registry, reached through the proxy.
    pub fn image(&self, name: &str) -> Reference {
        image(&self.proxy.host(), name)
    }

    /// The same, reached directly.
    pub fn direct(&self, name: &str) -> Reference {
        image(&self.registry.host(), name)
    }

    /// Puts a blob into the registry, past the proxy.
    pub fn put_blob(&self, name: &str, bytes: &[u8]) -> Descriptor {
        let blob = Descriptor::of(media::OCI_LAYER_GZIP, bytes);
        client().push_blob(&self.direct(name), &blob, &bytes.to_vec(), &[]).unwrap();
        blob
    }
}

pub fn image(host: &str, name: &str) -> Reference {
    format!("{host}/{name}").parse().unwrap()
}

/// Bytes that do not repeat, the same for the same seed.
pub fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(length);
    out
}

/// Downloads a blob as a whole.
pub fn fetch(client: &Client, image: &Reference, blob: &Descriptor) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    client.blob(image, blob, 0)?.read_to_end(&mut out).map_err(|e| Error::from_io(e).unwrap())?;
    Ok(out)
}

/// The bytes of a manifest over these blobs.
pub fn manifest(config: &Descriptor, layers: &[Descriptor]) -> Vec<u8> {
    serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2, "mediaType": media::OCI_MANIFEST, "config": config, "layers": layers
    }))
    .unwrap()
}

/// Pushes an image of one layer, and gives its manifest.
pub fn push_image(client: &Client, image: &Reference, layer: &[u8]) -> (Descriptor, Vec<u8>) {
    let config = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#.to_vec();
    let (c, l) = (Descriptor::of(media::OCI_CONFIG, &config), Descriptor::of(media::OCI_LAYER_GZIP, layer));
    client.push_blob(image, &c, &config, &[]).unwrap();
    client.push_blob(image, &l, &layer.to_vec(), &[]).unwrap();
    let bytes = manifest(&c, &[l]);
    (client.push_manifest(image, media::OCI_MANIFEST, &bytes).unwrap(), bytes)
}
