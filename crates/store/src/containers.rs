//! Directories of containers: `containers/<id>/`, with the writable layer in `fs`, and beside it what their owner keeps.
//!
//! The store knows no more of a container than its directory, the layers below it (which are roots of the collection), and
//! whether somebody has its lock: then it is in use. A directory appears whole, and goes whole.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Context, Result};
use crate::fsutil::{self, Removed};
use crate::layers::Snapshot;
use crate::lock::LockGuard;
use crate::roots::{self, RootItem};
use crate::store::Store;

/// The containers of a store.
#[derive(Debug, Clone, Copy)]
pub struct Containers<'a>(pub(crate) &'a Store);

/// Owners of roots begin with this.
const OWNER: &str = "container ";

impl Containers<'_> {
    /// Makes a container over layers that a lease holds. `fill` adds files to its directory before anybody sees it.
    pub fn create(&self, id: &str, below: &Snapshot, fill: impl FnOnce(&Path) -> io::Result<()>) -> Result<()> {
        // Until the directory is there, it is this lock that keeps the roots from being taken for those of a dead process.
        let _lock = self.lock(id)?;
        let session = self.0.inner().session()?;
        let (draft, target) = (session.draft(), self.dir(id));
        let make = || {
            fs::DirBuilder::new().mode(0o700).create(&draft)?;
            let files = draft.join("fs");
            fs::create_dir(&files)?;
            // The mode of `/` in the container; not subject to the umask.
            fs::set_permissions(&files, fs::Permissions::from_mode(0o755))?;
            fill(&draft)
        };
        let made = make().ctx("create", &draft).and_then(|()| {
            let items: Vec<RootItem> = below.0.iter().copied().map(RootItem::Layer).collect();
            self.0.roots().put(&format!("{OWNER}{id}"), &items)?;
            let parent = self.0.root().join("containers");
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&parent).ctx("create", &parent)?;
            fs::rename(&draft, &target).ctx("rename", &target)
        });
        made.inspect_err(|_| _ = fsutil::remove_path(&draft))
    }

    /// A container's directory.
    pub fn dir(&self, id: &str) -> PathBuf {
        self.0.root().join("containers").join(id)
    }

    /// The ids of all containers.
    pub fn list(&self) -> Result<Vec<String>> {
        let dir = self.0.root().join("containers");
        let entries = match fs::read_dir(&dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.ctx("list", &dir)?,
        };
        Ok(entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect())
    }

    /// Takes a container's lock: who has it may mount its files and change what is kept beside them.
    pub fn lock(&self, id: &str) -> Result<LockGuard> {
        self.0.lock(&format!("{OWNER}{id}"), &mut || {})
    }

    /// Takes a container's lock, or gives up when `keep_waiting` (asked every few milliseconds) says no.
    pub fn lock_while(&self, id: &str, keep_waiting: &mut dyn FnMut() -> bool) -> Result<Option<LockGuard>> {
        self.0.lock_while(&format!("{OWNER}{id}"), keep_waiting)
    }

    /// Takes a container's lock if it is free.
    pub fn try_lock(&self, id: &str) -> Result<Option<LockGuard>> {
        self.0.try_lock(&format!("{OWNER}{id}"))
    }

    /// An empty work directory for the next overlay over the container's files. Its lock must be held.
    pub fn work(&self, id: &str) -> Result<PathBuf> {
        let work = self.dir(id).join("work");
        if work.exists() {
            // What an overlay leaves there can keep the next one from being mounted.
            self.0.inner().session()?.discard(&work)?;
        }
        fs::DirBuilder::new().mode(0o700).create(&work).ctx("create", &work)?;
        Ok(work)
    }

    /// Removes a container. Its lock must be held. Not being there is success.
    pub fn remove(&self, id: &str) -> Result<Removed> {
        let trash = self.0.inner().session()?.draft();
        let dir = self.dir(id);
        match fs::rename(&dir, &trash) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed.ctx("remove", &dir)?,
        }
        self.0.roots().remove(&format!("{OWNER}{id}"))?;
        fsutil::remove_path(&trash).ctx("remove", &trash)
    }

    /// Lets go of the layers of containers that were not made to the end, or not removed to the end.
    pub(crate) fn forget_dead(&self) -> Result<()> {
        for owner in self.0.inner().db.read(roots::owners)? {
            let Some(id) = owner.strip_prefix(OWNER) else { continue };
            if !self.dir(id).exists()
                && let Some(_lock) = self.try_lock(id)?
                && !self.dir(id).exists()
            {
                self.0.roots().remove(&owner)?;
            }
        }
        Ok(())
    }
}
