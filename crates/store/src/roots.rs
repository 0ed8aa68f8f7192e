//! Persistent roots: what an owner such as a container keeps from being collected, whether its process lives or not.

use kiln_oci::Digest;
use rusqlite::{Connection, params};

use crate::error::Result;
use crate::layers::LayerId;
use crate::session::Pin;
use crate::store::Store;

/// Something that an owner keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RootItem {
    /// A layer.
    Layer(LayerId),
    /// A blob; if it is a manifest or an index, with all that it leads to.
    Blob(Digest),
}

/// The roots of a store.
#[derive(Debug, Clone, Copy)]
pub struct Roots<'a>(pub(crate) &'a Store);

impl Roots<'_> {
    /// Makes these items the ones that `owner` keeps. They must be pinned by a lease until then.
    pub fn put(&self, owner: &str, items: &[RootItem]) -> Result<()> {
        self.0.inner().db.write(|tx| {
            tx.execute("DELETE FROM roots WHERE owner=?1", [owner])?;
            let mut statement = tx.prepare_cached("INSERT OR IGNORE INTO roots(owner, item) VALUES(?1,?2)")?;
            for item in items {
                let text = match item {
                    RootItem::Layer(id) => Pin::Layer(*id).to_string(),
                    RootItem::Blob(digest) => Pin::Image(*digest).to_string(),
                };
                statement.execute(params![owner, text])?;
            }
            Ok(())
        })
    }

    /// Lets go of all that `owner` keeps.
    pub fn remove(&self, owner: &str) -> Result<()> {
        self.0.inner().db.write(|tx| Ok(tx.execute("DELETE FROM roots WHERE owner=?1", [owner]).map(|_| ())?))
    }
}

/// Whoever keeps something.
pub(crate) fn owners(db: &Connection) -> Result<Vec<String>> {
    let mut statement = db.prepare_cached("SELECT DISTINCT owner FROM roots")?;
    let owners = statement.query_map([], |r| r.get(0))?;
    Ok(owners.collect::<rusqlite::Result<_>>()?)
}

/// All that is kept by anybody.
pub(crate) fn all(db: &Connection) -> Result<Vec<Pin>> {
    let mut statement = db.prepare_cached("SELECT item FROM roots")?;
    let items = statement.query_map([], |r| r.get::<_, String>(0))?;
    let items: Vec<String> = items.collect::<rusqlite::Result<_>>()?;
    Ok(items.iter().filter_map(|item| Pin::parse(item)).collect())
}
