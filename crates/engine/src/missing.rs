//! What may have been meant by a path that is not there.

use std::path::{Component, Path, PathBuf};

use kiln_rootfs::{FileKind, Root};

/// Names that are looked at.
const MOST_NAMES: usize = 5000;

/// A sentence that names the file that was probably meant: one with a name like it, or of the same name elsewhere. `shown` is
/// what the user calls the root.
pub fn did_you_mean(root: &Root, path: &Path, shown: &Path) -> Option<String> {
    let path: PathBuf = path.components().filter(|c| matches!(c, Component::Normal(_))).collect();
    match similar(root, &path) {
        Some(near) => Some(format!("did you mean {}?", shown.join(near).display())),
        None => elsewhere(root, &path).map(|found| format!("there is {}", shown.join(found).display())),
    }
}

/// The path with its first name that is not there replaced by the nearest that is.
fn similar(root: &Root, path: &Path) -> Option<PathBuf> {
    let there = path.ancestors().skip(1).find(|dir| root.try_stat(dir, true).is_ok_and(|s| s.is_some()))?;
    let mut rest = path.strip_prefix(there).ok()?.components();
    let wrong = rest.next()?.as_os_str().to_string_lossy().into_owned();
    let entries = root.read_dir(there).ok()?;
    let names: Vec<String> = entries.iter().map(|e| e.name.to_string_lossy().into_owned()).collect();
    let near = there.join(kiln_dockerfile::nearest(&wrong, names.iter().map(String::as_str))?);
    let whole = near.join(rest.as_path());
    let exists = root.try_stat(&whole, true).is_ok_and(|s| s.is_some());
    Some(if exists { whole } else { near })
}

/// The file of the same name in another directory that is nearest to the top.
fn elsewhere(root: &Root, path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?;
    let mut dirs = std::collections::VecDeque::from([PathBuf::new()]);
    let mut seen = 0;
    while let Some(dir) = dirs.pop_front() {
        for entry in root.read_dir(&dir).unwrap_or_default() {
            let path = dir.join(&entry.name);
            seen += 1;
            if entry.name == name {
                return Some(path);
            }
            if seen > MOST_NAMES {
                return None;
            }
            if entry.kind == FileKind::Dir {
                dirs.push_back(path);
            }
        }
    }
    None
}
