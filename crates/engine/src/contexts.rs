//! Contexts: directories that a build reads in place, and what becomes one: archives, git repositories.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use kiln_dockerfile::{IgnoreMatcher, PatternSet};
use kiln_graph::Selector;
use kiln_oci::{Digest, Hasher};
use kiln_rootfs::apply::{ExtractOptions, extract};
use kiln_rootfs::copy::{CopyRequest, copy};
use kiln_rootfs::{ContextTree, Ignore, Owner, Root, Source, Stack, StatCache, Target, fileops};
use kiln_store::{Scratch, Snapshot};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::missing;

/// Name of the main context, as in BuildKit.
pub const MAIN: &str = "context";

/// A directory that is read in place.
pub struct LocalContext {
    directory: PathBuf,
    root: Root,
    ignore: Option<IgnoreMatcher>,
    cache_file: PathBuf,
    tree: OnceLock<ContextTree>,
    scanning: Mutex<()>,
}

/// The contexts of a build, by name.
#[derive(Default)]
pub struct Contexts {
    all: BTreeMap<String, Arc<LocalContext>>,
    /// Directories that live as long as the build.
    kept: Mutex<Vec<Scratch>>,
}

impl Contexts {
    /// Adds one.
    pub fn add(&mut self, name: &str, context: LocalContext) {
        self.all.insert(name.to_owned(), Arc::new(context));
    }

    /// One by name.
    pub fn get(&self, name: &str) -> Result<&Arc<LocalContext>> {
        self.all.get(name).ok_or_else(|| Error::request(format!("there is no local context {name:?}")))
    }

    /// Keeps a directory until the build ends.
    pub fn keep(&self, scratch: Scratch) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).push(scratch);
    }

    /// Remembers the digests that were computed.
    pub fn save(&self) {
        for context in self.all.values() {
            context.save();
        }
    }
}

