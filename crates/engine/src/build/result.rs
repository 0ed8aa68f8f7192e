//! From the solved targets to the outputs.

use std::collections::BTreeMap;

use kiln_oci::Digest;
use kiln_store::Snapshot;

use super::ReadyJob;
use super::ahead::PackAhead;
use super::solve::Solver;
use crate::cache;
use crate::error::{Error, Result};
use crate::export::{Assembled, Documents, Early, Exported, Parts, PushAhead, assemble, export, target};
use crate::leaks::{Leak, LeakSearch};
use crate::linkage;
use crate::request::{ImageOutput, LayerFormat, OnFinding, Output};
use crate::value::Value;

/// More programs that can't start are only counted.
const MOST_PROGRAMS: usize = 5;

/// What a build ends with.
#[derive(Debug, Clone, Default)]
pub struct BuildResult {
    /// The build's ID: `kiln logs` takes it.
    pub id: String,
    /// What was written as an image.
    pub exported: Vec<Exported>,
    /// What looks like a credential, or is a secret if that is only a warning.
    pub leaks: Vec<Leak>,
}

impl BuildResult {
    /// Digest of the manifest or index.
    pub fn image_digest(&self) -> Option<Digest> {
        self.exported.first().map(|e| e.target.digest)
    }

    /// The image ID: the config's digest of a single image, the index's digest of several.
    pub fn image_id(&self) -> Option<Digest> {
        let exported = self.exported.first()?;
        match exported.images.as_slice() {
            [one] => Some(one.config.digest),
            _ => Some(exported.target.digest),
        }
    }
}

/// Layers of imported caches that may turn out to be lost before that looks like a mistake of ours.
const MOST_LOST: usize = 10_000;

/// Solves and exports; once more for each layer of an imported cache that can't be had.
pub fn produce(ready: &ReadyJob) -> Result<BuildResult> {
    let outputs = match ready.request.outputs.is_empty() {
        true => vec![Output::Image(ImageOutput::default())],
        false => ready.request.outputs.clone(),
    };
    let packing = PackAhead::new(ready, &outputs);
    std::thread::scope(|scope| {
        let made = |vertex: usize, value: &Value| packing.made(scope, vertex, value);
        let solver = Solver::new(&ready.job, &made);
        for _ in 0..MOST_LOST {
            let roots = cache::sending(&ready.job, || solve_roots(ready, &solver));
            packing.no_more();
            match roots.and_then(|roots| write(ready, &outputs, &roots)) {
                Err(error) if ready.forgive(&error)? => {}
                Err(Error::LostLayer { blob, cause, .. }) => {
                    let base = blob.and_then(|blob| ready.resolved.base_with(&blob));
                    return Err(match base {
                        Some(base) => cause.of_image(&base),
                        None => *cause,
                    });
                }
                other => return other,
            }
        }
        Err(Error::request("too many layers of the imported cache can't be had"))
    })
}

fn write(ready: &ReadyJob, outputs: &[Output], roots: &[Snapshot]) -> Result<BuildResult> {
    let mut result = BuildResult::default();
    if outputs.iter().any(|o| matches!(o, Output::Image(_) | Output::Archive(_))) {
        check_programs(ready, roots)?;
    }
    for output in outputs {
        one_output(ready, output, roots, &mut result)?;
    }
    cache::export(&ready.job, roots)?;
    Ok(result)
}

/// Tells of programs that can't start in the image, before anybody tries.
fn check_programs(ready: &ReadyJob, roots: &[Snapshot]) -> Result<()> {
    let policy = ready.request.check_programs;
    if policy == OnFinding::Off {
        return Ok(());
    }
    let mut found = Vec::new();
    for (image, root) in ready.images.iter().zip(roots) {
        let own = own_steps(ready, image).len();
        found.extend(linkage::check(&ready.engine, root, own, &image.config)?);
    }
    found.dedup();
    if policy == OnFinding::Fail && !found.is_empty() {
        return Err(Error::Programs(found));
    }
    for finding in found.iter().take(MOST_PROGRAMS) {
        ready.steps.warn(format!("{}: {}", finding.describe(), finding.remedy()));
    }
    if let Some(more) = found.len().checked_sub(MOST_PROGRAMS).filter(|more| *more > 0) {
        ready.steps.warn(format!("{more} more programs lack something: --check-programs=fail lists all"));
    }
    Ok(())
}

