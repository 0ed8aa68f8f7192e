//! Reading archives, from a stream.
//!
//! Entries come in any order, so blobs go straight into the content store, and what they are for is decided at the end.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kiln_oci::media::{self, Compression};
use kiln_oci::{
    ANNOTATION_CONTAINERD_NAME, ANNOTATION_REF_NAME, Descriptor, Digest, ImageConfig, Index, Manifest, ManifestKind,
    Reference,
};

use super::{DockerManifest, MAX_INDEX};
use crate::error::{Context, Error, Result};
use crate::images::MAX_CONFIG;
use crate::store::Store;

/// How to load.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// Do not record the images: only their content is put into the store, kept by the caller's lease. For images that are an
    /// input of a build.
    pub content_only: bool,
    /// Refuse archives that put more bytes than this into the store, or whose layers unpack to more; 0 is no limit.
    pub max_size: u64,
}

/// An image that was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// Its manifest or index.
    pub target: Descriptor,
    /// Its names in the archive.
    pub names: Vec<Reference>,
    /// Names in the archive that are not image names, as they are.
    pub ignored: Vec<String>,
}

/// Entries that are not metadata: more than any image has.
const MAX_ENTRIES: usize = 100_000;
/// What may be between two entries: long names, attributes.
const MAX_NAMES: u64 = 4 << 20;
/// Longest name that is remembered: the kernel knows no longer ones, and there may be [`MAX_ENTRIES`] of them.
const MAX_NAME: usize = 4096;
/// What may follow the end of a tar: padding.
const MAX_TRAILER: u64 = 16 << 20;

impl Store {
    /// Loads all images of an archive, compressed or not. Nothing is recorded unless all of it is in order.
    pub fn load(&self, reader: Box<dyn Read + Send>, options: &LoadOptions) -> Result<Vec<Loaded>> {
        // Blobs are pinned from when they are written until their image is recorded.
        let _lease = self.lease()?;
        let bad = |e: io::Error| Error::Archive(format!("it can't be read: {e}"));
        let (_, decoded) = kiln_compress::decoder(reader).map_err(bad)?;
        let limit = if options.max_size == 0 { u64::MAX } else { options.max_size };
        let mut spool =
            Spool { store: self, left: limit, files: BTreeMap::new(), links: HashMap::new(), small: HashMap::new() };
        spool.read(decoded)?;
        let loaded = spool.images()?;
        if !options.content_only {
            let _many = self.images().many()?;
            for image in &loaded {
                image.names.iter().try_for_each(|name| self.images().put(name, &image.target).map(|_| ()))?;
                if image.names.is_empty() {
                    self.images().put_untagged(&image.target)?;
                }
            }
        }
        Ok(loaded)
    }
}

/// What was read of an archive.
struct Spool<'a> {
    store: &'a Store,
    /// Bytes that may still be stored.
    left: u64,
    /// Names of blobs.
    files: BTreeMap<String, (Digest, u64)>,
    /// Symbolic and hard links, which old archives use for layers that are in it twice.
    links: HashMap<String, String>,
    /// `index.json`, `manifest.json`, `oci-layout`.
    small: HashMap<String, Vec<u8>>,
}

/// A name without `.` and empty parts; `..` goes up, and not above the top.
fn normal(name: &[u8]) -> String {
    let mut parts: Vec<String> = Vec::new();
    for part in String::from_utf8_lossy(name).split('/') {
        match part {
            "" | "." => {}
            ".." => _ = parts.pop(),
            part => parts.push(part.to_owned()),
        }
    }
    parts.join("/")
}

fn short(name: &[u8]) -> Result<&[u8]> {
    match name.len() > MAX_NAME {
        true => Err(Error::Archive(format!("an entry has a name of more than {MAX_NAME} bytes"))),
        false => Ok(name),
    }
}

fn damaged(e: io::Error) -> Error {
    Error::Archive(format!("it is damaged or cut off: {e}"))
}

pub(super) fn not_as_named(error: Error, what: &str) -> Error {
    match error {
        Error::DigestMismatch { expected, actual } => {
            Error::Archive(format!("{what}: expected {expected}, got {actual}"))
        }
        other => other,
    }
}

