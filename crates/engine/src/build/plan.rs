//! Definition keys: what makes each vertex, told before anything is pulled or run.
//!
//! | vertex | key made of |
//! |---|---|
//! | image, OCI layout | digest of the manifest |
//! | git | the commit, and the URL's options |
//! | http | digest of the content |
//! | `deb://` | digest of the resolved package list |
//! | local context | none: what reads it has the digest of what it reads |
//! | any other | its op, and its inputs' keys or the digest of what it reads of a context |
//!
//! A vertex above something that has no key has none either, and is looked up by content alone.

use kiln_graph::{Graph, InputUse, Op, SourceOp, VertexId};
use kiln_oci::Digest;
use kiln_solver::{KeyPart, definition_key, source_key};

use crate::error::{Error, Result};

/// The keys of one build's graph.
pub struct Plan {
    definitions: Vec<Option<Digest>>,
    needed: Vec<bool>,
}

/// What the plan has to ask for.
pub trait Identify {
    /// The digest of what a source stands for, and its kind; `None` if that is not known before it is fetched.
    fn source(&self, vertex: &kiln_graph::Vertex, source: &SourceOp) -> Result<Option<(&'static str, Digest)>>;
    /// Adds the vertex's place to an error.
    fn located(&self, vertex: &kiln_graph::Vertex, error: Error) -> Error;
    /// The digest of what is read of a context.
    fn context(&self, name: &str, selectors: &[kiln_graph::Selector]) -> Result<Digest>;
}

impl Plan {
    /// Computes the keys of all that the targets need.
    pub fn new(graph: &Graph, targets: &[VertexId], identify: &dyn Identify) -> Result<Self> {
        let vertices = graph.vertices();
        let needed = needed(graph, targets);
        let mut definitions = vec![None; vertices.len()];
        for (index, vertex) in vertices.iter().enumerate().filter(|(i, _)| needed[*i]) {
            definitions[index] = match &vertex.op {
                Op::Source(SourceOp::Local(_)) => None,
                Op::Source(source) => {
                    identify.source(vertex, source)?.map(|(kind, digest)| source_key(kind, &digest).0)
                }
                _ => key(graph, vertex, &definitions, identify).map_err(|e| identify.located(vertex, e))?,
            };
        }
        Ok(Self { definitions, needed })
    }

    /// The key of a vertex.
    pub fn definition(&self, index: usize) -> Option<Digest> {
        self.definitions.get(index).copied().flatten()
    }

    /// Whether a target needs the vertex.
    pub fn is_needed(&self, index: usize) -> bool {
        self.needed.get(index).copied().unwrap_or(false)
    }
}

fn needed(graph: &Graph, targets: &[VertexId]) -> Vec<bool> {
    let vertices = graph.vertices();
    let mut needed = vec![false; vertices.len()];
    for target in targets {
        needed[target.index()] = true;
    }
    // Inputs come before what uses them.
    for index in (0..vertices.len()).rev() {
        if needed[index] {
            for edge in &vertices[index].inputs {
                needed[edge.vertex.index()] = true;
            }
        }
    }
    needed
}

fn key(
    graph: &Graph,
    vertex: &kiln_graph::Vertex,
    definitions: &[Option<Digest>],
    identify: &dyn Identify,
) -> Result<Option<Digest>> {
    let mut parts = Vec::with_capacity(vertex.inputs.len());
    for (edge, used) in vertex.inputs.iter().zip(vertex.input_uses()) {
        let part = match (&graph.vertices()[edge.vertex.index()].op, used) {
            (Op::Source(SourceOp::Local(local)), InputUse::Content(selectors)) => {
                KeyPart::Tree(identify.context(&local.name, &selectors)?)
            }
            (Op::Source(SourceOp::Local(local)), InputUse::Key) => {
                KeyPart::Tree(identify.context(&local.name, &[kiln_graph::Selector::path("/")])?)
            }
            _ => match definitions[edge.vertex.index()] {
                Some(key) => KeyPart::Output { key, output: edge.output },
                None => return Ok(None),
            },
        };
        parts.push(part);
    }
    Ok(Some(definition_key(&vertex.op_digest().0, &parts).0))
}
