//! Layers that are being made.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::params;
use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

use super::{LayerId, LayerMeta, MEASURE_AT_ONCE, SETTLED_AFTER_MS, insert, insert_blob};
use crate::error::{Context, Result};
use crate::fsutil::{self, Measured, boot_id, now_ms};
use crate::session::{Pin, Session};
use crate::store::Store;

/// A layer that is being made: a directory for its files and one for overlay's work. Dropped without a commit, it is removed.
#[derive(Debug)]
pub struct LayerDraft {
    pub(super) dir: PathBuf,
    pub(super) fs: PathBuf,
    pub(super) work: PathBuf,
    pub(super) session: Arc<Session>,
    pub(super) store: Store,
    pub(super) done: bool,
}

impl LayerDraft {
    /// Where the files go: overlay's `upperdir`.
    pub fn fs(&self) -> &Path {
        &self.fs
    }

    /// Overlay's `workdir`.
    pub fn work(&self) -> &Path {
        &self.work
    }

    /// Makes the layer. It must not be mounted or written any more.
    pub fn commit(mut self, meta: LayerMeta) -> Result<LayerId> {
        let measured = self.seal()?;
        let id = LayerId::new()?;
        self.session.pin(&[Pin::Layer(id)])?;
        let target = self.store.layers().dir(&id);
        self.publish(&target)?;
        let recorded = self.store.inner().db.write(|tx| {
            insert(tx, &id, &meta, Some(measured))?;
            meta.blobs.iter().try_for_each(|blob| insert_blob(tx, &id, blob))?;
            let settled = "UPDATE layers SET boot=NULL WHERE boot=?1 AND written<?2";
            tx.prepare_cached(settled)?.execute(params![boot_id(), now_ms() - SETTLED_AFTER_MS])?;
            Ok(())
        });
        if let Err(e) = recorded {
            _ = fsutil::remove_path(&target);
            return Err(e);
        }
        Ok(id)
    }

    /// Removes what does not belong to the layer, and summarises the rest if that is quick.
    pub(super) fn seal(&mut self) -> Result<Option<Measured>> {
        if fs::remove_dir(&self.work).is_err() {
            // An overlay was mounted with it.
            self.session.discard(&self.work)?;
        }
        fsutil::measure(&self.fs, MEASURE_AT_ONCE).ctx("read", &self.fs)
    }

    /// Gives the directory its final name.
    pub(super) fn publish(&mut self, target: &Path) -> Result<()> {
        let renamed = rustix::fs::renameat_with(CWD, &self.dir, CWD, target, RenameFlags::NOREPLACE);
        match renamed {
            Err(Errno::INVAL | Errno::NOSYS) => fs::rename(&self.dir, target),
            other => other.map_err(io::Error::from),
        }
        .ctx("rename", target)?;
        self.done = true;
        Ok(())
    }
}

impl Drop for LayerDraft {
    fn drop(&mut self) {
        if !self.done {
            _ = fsutil::remove_path(&self.dir);
        }
    }
}
