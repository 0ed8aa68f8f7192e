//! What images lead to: the blobs and layers that must be kept for them.

use std::collections::{HashMap, HashSet};

use kiln_oci::{Descriptor, Digest, ManifestKind};
use rusqlite::Connection;

use crate::error::{Error, Result};
use crate::images;
use crate::layers::{self, LayerId};
use crate::roots;
use crate::session::Pin;
use crate::store::Store;

/// What one image leads to. A function of its digest and of what is in the store.
#[derive(Debug, Clone, Default)]
pub(crate) struct Closure {
    pub blobs: HashSet<Digest>,
    pub diff_ids: HashSet<Digest>,
}

/// What all images, roots and pins lead to.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    pub blobs: HashSet<Digest>,
    pub layers: HashSet<LayerId>,
    /// Layers, by the number of images that need them.
    pub users: HashMap<LayerId, u32>,
    known: HashMap<Digest, Closure>,
}

impl Marks {
    /// What the images that have a name lead to, and nothing else.
    pub(crate) fn of_named(store: &Store, db: &Connection) -> Result<Self> {
        let mut marks = Self::default();
        for image in images::query(db, "WHERE name IS NOT NULL ORDER BY id", [])? {
            marks.follow(store, db, &image.target, &HashMap::new())?;
        }
        Ok(marks)
    }

    /// Marks from the images and roots that are there now, and from `pins`. Closures that were read before are not read again.
    pub(crate) fn refresh(&mut self, store: &Store, db: &Connection, pins: &HashSet<Pin>) -> Result<()> {
        let mut targets: Vec<Descriptor> =
            images::query(db, "ORDER BY id", [])?.into_iter().map(|i| i.target).collect();
        targets.sort_by_key(|t| t.digest);
        targets.dedup_by_key(|t| t.digest);
        self.blobs.clear();
        self.layers.clear();
        self.users.clear();
        let known = std::mem::take(&mut self.known);
        for target in targets {
            for id in self.follow(store, db, &target, &known)? {
                *self.users.entry(id).or_default() += 1;
            }
        }
        for pin in roots::all(db)?.iter().chain(pins) {
            match pin {
                Pin::Layer(id) => _ = self.layers.insert(*id),
                Pin::Blob(digest) => _ = self.blobs.insert(*digest),
                Pin::Image(digest) => _ = self.follow(store, db, &Descriptor::new("", *digest, 0), &known)?,
            }
        }
        Ok(())
    }

    /// Marks what an image leads to, and returns its layers.
    fn follow(
        &mut self,
        store: &Store,
        db: &Connection,
        target: &Descriptor,
        known: &HashMap<Digest, Closure>,
    ) -> Result<HashSet<LayerId>> {
        let closure = match known.get(&target.digest) {
            Some(known) => known.clone(),
            None => closure(store, target)?,
        };
        let layers = layers_of(db, &closure)?;
        self.layers.extend(&layers);
        self.blobs.extend(&closure.blobs);
        self.known.insert(target.digest, closure);
        Ok(layers)
    }
}

/// The layers of the store that hold the files of an image.
fn layers_of(db: &Connection, closure: &Closure) -> Result<HashSet<LayerId>> {
    let mut found = HashSet::new();
    for diff_id in &closure.diff_ids {
        found.extend(layers::by_diff_id(db, diff_id)?);
    }
    let mut statement = db.prepare_cached("SELECT layer FROM layer_blobs WHERE digest=?1")?;
    for blob in &closure.blobs {
        let mut rows = statement.query([blob.bytes()])?;
        while let Some(row) = rows.next()? {
            let id = LayerId::from_column(row.get_ref(0)?.as_blob().map_err(rusqlite::Error::from)?)?;
            // One that has the diff ID as well does the same for the image, and may be the unpacked one.
            let diff_id = layers::diff_id(db, &id)?;
            if diff_id.is_none_or(|d| !closure.diff_ids.contains(&d)) {
                found.insert(id);
            }
        }
    }
    Ok(found)
}

/// Follows manifests. What is missing or unreadable leads nowhere: it can't be used, and must not stop the collector.
fn closure(store: &Store, target: &Descriptor) -> Result<Closure> {
    let mut closure = Closure::default();
    let mut queue = vec![target.clone()];
    while let Some(descriptor) = queue.pop() {
        if !closure.blobs.insert(descriptor.digest) {
            continue;
        }
        let kind = match store.images().parse(&descriptor) {
            Ok((_, kind)) => kind,
            Err(e @ (Error::Io { .. } | Error::DiskFull { .. })) => return Err(e),
            Err(_) => continue,
        };
        match kind {
            ManifestKind::Index(index) => queue.extend(index.manifests),
            ManifestKind::Manifest(manifest) => {
                closure.blobs.extend(manifest.layers.iter().map(|l| l.digest));
                closure.blobs.insert(manifest.config.digest);
                let config = store.content().read_small(&manifest.config.digest, images::MAX_CONFIG);
                if let Some(config) = config.ok().and_then(|c| serde_json::from_slice::<kiln_oci::ImageConfig>(&c).ok())
                {
                    closure.diff_ids.extend(config.rootfs.diff_ids);
                }
            }
        }
    }
    Ok(closure)
}
