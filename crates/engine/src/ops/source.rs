//! Sources: what was resolved becomes layers.

use std::path::Path;

use kiln_graph::{HttpSource, SourceOp, Vertex};
use kiln_rootfs::fileops::{Make, mkfile};
use kiln_rootfs::{Owner, Root, Target};
use kiln_store::{LayerMeta, Snapshot};

use crate::build::Job;
use crate::error::{Error, Result};
use crate::resolve::Meaning;
use crate::steps::Step;

/// Fetches what a source means.
pub fn fetch(job: &Job, vertex: &Vertex, source: &SourceOp, step: &Step) -> Result<Snapshot> {
    match job.resolved.meaning(vertex, source)? {
        // Layers are fetched when something reads them.
        Some(Meaning::Image(image)) => job.engine.image_snapshot(&image),
        Some(Meaning::Deb(resolution)) => crate::debian::build(job, &resolution, step),
        Some(Meaning::Git(url, commit)) => {
            let scratch = job.engine.store.scratch()?;
            let access = job.resolved.git_access();
            let (fetcher, auth) = (access.fetcher()?, access.auth(&url.remote)?);
            let checkout = fetcher.checkout(&url, &commit, &auth, &scratch.path().join("tree"))?;
            let root = Root::open(&checkout.dir)?;
            let snapshot = new_layer(job, |to| crate::contexts::copy_all(&root, Path::new("/"), to, None))?;
            Ok(snapshot)
        }
        Some(Meaning::Http(file)) => {
            let SourceOp::Http(http) = source else { return Err(Error::request("a download that is not one")) };
            http_file(job, http, &file)
        }
        None => Err(Error::request("a local context has no layers")),
    }
}

fn new_layer(job: &Job, fill: impl FnOnce(&Root) -> Result<()>) -> Result<Snapshot> {
    let draft = job.engine.store.layers().draft()?;
    let root = Root::open(draft.fs())?.with_ownership(job.engine.ownership);
    fill(&root)?;
    Ok(Snapshot(vec![draft.commit(LayerMeta::default())?]))
}

fn http_file(job: &Job, http: &HttpSource, file: &kiln_source::HttpFile) -> Result<Snapshot> {
    let content = job.engine.store.content();
    content.check(&file.digest)?;
    let downloaded = content.open(&file.digest)?;
    new_layer(job, |root| {
        let owner = Owner { uid: http.uid.unwrap_or(0), gid: http.gid.unwrap_or(0) };
        let target = Path::new("/").join(&file.filename);
        let mtime = (file.modified.map_or(0, |m| m.seconds()), 0);
        let make = Make { mode: http.mode.unwrap_or(0o600), owner, mtime: Some(mtime) };
        Ok(mkfile(&Target::scratch(root.clone()), &target, &downloaded, &make)?)
    })
}
