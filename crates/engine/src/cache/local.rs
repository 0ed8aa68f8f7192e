//! Caches in directories: an OCI layout, each cache under a tag.
//!
//! Blobs are written beside their names and renamed; `index.json` last. Blobs that no entry of the index leads to any more are
//! removed after an export, unless the directory has something that is not a cache.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use kiln_oci::{Descriptor, Digest, Index, ManifestKind, media};
use kiln_registry::BlobSource;

use super::config::{CONFIG_TYPE, MAX_CONFIG};
use super::{Backend, Loaded, Location, Publish, of_manifest, parse_config, read_verified};
use crate::error::{Error, Result};
use crate::layers::Remote;

/// The annotation with the tag.
const TAG: &str = "org.opencontainers.image.ref.name";

/// A directory.
pub(super) struct Local {
    pub dir: PathBuf,
    pub tag: String,
    pub digest: Option<Digest>,
}

/// The file of a blob of a layout.
fn blob_path(dir: &Path, digest: &Digest) -> PathBuf {
    dir.join("blobs").join(digest.algorithm()).join(digest.hex())
}

/// Opens a blob of a layout.
pub(super) fn open(dir: &Path, blob: &Descriptor) -> Result<Box<dyn Read + Send>> {
    let path = blob_path(dir, &blob.digest);
    let file = File::open(&path).map_err(|e| Error::io("open", path, e))?;
    Ok(Box::new(file.take(blob.size.saturating_add(1))))
}

impl Local {
    fn index(&self) -> Result<Index> {
        let path = self.dir.join("index.json");
        let file = File::open(&path).map_err(|e| Error::io("open", &path, e))?;
        let mut bytes = Vec::new();
        let limit = kiln_oci::MAX_MANIFEST as u64 + 1;
        file.take(limit).read_to_end(&mut bytes).map_err(|e| Error::io("read", &path, e))?;
        match kiln_oci::parse_manifest(&bytes, Some(media::OCI_INDEX)) {
            Ok(ManifestKind::Index(index)) => Ok(index),
            Ok(ManifestKind::Manifest(_)) => Err(Error::request(format!("{} is not an index", path.display()))),
            Err(e) => Err(Error::request(format!("{}: {e}", path.display()))),
        }
    }

    fn read(&self, blob: &Descriptor, max: u64) -> Result<Vec<u8>> {
        read_verified(open(&self.dir, blob)?, blob, max)
    }

    fn manifest(&self, entry: &Descriptor) -> Result<ManifestKind> {
        let bytes = self.read(entry, kiln_oci::MAX_MANIFEST as u64)?;
        kiln_oci::parse_manifest(&bytes, Some(&entry.media_type)).map_err(|e| Error::request(e.to_string()))
    }

    fn write(&self, path: &Path, source: &mut dyn Read) -> Result<u64> {
        let parent = path.parent().unwrap_or(&self.dir);
        fs::create_dir_all(parent).map_err(|e| Error::io("create", parent, e))?;
        let draft = tempfile::Builder::new().permissions(crate::export::as_others()).tempfile_in(parent);
        let mut draft = draft.map_err(|e| Error::io("create", parent, e))?;
        let copied = io::copy(source, draft.as_file_mut()).map_err(|e| Error::io("write", path, e))?;
        draft.persist(path).map_err(|e| Error::io("rename", path, e.error))?;
        Ok(copied)
    }

    /// Removes blobs that nothing leads to; only those from before `began`, as another export may be writing.
    fn sweep(&self, index: &Index, began: std::time::SystemTime) -> Result<()> {
        let mut used = HashSet::new();
        for entry in &index.manifests {
            let Some((config, blobs)) = of_manifest(&self.manifest(entry)?) else { return Ok(()) };
            used.extend([entry.digest, config.digest]);
            used.extend(blobs.into_keys());
        }
        let dir = self.dir.join("blobs/sha256");
        for file in fs::read_dir(&dir).map_err(|e| Error::io("read", &dir, e))?.flatten() {
            let name = file.file_name();
            let digest = name.to_str().and_then(|n| format!("sha256:{n}").parse::<Digest>().ok());
            let old = file.metadata().and_then(|m| m.modified()).is_ok_and(|at| at < began);
            if digest.is_some_and(|d| !used.contains(&d)) && old {
                let _ = fs::remove_file(file.path());
            }
        }
        Ok(())
    }
}

