//! Images: names that lead to manifests or indexes in the content store.
//!
//! A row with a name is a tag, or a name by digest. A row without one is a dangling image: built without a name, or its last
//! name was moved to another image.

use std::collections::HashSet;

use kiln_oci::{
    Descriptor, Digest, ImageConfig, Index, Manifest, ManifestKind, Platform, Reference, Timestamp, media,
    parse_manifest,
};
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::db;
use crate::error::{Error, Result};
use crate::fsutil::now_ms;
use crate::index::{self, ManyNames};
use crate::session::{Pin, all_pins};
use crate::store::{Inner, Store};

/// An image of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its name, with a tag or a digest. A dangling image has none.
    pub name: Option<Reference>,
    /// Its manifest or index.
    pub target: Descriptor,
    /// Digest of its config, if it is a single image: what docker calls the image ID.
    pub config: Option<Digest>,
    /// When this name came to be.
    pub created: Timestamp,
    /// When it was last moved.
    pub updated: Timestamp,
}

/// What [`Images::put`] changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Put {
    /// What the name led to before, if it was something else.
    pub previous: Option<Descriptor>,
    /// Whether that has no name any more.
    pub dangling: bool,
}

/// A manifest with its config, and the bytes of both as they were received.
#[derive(Debug, Clone)]
pub struct ManifestView {
    /// Descriptor of the manifest.
    pub descriptor: Descriptor,
    /// The manifest.
    pub manifest: Manifest,
    /// The config.
    pub config: ImageConfig,
    /// Bytes of the manifest.
    pub raw_manifest: Vec<u8>,
    /// Bytes of the config.
    pub raw_config: Vec<u8>,
}

/// The images of a store.
#[derive(Debug, Clone, Copy)]
pub struct Images<'a>(pub(crate) &'a Store);

/// Largest manifest that is read; what registries accept.
pub(crate) const MAX_MANIFEST: usize = 4 << 20;
/// Largest image config that is read.
pub(crate) const MAX_CONFIG: usize = 8 << 20;
/// Indexes may hold indexes; not without end.
const MAX_NESTING: u32 = 4;

