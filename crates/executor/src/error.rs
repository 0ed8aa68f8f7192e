//! What can go wrong, with the path or step it went wrong at.

use std::io;
use std::path::{Path, PathBuf};

use crate::wire::{Decoder, Encoder, Malformed};

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a container could not be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The helper process could not be started or spoken to.
    #[error("cannot {action} the container helper: {source}")]
    Helper {
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The helper ended while a container ran; the container is dead too.
    #[error("the container helper ended unexpectedly; the container was killed")]
    HelperDied,
    /// The run was cancelled through its token; every process of it is dead.
    #[error("cancelled")]
    Cancelled,
    /// The request itself makes no sense.
    #[error("invalid container: {0}")]
    Invalid(String),
    /// A mount point could not be prepared in the root.
    #[error("cannot make the mount point {path}: {source}")]
    MountPoint {
        /// Path inside the container.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A control group could not be used although it had to be.
    #[error("cannot {action} {path}: {source}")]
    Cgroup {
        /// What was tried.
        action: &'static str,
        /// File or directory of the cgroup file system.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The container could not be set up or its program not be started.
    #[error(transparent)]
    Start(#[from] StartError),
}

impl Error {
    pub(crate) fn helper(action: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Helper { action, source }
    }

    /// The exit code a shell would give: 127 for a program that is not there, 126 for one that cannot be run.
    pub fn exit_code(&self) -> Option<i32> {
        match self {
            Error::Start(StartError::NotFound { .. }) => Some(127),
            Error::Start(
                StartError::NotExecutable { .. }
                | StartError::MissingInterpreter { .. }
                | StartError::WrongArchitecture { .. },
            ) => Some(126),
            _ => None,
        }
    }
}

/// What stopped a container between its creation and the first instruction of its program.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A step of the set-up failed.
    #[error("cannot set up the container: {step}: {}", os_error(*errno))]
    Setup {
        /// The step, in words.
        step: String,
        /// The kernel's error number.
        errno: i32,
    },
    /// A mount failed.
    #[error("cannot mount {target} in the container: {what}: {}", os_error(*errno))]
    Mount {
        /// Path inside the container.
        target: PathBuf,
        /// The step, in words.
        what: String,
        /// The kernel's error number.
        errno: i32,
    },
    /// The working directory is missing, not a directory, or outside of the root.
    #[error("cannot use the working directory {path}: {}", os_error(*errno))]
    Cwd {
        /// As asked for.
        path: PathBuf,
        /// The kernel's error number.
        errno: i32,
    },
    /// The user or a group of the process does not exist for the kernel.
    #[error("cannot run as {uid}:{gid}: {what}")]
    Identity {
        /// User id asked for.
        uid: u32,
        /// Group id asked for.
        gid: u32,
        /// What is wrong and what can be done.
        what: String,
    },
    /// No such program.
    #[error("{program}: command not found{}", searched(path.as_deref()))]
    NotFound {
        /// As asked for.
        program: PathBuf,
        /// The `PATH` that was searched; `None` when the program was given with a slash.
        path: Option<String>,
    },
    /// The file is there but cannot be executed.
    #[error("{program}: cannot execute: {why}")]
    NotExecutable {
        /// The file.
        program: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A script's interpreter or a program's dynamic loader is not in the root.
    #[error("{program}: its {kind} {interpreter} does not exist in the container{}", loader_hint(kind, interpreter))]
    MissingInterpreter {
        /// The file.
        program: PathBuf,
        /// `interpreter` for a script, `dynamic loader` for an ELF file.
        kind: String,
        /// What the file names.
        interpreter: PathBuf,
    },
    /// A program for another machine, and no emulator registered for it.
    #[error(
        "{program}: built for {found}, but this machine is {expected} and no emulator for {found} is registered (binfmt_misc)"
    )]
    WrongArchitecture {
        /// The file.
        program: PathBuf,
        /// Machine of the file.
        found: String,
        /// Machine we run on.
        expected: String,
    },
}

fn os_error(errno: i32) -> String {
    let text = io::Error::from_raw_os_error(errno).to_string();
    match text.rsplit_once(" (os error") {
        Some((words, _)) => words.to_owned(),
        None => text,
    }
}

fn searched(path: Option<&str>) -> String {
    match path {
        None => String::new(),
        Some("") => " (PATH is empty)".to_owned(),
        Some(path) => format!(" (searched {path})"),
    }
}

fn loader_hint(kind: &str, interpreter: &Path) -> &'static str {
    let name = interpreter.as_os_str().to_string_lossy();
    if kind == "interpreter" {
        if name.ends_with('\r') { " (the script has Windows line endings)" } else { "" }
    } else if name.contains("ld-musl") {
        " (it was linked against musl: use an Alpine-like base, or link it statically)"
    } else if name.contains("ld-linux") {
        " (it was linked against glibc: use a glibc base, or link it statically)"
    } else {
        ""
    }
}