impl Backend for Local {
    fn name(&self) -> String {
        self.dir.display().to_string()
    }

    fn load(&self) -> Result<Loaded> {
        let index = self.index()?;
        let wanted = |m: &&Descriptor| match &self.digest {
            Some(digest) => m.digest == *digest,
            None => m.annotations.get(TAG).is_some_and(|t| *t == self.tag),
        };
        let entry = index.manifests.iter().find(wanted).ok_or_else(|| match &self.digest {
            Some(digest) => Error::request(format!("there is no manifest {digest}")),
            None => Error::request(format!("there is no cache with the tag {:?}", self.tag)),
        })?;
        let Some((config, blobs)) = of_manifest(&self.manifest(entry)?) else {
            return Err(Error::request(format!("{} is not a cache", entry.digest)));
        };
        Ok(Loaded::Cache(parse_config(&self.read(&config, MAX_CONFIG)?)?, blobs))
    }

    fn remote(&self) -> Remote {
        let dir = std::path::absolute(&self.dir).unwrap_or_else(|_| self.dir.clone());
        Remote { reference: String::new(), cache: Some(Location::Local(dir)) }
    }

    fn put(&self, blob: &Descriptor, source: &dyn BlobSource) -> Result<u64> {
        let path = blob_path(&self.dir, &blob.digest);
        if fs::metadata(&path).is_ok_and(|m| m.len() == blob.size) {
            return Ok(0);
        }
        let mut reader = source.open(0).map_err(|e| Error::io("read", &path, e))?;
        self.write(&path, &mut reader)
    }

    fn open(&self, blob: &Descriptor) -> Result<Box<dyn Read + Send>> {
        open(&self.dir, blob)
    }

    fn publish(&self, cache: &Publish<'_>) -> Result<()> {
        let (media_type, bytes) = cache.manifest()?;
        let config = Descriptor::of(CONFIG_TYPE, cache.config);
        let mut entry = Descriptor::of(&media_type, &bytes);
        entry.annotations.insert(TAG.to_owned(), self.tag.clone());
        self.write(&blob_path(&self.dir, &config.digest), &mut &cache.config[..])?;
        self.write(&blob_path(&self.dir, &entry.digest), &mut &bytes[..])?;
        self.write(&self.dir.join("oci-layout"), &mut &br#"{"imageLayoutVersion":"1.0.0"}"#[..])?;
        // Another kiln may be adding its own cache to the index. BuildKit locks the same file.
        let lock = self.dir.join("index.json.lock");
        let lock =
            File::create(&lock).and_then(|file| file.lock().map(|()| file)).map_err(|e| Error::io("lock", &lock, e));
        let _lock = lock?;
        let mut index = self.index().unwrap_or_else(|_| Index {
            schema_version: 2,
            media_type: media::OCI_INDEX.to_owned(),
            manifests: Vec::new(),
            annotations: Default::default(),
            extra: Default::default(),
        });
        index.manifests.retain(|m| m.annotations.get(TAG) != Some(&self.tag));
        index.manifests.push(entry);
        let text = serde_json::to_vec(&index).map_err(|e| Error::request(e.to_string()))?;
        self.write(&self.dir.join("index.json"), &mut &text[..])?;
        // What can't be swept now is swept the next time.
        let _ = self.sweep(&index, began_before());
        Ok(())
    }
}

/// Files that another export may have just put there are younger than this.
fn began_before() -> std::time::SystemTime {
    std::time::SystemTime::now() - std::time::Duration::from_secs(3600)
}