impl Images<'_> {
    /// The image that a name leads to: `latest` if it has neither tag nor digest; by digest, any image of that digest.
    /// It is pinned with all that it leads to, under a lease.
    pub fn resolve(&self, name: &Reference) -> Result<Option<Image>> {
        let full = name.clone().with_default_tag();
        self.pinned(&|db| {
            if let Some(image) = query_one(db, "WHERE name=?1", &full.to_string())? {
                return Ok(Some(image));
            }
            let Some(digest) = full.digest() else { return Ok(None) };
            let found = query(db, "WHERE digest=?1 ORDER BY id", [digest.bytes()])?;
            Ok(found.into_iter().next().map(|image| Image { name: Some(full.clone()), ..image }))
        })
    }

    /// All images, by name; dangling ones last.
    pub fn list(&self) -> Result<Vec<Image>> {
        self.0.inner().db.read(|db| query(db, "ORDER BY name IS NULL, name, id", []))
    }

    /// Images that have no name.
    pub fn dangling(&self) -> Result<Vec<Image>> {
        self.0.inner().db.read(|db| query(db, "WHERE name IS NULL ORDER BY id", []))
    }

    /// All names of an image, and its dangling row.
    pub fn of(&self, digest: &Digest) -> Result<Vec<Image>> {
        self.0.inner().db.read(|db| query(db, "WHERE digest=?1 ORDER BY name IS NULL, name", [digest.bytes()]))
    }

    /// How many names an image has.
    pub fn count_names(&self, digest: &Digest) -> Result<usize> {
        let sql = "SELECT count(name) FROM images WHERE digest=?1";
        let count =
            |db: &Connection| Ok(db.prepare_cached(sql)?.query_row([digest.bytes()], |r| r.get::<_, i64>(0))?);
        self.0.inner().db.read(count).map(|count| usize::try_from(count).unwrap_or(0))
    }

    /// Images that live processes use. A collection keeps their content whatever is removed here.
    pub fn in_use(&self) -> Result<HashSet<Digest>> {
        let pins = all_pins(self.0.root())?;
        Ok(pins.into_iter().filter_map(|pin| if let Pin::Image(digest) = pin { Some(digest) } else { None }).collect())
    }

    /// When an image was last used by a build, or got a name, in milliseconds.
    pub(crate) fn used_ms(&self, digest: &Digest) -> Result<i64> {
        let sql = "SELECT max(updated) FROM images WHERE digest=?1";
        let named: Option<i64> =
            self.0.inner().db.read(|db| Ok(db.prepare_cached(sql)?.query_row([digest.bytes()], |r| r.get(0))?))?;
        let touched = self.0.meta().get(&used_key(digest))?;
        let touched = touched.and_then(|t| std::str::from_utf8(&t).ok()?.parse().ok());
        Ok(named.max(touched).unwrap_or(0))
    }

    /// Bytes of an image's blobs that are here; 0 if that can't be told.
    pub(crate) fn content_bytes(&self, digest: &Digest) -> u64 {
        let views = self.manifests(&Descriptor::new("", *digest, 0)).unwrap_or_default();
        let layers = views.iter().flat_map(|v| &v.manifest.layers);
        layers.filter_map(|l| self.0.content().size(&l.digest).ok().flatten()).sum()
    }

    /// Makes `name` lead to an image, whose manifest must be in the content store. What it led to before stays, without
    /// a name if that was its last one.
    pub fn put(&self, name: &Reference, target: &Descriptor) -> Result<Put> {
        let name = name.clone().with_default_tag().to_string();
        let config = self.prepare(target)?;
        let put = self.change(|tx| {
            let old = query_one(tx, "WHERE name=?1", &name)?;
            let created = old.as_ref().map_or(now_ms(), |o| o.created.seconds() * 1000);
            insert(tx, Some((&name, created)), target, config)?;
            tx.execute("DELETE FROM images WHERE name IS NULL AND digest=?1", [target.digest.bytes()])?;
            let Some(old) = old.filter(|o| o.target.digest != target.digest) else {
                return Ok(Put { previous: None, dangling: false });
            };
            let named =
                tx.prepare_cached("SELECT 1 FROM images WHERE digest=?1")?.exists([old.target.digest.bytes()])?;
            if !named {
                insert(tx, None, &old.target, old.config)?;
            }
            Ok(Put { previous: Some(old.target), dangling: !named })
        })?;
        Ok(put)
    }

    /// Keeps an image without a name, unless it has one.
    pub fn put_untagged(&self, target: &Descriptor) -> Result<()> {
        let config = self.prepare(target)?;
        self.change(|tx| {
            let here = tx.prepare_cached("SELECT 1 FROM images WHERE digest=?1")?.exists([target.digest.bytes()])?;
            if here { Ok(()) } else { insert(tx, None, target, config) }
        })
    }

    /// Removes a name. Returns what it led to; `None` if there is no such name. An image that has no other name is
    /// gone, and its content goes with the next collection.
    pub fn remove(&self, name: &Reference) -> Result<Option<Image>> {
        let name = name.clone().with_default_tag().to_string();
        self.change(|tx| {
            let old = query_one(tx, "WHERE name=?1", &name)?;
            tx.execute("DELETE FROM images WHERE name=?1", [&name])?;
            Ok(old)
        })
    }

    /// Removes all names of an image, and the image. Returns what was removed.
    pub fn remove_digest(&self, digest: &Digest) -> Result<Vec<Image>> {
        self.change(|tx| {
            let old = query(tx, "WHERE digest=?1 ORDER BY name IS NULL, name", [digest.bytes()])?;
            tx.execute("DELETE FROM images WHERE digest=?1", [digest.bytes()])?;
            Ok(old)
        })
    }

    /// The image whose manifest or config digest begins with `prefix` (with or without `sha256:`).
    pub fn by_id(&self, prefix: &str) -> Result<Option<Image>> {
        let hex = prefix.strip_prefix("sha256:").unwrap_or(prefix);
        if hex.is_empty() || hex.len() > 64 || !hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Ok(None);
        }
        self.pinned(&|db| {
            let sql = "WHERE lower(hex(digest)) GLOB ?1 OR lower(hex(config)) GLOB ?1 ORDER BY name IS NULL, name, id";
            let found = query(db, sql, [format!("{hex}*")])?;
            let mut candidates: Vec<Digest> = found.iter().map(|i| i.target.digest).collect();
            candidates.sort();
            candidates.dedup();
            // One config may be in several manifests (other compression): still one image for docker, whichever it is.
            let configs = found.iter().all(|i| i.config.is_some() && i.config == found[0].config);
            if candidates.len() > 1 && !configs {
                return Err(Error::AmbiguousId { prefix: prefix.to_owned(), candidates });
            }
            Ok(found.into_iter().next())
        })
    }

    /// The manifest for a platform, with its config. A single image is returned for whatever platform it is.
    pub fn manifest(&self, target: &Descriptor, platform: &Platform) -> Result<ManifestView> {
        let mut descriptor = target.clone();
        for _ in 0..MAX_NESTING {
            let (raw, kind) = self.parse(&descriptor)?;
            match kind {
                ManifestKind::Manifest(manifest) => return self.view(descriptor, manifest, raw),
                ManifestKind::Index(index) => {
                    let found = index.select(platform).or_else(|| only(&index)).cloned();
                    descriptor = found.ok_or_else(|| no_platform(&descriptor.digest, platform, &index))?;
                }
            }
        }
        let source = kiln_oci::ManifestError::Ambiguous("indexes are nested too deeply".into());
        Err(Error::Manifest { digest: Box::new(target.digest), source })
    }

    /// The manifests below a target that are in the store, with their configs; those of other platforms that were not
    /// pulled, and attestations, are left out.
    pub fn manifests(&self, target: &Descriptor) -> Result<Vec<ManifestView>> {
        let mut views = Vec::new();
        let mut queue = vec![(target.clone(), 0)];
        // A few indexes that name each other often enough would be without end.
        let mut indexes = HashSet::new();
        while let Some((descriptor, depth)) = queue.pop() {
            if depth > 0 && !self.0.content().path(&descriptor.digest).exists() {
                continue;
            }
            match self.parse(&descriptor)? {
                (raw, ManifestKind::Manifest(manifest)) => {
                    let here = depth == 0 || self.0.content().path(&manifest.config.digest).exists();
                    if here && media_is_image(&manifest) {
                        views.push(self.view(descriptor, manifest, raw)?);
                    }
                }
                (_, ManifestKind::Index(index)) if depth < MAX_NESTING && indexes.insert(descriptor.digest) => {
                    queue.extend(index.manifests.into_iter().rev().map(|d| (d, depth + 1)));
                }
                _ => {}
            }
        }
        Ok(views)
    }

    /// The index behind a target, if it is one.
    pub fn index(&self, target: &Descriptor) -> Result<Option<Index>> {
        match self.parse(target)?.1 {
            ManifestKind::Index(index) => Ok(Some(index)),
            ManifestKind::Manifest(_) => Ok(None),
        }
    }

    /// Images that were made on top of this one: their layers begin with its layers, and there are more steps.
    pub fn children(&self, digest: &Digest) -> Result<Vec<Image>> {
        let Some(parent) = self.of(digest)?.into_iter().next() else { return Ok(Vec::new()) };
        let chains: Vec<_> = self.manifests(&parent.target)?.into_iter().map(|v| v.config).collect();
        let mut children = Vec::new();
        for image in self.list()?.into_iter().filter(|i| i.target.digest != *digest) {
            let Ok(views) = self.manifests(&image.target) else { continue };
            let is_child = views.iter().any(|v| {
                let (own, steps) = (&v.config.rootfs.diff_ids, v.config.history.len());
                chains.iter().any(|c| {
                    !c.rootfs.diff_ids.is_empty() && own.starts_with(&c.rootfs.diff_ids) && steps > c.history.len()
                })
            });
            if is_child {
                children.push(image);
            }
        }
        Ok(children)
    }

    /// Reads and parses a manifest or index of the store.
    pub(crate) fn parse(&self, descriptor: &Descriptor) -> Result<(Vec<u8>, ManifestKind)> {
        let raw = self.0.content().read_small(&descriptor.digest, MAX_MANIFEST)?;
        let kind = parse_manifest(&raw, Some(&descriptor.media_type))
            .map_err(|source| Error::Manifest { digest: Box::new(descriptor.digest), source })?;
        Ok((raw, kind))
    }

    fn view(&self, descriptor: Descriptor, manifest: Manifest, raw_manifest: Vec<u8>) -> Result<ManifestView> {
        let digest = manifest.config.digest;
        let raw_config = self.0.content().read_small(&digest, MAX_CONFIG)?;
        let config =
            serde_json::from_slice(&raw_config).map_err(|source| Error::Config { digest: Box::new(digest), source })?;
        Ok(ManifestView { descriptor, manifest, config, raw_manifest, raw_config })
    }

    /// Until the returned value is gone, changes of names are not written to `index.json`, which is as long as there are names.
    /// Everything but that is as without it: each change is in the table at once. If this process dies, whoever sweeps its
    /// session writes the file.
    pub fn many(&self) -> Result<ManyNames> {
        ManyNames::begin(self.0)
    }

    /// Checks and pins a target before a name leads to it, and makes its blobs durable, which they are if a name led to it
    /// before. Returns the config of a single image.
    fn prepare(&self, target: &Descriptor) -> Result<Option<Digest>> {
        self.0.inner().session()?.pin(&[Pin::Image(target.digest)])?;
        let sql = "SELECT 1 FROM images WHERE digest=?1";
        let durable = self.0.inner().db.read(|db| Ok(db.prepare_cached(sql)?.exists([target.digest.bytes()])?))?;
        let (_, kind) = self.parse(target)?;
        if !durable {
            self.0.content().sync_names()?;
        }
        match kind {
            ManifestKind::Manifest(manifest) => Ok(Some(manifest.config.digest)),
            ManifestKind::Index(_) => Ok(None),
        }
    }

    /// A change of the table, and of `index.json` after it.
    fn change<T>(&self, f: impl FnOnce(&rusqlite::Transaction<'_>) -> Result<T>) -> Result<T> {
        let inner: &Inner = self.0.inner();
        // If this process dies in between, whoever sweeps its session rewrites the index.
        let _session = inner.session()?;
        let result = inner.db.write(f)?;
        index::changed(inner)?;
        Ok(result)
    }

    fn pinned(&self, look_up: &dyn Fn(&Connection) -> Result<Option<Image>>) -> Result<Option<Image>> {
        let inner = self.0.inner();
        let find = || inner.db.snapshot(|db| look_up(db));
        let Some(session) = inner.leased_session() else { return find() };
        session.pinning(|pin| {
            let found = find()?;
            found.iter().for_each(|image| pin(&Pin::Image(image.target.digest)));
            Ok(found)
        })
    }
}