impl Spool<'_> {
    fn read(&mut self, reader: Box<dyn Read + Send>) -> Result<()> {
        let limit = Arc::new(AtomicU64::new(MAX_NAMES));
        let mut archive = tar::Archive::new(Guard { inner: reader, position: 0, limit: Arc::clone(&limit) });
        let mut first = true;
        for entry in archive.entries().map_err(damaged)? {
            let mut entry = match entry {
                // The library quotes what it can't read, which may be anything.
                Err(e) if first && e.to_string().contains("cksum") => {
                    return Err(Error::Archive("it is not a tar".into()));
                }
                entry => entry.map_err(damaged)?,
            };
            first = false;
            let end = entry.raw_file_position().saturating_add(entry.size());
            limit.store(end.saturating_add(MAX_NAMES), Ordering::Relaxed);
            let name = normal(short(&entry.path_bytes())?);
            if self.files.len() + self.links.len() > MAX_ENTRIES {
                return Err(Error::Archive(format!("it has more than {MAX_ENTRIES} entries")));
            }
            let kind = entry.header().entry_type();
            match kind {
                tar::EntryType::Regular | tar::EntryType::Continuous => {
                    let size = entry.size();
                    self.file(name, size, &mut entry)?;
                }
                tar::EntryType::Symlink | tar::EntryType::Link => {
                    let Some(target) = entry.link_name_bytes() else { continue };
                    let parent = match (kind, name.rsplit_once('/')) {
                        (tar::EntryType::Symlink, Some((parent, _))) if !target.starts_with(b"/") => parent,
                        _ => "",
                    };
                    let target = normal(&[parent.as_bytes(), b"/", short(&target)?].concat());
                    self.links.insert(name, target);
                }
                // Its length is not what it takes in the archive.
                tar::EntryType::GNUSparse => return Err(Error::Archive(format!("{name:?} is a sparse file"))),
                _ => {}
            }
        }
        limit.store(u64::MAX, Ordering::Relaxed);
        // Whoever writes into our pipe is not to die of it because we stopped before the padding.
        io::copy(&mut archive.into_inner().take(MAX_TRAILER), &mut io::sink()).map_err(damaged)?;
        Ok(())
    }

    fn file(&mut self, name: String, size: u64, entry: &mut dyn Read) -> Result<()> {
        match name.as_str() {
            "index.json" | "manifest.json" | "oci-layout" => {
                let mut bytes = Vec::new();
                entry.take(MAX_INDEX + 1).read_to_end(&mut bytes).map_err(damaged)?;
                if bytes.len() as u64 > MAX_INDEX {
                    return Err(Error::Archive(format!("its {name} is larger than {MAX_INDEX} bytes")));
                }
                complete(bytes.len() as u64, size)?;
                self.small.insert(name, bytes);
                return Ok(());
            }
            // Of docker before 1.10; beside a manifest.json they say nothing new.
            name if name == "repositories" || name.ends_with("/json") || name.ends_with("/VERSION") => return Ok(()),
            _ => {}
        }
        let claimed = name.strip_prefix("blobs/").and_then(|n| n.replacen('/', ":", 1).parse::<Digest>().ok());
        if let Some(size) = claimed.as_ref().map(|d| self.store.content().size(d)).transpose()?.flatten() {
            // It is here and verified; the next entry skips what is left of this one.
            self.files.insert(name, (claimed.unwrap_or_else(|| Digest::of(b"")), size));
            return Ok(());
        }
        let mut writer = match &claimed {
            Some(digest) => self.store.content().writer_for(digest)?,
            None => self.store.content().writer()?,
        };
        if size > self.left {
            return Err(self.too_large());
        }
        copy(entry, &mut writer)?;
        complete(writer.size(), size)?;
        self.left -= size;
        let blob = writer.commit(claimed.as_ref()).map_err(|e| not_as_named(e, &format!("{name} is damaged")))?;
        self.files.insert(name, blob);
        Ok(())
    }

    fn too_large(&self) -> Error {
        Error::DiskFull { action: "unpack the archive into", path: self.store.root().to_path_buf() }
    }

    /// The blob that a name leads to.
    fn find(&self, name: &str) -> Result<(Digest, u64)> {
        let mut at = normal(name.as_bytes());
        // A loop of links ends as well.
        for _ in 0..8 {
            if let Some(found) = self.files.get(&at) {
                return Ok(*found);
            }
            match self.links.get(&at) {
                Some(target) => at.clone_from(target),
                None => break,
            }
        }
        Err(Error::Archive(format!("it lacks {name:?}, which its manifest names")))
    }

    fn images(&self) -> Result<Vec<Loaded>> {
        let docker: Vec<DockerManifest> = self.json("manifest.json")?.unwrap_or_default();
        let index: Option<Index> = self.json("index.json")?;
        match index {
            // It keeps the manifests, and with them the digests; docker's file has more names at most.
            Some(index) if !index.manifests.is_empty() => self.oci_images(index, &docker),
            _ if !docker.is_empty() => docker.iter().map(|image| self.docker_image(image)).collect(),
            _ if self.files.keys().any(|name| name.ends_with("/layer.tar")) => {
                Err(Error::Archive("it is of a docker before 1.10, which is not supported".into()))
            }
            _ => Err(Error::Archive(
                "it is not an image archive: it has neither an index.json nor a manifest.json".into(),
            )),
        }
    }

    fn json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let parse = |bytes: &Vec<u8>| {
            serde_json::from_slice(bytes).map_err(|e| Error::Archive(format!("its {name} is not valid: {e}")))
        };
        self.small.get(name).map(parse).transpose()
    }

    fn oci_images(&self, index: Index, docker: &[DockerManifest]) -> Result<Vec<Loaded>> {
        let mut loaded: Vec<Loaded> = Vec::new();
        let mut seen = HashSet::new();
        for entry in index.manifests {
            let (name, descriptor) = entry_name(&entry);
            let mut names: Vec<String> = name.into_iter().collect();
            match loaded.iter_mut().find(|l| (l.target.digest, l.target.size) == (descriptor.digest, descriptor.size)) {
                Some(known) => add_names(known, &names),
                None => {
                    self.check(&descriptor, 0, &mut seen)?;
                    names.extend(self.docker_names(&descriptor, docker)?);
                    let mut image = Loaded { target: descriptor, names: Vec::new(), ignored: Vec::new() };
                    add_names(&mut image, &names);
                    loaded.push(image);
                }
            }
        }
        Ok(loaded)
    }

    /// Names that `manifest.json` has for an image.
    fn docker_names(&self, descriptor: &Descriptor, docker: &[DockerManifest]) -> Result<Vec<String>> {
        let mut names = Vec::new();
        let ManifestKind::Manifest(manifest) = self.store.images().parse(descriptor)?.1 else { return Ok(names) };
        for image in docker {
            if self.find(&image.config).is_ok_and(|(digest, _)| digest == manifest.config.digest) {
                names.extend(image.repo_tags.iter().cloned());
            }
        }
        Ok(names)
    }

    /// Checks that what a manifest names is in the archive, or was here before. Parts of an index may be missing. What was
    /// `seen` is not looked at again: a few indexes that name each other often enough would be without end.
    fn check(&self, descriptor: &Descriptor, depth: u32, seen: &mut HashSet<Digest>) -> Result<()> {
        let lacks = |what: &Descriptor| Error::Archive(format!("it lacks the blob {}", what.digest));
        let differs = |what: &Descriptor, size: u64| {
            let (digest, said) = (&what.digest, what.size);
            Error::Archive(format!("its blob {digest} has {size} bytes, not {said} as what names it says"))
        };
        match self.store.content().size(&descriptor.digest)? {
            None => return Err(lacks(descriptor)),
            Some(size) if size != descriptor.size => return Err(differs(descriptor, size)),
            Some(_) if !seen.insert(descriptor.digest) => return Ok(()),
            Some(_) => {}
        }
        match self.store.images().parse(descriptor)?.1 {
            ManifestKind::Index(index) => {
                let mut found = 0;
                for part in &index.manifests {
                    if depth < 4 && self.store.content().size(&part.digest)?.is_some() {
                        self.check(part, depth + 1, seen)?;
                        found += 1;
                    }
                }
                if found == 0 {
                    Err(Error::Archive(format!("it has no image of the index {}", descriptor.digest)))
                } else {
                    Ok(())
                }
            }
            ManifestKind::Manifest(manifest) => {
                for blob in manifest.layers.iter().chain([&manifest.config]) {
                    match self.store.content().size(&blob.digest)? {
                        Some(size) if size == blob.size => {}
                        Some(size) => return Err(differs(blob, size)),
                        None if blob.urls.is_empty() => return Err(lacks(blob)),
                        None => {}
                    }
                }
                Ok(())
            }
        }
    }

    /// An image that has no manifest: a config, and layers that it vouches for by their diff IDs.
    fn docker_image(&self, image: &DockerManifest) -> Result<Loaded> {
        let (config_digest, config_size) = self.find(&image.config)?;
        let raw = self.store.content().read_small(&config_digest, MAX_CONFIG)?;
        let config: ImageConfig =
            serde_json::from_slice(&raw).map_err(|source| Error::Config { digest: Box::new(config_digest), source })?;
        let diff_ids = &config.rootfs.diff_ids;
        if diff_ids.len() != image.layers.len() {
            let (have, want) = (image.layers.len(), diff_ids.len());
            return Err(Error::Archive(format!("{} lists {have} layers, its config {want}", image.config)));
        }
        let layers = image.layers.iter().zip(diff_ids).map(|(name, diff_id)| self.layer(name, diff_id));
        let manifest = Manifest {
            schema_version: 2,
            media_type: media::OCI_MANIFEST.into(),
            config: Descriptor::new(media::OCI_CONFIG, config_digest, config_size),
            layers: layers.collect::<Result<_>>()?,
            annotations: BTreeMap::new(),
            extra: BTreeMap::new(),
        };
        let bytes = serde_json::to_vec(&manifest).map_err(|e| Error::Archive(e.to_string()))?;
        self.store.content().put(&bytes)?;
        let target = Descriptor::of(media::OCI_MANIFEST, &bytes);
        let mut loaded = Loaded { target, names: Vec::new(), ignored: Vec::new() };
        add_names(&mut loaded, &image.repo_tags);
        Ok(loaded)
    }

    fn layer(&self, name: &str, diff_id: &Digest) -> Result<Descriptor> {
        let (digest, size) = self.find(name)?;
        if digest == *diff_id {
            return Ok(Descriptor::new(Compression::Uncompressed.layer_media_type(true), digest, size));
        }
        let path = self.store.content().path(&digest);
        let file = Box::new(self.store.content().open(&digest)?);
        let (format, tar) = kiln_compress::decoder(file).ctx("read", &path)?;
        let mut hasher = diff_id.hasher();
        // What could never be unpacked here is not worth the hours that hashing it may take.
        let mut tar = kiln_compress::LimitReader::new(tar, self.left);
        io::copy(&mut tar, &mut hasher).map_err(|e| match kiln_compress::limit_exceeded(&e) {
            Some(_) => self.too_large(),
            None => damaged(e),
        })?;
        crate::content::verify(diff_id, hasher.finish())
            .map_err(|e| not_as_named(e, &format!("its layer {name} is not what the image's config says")))?;
        match format.layer_compression() {
            Some(compression) => Ok(Descriptor::new(compression.layer_media_type(true), digest, size)),
            None => Err(Error::Archive(format!(
                "its layer {name:?} is compressed with {}, which images do not have",
                format.name()
            ))),
        }
    }
}