/// The root of each platform's image.
fn solve_roots(ready: &ReadyJob, solver: &Solver<'_>) -> Result<Vec<Snapshot>> {
    let targets: Vec<_> = ready.images.iter().filter_map(|i| i.root.map(|e| e.vertex)).collect();
    let mut values = solver.solve(&targets)?.into_iter();
    let mut root = |image: &kiln_frontend::Image| match image.root {
        None => Ok(Snapshot::default()),
        Some(_) => match values.next() {
            Some(Value::Tree { snapshot, .. }) => Ok(snapshot),
            _ => Err(Error::request("the result of the build is not a file system")),
        },
    };
    ready.images.iter().map(&mut root).collect()
}

fn one_output(ready: &ReadyJob, output: &Output, roots: &[Snapshot], result: &mut BuildResult) -> Result<()> {
    let (format, name) = match output {
        Output::Image(image) => (Some(&image.layers), "exporting to image"),
        Output::Archive(archive) if archive.docker => (Some(&archive.layers), "exporting to docker archive"),
        Output::Archive(archive) => (Some(&archive.layers), "exporting to OCI archive"),
        Output::Tar(_) | Output::Local { .. } => (None, "copying files"),
        Output::CacheOnly => return Ok(()),
    };
    let search = ready.leak_search();
    let step = ready.steps.begin(name);
    let ahead = PushAhead::new(&ready.job, output, search.as_ref(), &step);
    let exported = std::thread::scope(|scope| {
        let push = |early: Early| {
            if let Some(ahead) = &ahead {
                ahead.begin(scope, early);
            }
        };
        let push = ahead.is_some().then_some(&push as &dyn Fn(Early));
        let written = (|| {
            let (images, mut documents) = match format {
                Some(format) => assemble_all(ready, format, roots, (search.as_ref(), push), &step)?,
                None => {
                    search_files(ready, roots, search.as_ref())?;
                    Default::default()
                }
            };
            let target = format.map(|_| target(&ready.job, &images, search.as_ref())).transpose()?;
            let target = target.map(|(target, index)| {
                documents.append(index);
                target
            });
            judge(ready, search.as_ref(), result)?;
            documents.write(&ready.engine.store)?;
            export((&ready.job, &step), output, (&images, target), roots, ahead.as_ref())
        })();
        ahead.iter().for_each(PushAhead::stop);
        written
    });
    result.exported.extend(step.conclude(exported)?);
    Ok(())
}

fn assemble_all(
    ready: &ReadyJob,
    format: &LayerFormat,
    roots: &[Snapshot],
    (search, ahead): (Option<&LeakSearch>, Option<&dyn Fn(Early)>),
    step: &crate::steps::Step,
) -> Result<(Vec<Assembled>, Documents)> {
    let (mut images, mut documents) = (Vec::new(), Documents::default());
    for (image, root) in ready.images.iter().zip(roots) {
        let places = layer_places(ready, image, root.0.len());
        let created = cache::created(&ready.engine, root)?;
        let inline = image.root.and_then(|e| cache::inline_records(&ready.job, e.vertex, root.0.len()));
        let parts = Parts {
            inline: inline.as_ref(),
            ahead,
            snapshot: root,
            created: &created,
            places: &places,
            lines: &image.history_locations,
            config: &image.config,
            base: image.base.as_ref().map(|b| &b.config),
            platform: &image.platform,
        };
        let (image, described_by) = assemble(&ready.job, &parts, format, search, step)?;
        images.push(image);
        documents.append(described_by);
    }
    Ok((images, documents))
}

