//! Any bytes as what a registry sends: manifest, index, image config. No panic; what is accepted survives being written.

use kiln_oci::{ImageConfig, ManifestKind, Platform, media, parse_manifest};

/// One input.
pub fn run(data: &[u8]) {
    for kind in [None, Some(media::OCI_MANIFEST), Some(media::OCI_INDEX), Some(media::DOCKER_LIST)] {
        match parse_manifest(data, kind) {
            Ok(ManifestKind::Manifest(manifest)) => {
                let bytes = serde_json::to_vec(&manifest).expect("it can be written");
                let again = parse_manifest(&bytes, None).expect("it was one");
                assert_eq!(again, ManifestKind::Manifest(manifest));
            }
            Ok(ManifestKind::Index(index)) => {
                let _ = index.select(&Platform::host());
                let bytes = serde_json::to_vec(&index).expect("it can be written");
                assert_eq!(parse_manifest(&bytes, None).expect("it was one"), ManifestKind::Index(index));
            }
            Err(error) => drop(error.to_string()),
        }
    }
    if let Ok(config) = serde_json::from_slice::<ImageConfig>(data) {
        let bytes = serde_json::to_vec(&config).expect("it can be written");
        let again: ImageConfig = serde_json::from_slice(&bytes).expect("it was one");
        assert_eq!(serde_json::to_vec(&again).expect("it can be written"), bytes);
    }
}
