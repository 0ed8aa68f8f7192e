//! File system states as directories.
//!
//! A view is a detached overlay mount: it is attached nowhere, so nothing has to be unmounted, and a killed build
//! leaves none. Layers that are not unpacked yet are unpacked first, those of one state in parallel.

use std::path::{Path, PathBuf};

use kiln_rootfs::overlay::{self, OverlaySpec};
use kiln_rootfs::{Ownership, Root, Stack, whiteout};
use kiln_store::{LayerId, Snapshot, Store};

use crate::error::Result;
use crate::layers::Unpacker;

/// Makes views.
pub struct Views {
    store: Store,
    ownership: Ownership,
    unpacker: Unpacker,
    /// An empty directory, for states without layers.
    empty: PathBuf,
}

impl Views {
    /// Of a store's layers.
    pub fn new(store: Store, ownership: Ownership, unpacker: Unpacker) -> Result<Self> {
        let empty = store.sources_dir("empty")?;
        // It is the root of `scratch`, which every user of a container may look into.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&empty, open).map_err(|e| crate::error::Error::io("open up", &empty, e))?;
        Ok(Self { store, ownership, unpacker, empty })
    }

    /// An empty directory; not to be written to.
    pub fn empty(&self) -> Result<Root> {
        Ok(Root::open(&self.empty)?.with_ownership(self.ownership))
    }

    /// A state to read.
    pub fn readable(&self, snapshot: &Snapshot) -> Result<Root> {
        match self.unpacked(&snapshot.0)?.as_slice() {
            [] => self.empty(),
            some => merged(some, self.ownership),
        }
    }

    /// A state to write to; what is written lands in `upper`.
    pub fn writable(&self, snapshot: &Snapshot, upper: &Path, work: &Path) -> Result<Root> {
        let mut paths = self.unpacked(&snapshot.0)?;
        if paths.is_empty() {
            paths.push(self.empty.clone());
        }
        self.mount(&paths, Some((upper, work)))
    }

    /// Any directory, to write to without changing it.
    pub fn over(&self, lowers: &[PathBuf], upper: &Path, work: &Path) -> Result<Root> {
        self.mount(lowers, Some((upper, work)))
    }

    /// A state as a stack of its layers: reading there is faster than through an overlay, and files can be linked.
    pub fn stack(&self, snapshot: &Snapshot) -> Result<Stack> {
        let roots =
            self.unpacked(&snapshot.0)?.into_iter().map(|p| Root::open(&p).map(|r| r.with_ownership(self.ownership)));
        Ok(Stack::new(&roots.collect::<Result<Vec<_>, _>>()?))
    }

    fn mount(&self, lowers: &[PathBuf], upper: Option<(&Path, &Path)>) -> Result<Root> {
        let lowers: Vec<&Path> = lowers.iter().map(PathBuf::as_path).collect();
        let spec = OverlaySpec { lowers: &lowers, upper, volatile: upper.is_some() };
        Ok(Root::from_fd(overlay::mount(&spec)?).with_ownership(self.ownership))
    }

    fn unpacked(&self, layers: &[LayerId]) -> Result<Vec<PathBuf>> {
        self.unpacker.unpack(layers)?;
        let paths: Vec<PathBuf> = layers.iter().map(|id| self.store.layers().path(id)).collect();
        Ok(visible(&paths)?.to_vec())
    }
}

/// The layers (lowest first, at least one) as one directory to read.
pub(crate) fn merged(layers: &[PathBuf], ownership: Ownership) -> Result<Root> {
    match visible(layers)? {
        [one] => Ok(Root::open(one)?.with_ownership(ownership)),
        many => {
            let lowers: Vec<&Path> = many.iter().map(PathBuf::as_path).collect();
            let spec = OverlaySpec { lowers: &lowers, upper: None, volatile: false };
            Ok(Root::from_fd(overlay::mount(&spec)?).with_ownership(ownership))
        }
    }
}

/// The layers of which anything can be seen: none below one whose root is opaque.
fn visible(layers: &[PathBuf]) -> Result<&[PathBuf]> {
    for (index, layer) in layers.iter().enumerate().skip(1).rev() {
        if whiteout::is_opaque_root(&Root::open(layer)?)? {
            return Ok(&layers[index..]);
        }
    }
    Ok(layers)
}
