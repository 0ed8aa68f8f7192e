//! Images from a root file system: one layer, which the caller made, and a config that it gives.

use std::collections::BTreeMap;

use kiln_oci::media;
use kiln_oci::{ContainerConfig, Descriptor, Digest, History, ImageConfig, Manifest, Platform, Timestamp};

use crate::error::{Error, Result};
use crate::store::Store;

/// What an imported image is to be.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// Its platform.
    pub platform: Platform,
    /// What its containers get: the effect of `--change`.
    pub config: ContainerConfig,
    /// The message; without one, history says `Imported from <source>`.
    pub message: Option<String>,
    /// Where the file system comes from: a file name, a URL without credentials, `-`.
    pub source: String,
    /// When.
    pub created: Timestamp,
}

impl ImportOptions {
    /// Options for a file system from `source`, made now, for this machine.
    pub fn new(source: &str) -> Self {
        Self {
            platform: Platform::host(),
            config: ContainerConfig::default(),
            message: None,
            source: source.to_owned(),
            created: Timestamp::now(),
        }
    }
}

impl Store {
    /// Makes an image of one layer, and returns its manifest. It is not recorded yet: give it a name with
    /// [`Images::put`](crate::Images::put), or none with [`Images::put_untagged`](crate::Images::put_untagged).
    pub fn import_image(&self, layer: &Descriptor, diff_id: &Digest, options: &ImportOptions) -> Result<Descriptor> {
        let comment = options.message.clone().unwrap_or_else(|| format!("Imported from {}", options.source));
        let mut config = ImageConfig::empty(&options.platform);
        config.config = options.config.clone();
        config.created = Some(options.created);
        config.rootfs.diff_ids.push(*diff_id);
        config.history.push(History { created: Some(options.created), comment: Some(comment), ..History::default() });
        let encode = |e: serde_json::Error| Error::Archive(e.to_string());
        let bytes = serde_json::to_vec(&config).map_err(encode)?;
        self.content().put(&bytes)?;
        let manifest = Manifest {
            schema_version: 2,
            media_type: media::OCI_MANIFEST.into(),
            config: Descriptor::of(media::OCI_CONFIG, &bytes),
            layers: vec![layer.clone()],
            annotations: BTreeMap::new(),
            extra: BTreeMap::new(),
        };
        let bytes = serde_json::to_vec(&manifest).map_err(encode)?;
        self.content().put(&bytes)?;
        Ok(Descriptor::of(media::OCI_MANIFEST, &bytes))
    }
}
