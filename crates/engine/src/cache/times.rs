//! When the layers of an imported state were made.
//!
//! A layer of the store has one time, but two steps that made the same content at different times share it once it is known by
//! its diff ID. An image that is made of imported states has the times of the first machine, so that it is the same image.

use std::time::Duration;

use kiln_oci::Timestamp;
use kiln_store::Snapshot;

use crate::engine::Engine;
use crate::error::Result;
use crate::value::Value;

/// After that, images are as old as their layers.
const KEEP: Duration = Duration::from_secs(90 * 86_400);

fn key(snapshot: &Snapshot) -> String {
    format!("times {}", Value::identity_of(snapshot))
}

fn own(engine: &Engine, snapshot: &Snapshot) -> Result<Vec<Timestamp>> {
    snapshot.0.iter().map(|id| Ok(engine.store.layers().get(id)?.created)).collect()
}

/// Keeps the times of a state, if its layers say others.
pub(super) fn keep(engine: &Engine, snapshot: &Snapshot, times: &[Option<Timestamp>]) -> Result<()> {
    let known = own(engine, snapshot)?;
    let times: Vec<i64> = times.iter().zip(&known).map(|(t, k)| t.unwrap_or(*k).seconds()).collect();
    if times.iter().zip(&known).all(|(t, k)| *t == k.seconds()) {
        return Ok(());
    }
    Ok(engine.store.meta().put_as(&key(snapshot), &times, Some(KEEP))?)
}

/// When each layer was made: as the highest imported state among these layers has it.
pub fn created(engine: &Engine, snapshot: &Snapshot) -> Result<Vec<Timestamp>> {
    let mut times = own(engine, snapshot)?;
    for end in (1..=snapshot.0.len()).rev() {
        let below = Snapshot(snapshot.0[..end].to_vec());
        if let Some(kept) = engine.store.meta().get_as::<Vec<i64>>(&key(&below))? {
            for (time, kept) in times.iter_mut().zip(kept) {
                *time = Timestamp::from_seconds(kept).unwrap_or(*time);
            }
            break;
        }
    }
    Ok(times)
}
