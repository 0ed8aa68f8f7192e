//! The command that an image starts: whether it is there, may be executed, and has its interpreter.

use std::io::Read;
use std::path::{Path, PathBuf};

use kiln_rootfs::FileKind;

use crate::{Checker, Problem};

/// `PATH` where an image sets none, as container runtimes have it.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the kernel reads of a script's first line.
const SHEBANG: u64 = 256;

impl Checker<'_> {
    /// Checks what the image starts.
    pub fn command(&mut self) {
        let start = self.start;
        let Some(name) = start.args.first().filter(|n| !n.is_empty()) else { return };
        let Some(path) = self.locate(name) else {
            let shell = start.args.get(1).is_some_and(|a| a == "-c");
            self.report(Path::new(name), Problem::NoSuchCommand { shell });
            return;
        };
        let Ok(Some(stat)) = self.root.try_stat(&path, true) else { return };
        if stat.kind != FileKind::File || stat.mode & 0o111 == 0 {
            self.report(&path, Problem::NotExecutable { directory: stat.kind == FileKind::Dir });
            return;
        }
        self.startable(&path);
    }

    /// A program of the right processor, or a script with an interpreter.
    fn startable(&mut self, path: &Path) {
        if let Some((real, facts)) = self.facts(path) {
            let wanted = &self.start.architecture;
            match facts.architecture {
                Some(found) if found != wanted => {
                    let (found, wanted) = (found.to_owned(), wanted.clone());
                    self.report(path, Problem::WrongArchitecture { found, wanted });
                }
                _ => self.linked(path, &real, &facts),
            }
        } else if let Some(interpreter) = self.interpreter(path) {
            match self.is_file(Path::new(&interpreter)) {
                true => self.program(Path::new(&interpreter)),
                false => {
                    // A file that was edited on Windows asks for "/bin/sh\r".
                    self.report(path, Problem::MissingInterpreter { interpreter });
                }
            }
        }
    }

    /// Where a command is, as a runtime searches it.
    fn locate(&self, name: &str) -> Option<PathBuf> {
        let start = self.start;
        let there = |path: &Path| self.root.try_stat(path, true).ok().flatten().is_some();
        if name.contains('/') {
            let path = Path::new("/").join(&start.working_dir).join(name);
            return there(&path).then_some(path);
        }
        let path = start.env.iter().rfind(|e| e.starts_with("PATH=")).map_or(DEFAULT_PATH, String::as_str);
        let directories = path["PATH=".len()..].split(':').filter(|d| d.starts_with('/'));
        directories.map(|d| Path::new(d).join(name)).find(|p| there(p))
    }

    /// The interpreter that a script's first line names.
    fn interpreter(&self, path: &Path) -> Option<String> {
        let mut first = Vec::new();
        self.root.open_file(path).ok()?.take(SHEBANG).read_to_end(&mut first).ok()?;
        let line = first.strip_prefix(b"#!")?.split(|b| *b == b'\n').next()?;
        let line = String::from_utf8_lossy(line).into_owned();
        let name = line.trim_matches([' ', '\t']).split([' ', '\t']).next()?;
        (!name.is_empty()).then(|| name.to_owned())
    }
}
