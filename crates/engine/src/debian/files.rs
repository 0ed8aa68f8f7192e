//! Files that a `deb://` base names: its lock and its keyring.
//!
//! Invariant: a base that the user named on the command line may use any file, relative to the working directory. One
//! that a Dockerfile names writes nothing outside the context, whatever links are in it: Dockerfiles come from others.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kiln_rootfs::Root;

use crate::error::{Error, Result};

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
            Self::Anywhere => std::fs::write(name, text).map_err(|e| Error::io("write the lock file", name, e)),
            Self::Context(directory) => {
                let (directory, name) = confined(*directory, name)?;
                Ok(Root::open(directory)?.write_file(name, text.as_bytes(), 0o644, None)?)
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
