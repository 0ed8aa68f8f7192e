//! Unpacking all packages of a base into one directory, several at once, with a result that does not depend on timing.
//!
//! What could depend on it is decided beforehand or afterwards: directories that packages share are made before files
//! go into them and get their metadata at the end; a file that is in two packages, or a directory of one that is a link
//! in another, is noticed afterwards, and then everything is unpacked again by a plan that says who wins. That is rare.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Cursor;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use kiln_rootfs::apply::{Entry, EntryKind, ExtractOptions, extract};
use kiln_rootfs::{FileKind, Root};

use crate::context::{Context, Event};
use crate::deb::{ControlFile, Deb};
use crate::deb822::Paragraphs;
use crate::error::{Error, Result};
use crate::relation;
use crate::repack::{self, Plan, Repack, Seen};
use crate::resolution::{Resolution, ResolvedPackage};

/// How often a better plan is made before giving up.
const MAX_PLANS: usize = 4;

/// What is known of a package once it is unpacked.
pub struct Unpacked {
    /// Its name.
    pub name: String,
    /// The files of `control.tar`, by name.
    pub control: Vec<ControlFile>,
    /// Its paths, in the order of the package.
    pub seen: Vec<Seen>,
    /// MD5 sums of the configuration files that are in the package.
    pub md5: HashMap<String, Option<String>>,
}

impl Unpacked {
    /// A file of `control.tar`.
    pub fn file(&self, name: &str) -> Option<&[u8]> {
        self.control.iter().find(|f| f.name == name).map(|f| f.content.as_slice())
    }

    /// A field of the control file.
    pub fn field(&self, name: &str) -> Option<&str> {
        Paragraphs::new(self.file("control")?).next()?.get(name)
    }

    /// The configuration files, without the slash in front.
    pub fn conffiles(&self) -> Vec<String> {
        let text = String::from_utf8_lossy(self.file("conffiles").unwrap_or_default()).into_owned();
        let lines = text.lines().map(str::trim).filter(|line| line.starts_with('/'));
        lines.map(|line| line.trim_matches('/').to_owned()).collect()
    }
}

/// Unpacks all packages into `root`, which is emptied first. `keep` says which paths are wanted at all.
pub fn unpack(
    resolution: &Resolution,
    context: &Context<'_>,
    root: &Root,
    keep: &(dyn Fn(&str, &str) -> bool + Sync),
) -> Result<Vec<Unpacked>> {
    let mut plan = Plan::default();
    for top in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
        plan.merged.insert(top.into(), format!("usr/{top}"));
    }
    for _ in 0..MAX_PLANS {
        let job = Job { resolution, context, root, keep, plan: &plan, made: Mutex::default() };
        let (unpacked, failure) = match job.run(Pass::Unpack) {
            Ok(unpacked) => (unpacked, None),
            // It may be a clash, which only shows when all packages are known.
            Err(error @ Error::Package { .. }) => {
                (job.run(Pass::Survey).map_err(|_| ()).unwrap_or_default(), Some(error))
            }
            Err(error) => return Err(error),
        };
        match (improve(&plan, &unpacked)?, failure) {
            (None, None) => {
                job.top_links(&unpacked)?;
                job.directories(&unpacked)?;
                return Ok(unpacked);
            }
            (None, Some(error)) => return Err(error),
            (Some(better), _) => {
                plan = better;
                root.remove_all(Path::new(""))?;
            }
        }
    }
    let (package, reason) =
        (resolution.spec.to_string(), "its packages' directories and links contradict each other".into());
    Err(Error::Package { package, reason })
}

/// What a pass over all packages does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// Writes files.
    Unpack,
    /// Only takes notes.
    Survey,
}

struct Job<'a> {
    resolution: &'a Resolution,
    context: &'a Context<'a>,
    root: &'a Root,
    keep: &'a (dyn Fn(&str, &str) -> bool + Sync),
    plan: &'a Plan,
    made: Mutex<HashSet<String>>,
}

