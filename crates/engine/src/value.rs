//! What a vertex's output is.

use kiln_oci::{Digest, Hasher};
use kiln_store::{Record, Snapshot};

/// An output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A file system state.
    Tree {
        /// Its layers.
        snapshot: Snapshot,
        /// The key under which it was made; what is made from it has this in its content key. The same on any machine.
        identity: Digest,
    },
    /// A local context, read in place.
    Context(String),
}

impl Value {
    /// What stands for it in the keys of what is made from it.
    pub fn identity(&self) -> Digest {
        match self {
            Self::Tree { identity, .. } => *identity,
            Self::Context(name) => {
                let mut hasher = Hasher::new();
                hasher.field("context").field(name);
                hasher.finish()
            }
        }
    }

    /// An identity that no other result has.
    pub fn identity_of(snapshot: &Snapshot) -> Digest {
        let mut hasher = Hasher::new();
        for layer in &snapshot.0 {
            hasher.field(layer.to_string());
        }
        hasher.finish()
    }

    /// The record of a result. Its description begins with the identity.
    pub fn record(snapshot: &Snapshot, identity: &Digest, description: &str) -> Record {
        Record::new(snapshot.clone()).described("step", &format!("{identity} {description}"))
    }

    /// The result of a record; `None` if it is not one of [`record`](Self::record)'s.
    pub fn from_record(record: &Record) -> Option<Self> {
        let identity = record.description.split(' ').next()?.parse().ok()?;
        Some(Self::Tree { snapshot: record.snapshot.clone(), identity })
    }

    /// Its layers; a context has none.
    pub fn snapshot(&self) -> Snapshot {
        match self {
            Self::Tree { snapshot, .. } => snapshot.clone(),
            Self::Context(_) => Snapshot::default(),
        }
    }
}
