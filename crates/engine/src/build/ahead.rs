//! Packing of the result's layers while later steps still run.
//!
//! Which vertices make the layers of the result is known from the plan. When one of them was made, its layers are packed
//! (searched, hashed, compressed, stored) in threads of their own; the export finds them done, or waits for those that are
//! being packed. It is work done early and nothing else: what goes wrong here goes wrong again, and is reported, in the
//! export.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Scope;

use kiln_graph::Op;
use kiln_store::{LayerId, Snapshot};

use super::ReadyJob;
use crate::leaks::LeakSearch;
use crate::linkage;
use crate::pack::PackOptions;
use crate::request::{OnFinding, Output};
use crate::value::Value;

/// Packs layers of the result as they are made.
pub struct PackAhead<'a> {
    ready: &'a ReadyJob,
    options: Vec<PackOptions>,
    /// The vertices whose layers are all in the result, and how many of them are not the base image's.
    chain: HashMap<usize, usize>,
    search: OnceLock<Option<LeakSearch>>,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    seen: HashSet<LayerId>,
    workers: usize,
}

/// A layer of a state.
struct Waiting {
    snapshot: Snapshot,
    index: usize,
    of_base: bool,
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
        let chain = if options.is_empty() { HashMap::new() } else { chain(ready) };
        Self { ready, options, chain, search: OnceLock::new(), queue: Mutex::default() }
    }

    /// Begins to pack what a vertex was made of, if that goes into the result.
    pub fn made<'scope, 'env>(&'env self, scope: &'scope Scope<'scope, 'env>, vertex: usize, value: &Value) {
        let Value::Tree { snapshot, .. } = value else { return };
        let Some(own) = self.chain.get(&vertex) else { return };
        let base = snapshot.0.len().saturating_sub(*own);
        let mut queue = self.queue();
        for (index, id) in snapshot.0.iter().enumerate() {
            if queue.seen.insert(*id) {
                queue.waiting.push_back(Waiting { snapshot: snapshot.clone(), index, of_base: index < base });
            }
        }
        let wanted = queue.waiting.len().min(self.ready.engine.layers_at_once());
        while queue.workers < wanted {
            // Without a thread it is left to the export.
            if std::thread::Builder::new().name("pack".into()).spawn_scoped(scope, || self.work()).is_err() {
                break;
            }
            queue.workers += 1;
        }
    }

    /// The export packs what was not begun yet.
    pub fn no_more(&self) {
        let mut queue = self.queue();
        queue.waiting.clear();
    }

    fn work(&self) {
        while let Some(Waiting { snapshot, index, of_base }) = self.next() {
            let search = self.search.get_or_init(|| self.ready.leak_search()).as_ref();
            let search = if of_base { search.and_then(LeakSearch::of_base) } else { search.cloned() };
            let search = search.as_ref().map(|s| (s, ""));
            for options in &self.options {
                // The export says why.
                let _ = self.ready.engine.pack_searched(&snapshot, index, options, search);
            }
            if !of_base && self.ready.request.check_programs != OnFinding::Off {
                let _ = linkage::programs_of(&self.ready.engine, &snapshot.0[index]);
            }
        }
    }

    fn next(&self) -> Option<Waiting> {
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
fn chain(ready: &ReadyJob) -> HashMap<usize, usize> {
    let vertices = ready.graph.vertices();
    let mut all = HashMap::new();
    for image in &ready.images {
        let mut chain = Vec::new();
        let mut next = image.root.map(|e| e.vertex);
        while let Some(id) = next {
            let vertex = &vertices[id.index()];
            if matches!(vertex.op, Op::Source(_)) {
                break;
            }
            chain.push(id.index());
            next = vertex.inputs.first().map(|e| e.vertex);
        }
        all.extend(chain.into_iter().rev().zip(1..));
    }
    all
}
