//! The operations: what each kind of vertex does with its inputs.

pub(crate) mod exec;
mod file;
mod mounts;
mod source;
mod tree;

pub use mounts::memory_file_system;

use kiln_graph::{Op, Vertex};
use kiln_store::Snapshot;

use crate::build::Job;
use crate::error::{Error, Result};
use crate::steps::Step;
use crate::value::Value;

/// Carries an op out.
pub fn execute(job: &Job, vertex: &Vertex, inputs: &[Value], step: &Step) -> Result<Snapshot> {
    match &vertex.op {
        Op::Source(source) => source::fetch(job, vertex, source, step),
        Op::Exec(exec) => exec::run(job, vertex, exec, inputs, step),
        Op::File(file) => file::apply(job, file, inputs),
        Op::Merge(_) => Ok(tree::merge(inputs)),
        Op::Diff(diff) => tree::diff(inputs, diff),
        Op::Build(_) => Err(Error::request("nested builds are not supported")),
    }
}
