//! What can be wrong with a program, in words.

use crate::search::Libc;

/// One program that will not start.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The program's path in the image, or the command's name if it is nowhere.
    pub path: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// Why a program will not start.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Problem {
    /// The image's command is not in the image.
    NoSuchCommand {
        /// It is the shell of a command in shell form.
        shell: bool,
    },
    /// The image's command may not be executed.
    NotExecutable {
        /// Because it is a directory.
        directory: bool,
    },
    /// The image's command is for another processor.
    WrongArchitecture {
        /// The program's.
        found: String,
        /// The image's.
        wanted: String,
    },
    /// The interpreter of a script is missing.
    MissingInterpreter {
        /// As the script's first line names it.
        interpreter: String,
    },
    /// The dynamic loader is missing: the kernel says that the program itself is not there.
    MissingLoader {
        /// Path of the loader.
        loader: String,
        /// The C library that it belongs to.
        libc: Libc,
        /// The C library that the image has instead.
        image_has: Option<Libc>,
    },
    /// A library is in none of the directories that the loader searches.
    MissingLibrary {
        /// The library.
        name: String,
        /// The library that needs it, if it is not the program itself.
        needed_by: Option<String>,
    },
    /// A library is older than the program wants.
    MissingVersion {
        /// The library.
        library: String,
        /// The version, such as `GLIBC_2.38`.
        version: String,
    },
}

impl Finding {
    /// One sentence: what is wrong.
    pub fn describe(&self) -> String {
        let path = &self.path;
        match &self.problem {
            Problem::NoSuchCommand { shell: true } => {
                format!("the image's command is in shell form, but the image has no {path}")
            }
            Problem::NoSuchCommand { shell: false } => format!("the image's command {path} is not in the image"),
            Problem::NotExecutable { directory: true } => format!("the image's command {path} is a directory"),
            Problem::NotExecutable { directory: false } => format!("the image's command {path} is not executable"),
            Problem::WrongArchitecture { found, wanted } => {
                format!("the image's command {path} is for {found}, but the image is for {wanted}")
            }
            Problem::MissingInterpreter { interpreter } => {
                format!("{path} wants the interpreter {interpreter:?}, which is not in the image")
            }
            Problem::MissingLoader { loader, .. } => {
                format!("{path} is linked dynamically, but its loader {loader} is not in the image")
            }
            Problem::MissingLibrary { name, needed_by: None } => {
                format!("{path} needs {name}, which is not in the image")
            }
            Problem::MissingLibrary { name, needed_by: Some(by) } => {
                format!("{path} needs {name} (through {by}), which is not in the image")
            }
            Problem::MissingVersion { library, version } => {
                format!("{path} needs {version}, which the image's {library} does not have")
            }
        }
    }

    /// What to do about it.
    pub fn remedy(&self) -> String {
        match &self.problem {
            Problem::NoSuchCommand { shell: true } => {
                "write it in exec form: CMD [\"program\", \"argument\"]".to_owned()
            }
            Problem::NoSuchCommand { shell: false } => "copy it into the last stage, or correct its path".to_owned(),
            Problem::NotExecutable { directory: true } => "name a program in it".to_owned(),
            Problem::NotExecutable { directory: false } => "COPY --chmod=755, or RUN chmod +x before it is copied".to_owned(),
            Problem::WrongArchitecture { wanted, .. } => {
                format!("build it for {wanted}: ARG TARGETARCH tells a compiling stage what is wanted")
            }
            Problem::MissingInterpreter { interpreter } if interpreter.ends_with('\r') => {
                "the script has Windows line ends: save it with LF".to_owned()
            }
            Problem::MissingInterpreter { .. } => "use a base that has it, or copy it".to_owned(),
            Problem::MissingLoader { libc: Libc::Glibc, image_has: Some(_), .. } => {
                "it was linked with glibc and the image has musl: compile it on the same kind of base, or statically".to_owned()
            }
            Problem::MissingLoader { libc: Libc::Musl, image_has: Some(_), .. } => {
                "it was linked with musl and the image has glibc: compile it on the same kind of base, or statically".to_owned()
            }
            Problem::MissingLoader { libc: Libc::Glibc, .. } => {
                "link it statically (gcc -static, CGO_ENABLED=0), or use a base that has glibc, such as deb://bookworm?packages=libc6".to_owned()
            }
            Problem::MissingLoader { .. } => "link it statically, or use a base that has the loader".to_owned(),
            Problem::MissingLibrary { name, .. } => {
                format!("copy {name} and what it needs from the stage that has it, or add its package to the base")
            }
            Problem::MissingVersion { .. } => {
                "the stage that compiles has a newer release than the last stage: use the same release for both".to_owned()
            }
        }
    }
}