impl LocalContext {
    /// Opens a directory. Files are read only when something needs them.
    pub fn open(engine: &Engine, directory: &Path, ignore: Option<IgnoreMatcher>) -> Result<Self> {
        let directory = directory.canonicalize().map_err(|e| Error::io("open the context", directory, e))?;
        if !directory.is_dir() {
            return Err(Error::request(format!("the context {} is not a directory", directory.display())));
        }
        let name = Digest::of(directory.as_os_str().as_encoded_bytes()).hex();
        let cache_file = engine.store.sources_dir("stat")?.join(name);
        let root = Root::open(&directory)?;
        Ok(Self { directory, root, ignore, cache_file, tree: OnceLock::new(), scanning: Mutex::new(()) })
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its root, ignored files included.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// Whether anything is ignored.
    pub fn has_ignore_rules(&self) -> bool {
        self.ignore.is_some()
    }

    /// The ignore rules.
    pub fn ignore(&self) -> Option<&IgnoreMatcher> {
        self.ignore.as_ref()
    }

    /// Names and metadata of all that is not ignored; walked once.
    pub fn tree(&self) -> Result<&ContextTree> {
        let _one = self.scanning.lock().unwrap_or_else(PoisonError::into_inner);
        if self.tree.get().is_none() {
            let cache = StatCache::load(&self.cache_file);
            let filter = |path: &Path, is_dir: bool| self.filter(path, is_dir);
            let filter: Option<kiln_rootfs::Filter<'_>> = if self.ignore.is_some() { Some(&filter) } else { None };
            let tree = ContextTree::scan(&self.root, filter, Some(&cache))?;
            let _ = self.tree.set(tree);
        }
        self.tree.get().ok_or(Error::Cancelled)
    }

    fn filter(&self, path: &Path, is_dir: bool) -> Ignore {
        let Some(matcher) = &self.ignore else { return Ignore::Keep };
        let path = path.as_os_str().as_encoded_bytes();
        if !matcher.matches(path).ignored {
            return Ignore::Keep;
        }
        if is_dir && !matcher.can_skip_dir(path) { Ignore::SkipButDescend } else { Ignore::Skip }
    }

    /// The digest of what selectors see.
    pub fn digest(&self, selectors: &[Selector]) -> Result<Digest> {
        combined(selectors, |selector| self.explained(digest_one(Source::Tree(self.tree()?), selector)))
    }

    /// A source that is there but ignored is told from one that is not there.
    fn explained<T>(&self, result: Result<T>) -> Result<T> {
        let Err(Error::Rootfs(kiln_rootfs::RootfsError::NotFound { path })) = result else { return result };
        Err(not_found(self, &path))
    }

    /// Path, and what is known of it, of all that selectors see.
    pub fn manifest(&self, selectors: &[Selector], most: usize) -> Result<Vec<(String, String)>> {
        let mut all = Vec::new();
        for selector in selectors {
            let patterns = Patterns::of(selector)?;
            let filter = |path: &Path, dir: bool| patterns.filter(path, dir);
            let entries = kiln_rootfs::manifest(Source::Tree(self.tree()?), &patterns.selector(selector, &filter))?;
            for entry in entries.into_iter().take(most - all.len().min(most)) {
                let content = entry.digest.map(|d| format!(" content={}", d.short())).unwrap_or_default();
                let path = entry.path.to_string_lossy().into_owned();
                all.push((path, format!("kind={:?} mode={:04o}{content}", entry.kind, entry.mode)));
            }
        }
        Ok(all)
    }

    /// Writes whiteouts for what is ignored into a directory that goes on top of the context.
    pub fn hide_ignored(&self, upper: &Root) -> Result<()> {
        if self.ignore.is_none() {
            return Ok(());
        }
        let target = Target::over(upper.clone(), self.root.clone().into());
        let mut pending = vec![PathBuf::new()];
        while let Some(dir) = pending.pop() {
            for entry in self.root.read_dir(&dir)? {
                let path = dir.join(&entry.name);
                let is_dir = entry.kind == kiln_rootfs::FileKind::Dir;
                match self.filter(&path, is_dir) {
                    Ignore::Skip => {
                        fileops::rm(&target, &path, false, true)?;
                    }
                    Ignore::Keep | Ignore::SkipButDescend if is_dir => pending.push(path),
                    Ignore::Keep | Ignore::SkipButDescend => {}
                }
            }
        }
        Ok(())
    }

    fn save(&self) {
        if let Some(tree) = self.tree.get() {
            // A cache that can't be written costs time, nothing else.
            let _ = StatCache::load(&self.cache_file).save_if_changed(tree);
        }
    }
}

fn not_found(context: &LocalContext, path: &Path) -> Error {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let shown = relative.display();
    let exists = context.directory.join(relative).symlink_metadata().is_ok();
    if let (true, Some(matcher)) = (exists, &context.ignore) {
        let verdict = matcher.matches(relative.as_os_str().as_encoded_bytes());
        let rule = verdict.rule.map(|r| format!(" by {}", matcher.describe(r)));
        return Error::request(format!("{shown} is in the context but excluded{}", rule.unwrap_or_default()));
    }
    if let Ok(target) = std::fs::read_link(context.directory.join(relative)) {
        let target = target.display();
        let message = format!("{shown} is a symbolic link to {target}, which is not in the context");
        return Error::request_with_hint(
            message,
            "links are followed inside the context only; copy the file itself there",
        );
    }
    let message = format!("{shown} was not found in the context {}", context.directory.display());
    Error::Request { message, hint: missing::did_you_mean(&context.root, relative, Path::new("")) }
}

/// `--include` and `--exclude` patterns of a selector.
pub struct Patterns {
    include: Option<PatternSet>,
    exclude: Option<PatternSet>,
}

impl Patterns {
    /// Compiles them.
    pub fn of(selector: &Selector) -> Result<Self> {
        Self::new(&selector.include, &selector.exclude)
    }

