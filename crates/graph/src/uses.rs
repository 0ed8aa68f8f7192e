//! How an op uses each of its inputs: what a change of the input means for the op.

use crate::{ActionInput, ContentCache, CopyAction, ExecOp, FileActionKind, FileOp, Op};

/// How an op uses one of its inputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InputUse {
    /// The result contains the input: another input is another result.
    Key,
    /// The result depends on what these selectors see of the input, and on nothing else of it.
    Content(Vec<Selector>),
}

/// A part of a file system.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Selector {
    /// Absolute path; `/` for everything.
    pub path: String,
    /// Whether `path` may hold wildcards.
    pub wildcard: bool,
    /// Whether a symbolic link at `path` is followed.
    pub follow_links: bool,
    /// Only what matches one of these patterns, relative to `path`; everything where empty.
    pub include: Vec<String>,
    /// But not what matches one of these patterns, relative to `path`.
    pub exclude: Vec<String>,
}

impl Selector {
    /// `path` and everything below it.
    pub fn path(path: impl Into<String>) -> Self {
        Self { path: path.into(), wildcard: false, follow_links: true, include: Vec::new(), exclude: Vec::new() }
    }
}

impl Op {
    /// For each of `inputs` inputs, how it is used.
    pub fn input_uses(&self, inputs: usize) -> Vec<InputUse> {
        let mut uses = vec![None; inputs];
        match self {
            Op::Exec(exec) => exec_uses(exec, &mut uses),
            Op::File(file) => file_uses(file, &mut uses),
            Op::Source(_) | Op::Merge(_) | Op::Diff(_) | Op::Build(_) => {}
        }
        uses.into_iter().map(|u| u.unwrap_or(InputUse::Key)).collect()
    }
}

fn by_key(uses: &mut [Option<InputUse>], index: usize) {
    if let Some(slot) = uses.get_mut(index) {
        *slot = Some(InputUse::Key);
    }
}

/// One use by key outweighs all uses by content.
fn by_content(uses: &mut [Option<InputUse>], index: usize, selector: Selector) {
    match uses.get_mut(index) {
        Some(Some(InputUse::Content(all))) => {
            if !all.contains(&selector) {
                all.push(selector);
            }
        }
        Some(slot @ None) => *slot = Some(InputUse::Content(vec![selector])),
        Some(Some(InputUse::Key)) | None => {}
    }
}

fn exec_uses(exec: &ExecOp, uses: &mut [Option<InputUse>]) {
    for mount in &exec.mounts {
        let Some(index) = mount.input else { continue };
        let content = match mount.content_cache {
            ContentCache::On => true,
            ContentCache::Off => false,
            // A root that is only read is still all that the process runs in: its digest would read every file.
            ContentCache::Default => mount.dest != "/" && (mount.readonly || mount.output.is_none()),
        };
        if content {
            by_content(uses, index, Selector::path(absolute(&mount.selector)));
        } else {
            by_key(uses, index);
        }
    }
}

fn file_uses(file: &FileOp, uses: &mut [Option<InputUse>]) {
    for action in &file.actions {
        if let ActionInput::Input(index) = action.input {
            by_key(uses, index);
        }
        if let FileActionKind::Copy(copy) = &action.kind
            && let ActionInput::Input(index) = copy.from
        {
            by_content(uses, index, copy_selector(copy));
        }
        for input in action.owner().into_iter().flat_map(|o| o.lookups()) {
            if let ActionInput::Input(index) = input {
                by_content(uses, index, Selector::path("/etc/passwd"));
                by_content(uses, index, Selector::path("/etc/group"));
            }
        }
    }
}

fn copy_selector(copy: &CopyAction) -> Selector {
    Selector {
        path: absolute(&copy.src),
        wildcard: copy.allow_wildcard,
        follow_links: copy.follow_symlink,
        include: copy.include_patterns.clone(),
        exclude: copy.exclude_patterns.clone(),
    }
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}
