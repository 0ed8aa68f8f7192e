//! `content/index.json`: the named images, for other tools. Derived from the table `images`.

use std::collections::BTreeMap;

use kiln_oci::{ANNOTATION_CONTAINERD_NAME, ANNOTATION_REF_NAME, Descriptor, Index, media};

use crate::db;
use crate::error::{Context, Result};
use crate::fsutil;
use crate::images;
use crate::lock;
use crate::store::Inner;

/// An index without images.
pub(crate) const EMPTY: &str =
    r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;

/// Writes `index.json` anew. Under a lock, in which the table is read, so that the last writer has seen all changes.
pub(crate) fn rewrite(inner: &Inner) -> Result<()> {
    let session = inner.session()?;
    let _lock = lock::lock(lock::path_of(&inner.root.join("locks"), "index"), &mut || {})?;
    let named = inner.db.read(|db| images::query(db, "WHERE name IS NOT NULL ORDER BY name", []))?;
    let entry = |image: images::Image| -> Option<Descriptor> {
        let name = image.name?;
        let mut descriptor = image.target;
        // What people type after `oci:<dir>:`, unique because it is only a shorter way to write the full name.
        descriptor.annotations.insert(ANNOTATION_REF_NAME.into(), name.familiar());
        descriptor.annotations.insert(ANNOTATION_CONTAINERD_NAME.into(), name.to_string());
        Some(descriptor)
    };
    let index = Index {
        schema_version: 2,
        media_type: media::OCI_INDEX.into(),
        manifests: named.into_iter().filter_map(entry).collect(),
        annotations: BTreeMap::new(),
        extra: BTreeMap::new(),
    };
    let text = db::to_json(&index, "images")?;
    let target = inner.root.join("content/index.json");
    // A build that changes nothing does not wait for the disk.
    if std::fs::read(&target).is_ok_and(|now| now == text.as_bytes()) {
        return Ok(());
    }
    fsutil::replace_file(&session.draft(), &target, text.as_bytes()).ctx("write", &target)
}