/// The key of `meta` under which the last use of an image is.
pub(crate) fn used_key(digest: &Digest) -> String {
    format!("{USED}{digest}")
}

const USED: &str = "image used ";

/// Forgets when images were used that are gone.
pub(crate) fn forget_uses(db: &Connection) -> Result<()> {
    let mut statement = db.prepare_cached("SELECT key FROM meta WHERE key>=?1 AND key<?2")?;
    let keys = statement.query_map([USED, "image used!"], |r| r.get::<_, String>(0))?;
    for key in keys.collect::<rusqlite::Result<Vec<_>>>()? {
        let digest = key.strip_prefix(USED).and_then(|text| text.parse::<Digest>().ok());
        let is_here = |d: Digest| db.prepare_cached("SELECT 1 FROM images WHERE digest=?1")?.exists([d.bytes()]);
        if !digest.map(is_here).transpose()?.unwrap_or(false) {
            db.prepare_cached("DELETE FROM meta WHERE key=?1")?.execute([&key])?;
        }
    }
    Ok(())
}

/// The only image of an index that does not say for which platform it is.
fn only(index: &Index) -> Option<&Descriptor> {
    match index.manifests.as_slice() {
        [one] if one.platform.is_none() => Some(one),
        _ => None,
    }
}

/// Attestations and other artifacts are manifests as well, whose config is not an image's.
fn media_is_image(manifest: &Manifest) -> bool {
    matches!(manifest.config.media_type.as_str(), media::OCI_CONFIG | media::DOCKER_CONFIG)
        && !manifest.layers.iter().any(|l| l.media_type == "application/vnd.in-toto+json")
}

