//! Which parts of a tree a `COPY`, `ADD` or bind mount uses: sources as Docker reads them, and the digest of exactly these.
//!
//! A source is a path or a pattern in which `*`, `?` and `[…]` match within a component. A source that is itself a symbolic
//! link is followed (inside the root); links below it are not. A file source stands for itself, a directory for its
//! contents.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::ops::Deref;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use kiln_oci::{Digest, Hasher};

use crate::error::{Context as _, Result, RootfsError};
use crate::glob;
use crate::hash;
use crate::scan;
use crate::stack::{Stack, tidy};
use crate::stat::{FileKind, Stat};
use crate::tree::{At, ContextTree, Entry, Filter, Ignore};
use crate::xattr::Xattrs;

/// Where files come from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// A container's file system, or any directory.
    Stack(&'a Stack),
    /// A scanned (and filtered) build context.
    Tree(&'a ContextTree),
}

impl<'a> From<&'a Stack> for Source<'a> {
    fn from(stack: &'a Stack) -> Self {
        Self::Stack(stack)
    }
}

impl<'a> From<&'a ContextTree> for Source<'a> {
    fn from(tree: &'a ContextTree) -> Self {
        Self::Tree(tree)
    }
}

/// Which files of a source.
#[derive(Clone, Default)]
pub struct Selector<'a> {
    /// Paths or patterns, relative to the root whether or not they begin with a slash.
    pub sources: Vec<PathBuf>,
    /// `*`, `?` and `[…]` are patterns.
    pub wildcard: bool,
    /// A pattern without match selects nothing, instead of being an error.
    pub allow_empty: bool,
    /// A source that is a link is not followed but stands for itself.
    pub no_follow: bool,
    /// Asked for each path below a directory source, relative to that source; for a file source, with its name.
    pub filter: Option<Filter<'a>>,
}

impl std::fmt::Debug for Selector<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Selector")
            .field("sources", &self.sources)
            .field("wildcard", &self.wildcard)
            .finish_non_exhaustive()
    }
}

/// The digest of what a selector selects: names, kinds, modes, owners, attributes, contents and link targets, not times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TreeDigest(pub Digest);

/// One line of a manifest: what a person wants to know when a cache missed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestEntry {
    /// In the source.
    pub path: PathBuf,
    /// What it is.
    pub kind: FileKind,
    /// Permission bits.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Content digest of a file, digest of the target of a link.
    pub digest: Option<Digest>,
}

/// A tree that was scanned before, or for this selection.
pub(crate) enum TreeRef<'a> {
    Borrowed(&'a ContextTree),
    Owned(Box<ContextTree>),
}

impl Deref for TreeRef<'_> {
    type Target = ContextTree;

    fn deref(&self) -> &ContextTree {
        match self {
            Self::Borrowed(tree) => tree,
            Self::Owned(tree) => tree,
        }
    }
}

/// One source after patterns and links were resolved.
pub(crate) struct Pick<'a> {
    pub tree: TreeRef<'a>,
    pub at: At,
    /// The last component as it was written or matched: the name in a destination directory.
    pub name: OsString,
    /// The path as it was written or matched, for messages.
    pub path: PathBuf,
    /// With a filter: which entries of which directories are in. Directories that are not listed are out.
    kept: Option<HashMap<usize, Vec<bool>>>,
}