    /// Compiles them.
    pub fn new(include: &[String], exclude: &[String]) -> Result<Self> {
        let set = |list: &[String]| -> Result<Option<PatternSet>> {
            if list.is_empty() {
                return Ok(None);
            }
            PatternSet::new(list).map(Some).map_err(|e| Error::request(e.to_string()))
        };
        Ok(Self { include: set(include)?, exclude: set(exclude)? })
    }

    /// Whether there are any.
    pub fn is_empty(&self) -> bool {
        self.include.is_none() && self.exclude.is_none()
    }

    /// For rootfs.
    pub fn filter(&self, path: &Path, is_dir: bool) -> Ignore {
        let bytes = path.as_os_str().as_encoded_bytes();
        if let Some(exclude) = &self.exclude
            && exclude.matches(bytes)
        {
            return if is_dir && !exclude.can_skip_dir(bytes) { Ignore::SkipButDescend } else { Ignore::Skip };
        }
        match &self.include {
            Some(include) if !include.matches(bytes) => {
                if is_dir {
                    Ignore::SkipButDescend
                } else {
                    Ignore::Skip
                }
            }
            _ => Ignore::Keep,
        }
    }

    /// The selector in rootfs's terms.
    pub fn selector<'a>(&self, selector: &Selector, filter: kiln_rootfs::Filter<'a>) -> kiln_rootfs::Selector<'a> {
        kiln_rootfs::Selector {
            sources: vec![PathBuf::from(&selector.path)],
            wildcard: selector.wildcard,
            allow_empty: true,
            no_follow: !selector.follow_links,
            filter: if self.is_empty() { None } else { Some(filter) },
        }
    }
}

fn digest_one(source: Source<'_>, selector: &Selector) -> Result<Digest> {
    let patterns = Patterns::of(selector)?;
    let filter = |path: &Path, dir: bool| patterns.filter(path, dir);
    let mut wanted = patterns.selector(selector, &filter);
    // A path without wildcards must be there; databases of users need not.
    wanted.allow_empty = selector.wildcard || matches!(selector.path.as_str(), "/etc/passwd" | "/etc/group");
    Ok(kiln_rootfs::tree_digest(source, &wanted)?.0)
}

fn combined(selectors: &[Selector], digest: impl Fn(&Selector) -> Result<Digest>) -> Result<Digest> {
    if let [one] = selectors {
        return digest(one);
    }
    let mut hasher = Hasher::new();
    for selector in selectors {
        hasher.field(digest(selector)?.bytes());
    }
    Ok(hasher.finish())
}

/// The digest of what selectors see of a file system state.
pub fn digest_tree(engine: &Engine, snapshot: &Snapshot, selectors: &[Selector]) -> Result<Digest> {
    let stack = engine.views.stack(snapshot)?;
    combined(selectors, |selector| digest_one(Source::Stack(&stack), selector))
}

/// Copies the content of a directory into another. Without `owner` files keep theirs.
pub fn copy_all(from: &Root, path: &Path, to: &Root, owner: Option<Owner>) -> Result<()> {
    let stack: Stack = from.clone().into();
    let request = CopyRequest {
        select: kiln_rootfs::Selector { sources: vec![path.to_owned()], ..kiln_rootfs::Selector::default() },
        dest: PathBuf::from("/"),
        owner,
        ..CopyRequest::default()
    };
    copy(&request, Source::Stack(&stack), &Target::scratch(to.clone()))?;
    Ok(())
}

/// Unpacks an archive of any compression; what becomes a context belongs to root as every context does.
pub fn unpack_archive(reader: Box<dyn Read + Send>, into: &Path) -> Result<()> {
    let (_, plain) = kiln_compress::decoder(reader).map_err(|e| Error::io("read", "the context archive", e))?;
    extract(plain, &Root::open(into)?, &ExtractOptions::default())?;
    Ok(())
}