/// Searches files that leave the store as files. A file is blamed on the last step that wrote it.
fn search_files(ready: &ReadyJob, roots: &[Snapshot], search: Option<&LeakSearch>) -> Result<()> {
    let Some(search) = search else { return Ok(()) };
    for (image, root) in ready.images.iter().zip(roots) {
        let places = layer_places(ready, image, root.0.len());
        ready.engine.search_tree(root, search, &|path| {
            let holds = |(id, _): &(&kiln_store::LayerId, &Option<String>)| {
                let file = ready.engine.store.layers().path(id).join(path.trim_start_matches('/'));
                file.symlink_metadata().is_ok()
            };
            let last = root.0.iter().zip(&places).rev().find(holds);
            last.map_or_else(|| Some("the result".to_owned()), |(_, place)| place.clone())
        })?;
    }
    Ok(())
}

/// Warnings of the same kind that are shown.
const MOST_WARNINGS: usize = 5;

/// Fails for secrets, warns for what looks like one.
fn judge(ready: &ReadyJob, search: Option<&LeakSearch>, result: &mut BuildResult) -> Result<()> {
    let leaks = search.map(LeakSearch::finish).unwrap_or_default();
    if ready.request.leaks == OnFinding::Fail && leaks.iter().any(Leak::is_secret) {
        return Err(Error::Leaks(leaks.into_iter().filter(Leak::is_secret).collect()));
    }
    // The first of each kind in full: keys for tests may be in hundreds of files.
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for leak in leaks.into_iter().filter(|l| !result.leaks.contains(l)).collect::<Vec<_>>() {
        let count = counts.entry(leak.subject()).or_default();
        *count += 1;
        if *count <= MOST_WARNINGS {
            ready.steps.warn(format!("{}: {}", leak.describe(), leak.remedy()));
        }
        result.leaks.push(leak);
    }
    for (subject, count) in counts.into_iter().filter(|(_, count)| *count > MOST_WARNINGS) {
        let Some(leak) = result.leaks.iter().find(|l| l.subject() == subject) else { continue };
        let more = count - MOST_WARNINGS;
        ready.steps.warn(format!("{} is in {more} more; `kiln check-leaks` lists them all", leak.what()));
    }
    Ok(())
}

/// The names of the steps that made the layers, `None` for those of the base image.
fn layer_places(ready: &ReadyJob, image: &kiln_frontend::Image, layers: usize) -> Vec<Option<String>> {
    let own = own_steps(ready, image);
    let base = layers.saturating_sub(own.len());
    let mut all = vec![None; base];
    all.extend(own.into_iter().map(Some));
    all.truncate(layers);
    all
}

/// The names of the steps whose layers are on top of the base's: walking down from the root, each exec or file vertex
/// made one.
fn own_steps(ready: &ReadyJob, image: &kiln_frontend::Image) -> Vec<String> {
    let vertices = ready.graph.vertices();
    let place = |vertex: &kiln_graph::Vertex| {
        let name = ready.steps.shown(&vertex.meta.name);
        match &vertex.meta.location {
            Some(location) => format!("{name} ({}:{})", location.file, location.start_line),
            None => name,
        }
    };
    let mut names = Vec::new();
    let mut next = image.root.map(|e| e.vertex);
    while let Some(id) = next {
        let vertex = &vertices[id.index()];
        let made = match &vertex.op {
            kiln_graph::Op::Source(_) => break,
            kiln_graph::Op::Merge(_) => vertex.inputs.last().map_or(vertex, |e| &vertices[e.vertex.index()]),
            _ => vertex,
        };
        names.push(place(made));
        next = vertex.inputs.first().map(|e| e.vertex);
    }
    names.reverse();
    names
}