impl Pick<'_> {
    pub fn stat(&self) -> &Stat {
        match self.at {
            At::Entry(dir, i) => &self.tree.dirs[dir].entries[i].stat,
            At::Root | At::Missing => &self.tree.root,
        }
    }

    pub fn dir(&self) -> Option<usize> {
        self.tree.dir_of(self.at)
    }

    /// The entries of a directory that are in, with their indices.
    pub fn entries(&self, dir: usize) -> impl Iterator<Item = (usize, &Entry)> {
        let kept = self.kept.as_ref().map(|k| k.get(&dir).map(Vec::as_slice).unwrap_or_default());
        let all = self.tree.dirs[dir].entries.iter().enumerate();
        all.filter(move |(i, _)| kept.is_none_or(|k| k.get(*i).copied().unwrap_or(false)))
    }

    /// All files, (directory, index), directory by directory.
    fn files(&self) -> Result<Vec<(usize, usize)>> {
        let Some(top) = self.dir() else {
            return match self.at {
                At::Entry(dir, i) => Ok(vec![(dir, i)]),
                At::Root | At::Missing => Ok(Vec::new()),
            };
        };
        let mut files = Vec::new();
        let mut todo = vec![top];
        while let Some(dir) = todo.pop() {
            self.tree.readable(dir)?;
            for (i, entry) in self.entries(dir) {
                match entry.dir {
                    Some(child) => todo.push(child),
                    None => files.push((dir, i)),
                }
            }
        }
        Ok(files)
    }

    /// Depth first, directories before their contents. `visit` gets the depth (0 for the source itself).
    fn visit(&self, mut visit: impl FnMut(Visit<'_>)) {
        let Some(top) = self.dir() else {
            if let At::Entry(dir, i) = self.at {
                let entry = &self.tree.dirs[dir].entries[i];
                visit(Visit { depth: 0, name: &self.name, stat: &entry.stat, dir: None, entry: Some(entry) });
            }
            return;
        };
        let parent = self.tree.dirs[top].path.as_path();
        visit(Visit { depth: 0, name: OsStr::new(""), stat: self.stat(), dir: Some((top, parent)), entry: None });
        let mut todo = vec![self.entries(top).collect::<Vec<_>>().into_iter()];
        while let Some(level) = todo.last_mut() {
            let Some((_, entry)) = level.next() else {
                todo.pop();
                continue;
            };
            let dir = entry.dir.map(|d| (d, self.tree.dirs[d].path.as_path()));
            visit(Visit { depth: todo.len(), name: &entry.name, stat: &entry.stat, dir, entry: Some(entry) });
            if let Some(child) = entry.dir {
                todo.push(self.entries(child).collect::<Vec<_>>().into_iter());
            }
        }
    }

    fn apply_filter(&mut self, filter: Filter<'_>) -> bool {
        let Some(top) = self.dir() else {
            return filter(Path::new(&self.name), false) == Ignore::Keep;
        };
        let mut kept: HashMap<usize, Vec<bool>> = HashMap::new();
        let mut order = Vec::new();
        let mut todo = vec![(top, PathBuf::new())];
        while let Some((dir, mut path)) = todo.pop() {
            let mut keep = vec![false; self.tree.dirs[dir].entries.len()];
            for (i, entry) in self.tree.dirs[dir].entries.iter().enumerate() {
                path.push(&entry.name);
                match (filter(&path, entry.dir.is_some()), entry.dir) {
                    (Ignore::Keep, None) => keep[i] = true,
                    (Ignore::Keep, Some(child)) => {
                        keep[i] = true;
                        todo.push((child, path.clone()));
                    }
                    (Ignore::SkipButDescend, Some(child)) => {
                        order.push((dir, i, child));
                        todo.push((child, path.clone()));
                    }
                    _ => {}
                }
                path.pop();
            }
            kept.insert(dir, keep);
        }
        // Parents that are only on the way come along if something below them is in; children were seen later.
        for (dir, i, child) in order.into_iter().rev() {
            let any = kept.get(&child).is_some_and(|k| k.contains(&true));
            if let Some(k) = kept.get_mut(&dir) {
                k[i] = any;
            }
        }
        self.kept = Some(kept);
        true
    }
}

struct Visit<'a> {
    depth: usize,
    name: &'a OsStr,
    stat: &'a Stat,
    dir: Option<(usize, &'a Path)>,
    entry: Option<&'a Entry>,
}

/// The paths that a selector's sources stand for, in order, patterns replaced by what they match.
pub fn matches(source: Source<'_>, selector: &Selector<'_>) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for written in &selector.sources {
        let matches = expand(source, written, selector)?;
        if matches.is_empty() && !selector.allow_empty {
            return Err(RootfsError::NotFound { path: written.clone() });
        }
        for path in matches {
            let stat = match source {
                Source::Tree(tree) => tree.stat(&path, !selector.no_follow)?,
                Source::Stack(stack) => stack.stat(&path, !selector.no_follow)?,
            };
            let Some(stat) = stat else { return Err(RootfsError::NotFound { path }) };
            let name = Path::new(path.file_name().unwrap_or_default());
            let named = |filter: Filter<'_>| stat.kind == FileKind::Dir || filter(name, false) == Ignore::Keep;
            if selector.filter.is_none_or(named) {
                all.push(path);
            }
        }
    }
    Ok(all)
}

