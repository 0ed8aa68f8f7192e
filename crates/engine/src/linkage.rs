//! Checks that what a build's image starts, and every program that its last stage brought, can start in it.
//!
//! What was found for the same layers and command is remembered, so an unchanged build costs one look-up. The base image's
//! own programs are left alone, unless the image starts them.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use kiln_linkage::{Checker, Finding, Start};
use kiln_oci::{Hasher, ImageConfig};
use kiln_rootfs::{ContextTree, FileKind, Stat};
use kiln_store::{LayerId, Snapshot};

use crate::engine::Engine;
use crate::error::Result;

/// An ELF header has at least this many bytes.
const SMALLEST: u64 = 52;

/// For how long a result without findings, and what programs a layer has, is remembered.
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
    let mut programs = BTreeSet::new();
    for layer in &snapshot.0[snapshot.0.len().saturating_sub(own)..] {
        programs.extend(programs_of(engine, layer)?);
    }
    // Layers above may have removed or replaced it.
    let is_there = |path: &Path| root.try_stat(path, false).ok().flatten().is_some_and(|stat| is_program(&stat));
    for program in programs.into_iter().filter(|path| is_there(path)) {
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

/// The executable files of a layer. A large one is not walked again for each build over it.
pub fn programs_of(engine: &Engine, layer: &LayerId) -> Result<Vec<PathBuf>> {
    let memo = format!("programs {layer}");
    let paths = match engine.store.meta().get(&memo)? {
        Some(paths) => paths,
        None => {
            let stack = engine.views.stack(&Snapshot(vec![*layer]))?;
            let entries = ContextTree::scan_layers(&stack, Path::new("/"))?.entries();
            let programs = entries.into_iter().filter(|(_, stat)| is_program(stat));
            let paths: Vec<u8> = programs.flat_map(|(path, _)| [path.as_os_str().as_bytes(), b"\0"].concat()).collect();
            engine.store.meta().put(&memo, &paths, Some(KEEP))?;
            paths
        }
    };
    let paths = paths.split(|b| *b == 0).filter(|path| !path.is_empty());
    Ok(paths.map(|path| Path::new("/").join(OsStr::from_bytes(path))).collect())
}

fn is_program(stat: &Stat) -> bool {
    stat.kind == FileKind::File && stat.mode & 0o111 != 0 && stat.size >= SMALLEST
}
