//! Pushes the layers of a result while others are still packed, and a layer while it is compressed.
//!
//! Only where no search can stop the export any more: what is to be searched for a build's secrets leaves this machine
//! after the search of the whole result. It is work done early and nothing else: what can't be streamed is pushed when
//! it is whole.

use std::collections::HashSet;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;

use kiln_oci::{Descriptor, Digest, Reference};

use crate::build::Job;
use crate::error::{Error, Result};
use crate::growing::Growth;
use crate::leaks::LeakSearch;
use crate::push::Push;
use crate::request::{OnFinding, Output};
use crate::steps::{Reporter, Step};

/// The registry is asked whether it has a layer before more than this of it is sent for nothing.
const WORTH_ASKING: u64 = 1 << 20;

/// What is pushed before the image is whole.
pub struct PushAhead<'a> {
    job: &'a Job,
    name: Reference,
    step: &'a Step,
    state: Mutex<State>,
    changed: Condvar,
    /// The registry does not take streams.
    refused: AtomicBool,
    over: AtomicBool,
}

#[derive(Default)]
struct State {
    running: usize,
    sent: HashSet<Digest>,
    failed: Option<Error>,
}

/// What can be pushed.
pub enum Early {
    /// Blobs of which the bytes are known.
    Whole(Vec<Descriptor>),
    /// A layer that is being packed, or will be.
    Growing(Arc<Growth>),
}

impl<'a> PushAhead<'a> {
    /// For an output that is pushed, if nothing that the search may find keeps it here.
    pub fn new(job: &'a Job, output: &Output, search: Option<&LeakSearch>, step: &'a Step) -> Option<Self> {
        let Output::Image(image) = output else { return None };
        let kept_back = job.request.leaks == OnFinding::Fail && search.is_some_and(LeakSearch::may_find_secrets);
        if !image.push || kept_back {
            return None;
        }
        let name = job.request.tags.iter().chain(&image.names).next()?.clone();
        if image.insecure {
            job.engine.registry.allow_insecure(name.registry());
        }
        let (refused, over) = (AtomicBool::new(false), AtomicBool::new(false));
        Some(Self { job, name, step, state: Mutex::default(), changed: Condvar::new(), refused, over })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to push something.
    pub fn begin<'scope, 'env>(&'env self, scope: &'scope Scope<'scope, 'env>, early: Early) {
        self.state().running += 1;
        let running = Running(self);
        scope.spawn(move || {
            let _running = running;
            match early {
                Early::Whole(blobs) => {
                    if let Err(error) = self.whole(&blobs) {
                        self.state().failed.get_or_insert(error);
                    }
                }
                Early::Growing(growth) => self.stream(&growth),
            }
        });
    }

    /// Waits, and gives what need not be pushed to this name any more.
    pub fn finish(&self) -> Result<(&Reference, HashSet<Digest>)> {
        let mut state = self.state();
        while state.running > 0 {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        match state.failed.take() {
            Some(error) => Err(error.of_image(&self.name.familiar())),
            None => Ok((&self.name, std::mem::take(&mut state.sent))),
        }
    }

    /// Nobody wants it any more.
    pub fn stop(&self) {
        self.over.store(true, Ordering::SeqCst);
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst) || self.job.cancel.is_cancelled()
    }

    fn whole(&self, blobs: &[Descriptor]) -> Result<()> {
        let push = Push::new(&self.job.engine, self.step);
        push.each(blobs, |blob| {
            if self.is_over() {
                return Err(Error::Cancelled);
            }
            push.blob(&self.name, blob, "layer", None)?;
            self.state().sent.insert(blob.digest);
            Ok(())
        })
    }

    fn stream(&self, growth: &Growth) {
        if !growth.begins(&|| self.is_over()) || self.refused.load(Ordering::SeqCst) {
            return;
        }
        let mut body = Body { ahead: self, growth, position: 0, reporter: None, is_there: None };
        let mut digest = || growth.finished().filter(|_| !self.is_over()).map(|(digest, _)| digest);
        let pushed = self.job.engine.registry.push_stream(&self.name, &mut body, &mut digest);
        let Some((digest, size)) = growth.finished() else { return };
        let how = match (&pushed, body.is_there) {
            (Ok(_), _) => "",
            (Err(_), Some(true)) => "is there",
            // The push itself tells why nothing works, if that is so.
            (Err(_), _) => return self.refused.store(true, Ordering::SeqCst),
        };
        self.reporter(&digest).done(size, how);
        // Costs a mount another time if it can't be remembered.
        let _ = Push::new(&self.job.engine, self.step).remember(&self.name, &digest, None);
        self.state().sent.insert(digest);
    }

    fn reporter(&self, digest: &Digest) -> Reporter {
        self.step.reporter(&format!("layer {}", digest.short()))
    }
}

/// Something that is pushed. However it ends, who waits learns of it.
struct Running<'a, 'job>(&'a PushAhead<'job>);

impl Drop for Running<'_, '_> {
    fn drop(&mut self) {
        self.0.state().running -= 1;
        self.0.changed.notify_all();
    }
}

/// The request's body: what is there of the layer, then what comes.
struct Body<'a> {
    ahead: &'a PushAhead<'a>,
    growth: &'a Growth,
    position: u64,
    reporter: Option<Reporter>,
    /// Whether the registry has it anyway, once that could be asked.
    is_there: Option<bool>,
}

impl Read for Body<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if let Some((digest, size)) = self.growth.finished() {
            if self.is_there.is_none() && size.saturating_sub(self.position) > WORTH_ASKING {
                let has = self.ahead.job.engine.registry.has_blob(&self.ahead.name, &digest).unwrap_or(false);
                self.is_there = Some(has);
            }
            if self.is_there == Some(true) {
                return Err(io::Error::other("it is there"));
            }
            let reporter = self.reporter.get_or_insert_with(|| self.ahead.reporter(&digest));
            reporter.progress(self.position, size);
        }
        let n = self.growth.read_at(buf, self.position, &|| self.ahead.is_over())?;
        self.position += n as u64;
        Ok(n)
    }
}
