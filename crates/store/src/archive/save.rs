//! Writing archives.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write};

use kiln_oci::{
    ANNOTATION_CONTAINERD_NAME, ANNOTATION_REF_NAME, Descriptor, Digest, Index, ManifestKind, Platform, Reference,
    media,
};
use serde::Serialize;

use super::DockerManifest;
use crate::error::{Error, Result};
use crate::store::Store;

/// What an archive is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveFormat {
    /// For `docker load`: an OCI layout with `manifest.json` and `repositories`, as docker itself writes since 25.
    Docker,
    /// An OCI layout.
    Oci,
}

/// An image to save.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaveImage {
    /// Its manifest or index.
    pub target: Descriptor,
    /// Names that it has in the archive; may be none.
    pub names: Vec<Reference>,
}

/// What was saved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SaveReport {
    /// Blobs in the archive; each is there once.
    pub blobs: u64,
    /// Bytes of the archive.
    pub bytes: u64,
}

/// What goes into the archive.
#[derive(Default)]
struct Plan {
    blobs: BTreeSet<Digest>,
    index: Vec<Descriptor>,
    docker: Vec<DockerManifest>,
    repositories: BTreeMap<String, BTreeMap<String, String>>,
}

impl Store {
    /// Blobs that [`save`](Self::save) would need and that are not here: those of layers that are still to be fetched.
    pub fn missing_blobs(&self, target: &Descriptor, platform: Option<&Platform>) -> Result<Vec<Descriptor>> {
        let views = match platform {
            Some(platform) => vec![self.images().manifest(target, platform)?],
            None => self.images().manifests(target)?,
        };
        let mut missing: Vec<Descriptor> = Vec::new();
        for layer in views.into_iter().flat_map(|v| v.manifest.layers) {
            if !self.content().holds(&layer)? && !missing.iter().any(|m| m.digest == layer.digest) {
                missing.push(layer);
            }
        }
        Ok(missing)
    }

    /// Writes images as one archive: of `platform`, or all that is here. The same images make the same bytes.
    pub fn save(
        &self,
        images: &[SaveImage],
        format: ArchiveFormat,
        platform: Option<&Platform>,
        out: &mut dyn Write,
    ) -> Result<SaveReport> {
        let mut plan = Plan::default();
        for image in images {
            self.plan(&mut plan, image, format, platform)?;
        }
        let mut archive = Archive { tar: tar::Builder::new(Counted { out, bytes: 0 }) };
        archive.directory("blobs/")?;
        let mut algorithm = "";
        for digest in &plan.blobs {
            if digest.algorithm() != algorithm {
                algorithm = digest.algorithm();
                archive.directory(&format!("blobs/{algorithm}/"))?;
            }
            let file = self.content().open(digest)?;
            let found = archive.blob(digest, file)?;
            self.content().expect(digest, found)?;
        }
        let index = Index {
            schema_version: 2,
            media_type: media::OCI_INDEX.into(),
            manifests: plan.index,
            annotations: BTreeMap::new(),
            extra: BTreeMap::new(),
        };
        archive.json("index.json", &index)?;
        if format == ArchiveFormat::Docker {
            archive.json("manifest.json", &plan.docker)?;
        }
        archive.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        if format == ArchiveFormat::Docker && !plan.repositories.is_empty() {
            archive.json("repositories", &plan.repositories)?;
        }
        let mut counted = archive.tar.into_inner().map_err(Error::Output)?;
        counted.flush().map_err(Error::Output)?;
        Ok(SaveReport { blobs: plan.blobs.len() as u64, bytes: counted.bytes })
    }

