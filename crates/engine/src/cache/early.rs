//! Layers of a `mode=max` cache are packed and sent while the build still runs. What goes wrong here is tried again, and told, by
//! the export at its end.

use std::collections::HashSet;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};

use kiln_oci::Digest;
use kiln_store::Snapshot;

use super::export::{LayerBlob, format, pack};
use super::{Backend, CacheTo};
use crate::build::Job;
use crate::error::{Error, Result};
use crate::pack::PackOptions;

/// What was made in the build so far.
#[derive(Default)]
pub struct Early {
    made: Mutex<Option<Sender<Made>>>,
    /// Blobs that were sent, by the number of the cache.
    sent: Mutex<HashSet<(usize, Digest)>>,
}

/// A step's result.
struct Made {
    snapshot: Snapshot,
    step: String,
}

impl Early {
    /// A step was run.
    pub fn made(&self, snapshot: &Snapshot, step: &str) {
        if let Some(sender) = &*self.made.lock().unwrap_or_else(PoisonError::into_inner) {
            // Nobody takes it any more: then the export does.
            let _ = sender.send(Made { snapshot: snapshot.clone(), step: step.to_owned() });
        }
    }

    /// Whether a blob was sent to this cache.
    pub fn was_sent(&self, cache: usize, blob: Digest) -> bool {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).contains(&(cache, blob))
    }

    fn follow(&self, sender: Option<Sender<Made>>) {
        *self.made.lock().unwrap_or_else(PoisonError::into_inner) = sender;
    }
}

/// Runs `solve`, and sends layers meanwhile.
pub fn sending<T>(job: &Job, solve: impl FnOnce() -> Result<T>) -> Result<T> {
    if !job.cache_to.iter().any(|to| to.max && to.place.is_some()) {
        return solve();
    }
    std::thread::scope(|scope| {
        let (sender, receiver) = channel();
        job.early.follow(Some(sender));
        let worker = scope.spawn(|| send_all(job, receiver));
        let solved = solve();
        job.early.follow(None);
        // What is left in the queue is the export's if the build went well, and nobody's if not.
        let _ = worker.join();
        solved
    })
}

fn send_all(job: &Job, made: Receiver<Made>) {
    let targets = job.cache_to.iter().enumerate().filter(|(_, to)| to.max);
    let targets: Vec<(usize, &CacheTo, Box<dyn Backend + '_>)> =
        targets.filter_map(|(n, to)| Some((n, to, job.engine.backend(to.place.as_ref()?, &job.platforms)))).collect();
    let mut failed = HashSet::new();
    while let Ok(next) = made.recv() {
        for (number, to, backend) in targets.iter().filter(|(n, ..)| !failed.contains(n)).collect::<Vec<_>>() {
            // The build is over.
            if job.cancel.is_cancelled() || job.early.is_over() {
                return;
            }
            if send(job, *number, to, &**backend, &next).is_err() {
                failed.insert(*number);
            }
        }
    }
}

impl Early {
    fn is_over(&self) -> bool {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }
}

fn send(job: &Job, number: usize, to: &CacheTo, backend: &dyn Backend, made: &Made) -> Result<()> {
    let Some(top) = made.snapshot.0.len().checked_sub(1) else { return Ok(()) };
    let options = PackOptions::new(job, format(job, to));
    // A secret in it is told by the export.
    let Ok((layer, remote)) = pack(job, &options, &made.snapshot, top, &made.step)? else { return Ok(()) };
    if layer.base {
        return Ok(());
    }
    let source = LayerBlob { engine: &job.engine, blob: &layer.descriptor, remote: remote.as_ref() };
    backend.put(&layer.descriptor, &source)?;
    let mut sent = job.early.sent.lock().map_err(|_| Error::Cancelled)?;
    sent.insert((number, layer.descriptor.digest));
    Ok(())
}
