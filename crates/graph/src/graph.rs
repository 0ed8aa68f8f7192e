//! Vertices, and the graph that they form.

use std::collections::HashMap;
use std::ops::Index;
use std::sync::Arc;

use kiln_oci::Platform;

use crate::{InputUse, Op, OpDigest, VertexDigest};

/// Names a vertex of one graph. Ids are dense, and inputs have smaller ones than what uses them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VertexId(u32);

impl VertexId {
    /// The position in [`Graph::vertices`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// An output of a vertex.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Edge {
    /// Whose.
    pub vertex: VertexId,
    /// Which.
    pub output: u32,
}

impl From<VertexId> for Edge {
    fn from(vertex: VertexId) -> Self {
        Self { vertex, output: 0 }
    }
}

/// An op with its inputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vertex {
    /// What it does.
    pub op: Op,
    /// What it does it to; the op names inputs by their index here.
    pub inputs: Vec<Edge>,
    /// For which platform; absent where the result is the same for all.
    pub platform: Option<Platform>,
    /// For people and schedulers.
    pub meta: VertexMeta,
    op_digest: OpDigest,
    digest: VertexDigest,
}

impl Vertex {
    /// Identifies the op alone.
    pub fn op_digest(&self) -> OpDigest {
        self.op_digest
    }

    /// Identifies the op and all that it is made from.
    pub fn digest(&self) -> VertexDigest {
        self.digest
    }

    /// For each input, how the op uses it.
    pub fn input_uses(&self) -> Vec<InputUse> {
        self.op.input_uses(self.inputs.len())
    }
}

/// What people and schedulers want to know about a vertex. No part of any digest or key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VertexMeta {
    /// Shown to people: `[builder 2/5] RUN make`.
    pub name: String,
    /// The stage that it belongs to.
    pub stage: Option<Arc<str>>,
    /// Where it was asked for.
    pub location: Option<Location>,
    /// Whether results of earlier builds are not to be used.
    pub ignore_cache: bool,
    /// Vertices that are shown as one.
    pub progress_group: Option<ProgressGroup>,
}

/// Lines of a file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Location {
    /// The file, as the user named it.
    pub file: Arc<str>,
    /// First line, from 1.
    pub start_line: u32,
    /// Last line, from 1, included.
    pub end_line: u32,
}

/// Vertices that are shown as one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ProgressGroup {
    /// Equal for all of them.
    pub id: String,
    /// What is shown.
    pub name: String,
    /// Shown only if another vertex of the group is.
    pub weak: bool,
}

/// Why a vertex can't be added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// An edge names a vertex that is not there, or not there yet.
    #[error("{vertex:?}: an input names a vertex that is not in the graph")]
    UnknownVertex {
        /// Name of the vertex that was to be added.
        vertex: String,
    },
    /// An edge names an output that the vertex does not have.
    #[error("{vertex:?}: an input names output {output} of {of:?}, which has {outputs}")]
    UnknownOutput {
        /// Name of the vertex that was to be added.
        vertex: String,
        /// Name of the vertex that lacks the output.
        of: String,
        /// The output asked for.
        output: u32,
        /// How many there are.
        outputs: u32,
    },
    /// The op names an input that the vertex does not have.
    #[error("{vertex:?}: the op names input {index}, the vertex has {inputs}")]
    UnknownInput {
        /// Name of the vertex that was to be added.
        vertex: String,
        /// The input asked for.
        index: usize,
        /// How many there are.
        inputs: usize,
    },
    /// A file action names itself or a later one.
    #[error("{vertex:?}: file action {action} uses a result that does not exist yet")]
    ForwardAction {
        /// Name of the vertex that was to be added.
        vertex: String,
        /// The action.
        action: usize,
    },
    /// There are four thousand million vertices.
    #[error("the graph is too large")]
    TooLarge,
}

/// Vertices in topological order, each one once.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    vertices: Vec<Vertex>,
    by_digest: HashMap<VertexDigest, VertexId>,
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a vertex, or finds the one that does the same. Where it is there already its name and place stay, but
    /// `ignore_cache` is set if either wants it.
    pub fn add(
        &mut self,
        op: Op,
        inputs: Vec<Edge>,
        platform: Option<Platform>,
        meta: VertexMeta,
    ) -> Result<VertexId, GraphError> {
        self.check(&op, &inputs, &meta)?;
        let op_digest = OpDigest::of(&op, platform.as_ref());
        let digest = VertexDigest::of(&op_digest, inputs.iter().map(|e| (self[e.vertex].digest, e.output)));
        if let Some(&id) = self.by_digest.get(&digest) {
            self.vertices[id.index()].meta.ignore_cache |= meta.ignore_cache;
            return Ok(id);
        }
        let id = VertexId(u32::try_from(self.vertices.len()).map_err(|_| GraphError::TooLarge)?);
        self.vertices.push(Vertex { op, inputs, platform, meta, op_digest, digest });
        self.by_digest.insert(digest, id);
        Ok(id)
    }

    fn check(&self, op: &Op, inputs: &[Edge], meta: &VertexMeta) -> Result<(), GraphError> {
        let vertex = || meta.name.clone();
        for edge in inputs {
            let of = self.get(edge.vertex).ok_or_else(|| GraphError::UnknownVertex { vertex: vertex() })?;
            let outputs = of.op.outputs();
            if edge.output >= outputs {
                let of = of.meta.name.clone();
                return Err(GraphError::UnknownOutput { vertex: vertex(), of, output: edge.output, outputs });
            }
        }
        if let Some(index) = op.mentioned_inputs().into_iter().find(|&i| i >= inputs.len()) {
            return Err(GraphError::UnknownInput { vertex: vertex(), index, inputs: inputs.len() });
        }
        match op {
            Op::File(file) => match file.bad_action() {
                Some(action) => Err(GraphError::ForwardAction { vertex: vertex(), action }),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// A vertex, if it is of this graph.
    pub fn get(&self, id: VertexId) -> Option<&Vertex> {
        self.vertices.get(id.index())
    }

    /// The vertex with this digest.
    pub fn find(&self, digest: &VertexDigest) -> Option<VertexId> {
        self.by_digest.get(digest).copied()
    }

    /// How many vertices there are.
    pub fn len(&self) -> usize {
        self.vertices.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.vertices.is_empty()
    }

    /// All vertices, inputs before what uses them; [`VertexId::index`] is the position.
    pub fn vertices(&self) -> &[Vertex] {
        &self.vertices
    }

    /// All vertices with their ids, inputs before what uses them.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (VertexId, &Vertex)> {
        self.vertices.iter().enumerate().map(|(i, v)| (VertexId(i as u32), v))
    }

    /// What `targets` need, themselves included, inputs before what uses them.
    pub fn reachable(&self, targets: impl IntoIterator<Item = VertexId>) -> Vec<VertexId> {
        let mut needed = vec![false; self.vertices.len()];
        for target in targets {
            if let Some(slot) = needed.get_mut(target.index()) {
                *slot = true;
            }
        }
        // Inputs have smaller ids, so one pass from the top sees every consumer before its inputs.
        for i in (0..self.vertices.len()).rev() {
            if needed[i] {
                self.vertices[i].inputs.iter().for_each(|e| needed[e.vertex.index()] = true);
            }
        }
        (0..self.vertices.len()).filter(|&i| needed[i]).map(|i| VertexId(i as u32)).collect()
    }
}

impl Index<VertexId> for Graph {
    type Output = Vertex;

    /// Panics if `id` is of another graph.
    fn index(&self, id: VertexId) -> &Vertex {
        &self.vertices[id.index()]
    }
}

#[cfg(test)]
mod tests;
