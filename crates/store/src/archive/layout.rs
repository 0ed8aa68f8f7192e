//! OCI layouts that are not ours: a directory, or an uncompressed tar of one, read in place.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_oci::{
    ANNOTATION_CONTAINERD_NAME, ANNOTATION_REF_NAME, Descriptor, Digest, Index, ManifestKind, Platform, parse_manifest,
};
use rustix::fs::{Mode, OFlags};

use super::MAX_INDEX;
use super::load::{Loaded, add_names, entry_name};
use crate::content;
use crate::error::{Context, Error, Result};
use crate::images::{MAX_CONFIG, MAX_MANIFEST};
use crate::store::Store;

/// An OCI layout somewhere on disk.
#[derive(Debug, Clone)]
pub struct OciLayout {
    path: PathBuf,
    index: Index,
    tar: Option<Arc<TarFiles>>,
}

/// Where the files of a tar are.
#[derive(Debug)]
struct TarFiles {
    file: File,
    files: HashMap<String, (u64, u64)>,
}

impl OciLayout {
    /// Opens a layout directory, or a tar of one. Compressed archives, and docker's, can't be read in place: use [`Store::load`].
    pub fn open(path: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(path).ctx("open", path)?;
        let tar = if metadata.is_dir() { None } else { Some(Arc::new(scan(path)?)) };
        let mut layout = Self { path: path.to_path_buf(), index: empty(), tar };
        let marker = layout.read("oci-layout", 4096)?;
        if !String::from_utf8_lossy(&marker).contains("\"1.") {
            return Err(Error::Archive(format!("{} is not an OCI layout of version 1", path.display())));
        }
        let bytes = layout.read("index.json", MAX_INDEX)?;
        layout.index = serde_json::from_slice(&bytes)
            .map_err(|e| Error::Archive(format!("index.json of {} is not valid: {e}", path.display())))?;
        Ok(layout)
    }

    /// Its `index.json`.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// The image of a name or digest; without either, the only one, or the one named `latest`.
    pub fn resolve(&self, name: Option<&str>) -> Result<Descriptor> {
        let entries = &self.index.manifests;
        let named = |wanted: &str| {
            let is = |d: &&Descriptor| {
                let value = |key: &str| d.annotations.get(key).map(String::as_str);
                // buildx writes the tag in one and the whole name in the other, podman the whole name.
                let is_name = |name: &str| {
                    let tag = name.parse::<kiln_oci::Reference>().ok().and_then(|r| r.tag().map(str::to_owned));
                    name == wanted || tag.as_deref() == Some(wanted)
                };
                value(ANNOTATION_REF_NAME).is_some_and(is_name)
                    || value(ANNOTATION_CONTAINERD_NAME).is_some_and(is_name)
                    || d.digest.to_string() == wanted
            };
            entries.iter().find(is)
        };
        let found = match name {
            Some(name) => named(name).or_else(|| {
                let full = name.parse::<kiln_oci::Reference>().ok()?.with_default_tag();
                named(&full.to_string()).or_else(|| named(&full.familiar()))
            }),
            // One image, maybe under several names.
            None if entries.windows(2).all(|pair| pair[0].digest == pair[1].digest) => entries.first(),
            None => named("latest"),
        };
        let known =
            || entries.iter().filter_map(|d| d.annotations.get(ANNOTATION_REF_NAME).cloned()).collect::<Vec<_>>();
        found.cloned().ok_or_else(|| {
            let wanted = name.unwrap_or("latest");
            let names = match known() {
                none if none.is_empty() => "its images have no names".to_owned(),
                names => format!("it has {}", names.join(", ")),
            };
            Error::Archive(format!("{} has no image {wanted:?}: {names}", self.path.display()))
        })
    }

    /// Reads a blob of at most `max` bytes, verified.
    pub fn read_small(&self, digest: &Digest, max: usize) -> Result<Vec<u8>> {
        let bytes = self.read(&format!("blobs/{}/{}", digest.algorithm(), digest.hex()), max as u64)?;
        let mut hasher = digest.hasher();
        hasher.update(&bytes);
        content::verify(digest, hasher.finish()).map_err(|e| self.damaged(e, digest))?;
        Ok(bytes)
    }

    /// Opens a blob. Not verified: [`copy_blob`](Self::copy_blob) does.
    pub fn open_blob(&self, digest: &Digest) -> Result<Box<dyn Read + Send>> {
        self.open_name(&format!("blobs/{}/{}", digest.algorithm(), digest.hex()))
    }

    /// Copies a blob into a store, verified, unless it is there.
    pub fn copy_blob(&self, digest: &Digest, store: &Store) -> Result<()> {
        if store.content().has(digest)? {
            return Ok(());
        }
        let mut from = self.open_blob(digest)?;
        let mut to = store.content().writer_for(digest)?;
        io::copy(&mut from, &mut to).ctx("copy", &self.path)?;
        to.commit(Some(digest)).map(|_| ()).map_err(|e| self.damaged(e, digest))
    }

    fn damaged(&self, error: Error, digest: &Digest) -> Error {
        let blob = content::blob_path(&self.path, digest);
        super::load::not_as_named(error, &format!("{} is damaged", blob.display()))
    }

    /// Copies an image into a store: of `platform`, or all that is here. Returns its manifest or index. Hold a lease.
    pub fn copy_image(&self, target: &Descriptor, platform: Option<&Platform>, store: &Store) -> Result<Descriptor> {
        Copying { layout: self, platform, store, done: HashSet::new() }.object(target, 0)
    }

