//! Puts an assembled result where each `--output` asks.

use std::collections::BTreeMap;
use std::path::Path;

use kiln_oci::{Descriptor, Index, Reference, media};
use kiln_rootfs::Root;
use kiln_rootfs::apply::{ExtractOptions, extract};
use kiln_store::{ArchiveFormat, SaveImage, Snapshot};

use super::ahead::PushAhead;
use super::assemble::{Assembled, Documents, annotations};
use super::files;
use crate::build::Job;
use crate::error::{Error, Result};
use crate::leaks::LeakSearch;
use crate::push::Push;
use crate::request::{AnnotationTarget, ArchiveOutput, Destination, ImageOutput, Output};
use crate::steps::Step;

/// What came out.
#[derive(Debug, Clone)]
pub struct Exported {
    /// The manifest, or the index of several.
    pub target: Descriptor,
    /// The images.
    pub images: Vec<Assembled>,
    /// The names it was given.
    pub names: Vec<Reference>,
}

/// Writes one output. `images` are assembled with the output's layer format, `target` stands for all of them.
pub fn export(
    (job, step): (&Job, &Step),
    output: &Output,
    (images, target): (&[Assembled], Option<Descriptor>),
    roots: &[Snapshot],
    ahead: Option<&PushAhead<'_>>,
) -> Result<Option<Exported>> {
    match output {
        Output::CacheOnly => Ok(None),
        Output::Local { dest, delete } => each_root(job, roots, |sub, root| {
            let dest = sub.map_or_else(|| dest.clone(), |s| dest.join(s));
            files::local(job, root, &dest, *delete)
        })
        .map(|()| None),
        Output::Tar(dest) => match roots {
            [one] => files::tar(job, one, dest).map(|()| None),
            _ => Err(Error::request("--output type=tar takes one platform")),
        },
        Output::Image(image) => to_store((job, step), image, found(target)?, images, ahead).map(Some),
        Output::Archive(archive) => to_archive(job, archive, found(target)?, images).map(Some),
    }
}

/// Several platforms go into a directory each, named like `linux_arm64`.
fn each_root(job: &Job, roots: &[Snapshot], write: impl Fn(Option<String>, &Snapshot) -> Result<()>) -> Result<()> {
    match roots {
        [one] if !as_several(job) => write(None, one),
        many => many
            .iter()
            .zip(&job.platforms)
            .try_for_each(|(root, platform)| write(Some(platform.to_string().replace('/', "_")), root)),
    }
}

fn found(target: Option<Descriptor>) -> Result<Descriptor> {
    target.ok_or_else(|| Error::request("there is nothing to export"))
}

/// Whether one platform is written as several would be.
fn as_several(job: &Job) -> bool {
    kiln_frontend::is_on(&job.request.build_args, "BUILDKIT_MULTI_PLATFORM")
}

/// One manifest stands for itself; several get an index, also if index annotations are asked for. The index, and annotations
/// that only the layout holds, are searched as the rest of the image was.
pub fn target(job: &Job, images: &[Assembled], search: Option<&LeakSearch>) -> Result<(Descriptor, Documents)> {
    if let Some(search) = search {
        let all = job.request.annotations.iter().map(|a| format!("{}={}", a.key, a.value));
        all.for_each(|text| search.value("an annotation", text.as_bytes()));
        let names = job.request.tags.iter().map(ToString::to_string);
        names.for_each(|text| search.value("the name of the image", text.as_bytes()));
    }
    let wants_index = job
        .request
        .annotations
        .iter()
        .any(|a| matches!(a.target, AnnotationTarget::Index | AnnotationTarget::ManifestDescriptor));
    if let ([one], false) = (images, wants_index || as_several(job)) {
        return Ok((one.manifest.clone(), Documents::default()));
    }
    let oci = images.iter().all(|i| i.manifest.media_type == media::OCI_MANIFEST);
    let manifests = images
        .iter()
        .map(|image| Descriptor { platform: Some(image.platform.clone()), ..image.manifest.clone() })
        .collect();
    let first = images.first().ok_or_else(|| Error::request("there is nothing to export"))?;
    let index = Index {
        schema_version: 2,
        media_type: if oci { media::OCI_INDEX } else { media::DOCKER_LIST }.to_owned(),
        manifests,
        annotations: annotations(job, AnnotationTarget::Index, &first.platform),
        extra: BTreeMap::new(),
    };
    let bytes = serde_json::to_vec(&index).map_err(|e| Error::request(e.to_string()))?;
    if let Some(search) = search {
        search.value("the index", &bytes);
    }
    Ok((Descriptor::of(&index.media_type, &bytes), Documents::of(bytes)))
}