impl Job<'_> {
    /// The packages in the order of their names, or the first failure in that order.
    fn run(&self, pass: Pass) -> Result<Vec<Unpacked>> {
        let packages = &self.resolution.packages;
        let mut order: Vec<usize> = (0..packages.len()).collect();
        // The largest first, so that the last worker is not left alone with one of them.
        order.sort_by_key(|i| std::cmp::Reverse(packages[*i].size));
        let next = AtomicUsize::new(0);
        let results: Mutex<Vec<(usize, Result<Unpacked>)>> = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..self.context.worker_count(packages.len()) {
                scope.spawn(|| {
                    while let Some(number) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let result = self.package(&packages[*number], pass);
                        if result.is_err() {
                            next.store(usize::MAX / 2, Ordering::Relaxed);
                        }
                        results.lock().unwrap_or_else(PoisonError::into_inner).push((*number, result));
                    }
                });
            }
        });
        let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        results.sort_by_key(|(number, _)| *number);
        results.into_iter().map(|(_, result)| result).collect()
    }

    fn package(&self, package: &ResolvedPackage, pass: Pass) -> Result<Unpacked> {
        self.context.check()?;
        let id = package.id();
        let path = self.context.deb_path(&package.sha256);
        let deb = Deb::open(&path, &id, &package.sha256, package.size)?;
        let control = deb.control(&id)?;
        let mut unpacked = Unpacked { name: package.name.clone(), control, seen: Vec::new(), md5: HashMap::new() };
        check_control(&unpacked, package)?;
        let bad = |reason: String| Error::Package { package: id.clone(), reason };
        let keep = |path: &str| (self.keep)(&package.name, path);
        let prepare = |dir: &str| match pass {
            Pass::Unpack => self.make(dir).map_err(|error| error.to_string()),
            Pass::Survey => Ok(()),
        };
        let data = deb.data().map_err(|error| bad(error.to_string()))?;
        let mut repack = Repack::new(data, &package.name, self.plan, &keep, &prepare);
        repack.hash(unpacked.conffiles().into_iter());
        let options = ExtractOptions { clamp_mtime: Some(self.resolution.date), ..ExtractOptions::default() };
        match pass {
            Pass::Unpack => {
                extract(&mut repack, self.root, &options).map_err(|error| bad(error.to_string()))?;
            }
            Pass::Survey => {
                std::io::copy(&mut repack, &mut std::io::sink()).map_err(|error| bad(error.to_string()))?;
            }
        }
        (unpacked.seen, unpacked.md5) = repack.into_notes();
        if pass == Pass::Unpack {
            self.context.send(Event::Unpacked { package: &package.name });
        }
        Ok(unpacked)
    }

    /// Makes a directory once, whoever needs it.
    fn make(&self, dir: &str) -> Result<()> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if dir.is_empty() || made.contains(dir) {
            return Ok(());
        }
        self.root.create_dir_all(Path::new(dir), 0o755, None)?;
        made.insert(dir.to_owned());
        Ok(())
    }

    /// The links of merged directories: the usual three always, the others where something went through them.
    fn top_links(&self, unpacked: &[Unpacked]) -> Result<()> {
        let used: HashSet<&str> =
            unpacked.iter().flat_map(|u| &u.seen).filter_map(|s| s.path.split('/').next()).collect();
        for (from, to) in self.plan.merged.iter().filter(|(from, _)| !from.contains('/')) {
            let always = matches!(from.as_str(), "bin" | "sbin" | "lib");
            if always || used.contains(from.as_str()) {
                self.make(to)?;
                self.root.symlink(Path::new(to), Path::new(from), None)?;
            }
        }
        Ok(())
    }

    /// Makes all directories that packages have, and sets the metadata of all there are. Where packages disagree,
    /// base-files decides, then the first by name.
    fn directories(&self, unpacked: &[Unpacked]) -> Result<()> {
        let mut wanted: BTreeMap<String, Entry> = BTreeMap::new();
        let (base, rest): (Vec<&Unpacked>, Vec<&Unpacked>) = unpacked.iter().partition(|u| u.name == "base-files");
        let seen = base.into_iter().chain(rest).flat_map(|u| &u.seen);
        for seen in seen.filter(|seen| seen.kind == EntryKind::Dir && seen.kept) {
            wanted
                .entry(seen.placed.clone())
                .or_insert_with(|| directory(&seen.placed, seen.mode, (seen.uid, seen.gid), seen.mtime.0));
        }
        let date = self.resolution.date;
        let mut made: Vec<String> = self.made.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect();
        made.extend(wanted.keys().cloned());
        for path in &made {
            for (at, _) in path.match_indices('/') {
                let above = &path[..at];
                wanted.entry(above.to_owned()).or_insert_with(|| directory(above, 0o755, (0, 0), date));
            }
            wanted.entry(path.clone()).or_insert_with(|| directory(path, 0o755, (0, 0), date));
        }
        let mut tar = Vec::new();
        for (path, entry) in &wanted {
            // A directory entry over a link to a directory means that directory.
            let there = self.root.try_stat(Path::new(path), false)?;
            if there.is_none_or(|stat| stat.kind == FileKind::Dir) {
                tar.extend(repack::header(entry));
            }
        }
        tar.extend([0; 1024]);
        extract(Cursor::new(tar), self.root, &ExtractOptions { clamp_mtime: Some(date), ..ExtractOptions::default() })?;
        Ok(())
    }
}

