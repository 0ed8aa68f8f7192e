//! Eviction: what something leads to, but what could be made or fetched again.

use std::collections::HashSet;

use rusqlite::params;

use super::{BATCH, Collector, Kind, PrunePolicy};
use crate::cache;
use crate::candidate::{self, Candidate, ImageItem, keep_bytes};
use crate::error::Result;
use crate::session::Pin;
use crate::sources::{self, SourceItem};
use crate::usage::{self, CacheEntry};

impl Collector<'_> {
    /// Evicts the least recently used until the policy's budget is met.
    pub(super) fn evict(&mut self, policy: &PrunePolicy) -> Result<()> {
        let limited = (policy.max_used_space, policy.min_free_space, policy.reserved_space) != (0, 0, 0);
        let mut used = if limited { usage::at_most(self.store)? } else { u64::MAX };
        if limited && used <= keep_bytes(policy, used, usage::free_space(self.store)?) {
            return Ok(());
        }
        if limited {
            used = self.store.usage()?.total;
        }
        let _many = self.store.images().many()?;
        // Images that turned out to be in use.
        let mut tried = HashSet::new();
        loop {
            let mut candidates = candidate::candidates(self.store, &self.marks, policy)?;
            candidates.retain(|c| !matches!(c, Candidate::Image(image) if tried.contains(&image.digest)));
            let mut candidates = candidates.into_iter().peekable();
            let mut again = false;
            while candidates.peek().is_some() && !again {
                let keep = if limited { keep_bytes(policy, used, usage::free_space(self.store)?) } else { 0 };
                if limited && used <= keep {
                    return Ok(());
                }
                let mut hoped = 0;
                let mut batch = Vec::new();
                while batch.len() < BATCH && (!limited || hoped < used - keep) && !again {
                    let Some(next) = candidates.next() else { break };
                    // Layers that other records need as well are freed later than hoped, never earlier.
                    hoped += candidate::estimate(self.store, &self.marks, &next).max(1);
                    if let Candidate::Image(image) = &next {
                        // What it held is a candidate only when it is gone.
                        again = true;
                        tried.insert(image.digest);
                    }
                    batch.push(next);
                }
                let freed = self.evict_batch(batch)?;
                used = used.saturating_sub(freed);
            }
            if !again {
                return Ok(());
            }
        }
    }

    /// Takes the names of images away that nobody uses. What they held is found to be unreferenced afterwards.
    fn evict_images(&mut self, items: Vec<ImageItem>) -> Result<()> {
        for item in items {
            let gone = self.batch(|this, pins| {
                if pins.contains(&Pin::Image(item.digest)) {
                    return Ok(false);
                }
                this.store.images().remove_digest(&item.digest).map(|rows| !rows.is_empty())
            })?;
            if gone {
                self.report.add(Kind::Images, 1, 0);
                self.report.evicted.push(("image".into(), item.name));
            }
        }
        Ok(())
    }

    fn evict_source(&mut self, item: &SourceItem) -> Result<u64> {
        let trash = sources::while_unused(self.store, &item.kind, || self.trash(&item.path))?.flatten();
        let freed = self.delete(Kind::Sources, trash.as_slice())?;
        if trash.is_some() {
            self.report.evicted.push((format!("source.{}", item.kind), item.name()));
        }
        Ok(freed)
    }

    fn evict_batch(&mut self, batch: Vec<Candidate>) -> Result<u64> {
        let mut freed = 0;
        let mut records = Vec::new();
        let mut images = Vec::new();
        for candidate in batch {
            match candidate {
                Candidate::Record(entry) => records.push(entry),
                Candidate::Image(image) => images.push(image),
                Candidate::Source(item) => freed += self.evict_source(&item)?,
                Candidate::Mount(mount) => {
                    if let Some(removed) = self.store.cache_mounts().remove_instance(&mount)? {
                        self.report.add(Kind::CacheMounts, 1, removed.bytes);
                        self.report.evicted.push(("exec.cachemount".into(), mount.id));
                        freed += removed.bytes;
                    }
                }
            }
        }
        if records.is_empty() && images.is_empty() {
            return Ok(freed);
        }
        self.evict_images(images)?;
        let evicted = self.batch(|this, pins| {
            this.store.inner().db.write(|tx| {
                let mut evicted = Vec::new();
                // Records of different builds share the layers of a base, so one such layer in use says nothing of the others;
                // with all of them in use, nothing is freed. A record that was used since it was chosen stays, too.
                let is_used =
                    |e: &CacheEntry| !e.layers.is_empty() && e.layers.iter().all(|id| pins.contains(&Pin::Layer(*id)));
                for entry in records.into_iter().filter(|e| !is_used(e)) {
                    let sql = "SELECT 1 FROM records WHERE id=?1 AND used=?2";
                    if tx.prepare_cached(sql)?.exists(params![entry.id, entry.used_ms])? {
                        cache::remove_record(tx, entry.id)?;
                        evicted.push((entry.kind, entry.description));
                    }
                }
                Ok(evicted)
            })
        })?;
        self.report.add(Kind::Records, evicted.len() as u64, 0);
        self.report.evicted.extend(evicted);
        Ok(freed + self.layers()? + self.blobs()?)
    }
}
