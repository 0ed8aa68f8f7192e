//! Manifests and indexes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Digest, Platform, media};

/// A pointer to content (OCI image spec, "Content Descriptors").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type of the content.
    pub media_type: String,
    /// Digest of the content.
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
    /// Places to fetch from. Never sent credentials.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// Free-form annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Platform, for entries of an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// `data`, `artifactType` and whatever comes later.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

impl Descriptor {
    /// A descriptor of `bytes`.
    pub fn of(media_type: &str, bytes: &[u8]) -> Self {
        Self::new(media_type, Digest::of(bytes), bytes.len() as u64)
    }

    /// A descriptor without annotations.
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest,
            size,
            urls: Vec::new(),
            annotations: BTreeMap::new(),
            platform: None,
            extra: BTreeMap::new(),
        }
    }
}

/// An image manifest, OCI or Docker schema 2.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// Media type; OCI allows it to be absent.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// The image config.
    pub config: Descriptor,
    /// Layers, lowest first.
    pub layers: Vec<Descriptor>,
    /// Free-form annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// `subject`, `artifactType` and whatever comes later.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

/// An image index or a manifest list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// Media type; OCI allows it to be absent.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// The manifests.
    pub manifests: Vec<Descriptor>,
    /// Free-form annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// `subject`, `artifactType` and whatever comes later.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

impl Index {
    /// The entry for `wanted`: an exact match first, then one that runs there (`linux/arm/v7` on `v8`).
    pub fn select(&self, wanted: &Platform) -> Option<&Descriptor> {
        let platform = |d: &Descriptor| d.platform.clone();
        self.manifests
            .iter()
            .find(|d| platform(d).is_some_and(|p| p == *wanted))
            .or_else(|| self.manifests.iter().find(|d| platform(d).is_some_and(|p| p.runs_on(wanted))))
    }
}

/// A parsed manifest or index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManifestKind {
    /// One image.
    Manifest(Manifest),
    /// Several.
    Index(Index),
}

/// Why bytes are not a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or fields are missing.
    #[error("manifest is not valid: {0}")]
    Json(#[from] serde_json::Error),
    /// The bytes say one type, the transport another, or they have the fields of both (CVE-2021-41190).
    #[error("manifest is ambiguous: {0}")]
    Ambiguous(String),
    /// A type that kiln does not read.
    #[error("manifest media type {0:?} is not supported")]
    MediaType(String),
    /// Larger than the limit.
    #[error("manifest of {0} bytes is larger than the limit of {max} bytes", max = MAX_MANIFEST)]
    TooLarge(usize),
}

/// Largest manifest that is read, in bytes; the limit of docker-registry and containerd.
pub const MAX_MANIFEST: usize = 4 << 20;

/// Parses a manifest or index. `declared` is the media type from the transport or descriptor, if any; it
/// must agree with the `mediaType` field, and the bytes must not have the fields of both kinds.
pub fn parse_manifest(bytes: &[u8], declared: Option<&str>) -> Result<ManifestKind, ManifestError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Probe {
        media_type: Option<String>,
        config: Option<serde::de::IgnoredAny>,
        layers: Option<serde::de::IgnoredAny>,
        fs_layers: Option<serde::de::IgnoredAny>,
        manifests: Option<serde::de::IgnoredAny>,
    }
    if bytes.len() > MAX_MANIFEST {
        return Err(ManifestError::TooLarge(bytes.len()));
    }
    let probe: Probe = serde_json::from_slice(bytes)?;
    if probe.manifests.is_some() && (probe.config.is_some() || probe.layers.is_some()) {
        return Err(ManifestError::Ambiguous("it has the fields of an image and of an index".into()));
    }
    if probe.fs_layers.is_some() {
        return Err(ManifestError::MediaType("application/vnd.docker.distribution.manifest.v1+json".into()));
    }
    let declared = declared.filter(|d| media::is_index(d) || media::is_manifest(d));
    if let (Some(declared), Some(own)) = (declared, &probe.media_type)
        && declared != own
    {
        return Err(ManifestError::Ambiguous(format!("declared as {declared}, says {own}")));
    }
    let index = match probe.media_type.as_deref().or(declared) {
        Some(t) if media::is_index(t) => true,
        Some(t) if media::is_manifest(t) => false,
        Some(t) => return Err(ManifestError::MediaType(t.to_owned())),
        None => probe.manifests.is_some(),
    };
    if index != probe.manifests.is_some() {
        return Err(ManifestError::Ambiguous("its media type does not fit its fields".into()));
    }
    Ok(match index {
        true => ManifestKind::Index(serde_json::from_slice(bytes)?),
        false => ManifestKind::Manifest(serde_json::from_slice(bytes)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn unknown_fields_survive() {
        let text = format!(
            r#"{{"schemaVersion":2,"mediaType":"{}","config":{{"mediaType":"a/b","digest":"{D}","size":2,"data":"e30="}},"layers":[],"subject":{{"x":1}}}}"#,
            media::OCI_MANIFEST
        );
        let ManifestKind::Manifest(m) = parse_manifest(text.as_bytes(), None).unwrap() else { panic!("an index") };
        assert_eq!(serde_json::to_value(&m).unwrap(), serde_json::from_str::<Value>(&text).unwrap());
    }

    #[test]
    fn cve_2021_41190_ambiguous_manifests_are_refused() {
        let both = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"a","digest":"{D}","size":1}},"layers":[],"manifests":[]}}"#
        );
        assert!(matches!(parse_manifest(both.as_bytes(), None), Err(ManifestError::Ambiguous(_))));
        let index = format!(r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[]}}"#, media::OCI_INDEX);
        assert!(matches!(
            parse_manifest(index.as_bytes(), Some(media::OCI_MANIFEST)),
            Err(ManifestError::Ambiguous(_))
        ));
        assert!(parse_manifest(index.as_bytes(), Some("application/json")).is_ok());
    }
}
