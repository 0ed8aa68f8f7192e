//! Packing of the result's layers while later steps still run.
//!
//! Which vertices make the layers of the result is known from the plan. When one of them was made, its layers are packed
//! (searched, hashed, compressed, stored) in threads of their own; the export finds them done, or waits for those that are
//! being packed. It is work done early and nothing else: what goes wrong here goes wrong again, and is reported, in the
//! export.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Scope;

use kiln_graph::Op;
use kiln_store::{LayerId, Snapshot};

use super::ReadyJob;
use super::result::leak_search;
use crate::layers::PackOptions;
use crate::leaks::LeakSearch;
use crate::request::Output;
use crate::value::Value;

/// Packs layers of the result as they are made.
pub struct PackAhead<'a> {
    ready: &'a ReadyJob,
    options: Vec<PackOptions>,
    /// The vertices whose layers are all in the result.
    chain: HashSet<usize>,
    search: OnceLock<Option<LeakSearch>>,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<(Snapshot, usize)>,
    seen: HashSet<LayerId>,
    workers: usize,
}

impl<'a> PackAhead<'a> {
    /// For the outputs of a build.
    pub fn new(ready: &'a ReadyJob, outputs: &[Output]) -> Self {
        let mut options: Vec<PackOptions> = Vec::new();
        for output in outputs {
            let format = match output {
                Output::Image(image) => &image.layers,
                Output::Archive(archive) => &archive.layers,
                Output::Tar(_) | Output::Local { .. } | Output::CacheOnly => continue,
            };
            if options.iter().all(|o| o.format != *format) {
                options.push(PackOptions::new(ready, format.clone()));
            }
        }
        let chain = if options.is_empty() { HashSet::new() } else { chain(ready) };
        Self { ready, options, chain, search: OnceLock::new(), queue: Mutex::default() }
    }

    /// Begins to pack what a vertex was made of, if that goes into the result.
    pub fn made<'scope, 'env>(&'env self, scope: &'scope Scope<'scope, 'env>, vertex: usize, value: &Value) {
        let Value::Tree { snapshot, .. } = value else { return };
        if !self.chain.contains(&vertex) {
            return;
        }
        let mut queue = self.queue();
        for (index, id) in snapshot.0.iter().enumerate() {
            if queue.seen.insert(*id) {
                queue.waiting.push_back((snapshot.clone(), index));
            }
        }
        let wanted = queue.waiting.len().min(self.ready.engine.layers_at_once());
        while queue.workers < wanted {
            queue.workers += 1;
            scope.spawn(|| self.work());
        }
    }

    /// The export packs what was not begun yet.
    pub fn no_more(&self) {
        let mut queue = self.queue();
        queue.waiting.clear();
    }

    fn work(&self) {
        while let Some((snapshot, index)) = self.next() {
            let search = self.search.get_or_init(|| leak_search(self.ready)).as_ref();
            for options in &self.options {
                // The export says why.
                let _ = self.ready.engine.pack_searched(&snapshot, index, options, search.map(|s| (s, "")));
            }
        }
    }

    fn next(&self) -> Option<(Snapshot, usize)> {
        let mut queue = self.queue();
        let next = queue.waiting.pop_front().filter(|_| !self.ready.cancel.is_cancelled());
        if next.is_none() {
            queue.workers -= 1;
        }
        next
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// From the roots of the images down to their bases.
fn chain(ready: &ReadyJob) -> HashSet<usize> {
    let vertices = ready.graph.vertices();
    let mut chain = HashSet::new();
    for image in &ready.images {
        let mut next = image.root.map(|e| e.vertex);
        while let Some(id) = next {
            let vertex = &vertices[id.index()];
            if matches!(vertex.op, Op::Source(_)) {
                break;
            }
            chain.insert(id.index());
            next = vertex.inputs.first().map(|e| e.vertex);
        }
    }
    chain
}