    /// Copies all its images into a store, of a platform or as they are, with the names that they have here. Hold a lease.
    pub fn load(&self, platform: Option<&Platform>, store: &Store) -> Result<Vec<Loaded>> {
        let mut loaded: Vec<Loaded> = Vec::new();
        for entry in &self.index.manifests {
            let (name, mut target) = entry_name(entry);
            target = self.copy_image(&target, platform, store)?;
            if !loaded.iter().any(|l| l.target.digest == target.digest) {
                loaded.push(Loaded { target: target.clone(), names: Vec::new(), ignored: Vec::new() });
            }
            let image = loaded.iter_mut().find(|l| l.target.digest == target.digest);
            if let (Some(image), Some(name)) = (image, name) {
                add_names(image, &[name]);
            }
        }
        if loaded.is_empty() {
            return Err(Error::Archive(format!("{} has no images", self.path.display())));
        }
        Ok(loaded)
    }

    fn read(&self, name: &str, max: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open_name(name)?.take(max + 1).read_to_end(&mut bytes).ctx("read", self.path.join(name))?;
        if bytes.len() as u64 > max {
            return Err(Error::Archive(format!("{name} of {} is larger than {max} bytes", self.path.display())));
        }
        Ok(bytes)
    }

    /// Opens a regular file of the layout; never a FIFO, which would wait for ever, nor a symbolic link.
    fn open_name(&self, name: &str) -> Result<Box<dyn Read + Send>> {
        if let Some(tar) = &self.tar {
            let (offset, size) = *tar.files.get(name).ok_or_else(|| {
                Error::Archive(format!("{} is not an OCI layout: it lacks {name}", self.path.display()))
            })?;
            return Ok(Box::new(Slice { tar: tar.clone(), at: offset, end: offset + size }));
        }
        let path = self.path.join(name);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::open(&path, flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => {
                return Err(Error::Archive(format!("{} is not an OCI layout: it lacks {name}", self.path.display())));
            }
            other => File::from(other.ctx("open", &path)?),
        };
        if !file.metadata().ctx("stat", &path)?.is_file() {
            return Err(Error::Archive(format!("{} is not a regular file", path.display())));
        }
        Ok(Box::new(file))
    }
}

/// An image on its way into a store.
struct Copying<'a> {
    layout: &'a OciLayout,
    platform: Option<&'a Platform>,
    store: &'a Store,
    /// A few indexes that name each other often enough would be without end.
    done: HashSet<Digest>,
}

impl Copying<'_> {
    fn object(&mut self, target: &Descriptor, depth: u32) -> Result<Descriptor> {
        if self.done.contains(&target.digest) {
            return Ok(target.clone());
        }
        let (layout, store) = (self.layout, self.store);
        let raw = layout.read_small(&target.digest, MAX_MANIFEST)?;
        let kind = parse_manifest(&raw, Some(&target.media_type))
            .map_err(|source| Error::Manifest { digest: Box::new(target.digest), source })?;
        match kind {
            ManifestKind::Manifest(manifest) => {
                layout.read_small(&manifest.config.digest, MAX_CONFIG)?;
                manifest
                    .layers
                    .iter()
                    .chain([&manifest.config])
                    .try_for_each(|d| layout.copy_blob(&d.digest, store))?;
            }
            ManifestKind::Index(_) if depth >= 4 => {
                return Err(Error::Archive("indexes are nested too deeply".into()));
            }
            ManifestKind::Index(index) => match self.platform {
                Some(platform) => {
                    let found = index
                        .select(platform)
                        .ok_or_else(|| crate::images::no_platform(&target.digest, platform, &index))?;
                    return self.object(found, depth + 1);
                }
                None => {
                    for part in &index.manifests {
                        if layout.open_blob(&part.digest).is_ok() {
                            self.object(part, depth + 1)?;
                        }
                    }
                }
            },
        }
        layout.copy_blob(&target.digest, store)?;
        self.done.insert(target.digest);
        Ok(target.clone())
    }
}

fn empty() -> Index {
    Index {
        schema_version: 2,
        media_type: String::new(),
        manifests: Vec::new(),
        annotations: Default::default(),
        extra: Default::default(),
    }
}

/// Finds the files of a tar.
fn scan(path: &Path) -> Result<TarFiles> {
    let mut file = File::open(path).ctx("open", path)?;
    let mut head = [0; kiln_compress::MAGIC_LEN];
    let n = file.read(&mut head).ctx("read", path)?;
    let format = kiln_compress::detect(&head[..n]);
    if format != kiln_compress::Format::Plain {
        return Err(Error::Archive(format!(
            "{} is compressed with {}: load it instead",
            path.display(),
            format.name()
        )));
    }
    file.seek(SeekFrom::Start(0)).ctx("seek", path)?;
    let mut files = HashMap::new();
    let bad = |e: io::Error| Error::Archive(format!("{} is not a tar: {e}", path.display()));
    {
        let mut archive = tar::Archive::new(&file);
        for entry in archive.entries_with_seek().map_err(bad)? {
            let entry = entry.map_err(bad)?;
            if entry.header().entry_type() == tar::EntryType::Regular {
                let name = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
                files.insert(name, (entry.raw_file_position(), entry.size()));
            }
        }
    }
    Ok(TarFiles { file, files })
}

/// A file inside a tar.
struct Slice {
    tar: Arc<TarFiles>,
    at: u64,
    end: u64,
}

impl Read for Slice {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let max = (self.end - self.at).min(buf.len() as u64) as usize;
        let n = self.tar.file.read_at(&mut buf[..max], self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}
