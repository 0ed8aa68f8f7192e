//! Keys inside an image's config, in the member `kiln.cache.v1`.
//!
//! Every image has them (unless the build arg `BUILDKIT_INLINE_CACHE` is `0`), so that what users do since docker's first
//! builder works: pull an image, `--cache-from` it, push it. Only definition keys are in there. They are made of what the
//! build was asked and given, not of what happened to be in the store or how steps came out, so the same input gives the same
//! digest: with a cold or warm cache, and with `--no-cache`.

use kiln_graph::{ActionInput, Op, SourceOp, Vertex, VertexId};
use kiln_oci::{Digest, ImageConfig, Timestamp};
use serde::{Deserialize, Serialize};

use super::import::{ImportLayer, ImportRecord, Imported};
use crate::build::Job;
use crate::error::{Error, Result};
use crate::layers::Remote;
use crate::resolve::Meaning;
use crate::transfer::KnownImage;

/// The member of the image config.
pub const MEMBER: &str = "kiln.cache.v1";

/// The states that an image's layers are, each with its key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InlineRecords {
    records: Vec<InlineRecord>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct InlineRecord {
    key: Digest,
    /// From this layer of the image to before that one.
    layers: (usize, usize),
}

impl InlineRecords {
    /// Writes them into a config.
    pub fn add_to(&self, config: &mut ImageConfig) -> Result<()> {
        let value = serde_json::to_value(self).map_err(|e| Error::request(e.to_string()))?;
        config.extra.insert(MEMBER.to_owned(), value);
        Ok(())
    }
}

/// The records of an image with the root `root`, which has so many layers. `None` if they are not wanted, or if layers can't be
/// told apart.
pub fn describe(job: &Job, root: VertexId, layers: usize) -> Option<InlineRecords> {
    let wanted =
        job.request.build_args.get("BUILDKIT_INLINE_CACHE").is_none_or(|v| !matches!(v.as_str(), "0" | "false"));
    let counts = layer_counts(job);
    // A layer that two inputs of a merge have in common is in the result once.
    if !wanted || counts.get(root.index()).copied().flatten() != Some(layers) {
        return None;
    }
    let mut records = Vec::new();
    let mut todo = vec![(root, 0, layers)];
    while let Some((id, first, end)) = todo.pop() {
        let vertex = &job.graph.vertices()[id.index()];
        let image = matches!(&vertex.op, Op::Source(SourceOp::Image(_) | SourceOp::OciLayout(_) | SourceOp::Local(_)));
        if let (Some(key), false) = (job.plan.definition(id.index()), image || first == end) {
            records.push(InlineRecord { key, layers: (first, end) });
        }
        match &vertex.op {
            Op::Exec(_) | Op::File(_) => todo.extend(base_of(vertex).map(|below| (below, first, end - 1))),
            Op::Merge(_) => {
                let mut from = first;
                for edge in &vertex.inputs {
                    let to = from + counts[edge.vertex.index()]?;
                    todo.push((edge.vertex, from, to));
                    from = to;
                }
            }
            _ => {}
        }
    }
    records.sort_by_key(|r| (r.layers.1, r.layers.0, r.key));
    records.dedup();
    Some(InlineRecords { records })
}

/// How many layers each vertex's result has, as far as that is known without looking at results.
fn layer_counts(job: &Job) -> Vec<Option<usize>> {
    let mut counts: Vec<Option<usize>> = Vec::with_capacity(job.graph.vertices().len());
    for (index, vertex) in job.graph.vertices().iter().enumerate() {
        let below = |id: Option<VertexId>| id.map_or(Some(0), |id| counts[id.index()]);
        let count = match &vertex.op {
            _ if !job.plan.is_needed(index) => None,
            Op::Source(SourceOp::Local(_)) => None,
            Op::Source(source) => match job.resolved.meaning(vertex, source) {
                Ok(Some(Meaning::Image(image))) => Some(image.manifest.layers.len()),
                Ok(Some(_)) => Some(1),
                _ => None,
            },
            Op::Exec(_) | Op::File(_) => below(base_of(vertex)).map(|n| n + 1),
            Op::Merge(_) => vertex.inputs.iter().map(|e| counts[e.vertex.index()]).sum(),
            Op::Diff(_) | Op::Build(_) => None,
        };
        counts.push(count);
    }
    counts
}

/// What the layer of an exec or a file op is put on.
fn base_of(vertex: &Vertex) -> Option<VertexId> {
    let input = match &vertex.op {
        Op::Exec(exec) => exec.mounts.iter().find(|m| m.dest == "/")?.input,
        Op::File(file) => match file.actions.first()?.input {
            ActionInput::Input(index) => Some(index),
            _ => None,
        },
        _ => None,
    };
    Some(vertex.inputs.get(input?)?.vertex)
}

/// The records of an image; `None` if it has none.
pub(super) fn of_image(source: &str, image: &KnownImage, remote: Option<&Remote>) -> Option<Imported> {
    let inline: InlineRecords = serde_json::from_value(image.config.extra.get(MEMBER)?.clone()).ok()?;
    let diff_ids = &image.config.rootfs.diff_ids;
    if diff_ids.len() != image.manifest.layers.len() {
        return None;
    }
    let created = created(&image.config);
    let layer = |(index, (descriptor, diff_id)): (usize, (&kiln_oci::Descriptor, &Digest))| ImportLayer {
        diff_id: *diff_id,
        descriptor: descriptor.clone(),
        created: created.get(index).copied().flatten(),
        here: true,
    };
    let layers: Vec<_> = image.manifest.layers.iter().zip(diff_ids).enumerate().map(layer).collect();
    let names = names(&image.config);
    let mut imported = Imported::new(source, remote.cloned(), layers);
    for record in inline.records {
        let (first, end) = record.layers;
        if first < end && end <= diff_ids.len() {
            let name = names.get(end - 1).cloned().unwrap_or_default();
            let chain = (first..end).collect();
            imported.add(ImportRecord { keys: vec![record.key], identity: record.key, name, chain });
        }
    }
    Some(imported)
}

/// When each layer was made.
fn created(config: &ImageConfig) -> Vec<Option<Timestamp>> {
    config.history.iter().filter(|h| h.empty_layer != Some(true)).map(|h| h.created).collect()
}

/// What made each layer.
fn names(config: &ImageConfig) -> Vec<String> {
    config
        .history
        .iter()
        .filter(|h| h.empty_layer != Some(true))
        .map(|h| h.created_by.clone().unwrap_or_default())
        .collect()
}
