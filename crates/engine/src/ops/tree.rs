//! Merge and diff: they only rearrange layers.

use kiln_graph::DiffOp;
use kiln_store::Snapshot;

use crate::error::{Error, Result};
use crate::value::Value;

/// All inputs on top of each other, the first one lowest.
pub fn merge(inputs: &[Value]) -> Snapshot {
    let mut layers = Vec::new();
    for input in inputs {
        for layer in input.snapshot().0 {
            // Overlay refuses a directory that is used twice; the higher one wins either way.
            layers.retain(|known| *known != layer);
            layers.push(layer);
        }
    }
    Snapshot(layers)
}

/// What the upper input has on top of the lower one.
pub fn diff(inputs: &[Value], op: &DiffOp) -> Result<Snapshot> {
    let layers = |index: Option<usize>| index.and_then(|i| inputs.get(i)).map(|v| v.snapshot().0).unwrap_or_default();
    let (lower, upper) = (layers(op.lower), layers(op.upper));
    match upper.strip_prefix(lower.as_slice()) {
        Some(rest) => Ok(Snapshot(rest.to_vec())),
        None => Err(Error::request("the difference of file systems that are not built on each other is not supported")),
    }
}