/// Refuses to read far beyond the entry at hand: the library reads the names of the next one, however long they claim to be, into
/// memory.
struct Guard {
    inner: Box<dyn Read + Send>,
    position: u64,
    limit: Arc<AtomicU64>,
}

impl Read for Guard {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.position > self.limit.load(Ordering::Relaxed) {
            return Err(io::Error::other(format!("an entry has a name of more than {MAX_NAMES} bytes")));
        }
        let n = self.inner.read(buf)?;
        self.position += n as u64;
        Ok(n)
    }
}

/// The library takes a stream that ends inside of a file for the end of that file.
fn complete(read: u64, size: u64) -> Result<()> {
    if read == size { Ok(()) } else { Err(damaged(io::ErrorKind::UnexpectedEof.into())) }
}

fn copy(from: &mut dyn Read, to: &mut crate::BlobWriter) -> Result<()> {
    use std::io::Write;
    let mut buffer = vec![0; 256 << 10];
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(damaged(e)),
        };
        to.write_all(&buffer[..n]).ctx("write", to.path())?;
    }
}

/// The name of an entry of `index.json`, and the entry without it.
pub(super) fn entry_name(entry: &Descriptor) -> (Option<String>, Descriptor) {
    let mut descriptor = entry.clone();
    let mut take = |key: &str| descriptor.annotations.remove(key);
    let (full, short) = (take(ANNOTATION_CONTAINERD_NAME), take(ANNOTATION_REF_NAME));
    // A word alone is a name, as for podman; but `latest` is what tools write where nobody gave one.
    (full.or_else(|| short.filter(|s| s != "latest")), descriptor)
}

pub(super) fn add_names(image: &mut Loaded, names: &[String]) {
    for name in names {
        match name.parse::<Reference>() {
            Ok(parsed) => {
                let parsed = parsed.with_default_tag();
                if !image.names.contains(&parsed) {
                    image.names.push(parsed);
                }
            }
            // `<none>:<none>` is how docker writes that there is no name.
            Err(_) if name.starts_with("<none>") => {}
            Err(_) => image.ignored.push(name.chars().take(300).collect()),
        }
    }
}