/// Resolves a selector's sources, in order; matches of a pattern are sorted.
pub(crate) fn pick<'a>(source: Source<'a>, selector: &Selector<'_>) -> Result<Vec<Pick<'a>>> {
    let mut picks = Vec::new();
    for written in &selector.sources {
        let matches = expand(source, written, selector)?;
        if matches.is_empty() && !selector.allow_empty {
            return Err(RootfsError::NotFound { path: written.clone() });
        }
        for path in matches {
            let name = path.file_name().unwrap_or_default().to_owned();
            let Some((tree, at)) = locate(source, &path, selector)? else {
                return Err(RootfsError::NotFound { path });
            };
            // A tree that was scanned just now is filtered already.
            let fresh = matches!(tree, TreeRef::Owned(_)) && at == At::Root;
            let mut pick = Pick { tree, at, name, path, kept: None };
            if fresh || selector.filter.is_none_or(|f| pick.apply_filter(f)) {
                picks.push(pick);
            }
        }
    }
    Ok(picks)
}

fn locate<'a>(source: Source<'a>, path: &Path, selector: &Selector<'_>) -> Result<Option<(TreeRef<'a>, At)>> {
    let follow = !selector.no_follow;
    match source {
        Source::Tree(tree) => {
            let (_, at) = tree.find(path, follow)?;
            Ok((at != At::Missing).then_some((TreeRef::Borrowed(tree), at)))
        }
        Source::Stack(stack) => {
            let found = stack.find(path, follow)?;
            let Some((stat, layer)) = found.entry else { return Ok(None) };
            let (tree, at) = if stat.kind == FileKind::Dir {
                let base = found.path;
                let filter = selector.filter;
                let request =
                    scan::Request { stack: stack.clone(), base, filter, cache: None, owner: None, immutable: true };
                (scan::scan(&request)?, At::Root)
            } else {
                (scan::single(stack, &found.path, stat, layer)?, At::Entry(0, 0))
            };
            Ok(Some((TreeRef::Owned(Box::new(tree)), at)))
        }
    }
}

/// The paths that a source as written stands for. The part before the first pattern may go through links; below, patterns
/// match names only, component by component.
pub(crate) fn expand(source: Source<'_>, written: &Path, selector: &Selector<'_>) -> Result<Vec<PathBuf>> {
    let written = tidy(written);
    let parts: Vec<&OsStr> = written.iter().collect();
    let first = parts.iter().position(|p| selector.wildcard && glob::has_pattern(p.as_bytes()));
    let Some(first) = first else {
        // Without a pattern, backslashes still quote.
        let plain = |p: &&OsStr| if selector.wildcard { glob::unquote(p) } else { (*p).to_owned() };
        return Ok(vec![parts.iter().map(plain).collect()]);
    };
    let prefix: PathBuf = parts[..first].iter().map(|p| glob::unquote(p)).collect();
    let mut level = vec![prefix];
    for (n, pattern) in parts[first..].iter().enumerate() {
        let is_last = first + n + 1 == parts.len();
        let pattern = glob::Pattern::new(pattern.as_bytes())
            .map_err(|reason| RootfsError::Pattern { pattern: written.display().to_string(), reason })?;
        let mut next = Vec::new();
        for dir in level {
            for (name, is_dir) in names(source, &dir, n == 0)? {
                if pattern.matches(name.as_bytes()) && (is_last || is_dir) {
                    next.push(dir.join(name));
                }
            }
        }
        level = next;
    }
    Ok(level)
}

