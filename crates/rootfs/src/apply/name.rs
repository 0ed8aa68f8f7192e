//! Names in archives: cleaned as text, before any of it meets the file system.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::reader::archive;
use crate::error::Result;
use crate::whiteout;

/// A name without empty parts, `.` and `..`, relative to the root. Empty for the root itself.
///
/// `..` removes the part before it as text, as Go's `filepath.Clean` does. One that leads above the root is an error, or
/// stays at the root if `confine`.
pub(super) fn clean(name: &[u8], confine: bool) -> Result<PathBuf> {
    let display = || Path::new(OsStr::from_bytes(name));
    if name.contains(&0) {
        return Err(archive(display(), "the name has a NUL byte"));
    }
    if !confine && leads_out(name) {
        return Err(archive(display(), "the name leads out of the directory"));
    }
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    Ok(parts.into_iter().map(OsStr::from_bytes).collect())
}

fn leads_out(name: &[u8]) -> bool {
    let mut depth = 0_usize;
    for part in name.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." if depth == 0 => return true,
            b".." => depth -= 1,
            _ => depth += 1,
        }
    }
    false
}

/// What a name in a layer stands for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LayerName<'a> {
    Plain,
    /// Hides this name in the same directory.
    Whiteout(&'a OsStr),
    /// Its directory is opaque.
    Opaque,
    /// AUFS bookkeeping.
    Ignored,
}

/// Sorts out the names that start with `.wh.`. `path` is clean.
pub(super) fn layer_name(path: &Path) -> Result<LayerName<'_>> {
    let mut parts = path.iter().map(OsStrExt::as_bytes).peekable();
    while let Some(part) = parts.next() {
        let Some(hidden) = part.strip_prefix(whiteout::PREFIX) else { continue };
        let last = parts.peek().is_none();
        if part == whiteout::OPAQUE && last {
            return Ok(LayerName::Opaque);
        }
        if part.starts_with(whiteout::META_PREFIX) {
            return Ok(LayerName::Ignored);
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(archive(path, "a whiteout of nothing"));
        }
        if !last {
            return Err(archive(path, "something inside a whiteout"));
        }
        return Ok(LayerName::Whiteout(OsStr::from_bytes(hidden)));
    }
    Ok(LayerName::Plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleaning() {
        let clean =
            |name: &str, confine| clean(name.as_bytes(), confine).ok().map(|p| p.to_string_lossy().into_owned());
        for (name, cleaned) in
            [("./a//b/", "a/b"), ("/a/./b", "a/b"), ("a/../b", "b"), ("", ""), ("./", ""), ("a/..", "")]
        {
            assert_eq!(clean(name, false).as_deref(), Some(cleaned), "{name}");
            assert_eq!(clean(name, true).as_deref(), Some(cleaned), "{name}");
        }
        for (name, confined) in [("../x", "x"), ("/../x", "x"), ("a/../../x", "x"), ("a/../../a/x", "a/x")] {
            assert_eq!(clean(name, false), None, "{name}");
            assert_eq!(clean(name, true).as_deref(), Some(confined), "{name}");
        }
        assert_eq!(clean("a\0b", true), None);
    }

    #[test]
    fn layer_names() {
        let name = |path: &'static str| layer_name(Path::new(path));
        assert_eq!(name("a/b").unwrap(), LayerName::Plain);
        assert_eq!(name("a/.wh.b").unwrap(), LayerName::Whiteout(OsStr::new("b")));
        assert_eq!(name(".wh..hidden").unwrap(), LayerName::Whiteout(OsStr::new(".hidden")));
        assert_eq!(name("a/.wh..wh..opq").unwrap(), LayerName::Opaque);
        assert_eq!(name(".wh..wh.plnk/1.2").unwrap(), LayerName::Ignored);
        assert_eq!(name("a/.wh..wh.aufs").unwrap(), LayerName::Ignored);
        for bad in ["a/.wh.", "a/.wh..", "a/.wh...", ".wh.x/y"] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }
}
