//! Images in files: `save`, `load`, `import`.
//!
//! Nothing of an archive is visible before all of it is in order: blobs without a name are debris that a collection removes.

use std::io::{self, Read};
use std::path::PathBuf;

use kiln_compress::limit_exceeded;
use kiln_oci::{Descriptor, Platform, Reference};
use kiln_rootfs::apply::{ExtractOptions, Limits, extract};
use kiln_rootfs::{Root, RootfsError};
use kiln_source::{HttpOptions, redact_url};
use kiln_store::{ArchiveFormat, ImportOptions, LayerMeta, LoadOptions, Loaded, OciLayout, SaveImage, Snapshot};

use crate::changes::changed_config;
use crate::counted::Counted;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::export::{save_directory, with_writer};
use crate::pack::PackOptions;
use crate::request::{Destination, LayerFormat};
use crate::steps::Step;

/// At most this, and of little a twentieth, is left free on the file system.
const SPARE: u64 = 64 << 20;

/// Images to write.
pub struct SaveRequest {
    /// Which, and their names in the archive.
    pub images: Vec<SaveImage>,
    /// For whom.
    pub format: ArchiveFormat,
    /// A directory rather than a tar.
    pub directory: bool,
    /// Of images for several platforms, this one; else all that are here.
    pub platform: Option<Platform>,
    /// Where to.
    pub dest: Destination,
}

/// An archive to read.
pub enum LoadSource {
    /// A stream, and its length if that is known.
    Stream(Box<dyn Read + Send>, Option<u64>),
    /// A directory with an OCI layout.
    Layout(PathBuf),
}

/// An image that was loaded.
#[derive(Debug, Clone)]
pub struct LoadedImage {
    /// Its manifest or index.
    pub target: Descriptor,
    /// Its names, and what they led to before.
    pub names: Vec<(Reference, Option<Descriptor>)>,
    /// Names in the archive that are none.
    pub ignored: Vec<String>,
}

/// A root file system to make an image of.
pub struct ImportRequest {
    /// Where it is.
    pub source: ImportSource,
    /// Name of the image.
    pub name: Option<Reference>,
    /// Instructions that change the config: `CMD`, `ENV`, ….
    pub changes: Vec<String>,
    /// Comment in the history.
    pub message: Option<String>,
    /// What it runs on.
    pub platform: Platform,
}

/// Where a root file system is.
pub enum ImportSource {
    /// A stream: what to call it, and its length if that is known.
    Stream(Box<dyn Read + Send>, String, Option<u64>),
    /// A URL.
    Url(String),
}

impl Engine {
    /// Writes images. Layers that were left in their registry are fetched.
    pub fn save_images(&self, request: &SaveRequest, step: &Step) -> Result<()> {
        let names: Vec<String> = request.images.iter().map(shown).collect();
        self.save_whole(request, step).map_err(|e| e.of_image(&names.join(" or ")))
    }

    fn save_whole(&self, request: &SaveRequest, step: &Step) -> Result<()> {
        for image in &request.images {
            self.fetch_layers(&image.target, request.platform.as_ref(), step)?;
        }
        let platform = request.platform.as_ref();
        match (&request.dest, request.directory) {
            (Destination::Path(path), true) => {
                save_directory(&self.store, &request.images, request.format, platform, path)
            }
            (Destination::Stdout, true) => Err(Error::request("a directory can't be written to standard output")),
            (dest, false) => with_writer(dest, |out| {
                let mut out = Counted::new(out, step, "archive", None);
                Ok(self.store.save(&request.images, request.format, platform, &mut out).map(|_| ())?)
            }),
        }
    }

    /// Reads all images of an archive, and gives them their names. With a platform, only that one of each.
    pub fn load_images(
        &self,
        source: LoadSource,
        platform: Option<&Platform>,
        step: &Step,
    ) -> Result<Vec<LoadedImage>> {
        let options = LoadOptions { content_only: true, max_size: self.room()? };
        let loaded = match source {
            LoadSource::Layout(path) => OciLayout::open(&path)?.load(platform, &self.store)?,
            LoadSource::Stream(reader, total) => {
                self.store.load(Box::new(Counted::new(reader, step, "archive", total)), &options)?
            }
        };
        let chosen = loaded.into_iter().map(|image| self.of_platform(image, platform)).collect::<Result<Vec<_>>>()?;
        let _many = self.store.images().many()?;
        chosen.into_iter().map(|image| self.record(image)).collect()
    }