/// The names in a directory; none if it is no directory.
fn names(source: Source<'_>, dir: &Path, follow: bool) -> Result<Vec<(OsString, bool)>> {
    match source {
        Source::Tree(tree) => {
            let Some(d) = tree.dir_of(tree.find(dir, follow)?.1) else { return Ok(Vec::new()) };
            tree.readable(d)?;
            Ok(tree.dirs[d].entries.iter().map(|e| (e.name.clone(), e.dir.is_some())).collect())
        }
        Source::Stack(stack) => {
            let canonical = stack.find(dir, follow)?.path;
            match stack.open(&canonical)? {
                Some(open) => open.names().at("read directory", dir),
                None => Ok(Vec::new()),
            }
        }
    }
}

/// The digest of what `selector` selects in `source`. Reads the contents of these files only, and only those not yet known.
pub fn tree_digest(source: Source<'_>, selector: &Selector<'_>) -> Result<TreeDigest> {
    let picks = pick(source, selector)?;
    let mut hasher = Hasher::new();
    let mut record = Vec::new();
    for pick in &picks {
        hash::ensure(&pick.tree, pick.files()?.into_iter())?;
        pick.visit(|v| {
            record.clear();
            let xattrs = v.dir.map(|(dir, _)| &pick.tree.dirs[dir].xattrs);
            encode(&v, xattrs, &mut record);
            hasher.update(&record);
        });
    }
    hasher.update(&(picks.len() as u64).to_le_bytes());
    Ok(TreeDigest(hasher.finish()))
}

/// One entry, every field of fixed length or with its length before it; the depth makes the structure unambiguous.
fn encode(v: &Visit<'_>, xattrs: Option<&Xattrs>, out: &mut Vec<u8>) {
    let stat = v.stat;
    out.extend_from_slice(&(v.depth as u32).to_le_bytes());
    field(out, v.name.as_bytes());
    out.extend_from_slice(&stat.full_mode().to_le_bytes());
    out.extend_from_slice(&stat.uid.to_le_bytes());
    out.extend_from_slice(&stat.gid.to_le_bytes());
    if stat.kind.is_device() {
        out.extend_from_slice(&stat.rdev.0.to_le_bytes());
        out.extend_from_slice(&stat.rdev.1.to_le_bytes());
    }
    if let Some(entry) = v.entry {
        if let Some(digest) = entry.digest.get() {
            field(out, digest);
        }
        if let Some(target) = &entry.target {
            field(out, target.as_os_str().as_bytes());
        }
    }
    if let Some(xattrs) = xattrs {
        out.extend_from_slice(&(xattrs.len() as u32).to_le_bytes());
        for (name, value) in xattrs {
            field(out, name.as_bytes());
            field(out, value);
        }
    }
}

fn field(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// What is selected, entry by entry, to tell why a digest changed.
pub fn manifest(source: Source<'_>, selector: &Selector<'_>) -> Result<Vec<ManifestEntry>> {
    let mut all = Vec::new();
    for pick in pick(source, selector)? {
        hash::ensure(&pick.tree, pick.files()?.into_iter())?;
        let mut path = vec![pick.path.clone()];
        pick.visit(|v| {
            path.truncate(v.depth.max(1));
            let here = match (v.depth, path.last()) {
                (0, _) | (_, None) => pick.path.clone(),
                (_, Some(parent)) => parent.join(v.name),
            };
            if v.dir.is_some() && v.depth > 0 {
                path.push(here.clone());
            }
            let digest = v
                .entry
                .and_then(|e| e.digest().or_else(|| e.target.as_ref().map(|t| Digest::of(t.as_os_str().as_bytes()))));
            let Stat { kind, mode, uid, gid, .. } = *v.stat;
            all.push(ManifestEntry { path: here, kind, mode, owner: (uid, gid), digest });
        });
    }
    Ok(all)
}

impl ContextTree {
    /// See [`tree_digest`].
    pub fn digest(&self, selector: &Selector<'_>) -> Result<TreeDigest> {
        tree_digest(Source::Tree(self), selector)
    }

    /// See [`manifest`].
    pub fn manifest(&self, selector: &Selector<'_>) -> Result<Vec<ManifestEntry>> {
        manifest(Source::Tree(self), selector)
    }
}