impl StartError {
    pub(crate) fn encode(&self, e: &mut Encoder) {
        match self {
            Self::Setup { step, errno } => e.u8(0).str(step).i32(*errno),
            Self::Mount { target, what, errno } => e.u8(1).path(target).str(what).i32(*errno),
            Self::Cwd { path, errno } => e.u8(2).path(path).i32(*errno),
            Self::Identity { uid, gid, what } => e.u8(3).u32(*uid).u32(*gid).str(what),
            Self::NotFound { program, path } => e.u8(4).path(program).option(path.as_deref(), |e, p| e.str(p)),
            Self::NotExecutable { program, why } => e.u8(5).path(program).str(why),
            Self::MissingInterpreter { program, kind, interpreter } => {
                e.u8(6).path(program).str(kind).path(interpreter)
            }
            Self::WrongArchitecture { program, found, expected } => e.u8(7).path(program).str(found).str(expected),
        };
    }

    pub(crate) fn decode(d: &mut Decoder<'_>) -> Result<StartError, Malformed> {
        Ok(match d.u8()? {
            0 => Self::Setup { step: d.string()?, errno: d.i32()? },
            1 => Self::Mount { target: d.path()?, what: d.string()?, errno: d.i32()? },
            2 => Self::Cwd { path: d.path()?, errno: d.i32()? },
            3 => Self::Identity { uid: d.u32()?, gid: d.u32()?, what: d.string()? },
            4 => Self::NotFound { program: d.path()?, path: d.option(Decoder::string)? },
            5 => Self::NotExecutable { program: d.path()?, why: d.string()? },
            6 => Self::MissingInterpreter { program: d.path()?, kind: d.string()?, interpreter: d.path()? },
            7 => Self::WrongArchitecture { program: d.path()?, found: d.string()?, expected: d.string()? },
            _ => return Err(Malformed),
        })
    }

    /// A failed step of the set-up.
    pub(crate) fn setup(step: impl Into<String>) -> impl FnOnce(io::Error) -> StartError {
        move |error| StartError::Setup { step: step.into(), errno: error.raw_os_error().unwrap_or(libc::EIO) }
    }

    /// A failed mount.
    pub(crate) fn mount<'a>(target: &'a Path, what: &'a str) -> impl FnOnce(io::Error) -> StartError + 'a {
        move |error| StartError::Mount {
            target: target.to_owned(),
            what: what.to_owned(),
            errno: error.raw_os_error().unwrap_or(libc::EIO),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_start_error_survives_the_wire() {
        let all = [
            StartError::Setup { step: "x".into(), errno: 1 },
            StartError::Mount { target: "/a".into(), what: "y".into(), errno: 2 },
            StartError::Cwd { path: "/w".into(), errno: 20 },
            StartError::Identity { uid: 1, gid: 2, what: "z".into() },
            StartError::NotFound { program: "p".into(), path: Some("/bin".into()) },
            StartError::NotFound { program: "/p".into(), path: None },
            StartError::NotExecutable { program: "/p".into(), why: "w".into() },
            StartError::MissingInterpreter {
                program: "/p".into(),
                kind: "dynamic loader".into(),
                interpreter: "/l".into(),
            },
            StartError::WrongArchitecture { program: "/p".into(), found: "arm64".into(), expected: "amd64".into() },
        ];
        for error in all {
            let mut e = Encoder::default();
            error.encode(&mut e);
            assert_eq!(StartError::decode(&mut Decoder(&e.buf)).expect("decodes"), error);
            for cut in 0..e.buf.len() {
                assert!(StartError::decode(&mut Decoder(&e.buf[..cut])).is_err(), "{error:?} cut at {cut}");
            }
        }
    }
}