    fn of_platform(&self, mut image: Loaded, platform: Option<&Platform>) -> Result<Loaded> {
        if platform.is_some() {
            image.target = crate::images::best(&self.store, &image.target, platform)?.descriptor;
        }
        Ok(image)
    }

    fn record(&self, image: Loaded) -> Result<LoadedImage> {
        let images = self.store.images();
        let mut names = Vec::new();
        for name in image.names {
            let put = images.put(&name, &image.target)?;
            names.push((name, put.previous.filter(|_| put.dangling)));
        }
        if names.is_empty() {
            images.put_untagged(&image.target)?;
        }
        Ok(LoadedImage { target: image.target, names, ignored: image.ignored })
    }

    /// Makes an image of one layer from a tar, compressed or not. Its names are files, whatever they look like.
    pub fn import_image(&self, request: ImportRequest, step: &Step) -> Result<Descriptor> {
        let config = changed_config(&request.changes, &request.platform)?;
        let (origin, draft) = match request.source {
            ImportSource::Stream(reader, origin, total) => {
                let draft = self.import_files(reader, total, &origin, step)?;
                (origin, draft)
            }
            ImportSource::Url(url) => (redact_url(&url), self.import_url(&url, step)?),
        };
        let id = draft.commit(LayerMeta::default())?;
        let format = LayerFormat::default();
        let packed = self.pack_searched(&Snapshot(vec![id]), 0, &PackOptions::alone(format), None)?;
        let mut options = ImportOptions::new(&origin);
        options.platform = request.platform;
        options.config = config;
        options.message = request.message;
        let target = self.store.import_image(&packed.descriptor, &packed.diff_id, &options)?;
        match &request.name {
            Some(name) => _ = self.store.images().put(name, &target)?,
            None => self.store.images().put_untagged(&target)?,
        }
        Ok(target)
    }

    /// The download goes on while the files are written.
    fn import_url(&self, url: &str, step: &Step) -> Result<kiln_store::LayerDraft> {
        let (reader, mut writer) = io::pipe().map_err(|e| Error::io("open", "a pipe", e))?;
        std::thread::scope(|scope| {
            let download = scope.spawn(move || self.http.get(url, &HttpOptions::default(), &mut writer));
            let files = self.import_files(Box::new(reader), None, &redact_url(url), step);
            match download.join().unwrap_or(Ok(None)) {
                // A sink that closed is the other side's error.
                Err(error) if !matches!(error, kiln_source::HttpError::Write { .. }) => Err(error.into()),
                _ => files,
            }
        })
    }

    /// Bytes that an archive may take, whatever it says that it holds: the disk is not to be full after it.
    fn room(&self) -> Result<u64> {
        let free = self.store.free_space()?;
        Ok((free - (free / 20).min(SPARE)).max(1))
    }

    fn import_files(
        &self,
        reader: Box<dyn Read + Send>,
        total: Option<u64>,
        origin: &str,
        step: &Step,
    ) -> Result<kiln_store::LayerDraft> {
        let bad = |e: io::Error| Error::request(format!("{origin}: {e}"));
        let (_, plain) = kiln_compress::decoder(Box::new(Counted::new(reader, step, "archive", total))).map_err(bad)?;
        let draft = self.store.layers().draft()?;
        let root = Root::open(draft.fs())?.with_ownership(self.ownership);
        let room = self.room()?;
        let mut options = ExtractOptions::default();
        options.limits = Limits { bytes: room, ..options.limits };
        // Also what is in none of the files, names for example, is not worth more than there is room for.
        let mut plain = kiln_compress::LimitReader::new(plain, room.saturating_mul(2));
        let no_room = || Error::no_room("unpack it into", self.store.root());
        let applied = extract(&mut plain, &root, &options).map_err(|e| match &e {
            RootfsError::Limit { limit, .. } if *limit == room => no_room(),
            RootfsError::Io { source, .. } if limit_exceeded(source).is_some() || Error::is_full(source) => no_room(),
            _ => Error::request(format!("{origin}: {e}")),
        })?;
        let rest = io::copy(&mut plain, &mut io::sink());
        rest.map_err(|e| if limit_exceeded(&e).is_some() { no_room() } else { bad(e) })?;
        if applied.archive_bytes == 0 {
            return Err(Error::request(format!("{origin} is empty: expected a tar of a root file system")));
        }
        Ok(draft)
    }
}

/// An image by its first name, or else by its digest.
fn shown(image: &SaveImage) -> String {
    image.names.first().map_or_else(|| image.target.digest.short(), Reference::familiar)
}
