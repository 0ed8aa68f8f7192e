//! Images of the store, as users name them and as lists show them. Nothing here asks a registry.

use std::collections::BTreeMap;

use kiln_oci::{Descriptor, Digest, ImageConfig, Manifest, Platform, Reference, Timestamp};
use kiln_store::{Image, ManifestView, Store};

use crate::error::{Error, Result};

/// The image that a user means: a name, `name@digest`, or the beginning of an ID.
pub fn find(store: &Store, text: &str) -> Result<Image> {
    try_find(store, text)?.ok_or_else(|| missing(store, text))
}

/// The same; `None` if there is none.
pub fn try_find(store: &Store, text: &str) -> Result<Option<Image>> {
    let reference = text.parse::<Reference>();
    if let Ok(name) = &reference
        && let Some(image) = store.images().resolve(name)?
    {
        // A digest finds any image that has it, by whatever name it is here.
        let known = name.digest().is_none() || image.name.as_ref().is_some_and(|n| n.name() == name.name());
        if known {
            return Ok(Some(image));
        }
    }
    if let Some(image) = store.images().by_id(text)? {
        return Ok(Some(image));
    }
    match reference {
        Err(_) if !is_id(text) => Err(Error::request(format!("{text:?} is neither an image name nor an image ID"))),
        _ => Ok(None),
    }
}

fn is_id(text: &str) -> bool {
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    !hex.is_empty() && hex.chars().all(|c| c.is_ascii_hexdigit())
}

/// "No such image", with the name that it is close to.
fn missing(store: &Store, text: &str) -> Error {
    let shown = text.parse::<Reference>().map_or_else(|_| text.to_owned(), |n| n.with_default_tag().familiar());
    let shown = if is_id(text) { text.to_owned() } else { shown };
    let message = format!("no such image: {shown}");
    let names: Vec<String> =
        store.images().list().unwrap_or_default().into_iter().filter_map(|i| i.name).map(|n| n.familiar()).collect();
    let short = |name: &str| name.strip_suffix(":latest").unwrap_or(name).to_owned();
    let other_tag = names.iter().find(|n| n.rsplit_once(':').map(|p| p.0) == shown.rsplit_once(':').map(|p| p.0));
    let shorts: Vec<String> = names.iter().map(|n| short(n)).collect();
    let near = kiln_dockerfile::nearest(&short(&shown), shorts.iter().map(String::as_str));
    match near.or(other_tag.map(String::as_str)) {
        Some(near) => Error::request_with_hint(message, format!("did you mean {near}?")),
        None => {
            Error::request_with_hint(message, "`kiln images` lists what is here, `kiln pull` fetches from a registry")
        }
    }
}

/// What is shown as the image ID: the digest of a single image's config, or of the index of several.
pub fn id(image: &Image) -> Digest {
    image.config.unwrap_or(image.target.digest)
}

/// One platform of an image.
#[derive(Debug, Clone)]
pub struct Variant {
    /// Its manifest.
    pub descriptor: Descriptor,
    /// What it runs on.
    pub platform: Platform,
    /// Its manifest and config, if they are here.
    pub view: Option<ManifestView>,
    /// Bytes of its blobs that are here.
    pub content: u64,
    /// Bytes of its files; 0 if it is not here.
    pub files: u64,
}

/// An image with all its names.
#[derive(Debug, Clone)]
pub struct Summary {
    /// What is shown as its ID.
    pub id: Digest,
    /// Manifest or index.
    pub target: Descriptor,
    /// Its names; none of a dangling image.
    pub names: Vec<Reference>,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// Bytes of its files.
    pub size: u64,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// All images, each once, the newest first.
pub fn summaries(store: &Store) -> Result<Vec<Summary>> {
    let mut all: Vec<Summary> = Vec::new();
    for image in store.images().list()? {
        if let Some(known) = all.iter_mut().find(|s| s.target.digest == image.target.digest) {
            known.names.extend(image.name);
            continue;
        }
        let view = best(store, &image.target, None).ok();
        let size = view.as_ref().map_or(Ok(0), |v| size(store, &v.manifest, &v.config))?;
        all.push(Summary {
            id: id(&image),
            target: image.target,
            names: image.name.into_iter().collect(),
            created: view.as_ref().and_then(|v| v.config.created),
            size,
            labels: view.map(|v| v.config.config.labels).unwrap_or_default(),
        });
    }
    all.sort_by_key(|image| std::cmp::Reverse(image.created));
    Ok(all)
}

/// Whether an image for `found` is one for `wanted`: of a lower variant, it is.
pub(crate) fn is_for(found: &Platform, wanted: &Platform) -> bool {
    found == wanted || (found.runs_on(wanted) && found.architecture == wanted.architecture)
}

/// The image for a platform; without one, what runs here, or else whatever is here.
pub fn best(store: &Store, target: &Descriptor, platform: Option<&Platform>) -> Result<ManifestView> {
    if let Some(platform) = platform {
        let view = store.images().manifest(target, platform)?;
        let found = view.config.platform();
        return match is_for(&found, platform) {
            true => Ok(view),
            false => Err(Error::request(format!("the image is for {found}, not for {platform}"))),
        };
    }
    let host = Platform::host();
    match store.images().manifest(target, &host) {
        Ok(view) => Ok(view),
        Err(error) => {
            let views = store.images().manifests(target).unwrap_or_default();
            views.into_iter().next().ok_or(error.into())
        }
    }
}

/// The platforms of an image, those that are not here included.
pub fn variants(store: &Store, target: &Descriptor) -> Result<Vec<Variant>> {
    let entries = match store.images().index(target)? {
        Some(index) => index.manifests,
        None => vec![target.clone()],
    };
    let mut all = Vec::new();
    for descriptor in entries {
        let view = store.images().manifests(&descriptor).ok().and_then(|views| views.into_iter().next());
        let stated = descriptor.platform.clone().filter(|p| p.os != "unknown");
        let Some(platform) = stated.or_else(|| view.as_ref().map(|v| v.config.platform())) else { continue };
        let mut variant = Variant { descriptor, platform, view: None, content: 0, files: 0 };
        if let Some(view) = view {
            let blobs = view.manifest.layers.iter().chain([&view.manifest.config, &view.descriptor]);
            for blob in blobs {
                variant.content += store.content().size(&blob.digest)?.unwrap_or(0);
            }
            variant.files = size(store, &view.manifest, &view.config)?;
            variant.view = Some(view);
        }
        all.push(variant);
    }
    Ok(all)
}

/// Names the bytes of a layer that is known by another diff ID.
pub(crate) fn size_key(diff_id: &Digest) -> String {
    format!("size {diff_id}")
}

/// Bytes of the regular files of each layer of an image, as docker counts; where they were never unpacked, bytes of the blob.
pub fn layer_sizes(store: &Store, manifest: &Manifest, config: &ImageConfig) -> Result<Vec<u64>> {
    let mut sizes = Vec::with_capacity(manifest.layers.len());
    for (descriptor, diff_id) in manifest.layers.iter().zip(&config.rootfs.diff_ids) {
        let layer = store.layers().find_by_diff_id(diff_id)?.map(|id| store.layers().get(&id)).transpose()?;
        let size = match layer.and_then(|l| l.size) {
            None => store.meta().get_as(&size_key(diff_id))?,
            known => known,
        };
        sizes.push(size.unwrap_or(descriptor.size));
    }
    Ok(sizes)
}

/// Bytes of all layers of an image.
pub fn size(store: &Store, manifest: &Manifest, config: &ImageConfig) -> Result<u64> {
    Ok(layer_sizes(store, manifest, config)?.into_iter().sum())
}
