//! Images in OCI layouts and archives as bases: their blobs are taken into the store.

use std::path::Path;

use kiln_graph::OciLayoutSource;
use kiln_oci::{Descriptor, Platform};
use kiln_store::{LoadOptions, OciLayout};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::transfer::KnownImage;

/// An image of a layout directory, or of an OCI or docker archive.
pub fn find(engine: &Engine, source: &OciLayoutSource, platform: &Platform) -> Result<KnownImage> {
    let path = Path::new(&source.path);
    let digest = source.digest.map(|d| d.to_string());
    let wanted = digest.as_deref().or(source.tag.as_deref());
    let target = match OciLayout::open(path) {
        Ok(layout) => {
            let target = layout.resolve(wanted)?;
            layout.copy_image(&target, Some(platform), &engine.store)?
        }
        // Not a layout: an archive as `docker save` writes it.
        Err(_) if path.is_file() => from_archive(engine, path, wanted)?,
        Err(e) => return Err(e.into()),
    };
    engine.known(&target, platform, None)
}

fn from_archive(engine: &Engine, path: &Path, wanted: Option<&str>) -> Result<Descriptor> {
    let file = std::fs::File::open(path).map_err(|e| Error::io("open", path, e))?;
    let options = LoadOptions { content_only: true, ..LoadOptions::default() };
    let loaded = engine.store.load(Box::new(file), &options)?;
    let fits = |l: &&kiln_store::Loaded| match wanted {
        None => true,
        Some(wanted) => l.target.digest.to_string() == wanted || l.names.iter().any(|n| n.tag() == Some(wanted)),
    };
    let found = loaded.iter().find(fits).map(|l| l.target.clone());
    found.ok_or_else(|| Error::request(format!("{} has no image {}", path.display(), wanted.unwrap_or("at all"))))
}