    fn plan(
        &self,
        plan: &mut Plan,
        image: &SaveImage,
        format: ArchiveFormat,
        platform: Option<&Platform>,
    ) -> Result<()> {
        let target = match platform {
            Some(platform) => self.images().manifest(&image.target, platform)?.descriptor,
            None => image.target.clone(),
        };
        self.collect_blobs(&target, &mut plan.blobs)?;
        let described = |name: Option<&Reference>| {
            let mut descriptor = target.clone();
            if let Some(name) = name {
                let short = match format {
                    // What docker writes, and what buildx writes.
                    ArchiveFormat::Docker => name.tag().unwrap_or_default().to_owned(),
                    // Podman takes the image's name from here.
                    ArchiveFormat::Oci => name.to_string(),
                };
                descriptor.annotations.insert(ANNOTATION_CONTAINERD_NAME.into(), name.to_string());
                if !short.is_empty() {
                    descriptor.annotations.insert(ANNOTATION_REF_NAME.into(), short);
                }
            }
            descriptor
        };
        if image.names.is_empty() {
            plan.index.push(described(None));
        }
        plan.index.extend(image.names.iter().map(|name| described(Some(name))));
        if format == ArchiveFormat::Oci {
            return Ok(());
        }
        // Docker's own format knows one platform: the one that was asked for, or that runs here, or the first one.
        let views = self.images().manifests(&target)?;
        let host = platform.cloned().unwrap_or_else(Platform::host);
        let own = views.iter().find(|v| v.config.platform().runs_on(&host)).or(views.first());
        let Some(view) = own else { return Ok(()) };
        let path = |digest: &Digest| format!("blobs/{}/{}", digest.algorithm(), digest.hex());
        let tagged: Vec<&Reference> = image.names.iter().filter(|n| n.tag().is_some()).collect();
        plan.docker.push(DockerManifest {
            config: path(&view.manifest.config.digest),
            repo_tags: tagged.iter().map(|n| n.familiar()).collect(),
            layers: view.manifest.layers.iter().map(|l| path(&l.digest)).collect(),
        });
        if let Some(top) = view.manifest.layers.last() {
            for name in tagged {
                let tags = plan.repositories.entry(name.familiar_name()).or_default();
                tags.insert(name.tag().unwrap_or_default().to_owned(), top.digest.hex());
            }
        }
        Ok(())
    }

    /// All blobs below a target. Parts of an index that are not here are left out; a part that is here must be whole.
    fn collect_blobs(&self, target: &Descriptor, blobs: &mut BTreeSet<Digest>) -> Result<()> {
        let mut pending = vec![target.clone()];
        while let Some(target) = pending.pop() {
            if !blobs.insert(target.digest) {
                continue;
            }
            match self.images().parse(&target)?.1 {
                ManifestKind::Index(index) => {
                    for part in index.manifests {
                        if self.content().has(&part.digest)? {
                            pending.push(part);
                        }
                    }
                }
                // Layers that may not be distributed are not in archives either.
                ManifestKind::Manifest(manifest) => blobs.extend(
                    manifest
                        .layers
                        .iter()
                        .chain([&manifest.config])
                        .filter(|b| !b.media_type.contains("nondistributable") && !b.media_type.contains(".foreign."))
                        .map(|b| b.digest),
                ),
            }
        }
        Ok(())
    }
}

/// Counts what passes.
struct Counted<'a> {
    out: &'a mut dyn Write,
    bytes: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.out.write(buf)?;
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A tar of files that all have the same owner, modes and time.
struct Archive<'a> {
    tar: tar::Builder<Counted<'a>>,
}

impl Archive<'_> {
    fn append(&mut self, name: &str, kind: tar::EntryType, size: u64, data: impl io::Read) -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(if kind == tar::EntryType::Directory { 0o755 } else { 0o644 });
        header.set_size(size);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        self.tar.append_data(&mut header, name, data).map_err(Error::Output)
    }

    fn directory(&mut self, name: &str) -> Result<()> {
        self.append(name, tar::EntryType::Directory, 0, io::empty())
    }

    fn file(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.append(name, tar::EntryType::Regular, bytes.len() as u64, bytes)
    }

    fn json<T: Serialize>(&mut self, name: &str, value: &T) -> Result<()> {
        let bytes = serde_json::to_vec(value).map_err(|e| Error::Archive(e.to_string()))?;
        self.file(name, &bytes)
    }

    /// A blob, hashed on the way: nobody should find out elsewhere that it is damaged.
    fn blob(&mut self, digest: &Digest, file: File) -> Result<Digest> {
        let size = file.metadata().map_err(|e| Error::io("stat", digest.to_string(), e))?.len();
        let name = format!("blobs/{}/{}", digest.algorithm(), digest.hex());
        let mut hashed = Hashed { file, hasher: digest.hasher() };
        self.append(&name, tar::EntryType::Regular, size, &mut hashed)?;
        Ok(hashed.hasher.finish())
    }
}

struct Hashed {
    file: File,
    hasher: kiln_oci::Hasher,
}

impl io::Read for Hashed {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buf)?;
        self.hasher.update(&buf[..n]);
        Ok(n)
    }
}
