//! `content/index.json`: the named images, for other tools. Derived from the table `images`.

use std::collections::BTreeMap;
use std::sync::Arc;

use kiln_oci::{ANNOTATION_CONTAINERD_NAME, ANNOTATION_REF_NAME, Descriptor, Index, media};

use crate::db;
use crate::error::{Context, Result};
use crate::fsutil;
use crate::images;
use crate::lock;
use crate::session::{Session, guard};
use crate::store::{Inner, Store};

/// An index without images.
pub(crate) const EMPTY: &str =
    r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;

/// While it lives, [`changed`] leaves `index.json` as it is; see [`crate::Images::many`].
#[derive(Debug)]
pub struct ManyNames {
    store: Store,
    // If this process dies, whoever sweeps its session writes the file.
    _session: Arc<Session>,
}

/// How many wait, and whether there is something to write.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    holders: usize,
    changed: bool,
}

impl ManyNames {
    pub(crate) fn begin(store: &Store) -> Result<Self> {
        let session = store.inner().session()?;
        guard(&store.inner().index).holders += 1;
        Ok(Self { store: store.clone(), _session: session })
    }
}

impl Drop for ManyNames {
    fn drop(&mut self) {
        let last = {
            let mut waiting = guard(&self.store.inner().index);
            waiting.holders -= 1;
            waiting.holders == 0 && std::mem::take(&mut waiting.changed)
        };
        if last {
            // It is for other tools; the table is what counts, and the next change writes it as well.
            _ = rewrite(self.store.inner());
        }
    }
}

/// To be called after a change of the table.
pub(crate) fn changed(inner: &Inner) -> Result<()> {
    {
        let mut waiting = guard(&inner.index);
        if waiting.holders > 0 {
            waiting.changed = true;
            return Ok(());
        }
    }
    rewrite(inner)
}

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
