//! The disk budget while builds run: looked at from time to time, and at the end of a build that made something.
//!
//! What a build looked up or made is pinned by its lease, so a collection in the middle of it takes only what others left.

use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use kiln_oci::Digest;
use kiln_store::{CacheKey, PrunePolicy, Store};

use crate::engine::Engine;

/// Limits of the store. 0 is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Budget {
    /// Bytes that the store may use.
    pub max_used_space: u64,
    /// Bytes that its file system must have left.
    pub min_free_space: u64,
    /// Bytes that the store may use in any case.
    pub reserved_space: u64,
}

/// Time between two looks.
const EVERY: Duration = Duration::from_secs(20);
/// Of the disk, what is left to others without being asked: a twentieth, not more than 10 GB.
const LEFT_FREE: (u64, u64) = (20, 10 << 30);
/// What the store may use even on a full disk without being asked.
const RESERVED: u64 = 2 << 30;

impl Budget {
    /// Limits for whoever gave none: builds do not fill the disk, but keep a cache that is worth having.
    pub fn of_disk(root: &Path) -> Self {
        let existing = root.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
        let size = rustix::fs::statvfs(existing).map_or(0, |s| s.f_blocks.saturating_mul(s.f_frsize));
        Self { max_used_space: 0, min_free_space: (size / LEFT_FREE.0).min(LEFT_FREE.1), reserved_space: RESERVED }
    }

    fn policy(self) -> PrunePolicy {
        PrunePolicy {
            max_used_space: self.max_used_space,
            min_free_space: self.min_free_space,
            reserved_space: self.reserved_space,
            ..PrunePolicy::default()
        }
    }

    fn is_limited(self) -> bool {
        self.max_used_space > 0 || self.min_free_space > 0
    }
}

/// Keeps a store to its budget while it exists, from [`begin`](Self::begin) on.
pub struct Keeper {
    store: Store,
    budget: Budget,
    running: Mutex<Option<(Sender<()>, JoinHandle<()>)>>,
}

impl Keeper {
    /// Does nothing yet.
    pub fn new(store: &Store, budget: Budget) -> Self {
        Self { store: store.clone(), budget, running: Mutex::default() }
    }

    /// Something is about to be written. Only the first call does anything; a build of which all is cached makes none.
    pub fn begin(&self) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.is_some() || !self.budget.is_limited() {
            return;
        }
        let (stop, stopped) = channel::<()>();
        let (store, policy, budget) = (self.store.clone(), self.budget.policy(), self.budget);
        let watch = move || {
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(EVERY) {
                keep(&store, &policy, budget);
            }
        };
        if let Ok(thread) = std::thread::Builder::new().name("budget".into()).spawn(watch) {
            *running = Some((stop, thread));
        }
    }

    /// Ends it with a last look.
    pub fn finish(&self) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((stop, thread)) = running else { return };
        drop(stop);
        let _ = thread.join();
        keep(&self.store, &self.budget.policy(), self.budget);
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.running.lock().unwrap_or_else(PoisonError::into_inner).take() {
            drop(stop);
            let _ = thread.join();
        }
    }
}

impl Engine {
    /// Keeps the store to a budget from now on, while things are written.
    pub fn keep_to(&self, budget: Budget) {
        let _ = self.keeper.set(Keeper::new(&self.store, budget));
    }

    /// Something is about to be written.
    pub(crate) fn writes(&self) {
        if let Some(keeper) = self.keeper.get() {
            keeper.begin();
        }
    }

    /// An image of the store is used.
    pub(crate) fn uses_image(&self, digest: Digest) {
        self.used_images.lock().unwrap_or_else(PoisonError::into_inner).insert(digest);
    }

    /// The end of an operation: remembers what was used, for the order in which things are evicted, and looks at the budget.
    pub(crate) fn settle(&self, keys: &[CacheKey]) {
        let images = std::mem::take(&mut *self.used_images.lock().unwrap_or_else(PoisonError::into_inner));
        let images: Vec<Digest> = images.into_iter().collect();
        // Only the order suffers if it can't be written.
        let _ = self.store.cache().touch(keys, &images);
        if let Some(keeper) = self.keeper.get() {
            keeper.finish();
        }
    }
}

/// Collects if a limit is passed. What fails is tried again by the next build: it is no reason for this one to fail.
fn keep(store: &Store, policy: &PrunePolicy, budget: Budget) {
    let tight = store.free_space().is_ok_and(|free| free < budget.min_free_space);
    if !tight && budget.max_used_space == 0 {
        return;
    }
    if !store.is_within(policy).unwrap_or(true) {
        let _ = store.gc(policy);
    }
}
