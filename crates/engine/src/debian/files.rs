//! Files that a `deb://` base names: its lock and its keyring.
//!
//! Invariant: a base that the user named on the command line may use any file, relative to the working directory. One
//! that a Dockerfile names writes nothing outside the context, whatever links are in it: Dockerfiles come from others.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kiln_rootfs::Root;

use crate::error::{Error, Result};
use crate::export::with_writer;
use crate::request::Destination;

/// Largest lock file, in bytes.
const MAX_LOCK: usize = 64 << 20;

/// Whose files may be used.
#[derive(Default)]
pub struct UserFiles {
    /// Bases that the user named.
    named: BTreeSet<String>,
    /// The context, if it is a directory of the user.
    context: Option<PathBuf>,
    /// Lock files that this process began: the bases that come later are added to them.
    begun: Mutex<BTreeSet<String>>,
}

impl UserFiles {
    /// For bases that the user named, and a Dockerfile with this context.
    pub fn new(named: impl IntoIterator<Item = String>, context: Option<PathBuf>) -> Self {
        Self { named: named.into_iter().collect(), context, begun: Mutex::default() }
    }

    /// Where the files of a base are.
    pub fn place(&self, base: &str) -> Place<'_> {
        if self.named.contains(base) { Place::Anywhere } else { Place::Context(self.context.as_deref()) }
    }

    /// Lock files that this process began. Held from reading a lock file to writing it, as several bases can share one.
    pub fn lock_files(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the files of one base are.
pub enum Place<'a> {
    /// Where they say.
    Anywhere,
    /// In the context, if there is one.
    Context(Option<&'a Path>),
}

impl Place<'_> {
    /// The text of a lock file, if it exists.
    pub fn read_lock(&self, name: &str) -> Result<Option<String>> {
        let bytes = match self {
            Self::Anywhere => match std::fs::read(name) {
                Ok(bytes) => Some(bytes),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
                Err(e) => return Err(Error::io("read the lock file", name, e)),
            },
            Self::Context(directory) => {
                let (directory, name) = confined(*directory, name)?;
                Root::open(directory)?.read_small(name, MAX_LOCK)?
            }
        };
        Ok(bytes.map(|b| String::from_utf8_lossy(&b).into_owned()))
    }

    /// Writes a lock file.
    pub fn write_lock(&self, name: &str, text: &str) -> Result<()> {
        match self {
            Self::Anywhere => replace(Path::new(name), text),
            Self::Context(directory) => {
                let (directory, name) = confined(*directory, name)?;
                Ok(Root::open(directory)?.replace_file(name, text.as_bytes(), 0o644)?)
            }
        }
    }

    /// The path of a keyring. An absolute one is the machine's, as in the apt configuration.
    pub fn keyring(&self, name: &str) -> Result<String> {
        match self {
            Self::Context(directory) if Path::new(name).is_relative() => {
                let (directory, relative) = confined(*directory, name)?;
                let inside = Root::open(directory)?.resolve(relative)?;
                let inside = inside.strip_prefix("/").unwrap_or(&inside);
                Ok(directory.join(inside).display().to_string())
            }
            Self::Anywhere | Self::Context(_) => Ok(name.to_owned()),
        }
    }
}

/// Replaces a file in one step where that can be done, so that nobody finds half of it. A link stays one.
fn replace(path: &Path, text: &str) -> Result<()> {
    let write = |e| Error::io("write the lock file", path, e);
    let in_one_step =
        with_writer(&Destination::Path(path.to_owned()), |out| out.write_all(text.as_bytes()).map_err(write));
    match in_one_step {
        // It is mounted, or all that may be written to there.
        Err(Error::Io { source, .. })
            if matches!(source.kind(), ErrorKind::ResourceBusy | ErrorKind::PermissionDenied) =>
        {
            std::fs::write(path, text).map_err(write)
        }
        replaced => replaced,
    }
}

fn confined<'a>(directory: Option<&'a Path>, name: &'a str) -> Result<(&'a Path, &'a Path)> {
    let path = Path::new(name);
    let inside = path.components().all(|c| matches!(c, std::path::Component::Normal(_) | std::path::Component::CurDir));
    match directory {
        Some(directory) if inside => Ok((directory, path)),
        Some(_) => Err(Error::request_with_hint(
            format!("{name} in a FROM deb:// is not a path in the build context"),
            "a base from the command line may use any file: --build-context base=deb://…",
        )),
        None => Err(Error::request_with_hint(
            format!("{name} in a FROM deb:// needs a build context that is a directory"),
            "a base from the command line may use any file: --build-context base=deb://…",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_file_is_replaced_and_stays_what_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        std::os::unix::fs::symlink("real", &link).unwrap();
        replace(&real, "first").unwrap();
        replace(&link, "second").unwrap();
        assert_eq!(std::fs::read_to_string(&real).unwrap(), "second");
        assert!(link.is_symlink());
        let place = Place::Context(Some(dir.path()));
        place.write_lock("locks", "one").unwrap();
        place.write_lock("locks", "two").unwrap();
        assert_eq!(place.read_lock("locks").unwrap().as_deref(), Some("two"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3, "no drafts");
    }
}