fn names(job: &Job, more: &[Reference]) -> Vec<Reference> {
    let mut all = job.request.tags.clone();
    all.extend(more.iter().filter(|n| !job.request.tags.contains(n)).cloned());
    all
}

fn to_store(
    (job, step): (&Job, &Step),
    output: &ImageOutput,
    target: Descriptor,
    images: &[Assembled],
    ahead: Option<&PushAhead<'_>>,
) -> Result<Exported> {
    let names = names(job, &output.names);
    let mut stored = if output.push_by_digest { Vec::new() } else { names.clone() };
    if names.is_empty() {
        stored.extend(output.dangling_prefix.iter().map(|n| n.with_digest(target.digest)));
    }
    if output.name_canonical {
        stored.extend(names.iter().map(|n| n.with_digest(target.digest)));
    }
    if stored.is_empty() {
        job.engine.store.images().put_untagged(&target)?;
    }
    {
        let _many = job.engine.store.images().many()?;
        for name in &stored {
            job.engine.store.images().put(name, &target)?;
            step.progress(&format!("naming to {name}"), 0, None, true);
        }
    }
    if output.push {
        let (first, mut sent) = ahead.map(PushAhead::finish).transpose()?.unzip();
        for name in &names {
            if output.insecure {
                job.engine.registry.allow_insecure(name.registry());
            }
            let sent = if first == Some(name) { sent.take() } else { None };
            let push = Push::new(&job.engine, step).without(sent.unwrap_or_default());
            push.image(name, &target, output.push_by_digest)?;
        }
    }
    Ok(Exported { target, images: images.to_vec(), names })
}

fn to_archive(job: &Job, output: &ArchiveOutput, target: Descriptor, images: &[Assembled]) -> Result<Exported> {
    let names = names(job, &output.names);
    for image in images {
        job.engine.fetch_missing(&image.layers, &image.remotes)?;
    }
    let mut described = target.clone();
    if let ([one], None) = (images, &target.platform)
        && one.manifest.digest == target.digest
    {
        // As buildx: readers choose by platform without reading the config.
        described.platform = Some(one.platform.clone());
    }
    let archive = [SaveImage { target: described, names: names.clone() }];
    let format = if output.docker { ArchiveFormat::Docker } else { ArchiveFormat::Oci };
    let store = &job.engine.store;
    match (&output.dest, output.directory) {
        (Destination::Path(path), true) => save_directory(store, &archive, format, None, path)?,
        (Destination::Stdout, true) => return Err(Error::request("tar=false needs dest=DIRECTORY")),
        (dest, false) => {
            ensure_parent(dest)?;
            files::with_writer(dest, |out| Ok(store.save(&archive, format, None, out).map(|_| ())?))?;
        }
    }
    Ok(Exported { target, images: images.to_vec(), names })
}

/// The archive unpacked while it is written.
pub fn save_directory(
    store: &kiln_store::Store,
    images: &[SaveImage],
    format: ArchiveFormat,
    platform: Option<&kiln_oci::Platform>,
    path: &Path,
) -> Result<()> {
    std::fs::create_dir_all(path).map_err(|e| Error::io("create", path, e))?;
    let root = Root::open(path)?;
    let (reader, mut writer) = std::io::pipe().map_err(|e| Error::io("open", "a pipe", e))?;
    let extracting = std::thread::spawn(move || extract(reader, &root, &ExtractOptions::default()));
    let saved = store.save(images, format, platform, &mut writer);
    drop(writer);
    let extracted = extracting.join().unwrap_or(Err(kiln_rootfs::RootfsError::NotFound { path: path.to_owned() }));
    extracted?;
    saved?;
    // An archive's files are of 1970, so that its bytes are the same each time; what make and rsync look at is of now.
    for name in ["index.json", "oci-layout", "manifest.json"] {
        let file = std::fs::File::options().write(true).open(path.join(name));
        _ = file.and_then(|f| f.set_modified(std::time::SystemTime::now()));
    }
    Ok(())
}

fn ensure_parent(dest: &Destination) -> Result<()> {
    match dest {
        Destination::Path(path) => match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() && !Path::new(dir).exists() => {
                std::fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))
            }
            _ => Ok(()),
        },
        Destination::Stdout => Ok(()),
    }
}
