//! File system states as directories.
//!
//! A view is a detached overlay mount: it is attached nowhere, so nothing has to be unmounted, and a killed build
//! leaves none. Layers that are not unpacked yet are unpacked first, those of one state in parallel.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

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
    /// Whether the roots of layers are opaque; layers do not change.
    opaque: Mutex<HashMap<LayerId, bool>>,
}

impl Views {
    /// Of a store's layers.
    pub fn new(store: Store, ownership: Ownership, unpacker: Unpacker) -> Result<Self> {
        let empty = store.sources_dir("empty")?;
        // It is the root of `scratch`, which every user of a container may look into.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&empty, open).map_err(|e| crate::error::Error::io("open up", &empty, e))?;
        Ok(Self { store, ownership, unpacker, empty, opaque: Mutex::default() })
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
        self.writable_as(snapshot, upper, work, true)
    }

    /// The same; what is not `volatile` survives the machine, at the price of syncs.
    pub fn writable_as(&self, snapshot: &Snapshot, upper: &Path, work: &Path, volatile: bool) -> Result<Root> {
        let mut paths = self.unpacked(&snapshot.0)?;
        if paths.is_empty() {
            paths.push(self.empty.clone());
        }
        self.mount(&paths, Some((upper, work)), volatile)
    }

    /// Any directory, to write to without changing it.
    pub fn over(&self, lowers: &[PathBuf], upper: &Path, work: &Path) -> Result<Root> {
        self.mount(lowers, Some((upper, work)), true)
    }

    /// A state as a stack of its layers: reading there is faster than through an overlay, and files can be linked.
    pub fn stack(&self, snapshot: &Snapshot) -> Result<Stack> {
        let roots =
            self.unpacked(&snapshot.0)?.into_iter().map(|p| Root::open(&p).map(|r| r.with_ownership(self.ownership)));
        Ok(Stack::new(&roots.collect::<Result<Vec<_>, _>>()?))
    }

    /// The uppermost layer of a state that has one: its root is the state's.
    pub fn top(&self, snapshot: &Snapshot) -> Result<Option<Root>> {
        let top = self.unpacked(&snapshot.0)?.pop();
        Ok(top.map(|path| Root::open(&path)).transpose()?.map(|root| root.with_ownership(self.ownership)))
    }

    fn mount(&self, lowers: &[PathBuf], upper: Option<(&Path, &Path)>, volatile: bool) -> Result<Root> {
        let lowers: Vec<&Path> = lowers.iter().map(PathBuf::as_path).collect();
        let spec = OverlaySpec { lowers: &lowers, upper, volatile };
        Ok(Root::from_fd(overlay::mount(&spec)?).with_ownership(self.ownership))
    }

    fn unpacked(&self, layers: &[LayerId]) -> Result<Vec<PathBuf>> {
        self.unpacker.unpack(layers)?;
        let mut paths = Vec::with_capacity(layers.len());
        for id in layers.iter().rev() {
            paths.push(self.store.layers().path(id));
            if self.is_opaque(id)? {
                break;
            }
        }
        paths.reverse();
        Ok(paths)
    }

    fn is_opaque(&self, id: &LayerId) -> Result<bool> {
        let mut known = self.opaque.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(opaque) = known.get(id) {
            return Ok(*opaque);
        }
        let opaque = whiteout::is_opaque_root(&Root::open(&self.store.layers().path(id))?)?;
        known.insert(*id, opaque);
        Ok(opaque)
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
