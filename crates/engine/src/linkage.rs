//! Checks that what a build's image starts, and every program that its last stage brought, can start in it.
//!
//! What was found for the same layers and command is remembered, so an unchanged build costs one look-up. The base image's
//! own programs are left alone, unless the image starts them.

use std::path::{Path, PathBuf};

use kiln_linkage::{Checker, Finding, Start};
use kiln_oci::{Hasher, ImageConfig};
use kiln_rootfs::{ContextTree, FileKind};
use kiln_store::{LayerId, Snapshot};

use crate::engine::Engine;
use crate::error::Result;

/// An ELF header has at least this many bytes.
const SMALLEST: u64 = 52;

/// For how long a result without findings is remembered.
const KEEP: std::time::Duration = std::time::Duration::from_secs(30 * 86_400);

/// Checks an image whose last `own` layers were made by its build. The result is empty for an image of another operating
/// system, and for one of which not everything is here.
pub fn check(engine: &Engine, snapshot: &Snapshot, own: usize, config: &ImageConfig) -> Result<Vec<Finding>> {
    if config.os != "linux" || snapshot.0.is_empty() {
        return Ok(Vec::new());
    }
    let key = key(snapshot, own, config);
    if engine.store.meta().get(&key)?.is_some() {
        return Ok(Vec::new());
    }
    for layer in &snapshot.0 {
        if !engine.store.layers().get(layer)?.unpacked {
            return Ok(Vec::new());
        }
    }
    let start = start(config);
    let root = engine.views.readable(snapshot)?;
    let mut checker = Checker::new(&root, &start);
    checker.command();
    for program in programs(engine, &snapshot.0[snapshot.0.len().saturating_sub(own)..])? {
        checker.program(&program);
    }
    let findings = checker.finish();
    if findings.is_empty() {
        engine.store.meta().put(&key, b"", Some(KEEP))?;
    }
    Ok(findings)
}

fn start(config: &ImageConfig) -> Start {
    let run = &config.config;
    let args = run.entrypoint.iter().chain(&run.cmd).flatten().cloned().collect();
    Start {
        args,
        env: run.env.clone(),
        working_dir: run.working_dir.clone(),
        architecture: config.architecture.clone(),
    }
}

fn key(snapshot: &Snapshot, own: usize, config: &ImageConfig) -> String {
    let mut hasher = Hasher::new();
    hasher.field("kiln.linkage.v1").field(own.to_le_bytes());
    for layer in &snapshot.0 {
        hasher.field(layer.to_string());
    }
    let start = start(config);
    hasher.field(start.architecture).field(start.working_dir);
    for list in [&start.args, &start.env] {
        hasher.field(list.len().to_le_bytes());
        for item in list {
            hasher.field(item);
        }
    }
    format!("linkage:{}", hasher.finish().hex())
}

/// The executable files of some layers.
fn programs(engine: &Engine, layers: &[LayerId]) -> Result<Vec<PathBuf>> {
    if layers.is_empty() {
        return Ok(Vec::new());
    }
    let stack = engine.views.stack(&Snapshot(layers.to_vec()))?;
    let entries = ContextTree::scan_layers(&stack, Path::new("/"))?.entries();
    let program =
        |stat: &kiln_rootfs::Stat| stat.kind == FileKind::File && stat.mode & 0o111 != 0 && stat.size >= SMALLEST;
    Ok(entries.into_iter().filter(|(_, stat)| program(stat)).map(|(path, _)| Path::new("/").join(path)).collect())
}