pub(crate) fn no_platform(digest: &Digest, wanted: &Platform, index: &Index) -> Error {
    let available: Vec<String> =
        index.manifests.iter().filter_map(|d| d.platform.as_ref()).map(|p| p.to_string()).collect();
    Error::NoPlatform { digest: Box::new(*digest), wanted: wanted.to_string(), available: available.join(", ") }
}

fn insert(db: &Connection, name: Option<(&str, i64)>, target: &Descriptor, config: Option<Digest>) -> Result<()> {
    let sql = "INSERT OR REPLACE INTO images(name, digest, config, target, created, updated) VALUES(?1,?2,?3,?4,?5,?6)";
    let (name, created) = name.map_or((None, now_ms()), |(name, created)| (Some(name), created));
    let (config, text) = (config.as_ref().map(Digest::bytes), db::to_json(target, "images")?);
    db.prepare_cached(sql)?.execute(params![name, target.digest.bytes(), config, text, created, now_ms()])?;
    Ok(())
}

/// Runs a query over images; `rest` is what follows the table's name.
pub(crate) fn query(db: &Connection, rest: &str, params: impl rusqlite::Params) -> Result<Vec<Image>> {
    let sql = format!("SELECT name, target, config, created, updated FROM images {rest}");
    let mut statement = db.prepare_cached(&sql)?;
    let mut rows = statement.query(params)?;
    let mut images = Vec::new();
    while let Some(row) = rows.next()? {
        images.push(decode(row)?);
    }
    Ok(images)
}

fn query_one(db: &Connection, rest: &str, name: &str) -> Result<Option<Image>> {
    let sql = format!("SELECT name, target, config, created, updated FROM images {rest}");
    let mut statement = db.prepare_cached(&sql)?;
    let row = statement.query_row([name], |row| Ok(decode(row))).optional()?;
    row.transpose()
}

fn decode(row: &Row<'_>) -> Result<Image> {
    let time = |i| -> Result<Timestamp> {
        Ok(Timestamp::from_seconds(row.get::<_, i64>(i)? / 1000).unwrap_or(Timestamp::EPOCH))
    };
    let name: Option<String> = row.get(0)?;
    Ok(Image {
        name: name.map(|n| n.parse().map_err(|e| Error::record("images", e))).transpose()?,
        target: db::json(&row.get::<_, String>(1)?, "images")?,
        config: row.get::<_, Option<Vec<u8>>>(2)?.map(|d| db::digest_from(&d, "images")).transpose()?,
        created: time(3)?,
        updated: time(4)?,
    })
}