fn directory(path: &str, mode: u32, (uid, gid): (u32, u32), mtime: i64) -> Entry {
    Entry {
        kind: EntryKind::Dir,
        path: path.as_bytes().to_vec(),
        link: Vec::new(),
        mode,
        uid,
        gid,
        size: 0,
        mtime: (mtime, 0),
        rdev: (0, 0),
        xattrs: Vec::new(),
        sparse: None,
    }
}

/// The package must be what the index said.
fn check_control(unpacked: &Unpacked, package: &ResolvedPackage) -> Result<()> {
    for (field, expected) in
        [("Package", &package.name), ("Version", &package.version), ("Architecture", &package.arch)]
    {
        let found = unpacked.field(field).unwrap_or_default();
        if found != expected {
            let reason = format!("its control file has {field}: {found:?}");
            return Err(Error::Package { package: package.id(), reason });
        }
    }
    Ok(())
}

/// A plan that settles what clashed, or None if nothing did.
fn improve(plan: &Plan, unpacked: &[Unpacked]) -> Result<Option<Plan>> {
    let mut better = plan.clone();
    let mut links: BTreeMap<&str, &str> = BTreeMap::new();
    let mut owners: HashMap<&str, &Unpacked> = HashMap::new();
    let mut changed = false;
    for package in unpacked {
        for seen in package.seen.iter().filter(|s| s.kept && s.kind != EntryKind::Dir) {
            if seen.kind == EntryKind::Symlink {
                links.insert(&seen.placed, &seen.target);
            }
            if let Some(other) = owners.insert(&seen.placed, package).filter(|other| other.name != package.name) {
                let loser = loser(other, package).ok_or_else(|| Error::FileConflict {
                    path: format!("/{}", seen.placed),
                    first: other.name.clone(),
                    second: package.name.clone(),
                })?;
                changed |= better.suppressed.insert((loser.to_owned(), seen.placed.clone()));
            }
        }
    }
    let below = unpacked.iter().flat_map(|u| &u.seen).filter(|s| s.kept && s.kind != EntryKind::Dir);
    for seen in below {
        for (at, _) in seen.placed.match_indices('/') {
            let above = &seen.placed[..at];
            if let Some(target) = links.get(above).and_then(|target| resolve_link(above, target)) {
                changed |= better.merged.insert(above.to_owned(), target).is_none();
            }
        }
    }
    Ok(changed.then_some(better))
}

/// Where a link leads, as a path in the image.
fn resolve_link(link: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = match target.strip_prefix('/') {
        Some(_) => Vec::new(),
        None => link.split('/').collect(),
    };
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let resolved = parts.join("/");
    (!resolved.is_empty() && resolved != link && !resolved.starts_with(&format!("{link}/"))).then_some(resolved)
}

/// Which of two packages gives way in a file that both have: the one that the other replaces.
fn loser<'a>(a: &'a Unpacked, b: &'a Unpacked) -> Option<&'a str> {
    let replaces = |winner: &Unpacked, loser: &Unpacked| {
        let version = loser.field("Version").unwrap_or_default();
        relation::clauses(winner.field("Replaces").unwrap_or_default())
            .flat_map(relation::alternatives)
            .any(|r| r.name == loser.name && r.accepts(Some(version)))
    };
    if replaces(a, b) {
        return Some(&b.name);
    }
    replaces(b, a).then_some(a.name.as_str())
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
